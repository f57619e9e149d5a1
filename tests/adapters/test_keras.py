"""What is particular to Keras: variables' paths, frozen and tied layers, seeds, losses of layers, other backends."""

from __future__ import annotations

import functools
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import keras
import numpy as np
import optax
import pytest
from keras import layers

import jaxlite as jl
from forward import KEY, X, run
from jaxlite import trees
from jaxlite.adapters.keras import assign, from_keras
from jaxlite.contract import CONST, TAPS
from jaxlite.deployment import stablehlo

pytestmark = pytest.mark.unoptimized

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(6, 6, 6, 2)).astype(np.float32)
LABELS = np.arange(6, dtype=np.int32) % 3
BATCH = {'inputs': IMAGES, 'labels': LABELS}
TOKENS = np.array([[1, 2, 3, 0, 0], [4, 5, 0, 0, 0], [1, 6, 2, 3, 4]], np.int32)


def convolutional(name='net'):
  """A regularized convolution, batch norm, dropout and a dense layer; not built."""
  kernel = layers.Conv2D(4, 3, kernel_regularizer=keras.regularizers.L2(0.1), name='conv')
  norm, dropout = layers.BatchNormalization(momentum=0.9, name='norm'), layers.Dropout(0.5)
  return keras.Sequential(
    [kernel, norm, layers.ReLU(), dropout, layers.Flatten(), layers.Dense(3, name='out')], name=name
  )


def leaves_of(tree):
  return dict(zip(*trees.flatten(tree)[:2], strict=True))


# --- the forward is Keras's own ----------------------------------------------------------------------------------


class Subclassed(keras.Model):
  """Without an argument `training`, and with weights that have no name."""

  def __init__(self):
    super().__init__(name='mine')
    self.blocks = [layers.Dense(4, name='one'), layers.Dense(4, name='two')]
    self.dropout = layers.Dropout(0.5)

  def build(self, shape):
    self.gain = self.add_weight(shape=(4,), initializer='ones', name='gain')
    self.built = True  # as many a person writes it: the layers inside are not

  def call(self, inputs):
    for block in self.blocks:
      inputs = self.dropout(block(inputs))
    return inputs * self.gain


def two_inputs():
  a, b = keras.Input((6,), name='a'), keras.Input((5,), dtype='int32', name='b')
  hidden = layers.Concatenate()([layers.Dense(3)(a), layers.Flatten()(layers.Embedding(8, 2)(b))])
  return keras.Model({'a': a, 'b': b}, {'y': layers.Dense(2)(hidden), 'z': layers.Dense(1)(hidden)})


def recurrent():
  return keras.Sequential([layers.Embedding(8, 4, mask_zero=True), layers.LSTM(3, dropout=0.3), layers.Dense(2)])


def mixed():
  inside = [layers.Dense(3, dtype='mixed_bfloat16'), layers.BatchNormalization(dtype='mixed_bfloat16')]
  return keras.Sequential([*inside, layers.Dense(2)])


def compiled():
  model = keras.Sequential([keras.Input((6,)), layers.Dense(3), layers.Dropout(0.5)])
  model.compile('adam', 'mse', metrics=['mae'])
  model.fit(X, np.ones((4, 3)), verbose=0)
  return model


MODELS = {
  'sequential': (convolutional, IMAGES),
  'subclassed, built by halves': (Subclassed, X),
  'dicts': (two_inputs, {'a': X[:3], 'b': TOKENS}),
  'recurrent, masked': (recurrent, TOKENS),
  'compiled and fitted': (compiled, X),
  'one layer': (lambda: layers.Dense(3), X),
  'mixed precision': (mixed, X),
  'lambda': (lambda: keras.Sequential([layers.Lambda(lambda x: 2 * x), layers.Dense(2)]), X),
  'a clone': (lambda: keras.models.clone_model(keras.Sequential([keras.Input((6,)), layers.Dense(2)])), X),
}


@pytest.mark.sampled(3)
@pytest.mark.unoptimized(False)  # bits are judged
@pytest.mark.parametrize('name', MODELS)
def test_evaluation_is_that_of_keras_bit_for_bit(name):
  make, inputs = MODELS[name]
  theirs = make()
  model = from_keras(theirs)
  params, state = model.init(KEY, inputs)
  outputs, same = run(model, params, state, inputs, train=False, key=None)
  assert same is state
  jax.tree.map(np.testing.assert_array_equal, outputs, theirs(inputs, training=False))
  assert len(leaves_of(params)) == len(theirs.trainable_variables)
  assert not any(isinstance(one.value, jax.core.Tracer) for one in theirs.variables)


