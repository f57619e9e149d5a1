"""A small convolutional network, of any depth and width."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxlite.models.layers import ConvPool, as_images, classified, dense, flattened, max_pool, scaled_normal
from jaxlite.models.norm import BatchNorm


class SmallCNN(nn.Module):
  """3x3 convolutions, each halving the image with a max-pool, then two dense layers.

  By default, on 28x28x1 images: 421,642 parameters (320 + 18,496 + 401,536 + 1,290) and 2 * 4,241,152 =
  8,482,304 FLOPs per example (28 * 28 * 9 * 32 + 14 * 14 * 9 * 32 * 64 + 3,136 * 128 + 1,280 multiply-adds).
  On 8x8x1 digits: 53,002 parameters and 2 * 347,392 = 694,784 FLOPs.

  Attributes:
    features: channels of each convolution; n of them need images of at least 2**n pixels a side.
    hidden: width of the dense layer before the logits.
    classes: number of logits.
    dropout: share of the hidden units that is dropped in training, in [0, 1).
    batch_norm: normalizes after each convolution, which then has no bias.
    dtype: what it computes in; parameters are float32.

  References:
    The plan (3x3 convolutions, 2x2 pools, two dense layers) is that of Simonyan and Zisserman, Very deep
    convolutional networks for large-scale image recognition, 2014, https://arxiv.org/abs/1409.1556

  >>> from jaxlite.models import summary
  >>> summary(SmallCNN(), (1, 28, 28, 1))
  Summary(parameters=421642, flops=8482304)
  """

  features: Sequence[int] = (32, 64)
  hidden: int = 128
  classes: int = 10
  dropout: float = 0.0
  batch_norm: bool = False
  dtype: Any = jnp.float32

  classifier = 'dense2'

  @nn.compact
  def __call__(self, x: Any, train: bool = False, pooled: bool = False) -> jax.Array:
    """Returns float32[B, classes] of [B, H, W, C] or [B, H, W]; with `pooled`, what the last layer reads."""
    x = as_images(x, 'SmallCNN', self.dtype, smallest=2 ** len(self.features))
    for index, features in enumerate(self.features, 1):
      name = f'conv{index}'
      if not self.batch_norm:
        x = ConvPool(features, dtype=self.dtype, name=name)(x)
        continue
      x = nn.Conv(features, (3, 3), use_bias=False, kernel_init=scaled_normal(1.0), dtype=self.dtype, name=name)(x)
      x = BatchNorm(use_running_average=not train, momentum=0.9, dtype=self.dtype, name=f'norm{index}')(x)
      x = nn.relu(max_pool(x))  # the same numbers as relu before the pool, a quarter of its work
    x = flattened(x)
    x = nn.relu(dense(self.hidden, self.dtype, 'dense1')(x))
    return x if pooled else classified(self, x, train)
