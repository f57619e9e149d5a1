"""Laws of scales, grids and biases of the integer list: what is folded keeps its value, and what integers cannot hold
is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlite as jl
from jaxlite.deployment.integers import fusing, grids
from jaxlite.deployment.integers.conversion import quantized
from jaxlite.deployment.operations import reference
from jaxlite.deployment.operations.lowering import lower
from jaxlite.deployment.operations.patterns import recognized
from jaxlite.deployment.running import program as programs
from jaxlite.quantization import _numerics as numerics

pytestmark = pytest.mark.unoptimized
RNG = np.random.default_rng(0)


def floats(*shape):
  return RNG.normal(size=shape).astype(np.float32)


def test_a_calibrated_grid_is_trainings_own():
  for bits in (2, 5, 8):
    for low, high in (*RNG.normal(size=(200, 2)) * 10.0 ** RNG.integers(-6, 6, (200, 1)), (0.0, 0.0), (-3.0, -1.0)):
      low, high = sorted((np.float32(low), np.float32(high)))
      ours, theirs = grids.calibrated(low, high, bits), numerics.activation_grid((low, high), bits)
      assert ours.scale == float(theirs.scale)
      assert ours.zero_point == int(theirs.zero)
      assert ours.low - ours.zero_point == int(theirs.low)
      read = grids.grid_of(float(np.float32(1) / np.float32(ours.scale)), float(theirs.low), float(theirs.high))
      assert read._replace(scale=0) == ours._replace(scale=0)
      assert np.float32(1) / np.float32(read.scale) == np.float32(1) / np.float32(ours.scale)


def test_a_bias_that_stands_alone_keeps_its_value():
  """Of a channel of zeros, of a batch norm's factor of 0, of a factor that is nothing beside its bias."""
  rows = np.array([[0, 5, 100, 100], [0, -7, 20, 20]])
  scale, bias = np.array([1.0, 0.0, 1e-30, -0.01]), np.array([0.123456, -2.5, 0.75, 0.25])
  whole, scales, biases = fusing.integers_of(rows, scale, bias, 0.03)
  np.testing.assert_allclose(biases * scales * 0.03, bias, rtol=1e-3)
  np.testing.assert_allclose((biases * scales * 0.03)[:3], bias[:3], rtol=1e-6)
  assert whole.tolist() == [[0, 0, 0, -100], [0, 0, 0, -20]]
  assert (scales > 0).all()


def test_a_factor_of_zero_and_a_negative_one_are_folded():
  w, gamma, beta = floats(5, 4), np.array([0.5, -0.25, 0.0, -2.0], np.float32), floats(4)

  def net(p, x):
    return (x @ p['w']) * p['gamma'] + p['beta']

  x, params = floats(6, 5), {'w': w, 'gamma': gamma, 'beta': beta}
  fake = jl.quantize(net, ranges={'w': (np.float32(-3), np.float32(3))})
  graph = quantized(lower(fake, params, x))
  assert [one.kind for one in graph.operations] == ['quantize', 'quantized_dense']
  np.testing.assert_allclose(reference.run(graph, x), fake(params, x), atol=0.002)  # the bias is on the sum's grid
  np.testing.assert_allclose(reference.run(graph, x)[:, 2], np.broadcast_to(beta[2], 6), rtol=1e-6)


def test_a_grid_whose_step_is_one_is_a_grid_too():
  """Multiplied by 1 is multiplied by nothing, and no longer there when points are looked for."""
  params, x = {'w': floats(5, 4)}, 100 * floats(6, 5)
  fake = jl.quantize(lambda p, x: x @ p['w'], ranges={'w': (np.float32(-128), np.float32(127))})
  graph = quantized(lower(fake, params, x))
  assert [one.kind for one in graph.operations] == ['quantize', 'quantized_dense']
  np.testing.assert_allclose(reference.run(graph, x), fake(params, x), rtol=1e-5)


