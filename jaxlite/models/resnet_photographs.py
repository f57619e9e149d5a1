"""Residual networks for photographs: those of ImageNet, whose published weights fit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxlite.models.conv_norm import ConvNorm, norm_settings
from jaxlite.models.layers import as_images, classified, depth_rates
from jaxlite.models.resnet import ResidualBlock


class DeepResNet(nn.Module):
  """The residual network that was published for ImageNet: a 7x7 stem, a max-pool, four stages of 64 to 512 channels.

  Stem and pool halve the image each, and so does the first block of every stage but the first, in its 3x3
  convolution (in a bottleneck this is the variant of torchvision and timm, often called 1.5). A shortcut that changes
  the shape is a normalized 1x1 convolution. Published weights of torchvision and timm fit (`jaxlite.models.published`).

  Attributes:
    blocks: of each stage.
    bottleneck: blocks of 1x1, 3x3 and 1x1 convolutions, four times as wide outside, in place of two 3x3.
    classes: number of logits.
    dropout: share of the pooled features that is dropped in training, in [0, 1).
    drop_path: stochastic depth: the share of training examples that pass by the last block, in [0, 1); it grows
      linearly from block to block. Draws from the stream 'dropout'.
    keep_statistics: batch norm uses the running statistics in training, too, and leaves them as they are.
    momentum: share of the running batch statistics kept each step.
    epsilon: added to the variance.
    dtype: what it computes in; parameters and batch statistics are float32.

  References:
    He, Zhang, Ren and Sun, Deep Residual Learning for Image Recognition, 2015, https://arxiv.org/abs/1512.03385
    (section 4.1). The stride of a bottleneck: Goyal et al., Accurate, Large Minibatch SGD, 2017,
    https://arxiv.org/abs/1706.02677

  >>> DeepResNet((1, 1), classes=3).init_with_output(jax.random.key(0), jnp.ones((1, 32, 32, 3)))[0].shape
  (1, 3)
  """

  blocks: Sequence[int] = (2, 2, 2, 2)
  bottleneck: bool = False
  classes: int = 1000
  dropout: float = 0.0
  drop_path: float = 0.0
  keep_statistics: bool = False
  momentum: float = 0.9
  epsilon: float = 1e-5
  dtype: Any = jnp.float32

  classifier = 'head'

  @nn.compact
  def __call__(self, x: Any, train: bool = False, pooled: bool = False) -> jax.Array:
    """Returns float32[B, classes] of [B, H, W, C] or [B, H, W]; with `pooled`, what `features` returns."""
    name, blocks = type(self).__name__, tuple(self.blocks)
    if not blocks or min(blocks) < 1:
      raise ValueError(f'{name} has stages of at least one block; got blocks={blocks}')
    x = as_images(x, name, self.dtype, smallest=32)
    rates = iter(depth_rates(self.drop_path, sum(blocks), name))
    settings = norm_settings(self)
    x = nn.relu(ConvNorm(64, (7, 7), 2, name='stem', **settings)(x, train))
    x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
    for stage, count in enumerate(blocks, 1):
      for block in range(1, count + 1):
        stride = 2 if stage > 1 and block == 1 else 1
        layer = ResidualBlock(
          64 * 2 ** (stage - 1), stride, True, next(rates), settings, self.bottleneck, name=f'stage{stage}_block{block}'
        )
        x = layer(x, train)
    x = jnp.mean(x, axis=(1, 2))
    return x if pooled else classified(self, x, train)

  def features(self, x: Any, train: bool = False) -> jax.Array:
    """Returns what the classifier reads: float[B, 512], of bottlenecks float[B, 2048]."""
    return self(x, train, pooled=True)


class ResNet18(DeepResNet):
  """ResNet-18; attributes as in `DeepResNet`.

  On 224x224x3 images: 11,689,512 parameters and 2 * 1,814,073,344 =
  3,628,146,688 FLOPs per example.

  >>> from jaxlite.models import summary
  >>> summary(ResNet18(), (1, 224, 224, 3))
  Summary(parameters=11689512, flops=3628146688)
  """


class ResNet34(DeepResNet):
  """ResNet-34; attributes as in `DeepResNet`.

  >>> from jaxlite.models import summary
  >>> summary(ResNet34(), (1, 224, 224, 3))
  Summary(parameters=21797672, flops=7327522816)
  """

  blocks: Sequence[int] = (3, 4, 6, 3)


class ResNet50(DeepResNet):
  """ResNet-50; attributes as in `DeepResNet`.

  >>> from jaxlite.models import summary
  >>> summary(ResNet50(), (1, 224, 224, 3))
  Summary(parameters=25557032, flops=8178368512)
  """

  blocks: Sequence[int] = (3, 4, 6, 3)
  bottleneck: bool = True
