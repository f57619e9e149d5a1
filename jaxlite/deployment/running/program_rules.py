"""What each operation of floats is in JAX; `reference` is what they mean."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxlite.deployment.operations.edges import to_even

_HIGHEST = lax.Precision.HIGHEST
_AS_LAX = """
  neg abs sign exp exp2 log log1p expm1 sqrt rsqrt cbrt tanh logistic erf erfc erf_inv floor ceil sin cos tan asin acos
  atan sinh cosh square is_finite
"""
_AS_NUMPY = {
  'add': jnp.add,
  'sub': jnp.subtract,
  'mul': jnp.multiply,
  'max': jnp.maximum,
  'min': jnp.minimum,
  'pow': jnp.power,
  'rem': lax.rem,
  'div': lax.div,
  'eq': jnp.equal,
  'ne': jnp.not_equal,
  'lt': jnp.less,
  'le': jnp.less_equal,
  'gt': jnp.greater,
  'ge': jnp.greater_equal,
  'and': jnp.bitwise_and,
  'or': jnp.bitwise_or,
  'xor': jnp.bitwise_xor,
  'not': jnp.bitwise_not,
  'atan2': lax.atan2,
}


def _each(fn: Callable[..., Any]) -> Callable[..., Any]:
  return lambda *operands, **attributes: fn(*operands)


def _even(fn: Callable[..., Any]) -> Callable[..., Any]:
  """An operation of lax, whose operands have one shape, as constants here may lack."""
  return lambda *operands, **attributes: fn(*jnp.broadcast_arrays(*operands))


def _round(x: jax.Array, *, rounding_method: Any) -> jax.Array:
  way = lax.RoundingMethod.TO_NEAREST_EVEN if to_even(rounding_method) else lax.RoundingMethod.AWAY_FROM_ZERO
  return lax.round(x, way)


def _select(which: jax.Array, *cases: jax.Array) -> jax.Array:
  return lax.select_n(*jnp.broadcast_arrays(which, *cases))


def _over(fn: Callable[..., Any]) -> Callable[..., Any]:
  return lambda x, *, axes, **_: fn(x, axis=tuple(axes))


def _sum(x: jax.Array, *, axes: Sequence[int], **_: Any) -> jax.Array:
  return jnp.sum(x, axis=tuple(axes), dtype=x.dtype)


def _prod(x: jax.Array, *, axes: Sequence[int], **_: Any) -> jax.Array:
  return jnp.prod(x, axis=tuple(axes), dtype=x.dtype)


def _along(fn: Callable[..., Any]) -> Callable[..., Any]:
  return lambda x, *, axis, reverse=False: fn(x, axis=axis, reverse=reverse)


def _slice(
  x: jax.Array, *, start_indices: Sequence[int], limit_indices: Sequence[int], strides: Sequence[int] | None = None
) -> jax.Array:
  return lax.slice(x, start_indices, limit_indices, strides)


def _dot(x: jax.Array, y: jax.Array, *, dimension_numbers: Any) -> jax.Array:
  return lax.dot_general(x, y, dimension_numbers, precision=_HIGHEST)


def _convolve(
  x: jax.Array,
  w: jax.Array,
  *,
  window_strides: Sequence[int],
  padding: Sequence[tuple[int, int]],
  lhs_dilation: Sequence[int],
  rhs_dilation: Sequence[int],
  dimension_numbers: Any,
  feature_group_count: int,
  batch_group_count: int = 1,
) -> jax.Array:
  return lax.conv_general_dilated(
    x,
    w,
    window_strides,
    padding,
    lhs_dilation=lhs_dilation,
    rhs_dilation=rhs_dilation,
    dimension_numbers=lax.ConvDimensionNumbers(*dimension_numbers),
    feature_group_count=feature_group_count,
    precision=_HIGHEST,
  )


def _conv(
  x: jax.Array,
  kernel: jax.Array,
  bias: jax.Array | None = None,
  *,
  strides: Sequence[int],
  padding: Sequence[tuple[int, int]],
  dilation: Sequence[int],
  input_dilation: Sequence[int],
  groups: int,
) -> jax.Array:
  last = x.ndim - 1
  channels_last = (0, last, *range(1, last))
  kernel_last = lax.transpose(kernel, (*range(1, kernel.ndim), 0))  # [space..., C, O], as XLA is quick with
  out = _convolve(
    x,
    kernel_last,
    window_strides=strides,
    padding=padding,
    lhs_dilation=input_dilation,
    rhs_dilation=dilation,
    dimension_numbers=(channels_last, (last, last - 1, *range(last - 1)), channels_last),
    feature_group_count=groups,
  )
  return out if bias is None else out + bias


def _dense(x: jax.Array, w: jax.Array, bias: jax.Array | None = None) -> jax.Array:
  out = jnp.matmul(x, w, precision=_HIGHEST)
  return out if bias is None else out + bias


def _lowest(dtype: Any) -> Any:
  return -np.inf if jnp.issubdtype(dtype, jnp.floating) else np.iinfo(dtype).min


def _window(fn: Callable[..., Any], start: Callable[[Any], Any]) -> Callable[..., Any]:
  def run(
    x: jax.Array,
    *,
    window_dimensions: Sequence[int],
    window_strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    base_dilation: Sequence[int],
    window_dilation: Sequence[int],
  ) -> jax.Array:
    return lax.reduce_window(
      x,
      np.asarray(start(x.dtype), x.dtype),
      fn,
      window_dimensions,
      window_strides,
      padding,
      base_dilation,
      window_dilation,
    )

  return run


def _pool(
  x: jax.Array, *, window: Sequence[int], strides: Sequence[int], padding: Sequence[tuple[int, int]]
) -> jax.Array:
  sides = ((0, 0), *padding, (0, 0))
  start = np.asarray(_lowest(x.dtype), x.dtype)
  return lax.reduce_window(x, start, lax.max, (1, *window, 1), (1, *strides, 1), sides)


def _gather(
  table: jax.Array, indices: jax.Array, *, dimension_numbers: Any, slice_sizes: Sequence[int], mode: str
) -> jax.Array:
  offset, collapsed, start, *_ = dimension_numbers
  numbers = lax.GatherDimensionNumbers(offset, collapsed, start)
  modes = {'fill_or_drop': lax.GatherScatterMode.FILL_OR_DROP, 'clip': lax.GatherScatterMode.CLIP}
  how = modes.get(mode, lax.GatherScatterMode.PROMISE_IN_BOUNDS)
  return lax.gather(table, indices, numbers, tuple(slice_sizes), mode=how)


def _take(table: jax.Array, ids: jax.Array) -> jax.Array:
  return jnp.take(table, ids, axis=0, mode='fill')  # which itself counts from the end where negative


def _softmax(x: jax.Array, *, axis: int) -> jax.Array:
  risen = jnp.exp(x - x.max(axis, keepdims=True))
  return risen / risen.sum(axis, keepdims=True)


def _moved(x: jax.Array, *starts: jax.Array, slice_sizes: Sequence[int]) -> jax.Array:
  return lax.dynamic_slice(x, starts, slice_sizes)


def _pad(x: jax.Array, value: jax.Array, *, padding_config: Sequence[tuple[int, int, int]]) -> jax.Array:
  return lax.pad(x, jnp.asarray(value, x.dtype), padding_config)


RULES: dict[str, Callable[..., Any]] = {
  **{name: _each(getattr(lax, name)) for name in _AS_LAX.split()},
  **{name: _even(fn) for name, fn in _AS_NUMPY.items()},
  'round': _round,
  'integer_pow': lambda x, *, y: lax.integer_pow(x, y),
  'convert_element_type': lambda x, *, new_dtype, **_: x.astype(new_dtype),
  'select_n': _each(_select),
  'clamp': _each(lambda low, x, high: jnp.minimum(jnp.maximum(x, low), high)),
  'reshape': lambda x, *, new_sizes, **_: jnp.reshape(x, new_sizes),
  'squeeze': lambda x, *, dimensions: jnp.squeeze(x, tuple(dimensions)),
  'transpose': lambda x, *, permutation: jnp.transpose(x, permutation),
  'broadcast_in_dim': lambda x, *, shape, broadcast_dimensions: lax.broadcast_in_dim(x, shape, broadcast_dimensions),
  'concatenate': lambda *xs, dimension: lax.concatenate(xs, dimension),
  'slice': _slice,
  'dynamic_slice': _moved,
  'pad': _pad,
  'rev': lambda x, *, dimensions: lax.rev(x, dimensions),
  'reduce_sum': _sum,
  'reduce_max': _over(jnp.max),
  'reduce_min': _over(jnp.min),
  'reduce_prod': _prod,
  'reduce_and': _over(jnp.all),
  'reduce_or': _over(jnp.any),
  'argmax': lambda x, *, axes, **_: jnp.argmax(x, axes[0]),
  'argmin': lambda x, *, axes, **_: jnp.argmin(x, axes[0]),
  'cumsum': _along(lax.cumsum),
  'cumprod': _along(lax.cumprod),
  'cummax': _along(lax.cummax),
  'cummin': _along(lax.cummin),
  'dot_general': _dot,
  'conv_general_dilated': _convolve,
  'reduce_window_max': _window(lax.max, _lowest),
  'reduce_window_sum': _window(lax.add, lambda dtype: 0),
  'gather': _gather,
  'sort': lambda x, *, dimension, **_: lax.sort(x, dimension),
  'dense': _dense,
  'conv': _conv,
  'relu': _each(lambda x: jnp.maximum(x, 0)),
  'clip': lambda x, *, low, high: jnp.clip(x, low, high),
  'mean': _over(jnp.mean),
  'softmax': _softmax,
  'take': _each(_take),
  'max_pool': _pool,
}
