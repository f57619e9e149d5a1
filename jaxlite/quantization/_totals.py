"""A sum of integers with what follows it entry by entry, and what leaves it: an integer on a grid, or a float."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxlite.graph.joins import Clip
from jaxlite.quantization import _rule
from jaxlite.quantization._numerics import Grid

OPEN = Clip(-math.inf, math.inf)


class Total(NamedTuple):
  """Said of a value that is x_scale * scale * total / count + bias, clipped.

  Attributes:
    total: whole numbers, float32 or int32, of the value's shape.
    x_scale: float32[].
    scale: float32, of either sign, where it broadcasts against the value; None is 1.
    bias: likewise; None is 0.
    spare: what weights are multiplied by for a finer grid of biases.
    terms: how many values were summed, of a mean.
    clip: bounds.
    turned: whether scale or bias are others than the weight's.
  """

  total: jax.Array
  x_scale: jax.Array
  scale: jax.Array | None = None
  bias: jax.Array | None = None
  spare: int = 1
  terms: int = 1
  clip: Clip = OPEN
  turned: bool = False


def reshaped(one: jax.Array, before: Sequence[int], after: Sequence[int]) -> jax.Array | None:
  """What broadcasts against a value before a reshape, as it broadcasts against the result; None where it cannot."""
  if one.size == 1:
    return one.reshape((1,) * len(after))
  lead = 0
  while lead < min(len(before), len(after)) and before[lead] == after[lead] and one.shape[lead] == 1:
    lead += 1
  tail = np.prod(before[lead:], dtype=int)
  if np.prod(after[lead:], dtype=int) != tail:
    return None
  wide = jnp.broadcast_to(one, (*(1,) * lead, *before[lead:]))
  if one.size != tail and [size for size in one.shape[lead:] if size != 1] != [n for n in before[lead:] if n != 1]:
    ones = [size for size in after[lead:] if size != 1]
    return None if ones != [size for size in before[lead:] if size != 1] else _by_axes(one, before, after)
  return wide.reshape((*(1,) * lead, *after[lead:]))


def _by_axes(one: jax.Array, before: Sequence[int], after: Sequence[int]) -> jax.Array:
  """Where a reshape only puts in or takes out axes of size 1."""
  sizes = iter([size for size, whole in zip(one.shape, before, strict=True) if whole != 1])
  return one.reshape([1 if size == 1 else next(sizes) for size in after])


def _sum(found: Total, y_scale: Any) -> tuple[jax.Array, jax.Array]:
  """The whole sum, with its bias, int32; and what it is multiplied by."""
  total = found.total.astype(jnp.int32)
  if found.scale is None:
    return total, _rule.share(found.x_scale, y_scale, found.terms)
  bias = jnp.zeros((), jnp.float32) if found.bias is None else found.bias
  times, biases, factor = _rule.leaving(found.scale, bias, found.x_scale, y_scale, found.spare)
  total = total if not found.turned and found.spare == 1 else total * times
  return total if found.bias is None else total + biases, factor


def steps(found: Total, grid: Grid) -> jax.Array:
  """Returns the integers of a sum on a grid, float32, relative to zero."""
  total, factor = _sum(found, grid.scale)
  whole = _rule.rounded(total, factor)
  if found.clip != OPEN:  # within the whole grid, whose zero deployment reads off its ends
    inverse, (low, high) = 1.0 / grid.scale, (grid.low, grid.high)
    if found.clip.low > -math.inf:
      low = jnp.clip(jnp.round(found.clip.low * inverse), low, high)
    if found.clip.high < math.inf:
      high = jnp.clip(jnp.round(found.clip.high * inverse), low, high)
    whole = lax.clamp(low, whole, high)
  return lax.clamp(grid.low, whole, grid.high)


def real(found: Total) -> jax.Array:
  """Returns a sum as a float: one product, clipped."""
  total, factor = _sum(found, jnp.ones((), jnp.float32))
  value = _rule.alone(total.astype(jnp.float32) * factor)
  return value if found.clip == OPEN else jnp.clip(value, found.clip.low, found.clip.high)
