"""Laws of the metrics: scikit-learn's numbers, whatever the order, the padding and the size of the batches."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics

from jaxlite.tasks.metrics import classification_metrics, means

pytestmark = pytest.mark.unoptimized

BATCH = 32


@functools.cache
def _metric(classes):
  metric = classification_metrics(classes, top=(2, 5))
  return metric, jax.jit(metric.update)  # compiled once a shape, not once a case


def _run(classes, logits, labels, weight, loss, batch=BATCH):
  """Pads to whole batches with weight 0 and garbage, accumulates, computes."""
  metric, update = _metric(classes)
  short = -len(labels) % batch
  random = np.random.default_rng(len(labels))
  padded = {
    'logits': np.concatenate([logits, np.full((short, classes), np.nan, np.float32)]),
    'labels': np.concatenate([labels, random.integers(-3, classes + 3, size=short)]),
    'weight': np.concatenate([weight, np.zeros(short, np.float32)]),
    'loss': np.concatenate([loss, np.full(short, np.nan, np.float32)]),
  }
  state = metric.init()
  for start in range(0, len(padded['labels']), batch):
    part = {name: value[start : start + batch] for name, value in padded.items()}
    state = update(state, part['logits'], {'labels': part['labels'], 'weight': part['weight']}, part['loss'])
  return metric.compute(state)


def _sklearn(classes, predicted, labels, weight, loss):
  names = range(classes)
  wanted = {'accuracy': sklearn.metrics.accuracy_score(labels, predicted, sample_weight=weight)}
  for average in ('micro', 'macro', 'weighted'):
    scores = sklearn.metrics.precision_recall_fscore_support(
      labels, predicted, labels=names, average=average, zero_division=0, sample_weight=weight
    )
    wanted |= {f'{name}_{average}': score for name, score in zip(('precision', 'recall', 'f1'), scores, strict=False)}
  wanted['loss'] = np.average(loss.astype(np.float64), weights=weight)
  return wanted, sklearn.metrics.confusion_matrix(labels, predicted, labels=names, sample_weight=weight)


def _check(seed):
  """One random case: absent classes, NaN rows, ties, fractional weights, padding."""
  random = np.random.default_rng(seed)
  classes = (2, 3, 6, 11)[seed % 4]
  size = int(random.integers(1, 3 * BATCH))
  present = random.choice(classes, size=int(random.integers(1, classes + 1)), replace=False)
  labels = random.choice(present, size=size)
  logits = random.normal(size=(size, classes)).astype(np.float32)
  logits[np.arange(size), labels] += random.uniform(0, 2)
  if seed % 3 == 0:
    logits = np.round(logits)  # ties
  if seed % 5 == 0:
    logits[random.random(size) < 0.2, 0] = np.nan
  weight = np.ones(size, np.float32)
  if seed % 2:
    weight = np.where(random.random(size) < 0.2, 0, random.uniform(0.01, 3, size=size)).astype(np.float32)
    weight[0] = 0.3
  loss = random.exponential(size=size).astype(np.float32)
  predicted = np.where(np.isnan(logits).any(axis=1), classes, np.nan_to_num(logits).argmax(axis=1))
  found = _run(classes, logits, labels, weight, loss)
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')  # scikit-learn warns about absent classes: they are the point
    wanted, confusion = _sklearn(classes, predicted, labels, weight, loss)
  for name, value in wanted.items():
    tolerance = 1e-6 if name == 'loss' else 1e-12  # a loss is a sum of float32 products
    assert abs(found[name] - value) <= tolerance * max(1, abs(value)), (seed, name, found[name], value)
  np.testing.assert_allclose(found['confusion'], confusion, rtol=1e-12, atol=1e-12)
  keep = weight > 0
  for k in (2, 5):
    if k < classes:
      clean = np.where(np.isnan(logits).any(axis=1, keepdims=True), -np.inf, logits)
      first = np.argsort(-clean, axis=1, kind='stable')[:, :k]
      hit = (first == labels[:, None]).any(axis=1) & (predicted < classes)
      assert abs(found[f'top{k}_accuracy'] - np.average(hit[keep], weights=weight[keep].astype(np.float64))) < 1e-12


def test_equals_scikit_learn_on_200_random_cases():
  for seed in range(200):
    _check(seed)


@pytest.mark.slow
def test_equals_scikit_learn_on_10800_random_cases():
  for seed in range(200, 11_000):
    _check(seed)


def test_the_numbers_do_not_depend_on_order_or_batch_size():
  random = np.random.default_rng(3)
  size, classes = 500, 6
  logits = random.normal(size=(size, classes)).astype(np.float32)
  labels, weight = random.integers(classes, size=size), random.random(size).astype(np.float32)
  loss = random.random(size).astype(np.float32)
  one = _run(classes, logits, labels, weight, loss, batch=512)
  for seed, batch in enumerate((512, 100, 7)):
    order = np.random.default_rng(seed).permutation(size)
    other = _run(classes, logits[order], labels[order], weight[order], loss[order], batch=batch)
    assert np.array_equal(one['confusion'], other['confusion'])  # bit for bit, fractions and all
    for name in one.keys() - {'confusion', 'loss'}:
      assert one[name] == other[name], name
    assert abs(one['loss'] - other['loss']) < 1e-6


def test_counts_stay_exact_where_float32_would_stand_still():
  metric = classification_metrics(2)  # 20 M examples: a float32 count of ones stops growing at 16.8 M
  size, steps = 40_000, 500
  logits = jnp.tile(jnp.array([1.0, 0.0]), (size, 1))
  for weight in (1.0, 0.1):
    batch = {'labels': jnp.zeros(size, int), 'weight': jnp.full(size, weight)}
    add = lambda _, state, batch=batch: metric.update(state, logits, batch, 0.0)  # noqa: E731
    values = metric.compute(jax.jit(lambda state, add=add: jax.lax.fori_loop(0, steps, add, state))(metric.init()))
    exact = float(np.float32(weight)) * size * steps
    assert abs(values['confusion'][0, 0] - exact) <= 1e-12 * exact
    assert values['accuracy'] == 1


def test_the_loss_does_not_drift_over_many_batches():
  metric = classification_metrics(2)
  batch, logits = {'labels': jnp.zeros(1, int)}, jnp.array([[1.0, 0.0]])
  add = lambda _, state: metric.update(state, logits, batch, jnp.float32(0.1))  # noqa: E731
  state = jax.jit(lambda state: jax.lax.fori_loop(0, 50_000, add, state))(metric.init())
  assert abs(metric.compute(state)['loss'] - float(np.float32(0.1))) < 1e-9  # a plain float32 sum is 1e-4 off


def test_loss_may_be_per_example_or_the_weighted_mean():
  metric = classification_metrics(3)
  logits, labels = jnp.eye(3), jnp.arange(3)
  batch = {'labels': labels, 'weight': jnp.array([1.0, 2.0, 0.0])}
  each = metric.update(metric.init(), logits, batch, jnp.array([1.0, 4.0, jnp.nan]))
  mean = metric.update(metric.init(), logits, batch, jnp.float32(3.0))
  assert metric.compute(each)['loss'] == metric.compute(mean)['loss'] == 3


def test_a_nan_loss_is_seen():
  metric = classification_metrics(2)
  state = metric.update(metric.init(), jnp.zeros((2, 2)), {'labels': jnp.arange(2)}, jnp.array([jnp.nan, 1.0]))
  assert np.isnan(metric.compute(state)['loss'])
  state = metric.update(metric.init(), jnp.zeros((2, 2)), {'labels': jnp.arange(2)}, jnp.array([jnp.inf, 1.0]))
  assert metric.compute(metric.update(state, jnp.zeros((2, 2)), {'labels': jnp.arange(2)}, 1.0))['loss'] == np.inf


def test_soft_labels_count_as_their_largest_class_and_nan_as_none():
  metric = classification_metrics(3)
  logits = jnp.array([[2.0, 2.0, 0.0], [0.0, jnp.nan, 9.0]])
  state = metric.update(metric.init(), logits, {'labels': jnp.array([[0.6, 0.4, 0.0], [0.0, 0.1, 0.9]])}, jnp.zeros(2))
  values = metric.compute(state)
  assert values['accuracy'] == 0.5  # a tie goes to the lower class; NaN is wrong even where argmax would be right
  assert values['nan_outputs'] == 1
  assert values['confusion'].sum() == 1


def test_one_trace_serves_every_batch_and_bytes_as_labels():
  metric = classification_metrics(300)
  traces = []

  @jax.jit
  def update(state, logits, labels):
    traces.append(1)
    return metric.update(state, logits, {'labels': labels}, jnp.float32(0))

  state = metric.init()
  for _ in range(3):
    state = update(state, jnp.zeros((4, 300), jnp.bfloat16), jnp.array([0, 1, 255, 0], jnp.uint8))
  assert len(traces) == 1
  assert metric.compute(state)['accuracy'] == 0.5


@pytest.mark.parametrize(
  ('act', 'words'),
  [
    (lambda m: classification_metrics(1), 'classes is a whole number, at least 2'),
    (lambda m: classification_metrics(3.0), 'classes is a whole number, at least 2'),
    (lambda m: classification_metrics('3'), 'classes is a whole number, at least 2'),
    (lambda m: classification_metrics(10, top=(5.0,)), 'k of top-k accuracy is a whole number'),
    (lambda m: means(loss=lambda outputs, batch: outputs[:, 0]), 'got loss=: give yours another name'),
    (lambda m: classification_metrics(10, top=(0,)), 'at least 1'),
    (lambda m: m.compute(m.init()), 'empty'),
    (lambda m: m.update(m.init(), jnp.zeros((2, 4)), {'labels': jnp.zeros(2, int)}, 0.0), '[2, 4]'),
    (lambda m: m.update(m.init(), jnp.zeros((2, 3)), {'labels': jnp.zeros(3, int)}, 0.0), 'int32[3]'),
    (lambda m: m.update(m.init(), jnp.zeros((2, 3)), {'labels': jnp.zeros(2, int)}, jnp.zeros(3)), '[3]'),
    (lambda m: m.update(m.init(), jnp.zeros((2, 3)), {'labels': jnp.zeros(2, int), 'weight': jnp.ones(3)}, 0.0), '[3]'),
    (lambda m: m.compute(m.update(m.init(), jnp.zeros((2, 3)), {'labels': jnp.array([0, 3])}, 0.0)), 'outside is 1'),
  ],
)
def test_misuse_gets_one_line(act, words):
  with pytest.raises(ValueError) as error:
    act(classification_metrics(3))
  assert words in str(error.value)
  assert '\n' not in str(error.value)


def test_one_k_is_as_good_as_several_and_counts_once():
  assert classification_metrics(10, top=3).names == classification_metrics(10, top=(3, np.int64(3))).names
  assert classification_metrics(10, top=3).names[:3] == ('accuracy', 'top3_accuracy', 'loss')


def test_metrics_count_where_ranks_are_not_promoted():
  logits, labels = jnp.array([[3.0, 1, 2], [1, 1, 1]]), jnp.array([2, 1])
  for classes in (3, 300):  # with a matrix and without
    metric = classification_metrics(classes, top=2)
    wide = jnp.pad(logits, ((0, 0), (0, classes - 3)), constant_values=-9.0)
    plain = metric.update(metric.init(), wide, {'labels': labels}, jnp.zeros(2))
    with jax.numpy_rank_promotion('raise'), jax.numpy_dtype_promotion('strict'):
      strict = metric.update(metric.init(), wide, {'labels': labels}, jnp.zeros(2))
    assert jax.tree.all(jax.tree.map(jnp.array_equal, plain, strict))
    assert metric.compute(strict, *([] if classes == 3 else [None]))['top2_accuracy'] == 1.0
