"""Norms are found in what every framework makes of them, and nothing else is taken for one."""

from __future__ import annotations

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from jaxlite.deployment import norms, reference
from jaxlite.deployment.lowering import lower
from jaxlite.deployment.patterns import recognized

X = np.random.default_rng(0).normal(1, 2, (5, 7, 12)).astype(np.float32)
SCALE, BIAS = (np.random.default_rng(seed).normal(1, 1, 12).astype(np.float32) for seed in (1, 2))


def _linen(layer):
  variables = layer.init(jax.random.key(0), X)
  leaves = {'scale': SCALE, 'bias': BIAS}
  params = {name: jnp.asarray(leaves[name]) for name in variables['params']}
  return (lambda p, x: layer.apply({'params': p}, x)), params


def _nnx(layer):
  layer.scale[...] = jnp.asarray(SCALE)
  graph, state = nnx.split(layer)
  return (lambda p, x: nnx.merge(graph, p)(x)), state


def _equinox(layer):
  layer = eqx.tree_at(lambda one: one.weight, layer, jnp.asarray(SCALE))
  arrays, rest = eqx.partition(layer, eqx.is_array)
  return (lambda p, x: jax.vmap(jax.vmap(eqx.combine(p, rest)))(x)), arrays


def _haiku(make):
  pure = hk.without_apply_rng(hk.transform(lambda x: make()(x)))
  return pure.apply, pure.init(jax.random.key(0), X)


def _plain(p, x):
  centered = x - x.mean(-1, keepdims=True)
  return p['scale'] * centered / jnp.sqrt((centered**2).mean(-1, keepdims=True) + 1e-5) + p['bias']


CASES = {
  'linen': lambda: _linen(nn.LayerNorm()),
  'linen, two passes': lambda: _linen(nn.LayerNorm(use_fast_variance=False)),
  'linen, RMS': lambda: _linen(nn.RMSNorm()),
  'linen, no bias': lambda: _linen(nn.LayerNorm(use_bias=False, epsilon=1e-3)),
  'nnx': lambda: _nnx(nnx.LayerNorm(12, rngs=nnx.Rngs(0))),
  'nnx, RMS': lambda: _nnx(nnx.RMSNorm(12, rngs=nnx.Rngs(0))),
  'equinox': lambda: _equinox(eqx.nn.LayerNorm(12)),
  'equinox, RMS': lambda: _equinox(eqx.nn.RMSNorm(12)),
  'haiku': lambda: _haiku(lambda: hk.LayerNorm(-1, True, True)),
  'haiku, RMS': lambda: _haiku(lambda: hk.RMSNorm(-1)),
  'by hand': lambda: (_plain, {'scale': jnp.asarray(SCALE), 'bias': jnp.asarray(BIAS)}),
}


@pytest.mark.parametrize('name', CASES)
def test_a_norm_of_a_framework_is_one_operation(name):
  fn, params = CASES[name]()
  graph = norms.normed(recognized(lower(fn, params, X)))
  assert [one.kind for one in graph.operations] == ['layer_norm']
  assert graph.operations[0].attributes['centered'] == ('RMS' not in name)
  np.testing.assert_allclose(reference.run(graph, X), fn(params, X), rtol=2e-5, atol=2e-5)


def test_norms_within_a_network_stand_where_they_were():
  class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
      x = x + nn.Dense(12)(nn.LayerNorm()(x))
      x = x + nn.Dense(12)(nn.gelu(nn.Dense(20)(nn.RMSNorm()(x))))
      return nn.LayerNorm()(x).mean(1)

  params = Net().init(jax.random.key(0), X)
  graph = norms.normed(recognized(lower(Net().apply, params, X)))
  assert [one.kind for one in graph.operations].count('layer_norm') == 3
  np.testing.assert_allclose(reference.run(graph, X), Net().apply(params, X), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
  'fn',
  [
    lambda x: x / x.sum(-1, keepdims=True),
    lambda x: x - x.mean(-1, keepdims=True),
    lambda x: (x - x.mean(-2, keepdims=True)) / jnp.sqrt(x.var(-2, keepdims=True) + 1e-5),  # over another axis
    lambda x: x / jnp.sqrt((x**2).sum(-1, keepdims=True) + 1e-5) ** 2,
    lambda x: (x - x.mean(-1, keepdims=True)) / (x.std(-1, keepdims=True) + 0.1),  # beside the root
    lambda x: x * (x**2).mean(-1, keepdims=True),
  ],
)
def test_what_only_looks_like_a_norm_is_none(fn):
  graph = norms.normed(recognized(lower(lambda p, x: fn(x), {}, X)))
  assert 'layer_norm' not in {one.kind for one in graph.operations}
  np.testing.assert_allclose(reference.run(graph, X), fn(X), rtol=1e-4, atol=1e-5)
