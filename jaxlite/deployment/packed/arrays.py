"""An array in the fewest bytes that give back every bit of it.

It is looked at first: one value repeated, whole numbers, whole numbers times a scale for each output, few different
values (a codebook), or any bits, cut into planes with the exponent first. Zeros are told apart by their place. Of what
comes out, bytes as they are and LZMA beside it, the shortest is taken.
"""

from __future__ import annotations

import lzma
import math
from typing import Any, NamedTuple

import numpy as np

from jaxlite.deployment.packed import entropy
from jaxlite.deployment.packed import values as packed_values
from jaxlite.deployment.packed.scales import Scaled, scaled, unscaled
from jaxlite.deployment.packed.values import FARTHEST, Models, Place
from jaxlite.deployment.packed.words import Reader, Unreadable, Writer

_RAW, _LZMA, _FILL, _WHOLE, _SCALED, _CODEBOOK, _PLANES = range(7)
_FILTERS = ({'id': lzma.FILTER_LZMA2, 'preset': 9 | lzma.PRESET_EXTREME, 'dict_size': 1 << 20},)
_SAMPLE = 1 << 16  # bytes that tell whether LZMA is worth its time


class Output(NamedTuple):
  """Where arrays are written: how each is told, a stream for all, bytes as they are."""

  words: Writer
  stream: entropy.Coder
  plain: bytearray
  models: Models


class Input(NamedTuple):
  """Where arrays are read: as Output, but for the words, which are read before."""

  stream: entropy.Coder
  plain: Reader
  models: Models


class Told(NamedTuple):
  """How an array is stored, as its words say."""

  dtype: np.dtype[Any]
  shape: tuple[int, ...]
  how: int
  plain: int = 0  # bytes as they are
  near: int = 0  # rows above that are alike; 0 where zeros are not mapped
  far: int = 0
  axis: bool = False  # a scale for each output
  shifted: bool = False  # -1 is the negative zero
  entries: int = 0  # of a codebook
  middle: int = 0  # which of them is zero
  bare: int = 0  # planes that are stored as they are, a bit each

  @property
  def size(self) -> int:
    return math.prod(self.shape)

  @property
  def bytes(self) -> int:
    return self.size * self.dtype.itemsize


def write(out: Output, array: np.ndarray, place: Place) -> np.ndarray:
  """Writes an array, but for its dtype and shape.

  Args:
    out: grows.
    array: of a dtype of numbers, little-endian.
    place: see there; the reader has to know the same.

  Returns:
    Its nonzero entries counted for each output, int64: what `Place.units` of the next layer is made of.
  """
  bits = bits_of(array)
  told = Told(array.dtype, array.shape, _RAW, plain=array.nbytes)
  plain: bytes = array.tobytes()
  if array.size > 1 and (bits.reshape(-1) == bits.reshape(-1)[0]).all():
    told, plain = told._replace(how=_FILL, plain=array.dtype.itemsize), plain[: array.dtype.itemsize]
  elif array.size > 1:
    before, length = entropy.state(out.stream), len(out.plain)
    out.models.settle()
    best, found = len(plain), None
    try:
      entropy.room(out.stream, len(plain))
      found = _coded(out, bits, array, place)
      best = min(best, out.stream.at - before[2] + len(out.plain) - length + 4)
    except entropy.Spent:
      pass
    packed = _by_lzma(plain, best)
    if packed is not None:
      told, plain = told._replace(how=_LZMA, plain=len(packed)), packed
    elif found is not None and best < len(plain):
      _tell(out.words, found)
      return kept(bits, place)
    entropy.back(out.stream, before)
    del out.plain[length:]
    out.models.undo()
  out.plain.extend(plain)
  _tell(out.words, told)
  return kept(bits, place)


def _by_lzma(plain: bytes, most: int) -> bytes | None:
  """What LZMA makes of bytes, where that is less than `most`; large ones are only tried where it looks like it."""
  if len(plain) <= 64:
    return None
  sample = plain[:_SAMPLE]
  if len(plain) > _SAMPLE:
    quick = lzma.compress(sample, lzma.FORMAT_RAW, filters=({'id': lzma.FILTER_LZMA2, 'preset': 0},))
    if len(quick) * len(plain) > 1.1 * most * len(sample):
      return None
  packed = lzma.compress(plain, lzma.FORMAT_RAW, filters=_FILTERS)
  return packed if len(packed) + 2 < most else None


