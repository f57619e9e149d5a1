"""Cells of a task's tables, as text: shares in percent, a line a class, scores by kind of mean."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

KINDS = (('precision', 'precision'), ('recall', 'recall'), ('f1', 'F1'))
_MEANS = ('micro', 'macro', 'weighted')
MOST = 20  # lines of a table


def percent(share: float, digits: int = 2) -> str:
  """Writes a share.

  >>> percent(0.5), percent(float('nan'))
  ('50.00 %', '-')
  """
  return f'{100 * share:.{digits}f} %' if math.isfinite(share) else '-'


def wilson(share: float, total: float) -> tuple[float, float]:
  """Returns the 95 % interval of a share that was counted over `total` examples.

  References:
    Wilson, Probable inference, the law of succession, and statistical inference, 1927,
    https://doi.org/10.1080/01621459.1927.10502953

  >>> [round(end, 3) for end in wilson(0.9, 100)]
  [0.826, 0.945]
  """
  z = 1.959964
  middle = (share + z * z / (2 * total)) / (1 + z * z / total)
  half = z / (1 + z * z / total) * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
  return middle - half, middle + half


def score_table(values: Mapping[str, Any]) -> list[list[list[str]]]:
  """Returns the table of precision, recall and F1 by kind of mean, or none where they were not measured."""
  body = [
    [label, *(percent(values[f'{name}_{mean}']) for mean in _MEANS)]
    for name, label in KINDS
    if all(f'{name}_{mean}' in values for mean in _MEANS)
  ]
  return [[['', *_MEANS], *body]] if body else []


def class_table(
  matrix: Any, names: Sequence[str], *, iou: bool = False, unit: str = 'examples', most: int = MOST
) -> list[list[str]]:
  """Returns one line per class; of more than `most` classes those with the lowest F1.

  Args:
    matrix: float[C, C], labels in rows.
    names: C names, or none.
    iou: adds the intersection over union.
    unit: what was counted.
    most: how many lines at most.

  Returns:
    Rows of cells.

  >>> class_table([[1, 1], [0, 2]], ['cat', 'dog'])[1]
  ['cat', '2', '100.00 %', '50.00 %', '66.67 %']
  """
  matrix = np.asarray(matrix, np.float64)
  return count_table(np.diag(matrix), matrix.sum(axis=0), matrix.sum(axis=1), names, iou=iou, unit=unit, most=most)


def count_table(
  hits: Any, predicted: Any, actual: Any, names: Sequence[str], *, iou: bool = False, unit: str, most: int = MOST
) -> list[list[str]]:
  """As `class_table`, of what each class counts, float[C]: right predictions, predictions, labels."""
  hits, predicted, actual = (np.asarray(of, np.float64) for of in (hits, predicted, actual))
  f1 = 2 * hits / np.maximum(actual + predicted, 1e-300)
  shown = range(len(hits)) if len(hits) <= most else np.sort(np.argsort(f1, kind='stable')[:most])
  title = 'class' if len(hits) <= most else f'class (the {most} lowest F1 of {len(hits):,})'
  body = []
  for index in shown:
    precision, recall = hits[index] / max(predicted[index], 1e-300), hits[index] / max(actual[index], 1e-300)
    cells = [named_class(names, index), f'{actual[index]:g}', percent(precision), percent(recall), percent(f1[index])]
    union = actual[index] + predicted[index] - hits[index]
    body.append([*cells, *([percent(hits[index] / union if union else math.nan)] if iou else [])])
  return [[title, unit, 'precision', 'recall', 'F1', *(['IoU'] if iou else [])], *body]


def confusion_tables(
  values: Mapping[str, Any], names: Sequence[str], *, iou: bool = False, unit: str = 'examples'
) -> list[list[list[str]]]:
  """Returns the tables of a classifier's classes: a line a class, and of many classes the pairs confused most.

  Args:
    values: what `confusions.class_evidence` gave, among others; without it there is no table.
    names: one a class, or none.
    iou: as in `class_table`.
    unit: what was counted.
  """
  if len(values.get('confusion', ())):
    return [class_table(values['confusion'], names, iou=iou, unit=unit)]
  if 'actual_each' not in values:
    return []
  right, predicted, actual = (values[f'{what}_each'] for what in ('right', 'predicted', 'actual'))
  tables = [count_table(right, predicted, actual, names, iou=iou, unit=unit)]
  pairs, (different, weight) = np.asarray(values['confused'])[:MOST], values['confused_of']
  if not len(pairs):
    return tables
  of = f'the {len(pairs)} heaviest of {int(different):,} pairs' if different > len(pairs) else 'all pairs'
  body = []
  for true, taken, count in pairs:
    share = percent(count / max(values['actual_each'][int(true)], 1e-300))
    body.append([named_class(names, true), named_class(names, taken), f'{count:g}', share, percent(count / weight)])
  return [*tables, [[f'class ({of} confused)', 'taken for', unit, 'of the class', 'of all mistakes'], *body]]


def named_class(names: Sequence[str], index: Any) -> str:
  """Returns the name of a class, or its number where there are no names."""
  return str(names[int(index)]) if len(names) else str(int(index))
