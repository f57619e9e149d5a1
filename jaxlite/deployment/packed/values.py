"""Zeros, whole numbers and bits of a matrix in a stream: what is known of each when its turn comes.

Every function writes, or fills in what it is given where the stream is read.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from jaxlite.deployment.packed import entropy

_PART = 1 << 18  # entries whose contexts are in memory at once
WIDEST = 1 << 16  # columns of a matrix whose zeros are mapped
FARTHEST = 256  # rows above that may be most alike
_LOOKED_AT = 4096  # rows that say which


class Place(NamedTuple):
  """What is known of an array from the network around it.

  Attributes:
    axis: of outputs.
    units: int64, how many inputs each unit of the layer before keeps, or None.
  """

  axis: int = -1
  units: np.ndarray | None = None


class How(NamedTuple):
  """How the zeros of a matrix are told.

  Attributes:
    near, far: how many rows above those stand that are most alike; 0 where zeros are numbers as any.
    units: as in `Place`.
  """

  near: int
  far: int
  units: np.ndarray | None


class Models:
  """What is learned from one array for the next: of zeros, and of each kind of values; what is looked at says the
  version of the format."""

  def __init__(self, version: int = entropy.VERSION) -> None:
    self.version = version
    self.all: dict[Any, entropy.Model] = {}
    self.before: dict[Any, entropy.Model | None] = {}

  def of(self, kind: Any) -> entropy.Model:
    """Returns a model, to learn from what comes."""
    if kind not in self.before:
      self.before[kind] = self.all[kind].copy() if kind in self.all else None
    if kind not in self.all:
      self.all[kind] = entropy.zeros_model(self.version) if kind == 'zeros' else entropy.symbols_model()
    return self.all[kind]

  def unlearn(self, kind: Any, saved: entropy.Model | None) -> None:
    """A model is as it was: as `saved`; None: as before this array, of which it has learned nothing else."""
    if saved is None:
      saved = self.before.pop(kind)
    if saved is None:
      del self.all[kind]
    else:
      self.all[kind] = saved

  def settle(self) -> None:
    """What was learned stays."""
    self.before.clear()

  def undo(self) -> None:
    """What was learned since the last `settle` is forgotten."""
    for kind, model in self.before.items():
      if model is None:
        del self.all[kind]
      else:
        self.all[kind] = model
    self.before.clear()


def alike(matrix: np.ndarray) -> tuple[int, int]:
  """How far above those two rows stand whose zeros are most alike; (0, 0) where zeros are not worth a map."""
  rows, columns = matrix.shape
  empty = matrix.size - np.count_nonzero(matrix)
  if rows < 4 or not 2 <= columns <= WIDEST or empty * 16 < matrix.size:
    return 0, 0
  flags = matrix[:_LOOKED_AT, :: max(1, columns // 64)] != 0
  far = min(len(flags) - 1, FARTHEST)
  likeness = []  # in whole numbers, so that every machine writes the same file
  for step in range(1, far + 1):
    same = flags[step:] == flags[:-step]
    likeness.append(np.count_nonzero(same) * (1 << 32) // same.size)
  first, second = (np.argsort(np.negative(likeness), kind='stable')[:2] + 1).tolist()
  return first, second


def zero_map(stream: Any, models: Models, flags: np.ndarray, how: How) -> None:
  """Codes which entries of a matrix are not zero, or fills them in: uint8[rows, columns]."""
  rows, _ = flags.shape
  units = np.zeros(rows, np.int64)
  known = how.units
  if known is not None and len(known) and rows % len(known) == 0:
    level = np.minimum(np.frexp((known + 1.0) ** 2)[1] - 1, 15)  # whole numbers below 2^53: exact
    units = level[np.arange(rows) % len(known)].astype(np.int64)
  model, lanes = models.of('zeros'), entropy.lanes_for(flags.size)
  entropy.zeros(stream, flags, model, lanes, how.near, how.far, units, models.version)


def numbers(stream: Any, models: Models, kind: Any, matrix: np.ndarray, how: How) -> None:
  """Codes whole numbers, or fills them in."""
  flags = None
  if how.near:
    flags = (matrix != 0).view(np.uint8)
    zero_map(stream, models, flags, how)
  what = entropy.NONZERO if how.near else entropy.NUMBERS
  model = models.of((kind, what))
  for part in _parts(matrix.shape):
    block = matrix[part]
    there = None if flags is None else flags[part] != 0
    contexts = _contexts(block.shape, there, how.near or 1, how.far or 2, models.version)
    values = (block.reshape(-1) if there is None else block[there]).astype(np.int64)
    lanes = entropy.lanes_for(4 * len(values))
    if models.version > 1:  # few lanes: the signs beside are known, too
      lanes = min(lanes, max(8, len(values) >> 10))
    entropy.symbols(stream, values, model, lanes, what, *contexts)
    if stream.decodes:
      block[... if there is None else there] = values.reshape(block.shape) if there is None else values


def _parts(shape: tuple[int, int]) -> Iterator[tuple[slice, slice]]:
  rows, columns = shape
  many = max(1, _PART // max(columns, 1))
  for row in range(0, rows, many):
    for column in range(0, columns, _PART):
      yield slice(row, row + many), slice(column, column + _PART)


def _contexts(
  shape: tuple[int, ...], there: np.ndarray | None, near: int, far: int, version: int
) -> tuple[np.ndarray, ...]:
  """What is known of each value before it is: for `entropy.symbols`."""
  rows, columns = shape
  if there is None:
    row, column = np.divmod(np.arange(rows * columns), max(columns, 1))
    index = np.arange(rows * columns).reshape(shape)
    wide = np.zeros((2, rows * columns), np.int64)
  else:
    row, column = np.nonzero(there)
    index = np.full(shape, -1)
    index[there] = np.arange(len(row))
    framed = np.pad(there.astype(np.int64), ((max(near, far),) * 2, (1, 1)))
    top = max(near, far)

    def beside(down: int, right: int) -> np.ndarray:
      return framed[top + down : top + down + rows, 1 + right : 1 + right + columns][row, column]

    around = beside(-near, 0) + beside(near, 0) + beside(-far, 0) + beside(far, 0)
    each = [np.minimum(np.frexp(there.sum(axis) + 1.0)[1] - 1, 7) for axis in (1, 0)]
    wide = np.stack([around * 2 + (beside(0, -1) + beside(0, 1) > 0), each[0][row] * 8 + each[1][column]])
  above = (near, far) if version == 1 else (near, far, near + far, abs(far - near) or near, 2 * near, 2 * far)
  before = [np.where(row >= step, index[np.maximum(row - step, 0), column], -1) for step in above]
  return np.stack([row % entropy.PLACES, column % entropy.PLACES]), wide, np.stack(before)


def planes(
  stream: Any, models: Models, bits: np.ndarray, width: int, rotated: bool, bare: int | None, plain: Any
) -> int:
  """Codes any bits [rows, columns], the most telling byte first; returns which planes are stored as they are.

  Args:
    bits: filled in where the stream is read.
    rotated: their first bit is a sign, which comes last.
    bare: which planes are stored as they are, a bit each; None to find out by trying.
    plain: where these are.
  """
  flat = bits.reshape(-1)
  last, one = np.array(8 * width - 1, bits.dtype), np.array(1, bits.dtype)
  turned = (flat << one | flat >> last) if rotated else flat.copy()
  found = 0
  above = np.zeros(flat.size, np.int64)
  for plane in range(width):
    shift = np.array(8 * (width - 1 - plane), bits.dtype)
    values = (turned >> shift & np.array(255, bits.dtype)).astype(np.int64)
    mine = bool(bare >> plane & 1) if bare is not None else False
    if not mine:
      kind = ('plane', width, rotated, plane)
      again = kind in models.before
      model = models.of(kind)  # which keeps a copy, unless there is one
      before, saved = entropy.state(stream), model.copy() if again else None
      try:
        _plane(stream, model, values, above, bits.shape)
        mine = bare is None and stream.at - before[2] >= flat.size
      except entropy.Spent:
        if bare is not None:
          raise
        mine = True
      if mine:
        entropy.back(stream, before)
        models.unlearn(kind, saved)
    if mine:
      found |= 1 << plane
      if stream.decodes:
        values = np.frombuffer(plain.take(flat.size), np.uint8).astype(np.int64)
      else:
        plain += values.astype(np.uint8).tobytes()
    if stream.decodes:
      turned |= values.astype(bits.dtype) << shift
    above = values
  if stream.decodes:
    flat[:] = (turned >> one | turned << last) if rotated else turned
  return found


def _plane(stream: Any, model: entropy.Model, values: np.ndarray, above: np.ndarray, shape: tuple[int, ...]) -> None:
  columns = shape[1]
  for start in range(0, values.size, _PART):
    part = slice(start, start + _PART)
    index = np.arange(len(values[part]))
    before = [np.where(index >= step, index - step, -1) for step in (1, max(columns, 2))]
    narrow = np.stack(
      [(index + start) // max(columns, 1) % entropy.PLACES, (index + start) % max(columns, 1) % entropy.PLACES]
    )
    wide = np.stack([above[part] & 63, above[part] >> 2])
    found = values[part].copy()
    entropy.symbols(
      stream, found, model, entropy.lanes_for(4 * len(index)), entropy.BYTES, narrow, wide, np.stack(before)
    )
    values[part] = found
