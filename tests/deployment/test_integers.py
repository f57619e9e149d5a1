"""Laws of the integer list: its integers are those of fake quantization up to a step, and the same in NumPy and in JAX,
eager or compiled; what integers cannot hold is refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import jaxlite as jl
from jaxlite import models
from jaxlite.deployment import fusing, grids, reference
from jaxlite.deployment import program as programs
from jaxlite.deployment.integers import layers, quantized
from jaxlite.deployment.lowering import lower
from jaxlite.deployment.patterns import recognized
from jaxlite.quantization import _numerics as numerics

pytestmark = pytest.mark.unoptimized
RNG = np.random.default_rng(0)


def floats(*shape):
  return RNG.normal(size=shape).astype(np.float32)


class Plain(nn.Module):
  """Convolution, batch norm, pool, residual and mean, as small networks have them; odd shapes."""

  concat: bool = False
  depthwise: bool = False

  @nn.compact
  def __call__(self, x, train=False):
    norm = functools.partial(nn.BatchNorm, use_running_average=not train)
    x = nn.relu(norm()(nn.Conv(6, (3, 3))(x)))
    x = nn.max_pool(x, (2, 2), (2, 2))
    y = norm()(nn.Conv(6, (3, 3), feature_group_count=6 if self.depthwise else 1)(x))
    x = jnp.concatenate([x, nn.relu6(y)], -1) if self.concat else nn.relu(x + y)
    x = norm()(nn.Conv(5, (1, 1), strides=(2, 2), use_bias=False)(x))  # linear, and read twice
    x = x + nn.Conv(5, (3, 3))(x)
    return nn.Dense(7)(x.mean((1, 2)))


def equinox_net():
  import equinox as eqx

  class Net(eqx.Module):
    convs: list
    last: eqx.nn.Linear

    def __init__(self, key):
      self.convs = [eqx.nn.Conv2d(3, 8, 3, 2, 1, key=key), eqx.nn.Conv2d(8, 8, 3, 1, 1, groups=2, key=key)]
      self.last = eqx.nn.Linear(128, 5, key=key)

    def __call__(self, x):
      x = jax.nn.relu(self.convs[0](x))
      return self.last((x + self.convs[1](x)).reshape(-1))

  return Net(jax.random.key(0))


TOKENS = RNG.integers(1, 50, (8, 9)).astype(np.int32)
CASES = {
  'mlp': (lambda: models.MLP((16, 9)), floats(8, 5, 5, 1)),
  'small cnn': (models.SmallCNN, floats(8, 14, 14, 1)),
  'residual': (Plain, floats(8, 9, 11, 3)),
  'depthwise': (lambda: Plain(depthwise=True), floats(8, 9, 11, 3)),
  'concat': (lambda: Plain(concat=True), floats(8, 9, 11, 3)),
  'channels first': (equinox_net, floats(8, 3, 8, 8)),
  'text': (lambda: models.EmbeddingBag(50, 3), TOKENS),
  'vit': (lambda: models.ViT(patch=4, width=16, layers=1, heads=2), floats(8, 8, 8, 1)),
}
WHOLE = ('mlp', 'small cnn', 'residual', 'depthwise', 'concat', 'channels first')  # no float from input to logits


def trained(model, inputs, hook, *, steps=2, moved=True):
  """(forward, its constants) of a network with ranges, statistics and factors of both signs."""
  model = hook.model(model if isinstance(model, jl.Model) else jl.adapt(model))
  params, state = model.init(jax.random.key(0), inputs)
  if moved:  # batch norms are not the identity, and some turn the sign
    draw = np.random.default_rng(1)
    shift = lambda leaf: leaf + draw.uniform(-1.5, 0.5, leaf.shape).astype(leaf.dtype)  # noqa: E731
    params = _shifted(params, shift)
  train = jax.jit(lambda params, state, x: model.apply(params, state, x, train=True, key=jax.random.key(0), step=0)[1])
  for _ in range(steps):
    state = train(params, state, inputs)
  return lambda known, x: model.apply(*known, x, train=False, key=None)[0], (params, state)


def _shifted(params, shift):
  def one(path, leaf):
    return shift(leaf) if jax.tree_util.keystr(path).endswith("'scale']") else leaf

  return jax.tree_util.tree_map_with_path(one, params)


@functools.cache
def case(name, bits=8, every=True):
  make, inputs = CASES[name]
  fn, known = trained(make(), inputs, jl.fake_quant(bits, attention=name == 'vit'))
  graph = lower(fn, known, inputs)
  return quantized(graph, inputs, every=every), np.asarray(jax.jit(fn)(known, inputs)), inputs


def same_integers(graph, inputs, *, whole):
  """Every integer of every layer, in NumPy and in JAX; of what stands behind floats, given the same operands."""
  wanted = reference.run(graph, inputs, keep=True)
  compiled = jax.jit(lambda x: programs.traced(graph, x))(inputs)
  eager = programs.traced(graph, inputs)
  compared = 0
  for one in graph.operations:
    name = one.outputs[0]
    if wanted[name].dtype != np.int8:
      continue
    compared += 1
    if whole:
      np.testing.assert_array_equal(compiled[name], wanted[name], err_msg=str(one))
      np.testing.assert_array_equal(eager[name], wanted[name], err_msg=str(one))
    else:
      np.testing.assert_array_equal(single(graph, one, wanted), wanted[name], err_msg=str(one))
  return compared


def single(graph, one, values):
  """One operation, given NumPy's operands."""
  reading = [name for name in one.inputs if name not in graph.constants]
  lone = graph._replace(inputs=tuple(dict.fromkeys(reading)), outputs=one.outputs, operations=(one,))
  return jax.jit(programs.program(lone))({name: values[name] for name in lone.inputs})


