"""Laws that every adapter keeps, over one network in six frameworks with the same weights."""

from __future__ import annotations

import functools
import subprocess
import sys

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
from jaxlite import adapters, trees
from networks import FRAMEWORKS, dense, equinox_dense, function_dense, haiku_dense, keras_dense, linen_dense, nnx_dense

pytestmark = pytest.mark.unoptimized

KEY = jax.random.key(7)
RNG = np.random.default_rng(0)
W1, B1 = RNG.normal(size=(6, 8)).astype(np.float32), RNG.normal(size=8).astype(np.float32)
W2, B2 = RNG.normal(size=(8, 3)).astype(np.float32), RNG.normal(size=3).astype(np.float32)
SIZES, WEIGHTS = (6, 8, 3), (W1, B1, W2, B2)
K1, C1 = RNG.normal(size=(3, 3, 2, 4)).astype(np.float32), RNG.normal(size=4).astype(np.float32)
X = RNG.normal(size=(5, 6)).astype(np.float32)
IMAGES = RNG.normal(size=(5, 7, 6, 2)).astype(np.float32)


# --- the same weights, without state or randomness --------------------------------------------------------------


@pytest.mark.parametrize('framework', FRAMEWORKS)
def test_same_weights_give_the_outputs_and_gradients_of_numpy(framework):
  model, names, transposed = dense(framework, WEIGHTS)
  params, state = model.init(KEY, X)
  outputs, _ = model.apply(params, state, X, train=False, key=None)
  hidden = X @ W1 + B1
  np.testing.assert_allclose(outputs, np.maximum(hidden, 0) @ W2 + B2, rtol=1e-5, atol=1e-5)

  grads = jax.grad(lambda p: (model.apply(p, state, X, train=True, key=KEY, step=0)[0] ** 2).sum())(params)
  up = 2 * (np.maximum(hidden, 0) @ W2 + B2)
  back = (up @ W2.T) * (hidden > 0)
  expected = (X.T @ back, back.sum(0), np.maximum(hidden, 0).T @ up, up.sum(0))
  found = trees.by_path(grads)
  assert sorted(found) == sorted(names)
  for name, oracle in zip(names, expected, strict=True):
    np.testing.assert_allclose(found[name].T if transposed else found[name], oracle, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('framework', FRAMEWORKS)
def test_a_step_of_no_example_is_refused(framework):
  train = jl.train_step(dense(framework, WEIGHTS)[0], jl.cross_entropy, jl.chain(optax.sgd(0.1)))
  batch = {'inputs': X, 'labels': np.arange(5) % 3}
  state = train.init(KEY, batch)
  with pytest.raises(ValueError, match=r'one example at least; got a batch of none, inputs float32\[0, 6\]'):
    train.step(state, {name: leaf[:0] for name, leaf in batch.items()})
  assert np.isfinite(train.step(state, batch)[1]['loss'])


def conv(framework):
  if framework == 'linen':
    return adapters.from_linen(nn.Conv(4, (3, 3)), {'params': {'kernel': K1, 'bias': C1}})
  if framework == 'nnx':
    module = nnx.Conv(2, 4, (3, 3), rngs=nnx.Rngs(0))
    module.kernel[...], module.bias[...] = K1, C1
    return adapters.from_nnx(module)
  if framework == 'equinox':
    inner = eqx.nn.Conv2d(2, 4, 3, padding=1, key=KEY)
    values = jnp.asarray(K1.transpose(3, 2, 0, 1)), jnp.asarray(C1[:, None, None])
    inner = eqx.tree_at(lambda m: (m.weight, m.bias), inner, values)
    to_first, to_last = (eqx.nn.Lambda(lambda x, a=a: x.transpose(a)) for a in ((2, 0, 1), (1, 2, 0)))
    return adapters.from_equinox(eqx.nn.Sequential([to_first, inner, to_last]))
  if framework == 'haiku':
    return adapters.from_haiku(lambda x: hk.Conv2D(4, 3, name='c')(x), {'c': {'w': K1, 'b': C1}})
  if framework == 'keras':
    layer = keras.layers.Conv2D(4, 3, padding='same')
    layer.build(IMAGES.shape)
    layer.set_weights([K1, C1])
    return adapters.from_keras(layer)
  layout = ('NHWC', 'HWIO', 'NHWC')
  run = lambda p, x: jax.lax.conv_general_dilated(x, p['k'], (1, 1), 'SAME', dimension_numbers=layout) + p['c']  # noqa: E731
  return adapters.from_function(run, {'k': K1, 'c': C1})


@pytest.mark.parametrize('framework', FRAMEWORKS)
def test_same_convolution_gives_the_outputs_of_numpy(framework):
  model = conv(framework)
  params, state = model.init(KEY, IMAGES)
  padded = np.pad(IMAGES, ((0, 0), (1, 1), (1, 1), (0, 0)))
  windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
  oracle = np.einsum('bhwcij,ijco->bhwo', windows, K1) + C1
  outputs = model.apply(params, state, IMAGES, train=False, key=None)[0]
  np.testing.assert_allclose(outputs, oracle, rtol=1e-4, atol=1e-4)


# --- dense, batch norm and dropout: state and randomness ---------------------------------------------------------


class LinenFull(nn.Module):
  rate: float = 0.5

  @nn.compact
  def __call__(self, x, train):
    x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(nn.Dense(8)(x))
    return nn.Dropout(self.rate, deterministic=not train)(x)


class NnxFull(nnx.Module):
  def __init__(self, rate, rngs):
    self.dense = nnx.Linear(6, 8, rngs=rngs)
    self.norm = nnx.BatchNorm(8, momentum=0.9, rngs=rngs)
    self.drop = nnx.Dropout(rate, rngs=rngs)

  def __call__(self, x):
    return self.drop(self.norm(self.dense(x)))


def eqx_full(rate, key):
  norm = eqx.nn.BatchNorm(8, 'batch', momentum=0.9, mode='batch')
  return eqx.nn.Sequential([eqx.nn.Linear(6, 8, key=key), norm, eqx.nn.Dropout(rate)])


def hk_full(rate):
  def run(x, is_training):
    x = hk.BatchNorm(True, True, 0.9)(hk.Linear(8)(x), is_training)
    return hk.dropout(hk.next_rng_key(), rate, x) if is_training and rate else x

  return hk.transform_with_state(run)


def keras_full(rate):
  norm = keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-5)
  return keras.Sequential([keras.layers.Dense(8), norm, keras.layers.Dropout(rate)])  # not built


