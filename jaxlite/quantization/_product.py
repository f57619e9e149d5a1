"""One contraction in integers: its scales, its range and its gradient, straight through.

The fake product multiplies the *integers* that deployment multiplies, held in float32, and scales once
afterwards. While K * max|a| * max|w| <= 2^24 every partial sum is an integer that float32 holds exactly, so that
fake equals real bit for bit, whatever the order of summation.

References:
  Bengio et al., Estimating or Propagating Gradients Through Stochastic Neurons, 2013,
  https://arxiv.org/abs/1308.3432
  Choi et al., PACT: Parameterized Clipping Activation for Quantized Neural Networks, 2018,
  https://arxiv.org/abs/1805.06085
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from jaxlite.graph.rewrite import with_gradient_of
from jaxlite.quantization._multiply import Product, fake_product, real_pair, real_product, traced_once
from jaxlite.quantization._numerics import (
  MARK,
  Bits,
  Grid,
  Range,
  activation_grid,
  to_steps,
  weight_scale,
  weight_steps,
)


def marked(w_steps: jax.Array, bits: int) -> jax.Array:
  """Names a weight's integers, so that a report reads their bits off any program.

  >>> marked(jnp.ones(2), 8).tolist()
  [1.0, 1.0]
  """
  return checkpoint_name(w_steps, f'{MARK}{bits}')


def scaled(
  product: Product,
  x_steps: jax.Array,
  x_scale: jax.Array,
  w_steps: jax.Array,
  w_scale: jax.Array,
  zero: jax.Array,
  *,
  real: bool,
) -> jax.Array:
  """Multiplies integers and scales the sums once, in deployment's own order.

  Args:
    product: the contraction.
    x_steps: float32, integers relative to zero.
    x_scale: float32[].
    w_steps: float32, integers.
    w_scale: float32, the weight's shape with 1 for each summed axis.
    zero: float32[], how a real 0 is stored.
    real: whether to execute int8 operands into int32; else integer-valued float32.

  Returns:
    The result in the original's dtype.
  """
  sums = real_product(product, x_steps, w_steps, zero) if real else fake_product(product, x_steps, w_steps)
  return (sums * (x_scale * product.on_output(w_scale, x_steps.ndim))).astype(product.dtype)


def scaled_by_weight(product: Product, x: jax.Array, w_steps: jax.Array, w_scale: jax.Array) -> jax.Array:
  """Multiplies a float activation by a weight's integers and scales the sums once.

  Summed in at least float32: in float16 the integers of a few hundred terms would overflow.
  """
  wide = jnp.promote_types(x.dtype, jnp.float32)
  sums = product.bind(x, w_steps.astype(x.dtype), preferred_element_type=jnp.dtype(wide))
  return (sums * product.on_output(w_scale, x.ndim)).astype(product.dtype)


def tangent(
  product: Product,
  x_steps: jax.Array,
  x_scale: jax.Array | None,
  w_steps: jax.Array,
  w_scale: jax.Array,
  dx: jax.Array | None,
  dw: jax.Array,
  out: jax.Array,
) -> jax.Array:
  """Returns the derivative of the float contraction at the quantized operands.

  Integers enter these contractions too: they are exact in bfloat16, and no second copy of the activation is kept
  for the backward pass. The scales go to whichever array is the smaller.

  Args:
    product: the contraction.
    x_steps: what the activation was multiplied as.
    x_scale: float32[]; None where the activation is float.
    w_steps: float32, integers.
    w_scale: float32, the weight's shape with 1 for each summed axis.
    dx: tangent of the activation, in its dtype; None where it does not move.
    dw: tangent of the weight, in its dtype.
    out: the result, for its size.
  """
  x_scale = jnp.ones((), jnp.float32) if x_scale is None else x_scale
  x_used = x_steps.astype(dw.dtype if dx is None else dx.dtype)
  after = dw.size > out.size
  if after:
    by_w = product.bind(x_used, dw) * x_scale.astype(product.dtype)
  else:
    by_w = product.bind(x_used, (dw * x_scale).astype(dw.dtype))
  if dx is None:
    return by_w.astype(product.dtype)
  if after:
    per_output = product.on_output(w_scale, dx.ndim).astype(product.dtype)
    return product.bind(dx, w_steps.astype(dw.dtype)) * per_output + by_w
  return product.bind(dx, (w_steps * w_scale).astype(dw.dtype)) + by_w


def quantized(
  product: Product,
  x: jax.Array,
  w: jax.Array,
  span: Range,
  *,
  bits: Bits,
  real: bool,
  active: jax.Array | None = None,
) -> jax.Array:
  """Contracts in integers, with straight-through gradients.

  Args:
    product: the contraction.
    x: the activation, float[...].
    w: the weight, float[...].
    span: the activation's range, float32[] each; a gradient never flows into it.
    bits: of weight and activation; neither is None.
    real: whether to execute int8 operands into int32; else integer-valued float32.
    active: bool[] or None; False gives the float contraction, at full precision.

  Returns:
    The result in the original's dtype. Its derivative is that of the float contraction at the quantized
    operands, zero for clipped activations; weights pass it through.
  """
  return _quantizing(product, bits, real)(x, w, lax.stop_gradient(span[0]), lax.stop_gradient(span[1]), active)


@traced_once
def _quantizing(product: Product, bits: Bits, real: bool) -> Callable[..., jax.Array]:
  @jax.custom_jvp
  def contract(x: jax.Array, w: jax.Array, low: jax.Array, high: jax.Array, on: jax.Array | None) -> jax.Array:
    return forward(x, w, low, high, on)[0]

  def forward(x: jax.Array, w: jax.Array, low: jax.Array, high: jax.Array, on: jax.Array | None) -> Any:
    # Before it is active the steps are the values and the scales 1: one contraction either way, no branch
    # around it (a convolution inside a conditional is slow on XLA:CPU).
    def choose(quantized: jax.Array, plain: Any) -> jax.Array:
      return quantized if on is None else jnp.where(on, quantized, plain)

    grid = activation_grid((low, high), bits.activation)
    x_steps = lax.clamp(grid.low, to_steps(x, grid.scale), grid.high)
    w_scale = weight_scale(w, product.summed_axes(w.ndim), bits.weight)
    w_steps = marked(weight_steps(w, w_scale, bits.weight), bits.weight)
    inside = choose((grid.lowest <= x) & (x <= grid.highest), True)
    x_used = choose(x_steps, x.astype(jnp.float32))
    w_used = choose(w_steps, w.astype(jnp.float32))
    x_scale, w_scale = choose(grid.scale, 1.0), choose(w_scale, 1.0)
    out = scaled(product, x_used, x_scale, w_used, w_scale, grid.zero, real=real)
    return out, (x_used, x_scale, inside, w_used, w_scale)

  @contract.defjvp
  def _(primals: Any, tangents: Any) -> Any:
    dx, dw = tangents[:2]
    out, (x_used, x_scale, inside, w_used, w_scale) = forward(*primals)
    return out, tangent(product, x_used, x_scale, w_used, w_scale, lax.select(inside, dx, jnp.zeros_like(dx)), dw, out)

  return contract


def pair_quantized(
  product: Product,
  x: jax.Array,
  y: jax.Array,
  spans: Range,
  *,
  bits: Bits,
  real: bool,
  active: jax.Array | None = None,
) -> jax.Array:
  """Contracts two activations in integers, as in attention, with straight-through gradients.

  Args:
    product: the contraction, a dot_general; `y` stands where a weight would.
    x: float[...].
    y: float[...].
    spans: (lowest, highest), float32[2] each: of x and of y.
    bits: the activation's are those of both.
    real: whether to execute int8 operands into int32; else integer-valued float32.
    active: bool[] or None; False gives the float contraction, at full precision.

  Returns:
    The result in the original's dtype, its derivative zero for clipped values of either.
  """

  return _pairing(product, bits, real)(x, y, lax.stop_gradient(spans[0]), lax.stop_gradient(spans[1]), active)


@traced_once
def _pairing(product: Product, bits: Bits, real: bool) -> Callable[..., jax.Array]:
  @jax.custom_jvp
  def contract(x: jax.Array, y: jax.Array, low: jax.Array, high: jax.Array, on: jax.Array | None) -> jax.Array:
    return forward(x, y, low, high, on)[0]

  def forward(x: jax.Array, y: jax.Array, low: jax.Array, high: jax.Array, on: jax.Array | None) -> Any:
    sides, zeros = [], []
    for index, value in enumerate((x, y)):
      grid = activation_grid((low[index], high[index]), bits.activation)
      steps = lax.clamp(grid.low, to_steps(value, grid.scale), grid.high)
      inside, scale = (grid.lowest <= value) & (value <= grid.highest), grid.scale
      if on is not None:
        steps, inside = jnp.where(on, steps, value.astype(jnp.float32)), inside | ~on
        scale = jnp.where(on, scale, 1.0)
      sides.append((steps, scale, inside))
      zeros.append(grid.zero)
    (x_steps, x_scale, _), (y_steps, y_scale, _) = sides
    sums = real_pair(product, x_steps, y_steps, *zeros) if real else fake_product(product, x_steps, y_steps)
    return (sums * (x_scale * y_scale)).astype(product.dtype), sides

  @contract.defjvp
  def _(primals: Any, tangents: Any) -> Any:
    dx, dy = tangents[:2]
    out, ((x_steps, x_scale, x_inside), (y_steps, y_scale, y_inside)) = forward(*primals)
    by_x = product.bind(jnp.where(x_inside, dx, 0), (y_steps * y_scale).astype(dy.dtype))
    by_y = product.bind((x_steps * x_scale).astype(dx.dtype), jnp.where(y_inside, dy, 0))
    return out, by_x + by_y

  return contract


def weight_quantized(
  product: Product, x: jax.Array, w: jax.Array, *, bits: Bits, active: jax.Array | None = None
) -> jax.Array:
  """Contracts a float activation with a quantized weight, its gradient straight through.

  Args:
    product: the contraction.
    x: the activation, float[...].
    w: the weight, float[...].
    bits: the weight's are used.
    active: bool[] or None; False gives the float contraction.

  Returns:
    The result in the original's dtype.
  """
  return _weight_quantizing(product, bits)(x, w, active)


@traced_once
def _weight_quantizing(product: Product, bits: Bits) -> Callable[..., jax.Array]:
  @jax.custom_jvp
  def contract(x: jax.Array, w: jax.Array, on: jax.Array | None) -> jax.Array:
    return forward(x, w, on)[0]

  def forward(x: jax.Array, w: jax.Array, on: jax.Array | None) -> Any:
    w_scale = weight_scale(w, product.summed_axes(w.ndim), bits.weight)
    w_steps = marked(weight_steps(w, w_scale, bits.weight), bits.weight)
    if on is not None:
      w_steps, w_scale = jnp.where(on, w_steps, w.astype(jnp.float32)), jnp.where(on, w_scale, 1.0)
    return scaled_by_weight(product, x, w_steps, w_scale), (w_steps, w_scale)

  @contract.defjvp
  def _(primals: Any, tangents: Any) -> Any:
    out, (w_steps, w_scale) = forward(*primals)
    return out, tangent(product, primals[0], None, w_steps, w_scale, *tangents[:2], out)

  return contract


class Gridded(NamedTuple):
  """A contraction of an activation that stands on a grid already.

  Attributes:
    out: in the original's dtype.
    sums: float32, whole numbers.
    scale: float32, of the weight, where it broadcasts against the result; 0 of an output without a weight.
  """

  out: jax.Array
  sums: jax.Array
  scale: jax.Array


def gridded(
  product: Product,
  x: jax.Array,
  w: jax.Array,
  grid: Grid,
  *,
  bits: Bits,
  real: bool,
  active: jax.Array | None = None,
) -> Gridded:
  """Contracts an activation that was rounded to a grid before, where its gradient was cut off beyond the ends.

  Args:
    product: the contraction.
    x: float[...], on the grid.
    w: the weight, float[...].
    grid: of x.
    bits: of weight and activation.
    real: whether to execute int8 operands into int32; else integer-valued float32.
    active: bool[] or None; False gives the float contraction, at full precision.
  """
  return Gridded(*_gridding(product, bits, real)(x, w, *(lax.stop_gradient(end) for end in grid[:4]), active))


@traced_once
def _gridding(product: Product, bits: Bits, real: bool) -> Callable[..., tuple[jax.Array, ...]]:
  @jax.custom_jvp
  def contract(x: Any, w: Any, x_scale: Any, low: Any, high: Any, zero: Any, on: Any) -> tuple[jax.Array, ...]:
    return forward(x, w, x_scale, low, high, zero, on)[0]

  def forward(x: Any, w: Any, x_scale: Any, low: Any, high: Any, zero: Any, on: Any) -> Any:
    def choose(quantized: jax.Array, plain: Any) -> jax.Array:
      return quantized if on is None else jnp.where(on, quantized, plain)

    x_steps = choose(lax.clamp(low, to_steps(x, x_scale), high), x.astype(jnp.float32))
    w_scale = weight_scale(w, product.summed_axes(w.ndim), bits.weight)
    w_steps = marked(weight_steps(w, w_scale, bits.weight), bits.weight)
    w_steps, w_scale = choose(w_steps, w.astype(jnp.float32)), choose(w_scale, 1.0)
    x_scale = choose(x_scale, 1.0)
    sums = real_product(product, x_steps, w_steps, zero) if real else fake_product(product, x_steps, w_steps)
    out = (sums * (x_scale * product.on_output(w_scale, x_steps.ndim))).astype(product.dtype)
    there = jnp.max(jnp.abs(w_steps), axis=product.summed_axes(w.ndim), keepdims=True, initial=0.0) > 0
    scale = product.on_output(jnp.where(there, w_scale, 0.0), x_steps.ndim)
    return (out, sums, scale), (x_steps, x_scale, w_steps, w_scale)

  @contract.defjvp
  def _(primals: Any, tangents: Any) -> Any:
    found, (x_steps, x_scale, w_steps, w_scale) = forward(*primals)
    out, sums, scale = found
    moved = tangent(product, x_steps, x_scale, w_steps, w_scale, *tangents[:2], out)
    return found, (moved, jnp.zeros_like(sums), jnp.zeros_like(scale))

  return contract


def on_grid(x: jax.Array, span: Range, bits: int, active: jax.Array | None = None) -> tuple[jax.Array, Grid]:
  """Returns values rounded to the grid of a range, with a straight-through gradient, and the grid.

  Args:
    x: float[...].
    span: (lowest, highest), float32[] each.
    bits: 2 to 8.
    active: bool[] or None; False leaves values as they are.
  """
  span = lax.stop_gradient(span[0]), lax.stop_gradient(span[1])
  return _rounding(bits)(x, *span, active), activation_grid(span, bits)


@functools.lru_cache
def _rounding(bits: int) -> Callable[..., jax.Array]:
  @jax.custom_jvp
  def rounded(x: jax.Array, low: jax.Array, high: jax.Array, on: jax.Array | None) -> jax.Array:
    grid = activation_grid((low, high), bits)
    found = (lax.clamp(grid.low, to_steps(x, grid.scale), grid.high) * grid.scale).astype(x.dtype)
    return found if on is None else jnp.where(on, found, x)

  @rounded.defjvp
  def _(primals: Any, tangents: Any) -> Any:
    x, low, high, on = primals
    grid = activation_grid((low, high), bits)
    inside = (grid.lowest <= x) & (x <= grid.highest)
    inside = inside if on is None else inside | ~on
    return rounded(*primals), lax.select(inside, tangents[0], jnp.zeros_like(tangents[0]))

  return jax.jit(rounded)


def pair_gridded(
  product: Product, x: jax.Array, y: jax.Array, a: Grid, b: Grid, *, real: bool, active: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
  """Contracts two activations that stand on grids already; the result, and its whole sums."""
  plain = product.bind(x, y)
  sides = [lax.clamp(g.low, to_steps(v, g.scale), g.high) for v, g in ((x, a), (y, b))]
  sums = real_pair(product, *sides, a.zero, b.zero) if real else fake_product(product, *sides)
  out = (sums * (a.scale * b.scale)).astype(product.dtype)
  out = with_gradient_of([out if active is None else jnp.where(active, out, plain)], [plain])[0]
  return out, lax.stop_gradient(sums)
