"""Taking a head off: the features are what the old head was given, in every framework, trained and evaluated."""

import functools

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxlite as jl
from jaxlite import trees
from jaxlite.finetuning import backbone, with_head
from networks import first_values

pytestmark = pytest.mark.unoptimized
X = np.random.default_rng(0).normal(size=(4, 6, 6, 2)).astype(np.float32)


class Net(nn.Module):
  """Convolution, batch norm, dropout, a head; what the head is given is sown."""

  last: str = 'logits'

  @nn.compact
  def __call__(self, x, train=False):
    x = nn.relu(nn.BatchNorm(use_running_average=not train)(nn.Conv(3, (3, 3))(x))).mean((1, 2))
    x = nn.relu(nn.Dense(5, name='hidden')(x))
    self.sow('intermediates', 'features', x)
    x = nn.Dropout(0.5, deterministic=not train)(x)
    x = nn.Dense(7, name='old')(x)
    return {'logits': lambda one: one, 'softmax': nn.softmax, 'tanh': jnp.tanh}[self.last](x)


@functools.cache
def network(module=None):
  model = jl.adapt(module or Net())
  params, state = first_values(model, X)
  return jl.Network(model, params, state)


@pytest.mark.parametrize('last', ['logits', 'softmax'])
def test_features_are_what_the_head_was_given(last):
  module = Net(last=last)
  net = network(module)
  found = backbone(net, X)
  assert found.dropped == {'old/kernel': (5, 7), 'old/bias': (7,)}
  assert found.width == 5
  assert found.order == ('Conv_0/kernel', 'hidden/kernel')
  variables = {'params': net.params, **net.model_state}
  sown = module.apply(variables, X, mutable='intermediates')[1]['intermediates']['features'][0]
  ours = jl.Network(found.model, found.params, found.model_state).predict(X)
  np.testing.assert_array_equal(ours, sown)


def test_the_old_head_put_back_is_the_old_network():
  net = network()
  again = with_head(backbone(net, X), 7, kernel=net.params['old']['kernel'], bias=net.params['old']['bias'])
  np.testing.assert_allclose(again.predict(X), net.predict(X), atol=1e-5)


def test_it_trains_as_the_network_does():
  net = network()
  found = backbone(net, X)
  key = jax.random.key(3)
  _, theirs = net.model.apply(net.params, net.model_state, X, train=True, key=key, step=jnp.int32(1))
  features, ours = found.model.apply(found.params, found.model_state, X, train=True, key=key, step=jnp.int32(1))
  for one, other in zip(jax.tree.leaves(theirs), jax.tree.leaves(ours), strict=True):
    np.testing.assert_array_equal(one, other)  # statistics of batch norm move alike
  assert (np.asarray(features) == 0).any()  # and what was dropped is dropped


def test_what_is_no_head_stays():
  found = backbone(network(Net(last='tanh')), X)
  assert found.told == 'its outputs are the features: 7 features'
  assert backbone(network(Net(last='tanh')), X, head='old').width == 5
  assert backbone(network(), X, head='outputs').width == 7
  assert backbone(network(), X, head='Conv_0').width == 2  # positions are averaged


def of_nnx():
  class Module(nnx.Module):
    def __init__(self):
      rngs = nnx.Rngs(0)
      self.one, self.two = nnx.Linear(3, 5, rngs=rngs), nnx.Linear(5, 2, rngs=rngs)

    def __call__(self, x):
      return self.two(jnp.tanh(self.one(x)))

  return Module()


def of_equinox():
  return eqx.nn.MLP(3, 2, 5, 1, key=jax.random.key(0))


def of_haiku():
  made = hk.transform(lambda x: hk.nets.MLP([5, 2])(x))
  model = jl.adapt(made)
  params, state = model.init(jax.random.key(0), np.ones((2, 3), np.float32))
  return jl.Network(model, params, state)


def of_a_function():
  params = [jnp.ones((3, 5)), jnp.ones((5, 2))]
  return jl.from_function(lambda p, x: jax.jit(lambda y: jnp.tanh(y) @ p[1])(x @ p[0]), params)


@pytest.mark.parametrize(
  'make',
  [of_equinox, of_a_function, *(pytest.param(one, marks=pytest.mark.slow) for one in (of_nnx, of_haiku))],
  ids=lambda one: one.__name__[3:],
)
def test_any_framework(make):
  x = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
  found = backbone(make(), x)
  assert found.width == 5
  assert sum(np.prod(shape) for shape in found.dropped.values()) in (10, 12)
  assert with_head(found, 4).predict(x).shape == (4, 4)


@pytest.mark.parametrize('make', [lambda: nn.Dense(3), lambda: hk.transform(lambda x: hk.Linear(3)(x))])
def test_a_network_without_values_is_not_tuned_from_random_ones(make):
  for network in (make(), jl.adapt(make())):
    with pytest.raises(ValueError, match='this network has none and would draw them at random'):
      backbone(network, np.ones((2, 3), np.float32))


def test_a_bfloat16_backbone_gives_float32_features():
  params = {'a': jnp.ones((3, 4), jnp.bfloat16), 'b': jnp.ones((4, 2), jnp.bfloat16)}
  found = backbone(
    (lambda p, x: jnp.tanh(x.astype(jnp.bfloat16) @ p['a']) @ p['b'], params), np.ones((2, 3), np.float32)
  )
  assert found.width == 4
  assert found.model.apply(found.params, {}, jnp.ones((2, 3)), train=False, key=None)[0].dtype == jnp.float32


def test_positions_are_averaged_where_the_mask_says():
  def apply(p, x):
    return p['table'][x['tokens']] @ p['w']

  params = {'table': jnp.arange(8.0).reshape(4, 2), 'w': jnp.eye(2)}
  inputs = {'tokens': np.array([[1, 2], [3, 3]]), 'mask': np.array([[True, False], [True, True]])}
  found = backbone((apply, params), inputs, head='outputs')
  features = found.model.apply(found.params, {}, inputs, train=False, key=None)[0]
  assert features.tolist() == [[2.0, 3.0], [6.0, 7.0]]


@pytest.mark.parametrize(
  'make,options,told',
  [
    (lambda: (lambda p, x: {'a': x @ p['w'], 'b': x}, {'w': jnp.ones((3, 2))}), {}, 'gives a dict of a, b'),
    (lambda: (lambda p, x: x @ p['w'], {'w': jnp.ones((3, 2))}), {}, "no weight stands before 'w'"),
    (lambda: (lambda p, x: x + p['w'], {'w': jnp.ones(3)}), {}, 'no such place'),
    (of_equinox, {'head': 'lin'}, 'matches no parameter|picks no parameter'),
    (of_equinox, {'head': 'layers'}, 'picks 2'),
  ],
)
def test_what_has_no_head_is_told(make, options, told):
  with pytest.raises(ValueError, match=told):
    backbone(make(), np.ones((2, 3), np.float32), **options)


@pytest.mark.parametrize('kernel', [np.zeros((5, 3)), np.zeros((4, 4)), np.full((5, 4), np.nan)])
def test_a_head_of_another_shape_is_told(kernel):
  with pytest.raises(ValueError, match=r'kernel \[5, 4\]|finite values'):
    with_head(backbone(network(), X), 4, kernel=kernel)


def test_a_head_under_lora_and_friends_keeps_its_paths():
  ready = with_head(backbone(network(), X), 4)
  assert {path.split('/')[0] for path in trees.paths(ready.params)} == {'BatchNorm_0', 'Conv_0', 'hidden', 'head'}
