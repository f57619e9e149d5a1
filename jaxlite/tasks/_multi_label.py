"""Multi-label classification: any number of labels an example, each there or not."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlite.tasks import figures
from jaxlite.tasks._binary import sigmoid, sigmoid_cross_entropy
from jaxlite.tasks.labels import as_array, names_of, stated
from jaxlite.tasks.metrics import Metrics, means
from jaxlite.tasks.ranking import against, average_precision, check_wishes, choose_threshold, ranking, roc_auc
from jaxlite.tasks.tables import percent, score_table
from jaxlite.tasks.task import Answers, Facts, Figure, Task
from jaxlite.tasks.thresholds import shares_table

_BASE = means()
_MOST = 20


def multi_label(
  names: Sequence[str] | None = None,
  threshold: str | float = 'each',
  recall: float | None = None,
  precision: float | None = None,
) -> Task:
  """Learns which labels an example has; the model returns logits, float[B, labels].

  Args:
    names: one name a label; None numbers them.
    threshold: 'each' chooses a threshold for every label on the validation split, that of its best F1; 'one' a
      common one, that of the best micro F1; a number fixes it.
    recall: at least this recall is wanted, in (0, 1], of every label or, with 'one', of all together; then the
      threshold is that of the highest precision.
    precision: at least this precision is wanted, in (0, 1]; then it is that of the highest recall.

  Returns:
    The Task. Labels are 0 and 1 (any number type, or booleans), [N, labels]. Facts: 'names', 'threshold', 'wanted',
    and once decided 'thresholds' (0.5 before) and 'threshold_note' where a label had no example to go by or a wish
    could not be met. Metrics, by scikit-learn's
    conventions with zero_division=0: 'precision', 'recall' and 'f1' each with '_micro', '_macro' and '_weighted' at
    the thresholds, 'average_precision_macro' (0 for a label without a positive), 'roc_auc_macro' (NaN where a label
    has no positive or no negative), 'exact_match', 'loss' (the mean over labels). The best model is that of the highest
    macro average precision. An output that is NaN counts as wrong.

  Raises:
    ValueError: from `check` and `facts`, labels that are not 0 or 1, or not one name a label; another threshold.

  >>> task = multi_label(['comedy', 'drama'])
  >>> facts = task.facts(task.check([[1, 0], [1, 1]], 'train'), {})
  >>> task.answer(np.array([[3.0, 2.0], [-3.0, -2.0]]), facts)['labels']
  [['comedy', 'drama'], []]
  """
  if not (threshold in ('each', 'one') or (not isinstance(threshold, str) and 0 <= threshold <= 1)):
    raise ValueError(f"multi_label: threshold is 'each', 'one' or a number in [0, 1]; got {threshold!r}")
  wanted = check_wishes('multi_label', recall=recall, precision=precision)
  if wanted and not isinstance(threshold, str):
    raise ValueError(
      f'multi_label: a threshold of {threshold} is fixed and {", ".join(wanted)} wanted: give one of the two'
    )

  def facts(labels: np.ndarray, given: Mapping[str, Any]) -> Facts:
    found = names_of(stated(given, names=names), 'names') or names_of(given, 'target_names')
    found = found or [str(index) for index in range(labels.shape[1])]
    if len(found) != labels.shape[1]:
      raise ValueError(f'every label has one name; got {len(found)} names for {labels.shape[1]} labels: fix names')
    fixed = {} if isinstance(threshold, str) else {'thresholds': [float(threshold)] * len(found)}
    return {'names': found, 'threshold': threshold, 'wanted': wanted, **fixed}

  return Task(
    'multi_label',
    loss=lambda facts: _loss(len(facts['names'])),
    metrics=_metrics,
    score='average_precision_macro',
    distribution=False,
    falls=('loss', 'nan_outputs'),
    check=_check,
    facts=facts,
    check_facts=_check_facts,
    notes=_notes,
    decide=_decide,
    answer=_answer,
    answers=_answers,
    rows=(
      ('test average precision, macro', 'average_precision_macro', 'percent'),
      ('ROC-AUC, macro', 'roc_auc_macro', 'percent'),
      ('F1, macro', 'f1_macro', 'percent'),
      ('F1, micro', 'f1_micro', 'percent'),
      ('all labels right', 'exact_match', 'percent'),
      ('loss', 'loss', '{:.4f}'),
      ('test outputs that are NaN', 'nan_outputs', '{:g}'),
    ),
    curve=('Validation average precision, %', 'average_precision_macro', 'percent'),
    tables=_tables,
    figures=_figures,
  )


def _check(values: Any, where: str) -> np.ndarray:
  array = as_array(values, f'labels of {where}')
  if array.ndim != 2 or 0 in array.shape[1:]:
    raise ValueError(
      f'labels are [N, labels] of 0 and 1; {where} has {list(array.shape)}: use numpy.stack(columns, axis=1)'
    )
  if array.dtype.kind not in 'biuf':
    raise ValueError(f'labels are 0 or 1; {where} has {array.dtype}: write 1 where an example has the label, else 0')
  wrong = (array != 0) & (array != 1)
  if wrong.any():
    place = [int(index) for index in np.argwhere(wrong)[0]]
    raise ValueError(f'labels are 0 or 1; {where} has {array[tuple(place)]} at {place}: fix the label')
  return array.astype(np.float32)


def _check_facts(labels: np.ndarray, facts: Facts, where: str) -> None:
  if labels.shape[1] != len(facts['names']):
    raise ValueError(f'labels of every split are [N, {len(facts["names"])}]; {where} has {list(labels.shape)}')


def _notes(labels: np.ndarray, facts: Facts) -> list[str]:
  notes = []
  for what, missing in (('an example with', labels.max(axis=0) == 0), ('an example without', labels.min(axis=0) == 1)):
    names = [facts['names'][index] for index in np.flatnonzero(missing)]
    if names:
      shown = ', '.join(names[:8]) + (f' and {len(names) - 8} more' if len(names) > 8 else '')
      notes.append(f'train lacks {what} {shown}: the model cannot learn to tell')
  return notes


def _pair(outputs: Any, batch: Mapping[str, Any], labels: int) -> tuple[jax.Array, jax.Array]:
  shape: tuple[Any, ...] = getattr(outputs, 'shape', ())
  if len(shape) != 2 or shape[1] != labels or not jnp.issubdtype(outputs.dtype, jnp.floating):
    got = f'{outputs.dtype}{list(shape)}' if hasattr(outputs, 'dtype') else type(outputs).__name__
    raise ValueError(f'a model of {labels} labels returns logits, float[B, {labels}]; got {got}: fix its last layer')
  targets = jnp.asarray(batch['labels'])
  if targets.shape != shape:
    raise ValueError(f'labels are float{list(shape)} for outputs {list(shape)}; got {list(targets.shape)}')
  return outputs.astype(jnp.promote_types(outputs.dtype, jnp.float32)), targets.astype(jnp.float32)


def _loss(labels: int) -> Callable[[Any, Mapping[str, Any]], jax.Array]:
  return lambda outputs, batch: jnp.mean(sigmoid_cross_entropy(*_pair(outputs, batch, labels)), axis=1)


def _kept(kept: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  weight = np.asarray(kept['weight'], np.float64)
  used = weight > 0
  return np.asarray(kept['labels'])[used] > 0.5, np.asarray(kept['logits'])[used].astype(np.float64), weight[used]


def _metrics(facts: Facts) -> Metrics:
  count = len(facts['names'])
  thresholds = np.asarray(facts.get('thresholds', [0.5] * count), np.float64)

  def keep(outputs: Any, batch: Mapping[str, Any]) -> Any:
    logits, labels = _pair(outputs, batch, count)
    return {'logits': logits, 'labels': labels > 0.5, 'weight': batch.get('weight', jnp.ones(len(labels)))}

  def compute(state: Any, kept: Mapping[str, Any]) -> dict[str, Any]:
    values = _BASE.compute(state)
    labels, logits, weight = _kept(kept)
    nan = np.isnan(logits)
    called = np.where(nan, ~labels, sigmoid(logits) >= thresholds)
    column = weight[:, None]
    hits, found, actual = (np.sum(column * which, axis=0) for which in (called & labels, called, labels))
    ranked = [ranking(labels[:, index], logits[:, index], weight) for index in range(count)]
    precision, auc = np.array([[average_precision(one), roc_auc(one)] for one in ranked]).T
    scores = _scores(hits, found, actual)
    numbers = {
      **{name: value for name, value in scores.items() if not name.endswith('_each')},
      'average_precision_macro': precision.mean(),
      'roc_auc_macro': auc.mean(),
      'exact_match': np.sum(weight * (called == labels).all(axis=1)) / weight.sum(),
      **values,
    }
    if wrong := weight[nan.any(axis=1)].sum():
      numbers['nan_outputs'] = wrong
    arrays = {name: value for name, value in scores.items() if name.endswith('_each')}
    arrays |= {'average_precision_each': precision, 'roc_auc_each': auc, 'positives_each': actual}
    arrays |= {'called_each': found} if (weight == 1).all() else {}  # then shares have an interval
    return {**{name: float(value) for name, value in numbers.items()}, **arrays, 'thresholds': thresholds}

  kinds = [f'{name}_{mean}' for name in ('precision', 'recall', 'f1') for mean in ('micro', 'macro', 'weighted')]
  names = (*kinds, 'average_precision_macro', 'roc_auc_macro', 'exact_match', 'loss')
  return Metrics(names, _BASE.init, _BASE.update, compute, keep)


def _scores(hits: np.ndarray, called: np.ndarray, actual: np.ndarray) -> dict[str, Any]:
  scores: dict[str, Any] = {}
  for name, below in (('precision', called), ('recall', actual), ('f1', (called + actual) / 2)):
    each = _ratio(hits, below)
    scores[f'{name}_each'] = each
    scores[f'{name}_micro'] = _ratio(hits.sum(), below.sum())
    scores[f'{name}_macro'] = each.mean()
    scores[f'{name}_weighted'] = _ratio((each * actual).sum(), actual.sum())
  return scores


def _ratio(above: Any, below: Any) -> Any:
  return np.where(below > 0, above / np.where(below > 0, below, 1), 0.0)


def _decide(kept: Mapping[str, Any], facts: Facts) -> Facts:
  if 'thresholds' in facts and not isinstance(facts['threshold'], str):
    return {}
  labels, logits, weight = _kept(kept)
  proba, count = against(labels, sigmoid(logits)), len(facts['names'])
  if facts['threshold'] == 'one':
    chosen = [choose_threshold(ranking(labels.ravel(), proba.ravel(), np.repeat(weight, count)), **facts['wanted'])]
    names = ['all labels']
  else:
    ranked = [ranking(labels[:, index], proba[:, index], weight) for index in range(count)]
    chosen, names = [choose_threshold(one, **facts['wanted']) for one in ranked], facts['names']
  notes = [f'{name}: {note}' for name, (_, note) in zip(names, chosen, strict=True) if note]
  thresholds = [threshold for threshold, _ in chosen] * (count // len(chosen))
  return {'thresholds': thresholds, **({'threshold_note': '; '.join(notes)} if notes else {})}


def _answer(outputs: np.ndarray, facts: Facts) -> dict[str, Any]:
  proba = sigmoid(outputs)
  called = proba >= np.asarray(facts.get('thresholds', 0.5))
  names = np.asarray(facts['names'])
  return {'labels': [names[row].tolist() for row in called], 'proba': proba}


def _answers(kept: Mapping[str, Any], facts: Facts) -> Answers:
  proba, labels, names = sigmoid(kept['logits']), np.asarray(kept['labels']) > 0.5, facts['names']
  called = proba >= np.asarray(facts.get('thresholds', 0.5))
  right = (called == labels).all(axis=1) & ~np.isnan(proba).any(axis=1)
  off = np.abs(proba - labels)

  def listed(row: np.ndarray) -> str:
    return ', '.join(names[place] for place in np.flatnonzero(row)[:8]) or 'none'

  def told(index: int) -> dict[str, str]:
    place = int(np.nan_to_num(off[index], nan=2.0).argmax())
    share = f'{100 * proba[index, place]:.2g} % for {names[place]}'
    return {'true': listed(labels[index]), 'predicted': listed(called[index]), 'told': share}

  return Answers(np.where(right, 0.0, off.max(axis=1)), right, None, told)


def _tables(values: Mapping[str, Any], facts: Facts) -> list[list[list[str]]]:
  if 'f1_each' not in values:
    return score_table(values)
  f1 = np.asarray(values['f1_each'])
  shown = range(len(f1)) if len(f1) <= _MOST else np.sort(np.argsort(f1, kind='stable')[:_MOST])
  head = ['label', 'examples', 'average precision', 'ROC-AUC', 'precision', 'recall', 'F1', 'threshold']
  shares = ('average_precision_each', 'roc_auc_each', 'precision_each', 'recall_each', 'f1_each')
  body = [
    [
      facts['names'][index],
      f'{values["positives_each"][index]:g}',
      *(percent(values[name][index]) for name in shares),
      f'{values["thresholds"][index]:.4f}',
    ]
    for index in shown
  ]
  tables = [*score_table(values), [head, *body]]
  if 'called_each' in values:
    counted = []
    for index in shown:
      for name, total in (('precision', 'called_each'), ('recall', 'positives_each')):
        share, of = float(values[f'{name}_each'][index]), float(values[total][index])
        counted.append((f'{facts["names"][index]}: {name}', f'{share * of:.0f} of {of:g}', share, of))
    tables.append(shares_table('on test, at its threshold', counted))
  return tables


def _figures(values: Mapping[str, Any], facts: Facts, title: str) -> list[Figure]:
  if 'f1_each' not in values:
    return []
  caption = f'Average precision and F1 of each label by {title} on the test split'
  columns = {'average precision': values['average_precision_each'], 'F1': values['f1_each']}
  return [Figure('labels', caption, lambda: figures.bars(facts['names'], columns, title))]
