"""Residual networks for small images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxlite.models.conv_norm import ConvNorm
from jaxlite.models.layers import as_images, dense, depth_rates


class ResNet(nn.Module):
  """The residual network that was published for CIFAR: a 3x3 stem, then stages of n blocks of two 3x3 convolutions.

  Every stage after the first halves the image in its first convolution; with s stages the depth is 2sn + 2, and
  images have at least 2**(s - 1) pixels a side. Convolutions have no bias, each is normalized. Where a block
  changes the shape, its shortcut is the published option A: every other pixel, new channels zero; it has no
  parameters. With `projection` it is option B: a normalized 1x1 convolution.

  Attributes:
    blocks: n, blocks in each stage.
    widths: channels of each stage, not falling; the first is that of the stem.
    classes: number of logits.
    projection: option B for the shortcuts that change the shape.
    drop_path: stochastic depth: the share of training examples that pass by the last block, in [0, 1); it grows
      linearly from block to block. Draws from the stream 'dropout'.
    momentum: share of the running batch statistics kept each step.
    epsilon: added to the variance.
    dtype: what it computes in; parameters and batch statistics are float32.

  References:
    He, Zhang, Ren and Sun, Deep Residual Learning for Image Recognition, 2015, https://arxiv.org/abs/1512.03385
    (section 4.2). Stochastic depth: Huang, Sun, Liu, Sedra and Weinberger, Deep Networks with Stochastic Depth,
    2016, https://arxiv.org/abs/1603.09382 (here a kept branch is scaled up in training, not down in evaluation).

  >>> from jaxlite.models import summary
  >>> summary(ResNet(blocks=1, widths=(4, 8), classes=3), (1, 8, 8, 1))
  Summary(parameters=1271, flops=69168)
  """

  blocks: int = 3
  widths: Sequence[int] = (16, 32, 64)
  classes: int = 10
  projection: bool = False
  drop_path: float = 0.0
  momentum: float = 0.9
  epsilon: float = 1e-5
  dtype: Any = jnp.float32

  classifier = 'dense'

  @nn.compact
  def __call__(self, x: Any, train: bool = False, pooled: bool = False) -> jax.Array:
    """Returns float32[B, classes] of [B, H, W, C] or [B, H, W]; with `pooled`, what the last layer reads."""
    name, widths = type(self).__name__, tuple(self.widths)
    if self.blocks < 1 or not widths or list(widths) != sorted(widths):
      raise ValueError(
        f'{name} has stages of at least one block, of widths that do not fall; got blocks={self.blocks}, {widths}'
      )
    x = as_images(x, name, self.dtype, smallest=2 ** (len(widths) - 1))
    rates = iter(depth_rates(self.drop_path, self.blocks * len(widths), name))
    settings = {'momentum': self.momentum, 'epsilon': self.epsilon, 'dtype': self.dtype}
    x = nn.relu(ConvNorm(widths[0], (3, 3), 1, name='stem', **settings)(x, train))
    for stage, width in enumerate(widths, 1):
      for block in range(1, self.blocks + 1):
        stride = 2 if stage > 1 and block == 1 else 1
        layer = ResidualBlock(width, stride, self.projection, next(rates), settings, name=f'stage{stage}_block{block}')
        x = layer(x, train)
    x = jnp.mean(x, axis=(1, 2))
    return x if pooled else dense(self.classes, self.dtype, self.classifier)(x).astype(jnp.float32)


class ResNet8(ResNet):
  """The residual network of one block a stage.

  On 32x32x3 images with 10 classes: 75,290 parameters (432 + 4,608 + 13,824 + 55,296 in convolutions, 480 in
  normalization, 650 in the dense layer) and 2 * 12,239,488 = 24,478,976 FLOPs per example (442,368 + 4,718,592 +
  3,538,944 + 3,538,944 + 640 multiply-adds). With `projection` 2,752 parameters more.

  Attributes:
    blocks, widths, classes, projection, drop_path, momentum, epsilon, dtype: as in `ResNet`.

  References:
    He et al., 2015, as in `ResNet`, with n = 1.

  >>> from jaxlite.models import summary
  >>> summary(ResNet8(), (1, 32, 32, 3))
  Summary(parameters=75290, flops=24478976)
  """

  blocks: int = 1


class ResNet20(ResNet):
  """The residual network of three blocks a stage: the smallest of its paper, given there as 0.27 M parameters.

  On 32x32x3 images with 10 classes: 269,722 parameters (432 + 13,824 + 50,688 + 202,752 in convolutions, 1,376
  in normalization, 650 in the dense layer) and 2 * 40,551,040 = 81,102,080 FLOPs per example (442,368 +
  14,155,776 + 12,976,128 + 12,976,128 + 640 multiply-adds). With `projection` 2,752 parameters more.

  Attributes:
    blocks, widths, classes, projection, drop_path, momentum, epsilon, dtype: as in `ResNet`.

  References:
    He et al., 2015, as in `ResNet`, with n = 3 (table 6).

  >>> from jaxlite.models import summary
  >>> summary(ResNet20(), (1, 32, 32, 3))
  Summary(parameters=269722, flops=81102080)
  """


class ResidualBlock(nn.Module):
  """Two convolutions beside a shortcut, added before the last ReLU; three where they narrow and widen again.

  Attributes:
    width: channels of the convolutions; four times as many come out of a bottleneck.
    stride: of the first 3x3 convolution.
    projection: a shortcut that changes the shape is a normalized 1x1 convolution; else every other pixel and zeros.
    drop_rate: share of training examples that pass by.
    settings: of every `ConvNorm`.
    bottleneck: 1x1, 3x3 and 1x1 in place of two 3x3.
  """

  width: int
  stride: int
  projection: bool
  drop_rate: float
  settings: Mapping[str, Any]
  bottleneck: bool = False

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """Returns [B, H / stride, W / stride, channels out] of [B, H, W, C]."""

    def normed(x: jax.Array, width: int, size: int, stride: int, name: str) -> jax.Array:
      return ConvNorm(width, (size, size), stride, name=name, **self.settings)(x, train)

    if self.bottleneck:
      outputs = 4 * self.width
      y = nn.relu(normed(x, self.width, 1, 1, 'first'))
      y = nn.relu(normed(y, self.width, 3, self.stride, 'second'))
      y = normed(y, outputs, 1, 1, 'third')
    else:
      outputs = self.width
      y = nn.relu(normed(x, self.width, 3, self.stride, 'first'))
      y = normed(y, self.width, 3, 1, 'second')
    y = nn.Dropout(self.drop_rate, broadcast_dims=(1, 2, 3), deterministic=not train)(y)  # whole examples
    if x.shape == y.shape:
      return nn.relu(x + y)
    if self.projection:
      return nn.relu(y + normed(x, outputs, 1, self.stride, 'shortcut'))
    grown = [(0, 0), (0, 0), (0, 0), (0, outputs - x.shape[-1])]
    return nn.relu(y + jnp.pad(x[:, :: self.stride, :: self.stride], grown))
