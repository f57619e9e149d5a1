"""LeNet-5, as Caffe made it known."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxlite.models.layers import ConvPool, as_images, dense, flattened


class LeNet5(nn.Module):
  """Caffe's LeNet-5: two 5x5 convolutions without padding, each max-pooled, and two dense layers.

  Without `relu` the only nonlinearities are the pools and the one ReLU after. On 28x28x1 images with 10 classes:
  431,080 parameters (520 + 25,050 + 400,500 + 5,010) and 2 * 2,293,000 = 4,586,000 FLOPs per example
  (24 * 24 * 25 * 20 + 8 * 8 * 25 * 20 * 50 + 800 * 500 + 500 * 10 multiply-adds). Images have at least 16x16 pixels.

  Attributes:
    classes: number of logits.
    relu: a ReLU after each pool, too.
    dtype: what it computes in; parameters are float32.

  References:
    LeCun, Bottou, Bengio and Haffner, Gradient-based learning applied to document recognition, 1998,
    http://yann.lecun.com/exdb/publis/pdf/lecun-01a.pdf. This variant: Jia et al., Caffe: convolutional
    architecture for fast feature embedding, 2014, https://arxiv.org/abs/1408.5093

  >>> from jaxlite.models import summary
  >>> summary(LeNet5(), (1, 28, 28, 1))
  Summary(parameters=431080, flops=4586000)
  """

  classes: int = 10
  relu: bool = False
  dtype: Any = jnp.float32

  classifier = 'dense2'

  @nn.compact
  def __call__(self, x: Any, pooled: bool = False) -> jax.Array:
    """Returns float32[B, classes] of [B, H, W, C] or [B, H, W]; with `pooled`, what the last layer reads."""
    x = as_images(x, 'LeNet5', self.dtype, smallest=16)
    for index, features in enumerate((20, 50), 1):
      x = ConvPool(features, 5, 'VALID', relu=self.relu, dtype=self.dtype, name=f'conv{index}')(x)
    x = flattened(x)
    x = nn.relu(dense(500, self.dtype, 'dense1')(x))
    return x if pooled else dense(self.classes, self.dtype, self.classifier)(x).astype(jnp.float32)
