"""The cases' networks in plain Flax Linen, written as its documentation would; layer for layer those of jaxlite.models.

Names are those of `cases.weights`; only attention differs, as Flax's own layer keeps query, key and value apart.
"""

from __future__ import annotations

from typing import Any

import cases
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np


class MLP(nn.Module):
  """Dense layers with ReLU between them."""

  widths: tuple[int, ...]

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    for index, width in enumerate(self.widths, 1):
      x = nn.relu(nn.Dense(width, name=f'dense{index}')(x))
    return nn.Dense(cases.CLASSES, name=f'dense{len(self.widths) + 1}')(x)


class SmallCNN(nn.Module):
  """Two 3x3 convolutions, each halved by a max-pool, and two dense layers."""

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    for index, features in enumerate((32, 64), 1):
      x = nn.relu(nn.max_pool(nn.Conv(features, (3, 3), name=f'conv{index}')(x), (2, 2), strides=(2, 2)))
    x = nn.relu(nn.Dense(128, name='dense1')(x.reshape(x.shape[0], -1)))
    return nn.Dense(cases.CLASSES, name='dense2')(x)


class ConvNorm(nn.Module):
  """A convolution without bias and its batch norm."""

  width: int
  stride: int = 1

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    x = nn.Conv(self.width, (3, 3), self.stride, padding=1, use_bias=False, name='conv')(x)
    return nn.BatchNorm(use_running_average=False, momentum=0.9, name='norm')(x)


class Block(nn.Module):
  """Two convolutions beside a shortcut; where the shape changes, every other pixel and zeros."""

  width: int
  stride: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    y = ConvNorm(self.width, name='second')(nn.relu(ConvNorm(self.width, self.stride, name='first')(x)))
    if x.shape != y.shape:
      grown = self.width - x.shape[-1]
      x = jnp.pad(x[:, :: self.stride, :: self.stride], ((0, 0), (0, 0), (0, 0), (0, grown)))
    return nn.relu(x + y)


class ResNet(nn.Module):
  """A stem, stages of blocks, the mean of all pixels, one dense layer."""

  blocks: int
  widths: tuple[int, ...]

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    x = nn.relu(ConvNorm(self.widths[0], name='stem')(x))
    for stage, width in enumerate(self.widths, 1):
      for block in range(1, self.blocks + 1):
        x = Block(width, 2 if stage > 1 and block == 1 else 1, name=f'stage{stage}_block{block}')(x)
    return nn.Dense(cases.CLASSES, name='dense')(x.mean((1, 2)))


class ViTBlock(nn.Module):
  """Flax's multi-head attention, then a dense pair with GELU."""

  width: int
  heads: int
  hidden: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    x = x + nn.MultiHeadDotProductAttention(self.heads, name='attention')(nn.LayerNorm(name='norm1')(x))
    y = nn.gelu(nn.Dense(self.hidden, name='dense1')(nn.LayerNorm(name='norm2')(x)))
    return x + nn.Dense(self.width, name='dense2')(y)


class ViT(nn.Module):
  """Patches, learned positions, blocks, the mean of all patches, one dense layer."""

  patch: int
  width: int
  layers: int
  heads: int
  hidden: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    x = nn.Dense(self.width, name='embed')(patches(x, self.patch))
    x = x + self.param('position_bias', nn.initializers.normal(0.02), x.shape[1:])
    for index in range(1, self.layers + 1):
      x = ViTBlock(self.width, self.heads, self.hidden, name=f'block{index}')(x)
    return nn.Dense(cases.CLASSES, name='dense')(nn.LayerNorm(name='norm')(x).mean(1))


def patches(x: jax.Array, size: int) -> jax.Array:
  """[B, H, W, C] -> [B, patches, size * size * C]."""
  batch, height, width, channels = x.shape
  x = x.reshape(batch, height // size, size, width // size, size, channels)
  return jnp.swapaxes(x, 2, 3).reshape(batch, -1, size * size * channels)


def network(name: str) -> nn.Module:
  """Builds a case's network."""
  if name in cases.WIDTHS:
    return MLP(cases.WIDTHS[name])
  return {'cnn': SmallCNN, 'resnet20': lambda: ResNet(**cases.RESNET), 'vit': lambda: ViT(**cases.VIT)}[name]()


def attended(weights: cases.Weights) -> cases.Weights:
  """Turns the fused projections of a case into Flax's: query, key and value, by heads."""
  heads, turned = cases.VIT['heads'], {}
  for path, value in weights.items():
    block, _, rest = path.partition('/')
    if rest in ('qkv/kernel', 'qkv/bias'):
      parts = np.moveaxis(value.reshape(*value.shape[:-1], 3, heads, -1), -3, 0)
      for part, own in zip(('query', 'key', 'value'), parts, strict=True):
        turned[f'{block}/attention/{part}/{rest[4:]}'] = own
    elif rest == 'out/kernel':
      turned[f'{block}/attention/{rest}'] = value.reshape(heads, -1, value.shape[-1])
    elif rest == 'out/bias':
      turned[f'{block}/attention/{rest}'] = value
    else:
      turned[path] = value
  return turned


def tree(weights: cases.Weights) -> dict[str, Any]:
  """Nests a dict of paths."""
  nested: dict[str, Any] = {}
  for path, value in weights.items():
    *groups, leaf = path.split('/')
    group = nested
    for name in groups:
      group = group.setdefault(name, {})
    group[leaf] = value
  return nested