@pytest.mark.parametrize('bits', [2, 3, 4])
def test_a_bias_beside_few_bits_is_no_coarser_than_its_result_shows(bits):
  """On the grid of a sum of 2 bits by 2 bits, every tenth result would be another."""
  rng, made = (
    np.random.default_rng(bits),
    {'w': ((600, 40), 25), 'b': ((40,), 3), 'v': ((40, 5), 1), 'x': ((2000, 600), 1)},
  )
  params = {name: (rng.normal(size=shape) / by).astype(np.float32) for name, (shape, by) in made.items()}
  x = params.pop('x')
  ranges = {'w': (np.float32(-3), np.float32(3)), 'v': (np.float32(0), np.float32(3))}
  fake = jl.quantize(lambda p, x: jnp.maximum(x @ p['w'] + p['b'], 0) @ p['v'], bits=bits, ranges=ranges)
  plain = lower(fake, params, x)
  graph = quantized(plain)
  one = next(one for one in graph.operations if 'y_scale' in one.attributes)
  steps = [one.outputs[0] for one in plain.operations if one.kind == 'clamp'][-1]
  ours = reference.run(graph, x, keep=True)[one.outputs[0]].astype(int) - one.attributes['y_zero_point']
  off = np.abs(ours - reference.run(plain, x, keep=True)[steps])
  assert off.max() <= 1
  assert (off > 0).mean() < 0.0006


def test_what_follows_a_pool_and_a_reshape_is_folded_too_and_weights_are_shared():
  w, gamma = floats(3, 4), np.array([0.5, 2.0, 0.25, 1.0], np.float32)

  def net(p, x):
    y = (x @ p['w']).reshape(x.shape[0], 4, 4, 4)  # [B, 16, 4]
    y = jax.lax.reduce_window(y, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), 'VALID')
    y = jnp.maximum(y * p['gamma'] + p['beta'], 0)
    y = y.reshape(x.shape[0], 4, 4)
    return y @ p['v'] + y @ p['v']

  x, params = floats(6, 16, 3), {'w': w, 'gamma': gamma, 'beta': floats(4), 'v': floats(4, 2)}
  _, ranges = jl.quantization.observe(net)(params, x)
  graph = quantized(lower(jl.quantize(net, ranges=ranges), params, x))
  kinds = [one.kind for one in graph.operations]
  assert kinds[:2] == ['quantize', 'quantized_dense']
  assert kinds.count('max_pool') == 1
  assert 'relu' not in kinds  # it is the lowest stored value
  np.testing.assert_allclose(reference.run(graph, x), net(params, x), atol=0.03 * np.abs(net(params, x)).max())
  whole = [name for name, array in graph.constants.items() if array.dtype == np.int8]
  assert len(whole) == 2  # of three contractions


def test_a_sum_that_is_read_as_a_float_too_is_rounded_as_it_stands():
  """Scaled once for whoever reads floats and once more onto a grid: no compiler may make one product of the two."""
  params, x = {'w': floats(40, 64), 'v': floats(64, 2)}, floats(4000, 40)

  def net(p, x):
    y = x @ p['w']
    return y, y @ p['v']

  _, ranges = jl.quantization.observe(net)(params, x)
  graph = quantized(lower(jl.quantize(net, ranges=ranges), params, x))
  assert [one.kind for one in graph.operations] == ['quantize', 'quantized_dense', 'quantize', 'quantized_dense']
  for found, wanted in zip(jax.jit(programs.program(graph))(x), reference.run(graph, x), strict=True):
    np.testing.assert_array_equal(found, wanted)


def test_examples_come_in_any_form_and_percentiles_clip():
  params, x = {'w': floats(3, 3)}, floats(64, 3)
  x[0] = 1000.0
  fn = jl.quantize(lambda p, x: x + x @ p['w'], ranges={'w': (np.float32(-1), np.float32(1))})
  graph = lower(lambda p, x: jnp.maximum(fn(p, x), 0) @ p['w'], params, x)
  given = (x, {'input': x}, {'inputs': x, 'labels': x}, [x[:30], {'inputs': x[30:]}], iter([x]))
  plain = [quantized(graph, each, every=True) for each in given]
  assert len({str(each) for each in plain}) == 1
  clipped = quantized(graph, x, every=True, calibrate=jl.quantization.by_percentile(98.0))
  scales = [
    [
      one.attributes['y_scale']
      for one in each.operations
      if one.kind == 'quantized_dense' and 'y_scale' in one.attributes
    ]
    for each in (plain[0], clipped)
  ]
  assert scales[0][0] >= scales[1][0]


