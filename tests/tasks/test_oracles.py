"""Laws of every task's numbers: those of scikit-learn or of float64, whatever the padding and the weights.

One compiled update serves all cases of a task: they differ in their data only, and are padded to one shape.
"""

import functools
import math
import warnings

import jax
import numpy as np
import pytest
import sklearn.metrics as sk

from jaxlite import tasks

pytestmark = pytest.mark.unoptimized

BATCH = 16
FEW, MANY = range(60), range(60, 1060)
BINARY = {'class_names': ['no', 'yes'], 'positive': 1, 'wanted': {}}
LABELS = {'names': ['a', 'b', 'c'], 'threshold': 'each', 'wanted': {}}
BYTES = [1, 3, 0, 2, 7]


@functools.cache
def _compiled(name, targets=1):
  """The task, its facts and one program for a batch: loss, sums, and what is kept."""
  task, facts = {
    'regression': lambda: (
      tasks.regression(),
      {'targets': targets, 'mean': [5.0] * targets, 'std': [2.0] * targets, 'axes': 1 if targets == 1 else 2},
    ),
    'binary': lambda: (tasks.binary(), BINARY),
    'multi_label': lambda: (tasks.multi_label(), LABELS),
    'language': lambda: (tasks.language(), {'vocabulary': 5, 'token_bytes': BYTES}),
    'segmentation': lambda: (tasks.segmentation(), {'classes': 4, 'class_names': list('abcd')}),
  }[name]()
  loss, metric = task.loss(facts), task.metrics(facts)

  @jax.jit
  def update(state, outputs, batch):
    kept = metric.keep(outputs, batch) if metric.keep else None
    return metric.update(state, outputs, batch, loss(outputs, batch)), kept

  return task, facts, metric, update


def _run(name, outputs, labels, weight, facts=None, targets=1):
  """Pads to whole batches with garbage of weight 0, accumulates, computes."""
  task, known, metric, update = _compiled(name, targets)
  short = -len(labels) % BATCH
  pad = lambda array, value: np.concatenate([array, np.full((short, *array.shape[1:]), value, array.dtype)])  # noqa: E731
  outputs, labels, weight = pad(outputs, np.nan), pad(labels, 1), pad(weight, 0)
  state, kept = metric.init(), []
  for start in range(0, len(labels), BATCH):
    part = slice(start, start + BATCH)
    state, some = update(state, outputs[part], {'labels': labels[part], 'weight': weight[part]})
    kept.append(some)
  if metric.keep is None:
    return metric.compute(state)
  kept = jax.tree.map(lambda *leaves: np.concatenate(leaves)[: len(labels) - short], *kept)
  return task.metrics({**known, **(facts or {})}).compute(state, kept), kept


def _weights(random, size, seed):
  if seed % 2 == 0:
    return np.ones(size, np.float32)
  weight = np.where(random.random(size) < 0.2, 0, random.uniform(0.01, 3, size=size)).astype(np.float32)
  weight[0] = 0.3
  return weight


def _near(found, wanted, tolerance, case):
  for name, value in wanted.items():
    same = math.isnan(found[name]) if np.isnan(value) else abs(found[name] - value) <= tolerance * max(1, abs(value))
    assert same, (case, name, found[name], value)


def _quiet(function, *arguments, **options):
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')  # scikit-learn warns about what is absent: it is the point
    return function(*arguments, **options)


def _log_loss(logits, targets):
  """Cross-entropy of a sigmoid in float64."""
  with np.errstate(invalid='ignore'):  # NumPy warns about NaN
    return np.logaddexp(0, logits) - targets * logits


