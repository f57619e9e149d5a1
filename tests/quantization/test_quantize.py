"""The function form and the hook, as a user meets them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxlite.contract import Model, chain, reparam, with_const
from jaxlite.quantization._account import has_integer_weights, weight_bits
from jaxlite.quantization._lsq import lsq
from jaxlite.quantization._qat import fake_quant
from jaxlite.quantization._quantize import coverage, observe, quantize

pytestmark = pytest.mark.unoptimized

KEY = jax.random.key(0)
X = jnp.asarray(np.random.default_rng(0).normal(size=(8, 6)), jnp.float32)


def mlp(params, x):
  hidden = jax.nn.relu(x @ params['Dense_0']['kernel'] + params['Dense_0']['bias'])
  return hidden @ params['Dense_1']['kernel'] + params['Dense_1']['bias']


def init(key, inputs):
  one, two = jax.random.split(key)
  params = {
    'Dense_0': {'kernel': jax.random.normal(one, (6, 5)), 'bias': jnp.ones(5)},
    'Dense_1': {'kernel': jax.random.normal(two, (5, 3)), 'bias': jnp.zeros(3)},
  }
  return params, {'batch_stats': {'mean': jnp.zeros(6)}}


def apply(params, state, x, *, train, key, step=None):
  mean = state['batch_stats']['mean']
  x = x - mean
  if train:
    state = {**state, 'batch_stats': {'mean': 0.9 * mean + 0.1 * x.mean(0)}}
    if key is not None:
      x = x * jax.random.bernoulli(key, 0.9, x.shape)
  return mlp(params, x), state


BASE = Model(init=init, apply=apply)
SITES = ['Dense_0/kernel', 'Dense_1/kernel']


@functools.partial(jax.jit, static_argnames=('train',))
def plain_run(params, state, x, *, train, key=None, step=None):
  return apply(params, state, x, train=train, key=key, step=step)


def made(hook=None, base=BASE):
  """A wrapped model with its values, its apply compiled."""
  model = (hook or fake_quant()).model(base)
  params, state = model.init(KEY, X)
  run = jax.jit(lambda p, s, x, train=True, key=None, step=None: model.apply(p, s, x, train=train, key=key, step=step),
                static_argnames='train')  # fmt: skip
  return model, params, state, run


def test_ranges_are_arrays_named_by_their_weights_and_begin_unseen():
  _, _, state, _ = made()
  assert sorted(state['jl.fake_quant']) == SITES
  assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(state['jl.fake_quant']))
  assert [float(end) for end in state['jl.fake_quant'][SITES[0]]] == [np.inf, -np.inf]


def test_training_adopts_the_first_range_then_averages_and_evaluation_leaves_it():
  _, params, state, run = made(fake_quant(decay=0.75))
  _, first = run(params, state, X)
  low, high = first['jl.fake_quant']['Dense_0/kernel']
  np.testing.assert_allclose([low, high], [X.min(), X.max()], rtol=1e-6)
  other = {**first, 'batch_stats': state['batch_stats']}
  _, second = run(params, other, 3 * X)
  np.testing.assert_allclose(second['jl.fake_quant']['Dense_0/kernel'], [1.5 * low, 1.5 * high], rtol=1e-6)
  _, third = run(params, second, X, train=False)
  for one, two in zip(jax.tree.leaves(second), jax.tree.leaves(third), strict=True):
    np.testing.assert_array_equal(one, two)


@pytest.mark.unoptimized(False)  # bits are judged
def test_evaluation_is_what_the_function_form_gives_from_the_same_ranges_in_real_integers():
  _, params, state, run = made()
  _, state = run(params, state, X, key=KEY)
  fake, _ = run(params, state, 2 * X, train=False)
  ranges = state.pop('jl.fake_quant')
  forward = lambda p, x: apply(p, state, x, train=False, key=None)[0]  # noqa: E731
  np.testing.assert_array_equal(fake, jax.jit(quantize(forward, ranges=ranges, real=True))(params, 2 * X))
  assert not np.array_equal(fake, jax.jit(quantize(forward))(params, 2 * X))  # those clip: the ranges were used


def test_before_any_training_evaluation_takes_the_range_of_the_batch():
  _, params, state, run = made()
  out, after = run(params, state, X, train=False)
  np.testing.assert_array_equal(out, jax.jit(quantize(mlp))(params, X))
  assert not np.isfinite(after['jl.fake_quant'][SITES[0]][0])


def test_before_begin_training_is_float_ranges_are_collected_and_one_trace_serves():
  _, params, state, run = made(fake_quant(begin=3))
  float_out, _ = plain_run(params, {'batch_stats': state['batch_stats']}, X, train=True)
  before, seen = run(params, state, X, step=jnp.int32(2))
  after, _ = run(params, state, X, step=jnp.int32(3))
  np.testing.assert_allclose(before, float_out, atol=1e-6)
  assert np.isfinite(seen['jl.fake_quant'][SITES[0]]).all()
  np.testing.assert_array_equal(after, jax.jit(quantize(mlp))(params, X))
  assert run._cache_size() == 1
  early, _ = run(params, seen, X, train=False, step=jnp.int32(0))  # evaluation shows what will be deployed
  assert np.abs(early - float_out).max() > 1e-5


def test_gradients_before_begin_are_the_float_ones():
  model, params, state, _ = made(fake_quant(begin=3))
  loss = lambda p, m, s: (m.apply(p, s, X, train=True, key=None, step=jnp.int32(0))[0] ** 2).sum()  # noqa: E731
  got = jax.jit(jax.grad(lambda p: loss(p, model, state)))(params)
  want = jax.jit(jax.grad(lambda p: loss(p, BASE, state)))(params)
  for one, two in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    np.testing.assert_allclose(one, two, atol=1e-4)


def test_the_rest_of_the_state_and_randomness_are_the_inner_models():
  _, params, state, run = made()
  state['jl.other'] = {'count': jnp.int32(7)}
  _, got = run(params, state, X, key=KEY)
  inner = {name: state[name] for name in ('batch_stats', 'jl.other')}
  _, want = plain_run(params, inner, X, train=True, key=KEY)
  np.testing.assert_array_equal(got['batch_stats']['mean'], want['batch_stats']['mean'])
  assert got['jl.other']['count'] == 7
  ranges = lambda state: np.asarray(state['jl.fake_quant']['Dense_0/kernel'])  # noqa: E731
  dropped = X * jax.random.bernoulli(KEY, 0.9, X.shape)
  np.testing.assert_allclose(ranges(got), [dropped.min(), dropped.max()], rtol=1e-6)


def test_rules_choose_bits_by_path_the_first_match_decides():
  _, params, state, run = made(fake_quant(bits=8, rules={'Dense_0': None, 'kernel': 4}))
  assert list(state['jl.fake_quant']) == ['Dense_1/kernel']
  out, _ = run(params, state, X)
  want = jax.jit(quantize(mlp, bits=4, rules={'Dense_0': None}))(params, X)
  np.testing.assert_array_equal(out, want)
  model = fake_quant(rules={'Dense_1': 4}).model(BASE)
  bits = weight_bits(model, *model.init(KEY, X), X)
  assert bits == {'Dense_0/kernel': 8, 'Dense_1/kernel': 4}
  assert weight_bits(BASE, *BASE.init(KEY, X), X) == {}
  for one in (model, lsq(bits=4).model(BASE), BASE):  # a report traces only what has some
    forward = jax.make_jaxpr(jax.jit(lambda p, s, x, one=one: one.apply(p, s, x, train=False, key=None)[0]))
    bits = weight_bits(one, *one.init(KEY, X), X)
    assert has_integer_weights(forward(*one.init(KEY, X), X)) == bool(bits)


def frozen(model):
  """Moves the first layer to where frozen leaves live."""

  def init(key, params, state):
    return {'Dense_1': params['Dense_1']}, with_const(state, 'freeze', {'Dense_0': params['Dense_0']})

  def view(params, state, **_):
    return {**params, **state['jl.const']['freeze']}

  return reparam(model, 'freeze', init, view)


def averaged(model):
  """Runs on what a hook keeps in the state instead of the live weights."""

  def init(key, params, state):
    return params, {**state, 'jl.average': params}

  return reparam(model, 'average', init, lambda params, state, **_: state['jl.average'])


def masked(model):
  def init(key, params, state):
    return params, {**state, 'jl.ste': jax.tree.map(lambda p: jnp.float32(p > 0), params)}

  return reparam(model, 'ste', init, lambda params, state, **_: jax.tree.map(jnp.multiply, params, state['jl.ste']))


@pytest.mark.parametrize('view', [frozen, averaged, masked])
def test_a_weight_has_one_name_live_frozen_averaged_or_masked(view):
  model = fake_quant().model(view(BASE))
  params, state = model.init(KEY, X)
  assert sorted(state['jl.fake_quant']) == SITES
  assert weight_bits(model, params, state, X) == dict.fromkeys(SITES, 8)


def test_pruned_weights_stay_exactly_zero_and_get_no_gradient_through_a_mask():
  model = fake_quant().model(masked(BASE))
  params, state = model.init(KEY, X)
  loss = lambda p: (model.apply(p, state, X, train=True, key=None)[0] ** 2).sum()  # noqa: E731
  gradient = jax.jit(jax.grad(loss))(params)['Dense_0']['kernel']
  mask = np.asarray(params['Dense_0']['kernel'] > 0)
  assert (np.asarray(gradient)[~mask] == 0).all()
  assert (np.asarray(gradient)[mask] != 0).any()


def test_export_strips_the_ranges_and_leaves_the_weights():
  model, params, state, _ = made()
  exported, rest = model.export(params, state)
  assert exported is params
  assert 'jl.fake_quant' not in rest
  assert 'batch_stats' in rest


def test_after_reaches_the_inner_model_and_keeps_the_ranges():
  base = BASE._replace(after=lambda params, state, step: {**state, 'steps': step})
  model, params, state, _ = made(base=base)
  new = model.after(params, state, 5)
  assert new['steps'] == 5
  assert new['jl.fake_quant'] is state['jl.fake_quant']


def test_vmapped_models_keep_ranges_of_their_own():
  model, params, state, _ = made()
  pair = lambda tree: jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), tree)  # noqa: E731
  run = jax.vmap(lambda p, s, x: model.apply(p, s, x, train=True, key=None, step=0))
  _, new = jax.jit(run)(pair(params), pair(state), jnp.stack([X, 2 * X]))
  low = new['jl.fake_quant']['Dense_0/kernel'][0]
  np.testing.assert_allclose(low, [X.min(), 2 * X.min()], rtol=1e-6)


def test_a_nan_batch_does_not_poison_the_ranges():
  _, params, state, run = made()
  _, state = run(params, state, X)
  kept = state['jl.fake_quant']['Dense_0/kernel']
  _, state = run(params, state, jnp.full_like(X, jnp.nan))
  np.testing.assert_array_equal(state['jl.fake_quant']['Dense_0/kernel'], kept)


def test_a_float_trace_before_or_after_changes_nothing():
  params, _ = init(KEY, X)
  dense = jax.jit(lambda p, x: jax.jit(mlp)(p, x))
  first_float = np.asarray(dense(params, X))
  quantized = np.asarray(quantize(dense)(params, X))
  assert not np.array_equal(quantized, first_float)
  np.testing.assert_array_equal(dense(params, X), first_float)
  jax.clear_caches()
  np.testing.assert_array_equal(quantize(dense)(params, X), quantized)
  np.testing.assert_array_equal(dense(params, X), first_float)


def test_weights_may_stand_anywhere():
  w, v = jnp.ones((6, 4)), jnp.ones((4, 2))
  fn = lambda x, w, v, *, scale: x @ w @ v * scale  # noqa: E731
  rows = coverage(fn, weights=(1, 2))(X, w, v, scale=2.0)
  assert [row.name for row in rows] == ['arg1', 'arg2']
  assert [row.name for row in coverage(fn, weights=2)(X, w, v, scale=2.0)] == ['', 'arg2']


def test_coverage_names_everything_and_its_shares_sum_to_one():
  def attend(p, x):
    q, k = x @ p['q'], x @ p['k']
    return jax.nn.softmax(q @ k.T) @ x @ jnp.ones((6, 2)) + (p['q'] @ p['m'])[:8, :2].sum()

  params = {'q': jnp.ones((6, 4)), 'k': jnp.ones((6, 4)), 'm': jnp.ones((4, 4))}
  rows = coverage(attend, rules={'k': None})(params, X)
  told = {(row.name, row.bits, row.why) for row in rows}
  assert told == {
    ('q', 8, ''),
    ('k', None, 'kept float by rule'),
    ('', None, 'both operands are activations'),
    ('', None, 'its fixed operand is no parameter'),
    ('m+q', None, 'both operands are weights: it can be folded'),
  }
  assert sum(row.share for row in rows) == pytest.approx(1)
  shapes = jax.eval_shape(lambda: (params, X))
  assert coverage(attend, rules={'k': None})(*shapes) == rows  # nothing needs to be run for it


@pytest.mark.parametrize('dtype', ['int32', 'complex64', 'float8_e4m3fn'])
def test_what_is_no_wide_float_stays_as_it_is(dtype):
  (row,) = coverage(lambda w, x: jax.lax.dot(x, w))(*(jax.ShapeDtypeStruct((4, 4), dtype),) * 2)
  assert not row.quantized
  assert dtype in row.why


def test_observed_ranges_make_a_quantized_function_that_does_not_look_at_its_batch():
  params, _ = init(KEY, X)
  out, ranges = observe(mlp)(params, X)
  np.testing.assert_array_equal(out, mlp(params, X))
  run = jax.jit(quantize(mlp, ranges=ranges))
  np.testing.assert_allclose(run(params, X)[:1], run(params, X[:1]), atol=1e-6)


CLOSED = jnp.ones((6, 2))
WRONG = {
  # name: (what is done, words of the message)
  'one bit': (lambda: quantize(mlp, bits=1), 'from 2 to 8, got 1'),
  'half a bit': (lambda: fake_quant(bits=2.5), 'from 2 to 8, got 2.5'),
  'truth for bits': (lambda: fake_quant(bits=True), 'from 2 to 8'),
  'bits of a rule': (lambda: fake_quant(rules={'Dense_0': 16}), "rule 'Dense_0'"),
  'decay of one': (lambda: fake_quant(decay=1.0), 'below 1'),
  'begin before the start': (lambda: fake_quant(begin=-1), 'optimizer steps'),
  'weights in a closure': (lambda: quantize(lambda x: x @ CLOSED)(X), 'pass the weights as arguments'),
  'nothing to contract': (lambda: quantize(lambda w, x: w * x)(1.0, X), 'no contraction at all'),
  'a rule for nothing': (
    lambda: fake_quant(rules={'Dense_7': 4}).model(BASE).init(KEY, X),
    "'Dense_7' matches no parameter; nearest paths: Dense_",
  ),
  'a rule for a bias': (lambda: quantize(mlp, rules={'bias': 4})(init(KEY, X)[0], X), "'bias' matches no parameter"),
  'a rule for what cannot be': (
    lambda: quantize(lambda p, x: x @ p['w'] + (p['a'] @ p['b']).sum(), rules={'a': 4})(
      {'w': CLOSED, 'a': jnp.ones((2, 2)), 'b': jnp.ones((2, 2))}, X
    ),
    'which stays float: both operands are weights',
  ),
  'no regular expression': (lambda: quantize(mlp, rules={'(': 4})(init(KEY, X)[0], X), 'no regular expression'),
  'ranges of another function': (
    lambda: quantize(mlp, ranges={'Dense_9/kernel': (0, 1)})(init(KEY, X)[0], X),
    "ranges name 'Dense_9/kernel', which is no site",
  ),
  'ranges the wrong way round': (
    lambda: quantize(mlp, ranges={'Dense_0/kernel': (3.0, -1.0)}),
    "a range is (lowest, highest), both finite; 'Dense_0/kernel' has 3.0 to -1.0",
  ),
  'ranges that are no numbers': (lambda: quantize(mlp, ranges={'w': (np.nan, 1.0)}), "both finite; 'w' has nan to 1.0"),
  'ranges without end': (lambda: quantize(mlp, ranges={'w': (-np.inf, np.inf)}), 'both finite'),
  'a range of three': (lambda: quantize(mlp, ranges={'w': (-1.0, 0.0, 1.0)}), 'a range is (lowest, highest)'),
  'a range of one': (lambda: quantize(mlp, ranges={'w': 3.0}), "a range is (lowest, highest); 'w' has 3.0"),
  'words for weights': (lambda: quantize(mlp, weights='params')(init(KEY, X)[0], X), 'weights= is the position'),
  'no weights': (lambda: quantize(mlp, weights=None)(init(KEY, X)[0], X), 'weights= is the position'),
  'an argument that is not there': (lambda: quantize(mlp, weights=2)(init(KEY, X)[0], X), 'correct weights='),
  'a state of another recipe': (
    lambda: fake_quant().model(BASE).apply(*BASE.init(KEY, X), X, train=False, key=None),
    'needs its ranges',
  ),
  'two of one name': (lambda: chain(fake_quant(), fake_quant()), 'stands twice'),
}


@pytest.mark.parametrize(
  'make, words',
  [
    (lambda: quantize(3), 'quantize takes a function of pytrees of arrays, or a Network; got int'),
    (lambda: observe(None), 'observe takes a function'),
    (lambda: coverage(nn.Dense(3)), 'got Dense: give its apply'),
    (lambda: quantize(mlp, rules=['w'])(init(KEY, X)[0], X), 'rules are {regular expression: bits'),
    (lambda: quantize(mlp, rules='w')(init(KEY, X)[0], X), "got 'w'"),
  ],
)
def test_what_is_no_function_and_no_rule_is_refused_in_one_line(make, words):
  with pytest.raises(TypeError) as told:
    make()
  assert words in str(told.value)
  assert '\n' not in str(told.value)


def test_a_site_that_was_never_seen_takes_the_range_of_the_call():
  params = init(KEY, X)[0]
  unseen = {'Dense_0/kernel': (np.inf, -np.inf)}
  np.testing.assert_array_equal(quantize(mlp, ranges=unseen)(params, X), quantize(mlp)(params, X))


@pytest.mark.parametrize('name', WRONG)
def test_a_mistake_is_told_in_one_line(name):
  do, words = WRONG[name]
  with pytest.raises(ValueError) as told:
    do()
  assert words in str(told.value)
  assert '\n' not in str(told.value)
