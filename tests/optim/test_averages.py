"""Averages of weights: what evaluation sees, against NumPy over the history; sparse as the live weights; statistics."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxlite.contract import CONST, Model, chain
from jaxlite.optim._average import average
from jaxlite.optim._swa import refresh_statistics, swa
from jaxlite.pruning._gradual import prune
from jaxlite.step.train_step import train_step

pytestmark = pytest.mark.unoptimized

RNG = np.random.default_rng(0)
BATCHES = [
  {'inputs': RNG.normal(size=(4, 5)).astype(np.float32), 'labels': RNG.normal(size=(4, 3)).astype(np.float32)}
  for _ in range(12)
]
START = RNG.normal(size=(5, 3)).astype(np.float32)


def apply(params, state, inputs, *, train, key, step=None):
  del train, key, step
  return inputs @ params['w'], state


MODEL = Model(lambda key, inputs: ({'w': jnp.asarray(START)}, {}), apply)


def squared(outputs, batch):
  return jnp.square(outputs - batch['labels']).sum(1)


def seen_by(train, state):
  """The weights that evaluation works with: a linear model shows them for the unit inputs."""
  labels = np.zeros((5, 3), np.float32)
  return np.asarray(train.eval(state, {'inputs': np.eye(5, dtype=np.float32), 'labels': labels})[0])


def history(*parts, steps=12):
  train = train_step(MODEL, squared, chain(*parts))
  state = train.init(jax.random.key(0), BATCHES[0])
  live, seen = [], []
  for step in range(steps):
    state, _ = train.step(state, BATCHES[step])
    live.append(np.asarray(state.params['w']))
    seen.append(seen_by(train, state))
  return train, state, live, seen


@pytest.mark.parametrize('begin, every', [(1, 1), (4, 1), (3, 4), (99, 1)])
def test_swa_is_the_equal_average_of_the_weights_from_begin_on_each_so_many_steps(begin, every):
  train, state, live, seen = history(swa(begin, every), optax.sgd(0.05))
  for step in range(1, 13):
    taken = [np.float64(live[at - 1]) for at in range(begin, step + 1, every)]
    wanted = np.mean(taken, axis=0) if taken else live[step - 1]
    np.testing.assert_allclose(seen[step - 1], wanted, rtol=1e-5, atol=1e-6)
  exported, stripped = train.model.export(state.params, {**state.model_state, CONST: state.const})
  np.testing.assert_allclose(exported['w'], seen[-1], rtol=1e-6)
  assert 'jl.swa' not in stripped


@pytest.mark.parametrize('hook', [swa(2), average(0.8)], ids=['swa', 'average'])
@pytest.mark.parametrize('hook_first', [True, False])
def test_an_average_is_exactly_as_sparse_as_the_live_weights(hook, hook_first):
  parts = [hook, optax.sgd(0.05)] if hook_first else [optax.sgd(0.05), hook]
  _, _, live, seen = history(*parts, prune(0.6, begin=3, end=9, every=2))
  for step in range(2, 12):
    np.testing.assert_array_equal(seen[step][live[step] == 0], 0)
  assert (seen[-1] == 0).sum() == (live[-1] == 0).sum() == 9
  assert (seen[-1] != live[-1]).any()


def test_swa_of_half_precision_weights_keeps_small_differences():
  """2,000 weights that alternate between two neighbors in bfloat16: their mean lies between, and is found."""
  hook = swa(1)
  model = hook.model(Model(lambda key, inputs: ({'w': jnp.ones(2, jnp.bfloat16)}, {}), apply))
  params, state = model.init(jax.random.key(0), None)
  after = jax.jit(model.after)
  values = np.array([256.0, 258.0])  # one unit apart
  for step in range(1, 401):
    state = after({'w': jnp.full(2, values[step % 2], jnp.bfloat16)}, state, step)
  np.testing.assert_allclose(state['jl.swa'].mean['w'], 257.0, atol=0.01)
  assert model.export(params, state)[0]['w'].dtype == jnp.bfloat16


@pytest.mark.parametrize('begin, every', [(0, 1), (1, 0), (-3, 1)])
def test_swa_counts_from_one(begin, every):
  with pytest.raises(ValueError, match=r'swa: (begin|every) is a whole number, at least 1'):
    swa(begin, every)


# statistics


def normed(params, state, inputs, *, train, key, step=None):
  """Batch norm with a momentum of 0.5, behind weights, dropout by the key when there is one."""
  x = inputs @ params['w']
  if not train:
    return (x - state['stats']['mean']) / jnp.sqrt(state['stats']['var'] + 1e-5), state
  if key is not None:
    x = x * jax.random.bernoulli(jax.random.fold_in(key, step), 0.5, x.shape)
  mean, var = x.mean(0), x.var(0)
  stats = {'mean': 0.5 * (state['stats']['mean'] + mean), 'var': 0.5 * (state['stats']['var'] + var)}
  return (x - mean) / jnp.sqrt(var + 1e-5), {**state, 'stats': stats, 'jl.taps': {'x': x}}


def test_statistics_are_those_of_the_given_weights_over_the_batches():
  state = {'stats': {'mean': jnp.full(3, 9.0), 'var': jnp.full(3, 9.0)}, CONST: {'freeze': {'u': jnp.ones(2)}}}
  params = {'w': jnp.asarray(START)}
  model = Model(lambda key, inputs: (params, state), normed)
  new = refresh_statistics(model, params, state, iter(BATCHES))
  mean, var = np.full(3, 9.0), np.full(3, 9.0)
  for batch in BATCHES:
    x = np.float64(batch['inputs']) @ np.float64(START)
    mean, var = 0.5 * (mean + x.mean(0)), 0.5 * (var + x.var(0))
  np.testing.assert_allclose(new['stats']['mean'], mean, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(new['stats']['var'], var, rtol=1e-4)
  assert jax.tree.structure(new) == jax.tree.structure(state)  # constants stay, taps are dropped
  np.testing.assert_array_equal(state['stats']['mean'], 9.0)  # pure
  one, same, other = (
    refresh_statistics(model, params, state, BATCHES[:3], key=jax.random.key(seed))['stats']['mean']
    for seed in (0, 0, 1)
  )
  np.testing.assert_array_equal(one, same)
  assert (np.asarray(one) != np.asarray(other)).any()


def test_refreshing_nothing_is_named():
  state = {'stats': {'mean': jnp.zeros(3), 'var': jnp.ones(3)}}
  model = Model(lambda key, inputs: ({}, state), normed)
  with pytest.raises(ValueError, match='refresh_statistics needs a batch at least; got none'):
    refresh_statistics(model, {'w': jnp.asarray(START)}, state, [])
  with pytest.raises(ValueError, match='the network keeps no statistics; leave the call out'):
    refresh_statistics(MODEL, {'w': jnp.asarray(START)}, {}, BATCHES)
