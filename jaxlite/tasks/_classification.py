"""Classification: one class an example."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxlite.tasks import figures
from jaxlite.tasks.labels import absent, alike, as_given, check_range, class_labels, imbalance, named_classes, stated
from jaxlite.tasks.losses import cross_entropy
from jaxlite.tasks.metrics import Metrics, classification_metrics
from jaxlite.tasks.tables import MOST, confusion_tables, named_class, score_table
from jaxlite.tasks.task import Answers, Facts, Figure, Task


def classification(
  classes: int | None = None, class_names: Sequence[str] | None = None, top: Sequence[int] = (5,)
) -> Task:
  """Learns which one class an example belongs to; the model returns logits, float[B, classes].

  Args:
    classes: how many classes; None takes the largest training label and one.
    class_names: one name per class; None numbers them.
    top: for each k below the number of classes, top-k accuracy is measured.

  Returns:
    The Task. Labels are int[N]; in a batch they may be float[B, classes], a distribution each. Facts: 'classes',
    'class_names', 'top'. Metrics: see `classification_metrics`. The best model is that of the highest accuracy.

  Raises:
    ValueError: from `check` and `facts`, labels that are no classes.

  >>> task = classification(class_names=['cat', 'dog'])
  >>> labels = task.check([0, 1, 1], 'train')
  >>> facts = task.facts(labels, {})
  >>> task.answer(np.array([[2.0, 1.0]]), facts)['labels'].tolist()
  ['cat']
  """

  def facts(labels: np.ndarray, given: Mapping[str, Any]) -> Facts:
    found = named_classes(labels, stated(given, classes=classes, class_names=class_names))
    return {**found, 'top': [int(k) for k in top]}

  rows = [('test accuracy', 'accuracy', 'percent')]
  rows += [(f'top-{k} accuracy', f'top{k}_accuracy', 'percent') for k in top]
  rows += [('loss', 'loss', '{:.4f}'), ('precision, macro', 'precision_macro', 'percent')]
  rows += [('recall, macro', 'recall_macro', 'percent'), ('F1, macro', 'f1_macro', 'percent')]
  return Task(
    'classification',
    loss=lambda facts: cross_entropy,
    metrics=lambda facts: _metrics(facts, top),
    score='accuracy',
    falls=('loss', 'nan_outputs'),
    check=class_labels,
    facts=facts,
    check_facts=lambda labels, facts, where: check_range(labels, facts['classes'], where),
    notes=_notes,
    doubts=_doubts,
    groups=lambda labels: labels,
    answer=_answer,
    answers=_answers,
    rows=(*rows, ('test outputs that are NaN', 'nan_outputs', '{:g}')),
    interval='accuracy',
    curve=('Validation accuracy, %', 'accuracy', 'percent'),
    tables=_tables,
    figures=_figures,
  )


def _metrics(facts: Facts, top: Sequence[int]) -> Metrics:
  if facts['classes'] < 2:
    only = named_class(facts.get('class_names', ()), 0)
    raise ValueError(
      f'classification tells two classes apart at least; every label is {only!r}: give examples of another class, or '
      'classes=2 where they come later'
    )
  return classification_metrics(facts['classes'], facts.get('top', top))


def softmax(logits: Any) -> np.ndarray:
  """Returns probabilities over the last axis, float32, on the host; logits of inf share what there is.

  >>> softmax([[0.0, 0.0], [float('inf'), 0.0]]).tolist()
  [[0.5, 0.5], [1.0, 0.0]]
  """
  logits = np.asarray(logits).astype(np.float32)
  top = logits.max(axis=-1, keepdims=True)
  with np.errstate(invalid='ignore'):
    shifted = np.where(logits == top, 0, logits - top)  # inf - inf is 0 here
  power = np.exp(np.where(np.isnan(top), np.nan, shifted))
  return (power / power.sum(axis=-1, keepdims=True)).astype(np.float32)


def _notes(labels: np.ndarray, facts: Facts) -> list[str]:
  names = facts['class_names']
  found = [*absent(np.bincount(labels, minlength=facts['classes']), names), *alike(names)]
  return found + (['there is one class only: any model is right always'] if facts['classes'] < 2 else [])


def _doubts(labels: np.ndarray, facts: Facts, score: str) -> list[str]:
  if score not in ('accuracy', 'precision_micro', 'recall_micro', 'f1_micro'):
    return []
  counts = np.bincount(labels, minlength=facts['classes'])
  return imbalance(counts, facts['class_names'], score, 'f1_macro')


def _answer(outputs: np.ndarray, facts: Facts) -> dict[str, Any]:
  outputs = np.asarray(outputs)
  return {'labels': as_given(facts['class_names'])[outputs.argmax(axis=-1)], 'proba': softmax(outputs)}


def _answers(kept: Any, facts: Facts) -> Answers | None:
  if not isinstance(kept, Mapping) or 'spread' not in kept:  # of many classes
    return None
  labels, predicted = np.asarray(kept['labels']), np.asarray(kept['predicted'])
  with np.errstate(all='ignore'):
    sure = 1 / np.asarray(kept['spread'], np.float64)
    own = np.exp(np.asarray(kept['below'], np.float64)) * sure
  right, names = labels == predicted, facts.get('class_names', ())

  def told(index: int) -> dict[str, str]:
    nothing = predicted[index] >= facts['classes']
    said = 'no class: NaN' if nothing else named_class(names, predicted[index])
    known = not nothing and np.isfinite(sure[index])
    share = '' if not known else f'{100 * sure[index]:.0f} % sure, {100 * own[index]:.2g} % for the true class'
    return {'true': named_class(names, labels[index]), 'predicted': said, 'told': share}

  return Answers(np.where(right, 0.0, 1 - own), right, sure, told)


def _tables(values: Mapping[str, Any], facts: Facts) -> list[list[list[str]]]:
  return score_table(values) + confusion_tables(values, facts.get('class_names', ()))


def _figures(values: Mapping[str, Any], facts: Facts, title: str) -> list[Figure]:
  return confusion_figures(values, facts.get('class_names', ()), title, 'test examples')


def confusion_figures(values: Mapping[str, Any], names: Sequence[str], title: str, unit: str) -> list[Figure]:
  """Returns the picture of what is taken for what: the matrix, or of many classes the pairs confused most."""
  if len(values.get('confusion', ())):
    where = '' if unit == 'test examples' else f', {unit}'
    caption = f'Confusion matrix of {title} on the test split{where}'
    return [Figure('confusion', caption, lambda: figures.confusion(values['confusion'], names, title, unit))]
  pairs = np.asarray(values.get('confused', ()))[:MOST]
  if not len(pairs):
    return []
  actual = np.asarray(values['actual_each'])[pairs[:, 0].astype(int)]
  of = int(np.asarray(values['confused_of'])[0])
  caption = (
    f'What {title} confuses most on the test split, as a share of the true class; {len(pairs)} of {of:,} pairs, since '
    f'a matrix of {len(values["actual_each"]):,} classes would not be legible'
  )
  named = [f'{named_class(names, true)} as {named_class(names, taken)}' for true, taken, _ in pairs]
  return [Figure('confused', caption, lambda: figures.bars(named, {'of the class': pairs[:, 2] / actual}, title))]
