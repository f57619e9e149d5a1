"""Metrics: accumulated on the device batch by batch, computed once on the host in float64.

A metric is three pure functions; its state holds arrays only, so it travels through jit, scan and checkpoints.
Weights are counted in integers, exactly: no count depends on the order or the size of the batches, and any
number of examples is as precise as one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlite.errors import whole
from jaxlite.tasks.confusions import DENSE, add_mistakes, by_class, class_evidence, predictions
from jaxlite.tasks.lift import weighted_mean
from jaxlite.tasks.losses import check_classes

# A weight is counted in four digits of base 2**16: one before the binary point and three behind it. A batch adds
# less than 2**16 a digit and example, so 2**16 examples fit into uint32 before the digits are carried.
_BASE = 16
_DIGITS = 4
LARGEST_BATCH = 2**16 - 1


class Metrics(NamedTuple):
  """A metric: three pure functions.

  Attributes:
    names: of the numbers that `compute` gives.
    init: () -> state.
    update: (state, outputs, batch, loss) -> state, inside jit. `loss` is float[B], or the batch's weighted mean.
    compute: (state) -> dict, on the host: plain numbers by name, and arrays that tables and figures are made of. Where
      there is a `keep`: (state, kept) -> dict.
    keep: (outputs, batch) -> dict of arrays [B, ...], inside jit: what has to come to the host example by example
      (scores that are ranked, targets in their units). 'weight' is kept beside it. `kept` is the same tree with the
      examples of all batches, [N, ...], NumPy, without padding.
    merge: (so far, or None at the start; what `keep` gave for one batch, NumPy) -> so far: on the host, for what would
      grow with the examples. `kept` is then what it gave for the last batch.
  """

  names: tuple[str, ...]
  init: Callable[[], Any]
  update: Callable[..., Any]
  compute: Callable[..., dict[str, Any]]
  keep: Callable[[Any, Mapping[str, Any]], Any] | None = None
  merge: Callable[[Any, Any], Any] | None = None


class ClassificationState(NamedTuple):
  """Counts so far, in digits (see `_digits`).

  Attributes:
    confusion: uint32[4, C + 1, C + 1], by label and by predicted class; the last index is 'no class'. Above
      `confusions.DENSE` classes uint32[4, 3, C + 1]: right predictions, predictions and labels of each class.
    hits: uint32[4, len(top)], examples whose label is among the k largest logits.
    loss: float32[2], the weighted sum and the rounding error that it has not seen yet.
  """

  confusion: jax.Array
  hits: jax.Array
  loss: jax.Array


def classification_metrics(classes: int, top: int | Sequence[int] = (5,)) -> Metrics:
  """Accuracy, top-k accuracy, loss, precision, recall, F1 and confusion matrix of a classifier.

  Conventions: scikit-learn's with `labels=range(classes)` and `zero_division=0`, so a class that never occurs
  counts as 0 in macro means. The predicted class is the first of the largest logits; an example with a NaN among its
  logits is predicted as no class: it lowers accuracy and recall, and is counted as 'nan_outputs' where there is one.
  Soft labels count as their largest class. Weights lie in [0, 65535]; what lies outside is brought to the edge.

  Args:
    classes: number of classes, at least 2.
    top: a k, or several; for each below the number of classes, 'top<k>_accuracy'. Ties go to the lower class, as in
      argmax.

  Returns:
    Metrics. `compute` gives floats under 'accuracy', 'top<k>_accuracy', 'loss', and 'precision', 'recall' and 'f1'
    each with '_micro', '_macro' and '_weighted'; and under 'confusion' float64[classes, classes], labels in rows. Above
    256 classes there is no matrix: what each class counts and the pairs that are confused most, see
    `confusions.class_evidence`; then `keep` and `merge` bring mistakes to the host. Up to 256, `keep` brings labels and
    predictions, how far the true class's logit lies below the largest ('below') and the sum of the exponentials of all
    such distances ('spread'): 1 / spread is how probable the prediction was said to be.

  Raises:
    ValueError: fewer than two classes, or a k below 1; from `update`, shapes that do not fit; from `compute`, no
      example or labels that are no class.

  References:
    Sokolova and Lapalme, A systematic analysis of performance measures for classification tasks, 2009,
    https://doi.org/10.1016/j.ipm.2009.03.002

  >>> metric = classification_metrics(3)
  >>> logits = jnp.array([[9.0, 0, 0], [0, 9, 0], [0, 9, 0], [0, 0, 9]])
  >>> batch = {'labels': jnp.array([0, 1, 2, 0]), 'weight': jnp.array([1.0, 1, 1, 0])}
  >>> values = metric.compute(metric.update(metric.init(), logits, batch, jnp.zeros(4)))
  >>> round(values['accuracy'], 4), round(values['f1_macro'], 4)
  (0.6667, 0.5556)
  """
  classes = whole(classes, 'classification_metrics: classes', least=2)
  several = top if isinstance(top, Iterable) else (top,)
  ks = tuple(dict.fromkeys(whole(k, 'classification_metrics: k of top-k accuracy', least=1) for k in several))
  ks = tuple(k for k in ks if k < classes)

  def init() -> ClassificationState:
    rows = classes + 1 if classes <= DENSE else 3
    return ClassificationState(
      confusion=jnp.zeros((_DIGITS, rows, classes + 1), jnp.uint32),
      hits=jnp.zeros((_DIGITS, len(ks)), jnp.uint32),
      loss=jnp.zeros(2, jnp.float32),
    )

  def update(state: ClassificationState, outputs: Any, batch: Mapping[str, Any], loss: Any) -> ClassificationState:
    logits, labels = check_classes(outputs, batch)
    size = logits.shape[0]
    if logits.shape[1] != classes:
      raise ValueError(
        f'outputs are float[B, {classes}]; got {list(logits.shape)}: give the metric the number of classes of the model'
      )
    if size > LARGEST_BATCH:
      raise ValueError(
        f'a metric takes at most {LARGEST_BATCH:,} examples at once; got {size:,}: set eval.batch_size to fewer'
      )
    weight = jnp.asarray(batch.get('weight', jnp.ones(size)))
    loss = jnp.asarray(loss)
    if weight.shape != (size,) or loss.shape not in ((), (size,)):
      raise ValueError(
        f'weight is [{size}] and loss [{size}] or a scalar; got {list(weight.shape)} and {list(loss.shape)}'
      )
    labels, predicted = pair(logits, labels)
    digits = _digits(weight)
    # The label's rank: classes with a larger logit, and those before it with an equal one.
    own = jnp.take_along_axis(logits, jnp.minimum(labels, classes - 1)[:, None], axis=1)
    before = (logits > own) | ((logits == own) & (jnp.arange(classes)[None] < labels[:, None]))
    rank = jnp.where((predicted == classes) | (labels == classes), classes, jnp.sum(before, axis=1))
    hit = rank[:, None] < jnp.array(ks, int)[None]
    if classes <= DENSE:
      counts = state.confusion.at[:, labels, predicted].add(digits)
    else:
      counts = state.confusion.at[:, 0, labels].add(digits * (labels == predicted)[None].astype(jnp.uint32))
      counts = counts.at[:, 1, predicted].add(digits).at[:, 2, labels].add(digits)
    return ClassificationState(
      confusion=_carry(counts),
      hits=_carry(state.hits + jnp.sum(digits[:, :, None] * hit[None].astype(jnp.uint32), axis=1, dtype=jnp.uint32)),
      loss=_add(state.loss, _weighted_sum(loss, weight)),
    )

  def pair(logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    labels = jnp.argmax(labels, axis=1).astype(jnp.int32) if labels.ndim == 2 else labels
    place, nan = predictions(logits)
    return jnp.where((labels >= 0) & (labels < classes), labels, classes), jnp.where(nan, classes, place)

  def keep(outputs: Any, batch: Mapping[str, Any]) -> dict[str, jax.Array]:
    logits, labels = check_classes(outputs, batch)
    labels, predicted = pair(logits, labels)
    if classes > DENSE:
      return {'labels': labels, 'predicted': predicted}
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    top = jnp.max(logits, axis=1)
    own = jnp.take_along_axis(logits, jnp.minimum(labels, classes - 1)[:, None], axis=1)[:, 0]
    # Not the softmax: divided on the host these are it, and a tenth of a second less is compiled.
    return {
      'labels': labels,
      'predicted': predicted,
      'below': own - top,
      'spread': jnp.sum(jnp.exp(logits - top[:, None]), axis=1),
    }

  def merge(so_far: Any, kept: Mapping[str, np.ndarray]) -> Any:
    return add_mistakes(so_far, kept['labels'], kept['predicted'], kept['weight'], classes)

  def compute(state: ClassificationState, kept: Any = None) -> dict[str, Any]:
    kept = kept if classes > DENSE else None  # the counts tell all
    counts = _number(state.confusion)
    hits, called, actual = by_class(counts, classes)
    total = actual.sum()
    if total == 0:
      raise ValueError('metrics need at least one example with a weight above 0; got none: is the split empty?')
    if outside := actual[classes]:
      raise ValueError(f'labels are in [0, {classes}); the weight of those outside is {outside:g}: check the data')
    values = {'accuracy': hits.sum() / total}
    values |= {f'top{k}_accuracy': above / total for k, above in zip(ks, _number(state.hits), strict=True)}
    values['loss'] = np.asarray(state.loss, np.float64).sum() / total
    values |= _scores(hits[:-1], called[:-1], actual[:-1])
    if nan := called[classes]:
      values['nan_outputs'] = nan
    return {**{name: float(value) for name, value in values.items()}, **class_evidence(counts, classes, kept)}

  kinds = ('precision', 'recall', 'f1')
  scores = [f'{score}_{mean}' for score in kinds for mean in ('micro', 'macro', 'weighted')]
  names = ('accuracy', *(f'top{k}_accuracy' for k in ks), 'loss', *scores)
  if classes <= DENSE:
    return Metrics(names, init, update, compute, keep)
  return Metrics(names, init, update, compute, keep, merge)


def _scores(hits: np.ndarray, predicted: np.ndarray, actual: np.ndarray) -> dict[str, float]:
  """Precision, recall and F1 from float64[C]: right predictions, predictions and labels of each class."""
  scores: dict[str, Any] = {}
  for name, below in (('precision', predicted), ('recall', actual), ('f1', (predicted + actual) / 2)):
    each = _ratio(hits, below)
    scores[f'{name}_micro'] = _ratio(hits.sum(), below.sum())
    scores[f'{name}_macro'] = each.mean()
    scores[f'{name}_weighted'] = (each * actual).sum() / actual.sum()
  return scores


def _ratio(above: Any, below: Any) -> np.ndarray:
  return np.divide(above, below, out=np.zeros_like(below), where=np.asarray(below) > 0)


def _digits(weight: jax.Array) -> jax.Array:
  """Writes weights, float[B], in base 2**16: uint32[4, B], the digit before the point first. Loses nothing."""
  rest = jnp.clip(jnp.where(weight > 0, weight, 0).astype(jnp.promote_types(weight.dtype, jnp.float32)), 0, 2**16 - 1)
  digits = []
  for _ in range(_DIGITS):
    whole = jnp.floor(rest)
    digits.append(whole.astype(jnp.uint32))
    rest = (rest - whole) * 2**_BASE  # exact: a float minus its leading bits, times a power of two
  return jnp.stack(digits)


def _carry(digits: jax.Array) -> jax.Array:
  """Brings every digit but the first, uint32[4, ...], below 2**16 again."""
  rows = list(digits)
  for place in range(_DIGITS - 1, 0, -1):
    rows[place - 1] = rows[place - 1] + (rows[place] >> _BASE)
    rows[place] = rows[place] & (2**_BASE - 1)
  return jnp.stack(rows)


def _number(digits: Any) -> np.ndarray:
  """Reads digits, uint32[4, ...], as float64[...]."""
  places = 2.0 ** (-_BASE * np.arange(_DIGITS))
  return np.tensordot(places, np.asarray(digits, np.float64), axes=1)


def _weighted_sum(loss: jax.Array, weight: jax.Array) -> jax.Array:
  weight = weight.astype(jnp.float32)
  mean = weighted_mean(loss.astype(jnp.float32), weight) if loss.ndim else loss
  return mean * jnp.sum(jnp.maximum(weight, 0))


def _add(total: jax.Array, value: jax.Array) -> jax.Array:
  """Adds to a sum, float32[2], kept as a number and what rounding dropped of it: about 48 bits together.

  References:
    Dekker, A floating-point technique for extending the available precision, 1971,
    https://doi.org/10.1007/BF01397083
  """
  high, low = total
  value = value.astype(jnp.float32)
  new = high + value
  lost = jnp.where(jnp.abs(high) >= jnp.abs(value), (high - new) + value, (value - new) + high)
  low = low + jnp.where(jnp.isfinite(new), lost, 0)  # inf - inf would turn a loss of inf into NaN
  whole = new + low
  return jnp.stack([whole, jnp.where(jnp.isfinite(whole), (new - whole) + low, 0)])


class MeansState(NamedTuple):
  """Weighted sums so far.

  Attributes:
    sums: float32[k, 2], each a number and the rounding error that it has not seen yet; the loss comes last.
    weight: float32[2], the sum of weights likewise.
  """

  sums: jax.Array
  weight: jax.Array


def means(**values: Callable[[Any, Mapping[str, Any]], jax.Array]) -> Metrics:
  """Weighted means over all examples of one number per example each: the metrics of a task of one's own.

  Args:
    **values: by name, (outputs, batch) -> float[B].

  Returns:
    Metrics: each name, and 'loss'.

  Raises:
    ValueError: a value named 'loss'; from `update`, one that is not one number per example; from `compute`, no example.

  >>> metric = means(error=lambda outputs, batch: jnp.abs(outputs - batch['labels']))
  >>> batch = {'labels': jnp.array([1.0, 2.0, 9.0]), 'weight': jnp.array([1.0, 1.0, 0.0])}
  >>> metric.compute(metric.update(metric.init(), jnp.zeros(3), batch, jnp.zeros(3)))
  {'error': 1.5, 'loss': 0.0}
  """
  if 'loss' in values:
    raise ValueError("means measures 'loss', that of the task, itself; got loss=: give yours another name")
  names = (*values, 'loss')

  def init() -> MeansState:
    return MeansState(jnp.zeros((len(names), 2), jnp.float32), jnp.zeros(2, jnp.float32))

  def update(state: MeansState, outputs: Any, batch: Mapping[str, Any], loss: Any) -> MeansState:
    size = jax.tree.leaves(batch['labels'])[0].shape[0] if 'labels' in batch else jax.tree.leaves(outputs)[0].shape[0]
    weight = jnp.asarray(batch.get('weight', jnp.ones(size)))
    sums: list[Any] = []
    measured = {**{name: fn(outputs, batch) for name, fn in values.items()}, 'loss': loss}
    for name, value in ((name, jnp.asarray(value)) for name, value in measured.items()):
      if value.shape != (size,) and not (name == 'loss' and value.ndim == 0):
        raise ValueError(f'a metric gives one number per example, float[{size}]; {name} gives {list(value.shape)}')
      sums.append(_add(state.sums[len(sums)], _weighted_sum(value, weight)))
    total = jnp.sum(jnp.maximum(weight.astype(jnp.float32), 0))
    return MeansState(jnp.stack(sums), _add(state.weight, total))

  def compute(state: MeansState) -> dict[str, Any]:
    total = np.asarray(state.weight, np.float64).sum()
    if not total > 0:
      raise ValueError('metrics need at least one example with a weight above 0; got none: is the split empty?')
    sums = np.asarray(state.sums, np.float64).sum(axis=1)
    return {name: float(value / total) for name, value in zip(names, sums, strict=True)}

  return Metrics(names, init, update, compute)
