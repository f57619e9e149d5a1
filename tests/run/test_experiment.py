"""One of an experiment's runs, by name: it alone is trained, and the others and their page stay as they are."""

import dataclasses
import functools
import json

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxlite as jl
from jaxlite.errors import ConfigError
from jaxlite.run import experiment

pytestmark = pytest.mark.unoptimized


def seeded(config, seed):
  return dataclasses.replace(config, seed=seed)


def model(config):
  start = {'w': jnp.zeros((64, 10)), 'b': jnp.zeros(10)}
  return jl.from_function(lambda params, x: x.reshape(x.shape[0], -1) @ params['w'] + params['b'], start)


def recipe(config, total_steps):
  return jl.chain(optax.adam(config.optim.lr))


def several():
  config = jl.Config(name='mine', model=model, recipe=recipe, train=jl.Duration(steps=6))
  config.eval.every = config.checkpoint.every = config.log.every = jl.Duration(steps=3)
  config.log.tensorboard = False
  config.runs = {name: functools.partial(seeded, seed=seed) for seed, name in enumerate('abc')}
  return config


def contents(folder):
  return {path: path.read_bytes() for path in folder.rglob('*') if path.is_file() and path.name != '.lock'}


def test_one_of_several_runs_is_trained_alone_and_the_whole_takes_it_as_it_is(tmp_path, capsys):
  assert experiment.run(several(), tmp_path, only=['b']) == 0
  told = capsys.readouterr().out
  assert '== b' in told
  assert '== a' not in told
  assert f'report: {tmp_path / "b" / "report.md"}' in told
  assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ['b']
  assert not (tmp_path / 'report.md').exists()
  alone = contents(tmp_path / 'b')
  assert experiment.run(several(), tmp_path) == 0
  assert contents(tmp_path / 'b') == alone
  page = (tmp_path / 'report.md').read_bytes()
  assert experiment.run(several(), tmp_path, only=['c', 'a']) == 0  # finished: shown in the experiment's order
  assert (tmp_path / 'report.md').read_bytes() == page
  assert experiment.run(several(), tmp_path, mode='eval', only=['b']) == 0
  capsys.readouterr()
  assert experiment.run(several(), tmp_path, only=['b'], fresh=True) == 0
  moved = capsys.readouterr().out
  assert 'moved the old run to' in moved
  assert (tmp_path / 'b' / 'result.json').exists()
  assert (tmp_path / 'a' / 'result.json').exists()


def test_a_name_that_is_none_of_its_runs_is_refused(tmp_path):
  with pytest.raises(ConfigError, match="--run names one of a, b, c; got 'd'; nearest: "):
    experiment.run(several(), tmp_path, only=['a', 'd'])
  single = dataclasses.replace(several(), runs={})
  with pytest.raises(ConfigError, match="this experiment is a single one; got 'a'"):
    experiment.run(single, tmp_path, only=['a'])
  assert not list(tmp_path.iterdir())


def test_seeds_are_summed_up_by_the_first_line_of_their_table_whatever_the_task(tmp_path, capsys):
  x = np.random.default_rng(0).normal(size=(80, 64)).astype(np.float32)
  config = several()
  config.model = lambda config: jl.from_function(lambda params, x: x @ params['w'], {'w': jnp.zeros((64, 1))})
  config.data.load = lambda config: jl.data.from_arrays((x, x[:, 0]), task=jl.tasks.regression())
  assert experiment.run(config, tmp_path) == 0
  told = capsys.readouterr().out
  found = [json.loads((tmp_path / name / 'result.json').read_text())['metrics']['rmse'] for name in 'abc']
  assert f'test RMSE over 3 runs: mean {np.mean(found):.4g}, 95 % interval ' in told
