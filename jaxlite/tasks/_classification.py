"""Classification: one class an example."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from jaxlite.errors import whole
from jaxlite.tasks.losses import cross_entropy
from jaxlite.tasks.metrics import classification_metrics
from jaxlite.tasks.task import Facts, Task


def classification(classes: int | None = None, class_names: Sequence[str] | None = None) -> Task:
  """One class an example, labels int[N]."""
  stated = {key: value for key, value in (('classes', classes), ('class_names', class_names)) if value is not None}

  def facts(labels: np.ndarray, given: Mapping[str, Any]) -> Facts:
    known = {**stated, **given}
    names = known.get('class_names')
    count = known.get('classes')
    count = (len(names) if names else int(labels.max()) + 1) if count is None else count
    count = whole(count, 'classes', least=1)
    names = [str(name) for name in (names or range(count))]
    if len(names) != count:
      raise ValueError(f'every class has one name; got {len(names)} names for {count} classes: fix class_names')
    return {**known, 'classes': count, 'class_names': names}

  return Task(
    'classification',
    loss=lambda facts: cross_entropy,
    metrics=lambda facts: classification_metrics(facts['classes']),
    score='accuracy',
    check=_check,
    facts=facts,
    check_facts=_check_facts,
    notes=lambda labels, facts: list(_notes(labels, facts)),
    groups=lambda labels: labels,
  )


def _check(array: Any, where: str) -> np.ndarray:
  array = np.asarray(array)
  if array.ndim == 2 and array.shape[1] == 1:
    raise ValueError(f'labels are [N]; {where} has {list(array.shape)}: use labels[:, 0]')
  if array.ndim != 1:
    fix = 'use labels.argmax(-1) if they are one-hot' if array.ndim == 2 else 'give one integer an example'
    raise ValueError(f'labels are [N]; {where} has {list(array.shape)}: {fix}')
  if not len(array):
    return array.astype(np.int32)
  if array.dtype.kind in 'USO':
    raise ValueError(
      f'labels are integers; {where} has {array.dtype}: use numpy.unique(labels, return_inverse=True)[1]'
    )
  if array.dtype.kind not in 'biu':
    raise ValueError(f'labels are integers; {where} has {array.dtype}: use labels.astype(int) if they are whole')
  low, high = int(array.min()), int(array.max())
  if low < 0 or high >= 1 << 31:
    wrong = int(np.flatnonzero((array < 0) | (array >= 1 << 31))[0])
    raise ValueError(f'labels are 0 .. classes - 1; {where} has {int(array[wrong])} at {wrong}: number the classes')
  return array.astype(np.int32, copy=False)


def _check_facts(labels: np.ndarray, facts: Facts, where: str) -> None:
  classes = facts['classes']
  wrong = np.flatnonzero(labels >= classes)
  if len(wrong):
    value, place = int(labels[wrong[0]]), int(wrong[0])
    fix = f'pass classes={int(labels.max()) + 1} or fix the label'
    raise ValueError(f'labels are 0 .. classes - 1 = {classes - 1}; {where} has {value} at {place}: {fix}')


def _notes(labels: np.ndarray, facts: Facts) -> Iterator[str]:
  names = facts['class_names']
  counts = np.bincount(labels, minlength=len(names))
  missing = [names[index] for index in np.flatnonzero(counts == 0)]
  if missing:
    shown = ', '.join(missing[:8]) + (f' and {len(missing) - 8} more' if len(missing) > 8 else '')
    yield f'train has no example of {shown}: the model cannot learn what it never sees'
  if len(names) < 2:
    yield 'there is one class only: any model is right always'
