"""The product of a contraction that is quantized: what the program has, and integers multiplied in its place.

Fake, in integer-valued float32, or real, stored int8 into int32.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxlite.graph.contractions import summed_axes


class Product(NamedTuple):
  """A contraction as the program has it, and which side is the weight.

  Attributes:
    primitive: dot_general or conv_general_dilated.
    params: its parameters.
    side: 0 or 1, the operand that is the weight.
    dtype: of the original result.
  """

  primitive: Any
  params: Mapping[str, Any]
  side: int
  dtype: Any

  @property
  def is_conv(self) -> bool:
    return self.primitive.name == 'conv_general_dilated'

  def ordered(self, x: Any, w: Any) -> tuple[Any, Any]:
    """Returns activation and weight in the program's order."""
    return (x, w) if self.side == 1 else (w, x)

  def bind(self, x: jax.Array, w: jax.Array, **changed: Any) -> jax.Array:
    return self.primitive.bind(*self.ordered(x, w), **{**self.params, **changed})

  def summed_axes(self, ndim: int) -> tuple[int, ...]:
    """Returns the weight's axes that the contraction sums over."""
    return summed_axes(self.primitive.name, self.params, self.side, ndim)

  def on_output(self, per_channel: jax.Array, x_ndim: int) -> jax.Array:
    """Brings a value per output channel (summed axes 1) to where it broadcasts against the result."""
    if self.is_conv:
      shape = [1] * per_channel.ndim
      shape[self.params['dimension_numbers'].out_spec[1]] = per_channel.size
      return per_channel.reshape(shape)
    contracting, batch = self.params['dimension_numbers']
    summed, shared = contracting[self.side], batch[self.side]
    free = [axis for axis in range(per_channel.ndim) if axis not in (*summed, *shared)]
    ones = (1,) * (x_ndim - len(contracting[1 - self.side]) - len(batch[1 - self.side]))
    moved = per_channel.transpose([*shared, *free, *summed])
    sizes = moved.shape
    head, tail = sizes[: len(shared)], sizes[len(shared) : len(shared) + len(free)]
    return moved.reshape((*head, *ones, *tail) if self.side == 1 else (*head, *tail, *ones))


def traced_once(build: Callable[..., Callable[..., Any]]) -> Callable[..., Callable[..., Any]]:
  """Lets equal sites share one function: it is traced, differentiated and lowered once, however deep the network is.

  Args:
    build: (product, *what is known before tracing) -> a function of arrays.
  """

  @functools.lru_cache(maxsize=1024)
  def known(primitive: Any, params: tuple[Any, ...], side: int, dtype: Any, *rest: Any) -> Callable[..., Any]:
    return jax.jit(build(Product(primitive, dict(params), side, dtype), *rest))

  def of(product: Product, *rest: Any) -> Callable[..., Any]:
    return known(product.primitive, tuple(sorted(product.params.items())), product.side, product.dtype, *rest)

  return of


def fake_product(product: Product, x: jax.Array, w: jax.Array) -> jax.Array:
  """Multiplies integer-valued float32 at full precision: no tensor-core rounding of what must be exact.

  Args:
    product: the contraction.
    x: float32, integer-valued.
    w: float32, integer-valued.

  Returns:
    float32, the sums.
  """
  highest = (lax.Precision.HIGHEST, lax.Precision.HIGHEST)
  return product.bind(x, w, precision=highest, preferred_element_type=jnp.dtype(jnp.float32))


def real_product(product: Product, x: jax.Array, w: jax.Array, zero: jax.Array) -> jax.Array:
  """Multiplies stored int8 into int32, takes the zero point's share off, and gives float32 sums.

  Args:
    product: the contraction.
    x: float32, integers relative to zero.
    w: float32, integers.
    zero: float32[], the zero point of the stored activation.

  Returns:
    float32, the sums.
  """
  stored = (x + zero).astype(jnp.int8)
  weights = w.astype(jnp.int8)
  changed: dict[str, Any] = {'precision': None, 'preferred_element_type': jnp.dtype(jnp.int32)}
  if product.is_conv:  # stored zeros are `zero`, so padding must be written out
    numbers = product.params['dimension_numbers']
    config = [(0, 0, 0)] * stored.ndim
    spatial = zip(numbers.lhs_spec[2:], product.params['padding'], product.params['lhs_dilation'], strict=True)
    for axis, (before, after), dilation in spatial:
      config[axis] = (before, after, dilation - 1)
    stored = lax.pad(stored, zero.astype(jnp.int8), config)
    changed['padding'] = ((0, 0),) * (stored.ndim - 2)
    changed['lhs_dilation'] = (1,) * (stored.ndim - 2)
  sums = product.bind(stored, weights, **changed)
  columns = jnp.sum(weights, axis=product.summed_axes(w.ndim), keepdims=True, dtype=jnp.int32)
  share = product.on_output(columns, x.ndim) * zero.astype(jnp.int32)
  return (sums - share).astype(jnp.float32)


def real_pair(product: Product, x: jax.Array, y: jax.Array, x_zero: jax.Array, y_zero: jax.Array) -> jax.Array:
  """Multiplies two stored int8 activations into int32, takes the zero points' shares off, and gives float32 sums.

  Args:
    product: a dot_general.
    x: float32, integers relative to zero.
    y: float32, integers relative to zero.
    x_zero: float32[], the zero point of the stored x.
    y_zero: float32[], of the stored y.

  Returns:
    float32, the sums.
  """
  x_stored, y_stored = (x + x_zero).astype(jnp.int8), (y + y_zero).astype(jnp.int8)
  x_zero, y_zero = x_zero.astype(jnp.int32), y_zero.astype(jnp.int32)
  flipped = product._replace(side=1 - product.side)
  of_x = jnp.sum(x_stored, axis=flipped.summed_axes(x.ndim), keepdims=True, dtype=jnp.int32)
  of_y = jnp.sum(y_stored, axis=product.summed_axes(y.ndim), keepdims=True, dtype=jnp.int32)
  length = math.prod(x.shape[axis] for axis in flipped.summed_axes(x.ndim))
  sums = product.bind(x_stored, y_stored, precision=None, preferred_element_type=jnp.dtype(jnp.int32))
  shares = flipped.on_output(of_x, y.ndim) * y_zero + product.on_output(of_y, x.ndim) * x_zero
  return (sums - shares + length * x_zero * y_zero).astype(jnp.float32)
