"""One network in six frameworks: the same recipe gives the same losses, and each resumes to the last bit."""

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import keras
import numpy as np
import optax
import pytest
from flax import nnx

import jaxlite as jl
from jaxlite import trees
from jaxlite.checkpoint import Checkpoints
from jaxlite.contract import stream
from jaxlite.pruning._mask_state import PruneState
from networks import FRAMEWORKS, dense

RNG = np.random.default_rng(0)
W1, B1 = (RNG.normal(size=(20, 16)) / 4).astype(np.float32), (RNG.normal(size=16) / 8).astype(np.float32)
W2, B2 = (RNG.normal(size=(16, 5)) / 4).astype(np.float32), (RNG.normal(size=5) / 8).astype(np.float32)
T1 = (RNG.normal(size=(20, 5)) / 4).astype(np.float32)


def batch_at(step, size=12):
  rng = np.random.default_rng(step)
  weight = np.ones(size, np.float32)
  weight[: step % 3] = 0
  inputs = rng.normal(size=(size, 20)).astype(np.float32)
  labels = (inputs @ T1).argmax(1).astype(np.int32)
  return jax.tree.map(jnp.asarray, {'inputs': inputs, 'labels': labels, 'weight': weight})


# --- dense, relu, dense ------------------------------------------------------------------------------------------


def recipe():
  teacher = jl.Network(jl.from_function(lambda p, x: x @ p['w'], {'w': T1}), {'w': jnp.asarray(T1)}, {})
  pruned = jl.prune(0.8, begin=2, end=12, every=5, allocate=jl.pruning.uniform)
  return jl.chain(jl.fake_quant(), jl.distill(teacher), optax.adam(1e-2), pruned)


@pytest.mark.unoptimized
def test_the_same_recipe_gives_the_same_losses_and_the_same_sparsity_in_every_framework():
  losses = {}
  for framework in FRAMEWORKS:
    train = jl.train_step(dense(framework, (W1, B1, W2, B2))[0], jl.cross_entropy, recipe())
    state = train.init(jax.random.key(0), batch_at(0))
    found = []
    for step in range(20):
      state, metrics = train.step(state, batch_at(step))
      found.append({name: float(value) for name, value in metrics.items()})
    losses[framework] = found
    (prune,) = trees.find(state.opt_state, PruneState)
    live = sorted(int(np.count_nonzero(leaf)) for leaf in jax.tree.leaves(state.params) if leaf.ndim == 2)
    assert live == [16, 64], framework  # a fifth of 16 x 5 and of 20 x 16, exactly
    assert int(prune.broken) == 0
  first = losses['function']
  assert set(first[0]) == {'loss', 'task', 'distill'}
  assert first[-1]['loss'] != pytest.approx(first[0]['loss'], abs=1e-3)  # it learned, so there is something to compare
  for framework, found in losses.items():
    for step, (one, other) in enumerate(zip(first, found, strict=True)):
      assert other == pytest.approx(one, abs=1e-5), f'{framework}, step {step}'


# --- dense, batch norm, relu, dropout, dense ---------------------------------------------------------------------


class LinenFull(nn.Module):
  @nn.compact
  def __call__(self, x, train):
    x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(nn.Dense(16)(x)))
    return nn.Dense(5)(nn.Dropout(0.4, deterministic=not train)(x))


class NnxFull(nnx.Module):
  def __init__(self, rngs):
    self.a, self.b = nnx.Linear(20, 16, rngs=rngs), nnx.Linear(16, 5, rngs=rngs)
    self.norm, self.dropout = nnx.BatchNorm(16, momentum=0.9, rngs=rngs), nnx.Dropout(0.4, rngs=rngs)

  def __call__(self, x):
    return self.b(self.dropout(nnx.relu(self.norm(self.a(x)))))


