"""SAM: two gradients a step against NumPy on a quadratic, in both nestings with accumulate."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxlite.contract import Model, chain
from jaxlite.optim._accumulate import accumulate
from jaxlite.optim._sam import sam
from jaxlite.step.train_step import train_step

pytestmark = pytest.mark.unoptimized

RNG = np.random.default_rng(0)
BATCH = {'inputs': RNG.normal(size=(8, 3)).astype(np.float32), 'labels': RNG.normal(size=8).astype(np.float32)}
RHO, RATE = 0.3, 0.1


def apply(params, state, inputs, *, train, key, step=None):
  """A linear model that counts its forwards and remembers a statistic of the weights that it saw."""
  del key, step
  if train:
    state = {**state, 'calls': state['calls'] + 1, 'seen': params['w']}
  return inputs @ params['w'] + params['b'], state


def init(key, inputs):
  del key
  w = jnp.array([0.5, -1.0, 0.25])
  return {'w': w, 'b': jnp.float32(0.1)}, {'calls': jnp.int32(0), 'seen': jnp.zeros(3)}


def squared(outputs, batch):
  return jnp.square(outputs - batch['labels'])


def run(*parts, steps=3):
  train = train_step(Model(init, apply), squared, chain(*parts, optax.sgd(RATE)))
  state, losses = train.init(jax.random.key(0), BATCH), []
  for _ in range(steps):
    seen = np.asarray(state.params['w'])
    state, metrics = train.step(state, BATCH)
    losses.append(float(metrics['loss']))
  return state, losses, seen


def gradient(w, x, y):
  """Of the mean squared error, in float64; the last weight is the bias."""
  error = x @ w[:3] + w[3] - y
  return 2 * np.append(x.T @ error, error.sum()) / len(x), float((error**2).mean())


def numpy_sam(micro, steps=3):
  x, y = (np.float64(BATCH[name]) for name in ('inputs', 'labels'))
  w, losses = np.array([0.5, -1.0, 0.25, 0.1]), []
  for _ in range(steps):
    losses.append(gradient(w, x, y)[1])
    total = np.zeros(4)
    for part in np.split(np.arange(8), micro):
      grad = gradient(w, x[part], y[part])[0]
      total += gradient(w + RHO * grad / np.linalg.norm(grad), x[part], y[part])[0] / micro
    w = w - RATE * total
  return w, losses


@pytest.mark.parametrize(
  'parts, ascents, calls',
  [
    ((sam(RHO),), 1, 1),
    ((sam(RHO), accumulate(4)), 1, 4),
    ((accumulate(4), sam(RHO)), 4, 4),
  ],
  ids=['alone', 'one ascent a batch', 'one a micro-batch'],
)
def test_it_is_that_of_numpy_and_the_first_pass_alone_leaves_state_and_metrics(parts, ascents, calls):
  state, losses, seen = run(*parts)
  w, wanted = numpy_sam(ascents)
  np.testing.assert_allclose(np.append(state.params['w'], state.params['b']), w, rtol=1e-5)
  np.testing.assert_allclose(losses, wanted, rtol=1e-5)
  assert int(state.model_state['calls']) == 3 * calls
  np.testing.assert_array_equal(state.model_state['seen'], seen)  # statistics at the weights, not at the ascent


def test_it_differs_from_plain_descent_and_agrees_with_it_as_rho_vanishes():
  plain, tiny, real = (run(*parts)[0].params['w'] for parts in ((), (sam(1e-7),), (sam(RHO),)))
  np.testing.assert_allclose(tiny, plain, rtol=1e-5)
  assert np.abs(np.asarray(real) - np.asarray(plain)).max() > 1e-3


def test_both_passes_draw_the_same():
  keys = []

  def inner(params, state, batch, key, step):
    keys.append((key, step, batch))
    return params, state, {}

  sam(0.1).grad(inner)({'w': jnp.ones(2)}, {}, BATCH, jax.random.key(1), 7)
  assert len(keys) == 2
  assert keys[0][0] is keys[1][0]
  assert keys[0][1:] == keys[1][1:]


def test_a_stationary_point_stays_and_a_half_precision_gradient_is_ascended_in_float32():
  grads = sam(0.5).grad(lambda p, s, b, k, t: (jax.tree.map(lambda leaf: leaf * 0, p), s, {}))
  params = {'w': jnp.ones(3), 'h': jnp.ones(2, jnp.bfloat16)}
  assert all(not np.asarray(leaf, np.float32).any() for leaf in jax.tree.leaves(grads(params, {}, {}, None, 0)[0]))
  seen = []

  def flat(params, state, batch, key, step):
    seen.append(params)
    return jax.tree.map(lambda leaf: jnp.full_like(leaf, 300.0), params), state, {}  # its square overflows a half

  half = {'h': jnp.zeros(4, jnp.float16)}
  sam(1.0).grad(flat)(half, {}, {}, None, 0)
  np.testing.assert_allclose(seen[1]['h'], 0.5, rtol=1e-3)
  assert seen[1]['h'].dtype == jnp.float16


def test_several_steps_a_dispatch_are_the_loop():
  train = train_step(Model(init, apply), squared, chain(sam(RHO), optax.adam(RATE)))
  one, many = (train.init(jax.random.key(0), BATCH) for _ in range(2))
  for _ in range(3):
    one, _ = train.step(one, BATCH)
  many, _ = train.steps(many, jax.tree.map(lambda leaf: np.stack([leaf] * 3), BATCH))
  for a, b in zip(
    jax.tree.leaves((one.params, one.opt_state)), jax.tree.leaves((many.params, many.opt_state)), strict=True
  ):
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize('rho', [0, -1.0, float('nan'), float('inf')])
def test_rho_is_above_zero(rho):
  with pytest.raises(ValueError, match='sam: rho is the length of the ascent, above 0; got'):
    sam(rho)
