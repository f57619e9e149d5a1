"""Layers whose weights lie stacked in one array are cut alike; derivatives that somebody wrote stay what they are."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlite as jl
from networks import first_values
from shrinking import agree, choices, masked, ones, scrambled

pytestmark = pytest.mark.unoptimized
X = np.random.default_rng(1).normal(size=(12, 6)).astype(np.float32)


def _layers():
  return {'in': ones(a=(6, 8))['a'], 'layers': ones(a=(3, 8, 10), b=(3, 10), c=(3, 10, 8)), 'out': ones(a=(8, 2))['a']}


def _layer(h, w):
  return h + jax.nn.relu(h @ w['a'] + w['b']) @ w['c'], None


def _scan():
  def fn(p, x):
    h, _ = jax.lax.scan(jax.checkpoint(_layer), x @ p['in'], p['layers'], unroll=2)
    return h @ p['out']

  return jl.from_function(fn, _layers())


def _loop():
  def fn(p, x):
    def layer(i, h):
      return _layer(h, jax.tree.map(lambda leaf: leaf[i], p['layers']))[0]

    return jax.lax.fori_loop(0, 3, layer, x @ p['in']) @ p['out']

  return jl.from_function(fn, _layers())


def _linen():
  import flax.linen as nn

  class Block(nn.Module):
    train: bool

    @nn.compact
    def __call__(self, x, _):
      h = nn.relu(nn.BatchNorm(use_running_average=not self.train)(nn.Dense(10)(nn.LayerNorm()(x))))
      return x + nn.Dense(8)(h), None

  class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
      x = nn.Dense(8)(x)
      axes = {'params': 0, 'batch_stats': 0}
      x, _ = nn.scan(Block, variable_axes=axes, split_rngs={'params': True}, length=3)(train)(x, None)
      return nn.Dense(2)(x)

  return jl.from_linen(Net())


def _equinox():
  import equinox as eqx

  class Net(eqx.Module):
    first: eqx.nn.Linear
    layers: eqx.nn.MLP
    last: eqx.nn.Linear

    def __init__(self, key):
      a, b, c = jax.random.split(key, 3)
      self.first, self.last = eqx.nn.Linear(6, 8, key=a), eqx.nn.Linear(8, 2, key=c)
      self.layers = eqx.filter_vmap(lambda key: eqx.nn.MLP(8, 8, 10, 1, key=key))(jax.random.split(b, 3))

    def __call__(self, x):
      arrays, rest = eqx.partition(self.layers, eqx.is_array)
      h, _ = jax.lax.scan(lambda h, one: (h + eqx.combine(one, rest)(h), None), self.first(x), arrays)
      return self.last(h)

  return jl.from_equinox(Net(jax.random.key(0)))


def _haiku():
  import haiku as hk

  def net(x):
    def layer(x):
      return x + hk.Linear(8)(jax.nn.relu(hk.Linear(10)(hk.LayerNorm(-1, True, True)(x))))

    return hk.Linear(2)(hk.experimental.layer_stack(3)(layer)(hk.Linear(8)(x)))

  return jl.from_haiku(net)


STACKS = {'scan': _scan, 'loop': _loop, 'linen': _linen, 'equinox': _equinox, 'haiku': _haiku}


def _stacks_are_cut_alike(name, count):
  model = STACKS[name]()
  params, state = first_values(model, X)
  params, state = scrambled(params, 0), scrambled(state, 1)
  widths = set()
  for small in choices((model, params, state, X), 5, count):
    assert not isinstance(small, str), small
    agree(small, model, params, state, X)
    widths |= {(one.units, one.kept < one.units) for one in small.groups}
    assert not [one for one in small.groups if one.units == 3]  # which layers there are is nobody's to choose
  assert {(8, True), (10, True)} <= widths


@pytest.mark.parametrize('name', STACKS)
def test_stacked_layers_are_cut_alike(name):
  _stacks_are_cut_alike(name, 2)


@pytest.mark.slow
@pytest.mark.parametrize('name', STACKS)
def test_stacked_layers_are_cut_alike_however_chosen(name):
  _stacks_are_cut_alike(name, 60)


def test_what_goes_alone_and_not_with_others_stays():
  """Members that see the same: one that is gone still passes on what it was given, of which a sum needs every entry."""

  def fn(p, x):
    h = x @ p['in']
    return jax.vmap(lambda w: _layer(h, w)[0])(p['layers']).mean(0) @ p['out']

  model = jl.from_function(fn, _layers())
  params = _layers()
  small = jl.shrink(model, params, {}, X, keep=0.5, multiple=1)
  agree(small, model, params, {}, X)
  told = {one.units: (one.kept, one.why) for one in small.groups}
  assert (told[8][0], told[10][0], told[3][0]) == (4, 5, 3)
  assert 'not beside' in told[3][1]
  assert 'reduce_sum' in told[3][1]


# --- derivatives that somebody wrote -------------------------------------------------------------------------------


def _grads(model, params, state, inputs):
  def loss(params):
    outputs, _ = model.apply(params, state, inputs, train=True, key=jax.random.key(5), step=jnp.int32(3))
    return (outputs * jnp.cos(jnp.arange(float(outputs.size)).reshape(outputs.shape))).sum()

  return jax.jit(jax.grad(loss))(params)


@jax.custom_vjp
def surrogate(x):
  return jnp.where(x > 0, x, 0.0)


surrogate.defvjp(lambda x: (surrogate(x), x), lambda x, g: (g * jax.nn.sigmoid(3 * x) + 0.1 * g * g,))


@jax.custom_vjp
def by_row(x):
  return jax.nn.relu(x)


by_row.defvjp(lambda x: (by_row(x), jnp.exp(x)), lambda e, g: (g * e.sum(-1, keepdims=True),))


@jax.custom_jvp
def other_slope(x):
  return jnp.sin(x)


other_slope.defjvp(lambda primals, tangents: (jnp.sin(primals[0]), tangents[0] * jnp.cosh(primals[0])))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def product(factor, w, x):
  return jax.nn.relu(x @ w)


product.defvjp(
  lambda factor, w, x: (jax.nn.relu(x @ w), (w, x)),
  lambda factor, saved, g: (factor * saved[1].T @ g, g @ saved[0].T),
)

FALSE = {
  'surrogate': lambda p, x: surrogate(x @ p['a']),
  'of a whole row': lambda p, x: by_row(x @ p['a']),
  'tangents': lambda p, x: other_slope(x @ p['a']),
  'a product': lambda p, x: product(2.0, p['a'], x),
  'saved by a policy': jax.checkpoint(
    lambda p, x: surrogate(x @ p['a']), policy=jax.checkpoint_policies.dots_saveable
  ),
  'straight through': lambda p, x: x @ p['a'] + jax.lax.stop_gradient(jnp.sign(x @ p['a']) - x @ p['a']),
}  # fmt: skip


@pytest.mark.parametrize('name', FALSE)
def test_a_gradient_that_is_no_derivative_stays_the_one_that_was_written(name):
  params = ones(a=(6, 10), c=(10, 2))
  model = jl.from_function(lambda p, x: FALSE[name](p, x) @ p['c'], params)
  true = {'surrogate': jax.nn.relu, 'tangents': jnp.sin}.get(name)
  for small in choices((model, params, {}, X), 3, 2):
    whole, _ = masked(small, params, {})
    wanted = small.cut(_grads(model, whole, {}, X))
    got = _grads(small.model, small.params, {}, X)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), got, wanted)
    if true is not None:
      plain = jl.from_function(lambda p, x: true(x @ p['a']) @ p['c'], params)
      assert not np.allclose(_grads(plain, small.params, {}, X)['a'], got['a'], atol=1e-3)


def test_a_rule_that_needs_what_is_gone_says_that_the_derivative_does():
  @jax.custom_vjp
  def clipped(x):
    return x

  clipped.defvjp(lambda x: (x, None), lambda _, g: (g / jnp.maximum(1, jnp.linalg.norm(g, axis=-1, keepdims=True)),))
  params = ones(a=(6, 10), c=(10, 2))
  model = jl.from_function(lambda p, x: clipped(jax.nn.relu(x @ p['a'])) @ p['c'], params)
  small = jl.shrink(model, params, {}, X, keep=0.5, multiple=1)
  agree(small, model, params, {}, X)
  with pytest.raises(ValueError, match=r'its own rule for derivatives .*predicts and does not train; leave this group'):
    _grads(small.model, small.params, {}, X)
