"""Floats that are whole numbers times a scale, one for all or one for each output: found again, bit for bit."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

_MOST = 255  # the largest whole number that is looked for
_ROWS = 256  # that are looked at first
_FIRST, _TOGETHER = 8, 256  # values of a column that tell most that cannot be; columns at once
_NEGATIVE_ZERO = np.uint32(1 << 31)


class Scaled(NamedTuple):
  """numbers * scales is the matrix.

  Attributes:
    numbers: int64[rows, columns].
    scales: float32[columns] or [1].
    shifted: -1 stands for the negative zero, and what is below it is one less than it says.
  """

  numbers: np.ndarray
  scales: np.ndarray
  shifted: bool


def scaled(matrix: np.ndarray) -> Scaled | None:
  """Returns the whole numbers and scales of a float32 matrix, or None where it has none.

  >>> found = scaled(np.float32([[0.5, 0.0], [-1.5, 0.25]]))
  >>> found.numbers.tolist(), found.scales.tolist()
  ([[2, 0], [-6, 1]], [0.25])
  """
  bits = matrix.view(np.uint32) if matrix.flags.c_contiguous else np.ascontiguousarray(matrix).view(np.uint32)
  negative = bits == _NEGATIVE_ZERO
  plain = np.where(negative, np.float32(0), matrix)
  if not np.isfinite(plain).all():
    return None
  scales = _scales(plain.reshape(-1, 1))
  if scales is None and plain.shape[0] > 1:
    scales = _scales(plain)
  if scales is None:
    return None
  numbers = _numbers(plain, scales)
  shifted = bool(negative.any())
  if shifted:
    numbers = np.where(numbers < 0, numbers - 1, np.where(negative, -1, numbers))
  found = Scaled(numbers, scales, shifted)
  return found if unscaled(found).tobytes() == matrix.tobytes() else None


def unscaled(found: Scaled) -> np.ndarray:
  """Returns the float32 matrix of whole numbers and scales."""
  numbers = found.numbers
  if found.shifted:
    numbers = np.where(numbers < 0, numbers + 1, numbers)
  with np.errstate(all='ignore'):  # whatever a damaged file says
    matrix = numbers.astype(np.float32) * found.scales
  if found.shifted:
    matrix[found.numbers == -1] = np.float32(-0.0)
  return matrix


def _numbers(matrix: np.ndarray, scales: np.ndarray) -> np.ndarray:
  safe = np.where(scales == 0, 1, scales).astype(np.float64)
  return np.rint(matrix.astype(np.float64) / safe).astype(np.int64)


def _scales(matrix: np.ndarray) -> np.ndarray | None:
  """A scale for each column, or None; the smallest whole numbers that do."""
  rows, columns = matrix.shape
  most = np.abs(matrix).max(0, initial=0).astype(np.float64)
  scales = np.where(most == 0, np.float32(0), np.float32(np.nan))
  some = matrix[matrix[:, 0] != 0][:_ROWS] if columns == 1 else matrix[:: max(1, rows // _ROWS)]
  few = some.astype(np.float64)
  for first in (slice(0, 2), slice(2, None)):  # most matrices have none, and two columns tell
    for whole in _promising(few, most, np.arange(columns)[first][np.isnan(scales[first])]):
      missing = np.arange(columns)[first][np.isnan(scales[first])]
      if not len(missing):
        break
      steps = few[:, missing] / (most[missing] / whole)
      likely = missing[(np.abs(steps - np.rint(steps)) <= 1e-4).all(0)]
      if len(likely):
        _settle(matrix, most, scales, likely, whole)
    if np.isnan(scales[first]).any():
      return None
  return scales


def _promising(few: np.ndarray, most: np.ndarray, columns: np.ndarray) -> list[int]:
  """The whole numbers that the largest of some column may be, as its first values have it: of most matrices none."""
  found = np.zeros(_MOST + 1, bool)
  wholes = np.arange(1, _MOST + 1)
  for start in range(0, len(columns), _TOGETHER):
    some = columns[start : start + _TOGETHER]
    steps = few[:_FIRST, some, None] / (most[some, None] / wholes)
    found[1:] |= (np.abs(steps - np.rint(steps)) <= 1e-4).all(0).any(0)
  return np.flatnonzero(found).tolist()


def _settle(matrix: np.ndarray, most: np.ndarray, scales: np.ndarray, likely: np.ndarray, whole: int) -> None:
  """Takes the scales under which whole numbers give back every bit."""
  near = (most[likely] / whole).astype(np.float32)
  numbers = np.rint(matrix[:, likely] / (most[likely] / whole)).astype(np.float32)
  for step in (0, 1, -1, 2, -2):  # what was divided here was multiplied there, and rounded
    with np.errstate(all='ignore'):
      scale = (near.view(np.int32) + np.int32(step)).view(np.float32)
      right = (numbers * scale == matrix[:, likely]).all(0) & np.isnan(scales[likely])
    scales[likely[right]] = scale[right]
