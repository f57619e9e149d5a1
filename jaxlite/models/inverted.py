"""Inverted residuals: the blocks that MobileNetV2 and EfficientNet-Lite are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxlite.models.conv_norm import ConvNorm
from jaxlite.models.layers import depth_rates


class Stage(NamedTuple):
  """Blocks of one width.

  Attributes:
    expand: channels inside a block, as a multiple of those that come in.
    width: channels that come out.
    blocks: how many blocks there are.
    stride: of the first; the others have 1.
    kernel: side of the depthwise convolution, in pixels.
  """

  expand: int
  width: int
  blocks: int
  stride: int
  kernel: int = 3


def scaled_width(width: int, scale: float) -> int:
  """Returns the multiple of 8 that is nearest to `scale * width`, at least 8 and at least 0.9 of it.

  References:
    Sandler et al., MobileNetV2, 2018, https://arxiv.org/abs/1801.04381; Tan and Le, EfficientNet, 2019,
    https://arxiv.org/abs/1905.11946 (both: their published code).

  >>> scaled_width(24, 1.1), scaled_width(32, 0.35)
  (24, 16)
  """
  wanted = scale * width
  found = max(8, int(wanted + 4) // 8 * 8)
  return found + 8 if found < 0.9 * wanted else found


def inverted_features(
  x: jax.Array,
  train: bool,
  *,
  stem: int,
  stages: Sequence[Stage],
  last: int,
  drop_path: float,
  name: str,
  settings: Mapping[str, Any],
) -> jax.Array:
  """Returns the mean over pixels of what the last convolution gives, [B, last]; called in a compact `__call__`.

  Args:
    x: images [B, H, W, C].
    train: whether it trains.
    stem: channels of the first convolution, which halves the image.
    stages: the blocks.
    last: channels of the last convolution, 1x1.
    drop_path: share of examples that pass by the last block in training.
    name: the network that asks.
    settings: of every `ConvNorm`.
  """
  rates = iter(depth_rates(drop_path, sum(stage.blocks for stage in stages), name))
  x = nn.relu6(ConvNorm(stem, (3, 3), 2, name='stem', **settings)(x, train))
  index = 0
  for stage in stages:
    for within in range(stage.blocks):
      index += 1
      stride = stage.stride if within == 0 else 1
      block = _Block(stage.expand, stage.width, stride, stage.kernel, next(rates), settings, name=f'block{index}')
      x = block(x, train)
  x = nn.relu6(ConvNorm(last, (1, 1), name='last', **settings)(x, train))
  return jnp.mean(x, axis=(1, 2))


class _Block(nn.Module):
  """Widened by a 1x1 convolution, each channel convolved alone, narrowed linearly; added to what came in."""

  expand: int
  width: int
  stride: int
  kernel: int
  drop_rate: float
  settings: Mapping[str, Any]

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    inner = self.expand * x.shape[-1]
    y = x
    if self.expand != 1:
      y = nn.relu6(ConvNorm(inner, (1, 1), name='expand', **self.settings)(y, train))
    size = (self.kernel, self.kernel)
    y = nn.relu6(ConvNorm(inner, size, self.stride, groups=inner, name='depthwise', **self.settings)(y, train))
    y = ConvNorm(self.width, (1, 1), name='project', **self.settings)(y, train)
    if x.shape != y.shape:
      return y
    return x + nn.Dropout(self.drop_rate, broadcast_dims=(1, 2, 3), deterministic=not train)(y)  # whole examples
