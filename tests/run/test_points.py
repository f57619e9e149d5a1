"""What a run writes of its training, the mean over the examples since the last point; bad batches that are borne."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxlite as jl
from jaxlite import checkpoint
from jaxlite.run import loop
from loops import X, Y, config_of, points, run

pytestmark = pytest.mark.unoptimized

START = np.random.default_rng(1).normal(size=(6, 3)).astype(np.float32)


def model():
  return lambda p, x: x @ p['w'], {'w': START}


def still(config, total):
  return jl.chain(optax.sgd(0.0))


@pytest.mark.parametrize('per_dispatch', [1, 4])
def test_the_training_loss_is_the_mean_over_the_examples_since_the_last_point(per_dispatch, tmp_path):
  """Weights stand still, so an epoch's point is the loss of the training split, whatever its last batch holds."""
  config = config_of(still, steps=10, machine__steps_per_dispatch=per_dispatch)
  train = loop.prepare(config, tmp_path, model(), (X, Y)).data.train
  size = len(train.labels)
  batch = next(b for b in range(16, size) if 1 <= size % b < b // 3)
  steps = -(-size // batch)
  every = jl.Duration(steps=steps)
  given = {'log__every': every, 'eval__every': every, 'data__batch_size': batch, 'steps': 2 * steps}
  run(tmp_path / 'run', still, model=model(), machine__steps_per_dispatch=per_dispatch, **given)
  setup = loop.prepare(config, tmp_path, model(), (X, Y))
  outputs = (np.float64(train.inputs) - setup.data.mean) / setup.data.std @ np.float64(START)
  log_p = outputs - np.log(np.exp(outputs).sum(1, keepdims=True))
  wanted = -log_p[np.arange(size), train.labels].mean()
  found = [point['loss'] for point in points(tmp_path / 'run') if point['kind'] == 'train']
  np.testing.assert_allclose(found, [wanted] * 2, rtol=1e-5)


def poisoned(*steps):
  """A hook that spoils the batches of some steps."""

  def grad(inner):
    def spoiled(params, state, batch, key, step):
      bad = jnp.any(jnp.asarray(steps) == step)
      inputs = jnp.where(bad, jnp.nan, batch['inputs'])
      return inner(params, state, {**batch, 'inputs': inputs}, key, step)

    return spoiled

  return jl.Hook('poison', grad=grad)


def moving(params, state, inputs, *, train, key, step=None):
  x = inputs @ params['w']
  new = {**state, 'stats': {'mean': 0.5 * (state['stats']['mean'] + x.mean(0))}}
  return x - state['stats']['mean'], new if train else state


def test_a_run_bears_the_bad_batches_that_a_part_leaves_out(tmp_path):
  def recipe(config, total):
    return jl.chain(poisoned(2, 3, 5), optax.apply_if_finite(optax.adam(0.05), 3))

  network = jl.Model(lambda key, x: ({'w': jnp.asarray(START)}, {'stats': {'mean': jnp.zeros(3)}}), moving)
  result = run(tmp_path / 'run', recipe, model=network, steps=8)
  assert np.isfinite(list(result.metrics.values())).all()
  losses = {point['step']: point['loss'] for point in points(tmp_path / 'run') if point['kind'] == 'train'}
  assert sorted(losses) == [2, 6, 8]
  assert np.isfinite(list(losses.values())).all()


def test_a_run_evaluates_keeps_and_hands_back_a_schedule_free_model_where_it_is_to_be_read(tmp_path):
  def recipe(config, total):
    return jl.chain(optax.contrib.schedule_free_sgd(0.5), jl.prune(0.5, begin=2))

  folder = tmp_path / 'run'
  run(folder, recipe, model=model(), steps=8)
  found = checkpoint.load_arrays(folder / 'checkpoints', ('params', 'model_state', 'opt_state'), which='best').state
  own, y = found['opt_state'][0], found['params']['w']
  x = np.where(y == 0, 0, optax.contrib.schedule_free_eval_params(_Free(own['b1'], own['z']), {'w': y})['w'])
  assert (x == 0).sum() == 9
  setup = loop.prepare(config_of(recipe), folder, model(), (X, Y))
  wanted = (X - setup.data.mean) / setup.data.std @ x
  np.testing.assert_allclose(jl.load(folder).predict(X), wanted, rtol=1e-4, atol=1e-5)


class _Free(NamedTuple):
  b1: object
  z: object


def test_a_run_stops_where_a_part_gives_up(tmp_path):
  def recipe(config, total):
    return jl.chain(poisoned(2, 3, 4), optax.apply_if_finite(optax.adam(0.05), 2))

  with pytest.raises(ValueError, match='not finite at step'):
    run(tmp_path / 'run', recipe, model=model(), steps=8)


def test_a_run_refuses_a_scalar_loss_before_its_first_step(tmp_path):
  loss = lambda outputs, batch: jl.cross_entropy(outputs, batch).mean()  # noqa: E731
  with pytest.raises(ValueError, match='got a scalar: leave its mean out'):
    run(tmp_path / 'run', model=model(), loss=loss)
  assert not (tmp_path / 'run' / 'checkpoints').exists() or not any((tmp_path / 'run' / 'checkpoints').iterdir())
