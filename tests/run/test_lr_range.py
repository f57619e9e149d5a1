"""A learning-rate range test tells what short runs come to; batch sizes are forecast; neither trains anything."""

import dataclasses
import math
from pathlib import Path

import jax
import numpy as np
import optax
import pytest

import jaxlite as jl
import tunable
from jaxlite.errors import ConfigError
from jaxlite.graph.init_numpy import on_host
from jaxlite.run.lr_range import suggestion
from jaxlite.run.setup import prepare

pytestmark = pytest.mark.unoptimized

FEW = {'low': 1e-4, 'high': 100.0, 'points': 5, 'steps': 8}


def reads_rate(config, total_steps):
  return jl.chain(optax.clip_by_global_norm(1.0), optax.adam(config.optim.lr))


def compares_rate(config, total_steps):
  return jl.chain(optax.sgd(config.optim.lr if config.optim.lr > 0 else 1.0))


def config(recipe=None):
  return dataclasses.replace(tunable.config(), recipe=recipe)


def ask(one, **more):
  return jl.lr_range(one, model=tunable.network(), data=tunable.data(), say=str, **{**FEW, **more})


def straight(one, rate, steps):
  """The losses of a run of so many steps at a rate."""
  short = dataclasses.replace(one, train=jl.Duration(steps=steps))
  short = dataclasses.replace(short, optim=dataclasses.replace(one.optim, lr=rate))
  setup = prepare(short, Path('.'), tunable.network(), tunable.data())
  state, losses = setup.train.init(on_host(lambda: jax.random.key(one.seed))(), setup.first_batch), []
  for step in range(steps):
    state, terms = setup.train.step(state, jl.data.batch_at(setup.data.train, one.data.batch_size, one.seed, step))
    losses.append(float(terms['loss']))
  return losses


@pytest.mark.sampled(2)
@pytest.mark.parametrize('recipe', [None, reads_rate, compares_rate])
def test_each_rate_comes_to_what_a_short_run_comes_to(recipe):
  found = ask(config(recipe))
  place = 1
  losses = straight(config(recipe), found.rates[place], 8)
  assert found.start == pytest.approx(losses[0], rel=1e-4)
  assert found.losses[place] == pytest.approx(np.mean(losses[-2:]), rel=1e-3)
  assert found.suggested is None or found.suggested in found.rates
  assert f'{found.start:.4g} before' in str(found)


def test_nothing_is_left_but_the_picture(tmp_path):
  ask(config(), workdir=tmp_path)
  assert [path.name for path in tmp_path.iterdir()] == ['lr_range.png']


@pytest.mark.parametrize(
  'losses, start, suggested, told',
  [
    ([2.0, 1.0, 0.98, math.inf], 2.3, 0.01, []),
    ([2.0, 2.0, 1.0, 0.5], 2.3, 1.0, ['still falls at the largest']),
    ([0.5, 0.5, 1.0, 2.0], 2.3, 0.001, ['the smallest rate is as good as any']),
    ([3.0, 4.0, 5.0, math.inf], 2.3, None, ['look at the data and the model']),
    ([math.inf] * 4, 2.3, None, ['look at the data and the model']),
  ],
)
def test_the_smallest_rate_that_is_as_good_as_the_best_is_suggested(losses, start, suggested, told):
  found, notes = suggestion([0.001, 0.01, 0.1, 1.0], losses, start)
  assert found == suggested
  assert len(notes) == len(told)
  assert all(one in note for one, note in zip(told, notes, strict=True))


@pytest.mark.parametrize(
  'given, said',
  [
    ({'low': 1.0, 'high': 0.1}, 'rates go from low to high'),
    ({'low': 0.0}, 'above 0'),
    ({'high': 1e39}, 'as float32 has them'),
    ({'points': 2}, 'points is a whole number, at least 5'),
    ({'steps': 0.5}, 'steps is a whole number'),
  ],
)
def test_what_cannot_be_asked_is_told(given, said):
  with pytest.raises(ValueError, match=said):
    ask(config(), **given)


def test_a_loss_that_is_no_number_is_one_that_diverged():
  found = ask(config(), low=1.0, high=1e30, points=5, steps=8)
  assert math.inf in found.losses
  assert not any(map(math.isnan, found.losses))


def test_fewer_examples_than_micro_batches_are_told():
  one = config()
  one.machine.micro_batches = 64
  with pytest.raises(ConfigError, match=r'for each of machine\.micro_batches=64 at least; got 61 training examples'):
    jl.batch_size(one, model=tunable.network(), data=tunable.data())


def test_a_recipe_that_does_not_read_the_rate_is_told():
  with pytest.raises(ConfigError, match=r'does not read config\.optim\.lr'):
    ask(config(lambda config, total_steps: jl.chain(optax.adam(1e-3))))


@pytest.mark.slow
def test_batch_sizes_double_up_to_all_examples_and_data_stay_the_same():
  found = jl.batch_size(config(), model=tunable.network(), data=tunable.data(), say=str)
  assert [row.size for row in found.rows] == [8, 16, 32, 61]
  assert found.largest == 61
  assert 'all 61 training examples' in str(found)
  by_size = [row.verdict.upper for row in found.rows]
  assert by_size == sorted(by_size)


def test_a_size_that_does_not_fit_is_found_by_forecast_alone(monkeypatch):
  wide = np.zeros((4096, 3000), np.float32)
  model = jl.from_function(
    lambda params, x: jax.nn.relu(x @ params['a']) @ params['w'],
    {'a': np.zeros((3000, 2000), np.float32), 'w': np.zeros((2000, 3), np.float32)},
  )
  from jaxlite.host import limits as machine_limits

  real = machine_limits.limits()
  least = 150 * 2**20 + _resident()  # little: where other tests ran before, memory is freed and taken again
  small = real._replace(resident_memory=least, resident_free=150 * 2**20, memory=least, reason='a limit of the test')
  monkeypatch.setattr(machine_limits, 'limits', lambda: small)
  found = jl.batch_size(config(), model=model, data=(wide, np.arange(4096) % 3), say=str)
  assert found.largest is None or found.largest < 3276
  assert any(row.verdict.word != 'FITS' for row in found.rows)


def _resident():
  from jaxlite.host.machine import resident

  return resident()
