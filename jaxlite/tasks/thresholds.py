"""Where to cut scores, for a wanted precision or recall; and how sure the shares are that were counted there.

A threshold is chosen on validation. What it gives there is the best of many tries, so what it promises is told by the
test split, with an interval.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from jaxlite.tasks.labels import as_array
from jaxlite.tasks.ranking import Ranking, check_wishes, ranking
from jaxlite.tasks.tables import wilson

_SLACK = 1e-12


class Threshold(NamedTuple):
  """A cut: what scores at least `value` is called positive.

  Attributes:
    value: the score.
    precision: the share of what is called positive that is.
    recall: the share of the positives that is found.
    called: weight of what is called positive.
    positives: weight of the positives.
  """

  value: float
  precision: float
  recall: float
  called: float
  positives: float

  @property
  def precision_interval(self) -> tuple[float, float]:
    """The 95 % interval of the precision, of examples that count alike; too narrow where the cut was chosen on them."""
    return wilson(self.precision, self.called)

  @property
  def recall_interval(self) -> tuple[float, float]:
    """The 95 % interval of the recall, likewise."""
    return wilson(self.recall, self.positives)


def threshold_for(
  scores: Any, labels: Any, *, precision: float | None = None, recall: float | None = None, weight: Any = None
) -> Any:
  """Chooses where to cut: for a wanted precision that of the highest recall, for a wanted recall that of the highest
  precision, for both or none that of the best F1.

  Give it a validation split: of the test split it would no longer be a test.

  Args:
    scores: float[N], larger for what is rather positive (probabilities or logits); or float[N, L] of L labels.
    labels: bool or 0 and 1, [N] or [N, L].
    precision: at least so much, in (0, 1].
    recall: likewise.
    weight: float[N], or None.

  Returns:
    A Threshold; of L labels a list of them.

  Raises:
    ValueError: no threshold does it, with the nearest that can be had; no positive, NaN, other shapes.

  >>> cut = threshold_for([0.9, 0.8, 0.7, 0.6, 0.2], [1, 1, 0, 1, 0], recall=0.9)
  >>> cut.value, cut.precision, cut.recall
  (0.6, 0.75, 1.0)
  >>> threshold_for([0.9, 0.8, 0.7], [0, 1, 0], precision=0.9)
  Traceback (most recent call last):
    ...
  ValueError: no threshold gives precision 0.9 here; the nearest gives precision 0.5 and recall 1 (at 0.8): ask for that
  """
  wishes = check_wishes('threshold_for', precision=precision, recall=recall)
  values, truth = as_array(scores, 'scores'), as_array(labels, 'labels')
  if values.shape != truth.shape or values.ndim not in (1, 2) or values.dtype.kind not in 'biuf':
    raise ValueError(
      f'scores and labels are [N] both, or [N, labels] both; got {values.dtype}{list(values.shape)} and '
      f'{truth.dtype}{list(truth.shape)}'
    )
  if truth.dtype.kind not in 'biuf' or not np.isin(truth, (0, 1)).all():
    raise ValueError('labels are 0 or 1; some are neither: scores come first, then labels')
  values = values.astype(np.float64)
  if np.isnan(values).any():
    raise ValueError(f'scores are numbers; example {int(np.argwhere(np.isnan(values))[0][0])} has NaN')
  weights = None if weight is None else _weights(weight, len(values))
  if values.ndim == 1:
    return _chosen(ranking(truth, values, weights), wishes, '')
  return [
    _chosen(ranking(truth[:, label], values[:, label], weights), wishes, f' of label {label}')
    for label in range(values.shape[1])
  ]


def _weights(weight: Any, count: int) -> np.ndarray:
  weights = as_array(weight, 'weight')
  if weights.shape != (count,) or weights.dtype.kind not in 'biuf' or not (weights >= 0).all():
    raise ValueError(f'weights are float[{count}], at least 0; got {weights.dtype}{list(weights.shape)}')
  return weights.astype(np.float64)


def _chosen(ranked: Ranking, wishes: dict[str, float], of: str) -> Threshold:
  if not ranked.positives:
    raise ValueError(f'a threshold needs an example{of} that is positive; there is none')
  called = ranked.hits + ranked.alarms
  found = {'precision': ranked.hits / called, 'recall': ranked.hits / ranked.positives}
  f1 = 2 * ranked.hits / (called + ranked.positives)
  enough = np.ones(len(called), bool)
  for name, wish in wishes.items():
    enough &= found[name] >= wish - _SLACK
  if not enough.any():
    _refuse(ranked, found, f1, wishes, of)
  if len(wishes) == 1:
    (asked,) = wishes
    first, second = (
      found[name] for name in (('recall', 'precision') if asked == 'precision' else ('precision', 'recall'))
    )
  else:
    first, second = f1, found['precision']
  best = int(np.lexsort((second, first, enough))[-1])  # the last key counts most
  shares = float(found['precision'][best]), float(found['recall'][best])
  return Threshold(float(ranked.thresholds[best]), *shares, float(called[best]), ranked.positives)


def _refuse(ranked: Ranking, found: dict[str, np.ndarray], f1: np.ndarray, wishes: dict[str, float], of: str) -> None:
  short = np.sum([np.maximum(0.0, wish - found[name]) for name, wish in wishes.items()], axis=0)
  near = int(np.lexsort((f1, -short))[-1])
  told = ' and '.join(f'{name} {found[name][near]:.4g}' for name in ('precision', 'recall'))
  asked = ' and '.join(f'{name} {wish:g}' for name, wish in wishes.items())
  raise ValueError(
    f'no threshold{of} gives {asked} here; the nearest gives {told} (at {ranked.thresholds[near]:.4g}): ask for that'
  )


def shares_table(title: str, rows: list[tuple[str, str, float, float]]) -> list[list[str]]:
  """Returns a table of shares with their 95 % intervals.

  Args:
    title: of the first column.
    rows: (what it is, what of, share, examples it was counted over).

  >>> shares_table('at 0.5', [('precision', '9 of 10 called', 0.9, 10)])[1]
  ['precision', '9 of 10 called', '90.0 %', '59.6 to 98.2 %']
  """
  body = []
  for name, of, share, total in rows:
    low, high = wilson(share, total) if total > 0 else (0.0, 1.0)
    body.append([name, of, f'{100 * share:.1f} %', f'{100 * low:.1f} to {100 * high:.1f} %'])
  return [[title, 'counted', 'share', '95 % interval'], *body]