def read(source: Input, told: Told, place: Place) -> np.ndarray:
  """Reads an array as its words tell."""
  if told.how in (_RAW, _FILL):
    values = np.frombuffer(source.plain.take(told.plain), told.dtype if told.dtype.kind != 'b' else np.uint8)
    values = values.astype(told.dtype)
    return np.full(told.shape, values[0], told.dtype) if told.how == _FILL else values.reshape(told.shape)
  if told.how == _LZMA:
    try:
      data = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=_FILTERS).decompress(
        source.plain.take(told.plain), max_length=told.bytes
      )
    except lzma.LZMAError:
      raise Unreadable('an array in it is damaged') from None
    if len(data) != told.bytes:
      raise Unreadable('an array in it is damaged')
    return np.frombuffer(data, told.dtype).reshape(told.shape).copy()
  try:
    return _decoded(source, told, place)
  except entropy.Spent:
    raise Unreadable('an array in it is damaged') from None


def read_told(words: Reader, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Told:
  """Reads how an array is stored; nothing is believed that cannot be."""
  how = words.number(_PLANES)
  told = Told(dtype, shape, how)
  if how in (_RAW, _FILL):
    return told._replace(plain=told.bytes if how == _RAW else dtype.itemsize)
  if how == _LZMA:
    return told._replace(plain=words.number(told.bytes))
  if told.size < 2:
    raise Unreadable('a single number in it is coded as many')
  told = told._replace(near=words.number(FARTHEST))
  if told.near:
    told = told._replace(far=max(1, words.number(FARTHEST)))
  if how == _WHOLE and dtype.kind not in 'iub':
    raise Unreadable('an array in it is coded as another kind of numbers')
  if how == _SCALED:
    if dtype != np.float32:
      raise Unreadable('an array in it has scales that its numbers cannot have')
    flags = words.number(3)
    told = told._replace(axis=bool(flags & 1), shifted=bool(flags & 2))
  elif how == _CODEBOOK:
    entries = words.number(256)
    told = told._replace(entries=entries, middle=words.number(max(0, entries - 1)))
  elif how == _PLANES:
    told = told._replace(bare=words.number((1 << dtype.itemsize) - 1))
  return told


def _tell(words: Writer, told: Told) -> None:
  words.number(told.how)
  if told.how == _LZMA:
    words.number(told.plain)
  if told.how < _WHOLE:
    return
  words.number(told.near)
  if told.near:
    words.number(told.far)
  if told.how == _SCALED:
    words.number(told.axis | told.shifted << 1)
  elif told.how == _CODEBOOK:
    words.number(told.entries)
    words.number(told.middle)
  elif told.how == _PLANES:
    words.number(told.bare)


def bits_of(array: np.ndarray) -> np.ndarray:
  """The same bits as whole numbers from 0; of complex numbers, two for each."""
  if array.dtype.kind == 'c':
    half = np.dtype(f'<f{array.dtype.itemsize // 2}')
    return bits_of(np.ascontiguousarray(array).reshape(*array.shape, 1).view(half))
  return np.ascontiguousarray(array).view(f'<u{array.dtype.itemsize}')


def kept(bits: np.ndarray, place: Place) -> np.ndarray:
  return np.count_nonzero(_matrix(bits, place), axis=0)


def _sizes(shape: tuple[int, ...], place: Place) -> tuple[int, int]:
  """Rows and columns of the matrix that an array is taken as: a column for each output."""
  if len(shape) < 2:
    return 1, math.prod(shape)
  columns = shape[place.axis]
  return math.prod(shape) // max(columns, 1), columns


def _matrix(array: np.ndarray, place: Place) -> np.ndarray:
  rows, columns = _sizes(array.shape, place)
  return (np.moveaxis(array, place.axis, -1) if array.ndim > 1 else array).reshape(rows, columns)


def _array(matrix: np.ndarray, shape: tuple[int, ...], place: Place) -> np.ndarray:
  if len(shape) < 2:
    return matrix.reshape(shape)
  axis = place.axis % len(shape)
  return np.moveaxis(matrix.reshape(*shape[:axis], *shape[axis + 1 :], shape[axis]), -1, axis)


# --- writing and reading what was recognized ------------------------------------------------------------------------


def _coded(out: Output, bits: np.ndarray, array: np.ndarray, place: Place) -> Told:
  stream, models = out.stream, out.models
  told = Told(array.dtype, array.shape, _PLANES)
  matrix = _matrix(bits, place) if array.dtype.kind != 'c' else bits.reshape(1, -1)
  near, far = packed_values.alike(matrix)
  told = told._replace(near=near, far=far)
  entries = np.unique(matrix) if array.size < 1 << 22 else np.zeros(0, matrix.dtype)
  few = 1 < len(entries) <= min(256, array.size // 4)
  found = None
  if array.dtype.kind in 'iub' and (array.dtype.itemsize < 4 or np.abs(array.astype(np.float64)).max() < 1 << 32):
    found = Scaled(_matrix(array, place).astype(np.int64), np.ones(1, np.float32), False)
  elif array.dtype == np.float32:
    found = scaled(_matrix(array, place))
  if found is not None and not (few and len(found.scales) == 1 and np.ptp(found.numbers) > 2 * len(entries)):
    if array.dtype == np.float32:
      told = told._replace(how=_SCALED, axis=len(found.scales) > 1, shifted=found.shifted)
      bare = (1 << 4) - 1 if len(found.scales) < 8 else 0
      packed_values.planes(stream, models, found.scales.view(np.uint32).reshape(1, -1), 4, True, bare, out.plain)
    packed_values.numbers(stream, models, 'whole', found.numbers, _how(told, place))
    return told._replace(how=told.how if told.how == _SCALED else _WHOLE)
  if few:
    book = entries[np.argsort(_ordered(entries, array.dtype), kind='stable')]
    middle = int(np.flatnonzero(book == 0)[0]) if 0 in book else 0
    order = np.argsort(book)
    numbers = order[np.searchsorted(book[order], matrix)].astype(np.int64) - middle
    out.plain.extend(book.tobytes())
    told = told._replace(how=_CODEBOOK, entries=len(book), middle=middle)
    packed_values.numbers(stream, models, ('book', len(book).bit_length()), numbers, _how(told, place))
    return told
  if near:
    packed_values.zero_map(stream, models, (matrix != 0).view(np.uint8), _how(told, place))
    matrix = matrix[matrix != 0].reshape(1, -1)
  rotated = array.dtype.kind not in 'iub'
  bare = packed_values.planes(stream, models, matrix, matrix.dtype.itemsize, rotated, None, out.plain)
  return told._replace(bare=bare)


def _decoded(source: Input, told: Told, place: Place) -> np.ndarray:
  stream, models, dtype = source.stream, source.models, told.dtype
  rows, columns = _sizes(told.shape, place)
  if dtype.kind == 'c':
    rows, columns = 1, 2 * told.size
  width = dtype.itemsize // 2 if dtype.kind == 'c' else dtype.itemsize
  if told.how in (_WHOLE, _SCALED, _CODEBOOK):
    scales = np.zeros((1, columns if told.axis else 1), np.uint32)
    if told.how == _SCALED:
      bare = (1 << 4) - 1 if scales.size < 8 else 0
      packed_values.planes(stream, models, scales, 4, True, bare, source.plain)
    book = source.plain.take(told.entries * width)
    numbers = np.zeros((rows, columns), np.int64)
    kind = 'whole' if told.how != _CODEBOOK else ('book', told.entries.bit_length())
    packed_values.numbers(stream, models, kind, numbers, _how(told, place))
    if told.how == _WHOLE:
      matrix = numbers.astype(dtype)
    elif told.how == _SCALED:
      matrix = unscaled(Scaled(numbers, scales[0].view(np.float32), told.shifted))
    else:
      numbers += told.middle
      if not ((numbers >= 0) & (numbers < told.entries)).all():
        raise Unreadable('an array in it has values that its codebook lacks')
      matrix = np.frombuffer(book, f'<u{width}')[numbers]
    return _placed(matrix, told, place)
  matrix = np.zeros((rows, columns), f'<u{width}')
  if told.near:
    flags = np.zeros((rows, columns), np.uint8)
    packed_values.zero_map(stream, models, flags, _how(told, place))
    values = np.zeros((1, np.count_nonzero(flags)), matrix.dtype)
    packed_values.planes(stream, models, values, width, dtype.kind not in 'iub', told.bare, source.plain)
    matrix[flags != 0] = values[0]
  else:
    packed_values.planes(stream, models, matrix, width, dtype.kind not in 'iub', told.bare, source.plain)
  return _placed(matrix, told, place)


def _placed(matrix: np.ndarray, told: Told, place: Place) -> np.ndarray:
  """The array of a matrix of values or of their bits."""
  values = matrix.view(told.dtype)
  return (
    values.reshape(told.shape) if told.dtype.kind == 'c' else np.ascontiguousarray(_array(values, told.shape, place))
  )


def _how(told: Told, place: Place) -> packed_values.How:
  return packed_values.How(told.near, told.far, place.units)


def _ordered(bits: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
  """Numbers in the order of what the bits mean, the negative zero below zero."""
  if dtype.kind in 'iub':
    return bits.view(dtype)
  wide = bits.astype(np.uint64)
  top = np.uint64(1) << np.uint64(8 * bits.dtype.itemsize - 1)
  size = (wide & (top - np.uint64(1))).astype(np.int64)
  return np.where(wide & top, ~size, size)