def fn_full(rate):
  def run(params, x, *, train, key, state):
    x = x @ params['w']
    mean, var = (x.mean(0), x.var(0)) if train else (state['mean'], state['var'])
    new = {'mean': 0.9 * state['mean'] + 0.1 * mean, 'var': 0.9 * state['var'] + 0.1 * var}
    x = (x - mean) / jnp.sqrt(var + 1e-5)
    if train and rate:
      x = jnp.where(jax.random.bernoulli(key, 1 - rate, x.shape), x / (1 - rate), 0)
    return x, new

  return run, {'w': W1}, {'mean': jnp.zeros(8), 'var': jnp.ones(8)}


def full(framework, rate=0.5):
  return {
    'linen': lambda: adapters.from_linen(LinenFull(rate)),
    'nnx': lambda: adapters.from_nnx(lambda rngs: NnxFull(rate, rngs)),
    'equinox': lambda: adapters.from_equinox(lambda key: eqx_full(rate, key)),
    'haiku': lambda: adapters.from_haiku(hk_full(rate)),
    'keras': lambda: adapters.from_keras(keras_full(rate)),
    'function': lambda: adapters.from_function(*fn_full(rate)),
  }[framework]()


@functools.cache
def started(framework):
  """Returns (model, params, model_state) with dropout; donated by no test."""
  model = full(framework)
  return model, *model.init(KEY, X)


def same(one, other):
  return jax.tree.structure(one) == jax.tree.structure(other) and all(
    np.array_equal(a, b) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
  )


