"""Every kind of task through the whole loop: trained, killed and resumed to the same bits, tested, loaded, answered."""

import base64
import functools
import json
from typing import NamedTuple

import numpy as np
import optax
import pytest

import jaxlite as jl
from jaxlite.run import loop
from loops import crash_at, leaves, points

pytestmark = pytest.mark.unoptimized

RNG = np.random.default_rng(0)
X = RNG.normal(size=(120, 6)).astype(np.float32)
TOKENS = RNG.integers(1, 9, (60, 8)).astype(np.int32)


class Case(NamedTuple):
  """One task: its data, its network, and a question to the loaded run."""

  data: object
  model: object
  asked: object


def dense(outputs):
  return lambda p, x: x @ p['w'] + p['b'], {'w': np.zeros((6, outputs), np.float32), 'b': np.zeros(outputs, np.float32)}


def per_position(outputs):
  table = RNG.normal(size=(9, 4)).astype(np.float32)
  return lambda p, x: p['table'][x] @ p['w'], {'table': table, 'w': np.zeros((4, outputs), np.float32)}


def cases():
  target = X @ np.arange(1, 7, dtype=np.float32) * 50 + 1000
  several = np.stack([X[:, 0] > 0, X[:, 1] > 0.5, X[:, 2] > -0.5], 1).astype(int)
  following = np.concatenate([TOKENS[:, 1:], np.full((60, 1), -1, np.int32)], 1)
  arrays, tasks = jl.data.from_arrays, jl.tasks
  return {
    'classification': Case(arrays((X, (X[:, 0] > 0).astype(int))), dense(2), X[:5]),
    'regression': Case(arrays((X, target), task=tasks.regression(target_names=['price'])), dense(1), X[:5]),
    'two targets': Case(arrays((X, np.stack([target, -target], 1)), task=tasks.regression()), dense(2), X[:5]),
    'binary': Case(arrays((X, (X[:, 0] > 1).astype(int)), task=tasks.binary(recall=0.8)), dense(1), X[:5]),
    'multi_label': Case(arrays((X, several), task=tasks.multi_label()), dense(3), X[:5]),
    'language': Case(arrays((TOKENS, following), task=tasks.language(9)), per_position(9), TOKENS[:5]),
    'segmentation': Case(arrays((TOKENS, TOKENS % 3), task=tasks.segmentation(3)), per_position(3), TOKENS[:5]),
  }


CASES = cases()


def config_of():
  config = jl.Config(name='task', train=jl.Duration(steps=12))
  config.optim.lr = 0.05
  config.log.every = config.eval.every = jl.Duration(steps=3)
  config.checkpoint.every, config.data.batch_size, config.eval.batch_size = jl.Duration(steps=4), 16, 20
  config.log.tensorboard = config.log.progress = False
  config.machine.steps_per_dispatch = 1  # so that a crash can be placed between two steps
  return config


def trained(folder, case):
  return jl.train(config_of(), folder, model=case.model, data=case.data, say=lambda line: None)


@pytest.fixture(scope='module')
def straight_run(tmp_path_factory):
  """(folder, result) of a run that nothing befell, by the name of its task; each is trained once."""

  @functools.cache
  def of(name):
    folder = tmp_path_factory.mktemp('straight') / 'run'
    return folder, trained(folder, CASES[name])

  return of


@pytest.mark.sampled(3)
@pytest.mark.parametrize('name', CASES)
def test_a_task_is_trained_resumed_tested_reported_and_loaded(name, straight_run, tmp_path, monkeypatch):
  case, (folder, straight) = CASES[name], straight_run(name)
  for _ in crash_at(7, monkeypatch):
    with pytest.raises(MemoryError):
      trained(tmp_path / 'killed', case)
  resumed = trained(tmp_path / 'killed', case)
  assert leaves(tmp_path / 'killed') == leaves(folder)
  assert points(tmp_path / 'killed') == points(folder)
  assert resumed.metrics == straight.metrics
  assert resumed.facts == straight.facts
  task = case.data.task
  assert task.score in straight.metrics
  again = loop.evaluate_run(config_of(), folder, model=case.model, data=case.data, say=lambda line: None)
  assert again.metrics == straight.metrics
  report = (folder / 'report.md').read_text()
  for file, _ in straight.figures:
    assert (folder / file).stat().st_size > 1000
    assert f']({file})' in report
  for label, metric, _ in straight.rows:
    assert (label in report) == (metric in straight.metrics), label
  network = jl.load(folder)
  raw = np.asarray(network.predict(case.asked))
  assert np.isfinite(raw).all()
  labels = network.predict_labels(case.asked)
  assert len(labels) == len(case.asked)
  saved = json.loads((folder / 'task.json').read_text())
  assert saved['task'] == task.name
  assert saved['facts'] == json.loads(json.dumps(straight.facts))


