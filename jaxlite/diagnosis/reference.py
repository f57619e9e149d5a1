"""A yardstick: what quick learners get out of the same data, so that 'too little' has a meaning.

Ridge regression on the inputs and on random features of them, a small network (`probe`), or counts of what follows what
where tokens are learned. They see at most a few thousand examples and take a second. Each training example is judged by
a fit without it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np

from jaxlite.diagnosis import probe

MOST = 3000  # examples
_WIDE = 1500  # features that are taken as they are; more are projected
_MOST_COLUMNS = 4096  # of wider inputs, columns at equal distances
_RANDOM = 256
_LEAST = 20
_RIDGES = (0.1, 3.0, 100.0)
_TURNS, _USUAL = 8, 1.5  # of a robust fit, and how far it takes numbers as they are


class Reference(NamedTuple):
  """What the quick learner found.

  Attributes:
    kind: 'classes' (scores [N, C], labels are classes), 'labels' (scores [N, L], each 0 or 1), 'numbers' (predictions
      [N, T]) or 'tokens'.
    train: scores of training examples, each by a fit in closed form without it; of numbers by one that a few which
      are far off move little.
    train_labels: theirs.
    validation: scores of validation examples by such a fit of all; empty where there are none.
    validation_labels: theirs.
    halves: as `train`, by fits of half as many: even rows by even ones, odd rows by odd ones; empty where that was not
      looked at.
    best_train, best_validation: as `train` and `validation`, of what has the smallest squared error, a small network
      too; empty where that is those.
  """

  kind: str
  train: np.ndarray
  train_labels: np.ndarray
  validation: np.ndarray
  validation_labels: np.ndarray
  halves: np.ndarray = np.zeros(0)
  best_train: np.ndarray = np.zeros(0)
  best_validation: np.ndarray = np.zeros(0)


KINDS = {
  'classification': 'classes',
  'binary': 'classes',
  'multi_label': 'labels',
  'regression': 'numbers',
  'language': 'tokens',
}


def features(inputs: Any) -> np.ndarray | None:
  """Returns inputs as float64[N, d]: quantities as they are, tokens by how often each occurs; None where they are not.

  >>> features(np.array([[0, 2, 2]], np.int32)).tolist()
  [[1.0, 0.0, 2.0]]
  """
  columns = []
  for leaf in jax.tree.leaves(inputs):
    array = np.asarray(leaf)
    if array.dtype.kind in 'iu' and array.dtype != np.uint8:
      if array.ndim != 2 or array.size == 0 or array.min() < 0 or array.max() >= 4096:
        return None
      counts = np.zeros((len(array), int(array.max()) + 1))
      np.add.at(counts, (np.arange(len(array))[:, None], array), 1)
      columns.append(counts)
    elif array.dtype.kind in 'fub':
      flat = array.reshape(len(array), -1)
      columns.append(flat[:, :: max(1, -(-flat.shape[1] // _MOST_COLUMNS))].astype(np.float64))
    else:
      return None
  return np.concatenate(columns, axis=1) if columns else None


def reference(task: str, facts: dict[str, Any], train: Any, validation: Any) -> Reference | None:
  """Fits the quick learner.

  Args:
    task: its name.
    facts: of the task.
    train: (inputs, labels), at most `MOST` examples.
    validation: likewise.

  Returns:
    The Reference; None for tasks and inputs it knows nothing of.
  """
  (inputs, labels), (others, truth) = train, validation
  labels, truth = np.asarray(labels), np.asarray(truth)
  if task == 'language':
    return _tokens(inputs, labels, others, truth, facts)
  kind, x = KINDS.get(task), features(inputs)
  if kind is None or x is None or len(labels) < _LEAST or not np.isfinite(x).all():
    return None
  z = _of_width(features(others) if len(truth) else x[:0], x.shape[1])
  targets = _targets(kind, labels, facts)
  if z is None or targets is None or not np.isfinite(targets).all():
    return None
  rng = np.random.default_rng(0)
  x, z = _prepared(x, z, rng)
  ways = _forms(x, rng)
  fits = [_fitted(way(x), way(z), targets) for way in ways]
  best = min(range(len(fits)), key=lambda at: fits[at][2])
  found, scores, error, _ = fits[best]
  halves = np.zeros_like(found)
  for k in (0, 1):
    seen = ways[best](x[k::2])
    halves[k::2] = _fitted(seen, seen[:0], targets[k::2])[0]
  other = probe.fit(kind, x, z, targets) if x.shape[1] else None
  top, beside = (found, scores) if other is None or other.error >= error else other[:2]
  if kind == 'numbers':
    found, scores = _robust(ways[best](x), ways[best](z), targets)
  return Reference(kind, found, labels, scores, truth, halves, top, beside)


def _robust(x: np.ndarray, z: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Fits again and again to numbers that are moved to within the usual distance of the last fit (Huber 1964): a few
  that are far off then move it little."""
  found = np.broadcast_to(np.median(targets, 0), targets.shape)
  scores, made = np.zeros((len(z), targets.shape[1])), None
  for _ in range(_TURNS):
    left = targets - found
    reach = _USUAL * 1.4826 * np.median(np.abs(left - np.median(left, 0)), 0)
    found, scores, _, made = _fitted(x, z, found + np.clip(left, -reach, reach), made)
  return found, scores


def _of_width(z: np.ndarray | None, width: int) -> np.ndarray | None:
  """Counts of tokens of which a split has fewer kinds, or more, than training."""
  return None if z is None else np.pad(z, ((0, 0), (0, max(0, width - z.shape[1]))))[:, :width]


