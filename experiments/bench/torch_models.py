"""The cases' networks in PyTorch, written as its own documentation would; layer for layer those of jaxlite.models.

Convolutions take NCHW tensors (contiguous or channels-last), the ViT cuts its patches out of NHWC.
"""

from __future__ import annotations

import itertools
from typing import Any

import cases
import torch
import torch.nn.functional as F  # noqa: N812 - its documentation calls it so
from torch import nn


class MLP(nn.Module):
  """Dense layers with ReLU between them."""

  def __init__(self, inputs: int, widths: tuple[int, ...]) -> None:
    super().__init__()
    sizes = (inputs, *widths, cases.CLASSES)
    for index, (narrow, wide) in enumerate(itertools.pairwise(sizes), 1):
      setattr(self, f'dense{index}', nn.Linear(narrow, wide))
    self.depth = len(sizes) - 1

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    for index in range(1, self.depth):
      x = F.relu(getattr(self, f'dense{index}')(x))
    return getattr(self, f'dense{self.depth}')(x)


class SmallCNN(nn.Module):
  """Two 3x3 convolutions, each halved by a max-pool, and two dense layers."""

  def __init__(self, dropout: float = 0.0) -> None:
    super().__init__()
    self.conv1, self.conv2 = nn.Conv2d(1, 32, 3, padding=1), nn.Conv2d(32, 64, 3, padding=1)
    self.dense1, self.dense2 = nn.Linear(7 * 7 * 64, 128), nn.Linear(128, cases.CLASSES)
    self.dropout = nn.Dropout(dropout)

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    for conv in (self.conv1, self.conv2):
      x = F.relu(F.max_pool2d(conv(x), 2))
    return self.dense2(self.dropout(F.relu(self.dense1(x.flatten(1)))))


class ConvNorm(nn.Module):
  """A convolution without bias and its batch norm."""

  def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
    super().__init__()
    self.conv = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
    self.norm = nn.BatchNorm2d(outputs)

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    return self.norm(self.conv(x))


class Block(nn.Module):
  """Two convolutions beside a shortcut; where the shape changes, every other pixel and zeros."""

  def __init__(self, inputs: int, outputs: int, stride: int) -> None:
    super().__init__()
    self.first, self.second = ConvNorm(inputs, outputs, stride), ConvNorm(outputs, outputs)
    self.stride, self.grown = stride, outputs - inputs

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    y = self.second(F.relu(self.first(x)))
    if self.grown:
      x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.grown))
    return F.relu(x + y)


class ResNet(nn.Module):
  """A stem, stages of blocks, the mean of all pixels, one dense layer."""

  def __init__(self, blocks: int, widths: tuple[int, ...]) -> None:
    super().__init__()
    self.stem, width, self.names = ConvNorm(3, widths[0]), widths[0], []
    for stage, outputs in enumerate(widths, 1):
      for block in range(1, blocks + 1):
        self.names.append(f'stage{stage}_block{block}')
        setattr(self, self.names[-1], Block(width, outputs, 2 if stage > 1 and block == 1 else 1))
        width = outputs
    self.dense = nn.Linear(width, cases.CLASSES)

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    x = F.relu(self.stem(x))
    for name in self.names:
      x = getattr(self, name)(x)
    return self.dense(x.mean((2, 3)))


class ViTBlock(nn.Module):
  """Attention by PyTorch's own fused kernel on one projection of query, key and value; a dense pair with GELU."""

  def __init__(self, width: int, heads: int, hidden: int) -> None:
    super().__init__()
    self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
    self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
    self.dense1, self.dense2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
    self.heads = heads

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    batch, tokens, width = x.shape
    qkv = self.qkv(self.norm1(x)).view(batch, tokens, 3, self.heads, width // self.heads)
    mixed = F.scaled_dot_product_attention(*qkv.permute(2, 0, 3, 1, 4).unbind(0))
    x = x + self.out(mixed.transpose(1, 2).reshape(batch, tokens, width))
    return x + self.dense2(F.gelu(self.dense1(self.norm2(x)), approximate='tanh'))


class ViT(nn.Module):
  """Patches, learned positions, blocks, the mean of all patches, one dense layer."""

  def __init__(self, patch: int, width: int, layers: int, heads: int, hidden: int) -> None:
    super().__init__()
    self.patch, self.layers = patch, layers
    height, across, channels = cases.case('vit').image
    self.embed = nn.Linear(patch * patch * channels, width)
    self.position_bias = nn.Parameter(torch.zeros(height // patch * (across // patch), width))
    for index in range(1, layers + 1):
      setattr(self, f'block{index}', ViTBlock(width, heads, hidden))
    self.norm, self.dense = nn.LayerNorm(width, eps=1e-6), nn.Linear(width, cases.CLASSES)

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    batch, height, across, channels = x.shape
    x = x.view(batch, height // self.patch, self.patch, across // self.patch, self.patch, channels)
    x = x.transpose(2, 3).reshape(batch, -1, self.patch * self.patch * channels)
    x = self.embed(x) + self.position_bias
    for index in range(1, self.layers + 1):
      x = getattr(self, f'block{index}')(x)
    return self.dense(self.norm(x).mean(1))


def network(name: str, seed: int = 1, **options: Any) -> nn.Module:
  """Builds a case's network and gives it the case's weights; `options` are the network's own."""
  if name in cases.WIDTHS:
    model: nn.Module = MLP(cases.case(name).image[0], cases.WIDTHS[name])
  else:
    kinds = {'cnn': (SmallCNN, {}), 'resnet20': (ResNet, cases.RESNET), 'vit': (ViT, cases.VIT)}
    model = kinds[name][0](**kinds[name][1], **options)
  values = {
    named(path): torch.from_numpy(turned(path, value).copy()) for path, value in cases.weights(name, seed).items()
  }
  missing, strange = model.load_state_dict(values, strict=False)
  if strange or any('running' not in path and 'num_batches' not in path for path in missing):
    raise ValueError(f'{name}: weights do not fit: missing {missing}, unknown {strange}')
  return model


def named(path: str) -> str:
  """Turns a path into PyTorch's name for it."""
  return path.replace('/', '.').replace('kernel', 'weight').replace('scale', 'weight')


def turned(path: str, value: Any) -> Any:
  """Turns an array into PyTorch's order of axes."""
  if path == 'dense1/kernel' and len(value) == 7 * 7 * 64:  # it reads pixels channel by channel
    return value.reshape(7, 7, 64, -1).transpose(3, 2, 0, 1).reshape(value.shape[1], -1)
  return value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T if path.endswith('kernel') else value
