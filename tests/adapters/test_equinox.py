"""What is particular to Equinox: buffers, signatures, state, ties, examples one at a time."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from forward import KEY, X, run
from jaxlite import trees
from jaxlite.adapters import from_equinox

pytestmark = pytest.mark.unoptimized


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


@pytest.mark.parametrize('given', [lambda: Buffers(KEY), lambda: Buffers], ids=['instance', 'constructor'])
def test_equinox_integers_and_frozen_floats_are_buffers(given):
  given = given()
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


@pytest.mark.parametrize('given', [lambda: Tied(KEY), lambda: Tied], ids=['instance', 'constructor'])
def test_equinox_naive_ties_are_an_error(given):
  with pytest.raises(ValueError, match="'one' and 'two' are one array"):
    from_equinox(given()).init(KEY, X)


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