def _targets(kind: str, labels: np.ndarray, facts: dict[str, Any]) -> np.ndarray | None:
  if kind == 'classes':
    if labels.ndim != 1 or labels.dtype.kind not in 'biu':
      return None
    classes = max(int(labels.max()) + 1, int(facts.get('classes') or 2))
    return np.eye(classes)[labels] if classes <= 200 else None
  return labels.reshape(len(labels), -1).astype(np.float64)


def _prepared(x: np.ndarray, z: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
  """Scales each feature, and projects where they are many."""
  mean, std = x.mean(0), x.std(0)
  varies = std > 1e-9 * np.maximum(1.0, np.abs(mean))
  x, z = ((part[:, varies] - mean[varies]) / std[varies] for part in (x, z))
  z = np.clip(z, -10, 10)
  x = np.clip(x, -10, 10)
  if x.shape[1] > _WIDE:
    turn = rng.normal(size=(x.shape[1], _WIDE // 3)) / np.sqrt(_WIDE // 3)
    x, z = x @ turn, z @ turn
  return x, z


def _forms(x: np.ndarray, rng: np.random.Generator) -> list[Any]:
  """Ways to see the inputs: as they are, with one layer of random units, with random waves of two lengths."""
  wide = max(1, x.shape[1])
  turn, shift = rng.normal(size=(wide, _RANDOM)) / np.sqrt(wide), rng.uniform(-1, 1, _RANDOM)
  phase = rng.uniform(0, 2 * np.pi, _RANDOM)
  return [
    lambda one: one,
    lambda one: np.concatenate([one[:, :_RANDOM], np.maximum(one @ turn * 1.5 + shift, 0)], 1),
    lambda one: np.concatenate([one[:, :_RANDOM], np.cos(one @ turn * 1.2 + phase)], 1),
    lambda one: np.cos(one @ turn * 3.0 + phase),
  ]


def _fitted(x: np.ndarray, z: np.ndarray, targets: np.ndarray, made: Any = None) -> Any:
  """Scores of x, each as a fit without it gives it, scores of z, and the error, of the best ridge; last, what of it
  depends on x alone, for other targets."""
  x, z = (np.concatenate([part, np.ones((len(part), 1))], 1) for part in (x, z))
  if made is None:
    values, vectors = np.linalg.eigh(x.T @ x)
    made = np.maximum(values, 0), vectors, x @ vectors
  values, vectors, seen = made
  cross = vectors.T @ (x.T @ targets)
  centre = targets.mean(0)
  best = None
  for ridge in _RIDGES:
    shrunk = values + ridge + 1e-8 * values.max()
    fit, own = seen @ (cross / shrunk[:, None]), (seen**2 / shrunk).sum(1)
    out = targets - (targets - fit) / np.maximum(1 - own, 1e-3)[:, None]
    error = float(np.mean((out - targets) ** 2) / max(np.mean((targets - centre) ** 2), 1e-12))
    if best is None or error < best[2]:
      best = (out, z @ (vectors @ (cross / shrunk[:, None])), error, made)
  return best


def _tokens(inputs: Any, labels: np.ndarray, others: Any, truth: np.ndarray, facts: dict[str, Any]) -> Reference | None:
  """What follows one token, and what follows two, counted; scores are probabilities of the right token, [N, L]."""
  tokens = inputs['tokens'] if isinstance(inputs, dict) and 'tokens' in inputs else inputs
  other = others['tokens'] if isinstance(others, dict) and 'tokens' in others else others
  size = int(facts.get('vocabulary') or 0)
  tokens = np.asarray(tokens)
  if labels.ndim != 2 or tokens.shape != labels.shape or tokens.dtype.kind not in 'iu' or not 0 < size <= 512:
    return None
  known = labels >= 0
  one = np.full((size, size), 0.1)
  np.add.at(one, (tokens[known], labels[known]), 1)
  two = np.zeros((size * size, size), np.float32) if size <= 64 else None
  before = lambda t: np.roll(t, 1, axis=1) * size + t  # noqa: E731
  if two is not None:
    np.add.at(two, (before(tokens)[known], labels[known]), 1)

  def said(t: np.ndarray, y: np.ndarray, own: int) -> np.ndarray:
    y = np.maximum(y, 0)
    share = (one[t, y] - own) / np.maximum(one.sum(1)[t] - own, 1e-9)
    if two is None:
      return np.maximum(share, 1e-6)
    seen, total = two[before(t), y] - own, two.sum(1)[before(t)] - own
    return np.maximum((seen + 4 * share) / (total + 4), 1e-6)

  val = said(np.asarray(other), truth, 0) if len(truth) else np.zeros((0, labels.shape[1]))
  return Reference('tokens', said(tokens, labels, 1), labels, val, truth)


def risks(kind: str, scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
  """Returns how wrong scores are, one number an example, alike for a model's and the reference's.

  Of classes 0 or 1; of several labels the share that is wrong; of numbers the squared error in units of the labels'
  variance; of tokens the mean of -log p.

  >>> risks('classes', np.array([[0.1, 0.9], [0.8, 0.2]]), np.array([1, 1])).tolist()
  [0.0, 1.0]
  """
  labels = np.asarray(labels)
  if kind == 'classes':
    return (scores.argmax(1) != labels).astype(float)
  if kind == 'labels':
    return np.mean((scores.reshape(len(labels), -1) > 0.5) != (labels.reshape(len(labels), -1) > 0.5), axis=1)
  if kind == 'numbers':
    truth = labels.reshape(len(labels), -1).astype(float)
    spread = np.maximum(truth.var(0), 1e-12)
    return np.mean((scores.reshape(truth.shape) - truth) ** 2 / spread, axis=1)
  known = labels >= 0
  return -np.sum(np.log(scores) * known, axis=1) / np.maximum(known.sum(1), 1)
