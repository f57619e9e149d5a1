"""Flax's `.msgpack` files (`flax.serialization.to_bytes`): nested tables with arrays in them, read in place.

References:
  MessagePack, specification, https://github.com/msgpack/msgpack/blob/master/spec.md
  Flax, serialization, https://github.com/google/flax/blob/main/flax/serialization.py
"""

from __future__ import annotations

import math
import struct
from typing import Any, NamedTuple

import numpy as np

from jaxlite.finetuning.weights import MOST_ARRAYS, Asker, Stored, Weights, _cut, dtype_named, stored, view

_MOST_DEPTH = 64
_ARRAY, _SCALAR = 1, 3  # of Flax's extension types; 2 is a complex number of Python
_NUMBERS = {0xCA: '>f', 0xCB: '>d', 0xCC: '>B', 0xCD: '>H', 0xCE: '>I', 0xCF: '>Q'}
_NUMBERS |= {0xD0: '>b', 0xD1: '>h', 0xD2: '>i', 0xD3: '>q'}
_CHUNKED = '__msgpack_chunked_array__'


class _Raw(NamedTuple):
  """Bytes that are not looked at: of an array."""

  start: int
  size: int


def is_msgpack(data: np.ndarray) -> bool:
  """Tells by the first byte: a table that is not empty."""
  return len(data) > 1 and (0x81 <= int(data[0]) <= 0x8F or int(data[0]) in (0xDE, 0xDF))


def read_msgpack(data: np.ndarray, where: str) -> Weights:
  """Reads where the arrays of a file of Flax lie; arrays are views of the mapped file.

  Raises:
    WeightsError: it is cut off, nested too deep, has a name twice, or an array that is not what it says.
  """
  asker = Asker(where, 'msgpack file of Flax')
  reader = _Reader(data, asker, 0, len(data))
  tree = reader.value(0)
  if reader.at != len(data):
    raise asker.refuse(f'its values end at byte {reader.at:,} of {len(data):,}')
  held: dict[str, Stored] = {}
  _gather(tree, '', held, asker)
  if not held:
    raise asker.refuse('it holds no arrays')
  asker.total(held, len(data))
  return Weights(held, where=where, form='msgpack', layout='jax')


def _gather(node: Any, path: str, held: dict[str, Stored], asker: Asker) -> None:
  if isinstance(node, Stored):
    held[asker.name(path)] = node
  elif isinstance(node, dict) and node.get(_CHUNKED) is True:
    held[asker.name(path)] = _whole(node, path, asker)
  elif isinstance(node, dict | list):
    for key, one in node.items() if isinstance(node, dict) else enumerate(node):
      inner = f'{path}/{key}' if path else str(key)
      if inner in held:
        raise asker.refuse(f'two arrays have the name {_cut(inner)}')
      _gather(one, inner, held, asker)


def _whole(node: dict[Any, Any], path: str, asker: Asker) -> Stored:
  """An array that Flax cut into pieces, since msgpack ends at 4 GiB."""
  shape, pieces = node.get('shape'), node.get('chunks')
  sizes = list(shape.values()) if isinstance(shape, dict) else shape
  parts = list(pieces.values()) if isinstance(pieces, dict) else pieces
  known = asker.shape(sizes, path)
  if not isinstance(parts, list) or not parts or not all(isinstance(one, Stored) for one in parts):
    raise asker.refuse(f'{_cut(path)} is in pieces, and they are not there')
  if len({one.dtype for one in parts}) > 1 or sum(math.prod(one.shape) for one in parts) != math.prod(known):
    raise asker.refuse(f'the pieces of {_cut(path)} are not its whole')
  join = lambda: np.concatenate([one.read().reshape(-1) for one in parts]).reshape(known)  # noqa: E731
  return Stored(known, parts[0].dtype, join)


