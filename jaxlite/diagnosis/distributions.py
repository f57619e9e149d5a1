"""How inputs are distributed: their scale as a network gets them, and whether two splits are alike."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np

MOST_VALUES = 1 << 24  # that are looked at together


class Scales(NamedTuple):
  """How far inputs are from what a network is made for, mean 0 and deviation 1 each.

  Attributes:
    largest: the largest deviation or offset of a feature.
    ratio: between the largest and the smallest deviation of features that vary.
    broken: how many values are not finite.
  """

  largest: float
  ratio: float
  broken: int


def scales(inputs: Any, mean: Any, std: Any) -> Scales | None:
  """Looks at quantities as the network gets them; None where there are none (tokens, masks).

  Args:
    inputs: of some examples.
    mean, std: what they are standardized by, trees like the inputs or None.

  >>> scales(np.array([[0.0, 900.0], [1.0, 100.0]], np.float32), None, None).largest
  500.0
  """
  seen = []
  leaves = jax.tree.leaves(inputs)
  means = [None] * len(leaves) if mean is None else jax.tree.leaves(mean, is_leaf=lambda one: one is None)
  stds = [None] * len(leaves) if std is None else jax.tree.leaves(std, is_leaf=lambda one: one is None)
  broken = 0
  for leaf, m, s in zip(leaves, means, stds, strict=False):
    array = np.asarray(leaf[: max(16, MOST_VALUES // max(1, int(np.prod(leaf.shape[1:]))))])
    if array.dtype.kind != 'f' and array.dtype != np.uint8:
      continue
    array = array.astype(np.float64)
    broken += int((~np.isfinite(array)).sum())
    array = np.nan_to_num(array, posinf=0, neginf=0)
    array = array if m is None else (array - np.asarray(m)) / np.asarray(s)
    flat = array.reshape(len(array), -1)
    if array.ndim > 2:  # of pictures and sounds all values are of one scale
      flat = flat.reshape(-1, 1)
    seen.append((np.abs(flat.mean(0)), flat.std(0)))
  if not seen:
    return None
  offset, spread = (np.concatenate(parts) for parts in zip(*seen, strict=True))
  varies = spread[spread > 1e-12]
  ratio = float(varies.max() / varies.min()) if len(varies) else 1.0
  return Scales(float(max(offset.max(), spread.max())), ratio, broken)


def shift(train: np.ndarray, other: np.ndarray) -> float:
  """Returns the largest distance between the distributions of a feature in two splits (Kolmogorov-Smirnov), less what
  chance makes of so few examples and so many features.

  >>> shift(np.arange(100.0)[:, None], np.arange(100.0)[:, None] + 80) > 0.5
  True
  """
  if not len(train) or not len(other):
    return 0.0
  largest = 0.0
  for column in range(min(train.shape[1], 256)):
    one, two = np.sort(train[:, column]), np.sort(other[:, column])
    every = np.concatenate([one, two])
    apart = np.abs(np.searchsorted(one, every, 'right') / len(one) - np.searchsorted(two, every, 'right') / len(two))
    largest = max(largest, float(apart.max()))
  tests = max(1, min(train.shape[1], 256))
  chance = np.sqrt(-0.5 * np.log(1e-3 / (2 * tests)) * (1 / len(train) + 1 / len(other)))
  return float(max(0.0, largest - chance))