def _regression(seed):
  random = np.random.default_rng(seed)
  targets, size = (1, 3)[seed % 2], int(random.integers(2, 3 * BATCH))
  weight = _weights(random, size, seed // 2)
  weight[1] = 1
  labels = (random.normal(size=(size, targets)) * 3 + random.choice([0, 1e5])).astype(np.float32)
  if seed % 5 == 0:
    labels[:, 0] = labels[0, 0]  # constant: R2 is 0, or 1 where it is hit
  outputs = (labels + random.normal(size=labels.shape) * random.choice([0, 1e-3, 1])).astype(np.float32)
  if seed % 7 == 0:
    outputs[-1, -1] = np.nan
  shown = labels[:, 0] if targets == 1 else labels
  found, _ = _run('regression', outputs, shown, weight, targets=targets)
  used = weight > 0
  true, predicted, share = labels[used].astype(float), outputs[used].astype(float), weight[used].astype(float)
  if np.isnan(predicted).any():
    assert found['nan_outputs'] == share[np.isnan(predicted).any(axis=1)].sum()
    assert np.isnan([found['rmse'], found['mae'], found['r2'], found['loss']]).all()
    return
  wanted = {
    'mae': sk.mean_absolute_error(true, predicted, sample_weight=share),
    'rmse': sk.root_mean_squared_error(true, predicted, sample_weight=share),
    'r2': _r2(true, predicted, share),
  }
  _near(found, wanted, 1e-9, seed)
  each = np.mean(((predicted - true) / 2) ** 2, axis=1)
  _near(found, {'loss': np.average(each, weights=share)}, 1e-6, seed)
  assert 'nan_outputs' not in found


def _r2(true, predicted, weight):
  each = _quiet(sk.r2_score, true, predicted, sample_weight=weight, multioutput='raw_values')
  if len(true) > 1:  # a weighted mean of equal numbers is not quite that number: scikit-learn divides by what is left
    constant, hit = (true == true[0]).all(axis=0), (true == predicted).all(axis=0)
    each = np.where(constant, hit, each)
  return np.mean(each)


def _binary(seed):
  random = np.random.default_rng(seed)
  size = int(random.integers(1, 3 * BATCH))
  weight = _weights(random, size, seed)
  labels = (random.random(size) < random.choice([0, 0.1, 0.5, 1], p=[0.1, 0.4, 0.4, 0.1])).astype(np.int32)
  logits = (random.normal(size=size) * 2 + labels).astype(np.float32)
  if seed % 3 == 0:
    logits = np.round(logits)  # ties
  if seed % 5 == 0:
    logits[random.random(size) < 0.2] = np.nan
  threshold = float(random.uniform(0.2, 0.8))
  found, kept = _run('binary', logits, labels, weight, {'threshold': threshold})
  nan = np.isnan(logits)
  scores = np.where(nan, np.where(labels == 1, -1e9, 1e9), logits).astype(float)  # wrong as can be
  called = scores > np.log(threshold / (1 - threshold))
  precision, recall, f1, _ = _quiet(
    sk.precision_recall_fscore_support, labels, called, average='binary', sample_weight=weight, zero_division=0
  )
  wanted = {
    'average_precision': _quiet(sk.average_precision_score, labels, scores, sample_weight=weight),
    'roc_auc': _quiet(_roc_auc, labels, scores, weight),
    'accuracy': sk.accuracy_score(labels, called, sample_weight=weight),
    'precision': precision,
    'recall': recall,
    'f1': f1,
    'positive_share': np.average(labels, weights=weight.astype(float)),
  }
  _near(found, wanted, 1e-12, seed)
  used = weight > 0
  assert found.get('nan_outputs', 0) == weight[nan].astype(float).sum()
  loss = np.average(_log_loss(logits.astype(float), labels)[used], weights=weight[used].astype(float))
  _near(found, {'loss': loss}, 1e-6, seed)
  decided = _compiled('binary')[0].decide(kept, BINARY)
  best = max(_f1(labels, called, weight) for called in _cuts(logits, labels))
  found, _ = _run('binary', logits, labels, weight, decided)
  assert abs(found['f1'] - best) < 1e-12 or 'threshold_note' in decided


def _cuts(logits, labels):
  """What is called positive at every threshold there is; NaN is called wrong."""
  for threshold in np.unique(logits[~np.isnan(logits)]):
    yield np.where(np.isnan(logits), labels == 0, logits >= threshold)
  yield np.where(np.isnan(logits), labels == 0, False)


def _f1(labels, called, weight):
  weight = weight.astype(float)
  hits, below = weight[called & (labels == 1)].sum(), weight[called].sum() + weight[labels == 1].sum()
  return 2 * hits / below if below else 0


def _roc_auc(labels, scores, weight):
  used = weight > 0
  if len(np.unique(labels[used])) < 2:
    return math.nan
  return sk.roc_auc_score(labels[used], scores[used], sample_weight=weight[used])


def _multi_label(seed):
  random = np.random.default_rng(seed)
  size, count = int(random.integers(1, 3 * BATCH)), len(LABELS['names'])
  weight = _weights(random, size, seed)
  labels = (random.random((size, count)) < [0.5, 0.2, 0.05]).astype(np.float32)
  logits = (random.normal(size=(size, count)) * 2 + labels).astype(np.float32)
  if seed % 3 == 0:
    logits = np.round(logits)
  if seed % 5 == 0:
    logits[random.random((size, count)) < 0.1] = np.nan
  thresholds = random.uniform(0.2, 0.8, size=count)
  found, _ = _run('multi_label', logits, labels, weight, {'thresholds': thresholds.tolist()})
  nan = np.isnan(logits)
  scores = np.where(nan, np.where(labels == 1, -1e9, 1e9), logits).astype(float)
  called = scores > np.log(thresholds / (1 - thresholds))
  wanted = {'exact_match': _quiet(sk.accuracy_score, labels, called, sample_weight=weight)}
  for average in ('micro', 'macro', 'weighted'):
    some = _quiet(
      sk.precision_recall_fscore_support, labels, called, average=average, sample_weight=weight, zero_division=0
    )
    wanted |= {f'{name}_{average}': value for name, value in zip(('precision', 'recall', 'f1'), some, strict=False)}
  wanted['average_precision_macro'] = _quiet(sk.average_precision_score, labels, scores, sample_weight=weight)
  wanted['roc_auc_macro'] = np.mean([_roc_auc(labels[:, i], scores[:, i], weight) for i in range(count)])
  _near(found, wanted, 1e-12, seed)
  used = weight > 0
  assert found.get('nan_outputs', 0) == weight[nan.any(axis=1)].astype(float).sum()
  each = _log_loss(logits.astype(float), labels).mean(axis=1)
  _near(found, {'loss': np.average(each[used], weights=weight[used].astype(float))}, 1e-6, seed)


def _positions(random, seed, shape, classes):
  """Labels with holes, logits, and the batch's weight: the example's own times its positions."""
  labels = random.integers(0, random.integers(1, classes + 1), size=shape).astype(np.int32)
  labels[random.random(shape) < random.choice([0, 0.3, 0.8])] = -1
  labels.reshape(len(labels), -1)[0, 0] = 0
  logits = (random.normal(size=(*shape, classes)) * 2).astype(np.float32)
  logits += 2 * np.eye(classes + 1, dtype=np.float32)[labels][..., :classes]
  if seed % 3 == 0:
    logits = np.round(logits)
  if seed % 5 == 0:
    logits[random.random(shape) < 0.1, 0] = np.nan
  own = np.ones(len(labels), np.float32)
  if seed % 2:  # as many bits as a product with a count of positions keeps
    own = np.where(random.random(len(labels)) < 0.2, 0, random.integers(1, 300, len(labels)) / 64).astype(np.float32)
    own[0] = 0.25
  count = (labels >= 0).reshape(len(labels), -1).sum(axis=1)
  logits[(labels < 0) & (random.random(shape) < 0.5)] = np.nan  # nobody looks there
  weight = np.broadcast_to(own.reshape(-1, *[1] * (len(shape) - 1)), shape)[labels >= 0].astype(float)
  predicted = np.where(np.isnan(logits).any(axis=-1), classes, np.nan_to_num(logits).argmax(axis=-1))[labels >= 0]
  flat, true = logits[labels >= 0].astype(float), labels[labels >= 0]
  with np.errstate(invalid='ignore'):
    top = flat.max(axis=1)
    each = top + np.log(np.exp(flat - top[:, None]).sum(axis=1)) - flat[np.arange(len(true)), true]
  loss = np.average(each[weight > 0], weights=weight[weight > 0])
  return labels, logits, (own * count).astype(np.float32), true, predicted, weight, loss


def _language(seed):
  random = np.random.default_rng(seed)
  shape = int(random.integers(1, 3 * BATCH)), 6
  labels, logits, batch_weight, true, predicted, weight, loss = _positions(random, seed, shape, 5)
  found = _run('language', logits, labels, batch_weight)
  _near(found, {'accuracy': np.average(predicted == true, weights=weight)}, 1e-12, seed)
  total_bytes = np.sum(weight * np.asarray(BYTES)[true])
  bits = loss * weight.sum() / np.log(2) / total_bytes if total_bytes else math.nan
  _near(found, {'loss': loss, 'perplexity': np.exp(loss), 'bits_per_byte': bits}, 2e-6, seed)
  assert found.get('nan_outputs', 0) == weight[predicted == 5].sum()


def _segmentation(seed):
  random = np.random.default_rng(seed)
  shape = int(random.integers(1, 3 * BATCH)), 3, 2
  labels, logits, batch_weight, true, predicted, weight, loss = _positions(random, seed, shape, 4)
  found = _run('segmentation', logits, labels, batch_weight)
  used = weight > 0
  true, predicted, weight = true[used], predicted[used], weight[used]
  present = sorted({*true, *predicted} - {4})
  options = {'labels': present, 'average': 'macro', 'sample_weight': weight, 'zero_division': 0}
  wanted = {
    'accuracy': np.average(predicted == true, weights=weight),
    'mean_iou': _quiet(sk.jaccard_score, true, predicted, **options),
    'f1_macro': _quiet(sk.f1_score, true, predicted, **options),
  }
  _near(found, wanted, 1e-12, seed)
  _near(found, {'loss': loss}, 2e-6, seed)
  matrix = sk.confusion_matrix(true, predicted, labels=range(5), sample_weight=weight)
  np.testing.assert_allclose(found['confusion'], matrix[:4, :4], rtol=1e-12)
  assert np.isnan(found['iou_each']).tolist() == [index not in present for index in range(4)]
  assert found.get('nan_outputs', 0) == weight[predicted == 4].sum()


CASES = (_regression, _binary, _multi_label, _language, _segmentation)


@pytest.mark.parametrize('case', CASES, ids=lambda case: case.__name__)
def test_equals_the_oracle_on_60_random_cases(case):
  for seed in FEW:
    case(seed)


@pytest.mark.slow
@pytest.mark.parametrize('case', CASES, ids=lambda case: case.__name__)
def test_equals_the_oracle_on_1000_random_cases(case):
  for seed in MANY:
    case(seed)


@pytest.mark.parametrize('name', ['regression', 'binary', 'multi_label', 'language', 'segmentation'])
def test_an_empty_split_is_an_error(name):
  shapes = {
    'regression': ((3, 1), (3,)),
    'binary': ((3,), (3,)),
    'multi_label': ((3, 3), (3, 3)),
    'language': ((3, 6, 5), (3, 6)),
    'segmentation': ((3, 3, 2, 4), (3, 3, 2)),
  }
  outputs, labels = (np.zeros(shape, np.float32) for shape in shapes[name])
  labels = labels.astype(np.int32) if name in ('language', 'segmentation') else labels
  with pytest.raises(ValueError, match='empty'):
    _run(name, outputs, labels, np.zeros(3, np.float32))


def test_language_does_not_depend_on_how_texts_are_cut_into_batches():
  random = np.random.default_rng(0)
  labels = random.integers(-1, 5, size=(4 * BATCH, 6)).astype(np.int32)
  logits = random.normal(size=(*labels.shape, 5)).astype(np.float32)
  weight = (labels >= 0).sum(axis=1).astype(np.float32)
  one = _run('language', logits, labels, weight)
  for seed in range(3):
    order = np.random.default_rng(seed).permutation(len(labels))
    other = _run('language', logits[order], labels[order], weight[order])
    assert other['accuracy'] == one['accuracy']
    assert abs(other['loss'] - one['loss']) < 1e-6
  metric, update = _compiled('language')[2:]
  bare, _ = update(metric.init(), logits[:BATCH], {'labels': labels[:BATCH]})  # the number of tokens is the weight
  bare = metric.compute(bare)
  weighted = _run('language', logits[:BATCH], labels[:BATCH], weight[:BATCH])
  assert {name: round(value, 6) for name, value in bare.items()} == {
    name: round(value, 6) for name, value in weighted.items()
  }
