"""Training and evaluation may use a weight differently often, or in another order: what is kept of a use stays its own.

The oracle is the range of every use, computed by hand: `quantize` of the evaluation from those is what must come out.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxlite as jl
from jaxlite.quantization import ema_ranges, frozen_ranges, observe

RNG = np.random.default_rng(0)
W = {name: jnp.asarray(RNG.normal(size=(6, 6)) / 2, jnp.float32) for name in 'wv'} | {'g': jnp.ones(6)}
X = jnp.asarray(RNG.normal(size=(16, 6)), jnp.float32)
KEY = jax.random.key(3)
pytestmark = pytest.mark.unoptimized
BIG = 20.0  # a use that this multiplies shows itself in a range


def span(x):
  return float(jnp.min(x)), float(jnp.max(x))


def model_of(train_fn, eval_fn, params=W):
  def apply(p, s, x, *, train, key, step=None):
    return (train_fn(p, x, key) if train else eval_fn(p, x)), s

  return jl.Model(init=lambda key, x: (dict(params), {}), apply=apply)


def trained(hook, model, x=X):
  """The hook's model after two steps that only look, and its params and state."""
  model = hook.model(model)
  params, state = model.init(KEY, x)
  step = jax.jit(lambda p, s: model.apply(p, s, x, train=True, key=KEY, step=jnp.int32(0))[1])
  return model, params, step(params, step(params, state))


def evaluated(model, params, state, x=X):
  return jax.jit(lambda p, s: model.apply(p, s, x, train=False, key=None)[0])(params, state)


def dropped(x, key):
  return jnp.where(jax.random.bernoulli(key, 0.8, x.shape), x / 0.8, 0)


def chain_of(n):
  def fn(p, x, key=None):
    for turn in range(n):
      x = jnp.tanh((x if key is None else dropped(x, jax.random.fold_in(key, turn))) @ p['w']) + turn
    return x

  return fn


def aside(x):
  """What is computed and does not count."""
  return 0 * x.sum()


def once(p, x):
  return x @ p['w']


def twice(p, x):
  return jnp.tanh(x @ p['w']) @ p['w']


def noisy_then(p, x, key):
  return (x + BIG * jax.random.normal(key, x.shape)) @ p['w'], dropped(x, key) @ p['w']


# name: (in training, in evaluation, the inputs of evaluation's uses in its order); none of training's own is random
ONCE = [lambda p, x: x]
TWICE = [lambda p, x: x, lambda p, x: jnp.tanh(x @ p['w'])]
PAIRED = {
  'one of its own before': (lambda p, x, k: aside(BIG * x @ p['w']) + once(p, x), once, ONCE),
  'one of its own after': (lambda p, x, k: once(p, x) + aside(BIG * x @ p['w']), once, ONCE),
  'one of its own between': (
    lambda p, x, k: jnp.tanh(x @ p['w']) @ p['w'] + aside(jnp.tanh(BIG * x @ p['w'])),
    lambda p, x: twice(p, x),
    TWICE,
  ),
  'noise of its own before': (
    lambda p, x, k: aside((x + BIG * jax.random.normal(k, x.shape)) @ p['w']) + once(p, x),
    once,
    ONCE,
  ),
  'two of its own': (lambda p, x, k: aside(BIG * x @ p['w'] + (x + BIG) @ p['w']) + once(p, x), once, ONCE),
  'another order': (
    lambda p, x, k: (BIG * x) @ p['w'] + 0 * (x @ p['w']),
    lambda p, x: 0 * (x @ p['w']) + (BIG * x) @ p['w'],
    [lambda p, x: x, lambda p, x: BIG * x],
  ),
  'the same twice': (lambda p, x, k: x @ p['w'] + x @ p['w'], lambda p, x: 2 * (x @ p['w']), ONCE),
  'of another depth': (lambda p, x, k: aside(once(p, BIG * once(p, x))) + twice(p, x), twice, TWICE),
  'its transpose': (
    lambda p, x, k: aside(BIG * x @ p['w'].T) + (x @ p['w']) @ p['w'].T,
    lambda p, x: (x @ p['w']) @ p['w'].T,
    [lambda p, x: x, lambda p, x: x @ p['w']],
  ),
  'in a jit, of a remat': (
    lambda p, x, k: aside(jax.jit(once)(p, BIG * x)) + jax.checkpoint(once)(p, x),
    once,
    ONCE,
  ),
  'under vmap': (
    lambda p, x, k: aside(BIG * x @ p['w']) + jax.vmap(lambda r: r @ p['w'])(x),
    lambda p, x: jax.vmap(lambda r: r @ p['w'])(x),
    ONCE,
  ),
  'in a branch': (
    lambda p, x, k: aside(BIG * x @ p['w']) + lax.cond(x[0, 0] > 9, lambda: -x, lambda: x @ p['w']),
    lambda p, x: lax.cond(x[0, 0] > 9, lambda: -x, lambda: x @ p['w']),
    ONCE,
  ),
  'two parts of the input': (
    lambda p, x, k: (BIG * x[8:] @ p['w']) + (x[:8] @ p['w']),
    lambda p, x: (x[:8] @ p['w']) + (BIG * x[8:] @ p['w']),
    [lambda p, x: x[:8], lambda p, x: BIG * x[8:]],
  ),
}


