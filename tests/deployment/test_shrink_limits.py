"""What is not cut rightly is refused by name; budgets are met; optimizers go on with what is left."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxlite as jl
import shrinking
from shrinking import agree, groups, ones

pytestmark = pytest.mark.unoptimized
X = np.random.default_rng(1).normal(size=(3, 6)).astype(np.float32)


def test_what_is_not_understood_is_refused_by_name():
  def fn(p, x):
    return jnp.sort(x @ p['a'], axis=-1) @ p['b'] + jax.nn.relu(x @ p['c']) @ p['d']

  small, found = groups(fn, ones(a=(6, 8), b=(8, 2), c=(6, 8), d=(8, 2)), X)
  assert found == {frozenset({'c[1]', 'd[0]'}): (8, 4)}
  assert 'sort' in small.fixed['a[1]']
  assert small.fixed['a[0]'] == 'it is an input'


def test_a_sum_over_what_is_gone_and_not_zero_is_refused_by_its_equation():
  def fn(p, x):
    h = jnp.exp(x @ p['a'] * jnp.arange(8.0) + jnp.arange(8.0))
    return h.sum(-1, keepdims=True) @ p['b'] + jax.nn.relu(x @ p['c']) @ p['d']

  small, found = groups(fn, ones(a=(6, 8), b=(1, 2), c=(6, 8), d=(8, 2)), X)
  (why,) = [one.why for one in small.groups if 'a[1]' in one.members]
  assert found[frozenset({'a[1]'})] == (8, 8)
  assert 'reduce_sum' in why


@pytest.mark.parametrize('filling', ['learned', 'of the data', 'zero'])
def test_what_is_put_around_an_image_is_put_around_what_goes_too(filling):
  def fn(p, x):
    h = jax.nn.relu(jnp.einsum('bhc,cd->bhd', x, p['a']))
    value = {'learned': p['c'], 'of the data': x.max(), 'zero': 0.0}[filling]
    return jax.lax.pad(h, value, ((0, 0, 0), (1, 1, 0), (0, 0, 0))).sum(-1) @ p['b'] + jax.nn.relu(h @ p['d']).sum(1)

  params = {**ones(a=(6, 8), b=(5, 2), d=(8, 2)), 'c': jnp.float32(3)}
  x = np.ones((2, 3, 6), np.float32)
  small, found = groups(fn, params, x)
  assert found[frozenset({'a[1]', 'd[0]'})] == (8, 4 if filling == 'zero' else 8)
  np.testing.assert_allclose(small.network.predict(x), fn(shrinking.masked(small, params, {})[0], x), rtol=1e-5)


def test_parts_put_together_that_keep_other_channels():
  def fn(p, x):
    padded = jnp.pad(x @ p['a'], ((0, 0), (0, 4)))
    return jnp.concatenate([x @ p['b'], padded], 0) @ p['c']

  params = ones(a=(6, 4), b=(6, 8), c=(8, 2))
  small, _ = groups(fn, params, X)
  got = small.model.apply(small.params, {}, X, train=False, key=None)[0]
  np.testing.assert_allclose(got, fn(shrinking.masked(small, params, {})[0], X), rtol=1e-5, atol=1e-5)


def test_errors_say_what_was_wrong():
  def fn(p, x):
    return jax.nn.relu(x @ p['a']) @ p['b']

  params = ones(a=(6, 8), b=(8, 2))
  for options, words in (
    ({'keep': 0.0}, 'keep is above 0'),
    ({'keep': 0.5, 'flops': 3}, 'one of keep and the budgets'),
    ({'keep': 0.5}, 'give multiple=1'),
    ({'keep': 0.5, 'multiple': 0}, 'whole number'),
    ({'keep': 0.5, 'multiple': 1, 'rule': 'nope'}, 'nope'),
    ({'parameters': 1, 'multiple': 1}, 'nearest is 8'),
    ({}, 'no unit has weights that are all zero'),
  ):
    with pytest.raises(ValueError, match=words):
      jl.shrink(fn, params, None, X, **options)
  with pytest.raises(ValueError, match='finite'):
    jl.shrink(fn, {**params, 'a': params['a'].at[0, 0].set(jnp.nan)}, None, X, keep=0.5, multiple=1)
  with pytest.raises(ValueError, match=r"numbers from 0.*'b'"):
    jl.shrink(fn, params, None, X, keep=0.5, multiple=1, scores={**jax.tree.map(abs, params), 'b': -params['b']})
  with pytest.raises(ValueError, match='no group of this network can be removed'):
    jl.shrink(lambda p, x: x @ p['a'], params, None, X, keep=0.5)
  small = jl.shrink(fn, params, None, X, keep=0.5, multiple=1)
  with pytest.raises(ValueError, match='cut them first'):
    small.model.apply(params, {}, X, train=False, key=None)


# --- exact removal -------------------------------------------------------------------------------------------------


def test_without_a_budget_only_what_changes_nothing_goes():
  def fn(p, x):
    return jax.nn.relu(x @ p['a'] + p['b']) @ p['c']

  params = ones(a=(6, 32), b=(32,), c=(32, 2))
  params['a'] = params['a'].at[:, 3:20].set(0)  # with their biases alive they are constants, and no zeros
  with pytest.raises(ValueError, match='17 units with zero weights not dead'):
    jl.shrink(fn, params, None, X)
  params['b'] = params['b'].at[3:20].set(0)
  small = jl.shrink(fn, params, None, X)
  assert small.params['a'].shape == (6, 16)  # 15 live: a multiple of 8
  np.testing.assert_allclose(small.network.predict(X), fn(params, X), rtol=1e-5, atol=1e-5)


# --- training goes on ----------------------------------------------------------------------------------------------


def test_an_optimizer_goes_on_with_what_is_left():
  def fn(p, x):
    return jax.nn.relu(x @ p['a']) @ p['c']

  model = jl.from_function(fn, ones(a=(6, 32), c=(32, 2)))
  batch = {'inputs': X, 'labels': np.arange(3) % 2}
  recipe = jl.chain(optax.adam(0.01), jl.prune(0.5, begin=0, end=4, every=1))
  train = jl.train_step(model, jl.cross_entropy, recipe)
  state = train.init(jax.random.key(0), batch)
  for _ in range(5):
    state, _ = train.step(state, batch)
  small = jl.shrink(model, state.params, {}, X, keep=0.5)
  again = jl.train_step(small.model, jl.cross_entropy, recipe)
  left = small.cut(state)
  fresh = again.init(jax.random.key(0), batch)
  assert jax.tree.map(jnp.shape, left) == jax.tree.map(jnp.shape, fresh)
  kept = np.asarray(small.cut({'a': np.broadcast_to(np.arange(32), (6, 32)), 'c': np.zeros((32, 2))})['a'])[0]
  moments = left.opt_state[0][0].mu['a']
  np.testing.assert_array_equal(moments, np.asarray(state.opt_state[0][0].mu['a'])[:, kept])
  new, metrics = again.step(left, batch)
  assert int(new.step) == 6
  assert np.isfinite(metrics['loss'])


def test_factored_moments_are_refused():
  params = ones(a=(256, 256), c=(256, 2))
  small = jl.shrink(
    lambda p, x: jax.nn.relu(x @ p['a']) @ p['c'], params, None, np.ones((1, 256), np.float32), keep=0.5
  )
  with pytest.raises(ValueError, match='make this state anew'):
    small.cut(optax.adafactor(0.1).init(params))


@pytest.mark.parametrize('width', [32, 48])
def test_a_teacher_stays_whole(width):
  def fn(p, x):
    return jax.nn.relu(x @ p['a']) @ p['c']

  rng = np.random.default_rng(0)
  theirs = {'a': rng.normal(size=(6, width)).astype(np.float32), 'c': rng.normal(size=(width, 2)).astype(np.float32)}
  teacher = jl.Network(jl.from_function(fn, theirs), theirs, {})
  batch = {'inputs': X, 'labels': np.arange(3) % 2}
  model, recipe = jl.from_function(fn, ones(a=(6, 32), c=(32, 2))), jl.chain(jl.distill(teacher), optax.adam(0.01))
  train = jl.train_step(model, jl.cross_entropy, recipe)
  state, _ = train.step(train.init(jax.random.key(0), batch), batch)
  for whole, more in ((model, {}), (train.model, {'jl.const': state.const})):
    small = jl.shrink(whole, state.params, {**state.model_state, **more}, X, keep=0.5, key=jax.random.key(0))
    left = small.cut(state)
    assert left.params['a'].shape == (6, 16)
    jax.tree.map(np.testing.assert_array_equal, left.const, state.const)
  told = [why for name, why in small.fixed.items() if name.endswith('params/a[1]')]
  assert told == ['it is constant and has no part in the answers: a teacher, say']


def test_what_is_frozen_is_cut_where_the_state_keeps_it():
  def fn(p, x):
    return jax.nn.relu(x @ p['a']) @ p['c']

  batch = {'inputs': X, 'labels': np.arange(3) % 2}
  parts = jl.chain(jl.freeze('^a$'), optax.adam(0.01))
  train = jl.train_step(jl.from_function(fn, ones(a=(6, 32), c=(32, 2))), jl.cross_entropy, parts)
  state = train.init(jax.random.key(0), batch)
  small = jl.shrink(train.model, state.params, {**state.model_state, 'jl.const': state.const}, X, keep=0.5)
  assert jax.tree.map(jnp.shape, small.cut(state).const) == {'freeze': {'a': (6, 16)}}


def test_moments_are_cut_by_the_layer_that_they_are_of():
  def fn(p, x):
    return jax.nn.relu(jax.nn.relu(x @ p['w']) @ p['mu']['w']) @ p['out']

  params = {**ones(w=(6, 6), out=(6, 2)), 'mu': ones(w=(6, 6))}  # Adam calls its moments mu, too
  small = jl.shrink(fn, params, None, X, keep=0.5, multiple=1)
  state = optax.adam(0.1).init(params)[0]._replace(mu=params, nu=params)
  for left in (small.cut(state).mu, small.cut((state, params))[1], small.cut({'a': [state]})['a'][0].nu):
    jax.tree.map(np.testing.assert_array_equal, left, small.params)


# --- budgets -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('what', ['parameters', 'bytes', 'flops'])
def test_a_budget_is_met_and_not_by_far(what):
  model, params, state, inputs = shrinking.network('mlp')

  def cost(params, state):
    sizes = [leaf.size for leaf in jax.tree.leaves(params)]
    if what == 'flops':
      return 2 * sum(leaf.size for leaf in jax.tree.leaves(params) if leaf.ndim == 2)
    return sum(sizes) * (4 if what == 'bytes' else 1)

  most = cost(params, state) // 3
  small = jl.shrink(model, params, state, inputs, **{what: most})
  assert 0.7 * most < cost(small.params, small.model_state) <= most
  agree(small, model, params, state, inputs)


def test_a_latency_is_met_or_the_nearest_is_told():
  model, params, state, inputs = shrinking.network('mlp')
  with pytest.raises(ValueError, match='the nearest is'):
    jl.shrink(model, params, state, inputs, latency=1e-9)
  assert jl.shrink(model, params, state, inputs, latency=10.0).params.keys() == params.keys()


def test_the_batch_stays_open_and_transforms_work():
  model, params, state, inputs = shrinking.network('mlp')
  small = jl.shrink(model, params, state, jax.ShapeDtypeStruct(inputs.shape, inputs.dtype), keep=0.5)

  def predict(x):
    return small.model.apply(small.params, small.model_state, x, train=False, key=None)[0]

  many = np.concatenate([inputs] * 4)
  rows = jax.vmap(lambda x: predict(x[None])[0])(many)
  looped = jax.lax.scan(lambda c, x: (c, predict(x[None])[0]), None, many)[1]
  np.testing.assert_allclose(rows, predict(many), atol=1e-5)
  np.testing.assert_allclose(looped, predict(many), atol=1e-5)
