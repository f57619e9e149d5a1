"""What operations give at the edges of their numbers: where a table has no row, where a dtype holds no such value.

NumPy says other things there than XLA does, and what leaves jaxlite says what XLA does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def nothing_of(dtype: np.dtype[Any]) -> Any:
  """What stands where a table has no row, as JAX fills it: NaN, the least of whole numbers, the largest of unsigned.

  >>> nothing_of(np.dtype('int8')), nothing_of(np.dtype('uint8')), nothing_of(np.dtype('bool'))
  (np.int8(-128), np.uint8(255), np.True_)
  """
  if dtype == np.bool_:
    return np.True_
  if dtype.kind in 'iu':
    return dtype.type(np.iinfo(dtype).max if dtype.kind == 'u' else np.iinfo(dtype).min)
  return dtype.type(np.nan)


def taken(table: np.ndarray, ids: np.ndarray, **_: Any) -> np.ndarray:
  """Returns rows by index, from the end where negative.

  >>> taken(np.array([1.0, 2.0]), np.array([0, -1, 2])).tolist()
  [1.0, 2.0, nan]
  """
  ids = ids.astype(np.int64)
  ids = np.where(ids < 0, ids + len(table), ids)
  there = (ids >= 0) & (ids < len(table))
  rows = table[np.where(there, ids, 0)] if len(table) else np.zeros((*ids.shape, *table.shape[1:]), table.dtype)
  return np.where(there.reshape(*ids.shape, *[1] * (table.ndim - 1)), rows, nothing_of(table.dtype))


def divided(x: np.ndarray, y: np.ndarray) -> np.ndarray:
  """Returns quotients, of whole numbers toward zero: by 0 all bits are set, and the least by -1 is itself.

  >>> divided(np.int32([7, -7, 7, -(2**31)]), np.int32([2, 2, 0, -1])).tolist()
  [3, -3, -1, -2147483648]
  """
  if x.dtype.kind not in 'iu':
    return x / y
  safe = np.where((y == 0) | (y == -1), y.dtype.type(1), y)
  floor = x // safe
  whole = floor + ((floor * safe != x) & ((x < 0) != (safe < 0))).astype(x.dtype)
  return np.where(y == 0, ~np.zeros_like(x), np.where(y == -1, np.negative(x), whole))


def rest(x: np.ndarray, y: np.ndarray) -> np.ndarray:
  """Returns what division leaves, with the sign of what was divided; of whole numbers by 0 all of it.

  >>> rest(np.int32([7, -7, 7]), np.int32([4, 4, 0])).tolist()
  [3, -3, 7]
  """
  if x.dtype.kind not in 'iu':
    return np.fmod(x, y)
  return np.where(y == 0, x, np.fmod(x, np.where((y == 0) | (y == -1), y.dtype.type(1), y)))


def rounded(x: np.ndarray, *, rounding_method: Any) -> np.ndarray:
  """Returns the nearest whole numbers, halves as `rounding_method` says."""
  if to_even(rounding_method):
    return np.rint(x)
  whole = np.trunc(x)  # a half added to what is next to a half would make it one
  return np.where(np.abs(x - whole) >= 0.5, whole + np.sign(x), whole)


def converted(x: np.ndarray, *, new_dtype: Any, **_: Any) -> np.ndarray:
  """Returns numbers of another dtype. Floats that whole numbers do not hold become the nearest that they do, a NaN 0,
  as in XLA.

  >>> converted(np.array([300.7, -1.5, np.nan]), new_dtype='uint8').tolist()
  [255, 0, 0]
  """
  dtype = np.dtype(new_dtype)
  if dtype.kind not in 'iu' or x.dtype.kind in 'iubc':
    return x.astype(dtype)
  info, wide = np.iinfo(dtype), x.astype(np.float64)
  least, most = wide <= float(info.min), wide >= float(info.max)  # the largest of 64 bits is no float
  inside = np.where(least | most | np.isnan(wide), 0, wide).astype(dtype)
  return np.where(most, dtype.type(info.max), np.where(least, dtype.type(info.min), inside))


def gathered(
  table: np.ndarray, indices: np.ndarray, *, dimension_numbers: Any, slice_sizes: Sequence[int], mode: str
) -> np.ndarray:
  """Returns slices of a table, as `jax.lax.gather` says."""
  offset_dims, collapsed, start_map, *_ = dimension_numbers  # what is batched is refused in lowering
  lead = indices.shape[:-1]
  limit = [table.shape[axis] - slice_sizes[axis] for axis in start_map]
  outside = ((indices < 0) | (indices > np.array(limit))).any(-1)
  where = np.clip(indices, 0, limit)
  kept = [axis for axis in range(table.ndim) if axis not in collapsed]
  rows = []
  for place in where.reshape(-1, where.shape[-1]):
    starts = dict(zip(start_map, place, strict=True))
    cut = tuple(slice(starts.get(axis, 0), starts.get(axis, 0) + size) for axis, size in enumerate(slice_sizes))
    rows.append(table[cut].reshape([slice_sizes[axis] for axis in kept]))
  found = np.stack(rows) if rows else np.zeros((0, *(slice_sizes[axis] for axis in kept)), table.dtype)
  found = found.reshape(*lead, *(slice_sizes[axis] for axis in kept))
  if mode == 'fill_or_drop':
    found = np.where(outside.reshape(*lead, *[1] * len(kept)), nothing_of(table.dtype), found)
  rank = len(lead) + len(kept)
  rest = iter(range(len(lead)))
  inner = iter(range(len(lead), rank))
  return found.transpose([next(inner) if axis in offset_dims else next(rest) for axis in range(rank)])


def to_even(method: Any) -> bool:
  """Whether halves are rounded to even, by the attribute of a 'round'."""
  return str(method) in ('1', 'TO_NEAREST_EVEN', 'RoundingMethod.TO_NEAREST_EVEN')
