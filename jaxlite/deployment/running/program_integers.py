"""What each operation of `integers.rules` is in JAX.

Sums of integers are int8 products with int32 sums where the machine has units for them. XLA's own on CPU take ten times
as long as floats, so there a sum is one of float32 where every partial sum is below 2^24 and so exact, of two float32
where the weights are cut in halves, and else of int32. Which one is chosen when the program is lowered for a platform.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxlite.deployment.integers import rules as integer_rules
from jaxlite.deployment.running import program_rules

_EXACT = 2**24  # whole numbers up to here are float32s
_MOST = np.float32(np.finfo(np.float32).max)


def leaves(
  total: jax.Array,
  factor: Any,
  y_scale: float | None = None,
  y_zero_point: int = 0,
  low: int = -128,
  high: int = 127,
) -> jax.Array:
  """As `integer_rules.leaves`.

  >>> leaves(jnp.array([3, -5, 400]), np.float32(0.5), 1.0).tolist()
  [2, -2, 127]
  """
  real = total.astype(jnp.float32) * jnp.asarray(factor, jnp.float32)
  if y_scale is None:
    return jnp.maximum(real, -_MOST)  # the same number, which XLA contracts with no sum that follows, as fake's is not
  return jnp.clip(jnp.rint(real) + np.float32(y_zero_point), low, high).astype(jnp.int8)


def _quantize(x: jax.Array, *, scale: float, zero_point: int, low: int, high: int) -> jax.Array:
  steps = jnp.rint(x.astype(jnp.float32) * (np.float32(1) / np.float32(scale)))
  steps = jnp.where(jnp.isnan(steps), np.float32(0), steps)
  return jnp.clip(steps + np.float32(zero_point), low, high).astype(jnp.int8)


def _dequantize(
  q: jax.Array, scales: jax.Array | None = None, *, scale: float = 1.0, zero_point: int = 0, axis: int = 0
) -> jax.Array:
  if scales is None:
    return (q.astype(jnp.float32) - np.float32(zero_point)) * np.float32(scale)
  wide = scales.reshape([-1 if index == axis else 1 for index in range(q.ndim)])
  return q.astype(jnp.float32) * wide


def _whole(q: jax.Array, zero_point: int) -> jax.Array:
  return q.astype(jnp.int32) - np.int32(zero_point)


def _requantize(q: jax.Array, *, x_scale: float, x_zero_point: int, y_scale: float, **rest: Any) -> jax.Array:
  return leaves(_whole(q, x_zero_point), integer_rules.multiplier(x_scale, 1.0, y_scale), y_scale, **rest)


def _add(
  a: jax.Array,
  b: jax.Array,
  *,
  a_scale: float,
  a_zero_point: int,
  b_scale: float,
  b_zero_point: int,
  y_scale: float,
  **rest: Any,
) -> jax.Array:
  times_a, times_b, factor = integer_rules.add_factors(a_scale, b_scale, y_scale)
  total = _whole(a, a_zero_point) * np.int32(times_a) + _whole(b, b_zero_point) * np.int32(times_b)
  return leaves(total, factor, y_scale, **rest)


def _mean(q: jax.Array, *, axes: Sequence[int], x_scale: float, x_zero_point: int, **rest: Any) -> jax.Array:
  total = jnp.sum(_whole(q, x_zero_point), axis=tuple(axes), dtype=jnp.int32)
  count = math.prod(q.shape[axis] for axis in axes)
  return leaves(total, integer_rules.multiplier(x_scale, 1.0 / count, rest.get('y_scale')), **rest)


# --- sums -------------------------------------------------------------------------------------------------------------


def _reach(zero_point: int) -> int:
  return max(128 + zero_point, 127 - zero_point)


def halves(w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Returns (high, low) with w = 16 * high + low, whole numbers from -8 to 8.

  >>> [part.tolist() for part in halves(np.array([127, -127, 7]))]
  [[8, -8, 0], [-1, 1, 7]]
  """
  high = np.sign(w) * ((np.abs(w) + 8) // 16)
  return high, w - 16 * high


def sums(
  q: jax.Array,
  w: np.ndarray,
  zero_point: int,
  axis: int,
  floats: Callable[[Any, Any], Any],
  integers: Callable[[Any, Any], Any],
) -> jax.Array:
  """Sums of (q - zero_point) * w, int32, or float32 that hold the same.

  Args:
    q: int8.
    w: int8, known.
    zero_point: of q.
    axis: of w's outputs.
    floats: the contraction, of float32.
    integers: the contraction, of int8 or int32, into int32; what stands beyond an edge being zero.
  """
  wide = w.astype(np.int64)
  summed = tuple(index for index in range(w.ndim) if index != axis)

  def most(array: np.ndarray) -> int:
    return _reach(zero_point) * int(np.abs(array).sum(summed).max(initial=0))

  def on_cpu(q: jax.Array) -> jax.Array:
    x = q.astype(jnp.float32) - np.float32(zero_point)
    if most(wide) <= _EXACT:
      return floats(x, wide.astype(np.float32)).astype(jnp.int32)
    high, low = halves(wide)
    if max(most(high), most(low)) <= _EXACT:
      parts = [floats(x, part.astype(np.float32)).astype(jnp.int32) for part in (high, low)]
      return 16 * parts[0] + parts[1]
    return integers(_whole(q, zero_point), wide.astype(np.int32))

  def elsewhere(q: jax.Array) -> jax.Array:
    return by_int8(q, w, zero_point, integers)

  return lax.platform_dependent(q, cpu=on_cpu, default=elsewhere)


def by_int8(q: jax.Array, w: np.ndarray, zero_point: int, integers: Callable[[Any, Any], Any]) -> jax.Array:
  """Sums of (q - zero_point) * w as products of int8, which hold what is stored: the zero point's share is taken off.

  Args:
    q: int8.
    w: int8, known.
    zero_point: of q.
    integers: the contraction, of int8 or int32, into int32; what stands beyond an edge being zero.
  """
  if zero_point == 0:
    return integers(q, w)
  return integers(q, w) - integers(jnp.full((1, *q.shape[1:]), zero_point, jnp.int32), w.astype(np.int32))


def _dense(
  q: jax.Array,
  w: np.ndarray,
  w_scale: np.ndarray,
  bias: np.ndarray | None = None,
  *,
  x_scale: float,
  x_zero_point: int,
  **rest: Any,
) -> jax.Array:
  numbers = (((q.ndim - 1,), (0,)), ((), ()))

  def multiplied(dtype: Any) -> Callable[[Any, Any], Any]:
    return lambda x, w: lax.dot_general(
      x, jnp.asarray(w), numbers, precision=lax.Precision.HIGHEST, preferred_element_type=dtype
    )

  total = sums(q, w, x_zero_point, 1, multiplied(jnp.float32), multiplied(jnp.int32))
  total = total if bias is None else total + bias
  return leaves(total, integer_rules.multiplier(x_scale, w_scale, rest.get('y_scale')), **rest)


def _conv(
  q: jax.Array,
  w: np.ndarray,
  w_scale: np.ndarray,
  bias: np.ndarray | None = None,
  *,
  x_scale: float,
  x_zero_point: int,
  strides: Sequence[int],
  padding: Sequence[tuple[int, int]],
  dilation: Sequence[int],
  input_dilation: Sequence[int],
  groups: int,
  **rest: Any,
) -> jax.Array:
  geometry = {
    'strides': strides,
    'padding': padding,
    'dilation': dilation,
    'input_dilation': input_dilation,
    'groups': groups,
  }

  def floats(x: Any, w: Any) -> Any:
    return program_rules.RULES['conv'](x, jnp.asarray(w), **geometry)

  def integers(x: Any, w: Any) -> Any:
    return by_places(x, jnp.asarray(w), **geometry)

  total = sums(q, w, x_zero_point, 0, floats, integers)
  total = total if bias is None else total + bias
  return leaves(total, integer_rules.multiplier(x_scale, w_scale, rest.get('y_scale')), **rest)


def by_places(
  x: jax.Array,
  w: jax.Array,
  *,
  strides: Sequence[int],
  padding: Sequence[tuple[int, int]],
  dilation: Sequence[int],
  input_dilation: Sequence[int],
  groups: int,
) -> jax.Array:
  """A convolution of integers as one product for each place of its kernel, int32: every platform has products of int8.

  Args:
    x: int8 or int32 [B, space..., C].
    w: int8 or int32 [O, space..., C / groups].
    strides: as of 'conv', likewise what follows.
  """
  zero = jnp.zeros((), x.dtype)
  config = [(low, high, step - 1) for (low, high), step in zip(padding, input_dilation, strict=True)]
  x = lax.pad(x, zero, [(0, 0, 0), *config, (0, 0, 0)])
  sizes = [
    (size - (width - 1) * reach - 1) // step + 1
    for size, width, reach, step in zip(x.shape[1:-1], w.shape[1:-1], dilation, strides, strict=True)
  ]
  outs, per_group = w.shape[0] // groups, w.shape[-1]
  total: Any = 0
  for place in np.ndindex(*w.shape[1:-1]):
    starts = [index * reach for index, reach in zip(place, dilation, strict=True)]
    limits = [start + (size - 1) * step + 1 for start, size, step in zip(starts, sizes, strides, strict=True)]
    cut = lax.slice(x, [0, *starts, 0], [x.shape[0], *limits, x.shape[-1]], [1, *strides, 1])
    cut = cut.reshape(*cut.shape[:-1], groups, per_group)
    kernel = w[(slice(None), *place)].reshape(groups, outs, per_group)
    last = cut.ndim - 1
    numbers = (((last,), (2,)), ((last - 1,), (0,)))
    total += lax.dot_general(cut, kernel, numbers, preferred_element_type=jnp.int32)  # [groups, B, space..., outs]
  return jnp.moveaxis(total, 0, -2).reshape(x.shape[0], *sizes, w.shape[0])


def _dot(
  a: jax.Array,
  b: jax.Array,
  *,
  dimension_numbers: Any,
  a_scale: float,
  a_zero_point: int,
  b_scale: float,
  b_zero_point: int,
  **rest: Any,
) -> jax.Array:
  (summed, _), _ = dimension_numbers
  length = math.prod(a.shape[axis] for axis in summed)

  def multiplied(x: Any, y: Any, dtype: Any) -> Any:
    return lax.dot_general(x, y, dimension_numbers, precision=lax.Precision.HIGHEST, preferred_element_type=dtype)

  def on_cpu(a: jax.Array, b: jax.Array) -> jax.Array:
    x, y = a.astype(jnp.float32) - np.float32(a_zero_point), b.astype(jnp.float32) - np.float32(b_zero_point)
    reach = length * _reach(b_zero_point)
    if reach * _reach(a_zero_point) <= _EXACT:
      return multiplied(x, y, jnp.float32).astype(jnp.int32)
    if reach * 16 <= _EXACT:
      high = jnp.floor(x * np.float32(1 / 16))
      parts = [multiplied(part, y, jnp.float32).astype(jnp.int32) for part in (high, x - 16 * high)]
      return 16 * parts[0] + parts[1]
    return elsewhere(a, b)

  def elsewhere(a: jax.Array, b: jax.Array) -> jax.Array:
    return pair_by_int8(a, b, dimension_numbers, a_zero_point, b_zero_point)

  total = lax.platform_dependent(a, b, cpu=on_cpu, default=elsewhere)
  return leaves(total, integer_rules.multiplier(a_scale, b_scale, rest.get('y_scale')), **rest)


def pair_by_int8(a: jax.Array, b: jax.Array, numbers: Any, a_zero: int, b_zero: int) -> jax.Array:
  """Sums of (a - a_zero) * (b - b_zero) as products of int8, the zero points' shares taken off.

  Args:
    a: int8.
    b: int8.
    numbers: which axes, as of `lax.dot_general`.
    a_zero: the zero point of a.
    b_zero: of b.
  """

  def multiplied(x: Any, y: Any) -> Any:
    return lax.dot_general(x, y, numbers, preferred_element_type=jnp.int32)

  total = multiplied(a, b)
  if b_zero:
    total -= multiplied(a, jnp.ones_like(b)) * np.int32(b_zero)
  if a_zero:
    total -= multiplied(jnp.ones_like(a), b) * np.int32(a_zero)
  length = math.prod(a.shape[axis] for axis in numbers[0][0])
  return total + np.int32(length * a_zero * b_zero)


LAYERS: dict[str, Callable[..., Any]] = {'quantized_dense': _dense, 'quantized_conv': _conv}
RULES: dict[str, Callable[..., Any]] = {
  'quantize': _quantize,
  'dequantize': _dequantize,
  'requantize': _requantize,
  'quantized_dot': _dot,
  'quantized_add': _add,
  'quantized_mean': _mean,
}
