"""Kernels and embeddings that are kept as int8, a scale for each output: a quarter of float32's memory, to predict."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxlite.models.layers import scaled_normal
from jaxlite.models.tokens import rows_of

_SPREAD = 3.0  # deviations that 127 stands for in kernels that are drawn


def as_int8(kernel: Any, axis: int = 0) -> tuple[np.ndarray, np.ndarray]:
  """Rounds a kernel to int8, symmetric, the largest of each output at 127.

  Args:
    kernel: float[..., inputs, outputs].
    axis: of the inputs, over which a scale is shared.

  Returns:
    (int8 of the same shape, float32 of the other axes); kernel is about q * scale.

  Raises:
    ValueError: entries that are not finite.

  >>> q, scale = as_int8(np.array([[1.0, 0.0], [-0.5, 0.0]]))
  >>> q.tolist(), [round(float(one) * 127, 3) for one in scale]
  ([[127, 0], [-64, 0]], [1.0, 127.0])
  """
  kernel = np.asarray(kernel, np.float32)
  largest = np.max(np.abs(kernel), axis=axis, initial=0)
  if not np.isfinite(largest).all():
    raise ValueError('a kernel is rounded to int8 where its entries are finite; got NaN or infinity among them')
  scale = np.where(largest > 0, largest / 127, 1).astype(np.float32)
  return np.rint(kernel / np.expand_dims(scale, axis)).astype(np.int8), scale


class Int8Dense(nn.Module):
  """A dense layer of an int8 kernel: to predict with, since whole numbers have no gradient.

  Attributes:
    features: outputs.
    use_bias: whether there is one, float32.
    deviation: of first values, before division by the root of the inputs.
    dtype: what it computes in.

  >>> Int8Dense(3).init_with_output(jax.random.key(0), jnp.ones((2, 4)))[0].shape
  (2, 3)
  """

  features: int
  use_bias: bool = False
  deviation: float = 1.0
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Returns [..., features] of [..., inputs]."""
    inputs = x.shape[-1]
    kernel = self.param('kernel', drawn_int8, (inputs, self.features))
    one = self.deviation * _SPREAD / 127 / max(inputs, 1) ** 0.5
    scale = self.param('kernel_scale', nn.initializers.constant(one), (self.features,))
    x = (x.astype(self.dtype) @ kernel.astype(self.dtype)) * scale.astype(self.dtype)
    if self.use_bias:
      x = x + self.param('bias', nn.initializers.zeros, (self.features,)).astype(self.dtype)
    return x


def drawn_int8(key: jax.Array, shape: Any) -> jax.Array:
  """Draws first values, int8 of this shape: a normal distribution whose third deviation is 127.

  >>> drawn_int8(jax.random.key(0), (2, 2)).dtype
  dtype('int8')
  """
  return jnp.clip(jnp.rint(jax.random.normal(key, shape) * (127 / _SPREAD)), -127, 127).astype(jnp.int8)


def linear(width: int, name: str, *, int8: bool, dtype: Any, use_bias: bool = False, scale: float = 1.0) -> nn.Module:
  """Returns a dense layer of a float kernel, or of an int8 one.

  Args:
    width: outputs.
    name: of the layer.
    int8: which.
    dtype: what it computes in.
    use_bias: whether there is a bias.
    scale: of the variance of first values, over the inputs.
  """
  if int8:
    return Int8Dense(width, use_bias, scale**0.5, dtype, name=name)
  return nn.Dense(width, use_bias=use_bias, kernel_init=scaled_normal(scale), dtype=dtype, name=name)


def embedded(module: nn.Module, name: str, shape: tuple[int, int], tokens: jax.Array, int8: bool) -> Any:
  """Makes an embedding of a module, a float one or of int8 with a scale a row, and looks tokens up in it.

  Args:
    module: whose parameter it is.
    name: of the parameter; that of its scales is the same with '_scale'.
    shape: (V, d).
    tokens: int32[...].
    int8: which.

  Returns:
    (float[..., d], the table [V, d], its scales float32[V, 1] or None).

  Raises:
    ValueError: the parameter is of whole numbers, and no scale is asked for.
  """
  if not int8:
    table = module.param(name, nn.initializers.normal(0.02), shape)
    if not jnp.issubdtype(table.dtype, jnp.floating):  # whole numbers without their scale would be another model
      raise ValueError(
        f'{type(module).__name__} has int8=False, and its parameter {name!r} is {table.dtype}: give the module that '
        'the values came with'
      )
    return rows_of(table, tokens), table, None
  table = module.param(name, drawn_int8, shape)
  scale = module.param(f'{name}_scale', nn.initializers.constant(0.02 * _SPREAD / 127), (shape[0], 1))
  return rows_of(table, tokens).astype(scale.dtype) * rows_of(scale, tokens), table, scale
