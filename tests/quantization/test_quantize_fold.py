"""What is trained with its batch norm apart is what is deployed with the norm folded in; a view may stand between."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxlite.contract import Hook, Model, chain, reparam
from jaxlite.quantization import _numerics as numerics
from jaxlite.quantization._lsq import lsq
from jaxlite.quantization._qat import fake_quant
from jaxlite.quantization._quantize import observe, quantize

pytestmark = pytest.mark.unoptimized

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(2, 8, 8, 4)), jnp.float32)
W = jnp.asarray(RNG.normal(size=(3, 3, 4, 6)), jnp.float32)
GAMMA = jnp.asarray(RNG.normal(size=6), jnp.float32)  # of both signs
BETA, MEAN = (jnp.asarray(RNG.normal(size=6), jnp.float32) for _ in range(2))
VARIANCE = jnp.asarray(RNG.uniform(0.1, 2, size=6), jnp.float32)
FACTOR = GAMMA / jnp.sqrt(VARIANCE + 1e-5)


def conv(x, w):
  return lax.conv_general_dilated(x, w, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC'))


def apart(p, x):
  return (conv(x, p['w']) - MEAN) * FACTOR + BETA


def folded(p, x):
  return conv(x, p['w']) + (BETA - MEAN * FACTOR)


@pytest.mark.sampled(3)
@pytest.mark.parametrize('bits', [8, 4, 2, (4, None)])
@pytest.mark.parametrize('real', [False, True])
def test_folding_a_batch_norm_changes_no_integer_but_its_sign(bits, real):
  _, ranges = observe(apart)({'w': W}, X)
  ranges = ranges if isinstance(bits, int) else None
  trained = jax.jit(quantize(apart, bits=bits, ranges=ranges, real=real))({'w': W}, X)
  deployed = jax.jit(quantize(folded, bits=bits, ranges=ranges, real=real))({'w': W * FACTOR}, X)
  np.testing.assert_allclose(deployed, trained, atol=1e-5 * np.abs(trained).max())
  weight = bits if isinstance(bits, int) else bits[0]
  one, two = (numerics.weight_steps(w, numerics.weight_scale(w, (0, 1, 2), weight), weight) for w in (W, W * FACTOR))
  np.testing.assert_array_equal(two, one * jnp.sign(FACTOR))
  np.testing.assert_allclose(
    numerics.weight_scale(W * FACTOR, (0, 1, 2), weight),
    numerics.weight_scale(W, (0, 1, 2), weight) * jnp.abs(FACTOR), rtol=1e-6
  )  # fmt: skip


def model_of(fn, params):
  return Model(init=lambda key, x: (params, {}), apply=lambda p, s, x, *, train, key, step=None: (fn(p, x), s))


@pytest.mark.parametrize('per_channel', [True, False])
@pytest.mark.parametrize('bits', [8, 3])
def test_folding_into_learned_steps_gives_each_channel_its_own(per_channel, bits):
  model = lsq(bits, per_channel=per_channel).model(model_of(apart, {'w': W}))
  params, state = model.init(KEY, X)
  trained, _ = model.apply(params, state, X, train=False, key=None)
  steps = params['jl.lsq']['w']
  folded_params = {
    'w': W * FACTOR,
    'jl.lsq': {'w': {'weight': steps['weight'] * jnp.abs(FACTOR), 'activation': steps['activation']}},
  }
  deployed, _ = lsq(bits).model(model_of(folded, {'w': W})).apply(folded_params, state, X, train=False, key=None)
  np.testing.assert_allclose(deployed, trained, atol=1e-5 * np.abs(trained).max())


def replaced(model):
  """A view under another name: the inner model's weight is the product of two factors."""

  def init(key, params, state):
    return {'left': jnp.ones((6, 2)), 'right': jnp.ones((2, 5))}, state

  return reparam(model, 'factors', init, lambda params, state, **_: {'w': params['left'] @ params['right']})


@pytest.mark.parametrize('hook', [fake_quant, lsq])
def test_a_rule_left_of_the_part_that_replaces_the_weights_is_told(hook):
  base = model_of(lambda p, x: x @ p['w'], {'w': jnp.ones((6, 5))})
  x = jnp.ones((2, 6))
  factors = Hook('factors', model=replaced)
  inner = chain(factors, hook(rules={'^w$': 4})).model(base)
  outer = chain(hook(rules={'^w$': 4}), factors).model(base)
  with pytest.raises(ValueError, match=r"'\^w\$' matches no parameter"):
    outer.init(KEY, x)
  assert jax.tree.leaves(inner.init(KEY, x))