@pytest.mark.sampled(5)
@pytest.mark.parametrize('name', PAIRED)
def test_evaluation_takes_the_range_of_its_own_use(name):
  train_fn, eval_fn, uses = PAIRED[name]
  model, params, state = trained(jl.fake_quant(decay=0.0), model_of(train_fn, eval_fn))
  names = ['w' if n == 0 else f'w#{n + 1}' for n in range(len(uses))]
  ranges = {one: span(use(W, X)) for one, use in zip(names, uses, strict=True)}
  for one, ends in ranges.items():
    np.testing.assert_allclose(state['jl.fake_quant'][one], ends, rtol=0.02, atol=0.05)  # what comes before is rounded
  stored = {one: state['jl.fake_quant'][one] for one in names}
  want = jax.jit(jl.quantize(eval_fn, ranges=stored))(W, X)
  np.testing.assert_array_equal(evaluated(model, params, state), want)


@pytest.mark.parametrize('name', ['one of its own before', 'another order', 'of another depth'])
def test_learned_steps_are_those_of_their_use(name):
  train_fn, eval_fn, uses = PAIRED[name]
  _, params, state = trained(jl.lsq(), model_of(train_fn, eval_fn))
  for turn, use in enumerate(uses):
    own = params['jl.lsq']['w' if turn == 0 else f'w#{turn + 1}']
    high = 127 - float(state['jl.lsq']['w' if turn == 0 else f'w#{turn + 1}'])
    want = 2 * float(jnp.abs(use(W, X)).mean()) / np.sqrt(high)
    np.testing.assert_allclose(own['activation'], want, rtol=1e-4)


def test_a_rule_names_the_same_use_in_both_passes():
  train_fn, eval_fn, _ = PAIRED['another order']
  _, _, state = trained(jl.fake_quant(rules={'#2': None}, decay=0.0), model_of(train_fn, eval_fn))
  assert list(state['jl.fake_quant']) == ['w']
  np.testing.assert_allclose(state['jl.fake_quant']['w'], span(X))


def test_dropout_changes_nothing_of_which_use_is_which():
  def train_fn(p, x, key):
    return aside(BIG * dropped(x, key) @ p['w']) + jnp.tanh(dropped(x, key) @ p['w']) @ p['w']

  _, _, state = trained(jl.fake_quant(decay=0.0), model_of(train_fn, twice))
  x = dropped(X, KEY)
  np.testing.assert_allclose(state['jl.fake_quant']['w'], span(x), rtol=1e-5)
  np.testing.assert_allclose(state['jl.fake_quant']['w#2'], span(jnp.tanh(x @ W['w'])), atol=1e-2)
  np.testing.assert_allclose(state['jl.fake_quant']['w#3'], span(BIG * x), rtol=1e-5)


def test_a_recurrence_unrolled_keeps_its_turns_apart():
  n = 5
  model, params, state = trained(jl.fake_quant(decay=0.0), model_of(chain_of(n), chain_of(n)))
  names = ['w', *(f'w#{turn}' for turn in range(2, n + 1))]
  assert {*state['jl.fake_quant']} == {*names}
  for turn, name in enumerate(names[1:]):  # tanh lies within 1, and every turn adds its number
    assert (turn - 1) / 0.8 <= state['jl.fake_quant'][name][1] <= (turn + 1.1) / 0.8
  far = evaluated(model, params, state) - chain_of(n)(W, X)
  assert float(jnp.abs(far).max()) < 0.1


