"""A search as one call: it goes on where it stopped, keeps its budget, and tells in a line what cannot be."""

import csv
import dataclasses
import json
import shutil
import time

import numpy as np
import optax
import pytest

import jaxlite as jl
import tunable
from jaxlite.errors import ConfigError
from jaxlite.run import search, worker
from jaxlite.tuning.database import StorageError
from jaxlite.tuning.ledger import COMPLETE, FAILED, PRUNED, WAITING
from jaxlite.tuning.surrogate import next_by_surrogate

pytestmark = pytest.mark.unoptimized

SEEDS = {'seed': jl.tuning.integer(0, 99)}


def plain(config, total_steps):
  return jl.chain(optax.sgd(1.0))


def ask(folder, space=SEEDS, config=None, **given):
  told = []
  given = {'model': tunable.network(), 'data': tunable.data(), 'method': 'random', **given}
  found = jl.tune(config or tunable.config(20), folder, space, say=told.append, **given)
  return found, told


@pytest.fixture(scope='module')
def study(tmp_path_factory):
  """One trial, then the same asked for two."""
  folder = tmp_path_factory.mktemp('study') / 'one'
  first, _ = ask(folder, trials=1, stop='none')
  again, told = ask(folder, trials=2, stop='none', limits={'bytes': 10_000}, command='a command')
  return folder, first, again, told


def test_a_rerun_goes_on_and_totals_count(study):
  _, first, again, told = study
  assert [one.state for one in again.trials] == [COMPLETE] * 2
  assert again.trials[:1] == first.trials
  assert sum(line.startswith('trial ') for line in told) == 1
  assert 'forecast: a trial needs' in told[0]
  assert again.seconds > first.seconds
  best = max(again.trials, key=lambda one: one.found['accuracy'])
  assert again.best.found['accuracy'] == best.found['accuracy']
  assert again.values() == {'seed': again.best.given['seed']}


def test_a_trial_is_a_run_that_can_be_asked_again_and_predicts(study):
  _, _, again, _ = study
  result = jl.train(again.trial_config(), again.workdir(), model=tunable.network(), data=tunable.data(), say=str)
  assert result.metrics['accuracy'] == again.best.found['test/accuracy']
  validation = {one['step']: one for one in result.history if one['kind'] == 'validation'}
  assert validation[result.best_step]['accuracy'] == again.best.found['accuracy']
  network = jl.load(again.workdir())
  test = tunable.data().test
  assert (network.predict_labels(test.inputs) == test.labels).mean() == pytest.approx(result.metrics['accuracy'])


def test_what_it_leaves(study):
  folder, _, again, _ = study
  rows = list(csv.DictReader((folder / 'trials.csv').read_text().splitlines()))
  assert [float(row['accuracy']) for row in rows] == [one.found['accuracy'] for one in again.trials]
  page = (folder / 'report.md').read_text()
  assert 'a command' in page
  assert '| best' in page
  for name in ('history.png', 'parallel.png'):
    assert (folder / name).read_bytes()[:4] == b'\x89PNG'
    assert f'({name})' in page
  assert f'--config.seed={again.best.given["seed"]}' in str(again)
  assert 'bytes' in str(again).splitlines()[0]


def test_tensorboard_reads_its_hparams(study):
  folder, _, again, _ = study
  event_file = pytest.importorskip('tensorboard.backend.event_processing.event_file_loader')
  from tensorboard.plugins.hparams import metadata

  files = sorted((folder / 'hparams').rglob('events.*'))
  assert len(files) == 2
  for path, trial in zip(files, again.trials, strict=True):
    values = [value for event in event_file.EventFileLoader(str(path)).Load() for value in event.summary.value]
    by_tag = {value.tag: value for value in values}
    start = metadata.parse_session_start_info_plugin_data(
      by_tag['_hparams_/session_start_info'].metadata.plugin_data.content
    )
    assert start.hparams['seed'].number_value == trial.given['seed']
    end = metadata.parse_session_end_info_plugin_data(by_tag['_hparams_/session_end_info'].metadata.plugin_data.content)
    assert end.status == 1
    assert by_tag['accuracy'].tensor.float_val[0] == pytest.approx(trial.found['accuracy'])


