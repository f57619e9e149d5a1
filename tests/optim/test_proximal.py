"""L1 by a proximal step: real zeros after every step, and the closed form where there is one."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxlite import trees
from jaxlite.contract import chain
from jaxlite.optim._proximal import l1_proximal
from jaxlite.pruning._gradual import prune
from jaxlite.pruning._mask_state import PruneState

pytestmark = pytest.mark.unoptimized

RNG = np.random.default_rng(0)


def soft(x, threshold):
  return np.sign(x) * np.maximum(np.abs(x) - threshold, 0)


def test_the_minimum_of_a_quadratic_is_the_closed_form():
  """argmin of |w - a|^2 / 2 + rate |w| is a shrunk by rate; ISTA reaches it."""
  target = RNG.normal(size=(6, 5)).astype(np.float32)
  tx = optax.chain(optax.sgd(0.25), l1_proximal(0.5, 0.25))
  params = {'w': jnp.asarray(RNG.normal(size=(6, 5)), jnp.float32), 'bias': jnp.full(5, 3.0)}

  @jax.jit
  def step(params, state):
    updates, state = tx.update({'w': params['w'] - target, 'bias': params['bias']}, state, params)
    return optax.apply_updates(params, updates), state

  state = tx.init(params)
  for _ in range(150):
    params, state = step(params, state)
  wanted = soft(target.astype(np.float64), 0.5)
  np.testing.assert_allclose(params['w'], wanted, atol=1e-6)
  np.testing.assert_array_equal(np.asarray(params['w']) == 0, wanted == 0)
  assert 0 < (wanted == 0).sum() < 30
  assert (np.asarray(params['bias']) != 0).all()  # it decays here, and is not shrunk


@pytest.mark.sampled(4)
@pytest.mark.parametrize('dtypes', [('float32', 'float32'), ('bfloat16', 'bfloat16'), ('bfloat16', 'float32')])
@pytest.mark.parametrize('seed', range(3))
def test_one_step_is_the_soft_threshold_of_what_the_update_leads_to(dtypes, seed):
  rng = np.random.default_rng(seed)
  weight = jnp.asarray(rng.normal(size=(40, 25)) * 10.0 ** rng.integers(-6, 2, (40, 25)), dtypes[0])
  update = jnp.asarray(rng.normal(size=(40, 25)) * 10.0 ** rng.integers(-6, 2, (40, 25)), dtypes[1])
  tx = l1_proximal(0.1, 0.5, select='w')
  new, _ = tx.update({'w': update}, tx.init({'w': weight}), {'w': weight})
  after = np.asarray(optax.apply_updates({'w': weight}, new)['w'], np.float64)
  landed = np.float64(weight) + np.float64(update)
  threshold = float(jnp.asarray(0.05, dtypes[1]))
  unit = float(jnp.finfo(dtypes[0]).eps) + float(jnp.finfo(dtypes[1]).eps)
  size = np.abs(np.float64(weight)) + np.abs(np.float64(update)) + threshold
  assert (np.abs(after - soft(landed, threshold)) <= 2 * unit * size).all()
  assert (after[np.abs(landed) < threshold - unit * size] == 0).all()
  assert (after * landed >= 0).all()  # never past zero
  assert (np.asarray(new['w']).dtype) == jnp.promote_types(*dtypes)


def test_what_is_zero_stays_zero_without_a_push_and_the_schedule_is_counted():
  tx = l1_proximal(1.0, lambda count: 0.1 * (count + 1))
  params = {'w': jnp.array([[0.0, 1.0], [-1.0, 0.05]])}
  state = tx.init(params)
  zero = jax.tree.map(jnp.zeros_like, params)
  for wanted in ([[0, 0.9], [-0.9, 0]], [[0, 0.7], [-0.7, 0]], [[0, 0.4], [-0.4, 0]]):
    updates, state = tx.update(zero, state, params)
    params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(params['w'], wanted, atol=1e-6)
  assert int(state.count) == 3
  assert (np.asarray(params['w'])[[0, 1], [0, 1]] == 0).all()


@pytest.mark.parametrize('order', ['proximal first', 'prune first'])
def test_beside_prune_in_either_order_every_zero_is_exact(order):
  parts = [l1_proximal(0.02, 0.1), prune(0.5, begin=2, end=6, every=2)]
  tx = chain(optax.adam(0.1), *(parts if order == 'proximal first' else parts[::-1])).tx
  params = {'w': jnp.asarray(RNG.normal(size=(8, 6)), jnp.float32)}
  state, update = tx.init(params), jax.jit(tx.update)
  for step in range(10):
    grads = {'w': jnp.asarray(np.random.default_rng(step).normal(size=(8, 6)), jnp.float32)}
    updates, state = update(grads, state, params)
    params = optax.apply_updates(params, updates)
  [pruned] = trees.find(state, PruneState)
  assert int(pruned.broken) == 0  # nothing that prune holds came back non-zero
  assert (np.asarray(params['w']) == 0).mean() >= 0.5


def test_an_update_after_it_is_refused():
  with pytest.raises(ValueError, match='no update may follow it'):
    chain(l1_proximal(0.1, 0.1), optax.sgd(0.1))


@pytest.mark.parametrize(
  'call, message',
  [
    (lambda: l1_proximal(-1.0, 0.1), 'l1_proximal: rate is at least 0; got -1.0'),
    (lambda: l1_proximal(float('nan'), 0.1), 'l1_proximal: rate'),
    (lambda: l1_proximal(1.0, -0.1), 'l1_proximal: learning_rate is that of the optimizer, at least 0; got -0.1'),
    (lambda: l1_proximal(1.0, 0.1).init({'b': jnp.ones(3)}), 'l1_proximal finds no weight'),
    (lambda: l1_proximal(1.0, 0.1, select='kernl').init({'kernel': jnp.ones((2, 2))}), "'kernl' matches no parameter"),
    (
      lambda: l1_proximal(1.0, 0.1).update({}, None),
      r'l1_proximal needs the weights: call update\(grads, state, params\)',
    ),
  ],
)
def test_bad_use_is_named(call, message):
  with pytest.raises(ValueError, match=message):
    call()
