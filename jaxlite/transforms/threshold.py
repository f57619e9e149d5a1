"""Which entries of an array are the k largest: exact, in O(n), without a sort.

A sort of a million scores takes XLA's CPU backend half a second. Non-negative floats order like their bit
patterns, so the k-th largest is found by fixing its bits from the top, counting at each digit how many
scores reach a candidate; ties at the threshold are broken by index, as a stable sort would.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

_DIGIT = 2  # bits fixed in one pass: three candidates are counted in one reading of the scores


def keep_largest(scores: jax.Array, keep: jax.Array | int) -> jax.Array:
  """Marks the `keep` largest scores; among equal ones the first in row-major order win.

  Args:
    scores: float[...], non-negative; NaN counts as larger than everything.
    keep: int32[], how many to mark, 0 to scores.size. May be traced.

  Returns:
    bool[...] with exactly `keep` True entries.

  >>> import jax.numpy as jnp
  >>> keep_largest(jnp.array([3.0, 1.0, 3.0, 2.0]), 2).tolist()
  [True, False, True, False]
  >>> keep_largest(jnp.array([1.0, 1.0, 1.0]), 1).tolist()
  [True, False, False]
  """
  bits, width = _ordered_bits(scores)
  flat = bits.reshape(-1)
  keep = jnp.asarray(keep, jnp.int32)
  one = jnp.ones((), flat.dtype)

  def fix_digit(index: jax.Array, threshold: jax.Array) -> jax.Array:
    shift = jnp.asarray(width - _DIGIT * (index + 1), flat.dtype)
    candidates = [threshold | (one * digit << shift) for digit in (1, 2, 3)]
    reach = [jnp.sum(flat >= candidate, dtype=jnp.int32) >= keep for candidate in candidates]
    return threshold | (sum(r.astype(flat.dtype) for r in reach) << shift)

  # The largest threshold that at least `keep` scores reach; reach[] is monotone, so its sum is the digit.
  threshold = jax.lax.fori_loop(0, width // _DIGIT, fix_digit, jnp.zeros((), flat.dtype))
  above = flat > threshold
  missing = keep - jnp.sum(above, dtype=jnp.int32)
  tied = flat == threshold
  few_ties = jnp.sum(tied, dtype=jnp.int32) == missing  # the usual case: nothing to break, no running count
  taken = jax.lax.cond(
    few_ties, lambda tied: tied, lambda tied: tied & (jnp.cumsum(tied, dtype=jnp.int32) <= missing), tied
  )
  return jnp.where(keep > 0, above | taken, False).reshape(scores.shape)


def _ordered_bits(scores: jax.Array) -> tuple[jax.Array, int]:
  """Bit patterns that order as the scores do; the sign bit is clear, so -0 equals +0."""
  if scores.dtype == jnp.float64:
    return jax.lax.bitcast_convert_type(jnp.abs(scores), jnp.uint64), 64
  wide = jnp.abs(scores.astype(jnp.float32))  # bfloat16 and float16 widen without changing order or ties
  return jax.lax.bitcast_convert_type(wide, jnp.uint32), 32
