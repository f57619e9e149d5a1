"""When a training loss is reached, told beforehand: exact where the network is linear, refused where it is not told."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxlite as jl
from jaxlite.data import Split
from jaxlite.planning.outputs import Subject, UnpredictableError
from jaxlite.planning.time_to_loss import time_to_loss
from jaxlite.tasks.lift import weighted_mean

pytestmark = pytest.mark.unoptimized
OPTIMIZERS = {
  'sgd': lambda: optax.sgd(0.05),
  'momentum': lambda: optax.sgd(optax.cosine_decay_schedule(0.03, 60), momentum=0.9, nesterov=True),
  'adamw': lambda: optax.adamw(0.03, weight_decay=0.1),
  'clipped': lambda: optax.chain(optax.clip_by_global_norm(0.3), optax.rmsprop(0.02)),
}


def numbers(count=50, wide=6, outputs=2, seed=0):
  rng = np.random.default_rng(seed)
  x = rng.normal(size=(count, wide)).astype(np.float32)
  y = (x @ rng.normal(size=(wide, outputs)) + 0.2 * rng.normal(size=(count, outputs))).astype(np.float32)
  return x, y


def squared(outputs, batch):
  return weighted_mean(jnp.mean((outputs - batch['labels']) ** 2, axis=-1), batch['weight'])


def entropy(outputs, batch):
  return weighted_mean(optax.softmax_cross_entropy_with_integer_labels(outputs, batch['labels']), batch['weight'])


def linear(params, x):
  return x @ params['w'] + params['b']


def subject(fn, params, x, y, tx, loss=squared, batch=16, total=60):
  def apply(params, state, inputs, *, train, key, step=None):
    return fn(params, inputs), state

  return Subject(apply, params, {}, tx, None, loss, Split(x, y), batch, total, 3)


def trained(one):
  """The loss of all examples after each step of the very training."""
  everything = {**one.train.take(np.arange(len(one.train.labels))), 'weight': np.ones(len(one.train.labels), 'f4')}
  of = lambda params, batch: one.loss(one.apply(params, {}, batch['inputs'], train=True, key=None)[0], batch)  # noqa: E731
  params, state = one.params, one.tx.init(one.params)
  whole = jax.jit(of)

  @jax.jit
  def step(params, state, batch):
    grads = jax.grad(of)(params, batch)
    updates, state = one.tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state

  losses = [float(whole(params, everything))]
  for number in range(one.total):
    params, state = step(params, state, jl.data.batch_at(one.train, one.batch_size, one.seed, number))
    losses.append(float(whole(params, everything)))
  return np.array(losses)


def first(losses, target):
  return int(np.flatnonzero(losses <= target)[0])


@pytest.mark.parametrize(
  'name', [pytest.param(one, marks=pytest.mark.slow) if one in ('sgd', 'momentum') else one for one in OPTIMIZERS]
)
def test_a_linear_network_is_told_exactly_whatever_the_optimizer(name):
  x, y = numbers()
  one = subject(linear, {'w': jnp.zeros((6, 2)), 'b': jnp.zeros(2)}, x, y, OPTIMIZERS[name]())
  losses = trained(one)
  target = float(losses[25])
  found = time_to_loss(one, target)
  steps, told = found.curve
  np.testing.assert_allclose(told, losses[list(steps)], rtol=1e-4)
  assert found.reach.step == pytest.approx(first(losses, target), abs=1e-6)
  assert found.reach.low <= found.reach.step <= found.reach.high < 1.05 * found.reach.step
  assert 'in which the network is linear' in found.told[0]
  assert 'all 50 examples' in found.told[0]


def test_a_head_on_fixed_features_is_told_exactly():
  x, y = numbers(count=90, wide=12, outputs=3)
  labels = y.argmax(1).astype(np.int32)
  fixed = np.random.default_rng(1).normal(size=(12, 20)).astype(np.float32) / 3

  def network(params, x):
    return jnp.tanh(x @ fixed) @ params['kernel'] + params['bias']

  params = {'kernel': jnp.zeros((20, 3)), 'bias': jnp.zeros(3)}
  one = subject(network, params, x, labels, optax.adam(0.01), entropy, batch=32)
  losses = trained(one)
  found = time_to_loss(one, float(losses[40]))
  np.testing.assert_allclose(found.curve[1], losses[list(found.curve[0])], rtol=1e-4)
  assert found.reach.step == pytest.approx(40, abs=1e-6)


@pytest.mark.parametrize('name', [pytest.param('sgd', marks=pytest.mark.slow), 'adam'])
def test_a_sample_of_weights_tells_what_all_of_them_do(name):
  """20,020 weights, of which 2,000 are looked at; the truth is training all of them."""
  rng = np.random.default_rng(0)
  x, y = numbers(count=40, wide=2_000, outputs=10)
  x, y = x / 45, y / 45 + rng.normal(size=(1, 10)).astype(np.float32)
  tx = optax.sgd(1.5, momentum=0.5) if name == 'sgd' else optax.adam(0.01)
  one = subject(linear, {'w': jnp.zeros((2_000, 10)), 'b': jnp.zeros(10)}, x, y, tx)
  losses = trained(one)
  target = float(losses[30])
  assert losses[0] > 2 * target
  found = time_to_loss(one, target, coordinates=2_000)
  assert found.reach.step == pytest.approx(first(losses, target), rel=0.2)
  assert found.reach.low <= first(losses, target) <= found.reach.high
  assert 'of 20,010 weights' in found.told[0]


def test_few_examples_tell_of_all():
  x, y = numbers(count=600, wide=12)
  one = subject(linear, {'w': jnp.zeros((12, 2)), 'b': jnp.zeros(2)}, x, y, optax.sgd(0.02))
  losses = trained(one)
  target = float(losses[20])
  found = time_to_loss(one, target, examples=100)
  assert '100 of 600 examples' in found.told[0]
  assert found.reach.step == pytest.approx(first(losses, target), rel=0.2)
  assert found.reach.high > 1.1 * found.reach.low


def test_weights_that_move_nothing_at_the_start_are_followed_halfway():
  """A head at 0 lets no gradient through to what lies below; where it has moved it does."""
  x, y = numbers(wide=5)
  below = jnp.asarray(np.random.default_rng(1).normal(size=(5, 64)) / 2, jnp.float32)
  params = {'a': below, 'w': jnp.zeros((64, 2)), 'b': jnp.zeros(2)}
  network = lambda p, x: jnp.tanh(x @ p['a']) @ p['w'] + p['b']  # noqa: E731
  one = subject(network, params, x, (y[:, 0] > 0).astype(np.int32), optax.adam(0.003), entropy)
  losses = trained(one)
  target = float(losses[30])
  found = time_to_loss(one, target)
  assert found.reach.step == pytest.approx(first(losses, target), rel=0.2)
  assert 'as if the network were linear' in found.told[0]


def test_what_is_reached_already_and_what_never_is():
  x, y = numbers()
  one = subject(linear, {'w': jnp.zeros((6, 2)), 'b': jnp.zeros(2)}, x, y, optax.sgd(0.05))
  now = time_to_loss(one, 1e6)
  assert now.reach.now
  assert now.reach.step == 0
  assert 'reached at step 0' in str(now)
  never = time_to_loss(one, 1e-9)
  assert never.reach.step == math.inf
  assert never.reach.share < 0.2
  with pytest.raises(ValueError, match='a target is a number'):
    time_to_loss(one, math.nan)


def normed(params, x):
  hidden = x @ params['w']
  return (hidden - hidden.mean(0)) / (hidden.std(0) + 1e-3) + params['b']


FEW = {'coordinates': 3_000}


def refused():
  x, y = numbers()
  params = {'w': jnp.ones((6, 2)), 'b': jnp.zeros(2)}
  wide = {'w': jnp.ones((6, 2_000)) / 2_000, 'v': jnp.ones((2_000, 2)), 'b': jnp.zeros(2)}
  deep = lambda p, x: x @ p['w'] @ p['v'] + p['b']  # noqa: E731
  rows = lambda p, x: jnp.tile(linear(p, x)[:, None], (1, 4_000, 1))  # noqa: E731
  return {
    'others of its batch': (subject(normed, params, x, y, optax.sgd(0.1)), {}),
    'treat each weight by itself': (subject(deep, wide, x, y, optax.adafactor(0.1, min_dim_size_to_factor=2)), FEW),
    'move nothing where training begins': (subject(deep, {**wide, 'v': 0 * wide['v']}, x, y, optax.sgd(0.1)), FEW),
    'few real outputs': (subject(rows, params, x, y, optax.sgd(0.1)), {}),
    'loss before the first step is': (subject(linear, params, x * np.inf, y, optax.sgd(0.1)), {}),
    'losses at other weights': (subject(linear, params, x, y, optax.scale_by_backtracking_linesearch(5)), {}),
  }


WHY = (
  'others of its batch',
  'treat each weight by itself',
  'move nothing where training begins',
  'few real outputs',
  'loss before the first step is',
  'losses at other weights',
)


@pytest.mark.parametrize('why', WHY)
def test_what_a_linearized_network_does_not_tell_is_refused(why):
  one, how = refused()[why]
  with pytest.raises(UnpredictableError, match=why):
    time_to_loss(one, 1e-4, **how)
