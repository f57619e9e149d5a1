"""How well scores tell classes apart, over every threshold: ROC-AUC, average precision and the two curves.

What belongs here: measures of arrays that anybody has, on the host, in float64, exact (ties are one step), and refused
where they have no meaning. What a Task counts batch by batch stands in `metrics`; thresholds are chosen in `ranking`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from jaxlite.tasks import ranking as ranks
from jaxlite.tasks.labels import as_array

AVERAGES = ('macro', 'weighted', 'micro', None)


class PrecisionRecallCurve(NamedTuple):
  """Precision and recall of what scores at least each threshold.

  Attributes:
    precision: float64[k + 1], the share of what is called positive that is; the last is 1, by convention.
    recall: float64[k + 1], the share of the positives that is found, falling; the last is 0.
    thresholds: float64[k], the distinct scores, rising.
  """

  precision: np.ndarray
  recall: np.ndarray
  thresholds: np.ndarray


class RocCurve(NamedTuple):
  """Found positives against false alarms, for what scores at least each threshold.

  Attributes:
    false_positive_rate: float64[k + 1], rising from 0 to 1.
    true_positive_rate: float64[k + 1], rising from 0 to 1.
    thresholds: float64[k + 1], falling from infinity, above which nothing is positive.
  """

  false_positive_rate: np.ndarray
  true_positive_rate: np.ndarray
  thresholds: np.ndarray


def roc_auc(labels: Any, scores: Any, weight: Any = None, *, average: str | None = 'macro') -> Any:
  """Measures how often a positive outranks a negative, ties counting half: the area under the ROC curve.

  Args:
    labels: bool or 0 and 1, [N]; classes, int[N], where `scores` has a column for each; or 0 and 1, [N, L], where an
      example has several labels.
    scores: float[N], larger for what is rather positive (a logit or a probability); or float[N, C] with a column for
      each class, probabilities (each class against the rest), or for each label.
    weight: float[N], at least 0, or None: all alike.
    average: of several columns: 'macro', their plain mean; 'weighted', by the weight of their positives; 'micro', all
      entries as one; None, float64[C] of each.

  Returns:
    A float in [0, 1]; 0.5 is chance.

  Raises:
    ValueError: NaN; labels that are not of two classes; all examples, or all of a column, of one class; lengths that
      differ; no example with a weight.

  References:
    Hanley and McNeil, The meaning and use of the area under a receiver operating characteristic (ROC) curve, 1982,
    https://doi.org/10.1148/radiology.143.1.7063747

  >>> roc_auc([1, 0, 1, 0], [0.9, 0.5, 0.5, 0.1])
  0.875
  >>> roc_auc([1, 1], [0.9, 0.5])
  Traceback (most recent call last):
    ...
  ValueError: roc_auc compares positives with negatives; all 2 examples with a weight are positive
  """

  def one(name: str, labels: np.ndarray, scores: np.ndarray, weight: np.ndarray) -> float:
    ranked = ranks.ranking(labels, scores, weight)
    _both(name, labels, weight)
    return ranks.roc_auc(ranked)

  return _measured('roc_auc', one, labels, scores, weight, average)


def average_precision(labels: Any, scores: Any, weight: Any = None, *, average: str | None = 'macro') -> Any:
  """Measures precision over recall: the mean of precision at each threshold, by the recall that it gains.

  Args:
    labels, scores, weight, average: as of `roc_auc`.

  Returns:
    A float in (0, 1]; the share of positives is chance.

  Raises:
    ValueError: as of `roc_auc`, but only examples without a positive are refused.

  References:
    Zhu, Recall, precision and average precision, 2004, University of Waterloo

  >>> round(average_precision([1, 0, 1], [0.9, 0.5, 0.4]), 4)
  0.8333
  """

  def one(name: str, labels: np.ndarray, scores: np.ndarray, weight: np.ndarray) -> float:
    _positive(name, labels, weight)
    return ranks.average_precision(ranks.ranking(labels, scores, weight))

  return _measured('average_precision', one, labels, scores, weight, average)


def precision_recall_curve(labels: Any, scores: Any, weight: Any = None) -> PrecisionRecallCurve:
  """Returns precision and recall at every threshold.

  Args:
    labels: bool or 0 and 1, [N].
    scores: float[N], larger for what is rather positive.
    weight: float[N], at least 0, or None.

  Raises:
    ValueError: NaN, lengths that differ, labels that are not of two classes, no positive example.

  >>> precision, recall, thresholds = precision_recall_curve([0, 1, 1], [0.1, 0.4, 0.4])
  >>> thresholds.tolist(), recall.tolist()
  ([0.1, 0.4], [1.0, 1.0, 0.0])
  """
  labels, scores, weight = columns('precision_recall_curve', labels, scores, weight)
  _positive('precision_recall_curve', labels, weight)
  ranked = ranks.ranking(labels, scores, weight)
  precision, recall = ranked.hits / (ranked.hits + ranked.alarms), ranked.hits / ranked.positives
  return PrecisionRecallCurve(np.append(precision[::-1], 1.0), np.append(recall[::-1], 0.0), ranked.thresholds[::-1])


def roc_curve(labels: Any, scores: Any, weight: Any = None) -> RocCurve:
  """Returns found positives and false alarms at every threshold; no point is left out.

  Args:
    labels, scores, weight: as of `precision_recall_curve`.

  Raises:
    ValueError: NaN, lengths that differ, labels that are not of two classes, or all of one.

  >>> roc_curve([0, 1, 1], [0.1, 0.4, 0.4]).true_positive_rate.tolist()
  [0.0, 1.0, 1.0]
  """
  labels, scores, weight = columns('roc_curve', labels, scores, weight)
  _both('roc_curve', labels, weight)
  ranked = ranks.ranking(labels, scores, weight)
  return RocCurve(
    np.insert(ranked.alarms / ranked.negatives, 0, 0.0),
    np.insert(ranked.hits / ranked.positives, 0, 0.0),
    np.insert(ranked.thresholds, 0, np.inf),
  )


def columns(name: str, labels: Any, scores: Any, weight: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns labels (bool[N]), scores and weight (float64[N]) of two classes, checked; `name` asks for them."""
  labels, scores = as_array(labels, f'labels of {name}'), numbers(name, 'scores', scores)
  labels = labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels
  scores = scores[:, 0] if scores.ndim == 2 and scores.shape[1] == 1 else scores
  if labels.ndim != 1 or scores.shape != labels.shape:
    shapes = f'labels {list(labels.shape)} and scores {list(scores.shape)}'
    raise ValueError(f'{name} takes one label and one score an example, both [N]; got {shapes}')
  return truths(name, labels), scores, weights(name, weight, len(labels))


