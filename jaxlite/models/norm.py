"""Batch norm whose gradient passes over the activations once where Flax's passes over them three times."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax


class BatchNorm(nn.Module):
  """Normalizes each channel by its mean and variance: over the batch in training, the running ones elsewhere.

  The numbers, parameters and statistics of `flax.linen.BatchNorm`, up to rounding. Its derivative is written as sums
  over the activations as they are, which XLA:CPU computes in one pass, where sums over centered activations are first
  written out.

  Attributes:
    use_running_average: whether the statistics come from 'batch_stats'.
    momentum: share of the old running statistics that stays at each call in training.
    epsilon: added to the variance.
    dtype: of the result; statistics are float32 at least.
    scale_init: first values of the scale.

  References:
    Ioffe and Szegedy, Batch Normalization, 2015, https://arxiv.org/abs/1502.03167

  >>> x = jnp.array([[1.0], [3.0]])
  >>> y, _ = BatchNorm(use_running_average=False).init_with_output(jax.random.key(0), x)
  >>> y.round(3).tolist()
  [[-1.0], [1.0]]
  """

  use_running_average: bool
  momentum: float = 0.9
  epsilon: float = 1e-5
  dtype: Any = None
  scale_init: Callable[..., Any] = nn.initializers.ones

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Returns the same shape as x, [B, ..., C]."""
    channels = (x.shape[-1],)
    scale = self.param('scale', self.scale_init, channels)
    bias = self.param('bias', nn.initializers.zeros, channels)
    mean = self.variable('batch_stats', 'mean', lambda: jnp.zeros(channels))
    variance = self.variable('batch_stats', 'var', lambda: jnp.ones(channels))
    dtype = self.dtype or jnp.result_type(x, scale)
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    if self.use_running_average:
      slope = lax.rsqrt(variance.value + self.epsilon) * scale
      return ((wide - mean.value) * slope + bias).astype(dtype)
    y, mean_now, variance_now = _normalized(wide, scale, bias, self.epsilon)
    if not self.is_initializing():
      for running, now in ((mean, mean_now), (variance, variance_now)):
        running.value = self.momentum * running.value + (1 - self.momentum) * lax.stop_gradient(now)
    return y.astype(dtype)


def _statistics(x: jax.Array) -> tuple[jax.Array, jax.Array]:
  axes, count = tuple(range(x.ndim - 1)), math.prod(x.shape[:-1])
  mean = x.sum(axes) / count
  return mean, jnp.maximum((x * x).sum(axes) / count - mean * mean, 0)


@functools.partial(jax.jit, static_argnums=3)  # traced once a shape, not once a layer
def _normalized(x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float) -> tuple[jax.Array, ...]:
  """(normalized, mean, variance) of x [..., C]."""

  @jax.custom_jvp
  def normalize(x: jax.Array, scale: jax.Array, bias: jax.Array) -> tuple[jax.Array, ...]:
    mean, variance = _statistics(x)
    return (x - mean) * (lax.rsqrt(variance + epsilon) * scale) + bias, mean, variance

  @normalize.defjvp
  def _(primals: Any, tangents: Any) -> Any:
    (x, scale, bias), (dx, dscale, dbias) = primals, tangents
    axes, count = tuple(range(x.ndim - 1)), math.prod(x.shape[:-1])
    mean, variance = _statistics(x)
    root = lax.rsqrt(variance + epsilon)
    dmean = dx.sum(axes) / count
    dvariance = 2 * ((x * dx).sum(axes) / count - mean * dmean)
    # y = x * slope + rest, so dy = dx * slope + x * dslope + drest: transposed, two sums of g and g * x.
    slope, dslope = root * scale, root * dscale - 0.5 * root**3 * dvariance * scale
    drest = dbias - dmean * slope - mean * dslope
    y = (x - mean) * slope + bias
    return (y, mean, variance), (dx * slope + x * dslope + drest, dmean, dvariance)

  return normalize(x, scale, bias)