@pytest.mark.parametrize(
  ('name', 'metric'), [('classification', 'accuracy'), ('binary', 'accuracy'), ('multi_label', 'exact_match')]
)
def test_what_is_told_of_single_examples_is_what_was_measured(name, metric, straight_run):
  _, result = straight_run(name)
  bits = np.unpackbits(np.frombuffer(base64.b64decode(result.right), np.uint8))[: result.examples]
  assert bits.mean() == pytest.approx(result.metrics[metric])
  wrong = {int(one['example']) for one in result.mistakes}
  assert wrong <= set(np.flatnonzero(~bits.astype(bool)).tolist())
  assert len(wrong) == min(12, int((bits == 0).sum()))
  assert all(one['true'] != one['predicted'] for one in result.mistakes)


def test_the_worst_of_a_regression_are_those_that_are_furthest_off(straight_run):
  case, (folder, result) = CASES['regression'], straight_run('regression')
  test = case.data.test
  off = np.abs(np.asarray(jl.load(folder).predict_labels(test.inputs)).reshape(-1) - test.labels)
  assert [int(one['example']) for one in result.mistakes] == np.argsort(-off, kind='stable')[:12].tolist()
  assert result.right == ''


def test_regression_answers_in_the_units_of_its_targets(straight_run):
  case, (folder, result) = CASES['regression'], straight_run('regression')
  network = jl.load(folder)
  test = case.data.test
  found = np.asarray(network.predict_labels(test.inputs), np.float64).reshape(-1)
  assert abs(np.sqrt(np.mean((found - test.labels) ** 2)) - result.metrics['rmse']) < 1e-4 * result.metrics['rmse']
  assert abs(found.mean() - 1000) < 300  # twelve steps: near the targets' mean, not near zero


def test_a_threshold_is_chosen_on_validation_and_kept_with_the_model(straight_run):
  case, (folder, result) = CASES['binary'], straight_run('binary')
  network = jl.load(folder)
  proba = np.asarray(network.predict_proba(case.data.validation.inputs))
  threshold, wanted = result.facts['threshold'], case.data.validation.labels == 1
  assert (proba >= threshold)[wanted].mean() >= 0.8
  labels = np.asarray(network.predict_labels(X))
  names = result.facts['class_names']
  assert labels.dtype.kind == 'i'  # as the labels came
  assert [str(label) for label in labels] == [names[int(p >= threshold)] for p in np.asarray(network.predict_proba(X))]


def rank_error(outputs, batch):
  import jax.numpy as jnp

  return jnp.abs(outputs[:, 0] - batch['labels'])


def test_a_task_of_ones_own_is_twenty_lines(tmp_path):
  mine = jl.tasks.Task(
    'ranks',
    loss=lambda facts: lambda outputs, batch: rank_error(outputs, batch) ** 2,
    metrics=lambda facts: jl.tasks.means(error=rank_error),
    score='error',
    falls=('error',),
    rows=(('error', 'error', '{:.3f}'),),
  )
  data = jl.data.from_arrays((X, X[:, 0] * 2), task=mine)
  result = jl.train(config_of(), tmp_path, model=dense(1), data=data, say=lambda line: None)
  scores = [point['error'] for point in points(tmp_path) if point['kind'] == 'validation']
  assert result.best_step == 3 * (1 + int(np.argmin(scores)))  # smaller is better
  with pytest.raises(ValueError, match='does not know what its outputs mean'):
    jl.load(tmp_path).predict_labels(X[:2])
  assert len(jl.load(tmp_path, task=mine).predict_labels(X[:2])) == 2


@pytest.mark.sampled(1)
@pytest.mark.parametrize('name', ['classification', 'regression'])
def test_folds_test_every_example_once_and_go_on(name, tmp_path):
  case = CASES[name]
  pair = (np.concatenate([split.inputs for split in (case.data.train, case.data.validation, case.data.test)]),)
  pair += (np.concatenate([split.labels for split in (case.data.train, case.data.validation, case.data.test)]),)
  data = jl.data.from_arrays(pair, task=case.data.task)
  # Two folds: the fewest that say all of this.
  found = jl.cross_validate(config_of(), tmp_path, data=data, model=lambda: case.model, folds=2, say=lambda line: None)
  assert sum(result.examples for result in found.results) == 120
  metric = case.data.task.score
  assert found.mean[metric] == pytest.approx(np.mean([result.metrics[metric] for result in found.results]))
  again = jl.cross_validate(config_of(), tmp_path, data=data, model=lambda: case.model, folds=2, say=lambda line: None)
  assert again.mean == found.mean


def test_the_first_minute_needs_neither_model_nor_recipe(tmp_path):
  config = jl.Config(name='mine', train=jl.Duration(epochs=15))
  config.log.progress = config.log.tensorboard = False
  labels = (X[:, 0] + X[:, 1] > 0).astype(int)
  result = jl.train(config, tmp_path, data=(X, labels), say=lambda line: None)
  assert result.metrics['accuracy'] >= 0.75


def test_a_score_that_is_no_number_is_never_the_best(tmp_path):
  labels = (X[:, 0] > 0).astype(int)
  one_class = X[labels == 1][:10], np.ones(10, int)  # no curve over one class: ROC-AUC is NaN
  data = jl.data.from_arrays((X[:80], labels[:80]), one_class, (X[80:], labels[80:]), task=jl.tasks.binary())
  config = config_of()
  config.eval.metric = 'roc_auc'
  result = jl.train(config, tmp_path, model=dense(1), data=data, say=lambda line: None)
  assert result.best_step == 12  # the last one, since no validation told any from another


