"""Searches over what others bring: fine-tuning, numbers to be small, frameworks, points that come to nothing."""

import dataclasses
import json
import os

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxlite as jl
import tunable
from jaxlite.errors import ConfigError
from jaxlite.run.finetune import ready
from jaxlite.tuning import stopping
from jaxlite.tuning.database import StorageError
from jaxlite.tuning.ledger import COMPLETE, PRUNED, Report

pytestmark = pytest.mark.unoptimized


def ask(folder, config, space, **given):
  told = []
  found = jl.tune(config, folder, space, say=told.append, **{'method': 'grid', 'stop': 'none', **given})
  return found, told


def line():
  rng = np.random.default_rng(0)
  x = rng.normal(size=(200, 3)).astype(np.float32)
  y = (x @ np.array([1.0, -2.0, 0.5]) + 0.1 * rng.normal(size=200)).astype(np.float32)
  return jl.data.from_arrays((x[:120], y[:120]), (x[120:160], y[120:160]), (x[160:], y[160:]), task=jl.tasks.regression)


def short(steps=20, **fields):
  made = dataclasses.replace(tunable.config(steps), recipe=recipe, **fields)
  made.log.progress = False
  return made


def recipe(config, total_steps, rate=0.1, optimizer='sgd'):
  return jl.chain({'sgd': optax.sgd, 'adam': optax.adam}[optimizer](rate))


def test_a_score_that_is_no_number_is_the_worst_whatever_is_better():
  rows = [Report(number, 1, 0.5, value) for number, value in enumerate([0.9, 0.8, 0.7, 0.6, -np.inf])]
  for rule in ('median', 'halving'):
    assert stopping.verdict(rule, 4, 4, 0.5, rows)
  flipped = [one._replace(value=-one.value) if np.isfinite(one.value) else one for one in rows]
  assert stopping.verdict('median', 4, 4, 0.5, flipped, sign=-1)


def test_a_fine_tune_without_a_network_is_told():
  with pytest.raises(ConfigError, match='begins with a network that has learned: give it as model='):
    ready(jl.FineTune(name='x'), None, None, str)
  assert ready(tunable.config(), 'mine', 'data', str)[1:] == ('mine', 'data', frozenset())


@pytest.mark.slow
def test_settings_of_fine_tuning_are_searched_and_the_best_is_what_finetune_gives(tmp_path):
  rng = np.random.default_rng(1)
  y = np.arange(150) % 3
  x = (rng.normal(size=(3, 4))[y] * 2 + rng.normal(size=(150, 4))).astype(np.float32)
  params = {'a': jnp.asarray(rng.normal(size=(4, 8)), jnp.float32), 'b': jnp.zeros((8, 2))}
  network = (lambda p, x: jnp.tanh(x @ p['a']) @ p['b'], params)
  config = jl.FineTune(name='fine', train=jl.Duration(steps=8), features=str(tmp_path / 'features'))
  config.data.batch_size, config.log.tensorboard = 16, False
  space = {'method': jl.tuning.choice('probe', 'full'), 'optim.lr': jl.tuning.choice(1e-4, 3e-3)}
  found, _ = ask(tmp_path / 'study', config, space, model=network, data=(x, y), trials=3)
  assert [one.state for one in found.trials] == [COMPLETE] * 3
  own = found.trial_config()
  result = jl.finetune(network, (x, y), tmp_path / 'alone', config=own, say=str)
  assert result.metrics['accuracy'] == found.best.found['test/accuracy']
  log = (found.workdir() / 'log.txt').read_text()
  assert 'nobody reads' not in log
  assert f'{own.method!r}' in json.dumps(str(own))


