"""A class at every position: segmentation of pictures, tagging of sequences."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlite.tasks._classification import confusion_figures, softmax
from jaxlite.tasks.confusions import DENSE, add_mistakes, by_class, class_evidence, predictions
from jaxlite.tasks.counting import PLACES, carry, count_pairs, count_places, number, position_weight, with_weight
from jaxlite.tasks.labels import absent, check_range, imbalance, named_classes, position_labels, stated
from jaxlite.tasks.metrics import Metrics, means
from jaxlite.tasks.positions import check_positions, position_cross_entropy, positions, unlabeled
from jaxlite.tasks.tables import confusion_tables
from jaxlite.tasks.task import Facts, Figure, Task

_BASE = means()


class PositionsState(NamedTuple):
  """Counts so far, in digits (see `counting`).

  Attributes:
    confusion: uint32[5, C + 1, C + 1], by label and predicted class; the last index is 'no class'. Above
      `confusions.DENSE` classes uint32[5, 3, C + 1]: right predictions, predictions and labels of each class.
    loss: the state of `means()`.
  """

  confusion: jax.Array
  loss: Any


def segmentation(classes: int | None = None, class_names: Sequence[str] | None = None) -> Task:
  """Learns the class of every pixel; the model returns logits, float[B, ..., classes].

  Every labeled position counts alike: an example's loss is the mean over its own, its weight their number.

  Args:
    classes: how many classes; None takes the largest training label and one.
    class_names: one name per class; None numbers them.

  Returns:
    The Task. Labels are int[N, ...], -1 where a position does not count. Facts: 'classes', 'class_names'. Metrics, over
    positions: 'accuracy', 'mean_iou', 'f1_macro', 'loss'. A class that neither the labels nor the predictions of a
    split have is left out of the means, as scikit-learn's `jaccard_score(average='macro')` does; one that has labels
    and is never predicted counts 0. The best model is that of the highest mean IoU. `answer` gives the class of every
    position, int32, and 'proba'.

  Raises:
    ValueError: from `check` and `facts`, labels that are no classes.

  References:
    Everingham et al., The PASCAL Visual Object Classes (VOC) Challenge, 2010, https://doi.org/10.1007/s11263-009-0275-4

  >>> task = segmentation(class_names=['sky', 'sea'])
  >>> facts = task.facts(task.check([[[0, 1], [1, -1]]], 'train'), {})
  >>> task.answer(np.array([[[[2.0, 1.0], [0.0, 1.0]]]]), facts)['labels'].tolist()
  [[[0, 1]]]
  """
  return _task('segmentation', classes, class_names, 'mean_iou', 'pixel', '[N, ...]', lambda index, names: index)


def sequence_labels(classes: int | None = None, class_names: Sequence[str] | None = None) -> Task:
  """Learns a class for every position of a sequence; the model returns logits, float[B, T, classes].

  As `segmentation`, with labels int[N, T]; the best model is that of the highest macro F1, and `answer` gives names.

  Args:
    classes: how many classes; None takes the largest training label and one.
    class_names: one name per class; None numbers them.

  Returns:
    The Task.

  Raises:
    ValueError: as `segmentation`.

  >>> task = sequence_labels(class_names=['other', 'name'])
  >>> facts = task.facts(task.check([[0, 1, -1]], 'train'), {})
  >>> task.answer(np.array([[[2.0, 1.0], [0.0, 1.0]]]), facts)['labels'].tolist()
  [['other', 'name']]
  """
  return _task(
    'sequence_labels',
    classes,
    class_names,
    'f1_macro',
    'token',
    '[N, T]',
    lambda index, names: np.asarray(names)[index],
  )


def _task(
  name: str, classes: int | None, class_names: Sequence[str] | None, score: str, unit: str, shape: str, write: Any
) -> Task:
  def facts(labels: np.ndarray, given: Mapping[str, Any]) -> Facts:
    return named_classes(labels, stated(given, classes=classes, class_names=class_names))

  def notes(labels: np.ndarray, facts: Facts) -> list[str]:
    counts = np.bincount(labels[labels >= 0], minlength=facts['classes'])
    return [*absent(counts, facts['class_names'], unit), *unlabeled(labels, unit)]

  def doubts(labels: np.ndarray, facts: Facts, metric: str) -> list[str]:
    if metric != 'accuracy':
      return []
    counts = np.bincount(labels[labels >= 0], minlength=facts['classes'])
    return imbalance(counts, facts['class_names'], metric, score, f'{unit}s')

  def answer(outputs: np.ndarray, facts: Facts) -> dict[str, Any]:
    index = np.asarray(outputs).argmax(axis=-1).astype(np.int32)
    return {'labels': write(index, facts['class_names']), 'proba': softmax(outputs)}

  return Task(
    name,
    loss=lambda facts: (
      lambda outputs, batch: position_cross_entropy(*check_positions(outputs, batch, facts['classes']))
    ),
    metrics=lambda facts: position_metrics(facts['classes']),
    score=score,
    falls=('loss', 'nan_outputs'),
    check=lambda labels, where: position_labels(labels, where, shape),
    facts=facts,
    check_facts=lambda labels, facts, where: check_range(labels, facts['classes'], where),
    notes=notes,
    doubts=doubts,
    weight=positions,
    answer=answer,
    rows=(
      ('test mean IoU', 'mean_iou', 'percent'),
      (f'{unit}s right', 'accuracy', 'percent'),
      ('F1, macro', 'f1_macro', 'percent'),
      (f'loss a {unit}', 'loss', '{:.4f}'),
      (f'test {unit}s whose outputs are NaN', 'nan_outputs', '{:g}'),
    ),
    curve=('Validation mean IoU, %', 'mean_iou', 'percent'),
    tables=functools.partial(_tables, unit=f'{unit}s'),
    figures=functools.partial(_figures, unit=f'test {unit}s'),
  )


def position_metrics(classes: int) -> Metrics:
  """Accuracy, IoU and F1 over positions, counted exactly, any number of them a batch.

  Args:
    classes: how many.

  Returns:
    Metrics. `compute` gives 'accuracy', 'mean_iou', 'f1_macro', 'loss', under 'iou_each' float64[classes] (NaN for a
    class that nobody has), and under 'confusion' float64[classes, classes], labels in rows (above 256 classes what
    `confusions.class_evidence` gives instead). A position with a NaN among its logits is predicted as no class, and
    counted as 'nan_outputs'.

  >>> metric = position_metrics(2)
  >>> batch = {'labels': jnp.array([[0, 1, -1]])}
  >>> outputs = jnp.array([[[1.0, 0], [1, 0], [0, 1]]])
  >>> values = metric.compute(jax.jit(metric.update)(metric.init(), outputs, batch, jnp.zeros(1)))
  >>> values['accuracy'], values['mean_iou']
  (0.5, 0.25)
  """

  def init() -> PositionsState:
    rows = classes + 1 if classes <= DENSE else 3
    return PositionsState(jnp.zeros((PLACES, rows, classes + 1), jnp.uint32), _BASE.init())

  def each(outputs: Any, batch: Mapping[str, Any]) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Label, prediction and weight of every position, [B, P]; `classes` is no class."""
    logits, labels = check_positions(outputs, batch, classes)
    weight = position_weight(labels, with_weight(batch, labels))
    place, nan = predictions(logits)
    return jnp.where((labels >= 0) & (labels < classes), labels, classes), jnp.where(nan, classes, place), weight

  def update(state: PositionsState, outputs: Any, batch: Mapping[str, Any], loss: Any) -> PositionsState:
    labels, predicted, weight = (array.reshape(-1) for array in each(outputs, batch))
    if classes <= DENSE:
      counts = count_pairs(weight, labels, predicted, classes + 1)
    else:
      three = (jnp.where(labels == predicted, weight, 0), labels), (weight, predicted), (weight, labels)
      counts = jnp.stack([count_places(*one, classes + 1) for one in three], axis=1)
    batch = with_weight(batch, check_positions(outputs, batch, classes)[1])
    return PositionsState(carry(state.confusion + counts), _BASE.update(state.loss, outputs, batch, loss))

  def keep(outputs: Any, batch: Mapping[str, Any]) -> dict[str, jax.Array]:
    return dict(zip(('labels', 'predicted', 'each'), each(outputs, batch), strict=True))

  def merge(so_far: Any, kept: Mapping[str, np.ndarray]) -> Any:
    return add_mistakes(so_far, kept['labels'], kept['predicted'], kept['each'], classes)

  def compute(state: PositionsState, kept: Any = None) -> dict[str, Any]:
    loss = _BASE.compute(state.loss)['loss']
    counts = number(state.confusion)
    hits, called, actual = by_class(counts, classes)
    total = actual.sum()
    if outside := actual[classes]:
      raise ValueError(f'labels are in [0, {classes}); the weight of those outside is {outside:g}: check the data')
    nan = called[classes]
    hits, called, actual = hits[:-1], called[:-1], actual[:-1]
    some = actual + called > 0
    iou = np.full(classes, np.nan)
    iou[some] = hits[some] / (actual + called - hits)[some]
    values = {
      'accuracy': hits.sum() / total,
      'mean_iou': iou[some].mean(),
      'f1_macro': (2 * hits[some] / (actual + called)[some]).mean(),
      'loss': loss,
    }
    if nan:
      values['nan_outputs'] = nan
    numbers = {name: float(value) for name, value in values.items()}
    return {**numbers, 'iou_each': iou, **class_evidence(counts, classes, kept)}

  names = ('accuracy', 'mean_iou', 'f1_macro', 'loss')
  if classes <= DENSE:
    return Metrics(names, init, update, compute)
  return Metrics(names, init, update, compute, keep, merge)


def _tables(values: Mapping[str, Any], facts: Facts, unit: str) -> list[list[list[str]]]:
  return confusion_tables(values, facts['class_names'], iou=True, unit=unit)


def _figures(values: Mapping[str, Any], facts: Facts, title: str, unit: str) -> list[Figure]:
  return confusion_figures(values, facts['class_names'], title, unit)
