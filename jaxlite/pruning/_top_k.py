"""Which entries are the k largest: exact, in O(n), without a sort, whether the arrays are sharded or not.

A sort of a million scores takes XLA's CPU backend half a second. Non-negative floats order like their bit
patterns, so the k-th largest is found by fixing its bits from the top, a digit a pass: one reading of the scores
counts how many reach each candidate of the digit. Ties at the threshold are broken by index, as a stable sort
would, by the same search over indices. Nothing is flattened or moved, so shards only exchange counts.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

_DIGIT = 2  # bits fixed in one pass: three candidates are counted in one reading of the scores


def keep_largest(
  scores: jax.Array,
  keep: jax.Array | int,
  *,
  axes: Sequence[int] | None = None,
  among: jax.Array | None = None,
  before: tuple[jax.Array, jax.Array] | None = None,
) -> jax.Array:
  """Marks the `keep` largest scores; among equal ones the first in row-major order win.

  Args:
    scores: float[...], non-negative; NaN counts as larger than everything.
    keep: int32[], how many to mark, 0 to scores.size. May be traced.
    axes: the axes that compete with each other; along the others each index is a competition of its own that
      keeps `keep`. None is all of them.
    among: bool[...] or None; entries outside it rank below every entry inside.
    before: (bool[], bool[...]) or None; where the first is False nothing is searched, and the second returned.

  Returns:
    bool[...] with exactly `keep` True entries (in each competition).

  >>> import jax.numpy as jnp
  >>> keep_largest(jnp.array([3.0, 1.0, 3.0, 2.0]), 2).tolist()
  [True, False, True, False]
  >>> keep_largest(jnp.array([1.0, 1.0, 1.0]), 1).tolist()
  [True, False, False]
  >>> keep_largest(jnp.array([[3.0, 1.0], [2.0, 4.0]]), 1, axes=(1,)).tolist()
  [[True, False], [False, True]]
  """
  bits = _ordered_bits(scores)
  if among is not None:
    bits = jnp.where(among, bits + 1, 0)
  axes = None if axes is None else tuple(sorted(axis % scores.ndim for axis in axes))
  return _keep([bits], keep, axes, before)[0]


def keep_largest_of(scores: Sequence[jax.Array], keep: jax.Array | int) -> list[jax.Array]:
  """Marks the `keep` largest scores of several arrays together, as if they were one.

  Args:
    scores: float[...] each, non-negative, of any shapes; equal ones win by array, then by row-major order.
    keep: int32[], how many to mark in all.

  Returns:
    bool[...] for each array, with exactly `keep` True entries in all.

  >>> import jax.numpy as jnp
  >>> [mask.tolist() for mask in keep_largest_of([jnp.array([1.0, 5.0]), jnp.array([[3.0]])], 2)]
  [[False, True], [[True]]]
  """
  wide = jnp.result_type(jnp.float32, *scores)
  bits = [_ordered_bits(score.astype(wide)) for score in scores]
  return _keep(bits, keep, None)


def _ordered_bits(scores: jax.Array) -> jax.Array:
  """Bit patterns that order as the scores do; the sign bit is clear, so -0 equals +0 and one can be added."""
  scores = jnp.asarray(scores)  # NumPy's float64 is JAX's float32, unless it is told otherwise
  if scores.dtype == jnp.float64:
    return lax.bitcast_convert_type(jnp.abs(scores), jnp.uint64)
  # bfloat16 and float16 widen without changing order or ties
  return lax.bitcast_convert_type(jnp.abs(scores.astype(jnp.float32)), jnp.uint32)


@functools.partial(jax.jit, static_argnums=2)  # leaves of one shape are traced, and outside a step compiled, once
def _keep(
  bits: list[jax.Array],
  keep: jax.Array | int,
  axes: tuple[int, ...] | None,
  before: tuple[jax.Array, jax.Array] | None = None,
) -> list[jax.Array]:
  size = sum(_rivals(one.shape, axes) for one in bits)
  dtype = bits[0].dtype

  def turn(carry: tuple[Any, ...]) -> tuple[Any, ...]:
    _, width, values, keep, live = carry
    threshold, above, exact = _search(values, keep, width, axes)
    # Indices counted down from the end are keys of which the first are the largest, and no two are equal.
    keys, start = [], 0
    for one in values:
      places = (size - start - _index(one.shape, axes)).astype(dtype)
      keys.append(jnp.where((one == threshold) & ~exact, places, 0))
      start += _rivals(one.shape, axes)
    live = [old | (one > threshold) | (exact & (one == threshold)) for old, one in zip(live, values, strict=True)]
    return ~jnp.all(exact), jnp.int32(_even(size.bit_length())), keys, jnp.where(exact, zero, keep - above), live

  shape = () if axes is None else tuple(1 if axis in axes else n for axis, n in enumerate(bits[0].shape))
  keep, zero = jnp.broadcast_to(jnp.asarray(keep).astype(dtype), shape), jnp.zeros((), dtype)
  begin, nothing = jnp.ones((), bool), [jnp.zeros_like(one, bool) for one in bits]
  if before is not None:
    begin, nothing = before[0], [~before[0] & before[1]]
  # By scores, then, which is rare, by place among those that tie: one loop, so that the search is compiled once.
  first = (begin, jnp.int32(_even(dtype.itemsize * 8)), bits, keep, nothing)
  return lax.while_loop(lambda carry: carry[0], turn, first)[-1]


def _even(width: int) -> int:
  return -(-width // _DIGIT) * _DIGIT


def _search(
  values: list[jax.Array], keep: jax.Array, width: jax.Array, axes: tuple[int, ...] | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Finds the largest threshold that at least `keep` values reach, or sooner one that exactly `keep` reach.

  Args:
    values: unsigned[...] each, under 2**width.
    keep: unsigned[], or one for each competition.
    width: int32[], bits to fix, whole digits.
    axes: as in `keep_largest`; None for all.

  Returns:
    (threshold; how many values lie above it, of use where not exact; whether exactly `keep` reach it).
  """
  dtype = values[0].dtype
  shape = () if axes is None else tuple(1 if axis in axes else n for axis, n in enumerate(values[0].shape))
  everyone = sum(_rivals(one.shape, axes) for one in values)

  def unsettled(state: tuple[jax.Array, ...]) -> jax.Array:
    shift, found = state
    return (shift > 0) & jnp.any(found[1] != keep)

  def fix_digit(state: tuple[Any, ...]) -> tuple[Any, ...]:
    shift, (threshold, reach, above) = state[0] - _DIGIT, state[1]
    unit = jnp.ones((), dtype) << shift.astype(dtype)
    counts = _counts(values, [threshold + unit * jnp.asarray(digit, dtype) for digit in range(1, 2**_DIGIT)], axes)
    counts = [count.astype(dtype) for count in counts]
    # Counts fall as candidates rise, so those that enough values reach are the first ones: their number is the digit.
    enough = [count >= keep for count in counts]
    digit = sum(one.astype(dtype) for one in enough)
    for one, count in zip(enough, counts, strict=True):
      reach = jnp.where(one, count, reach)
    for one, count in zip(reversed(enough), reversed(counts), strict=True):
      above = jnp.where(one, above, count)
    return shift, jnp.stack([threshold + unit * digit, reach, above])

  # What is known of a competition lies in one array, so that one piece of code writes it.
  start = jnp.stack([jnp.full(shape, value, dtype) for value in (0, everyone, 0)])
  _, (threshold, reach, above) = lax.while_loop(unsettled, fix_digit, (width, start))
  return threshold, above, reach == keep


