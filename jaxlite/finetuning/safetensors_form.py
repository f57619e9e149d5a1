"""Safetensors files: a table in JSON, then the bytes. Each array is a view of the mapped file.

References:
  Hugging Face, Safetensors, format, 2022, https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np

from jaxlite.finetuning.weights import Asker, Stored, Weights, _cut, dtype_named, view

_KINDS = {
  **{'BOOL': 'bool', 'U8': 'uint8', 'I8': 'int8', 'U16': 'uint16', 'I16': 'int16', 'U32': 'uint32', 'I32': 'int32'},
  **{'U64': 'uint64', 'I64': 'int64', 'F16': 'float16', 'BF16': 'bfloat16', 'F32': 'float32', 'F64': 'float64'},
  **{'F8_E4M3': 'float8_e4m3fn', 'F8_E5M2': 'float8_e5m2', 'C64': 'complex64'},
  **{'F8_E4M3FNUZ': 'float8_e4m3fnuz', 'F8_E5M2FNUZ': 'float8_e5m2fnuz'},
}
_MOST_TABLE = 16 << 20  # bytes: 150,000 arrays
_FEWEST_A_BRACKET = 10  # bytes of table for each object or list in it; real ones have 16 and more


def is_safetensors(data: np.ndarray) -> bool:
  """Tells by the first bytes."""
  size = int.from_bytes(bytes(data[:8]), 'little')
  return len(data) > 9 and bytes(data[8:9]) == b'{' and size < 1 << 40


def read_safetensors(data: np.ndarray, where: str) -> Weights:
  """Reads the table of a safetensors file; arrays are read when asked for.

  Args:
    data: uint8[bytes], the mapped file.
    where: names it in errors.

  Raises:
    WeightsError: it is cut off, its table is none, or its arrays overlap, leave holes or lie beyond its end.
  """
  asker = Asker(where, 'safetensors file')
  size = int.from_bytes(bytes(data[:8]), 'little')
  room = len(data) - 8
  if room < 0 or size > room:
    raise asker.refuse(f'its table has {size:,} bytes and {max(room, 0):,} follow')
  if size > _MOST_TABLE:
    raise asker.refuse(f'its table has {size:,} bytes; at most {_MOST_TABLE:,} are read', 'split the file')
  table = _table(bytes(data[8 : 8 + size]), asker)
  about = table.pop('__metadata__', {})
  if not isinstance(about, dict) or any(not isinstance(one, str) for one in about.values()):
    raise asker.refuse('its metadata are no table of texts')
  body = data[8 + size :]
  held, places = {}, []
  for name, told in table.items():
    held[asker.name(name)], place = _entry(body, name, told, asker)
    places.append((*place, name))
  at = 0
  for start, stop, name in sorted(places):
    if start != at:
      raise asker.refuse(f'the bytes of {name!r} begin at {start:,} where {at:,} is next')
    at = stop
  if at != len(body):
    raise asker.refuse(f'its arrays take {at:,} bytes and {len(body):,} follow its table')
  asker.total(held, len(data))
  layout = {'pt': 'torch', 'flax': 'jax', 'tf': 'jax'}.get(about.get('format', ''), '')
  return Weights(held, where=where, form='safetensors', layout=layout, about=about)


def _table(text: bytes, asker: Asker) -> dict[str, Any]:
  if (text.count(b'{') + text.count(b'[')) * _FEWEST_A_BRACKET > len(text) + 64:
    raise asker.refuse('its table is nested more than a table of arrays is')
  try:
    table = json.loads(text.decode(), object_pairs_hook=asker.once)
  except (ValueError, RecursionError) as error:
    if type(error).__name__ == 'WeightsError':
      raise
    raise asker.refuse(f'its table is no JSON ({type(error).__name__})') from None
  if not isinstance(table, dict):
    raise asker.refuse('its table is no JSON object')
  return table


def _entry(body: np.ndarray, name: str, told: Any, asker: Asker) -> tuple[Stored, tuple[int, int]]:
  if not isinstance(told, dict) or set(told) != {'dtype', 'shape', 'data_offsets'}:
    raise asker.refuse(f'{name!r} has no dtype, shape and data_offsets')
  dtype = dtype_named(_KINDS.get(told['dtype'], '')) if isinstance(told['dtype'], str) else None
  if dtype is None:
    raise asker.refuse(
      f'{name!r} has the dtype {_cut(told["dtype"])}; read are {", ".join(_KINDS)}', 'save it in one of these'
    )
  shape, ends = asker.shape(told['shape'], name), told['data_offsets']
  if not isinstance(ends, list) or len(ends) != 2 or any(type(one) is not int for one in ends):
    raise asker.refuse(f'{name!r} has the offsets {_cut(ends)}')
  start, stop = ends
  if not 0 <= start <= stop <= len(body):
    raise asker.refuse(f'{name!r} lies at {_cut(start)} to {_cut(stop)} of {len(body):,} bytes')
  if stop - start != math.prod(shape) * dtype.itemsize:
    raise asker.refuse(f'{name!r} is {dtype}{list(shape)} and has {stop - start:,} bytes')

  def read() -> np.ndarray:
    if dtype == np.bool_ and (view(body, start, shape, np.dtype(np.uint8)) > 1).any():
      raise asker.refuse(f'{name!r} is bool and has entries other than 0 and 1')
    return view(body, start, shape, dtype)

  return Stored(shape, dtype, read), (start, stop)
