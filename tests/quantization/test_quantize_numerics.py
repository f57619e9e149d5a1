"""Fake quantization is integer arithmetic: bit for bit, whatever the contraction."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxlite.quantization import _numerics as numerics
from jaxlite.quantization._quantize import quantize


def conv(numbers, strides, padding, **more):
  return lambda w, x: lax.conv_general_dilated(x, w, strides, padding, dimension_numbers=numbers, **more)


NHWC = ('NHWC', 'HWIO', 'NHWC')
CONTRACTIONS = {
  # name: (function, shape of the weight, shape of the activation, axes that the weight is summed over)
  'dense': (lambda w, x: x @ w, (64, 8), (5, 64), (0,)),
  'weight first': (lambda w, x: w @ x, (8, 64), (64, 5), (1,)),
  'vector': (lambda w, x: x @ w, (64,), (5, 64), (0,)),
  'heads': (lambda w, x: jnp.einsum('btd,dhk->bhtk', x, w), (24, 3, 5), (2, 7, 24), (0,)),
  'batched': (lambda w, x: jnp.einsum('ebd,edf->ebf', x, w), (3, 24, 5), (3, 7, 24), (1,)),
  'batched, weight first': (lambda w, x: jnp.einsum('edf,bed->bef', w, x), (3, 24, 5), (7, 3, 24), (1,)),
  'two summed axes': (lambda w, x: jnp.einsum('bhk,hkd->bd', x, w), (3, 8, 5), (7, 3, 8), (0, 1)),
  'conv': (conv(NHWC, (1, 1), 'SAME'), (3, 3, 4, 8), (2, 9, 9, 4), (0, 1, 2)),
  'conv of another layout': (
    conv(('NCHW', 'OIHW', 'NCHW'), (2, 1), ((2, 1), (0, 3)), rhs_dilation=(1, 2)),
    (8, 4, 3, 3),
    (2, 4, 9, 9),
    (1, 2, 3),
  ),
  'cropping conv': (conv(NHWC, (1, 1), ((-1, 2), (0, -1))), (3, 3, 4, 8), (2, 9, 9, 4), (0, 1, 2)),
  'dilated input': (conv(NHWC, (1, 1), ((1, 1), (2, 0)), lhs_dilation=(2, 3)), (3, 3, 4, 8), (2, 5, 5, 4), (0, 1, 2)),
  'grouped': (conv(NHWC, (1, 1), 'SAME', feature_group_count=2), (3, 3, 2, 8), (2, 9, 9, 4), (0, 1, 2)),
  'depthwise': (conv(NHWC, (1, 1), 'SAME', feature_group_count=4), (3, 3, 1, 8), (2, 9, 9, 4), (0, 1, 2)),
  'conv over time': (conv(('NWC', 'WIO', 'NWC'), (1,), 'VALID'), (3, 4, 8), (2, 9, 4), (0, 1)),
}


def arrays(name, seed=0, dtype=jnp.float32):
  _, w_shape, x_shape, _ = CONTRACTIONS[name]
  rng = np.random.default_rng(seed)
  w = rng.normal(size=w_shape) * rng.uniform(0.1, 2, size=w_shape[-1:])
  return jnp.asarray(w, dtype), jnp.asarray(rng.normal(size=x_shape) + 0.3, dtype)


@pytest.mark.sampled(5)
@pytest.mark.parametrize(('name', 'bits'), [*((name, 8) for name in CONTRACTIONS), ('dense', 3)])
def test_fake_is_real_integers_bit_for_bit(name, bits):
  fn = CONTRACTIONS[name][0]
  w, x = arrays(name)
  fake = jax.jit(quantize(fn, bits=bits))(w, x)
  np.testing.assert_array_equal(fake, jax.jit(quantize(fn, bits=bits, real=True))(w, x))
  assert not np.array_equal(fake, fn(w, x))


@pytest.mark.parametrize('name', ['dense', 'grouped'])
def test_compiled_or_not_weights_baked_in_or_not_the_bits_are_the_same(name):
  fn = CONTRACTIONS[name][0]
  w, x = arrays(name)
  fake = jax.jit(quantize(fn))(w, x)
  np.testing.assert_array_equal(fake, quantize(fn)(w, x))
  np.testing.assert_array_equal(fake, jax.jit(lambda x: quantize(fn)(w, x))(x))


def by_numpy(axes, w, x, bits):
  """What the integers stand for, quantized as published, in float64."""
  w, x = np.asarray(w, np.float64), np.asarray(x, np.float64)
  most = 2 ** (bits - 1) - 1
  w_scale = np.abs(w).max(axis=axes, keepdims=True) / most
  low, high = min(x.min(), 0), max(x.max(), 0)
  x_scale = (high - low) / (2**bits - 1)
  zero = np.round(-(2 ** (bits - 1)) - low / x_scale)
  stored = np.clip(np.round(x / x_scale) + zero, -(2 ** (bits - 1)), most)
  return jnp.asarray(np.round(w / w_scale) * w_scale, jnp.float32), jnp.asarray((stored - zero) * x_scale, jnp.float32)


def value_and_gradients(fn, w, x):
  def both(w, x):
    out, pull = jax.vjp(fn, w, x)
    return out, *pull(jnp.ones_like(out))

  return jax.jit(both)(w, x)


@pytest.mark.sampled(5)
@pytest.mark.unoptimized
@pytest.mark.parametrize('name', CONTRACTIONS)
def test_grids_are_the_published_ones_and_gradients_those_of_the_float_contraction_there(name):
  fn, _, _, axes = CONTRACTIONS[name]
  w, x = arrays(name, seed=1)
  out, *gradients = value_and_gradients(quantize(fn), w, x)
  w_hat, x_hat = by_numpy(axes, w, x, 8)
  expected = value_and_gradients(fn, w_hat, x_hat)
  for got, want in zip((out, *gradients), expected, strict=True):
    np.testing.assert_allclose(got, want, atol=1e-5 * np.abs(want).max())


@pytest.mark.parametrize('name', ['dense', 'depthwise'])
def test_bfloat16_in_bfloat16_out_and_still_integers(name):
  fn = CONTRACTIONS[name][0]
  w, x = arrays(name, dtype=jnp.bfloat16)
  fake, by_w, by_x = value_and_gradients(quantize(fn), w, x)
  assert (fake.dtype, by_w.dtype, by_x.dtype) == (jnp.bfloat16,) * 3
  np.testing.assert_array_equal(fake, jax.jit(quantize(fn, real=True))(w, x))
  wide = fn(w.astype(jnp.float32), x.astype(jnp.float32))
  np.testing.assert_allclose(fake.astype(jnp.float32), wide, atol=0.03 * np.abs(wide).max())


def test_real_integers_are_what_the_program_holds():
  w, x = arrays('dense')
  text = str(jax.make_jaxpr(quantize(lambda w, x: x @ w, real=True))(w, x))
  assert 'preferred_element_type=int32' in text
  assert 'i8[64,8]' in text


def test_real_integers_can_be_trained_through():
  w, x = arrays('dense')
  dense = lambda w, x: x @ w  # noqa: E731
  fake = value_and_gradients(quantize(dense), w, x)
  for one, other in zip(fake, value_and_gradients(quantize(dense, real=True), w, x), strict=True):
    np.testing.assert_array_equal(one, other)


@pytest.mark.sampled(3)
@pytest.mark.parametrize('bits', range(2, 9))
def test_zero_is_exact_and_the_range_is_narrow(bits):
  rng = np.random.default_rng(bits)
  w = jnp.asarray(rng.normal(size=(16, 8)) * (rng.uniform(size=(16, 8)) < 0.4), jnp.float32)
  steps = numerics.weight_steps(w, numerics.weight_scale(w, (0,), bits), bits)
  np.testing.assert_array_equal(steps == 0, np.where(w == 0, True, steps == 0))
  assert np.abs(steps).max() <= 2 ** (bits - 1) - 1
  np.testing.assert_array_equal(numerics.weight_steps(-w, numerics.weight_scale(-w, (0,), bits), bits), -steps)
  for low, high in [(-1.3, 2.7), (0.5, 3.0), (-4.0, -0.1), (0.0, 0.0), (-3e38, 3e38), (1e-44, 1e-42)]:
    grid = numerics.activation_grid((jnp.float32(low), jnp.float32(high)), bits)
    assert float(grid.low) <= 0 <= float(grid.high)
    assert float(grid.high - grid.low) == 2**bits - 1
    assert 0 < float(grid.scale) < np.inf
    assert -(2 ** (bits - 1)) <= float(grid.zero) <= 2 ** (bits - 1) - 1


def test_clipped_activations_have_no_gradient_and_the_extremes_of_a_range_have():
  ranges = {'arg0': (jnp.float32(-1.0), jnp.float32(2.18))}
  x = jnp.array([[-1.5, -1.0, 0.0, 2.18, 2.5]])
  w = jnp.full((5, 1), 0.5)
  gradient = jax.grad(lambda x: quantize(lambda w, x: x @ w, ranges=ranges)(w, x).sum())(x)
  np.testing.assert_allclose(gradient, [[0, 0.5, 0.5, 0.5, 0]], rtol=1e-6)


AWKWARD = {
  'a channel of zeros': (jnp.zeros((4, 3)).at[:, 1].set(1.0), jnp.ones((2, 4))),
  'zeros alone': (jnp.zeros((4, 3)), jnp.zeros((2, 4))),
  'an empty batch': (jnp.ones((4, 3)), jnp.ones((0, 4))),
  'nothing to sum': (jnp.ones((0, 3)), jnp.ones((2, 0))),
  'denormals': (jnp.full((4, 3), 1e-40), jnp.full((2, 4), 1e-41)),
  'the largest floats': (jnp.full((4, 3), 1e-3), jnp.array([[3e38, -3e38, 0, 1]])),
  'one value': (jnp.ones((4, 3)), jnp.full((2, 4), 7.0)),
  'all negative': (jnp.ones((4, 3)), jnp.full((2, 4), -7.0)),
}


@pytest.mark.sampled(3)
@pytest.mark.unoptimized
@pytest.mark.parametrize(('name', 'real'), [*((name, False) for name in AWKWARD), ('an empty batch', True)])
def test_no_nan_is_made(name, real):
  w, x = AWKWARD[name]
  dense = lambda w, x: x @ w  # noqa: E731
  out, *gradients = value_and_gradients(quantize(dense, real=real), w, x)
  assert out.shape == dense(w, x).shape
  assert all(np.isfinite(values).all() for values in (out, *gradients))


def test_a_nan_stays_where_it_is_and_spoils_no_neighbor():
  dense = lambda w, x: x @ w  # noqa: E731
  w, x = arrays('dense')
  clean = jax.jit(quantize(dense))(w, x)
  out = jax.jit(quantize(dense))(w, jnp.concatenate([x, jnp.full((1, 64), jnp.nan), jnp.full((1, 64), jnp.inf)]))
  np.testing.assert_array_equal(out[:-2], clean)
  assert np.isnan(out[-2]).all()
  assert np.isfinite(out[-1]).all()  # beyond the range is clipped, infinitely far beyond too


def test_an_average_of_ranges_adopts_the_first_and_ignores_nothing():
  never, one, two = numerics.unseen(), (jnp.float32(-1), jnp.float32(1)), (jnp.float32(-3), jnp.float32(2))
  assert [float(end) for end in numerics.blend(never, two, 0.9)] == [-3, 2]
  assert [float(end) for end in numerics.blend(two, never, 0.9)] == [-3, 2]
  assert not bool(numerics.is_seen(numerics.blend(never, never, 0.9)))
  np.testing.assert_allclose(numerics.blend(one, two, 0.75), (-1.5, 1.25))
  assert [float(end) for end in numerics.merge(never, one)] == [-1, 1]


def any_bits(shape, seed=0):
  """Floats of every kind: finite, denormal, infinite, NaN of either sign."""
  bits = np.random.default_rng(seed).integers(0, 2**32, shape, dtype=np.uint32)
  bits[:2] |= np.uint32(0x7F800000)  # rows that are not finite
  return bits.view(np.float32)


@pytest.mark.parametrize('share', [0.0, 0.5, 1.0])
def test_a_range_is_that_of_the_finite_entries_alone(share):
  x = any_bits((40, 9))
  rng = np.random.default_rng(1)
  x = np.where(rng.random(x.shape) < share, x, rng.normal(size=x.shape).astype(np.float32))
  finite = x[np.isfinite(x)]
  low, high = jax.jit(numerics.observe)(x)
  assert (float(low), float(high)) == (finite.min(), finite.max())
  for nothing in ([np.nan, -np.nan], [np.inf], [-np.inf, np.nan, np.inf], []):
    assert [float(end) for end in numerics.observe(jnp.asarray(nothing, jnp.float32))] == [np.inf, -np.inf]
  negative, same = jnp.float32([-3.0, -2.0, -np.inf]), jnp.bfloat16([1.5, np.nan, 1.5])
  assert [float(end) for end in numerics.observe(negative)] == [-3.0, -2.0]
  assert [float(end) for end in numerics.observe(same)] == [1.5, 1.5]


@pytest.mark.parametrize('small', [0, 1 << 18], ids=['by a branch', 'without one'])
def test_the_scale_of_a_weight_is_that_of_its_finite_entries(small, monkeypatch):
  monkeypatch.setattr(numerics, '_SMALL', small)
  w = np.concatenate([any_bits((40, 9)), np.random.default_rng(2).normal(size=(40, 3)).astype(np.float32)], axis=1)
  w[:, 0], w[:, 1] = 0, np.nan
  largest = np.where(np.isfinite(w), np.abs(w), 0).max(axis=0, keepdims=True)
  step = largest * np.float32(1 / 127)
  expected = np.where(step >= numerics.SMALLEST, step, np.float32(1))
  np.testing.assert_array_equal(jax.jit(lambda w: numerics.weight_scale(w, (0,), 8))(w), expected)
  assert expected[0, 0] == expected[0, 1] == 1


def test_a_moving_range_adopts_the_first_and_keeps_what_nothing_follows():
  old = (jnp.float32([np.inf, 1.0, np.inf, -1.0]), jnp.float32([-np.inf, 2.0, -np.inf, 3.0]))
  new = (jnp.float32([0.5, np.inf, np.inf, -2.0]), jnp.float32([1.5, -np.inf, -np.inf, 1.0]))
  low, high = jax.jit(lambda old, new: numerics.blend(old, new, 0.75))(old, new)
  np.testing.assert_array_equal(low, np.float32([0.5, 1.0, np.inf, -1.25]))
  np.testing.assert_array_equal(high, np.float32([1.5, 2.0, -np.inf, 2.5]))
