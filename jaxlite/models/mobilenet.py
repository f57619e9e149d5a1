"""MobileNetV2: the network for photographs that phones began with."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxlite.models.conv_norm import norm_settings
from jaxlite.models.inverted import Stage, inverted_features, scaled_width
from jaxlite.models.layers import as_images, checked_factor, classified

_STAGES = (
  Stage(1, 16, 1, 1),
  Stage(6, 24, 2, 2),
  Stage(6, 32, 3, 2),
  Stage(6, 64, 4, 2),
  Stage(6, 96, 3, 1),
  Stage(6, 160, 3, 2),
  Stage(6, 320, 1, 1),
)


class MobileNetV2(nn.Module):
  """Inverted residuals with ReLU6: a 3x3 stem, 17 blocks, a last 1x1 convolution, the mean over pixels, a dense layer.

  Published weights fit it: torchvision's `mobilenet_v2` and timm's `mobilenetv2_*` (`jaxlite.models.published`). By
  default, on 224x224x3 images: 3,504,872 parameters and 2 * 300,774,272 = 601,548,544 FLOPs per example.

  Attributes:
    width: multiplies channels of every layer; the last convolution has at least 1,280.
    classes: number of logits.
    dropout: share of the pooled features that is dropped in training, in [0, 1).
    drop_path: stochastic depth: the share of training examples that pass by the last block, in [0, 1); it grows
      linearly from block to block. Draws from the stream 'dropout'.
    keep_statistics: batch norm uses the running statistics in training, too, and leaves them as they are.
    momentum: share of the running batch statistics kept each step.
    epsilon: added to the variance.
    dtype: what it computes in; parameters and batch statistics are float32.

  References:
    Sandler, Howard, Zhu, Zhmoginov and Chen, MobileNetV2: Inverted Residuals and Linear Bottlenecks, 2018,
    https://arxiv.org/abs/1801.04381

  >>> from jaxlite.models import summary
  >>> summary(MobileNetV2(), (1, 224, 224, 3))
  Summary(parameters=3504872, flops=601548544)
  """

  width: float = 1.0
  classes: int = 1000
  dropout: float = 0.2
  drop_path: float = 0.0
  keep_statistics: bool = False
  momentum: float = 0.9
  epsilon: float = 1e-5
  dtype: Any = jnp.float32

  classifier = 'head'

  @nn.compact
  def __call__(self, x: Any, train: bool = False, pooled: bool = False) -> jax.Array:
    """Returns float32[B, classes] of [B, H, W, C] or [B, H, W]; with `pooled`, what `features` returns."""
    scale = checked_factor(self.width, 'MobileNetV2')
    x = inverted_features(
      as_images(x, 'MobileNetV2', self.dtype, smallest=32),
      train,
      stem=scaled_width(32, scale),
      stages=self.stages(),
      last=scaled_width(1280, max(1.0, scale)),
      drop_path=self.drop_path,
      name='MobileNetV2',
      settings=norm_settings(self),
    )
    return x if pooled else classified(self, x, train)

  @nn.nowrap
  def stages(self) -> list[Stage]:
    """Returns its blocks, scaled."""
    return [stage._replace(width=scaled_width(stage.width, self.width)) for stage in _STAGES]

  def features(self, x: Any, train: bool = False) -> jax.Array:
    """Returns what the classifier reads: float[B, 1280] at widths up to 1."""
    return self(x, train, pooled=True)
