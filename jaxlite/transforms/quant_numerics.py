"""Integer arithmetic at one contraction: grids, rounding, the product, its gradient.

Weights are symmetric per output channel on the narrow range, [-(2^(b-1)-1), 2^(b-1)-1]: zero is exact, so a
pruned weight stays pruned, and negation stays on the grid. Activations are affine per tensor with an exact zero:
after a ReLU half of a symmetric grid would lie idle, which costs a bit; padding and zeros stay exact.

The fake product multiplies the *integers* that deployment multiplies, held in float32, and scales once
afterwards. While K * max|a| * max|w| <= 2^24 every partial sum is an integer that float32 holds exactly, so that
fake equals real bit for bit, whatever the order of summation.

References:
  Jacob et al., Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference,
  2018, https://arxiv.org/abs/1712.05877
  Bengio et al., Estimating or Propagating Gradients Through Stochastic Neurons, 2013,
  https://arxiv.org/abs/1308.3432
  Choi et al., PACT: Parameterized Clipping Activation for Quantized Neural Networks, 2018,
  https://arxiv.org/abs/1805.06085
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.ad_checkpoint import checkpoint_name

MARK = 'jl.bits='  # `checkpoint_name` of a weight's integers: a report reads the bits off any program
MIN_BITS, MAX_BITS = 2, 8
_SMALLEST = 2.0**-100  # a span below this is no range: its scale would be a denormal, its inverse infinite

Range = tuple[jax.Array, jax.Array]  # (lowest, highest) float32; (inf, -inf) is 'not seen'


def check_bits(bits: Any, what: str) -> int:
  """Returns bits, or raises ValueError where they are no whole number from 2 to 8.

  >>> check_bits(8, 'quantize')
  8
  """
  if isinstance(bits, bool) or not isinstance(bits, int | np.integer) or not MIN_BITS <= bits <= MAX_BITS:
    raise ValueError(f'{what}: bits are a whole number from {MIN_BITS} to {MAX_BITS}, got {bits!r}')
  return int(bits)


def unseen(lengths: Sequence[int] = ()) -> Range:
  """Returns the range of nothing: it merges as nothing.

  >>> unseen()[0].item()
  inf
  """
  return jnp.full(lengths, jnp.inf, jnp.float32), jnp.full(lengths, -jnp.inf, jnp.float32)


def is_seen(span: Range) -> jax.Array:
  """Tells whether a range holds anything, bool of its shape.

  >>> bool(is_seen(unseen()))
  False
  """
  return span[0] <= span[1]


def observe(x: jax.Array) -> Range:
  """Returns the range of an array's finite entries; of none, `unseen`.

  >>> import jax.numpy as jnp
  >>> [float(end) for end in observe(jnp.array([1.0, -2.0, jnp.nan]))]
  [-2.0, 1.0]
  """
  x = lax.stop_gradient(x).astype(jnp.float32)
  if x.size == 0:
    return unseen()
  low, high = jnp.min(x), jnp.max(x)  # not finite as soon as one entry is not

  def of_finite(x: jax.Array) -> Range:
    finite = jnp.isfinite(x)
    return jnp.min(x, initial=jnp.inf, where=finite), jnp.max(x, initial=-jnp.inf, where=finite)

  # XLA:CPU takes several times as long for a masked reduction as for a plain one, so it is kept for bad days.
  return lax.cond(jnp.isfinite(low) & jnp.isfinite(high), lambda _: (low, high), of_finite, x)


def merge(one: Range, other: Range) -> Range:
  """Returns the range of both.

  >>> [float(end) for end in merge(unseen(), (0.0, 1.0))]
  [0.0, 1.0]
  """
  return jnp.minimum(one[0], other[0]), jnp.maximum(one[1], other[1])


def blend(old: Range, new: Range, decay: float) -> Range:
  """Returns the moving average of a range; what was never seen adopts the other.

  >>> [round(float(end), 6) for end in blend((0.0, 1.0), (0.0, 2.0), 0.9)]
  [0.0, 1.1]
  >>> [float(end) for end in blend(unseen(), (0.0, 2.0), 0.9)]
  [0.0, 2.0]
  """
  both = jnp.logical_and(is_seen(old), is_seen(new))
  first = is_seen(old)

  def end(old: jax.Array, new: jax.Array) -> jax.Array:
    moved = jnp.where(both, decay * jnp.where(both, old, 0) + (1 - decay) * jnp.where(both, new, 0), 0)
    return jnp.where(both, moved, jnp.where(first, old, new)).astype(jnp.float32)

  return end(old[0], new[0]), end(old[1], new[1])


class Grid(NamedTuple):
  """An affine grid with an exact zero: real = scale * integer, integers from low to high.

  Attributes:
    scale: float32[], above 0.
    low: float32[], integer-valued, at most 0.
    high: float32[], integer-valued, at least 0.
    zero: float32[], integer-valued: how a real 0 is stored; stored = integer + zero.
    lowest: float32[], real: below it an activation is clipped. Putting zero on the grid may move the grid's own
      end by half a step, and the extreme of a batch must not lose its gradient for that.
    highest: float32[], real: above it an activation is clipped.
  """

  scale: jax.Array
  low: jax.Array
  high: jax.Array
  zero: jax.Array
  lowest: jax.Array
  highest: jax.Array


def activation_grid(span: Range, bits: int) -> Grid:
  """Returns the affine grid of a range, widened to hold zero and moved so that zero is on it.

  Args:
    span: (lowest, highest), float32[].
    bits: 2 to 8.

  >>> import jax.numpy as jnp
  >>> grid = activation_grid((jnp.float32(0), jnp.float32(255)), 8)
  >>> float(grid.scale), float(grid.low), float(grid.high), float(grid.zero)
  (1.0, 0.0, 255.0, -128.0)
  """
  stored_low, stored_high = -(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1
  lowest = jnp.where(is_seen(span), jnp.minimum(span[0], 0), 0)
  highest = jnp.where(is_seen(span), jnp.maximum(span[1], 0), 0)
  # Written so that fusing and constant folding cannot move a bit: halves are exact (and do not overflow where
  # the difference of two huge ends would), divisors are reciprocals, and each sum is of rounded numbers.
  scale = _scale((highest * 0.5 - lowest * 0.5) * np.float32(2 / (2**bits - 1)))
  zero = jnp.clip(stored_low + jnp.round(-lowest * (1.0 / scale)), stored_low, stored_high)
  return Grid(scale, stored_low - zero, stored_high - zero, zero, lowest, highest)


def _scale(step: jax.Array) -> jax.Array:
  return jnp.where(step >= _SMALLEST, step, 1.0).astype(jnp.float32)


def weight_scale(w: jax.Array, axes: Sequence[int], bits: int) -> jax.Array:
  """Returns the symmetric scale per output channel.

  Args:
    w: float[...].
    axes: those that are summed over.
    bits: 2 to 8.

  Returns:
    float32, w's shape with 1 for each of `axes`; 1.0 for a channel of zeros.

  >>> import jax.numpy as jnp
  >>> weight_scale(jnp.array([[1.0, 0.0], [-127.0, 0.0]]), (0,), 8).tolist()
  [[1.0, 1.0]]
  """
  size = jnp.abs(lax.stop_gradient(w).astype(jnp.float32))
  largest = jnp.max(size, axis=tuple(axes), keepdims=True, initial=0.0, where=jnp.isfinite(size))
  return _scale(largest * np.float32(1 / (2 ** (bits - 1) - 1)))


def to_steps(x: jax.Array, scale: jax.Array) -> jax.Array:
  """Returns the nearest whole numbers of steps, float32, ties to even, not clipped.

  The inverse is a value of its own: XLA turns a division by a constant into such a product, so that otherwise
  a program with baked weights would round elsewhere than the one it was trained as.

  >>> import jax.numpy as jnp
  >>> to_steps(jnp.array([0.4, -2.6]), jnp.float32(1.0)).tolist()
  [0.0, -3.0]
  """
  return jnp.round(x.astype(jnp.float32) * (1.0 / scale))


def weight_steps(w: jax.Array, scale: jax.Array, bits: int) -> jax.Array:
  """Returns a weight's integers, float32, within the narrow range.

  >>> import jax.numpy as jnp
  >>> weight_steps(jnp.array([1.0, -0.5, 0.0]), jnp.float32(1 / 127), 8).tolist()
  [127.0, -64.0, 0.0]
  """
  most = 2.0 ** (bits - 1) - 1
  return jnp.clip(to_steps(w, scale), -most, most)


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
    if self.is_conv:
      out_features = self.params['dimension_numbers'].rhs_spec[0]
      return tuple(axis for axis in range(ndim) if axis != out_features)
    return tuple(self.params['dimension_numbers'][0][self.side])

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


def quantized(
  product: Product,
  x: jax.Array,
  w: jax.Array,
  span: Range,
  *,
  bits: int,
  real: bool,
  active: jax.Array | None = None,
) -> jax.Array:
  """Contracts in integers, with straight-through gradients.

  Args:
    product: the contraction.
    x: the activation, float[...].
    w: the weight, float[...].
    span: the activation's range, float32[] each; a gradient never flows into it.
    bits: of weights and activations.
    real: whether to execute int8 operands into int32; else integer-valued float32.
    active: bool[] or None; False gives the float contraction, at full precision.

  Returns:
    The result in the original's dtype. Its derivative is that of the float contraction at the quantized
    operands, zero for clipped activations; weights pass it through.
  """
  axes = product.summed_axes(w.ndim)

  @jax.custom_jvp
  def contract(x: jax.Array, w: jax.Array, low: jax.Array, high: jax.Array, on: jax.Array | None) -> jax.Array:
    return forward(x, w, low, high, on)[0]

  def forward(x: jax.Array, w: jax.Array, low: jax.Array, high: jax.Array, on: jax.Array | None) -> Any:
    # Before it is active the steps are the values and the scales 1: one contraction either way, no branch
    # around it (a convolution inside a conditional is slow on XLA:CPU).
    def choose(quantized: jax.Array, plain: Any) -> jax.Array:
      return quantized if on is None else jnp.where(on, quantized, plain)

    grid = activation_grid((low, high), bits)
    x_steps = jnp.clip(to_steps(x, grid.scale), grid.low, grid.high)
    w_scale = weight_scale(w, axes, bits)
    w_steps = checkpoint_name(weight_steps(w, w_scale, bits), f'{MARK}{bits}')
    inside = choose((grid.lowest <= x) & (x <= grid.highest), True)
    x_used = choose(x_steps, x.astype(jnp.float32))
    w_used = choose(w_steps, w.astype(jnp.float32))
    x_scale, w_scale = choose(grid.scale, 1.0), choose(w_scale, 1.0)
    sums = real_product(product, x_used, w_used, grid.zero) if real else fake_product(product, x_used, w_used)
    out = (sums * (x_scale * product.on_output(w_scale, x.ndim))).astype(product.dtype)
    return out, (x_used, x_scale, inside, w_used, w_scale)

  @contract.defjvp
  def _(primals: Any, tangents: Any) -> Any:
    x, w = primals[:2]
    dx, dw = tangents[:2]
    out, (x_used, x_scale, inside, w_used, w_scale) = forward(*primals)
    # Integers enter these contractions too: they are exact in bfloat16, and no second copy of the activation
    # is kept for the backward pass. The scales go to whichever array is the smaller.
    dx = jnp.where(inside, dx, 0)
    if w.size > out.size:
      by_x = product.bind(dx, w_used.astype(w.dtype)) * product.on_output(w_scale, x.ndim).astype(out.dtype)
    else:
      by_x = product.bind(dx, (w_used * w_scale).astype(w.dtype))
    by_w = product.bind(x_used.astype(x.dtype), (dw * x_scale).astype(w.dtype))
    return out, by_x + by_w

  return contract(x, w, lax.stop_gradient(span[0]), lax.stop_gradient(span[1]), active)
