"""Arrays as a safetensors file, which every framework's loader takes: a table in JSON, then the bytes.

References:
  Hugging Face, Safetensors, format, 2022, https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxlite.host.files import parsed_json, read_file, write_bytes

_KINDS = {
  **{'bool': 'BOOL', 'uint8': 'U8', 'int8': 'I8', 'uint16': 'U16', 'int16': 'I16', 'uint32': 'U32', 'int32': 'I32'},
  **{'uint64': 'U64', 'int64': 'I64', 'float16': 'F16', 'bfloat16': 'BF16', 'float32': 'F32', 'float64': 'F64'},
}
_MOST_HEADER = 100_000_000  # bytes: what other readers allow


def safetensors_bytes(arrays: Mapping[str, Any], about: Mapping[str, str] | None = None) -> bytes:
  """Returns arrays as the bytes of a safetensors file.

  Args:
    arrays: by name.
    about: what its metadata says, by key.

  Raises:
    ValueError: a dtype that the format has no word for.

  >>> arrays, about = read_safetensors(safetensors_bytes({'w': np.ones((1, 2), np.float32)}, {'version': '1'}))
  >>> arrays['w'].tolist(), about
  ([[1.0, 1.0]], {'version': '1'})
  """
  table: dict[str, Any] = {'__metadata__': dict(about)} if about else {}
  parts, start = [], 0
  # The widest first, as other writers do: then each array starts at a multiple of its entries' size.
  for name in sorted(arrays, key=lambda one: (-np.asarray(arrays[one]).dtype.itemsize, one)):
    array = np.asarray(arrays[name])
    kind = _KINDS.get(str(array.dtype))
    if kind is None:
      raise ValueError(f'safetensors has no word for {array.dtype}, the dtype of {name!r}: leave it out, or convert it')
    little = array.astype(array.dtype.newbyteorder('<'), order='C') if array.dtype.byteorder == '>' else array
    data = np.ascontiguousarray(little).tobytes()
    table[name] = {'dtype': kind, 'shape': list(array.shape), 'data_offsets': [start, start + len(data)]}
    parts.append(data)
    start += len(data)
  header = json.dumps(table, separators=(',', ':')).encode()
  header += b' ' * (-len(header) % 8)
  return b''.join([len(header).to_bytes(8, 'little'), header, *parts])


def write_safetensors(
  path: str | os.PathLike[str], arrays: Mapping[str, Any], about: Mapping[str, str] | None = None
) -> None:
  """Writes a safetensors file, whole or not at all; see `safetensors_bytes`."""
  write_bytes(path, safetensors_bytes(arrays, about))


def read_safetensors(source: str | os.PathLike[str] | bytes) -> tuple[dict[str, np.ndarray], dict[str, str]]:
  """Returns the arrays of a safetensors file, and its metadata.

  Raises:
    ValueError: it is none: cut off, of another length than it says, or with overlapping arrays.
  """
  data = source if isinstance(source, bytes) else read_file(Path(source))
  no = 'no safetensors file' if isinstance(source, bytes) else f'{source} is no whole safetensors file'
  size = int.from_bytes(data[:8], 'little')
  if len(data) < 8 or size > min(_MOST_HEADER, len(data) - 8):
    raise ValueError(f'{no}: it is shorter than it says')
  try:
    table = parsed_json(data[8 : 8 + size])
    about = table.pop('__metadata__', {})
    found = {name: _array(data[8 + size :], **told) for name, told in table.items()}
    ends = sorted(told['data_offsets'] for told in table.values())
  except (ValueError, TypeError, LookupError, AttributeError, UnicodeDecodeError) as error:
    raise ValueError(f'{no}: its table or what it speaks of is damaged ({type(error).__name__})') from None
  whole = [0, *(end for _, end in ends)]
  if [start for start, _ in ends] != whole[:-1] or whole[-1] != len(data) - 8 - size:
    raise ValueError(f'{no}: its arrays overlap, or bytes are left over')
  return found, about


def _array(data: bytes, *, dtype: str, shape: list[int], data_offsets: list[int]) -> np.ndarray:
  kind = np.dtype(jnp.dtype({word: name for name, word in _KINDS.items()}[dtype]))
  start, stop = data_offsets
  if not 0 <= start <= stop <= len(data) or any(type(one) is not int or one < 0 for one in shape):
    raise ValueError('out of bounds')
  return np.frombuffer(data[start:stop], kind).reshape(shape)