@pytest.mark.sampled(3)
@pytest.mark.parametrize('framework', FRAMEWORKS)
def test_batch_statistics_follow_the_data_and_serve_evaluation(framework):
  model = full(framework, rate=0.0)
  params, state = model.init(KEY, X)  # Haiku starts from the statistics of this batch, the others from 0 and 1
  data = 3 * X[::-1] ** 2

  def step(state, _):
    outputs, state = model.apply(params, state, data, train=True, key=None)
    return state, outputs

  settled, outputs = jax.lax.scan(step, state, None, length=300)
  found = trees.by_path(params)
  weight = next(leaf for leaf in found.values() if sorted(leaf.shape) == [6, 8])
  hidden = data @ (weight if weight.shape[0] == 6 else weight.T)  # the bias falls out
  oracle = (hidden - hidden.mean(0)) / np.sqrt(hidden.var(0) + 1e-5)
  np.testing.assert_allclose(outputs[0], oracle, rtol=2e-3, atol=2e-3)
  served, untouched = model.apply(params, settled, data, train=False, key=None)
  unbiased = oracle * (0.8**0.5 if framework == 'equinox' else 1)  # 5 examples: Equinox keeps n / (n - 1)
  assert min(np.abs(served - oracle).max(), np.abs(served - unbiased).max()) < 2e-3
  assert np.abs(model.apply(params, state, data, train=False, key=None)[0] - served).max() > 0.1
  assert same(untouched, settled)


@pytest.mark.parametrize('framework', FRAMEWORKS)
def test_randomness_is_of_key_and_step_alone(framework):
  model, params, state = started(framework)

  @jax.jit
  def run(key, step):
    return model.apply(params, state, X, train=True, key=key, step=step)[0]

  assert np.array_equal(run(KEY, 3), run(KEY, 3))
  assert not np.array_equal(run(KEY, 3), run(KEY, 4))
  assert not np.array_equal(run(KEY, 3), run(jax.random.key(8), 3))
  dropped = (run(KEY, 3) == 0).mean()
  assert 0.2 < dropped < 0.8
  assert len({row.tobytes() for row in run(KEY, 3) == 0}) > 1  # examples do not share one mask
  still = [np.asarray(model.apply(params, state, X, train=False, key=key)[0]) for key in (None, KEY)]
  assert np.array_equal(*still)
  with pytest.raises(ValueError, match='needs a key'):
    model.apply(params, state, X, train=True, key=None)


@pytest.mark.sampled(3)
@pytest.mark.unoptimized(False)  # bits are judged
@pytest.mark.parametrize('framework', FRAMEWORKS)
def test_state_can_be_carried_by_a_scan_equal_to_the_loop(framework):
  model, params, state = started(framework)
  run = jax.jit(lambda state, step: model.apply(params, state, X, train=True, key=KEY, step=step))
  looped, losses = state, []
  for step in range(3):
    outputs, looped = run(looped, jnp.int32(step))
    losses.append(outputs)
  scanned, outputs = jax.lax.scan(lambda state, step: run(state, step)[::-1], state, jnp.arange(3))
  assert same(scanned, looped)
  assert np.array_equal(outputs, np.stack(losses))
  assert jax.tree.map(lambda x: x.aval, looped) == jax.tree.map(lambda x: x.aval, state)


@pytest.mark.sampled(3)
@pytest.mark.parametrize('framework', FRAMEWORKS)
def test_one_trace_over_steps_and_donation_spares_the_users_arrays(framework):
  model = full(framework)
  params, state = model.init(KEY, X)
  again = model.init(KEY, X)
  traces = []

  def step(params, state, step):
    traces.append(step)

    def loss(params):
      outputs, new = model.apply(params, state, X, train=True, key=KEY, step=step)
      return (outputs**2).mean(), new

    grads, new = jax.grad(loss, has_aux=True)(params)
    return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), new

  jitted = jax.jit(step, donate_argnums=(0, 1))
  for index in range(3):
    params, state = jitted(params, state, jnp.int32(index))
  assert len(traces) == 1
  assert same(again, model.init(KEY, X))  # a start value that was donated would be gone


@pytest.mark.parametrize('framework', FRAMEWORKS)
def test_start_values_of_an_instance_survive_donation(framework):
  model, _, _ = dense(framework, WEIGHTS)
  first = jax.tree.map(np.array, model.init(KEY, X)[0])
  jax.jit(lambda p: jax.tree.map(jnp.zeros_like, p), donate_argnums=0)(model.init(KEY, X)[0])
  assert same(first, jax.tree.map(np.array, model.init(jax.random.key(99), X)[0]))


