"""The layer that convolutional networks for photographs are made of: a convolution and its batch norm."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxlite.models.layers import scaled_normal
from jaxlite.models.norm import BatchNorm


class ConvNorm(nn.Module):
  """A convolution without bias, padded so that stride 1 keeps the image's size, and its batch norm.

  Attributes:
    width: channels that come out.
    kernel: (height, width) in pixels.
    stride: of the convolution.
    momentum: share of the running statistics kept each step.
    epsilon: added to the variance.
    dtype: what it computes in; parameters and statistics are float32.
    groups: channels are split into so many groups, each convolved alone; as many as channels is depthwise.
    same: TensorFlow's padding, on the right and below first; else half the kernel on every side, as in torch. They
      differ where the stride is above 1.
    keep_statistics: the running statistics normalize in training, too, and stay as they are.

  >>> ConvNorm(4, (3, 3), 2).init_with_output(jax.random.key(0), jnp.ones((1, 7, 7, 2)), False)[0].shape
  (1, 4, 4, 4)
  """

  width: int
  kernel: tuple[int, int]
  stride: int = 1
  momentum: float = 0.9
  epsilon: float = 1e-5
  dtype: Any = jnp.float32
  groups: int = 1
  same: bool = False
  keep_statistics: bool = False

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """Returns [B, ceil(H / stride), ceil(W / stride), width] of [B, H, W, C]."""
    x = nn.Conv(
      self.width,
      self.kernel,
      strides=self.stride,
      # As published: 'SAME' pads a halving convolution on one side only, and torch's networks do not.
      padding='SAME' if self.same else self.kernel[0] // 2,
      feature_group_count=self.groups,
      use_bias=False,
      kernel_init=scaled_normal(2.0),
      dtype=self.dtype,
      name='conv',
    )(x)
    kept = self.keep_statistics or not train
    return BatchNorm(
      use_running_average=kept, momentum=self.momentum, epsilon=self.epsilon, dtype=self.dtype, name='norm'
    )(x)


def norm_settings(module: Any) -> dict[str, Any]:
  """Returns what the layers of a network take of its own fields."""
  return {name: getattr(module, name) for name in ('momentum', 'epsilon', 'dtype', 'keep_statistics')}
