"""Laws of the list of operations: it computes what the network computes, in NumPy, in ONNX Runtime and in C, at any
batch size; what it cannot say it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import onnxruntime
import optax
import pytest
from flax import nnx

import jaxlite as jl
from jaxlite import models
from jaxlite.cpu.kernels.compiler import compiler
from jaxlite.deployment.c import check as c_check
from jaxlite.deployment.c.file import write_c
from jaxlite.deployment.c.source import c_source
from jaxlite.deployment.onnx.file import onnx_bytes, write_onnx
from jaxlite.deployment.operations import Batch, reference
from jaxlite.deployment.operations.lowering import lower
from jaxlite.deployment.operations.patterns import recognized
from jaxlite.deployment.running.runner import runner
from lists import agree, floats, program
from networks import FRAMEWORKS, dense

pytestmark = pytest.mark.unoptimized
RNG = np.random.default_rng(0)


def attended(rngs):
  class Net(nnx.Module):
    def __init__(self):
      self.conv, self.norm = nnx.Conv(3, 8, (3, 3), rngs=rngs), nnx.BatchNorm(8, rngs=rngs)
      self.heads, self.last = nnx.MultiHeadAttention(2, 8, decode=False, rngs=rngs), nnx.Linear(8, 4, rngs=rngs)

    def __call__(self, x):
      x = nnx.max_pool(nnx.gelu(self.norm(self.conv(x))), (3, 3), (2, 2), 'SAME')
      x = x.reshape(x.shape[0], -1, 8)
      return self.last((x + self.heads(x)).mean(1))

  return Net()


def equinox_conv():
  import equinox as eqx

  class Net(eqx.Module):
    conv: eqx.nn.Conv2d
    last: eqx.nn.Linear

    def __init__(self, key):
      self.conv, self.last = eqx.nn.Conv2d(3, 8, 3, 2, 1, key=key), eqx.nn.Linear(128, 5, key=key)

    def __call__(self, x):
      return self.last(jax.nn.relu(self.conv(x)).reshape(-1))

  return Net(jax.random.key(0))


def recurrent():
  import equinox as eqx

  class Net(eqx.Module):
    cell: eqx.nn.GRUCell

    def __call__(self, x):
      return jax.lax.scan(lambda h, row: (self.cell(row, h), None), jnp.zeros(6), x)[0]

  return Net(eqx.nn.GRUCell(4, 6, key=jax.random.key(0)))


def keras_conv():
  import keras

  keras.utils.set_random_seed(0)
  layers = keras.layers
  return keras.Sequential(
    [
      keras.Input((12, 12, 3)),
      layers.Conv2D(8, 3, activation='relu'),
      layers.BatchNormalization(),
      layers.AveragePooling2D(2),
      layers.SeparableConv2D(8, 3, padding='same'),
      layers.Conv2DTranspose(4, 3, strides=2, padding='same', activation='relu6'),
      layers.GlobalAveragePooling2D(),
      layers.Dense(4, activation='softmax'),
    ]
  )


def haiku_net():
  import haiku as hk

  def forward(x):
    x = hk.AvgPool((2, 2, 1), (2, 2, 1), 'SAME')(jax.nn.silu(hk.Conv2D(8, 3, stride=2)(x)))
    return hk.Linear(4)(hk.LayerNorm(-1, True, True)(hk.Flatten()(x)))

  return jl.from_haiku(forward)


def own(params, x):
  """What no layer does: an einsum of three axes, a broadcast over the batch, a sum on the way, a flip."""
  y = jnp.einsum('bij,jk->bik', x, params['w'])
  z = jnp.concatenate([y, jnp.broadcast_to(params['cls'], (x.shape[0], 1, 4))], 1)
  z = jnp.cumsum(z, 1)
  both = jnp.where(z > 0, z, jnp.expm1(z))[:, ::-1, 1:]
  return jnp.einsum('bik,bjk->bij', both, both), both.argmax(-1)


TOKENS = RNG.integers(1, 50, (3, 9)).astype(np.int32)
CASES = {
  'mlp': (lambda: models.MLP((16,)), floats(3, 6, 6, 1)),
  'lenet': (models.LeNet5, floats(2, 28, 28, 1)),
  'small cnn': (models.SmallCNN, floats(2, 28, 28, 1)),
  'resnet': (models.ResNet8, floats(2, 16, 16, 3)),
  'depthwise': (models.DepthwiseCNN, floats(2, 16, 16, 3)),
  'vit': (lambda: models.ViT(patch=4, width=16, layers=2, heads=2), floats(2, 8, 8, 1)),
  'decoder': (lambda: models.Decoder(50, width=16, layers=2, heads=2, hidden=32, length=16), TOKENS),
  'embedding bag': (lambda: models.EmbeddingBag(50, 3), TOKENS),
  'attention': (lambda: attended(nnx.Rngs(0)), floats(2, 8, 8, 3)),
  'channels first': (equinox_conv, floats(2, 3, 8, 8)),
  'a loop written out': (recurrent, floats(3, 5, 4)),
  'keras': (keras_conv, floats(2, 12, 12, 3)),
  'haiku': (haiku_net, floats(2, 8, 8, 3)),
}


@pytest.mark.sampled(6)
@pytest.mark.parametrize('name', CASES)
def test_a_list_computes_what_the_network_computes_here_in_onnx_runtime_and_in_c(name, tmp_path):
  make, inputs = CASES[name]
  model = make()
  fn, known = program(model if isinstance(model, jl.Model) else jl.adapt(model), inputs)
  graph = lower(fn, known, inputs)
  short = recognized(graph)
  assert len(short.operations) < len(graph.operations)
  batch = np.resize(inputs, (5, *inputs.shape[1:]))
  wanted = jax.jit(fn)(known, batch)
  assert np.std(wanted) > 1e-6  # answers that are all the same would be right however they are computed
  for size in (1, 5):
    agree(reference.run(graph, batch[:size]), wanted[:size])
    agree(reference.run(short, batch[:size]), wanted[:size])
  assert reference.run(short, inputs[:0]).shape == (0, *fn(known, inputs[:1]).shape[1:])
  write_onnx(short, tmp_path / 'net.onnx', {'input': batch})
  assert (tmp_path / 'net.onnx').stat().st_size > 100
  assert write_c(short, tmp_path / 'net.c', {'input': batch}).verified


@pytest.mark.sampled(3)
@pytest.mark.parametrize('framework', FRAMEWORKS)
def test_two_dense_layers_are_two_dense_layers_in_every_framework(framework):
  model = dense(framework, [floats(6, 8), floats(8), floats(8, 3), floats(3)])[0]
  fn, known = program(model, floats(4, 6))
  graph = recognized(lower(fn, known, floats(4, 6)))
  assert [one.kind for one in graph.operations] == ['dense', 'relu', 'dense']


def test_fake_quantization_is_written_exactly(tmp_path):
  inputs = floats(6, 12, 12, 1)
  train = jl.train_step(jl.adapt(models.SmallCNN()), jl.cross_entropy, jl.chain(jl.fake_quant(), optax.sgd(0.1)))
  batch = {'inputs': inputs, 'labels': np.arange(6) % 10}
  state, _ = train.step(train.init(jax.random.key(0), batch), batch)
  values = (state.params, {**state.model_state, **({'jl.const': state.const} if state.const else {})})
  fn, known = program(train.model, inputs, values)
  wanted = jax.jit(fn)(known, inputs)
  graph = lower(fn, known, inputs)
  # Integers times integers are exact in float32: whoever adds them up, in whatever order, gets the same sums.
  np.testing.assert_allclose(reference.run(graph, inputs), wanted, rtol=1e-6, atol=1e-6)
  assert sum(one.kind == 'round' for one in graph.operations) == 4  # the inputs of four contractions
  write_onnx(recognized(graph), tmp_path / 'net.onnx', {'input': inputs})


def test_a_program_of_ones_own_with_two_results(tmp_path):
  params, x = {'w': floats(3, 4), 'cls': floats(4)}, floats(4, 5, 3)
  graph = recognized(lower(own, params, x))
  agree(reference.run(graph, x), own(params, x))
  write_onnx(graph, tmp_path / 'own.onnx', {'input': x})


def test_inputs_may_be_a_tree(tmp_path):
  inputs = {'image': floats(3, 4), 'side': {'age': floats(3, 1)}}
  params = {'a': floats(4, 2), 'b': floats(1, 2)}
  graph = recognized(lower(lambda p, x: x['image'] @ p['a'] + x['side']['age'] @ p['b'], params, inputs))
  assert graph.inputs == ('input/image', 'input/side/age')
  given = {'input/image': inputs['image'], 'input/side/age': inputs['side']['age']}
  agree(reference.run(graph, given), inputs['image'] @ params['a'] + inputs['side']['age'] @ params['b'])
  write_onnx(graph, tmp_path / 'tree.onnx', given)
  with pytest.raises(ValueError, match='takes the inputs input/image'):
    reference.run(graph, {'input/image': inputs['image']})


def test_the_batch_is_open_and_constants_are_computed():
  def fn(params, x):
    scale = params['g'] / jnp.sqrt(params['v'] + 1e-3)
    return (x.reshape(x.shape[0] * 2, 3) * scale).reshape(x.shape)

  graph = lower(fn, {'g': floats(3), 'v': np.ones(3, np.float32)}, floats(4, 2, 3))
  assert [one.kind for one in graph.operations] == ['reshape', 'mul', 'reshape']
  assert graph.values['v0'].shape == (Batch(2), 3)
  assert [array.shape for array in graph.constants.values()] == [(1, 3)]  # one row, however many there are


REFUSED = {
  'an average over the batch': (lambda p, x: x - x.mean(0), 'its own example alone'),
  'a maximum over the batch': (lambda p, x: x - x.max(0), 'runs over the batch'),
  'products of examples': (lambda p, x: x @ x.T, 'one answer for each example'),
  'a batch that is counted': (lambda p, x: x * x.shape[0], 'batch is counted'),
  'a batch that is numbered': (lambda p, x: x + jnp.arange(x.shape[0])[:, None], 'the same for each example'),
  'a look at the first example': (lambda p, x: x - x[:1], 'slice runs over the batch'),
  'a look at a numbered one': (lambda p, x: x - x[jnp.array([1])], 'gather runs over the batch'),
  'entries at the places of others': (lambda p, x: jnp.tile(x, 2).T.reshape(-1, 6), 'reshape runs over the batch'),
  'halves of the batch': (lambda p, x: jnp.tile(x, 2).reshape(6, -1).T, 'reshape runs over the batch'),
  'times before examples, and after': (
    lambda p, x: (x.T.reshape(-1, 1) + x.reshape(-1, 1)).reshape(3, -1).T,
    'add runs over the batch',
  ),
  'neighbors in the batch': (
    lambda p, x: jax.lax.reduce_window(x, 0.0, jax.lax.add, (3, 1), (1, 1), 'SAME'),
    'reduce_window_sum runs over the batch',
  ),
  'the example before': (
    lambda p, x: x - jax.lax.pad(x, 0.0, ((1, -1, 0), (0, 0, 0))),
    'pad runs over the batch',
  ),
  'bits of whole numbers': (lambda p, x: jax.lax.reduce_or(x.astype(jnp.int32), (1,)), 'joined bit by bit'),
  'a way that the input chooses': (lambda p, x: jax.lax.cond(x[0, 0] > 0, jnp.sin, jnp.cos, x), 'use jnp.where'),
  'a loop without an end': (lambda p, x: jax.lax.while_loop(lambda y: y[0, 0] < 1, jnp.exp, x), 'goes on as its'),
  'a long loop': (lambda p, x: jax.lax.fori_loop(0, 1000, lambda i, y: y + 1, x), 'up to 256 iterations'),
  'a callback': (
    lambda p, x: jax.pure_callback(lambda y: y, jax.ShapeDtypeStruct(x.shape, x.dtype), x),
    'pure_callback',
  ),
}


@pytest.mark.parametrize('name', REFUSED)
def test_what_cannot_be_said_is_refused_in_a_line(name):
  fn, match = REFUSED[name]
  with pytest.raises(ValueError, match=match) as caught:
    lower(fn, {}, floats(4, 3))
  assert '\n' not in str(caught.value)


def test_a_layer_that_runs_at_each_time_has_all_examples_of_a_time_side_by_side():
  kernel = floats(3, 2, 4)

  def fn(params, x):  # vmap of a convolution makes [time * batch, ...] of them
    def conv(x):
      return jax.lax.conv_general_dilated(x, kernel, (1,), 'SAME', dimension_numbers=('NWC', 'WIO', 'NWC'))

    return jax.vmap(conv, in_axes=1, out_axes=1)(x)

  x = floats(4, 5, 6, 2)
  agree(reference.run(lower(fn, {}, x[:1]), x), fn({}, x))


def test_at_the_edges_of_their_numbers_files_answer_as_jax_does():
  table, few = floats(5, 3), np.arange(10, dtype=np.uint8).reshape(5, 2)
  weight = np.array([[127], [-128], [127]], np.int8)

  def looks(params, given):
    ids, small = given['ids'], given['small']
    padded = jnp.asarray(params['table']).at[ids].get(mode='fill', fill_value=0.0)  # an index past the end is no word
    wide = jax.lax.dot(small, params['weight'], preferred_element_type=jnp.int32)
    return padded, jnp.take(params['table'], ids, axis=0), jnp.take(params['few'], ids, axis=0), wide

  def turns(params, x):
    return tuple(jnp.asarray(x).astype(kind) for kind in ('uint8', 'int16', 'int32'))

  ids = np.array([[0, 4], [5, -1], [-5, -6], [2**30, -(2**31)]], np.int32)
  given = {'ids': ids, 'small': np.full((4, 3), -128, np.int8)}
  params = {'table': table, 'few': few, 'weight': weight}
  graph, named = recognized(lower(looks, params, given)), {'input/ids': ids, 'input/small': given['small']}
  odd = np.array([[np.nan, np.inf, -np.inf, 3e9, 255.5, -1.5, 300.0]], np.float32)
  plain = recognized(lower(turns, {}, odd))
  for wanted, one, examples in ((looks(params, given), graph, named), (turns({}, odd), plain, {'input': odd})):
    ran = c_check.run(c_source(one), one, examples, [compiler(), '-std=c99', '-O1'])
    for found in (reference.run(one, examples), ran.results):
      for got, want in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(got, want)
  session = onnxruntime.InferenceSession(onnx_bytes(plain), providers=['CPUExecutionProvider'])
  for got, want in zip(session.run(None, {'input': odd}), turns({}, odd), strict=True):
    np.testing.assert_array_equal(got, want)


def test_inverse_functions_are_written_at_every_size():
  x = np.array([[0.0, -0.5, 1e-6, 0.999999, 3.0, -40.0, 1e20, np.inf, -np.inf, np.nan]], np.float32)

  def fn(params, x):
    return jax.lax.asinh(x), jax.lax.acosh(x), jax.lax.atanh(x), jax.lax.erf_inv(x)

  graph, wanted = recognized(lower(fn, {}, x)), jax.jit(fn)({}, x)
  for found in (reference.run(graph, x), jax.jit(runner(graph))(x)):
    for got, want in zip(found, wanted, strict=True):
      np.testing.assert_allclose(got, want, rtol=2e-6)


def test_a_quotient_by_zero_is_that_of_the_sum_and_not_of_each_weight():
  params = {'w': np.array([[1.0], [-1.0]], np.float32), 'spread': np.zeros(1, np.float32)}

  def fn(params, x):
    return (x @ params['w'] + 1) / params['spread']

  x = np.array([[3.0, 1.0], [1.0, 3.0]], np.float32)
  np.testing.assert_array_equal(reference.run(recognized(lower(fn, params, x)), x), [[np.inf], [-np.inf]])


def test_complex_numbers_are_a_list_too():
  def fn(params, x):
    return jnp.abs((x * 1j + 2) @ params).sum(-1)

  x, params = floats(4, 3), (floats(3, 2) + 1j * floats(3, 2)).astype(np.complex64)
  agree(reference.run(recognized(lower(fn, params, x)), x), fn(params, x))


def test_what_cannot_be_written_does_no_harm_where_nothing_needs_it():
  def fn(params, x):
    low, _ = jax.lax.cond(jnp.isfinite(x).all(), lambda y: (y.min(), 0.0), lambda y: (0.0, 1.0), x)
    return jnp.where(params['seen'], x * params['low'], x * low)

  graph = lower(fn, {'seen': np.array(True), 'low': np.float32(2)}, floats(4, 3))
  assert [one.kind for one in graph.operations] == ['mul']
  with pytest.raises(ValueError, match=r'use jnp\.where'):
    lower(fn, {'seen': np.array(False), 'low': np.float32(2)}, floats(4, 3))


def test_onnx_says_what_it_has_no_word_for(tmp_path):
  with pytest.raises(ValueError, match='has a word for; sort'):
    onnx_bytes(recognized(lower(lambda p, x: jnp.sort(x, -1), {}, floats(4, 3))))
  narrow = recognized(
    lower(lambda p, x: (x.astype(jnp.bfloat16) @ p).astype('float32'), jnp.ones((3, 2), 'bfloat16'), floats(4, 3))
  )
  with pytest.raises(ValueError, match='ONNX Runtime cannot run this network'):
    write_onnx(narrow, tmp_path / 'narrow.onnx', {'input': floats(4, 3)})
  assert not list(tmp_path.iterdir())


def test_what_onnx_runtime_answers_otherwise_is_not_written(tmp_path, monkeypatch):
  graph = recognized(lower(lambda p, x: x @ p, floats(3, 2), floats(4, 3)))
  monkeypatch.setitem(reference.RULES, 'dense', lambda x, w: x @ w + 1)
  with pytest.raises(ValueError, match='answers otherwise than the network, by up to 1'):
    write_onnx(graph, tmp_path / 'net.onnx', {'input': floats(4, 3)})
  assert not list(tmp_path.iterdir())


def test_a_result_that_is_constant_has_a_row_for_each_example():
  def fn(params, x):
    return x @ params, jnp.broadcast_to(params[0], (len(x), 2))

  weights, x = floats(3, 2), floats(4, 3)
  session = onnxruntime.InferenceSession(onnx_bytes(recognized(lower(fn, weights, x[:1]))))
  agree(session.run(None, {'input': x}), fn(weights, x))
