"""Laws of clustered weights: few values, which learn by their members; zero stays zero; small when packed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlite as jl
from jaxlite.deployment.packed import file as pack
from jaxlite.quantization import clustered
from jaxlite.quantization._clusters import nearest

pytestmark = pytest.mark.unoptimized
RNG = np.random.default_rng(0)


def floats(*shape):
  return RNG.normal(size=shape).astype(np.float32)


def apply(params, x):
  return x @ params['w'] + params['b']


def test_each_weight_is_the_nearest_value_and_gradients_are_those_of_what_is_seen():
  w, values, slope = floats(40, 30), floats(6), floats(40, 30)
  w[:5] = 0
  all_ = np.append(values, np.float32(0))
  places = np.abs(w[..., None] - all_).argmin(-1)
  np.testing.assert_array_equal(nearest(w, values), all_[places])
  assert not np.any(nearest(w, values)[:5])
  by_weight, by_value = jax.grad(lambda w, values: jnp.sum(slope * nearest(w, values)), argnums=(0, 1))(w, values)
  np.testing.assert_array_equal(by_weight, slope)
  wanted = [slope[places == index].sum(dtype=np.float64) for index in range(6)]
  np.testing.assert_allclose(by_value, wanted, rtol=1e-4, atol=1e-4)
  assert nearest(w.astype(jnp.bfloat16), values).dtype == jnp.bfloat16


def test_what_is_exported_has_few_values_and_is_packed_as_a_codebook():
  w = np.where(RNG.random((80, 60)) < 0.8, 0, floats(80, 60))
  base = jl.from_function(apply, {'w': w, 'b': floats(60)})
  model = clustered(8).model(base)
  params, state = model.init(jax.random.key(0), floats(2, 80))
  exported, _ = model.export(params, state)
  assert {*exported} == {'w', 'b'}
  assert len(np.unique(exported['w'])) <= 8
  assert np.all(np.asarray(exported['w'])[w == 0] == 0)
  np.testing.assert_array_equal(exported['b'], params['b'])
  x = floats(3, 80)
  seen = model.apply(params, state, x, train=False, key=None)[0]
  np.testing.assert_allclose(seen, apply(exported, x), rtol=1e-5, atol=1e-5)
  _, counts = np.unique(exported['w'], return_counts=True)
  order_0 = -(counts * np.log2(counts / counts.sum())).sum() / 8
  assert pack.packed_bytes({'w': exported['w']}) < 1.15 * order_0 + 32 + 30


def test_values_learn_the_means_of_their_members_as_in_k_means():
  target = np.concatenate([floats(50) * 0.05 + mean for mean in (-2, 1, 3)]).astype(np.float32)
  values, rate = jnp.float32([-1.0, 1.0, 2.0]), 0.01
  slope = jax.jit(jax.grad(lambda values: jnp.sum((nearest(target, values) - target) ** 2)))
  for _ in range(300):
    values = values - rate * slope(values) / 2
  np.testing.assert_allclose(np.sort(values), [part.mean() for part in np.split(target, 3)], rtol=1e-3)


def test_what_is_wrong_is_said():
  for wrong in (1, 257, 2.5, True):
    with pytest.raises(ValueError, match='clusters: count is a whole number from 2 to 256'):
      clustered(wrong)
  model = clustered(select='nothing').model(jl.from_function(apply, {'w': floats(3, 2), 'b': floats(2)}))
  with pytest.raises(ValueError, match='nothing'):
    model.init(jax.random.key(0), floats(2, 3))


@pytest.mark.parametrize('count', [1, 2, 3, 7, 8, 255])
def test_each_weight_takes_the_nearest_value_as_numpy_finds_it(count):
  rng = np.random.default_rng(count)
  values = rng.normal(size=count).round(1).astype(np.float32)
  weights = np.concatenate([rng.normal(size=300).round(2), values, [0.0, 9.0, -9.0]]).astype(np.float32)
  known = np.sort(np.append(values, np.float32(0)))
  expected = known[np.searchsorted((known[1:] + known[:-1]) / 2, weights)]
  np.testing.assert_array_equal(nearest(weights, values), expected)