def test_a_task_named_twice_is_one_and_a_score_is_a_metric(tmp_path):
  config = config_of()
  config.task = lambda: jl.tasks.binary(recall=0.9)
  with pytest.raises(
    ValueError, match=r"differ \(wanted: \{'recall': 0.9\} and \{'recall': 0.8\}\): make the data set"
  ):
    jl.train(config, tmp_path, model=dense(1), data=CASES['binary'].data, say=lambda line: None)
  config.task = lambda: jl.tasks.binary(recall=0.8)
  jl.train(config, tmp_path, model=dense(1), data=CASES['binary'].data, say=lambda line: None)
  lost = jl.tasks.Task('lost', lambda facts: rank_error, lambda facts: jl.tasks.means(error=rank_error), 'eror')
  with pytest.raises(ValueError, match="the score of the task lost is one of the metrics; got 'eror'; nearest: error"):
    jl.train(config_of(), tmp_path / 'b', model=dense(1), data=jl.data.from_arrays((X, X[:, 0]), task=lost), say=print)


def test_standardizing_is_turned_off_by_the_config_whatever_the_data_are(tmp_path):
  config, said = config_of(), []
  config.data.standardize = False
  jl.train(config, tmp_path, model=dense(2), data=CASES['classification'].data, say=said.append)
  assert 'note: inputs are not standardized, as data.standardize says' in said
  params = jl.load(tmp_path).params
  np.testing.assert_allclose(jl.load(tmp_path).predict(X[:5]), X[:5] @ params['w'] + params['b'], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('name', ['regression', 'binary', 'multi_label'])
def test_what_reads_outputs_as_one_class_of_many_is_refused_where_they_are_not(name, tmp_path):
  case = CASES[name]
  teacher = jl.Network(jl.from_function(*dense(1)), {'w': np.ones((6, 1), np.float32), 'b': np.ones(1, np.float32)}, {})
  wrong = jl.distill(teacher), jl.distillation.self_distill(), jl.optim.label_smoothing(0.1), jl.distill([teacher] * 2)
  for part in wrong:
    config = config_of()
    config.recipe = lambda config, total, part=part: jl.chain(part, optax.adam(0.1))
    with pytest.raises(ValueError, match=f'{part.name} needs outputs .* of the task {name} are not: leave it out'):
      jl.train(config, tmp_path, model=case.model, data=case.data, say=print)


def test_a_divergence_of_ones_own_teaches_any_task(tmp_path):
  config, case = config_of(), CASES['regression']
  teacher = jl.Network(jl.from_function(*dense(1)), {'w': np.ones((6, 1), np.float32), 'b': np.ones(1, np.float32)}, {})
  part = jl.distill(teacher, loss=lambda student, teacher: ((student - teacher) ** 2).mean(-1))
  config.recipe = lambda config, total: jl.chain(part, optax.adam(0.1))
  jl.train(config, tmp_path, model=case.model, data=case.data, say=lambda line: None)
  assert all(point['distill'] > 0 for point in points(tmp_path) if point['kind'] == 'train')


def test_early_stopping_says_when_and_why(tmp_path):
  config, said = config_of(), []
  config.eval.patience, config.eval.metric = 1, 'share'
  always = jl.tasks.Task(
    'flat',
    loss=lambda facts: rank_error,
    metrics=lambda facts: jl.tasks.means(share=lambda outputs, batch: 0 * rank_error(outputs, batch)),
    score='share',
  )
  data = jl.data.from_arrays((X, X[:, 0]), task=always)
  result = jl.train(config, tmp_path, model=dense(1), data=data, say=said.append)
  line = 'stopped early at step 6 of 12: 1 validation without a better share than at step 3'
  assert line in said
  assert line in result.notes
  assert line in (tmp_path / 'report.md').read_text()


def test_early_stopping_by_a_metric_that_is_no_number_says_so(tmp_path):
  config, said = config_of(), []
  config.eval.patience, config.eval.metric = 1, 'roc_auc'
  data = jl.data.from_arrays((X, (np.arange(len(X)) == 0).astype(int)), task=jl.tasks.binary)  # validation has none
  jl.train(config, tmp_path, model=dense(1), data=data, say=said.append)
  assert 'stopped early at step 3 of 12: 1 validation without a roc_auc that is a number' in ' '.join(said)


def test_a_task_of_ones_own_may_bear_the_name_of_a_built_in_one(tmp_path):
  mine = jl.tasks.Task('binary', lambda facts: rank_error, lambda facts: jl.tasks.means(error=rank_error), 'error')
  data = jl.data.from_arrays((X, X[:, 0]), task=mine)
  jl.train(config_of(), tmp_path, model=dense(1), data=data, say=lambda line: None)
  with pytest.raises(ValueError, match='does not know what its outputs mean'):
    jl.load(tmp_path).predict_proba(X[:2])
  assert len(jl.load(tmp_path, task=mine).predict_labels(X[:2])) == 2
