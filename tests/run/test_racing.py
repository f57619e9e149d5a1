"""Members of one vmapped step score as they would alone; who goes on is a run bit-equal to itself, the rest stops."""

import dataclasses

import jax
import numpy as np
import optax
import pytest

import jaxlite as jl
import tunable
from jaxlite.errors import ConfigError
from jaxlite.run import loop, racing, search
from jaxlite.run.records import read_records
from jaxlite.tuning.ledger import COMPLETE, PRUNED, Trial
from studies import digest

pytestmark = pytest.mark.unoptimized

SPACE = {
  'recipe.rate': jl.tuning.log_uniform(1e-4, 1e-1),
  'seed': jl.tuning.integer(0, 99),
  'data.batch_size': jl.tuning.choice(16, 8),
}


def recipe(config, total_steps, rate=0.01):
  return jl.chain(
    optax.clip_by_global_norm(1.0), jl.average(0.9), optax.adam(jl.optim.warmup_cosine(rate, total_steps))
  )


def config(steps=36):
  made = dataclasses.replace(tunable.config(steps), recipe=recipe)
  made.eval.every = jl.Duration(steps=4)
  return made


def trial(number, rate, seed, batch=0):
  given = {'recipe.rate': rate, 'seed': seed, 'data.batch_size': batch}
  return Trial(number, number, given, 'running', '', '', 0.0, 1, 0, -1, -1, 0.0, {}, '')


def _pictures(split):
  return split._replace(inputs=split.inputs[:, None, :, None])


def _convolves():
  def apply(params, x):
    x = jax.lax.conv_general_dilated(x, params['a'], (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC'))
    return x.reshape(len(x), -1) @ params['w']

  return jl.from_function(apply, {'a': np.ones((1, 3, 1, 2), np.float32), 'w': np.zeros((10, 3), np.float32)})


def test_each_member_scores_as_it_does_alone_and_those_stopped_are_gone(tmp_path):
  base, data = config(), tunable.data()
  trials = [trial(0, 0.01, 3), trial(1, 0.05, 4), trial(2, 1e-4, 5)]
  configs = [search.config_of(base, SPACE, one) for one in trials]
  made = racing.track(configs[0], SPACE, tmp_path, tunable.network(), data)
  assert made.names == ('recipe.rate',)
  assert made.last == 12
  seen = {}

  def heard(one, step, total, metrics):
    seen[one.number, step] = metrics

  stop = lambda one, step, total: 'slow' if one.number == 2 and step == 4 else ''  # noqa: E731
  left, whys, end = racing.race(made, SPACE, trials, configs, heard, stop, lambda: '')
  assert ([one.number for one in left], whys, end) == ([0, 1], {2: 'slow'}, '')
  assert sorted(seen) == [(0, 4), (0, 8), (0, 12), (1, 4), (1, 8), (1, 12), (2, 4)]
  loop.train_varied(configs[1], tmp_path / 'alone', model=tunable.network(), data=data, command='', say=str)
  alone = {one['step']: one for one in read_records(tmp_path / 'alone') if one['kind'] == 'validation'}
  for step in (4, 8, 12):
    np.testing.assert_allclose(seen[1, step]['loss'], alone[step]['loss'], rtol=1e-5)
  halted = racing.race(made, SPACE, trials[:2], configs[:2], heard, stop, lambda: 'the budget is over')
  assert halted == (trials[:2], {}, 'the budget is over')


def test_what_cannot_be_an_argument_of_the_step_is_told(tmp_path):
  def choosy(config, total_steps, rate=0.01):
    return jl.chain(optax.adam(rate) if rate > 0.01 else optax.sgd(rate))

  one = search.config_of(dataclasses.replace(config(), recipe=choosy), SPACE, trial(0, 0.01, 3))
  assert 'cannot be an argument' in racing.track(one, SPACE, tmp_path, tunable.network(), tunable.data())
  plain = dataclasses.replace(one, recipe=recipe)
  wide = tunable.data()
  wide = wide._replace(**{name: _pictures(getattr(wide, name)) for name in ('train', 'validation', 'test')})
  wide = wide._replace(mean=None, std=None)
  assert 'convolutions of several networks' in racing.track(plain, SPACE, tmp_path, _convolves(), wide)
  sparse = dataclasses.replace(one, recipe=recipe)
  sparse.eval.every = jl.Duration(steps=36)
  assert 'no evaluation' in racing.track(sparse, SPACE, tmp_path, tunable.network(), tunable.data())
  assert 'data of its own' in racing.track(one, SPACE, tmp_path, tunable.network(), None)
  with pytest.raises(ConfigError, match=r"members are raced until halving has looked last: .* got stop='median'"):
    jl.tune(config(), tmp_path, SPACE, model=tunable.network(), data=tunable.data(), trials=2, members=2, say=str)


@pytest.mark.slow
@pytest.mark.parametrize('method', ['random', 'tpe'])
def test_a_search_with_members_gives_runs_that_are_bit_equal_to_themselves_alone(tmp_path, method):
  told, given = [], {'model': tunable.network(), 'data': tunable.data()}
  found = jl.tune(
    *(config(), tmp_path / 'study', SPACE),
    trials=12,
    method=method,
    stop='halving',
    members=6,
    say=told.append,
    **given,
  )
  assert len(found.trials) == 12
  states = {one.number: one.state for one in found.trials}
  assert set(states.values()) == {COMPLETE, PRUNED}, told
  assert not [line for line in told if line.startswith('note: trials are trained one by one')]
  raced = [one for one in found.trials if one.state == PRUNED and not found.workdir(one).exists()]
  assert raced
  for one in found.trials:
    if one.state == COMPLETE:
      loop.train_varied(found.trial_config(one), tmp_path / str(one.number), command='', say=str, **given)
      assert digest(found.workdir(one)) == digest(tmp_path / str(one.number))
  again = jl.tune(
    *(config(), tmp_path / 'study', SPACE), trials=12, method=method, stop='halving', members=6, say=str, **given
  )
  assert again.trials == found.trials
