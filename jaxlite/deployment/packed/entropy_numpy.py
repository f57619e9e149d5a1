"""The models of `entropy.c` in NumPy, for machines without a C compiler: the same bytes, some twenty times slower.

Whole numbers alone decide, so nothing depends on how a machine rounds. A step works on up to 64 lanes at once: all are
predicted, then coded one after the other, then all are learned from.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

LANES = 64
INPUTS = 9  # of a mixer at most, the last one constant
LIMIT = 1000  # above it a pair of counts is halved
MOST = 3071  # of a logit, in 1/256 of an octave
NODES = 384  # of the tree that a whole number is a leaf of
DENSITIES = {1: 912, 2: 3897}  # cells that know no row and no column, of a map of zeros, by version;
SHARED = 897 * NODES  # of symbols
_TOP, _ALL = 0xFF000000, 0xFFFFFFFF


@functools.cache
def tables() -> tuple[np.ndarray, np.ndarray]:
  """Returns floor(256 log2(5 n + 2)) by n and 65536 / (1 + 2^(-x / 256)) by x + MOST, int32, without any float."""
  logs = [((5 * n + 2) ** 256).bit_length() - 1 for n in range(LIMIT + LANES + 1)]
  root = 2 << 96
  for _ in range(8):  # the 256th root of 2
    root = math.isqrt(root << 96)
  fractions = [1 << 96]
  for _ in range(255):
    fractions.append(fractions[-1] * root >> 96)
  odds = []
  for x in range(MOST + 1):
    power = fractions[x & 255] >> 48 << (x >> 8)
    odds.append((power << 16) // (power + (1 << 48)))
  chances = [65536 - one for one in odds[:0:-1]] + odds
  return np.array(logs, np.int32), np.clip(np.array(chances, np.int32), 16, 65520)


# Of a share in 1/256, 0 .. 7, finer where it is low; of one in 1/1024, two an octave.
_LEVELS = np.array([min(7, max(0, share.bit_length() - 2)) for share in range(257)])
_FINE = np.array(
  [max(0, 2 * share.bit_length() - 4 + (share >> max(0, share.bit_length() - 2))) for share in range(1025)]
)


def coded(c: Any, bits: list[int] | None, chances: list[int]) -> list[int]:
  """Codes bits one after the other, or finds them where `bits` is None."""
  low, high, code, at, size, data = c.low, c.high, c.code, c.at, c.size, c.data
  found = []
  for index, chance in enumerate(chances):
    wide = high - low
    middle = low + (wide >> 16) * chance + (((wide & 0xFFFF) * chance) >> 16)
    bit = int(code <= middle) if bits is None else bits[index]
    if bit:
      high = middle
    else:
      low = middle + 1
    while not (low ^ high) & _TOP:
      if bits is None:
        code = (code << 8 & _ALL) | (int(data[at]) if at < size else 0)
      elif at < size:
        data[at] = high >> 24
      at += 1
      low, high = low << 8 & _ALL, (high << 8 & _ALL) | 255
    found.append(bit)
  c.low, c.high, c.code, c.at = low, high, code, at
  return found


def _sound(c: Any) -> bool:
  return c.at <= c.size + (8 if c.decodes else 0)


class _Learner:
  """Counts and mixers, and a step between prediction and learning."""

  def __init__(self, counts: np.ndarray, weights: np.ndarray, rate: int):
    self.counts, self.weights, self.rate = counts, weights.reshape(-1), rate
    self.logs, self.odds = (table.astype(np.int64) for table in tables())
    self.each = np.arange(INPUTS)
    self.blank = np.full((INPUTS, LANES), 256)

  def code(self, c: Any, cells: np.ndarray, sets: np.ndarray, bits: np.ndarray | None) -> np.ndarray:
    """Codes a bit of each lane; cells int64[inputs - 1, lanes], sets int64[2 or 3, lanes]."""
    pairs = cells * 2
    inputs = len(cells) + 1
    seen = self.counts.take([pairs, pairs + 1])
    logits = self.blank[:, : cells.shape[1]].copy()
    logits[: inputs - 1] = self.logs[seen[1]] - self.logs[seen[0]]
    logits[inputs:] = 0
    places = sets[:, :, None] * INPUTS + self.each
    weights = self.weights.take(places)
    total = (weights.sum(0).T * logits).sum(0) >> 24
    chances = self.odds[np.minimum(np.maximum(total, -MOST), MOST) + MOST]
    found = np.array(coded(c, None if bits is None else bits.tolist(), chances.tolist()))
    slopes = (((found << 16) - chances) * logits >> self.rate).T.reshape(-1)
    for place in places:
      np.add.at(self.weights, place.reshape(-1), slopes)
    np.add.at(self.counts, (pairs + found).reshape(-1), np.uint16(1))
    if seen.max() >= LIMIT - LANES:
      touched = np.unique(pairs)
      over = touched[(self.counts[touched] > LIMIT) | (self.counts[touched + 1] > LIMIT)]
      self.counts[over] >>= 1
      self.counts[over + 1] >>= 1
    return found


def zeros(
  c: Any,
  flags: np.ndarray,
  rows: int,
  columns: int,
  lanes: int,
  near: int,
  far: int,
  margin: int,
  units: np.ndarray,
  counts: np.ndarray,
  weights: np.ndarray,
  rate: int,
  version: int,
) -> bool:
  """As `entropy.zeros`; tells whether all went well."""
  learner = _Learner(counts, weights, rate)
  width = columns + 2
  flat = flags.reshape(-1)
  seen_rows, seen_columns = np.zeros(rows, np.int64), np.zeros(columns, np.int64)
  places, gap = DENSITIES[version], abs(far - near) or near
  for first in range(0, rows, lanes):
    band = min(lanes, rows - first)
    for step in range(columns + band - 1):
      start, stop = max(0, step - columns + 1), min(step + 1, band)
      row = np.arange(start, stop)
      r, column = first + row, step - row
      here = (margin + first) * width + step + 2 + row * (width - 1)
      left, lefter, above_left = flat[here - 1], flat[here - 2], flat[here - near * width - 1]
      n, f = flat[here - near * width], flat[here - far * width]
      nn, ff = flat[here - 2 * near * width], flat[here - 2 * far * width]
      nf = flat[here - (near + far) * width]
      by_row = _LEVELS[(seen_rows[r] * 256 + 32) // (column + 2)]
      by_column = _LEVELS[(seen_columns[column] * 256 + 32) // (r + 2)]
      around = (n + f + nn + ff + nf).astype(np.int64)
      cells = np.empty((6 if version == 1 else 8, len(row)), np.int64)
      cells[0] = places + r
      cells[1] = places + rows + column
      cells[2] = n | f << 1 | nn << 2 | ff << 3 | nf << 4 | left << 5 | lefter << 6 | above_left << 7
      cells[3] = 256 + (by_row * 8 + by_column) * 6 + around
      cells[4] = 640 + units[r] * 8 + by_column
      sets = [around, 8 + by_row]
      if version == 1:
        cells[5] = 768 + (around * 8 + by_row) * 3 + left + lefter
      else:  # what rows above, columns beside and the corner know, too
        ones, all_, some, of = 4 * seen_rows[r], 4 * column, 2 * seen_columns[column], 2 * r
        for above in (near, far):
          q = np.maximum(r - above, 0)
          known = np.where(q < first, columns, np.minimum(columns, step - (q - first)))
          ones, all_ = ones + np.where(r < above, 0, seen_rows[q]), all_ + np.where(r < above, 0, known)
        for beside in (-2, -1, 1, 2):
          inside = (column + beside >= 0) & (column + beside < columns)
          some = some + np.where(inside, seen_columns[np.clip(column + beside, 0, columns - 1)], 0)
          of = of + np.where(inside, r, 0)
        rowwise = _FINE[(ones * 1024 + 128) // (all_ + 4)]
        columnwise = _FINE[(some * 1024 + 128) // (of + 4)]
        corner = flat[here - gap * width].astype(np.int64)
        cells[5] = 768 + columnwise * 8 + around
        cells[6] = 936 + (((n + f) * 2 + nf) * 2 + corner) * 63 + (left + lefter) * 21 + rowwise
        cells[7] = 1692 + ((n + f + nf + corner) * 21 + rowwise) * 21 + columnwise
        sets.append(16 + columnwise)
      bits = learner.code(c, cells, np.stack(sets), None if c.decodes else flat[here])
      flat[here] = bits
      seen_rows[r] += bits
      seen_columns[column] += bits
      if not _sound(c):
        return False
  return True


def _length(x: np.ndarray) -> np.ndarray:
  return np.frexp(x.astype(np.float64))[1].astype(np.int64)  # exact: below 2^53


def _mark(values: np.ndarray, whole: int) -> np.ndarray:
  size = np.abs(values)
  return np.where(size < 8, size, np.minimum(_length(size) + 4, 15)) if whole else size


def symbols(
  c: Any,
  values: np.ndarray,
  lanes: int,
  whole: int,
  narrow: np.ndarray,
  wide: np.ndarray,
  before: np.ndarray,
  counts: np.ndarray,
  weights: np.ndarray,
  rate: int,
) -> bool:
  """As `entropy.symbols`; tells whether all went well."""
  learner = _Learner(counts, weights, rate)
  for first in range(0, len(values), lanes):
    part = slice(first, min(first + lanes, len(values)))
    at = before[:, part]
    known = np.where((at >= 0) & (at < first), values[at], 0)
    near, signs = _mark(known[:2], whole), np.sign(known)
    contexts = np.zeros((7, at.shape[1]), np.int64)
    contexts[:2] = SHARED + narrow[:, part] * 16
    contexts[3] = NODES * (1 + wide[0, part])
    contexts[4] = NODES * (65 + wide[1, part])
    contexts[5] = NODES * (129 + near[0])
    contexts[6] = NODES * (385 + (near[0] + near[1] * 16 if whole else (near[0] * 37 + near[1] * 101) & 511))
    told = None
    if len(signs) > 2:
      one, other, last = (3 * signs[at] + signs[at + 1] + 4 for at in (0, 2, 4))
      vote = 2 * (signs[0] + signs[1]) + signs[2] + signs[3] + signs[4] + signs[5]
      told = NODES * np.stack([145 + one, 162 + vote, 171 + other, 180 + last, 641 + 9 * one + other])
    found = _walk(c, learner, None if c.decodes else values[part], contexts, whole, told)
    if found is None or not _sound(c):
      return False
    values[part] = found
  return True


def _walk(
  c: Any,
  learner: _Learner,
  values: np.ndarray | None,
  contexts: np.ndarray,
  whole: int,
  told: np.ndarray | None,
) -> np.ndarray | None:
  """All lanes from the root of their trees to a leaf; None where no number lies."""
  lanes = contexts.shape[1]
  size, sign = np.zeros(lanes, np.int64), np.ones(lanes, np.int64)
  kind = np.full(lanes, (3, 0, 1)[whole])
  node, left = np.full(lanes, 0 if whole == 1 else 1), np.full(lanes, 0 if whole else 8)
  sizes = None if values is None else np.abs(values)
  lengths = None if sizes is None else _length(sizes)
  open_ = np.arange(lanes)
  while len(open_):
    on, kinds, lefts = node[open_], kind[open_], left[open_]
    cells = contexts[:, open_] + on
    cells[:2] += np.minimum(on, 15) - on
    if told is not None:  # of signs, by those of their neighbors
      cells[2:] = np.where(kinds == 1, told[:, open_] + on, cells[2:])
    sets = np.full((2, len(open_)), 50)
    sets[0] = np.minimum(on, 40) if whole else 41 + lefts
    bits = None
    if values is not None and sizes is not None and lengths is not None:
      below = sizes[open_] >> np.maximum(lefts - 1, 0) & 1
      bits = np.choose(kinds, [sizes[open_] != 0, values[open_] < 0, lengths[open_] > lefts + 1, below])
    bit = learner.code(c, cells, sets, bits)
    if not _sound(c):
      return None
    for one in sorted(set(kinds.tolist())):
      here = kinds == one
      at, b = open_[here], bit[here]
      if one == 0:
        kind[at], node[at] = np.where(b, 1, 4), 1
      elif one == 1:
        sign[at], size[at], kind[at], left[at], node[at] = 1 - 2 * b, 1, 2, 0, 2
      elif one == 2:
        if (b & (left[at] == 31)).any():
          return None
        left[at] += b
        node[at] = np.where(b, 2 + left[at], 40 + 8 * left[at] + 1)
        kind[at] = np.where(b, 2, np.where(left[at] > 0, 3, 4))
      else:
        left[at] -= 1
        size[at] = size[at] << 1 | b
        if whole:
          deep = 40 + 8 * (_length(size[at]) + left[at] - 1) + size[at]
          node[at] = np.where(size[at] < 8, deep, 304 + left[at])
        else:
          node[at] = node[at] << 1 | b
        kind[at] = np.where(left[at] > 0, 3, 4)
    open_ = open_[kind[open_] != 4]
  return sign * size