# --- refused ----------------------------------------------------------------------------------------------------------


def dense_of(params, **ranges):
  fn = jl.quantize(lambda p, x: x @ p['w'] * p['g'], ranges=ranges or {'w': (np.float32(-1), np.float32(1))})
  return lower(fn, params, floats(2, len(params['w'])))


REFUSED = {
  'a float network': (
    lambda: quantized(lower(lambda p, x: x @ p, floats(3, 2), floats(2, 3))),
    'nothing in this list is quantized',
  ),
  'scales that were multiplied into the weights': (
    lambda: quantized(recognized(dense_of({'w': floats(3, 2), 'g': floats(2)}))),
    'the list of lower, before recognized',
  ),
  'a batch norm that is infinite': (
    lambda: quantized(dense_of({'w': floats(3, 2), 'g': np.array([1, np.inf], np.float32)})),
    'finite scales and biases',
  ),
  'a batch norm that is no number': (
    lambda: quantized(dense_of({'w': floats(3, 2), 'g': np.array([np.nan, 1], np.float32)})),
    'finite scales and biases',
  ),
  'a sum beyond int32': (
    lambda: quantized(dense_of({'w': np.ones((133_000, 1), np.float32), 'g': np.ones(1, np.float32)})),
    r'below 2\^31; that of .* may reach',
  ),
  'a range that was never seen': (lambda: untrained(), 'one of this network was never seen'),
  'stored integers': (
    lambda: quantized(
      lower(
        jl.quantize(lambda p, x: x @ p, real=True, ranges={'arg0': (np.float32(-1), np.float32(1))}),
        floats(3, 2),
        floats(2, 3),
      )
    ),
    'real=False',
  ),
  'bits that are none': (lambda: quantized(dense_of({'w': floats(3, 2), 'g': floats(2)}), bits=9), 'from 2 to 8'),
  'points without examples': (lambda: residual_graph(None), 'give examples'),
  'no examples': (lambda: residual_graph([]), 'no example was given'),
  'examples of nothing but NaN': (lambda: residual_graph(np.full((2, 3), np.nan, np.float32)), 'no example shows'),
  'examples of another name': (lambda: residual_graph({'pictures': floats(2, 3)}), 'examples are the inputs'),
}


def untrained():
  model, x = jl.fake_quant().model(jl.from_function(lambda p, x: x @ p, floats(3, 2))), floats(2, 3)
  known = model.init(jax.random.key(0), x)
  return lower(lambda known, x: model.apply(*known, x, train=False, key=None)[0], known, x)


def residual_graph(examples):
  params = {'w': floats(3, 3)}

  def net(p, x):
    y = x @ p['w']
    return y + jnp.maximum(y @ p['w'], 0)

  return quantized(lower(jl.quantize(net, bits=(8, None)), params, floats(2, 3)), examples, every=True)


@pytest.mark.sampled(4)
@pytest.mark.parametrize('name', REFUSED)
def test_what_integers_cannot_hold_is_refused_in_a_line(name):
  call, match = REFUSED[name]
  with pytest.raises(ValueError, match=match) as caught:
    call()
  assert '\n' not in str(caught.value)


def test_a_network_of_few_bits_that_answers_otherwise_in_integers_is_refused_with_what_helps(tmp_path):
  rng = np.random.default_rng(0)
  sizes = {'a': ((20, 64), 4), 'b': ((64,), 3), 'c': ((64, 64), 6), 'd': ((64,), 3), 'w': ((64, 10), 8)}
  params = {name: (rng.normal(size=size) / by).astype(np.float32) for name, (size, by) in sizes.items()}
  x = rng.normal(size=(600, 20)).astype(np.float32)

  def fn(p, x):
    return jnp.tanh(jnp.tanh(x @ p['a'] + p['b']) @ p['c'] + p['d']) @ p['w']

  network = jl.ptq(jl.Network(jl.from_function(fn, params), params, {}), [x], bits=2)
  labels = np.asarray(network.predict(x)).argmax(1)
  with pytest.raises(ValueError, match=r'of the examples: in so few bits one step weighs much; .*every=True'):
    jl.deploy(network, 'pack', examples=(x, labels), out=tmp_path)
  assert not [*tmp_path.glob('*.jlp')]