def test_gradients_and_statistics_are_those_of_stateless_call():
  theirs = convolutional()
  theirs.layers[3].rate = 0.0
  model = from_keras(theirs)
  params, state = model.init(KEY, IMAGES)

  @jax.jit
  @functools.partial(jax.grad, has_aux=True)
  def ours(params, state, step):
    outputs, state = run(model, params, state, IMAGES, step=step)
    return (outputs**2).mean() + state.pop(TAPS)['loss/layer_losses'], state

  @jax.jit
  @functools.partial(jax.grad, has_aux=True)
  def oracle(trained, others):
    outputs, others, losses = theirs.stateless_call(trained, others, IMAGES, training=True, return_losses=True)
    return (outputs**2).mean() + sum(losses), others

  trained = [one.value for one in theirs.trainable_variables]
  others = [one.value for one in theirs.non_trainable_variables]
  for step in range(3):
    grads, state = ours(params, state, step)
    expected, others = oracle(trained, others)
    params = jax.tree.map(lambda w, g: w - 0.1 * g, params, grads)
    trained = [w - 0.1 * g for w, g in zip(trained, expected, strict=True)]
  found = leaves_of(grads)
  assert list(found) == sorted(one.path for one in theirs.trainable_variables)
  for one, grad in zip(theirs.trainable_variables, expected, strict=True):
    np.testing.assert_allclose(found[one.path], grad, rtol=1e-5, atol=1e-6)
  found = leaves_of(state['state'])
  for one, value in zip(theirs.non_trainable_variables, others, strict=True):
    if 'seed' not in one.path:
      np.testing.assert_allclose(found.pop(one.path), value, rtol=1e-5, atol=1e-6)
  assert not found


# --- randomness --------------------------------------------------------------------------------------------------


def test_dropout_is_of_key_and_step_in_every_process_and_no_seed_is_state():
  inputs = np.ones((8, 32), np.float32)
  for _ in range(2):  # Keras numbers seed generators on, and draws their seeds anew
    model = from_keras(keras.Sequential([layers.Dropout(0.5), layers.Dropout(0.2)]))
    params, state = model.init(KEY, inputs)
    assert (params, state) == ({}, {})
    outputs, new = run(model, params, state, inputs, step=1)
    assert new == {}
    assert np.array_equal(outputs, run(model, params, state, inputs, step=1)[0])
    assert not np.array_equal(outputs, run(model, params, state, inputs, step=2)[0])
    first = locals().get('first', outputs)
    assert np.array_equal(outputs, first)
  assert 0.5 < (outputs == 0).mean() < 0.7  # 1 - 0.5 * 0.8: the two masks differ


# --- frozen and tied ---------------------------------------------------------------------------------------------


def test_frozen_layers_are_constants_that_quantization_sees_and_a_frozen_norm_evaluates():
  theirs = convolutional()
  for layer in theirs.layers[:2]:
    layer.trainable = False
  model = from_keras(theirs)
  train = jl.train_step(model, jl.cross_entropy, jl.chain(jl.fake_quant(), optax.adam(1e-2)))
  state = train.init(KEY, BATCH)
  assert trees.paths(state.params) == ['net/out/bias', 'net/out/kernel']
  assert trees.paths(state.const['keras']) == [
    'net/conv/bias',
    'net/conv/kernel',
    *(f'net/norm/{name}' for name in ('beta', 'gamma', 'moving_mean', 'moving_variance')),
  ]
  assert not any('net/conv' in path or 'net/norm' in path for path in trees.paths(state.opt_state))
  before = jax.tree.map(np.array, state.const)
  for _ in range(2):
    state, metrics = train.step(state, BATCH)
  jax.tree.map(np.testing.assert_array_equal, before, state.const)
  assert sorted(metrics) == ['loss', 'task']  # Keras, too, counts no losses of frozen weights
  bits = jl.quantization.weight_bits(train.model, state.params, {**state.model_state, CONST: state.const}, IMAGES)
  assert bits == {'net/conv/kernel': 8, 'net/out/kernel': 8}


