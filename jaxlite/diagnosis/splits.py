"""What is wrong with data, as a run sees them: scales, twins between splits, rare classes, labels that contradict."""

from __future__ import annotations

import hashlib
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxlite.diagnosis.reference import Reference

_SUREST = 5  # the part of the examples that is called with most confidence
_PIECE = 1024  # examples that are hashed at once
MOST_VALUES = 1 << 24  # that are looked at together
_FLAT = 0.45  # of the errors among all, that there are among these at least where labels are wrong


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


class Twins(NamedTuple):
  """Examples whose inputs are equal.

  Attributes:
    between: share of the examples of a held-out split that training has too; the larger, of several.
    within: share of training examples that another one of them equals.
    rows: of training, those that a held-out split has too.
  """

  between: float
  within: float
  rows: np.ndarray


def twins(train: Any, others: list[Any]) -> Twins:
  """Finds equal inputs by hash.

  Args:
    train: inputs.
    others: inputs of the splits that are held out.

  >>> found = twins(np.array([[1.0], [2.0], [2.0]]), [np.array([[1.0], [3.0]])])
  >>> found.between, round(found.within, 2), found.rows.tolist()
  (0.5, 0.33, [0])
  """
  own = digests(train)
  held = [digests(inputs) for inputs in others]
  known, seen = set(own), {one for part in held for one in part}
  between = max((sum(one in known for one in part) / max(1, len(part)) for part in held), default=0.0)
  rows = np.array([row for row, one in enumerate(own) if one in seen], int)
  return Twins(between, 1 - len(known) / max(1, len(own)), rows)


def digests(inputs: Any) -> list[bytes]:
  """Returns a hash of each example's inputs."""
  leaves = jax.tree.leaves(inputs)
  found = []
  for start in range(0, len(leaves[0]) if leaves else 0, _PIECE):  # what lies in files is not read at once
    parts = [np.ascontiguousarray(leaf[start : start + _PIECE]) for leaf in leaves]
    for row in range(len(parts[0])):
      told = hashlib.blake2b(digest_size=16)
      for part in parts:
        told.update(part[row])
      found.append(told.digest())
  return found


def noise(found: Reference) -> tuple[float, float] | None:
  """Estimates how many labels are wrong: what is called confidently, by fits that did not see it, and yet is labeled
  otherwise. Where classes only overlap, what is far from their border is labeled as it is called; wrong labels are
  everywhere.

  Returns:
    (share of wrong ones among the surest fifth, its standard error); None where that says nothing. The share is 0 where
    errors are much rarer among these than among all.

  References:
    Northcutt, Jiang and Chuang, Confident learning: estimating uncertainty in dataset labels, 2021,
    https://arxiv.org/abs/1911.00068
  """
  return floor(found.kind, found.train, found.train_labels)


def floor(kind: str, scores: np.ndarray, labels: np.ndarray) -> tuple[float, float] | None:
  """As `noise`, of any scores of examples that were not trained on."""
  labels = np.asarray(labels)
  if kind == 'classes':
    top = np.sort(scores, axis=1)
    margin, wrong = top[:, -1] - top[:, -2], scores.argmax(1) != labels
  elif kind == 'labels':
    flat, truth = scores.ravel(), labels.ravel() > 0.5
    margin, wrong = np.abs(flat - 0.5), (flat > 0.5) != truth
  elif kind == 'numbers':
    truth = labels.reshape(len(labels), -1).astype(float)
    left = scores.reshape(truth.shape) - truth
    spread = 1.4826 * np.median(np.abs(left - np.median(left, 0)), 0)
    far = (np.abs(left) > 5 * np.maximum(spread, 1e-12)).any(1)
    return float(far.mean()), float(np.sqrt(max(far.mean(), 1 / len(far)) / len(far)))
  else:
    return None
  sure = np.argsort(-margin)[: max(1, len(margin) // _SUREST)]
  share = float(wrong[sure].mean())
  if share < _FLAT * wrong.mean():  # errors become rarer away from a border: classes overlap
    share = 0.0
  return share, float(np.sqrt(max(share * (1 - share), 1 / len(sure)) / len(sure)))


def doubtful(found: Reference) -> np.ndarray:
  """Returns the rows of training whose label a fit that did not see them contradicts with confidence."""
  labels = found.train_labels
  if found.kind == 'classes':
    called = found.train.argmax(1)
    of_label = found.train[np.arange(len(labels)), labels]
    typical = np.array([np.median(found.train[labels == c, c]) if (labels == c).any() else 1.0
                        for c in range(found.train.shape[1])])  # fmt: skip
    top = found.train.max(1)
    return np.flatnonzero((called != labels) & (top >= typical[called]) & (of_label < 0.5 * top))
  if found.kind == 'labels':
    shape = labels.reshape(len(labels), -1)
    gap = np.abs(found.train.reshape(shape.shape) - shape)
    return np.flatnonzero((gap > 0.7).any(1))
  if found.kind == 'numbers':
    truth = labels.reshape(len(labels), -1).astype(float)
    left = found.train.reshape(truth.shape) - truth
    spread = 1.4826 * np.median(np.abs(left - np.median(left, 0)), 0)
    return np.flatnonzero((np.abs(left) > 4 * np.maximum(spread, 1e-12)).any(1))
  return np.zeros(0, int)


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