def test_attention_under_dropout_keeps_its_products_apart():
  params = {name: W['w'] * (1 + turn / 3) for turn, name in enumerate('qkvo')}

  def attend(p, x, key=None):
    def block(x, key):
      scores = jax.nn.softmax((x @ p['q']) @ (x @ p['k']).T)
      return ((scores if key is None else dropped(scores, key)) @ (x @ p['v'])) @ p['o']

    one, two = (None, None) if key is None else jax.random.split(key)
    return block(block(x, one), two)

  def train_fn(p, x, key):
    return aside((BIG * x) @ x.T) + attend(p, x, key)

  hook = jl.fake_quant(attention=True, decay=0.0)
  _, _, state = trained(hook, model_of(train_fn, attend, params))
  ranges = state['jl.fake_quant']
  assert sum(name.startswith('<activations>') for name in ranges) == 5
  np.testing.assert_allclose(ranges['<activations>#5'][1], [BIG * X.max(), X.max()], rtol=1e-5)
  for name in ('<activations>#2', '<activations>#4'):  # of probabilities, dropped
    assert 0 <= float(ranges[name][0][0]) <= float(ranges[name][1][0]) <= 1.25


def test_two_draws_of_the_same_stand_for_each_other():
  def train_fn(p, x, key):  # two passes under dropout, as for a consistency loss
    one, two = (twice(p, dropped(x, k)) for k in jax.random.split(key))
    return one + two

  _, _, state = trained(jl.fake_quant(decay=0.0), model_of(train_fn, twice))
  first = dropped(X, jax.random.split(KEY)[0])
  np.testing.assert_allclose(state['jl.fake_quant']['w'], span(first), rtol=1e-5)
  np.testing.assert_allclose(state['jl.fake_quant']['w#2'], span(jnp.tanh(first @ W['w'])), atol=0.05)


def test_a_scan_over_time_and_its_aside():
  def walk(p, x):
    return lax.scan(lambda c, row: (jnp.tanh(c @ p['v'] + row @ p['w']), None), X[0] * 0, x)[0]

  def train_fn(p, x, key):
    return aside(walk(p, BIG * x)) + walk(p, x)

  _, _, state = trained(jl.fake_quant(decay=0.0), model_of(train_fn, walk))
  np.testing.assert_allclose(state['jl.fake_quant']['w'], span(X), rtol=1e-5)
  np.testing.assert_allclose(state['jl.fake_quant']['w#2'], span(BIG * X), rtol=1e-5)


def test_layers_of_a_scan_have_the_ranges_of_their_own_layer():
  params = {'stack': jnp.stack([W['w'], W['v'], W['w'] * 2])}

  def layers(p, x):
    return lax.scan(lambda c, w: (jnp.tanh(c @ w), None), x, p['stack'])[0]

  def train_fn(p, x, key):
    return aside(layers(p, BIG * x)) + layers(p, x)

  model, p, state = trained(jl.fake_quant(decay=0.0), model_of(train_fn, layers, params))
  assert state['jl.fake_quant']['stack'][1].shape == (3,)
  np.testing.assert_allclose(state['jl.fake_quant']['stack'][1][0], X.max(), rtol=1e-5)
  stored = {'stack': state['jl.fake_quant']['stack']}
  np.testing.assert_array_equal(evaluated(model, p, state), jax.jit(jl.quantize(layers, ranges=stored))(p, X))


UNCLEAR = {
  'noise and dropout': lambda p, x, k: sum(noisy_then(p, x, k)),
  'two noises': lambda p, x, k: (
    (x + jax.random.normal(k, x.shape)) @ p['w'] + (x + BIG * jax.random.normal(k, x.shape)) @ p['w']
  ),
}


@pytest.mark.parametrize('hook', [jl.fake_quant, jl.lsq])
@pytest.mark.parametrize('name', UNCLEAR)
def test_what_cannot_be_told_apart_is_refused_in_one_line(name, hook):
  with pytest.raises(ValueError, match='of w training has 2 and evaluation 1 that cannot be told apart') as told:
    hook().model(model_of(UNCLEAR[name], once)).init(KEY, X)
  assert '\n' not in str(told.value)
  rules = {r'^w(#|$)': None}  # as it says
  with pytest.raises(ValueError, match='cannot be told apart'):
    hook(rules={'^v$': None}).model(model_of(UNCLEAR[name], once)).init(KEY, X)

  def more(p, x, key=None):
    return (once(p, x) if key is None else UNCLEAR[name](p, x, key)) @ p['v']

  _, params, state = trained(hook(rules=rules), model_of(more, more))
  assert [*({**state, **params}[f'jl.{hook.__name__}'])] == ['v']