@pytest.mark.parametrize('every', [False, True])
@pytest.mark.parametrize('name', CASES)
def test_integers_are_those_of_numpy_eager_and_compiled(name, every):
  graph, wanted, inputs = case(name, every=every)
  assert same_integers(graph, inputs, whole=every and name in WHOLE)
  found = reference.run(graph, inputs)
  assert np.abs(found - wanted).max() < 0.06 * np.abs(wanted).max()
  assert reference.run(graph, inputs[:1]).shape == wanted[:1].shape


@pytest.mark.parametrize('name', WHOLE)
def test_between_the_input_and_the_logits_nothing_is_a_float(name):
  graph, *_ = case(name)
  found = {one.kind for one in graph.operations if graph.values[one.outputs[0]].dtype != np.int8}
  assert found <= {'quantized_dense', 'quantized_conv', 'reshape'}
  assert all(layer.result == 'int8' or layer.why == 'a result of the network' for layer in layers(graph))


def test_what_stays_float_is_told_with_why():
  graph, *_ = case('residual', every=False)
  told = {layer.kernel: layer.why for layer in layers(graph)}
  assert 'no range' in told['add']
  assert 'no range' in told['mean']
  graph, *_ = case('vit')
  assert [layer.kernel for layer in layers(graph)].count('quantized_dot') == 2
  assert [layer.why for layer in layers(graph) if layer.kernel == 'softmax'] == ['softmax is computed in floats']


@pytest.mark.parametrize('bits', [2, 4])
@pytest.mark.parametrize('name', ['mlp', 'residual'])
def test_few_bits_are_exact_too(name, bits):
  graph, wanted, inputs = case(name, bits)
  assert same_integers(graph, inputs, whole=True)
  assert max(layer.weight_bits or 0 for layer in layers(graph)) == bits
  first = next(one for one in graph.operations if one.kind == 'quantize')
  assert first.attributes['high'] - first.attributes['low'] == 2**bits - 1
  assert np.isfinite(reference.run(graph, inputs)).all()
  assert reference.run(graph, inputs).shape == wanted.shape


def test_where_fake_quantization_has_a_point_the_integers_are_its_own_up_to_a_step():
  """Contraction by contraction: the integers that fake quantization feeds the next one, and those of the list."""
  make, inputs = CASES['small cnn']
  fn, known = trained(make(), inputs, jl.fake_quant(8))
  plain = lower(fn, known, inputs)
  rounded = [one for one in plain.operations if one.kind == 'round']
  graph = quantized(plain)
  values = jax.jit(lambda x: programs.traced(plain, x))(inputs)
  found = reference.run(graph, inputs, keep=True)
  steps = [one for one in plain.operations if one.inputs and one.kind == 'clamp']
  kept = [one for one in graph.operations if 'low' in one.attributes]
  assert len(rounded) == len(steps) == len(kept) == 4
  off = total = 0
  for one, other in zip(steps, kept, strict=True):
    told = other.attributes
    ours = found[other.outputs[0]].astype(int) - told.get('y_zero_point', told.get('zero_point'))
    theirs = np.asarray(values[one.outputs[0]]).astype(int)
    if ours.shape != theirs.shape:  # in front of a pool, where it is quantized already
      name = next(each.outputs[0] for each in graph.operations if each.inputs[0] == other.outputs[0])
      ours = found[name].astype(int) - told['y_zero_point']
      ours = ours.reshape(theirs.shape)
    assert np.abs(ours - theirs).max() <= 1
    off, total = off + int((ours != theirs).sum()), total + theirs.size
  assert off < 0.02 * total