@pytest.mark.parametrize(
  'change, said',
  [
    ({'space': {'seed': jl.tuning.integer(0, 9)}}, 'seed of the search space'),
    ({'config': tunable.config(40)}, 'train: saved 20 steps, now 40 steps'),
    (
      {'config': dataclasses.replace(tunable.config(20), recipe=plain)},
      'recipe',
    ),
    (
      {'model': jl.from_function(lambda params, x: x @ params['w'], {'w': np.zeros((5, 3), np.float32)})},
      'another program',
    ),
    ({'storage': 'postgresql://a:secret@host/b'}, 'is kept in the workdir: leave storage out'),
  ],
)
def test_a_study_goes_on_as_the_same_only(study, change, said):
  with pytest.raises(ConfigError, match=said) as error:
    ask(study[0], trials=5, **change)
  assert 'secret' not in str(error.value)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize(
  'given, said',
  [
    ({'space': {}}, 'a search space is a dict of fields and kinds'),
    ({'space': {'optim.lrr': jl.tuning.uniform(0, 1)}}, 'nearest: optim.lr'),
    ({}, "a search ends: give budget='2 hours'"),
    ({'trials': 0}, 'trials is a whole number, at least 1'),
    ({'trials': 3, 'method': 'tpee'}, "got 'tpee', nearest: tpe"),
    ({'trials': 3, 'stop': 'meridian'}, "got 'meridian', nearest: median"),
    ({'trials': 3, 'goals': 'acuracy'}, "got 'acuracy'; nearest: accuracy"),
    ({'trials': 3, 'goals': 'bytes'}, 'the first goal is a validation metric'),
    ({'trials': 3, 'goals': 3}, r"goals are names, 'accuracy' or .*; got 3"),
    ({'trials': 3, 'goals': 'loss,bytes'}, "set eval.metric to 'loss'"),
    ({'trials': 3, 'limits': 'size:3'}, "got 'size'"),
    ({'trials': 3, 'run': 'student'}, "'student' is no name of several"),
    ({'trials': 3, 'method': 'cmaes', 'space': {'seed': jl.tuning.choice(1, 2)}}, 'choices alone'),
    ({'trials': 3, 'method': 'cmaes', 'goals': 'accuracy,bytes'}, 'cmaes has one goal'),
    ({'trials': 3, 'method': 'gp', 'goals': 'accuracy,bytes'}, 'gp has one goal'),
    ({'trials': 3, 'storage': 'mysql://a:secret@nowhere/b'}, 'postgresql'),
  ],
)
def test_what_cannot_be_asked_is_told_in_a_line_and_leaves_nothing(tmp_path, given, said):
  with pytest.raises((ConfigError, ValueError), match=said) as error:
    ask(tmp_path / 'study', **given)
  assert '\n' not in str(error.value)
  assert not list((tmp_path / 'study').rglob('checkpoints'))


def test_without_validation_nothing_is_compared(tmp_path):
  rows = tunable.data().train
  config = tunable.config(20)
  config.data.validation = 0.0
  with pytest.raises(ConfigError, match='holds no validation split out'):
    ask(tmp_path, config=config, data=(rows.inputs, rows.labels), trials=2)


def test_a_storage_that_is_gone(study, tmp_path):
  folder = shutil.copytree(study[0], tmp_path / 'copy')
  for held in folder.glob('study.db*'):
    held.rename(tmp_path / held.name)
  with pytest.raises(StorageError, match='is gone: put it back'):
    ask(folder, trials=2)
  for held in tmp_path.glob('study.db*'):
    shutil.copy(held, folder)
  found, _ = ask(folder, trials=2)
  assert found.trials == study[2].trials
  kept = (folder / 'study.json').read_text()
  (folder / 'study.json').write_text('{')
  with pytest.raises(StorageError, match='damaged'):
    ask(folder, trials=2)
  (folder / 'study.json').write_text(json.dumps({**json.loads(kept), 'study': 'another'}))
  with pytest.raises(StorageError, match='knows nothing of the study'):
    ask(folder, trials=2)
  (folder / 'study.json').unlink()
  with pytest.raises(StorageError, match='gone'):
    ask(folder, trials=2)


