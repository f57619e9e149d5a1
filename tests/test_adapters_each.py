"""What is particular to one framework: collections, shared weights, buffers, signatures."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxlite import trees
from jaxlite.adapters import from_equinox, from_function, from_haiku, from_linen, from_nnx

KEY = jax.random.key(3)
X = np.random.default_rng(1).normal(size=(4, 6)).astype(np.float32)


def run(model, params, state, x=X, *, train=True, key=KEY, step=0):
  return model.apply(params, state, x, train=train, key=key, step=step)


# --- Linen -------------------------------------------------------------------------------------------------------


class Deterministic(nn.Module):
  @nn.compact
  def __call__(self, x, deterministic):
    return jnp.asarray(deterministic)


class Learning(nn.Module):
  @nn.compact
  def __call__(self, x, learn=False):
    return jnp.asarray(learn)


def test_linen_is_told_its_mode():
  for model, in_training in [
    (from_linen(Deterministic()), False),
    (from_linen(Learning(), train_arg='learn'), True),
  ]:
    params, state = model.init(KEY, X)
    assert [bool(run(model, params, state, train=train)[0]) for train in (True, False)] == [
      in_training,
      not in_training,
    ]
  model = from_linen(Learning())
  assert not run(model, *model.init(KEY, X), train=True)[0]  # no name that is known


class Noisy(nn.Module):
  @nn.compact
  def __call__(self, x, train):
    if train:
      x = x + jax.random.normal(self.make_rng('noise'), x.shape)
      self.variable('ema', 'mean', jnp.zeros, x.shape[-1:]).value += x.mean(0)
    return nn.Dense(2)(x)


def test_linen_any_stream_is_served_and_collections_born_in_training_are_state():
  model = from_linen(Noisy())
  params, state = model.init(KEY, X)
  assert list(state) == ['ema']
  one, new = run(model, params, state)
  other, _ = run(model, params, state, step=1)
  assert not np.array_equal(one, other)
  assert not np.array_equal(new['ema']['mean'], state['ema']['mean'])
  run(model, params, new, train=False, key=None)


def test_linen_init_is_its_own_init():
  module = nn.Sequential([nn.Dense(4), nn.relu, nn.Dense(2)])
  ours, _ = from_linen(module).init(KEY, X)
  theirs = module.init(KEY, X)['params']
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), ours, theirs)


def test_linen_boxed_params_train():
  kernel_init = nn.with_partitioning(nn.initializers.lecun_normal(), (None, 'model'))
  model = from_linen(nn.Dense(2, kernel_init=kernel_init))
  params, state = model.init(KEY, X)
  assert trees.paths(params) == ['bias', 'kernel']
  grads = jax.grad(lambda p: (run(model, p, state)[0] ** 2).sum())(params)
  assert np.abs(grads['kernel']).sum() > 0


class Sower(nn.Module):
  @nn.compact
  def __call__(self, x):
    x = nn.Dense(2)(x)
    self.sow('intermediates', 'hidden', x)
    self.sow('losses', 'aux', x.sum())
    total = self.variable('sums', 'total', jnp.zeros, ())
    total.value += x.sum()
    return self.perturb('out', x)


def test_linen_sown_values_are_no_state():
  model = from_linen(Sower())
  params, state = model.init(KEY, X)
  assert list(state) == ['sums']
  _, new = run(model, params, state)
  assert jax.tree.structure(new) == jax.tree.structure(state)
  assert new['sums']['total'] != state['sums']['total']
  assert run(model, params, new, train=False, key=None)[1] is new  # it writes in evaluation too: not kept


def test_linen_start_values_may_be_a_part_and_must_fit():
  module = nn.Sequential([nn.Dense(4), nn.Dense(2)])
  kernel = jnp.full((6, 4), 0.5)
  params, _ = from_linen(module, {'params': {'layers_0': {'kernel': kernel}}}).init(KEY, X)
  assert np.array_equal(params['layers_0']['kernel'], kernel)
  assert params['layers_1']['kernel'].shape == (4, 2)
  with pytest.raises(ValueError, match=r"'params/layer_0/kernel' is none; nearest: params/layers_0/kernel"):
    from_linen(module, {'params': {'layer_0': {'kernel': kernel}}}).init(KEY, X)
  with pytest.raises(ValueError, match=r'has shape \(6, 4\), its start value \(5, 4\)'):
    from_linen(module, {'params': {'layers_0': {'kernel': jnp.ones((5, 4))}}}).init(KEY, X)


def test_linen_bound_module_brings_its_values():
  values = nn.Dense(2).init(KEY, X)
  params, _ = from_linen(nn.Dense(2).bind(values)).init(jax.random.key(9), X)
  assert np.array_equal(params['kernel'], values['params']['kernel'])


class TwoInputs(nn.Module):
  @nn.compact
  def __call__(self, inputs):
    return nn.Dense(2)(inputs['a']) + nn.Dense(2)(inputs['b'][0])


def test_linen_inputs_may_be_a_tree():
  model = from_linen(TwoInputs())
  inputs = {'a': X, 'b': (X[:, :3],)}
  params, state = model.init(KEY, inputs)
  assert run(model, params, state, inputs)[0].shape == (4, 2)


def test_linen_layers_of_a_scan_drop_different_units():
  class Layer(nn.Module):
    @nn.compact
    def __call__(self, x, _):
      return nn.Dropout(0.5, deterministic=False)(x), None

  class Deep(nn.Module):
    @nn.compact
    def __call__(self, x):
      return nn.scan(Layer, length=6, split_rngs={'params': True, 'dropout': True})()(x, None)[0]

  model = from_linen(Deep())
  x = np.ones((64, 64), np.float32)
  kept = (run(model, *model.init(KEY, x), x)[0] != 0).mean()
  assert kept < 0.1  # 0.5 ** 6 = 0.016; one mask for all layers would keep half


# --- NNX ---------------------------------------------------------------------------------------------------------


class Count(nnx.Variable):
  pass


class Everything(nnx.Module):
  def __init__(self, rngs):
    self.layers = nnx.List([nnx.Linear(6, 6, use_bias=False, rngs=rngs), nnx.BatchNorm(6, rngs=rngs)])
    self.drop = nnx.Dropout(0.5, rngs=rngs)
    self.tied = self.layers[0]
    self.calls = Count(jnp.zeros((), jnp.int32))
    self.shift = jnp.arange(6.0)
    self.rngs = rngs

  def __call__(self, x):
    self.calls[...] += 1
    for layer in self.layers:
      x = layer(x)
    return self.tied(self.drop(x) + self.shift + 0.0 * self.rngs.noise.normal((6,)))


def test_nnx_shared_modules_are_one_parameter_and_buffers_are_state():
  model = from_nnx(Everything(nnx.Rngs(0)))
  params, state = model.init(KEY, X)
  assert trees.paths(params) == ['layers/0/kernel', 'layers/1/bias', 'layers/1/scale']
  assert trees.paths(state) == ['state/calls', 'state/layers/1/mean', 'state/layers/1/var', 'state/shift']
  assert all(type(leaf) is type(jnp.ones(1)) for leaf in jax.tree.leaves((params, state)))
  _, new = run(model, params, state)
  assert new['state']['calls'] == 1
  assert run(model, params, new, train=False, key=None)[1]['state']['calls'] == 1
  grads = jax.grad(lambda p: run(model, p, state)[0].sum())(params)
  assert np.abs(grads['layers']['0']['kernel']).sum() > 0


def test_nnx_leaves_the_users_module_as_it_was():
  module = Everything(nnx.Rngs(0))
  module.eval()
  before = jax.tree.map(np.array, nnx.state(module, nnx.Not(nnx.RngState)))
  model = from_nnx(module)
  params, state = model.init(KEY, X)
  jax.jit(lambda p, s: (run(model, p, s), p), donate_argnums=(0, 1))(params, state)
  assert module.drop.deterministic
  assert module.layers[1].use_running_average
  jax.tree.map(np.testing.assert_array_equal, before, jax.tree.map(np.array, nnx.state(module, nnx.Not(nnx.RngState))))


def test_nnx_rngs_argument_of_the_forward_is_served():
  class Net(nnx.Module):
    def __init__(self, *, rngs):
      self.dense, self.drop = nnx.Linear(6, 32, rngs=rngs), nnx.Dropout(0.5)

    def __call__(self, x, *, deterministic, rngs=None):
      return self.drop(self.dense(x), deterministic=deterministic, rngs=rngs)

  model = from_nnx(Net)
  params, state = model.init(KEY, X)
  assert state == {}
  assert 0.2 < (run(model, params, state)[0] == 0).mean() < 0.8
  assert not np.any(run(model, params, state, train=False, key=None)[0] == 0)
  with pytest.raises(ValueError, match='needs a key'):
    run(model, params, state, key=None)


def test_nnx_stacked_streams_draw_different_numbers():
  class Net(nnx.Module):
    def __init__(self, rngs):
      @nnx.split_rngs(splits=3)
      @nnx.vmap
      def make(rngs):
        return nnx.Dropout(0.5, rngs=rngs)

      self.drops = make(rngs)

    def __call__(self, x):
      return nnx.vmap(lambda drop, x: drop(x), in_axes=(0, None))(self.drops, x)

  model = from_nnx(Net)
  x = np.ones((4, 64), np.float32)
  outputs = np.asarray(run(model, *model.init(KEY, x), x)[0])
  assert not np.array_equal(outputs[0], outputs[1])


def test_nnx_tied_arrays_are_an_error_and_not_silently_untied():
  module = Everything(nnx.Rngs(0))
  module.other = nnx.Linear(6, 6, rngs=nnx.Rngs(1))
  module.other.kernel.set_value(module.layers[0].kernel.get_value())
  with pytest.raises(ValueError, match='are one array'):
    from_nnx(module).init(KEY, X)


def test_nnx_old_style_keys_serve():
  model = from_nnx(Everything(nnx.Rngs(0)))
  params, state = model.init(KEY, X)
  assert run(model, params, state, key=jax.random.PRNGKey(0))[0].shape == X.shape


# --- Equinox -----------------------------------------------------------------------------------------------------


class Buffers(eqx.Module):
  weight: jax.Array
  freq: jax.Array
  index: jax.Array
  scale: jax.Array
  activation: Any

  def __init__(self, key):
    self.weight = jax.random.normal(key, (6, 6))
    self.freq = jnp.linspace(1.0, 2.0, 6)
    self.index = jnp.arange(6)[::-1]
    self.scale = jnp.asarray(2.0)  # weakly typed
    self.activation = jax.nn.relu

  def __call__(self, x):
    return self.activation(self.scale * (x * self.freq)[self.index] @ self.weight)


@pytest.mark.parametrize('given', [Buffers(KEY), Buffers], ids=['instance', 'constructor'])
def test_equinox_integers_and_frozen_floats_are_buffers(given):
  model = from_equinox(given, frozen='^freq$')
  params, state = jax.jit(model.init)(KEY, X)
  assert trees.paths(params) == ['scale', 'weight']
  assert trees.paths(state) == ['buffers/freq', 'buffers/index']
  assert not params['scale'].weak_type
  module = Buffers(KEY)
  outputs, new = run(model, params, state)
  np.testing.assert_allclose(outputs, jax.vmap(module)(X), rtol=1e-5)
  assert np.array_equal(new['buffers']['freq'], module.freq)
  with pytest.raises(ValueError, match=r"from_equinox: frozen 'frq' matches no parameter"):
    from_equinox(given, frozen='frq')


class Signature(eqx.Module):
  w: jax.Array
  index: eqx.nn.StateIndex

  def __init__(self, key=None):
    self.w, self.index = jnp.ones(6), eqx.nn.StateIndex(jnp.zeros((), jnp.int32))


class Stateful(Signature):
  def __call__(self, x, state, *, key):
    noise = jax.random.normal(key, x.shape)
    return x * self.w + noise, state.set(self.index, state.get(self.index) + 1)


class Forgetful(Signature):
  def __call__(self, x):
    return x * self.w


class Keyed(eqx.Module):
  w: jax.Array

  def __call__(self, x, key):
    one, _ = jax.random.split(key)
    return x * self.w + jax.random.normal(one, x.shape)


def test_equinox_signatures():
  for given, state in [(Stateful(), None), (Stateful, None), eqx.nn.make_with_state(Stateful)()]:
    model = from_equinox(given, state)
    params, carried = model.init(KEY, X)
    outputs, new = run(model, params, carried, np.ones_like(X))
    assert trees.paths(new) == ['state/0']
    assert new['state']['0'] == 1
    assert len(np.unique(outputs)) == outputs.size  # a key for each example
  keyed = from_equinox(Keyed(jnp.ones(6)))
  run(keyed, *keyed.init(KEY, X), train=False, key=None)  # splits its key in evaluation too
  with pytest.raises(ValueError, match='needs a key'):
    run(keyed, *keyed.init(KEY, X), key=None)
  with pytest.raises(ValueError, match='give it as state='):
    from_equinox(eqx.nn.make_with_state(Stateful)()[0])
  with pytest.raises(ValueError, match='argument named state'):
    from_equinox(Forgetful())


def test_equinox_batched_modules_are_not_mapped():
  class Whole(eqx.Module):
    w: jax.Array

    def __call__(self, x):
      return (x - x.mean(0)) @ self.w

  model = from_equinox(Whole(jnp.eye(6)), batched=True)
  np.testing.assert_allclose(run(model, *model.init(KEY, X))[0], X - X.mean(0), atol=1e-6)


class Tied(eqx.Module):
  one: jax.Array
  two: jax.Array

  def __init__(self, key):
    self.one = self.two = jax.random.normal(key, (6, 6))

  def __call__(self, x):
    return x @ self.one @ self.two


@pytest.mark.parametrize('given', [Tied(KEY), Tied], ids=['instance', 'constructor'])
def test_equinox_naive_ties_are_an_error(given):
  with pytest.raises(ValueError, match="'one' and 'two' are one array"):
    from_equinox(given).init(KEY, X)


def test_equinox_shared_weights_are_one_parameter():
  class Net(eqx.Module):
    shared: eqx.nn.Shared

    def __init__(self, key):
      pair = eqx.nn.Linear(6, 6, key=key), eqx.nn.Linear(6, 6, key=key)
      self.shared = eqx.nn.Shared(pair, where=lambda p: p[1].weight, get=lambda p: p[0].weight)

    def __call__(self, x):
      one, two = self.shared()
      return two(one(x))

  model = from_equinox(Net)
  params, state = model.init(KEY, X)
  assert sum('weight' in path for path in trees.paths(params)) == 1
  assert run(model, params, state)[0].shape == X.shape


# --- Haiku -------------------------------------------------------------------------------------------------------


def test_haiku_names_are_paths_and_init_is_its_own():
  transformed = hk.transform(lambda x: hk.nets.MLP([4, 2])(x))
  model = from_haiku(transformed)
  params, state = model.init(KEY, X)
  assert trees.paths(params)[1] == 'mlp/~/linear_0/w'
  assert state == {}
  theirs = transformed.init(KEY, X)
  np.testing.assert_allclose(run(model, params, state)[0], transformed.apply(theirs, None, X), rtol=1e-5)
  outside = from_haiku(lambda x: x @ hk.get_parameter('w', (6, 2), init=jnp.ones))
  assert trees.paths(outside.init(KEY, X)[0]) == ['~/w']
  assert run(outside, *outside.init(KEY, X))[0].shape == (4, 2)


def test_haiku_start_values_must_fit_and_wrong_things_are_named():
  with pytest.raises(ValueError, match=r'has shape \(6, 2\), its start value \(6, 3\)'):
    from_haiku(lambda x: hk.Linear(2)(x), {'linear': {'w': np.ones((6, 3))}}).init(KEY, X)
  with pytest.raises(TypeError, match='without_apply_rng'):
    from_haiku(hk.without_apply_rng(hk.transform(lambda x: x)))
  with pytest.raises(TypeError, match='from_haiku takes a function'):
    from_haiku(3)


# --- functions ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
  'apply, in_training',
  [
    (lambda p, x, train: train, True),
    (lambda p, x, *, training: training, True),
    (lambda p, x, is_training=False: is_training, True),
    (lambda p, x, deterministic: deterministic, False),
    (lambda p, x, use_running_average: use_running_average, False),
    (lambda p, x, *, inference=True: inference, False),
    (lambda p, x, train, deterministic: train and not deterministic, True),
  ],
)
def test_a_forward_is_told_its_mode_by_the_names_that_it_uses(apply, in_training):
  model = from_function(apply, {'w': 1.0})
  params, state = model.init(KEY, X)
  for train in (True, False):
    assert run(model, params, state, train=train)[0] is (in_training is train)


@pytest.mark.parametrize(
  'params, apply, names',
  [
    (np.ones((6, 2)), lambda p, x: x @ p, ['value']),
    ([np.ones((6, 2)), np.zeros(2)], lambda p, x: x @ p[0] + p[1], ['0', '1']),
    ({'layers': ({'w': np.ones((6, 2))},)}, lambda p, x: x @ p['layers'][0]['w'], ['layers/0/w']),
    ({0: np.ones((6, 2)), 1: None}, lambda p, x: x @ p[0], ['0']),
    (lambda key: [jax.random.normal(key, (6, 2))], lambda p, x: x @ p[0], ['0']),
    (lambda key, x: {'w': jnp.ones((x.shape[-1], 2))}, lambda p, x: x @ p['w'], ['w']),
  ],
  ids=['array', 'list', 'dict of tuple', 'integer keys', 'constructor', 'constructor that reads inputs'],
)
def test_functions_get_the_pytree_that_they_expect(params, apply, names):
  model = from_function(apply, params)
  found, state = model.init(KEY, X)
  assert isinstance(found, dict)
  assert trees.paths(found) == names
  assert state == {}
  assert run(model, found, state)[0].shape == (4, 2)
  one, rest = trees.split(found, [names[0]])
  assert run(model, trees.merge(rest, one), state)[0].shape == (4, 2)


def test_functions_take_state_and_mistakes_are_named():
  def apply(params, x, *, state):
    return x * params['w'], state + 1

  model = from_function(apply, lambda key: ({'w': jnp.ones(6)}, jnp.zeros(())))
  params, state = model.init(KEY, X)
  assert run(model, params, state)[1] == {'state': 1}
  growing = from_function(lambda p, x, state: (x, jnp.append(state, 1.0)), {'w': 1.0}, jnp.zeros(2))
  with pytest.raises(ValueError, match=r"'state' went from \(2,\) to \(3,\)"):
    run(growing, *growing.init(KEY, X))
  with pytest.raises(TypeError, match='argument named state'):
    from_function(lambda p, x: x, {'w': 1.0}, jnp.zeros(2))
  forgetful = from_function(lambda p, x, state: x, {'w': 1.0}, jnp.zeros(2))
  with pytest.raises(TypeError, match='takes state returns'):
    run(forgetful, *forgetful.init(KEY, X))
  with pytest.raises(ValueError, match=r"'jl\.mine': rename it"):
    from_function(lambda p, x: x, {'jl.mine': 1.0}).init(KEY, X)
  with pytest.raises(TypeError, match='from_function takes a function'):
    from_function({'w': 1.0}, {'w': 1.0})
  with pytest.raises(TypeError, match="'act' is str"):
    from_function(lambda p, x: x, {'act': 'relu'}).init(KEY, X)
  with pytest.raises(ValueError, match="'a' names both"):
    from_function(lambda p, x: x, {'a': np.ones(1), 'a/b': np.ones(1)}).init(KEY, X)
  tied = np.ones(3)
  with pytest.raises(ValueError, match='are one array'):
    from_function(lambda p, x: x, [tied, tied]).init(KEY, X)


def test_state_keeps_its_dtype():
  model = from_function(lambda p, x, state: (x, state * 1.5), {'w': 1.0}, jnp.ones((), jnp.bfloat16))
  _, new = run(model, *model.init(KEY, X))
  assert new['state'].dtype == jnp.bfloat16
  assert not new['state'].weak_type
