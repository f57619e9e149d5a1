"""The numbers of quantization: bits, ranges, grids, rounding. What is done with them stands in `_product.py`.

Weights are symmetric per output channel on the narrow range, [-(2^(b-1)-1), 2^(b-1)-1]: zero is exact, so a
pruned weight stays pruned, and negation stays on the grid. Activations are affine per tensor with an exact zero:
after a ReLU half of a symmetric grid would lie idle, which costs a bit; padding and zeros stay exact.

A scale per output channel also makes quantization commute with a factor per output channel, as folding a batch norm
brings one: the channel's scale takes the factor's size, its integers the factor's sign, and are else the same. So a
network trained with its batch norm apart is trained as it will be deployed with the norm folded in.

References:
  Jacob et al., Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference,
  2018, https://arxiv.org/abs/1712.05877
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxlite.errors import number

MARK = 'jl.bits='  # `checkpoint_name` of a weight's integers: a report reads the bits off any program
MIN_BITS, MAX_BITS = 2, 8
_INFINITE = np.int32(0x7F800000)  # the bits of infinity
_FINITE = np.int32(0x00800000)  # from there it takes as many to overflow
_SMALL = 1 << 18  # entries of a weight whose passes take less time than their compilation
SMALLEST = 2.0**-100  # a span below this is no range: its scale would be a denormal, its inverse infinite

Range = tuple[jax.Array, jax.Array]  # (lowest, highest) float32; (inf, -inf) is 'not seen'
BitsLike = int | tuple[int, int | None]  # of both operands, or (of the weight, of the activation or None for float)


class Bits(NamedTuple):
  """Bits of the two operands of a contraction.

  Attributes:
    weight: 2 to 8.
    activation: 2 to 8; None leaves it float, so that only the weight is quantized.
  """

  weight: int
  activation: int | None


def check_bits(bits: Any, what: str) -> Bits:
  """Returns the bits of weight and activation.

  Args:
    bits: one number for both, or (of the weight, of the activation or None).
    what: names the asking part in an error.

  Raises:
    ValueError: a number that is not whole or not from 2 to 8.

  >>> check_bits(8, 'quantize'), check_bits((4, None), 'quantize')
  (Bits(weight=8, activation=8), Bits(weight=4, activation=None))
  """
  pair = tuple(bits) if isinstance(bits, tuple | list) else (bits, bits)
  if len(pair) != 2:
    raise ValueError(f'{what}: bits are one number, or a pair (weight, activation), got {bits!r}')
  pair = tuple(one if one is None or isinstance(one, bool | str) else number(one, f'{what}: bits') for one in pair)
  for one in pair[:1] if pair[1] is None else pair:
    if isinstance(one, bool) or not isinstance(one, int) or not MIN_BITS <= one <= MAX_BITS:
      raise ValueError(f'{what}: bits are a whole number from {MIN_BITS} to {MAX_BITS}, got {bits!r}')
  return Bits(int(pair[0]), None if pair[1] is None else int(pair[1]))


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
  if x.size == 0:
    return unseen()
  return _observed(lax.stop_gradient(x))


@jax.jit
def _observed(x: jax.Array) -> Range:
  # As integers that are ordered like the floats, moved so far that what is not finite overflows past the other end: a
  # plain reduction, without a mask (which takes XLA:CPU several times as long) and without a branch. Both ends in one
  # reduction: XLA then reads its operand once, and on CPU vectorizes it.
  ordered = _ordered(lax.bitcast_convert_type(x.astype(jnp.float32), jnp.int32))
  start = np.int32(2**31 - 1), np.int32(-(2**31))
  low, high = lax.reduce((ordered - _FINITE, ordered + _FINITE), start, _wider, tuple(range(x.ndim)))
  # Of nothing finite the ends are infinite, as those of `unseen`.
  low, high = jnp.minimum(low, _INFINITE - _FINITE), jnp.maximum(high, ~_INFINITE + _FINITE)
  return _as_float(low + _FINITE), _as_float(high - _FINITE)


def _wider(one: tuple[jax.Array, jax.Array], other: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
  return jnp.minimum(one[0], other[0]), jnp.maximum(one[1], other[1])


def _ordered(bits: jax.Array) -> jax.Array:
  """From the bits of floats to integers that are ordered like them, and back."""
  return bits ^ ((bits >> 31) & np.int32(0x7FFFFFFF))


def _as_float(ordered: jax.Array) -> jax.Array:
  return lax.bitcast_convert_type(_ordered(ordered), jnp.float32)


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
  moves = is_seen(new)

  # An end is seen when its other end is; were that read, XLA would copy both before it writes to either.
  def end(old: jax.Array, new: jax.Array, seen: jax.Array) -> jax.Array:
    return lax.select(seen & moves, decay * old + (1 - decay) * new, lax.select(seen, old, new))

  (low, high), (new_low, new_high) = (tuple(jnp.asarray(end, jnp.float32) for end in span) for span in (old, new))
  return end(low, new_low, low < jnp.inf), end(high, new_high, high > -jnp.inf)


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
  lowest, highest = jnp.minimum(span[0], 0), jnp.maximum(span[1], 0)  # 0 and 0 of what was never seen
  # Written so that fusing and constant folding cannot move a bit: halves are exact (and do not overflow where
  # the difference of two huge ends would), divisors are reciprocals, and each sum is of rounded numbers.
  scale = _scale((highest * 0.5 - lowest * 0.5) * np.float32(2 / (2**bits - 1)))
  zero = jnp.clip(stored_low + jnp.round(-lowest * (1.0 / scale)), stored_low, stored_high)
  return Grid(scale, stored_low - zero, stored_high - zero, zero, lowest, highest)


def _scale(step: jax.Array) -> jax.Array:
  """The step, or 1 where it is too small. As a quotient: XLA computes it once then, and not again in each reader."""
  least = np.float32(SMALLEST)
  return jnp.maximum(step, least) / lax.select(step >= least, jnp.ones_like(step), jnp.full_like(step, least))


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
  size, axes = jnp.abs(lax.stop_gradient(w).astype(jnp.float32)), tuple(axes)
  if size.size <= _SMALL and len(axes) == 1:  # floats that are masked: one axis XLA:CPU reduces in one piece of code
    largest = jnp.max(lax.select(size < jnp.inf, size, jnp.zeros_like(size)), axis=axes, keepdims=True, initial=0.0)
  elif size.size <= _SMALL:  # without a branch, which would take longer to compile than all the rest; as in `observe`
    moved = lax.bitcast_convert_type(size, jnp.int32) + _FINITE
    largest = jnp.max(moved, axis=axes, keepdims=True, initial=_FINITE)
    largest = lax.bitcast_convert_type(jnp.maximum(largest, _FINITE) - _FINITE, jnp.float32)
  else:
    largest = _of_large(size, axes)
  return _scale(largest * np.float32(1 / (2 ** (bits - 1) - 1)))


def _of_large(size: jax.Array, axes: tuple[int, ...]) -> jax.Array:
  """The largest finite entries. XLA:CPU takes longer for them in one masked pass, so that is kept for bad days."""
  largest = jnp.max(size, axis=axes, keepdims=True, initial=0.0)

  def of_finite(size: jax.Array) -> jax.Array:
    return jnp.max(size, axis=axes, keepdims=True, initial=0.0, where=jnp.isfinite(size))

  return lax.cond(jnp.all(jnp.isfinite(largest)), lambda _: largest, of_finite, size)


def to_steps(x: jax.Array, scale: jax.Array) -> jax.Array:
  """Returns the nearest whole numbers of steps, float32, ties to even, not clipped.

  The inverse is a value of its own: XLA turns a division by a constant into such a product, so that otherwise
  a program with baked weights would round elsewhere than the one it was trained as.

  >>> import jax.numpy as jnp
  >>> to_steps(jnp.array([0.4, -2.6]), jnp.float32(1.0)).tolist()
  [0.0, -3.0]
  """
  return lax.round(x.astype(jnp.float32) * (1.0 / scale), lax.RoundingMethod.TO_NEAREST_EVEN)


def weight_steps(w: jax.Array, scale: jax.Array, bits: int) -> jax.Array:
  """Returns a weight's integers, float32, within the narrow range.

  >>> import jax.numpy as jnp
  >>> weight_steps(jnp.array([1.0, -0.5, 0.0]), jnp.float32(1 / 127), 8).tolist()
  [127.0, -64.0, 0.0]
  """
  most = 2.0 ** (bits - 1) - 1
  return lax.clamp(np.float32(-most), to_steps(w, scale), np.float32(most))