HOOKS = {
  'lsq': lambda network, inputs: jl.lsq(4),
  'per tensor': lambda network, inputs: jl.lsq(8, per_channel=False),
  'weights alone': lambda network, inputs: jl.fake_quant((4, None)),
}


@pytest.mark.parametrize('name', HOOKS)
def test_every_way_of_quantizing_leads_to_integers(name):
  make, inputs = CASES['residual']
  fn, known = trained(make(), inputs, HOOKS[name](make, inputs))
  graph = quantized(lower(fn, known, inputs))
  wanted = np.asarray(jax.jit(fn)(known, inputs))
  found = reference.run(graph, inputs)
  np.testing.assert_allclose(found, wanted, atol=(1e-4 if name == 'weights alone' else 0.05) * np.abs(wanted).max())
  np.testing.assert_allclose(jax.jit(programs.program(graph))(inputs), found, atol=1e-4 * np.abs(wanted).max())
  kinds = [one.kind for one in graph.operations]
  if name == 'weights alone':
    assert kinds.count('dequantize') == 5
    assert {4} == {layer.weight_bits for layer in layers(graph) if layer.weight_bits}
  else:
    assert kinds.count('quantized_conv') + kinds.count('quantized_dense') == 5


def test_a_calibrated_network_and_a_function_lead_to_integers_too():
  params, x = {'w': floats(6, 4), 'b': floats(4), 'v': floats(4, 3)}, floats(8, 6)

  def net(p, x):
    return jax.nn.relu(x @ p['w'] + p['b']) @ p['v']

  network = jl.Network(jl.from_function(net, params), params, {})
  calibrated = jl.ptq(network, [x])
  fn = lambda known, x: calibrated.model.apply(*known, x, train=False, key=None)[0]  # noqa: E731
  _, ranges = jl.observe(net)(params, x)
  cases = (
    (fn, (calibrated.params, calibrated.model_state)),
    (jl.quantize(net, ranges=ranges), params),
  )
  for fn, known in cases:
    graph = quantized(lower(fn, known, x))
    assert [one.kind for one in graph.operations] == ['quantize', 'quantized_dense', 'quantized_dense']
    np.testing.assert_allclose(reference.run(graph, x), fn(known, x), atol=0.02)


# --- grids and scales -------------------------------------------------------------------------------------------------


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
  graph = quantized(lower(jl.quantize(net, ranges={'w': (np.float32(-3), np.float32(3))}), params, x))
  assert [one.kind for one in graph.operations] == ['quantize', 'quantized_dense']
  np.testing.assert_allclose(reference.run(graph, x), net(params, x), atol=0.05)
  np.testing.assert_allclose(reference.run(graph, x)[:, 2], np.broadcast_to(beta[2], 6), rtol=1e-6)


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
  'bits that are none': (lambda: quantized(dense_of({'w': floats(3, 2), 'g': floats(2)}), bits=9), 'from 2 to 8'),
  'points without examples': (lambda: residual_graph(None), 'give examples'),
  'no examples': (lambda: residual_graph([]), 'no example was given'),
  'examples of nothing but NaN': (lambda: residual_graph(np.full((2, 3), np.nan, np.float32)), 'no example shows'),
  'examples of another name': (lambda: residual_graph({'pictures': floats(2, 3)}), 'examples are the inputs'),
}


def residual_graph(examples):
  params = {'w': floats(3, 3)}
  fn = jl.quantize(lambda p, x: x + x @ p['w'], ranges={'w': (np.float32(-1), np.float32(1))})
  return quantized(lower(fn, params, floats(2, 3)), examples, every=True)


@pytest.mark.parametrize('name', REFUSED)
def test_what_integers_cannot_hold_is_refused_in_a_line(name):
  call, match = REFUSED[name]
  with pytest.raises(ValueError, match=match) as caught:
    call()
  assert '\n' not in str(caught.value)