def test_a_layer_that_is_used_twice_is_one_parameter_with_both_gradients():
  shared = layers.Dense(6, use_bias=False, name='shared')
  model = from_keras(keras.Sequential([shared, shared], name='net'))
  params, state = model.init(KEY, X)
  (kernel,) = jax.tree.leaves(params)
  grads = jax.grad(lambda p: run(model, p, state)[0].sum())(params)
  expected = jax.grad(lambda w: (X @ w @ w).sum())(kernel)
  np.testing.assert_allclose(*jax.tree.leaves((grads, expected)), rtol=1e-5)


def test_layers_of_one_name_are_told_apart_by_the_models_around_them():
  def part(name, inner='fc'):
    inputs = keras.Input((6,))
    return keras.Model(inputs, layers.Dense(6, use_bias=False, name=inner)(inputs), name=name)

  both = keras.Sequential([part('a'), part('b')], name='net')
  assert trees.paths(from_keras(both).init(KEY, X)[0]) == ['a/fc/kernel', 'b/fc/kernel']

  class Twins(keras.Model):
    def __init__(self):
      super().__init__()
      self.both = part('a'), part('a')

    def call(self, inputs):
      return self.both[0](inputs) + self.both[1](inputs)

  with pytest.raises(ValueError, match="path of its own; 'a/fc/kernel' names two"):
    from_keras(Twins()).init(KEY, X)


# --- losses of layers --------------------------------------------------------------------------------------------


class Penalised(keras.Layer):
  def call(self, inputs):
    self.add_loss(keras.ops.sum(inputs**2))
    return inputs


def test_losses_of_layers_are_counted_beside_the_task():
  dense = layers.Dense(3, kernel_regularizer='l2', activity_regularizer='l1', name='d')
  theirs = keras.Sequential([dense, Penalised()], name='net')
  model = from_keras(theirs)
  recipe = jl.chain(jl.optim.label_smoothing(0.1), jl.accumulate(2), optax.sgd(0.1))
  train = jl.train_step(model, jl.cross_entropy, recipe)
  batch = {'inputs': X, 'labels': LABELS[:4]}
  state = train.init(KEY, batch)
  kernel = np.asarray(state.params['net']['d']['kernel'])
  start = jax.tree.map(jnp.array, state.params)
  evaluated = train.eval(state, batch)[1]['task']
  state, metrics = train.step(state, batch)

  outputs = X @ kernel
  activity = np.abs(outputs).sum() * 0.01 / 2  # Keras divides by the batch size, here of each of two micro-batches
  expected = 0.01 * (kernel**2).sum() + activity / 2 + (outputs**2).sum() / 2
  np.testing.assert_allclose(metrics['layer_losses'], expected, rtol=1e-5)
  assert sorted(metrics) == ['label_smoothing', 'layer_losses', 'loss', 'task']
  np.testing.assert_allclose(metrics['task'], 0.9 * evaluated, rtol=1e-5)
  np.testing.assert_allclose(metrics['loss'], sum(metrics[name] for name in sorted(metrics) if name != 'loss'), 1e-5)

  def total(kernel):
    outputs = X @ kernel
    smoothed = 0.9 * jl.cross_entropy(outputs, batch).mean() - 0.1 * jax.nn.log_softmax(outputs).mean()
    return smoothed + 0.01 * (kernel**2).sum() + 0.01 * jnp.abs(outputs).sum() / 4 + (outputs**2).sum() / 2

  moved = start['net']['d']['kernel'] - state.params['net']['d']['kernel']
  np.testing.assert_allclose(moved, 0.1 * jax.grad(total)(kernel), rtol=1e-4, atol=1e-5)


# --- the whole chain ---------------------------------------------------------------------------------------------


def test_prune_fake_quant_and_distill_in_one_step_and_back_into_keras(tmp_path):
  theirs = convolutional()
  model, great = from_keras(theirs), from_keras(convolutional('teacher'))
  teacher = jl.Network(great, *great.init(KEY, IMAGES))
  last = jl.prune(0.75, begin=0, end=2, every=1, allocate=jl.pruning.uniform)
  recipe = jl.chain(jl.fake_quant(), jl.distill(teacher), optax.adam(1e-2), last)
  train = jl.train_step(model, jl.cross_entropy, recipe)
  state = train.init(KEY, BATCH)
  for _ in range(4):
    state, metrics = train.step(state, BATCH)
  assert sorted(metrics) == ['distill', 'layer_losses', 'loss', 'task']
  zeros = {path: int((np.asarray(leaf) == 0).sum()) for path, leaf in leaves_of(state.params).items()}
  assert zeros['net/conv/kernel'] == 54  # three quarters of 3 x 3 x 2 x 4
  assert zeros['net/out/kernel'] == 144  # three quarters of 4 x 4 x 4 x 3
  assert sum(zeros.values()) == 54 + 144

  full = {**state.model_state, CONST: state.const}
  params, model_state = train.model.export(state.params, full)
  assign(theirs, params, model_state)
  jax.tree.map(np.testing.assert_array_equal, model.init(KEY, IMAGES), (params, {'state': model_state['state']}))
  evaluated = train.eval(state, BATCH)[0]

  assert (
    stablehlo.save_program(tmp_path, train.model, recipe, jl.Network(train.model, state.params, full), IMAGES) == ''
  )
  loaded = stablehlo.load_program(tmp_path, state.params, full).predict(IMAGES[:5])  # the batch size is open
  assert np.abs(loaded - evaluated[:5]).max() < 0.1 * np.abs(evaluated).max()  # ranges are of the batch


