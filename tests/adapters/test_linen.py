"""What is particular to Linen: its mode, streams, collections, boxes and start values."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxlite as jl
from forward import KEY, X, run
from jaxlite import trees
from jaxlite.adapters import from_linen

pytestmark = pytest.mark.unoptimized


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


def test_what_a_step_exports_is_what_linen_itself_applies():
  class Normed(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
      return nn.Dense(3)(nn.BatchNorm(use_running_average=not train)(x))

  batch = {'inputs': jax.random.normal(jax.random.key(1), (8, 4)), 'labels': jnp.arange(8) % 3}
  for parts in ((optax.sgd(0.1),), (jl.average(0.9), optax.sgd(0.1)), (optax.sgd(0.1), jl.prune(0.5, end=2))):
    train = jl.train_step(from_linen(Normed()), jl.cross_entropy, jl.chain(*parts))
    state, _ = train.step(train.init(jax.random.key(0), batch), batch)
    params, rest = train.model.export(state.params, state.model_state)
    assert set(rest) == {'batch_stats'}
    outputs = Normed().apply({'params': params, **rest}, batch['inputs'])
    np.testing.assert_allclose(outputs, train.eval(state, batch)[0], atol=1e-5)
