"""A network of depthwise-separable convolutions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxlite.models.layers import as_images, dense, scaled_normal
from jaxlite.models.norm import BatchNorm


class DepthwiseCNN(nn.Module):
  """MobileNet's plan at the size of small images: a 3x3 stem, then blocks of a 3x3 convolution of each channel
  alone and a 1x1 convolution across them.

  Convolutions have no bias; batch norm and ReLU follow each. By default, on 28x28x1 images: 141,130 parameters
  (288 in the stem, 6,048 depthwise, 129,024 pointwise, 3,200 in normalization, 2,570 in the dense layer) and
  2 * 4,518,976 = 9,037,952 FLOPs per example (225,792 + 309,312 + 3,981,312 + 2,560 multiply-adds). On 32x32x3
  images: 141,706 parameters and 2 * 5,992,960 = 11,985,920 FLOPs.

  Attributes:
    stem: channels of the first convolution, which keeps the image's size.
    blocks: (channels, stride) of each separable block; images have at least as many pixels a side as the strides
      multiply to.
    classes: number of logits.
    momentum: share of the running batch statistics kept each step.
    epsilon: added to the variance.
    dtype: what it computes in; parameters and batch statistics are float32.

  References:
    Howard et al., MobileNets: Efficient Convolutional Neural Networks for Mobile Vision Applications, 2017,
    https://arxiv.org/abs/1704.04861

  >>> from jaxlite.models import summary
  >>> summary(DepthwiseCNN(), (1, 28, 28, 1))
  Summary(parameters=141130, flops=9037952)
  """

  stem: int = 32
  blocks: Sequence[tuple[int, int]] = ((64, 2), (64, 1), (128, 2), (128, 1), (256, 2), (256, 1))
  classes: int = 10
  momentum: float = 0.9
  epsilon: float = 1e-5
  dtype: Any = jnp.float32

  classifier = 'dense'

  @nn.compact
  def __call__(self, x: Any, train: bool = False, pooled: bool = False) -> jax.Array:
    """Returns float32[B, classes] of [B, H, W, C] or [B, H, W]; with `pooled`, what the last layer reads."""
    smallest = 1
    for block in self.blocks:
      if len(block) != 2 or min(block) < 1:
        raise ValueError(f'a block of DepthwiseCNN is (channels, stride), each at least 1; got {block}')
      smallest *= block[1]
    x = as_images(x, 'DepthwiseCNN', self.dtype, smallest=smallest)

    def normed(x: jax.Array, name: str, width: int, size: int, stride: int = 1, groups: int = 1) -> jax.Array:
      conv = nn.Conv(
        width,
        (size, size),
        strides=stride,
        padding=size // 2,
        feature_group_count=groups,
        use_bias=False,
        kernel_init=scaled_normal(2.0),
        dtype=self.dtype,
        name=name,
      )
      norm = BatchNorm(
        use_running_average=not train,
        momentum=self.momentum,
        epsilon=self.epsilon,
        dtype=self.dtype,
        name=f'{name}_norm',
      )
      return nn.relu(norm(conv(x)))

    x = normed(x, 'stem', self.stem, 3)
    for index, (width, stride) in enumerate(self.blocks, 1):
      channels = x.shape[-1]
      x = normed(x, f'depthwise{index}', channels, 3, stride, groups=channels)
      x = normed(x, f'pointwise{index}', width, 1)
    x = jnp.mean(x, axis=(1, 2))
    return x if pooled else dense(self.classes, self.dtype, self.classifier)(x).astype(jnp.float32)