class EqxFull(eqx.Module):
  a: eqx.nn.Linear
  b: eqx.nn.Linear
  norm: eqx.nn.BatchNorm
  dropout: eqx.nn.Dropout

  def __init__(self, key):
    self.a, self.b = eqx.nn.Linear(20, 16, key=key), eqx.nn.Linear(16, 5, key=key)
    self.norm, self.dropout = eqx.nn.BatchNorm(16, 'batch', momentum=0.9, mode='batch'), eqx.nn.Dropout(0.4)

  def __call__(self, x, state, *, key=None):
    x, state = self.norm(self.a(x), state)
    return self.b(self.dropout(jax.nn.relu(x), key=key)), state


def haiku_full(x, is_training):
  x = hk.BatchNorm(True, True, 0.9)(hk.Linear(16)(x), is_training)
  x = jax.nn.relu(x)
  return hk.Linear(5)(hk.dropout(hk.next_rng_key(), 0.4, x) if is_training else x)


def keras_full():
  layers = keras.layers  # named, since Keras numbers the others on through a process
  norm = layers.BatchNormalization(momentum=0.9, name='norm')
  dropout = [layers.ReLU(), layers.Dropout(0.4), layers.Dense(5, name='b')]
  return keras.Sequential([layers.Dense(16, name='a'), norm, *dropout], name='net')


def function_full(p, x, *, train, key, state):
  x = x @ p['w1'] + p['b1']
  mean = x.mean(0) if train else state['mean']
  state = {'mean': 0.9 * state['mean'] + 0.1 * mean} if train else state
  x = jax.nn.relu(x - mean)
  if train:
    x = jnp.where(jax.random.bernoulli(stream(key, 'dropout'), 0.6, x.shape), x / 0.6, 0)
  return x @ p['w2'] + p['b2'], state


def full(framework):
  if framework == 'linen':
    return jl.from_linen(LinenFull())
  if framework == 'nnx':
    return jl.from_nnx(NnxFull)
  if framework == 'equinox':
    return jl.from_equinox(EqxFull)
  if framework == 'haiku':
    return jl.from_haiku(haiku_full)
  if framework == 'keras':
    keras.utils.set_random_seed(0)
    return jl.from_keras(keras_full())
  params = {'w1': W1, 'b1': B1, 'w2': W2, 'b2': B2}
  return jl.from_function(function_full, params, {'mean': np.zeros(16, np.float32)})


def bits(state):
  return {
    path: np.asarray(jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf)
    for path, leaf in trees.by_path(state).items()
  }


@pytest.mark.sampled(2)
@pytest.mark.parametrize('framework', FRAMEWORKS)
def test_dropout_and_batch_norm_resume_to_the_last_bit(framework, tmp_path):
  def start():
    return jl.train_step(full(framework), jl.cross_entropy, jl.chain(jl.average(0.9), optax.adam(1e-2)))

  def on(train, state, first, last):
    losses = []
    for step in range(first, last):
      state, metrics = train.step(state, batch_at(step))
      losses.append(float(metrics['loss']))
    return state, losses

  train = start()
  whole, losses = on(train, train.init(jax.random.key(0), batch_at(0)), 0, 6)
  begun = bits(train.init(jax.random.key(0), batch_at(0)).model_state)
  half, _ = on(train, train.init(jax.random.key(0), batch_at(0)), 0, 3)
  with Checkpoints(tmp_path) as saves:
    saves.save(3, half, {})

  train = start()
  abstract = jax.eval_shape(lambda: train.init(jax.random.key(0), batch_at(0)))
  with Checkpoints(tmp_path) as saves:
    found = saves.restore(abstract)
  resumed, rest = on(train, found.state, 3, 6)

  assert rest == losses[3:]
  one, other = bits(whole), bits(resumed)
  assert list(one) == list(other)
  for path, value in one.items():
    assert value.dtype == other[path].dtype
    assert value.tobytes() == other[path].tobytes(), path
  ended = bits(whole.model_state)
  moved = [path for path in begun if not trees.is_extra(path) and (begun[path] != ended[path]).any()]
  assert moved, 'no running statistics: there was no batch norm to resume'
  outputs = [train.eval(state, batch_at(9))[0] for state in (whole, resumed)]
  np.testing.assert_array_equal(*outputs)
