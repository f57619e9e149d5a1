"""Post-training quantization in one call, and where the ranges of activations come from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxlite.adapters import from_linen
from jaxlite.contract import Model, Network
from jaxlite.models import MLP, LeNet5, SmallCNN
from jaxlite.quantization import _calibration as calibration
from jaxlite.quantization import _numerics as numerics
from jaxlite.quantization._account import weight_bits
from jaxlite.quantization._calibration import by_min_max, by_mse, by_percentile, histogram
from jaxlite.quantization._clip_weights import clip_weight
from jaxlite.quantization._ptq import ptq
from jaxlite.quantization._qat import fake_quant
from jaxlite.quantization._quantize import coverage, quantize
from jaxlite.quantization._ranges import dynamic_ranges, ema_ranges, frozen_ranges

pytestmark = pytest.mark.unoptimized

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(8, 6)), jnp.float32)
PARAMS = {
  'a': jnp.asarray(RNG.normal(size=(6, 5)), jnp.float32),
  'b': jnp.asarray(RNG.normal(size=(5, 3)), jnp.float32),
}
BATCHES = [X[:4], X[4:]]
QUICK = {'xla_backend_optimization_level': 0}  # what is tested is not the compiler


def mlp(p, x):
  return jax.nn.relu(x @ p['a']) @ p['b']


def network_of(fn, params):
  model = Model(init=lambda key, x: (params, {}), apply=lambda p, s, x, *, train, key, step=None: (fn(p, x), s))
  return Network(model, params, {})


NET = network_of(mlp, PARAMS)


def ranges_of(network):
  return {name: [float(end) for end in span] for name, span in network.model_state['jl.fake_quant'].items()}


@pytest.mark.unoptimized(False)  # bits are judged
def test_one_call_gives_the_network_that_the_function_form_gives_from_the_ranges_of_all_batches():
  got = ptq(NET, BATCHES, calibrate=by_min_max())
  hidden = jax.nn.relu(X @ PARAMS['a'])
  want = {'a': (X.min(), X.max()), 'b': (hidden.min(), hidden.max())}
  for name, span in ranges_of(got).items():
    np.testing.assert_allclose(span, want[name], rtol=1e-6)
  function = jax.jit(quantize(mlp, ranges=got.model_state['jl.fake_quant']))
  np.testing.assert_array_equal(got.predict(3 * X), function(PARAMS, 3 * X))
  assert got.params is PARAMS
  assert weight_bits(got.model, got.params, got.model_state, X) == {'a': 8, 'b': 8}


def test_calibration_is_the_same_whatever_the_batches_order_or_size():
  one = ranges_of(ptq(NET, BATCHES))
  assert one == ranges_of(ptq(NET, BATCHES[::-1])) == ranges_of(ptq(NET, ({'inputs': batch} for batch in BATCHES)))
  whole = ranges_of(ptq(NET, [X]))
  assert one['a'] == whole['a']
  np.testing.assert_allclose(one['b'], whole['b'], rtol=1e-6)  # a product's last bit may know its batch size


def test_examples_without_weight_do_not_count():
  padded = {'inputs': jnp.concatenate([X, 1e3 * X]), 'weight': jnp.repeat(jnp.array([1.0, 0.0]), 8)}
  assert ranges_of(ptq(NET, [padded])) == ranges_of(ptq(NET, [X]))


def test_ranges_are_frozen_so_one_example_alone_is_what_it_is_in_a_batch():
  run = ptq(NET, BATCHES)
  np.testing.assert_array_equal(run.predict(X)[:1], run.predict(X[:1]))


def test_a_quantized_network_does_not_look_for_the_extremes_of_its_activations():
  net = ptq(NET, BATCHES)
  text = str(jax.make_jaxpr(lambda s, x: net.model.apply(PARAMS, s, x, train=False, key=None))(net.model_state, X))
  assert 'reduce_min' not in text


def test_layers_in_a_scan_are_calibrated_each():
  stack = jnp.stack([jnp.eye(6), 2 * jnp.eye(6), 3 * jnp.eye(6)])
  net = network_of(lambda p, x: lax.scan(lambda c, w: (c @ w, None), x, p['stack'])[0], {'stack': stack})
  got = ptq(net, [X], calibrate=by_min_max()).model_state['jl.fake_quant']['stack']
  np.testing.assert_allclose(got[1], X.max() * np.array([1, 1, 2]), rtol=1e-6)


def test_weights_alone_and_rules():
  alone = ptq(NET, BATCHES, bits=(4, None))
  assert ranges_of(alone) == {}
  np.testing.assert_array_equal(alone.predict(X), jax.jit(quantize(mlp, bits=(4, None)))(PARAMS, X))
  scale = np.abs(PARAMS['a']).max(0) / 7
  hidden = np.maximum(X @ (np.round(PARAMS['a'] / scale) * scale), 0)
  scale = np.abs(PARAMS['b']).max(0) / 7
  np.testing.assert_allclose(alone.predict(X), hidden @ (np.round(PARAMS['b'] / scale) * scale), atol=1e-5)
  ruled = ptq(NET, BATCHES, rules={'a': None, 'b': (4, 8)})
  assert list(ranges_of(ruled)) == ['b']
  rows = coverage(mlp, rules={'a': None, 'b': (4, 8)})(PARAMS, X)
  assert [(row.name, row.bits, row.activation_bits) for row in rows] == [('a', None, None), ('b', 4, 8)]


MODELS = {
  'MLP': lambda: MLP((16,), classes=10),
  'LeNet5': lambda: LeNet5(),
  'SmallCNN with batch norm': lambda: SmallCNN(features=(4, 8), hidden=16, batch_norm=True),
}


@pytest.mark.unoptimized(False)  # bits are judged
@pytest.mark.sampled(1)
@pytest.mark.parametrize('name', MODELS)
def test_fake_is_real_in_the_reference_models(name):
  model = from_linen(MODELS[name]())
  images = RNG.uniform(size=(4, 16, 16, 1)).astype(np.float32)
  float_net = Network(model, *jax.jit(model.init)(KEY, images))
  net = ptq(float_net, [images])
  real = fake_quant(activations=frozen_ranges(net.model_state['jl.fake_quant']), real=True).model(model)
  variants = [net.model, real, model]

  def every(params, state, images):
    return [variant.apply(params, state, images, train=False, key=None)[0] for variant in variants]

  fake, real, plain = jax.jit(every, compiler_options=QUICK)(net.params, net.model_state, images)
  np.testing.assert_array_equal(fake, real)
  np.testing.assert_allclose(fake, plain, atol=0.1 * np.abs(plain).max())
  forward = lambda p, x: model.apply(p, float_net.model_state, x, train=False, key=None)[0]  # noqa: E731
  assert all(row.quantized for row in coverage(forward)(float_net.params, images))


# Calibration, on histograms.


def samples(kind):
  rng = np.random.default_rng(1)
  values = {
    'normal': lambda: rng.normal(size=5000),
    'relu': lambda: np.maximum(rng.normal(size=5000), 0),
    'heavy': lambda: rng.standard_cauchy(size=5000),
    'one value': lambda: np.full(10, 3.0),
    'zeros': lambda: np.zeros(10),
    'negative': lambda: -rng.exponential(size=5000) - 1,
    'tiny and huge': lambda: np.array([1e-38, -1e-30, 3e38, -3e38] * 5),
  }[kind]()
  return values.astype(np.float32)


@pytest.mark.sampled(8)
@pytest.mark.parametrize('kind', ['normal', 'relu', 'heavy', 'one value', 'zeros', 'negative', 'tiny and huge'])
@pytest.mark.parametrize('percent', [100, 99.9, 90, 51])
def test_percentiles_are_numpys_to_one_part_in_128_outwards(kind, percent):
  values = samples(kind)
  low, high = by_percentile(percent)(histogram(jnp.asarray(values)), 8)
  rank = -(-values.size * round(10 * percent) // 1000)  # in whole numbers
  upper, lower = np.sort(values)[rank - 1], np.sort(values)[-rank]
  assert upper <= high <= min(upper + abs(upper) / 128, values.max())
  assert max(lower - abs(lower) / 128, values.min()) <= low <= lower


@pytest.mark.sampled(6)
@pytest.mark.parametrize('kind', ['normal', 'relu', 'heavy', 'negative', 'one value', 'zeros'])
@pytest.mark.parametrize('bits', [8, 4, 2])
def test_the_least_squared_error_is_at_most_that_of_any_other_method_and_near_the_best_of_a_dense_search(kind, bits):
  values = samples(kind)
  seen = histogram(jnp.asarray(values))

  def error(span):
    grid = numerics.activation_grid(tuple(map(jnp.float32, span)), bits)
    steps = np.clip(np.round(values / np.float32(grid.scale)), grid.low, grid.high)
    return float(np.mean((steps * np.float64(grid.scale) - values) ** 2))

  got = error(by_mse()(seen, bits))
  others = [error(method(seen, bits)) for method in (by_min_max(), by_percentile(99.9), by_percentile(99))]
  assert got <= 1.02 * min(others) + 1e-12
  low, high = min(values.min(), 0), max(values.max(), 0)
  dense = min(error((low * a, high * b)) for a in np.linspace(0.02, 1, 12) for b in np.linspace(0.02, 1, 12))
  assert got <= 1.1 * dense + 1e-12


def test_histograms_of_parts_add_up_to_that_of_the_whole_and_skip_what_is_not_finite():
  values = jnp.asarray(samples('normal'))
  whole, parts = histogram(values), calibration.merge(histogram(values[:99]), histogram(values[99:]))
  for one, two in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
    np.testing.assert_array_equal(one, two)
  spoiled = histogram(jnp.concatenate([values, jnp.array([jnp.nan, jnp.inf, -jnp.inf])]))
  for method in (by_min_max(), by_percentile(99), by_mse()):
    assert method(spoiled, 4) == method(whole, 4)
    for nothing in (jnp.zeros(0), jnp.array([jnp.nan, jnp.inf])):  # as `observe` says it
      assert method(histogram(nothing), 4) == (np.inf, -np.inf)


# Weights clipped before they are rounded.


@pytest.mark.sampled(4)
@pytest.mark.parametrize('kind', ['normal', 'heavy', 'one value', 'zeros'])
@pytest.mark.parametrize('bits', [8, 4, 2])
def test_a_clipped_channel_is_near_the_best_of_a_dense_search_and_never_worse_than_it_was(kind, bits):
  w = samples(kind)[: len(samples(kind)) // 2 * 2].reshape(-1, 2)
  most = 2 ** (bits - 1) - 1

  def error(channel, end):  # in float64, of the grid whose largest integer stands for `end`
    step = end / most or 1
    return np.mean((np.clip(np.round(channel / step), -most, most) * step - channel) ** 2)

  got = np.asarray(clip_weight(jnp.asarray(w), (0,), bits), np.float64)
  for channel, clipped in zip(w.astype(np.float64).T, got.T, strict=True):
    largest = np.abs(channel).max()
    own = error(channel, np.abs(clipped).max())
    assert own <= error(channel, largest) * (1 + 1e-6)
    assert own <= 1.02 * min(error(channel, largest * share) for share in np.linspace(0.05, 1, 500)) + 1e-12
    inside = np.abs(channel) < np.abs(clipped).max()
    np.testing.assert_array_equal(clipped[inside], channel[inside])


def test_clipping_leaves_what_is_not_finite_and_the_dtype():
  w = jnp.asarray([0.0, jnp.nan, jnp.inf, 9.0, *RNG.normal(size=300)], jnp.bfloat16)[:, None]
  got = clip_weight(w, (0,), 2)
  assert got.dtype == w.dtype
  np.testing.assert_array_equal(np.float32(got[:3]), np.float32(w[:3]))
  assert 0 < got[3] < 9
  assert clip_weight(jnp.zeros((0, 3)), (0,), 4).shape == (0, 3)


def test_each_output_channel_is_clipped_whatever_the_layout_and_what_is_normalized_stays():
  wide = jnp.asarray(RNG.standard_t(3, size=(40, 6)), jnp.float32)

  def forward(p, x):
    normed = p['normed'] / jnp.linalg.norm(p['normed'], axis=0)
    return x @ p['plain'] + x @ p['turned'].T + x @ normed + jnp.tanh(x) @ p['twice'] + x @ p['twice']

  params = dict.fromkeys(('plain', 'normed', 'twice', 'float'), wide) | {'turned': wide.T}
  network = network_of(lambda p, x: forward(p, x) + x @ p['float'], params)
  got = ptq(network, [RNG.normal(size=(4, 40)).astype(np.float32)], bits=3, rules={'float': None}, clip=True).params
  want = clip_weight(wide, (0,), 3)
  assert not np.array_equal(want, wide)
  for name in ('plain', 'twice'):
    np.testing.assert_array_equal(got[name], want)
  np.testing.assert_array_equal(got['turned'], want.T)
  for name in ('normed', 'float'):
    np.testing.assert_array_equal(got[name], wide)


@pytest.mark.unoptimized(False)  # bits are judged
def test_clipping_brings_a_network_of_few_bits_nearer_to_its_float_self_and_fake_stays_real():
  params = {'a': RNG.normal(size=(40, 30)).astype(np.float32), 'b': RNG.normal(size=(30, 5)).astype(np.float32)}
  x = RNG.normal(size=(16, 40)).astype(np.float32)
  errors = []
  for clip in (False, True):
    net = ptq(network_of(mlp, params), [x], bits=(2, 8), clip=clip)
    ranges = net.model_state['jl.fake_quant']
    fake, real = (
      jax.jit(quantize(mlp, bits=(2, 8), ranges=ranges, real=real))(net.params, x) for real in (False, True)
    )
    np.testing.assert_array_equal(fake, real)
    np.testing.assert_array_equal(fake, net.predict(x))
    errors.append(float(np.mean((fake - mlp(params, x)) ** 2)))
  assert errors[1] < errors[0]


# Where fake_quant takes its ranges from.


def trained(activations, steps, batches=(X, 2 * X)):
  """The model, its params, and its state after some train steps."""
  model = fake_quant(activations=activations).model(NET.model)
  params, state = model.init(KEY, X)
  run = jax.jit(lambda s, x, t: model.apply(params, s, x, train=True, key=None, step=t)[1], compiler_options=QUICK)
  for step in range(steps):
    state = run(state, batches[step % 2], step)
  return model, params, state


def outputs(model, params, state, x, train):
  run = jax.jit(lambda p, s, x: model.apply(p, s, x, train=train, key=None, step=99), compiler_options=QUICK)
  return run(params, state, x)


def test_an_average_stands_still_from_a_step_on():
  _, _, moved = trained(ema_ranges(0.5), 4)
  _, _, before = trained(ema_ranges(0.5), 2)
  model, params, still = trained(ema_ranges(0.5, freeze=2), 4)
  for name in ('a', 'b'):
    np.testing.assert_array_equal(still['jl.fake_quant'][name], before['jl.fake_quant'][name])
    assert not np.array_equal(moved['jl.fake_quant'][name], before['jl.fake_quant'][name])
  train, deployed = (outputs(model, params, still, 5 * X, train)[0] for train in (True, False))
  np.testing.assert_array_equal(train, deployed)  # the same grids


def test_what_was_never_seen_before_the_freeze_is_adopted_even_then():
  model, params, state = trained(ema_ranges(0.5, freeze=0), 1)
  np.testing.assert_allclose(state['jl.fake_quant']['a'], (X.min(), X.max()), rtol=1e-6)
  _, later = outputs(model, params, state, 9 * X, True)
  np.testing.assert_array_equal(later['jl.fake_quant']['a'], state['jl.fake_quant']['a'])


def test_dynamic_ranges_are_those_of_the_call_and_keep_no_state():
  model, params, state = trained(dynamic_ranges(), 3)
  assert state['jl.fake_quant'] == {}
  for train in (True, False):
    out, _ = outputs(model, params, state, 3 * X, train)
    np.testing.assert_allclose(out, jax.jit(quantize(mlp))(PARAMS, 3 * X), atol=1e-6)


def test_frozen_ranges_do_not_move_in_training():
  ranges = ptq(NET, BATCHES).model_state['jl.fake_quant']
  model, params, state = trained(frozen_ranges(ranges), 2)
  np.testing.assert_array_equal(state['jl.fake_quant']['a'], ranges['a'])
  out, _ = outputs(model, params, state, 2 * X, True)
  np.testing.assert_allclose(out, jax.jit(quantize(mlp, ranges=ranges))(PARAMS, 2 * X), atol=1e-6)


def test_a_network_that_was_quantized_can_be_trained_on():
  done = ptq(NET, BATCHES)
  model = fake_quant(activations=frozen_ranges(done.model_state['jl.fake_quant'])).model(NET.model)
  loss = lambda p: model.apply(p, done.model_state, X, train=True, key=None)[0].sum()  # noqa: E731
  gradient = jax.jit(jax.grad(loss), compiler_options=QUICK)(done.params)
  assert all((np.asarray(leaf) != 0).any() for leaf in jax.tree.leaves(gradient))


RARE = network_of(lambda p, x: lax.cond(x.sum() > 1e9, lambda x: x @ p['a'], lambda x: x[:, :5], x) @ p['b'], PARAMS)
WRONG = {
  'no batches': (lambda: ptq(NET, []), 'no calibration batches'),
  'a generator that is spent': (lambda: ptq(NET, iter(())), 'no calibration batches'),
  'a branch that no batch reaches': (lambda: ptq(RARE, [X]), 'no activation of a was seen'),
  'an empty batch': (lambda: ptq(NET, [X[:0]]), 'no activation of a was seen'),
  'integers of integers': (lambda: ptq(ptq(NET, [X]), [X]), 'a is quantized already by another part'),
  'nine bits': (lambda: ptq(NET, [X], bits=9), 'from 2 to 8, got 9'),
  'weights left float': (lambda: ptq(NET, [X], bits=(None, 8)), 'from 2 to 8, got (None, 8)'),
  'a rule for nothing': (lambda: ptq(NET, [X], rules={'c': 4}), "'c' matches no parameter"),
  'a half of nothing': (lambda: by_percentile(50), 'above 50 and at most 100'),
  'a decay and a source': (lambda: fake_quant(decay=0.9, activations=dynamic_ranges()), 'give one of them'),
  'a freeze before the start': (lambda: ema_ranges(freeze=-1), 'counts optimizer steps'),
  'no ranges': (lambda: frozen_ranges({}), 'holds no range'),
  'a range of nothing': (lambda: frozen_ranges({'a': (np.inf, -np.inf)}), 'no activation of a was seen'),
  'a range too few': (lambda: trained(frozen_ranges({'a': (0, 1)}), 0), 'no range for b'),
  'a range too many': (
    lambda: trained(frozen_ranges(dict.fromkeys('abc', (0, 1))), 0), "names 'c', which is no site"
  ),
  'a range a layer where there is one': (
    lambda: trained(frozen_ranges(dict.fromkeys('ab', (np.zeros(2), np.ones(2)))), 0), 'float32[] each end, got [2]'
  ),
}  # fmt: skip


@pytest.mark.parametrize('name', WRONG)
def test_a_mistake_is_told_in_one_line(name):
  do, words = WRONG[name]
  with pytest.raises(ValueError) as told:
    do()
  assert words in str(told.value)
  assert '\n' not in str(told.value)


def test_what_has_no_values_is_no_network():
  with pytest.raises(TypeError, match='ptq takes a Network, a model with its values'):
    ptq(from_linen(MLP((4,))), [jnp.ones((1, 2))])


def test_a_method_that_is_none_is_told():
  with pytest.raises(TypeError, match='by_min_max'):
    ptq(NET, [X], calibrate='percentile')


@pytest.mark.parametrize('answer', [(np.nan, 1.0), (1.0, -1.0), (-np.inf, np.inf), 1.0, None, np.zeros((9, 9))])
def test_a_method_that_answers_with_no_range_is_told_as_that(answer):
  with pytest.raises(ValueError, match=r'^ptq: calibrate answers with \(lowest, highest\)[^\n]*got [^\n]*$'):
    ptq(NET, [X], calibrate=lambda seen, bits: answer)
  ptq(NET, [X], calibrate=lambda seen, bits: [jnp.float32(-1), np.float64(1)])
