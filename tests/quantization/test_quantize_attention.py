"""Products of two activations, where they are asked for: attention in integers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlite.contract import Model, Network
from jaxlite.quantization._ptq import ptq
from jaxlite.quantization._qat import fake_quant
from jaxlite.quantization._quantize import coverage, observe, quantize

pytestmark = pytest.mark.unoptimized

RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(2, 5, 6)) + 0.2, jnp.float32)
PARAMS = {name: jnp.asarray(RNG.normal(size=(6, 2, 3)), jnp.float32) for name in 'qkv'}


def attend(p, x):
  q, k, v = (jnp.einsum('btd,dhc->bthc', x, p[name]) for name in 'qkv')
  weights = jax.nn.softmax(jnp.einsum('bthc,bshc->bhts', q, k))
  return jnp.einsum('bhts,bshc->bthc', weights, v)


PRODUCTS = {
  'attention': (attend, PARAMS, X),
  'gram': (lambda p, x: jnp.einsum('btd,bsd->bts', x, x @ p['w']), {'w': jnp.eye(6)}, X),
  'two summed axes': (lambda p, x: jnp.einsum('btd,ctd->bc', x @ p['w'], x + 1), {'w': jnp.eye(6)}, X),
  'a vector': (lambda p, x: (x @ p['w']) @ x[0, 0], {'w': jnp.eye(6)}, X),
}


@pytest.mark.unoptimized(False)  # bits are judged
@pytest.mark.sampled(3)
@pytest.mark.parametrize('name', PRODUCTS)
@pytest.mark.parametrize('bits', [8, 3])
def test_fake_is_real_integers_bit_for_bit(name, bits):
  fn, params, x = PRODUCTS[name]
  both = jax.jit(lambda p, x: [quantize(fn, bits=bits, attention=True, real=real)(p, x) for real in (False, True)])
  fake, real = both(params, x)
  np.testing.assert_array_equal(fake, real)
  assert all(row.quantized for row in coverage(fn, attention=True)(params, x))
  text = str(jax.make_jaxpr(quantize(fn, attention=True, real=True))(params, x))
  assert text.count('preferred_element_type=int32') == text.count('dot_general[')


def by_hand(x, bits=8):
  scale = (max(float(x.max()), 0) - min(float(x.min()), 0)) / (2**bits - 1)
  zero = np.clip(np.round(-min(float(x.min()), 0) / scale), 0, 2**bits - 1)
  return (np.clip(np.round(np.asarray(x) / scale), -zero, 2**bits - 1 - zero) * scale).astype(np.float32)


def test_values_and_gradients_are_those_of_the_float_product_at_the_quantized_operands():
  def gram(p, x, y):
    return jnp.einsum('btd,bsd->bts', x, y)

  y = jnp.asarray(RNG.normal(size=(2, 4, 6)), jnp.float32)
  got, pull = jax.vjp(quantize(gram, attention=True), {}, X, y)
  want, reference = jax.vjp(gram, {}, by_hand(X), by_hand(y))
  upstream = jnp.asarray(RNG.normal(size=got.shape), jnp.float32)
  for one, two in zip((got, *pull(upstream)[1:]), (want, *reference(upstream)[1:]), strict=True):
    np.testing.assert_allclose(one, two, atol=1e-5)


def test_ranges_hold_one_end_for_either_operand_and_can_be_given_back():
  _, ranges = observe(attend, attention=True)(PARAMS, X)
  assert sorted(ranges) == ['<activations>', '<activations>#2', 'k', 'q', 'v']
  q, k = (jnp.einsum('btd,dhc->bthc', X, PARAMS[name]) for name in 'qk')
  np.testing.assert_allclose(ranges['<activations>'], [[q.min(), k.min()], [q.max(), k.max()]], rtol=1e-5)
  once = quantize(attend, attention=True, ranges=ranges)
  np.testing.assert_allclose(once(PARAMS, X)[:1], once(PARAMS, X[:1]), atol=1e-6)


MODEL = Model(
  init=lambda key, x: (PARAMS, {}), apply=lambda p, s, x, *, train, key, step=None: (attend(p, x), s)
)  # fmt: skip


def test_a_hook_averages_them_and_a_calibration_gives_them():
  model = fake_quant(attention=True).model(MODEL)
  params, state = model.init(jax.random.key(0), X)
  assert state['jl.fake_quant']['<activations>'][0].shape == (2,)
  run = jax.jit(lambda s: model.apply(params, s, X, train=True, key=None, step=0))
  _, state = run(state)
  np.testing.assert_allclose(
    state['jl.fake_quant']['<activations>'], observe(attend, attention=True)(PARAMS, X)[1]['<activations>'], atol=0.05
  )
  net = ptq(Network(MODEL, PARAMS, {}), [X], attention=True)
  ranges = net.model_state['jl.fake_quant']
  assert ranges['<activations>#2'][1].shape == (2,)
  function = jax.jit(quantize(attend, attention=True, ranges=ranges))
  np.testing.assert_array_equal(net.predict(X), function(PARAMS, X))


def test_they_stay_float_by_default_by_rule_and_where_activations_do():
  names = lambda **how: [row.name for row in coverage(attend, **how)(PARAMS, X) if row.quantized]  # noqa: E731
  assert names() == list('qkv')
  assert names(attention=True, rules={'<act': None}) == list('qkv')
  assert names(attention=True, bits=(4, None)) == list('qkv')
  assert len(names(attention=True)) == 5
