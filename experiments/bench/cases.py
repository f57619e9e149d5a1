"""What the benches against other frameworks run: batches and first weights, drawn once in NumPy and handed to all.

NumPy and the standard library only, since the workers of every framework import it. Weights are named by jaxlite's
own paths ('stage1_block1/first/conv/kernel'), kernels are [H, W, in, out] and [in, out].
"""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import numpy as np

Weights = dict[str, np.ndarray]
BATCHES = 8  # different ones, taken in turn


class Case(NamedTuple):
  """One row of the table.

  Attributes:
    name: how a flag calls it.
    title: how the table calls it.
    batch: examples per step.
    image: shape of one example.
    lr: learning rate, by optimizer.
  """

  name: str
  title: str
  batch: int
  image: tuple[int, ...]
  lr: dict[str, float]


CASES = (
  Case('mlp', 'MLP 784-512-512-10, batch 128', 128, (784,), {'sgd': 0.05, 'adamw': 1e-3}),
  Case('cnn', 'small CNN with max-pool, batch 128', 128, (28, 28, 1), {'sgd': 0.02, 'adamw': 1e-3}),
  Case('resnet20', 'ResNet-20 on 32x32, batch 64', 64, (32, 32, 3), {'sgd': 0.005, 'adamw': 2e-4}),
  Case('vit', 'ViT d128 L4, batch 32', 32, (32, 32, 3), {'sgd': 0.02, 'adamw': 3e-4}),
  Case('tiny', 'MLP 64-32-10, batch 64', 64, (64,), {'sgd': 0.05, 'adamw': 1e-3}),
)
WIDTHS = {'mlp': (512, 512), 'tiny': (32,)}
RESNET = {'blocks': 3, 'widths': (16, 32, 64)}
VIT = {'patch': 4, 'width': 128, 'layers': 4, 'heads': 4, 'hidden': 512}
MOMENTUM, WEIGHT_DECAY, CLASSES = 0.9, 1e-4, 10


def case(name: str) -> Case:
  """Returns the case of that name."""
  return next(one for one in CASES if one.name == name)


def batches(name: str) -> list[dict[str, np.ndarray]]:
  """Noise of the right form with labels that a network can learn by heart; no time depends on what is learned."""
  rng, one = np.random.default_rng(0), case(name)
  return [
    {
      'inputs': rng.normal(size=(one.batch, *one.image)).astype(np.float32),
      'labels': rng.integers(0, CLASSES, one.batch).astype(np.int32),
    }
    for _ in range(BATCHES)
  ]


def weights(name: str, seed: int = 1) -> Weights:
  """Returns the first weights of a case, by path."""
  rng, drawn = np.random.default_rng(seed), {}

  def kernel(path: str, *shape: int, scale: float = 2.0, bias: bool = True) -> None:
    deviation = math.sqrt(scale / math.prod(shape[:-1]))
    drawn[f'{path}/kernel'] = (deviation * rng.standard_normal(shape)).astype(np.float32)
    if bias:
      drawn[f'{path}/bias'] = np.zeros(shape[-1], np.float32)

  def norm(path: str, width: int) -> None:
    drawn[f'{path}/scale'], drawn[f'{path}/bias'] = np.ones(width, np.float32), np.zeros(width, np.float32)

  def conv(path: str, inputs: int, outputs: int) -> None:
    kernel(f'{path}/conv', 3, 3, inputs, outputs, bias=False)
    norm(f'{path}/norm', outputs)

  if name in WIDTHS:
    sizes = (*case(name).image, *WIDTHS[name], CLASSES)
    for index, (inputs, outputs) in enumerate(itertools.pairwise(sizes), 1):
      kernel(f'dense{index}', inputs, outputs)
  elif name == 'cnn':
    kernel('conv1', 3, 3, 1, 32)
    kernel('conv2', 3, 3, 32, 64)
    kernel('dense1', 7 * 7 * 64, 128)
    kernel('dense2', 128, CLASSES, scale=1.0)
  elif name == 'resnet20':
    width = RESNET['widths'][0]
    conv('stem', 3, width)
    for stage, outputs in enumerate(RESNET['widths'], 1):
      for block in range(1, RESNET['blocks'] + 1):
        conv(f'stage{stage}_block{block}/first', width, outputs)
        conv(f'stage{stage}_block{block}/second', outputs, outputs)
        width = outputs
    kernel('dense', width, CLASSES, scale=1.0)
  else:
    width, hidden, patch = VIT['width'], VIT['hidden'], VIT['patch']
    height, across, channels = case(name).image
    kernel('embed', patch * patch * channels, width, scale=1.0)
    positions = 0.02 * rng.standard_normal((height // patch * (across // patch), width))
    drawn['position_bias'] = positions.astype(np.float32)
    for index in range(1, VIT['layers'] + 1):
      norm(f'block{index}/norm1', width)
      kernel(f'block{index}/qkv', width, 3 * width, scale=1.0)
      kernel(f'block{index}/out', width, width, scale=1.0)
      norm(f'block{index}/norm2', width)
      kernel(f'block{index}/dense1', width, hidden, scale=1.0)
      kernel(f'block{index}/dense2', hidden, width, scale=1.0)
    norm('norm', width)
    kernel('dense', width, CLASSES, scale=1.0)
  return drawn
