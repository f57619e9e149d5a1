"""The PyTorch side of the task table, started by `task_peers`, never by hand: the same networks, recipe and budget.

As its own documentation would write them, with the first weights of jaxlite's models: clipping, AdamW with decay on
matrices only, a warm-up cosine, the best epoch by validation.
"""

from __future__ import annotations

import copy
import itertools
import json
import math
import os
import statistics
import sys
import time
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - its documentation calls it so
from torch import nn


class Bag(nn.Module):
  """The mean of the words' embeddings, and a dense layer."""

  def __init__(self, vocabulary: int, classes: int, width: int) -> None:
    super().__init__()
    self.embedding, self.dense = nn.EmbeddingBag(vocabulary, width, mode='mean'), nn.Linear(width, classes)
    nn.init.normal_(self.embedding.weight, std=0.1)
    drawn(self.dense)

  def forward(self, x: dict[str, torch.Tensor]) -> torch.Tensor:
    counts = x['mask'].sum(1)
    return self.dense(self.embedding(x['tokens'][x['mask']], counts.cumsum(0) - counts))


class Block(nn.Module):
  """Causal attention with rotary positions and a dense pair, each normalized before."""

  def __init__(self, width: int, heads: int, hidden: int, layers: int) -> None:
    super().__init__()
    self.heads = heads
    self.norm1, self.norm2 = nn.RMSNorm(width, eps=1e-6), nn.RMSNorm(width, eps=1e-6)
    self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
    self.dense1, self.dense2 = nn.Linear(width, hidden, bias=False), nn.Linear(hidden, width, bias=False)
    for layer, scale in ((self.qkv, 1.0), (self.dense1, 1.0), (self.out, 0.5 / layers), (self.dense2, 0.5 / layers)):
      drawn(layer, scale)

  def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    batch, size, width = x.shape
    qkv = self.qkv(self.norm1(x)).reshape(batch, size, 3, self.heads, width // self.heads)
    query, key, value = qkv.permute(2, 0, 3, 1, 4)
    mixed = F.scaled_dot_product_attention(turned(query, cos, sin), turned(key, cos, sin), value, is_causal=True)
    x = x + self.out(mixed.transpose(1, 2).reshape(batch, size, width))
    return x + self.dense2(F.gelu(self.dense1(self.norm2(x)), approximate='tanh'))


class Decoder(nn.Module):
  """A causal transformer whose embedding gives the logits too."""

  def __init__(self, vocabulary: int, width: int, layers: int, heads: int, hidden: int) -> None:
    super().__init__()
    self.half = width // heads // 2
    self.embedding = nn.Embedding(vocabulary, width)
    nn.init.normal_(self.embedding.weight, std=0.02)
    self.blocks = nn.ModuleList(Block(width, heads, hidden, layers) for _ in range(layers))
    self.norm = nn.RMSNorm(width, eps=1e-6)

  def forward(self, x: dict[str, torch.Tensor]) -> torch.Tensor:
    tokens = x['inputs'].long()
    angles = torch.arange(tokens.shape[1])[:, None] * 10_000.0 ** (-torch.arange(self.half) / self.half)
    cos, sin = angles.cos(), angles.sin()
    x = self.embedding(tokens)
    for block in self.blocks:
      x = block(x, cos, sin)
    return self.norm(x) @ self.embedding.weight.T


def turned(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
  """Rotary positions: entry i and entry i + d/2 of a head are a point in a plane."""
  one, other = x.chunk(2, dim=-1)
  return torch.cat([one * cos - other * sin, one * sin + other * cos], dim=-1)


class Pixels(nn.Module):
  """Convolutions at half of the picture's size, each place of which tells four pixels' classes."""

  def __init__(self, classes: int, widths: list[int]) -> None:
    super().__init__()
    first = nn.Conv2d(1, widths[0], 5, stride=2, padding=2)
    self.convs = nn.ModuleList([first, *(nn.Conv2d(*pair, 3, padding=1) for pair in itertools.pairwise(widths))])
    self.head = nn.Conv2d(widths[-1], 4 * classes, 1)
    for conv in self.convs:
      drawn(conv, 2.0)
    drawn(self.head)

  def forward(self, x: dict[str, torch.Tensor]) -> torch.Tensor:
    x = x['inputs'].permute(0, 3, 1, 2)
    for conv in self.convs:
      x = F.relu(conv(x))
    return F.pixel_shuffle(self.head(x), 2).permute(0, 2, 3, 1)


def drawn(layer: Any, scale: float = 1.0) -> None:
  """First values as jaxlite's: variance scale / inputs, no bias."""
  deviation = math.sqrt(scale / (layer.weight[0].numel())) / 0.87962566  # of a normal cut off at two deviations
  nn.init.trunc_normal_(layer.weight, std=deviation, a=-2 * deviation, b=2 * deviation)
  if layer.bias is not None:
    nn.init.zeros_(layer.bias)


def fastest(model: nn.Module, inputs: dict[str, torch.Tensor], labels: torch.Tensor) -> int:
  """Returns one thread or one a core: small networks, and machines where others work too, do better with one."""
  cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
  times = {}
  for threads in (1, cores):
    torch.set_num_threads(threads)
    took = []
    for _ in range(4):
      began = time.monotonic()
      F.cross_entropy(model(inputs).flatten(0, -2), labels.flatten(), ignore_index=-1).backward()
      took.append(time.monotonic() - began)
    times[threads] = statistics.median(took[1:])  # the first warms up
    model.zero_grad(set_to_none=True)
  return min(times, key=times.__getitem__)


NETWORKS = {'classification': Bag, 'language': Decoder, 'segmentation': Pixels}


def score(task: str, logits: torch.Tensor, labels: torch.Tensor) -> float:
  """The number that picks the best epoch; larger is better."""
  if task == 'classification':
    return float((logits.argmax(-1) == labels).float().mean())
  if task == 'language':
    return -float(F.cross_entropy(logits.flatten(0, -2), labels.flatten(), ignore_index=-1))
  classes = logits.shape[-1]
  counts = torch.bincount((labels * classes + logits.argmax(-1)).flatten(), minlength=classes**2)
  counts = counts.reshape(classes, classes).double()
  hits, union = counts.diag(), counts.sum(0) + counts.sum(1) - counts.diag()
  return float((hits[union > 0] / union[union > 0]).mean())


def main() -> None:
  """Trains as told, writes what the best epoch says of the test inputs, prints its score and the seconds."""
  spec = json.loads(sys.argv[1])
  torch.manual_seed(spec['seed'])
  parts: dict[str, dict[str, torch.Tensor]] = {'train': {}, 'validation': {}, 'test': {}}
  with np.load(f'{spec["folder"]}/data.npz') as data:
    for name in data.files:
      where, _, what = name.partition('_')
      parts[where][what] = torch.from_numpy(data[name])
  labels = {where: part.pop('labels').long() for where, part in parts.items() if where != 'test'}
  model = NETWORKS[spec['task']](**spec['sizes'])
  first = {name: value[: spec['batch']] for name, value in parts['train'].items()}
  torch.set_num_threads(fastest(model, first, labels['train'][: spec['batch']]))
  began = time.monotonic()
  matrices = [value for value in model.parameters() if value.ndim > 1]
  rest = [value for value in model.parameters() if value.ndim <= 1]
  groups = [{'params': matrices, 'weight_decay': 1e-4}, {'params': rest, 'weight_decay': 0.0}]
  optimizer = torch.optim.AdamW(groups, lr=spec['rate'])
  count, batch = len(labels['train']), spec['batch']
  total = math.ceil(count / batch) * spec['epochs']
  warm = round(0.05 * total)

  def rate(step: int) -> float:
    if step < warm:
      return (1 + step) / (1 + warm)
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / (total - warm)))

  schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)

  def logits(where: str) -> torch.Tensor:
    model.eval()
    size = len(next(iter(parts[where].values())))
    with torch.inference_mode():
      pieces = [
        model({name: value[at : at + 128] for name, value in parts[where].items()}) for at in range(0, size, 128)
      ]
    model.train()
    return torch.cat(pieces)

  best, kept = -math.inf, model.state_dict()
  for _ in range(spec['epochs']):
    order = torch.randperm(count)
    for at in range(0, count, batch):
      rows = order[at : at + batch]
      said = model({name: value[rows] for name, value in parts['train'].items()})
      loss = F.cross_entropy(said.flatten(0, -2), labels['train'][rows].flatten(), ignore_index=-1)
      optimizer.zero_grad(set_to_none=True)
      loss.backward()
      nn.utils.clip_grad_norm_(model.parameters(), 1.0)
      optimizer.step()
      schedule.step()
    found = score(spec['task'], logits('validation'), labels['validation'])
    if found > best:
      best, kept = found, copy.deepcopy(model.state_dict())
  seconds = time.monotonic() - began
  model.load_state_dict(kept)
  np.save(f'{spec["folder"]}/said.npy', logits('test').numpy())
  print(json.dumps({'score': -best if spec['task'] == 'language' else best, 'seconds': seconds}))


if __name__ == '__main__':
  main()