def _counts(values: list[jax.Array], floors: list[jax.Array], axes: tuple[int, ...] | None) -> list[jax.Array]:
  """How many values reach each floor: one reduction of many results, since XLA reads its operand once for all."""
  zeros = (jnp.int32(0),) * len(floors)
  total: list[Any] = [0] * len(floors)
  for one in values:
    over = tuple(range(one.ndim)) if axes is None else axes
    reach = tuple((one >= floor).astype(jnp.int32) for floor in floors)
    counts = lax.reduce(reach, zeros, lambda x, y: tuple(a + b for a, b in zip(x, y, strict=True)), over)
    if axes is not None:
      counts = [jnp.expand_dims(count, axes) for count in counts]
    total = [a + b for a, b in zip(total, counts, strict=True)]
  return total


def _rivals(shape: tuple[int, ...], axes: tuple[int, ...] | None) -> int:
  return math.prod(shape if axes is None else (shape[axis] for axis in axes))


def _index(shape: tuple[int, ...], axes: tuple[int, ...] | None) -> jax.Array:
  """Row-major index among the rivals, without a reshape (which would gather shards)."""
  index = jnp.zeros(shape, jnp.int32)
  for axis in range(len(shape)) if axes is None else axes:
    index = index * shape[axis] + lax.broadcasted_iota(jnp.int32, shape, axis)
  return index