@pytest.mark.slow
def test_a_study_that_is_begun_anew_leaves_the_old_one_aside(study, tmp_path):
  folder = shutil.copytree(study[0], tmp_path / 'copy')
  found, _ = ask(folder, trials=1, fresh=True)
  assert len(found.trials) == 1
  assert len(list((tmp_path / 'copy.old1' / 'trials').iterdir())) == 2


@pytest.mark.slow
def test_a_minute_ends_within_a_minute_and_leaves_a_best_that_predicts(tmp_path):
  one = tunable.config(20_000)
  one.eval.every = one.checkpoint.every = one.log.every = jl.Duration(steps=2_000)
  began = time.monotonic()
  found, told = ask(tmp_path, config=one, budget='1 minute')
  assert time.monotonic() - began < 63, told
  assert {one.state for one in found.trials} <= {COMPLETE, PRUNED, WAITING}
  assert jl.load(found.workdir()).predict(tunable.data().test.inputs).shape == (40, 3)
  again, _ = ask(tmp_path, config=one, budget='1 minute')
  assert again.trials == found.trials
  assert found.seconds <= 63


def test_a_budget_too_short_for_one_trial(tmp_path):
  long = tunable.config(2_000_000_000)
  with pytest.raises(
    ConfigError, match=r'a budget of 30 s is too short for one trial, which takes about .* (min|h|days)'
  ):
    ask(tmp_path, config=long, budget='30 seconds')


def test_want_of_memory_is_a_trials_own_fault_and_a_mistake_in_code_is_everybodys():
  of_one = [MemoryError(), RuntimeError("can't start new thread"), FloatingPointError('overflow')]
  assert all(map(worker._is_of_the_trial, of_one))
  assert not any(map(worker._is_of_the_trial, [RuntimeError('no such layer'), TypeError('a list'), KeyError('w')]))


def test_what_diverges_fails_alone(tmp_path):
  space = {'recipe.rate': jl.tuning.choice(0.01, 1e30), 'data.batch_size': jl.tuning.choice(16, 1000)}
  sgd = lambda config, total, rate=0.1: jl.chain(optax.sgd(rate))  # noqa: E731
  config = dataclasses.replace(tunable.config(20), recipe=sgd)
  found, _ = ask(tmp_path / 'some', space, config, method='grid')
  assert sorted(one.state for one in found.trials) == [COMPLETE, FAILED, FAILED, FAILED]
  why = {
    found.values(one)['recipe.rate']: one.why for one in found.trials if found.values(one)['data.batch_size'] == 16
  }
  assert 'not finite' in why[1e30]
  assert sum('at most the 61 training examples' in one.why for one in found.trials) == 2
  assert found.values()['recipe.rate'] == 0.01


@pytest.mark.slow
def test_if_all_diverge_the_search_tells_why(tmp_path):
  space = {'seed': jl.tuning.integer(0, 9)}
  config = dataclasses.replace(tunable.config(20), recipe=lambda config, total: jl.chain(optax.sgd(1e30)))
  with pytest.raises(ValueError, match=r'the first 3 trials failed, all of them, the last .* not finite'):
    ask(tmp_path / 'all', space, config, trials=9)


def test_a_fault_in_the_code_is_raised(tmp_path):
  def recipe(config, total_steps, rate=0.1):
    if rate > 0.5:
      raise KeyError('of the recipe')
    return jl.chain(optax.sgd(rate))

  config = dataclasses.replace(tunable.config(20), recipe=recipe)
  space = {'recipe.rate': jl.tuning.choice(0.9, 0.95)}
  with pytest.raises(KeyError, match='of the recipe'):
    ask(tmp_path, space, config, method='grid')


