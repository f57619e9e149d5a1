"""The arithmetic of integers that leave jaxlite, operation by operation, in NumPy; each of our runtimes gives the same.

A quantized value is int8; it stands for `scale * (stored - zero_point)`, with both in the attributes of the operations
that write and read it. Sums are int32, exact. What leaves a sum is multiplied once, in float32, and rounded once:

  stored = clip(rint(float32(sum) * multiplier) + zero_point, low, high)

with ties to even. One product of two float32 is the same in C, NumPy and XLA, whatever the compiler contracts; a
product followed by a float addition is not. So a bias is an int32 on the grid of the sum, and an addition brings both
operands to one int32 grid first.

Operations, inputs in brackets, w_scale being float32[O], bias int32[O] or left out:

  quantize [x float]: scale, zero_point, low, high -> int8
  dequantize [q]: scale, zero_point -> float32; of a constant also [q, scales]: axis, a scale for each entry of an axis
  requantize [q]: x_scale, x_zero_point, y_* -> int8 on another grid
  quantized_dense [q, w int8 [K, N], w_scale, bias]: x_scale, x_zero_point, y_* or none
  quantized_conv [q, w int8 [O, space..., C / groups], w_scale, bias]: as dense, and the geometry of 'conv'
  quantized_dot [q, q]: dimension_numbers, a_scale, a_zero_point, b_scale, b_zero_point, y_* or none
  quantized_add [q, q]: a_scale, a_zero_point, b_scale, b_zero_point, y_*
  quantized_mean [q]: axes, x_scale, x_zero_point, y_* or none

where y_* is y_scale, y_zero_point, low, high; without them the result is float32: float32(sum) * multiplier, the same
product. Scales are Python floats that float32 holds exactly. A ReLU is a `low` that is the zero point. Where nothing is
computed ('reshape', 'transpose', 'slice', 'concatenate' of one grid, 'pad' with the zero point, 'max_pool', 'take'),
the operations of floats serve int8 as they are.

References:
  Jacob et al., Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference,
  2018, https://arxiv.org/abs/1712.05877
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

ADD_BITS = 20  # of the whole numbers by which an addition's operands are brought to one grid


def multiplier(x_scale: float, w_scale: Any, y_scale: float | None) -> np.ndarray:
  """Returns what a sum is multiplied by, float32: x_scale * w_scale / y_scale, rounded once.

  >>> multiplier(0.5, [0.25, 0.5], 2.0).tolist()
  [0.0625, 0.125]
  """
  return (np.float64(x_scale) * np.asarray(w_scale, np.float64) / np.float64(y_scale or 1.0)).astype(np.float32)


def add_factors(a_scale: float, b_scale: float, y_scale: float) -> tuple[int, int, np.float32]:
  """Returns the whole numbers that bring the operands of an addition to one grid, and the sum's multiplier.

  >>> add_factors(1.0, 0.5, 2.0)
  (1048576, 524288, np.float32(4.7683716e-07))
  """
  most = max(a_scale, b_scale)
  a, b = (round(math.ldexp(scale / most, ADD_BITS)) for scale in (a_scale, b_scale))
  return a, b, np.float32(math.ldexp(most, -ADD_BITS) / y_scale)


def leaves(
  total: np.ndarray,
  factor: Any,
  y_scale: float | None = None,
  y_zero_point: int = 0,
  low: int = -128,
  high: int = 127,
) -> np.ndarray:
  """Returns what leaves an int32 sum: int8 on a grid, or float32 where there is none.

  >>> leaves(np.array([3, -5, 400], np.int32), np.float32(0.5), 1.0, 0, -128, 127).tolist()
  [2, -2, 127]
  """
  real = total.astype(np.float32) * np.asarray(factor, np.float32)
  if y_scale is None:
    return real
  return np.clip(np.rint(real) + np.float32(y_zero_point), low, high).astype(np.int8)


def quantize(x: np.ndarray, *, scale: float, zero_point: int, low: int, high: int) -> np.ndarray:
  """A float becomes the nearest of its grid; NaN becomes its zero.

  >>> quantize(np.array([0.26, -9.0, np.nan], np.float32), scale=0.5, zero_point=3, low=-8, high=7).tolist()
  [4, -8, 3]
  """
  steps = np.rint(x.astype(np.float32) * (np.float32(1) / np.float32(scale)))
  steps = np.where(np.isnan(steps), np.float32(0), steps)
  return np.clip(steps + np.float32(zero_point), low, high).astype(np.int8)


def dequantize(
  q: np.ndarray, scales: np.ndarray | None = None, *, scale: float = 1.0, zero_point: int = 0, axis: int = 0
) -> np.ndarray:
  if scales is None:
    return (q.astype(np.float32) - np.float32(zero_point)) * np.float32(scale)
  wide = scales.astype(np.float32).reshape([-1 if index == axis else 1 for index in range(q.ndim)])
  return q.astype(np.float32) * wide


def _requantize(q: np.ndarray, *, x_scale: float, x_zero_point: int, y_scale: float, **rest: Any) -> np.ndarray:
  return leaves(_whole(q, x_zero_point), multiplier(x_scale, 1.0, y_scale), y_scale, **rest)


def _dense(
  q: np.ndarray,
  w: np.ndarray,
  w_scale: np.ndarray,
  bias: np.ndarray | None = None,
  *,
  x_scale: float,
  x_zero_point: int,
  **rest: Any,
) -> np.ndarray:
  total = _exact(np.matmul(_whole(q, x_zero_point).astype(np.float64), w.astype(np.float64)))
  total = total if bias is None else total + bias.astype(np.int32)
  return leaves(total, multiplier(x_scale, w_scale, rest.get('y_scale')), **rest)


def _conv(
  convolve: Callable[..., np.ndarray],
  q: np.ndarray,
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
) -> np.ndarray:
  real = convolve(
    _whole(q, x_zero_point).astype(np.float64),
    w.astype(np.float64),
    strides=strides,
    padding=padding,
    dilation=dilation,
    input_dilation=input_dilation,
    groups=groups,
  )
  total = _exact(real)
  total = total if bias is None else total + bias.astype(np.int32)
  return leaves(total, multiplier(x_scale, w_scale, rest.get('y_scale')), **rest)


def _dot(
  multiply: Callable[..., np.ndarray],
  a: np.ndarray,
  b: np.ndarray,
  *,
  dimension_numbers: Any,
  a_scale: float,
  a_zero_point: int,
  b_scale: float,
  b_zero_point: int,
  **rest: Any,
) -> np.ndarray:
  left, right = _whole(a, a_zero_point).astype(np.float64), _whole(b, b_zero_point).astype(np.float64)
  total = _exact(multiply(left, right, dimension_numbers=dimension_numbers))
  return leaves(total, multiplier(a_scale, b_scale, rest.get('y_scale')), **rest)


def _add(
  a: np.ndarray,
  b: np.ndarray,
  *,
  a_scale: float,
  a_zero_point: int,
  b_scale: float,
  b_zero_point: int,
  y_scale: float,
  **rest: Any,
) -> np.ndarray:
  times_a, times_b, factor = add_factors(a_scale, b_scale, y_scale)
  total = _whole(a, a_zero_point) * np.int32(times_a) + _whole(b, b_zero_point) * np.int32(times_b)
  return leaves(total, factor, y_scale, **rest)


def _mean(q: np.ndarray, *, axes: Sequence[int], x_scale: float, x_zero_point: int, **rest: Any) -> np.ndarray:
  total = _whole(q, x_zero_point).sum(tuple(axes), dtype=np.int32)
  count = math.prod(q.shape[axis] for axis in axes)
  return leaves(total, multiplier(x_scale, 1.0 / count, rest.get('y_scale')), **rest)


def _whole(q: np.ndarray, zero_point: int) -> np.ndarray:
  return q.astype(np.int32) - np.int32(zero_point)


def _exact(total: np.ndarray) -> np.ndarray:
  """A sum of float64 that holds whole numbers: below 2^53 they are exact."""
  return total.astype(np.int64).astype(np.int32)


def rules(convolve: Callable[..., np.ndarray], multiply: Callable[..., np.ndarray]) -> dict[str, Callable[..., Any]]:
  """Returns the rule of each operation by name.

  Args:
    convolve: what 'conv' does.
    multiply: what 'dot_general' does.
  """
  return {
    'quantize': quantize,
    'dequantize': dequantize,
    'requantize': _requantize,
    'quantized_dense': _dense,
    'quantized_conv': functools.partial(_conv, convolve),
    'quantized_dot': functools.partial(_dot, multiply),
    'quantized_add': _add,
    'quantized_mean': _mean,
  }
