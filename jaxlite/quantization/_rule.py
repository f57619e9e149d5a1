"""The arithmetic of deployed integers, in a program: what leaves a sum of integers is that sum times one number.

  q = clip(rint(float32(sum + bias) * M) + zero), M = float32(x_scale * w_scale / y_scale), rounded once

So a network that is fake-quantized shows the very integers of what is deployed. Every number here comes out alike
whether XLA fuses it or not, and alike in NumPy: quotients are found in whole numbers, and no product stands where it
could be contracted with a sum.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

ADD_BITS = 20  # of the whole numbers by which an addition's operands are brought to one grid
_MOST = np.float32(np.finfo(np.float32).max)
_LEAST = np.float32(2.0**-100)


def alone(x: jax.Array) -> jax.Array:
  """Returns the same numbers, which no sum is contracted with.

  >>> alone(jnp.float32(2.0)).item()
  2.0
  """
  return jnp.maximum(x, -_MOST)


@jax.jit
def quotient(x: jax.Array, w: jax.Array, y: jax.Array) -> jax.Array:
  """Returns x * w / y, rounded once.

  Args:
    x: float32, above 0 and normal, likewise what follows; their shapes broadcast.
    w: float32.
    y: float32.

  >>> quotient(jnp.float32(0.1), jnp.float32(0.3), jnp.float32(0.7)).item() == float(
  ...   np.float32(np.float64(np.float32(0.1)) * np.float64(np.float32(0.3)) / np.float64(np.float32(0.7)))
  ... )
  True
  """
  x, w, y = jnp.broadcast_arrays(x, w, y)
  return _rounded(x, w, y, 1)


@functools.partial(jax.jit, static_argnums=2)
def share(x: jax.Array, y: jax.Array, count: int) -> jax.Array:
  """Returns x / (count * y), rounded once where the odd part of the count is below 64.

  Args:
    x: float32[], above 0 and normal.
    y: float32[], likewise.
    count: whole, from 1.

  >>> share(jnp.float32(0.1), jnp.float32(0.3), 49).item() == float(
  ...   np.float32(np.float64(np.float32(0.1)) / 49 / np.float64(np.float32(0.3)))
  ... )
  True
  """
  odd = count
  while odd % 2 == 0:
    odd //= 2
  even = np.float32(odd / count)
  if odd >= 64:
    return x * np.float32(1 / odd) / y * even
  return _rounded(x, jnp.ones_like(x), y, odd) * even


def _rounded(x: jax.Array, w: jax.Array, y: jax.Array, odd: int) -> jax.Array:
  """x * w / (y * odd), by long division of their mantissas."""
  (x, x_power), (w, w_power), (y, y_power) = _parts(x), _parts(w), _parts(y)
  high, low = _product(x, w)  # of 48 bits, 24 each
  by = y * odd
  more = 4 + odd.bit_length() - 1
  widths = [8, 8, 8, 2, 2] if odd == 1 else [2] * 12 + [2] * (more // 2) + [1] * (more % 2)
  found = lax.div(high, by)
  rest = high - found * by
  at = 24
  for width in widths:
    at -= width
    digit = (low >> at) & (2**width - 1) if at >= 0 else 0
    rest = (rest << width) | digit  # below 2^32: `by` is below 2^24, or 2^30 where a width is 2
    new = _divided(rest, by)
    rest = rest - new * by
    found = (found << width) | new
  whole = (found << 1) | (rest != 0).astype(jnp.int32)
  power = x_power + w_power - y_power - 150 - more - 1
  return whole.astype(jnp.float32) * _power(power)


def _parts(x: jax.Array) -> tuple[jax.Array, jax.Array]:
  bits = lax.bitcast_convert_type(x.astype(jnp.float32), jnp.int32)
  return (bits & 0x7FFFFF) | 0x800000, bits >> 23


def _power(power: jax.Array) -> jax.Array:
  return lax.bitcast_convert_type(jnp.clip(power + 127, 1, 254) << 23, jnp.float32)


def _product(x: jax.Array, w: jax.Array) -> tuple[jax.Array, jax.Array]:
  """A product of 24 bits by 24, as its upper and its lower 24."""
  x1, x0, w1, w0 = x >> 12, x & 0xFFF, w >> 12, w & 0xFFF
  middle = x1 * w0 + x0 * w1 + ((x0 * w0) >> 12)
  return x1 * w1 + (middle >> 12), ((middle & 0xFFF) << 12) | ((x0 * w0) & 0xFFF)


def _divided(rest: jax.Array, by: jax.Array) -> jax.Array:
  """What is below 2^32 and held in an int32, divided by what is below 2^30."""
  half = lax.shift_right_logical(rest, jnp.ones_like(rest))  # below 2^31
  found = lax.div(half, by) << 1
  left = rest - found * by  # below 2 * by, and so no longer wrapped
  return found + (left >= by).astype(jnp.int32)


@functools.partial(jax.jit, static_argnums=4)
def leaving(
  scale: jax.Array, bias: jax.Array, x_scale: jax.Array, y_scale: jax.Array, spare: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Returns by what the sums of a contraction are multiplied first, their biases, and the factor with which they leave.

  Args:
    scale: float32, for each output, of either sign; 0 where nothing of the sum is left.
    bias: float32, likewise.
    x_scale: float32[], of the activation.
    y_scale: float32[], of the result; 1 of a float.
    spare: see `spare`.

  Returns:
    int32 of either sign, int32 on the grid of the sum, float32.

  >>> times, biases, factor = leaving(jnp.float32(-0.5), jnp.float32(3.0), jnp.float32(0.25), jnp.float32(1.0), 1)
  >>> int(times), int(biases), float(factor)
  (-1, 24, 0.125)
  """
  size = jnp.abs(scale)
  kept = size > _LEAST
  fine = jnp.maximum(jnp.abs(bias) / x_scale * np.float32(2.0**-24), _LEAST)
  grid = jnp.where(kept, jnp.maximum(size, _LEAST) * np.float32(1 / spare), fine)
  times = jnp.where(kept, jnp.where(scale < 0, -spare, spare), 0).astype(jnp.int32)
  whole = jnp.clip(jnp.round(bias / (x_scale * grid)), -(2.0**30), 2.0**30)
  return times, jnp.where(jnp.isnan(whole), 0, whole).astype(jnp.int32), quotient(x_scale, grid, y_scale)


