"""A run asked when its training loss comes to a target: one call, one command; told, or why not; nothing is trained."""

import dataclasses
import os
import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxlite as jl
import unoptimized
from jaxlite.config import command_line
from jaxlite.run import asking
from jaxlite.run.finetune import ready
from jaxlite.run.loss_forecast import time_to_loss
from jaxlite.run.setup import prepare
from jaxlite.run.trial import Source

pytestmark = pytest.mark.unoptimized
ROOT = pathlib.Path(__file__).resolve().parents[2]
RNG = np.random.default_rng(0)
Y = np.arange(120) % 3
X = (RNG.normal(size=(3, 4))[Y] + 0.7 * RNG.normal(size=(120, 4))).astype(np.float32)


def network():
  params = {'a': jnp.asarray(np.random.default_rng(1).normal(size=(4, 16)), jnp.float32), 'b': jnp.zeros((16, 2))}
  return (lambda p, x: jnp.tanh(x @ p['a']) @ p['b'], params)


def config(folder, **options):
  made = jl.FineTune(name='x', method='full', solve=False, features=str(folder), train=jl.Duration(steps=60), **options)
  made.data.batch_size, made.optim.lr = 32, 0.01
  return made


def trained(setup):
  """The loss of all training examples after each step."""
  everything = next(iter(jl.data.eval_batches(setup.data.train, 1_000)))
  state = setup.train.init(jax.random.key(setup.config.seed), setup.first_batch)
  losses = [float(setup.train.eval(state, everything)[1]['task'])]
  for step in range(setup.plan.total):
    state, _ = setup.train.step(state, jl.data.batch_at(setup.data.train, 32, setup.config.seed, step))
    losses.append(float(setup.train.eval(state, everything)[1]['task']))
  return np.array(losses)


def test_fine_tuning_is_told_in_one_call_and_trains_nothing(tmp_path):
  """AdamW with warm-up, clipping, decay and rates by depth, from a head at 0: the step is told within a fifth."""
  options = config(tmp_path / 'features')
  made = ready(options, network(), (X, Y), print)
  losses = trained(prepare(made[0], tmp_path / 'none', made[1], made[2], made[3]))
  target = float(losses[30])
  first = int(np.flatnonzero(losses <= target)[0])
  plan = jl.finetune(network(), (X, Y), tmp_path / 'run', config=options, plan=target, say=lambda line: None)
  assert plan.to_loss.reach.step == pytest.approx(first, rel=0.2)
  assert plan.to_loss.begins == pytest.approx(losses[0], rel=1e-4)
  assert re.search(rf'training loss {target:g} .*: about step \d+ .*so many steps take', str(plan))
  assert not (tmp_path / 'run').exists()
  again = jl.plan(options, model=network(), data=(X, Y), target=target)  # the same by the plan of its config
  assert again.to_loss.reach == plan.to_loss.reach


@pytest.mark.parametrize(
  ('recipe', 'why'),
  [
    (lambda: jl.chain(jl.augment(lambda key, batch: batch), optax.sgd(0.1)), 'augment changes the batch'),
    (lambda: jl.chain(jl.optim.label_smoothing(0.1), optax.sgd(0.1)), 'label_smoothing adds to the loss'),
    (lambda: jl.chain(optax.contrib.schedule_free_sgd(0.1)), 'at another point than it trains'),
  ],
  ids=['augmented', 'smoothed', 'schedule-free'],
)
def test_a_plan_says_why_a_loss_is_not_told(recipe, why):
  one = jl.Config(name='x', train=jl.Duration(steps=5), recipe=lambda config, total: recipe())
  found = jl.plan(one, model=jl.from_function(*_function()), data=(X, Y), target=0.1)
  assert found.to_loss is None
  assert why in str(found)
  assert any('when the training loss is at 0.1: ' in line for line in found.unknown)


def _function():
  return lambda p, x: x @ p['w'], {'w': jnp.ones((4, 3)) * 0.1}


@pytest.mark.parametrize(('method', 'off'), [('last', 0.2), pytest.param('lora', 0.35, marks=pytest.mark.slow)])
def test_frozen_weights_and_low_rank_are_told_as_they_learn(tmp_path, method, off):
  """What is frozen moves nothing; a low rank whose one factor begins at 0 is followed halfway."""
  options = dataclasses.replace(config(tmp_path / 'features', rank=2), method=method)
  made = ready(options, network(), (X, Y), print)
  setup = prepare(made[0], tmp_path / 'none', made[1], made[2], made[3])
  losses = trained(setup)
  target = float(losses[40])
  told = time_to_loss(setup, target)
  assert told.reach.step == pytest.approx(int(np.flatnonzero(losses <= target)[0]), rel=off)


FILE = """
import jax.numpy as jnp, numpy as np, optax
import jaxlite as jl

def data(config):
  y = np.arange(90) % 3
  return np.random.default_rng(0).normal(size=(3, 4))[y].astype('f4') + 0.1, y

def get_config():
  config = jl.Config(name='mine', train=jl.Duration(steps=30), recipe=lambda c, t: jl.chain(optax.sgd(0.1)))
  config.model = lambda c: jl.from_function(lambda p, x: x @ p['w'], {'w': jnp.zeros((4, 3))})
  config.data.load, config.data.batch_size = data, 30
  return config
"""


LINE = r'training loss 0\.5 \(at the start 1\.099\): about step \d+'


def test_a_plan_of_an_experiment_tells_it(tmp_path, capsys):
  file = tmp_path / 'mine.py'
  file.write_text(FILE)
  source = Source(str(file), [], str(ROOT), False, str(tmp_path / 'run'))
  assert asking.plan(command_line.load(str(file), [], ROOT), source, target=0.5) == 0
  said = capsys.readouterr().out
  assert re.search(LINE, said), said
  assert 'in which the network is linear' in said
  assert not (tmp_path / 'run').exists()


@pytest.mark.slow
def test_the_launcher_tells_it(tmp_path):
  (tmp_path / 'mine.py').write_text(FILE)
  words = [sys.executable, str(ROOT / 'launch.py'), '--mode=plan', '--target=0.5', f'--config={tmp_path / "mine.py"}']
  env = {**os.environ, **unoptimized.environment()}
  done = subprocess.run([*words, f'--workdir={tmp_path / "run"}'], capture_output=True, text=True, env=env, timeout=120)
  assert done.returncode == 0, done.stderr
  assert re.search(LINE, done.stdout), done.stdout
