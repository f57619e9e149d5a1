"""Labels that contradict what inputs say: how many, and which, as seen by fits that did not see them.

From inputs and labels alone, a label that was written down wrongly and one that depends on something which the inputs
do not hold look the same. What can be told apart is a learner that does not know better: where classes only overlap, or
are not learned yet, errors become rarer among what is called with most confidence, or fall with more examples.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from jaxlite.diagnosis.reference import Reference

_SUREST = 5  # the part of the examples that is called with most confidence
_FLAT = 0.45  # of the errors among all, that there are among these at least where labels are wrong
_GROWTH = 2.4  # 1 / (sqrt(2) - 1): an error a + b / sqrt(n) at n and at n / 2 gives a
_FAR, _NEAR = 5.0, 3.0  # deviations: numbers beyond the first are wrong, if few lie between the two
_HEAP = 4.0  # times as many beyond as between: no power law P(> x) ~ x^-a with a > 0.5 has so many


class Doubt(NamedTuple):
  """How often labels are contradicted by what is called with most confidence.

  Attributes:
    share: of those; 0 where errors are much rarer among them than among all, so that classes overlap.
    error: the standard error of the share.
    raw: the share, whatever errors do among the others.
    whole: the share of what is wrong among all.
    seen: how many examples are called with most confidence.
    limit: the share, less what more examples would take away beyond chance; the share itself where that is not known.
  """

  share: float
  error: float
  raw: float
  whole: float
  seen: int
  limit: float


def noise(found: Reference) -> Doubt | None:
  """Estimates how many training labels are wrong; None where that says nothing.

  References:
    Northcutt, Jiang and Chuang, Confident learning: estimating uncertainty in dataset labels, 2021,
    https://arxiv.org/abs/1911.00068
    Cortes et al., Learning curves: asymptotic values and rate of convergence, 1993,
    https://papers.nips.cc/paper/1993/hash/1aa48fc4880bb0c9b8a3bf979d3b917e-Abstract.html
  """
  whole = contradicted(found.kind, found.train, found.train_labels)
  if whole is None or not len(found.halves) or found.kind == 'numbers':
    return whole
  parts = [contradicted(found.kind, found.halves[k::2], found.train_labels[k::2]) for k in (0, 1)]
  fewer = float(np.mean([part.raw for part in parts if part is not None]))
  return whole._replace(limit=whole.share - _GROWTH * max(0.0, fewer - whole.raw - whole.error))


def contradicted(kind: str, scores: np.ndarray, labels: np.ndarray) -> Doubt | None:
  """As `noise`, of any scores of examples that were not trained on."""
  labels = np.asarray(labels)
  if kind == 'classes':
    top = np.sort(scores, axis=1)
    margin, wrong = top[:, -1] - top[:, -2], scores.argmax(1) != labels
  elif kind == 'labels':
    flat, truth = scores.ravel(), labels.ravel() > 0.5
    margin, wrong = np.abs(flat - 0.5), (flat > 0.5) != truth
  elif kind == 'numbers':
    far, near = (np.asarray(_beyond(scores, labels, by).any(1)) for by in (_FAR, _NEAR))
    share = raw = float(far.mean())
    if far.mean() < _HEAP * (near & ~far).mean():  # a long tail, not a heap of its own
      share = 0.0
    return Doubt(share, float(np.sqrt(max(raw, 1 / len(far)) / len(far))), raw, raw, len(far), share)
  else:
    return None
  sure = np.argsort(-margin, kind='stable')[: max(1, len(margin) // _SUREST)]
  share = raw = float(wrong[sure].mean())
  if raw < _FLAT * wrong.mean():
    share = 0.0
  seen = max(1, len(labels) // _SUREST)  # of several labels an example, those of one stand together
  error = float(np.sqrt(max(share * (1 - share), 1 / seen) / seen))
  return Doubt(share, error, raw, float(wrong.mean()), seen, share)


def _beyond(scores: np.ndarray, labels: np.ndarray, deviations: float) -> np.ndarray:
  """Which numbers lie so many robust deviations from what is predicted, bool[N, T]."""
  truth = labels.reshape(len(labels), -1).astype(float)
  left = scores.reshape(truth.shape) - truth
  spread = 1.4826 * np.median(np.abs(left - np.median(left, 0)), 0)
  return np.abs(left) > deviations * np.maximum(spread, 1e-12)


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
    return np.flatnonzero(doubtful_entries(found).any(1))
  if found.kind == 'numbers':
    return np.flatnonzero(_beyond(found.train, labels, 0.8 * _FAR).any(1))
  return np.zeros(0, int)


def doubtful_entries(found: Reference) -> np.ndarray:
  """Returns which of several labels of an example are contradicted with confidence, bool[N, L]."""
  truth = found.train_labels.reshape(len(found.train_labels), -1)
  return np.abs(found.train.reshape(truth.shape) - truth) > 0.7
