"""Laws of the integer list: its integers are those of fake quantization up to a step, and the same in NumPy and in JAX,
eager or compiled; what integers cannot hold is refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

import jaxlite as jl
from jaxlite import models
from jaxlite.deployment.integers.conversion import layers, quantized
from jaxlite.deployment.operations import reference
from jaxlite.deployment.operations.lowering import lower
from jaxlite.deployment.running import program as programs
from networks import equinox_net, first_values

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


def trained(model, inputs, hook):
  """(forward, its constants) of a network with ranges, statistics and factors of both signs."""
  model = hook.model(model if isinstance(model, jl.Model) else jl.adapt(model))
  params, state = first_values(model, inputs)
  draw = np.random.default_rng(1)  # batch norms are not the identity, and some turn the sign
  params = _shifted(params, lambda leaf: leaf + draw.uniform(-1.5, 0.5, leaf.shape).astype(leaf.dtype))
  train = jax.jit(lambda params, state, x: model.apply(params, state, x, train=True, key=jax.random.key(0), step=0)[1])
  state = train(params, state, inputs)
  return lambda known, x: model.apply(*known, x, train=False, key=None)[0], (params, state)


def _shifted(params, shift):
  def one(path, leaf):
    return shift(leaf) if jax.tree_util.keystr(path).endswith("'scale']") else leaf

  return jax.tree_util.tree_map_with_path(one, params)


@functools.cache
def faked(name, bits):
  """(its list, what it answers, inputs) of a fake-quantized network."""
  make, inputs = CASES[name]
  fn, known = trained(make(), inputs, jl.fake_quant(bits, attention=name == 'vit'))
  return lower(fn, known, inputs), np.asarray(jax.jit(fn)(known, inputs)), inputs


@functools.cache
def case(name, bits=8, every=True):
  graph, wanted, inputs = faked(name, bits)
  return quantized(graph, inputs, every=every), wanted, inputs


def same_integers(graph, inputs, *, whole, op_by_op=False):
  """Every integer of every layer, in NumPy and in JAX; of what stands behind floats, given the same operands."""
  wanted = reference.run(graph, inputs, keep=True)
  compiled = jax.jit(lambda x: programs.traced(graph, x))(inputs) if whole else {}
  eager = programs.traced(graph, inputs) if op_by_op else compiled
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
  given = {name: values[name] for name in one.inputs if name not in graph.constants}
  return jax.jit(lambda given: programs.computed(graph, one, given, 8)[one.outputs[0]])(given)


LONG = {('vit', False), ('channels first', False), ('residual', False), ('small cnn', False)}


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
  ('name', 'every'),
  [
    pytest.param(name, every, marks=[pytest.mark.slow] if (name, every) in LONG else [])
    for name in CASES
    for every in (False, True)
  ],
)
def test_integers_are_those_of_numpy_eager_and_compiled(name, every):
  graph, wanted, inputs = case(name, every=every)
  assert same_integers(graph, inputs, whole=every and name in WHOLE, op_by_op=name in ('mlp', 'residual'))
  found = reference.run(graph, inputs)
  assert np.abs(found - wanted).max() < 0.06 * np.abs(wanted).max()
  assert reference.run(graph, inputs[:1]).shape == wanted[:1].shape


@pytest.mark.sampled(3)
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
  assert all(bool(layer.why) == (layer.result != 'int8') for layer in layers(graph))


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
  ('name', 'bits'), [('mlp', 2), ('mlp', 4), ('residual', 4), pytest.param('residual', 2, marks=pytest.mark.slow)]
)
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
  plain, _, inputs = faked('small cnn', 8)
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
    zero, name = told.get('y_zero_point', told.get('zero_point')), other.outputs[0]
    theirs = np.asarray(values[one.outputs[0]]).astype(int)
    while found[name].size != theirs.size:  # in front of a pool, where it is quantized already
      name = next(each.outputs[0] for each in graph.operations if name in each.inputs)
    ours = found[name].astype(int).reshape(theirs.shape) - zero
    assert np.abs(ours - theirs).max() <= 1
    off, total = off + int((ours != theirs).sum()), total + theirs.size
  assert off < 0.02 * total


HOOKS = {
  'lsq': lambda network, inputs: jl.lsq(4),
  'per tensor': lambda network, inputs: jl.lsq(8, per_channel=False),
  'weights alone': lambda network, inputs: jl.fake_quant((4, None)),
}


@pytest.mark.sampled(2)
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
  _, ranges = jl.quantization.observe(net)(params, x)
  cases = (
    (fn, (calibrated.params, calibrated.model_state)),
    (jl.quantize(net, ranges=ranges), params),
  )
  for fn, known in cases:
    graph = quantized(lower(fn, known, x))
    assert [one.kind for one in graph.operations] == ['quantize', 'quantized_dense', 'quantized_dense']
    np.testing.assert_allclose(reference.run(graph, x), fn(known, x), atol=0.02)


def test_a_program_is_exported_with_an_open_batch():
  graph, _, inputs = case('residual')
  size = jax.export.symbolic_shape('b')[0]
  shape = jax.ShapeDtypeStruct((size, *inputs.shape[1:]), np.float32)
  exported = jax.export.export(jax.jit(programs.program(graph)))(shape)
  np.testing.assert_array_equal(exported.call(inputs[:3]), reference.run(graph, inputs[:3]))


def test_digits_are_told_apart_as_by_the_fake_quantized_network():
  from sklearn.datasets import load_digits

  pictures, labels = load_digits(return_X_y=True)
  pictures = (pictures.reshape(-1, 8, 8, 1) / 16).astype(np.float32)
  batch = {'inputs': pictures[:1200], 'labels': labels[:1200].astype(np.int32)}
  recipe = jl.chain(jl.fake_quant(8), optax.adam(3e-2))
  train = jl.train_step(jl.adapt(models.MLP((32, 16))), jl.tasks.cross_entropy, recipe)
  state = train.init(jax.random.key(0), batch)
  for _ in range(30):
    state, _ = train.step(state, batch)
  known = (state.params, state.model_state)
  fn = lambda known, x: train.model.apply(*known, x, train=False, key=None)[0]  # noqa: E731
  graph = quantized(lower(fn, known, pictures))
  unseen = pictures[1200:]
  wanted, found = np.asarray(jax.jit(fn)(known, unseen)), reference.run(graph, unseen)
  assert (wanted.argmax(-1) == labels[1200:]).mean() > 0.8
  assert (wanted.argmax(-1) != found.argmax(-1)).sum() <= 3  # of 597
  assert np.abs(wanted - found).max() < 0.02 * np.abs(wanted).max()


def test_no_number_is_wider_than_what_it_meets():
  """Learned queries make a product with a constant, after which numbers stay that no contraction takes in: as float64,
  which they were computed in, no runtime of others multiplied them with float32."""
  draw = np.random.default_rng(5).normal
  params = {name: draw(size=shape).astype(np.float32) for name, shape in (('q', (5, 8)), ('k', (6, 8)), ('o', (8, 3)))}

  def fn(p, x):
    keys, queries = x @ p['k'], jnp.broadcast_to(p['q'], (len(x), 5, 8))
    scores = jax.nn.softmax(jnp.einsum('bqd,bkd->bqk', queries, keys) / 8**0.5, -1)
    return (scores @ keys).mean(1) @ p['o']

  x = draw(size=(40, 10, 6)).astype(np.float32)
  train = jl.train_step(
    jl.from_function(fn, params), jl.cross_entropy, jl.chain(jl.fake_quant(every=True), optax.sgd(0.1))
  )
  batch = {'inputs': x, 'labels': np.arange(40) % 3}
  state, _ = train.step(train.init(jax.random.key(0), batch), batch)

  def forward(known, x):
    return train.model.apply(*known, x, train=False, key=None)[0]

  graph = quantized(lower(forward, (state.params, state.model_state), x), x, every=True)
  assert not [name for name, array in graph.constants.items() if array.dtype == np.float64]
  wanted = np.asarray(forward((state.params, state.model_state), x))
  assert np.abs(reference.run(graph, x) - wanted).mean() < 0.01 * np.ptp(wanted)