def numbers(name: str, what: str, values: Any) -> np.ndarray:
  """Returns values as float64, or raises where they are no numbers, or NaN."""
  array = as_array(values, f'{what} of {name}')
  if array.dtype.kind not in 'biuf' and array.dtype.name != 'bfloat16' and not array.dtype.name.startswith('float8'):
    raise ValueError(f'{what} of {name} are numbers; got {array.dtype}')
  array = array.astype(np.float64)
  if np.isnan(array).any():
    at = ', '.join(map(str, np.argwhere(np.isnan(array))[0]))
    raise ValueError(f'{name}: NaN has no place in an order; {int(np.isnan(array).sum())} of the {what} are NaN, the '
                     f'first at [{at}]')  # fmt: skip
  return array


def weights(name: str, values: Any, count: int) -> np.ndarray:
  """Returns weights as float64[count]; ones where None is given."""
  array = np.ones(count) if values is None else numbers(name, 'weights', values)
  if array.shape != (count,):
    raise ValueError(f'{name} takes one weight an example, [{count}]; got {list(array.shape)}')
  if (array < 0).any() or not np.isfinite(array).all():
    raise ValueError(f'{name}: a weight is at least 0 and finite; got {array[(array < 0) | ~np.isfinite(array)][0]}')
  if not (array > 0).any():
    raise ValueError(f'{name} needs an example: {"there is none" if not count else f"all {count} have weight 0"}')
  return array