def test_a_scope_of_names_tells_them_apart():
  def train_fn(p, x, key):
    with jax.named_scope('noisy'):
      one = (x + BIG * jax.random.normal(key, x.shape)) @ p['w']
    with jax.named_scope('clean'):
      return aside(one) + dropped(x, key) @ p['w']

  def eval_fn(p, x):
    with jax.named_scope('clean'):
      return x @ p['w']

  _, _, state = trained(jl.fake_quant(decay=0.0), model_of(train_fn, eval_fn))
  np.testing.assert_allclose(state['jl.fake_quant']['w'], span(dropped(X, KEY)), rtol=1e-5)


def test_one_use_in_both_passes_is_one_however_training_makes_its_inputs():
  def latent(p, x, key=None):  # a variational bottleneck
    mean, size = x @ p['w'], jnp.exp(x @ p['v'] * 0.1)
    z = mean if key is None else mean + size * jax.random.normal(key, mean.shape)
    return z @ p['out']

  _, _, state = trained(jl.fake_quant(decay=0.0), model_of(latent, latent, {**W, 'out': W['w']}))
  assert sorted(state['jl.fake_quant']) == ['out', 'v', 'w']


def test_other_inputs_are_another_use():
  x = {'here': X, 'there': BIG * X}
  model, params, state = trained(
    jl.fake_quant(decay=0.0), model_of(lambda p, x, k: x['there'] @ p['w'], lambda p, x: x['here'] @ p['w']), x
  )
  got = evaluated(model, params, state, x)
  np.testing.assert_array_equal(got, jax.jit(jl.quantize(once))(W, X))


def test_what_only_evaluation_has_takes_the_range_of_the_call_and_is_told():
  def eval_fn(p, x):
    return once(p, BIG * x) + once(p, x)

  hook = jl.fake_quant(decay=0.0)
  bare = model_of(lambda p, x, k: once(p, x), eval_fn)
  model, params, state = trained(hook, bare)
  assert list(state['jl.fake_quant']) == ['w#2']
  got = evaluated(model, params, state)
  np.testing.assert_array_equal(got, jax.jit(jl.quantize(eval_fn, ranges={'w#2': span(X)}))(W, X))
  told = hook.account(jl.contract.Network(model, params, state), bare, X).left
  assert told == 'w: a use that training does not have, by the range of each batch'
  still = model_of(lambda p, x, k: once(p, x), once)
  model, params, state = trained(hook, still)
  assert hook.account(jl.contract.Network(model, params, state), still, X).left == ''


def test_calibrated_ranges_are_those_of_evaluation():
  train_fn, eval_fn, _ = PAIRED['one of its own before']
  _, ranges = observe(eval_fn)(W, X)
  hook = jl.fake_quant(activations=frozen_ranges(ranges))
  model, params, state = trained(hook, model_of(train_fn, eval_fn))
  np.testing.assert_array_equal(evaluated(model, params, state), jax.jit(jl.quantize(eval_fn, ranges=ranges))(W, X))
  network = jl.ptq(jl.contract.Network(model_of(train_fn, eval_fn), dict(W), {}), [X])
  on = jl.fake_quant(activations=ema_ranges(0.0)).model(model_of(train_fn, eval_fn))
  _, state = on.apply(network.params, network.model_state, X, train=True, key=KEY, step=0)
  np.testing.assert_allclose(state['jl.fake_quant']['w'], span(X), rtol=1e-5)


def test_training_is_not_traced_twice_where_no_weight_has_two_uses():
  traced = []

  def apply(p, s, x, *, train, key, step=None):
    traced.append(train)
    return jnp.tanh(x @ p['w']) @ p['v'], s

  model = jl.fake_quant().model(jl.Model(init=lambda key, x: (dict(W), {}), apply=apply))
  params, state = model.init(KEY, X)
  assert traced == [True, False]
  jax.jit(functools.partial(model.apply, train=True, key=None, step=0))(params, state, X)
  assert traced == [True, False, True]
