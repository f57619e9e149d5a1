"""The cases' networks in plain Flax NNX, written as its documentation would; the layers are those of jaxlite.models."""

from __future__ import annotations

import itertools

import cases
import jax
import jax.numpy as jnp
from flax import nnx
from linen_models import patches


class MLP(nnx.Module):
  """Dense layers with ReLU between them."""

  def __init__(self, inputs: int, widths: tuple[int, ...], rngs: nnx.Rngs) -> None:
    sizes = (inputs, *widths, cases.CLASSES)
    for index, (narrow, wide) in enumerate(itertools.pairwise(sizes), 1):
      setattr(self, f'dense{index}', nnx.Linear(narrow, wide, rngs=rngs))
    self.depth = len(sizes) - 1

  def __call__(self, x: jax.Array) -> jax.Array:
    for index in range(1, self.depth):
      x = nnx.relu(getattr(self, f'dense{index}')(x))
    return getattr(self, f'dense{self.depth}')(x)


class SmallCNN(nnx.Module):
  """Two 3x3 convolutions, each halved by a max-pool, and two dense layers."""

  def __init__(self, rngs: nnx.Rngs) -> None:
    self.conv1, self.conv2 = nnx.Conv(1, 32, (3, 3), rngs=rngs), nnx.Conv(32, 64, (3, 3), rngs=rngs)
    self.dense1, self.dense2 = nnx.Linear(7 * 7 * 64, 128, rngs=rngs), nnx.Linear(128, cases.CLASSES, rngs=rngs)

  def __call__(self, x: jax.Array) -> jax.Array:
    for conv in (self.conv1, self.conv2):
      x = nnx.relu(nnx.max_pool(conv(x), (2, 2), strides=(2, 2)))
    return self.dense2(nnx.relu(self.dense1(x.reshape(x.shape[0], -1))))


class ConvNorm(nnx.Module):
  """A convolution without bias and its batch norm."""

  def __init__(self, inputs: int, outputs: int, stride: int, rngs: nnx.Rngs) -> None:
    self.conv = nnx.Conv(inputs, outputs, (3, 3), stride, padding=1, use_bias=False, rngs=rngs)
    self.norm = nnx.BatchNorm(outputs, momentum=0.9, rngs=rngs)

  def __call__(self, x: jax.Array) -> jax.Array:
    return self.norm(self.conv(x))


class Block(nnx.Module):
  """Two convolutions beside a shortcut; where the shape changes, every other pixel and zeros."""

  def __init__(self, inputs: int, outputs: int, stride: int, rngs: nnx.Rngs) -> None:
    self.first, self.second = ConvNorm(inputs, outputs, stride, rngs), ConvNorm(outputs, outputs, 1, rngs)
    self.stride, self.grown = stride, outputs - inputs

  def __call__(self, x: jax.Array) -> jax.Array:
    y = self.second(nnx.relu(self.first(x)))
    if self.grown:
      x = jnp.pad(x[:, :: self.stride, :: self.stride], ((0, 0), (0, 0), (0, 0), (0, self.grown)))
    return nnx.relu(x + y)


class ResNet(nnx.Module):
  """A stem, stages of blocks, the mean of all pixels, one dense layer."""

  def __init__(self, blocks: int, widths: tuple[int, ...], rngs: nnx.Rngs) -> None:
    self.stem, width, names = ConvNorm(3, widths[0], 1, rngs), widths[0], []
    for stage, outputs in enumerate(widths, 1):
      for block in range(1, blocks + 1):
        names.append(f'stage{stage}_block{block}')
        setattr(self, names[-1], Block(width, outputs, 2 if stage > 1 and block == 1 else 1, rngs))
        width = outputs
    self.names, self.dense = tuple(names), nnx.Linear(width, cases.CLASSES, rngs=rngs)

  def __call__(self, x: jax.Array) -> jax.Array:
    x = nnx.relu(self.stem(x))
    for name in self.names:
      x = getattr(self, name)(x)
    return self.dense(x.mean((1, 2)))


class ViTBlock(nnx.Module):
  """Flax's multi-head attention, then a dense pair with GELU."""

  def __init__(self, width: int, heads: int, hidden: int, rngs: nnx.Rngs) -> None:
    self.norm1, self.norm2 = nnx.LayerNorm(width, rngs=rngs), nnx.LayerNorm(width, rngs=rngs)
    self.attention = nnx.MultiHeadAttention(heads, width, decode=False, rngs=rngs)
    self.dense1, self.dense2 = nnx.Linear(width, hidden, rngs=rngs), nnx.Linear(hidden, width, rngs=rngs)

  def __call__(self, x: jax.Array) -> jax.Array:
    x = x + self.attention(self.norm1(x))
    return x + self.dense2(nnx.gelu(self.dense1(self.norm2(x))))


class ViT(nnx.Module):
  """Patches, learned positions, blocks, the mean of all patches, one dense layer."""

  def __init__(self, patch: int, width: int, layers: int, heads: int, hidden: int, rngs: nnx.Rngs) -> None:
    self.patch, self.layers = patch, layers
    height, across, channels = cases.case('vit').image
    self.embed = nnx.Linear(patch * patch * channels, width, rngs=rngs)
    self.position_bias = nnx.Param(jnp.zeros((height // patch * (across // patch), width)))
    for index in range(1, layers + 1):
      setattr(self, f'block{index}', ViTBlock(width, heads, hidden, rngs))
    self.norm, self.dense = nnx.LayerNorm(width, rngs=rngs), nnx.Linear(width, cases.CLASSES, rngs=rngs)

  def __call__(self, x: jax.Array) -> jax.Array:
    x = self.embed(patches(x, self.patch)) + self.position_bias[...]
    for index in range(1, self.layers + 1):
      x = getattr(self, f'block{index}')(x)
    return self.dense(self.norm(x).mean(1))


def network(name: str, rngs: nnx.Rngs) -> nnx.Module:
  """Builds a case's network with Flax's own first values."""
  if name in cases.WIDTHS:
    return MLP(cases.case(name).image[0], cases.WIDTHS[name], rngs)
  if name == 'cnn':
    return SmallCNN(rngs)
  return ResNet(**cases.RESNET, rngs=rngs) if name == 'resnet20' else ViT(**cases.VIT, rngs=rngs)
