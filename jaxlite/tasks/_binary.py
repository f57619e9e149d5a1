"""Binary classification: is it or is it not, by one score and a threshold that validation chooses."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlite.tasks import figures
from jaxlite.tasks.labels import absent, as_array, as_given, class_labels, imbalance, names_of, stated
from jaxlite.tasks.metrics import Metrics, means
from jaxlite.tasks.ranking import (
  against,
  average_precision,
  check_wishes,
  choose_threshold,
  ranking,
  roc_auc,
  thinned,
)
from jaxlite.tasks.tables import class_table
from jaxlite.tasks.task import Answers, Facts, Figure, Task
from jaxlite.tasks.thresholds import shares_table

_BASE = means()


def binary(
  positive: str | int | None = None,
  class_names: Sequence[str] | None = None,
  recall: float | None = None,
  precision: float | None = None,
) -> Task:
  """Learns which of two classes an example belongs to; the model returns one logit, float[B] or float[B, 1].

  Two logits, float[B, 2], serve too: their difference is the one. The threshold above which an example is called
  positive is chosen on the validation split after training, and saved with the model: that of the best F1, or for a
  wanted recall that of the highest precision, or for a wanted precision that of the highest recall.

  Args:
    positive: which class is looked for, by name or number; None takes class 1.
    class_names: the names of class 0 and class 1. Labels that are text are these names.
    recall: at least this recall is wanted, in (0, 1].
    precision: at least this precision is wanted, in (0, 1].

  Returns:
    The Task. Labels are 0 and 1, booleans, or names. Facts: 'class_names', 'positive', 'wanted', and once decided
    'threshold' (0.5 before) and, where a wish could not be met, 'threshold_note'. Metrics: 'average_precision',
    'roc_auc', 'accuracy', 'precision', 'recall' and 'f1' at the threshold, 'positive_share', 'loss'. The best model is
    that of the highest average precision. An output that is NaN counts as wrong.

  Raises:
    ValueError: a wish that is no share; from `check` and `facts`, labels that are not of two classes.

  References:
    Davis and Goadrich, The relationship between Precision-Recall and ROC curves, 2006,
    https://doi.org/10.1145/1143844.1143874

  >>> task = binary(class_names=['ham', 'spam'])
  >>> facts = task.facts(task.check(['ham', 'spam'], 'train'), {})
  >>> task.answer(np.array([3.0, -3.0]), facts)['labels'].tolist()
  ['spam', 'ham']
  """
  wanted = check_wishes('binary', recall=recall, precision=precision)
  if class_names is not None and len(class_names) != 2:
    raise ValueError(f'binary has two classes; got {len(class_names)} class_names: use classification()')

  def facts(labels: np.ndarray, given: Mapping[str, Any]) -> Facts:
    said = stated(given, class_names=class_names)
    names = names_of(said, 'class_names') or ['0', '1']
    if len(names) != 2 or said.get('classes') not in (None, 2):
      raise ValueError(f'binary has two classes; the data have {max(len(names), said.get("classes") or 0)}: '
                       'use classification()')  # fmt: skip
    return {'class_names': names, 'positive': _which(positive, names), 'wanted': wanted}

  return Task(
    'binary',
    loss=lambda facts: _loss(facts['positive']),
    metrics=_metrics,
    score='average_precision',
    distribution=False,
    falls=('loss', 'nan_outputs'),
    check=functools.partial(_check, names=None if class_names is None else list(map(str, class_names))),
    facts=facts,
    check_facts=_check_facts,
    notes=lambda labels, facts: absent(np.bincount(labels, minlength=2), facts['class_names']),
    doubts=lambda labels, facts, score: (
      imbalance(np.bincount(labels, minlength=2), facts['class_names'], score, 'average_precision')
      if score == 'accuracy'
      else ()
    ),
    groups=lambda labels: labels,
    decide=_decide,
    answer=_answer,
    answers=_answers,
    rows=(
      ('test average precision', 'average_precision', 'percent'),
      ('ROC-AUC', 'roc_auc', 'percent'),
      ('precision at the threshold', 'precision', 'percent'),
      ('recall at the threshold', 'recall', 'percent'),
      ('F1 at the threshold', 'f1', 'percent'),
      ('accuracy', 'accuracy', 'percent'),
      ('share of positives', 'positive_share', 'percent'),
      ('threshold', 'threshold', '{:.4f}'),
      ('loss', 'loss', '{:.4f}'),
      ('test outputs that are NaN', 'nan_outputs', '{:g}'),
    ),
    curve=('Validation average precision, %', 'average_precision', 'percent'),
    tables=_tables,
    figures=_figures,
  )


def sigmoid(logits: Any) -> np.ndarray:
  """Returns probabilities, float64, on the host, without overflow.

  >>> sigmoid([0.0, -1000.0]).tolist()
  [0.5, 0.0]
  """
  logits = np.asarray(logits).astype(np.float64)
  small = np.exp(-np.abs(logits))
  return np.where(logits >= 0, 1, small) / (1 + small)


def sigmoid_cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
  """Returns the cross-entropy of sigmoid(logits) against targets in [0, 1], in nats; NaN for other targets.

  Args:
    logits: float[...], at least float32.
    targets: float[...], the shares of the positive class.
  """
  zero = jnp.zeros_like(logits)
  yes = jnp.where(targets > 0, targets * jax.nn.softplus(jnp.where(targets > 0, -logits, zero)), zero)
  no = jnp.where(targets < 1, (1 - targets) * jax.nn.softplus(jnp.where(targets < 1, logits, zero)), zero)
  return jnp.where((targets >= 0) & (targets <= 1), yes + no, jnp.nan)


def _which(positive: str | int | None, names: list[str]) -> int:
  if positive is None:
    return 1
  if str(positive) in names:
    return names.index(str(positive))
  if not isinstance(positive, str) and int(positive) in (0, 1):
    return int(positive)
  raise ValueError(f'binary: positive is one of the classes {", ".join(names)}; got {positive!r}')


def _check(values: Any, where: str, names: list[str] | None) -> np.ndarray:
  array = as_array(values, f'labels of {where}')
  if array.dtype.kind in 'USO' and array.ndim == 1:
    text = array.astype(str)
    if names is None:
      found = np.unique(text)
      shown = ', '.join(map(repr, found[:4].tolist())) + (', ...' if len(found) > 4 else '')
      raise ValueError(f'labels of {where} are text ({shown}): pass class_names=[the other, the one looked for]')
    wrong = np.flatnonzero(~np.isin(text, names))
    if len(wrong):
      raise ValueError(f'labels are {names[0]!r} or {names[1]!r}; {where} has {str(text[wrong[0]])!r} at {wrong[0]}')
    return (text == names[1]).astype(np.int32)
  if array.dtype.kind == 'f' and array.ndim == 1 and np.isin(array, (0, 1)).all():
    array = array.astype(np.int32)
  return class_labels(array, where)


def _check_facts(labels: np.ndarray, facts: Facts, where: str) -> None:
  wrong = np.flatnonzero(labels > 1)
  if len(wrong):
    place = int(wrong[0])
    raise ValueError(f'labels are 0 or 1; {where} has {int(labels[place])} at {place}: use classification() for more')


def _logit(outputs: Any, positive: int) -> Any:
  """One logit an example, at least float32, from [B], [B, 1] or [B, 2]."""
  shape = getattr(outputs, 'shape', None)
  fits = shape is not None and (len(shape) == 1 or (len(shape) == 2 and shape[1] in (1, 2)))
  if not fits or not jnp.issubdtype(outputs.dtype, jnp.floating):
    got = f'{outputs.dtype}{list(shape)}' if shape is not None else type(outputs).__name__
    raise ValueError(f'a binary classifier returns a logit, float[B] or float[B, 1] (or two, float[B, 2]); got {got}')
  outputs = outputs.astype(jnp.promote_types(outputs.dtype, jnp.float32))
  if outputs.ndim == 2 and outputs.shape[1] == 2:
    return outputs[:, positive] - outputs[:, 1 - positive]
  return outputs.reshape(outputs.shape[0])


def _targets(batch: Mapping[str, Any], size: int, positive: int) -> jax.Array:
  """The share of the positive class, float[B]: 0, 1, or between where a batch mixes examples; NaN for no class."""
  labels = jnp.asarray(batch['labels'])
  if labels.shape == (size, 2) and jnp.issubdtype(labels.dtype, jnp.floating):
    return labels[:, positive].astype(jnp.float32)
  if labels.shape != (size,):
    raise ValueError(f'labels are int[{size}] for {size} outputs; got {labels.dtype}{list(labels.shape)}')
  labels = labels.astype(jnp.float32)
  known = (labels >= 0) & (labels <= 1)
  return jnp.where(known, labels if positive else 1 - labels, jnp.nan)


def _loss(positive: int) -> Callable[[Any, Mapping[str, Any]], jax.Array]:
  def loss(outputs: Any, batch: Mapping[str, Any]) -> jax.Array:
    logit = _logit(outputs, positive)
    return sigmoid_cross_entropy(logit, _targets(batch, len(logit), positive))

  return loss


@functools.cache  # the same function for the same class: what is compiled for it is compiled once
def _keep(positive: int) -> Callable[[Any, Mapping[str, Any]], Any]:
  def keep(outputs: Any, batch: Mapping[str, Any]) -> Any:
    logit = _logit(outputs, positive)
    weight = batch.get('weight', jnp.ones(len(logit)))
    return {'logit': logit, 'target': _targets(batch, len(logit), positive), 'weight': weight}

  return keep


def counts_at(labels: np.ndarray, proba: np.ndarray, weight: np.ndarray, threshold: float) -> np.ndarray:
  """Returns float64[2, 2], true class in rows, of what is called positive at a threshold; NaN is called wrong."""
  called = np.where(np.isnan(proba), ~labels, proba >= threshold)
  return np.array([[weight[(labels == row) & (called == column)].sum() for column in (0, 1)] for row in (0, 1)])


def scores_of(matrix: np.ndarray) -> dict[str, float]:
  """Returns precision, recall and F1 of float64[2, 2]; 0 where there is nothing to divide by."""
  hits, called, actual = matrix[1, 1], matrix[:, 1].sum(), matrix[1].sum()
  return {
    'precision': float(hits / called) if called else 0.0,
    'recall': float(hits / actual) if actual else 0.0,
    'f1': float(2 * hits / (called + actual)) if called + actual else 0.0,
  }


def _kept(kept: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  weight = np.asarray(kept['weight'], np.float64)
  used = weight > 0
  target = np.asarray(kept['target'], np.float64)[used]
  if np.isnan(target).any():
    raise ValueError('labels are 0 or 1; some are neither: check the data')
  return target > 0.5, np.asarray(kept['logit'])[used].astype(np.float64), weight[used]


def _metrics(facts: Facts) -> Metrics:
  threshold = facts.get('threshold', 0.5)

  def compute(state: Any, kept: Mapping[str, Any]) -> dict[str, Any]:
    values = _BASE.compute(state)
    labels, logit, weight = _kept(kept)
    ranked = ranking(labels, logit, weight)
    matrix = counts_at(labels, sigmoid(logit), weight, threshold)
    found = {
      'average_precision': average_precision(ranked),
      'roc_auc': roc_auc(ranked),
      'accuracy': float(np.trace(matrix) / matrix.sum()),
      **scores_of(matrix),
      'positive_share': float(matrix[1].sum() / matrix.sum()),
      'threshold': float(threshold),
      **values,
    }
    if nan := weight[np.isnan(logit)].sum():
      found['nan_outputs'] = float(nan)
    hits, alarms = ranked.hits, ranked.alarms
    recall = hits / max(ranked.positives, 1e-300)
    rates = np.insert(alarms / max(ranked.negatives, 1e-300), 0, 0), np.insert(recall, 0, 0)
    curves = {'precision_recall': thinned(recall, hits / (hits + alarms)), 'roc': thinned(*rates)}
    alike = {'counts_alike': np.ones(1)} if (weight == 1).all() else {}  # then shares have an interval
    return {**found, 'confusion': matrix, **curves, **alike}

  names = ('average_precision', 'roc_auc', 'accuracy', 'precision', 'recall', 'f1', 'positive_share', 'threshold')
  return Metrics((*names, 'loss'), _BASE.init, _BASE.update, compute, _keep(facts['positive']))


def _decide(kept: Mapping[str, Any], facts: Facts) -> Facts:
  labels, logit, weight = _kept(kept)
  threshold, note = choose_threshold(
    ranking(labels, against(labels, sigmoid(logit)), weight), **facts.get('wanted', {})
  )
  return {'threshold': threshold, **({'threshold_note': note} if note else {})}


def _answer(outputs: np.ndarray, facts: Facts) -> dict[str, Any]:
  proba = sigmoid(np.asarray(_logit(np.asarray(outputs), facts['positive'])))
  positive = facts['positive']
  index = np.where(proba >= facts.get('threshold', 0.5), positive, 1 - positive)
  return {'labels': as_given(facts['class_names'])[index], 'proba': proba}


def _answers(kept: Mapping[str, Any], facts: Facts) -> Answers:
  proba, target = sigmoid(kept['logit']), np.asarray(kept['target'], np.float64)
  called, true = proba >= facts.get('threshold', 0.5), target > 0.5
  right = np.where(np.isnan(proba), False, called == true)
  names = _names(facts)

  def told(index: int) -> dict[str, str]:
    share = f'{100 * proba[index]:.2g} % for {names[1]}'
    return {'true': names[int(true[index])], 'predicted': names[int(called[index])], 'told': share}

  # By the threshold, not by one half: nearer to it is less wrong.
  wrong = np.where(right, 0.0, np.abs(proba - true))
  return Answers(wrong, right, np.where(called, proba, 1 - proba), told)


def _names(facts: Facts) -> list[str]:
  """The other class first, as the confusion matrix has it."""
  names = facts['class_names']
  return [names[1 - facts['positive']], names[facts['positive']]]


def _tables(values: Mapping[str, Any], facts: Facts) -> list[list[list[str]]]:
  if 'confusion' not in values:
    return []
  matrix = np.asarray(values['confusion'], np.float64)
  tables = [class_table(matrix, _names(facts))]
  if 'counts_alike' in values:
    hits, called, actual = matrix[1, 1], matrix[:, 1].sum(), matrix[1].sum()
    shares = [
      ('precision', f'{hits:g} of {called:g} called {_names(facts)[1]}', values['precision'], called),
      ('recall', f'{hits:g} of {actual:g} that are', values['recall'], actual),
    ]
    tables.append(shares_table(f'on test, at the threshold {values["threshold"]:.4g}', shares))
  return tables


def _figures(values: Mapping[str, Any], facts: Facts, title: str) -> list[Figure]:
  if 'confusion' not in values:
    return []
  matrix, name = np.asarray(values['confusion'], np.float64), _names(facts)[1]
  chosen = values['recall'], values['precision']
  alarms = matrix[0, 1] / max(matrix[0].sum(), 1e-300), values['recall']
  words = f'at the threshold {values["threshold"]:.4g}'
  areas = f'average precision {values["average_precision"]:.4f}', f'area {values["roc_auc"]:.4f}'
  return [
    Figure(
      'precision-recall',
      f'Precision over recall of {name} by {title} on the test split; the point is the threshold {words[17:]}',
      lambda: figures.curve(values['precision_recall'], title, areas[0], 'recall', 'precision', chosen),
    ),
    Figure(
      'roc',
      f'ROC of {title} on the test split',
      lambda: figures.curve(values['roc'], title, areas[1], 'false alarms of all negatives', 'recall', alarms),
    ),
    Figure(
      'confusion',
      f'Confusion matrix of {title} on the test split, {words}',
      lambda: figures.confusion(matrix, _names(facts), title),
    ),
  ]
