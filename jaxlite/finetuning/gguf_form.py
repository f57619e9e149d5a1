"""GGUF files (llama.cpp's): metadata with the tokenizer, and tensors that are mostly stored in blocks of few bits.

A tensor is float32 once it is read, or what it was stored as if that was floating; the sizes in the file stand
innermost first, and are given the other way round, as PyTorch has them ([out, in]). The query and key of Llama's kind
are stored with their rows permuted for rotary embeddings of neighboring pairs; they are given as stored.

References:
  ggml-org, GGUF, https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import struct
from typing import Any

import numpy as np

from jaxlite.finetuning.gguf_blocks import KINDS, OTHERS, PLAIN, Kind, decoded
from jaxlite.finetuning.weights import MOST_ARRAYS, Asker, Stored, Weights, _cut, dtype_named, view

_SCALARS = {0: '<u1', 1: '<i1', 2: '<u2', 3: '<i2', 4: '<u4', 5: '<i4', 6: '<f4', 7: '|b1', 10: '<u8', 11: '<i8'}
_SCALARS[12] = '<f8'
_TEXT, _LIST = 8, 9
_MOST_DEPTH = 4
_MOST_TEXTS = 4_000_000  # of a vocabulary and its merges
_MOST_AXES = 8
_ALIGNMENT = 32
_SHORTEST = 8 + 4 + 4 + 8  # bytes that a tensor's entry takes at least
_SHORTEST_PAIR = 8 + 4 + 1


def is_gguf(data: np.ndarray) -> bool:
  """Tells by the first bytes."""
  return bytes(data[:4]) == b'GGUF'


def read_gguf(data: np.ndarray, where: str) -> Weights:
  """Reads the head of a GGUF file: metadata (`about`) and where each tensor lies.

  Args:
    data: uint8[bytes], the mapped file.
    where: names it in errors.

  Raises:
    WeightsError: it is cut off, of another version, or holds kinds of blocks that are not read.
  """
  asker = Asker(where, 'GGUF file')
  reader = _Reader(data, asker)
  version = reader.number('<I')
  if version not in (2, 3):
    swapped = int.from_bytes(version.to_bytes(4, 'little'), 'big')
    why = 'its bytes are in the other order' if swapped in (2, 3) else f'it is of version {version}'
    raise asker.refuse(why, 'convert it with a newer llama.cpp')
  tensors, pairs = reader.number('<Q'), reader.number('<Q')
  if tensors > min(MOST_ARRAYS, len(data) // _SHORTEST) or pairs > len(data) // _SHORTEST_PAIR:
    raise asker.refuse(f'it declares {tensors:,} tensors and {pairs:,} entries in {len(data):,} bytes')
  about: dict[str, Any] = {}
  for _ in range(pairs):
    key = asker.name(reader.text())
    if key in about:
      raise asker.refuse(f'its metadata have {_cut(key)} twice')
    about[key] = reader.value(reader.number('<I'))
  entries = [reader.entry() for _ in range(tensors)]
  align = about.get('general.alignment', _ALIGNMENT)
  if type(align) is not int or not 1 <= align <= 1 << 16 or align & (align - 1):
    raise asker.refuse(f'its alignment is {_cut(align)}')
  body = data[-(-reader.at // align) * align :]
  held, places = _held(entries, body, align, asker)
  at, last = 0, ''
  for start, stop, name in sorted(places):
    if start < at:
      raise asker.refuse(f'the bytes of {last!r} and {name!r} overlap')
    at, last = stop, name
  asker.total(held, len(data))
  return Weights(held, where=where, form='gguf', layout='torch', about=about)


def _held(entries: list[Any], body: np.ndarray, align: int, asker: Asker) -> Any:
  held: dict[str, Stored] = {}
  places: list[tuple[int, int, str]] = []
  unread: dict[str, int] = {}
  for name, shape, code, start in entries:
    if name in held:
      raise asker.refuse(f'two tensors have the name {_cut(name)}')
    kind, plain = KINDS.get(code), dtype_named(PLAIN.get(code, ''))
    count = math.prod(shape)
    if kind is not None:
      if not shape or shape[-1] % kind.entries:
        raise asker.refuse(f'{name!r} has the shape {list(shape)}, no whole blocks of {kind.entries}')
      size = count // kind.entries * kind.bytes
    elif plain is not None:
      size = count * plain.itemsize
    else:
      unread[OTHERS.get(code, f'number {code}')] = unread.get(OTHERS.get(code, f'number {code}'), 0) + 1
      continue
    if start % align or start + size > len(body):
      raise asker.refuse(f'{name!r} lies at byte {start:,} to {start + size:,} of {len(body):,}')
    places.append((start, start + size, name))
    held[name] = _stored(body, start, size, shape, kind, plain)
  if unread:
    told = ', '.join(f'{count} of {name}' for name, count in unread.items())
    known = ', '.join([one.name for one in KINDS.values()])
    raise asker.refuse(
      f'it has tensors stored as {told}; read are {known} and floats', 'get the file in one of these (or F16)'
    )
  return held, places


def _stored(
  body: np.ndarray, start: int, size: int, shape: tuple[int, ...], kind: Kind | None, plain: np.dtype | None
) -> Stored:
  if kind is not None:
    part = body[start : start + size]
    return Stored(shape, np.dtype(np.float32), lambda: decoded(part, kind).reshape(shape))
  assert plain is not None
  return Stored(shape, plain, lambda: view(body, start, shape, plain))


class _Reader:
  """Reads the head of a file value by value, never beyond its end."""

  def __init__(self, data: np.ndarray, asker: Asker) -> None:
    self.data, self.asker, self.at, self.texts = data.data, asker, 4, 0

  def take(self, size: int) -> memoryview:
    """Takes the next bytes."""
    if size > len(self.data) - self.at:
      raise self.asker.refuse('it is cut off')
    part = self.data[self.at : self.at + size]
    self.at += size
    return part

  def number(self, form: str) -> int:
    """Reads a whole number."""
    return struct.unpack(form, self.take(struct.calcsize(form)))[0]

  def text(self) -> str:
    """Reads a text: its length, then UTF-8."""
    self.texts += 1
    if self.texts > _MOST_TEXTS:
      raise self.asker.refuse(f'it has more than {_MOST_TEXTS:,} texts')
    part = self.take(self.number('<Q'))
    try:
      return str(part, 'utf-8', 'strict')
    except UnicodeDecodeError:
      raise self.asker.refuse('it has a text that is no UTF-8') from None

  def value(self, code: int, depth: int = 0) -> Any:
    """Reads a value of a kind: a number, a truth value, a text, or a list of one kind."""
    if code == _TEXT:
      return self.text()
    if code == _LIST:
      inner, count = self.number('<I'), self.number('<Q')
      if inner in _SCALARS:
        dtype = np.dtype(_SCALARS[inner])
        return np.frombuffer(self.take(count * dtype.itemsize), dtype)
      least = {_TEXT: 8, _LIST: 12}.get(inner, 0)
      if not least or depth >= _MOST_DEPTH or count > (len(self.data) - self.at) // least:
        raise self.asker.refuse(f'its metadata have a list of {count:,} values of kind {inner}')
      return [self.value(inner, depth + 1) for _ in range(count)]
    if code not in _SCALARS:
      raise self.asker.refuse(f'its metadata have a value of kind {code}')
    dtype = np.dtype(_SCALARS[code])
    raw = self.take(dtype.itemsize)
    return bool(raw[0]) if code == 7 else np.frombuffer(raw, dtype)[0].item()

  def entry(self) -> tuple[str, tuple[int, ...], int, int]:
    """Reads what is said of one tensor: name, shape, kind, where it begins."""
    name = self.asker.name(self.text())
    axes = self.number('<I')
    if axes > _MOST_AXES:
      raise self.asker.refuse(f'{name!r} has {axes:,} axes')
    shape = self.asker.shape([self.number('<Q') for _ in range(axes)][::-1], name)
    return name, shape, self.number('<I'), self.number('<Q')
