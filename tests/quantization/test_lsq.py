"""Learned steps: the published formulas, in NumPy, and integers that are the ones deployed."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

from jaxlite.contract import Model, chain
from jaxlite.quantization._account import weight_bits
from jaxlite.quantization._lsq import lsq
from jaxlite.quantization._qat import fake_quant
from jaxlite.step.train_step import train_step
from jaxlite.tasks.losses import cross_entropy

pytestmark = pytest.mark.unoptimized

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(8, 6)), jnp.float32)
W = jnp.asarray(RNG.normal(size=(6, 5)), jnp.float32)
V = jnp.asarray(RNG.normal(size=(5, 3)), jnp.float32)


def model_of(fn, params):
  return Model(init=lambda key, x: (params, {}), apply=lambda p, s, x, *, train, key, step=None: (fn(p, x), s))


DENSE = model_of(lambda p, x: x @ p['w'], {'w': W})
MLP = model_of(lambda p, x: jax.nn.relu(x @ p['w']) @ p['v'], {'w': W, 'v': V})


def made(hook, base, x=X):
  model = hook.model(base)
  params, state = model.init(KEY, x)
  return model, params, state


def run(model, params, state, x=X):
  return model.apply(params, state, x, train=True, key=None)[0]


def compiled(fn):
  return jax.jit(fn, compiler_options={'xla_backend_optimization_level': 0})  # what is tested is not the compiler


def outputs(model, params, state, x=X):
  return compiled(functools.partial(run, model))(params, state, x)


def gradient(model, params, state, loss=jnp.sum):
  return compiled(jax.grad(lambda p: loss(run(model, p, state))))(params)


def published(v, s, low, high, upstream, rate):
  """Esser et al., equations 1 to 3 and 5, and the gradient scale: value, gradient of v, of s; in float64."""
  v, s, upstream = (np.asarray(a, np.float64) for a in (v, s, upstream))
  place = v / s
  inside = (low < place) & (place < high)
  steps = np.round(np.clip(place, low, high))
  by_step = np.where(inside, np.round(place) - place, np.where(place <= low, low, high))
  return steps * s, np.where(inside, upstream, 0), by_step * upstream * rate


@pytest.mark.sampled(4)
@pytest.mark.parametrize('bits', [8, 4, 2, (3, 8), (8, 2)])
@pytest.mark.parametrize('per_channel', [True, False])
def test_values_and_gradients_are_the_published_ones(bits, per_channel):
  pair = bits if isinstance(bits, tuple) else (bits, bits)
  model, params, state = made(lsq(bits, per_channel=per_channel), DENSE)
  upstream = RNG.normal(size=(8, 5))
  steps, zero = params['jl.lsq']['w'], float(state['jl.lsq']['w'])

  def both(p, x, upstream):
    out, pull = jax.vjp(lambda p, x: run(model, p, state, x), p, x)
    return out, *pull(upstream)

  out, by_params, by_x = compiled(both)(params, X, jnp.asarray(upstream, jnp.float32))

  w_most = 2 ** (pair[0] - 1) - 1
  shared = 6 if per_channel else 30
  low = -(2 ** (pair[1] - 1)) - zero
  high = low + 2 ** pair[1] - 1
  x_step = float(steps['activation'])
  w_step = np.asarray(steps['weight'], np.float64)
  x_hat, _, _ = published(X, x_step, low, high, 0, 0)
  w_hat, by_w, by_w_step = published(W, w_step, -w_most, w_most, x_hat.T @ upstream, 1 / np.sqrt(shared * w_most))
  _, want_by_x, by_x_step = published(X, x_step, low, high, upstream @ w_hat.T, 1 / np.sqrt(X.size * high))
  np.testing.assert_allclose(out, x_hat @ w_hat, atol=1e-5)
  np.testing.assert_allclose(by_x, want_by_x, atol=1e-5)
  np.testing.assert_allclose(by_params['w'], by_w, atol=1e-5)
  got = by_params['jl.lsq']['w']
  np.testing.assert_allclose(got['weight'], by_w_step.sum(axis=0 if per_channel else None), rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(got['activation'], by_x_step.sum(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('per_channel', [True, False])
def test_steps_begin_at_twice_the_mean_size_over_the_root_of_the_largest_integer(per_channel):
  _, params, state = made(lsq(4, per_channel=per_channel), DENSE)
  steps = params['jl.lsq']['w']
  np.testing.assert_allclose(
    steps['weight'], 2 * np.abs(W).mean(axis=0 if per_channel else None) / np.sqrt(7), rtol=1e-6
  )
  high = 7 - float(state['jl.lsq']['w'])
  np.testing.assert_allclose(steps['activation'], 2 * np.abs(X).mean() / np.sqrt(high), rtol=1e-6)


def test_after_a_relu_no_integer_is_spent_below_zero():
  _, _, state = made(lsq(), MLP)
  assert float(state['jl.lsq']['v']) == -128
  assert abs(float(state['jl.lsq']['w'])) < 64


CONSTRUCTS = {
  'dense': (lambda p, x: x @ p['w'], {'w': W}),
  'weight first': (lambda p, x: p['w'] @ x.T, {'w': W.T}),
  'relu': (lambda p, x: jax.nn.relu(x @ p['w']) @ p['v'], {'w': W, 'v': V}),
  'depthwise': (
    lambda p, x: lax.conv_general_dilated(
      x[None], p["w"], (1,), 'SAME', dimension_numbers=('NWC', 'WIO', 'NWC'), feature_group_count=6
    ),
    {'w': jnp.asarray(RNG.normal(size=(3, 1, 12)), jnp.float32)},
  ),
  'scan over layers': (
    lambda p, x: lax.scan(lambda c, w: (jnp.tanh(c @ w), None), x, p['w'])[0],
    {'w': jnp.asarray(RNG.normal(size=(3, 6, 6)), jnp.float32)},
  ),
  'a shared weight in a scan': (
    lambda p, x: lax.scan(lambda c, _: (jnp.tanh(c @ p['w']), None), x, None, 3)[0],
    {'w': jnp.asarray(RNG.normal(size=(6, 6)), jnp.float32)},
  ),
  'cond': (
    lambda p, x: lax.cond(x.sum() < 1e9, lambda x: x @ p['w'], lambda x: x[:, :5], x), {'w': W}
  ),
  'remat': (lambda p, x: jax.checkpoint(lambda x, w: jnp.tanh(x @ w))(x, p['w']), {'w': W}),
  'transposed and tied': (lambda p, x: jnp.tanh(x @ p['w']) @ p['w'].T, {'w': W}),
}  # fmt: skip


@pytest.mark.unoptimized(False)  # bits are judged
@pytest.mark.sampled(3)
@pytest.mark.parametrize('name', CONSTRUCTS)
def test_fake_is_real_integers_bit_for_bit_and_every_step_learns(name):
  base = model_of(*CONSTRUCTS[name])
  model, params, state = made(lsq(), base)
  real = lsq(real=True).model(base)
  np.testing.assert_array_equal(outputs(model, params, state), outputs(real, params, state))
  assert 'preferred_element_type=int32' in str(jax.make_jaxpr(functools.partial(run, real))(params, state))
  for leaf in jax.tree.leaves(gradient(model, params, state, lambda y: (y**2).sum())):
    assert np.isfinite(leaf).all()
    assert np.asarray(leaf != 0).mean() > 0.5
  assert weight_bits(model, params, state, X) == dict.fromkeys(base.init(KEY, X)[0], 8)


@pytest.mark.parametrize('name', ['dense', 'depthwise'])
def test_a_step_learns_the_same_whether_or_not_a_gradient_flows_on(name):
  model, params, state = made(lsq(4), model_of(*CONSTRUCTS[name]))
  loss = lambda p, x: (run(model, p, state, x) ** 3).sum()  # noqa: E731
  alone, (along, _) = compiled(lambda p, x: (jax.grad(loss)(p, x), jax.grad(loss, (0, 1))(p, x)))(params, X)
  jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-4), alone, along)


def test_a_fixed_grid_spans_the_range_of_the_first_batch_and_does_not_learn():
  model, params, state = made(lsq(3, fixed='^w$'), MLP)
  assert {site: list(own) for site, own in params['jl.lsq'].items()} == {'w': ['weight'], 'v': ['activation', 'weight']}
  np.testing.assert_allclose(state['jl.const']['lsq']['w'], (X.max() - X.min()) / 7, rtol=1e-6)
  _, whole, same = made(lsq(3), MLP)
  whole['jl.lsq']['w']['activation'] = state['jl.const']['lsq']['w']
  np.testing.assert_array_equal(outputs(model, params, state), outputs(lsq(3).model(MLP), whole, same))
  got, want = gradient(model, params, state), gradient(lsq(3).model(MLP), whole, same)
  del want['jl.lsq']['w']['activation']
  jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5), got, want)
  real = lsq(3, fixed='^w$', real=True).model(MLP)
  np.testing.assert_array_equal(outputs(model, params, state), outputs(real, params, state))
  exported, rest = model.export(params, state)
  assert sorted(exported) == ['v', 'w']
  assert rest == {}


def test_fixed_grids_leave_no_contraction_for_a_step_alone():
  def contractions(hook):
    model, params, state = made(hook, DENSE)
    loss = lambda p: run(model, p, state).sum()  # noqa: E731
    return jax.jit(jax.grad(loss)).lower(params).compile().as_text().count(' dot(')

  assert contractions(lsq(fixed='^w$')) < contractions(lsq())


def test_a_scan_over_layers_is_the_unrolled_loop():
  stack = CONSTRUCTS['scan over layers'][1]['w']
  scanned = model_of(*CONSTRUCTS['scan over layers'])

  def loop(p, x):
    for name in 'abc':
      x = jnp.tanh(x @ p[name])
    return x

  looped = model_of(loop, dict(zip('abc', stack, strict=True)))
  outs, gradients = [], []
  for base in (scanned, looped):
    model, params, state = made(lsq(4), base)
    outs.append(outputs(model, params, state))
    gradients.append(gradient(model, params, state, lambda y: (y**2).sum())['jl.lsq'])
  np.testing.assert_allclose(*outs, atol=1e-6)
  for kind in ('weight', 'activation'):
    each = np.stack([gradients[1][name][kind] for name in 'abc'])
    np.testing.assert_allclose(gradients[0]['w'][kind], each, rtol=1e-4, atol=1e-5)


def test_zero_stays_zero_and_a_step_is_its_size():
  pruned = {'w': jnp.where(jnp.abs(W) > 0.5, W, 0)}
  model, params, state = made(lsq(3), model_of(lambda p, x: x @ p['w'], pruned))
  one = jnp.eye(6) * params['jl.lsq']['w']['activation']
  seen = outputs(model, params, state, one)
  assert (np.asarray(seen)[np.asarray(pruned['w']) == 0] == 0).all()
  flipped = {**params, 'jl.lsq': jax.tree.map(jnp.negative, params['jl.lsq'])}
  np.testing.assert_array_equal(outputs(model, params, state), outputs(model, flipped, state))
  zeroed = {**params, 'jl.lsq': jax.tree.map(jnp.zeros_like, params['jl.lsq'])}
  assert np.isfinite(outputs(model, zeroed, state)).all()
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient(model, zeroed, state)))


def test_weights_alone():
  model, params, state = made(lsq((4, None)), DENSE)
  assert list(params['jl.lsq']['w']) == ['weight']
  assert state['jl.lsq'] == {}
  step = np.asarray(params['jl.lsq']['w']['weight'])
  w_hat = np.clip(np.round(W / step), -7, 7) * step
  np.testing.assert_allclose(outputs(model, params, state), X @ w_hat, atol=1e-5)


def test_rules_choose_by_path():
  model, params, state = made(lsq(8, rules={'^v$': None, '^w$': (2, 8)}), MLP)
  assert list(params['jl.lsq']) == ['w']
  assert weight_bits(model, params, state, X) == {'w': 2}


def test_a_layer_that_begins_at_zero_can_learn():
  base = model_of(lambda p, x: x @ p['w'], {'w': jnp.zeros((6, 5))})
  model, params, state = made(lsq(4), base)
  steps = params['jl.lsq']['w']['weight']
  np.testing.assert_allclose(steps, 2 * np.sqrt(2 / np.pi / 6) / np.sqrt(7), rtol=1e-6)
  assert (np.asarray(gradient(model, params, state)['w']) != 0).all()


def test_bfloat16_stays_bfloat16():
  base = model_of(lambda p, x: x @ p['w'], {'w': W.astype(jnp.bfloat16)})
  model, params, state = made(lsq(), base, X.astype(jnp.bfloat16))
  out, got = compiled(jax.value_and_grad(lambda p: run(model, p, state, X.astype(jnp.bfloat16)).sum()))(params)
  assert out.dtype == got['w'].dtype == jnp.bfloat16
  assert {leaf.dtype for leaf in jax.tree.leaves(got['jl.lsq'])} == {np.dtype('float32')}


def test_export_strips_the_steps_and_after_reaches_the_inner_model():
  base = MLP._replace(after=lambda params, state, step: {**state, 'seen': sorted(params)})
  model, params, state = made(lsq(), base)
  exported, rest = model.export(params, state)
  assert sorted(exported) == ['v', 'w']
  assert rest == {}
  new = model.after(params, state, 1)
  assert new['seen'] == ['v', 'w']
  assert new['jl.lsq'] is state['jl.lsq']


def test_training_lowers_the_loss_and_moves_the_steps():
  rates = {'steps': optax.sgd(1e-3), 'weights': optax.sgd(1e-2)}
  label = lambda params: {name: 'steps' if name.startswith('jl.') else 'weights' for name in params}  # noqa: E731
  train = train_step(MLP, cross_entropy, chain(lsq(3), optax.partition(rates, label)))
  batch = {'inputs': X, 'labels': jnp.asarray(RNG.integers(0, 3, 8))}
  state = train.init(KEY, batch)
  before = jax.tree.map(np.asarray, state.params['jl.lsq'])
  losses = []
  for _ in range(40):
    state, metrics = train.step(state, batch)
    losses.append(float(metrics['loss']))
  assert losses[-1] < 0.7 * losses[0]
  for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(state.params['jl.lsq']), strict=True):
    assert (np.asarray(new) != old).all()


WRONG = {
  'nine bits': (lambda: lsq(9), 'from 2 to 8, got 9'),
  'bits of a rule': (lambda: lsq(rules={'w': 1}), "rule 'w'"),
  'three bits of one': (lambda: lsq((8, 8, 8)), 'a pair (weight, activation)'),
  'a rule for nothing': (lambda: made(lsq(rules={'u': 4}), MLP), "'u' matches no parameter"),
  'a fixed grid of nothing': (lambda: made(lsq(fixed='u'), MLP), "fixed 'u' matches no parameter"),
  'a batch of zeros': (lambda: made(lsq(), MLP, 0 * X), 'no activation but zeros at w'),
  'a branch that the batch does not take': (
    lambda: made(lsq(), model_of(lambda p, x: lax.cond(x.sum() > 1e9, lambda x: x @ p['w'], lambda x: x[:, :5], x),
                                 {'w': W})),
    'no activation but zeros at w',
  ),
  'the params of another recipe': (
    lambda: lsq().model(MLP).apply(*MLP.init(KEY, X), X, train=False, key=None), 'needs its steps'
  ),
  'integers of integers': (lambda: made(fake_quant(), lsq().model(MLP)), 'is quantized already by another part'),
}  # fmt: skip


@pytest.mark.parametrize('name', WRONG)
def test_a_mistake_is_told_in_one_line(name):
  do, words = WRONG[name]
  with pytest.raises(ValueError) as told:
    do()
  assert words in str(told.value)
  assert '\n' not in str(told.value)


def test_two_quantizers_share_a_model_by_rules():
  model, params, state = made(fake_quant(rules={'^v$': None}), lsq(4, rules={'^w$': None}).model(MLP))
  assert list(params['jl.lsq']) == ['v']
  assert list(state['jl.fake_quant']) == ['w']
  assert weight_bits(model, params, state, X) == {'w': 8, 'v': 4}