def test_values_are_read_at_init_and_written_back_only_where_they_fit():
  theirs = keras.Sequential([keras.Input((6,)), layers.Dense(2, name='d')], name='net')
  model = from_keras(theirs)
  first, _ = model.init(KEY, X)
  jax.jit(lambda p: jax.tree.map(jnp.zeros_like, p), donate_argnums=0)(model.init(KEY, X)[0])
  assign(theirs, jax.tree.map(lambda leaf: leaf + 1, first))
  second, _ = model.init(KEY, X)
  jax.tree.map(lambda one, other: np.testing.assert_array_equal(one + 1, other), first, second)
  with pytest.raises(ValueError, match=r"does not know 'jl\.lsq': export them first"):
    assign(theirs, {**first, 'jl.lsq': 1})
  with pytest.raises(ValueError, match="needs 'net/d/bias', too"):
    assign(theirs, {'net': {'d': {'kernel': first['net']['d']['kernel']}}})
  with pytest.raises(ValueError, match='has another shape'):
    assign(theirs, jax.tree.map(lambda leaf: leaf[:1], first))
  with pytest.raises(ValueError, match="does not know 'a'"):
    assign(theirs, first, {'state': {'a': 1}})


# --- what is refused ---------------------------------------------------------------------------------------------


class MadeInside(keras.Model):
  def call(self, inputs):
    return layers.Dense(3)(inputs)


@pytest.mark.parametrize(
  'make, who',
  [
    (MadeInside, 'kernel'),
    (lambda: keras.Sequential([layers.Lambda(functools.partial(lambda d, x: d(x), built_dense()))]), 'apart/kernel'),
    (lambda: keras.Sequential([layers.Lambda(lambda x: x + keras.random.normal((6,), seed=GENERATOR))]), 'apart'),
    (lambda: keras.Sequential([layers.Lambda(lambda x: x + keras.random.normal((6,)))]), 'seed_generator_state'),
  ],
  ids=['a layer made in call', 'a layer in a closure', 'a generator in a closure', 'no generator'],
)
def test_a_variable_that_no_layer_holds_is_refused_in_one_line(make, who):
  model = from_keras(make())
  with pytest.raises(ValueError, match=f"did not hold '.*{who}.*', which would never change") as caught:
    run(model, *model.init(KEY, X), train=True)
  assert '\n' not in str(caught.value)


def built_dense():
  dense = layers.Dense(6, name='apart')
  dense.build((None, 6))
  return dense


GENERATOR = keras.random.SeedGenerator(1, name='apart')


def test_what_is_no_keras_model_is_named():
  for wrong, said in ((keras.Sequential, 'the class Sequential: give an instance'), (3, 'int'), (None, 'NoneType')):
    with pytest.raises(TypeError, match=f'from_keras takes an instance of keras.Model or keras.Layer, got {said}'):
      from_keras(wrong)


def test_another_backend_is_refused_with_the_line_that_sets_it():
  code = 'import keras, jaxlite as jl; jl.adapt(keras.Sequential([keras.layers.Dense(2)]))'
  environment = {**os.environ, 'KERAS_BACKEND': 'numpy'}
  done = subprocess.run([sys.executable, '-c', code], env=environment, capture_output=True, text=True, check=False)
  last = done.stderr.splitlines()[-1]
  assert last.startswith('ValueError: from_keras takes a model that runs on JAX; Keras runs on numpy')
  assert last.endswith("set os.environ['KERAS_BACKEND'] = 'jax' before keras is first imported")