@pytest.mark.slow
def test_a_number_to_be_small_is_searched_and_what_diverges_teaches_optuna(tmp_path):
  optuna = pytest.importorskip('optuna')
  network = jl.from_function(lambda p, x: x @ p['w'], {'w': jnp.zeros((3, 1))})
  space = {'recipe.rate': jl.tuning.choice(1e-3, 0.1, 1e20), 'recipe.optimizer': jl.tuning.choice('sgd', 'adam')}
  config = short()
  found, told = ask(tmp_path, config, space, model=network, data=line(), method='tpe', trials=6)
  scores = {one.number: one.found.get('rmse', np.inf) for one in found.trials}
  assert not found.goals[0].maximize
  assert found.best.found[found.goals[0].name] == min(scores.values()), told
  assert found.values()['recipe.rate'] == 0.1
  storage = optuna.storages.RDBStorage(f'sqlite:///{tmp_path / "study.db"}')
  name = json.loads((tmp_path / 'study.json').read_text())['study']
  states = {
    one.user_attrs['trial']: one.state.name for one in optuna.load_study(study_name=name, storage=storage).trials
  }
  storage.remove_session()
  storage.engine.dispose()
  assert {states[one.number] for one in found.trials if one.state == 'failed'} <= {'PRUNED'}


def test_a_storage_that_goes_in_the_middle_is_told_and_the_search_goes_on_when_it_is_back(tmp_path):
  folder, aside = tmp_path / 'study', tmp_path / 'aside'
  aside.mkdir()

  def say(text):
    if text.startswith('trial 0:'):
      for path in folder.glob('study.db*'):
        os.rename(path, aside / path.name)

  given = {'model': tunable.network(), 'data': tunable.data(), 'method': 'random', 'trials': 2, 'stop': 'none'}
  space = {'seed': jl.tuning.integer(0, 99)}
  with pytest.raises(StorageError, match=r'cannot be reached .*bring it back and run the same again') as error:
    jl.tune(short(), folder, space, say=say, **given)
  assert '\n' not in str(error.value)
  for path in aside.iterdir():
    os.rename(path, folder / path.name)
  found = jl.tune(short(), folder, space, say=str, **given)
  assert [(one.state, one.attempts) for one in found.trials] == [(COMPLETE, 1)] * 2


def test_data_that_a_name_of_the_space_has_a_part_in_are_told(tmp_path):
  rows = tunable.data().train
  config = short()
  config.data.validation = 0.2
  space = {'seed': jl.tuning.choice(1)}
  found, told = ask(tmp_path, config, space, model=tunable.network(), data=(rows.inputs, rows.labels), trials=1)
  assert any('seed of the search space has a part in loading the data' in one for one in told)
  assert found.best is not None


@pytest.mark.slow
def test_a_point_whose_validation_is_no_number_is_stopped_where_others_are_seen(tmp_path):
  def loud(config, total_steps, rate=0.1):
    return jl.chain(optax.sgd(rate))

  network = jl.from_function(lambda p, x: jnp.exp(x @ p['w']), {'w': jnp.zeros((3, 1))})
  data = line()
  far = data.validation._replace(inputs=data.validation.inputs * 1e4)
  config = dataclasses.replace(short(), recipe=loud)
  space = {'recipe.rate': jl.tuning.choice(1e-3, 0.0), 'seed': jl.tuning.integer(0, 3)}
  found, _ = ask(tmp_path, config, space, model=network, data=data._replace(validation=far), stop='median')
  by_rate = {}
  for one in found.trials:
    by_rate.setdefault(found.values(one)['recipe.rate'], set()).add(one.state)
  assert by_rate[0.0] == {COMPLETE}
  assert COMPLETE not in by_rate[1e-3]
  assert PRUNED in by_rate[1e-3]
  assert found.values()['recipe.rate'] == 0.0


@pytest.mark.slow
@pytest.mark.parametrize('framework', ['nnx', 'equinox'])
def test_networks_of_others_are_searched(tmp_path, framework):
  if framework == 'nnx':
    nnx = pytest.importorskip('flax.nnx')
    network = nnx.Linear(5, 3, rngs=nnx.Rngs(0))
  else:
    eqx = pytest.importorskip('equinox')
    import jax

    network = eqx.nn.MLP(5, 3, 8, 1, key=jax.random.key(0))
  space = {'recipe.rate': jl.tuning.log_uniform(1e-3, 1e-1), 'data.batch_size': jl.tuning.choice(8, 16)}
  found, _ = ask(tmp_path, short(), space, model=network, data=tunable.data(), method='tpe', trials=3)
  assert [one.state for one in found.trials] == [COMPLETE] * 3
  assert jl.load(found.workdir()).predict_labels(tunable.data().test.inputs).shape == (40,)
