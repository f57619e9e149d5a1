"""Many classes: no matrix, small states and files, and the numbers of scikit-learn all the same."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics as sk
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlite import tasks
from jaxlite.tasks.confusions import DENSE, add_mistakes, most_confused, predictions
from jaxlite.tasks.metrics import classification_metrics

CLASSES, BATCH = 5_000, 64
METRIC = classification_metrics(CLASSES, top=(5,))


@jax.jit
def _update(state, logits, labels, weight):
  batch = {'labels': labels, 'weight': weight}
  return METRIC.update(state, logits, batch, jnp.zeros(BATCH)), {**METRIC.keep(logits, batch), 'weight': weight}


def _measured(logits, labels, weight, metric=METRIC, update=_update):
  """In batches, the last one padded with garbage of weight 0."""
  short = -len(labels) % BATCH
  logits = np.concatenate([logits, np.full((short, *logits.shape[1:]), np.nan, np.float32)])
  labels = np.concatenate([labels, np.ones((short, *labels.shape[1:]), int)])
  weight = np.concatenate([weight, np.zeros(short, np.float32)])
  state, kept = metric.init(), None
  for start in range(0, len(labels), BATCH):
    part = slice(start, start + BATCH)
    state, examples = update(state, logits[part], labels[part], weight[part])
    kept = metric.merge(kept, jax.device_get(examples))
  return metric.compute(jax.device_get(state), kept)


def _case(seed):
  random = np.random.default_rng(seed)
  size, few = int(random.integers(1, 200)), random.choice(CLASSES, size=int(random.integers(1, 40)))
  labels, taken = random.choice(few, size=size), random.choice(few, size=size)
  taken = np.where(random.random(size) < 0.5, labels, taken)
  logits = random.normal(size=(size, CLASSES)).astype(np.float32)
  logits[np.arange(size), taken] = 9
  if seed % 3 == 0:
    logits[np.arange(size), random.integers(0, CLASSES, size)] = 9  # ties, some with the right class
  if seed % 4 == 0:
    logits[random.random(size) < 0.2, 7] = np.nan
  if seed % 5 == 0:
    logits[:, :100], logits[:, 4_000:] = -np.inf, np.where(random.random(size) < 0.3, np.inf, -1)[:, None]
  weight = np.ones(size, np.float32)
  if seed % 2:
    weight = random.uniform(0, 3, size).astype(np.float32) * (random.random(size) < 0.8)
    weight[0] = 0.3
  return logits, labels, weight


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 10_000))
def test_numbers_at_5000_classes_are_those_of_scikit_learn(seed):
  logits, labels, weight = _case(seed)
  found = _measured(logits, labels, weight)
  nan = np.isnan(logits).any(axis=1)
  predicted = np.where(nan, CLASSES, np.where(np.isnan(logits), 0, logits).argmax(axis=1))
  assert np.isclose(found['accuracy'], sk.accuracy_score(labels, predicted, sample_weight=weight), rtol=1e-12)
  names = range(CLASSES)
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')  # scikit-learn warns about absent classes: they are the point
    for mean in ('micro', 'macro', 'weighted'):
      three = sk.precision_recall_fscore_support(
        labels, predicted, labels=names, average=mean, zero_division=0, sample_weight=weight
      )
      for name, value in zip(('precision', 'recall', 'f1'), three, strict=False):
        assert np.isclose(found[f'{name}_{mean}'], value, rtol=1e-9, atol=1e-15), name
  first = np.argsort(-np.where(nan[:, None], -np.inf, logits), axis=1, kind='stable')[:, :5]
  hit = (first == labels[:, None]).any(axis=1) & ~nan
  assert np.isclose(found['top5_accuracy'], np.average(hit, weights=weight.astype(np.float64)), rtol=1e-12)
  seen = np.union1d(labels, predicted[predicted < CLASSES])
  matrix = np.zeros((CLASSES, CLASSES))  # of NumPy, by hand
  np.add.at(matrix, (labels[~nan], predicted[~nan]), weight[~nan].astype(np.float64))
  right = np.diag(matrix).copy()
  np.testing.assert_allclose(found['right_each'][seen], right[seen], rtol=1e-12)
  np.fill_diagonal(matrix, 0)
  different, mistakes = found['confused_of']
  assert different == np.count_nonzero(matrix)
  assert np.isclose(mistakes, matrix.sum(), rtol=1e-12)
  rows = found['confused']
  assert len(rows) == min(100, different)
  assert (np.diff(rows[:, 2]) <= 0).all()
  np.testing.assert_allclose(matrix[rows[:, 0].astype(int), rows[:, 1].astype(int)], rows[:, 2], rtol=1e-12)
  assert found.get('nan_outputs', 0) == pytest.approx(weight[nan].sum(dtype=float))


def test_mistakes_are_exact_whatever_the_batches():
  random = np.random.default_rng(0)
  size, classes = 40_000, 3_000
  labels, predicted = random.integers(0, classes, size), random.integers(0, classes + 1, size)
  predicted = np.where(random.random(size) < 0.3, 1, predicted)
  weight = (random.random(size) * 10.0 ** random.integers(-4, 4, size)).astype(np.float32)
  answers = []
  for cuts in ([], [1, 2, 3, 30_000], list(range(0, size, 500)), [20_000]):
    order, found = random.permutation(size), None
    for part in np.split(order, cuts):
      found = add_mistakes(found, labels[part], predicted[part], weight[part], classes)
    answers.append(most_confused(found, classes, most=size))
  for rows, of in answers[1:]:
    assert np.array_equal(rows, answers[0][0])
    assert np.array_equal(of, answers[0][1])
  wrong = (labels != predicted) & (predicted < classes)
  assert np.isclose(answers[0][1][1], weight[wrong].astype(np.float64).sum(), rtol=1e-12)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'float16'])
@pytest.mark.parametrize('classes', [1_023, 1_024, 1_025, 2_048, 3_001])
def test_the_prediction_is_the_first_of_the_largest(classes, dtype):
  random = np.random.default_rng(classes)
  logits = np.round(random.normal(size=(40, classes)) * 3).astype(np.float32)  # many ties
  logits[0] = -np.inf
  logits[1, classes - 1] = np.inf
  logits[2, 5], logits[2, 9] = np.inf, -np.inf  # their sum is NaN, and none of them is
  logits[3, classes - 1], logits[4, 0] = np.nan, np.nan
  logits[5] = 6e4  # a sum that float16 cannot hold
  place, nan = jax.jit(predictions)(jnp.asarray(logits, dtype).reshape(8, 5, classes))
  assert np.flatnonzero(np.asarray(nan)).tolist() == [3, 4]
  known = np.asarray(jnp.asarray(logits, dtype), np.float32)
  keep = ~np.isnan(known).any(axis=1)
  assert np.asarray(place).reshape(-1)[keep].tolist() == known[keep].argmax(axis=1).tolist()


@pytest.mark.parametrize('make', [classification_metrics, tasks.position_metrics])
def test_what_the_device_holds_grows_with_the_classes_and_not_with_their_square(make):
  held = lambda classes: sum(4 * leaf.size for leaf in jax.tree.leaves(jax.eval_shape(make(classes).init)))  # noqa: E731
  assert held(DENSE) < 2 << 20
  assert held(20_000) < 10 << 20
  assert held(50_000) < 10 << 20
  metric, logits = make(20_000), jax.ShapeDtypeStruct((4, 3, 20_000), 'float32')
  batch = {'labels': jax.ShapeDtypeStruct((4, 3), 'int32'), 'weight': jax.ShapeDtypeStruct((4,), 'float32')}
  if make is classification_metrics:
    logits, batch['labels'] = jax.ShapeDtypeStruct((4, 20_000), 'float32'), jax.ShapeDtypeStruct((4,), 'int32')
  program = jax.jit(metric.update).lower(jax.eval_shape(metric.init), logits, batch, 0.0).compile()
  assert program.memory_analysis().temp_size_in_bytes < 20 << 20


@pytest.mark.unoptimized
def test_positions_of_many_classes_are_those_of_few():
  """The same counts with and without the matrix: unused classes change no mean over those that are there."""
  random = np.random.default_rng(1)
  few, many = tasks.position_metrics(6), tasks.position_metrics(300)
  logits = random.normal(size=(BATCH, 7, 6)).astype(np.float32)
  logits[3, 2, 1] = np.nan
  labels = random.integers(-1, 6, (BATCH, 7))
  batch = {'labels': jnp.asarray(labels), 'weight': jnp.asarray(random.integers(0, 8, BATCH), jnp.float32)}
  wide = np.concatenate([logits, np.full((BATCH, 7, 294), -99, np.float32)], axis=2)
  one = few.compute(few.update(few.init(), logits, batch, jnp.zeros(BATCH)))
  kept = many.merge(None, jax.device_get({**many.keep(wide, batch), 'weight': batch['weight']}))
  other = many.compute(many.update(many.init(), wide, batch, jnp.zeros(BATCH)), kept)
  for name in (*few.names, 'nan_outputs'):
    assert one[name] == other[name], name
  matrix = one['confusion']
  assert np.array_equal(other['right_each'][:6], np.diag(matrix))
  assert np.array_equal(other['predicted_each'][:6], matrix.sum(axis=0))
  for label, taken, weight in other['confused']:
    assert np.isclose(matrix[int(label), int(taken)], weight, rtol=1e-12)
  assert len(other['confused']) == np.count_nonzero(matrix - np.diag(np.diag(matrix)))
  assert np.isclose(other['confused_of'][1], matrix.sum() - np.trace(matrix), rtol=1e-12)


def test_tables_and_pictures_of_many_classes_stay_small_and_say_what_they_leave_out():
  task = tasks.classification()
  facts = task.facts(np.array([CLASSES - 1]), {'class_names': [f'kind {index}' for index in range(CLASSES)]})
  random = np.random.default_rng(0)
  logits = random.normal(size=(200, CLASSES)).astype(np.float32)
  values = _measured(logits, random.integers(0, CLASSES, 200), np.ones(200, np.float32))
  _scores, classes, pairs = task.tables(values, facts)
  assert 'the 20 lowest F1 of 5,000' in classes[0][0]
  assert len(classes) == 21
  different = int(values['confused_of'][0])
  assert f'the 20 heaviest of {different} pairs' in pairs[0][0]
  assert len(pairs) == 21
  assert pairs[1][0].startswith('kind ')
  assert pairs[1][2] == '1'
  (picture,) = task.figures(values, facts, 'mine')
  assert f'20 of {different} pairs' in picture.caption
  assert '5,000 classes' in picture.caption
  assert max(picture.draw().get_size_inches()) < 12
  assert task.tables({'accuracy': 1.0}, facts) == [] == task.figures({'accuracy': 1.0}, facts, 'mine')
