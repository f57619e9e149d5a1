"""Taps: the named value itself, wherever it stands, with its gradient, and nothing else about the program changed."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import checkpoint_name

import jaxlite as jl
from jaxlite import trees
from jaxlite.graph import provenance
from jaxlite.graph.taps import as_features, read, tapped
from jaxlite.graph.walk import has_primitive

pytestmark = pytest.mark.unoptimized

RNG = np.random.default_rng(0)
P = {'a': jnp.asarray(RNG.normal(size=(3, 4)), jnp.float32), 'b': jnp.asarray(RNG.normal(size=(4, 2)), jnp.float32)}
X = jnp.asarray(RNG.normal(size=(5, 3)), jnp.float32)
STACK = jnp.asarray(RNG.normal(size=(6, 4, 4)) / 2, jnp.float32)


def plain(p, x):
  return jnp.tanh(checkpoint_name(x @ p['a'], 'hid')) @ p['b']


def layers(p, x):
  def layer(x, w):
    return checkpoint_name(jnp.tanh(x @ w), 'act'), None

  return jax.lax.scan(layer, x @ p['a'], p['stack'])[0]


def unrolled(p, x):
  x, seen, inputs = x @ p['a'], [], []
  for w in p['stack']:
    inputs.append(x @ w)
    x = jnp.tanh(inputs[-1])
    seen.append(x)
  return x, jnp.stack(seen), jnp.stack(inputs)


def per_example(p, x):
  return jax.vmap(lambda one: jnp.tanh(checkpoint_name(p['a'].T @ one, 'hid')) @ p['b'])(x)


WAYS = {
  'plain': plain,
  'jit': jax.jit(plain),
  'remat': jax.checkpoint(plain),
  'jit in remat in jit': jax.jit(jax.checkpoint(jax.jit(plain))),
}


@pytest.mark.sampled(3)
@pytest.mark.unoptimized(False)  # bits are judged
@pytest.mark.parametrize('name', ['hid', 'a'])
@pytest.mark.parametrize('way', WAYS)
def test_a_tap_is_the_value_and_carries_its_gradient(way, name):
  outputs, taps = jax.jit(tapped(WAYS[way], name))(P, X)
  np.testing.assert_array_equal(taps[name], jax.jit(lambda p, x: x @ p['a'])(P, X))
  np.testing.assert_array_equal(outputs, jax.jit(WAYS[way])(P, X))

  def loss(p, fn):
    outputs, value = fn(p)
    return outputs.sum() + jnp.sum(value**2)

  got = jax.grad(loss)(P, lambda p: (lambda out: (out[0], out[1][name]))(tapped(WAYS[way], name)(p, X)))
  wanted = jax.grad(loss)(P, lambda p: (plain(p, X), X @ p['a']))
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), got, wanted)


def test_remat_is_kept():
  jaxpr = jax.make_jaxpr(tapped(jax.checkpoint(plain), 'hid'))(P, X)
  assert has_primitive(jaxpr, 'remat', 'remat2', 'checkpoint')


@pytest.mark.unoptimized(False)
@pytest.mark.parametrize('wrap', [lambda fn: fn, jax.checkpoint])
def test_inside_a_scan_a_tap_is_stacked_layer_first(wrap):
  p = {'a': P['a'], 'stack': STACK}
  _, taps = tapped(wrap(layers), ['act', 'stack', 'a'])(p, X)
  _, seen, inputs = unrolled(p, X)
  assert taps['act'].shape == (6, 5, 4)
  np.testing.assert_allclose(taps['act'], seen, rtol=1e-5)
  np.testing.assert_allclose(taps['stack'], inputs, rtol=1e-5)
  np.testing.assert_allclose(taps['a'], X @ p['a'], rtol=1e-6)
  got = jax.grad(lambda p: jnp.sum(tapped(wrap(layers), 'act')(p, X)[1]['act'] ** 2))(p)
  wanted = jax.grad(lambda p: jnp.sum(unrolled(p, X)[1] ** 2))(p)
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), got, wanted)


def test_scans_within_scans_and_a_weight_that_all_turns_share():
  def fn(p, x):
    def outer(x, _):
      return jax.lax.scan(lambda x, _: (jnp.tanh(x @ p['w']), None), x, length=2)[0], None

    return jax.lax.scan(outer, x, length=3)[0]

  w, x = STACK[0], jnp.ones((5, 4))
  _, taps = tapped(fn, 'w')({'w': w}, x)
  assert taps['w'].shape == (3, 2, 5, 4)
  for i in range(3):
    for j in range(2):
      np.testing.assert_allclose(taps['w'][i, j], x @ w, rtol=1e-5)
      x = jnp.tanh(x @ w)


def test_several_values_of_one_name_are_told_apart_by_number():
  def fn(p, x):
    return checkpoint_name(jnp.tanh(checkpoint_name(x @ p['a'], 'hid')), 'hid') @ p['b']

  with pytest.raises(ValueError, match="'hid' matches 2 values: say which, 'hid#1' to 'hid#2'"):
    tapped(fn, 'hid')(P, X)
  _, taps = tapped(fn, ['hid#1', 'hid#2'])(P, X)
  np.testing.assert_allclose(jnp.tanh(taps['hid#1']), taps['hid#2'], rtol=1e-6)
  with pytest.raises(ValueError, match="matches 2 values, counted from 1; got 'hid#3'"):
    tapped(fn, 'hid#3')(P, X)


def test_a_quantized_contraction_gives_its_scaled_result():
  quantized = jl.quantize(plain, bits=8)
  outputs, taps = tapped(quantized, 'a')(P, X)
  np.testing.assert_allclose(outputs, quantized(P, X), rtol=1e-6)
  np.testing.assert_allclose(taps['a'], X @ P['a'], atol=0.05)
  gradient = jax.grad(lambda p: jnp.sum(tapped(quantized, 'a')(p, X)[1]['a']))(P)
  np.testing.assert_allclose(gradient['a'], np.broadcast_to(X.sum(0)[:, None], (3, 4)), atol=0.05)


@jax.custom_jvp
def ruled(w, x):
  return jnp.tanh(checkpoint_name(x @ w, 'inside')) @ w.T


ruled.defjvp(lambda primals, tangents: (ruled(*primals), tangents[1]))

REFUSED = {
  'nothing': (plain, 'hib', r"tap 'hib' matches no checkpoint_name .* nearest: hid"),
  'a bias': (lambda p, x: x @ p['a'] + p['b'][:, 0], 'b', "'b' matches no .*; nearest: a$"),
  'no contraction': (lambda p, x: x + p['b'][0, 0], 'b', 'the program has none'),
  'cond': (lambda p, x: jax.lax.cond(x[0, 0] > 0, plain, lambda p, x: x[:, :2], p, x), 'hid', 'branch'),
  'while': (
    lambda p, x: jax.lax.while_loop(lambda x: x[0, 0] < 0, lambda x: jnp.abs(x @ p['q']), x),
    'q',
    'while loop',
  ),
  'a rule of its own': (lambda p, x: ruled(p['a'], x), 'a', 'matches 2 values'),
  'inside a rule': (lambda p, x: ruled(p['a'], x), 'inside', 'custom derivative rule'),
}


@pytest.mark.parametrize('case', REFUSED)
def test_what_cannot_be_handed_out_says_why_in_one_line(case):
  fn, name, message = REFUSED[case]
  with pytest.raises(ValueError, match=message) as raised:
    tapped(fn, name)({**P, 'q': jnp.eye(3)}, X)
  assert '\n' not in str(raised.value)


# --- one form for all layouts --------------------------------------------------------------------------------------


def features(fn, name, p, x):
  """As a hint does: [layers, examples, positions..., channels]."""

  def at(x):
    tags = [provenance.weight(path) for path in trees.paths(p)] + [provenance.DATA]
    return read(fn, (p, x), tags, name, what='test')

  small = at(x)
  large = at(jax.ShapeDtypeStruct((2 * len(x), *x.shape[1:]), x.dtype))
  _, values = small.run(jax.tree.leaves((p, x)))
  return as_features(values[name], small.taps[name], large.taps[name], len(x), 'test')


def conv(p, x, numbers):
  return jax.lax.conv_general_dilated(x, p['k'], (1, 1), 'SAME', dimension_numbers=numbers)


@pytest.mark.unoptimized(False)  # bits are judged
def test_every_layout_comes_out_alike():
  image, kernel = RNG.normal(size=(5, 4, 6, 3)).astype(np.float32), RNG.normal(size=(3, 3, 3, 2)).astype(np.float32)
  last = features(lambda p, x: conv(p, x, ('NHWC', 'HWIO', 'NHWC')), 'k', {'k': kernel}, image)
  assert last.shape == (1, 5, 4, 6, 2)
  first = features(
    lambda p, x: jax.vmap(lambda one: conv(p, one[None], ('NCHW', 'OIHW', 'NCHW'))[0])(x),
    'k',
    {'k': kernel.transpose(3, 2, 0, 1)},
    image.transpose(0, 3, 1, 2),
  )
  np.testing.assert_allclose(first, last, rtol=1e-4, atol=1e-5)

  dense = (X @ P['a'])[None]
  for fn in (plain, per_example):
    for name in ('a', 'hid'):
      np.testing.assert_allclose(features(fn, name, P, X), dense, rtol=1e-5)

  words = RNG.normal(size=(5, 7, 3)).astype(np.float32)
  one = features(lambda p, x: x @ p['a'], 'a', P, words)
  flat = features(lambda p, x: (x.reshape(-1, 3) @ p['a']).reshape(len(x), 7, -1), 'a', P, words)
  assert one.shape == (1, 5, 7, 4)
  np.testing.assert_array_equal(one, flat)

  heads = RNG.normal(size=(3, 2, 4)).astype(np.float32)
  got = features(lambda p, x: jnp.einsum('btd,dhe->bhte', x, p['h']), 'h', {'h': heads}, words)
  np.testing.assert_allclose(got[0], np.einsum('btd,dhe->bthe', words, heads).reshape(5, 7, 8), rtol=1e-4, atol=1e-5)

  stacked = features(layers, 'act', {'a': P['a'], 'stack': STACK}, X)
  np.testing.assert_allclose(stacked, unrolled({'a': P['a'], 'stack': STACK}, X)[1], rtol=1e-5)


def test_a_value_without_examples_is_refused():
  fn = lambda p, x: x @ p['a'] @ checkpoint_name(p['b'], 'own')  # noqa: E731
  with pytest.raises(ValueError, match="'own' has one axis that grows with the batch; at 5 examples"):
    features(fn, 'own', P, X)
