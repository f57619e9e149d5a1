"""Order without a sort: what entry stands where, by counting how many stand before each. Any runtime can compare.

It serves what is short, as experts to choose from are: it takes the square of a length in comparisons.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

MOST = 256  # entries along the axis


def top_k(x: jax.Array, k: int, axis: int = -1) -> tuple[jax.Array, jax.Array]:
  """Returns the largest entries along an axis and where they stood, as `jax.lax.top_k` does: of equal ones the first.

  Args:
    x: [..., N, ...].
    k: how many.
    axis: along which.

  >>> [one.tolist() for one in top_k(jnp.array([[1.0, 3.0, 3.0, jnp.nan]]), 3)]
  [[[nan, 3.0, 3.0]], [[3, 1, 2]]]
  """
  rows = jnp.moveaxis(x, axis, -1)
  rank = _ranks(rows, falls=True)
  places = jnp.broadcast_to(jnp.arange(rows.shape[-1], dtype=jnp.int32), rows.shape)
  values, found = (jnp.moveaxis(_placed(one, rank, k), -1, axis) for one in (rows, places))
  return values, found


def sorted_by(first: jax.Array, others: Sequence[jax.Array], axis: int) -> list[jax.Array]:
  """Returns arrays in the order in which the first of them rises along an axis, equal entries as they stood.

  Args:
    first: [..., N, ...].
    others: of its shape.
    axis: along which.

  >>> [one.tolist() for one in sorted_by(jnp.array([[2.0, 1.0, 1.0]]), [jnp.array([[7, 8, 9]])], 1)]
  [[[1.0, 1.0, 2.0]], [[8, 9, 7]]]
  """
  rows = [jnp.moveaxis(one, axis, -1) for one in (first, *others)]
  rank = _ranks(rows[0], falls=False)
  return [jnp.moveaxis(_placed(one, rank, one.shape[-1]), -1, axis) for one in rows]


def _ranks(rows: jax.Array, *, falls: bool) -> jax.Array:
  """Of each entry how many stand before it, int32[..., N]; what is no number is the largest."""
  length = rows.shape[-1]
  one, other = rows[..., :, None], rows[..., None, :]
  low, high = (other, one) if falls else (one, other)
  before = high < low
  same = one == other
  if jnp.issubdtype(rows.dtype, jnp.floating):
    before |= (low != low) & (high == high)
    same |= (one != one) & (other != other)
    if falls:  # where of two zeros the positive one is the larger, which a sort does not see
      zeros = jnp.where(rows == 0, 1 / jnp.where(rows == 0, rows, 1), 0)
      here, there = zeros[..., :, None], zeros[..., None, :]
      before, same = before | (same & (there > here)), same & (here == there)
  earlier = jnp.arange(length)[None, :] < jnp.arange(length)[:, None]
  return jnp.sum((before | (same & earlier)).astype(jnp.int32), -1, dtype=jnp.int32)


def _placed(rows: jax.Array, rank: jax.Array, count: int) -> jax.Array:
  """The entries of the first ranks, in their order."""
  there = rank[..., None, :] == jnp.arange(count, dtype=jnp.int32)[:, None]
  wide = rows.astype(jnp.int32) if rows.dtype == jnp.bool_ else rows
  found = jnp.sum(jnp.where(there, wide[..., None, :], jnp.zeros((), wide.dtype)), -1, dtype=wide.dtype)
  return found.astype(rows.dtype)
