"""How well fixed features suit labels: LogME, H-score, nearest neighbors and a linear probe, as pure functions.

Each takes features [N, D] and labels and gives a `Score`: a value (larger is better), a 95 % interval and the seconds
it took. Nothing is trained but the probe, and nothing here knows a network. Values of different scores cannot be
compared with each other; LogME and the H-scores rank candidates and say nothing of the accuracy to come.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxlite.errors import whole
from jaxlite.finetuning.probe import STRENGTHS, as_features, checked, few_threads, fit_probe, fold_of, spanned

_Z = 1.959963984540054  # of a 95 % interval
_GROUPS = 10  # left out one after the other for an interval
_ROWS = 1024  # examples whose neighbors are looked for at once
_GUARD = 1e-5  # as the authors of LogME have it: keeps a perfect fit finite


class Score(NamedTuple):
  """A score of features.

  Attributes:
    value: larger is better.
    low, high: the 95 % interval: of accuracies Wilson's, of the others by leaving out a tenth at a time; NaN where the
      examples do not suffice.
    seconds: it took, the interval with it.
    note: what a reader should know of this value; '' for nothing.
  """

  value: float
  low: float
  high: float
  seconds: float
  note: str = ''


def logme(features: Any, labels: Any, *, classes: int | None = None, interval: bool = True) -> Score:
  """Returns the largest log evidence, per example, that a Bayesian linear model gives the labels.

  Args:
    features: float[N, D].
    labels: int[N], classes, each a target of its own (one against all); or float[N] or float[N, targets], numbers,
      which are taken as they are given.
    classes: how many; None takes those that are there.
    interval: whether to compute it: ten more fits.

  Returns:
    The Score: the mean over targets.

  Raises:
    ValueError: features or labels that are not finite, or do not fit each other.

  References:
    You et al., LogME: Practical Assessment of Pre-trained Models for Transfer Learning, 2021,
    https://arxiv.org/abs/2102.11005

  >>> features = np.random.default_rng(0).normal(size=(50, 3))
  >>> fits, noise = logme(features, features[:, 0]), logme(features, np.arange(50) % 7.0)
  >>> fits.value > noise.value
  True
  """
  started = time.perf_counter()
  x, targets = as_features(features), _targets(features, labels, classes)
  with few_threads(x):
    inside = spanned(x)[0]  # turning the axes changes nothing, and fewer are left for every part of the interval
    return _scored(lambda rows: _logme(inside[rows], targets[rows]), len(x), np.asarray(labels), started, interval)


def h_score(
  features: Any, labels: Any, *, classes: int | None = None, shrunk: bool = True, interval: bool = True
) -> Score:
  """Returns how much of the features' variance, whitened, lies between the classes: tr(cov(f)^-1 cov(E[f|y])).

  Args:
    features: float[N, D].
    labels: int[N], classes.
    classes: how many; None takes those that are there.
    shrunk: estimate the covariance with Ledoit and Wolf's shrinkage, as Ibrahim et al. do; without it, the score of
      features that are at least as many as the examples is always classes - 1, whatever they hold.
    interval: whether to compute it.

  Returns:
    The Score: 0 .. classes - 1.

  Raises:
    ValueError: features that are not finite, labels that are no classes, one class only.

  References:
    Bao et al., An Information-Theoretic Approach to Transferability in Task Transfer Learning, 2019,
    https://arxiv.org/abs/2212.10082
    Ibrahim et al., Newer is not always better: Rethinking transferability metrics, 2021,
    https://arxiv.org/abs/2110.06893

  >>> features = np.repeat(np.eye(3), 4, axis=0) + np.random.default_rng(0).normal(0, 0.01, (12, 3))
  >>> round(h_score(features, np.repeat(np.arange(3), 4), shrunk=False).value, 2)
  2.0
  """
  started = time.perf_counter()
  x, y = checked(features, labels, _count(labels, classes))
  with few_threads(x):
    inside = spanned(x)[0]
    score = functools.partial(_h_score, width=x.shape[1], shrunk=shrunk)
    found = _scored(lambda rows: score(inside[rows], y[rows]), len(x), y, started, interval)
  rank = min(len(x) - 1, x.shape[1])
  if not shrunk and rank == len(x) - 1:
    return found._replace(note=f'{x.shape[1]} features span all {len(x)} examples, so this value says nothing')
  return found


def nearest_neighbors(features: Any, labels: Any, *, classes: int | None = None, k: int = 5) -> Score:
  """Returns the share of examples whose class is that of most of their k nearest, each example left out in turn.

  Near is by the cosine of features around their mean; among classes of as many neighbors, the nearer decide.

  Args:
    features: float[N, D].
    labels: int[N], classes.
    classes: how many; None takes those that are there.
    k: how many neighbors; fewer where there are not so many others.

  Returns:
    The Score: a share.

  >>> nearest_neighbors(np.array([[0.0], [0.1], [1.0], [1.1]]), np.array([0, 0, 1, 1]), k=1).value
  1.0
  """
  started = time.perf_counter()
  classes = _count(labels, classes)
  x, y = checked(features, labels, classes)
  k = min(whole(k, 'k', least=1), len(x) - 1)
  x = x - x.mean(0)
  norms = np.linalg.norm(x, axis=1, keepdims=True)
  x = x / np.where(norms > 0, norms, 1.0)
  right = np.zeros(len(x), bool)
  for start in range(0, len(x), _ROWS):
    near = x[start : start + _ROWS] @ x.T
    near[np.arange(len(near)), start + np.arange(len(near))] = -np.inf
    order = np.argsort(-near, axis=1, kind='stable')[:, :k]
    # A vote, and a little for nearness: it decides ties and never outweighs a vote.
    votes = 1 + (k - np.arange(k)) / (k * (k + 1))
    counts = np.zeros((len(near), classes))
    np.add.at(counts, (np.arange(len(near))[:, None], y[order]), votes)
    right[start : start + _ROWS] = counts.argmax(1) == y[start : start + _ROWS]
  return _share(right, started)


def linear_probe(
  features: Any,
  labels: Any,
  *,
  classes: int | None = None,
  strengths: Sequence[float] = STRENGTHS,
  folds: int = 5,
  seed: int = 0,
) -> Score:
  """Returns the share of examples that logistic regression predicts rightly, each by a fold that has not seen it.

  The strength is the best of those tried on the same folds, so that the value is slightly too good: by that of a
  choice among a few.

  Args:
    features: float[N, D].
    labels: int[N], classes.
    classes: how many; None takes those that are there.
    strengths: as in `fit_probe`.
    folds: how many.
    seed: of the folds.

  Returns:
    The Score: a share.

  >>> features = np.repeat(np.eye(2), 10, axis=0) + np.random.default_rng(0).normal(0, 0.1, (20, 2))
  >>> linear_probe(features, np.repeat([0, 1], 10)).value
  1.0
  """
  started = time.perf_counter()
  found = fit_probe(features, labels, _count(labels, classes), strengths=strengths, folds=folds, seed=seed)
  return _share(found.right, started)


def wilson(right: int, count: int) -> tuple[float, float]:
  """Returns the 95 % interval of a share.

  References:
    Wilson, Probable inference, the law of succession, and statistical inference, 1927,
    https://doi.org/10.1080/01621459.1927.10502953

  >>> [round(one, 3) for one in wilson(9, 10)]
  [0.596, 0.982]
  """
  share, square = right / count, _Z**2
  middle = (share + square / (2 * count)) / (1 + square / count)
  half = _Z / (1 + square / count) * math.sqrt(share * (1 - share) / count + square / (4 * count**2))
  return max(0.0, middle - half), min(1.0, middle + half)


def _share(right: np.ndarray, started: float) -> Score:
  low, high = wilson(int(right.sum()), len(right))
  return Score(float(right.mean()), low, high, time.perf_counter() - started)


def _count(labels: Any, classes: int | None) -> int:
  """How many classes there are: of labels that nobody counted, one more than the largest."""
  if classes is not None:
    return whole(classes, 'classes', least=2)
  y = np.asarray(labels)
  return int(y.max()) + 1 if y.ndim == 1 and y.dtype.kind in 'iu' and len(y) else 2


def _targets(features: Any, labels: Any, classes: int | None) -> np.ndarray:
  """Labels as float64 [N, targets]."""
  values = np.asarray(labels)
  if values.dtype.kind in 'iu' and values.ndim == 1:
    _, y = checked(features, values, _count(values, classes))
    return (y[:, None] == np.unique(y)).astype(np.float64)
  if values.dtype.kind != 'f' or values.ndim not in (1, 2) or len(values) != len(np.asarray(features)):
    raise ValueError(
      f'labels are int[N], classes, or float[N] or [N, targets], numbers, one row an example; got {values.dtype}'
      f'{list(values.shape)}'
    )
  if not np.isfinite(values).all():
    place = int(np.argwhere(~np.isfinite(values))[0][0])
    raise ValueError(f'labels are finite; example {place} has {values[place]}: drop it')
  return values.astype(np.float64).reshape(len(values), -1)


def _scored(score: Callable[[Any], float], count: int, labels: np.ndarray, started: float, interval: bool) -> Score:
  """The score of all examples, and by leaving out a tenth of them at a time (the grouped jackknife) how sure it is."""
  value = score(slice(None))
  low = high = math.nan
  if interval and count >= 2 * _GROUPS:
    groups = fold_of(labels, _GROUPS, 0) if labels.ndim == 1 and labels.dtype.kind in 'iu' else None
    groups = np.random.default_rng(0).permutation(count) % _GROUPS if groups is None else groups
    parts = np.array([score(np.flatnonzero(groups != one)) for one in range(_GROUPS)])
    half = _Z * math.sqrt((_GROUPS - 1) / _GROUPS * float(np.sum((parts - parts.mean()) ** 2)))
    low, high = value - half, value + half
  return Score(value, low, high, time.perf_counter() - started)


def _logme(x: np.ndarray, targets: np.ndarray) -> float:
  """The evidence of y ~ N(0, 1/beta + x x^T / alpha), alpha and beta at their best, a mean over targets."""
  count = len(x)
  u, s, _ = np.linalg.svd(x, full_matrices=False)
  squares = s**2
  found = []
  for y in targets.T:
    along = (u.T @ y) ** 2
    beyond = max(0.0, float(y @ y - along.sum()))
    alpha = beta = 1.0
    for _ in range(100):
      before = alpha / beta
      shrink = squares + before
      gamma = float(np.sum(squares / shrink))
      norm = float(np.sum(squares * along / shrink**2))
      rest = float(np.sum(along * (before / shrink) ** 2)) + beyond
      alpha, beta = gamma / (norm + _GUARD), (count - gamma) / (rest + _GUARD)
      if not (alpha > 0 and beta > 0) or abs(alpha / beta - before) <= 1e-5 * before:
        break
    alpha, beta = max(alpha, 1e-300), max(beta, 1e-300)
    shrink = squares + alpha / beta
    norm = float(np.sum(squares * along / shrink**2))
    rest = float(np.sum(along * (alpha / beta / shrink) ** 2)) + beyond
    # Directions that no example spans have the determinant alpha each, which meets width/2 log alpha.
    spanned = len(s)
    evidence = 0.5 * spanned * math.log(alpha) + 0.5 * count * math.log(beta)
    evidence -= 0.5 * float(np.sum(np.log(alpha + beta * squares))) + 0.5 * (beta * rest + alpha * norm)
    found.append(evidence / count - 0.5 * math.log(2 * math.pi))
  return float(np.mean(found))


def _h_score(x: np.ndarray, y: np.ndarray, width: int, shrunk: bool) -> float:
  """Of coordinates in the examples' own span, whose features were `width`: no D x D matrix is made."""
  x = x - x.mean(0)
  count = len(x)
  u, s, _ = np.linalg.svd(x, full_matrices=False)
  kept = s > (s[0] * max(count, width) * np.finfo(np.float64).eps if s[0] > 0 else np.inf)
  u, s = u[:, kept], s[kept]
  if not len(s):
    return 0.0  # features that do not vary
  there, sizes = np.unique(y, return_counts=True)
  means = np.stack([u[y == one].mean(0) for one in there])  # [classes, r], of u
  between = np.sum(sizes[:, None] * means**2, axis=0)  # [r]: of cov(E[f|y]), in units of s^2 / N
  if not shrunk:
    return float(between.sum())
  kept_share, floor = _ledoit_wolf(x, s, width)
  return float((1 - kept_share) * np.sum(between * s**2 / count / ((1 - kept_share) * s**2 / count + floor)))


def _ledoit_wolf(x: np.ndarray, s: np.ndarray, width: int) -> tuple[float, float]:
  """Returns (shrinkage, shrinkage times the mean variance) of centered features: scikit-learn's `ledoit_wolf`."""
  count = len(x)
  mean = float(np.sum(s**2)) / count / width
  fourth = float(np.sum(np.sum(x**2, axis=1) ** 2))
  square = float(np.sum(s**4)) / count**2
  beta = (fourth / count - square) / (width * count)
  delta = (square - 2 * mean * mean * width + width * mean**2) / width
  beta = min(beta, delta)
  share = 0.0 if beta <= 0 or delta <= 0 else beta / delta
  return share, share * mean