@pytest.mark.parametrize('framework', FRAMEWORKS)
def test_entries_of_hooks_pass_by_the_framework(framework):
  model, params, state = started(framework)
  plain, plain_state = model.apply(params, state, X, train=True, key=KEY, step=0)
  mine = {'jl.const': {'teacher': jnp.ones(2)}, **state, 'jl.lsq': {'low': jnp.zeros(3)}}
  outputs, new = model.apply({**params, 'jl.lsq': jnp.ones(4)}, mine, X, train=True, key=KEY, step=0)
  assert np.array_equal(plain, outputs)
  assert list(new) == list(mine)
  assert new['jl.const'] is mine['jl.const']
  assert new['jl.lsq'] is mine['jl.lsq']
  assert same({name: new[name] for name in state}, plain_state)


@pytest.mark.parametrize('framework', FRAMEWORKS)
def test_wrong_inputs_name_a_shape_and_missing_params_a_path(framework):
  model, names, _ = dense(framework, WEIGHTS)
  params, state = model.init(KEY, X)
  with pytest.raises(Exception, match=r'6|\(5, 7\)'):
    model.apply(params, state, np.ones((5, 7), np.float32), train=False, key=None)
  kept = trees.split(params, names[1:])[0]
  with pytest.raises(Exception, match=names[0].split('/')[0]):
    model.apply(kept, state, X, train=False, key=None)


@pytest.mark.parametrize('framework', FRAMEWORKS)
def test_init_can_be_evaluated_for_shapes_alone(framework):
  model, *values = started(framework)
  shapes = jax.eval_shape(model.init, KEY, X)
  assert jax.tree.map(lambda s: (s.shape, s.dtype, s.weak_type), shapes) == jax.tree.map(
    lambda v: (v.shape, v.dtype, False), tuple(values)
  )


@pytest.mark.parametrize('framework', FRAMEWORKS[:5])
def test_adapt_picks_the_adapter(framework):
  given = {
    'linen': linen_dense(SIZES),
    'nnx': nnx_dense(SIZES),
    'equinox': equinox_dense(SIZES),
    'haiku': hk.transform(haiku_dense(SIZES)),
    'keras': keras_dense(SIZES),
  }[framework]
  params, state = adapters.adapt(given).init(KEY, X)
  assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 6 * 8 + 8 + 8 * 3 + 3
  assert state == {}


def test_adapt_takes_models_pairs_and_nothing_else():
  model, _, _ = dense('function', WEIGHTS)
  assert adapters.adapt(model) is model
  assert adapters.adapt((function_dense, [(W1, B1), (W2, B2)])).init(KEY, X)[0]['0']['0'].shape == (6, 8)
  stateful = adapters.adapt(eqx.nn.make_with_state(eqx_full)(0.5, KEY))
  assert set(stateful.init(KEY, X)[1]) == {'state'}
  for wrong in (nn.Dense, lambda rngs: nnx_dense(SIZES), 3, 'mlp', (1, 2, 3), None):
    with pytest.raises(TypeError, match=r'a model (is a Model|of a function is)'):
      adapters.adapt(wrong)


@pytest.mark.parametrize(
  'name, module, command',
  [
    ('from_linen', 'flax', 'pip install flax'),
    ('from_nnx', 'flax', 'pip install flax'),
    ('from_equinox', 'equinox', r"pip install 'jaxlite\[equinox\]'"),
    ('from_haiku', 'haiku', r"pip install 'jaxlite\[haiku\]'"),
    ('from_keras', 'keras', r"pip install 'jaxlite\[keras\]'"),
  ],
)
def test_an_absent_framework_is_named_with_the_command_that_installs_it(name, module, command):
  code = f'import sys; sys.modules[{module!r}] = None; from jaxlite import adapters; adapters.{name}(None)'
  run = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=False)
  assert run.returncode == 1
  assert run.stderr.splitlines()[-1].startswith(f'ImportError: {name} needs ')
  assert run.stderr.splitlines()[-1].endswith(command.replace('\\', ''))


def test_the_adapters_import_no_framework():
  code = 'import sys, jaxlite.adapters; print([m for m in ("flax", "equinox", "haiku", "keras") if m in sys.modules])'
  assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout == '[]\n'
