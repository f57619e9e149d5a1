"""What the reference networks share: pooling, first values, inputs brought to one shape and dtype."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from jaxlite.cpu.fusion import held


def max_pool(x: jax.Array, size: int = 2) -> jax.Array:
  """Takes the maximum over windows that do not overlap; rows and columns that fill no window are dropped.

  `flax.linen.max_pool` with equal window and stride, in slices and comparisons: its gradient there, select and
  scatter, is slow on CPU. The first of equal entries has the gradient, as there.

  Measured, forward and gradient of float32[128, 28, 28, 32], two busy cores of an AMD EPYC: 4.5 ms, and
  34 ms with `flax.linen.max_pool(x, (2, 2), (2, 2))` in its place (best of two runs):

      python -c "import jax, timeit; from jaxlite.models import max_pool
      x, run = jax.numpy.ones((128, 28, 28, 32)), jax.jit(jax.grad(lambda x: (max_pool(x) ** 2).sum()))
      print(min(timeit.repeat(lambda: run(x).block_until_ready(), number=1, repeat=15)))"

  Args:
    x: [B, H, W, C].
    size: side of a window, in pixels.

  Returns:
    [B, H // size, W // size, C].

  Raises:
    ValueError: not four axes, or an image smaller than a window.

  >>> import jax.numpy as jnp
  >>> max_pool(jnp.arange(25.0).reshape(1, 5, 5, 1))[0, :, :, 0].tolist()
  [[6.0, 8.0], [16.0, 18.0]]
  """
  if x.ndim != 4 or min(x.shape[1:3]) < size:
    raise ValueError(f'max_pool({size}) takes [B, H, W, C] of at least {size}x{size} pixels; got {list(x.shape)}')
  if x.dtype in ('bfloat16', 'float16'):  # the same numbers in a third of the time: XLA:CPU rounds after each operation
    return max_pool(x.astype(jnp.float32), size).astype(x.dtype)
  _, height, width, _ = x.shape
  # Held, or XLA:CPU takes the pool, and the convolution before it, into each of its readers.
  return held(_max_pool(x[:, : height // size * size, : width // size * size], size))


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _max_pool(x: jax.Array, size: int) -> jax.Array:
  return functools.reduce(jnp.maximum, _places(x, size))


@_max_pool.defjvp
def _(size: int, primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
  """Each entry asks whether it is its window's winner, so that the transpose is one selection."""
  ((x,), (dx,)) = primals, tangents
  best, *rest = _places(x, size)
  winner = jnp.zeros(best.shape, jnp.int32)
  for index, candidate in enumerate(rest, 1):
    stays = best >= candidate  # a later entry wins only if it is larger; after a NaN, as natively
    best, winner = jnp.where(stays, best, candidate), jnp.where(stays, winner, index)
  winner = held(winner)  # or XLA:CPU asks anew, and computes x anew to do so, at each of a window's entries
  moved = (jnp.where(winner == index, place, 0) for index, place in enumerate(_places(dx, size)))
  return functools.reduce(jnp.maximum, _places(x, size)), functools.reduce(jnp.add, moved)


def _places(x: jax.Array, size: int) -> list[jax.Array]:
  """The entries of all windows by their place within them, in reading order."""
  return [x[:, row::size, column::size] for row in range(size) for column in range(size)]


class ConvPool(nn.Module):
  """A convolution, a max-pool that halves the image, the bias and a ReLU.

  Bias and ReLU keep order, so after the pool they give the numbers that they would give before it, and a quarter of
  the work.

  Attributes:
    features: channels that come out.
    size: side of the kernel, in pixels.
    padding: of the convolution, 'SAME' or 'VALID'.
    relu: whether there is one.
    dtype: what it computes in.

  >>> ConvPool(4).init_with_output(jax.random.key(0), jnp.ones((1, 4, 4, 2)))[0].shape
  (1, 2, 2, 4)
  """

  features: int
  size: int = 3
  padding: str = 'SAME'
  relu: bool = True
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Returns [B, height // 2, width // 2, features] of [B, H, W, C], of the convolution's height and width."""
    kernel = self.param('kernel', scaled_normal(1.0), (self.size, self.size, x.shape[-1], self.features))
    bias = self.param('bias', nn.initializers.zeros, (self.features,))
    x, kernel, bias = (leaf.astype(self.dtype) for leaf in (x, kernel, bias))
    x = lax.conv_general_dilated(x, kernel, (1, 1), self.padding, dimension_numbers=('NHWC', 'HWIO', 'NHWC'))
    x = max_pool(x) + bias
    return nn.relu(x) if self.relu else x


def as_images(x: Any, name: str, dtype: Any, smallest: int) -> jax.Array:
  """Returns [B, H, W, C] of a float dtype; gray images may come without channels.

  Args:
    x: [B, H, W, C] or [B, H, W], any dtype.
    name: the network that asks.
    dtype: what it computes in.
    smallest: the least side, in pixels, that it can work on.

  Raises:
    ValueError: neither shape, or an image too small.

  >>> as_images(jnp.zeros((2, 8, 8), 'uint8'), 'SmallCNN', 'float32', 4).shape
  (2, 8, 8, 1)
  """
  x = jnp.asarray(x, dtype)
  x = x[..., None] if x.ndim == 3 else x
  if x.ndim != 4:
    raise ValueError(f'{name} takes images [B, H, W, C] or [B, H, W]; got {list(x.shape)}: reshape them, or use MLP')
  if min(x.shape[1:3]) < smallest:
    raise ValueError(f'{name} takes images of at least {smallest}x{smallest} pixels; got {list(x.shape)}')
  return x


def flattened(x: jax.Array) -> jax.Array:
  """Returns [B, features] of any [B, ...], an empty batch too.

  >>> flattened(jnp.ones((0, 2, 3))).shape
  (0, 6)
  """
  return x.reshape(x.shape[0], math.prod(x.shape[1:]))


def depth_rates(last: float, blocks: int, name: str) -> list[float]:
  """Returns the share of examples that stochastic depth drops at each block: growing linearly up to `last`.

  Args:
    last: the share at the last block, in [0, 1).
    blocks: how many there are.
    name: the network that asks.

  Raises:
    ValueError: a share outside [0, 1).

  References:
    Huang et al., Deep Networks with Stochastic Depth, 2016, https://arxiv.org/abs/1603.09382

  >>> depth_rates(0.5, 4, 'ResNet')
  [0.125, 0.25, 0.375, 0.5]
  """
  if not 0 <= last < 1:
    raise ValueError(f'{name}: drop_path is the share dropped at the last block, in [0, 1); got {last}')
  return [last * block / blocks for block in range(1, blocks + 1)]


def dense(width: int, dtype: Any, name: str) -> nn.Dense:
  """Returns a dense layer whose first values compile quickly: of variance 1 / inputs, as Flax's own."""
  return nn.Dense(width, kernel_init=scaled_normal(1.0), dtype=dtype, name=name)


def classified(module: Any, x: jax.Array, train: bool) -> jax.Array:
  """Returns logits, float32[B, classes], of pooled features: dropout, then the dense layer `module.classifier`.

  Called in the `__call__` of a network with the fields `dropout`, `classes` and `dtype`.
  """
  if not 0 <= module.dropout < 1:
    raise ValueError(f'{type(module).__name__}: dropout is the share that is dropped, in [0, 1); got {module.dropout}')
  x = nn.Dropout(module.dropout, deterministic=not train)(x)
  return dense(module.classes, module.dtype, module.classifier)(x).astype(jnp.float32)


def checked_factor(factor: float, name: str, field: str = 'width') -> float:
  """Returns what multiplies a network's channels or blocks, or raises.

  >>> checked_factor(0.5, 'MobileNetV2')
  0.5
  """
  if isinstance(factor, bool) or not isinstance(factor, int | float) or not 0 < factor < math.inf:
    raise ValueError(f'{name}: {field} multiplies what the paper has, a number above 0; got {factor!r}')
  return float(factor)


def scaled_normal(scale: float) -> Callable[..., jax.Array]:
  """Initializes kernels from a normal distribution of variance scale / inputs, cut off at two deviations.

  The values of `flax.linen.initializers.he_normal` (scale 2) and `lecun_normal` (scale 1), up to rounding, drawn in
  one axis and reshaped, since XLA:CPU compiles a draw in four axes much longer. Measured, compiling the `init` of a
  ResNet20 on busy cores of an AMD EPYC: 3.1 s of CPU, 8.6 s with `he_normal()` in its place:

      python -c "import time, jax, jaxlite; from jaxlite.models import ResNet20
      model, images = jaxlite.adapt(ResNet20()), jax.numpy.ones((2, 32, 32, 3)); began = time.process_time()
      jax.jit(model.init)(jax.random.key(0), images); print(time.process_time() - began)"

  Args:
    scale: 2 before a ReLU, 1 elsewhere.

  Returns:
    (key, shape, dtype) -> array; all axes but the last are inputs.

  References:
    He, Zhang, Ren and Sun, Delving Deep into Rectifiers, 2015, https://arxiv.org/abs/1502.01852

  >>> kernel = scaled_normal(2.0)(jax.random.key(0), (3, 3, 8, 16))
  >>> kernel.shape, round(float(kernel.var() * 72), 1)
  ((3, 3, 8, 16), 2.0)
  """

  def init(key: jax.Array, shape: Any, dtype: Any = jnp.float32) -> jax.Array:
    deviation = math.sqrt(scale / max(math.prod(shape[:-1]), 1)) / 0.87962566103423978  # that of the cut normal
    drawn = jax.random.truncated_normal(key, -2, 2, (math.prod(shape),), dtype)
    return (drawn * jnp.asarray(deviation, dtype)).reshape(shape)

  return init