@pytest.mark.slow
def test_bad_trials_stop_early(tmp_path):
  config = dataclasses.replace(tunable.config(40), recipe=tunable.recipe)
  space = {'recipe.rate': jl.tuning.choice(0.03, 1e-9), 'seed': jl.tuning.integer(0, 9)}
  found, _ = ask(tmp_path / 'halving', space, config, trials=7, stop='halving')
  assert {one.state for one in found.trials} == {COMPLETE, PRUNED}
  for one in found.trials:
    if one.state == PRUNED:
      assert 'one in 3 goes on' in one.why
      assert not (search.trial_folder(found.folder, one.number) / 'result.json').exists()


@pytest.mark.slow
def test_two_goals_make_a_front_and_limits_hold(tmp_path):
  def network(config, width=4):
    return jl.models.MLP((width,), classes=3)

  config = dataclasses.replace(tunable.config(20), model=network)
  given = {'goals': ('accuracy', 'bytes'), 'limits': {'bytes': 4_000, 'latency': 60_000}, 'model': None}
  found, _ = ask(tmp_path / 'front', {'model.width': jl.tuning.choice(2, 300)}, config, method='grid', **given)
  by_width = {found.values(one)['model.width']: one for one in found.trials}
  assert by_width[2].found['bytes'] < 4_000 < by_width[300].found['bytes']
  assert 0 < by_width[2].found['latency'] < 60_000
  assert found.front == (by_width[2],)
  assert found.best == by_width[2]
  assert 'over bytes' in str(found)
  assert (tmp_path / 'front' / 'pareto.png').exists()


def test_a_point_is_a_function_of_the_trials_before_it(tmp_path):
  """So that a search that goes on, after whatever, tries what it would have tried."""
  space = {'recipe.rate': jl.tuning.log_uniform(1e-4, 1e-1), 'seed': jl.tuning.integer(0, 9)}
  found, told = ask(tmp_path, space, tunable.config(6), trials=6, method='auto', stop='none', seed=3)
  assert 'by gp' in told[0]
  for place, one in enumerate(found.trials):
    before = found.trials[:place]
    assert next_by_surrogate(found.space, 3, before, [], found.goals[0], {}) == one.given


@pytest.mark.parametrize(
  'method', ['tpe', pytest.param('cmaes', marks=pytest.mark.slow), pytest.param('nsga2', marks=pytest.mark.slow)]
)
def test_optuna_suggests_and_its_study_is_what_the_ledger_says(tmp_path, method):
  optuna = pytest.importorskip('optuna')
  space = {'recipe.rate': jl.tuning.log_uniform(1e-4, 1e-1), 'seed': jl.tuning.integer(0, 9)}
  goals = ('accuracy', 'bytes') if method == 'nsga2' else ()
  limits = {'bytes': 100} if method == 'tpe' else None
  found, _ = ask(tmp_path, space, tunable.config(10), trials=2, method=method, goals=goals, limits=limits)
  name = json.loads((tmp_path / 'study.json').read_text())['study']
  storage = optuna.storages.RDBStorage(f'sqlite:///{tmp_path / "study.db"}')
  rows = optuna.load_study(study_name=name, storage=storage).trials
  storage.remove_session()
  storage.engine.dispose()
  assert [(one.number, one.state.name) for one in rows] == [(0, 'COMPLETE'), (1, 'COMPLETE')]
  for row, trial in zip(rows, found.trials, strict=True):
    assert row.params == trial.given
    assert row.values[0] == trial.found['accuracy']
    assert not limits or row.constraints['bytes'] == trial.found['bytes'] - 100
  assert (found.best is None) == bool(limits)
  if limits:
    assert 'no trial keeps the limits (bytes 100)' in str(found)