@jax.jit
def times(scale: jax.Array, most: jax.Array) -> jax.Array:
  """Returns round(2^20 * scale / most), int32: what an operand of an addition is multiplied by.

  Args:
    scale: float32[], at most `most`.
    most: float32[].

  >>> times(jnp.float32(0.5), jnp.float32(1.0)).item()
  524288
  """
  (x, x_power), (y, y_power) = _parts(scale), _parts(most)
  found = lax.div(x, y)
  rest = x - found * y
  for _ in range(3):  # 24 digits of the quotient of mantissas
    rest = rest << 8
    new = _divided(rest, y)
    found, rest = (found << 8) | new, rest - new * y
  down = jnp.clip(y_power - x_power + 4, 4, 30)  # 20 are wanted, and as many fewer as the powers are apart
  low = found & ((1 << down) - 1)
  middle = 1 << (down - 1)
  whole = found >> down
  up = (low > middle) | ((low == middle) & ((rest != 0) | ((whole & 1) == 1)))
  return whole + up.astype(jnp.int32)


def rounded(total: jax.Array, factor: Any) -> jax.Array:
  """Returns a sum in steps of its result's grid, float32: one product, rounded.

  >>> rounded(jnp.int32(5), jnp.float32(0.5)).item()
  2.0
  """
  return jnp.round(total.astype(jnp.float32) * factor)


def spare(bits: int) -> int:
  """Returns what the integers of a weight of few bits are multiplied by, so that its biases have a finer grid.

  >>> [spare(bits) for bits in (8, 7, 4, 2)]
  [1, 2, 16, 64]
  """
  return 2 ** int(math.log2(127 // (2 ** (bits - 1) - 1)))