def truths(name: str, labels: np.ndarray) -> np.ndarray:
  """Returns labels as bool; raises where they are anything but 0 and 1."""
  fix = "encode them first, such as labels == 'yes'"
  if labels.dtype.kind not in 'biuf':
    raise ValueError(f'{name} takes labels that are 0 and 1, or booleans; got {labels.dtype}: {fix}')
  strange = labels[(labels != 0) & (labels != 1)]
  if strange.size:
    raise ValueError(f'{name} takes labels that are 0 and 1, or booleans; got {strange.flat[0]}: use labels > 0 where '
                     'they are -1 and 1, and scores [N, C] where they are classes')  # fmt: skip
  return labels.astype(bool)


def _positive(name: str, labels: np.ndarray, weight: np.ndarray) -> None:
  used = weight > 0
  if not labels[used].any():
    raise ValueError(f'{name} asks how positives are found; none of the {int(used.sum())} examples with a weight is '
                     'positive')  # fmt: skip


def _both(name: str, labels: np.ndarray, weight: np.ndarray) -> None:
  used = labels[weight > 0]
  if used.all() or not used.any():
    kind = 'positive' if used.all() else 'negative'
    raise ValueError(f'{name} compares positives with negatives; all {len(used)} examples with a weight are {kind}')


def _measured(
  name: str, one: Callable[..., float], labels: Any, scores: Any, weight: Any, average: str | None
) -> float | np.ndarray:
  """A measure of two classes, of each column where there are several."""
  if average not in AVERAGES:
    raise ValueError(f'{name}: average is one of {", ".join(map(repr, AVERAGES))}; got {average!r}')
  table = numbers(name, 'scores', scores)
  if table.ndim != 2 or table.shape[1] == 1:
    return one(name, *columns(name, labels, table, weight))
  labels = as_array(labels, f'labels of {name}')
  labels = labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels
  if labels.ndim == 1 and len(labels) == len(table):
    truth = _one_hot(name, labels, table)
  elif labels.shape == table.shape:
    truth = truths(name, labels)
  else:
    shapes = f'labels {list(labels.shape)} and scores {list(table.shape)}'
    raise ValueError(f'{name} takes scores [N, C] with labels [N] or [N, C]; got {shapes}')
  weight = weights(name, weight, len(table))
  if average == 'micro':
    return one(name, truth.ravel(), table.ravel(), np.repeat(weight, table.shape[1]))
  found = np.array([one(f'{name} of column {c}', truth[:, c], table[:, c], weight) for c in range(table.shape[1])])
  if average is None:
    return found
  return float(np.average(found, weights=weight @ truth if average == 'weighted' else None))


def _one_hot(name: str, labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
  """Which class each example is of, bool[N, C]."""
  classes = scores.shape[1]
  if labels.dtype.kind not in 'biu' or (labels.size and (labels.min() < 0 or labels.max() >= classes)):
    got = labels.dtype if labels.dtype.kind not in 'biu' else f'{labels.min()} to {labels.max()}'
    raise ValueError(f'{name}: with scores [N, {classes}] labels are classes from 0 to {classes - 1}; got {got}')
  check_shares(name, scores)
  return labels[:, None] == np.arange(classes)


def check_shares(name: str, scores: np.ndarray) -> None:
  """Raises where rows are no probabilities: their order over examples would be that of something else."""
  if (scores < 0).any() or not np.allclose(scores.sum(-1), 1, atol=1e-3):
    raise ValueError(f'{name}: scores of classes are probabilities, whose rows sum to 1; these are not: use '
                     'jax.nn.softmax(logits)')  # fmt: skip
