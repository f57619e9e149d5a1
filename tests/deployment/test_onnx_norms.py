"""Laws of layer norms and GELUs in ONNX: one operation in every framework, and what only looks like one is none."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlite as jl
from jaxlite.deployment.onnx import gelu as onnx_gelu
from jaxlite.deployment.onnx.file import write_onnx
from jaxlite.deployment.onnx.gelu import with_gelu
from jaxlite.deployment.onnx.norms import KIND, with_norms
from jaxlite.deployment.operations import reference
from jaxlite.deployment.operations.lowering import lower
from jaxlite.deployment.operations.patterns import recognized
from networks import first_values

pytestmark = pytest.mark.unoptimized
RNG = np.random.default_rng(0)
X = RNG.normal(size=(4, 5, 6)).astype(np.float32) * 3 + 1


def linen():
  import flax.linen as nn

  return jl.adapt(nn.LayerNorm())


def nnx():
  from flax import nnx

  return jl.adapt(nnx.LayerNorm(6, rngs=nnx.Rngs(0)))


def equinox():
  import equinox as eqx

  norm = eqx.nn.LayerNorm(6)
  return jl.from_function(lambda p, x: jax.vmap(jax.vmap(lambda row: norm(row) * p['w'] + p['b']))(x), rows())


def haiku():
  import haiku as hk

  return jl.from_haiku(lambda x: hk.LayerNorm(-1, True, True)(x))


def bare():
  return jl.from_function(lambda p, x: jax.nn.standardize(x, epsilon=1e-5), {})


def rows():
  return {'w': RNG.normal(size=6).astype(np.float32), 'b': RNG.normal(size=6).astype(np.float32)}


@pytest.mark.parametrize('make', [linen, nnx, equinox, haiku, bare], ids=lambda make: make.__name__)
def test_a_layer_norm_is_one_operation(make, tmp_path):
  model = make()
  params, state = first_values(model, X)
  params = jax.tree.map(lambda leaf: leaf + RNG.normal(size=leaf.shape).astype(leaf.dtype), params)
  fn = lambda values, x: model.apply(*values, x, train=False, key=None)[0]  # noqa: E731
  graph = recognized(lower(fn, (params, state), X))
  assert [one.kind for one in with_norms(graph).operations] == [KIND]
  write_onnx(graph, tmp_path / 'net.onnx', {'input': X})  # against the list that was not rewritten
  np.testing.assert_allclose(reference.run(graph, X), fn((params, state), X), rtol=1e-4, atol=1e-5)


def test_a_mean_that_keeps_its_axis_is_one():
  for fn in (lambda p, x: x.mean(-1, keepdims=True), lambda p, x: x.mean((1, 2), keepdims=True) + 1):
    graph = recognized(lower(fn, {}, X))
    assert [one.kind for one in graph.operations][:2] == ['mean', 'reshape']
    np.testing.assert_allclose(reference.run(graph, X), fn({}, X), rtol=1e-5)


def normed(x, mean, variance, epsilon=1e-6):
  return (x - mean) * jax.lax.rsqrt(variance + epsilon)


OTHERS = {
  'of the root of the mean square': lambda p, x: x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-6),
  'of other rows': lambda p, x: normed(x, x.mean(-1, keepdims=True), x.var(-1)[:, ::-1, None]),
  'of rows beside columns': lambda p, x: normed(
    x[:, :, :5], x[:, :, :5].mean(-1, keepdims=True), x[:, :, :5].var(-1)[:, None, :]
  ),
  'of another axis': lambda p, x: normed(x, x.mean(1, keepdims=True), x.var(1, keepdims=True)),
  'of another value': lambda p, x: normed(x, x.mean(-1, keepdims=True), jnp.tanh(x).var(-1, keepdims=True)),
  'of another mean': lambda p, x: normed(x, jnp.tanh(x).mean(-1, keepdims=True), x.var(-1, keepdims=True)),
  'unbiased': lambda p, x: normed(x, x.mean(-1, keepdims=True), x.var(-1, keepdims=True, ddof=1)),
  'scaled by place': lambda p, x: normed(x, x.mean(-1, keepdims=True), x.var(-1, keepdims=True)) * PLACES,
}
PLACES = RNG.normal(size=(5, 1)).astype(np.float32)


@pytest.mark.parametrize('name', OTHERS)
def test_what_only_looks_like_one_is_none(name, tmp_path):
  graph = recognized(lower(OTHERS[name], {}, X))
  kinds = [one.kind for one in with_norms(graph).operations]
  assert KIND not in kinds or (name == 'scaled by place' and kinds == [KIND, 'mul'])
  write_onnx(graph, tmp_path / 'net.onnx', {'input': X})


GELUS = {
  'tanh': (jax.nn.gelu, 'tanh'),
  'erf': (lambda x: jax.nn.gelu(x, approximate=False), 'none'),
  'by hand': (lambda x: 0.5 * x * (1 + jax.lax.erf(x / np.float32(np.sqrt(2)))), 'none'),
  'turned': (lambda x: (1 + jnp.tanh(np.sqrt(2 / np.pi, dtype='f') * (x + 0.044715 * x * x * x))) * (x / 2), 'tanh'),
  'other numbers': (lambda x: 0.5 * x * (1 + jnp.tanh(0.8 * (x + 0.05 * x**3))), None),
  'of two values': (lambda x: jnp.exp(x) * 0.5 * (1 + jax.lax.erf(x / np.float32(np.sqrt(2)))), None),
  'silu': (jax.nn.silu, None),
}


@pytest.mark.parametrize('name', GELUS)
def test_a_gelu_is_known_by_what_it_computes(name, tmp_path):
  fn, approximate = GELUS[name]
  graph = recognized(lower(lambda p, x: fn(x @ p), np.eye(6, dtype='f'), X))
  found = [one for one in with_gelu(graph).operations if one.kind == onnx_gelu.KIND]
  assert [one.attributes['approximate'] for one in found] == ([approximate] if approximate else [])
  write_onnx(graph, tmp_path / 'net.onnx', {'input': X})
