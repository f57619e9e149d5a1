"""What a program shows: its last activation in every framework, and what is left when it is taken off."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlite import from_equinox, from_function, from_linen
from jaxlite.diagnosis import program, watch

pytestmark = pytest.mark.unoptimized

ENDS = {
  'softmax': jax.nn.softmax,
  'sigmoid': jax.nn.sigmoid,
  'tanh': jnp.tanh,
  'relu': jax.nn.relu,
  '': jax.nn.log_softmax,
}
X = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)


def function(end):
  rng = np.random.default_rng(1)
  params = {'a': rng.normal(size=(4, 5)).astype(np.float32), 'b': rng.normal(size=(5, 3)).astype(np.float32)}
  return from_function(lambda p, x: end(jax.nn.relu(x @ p['a'] - 0.9) @ p['b']), params)


def linen(end):
  class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
      x = nn.relu(nn.Dense(5, bias_init=nn.initializers.constant(-0.9))(x))
      return end(nn.Dense(3)(x))

  return from_linen(Net())


def equinox(end):
  class Net(eqx.Module):
    a: eqx.nn.Linear
    b: eqx.nn.Linear

    def __call__(self, x):
      return end(self.b(jax.nn.relu(self.a(x) - 0.9)))

  one, two = jax.random.split(jax.random.key(0))
  return from_equinox(Net(eqx.nn.Linear(4, 5, key=one), eqx.nn.Linear(5, 3, key=two)))


def called(model, key=0):
  params, state = model.init(jax.random.key(key), X)
  return params, lambda params, x: model.apply(params, state, x, train=False, key=None)[0]


@pytest.mark.sampled(5)
@pytest.mark.parametrize('framework', [function, linen, equinox])
@pytest.mark.parametrize('end', ENDS)
def test_the_last_activation_is_read_and_taken_off(framework, end):
  params, forward = called(framework(ENDS[end]))
  assert program.output_activation(jax.make_jaxpr(forward)(params, X)) == end
  if not end:
    with pytest.raises(ValueError, match='outputs end in no softmax'):
      program.without_output_activation(forward, params, X)
    return
  bare = jax.jit(lambda params, x: program.without_output_activation(forward, params, x))
  plain = called(framework(lambda x: x))[1]
  logits, wanted = bare(params, X), plain(params, X)
  apart = np.asarray(logits - wanted)
  if end == 'softmax':  # logits are free up to a number an example
    apart = apart - apart.mean(-1, keepdims=True)
  np.testing.assert_allclose(apart, 0, atol=1e-5)
  if end != 'softmax':
    one, two = (jax.grad(lambda p, of=of: jnp.sum(of(p, X) ** 2))(params) for of in (bare, plain))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), one, two)


def test_a_sigmoid_written_out_is_one_and_a_softmax_inside_is_none():
  assert program.output_activation(jax.make_jaxpr(lambda x: 1 / (1 + jnp.exp(-x)))(X)) == 'sigmoid'
  assert program.output_activation(jax.make_jaxpr(lambda x: jax.nn.softmax(x) @ jnp.ones((4, 2)))(X)) == ''
  out = program.without_output_activation(lambda x: 1 / (1 + jnp.exp(-x)), X)
  np.testing.assert_allclose(out, X, atol=1e-6)


@pytest.mark.parametrize('framework', [function, linen, equinox])
def test_units_and_scales_are_those_of_numpy(framework):
  """Whichever axis a framework's products have the examples on."""
  params, forward = called(framework(lambda x: x))
  found = watch.watched(forward, params, X)
  outputs, stats = jax.jit(found.run)(params, X)
  np.testing.assert_allclose(outputs, forward(params, X), atol=1e-6)
  first, unit, last = watch.merged(found.sites, [jax.device_get(stats)])
  w = np.asarray(next(leaf for leaf in jax.tree.leaves(params) if leaf.size == 20))
  products = X @ (w if w.shape[0] == 4 else w.T)
  bias = next((np.asarray(leaf) for leaf in jax.tree.leaves(params) if leaf.shape == (5,)), np.zeros(5))
  hidden = products + bias - (0.9 if framework is not linen else 0)
  assert [site.kind for site in found.sites] == ['layer', 'relu', 'layer']
  assert unit['dead'] == pytest.approx(np.mean(~(hidden > 0).any(0)))
  assert first['output'] == pytest.approx(np.sqrt(np.mean(products**2)), rel=1e-5)
  assert first['spread'] == pytest.approx(np.sqrt(products.var(0).mean()), rel=1e-5)
  assert first['input'] == pytest.approx(np.sqrt(np.mean(X**2)), rel=1e-5)
  assert last['input'] == pytest.approx(np.sqrt(np.mean(np.maximum(hidden, 0) ** 2)), rel=1e-5)


def test_a_loop_is_run_and_not_looked_into():
  def forward(params, x):
    return jax.lax.scan(lambda c, w: (jnp.tanh(c @ w), None), x, params['w'])[0]

  params = {'w': np.ones((3, 4, 4), np.float32)}
  found = watch.watched(forward, params, X)
  assert not found.sites
  assert found.inside == 1
  np.testing.assert_allclose(jax.jit(found.run)(params, X)[0], forward(params, X), atol=1e-6)


def accuracy(labels):
  return lambda outputs: float((np.asarray(outputs).argmax(-1) == labels).mean())


def test_a_loss_is_wrong_where_free_outputs_that_lower_it_are():
  labels = np.arange(30) % 3
  batch = {'labels': labels}
  own = lambda o, b: -jnp.take_along_axis(jax.nn.log_softmax(o), b['labels'][:, None], 1)[:, 0]  # noqa: E731
  brier = lambda o, b: jnp.sum((jax.nn.softmax(o) - jax.nn.one_hot(b['labels'], 3)) ** 2, 1)  # noqa: E731
  beside = lambda o, b: own(o, {'labels': (b['labels'] + 1) % 3})  # noqa: E731
  shape = np.zeros((30, 3))
  assert program.fits_labels(brier, own, shape, batch, accuracy(labels))[1:] == (1.0, 1.0)
  assert program.fits_labels(beside, own, shape, batch, accuracy(labels))[1:] == (0.0, 1.0)
