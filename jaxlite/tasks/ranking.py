"""How well scores rank positives before negatives: average precision, ROC-AUC, and the threshold to cut at.

On the host, in float64, exact: ties count as one step, as in scikit-learn.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np


class Ranking(NamedTuple):
  """What a classifier would do at every threshold, the highest first.

  Attributes:
    thresholds: float64[k], the distinct scores; positive is what scores at least that.
    hits: float64[k], weight of the positives found.
    alarms: float64[k], weight of the negatives found.
    positives: weight of all positives.
    negatives: weight of all negatives.
  """

  thresholds: np.ndarray
  hits: np.ndarray
  alarms: np.ndarray
  positives: float
  negatives: float


def ranking(labels: Any, scores: Any, weight: Any = None) -> Ranking:
  """Sorts scores and counts what lies above each.

  Args:
    labels: bool or 0 and 1, [N].
    scores: float[N], larger for what is rather positive. NaN counts against the model: last for a positive, first
      for a negative.
    weight: float[N], or None; examples without weight are left out.

  Returns:
    The Ranking; empty where there is no example.

  >>> ranking([1, 0, 1], [0.9, 0.5, 0.5]).hits.tolist()
  [1.0, 2.0]
  """
  labels = np.asarray(labels).astype(bool)
  scores = against(labels, np.asarray(scores, np.float64))
  weight = np.ones(len(labels)) if weight is None else np.asarray(weight, np.float64)
  used = weight > 0
  labels, scores, weight = labels[used], scores[used], weight[used]
  order = np.argsort(-scores, kind='stable')
  labels, scores, weight = labels[order], scores[order], weight[order]
  last = np.append(scores[1:] != scores[:-1], True)[: len(scores)]  # inf - inf would be NaN: compare, not subtract
  hits, alarms = np.cumsum(weight * labels), np.cumsum(weight * ~labels)
  totals = (float(hits[-1]), float(alarms[-1])) if len(hits) else (0.0, 0.0)
  return Ranking(scores[last], hits[last], alarms[last], *totals)


def against(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
  """Returns scores with NaN as what is most wrong for its label.

  >>> against(np.array([True, False]), np.array([np.nan, np.nan])).tolist()
  [-inf, inf]
  """
  return np.where(np.isnan(scores), np.where(labels.astype(bool), -np.inf, np.inf), scores)


def average_precision(ranked: Ranking) -> float:
  """Returns the mean of precision over the recall gained at each threshold; 0 without a positive.

  References:
    Zhu, Recall, precision and average precision, 2004, University of Waterloo

  >>> round(average_precision(ranking([1, 0, 1], [0.9, 0.5, 0.4])), 4)
  0.8333
  """
  if ranked.positives == 0:
    return 0.0
  precision = ranked.hits / (ranked.hits + ranked.alarms)
  return float(np.sum(np.diff(ranked.hits, prepend=0) * precision) / ranked.positives)


def roc_auc(ranked: Ranking) -> float:
  """Returns how often a positive outranks a negative, ties counting half; NaN without one or the other.

  References:
    Hanley and McNeil, The meaning and use of the area under a receiver operating characteristic (ROC) curve, 1982,
    https://doi.org/10.1148/radiology.143.1.7063747

  >>> roc_auc(ranking([1, 0, 1], [0.9, 0.5, 0.4]))
  0.5
  """
  if ranked.positives == 0 or ranked.negatives == 0:
    return float('nan')
  hits, alarms = np.insert(ranked.hits, 0, 0), np.insert(ranked.alarms, 0, 0)
  area = np.sum(np.diff(alarms) * (hits[1:] + hits[:-1]) / 2)
  return float(area / (ranked.positives * ranked.negatives))


def check_wishes(task: str, **wishes: float | None) -> dict[str, float]:
  """Returns those of a wanted recall and a wanted precision that are given; raises where one is no share.

  >>> check_wishes('binary', recall=0.9, precision=None)
  {'recall': 0.9}
  """
  for name, wish in wishes.items():
    if wish is not None and (isinstance(wish, bool | str) or not 0 < wish <= 1):
      raise ValueError(f'{task}: a wanted {name} is above 0 and at most 1; got {wish}')
  return {name: float(wish) for name, wish in wishes.items() if wish is not None}


def choose_threshold(
  ranked: Ranking, *, recall: float | None = None, precision: float | None = None
) -> tuple[float, str]:
  """Returns the threshold that serves the wish best, and a note where it cannot be met.

  Args:
    ranked: of probabilities on the validation split; thresholds below 0 are no choice (outputs that were NaN).
    recall: at least this recall, and of such thresholds the one with the highest precision.
    precision: at least this precision, and of such thresholds the one with the highest recall.

  Returns:
    (threshold, note). Without a wish the one of the highest F1. 0.5 where there is no positive to go by.

  >>> ranked = ranking([1, 1, 0, 1, 0], [0.9, 0.8, 0.7, 0.6, 0.2])
  >>> choose_threshold(ranked)[0], choose_threshold(ranked, recall=0.6)[0], choose_threshold(ranked, precision=1)[0]
  (0.6, 0.8, 0.8)
  """
  possible = (ranked.thresholds >= 0) & (ranked.thresholds <= 1)
  if ranked.positives == 0 or not possible.any():
    return 0.5, 'the validation split has no positive example to choose a threshold by: it is 0.5'
  thresholds, hits, alarms = (of[possible] for of in (ranked.thresholds, ranked.hits, ranked.alarms))
  precisions, recalls = hits / (hits + alarms), hits / ranked.positives
  f1 = 2 * hits / (hits + alarms + ranked.positives)
  if recall is None and precision is None:
    return float(thresholds[np.argmax(f1)]), ''
  slack = 1e-12
  enough = np.ones(len(thresholds), bool)
  wishes = []
  for name, wish, found in (('recall', recall, recalls), ('precision', precision, precisions)):
    if wish is not None:
      enough &= found >= wish - slack
      wishes.append(f'{name} {wish:g}')
  if not enough.any():
    best = np.argmax(recalls) if recall is not None and precision is None else np.argmax(precisions)
    best = np.argmax(f1) if len(wishes) == 2 else best
    note = (
      f'{" and ".join(wishes)} cannot be reached on the validation split: the threshold gives precision '
      f'{precisions[best]:.3f} and recall {recalls[best]:.3f}'
    )
    return float(thresholds[best]), note
  first, second = (precisions, recalls) if precision is None else (recalls, precisions)
  order = np.lexsort((second, first, enough))  # the last key counts most
  return float(thresholds[order[-1]]), ''


def thinned(*columns: np.ndarray, most: int = 300) -> np.ndarray:
  """Returns columns side by side, float64[at most `most`, k]: of more rows the first, the last and some between.

  >>> thinned(np.arange(1000), most=3)[:, 0].tolist()
  [0.0, 500.0, 999.0]
  """
  rows = np.stack([np.asarray(column, np.float64) for column in columns], axis=1)
  if len(rows) <= most:
    return rows
  return rows[np.round(np.linspace(0, len(rows) - 1, most)).astype(int)]