class _Reader:
  """Reads values between two places of the file."""

  def __init__(self, data: np.ndarray, asker: Asker, at: int, end: int) -> None:
    self.data, self.asker, self.at, self.end, self.left = data, asker, at, end, MOST_ARRAYS * 4

  def take(self, size: int) -> bytes:
    """Takes the next bytes."""
    return bytes(self.data[self.skip(size) : self.at])

  def skip(self, size: int) -> int:
    """Passes bytes over, and says where they began."""
    if size < 0 or size > self.end - self.at:
      raise self.asker.refuse('it is cut off')
    self.at += size
    return self.at - size

  def size(self, form: str) -> int:
    """Reads a length."""
    return struct.unpack(form, self.take(struct.calcsize(form)))[0]

  def text(self, size: int) -> str:
    """Reads UTF-8."""
    try:
      return self.take(size).decode()
    except UnicodeDecodeError:
      raise self.asker.refuse('it has a text that is no UTF-8') from None

  def value(self, depth: int) -> Any:
    """Reads the next value."""
    self.left -= 1
    if depth > _MOST_DEPTH or self.left < 0:
      raise self.asker.refuse('it is nested more than weights are')
    code = self.take(1)[0]
    if code < 0x80 or code >= 0xE0:
      return code if code < 0x80 else code - 256
    if code < 0x90 or code in (0xDE, 0xDF):
      return self.table(code & 15 if code < 0x90 else self.size('>H' if code == 0xDE else '>I'), depth)
    if code < 0xA0 or code in (0xDC, 0xDD):
      count = code & 15 if code < 0xA0 else self.size('>H' if code == 0xDC else '>I')
      if count > self.end - self.at:
        raise self.asker.refuse('it is cut off')
      return [self.value(depth + 1) for _ in range(count)]
    if code < 0xC0 or code in (0xD9, 0xDA, 0xDB):
      return self.text(code & 31 if code < 0xC0 else self.size({0xD9: '>B', 0xDA: '>H', 0xDB: '>I'}[code]))
    if code in (0xC0, 0xC2, 0xC3):
      return {0xC0: None, 0xC2: False, 0xC3: True}[code]
    if code in (0xC4, 0xC5, 0xC6):
      size = self.size({0xC4: '>B', 0xC5: '>H', 0xC6: '>I'}[code])
      return _Raw(self.skip(size), size)
    if code in _NUMBERS:
      return self.size(_NUMBERS[code])
    if code in (0xC7, 0xC8, 0xC9) or 0xD4 <= code <= 0xD8:
      size = 1 << (code - 0xD4) if code >= 0xD4 else self.size({0xC7: '>B', 0xC8: '>H', 0xC9: '>I'}[code])
      return self.extended(self.size('>b'), size, depth)
    raise self.asker.refuse(f'it has a value of the unknown kind {code}')

  def table(self, count: int, depth: int) -> dict[Any, Any]:
    """Reads a table: names, each with a value."""
    if count > (self.end - self.at) // 2 + 1:
      raise self.asker.refuse('it is cut off')
    found: dict[Any, Any] = {}
    for _ in range(count):
      key = self.value(depth + 1)
      if not isinstance(key, str | int) or key in found:
        raise self.asker.refuse(f'it has the name {_cut(key)} twice, or for no name')
      found[key] = self.value(depth + 1)
    return found

  def extended(self, kind: int, size: int, depth: int) -> Any:
    """Reads an array of Flax: (shape, dtype, bytes)."""
    start = self.skip(size)
    if kind not in (_ARRAY, _SCALAR):
      return None
    inner = _Reader(self.data, self.asker, start, start + size)
    told = inner.value(depth + 1)
    if not isinstance(told, list) or len(told) != 3 or inner.at != inner.end:
      raise self.asker.refuse('it has an array without shape, dtype and bytes')
    shape, name, raw = told
    dtype = dtype_named(name) if isinstance(name, str) else None
    sizes = self.asker.shape(shape, 'an array')
    if dtype is None or not isinstance(raw, _Raw) or raw.size != math.prod(sizes) * dtype.itemsize:
      raise self.asker.refuse(f'it has an array {_cut(name)}{list(sizes)} of other bytes')
    if kind == _SCALAR:
      return stored(view(self.data, raw.start, sizes, dtype))
    data, begin = self.data, raw.start
    return Stored(sizes, dtype, lambda: view(data, begin, sizes, dtype))
