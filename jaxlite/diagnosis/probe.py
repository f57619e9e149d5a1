"""A small network as a yardstick: what a few hundred steps of plain training get out of the same data.

In NumPy, so that nothing is compiled for it: several networks side by side, each of which leaves out another part of
the examples and is judged on that part alone. Where a fit in closed form misses a rule, this one often finds it.
"""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import numpy as np

FOLDS = 3
_HIDDEN, _BATCH, _RATE, _DECAY = 64, 64, 4e-3, 1e-3
_STEPS = 900
_LOOKS = (150, 300, 600, 900)  # after so many steps it is judged, and the best is kept: wrong labels are learned late
_AVERAGE = 0.98  # of the weights that are judged


class Fit(NamedTuple):
  """What the networks say.

  Attributes:
    left_out: float64[N, T], of each example by the network that did not see it: probabilities of classes or labels, or
      numbers in the targets' own units.
    others: float64[M, T], of further examples, by a network that saw all.
    error: mean squared error of `left_out`, in units of the targets' variance.
  """

  left_out: np.ndarray
  others: np.ndarray
  error: float


def fit(kind: str, x: np.ndarray, z: np.ndarray, targets: np.ndarray) -> Fit:
  """Trains the networks.

  Args:
    kind: 'classes' (targets one-hot), 'labels' (each 0 or 1) or 'numbers'.
    x: float64[N, d], each feature of mean 0 and deviation 1.
    z: float64[M, d], further examples.
    targets: float64[N, T].

  >>> x = np.random.default_rng(0).normal(size=(300, 2))
  >>> found = fit('numbers', x, x[:5], np.abs(x[:, :1]))
  >>> found.error < 0.1, found.others.shape
  (True, (5, 1))
  """
  rng = np.random.default_rng(0)
  centre, spread = targets.mean(0), np.maximum(targets.std(0), 1e-12)
  y = ((targets - centre) / spread if kind == 'numbers' else targets).astype(np.float32)
  x, z = x.astype(np.float32), z.astype(np.float32)
  fold = np.arange(len(x)) % FOLDS
  rng.shuffle(fold)
  rows = [np.flatnonzero(fold != k) for k in range(FOLDS)] + [np.arange(len(x))]
  params = _first(rng, len(rows), x.shape[1], y.shape[1])
  mean = [p.copy() for p in params]
  first, second = ([np.zeros_like(p) for p in params] for _ in range(2))
  best: Any = None
  for step in range(1, _STEPS + 1):
    chosen = np.stack([one[rng.integers(0, len(one), min(_BATCH, len(one)))] if len(one) >= _BATCH
                       else rng.choice(one, _BATCH) for one in rows])  # fmt: skip
    grads = _gradients(kind, params, x[chosen], y[chosen])
    rate = np.float32(_RATE * min(1.0, step / 20) * np.sqrt(1 - 0.99**step) / (1 - 0.9**step))
    for place, grad in enumerate(grads):
      first[place] += 0.1 * (grad - first[place])
      second[place] += 0.01 * (grad * grad - second[place])
      params[place] -= rate * first[place] / (np.sqrt(second[place]) + 1e-8) + _RATE * _DECAY * params[place]
      mean[place] += (1 - _AVERAGE) * (params[place] - mean[place])
    if step in _LOOKS:
      said = _answers(kind, mean, x)
      left = np.empty_like(y)
      for k in range(FOLDS):
        left[fold == k] = said[k, fold == k]
      error = float(np.mean((left - y) ** 2) / max(float(np.mean((y - y.mean(0)) ** 2)), 1e-12))
      if best is None or error < best[0]:
        best = (error, left, _answers(kind, mean, z)[FOLDS] if len(z) else np.zeros((0, y.shape[1])))
  error, left, others = best
  left, others = (np.asarray(part, np.float64) for part in (left, others))
  if kind == 'numbers':
    left, others = left * spread + centre, others * spread + centre
  return Fit(left, others, error)


def _first(rng: np.random.Generator, count: int, features: int, outputs: int) -> list[np.ndarray]:
  sizes = (features, _HIDDEN, _HIDDEN, outputs)
  params = []
  for a, b in itertools.pairwise(sizes):
    params += [rng.normal(size=(count, a, b)) * np.sqrt(2 / a), np.zeros((count, 1, b))]
  params[-2] *= 0.1
  return [p.astype(np.float32) for p in params]


def _hidden(params: list[np.ndarray], x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  one = np.maximum(np.matmul(x, params[0]) + params[1], 0)
  two = np.maximum(np.matmul(one, params[2]) + params[3], 0)
  return one, two, np.matmul(two, params[4]) + params[5]


def _said(kind: str, out: np.ndarray) -> np.ndarray:
  if kind == 'numbers':
    return out
  if kind == 'labels':
    return 1 / (1 + np.exp(-np.clip(out, -30, 30)))
  shares = np.exp(out - out.max(-1, keepdims=True))
  return shares / shares.sum(-1, keepdims=True)


def _answers(kind: str, params: list[np.ndarray], x: np.ndarray) -> np.ndarray:
  return _said(kind, _hidden(params, x)[2])


def _gradients(kind: str, params: list[np.ndarray], x: np.ndarray, y: np.ndarray) -> list[np.ndarray]:
  """Of the mean over a batch of cross-entropy, or of half the squared error: of both it is answer minus target."""
  one, two, out = _hidden(params, x)
  back = (_said(kind, out) - y) / np.float32(x.shape[1])
  grads = [back.sum(1, keepdims=True), np.matmul(two.swapaxes(1, 2), back)]
  back = np.matmul(back, params[4].swapaxes(1, 2)) * (two > 0)
  grads += [back.sum(1, keepdims=True), np.matmul(one.swapaxes(1, 2), back)]
  back = np.matmul(back, params[2].swapaxes(1, 2)) * (one > 0)
  grads += [back.sum(1, keepdims=True), np.matmul(x.swapaxes(1, 2), back)]
  return grads[::-1]
