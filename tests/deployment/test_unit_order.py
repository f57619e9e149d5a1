"""Units in another order: the same network, and fewer bytes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlite as jl
import shrinking
from jaxlite import trees
from jaxlite.deployment.packed import file as pack
from jaxlite.deployment.unit_order import sort_units

pytestmark = pytest.mark.unoptimized
SHORT = ('mlp', 'function')


def thinned(params, rng):
  """Zeros in most places, in some units more than in others."""

  def one(leaf):
    if leaf.ndim < 2:
      return leaf
    shares = np.multiply.outer(rng.random(leaf.shape[0]), rng.random(leaf.shape[-1]))
    shares = shares.reshape(leaf.shape[0], *[1] * (leaf.ndim - 2), leaf.shape[-1])
    return jnp.where(rng.random(leaf.shape) < shares, leaf, 0)

  return jax.tree.map(one, params)


@pytest.mark.parametrize(
  'name',
  [
    pytest.param(name, marks=[] if name in SHORT else pytest.mark.slow)
    for name in (*shrinking.LINEN, *shrinking.FRAMEWORKS)
  ],
)
def test_the_network_computes_the_same_and_its_units_are_in_order(name):
  model, params, state, inputs = shrinking.network(name)
  params = thinned(params, np.random.default_rng(0))
  found = sort_units(model, params, state, inputs, key=jax.random.key(3))
  before, after = (jl.Network(*one).predict(inputs) for one in ((model, params, state), found))
  np.testing.assert_allclose(after, before, rtol=1e-3, atol=1e-3 * np.abs(before).max())
  was, now = trees.by_path(params), trees.by_path(found.params)
  assert {path: leaf.shape for path, leaf in was.items()} == {path: leaf.shape for path, leaf in now.items()}
  assert any((np.asarray(was[path]) != np.asarray(now[path])).any() for path in was)
  for path in was:  # nothing is lost
    np.testing.assert_array_equal(np.sort(was[path], axis=None), np.sort(now[path], axis=None))


def test_neurons_are_counted_with_all_that_they_have_a_part_in():
  rng = np.random.default_rng(0)
  params = thinned({'a': rng.normal(size=(12, 40)), 'b': rng.normal(size=40), 'c': rng.normal(size=(40, 6))}, rng)
  model = jl.from_function(lambda p, x: jax.nn.relu(x @ p['a'] + p['b']) @ p['c'], params)
  found = sort_units(model, params, None, jax.ShapeDtypeStruct((2, 12), jnp.float32)).params
  kept = np.count_nonzero(found['a'], axis=0) + np.count_nonzero(found['c'], axis=1)
  assert (np.diff(kept) <= 0).all()
  columns = lambda p: sorted(np.concatenate([p['a'], p['b'][None], p['c'].T]).T.tolist())  # noqa: E731
  assert columns(found) == columns(jax.tree.map(np.asarray, params))


def test_channels_in_groups_stay_where_they_are():
  """Two groups of four: a channel that went to the other group would see other inputs."""
  rng = np.random.default_rng(0)
  params = thinned({'a': rng.normal(size=(5, 8)), 'b': rng.normal(size=(2, 4, 4)), 'c': rng.normal(size=(8, 3))}, rng)

  def apply(p, x):
    x = jax.nn.relu(x @ p['a']).reshape(-1, 2, 4)
    return jnp.einsum('ngi,gio->ngo', x, p['b']).reshape(-1, 8) @ p['c']

  model, x = jl.from_function(apply, params), rng.normal(size=(4, 5)).astype(np.float32)
  found = sort_units(model, params, None, x)
  np.testing.assert_allclose(found.predict(x), apply(params, x), rtol=1e-5, atol=1e-5)


def test_an_order_that_means_something_is_kept():
  params = {'a': np.float32([[0, 1, 2], [0, 0, 3]]), 'b': np.float32([[1], [2], [3]])}
  model = jl.from_function(lambda p, x: jnp.cumsum(jax.nn.relu(x @ p['a']), axis=1) * jnp.arange(3.0) @ p['b'], params)
  found = sort_units(model, params, None, np.ones((1, 2), np.float32))
  for name, leaf in params.items():
    np.testing.assert_array_equal(found.params[name], leaf)
  # A product with what is constant is a mark of its own for each unit.
  model = jl.from_function(lambda p, x: jax.nn.relu(x @ p['a']) * jnp.arange(3.0) @ p['b'], params)
  found = sort_units(model, params, None, np.ones((1, 2), np.float32))
  np.testing.assert_allclose(found.predict(np.ones((1, 2), np.float32)), [[2 + 2 * 15.0]])


def test_a_sorted_network_takes_fewer_bytes():
  rng = np.random.default_rng(0)
  shares = 0.25 * rng.random(200) ** 2
  a = np.where(rng.random((300, 200)) < shares, rng.integers(-2, 3, (300, 200)), 0).astype(np.float32) / 8
  params = {'a': a, 'b': rng.integers(-2, 3, (200, 10)).astype(np.float32) / 8}
  model = jl.from_function(lambda p, x: jax.nn.relu(x @ p['a']) @ p['b'], params)
  found = sort_units(model, params, None, np.ones((1, 300), np.float32))
  sizes = [pack.packed_bytes(jax.tree.map(np.asarray, one)) for one in (params, found.params)]
  assert sizes[1] < sizes[0]
