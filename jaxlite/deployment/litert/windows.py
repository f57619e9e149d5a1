"""What runs over windows in a form that LiteRT's converter has an operation for: of other pools it makes a loop, and a
transposed convolution is told its batch size there."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxlite.deployment.running.program_rules import RULES


def sum_pool(x: jax.Array, **window: Any) -> jax.Array:
  """Sums over windows of space: a convolution of each channel by ones, of three axes and more a sum of slices.

  Args:
    x: [B, space..., C]; over windows of examples or channels, or of integers, it stays as it is.
    **window: as of 'reduce_window_sum'.

  >>> told = {name: (1, 1, 1) for name in ('window_strides', 'base_dilation', 'window_dilation')}
  >>> sum_pool(jnp.ones((1, 4, 1)), window_dimensions=(1, 3, 1), padding=((0, 0),) * 3, **told).ravel().tolist()
  [3.0, 3.0]
  """
  names = ('window_dimensions', 'window_strides', 'base_dilation', 'window_dilation')
  edges = [window[name][at] for name in names for at in (0, -1)]
  edges += [side for at in (0, -1) for side in window['padding'][at]]
  if x.ndim < 3 or x.dtype != jnp.float32 or edges != [1] * 8 + [0] * 4:
    return RULES['reduce_window_sum'](x, **window)
  sizes, strides, base, spread = (window[name][1:-1] for name in names)
  padding = window['padding'][1:-1]
  if x.ndim > 4 and {*base, *spread} == {1}:
    return _of_slices(jnp.add, x, 0, sizes, strides, padding)
  channels, last = x.shape[-1], x.ndim - 1
  channels_last = (0, last, *range(1, last))
  return lax.conv_general_dilated(
    x,
    jnp.ones((*sizes, 1, channels), jnp.float32),
    strides,
    padding,
    lhs_dilation=base,
    rhs_dilation=spread,
    dimension_numbers=lax.ConvDimensionNumbers(channels_last, (last, last - 1, *range(last - 1)), channels_last),
    feature_group_count=channels,
    precision=lax.Precision.HIGHEST,
  )


def max_pool(
  x: jax.Array, *, window: Sequence[int], strides: Sequence[int], padding: Sequence[tuple[int, int]]
) -> jax.Array:
  """The largest of windows of space: of one axis as of two, of three and more as the largest of slices.

  Args:
    x: [B, space..., C].
    window: as of 'max_pool', likewise what follows.

  >>> max_pool(jnp.arange(4.0).reshape(1, 4, 1), window=(2,), strides=(2,), padding=((0, 0),)).ravel().tolist()
  [1.0, 3.0]
  """
  pool = RULES['max_pool']
  if x.ndim == 4:
    return pool(x, window=window, strides=strides, padding=padding)
  if x.ndim == 3:
    wide = x.reshape(*x.shape[:2], 1, x.shape[2])
    found = pool(wide, window=(*window, 1), strides=(*strides, 1), padding=(*padding, (0, 0)))
    return found.reshape(*found.shape[:2], found.shape[3])
  lowest = np.finfo(np.float32).min if x.dtype == jnp.float32 else np.iinfo(x.dtype).min
  return _of_slices(jnp.maximum, x, lowest, window, strides, padding)


def spread(x: jax.Array, apart: Sequence[int]) -> jax.Array:
  """Puts zeros between entries along axes of space, as a transposed convolution has them.

  Args:
    x: [B, space..., C].
    apart: by how much entries that were neighbors lie apart then, by axis of space.

  >>> spread(jnp.array([1.0, 2.0]).reshape(1, 2, 1), (3,)).ravel().tolist()
  [1.0, 0.0, 0.0, 2.0]
  """
  for axis, step in enumerate(apart, 1):
    if step == 1 or x.shape[axis] == 0:
      continue
    before, after = x.shape[: axis + 1], x.shape[axis + 1 :]
    rows = lax.reshape(x, (before[0], math.prod(before[1:]), 1, math.prod(after)))
    rows = lax.pad(rows, np.zeros((), x.dtype), [(0, 0, 0), (0, 0, 0), (0, step - 1, 0), (0, 0, 0)])
    x = lax.reshape(rows, (*before[:-1], before[-1] * step, *after))
    x = lax.slice_in_dim(x, 0, x.shape[axis] - step + 1, axis=axis)
  return x


def _of_slices(
  merge: Callable[[Any, Any], Any],
  x: jax.Array,
  beyond: Any,
  window: Sequence[int],
  strides: Sequence[int],
  padding: Sequence[tuple[int, int]],
) -> jax.Array:
  x = lax.pad(x, np.asarray(beyond, x.dtype), [(0, 0, 0), *((low, high, 0) for low, high in padding), (0, 0, 0)])
  sizes = [(size - wide) // step + 1 for size, wide, step in zip(x.shape[1:-1], window, strides, strict=True)]
  merged: Any = None
  for place in np.ndindex(*window):
    ends = [at + (size - 1) * step + 1 for at, size, step in zip(place, sizes, strides, strict=True)]
    some = lax.slice(x, [0, *place, 0], [x.shape[0], *ends, x.shape[-1]], [1, *strides, 1])
    merged = some if merged is None else merge(merged, some)
  return merged
