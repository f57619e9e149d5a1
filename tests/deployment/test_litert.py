"""Laws of LiteRT: its interpreter answers as the network does at every batch size, layers whose values lie on grids on
both sides multiply integers, and what it cannot hold is refused."""

import importlib.util
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from jax import lax
from sklearn.datasets import load_digits

import jaxlite as jl
from jaxlite import models
from jaxlite.deployment import agreement, formats
from jaxlite.deployment.integers.conversion import quantized
from jaxlite.deployment.litert import file as litert
from jaxlite.deployment.litert.grids import Grid, grids, separate
from jaxlite.deployment.litert.marked import stablehlo
from jaxlite.deployment.operations import Batch, Graph, Operation, Value, listing, reference
from jaxlite.deployment.operations.lowering import lower
from jaxlite.deployment.operations.patterns import recognized
from loops import run

pytestmark = pytest.mark.unoptimized
HERE = all(importlib.util.find_spec(name) for name in ('litert_converter', 'ai_edge_litert'))
runs = pytest.mark.skipif(not HERE, reason='needs litert-converter and ai-edge-litert')
RNG = np.random.default_rng(0)
B, FLOAT, INT8 = Batch(), np.dtype(np.float32), np.dtype(np.int8)


def floats(*shape):
  return RNG.normal(size=shape).astype(np.float32)


def listed(fn, inputs):
  return recognized(lower(lambda _, x: fn(x), {}, inputs))


class Residual(nn.Module):
  """Two convolutions with an addition and a mean; the second may be depthwise."""

  groups: int = 1

  @nn.compact
  def __call__(self, x, train=False):
    x = nn.relu(nn.Conv(8, (3, 3))(x))
    x = nn.relu(x + nn.Conv(8, (3, 3), feature_group_count=self.groups, bias_init=nn.initializers.normal(0.1))(x))
    return nn.Dense(10)(x.mean((1, 2)))


DIGITS = (load_digits().images[:200, :, :, None] / 16).astype(np.float32)
INTEGERS = {
  'mlp': (lambda: models.MLP((32, 16)), {'FULLY_CONNECTED int8': 2, 'FULLY_CONNECTED float32': 1}),
  'small cnn': (  # its bias is added behind the slice of its pool
    models.SmallCNN,
    {'DEPTHWISE_CONV_2D int8': 1, 'CONV_2D int8': 1, 'FULLY_CONNECTED int8': 1, 'FULLY_CONNECTED float32': 1},
  ),
  'residual': (Residual, {'CONV_2D int8': 1, 'DEPTHWISE_CONV_2D int8': 1, 'FULLY_CONNECTED float32': 1}),
  'depthwise': (
    lambda: Residual(groups=8),
    {'DEPTHWISE_CONV_2D int8': 2, 'FULLY_CONNECTED float32': 1},
  ),
}


def in_integers(make, inputs, bits=8):
  """A fake-quantized network, and the list of its integers."""
  model = jl.fake_quant(bits).model(jl.adapt(make()))
  params, state = jax.jit(model.init)(jax.random.key(0), inputs)
  train = jax.jit(lambda params, state, x: model.apply(params, state, x, train=True, key=jax.random.key(0), step=0)[1])
  state = train(params, state, inputs)
  graph = lower(lambda known, x: model.apply(*known, x, train=False, key=None)[0], (params, state), inputs[:2])
  return quantized(graph, inputs, every=True)


@runs
@pytest.mark.parametrize('name', INTEGERS)
def test_layers_of_integers_multiply_integers_and_answer_by_the_rules_on_digits(name, tmp_path):
  make, wanted = INTEGERS[name]
  graph = in_integers(make, DIGITS)
  litert.write_litert(graph, tmp_path / 'net.tflite', {'input': DIGITS})
  data = (tmp_path / 'net.tflite').read_bytes()
  assert litert.layers(data) == wanted
  want = reference.run(graph, DIGITS)
  for size in (200, 1, 7):
    (found,) = litert.answers(data, {'input': DIGITS[:size]})
    step = agreement.step_of(graph, graph.outputs[0])
    assert np.abs(found - want[:size]).max() <= 4 * step  # one integer that is rounded otherwise, times a weight
    assert agreement.same_largest(found, want[:size]) == 1
    assert (np.abs(found - want[:size]) < step / 100).mean() > 0.95


@runs
@pytest.mark.parametrize(
  'grid', [(-128, -128, 127), (-20, -20, 127), (0, -8, 7)], ids=['relu', 'relu inside', 'four bits']
)
def test_a_grid_with_edges_gives_the_integers_of_the_rules(grid):
  zero, low, high = grid
  told = {'scale': 0.25, 'zero_point': zero, 'low': low, 'high': high}
  values = {'input': Value((B, 9), FLOAT), 'q': Value((B, 9), INT8), 'y': Value((B, 9), FLOAT)}
  steps = (Operation('quantize', ('input',), ('q',), told),
           Operation('dequantize', ('q',), ('y',), {'scale': 0.25, 'zero_point': zero}))  # fmt: skip
  graph = Graph(('input',), ('y',), steps, values, {})
  x = floats(50, 9) * 20
  (found,) = litert.answers(litert.litert_bytes(graph), {'input': x})
  np.testing.assert_array_equal(found, reference.run(graph, x))


FLOATS = {
  'two inputs': (lambda x: x['b'] @ np.ones((3, 2), 'f') + x['a/b "c"'], {'a/b "c"': floats(4, 2), 'b': floats(4, 3)}),
  'two outputs, one twice': (lambda x: (x + 1, x.sum(-1), x), floats(4, 3)),
  'rows of a constant': (lambda x: x + jnp.broadcast_to(jnp.arange(3.0), x.shape), floats(4, 3)),
  'a batch that is merged': (lambda x: jnp.tanh(x.reshape(-1, 3) * 2).reshape(-1, 5, 3), floats(4, 5, 3)),
  'a token for each': (
    lambda x: jnp.concatenate([jnp.broadcast_to(jnp.arange(3.0), (x.shape[0], 1, 3)), x], 1),
    np.where(floats(4, 5, 3) > 0, np.inf, np.nan).astype('f'),
  ),
  'a constant answer': (lambda x: jnp.broadcast_to(jnp.arange(3.0), x.shape), floats(4, 3)),
  'every second': (lambda x: x[:, ::2], floats(4, 6, 2)),
  'whole numbers': (lambda x: (x.argmax(-1), x.astype(jnp.float32) / 255), RNG.integers(0, 255, (4, 3)).astype('u1')),
  'attention': (lambda x: jax.nn.softmax(x @ x.swapaxes(1, 2)) @ x, floats(4, 5, 3)),
}  # fmt: skip


@pytest.mark.sampled(4)
@runs
@pytest.mark.parametrize('name', FLOATS)
def test_floats_answer_at_every_batch_size(name):
  fn, inputs = FLOATS[name]
  graph = listed(fn, inputs)
  data = litert.litert_bytes(graph)
  given = dict(zip(graph.inputs, jax.tree.leaves(inputs), strict=True))
  for size in (4, 1, 3):
    some = {key: array[:size] for key, array in given.items()}
    want = reference.run(graph, some)
    found = litert.answers(data, some)
    for one, other in zip(found, want if isinstance(want, tuple) else (want,), strict=True):
      assert one.shape == other.shape
      np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6)


@runs
def test_what_its_metadata_says_is_read_by_its_schema():
  from litert_converter import schema_py_generated as schema

  data = litert.litert_bytes(listed(lambda x: x * 2, floats(2, 3)), about={'class_names': '["é", "b"]'})
  model = schema.Model.GetRootAs(data)
  held = {model.Metadata(index).Name(): model.Metadata(index).Buffer() for index in range(model.MetadataLength())}
  assert model.Buffers(held[b'class_names']).DataAsNumpy().tobytes().decode() == '["é", "b"]'


@runs
def test_arrays_begin_where_a_processor_reads_them_in_place():
  from litert_converter import schema_py_generated as schema

  data = litert.litert_bytes(listed(lambda x: jnp.tanh(x @ np.ones((3, 5), 'f')) @ np.ones((5, 7), 'f'), floats(2, 3)))
  model = schema.Model.GetRootAs(data)
  arrays = [model.Buffers(index).DataAsNumpy() for index in range(model.BuffersLength())]
  held = [one for one in arrays if isinstance(one, np.ndarray) and one.size]
  start = np.frombuffer(data, np.uint8).__array_interface__['data'][0]
  assert held
  assert all((one.__array_interface__['data'][0] - start) % 16 == 0 for one in held)


REFUSED = {
  'a loop': (lambda x: jnp.sort(x, -1), 'a loop inside'),
  'a size that is told': (
    lambda x: jnp.repeat(x.astype(jnp.uint8), 2, -1).astype(jnp.float32),
    'no open batch in BROADCAST_TO',
  ),
  'bfloat16': (lambda x: (x.astype(jnp.bfloat16) @ jnp.ones((3, 2), jnp.bfloat16)).astype(jnp.float32), 'express'),
}


@runs
@pytest.mark.parametrize('name', REFUSED)
def test_what_it_cannot_hold_is_refused_in_one_line(name, tmp_path):
  fn, why = REFUSED[name]
  x = floats(4, 5, 3)
  with pytest.raises(ValueError, match=why) as told:
    litert.write_litert(listed(fn, x), tmp_path / 'net.tflite', {'input': x})
  assert '\n' not in str(told.value)
  assert not list(tmp_path.iterdir())


@runs
def test_what_answers_otherwise_is_not_written(tmp_path, monkeypatch):
  graph = in_integers(Residual, DIGITS[:50])
  right = reference.RULES['quantized_mean']
  monkeypatch.setitem(reference.RULES, 'quantized_mean', lambda q, **told: right(q, **{**told, 'y_zero_point': 60}))
  with pytest.raises(ValueError, match=r'steps of its last grid|largest output'):
    litert.write_litert(graph, tmp_path / 'net.tflite', {'input': DIGITS[:50]})
  assert not list(tmp_path.iterdir())


def moved(kind, shape, **attributes):
  """A value on one grid that is moved and then brought to another."""
  values = {'input': Value((B, 4, 4, 2), FLOAT), 'y': Value((B, *shape), FLOAT)}
  values |= {name: Value((B, *where), INT8) for name, where in (('q', (4, 4, 2)), ('m', shape), ('r', shape))}
  steps = (
    Operation('quantize', ('input',), ('q',), {'scale': 0.05, 'zero_point': 3, 'low': -128, 'high': 127}),
    Operation(kind, ('q',), ('m',), attributes),
    Operation('requantize', ('m',), ('r',), {'x_scale': 0.05, 'x_zero_point': 3, 'y_scale': 0.031, 'y_zero_point': -128,
                                             'low': -128, 'high': 127}),
    Operation('dequantize', ('r',), ('y',), {'scale': 0.031, 'zero_point': -128}),
  )  # fmt: skip
  return Graph(('input',), ('y',), steps, values, {})


MOVED = {
  'max_pool': ((2, 2, 2), {'window': (2, 2), 'strides': (2, 2), 'padding': ((0, 0), (0, 0))}),
  'reshape': ((32,), {'new_sizes': (B, 32)}),
  'slice': ((3, 4, 2), {'start_indices': (0, 1, 0, 0), 'limit_indices': (B, 4, 4, 2)}),
}


@runs
@pytest.mark.parametrize('kind', MOVED)
def test_a_value_that_goes_from_grid_to_grid_is_rounded_twice_as_the_rules_say(kind):
  shape, attributes = MOVED[kind]
  graph, x = moved(kind, shape, **attributes), floats(20, 4, 4, 2) * 4
  (found,) = litert.answers(litert.litert_bytes(graph), {'input': x})
  apart = np.abs(found - reference.run(graph, x)) / 0.031
  assert apart.max() < 1.01
  assert (apart < 0.01).mean() > 0.99


def test_a_value_that_is_read_as_of_two_grids_is_refused():
  graph = moved('reshape', (32,), new_sizes=(B, 32))
  assert grids(graph)['m'] == Grid(0.05, 3)
  *others, last = graph.operations
  wrong = graph._replace(operations=(*others, last._replace(attributes={'scale': 0.5, 'zero_point': 0})))
  with pytest.raises(ValueError, match='LiteRT knows one grid of each value'):
    stablehlo(wrong, 2)


def test_integers_at_the_end_are_refused(monkeypatch):
  monkeypatch.setattr('jaxlite.errors.need', lambda *names: None)
  with pytest.raises(ValueError, match='floats at the end'):
    litert.litert_bytes(moved('reshape', (32,), new_sizes=(B, 32))._replace(outputs=('r',)))


def test_without_its_packages_it_says_what_is_missing(monkeypatch, tmp_path):
  monkeypatch.setitem(sys.modules, 'litert_converter', None)
  monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
  for call in (litert.litert_bytes, lambda graph: litert.write_litert(graph, tmp_path / 'net.tflite', {})):
    with pytest.raises(ImportError, match=r'a LiteRT file needs litert_converter.*pip install .*jaxlite\[litert\]'):
      call(moved('reshape', (32,), new_sizes=(B, 32)))
  assert 'litert_converter' in formats.missing('litert')


@runs
def test_a_run_of_few_bits_is_deployed_and_its_snippet_loads_it(tmp_path):
  recipe = lambda config, total: jl.chain(jl.fake_quant(), optax.adam(0.05))  # noqa: E731
  data = (DIGITS, load_digits().target[:200])
  run(tmp_path / 'run', recipe, model=models.MLP((16,)), data=data, steps=4)
  report = jl.deploy(tmp_path / 'run', 'litert', examples=data, batches=(1, 4), seconds=0.01, say=lambda line: None)
  (row,) = report.written
  assert (row.format, row.arithmetic, row.why) == ('litert', 'int8/float32', '')  # its last layer gives floats
  assert row.same == 1
  assert {*row.latency} == {1, 4}
  code = formats.FORMATS['litert'].snippet.replace("'network.tflite'", repr(row.path)).replace(': ... for', ': X for')
  here: dict[str, Any] = {'X': DIGITS}
  exec(code, here)
  found, want = here['outputs'], jl.load(tmp_path / 'run').predict(DIGITS)
  assert agreement.same_largest(found, np.asarray(want)) == 1


def edges(x):
  whole = x[:, :4].astype(jnp.int32)
  return lax.div(whole, whole[:, ::-1]), lax.rem(whole, whole[:, ::-1]), whole // 3, whole % -4, lax.rem(x, x[:, ::-1])


EDGES = {
  'whole numbers and rests': edges,
  'small logarithms': lambda x: (
    jnp.log1p(jnp.abs(x) * 1e-7) * 1e7,
    jnp.log(jax.nn.softplus(-5 * jnp.abs(x))),
    jnp.expm1(x * 1e-7),
  ),
  'sums over several axes': lambda x: jnp.einsum('bk,bkdo,bd->bo', x[:, :2], x.reshape(-1, 2, 2, 2), x[:, 2:4]),
}


@runs
@pytest.mark.parametrize('name', EDGES)
def test_what_the_converter_computes_otherwise_is_written_otherwise(name):
  """Rests with the divisor's sign, an end at a division by 0, 0 for small logarithms, axes of sums mixed up."""
  x = RNG.choice(np.float32([-7, -3, -2, -1, 0, 1, 2, 3, 5]), size=(40, 8))
  graph = recognized(lower(lambda p, x: EDGES[name](x), {}, x))
  wanted = EDGES[name](jnp.asarray(x))
  found = litert.answers(litert.litert_bytes(graph), {'input': x})
  for got, want in zip(found, jax.tree.leaves(wanted), strict=True):
    np.testing.assert_allclose(got, want, rtol=2e-5)


CHOOSING = {
  'prelu': lambda x: jnp.where(x > 0, x, 0.2 * x),
  'elu': jax.nn.elu,
  'softplus': jax.nn.softplus,
  'the larger': lambda x: jnp.maximum(x, 0.1 * x),
  'a part, and all': lambda x: jnp.concatenate([x[..., :4].max(-1, keepdims=True), 3 * x], -1)[..., 1:],
}


@runs
@pytest.mark.sampled(2)
@pytest.mark.parametrize('name', CHOOSING)
def test_a_grid_is_not_carried_back_to_what_others_read(name):
  """The converter did: of 400 examples 14 % had another largest output with softplus, 6 % with a PReLU."""
  act = CHOOSING[name]
  params = {'a': floats(12, 16), 'b': floats(16), 'c': floats(16, 16), 'd': floats(16, 5)}

  def apply(p, x):
    return act(act(x @ p['a'] * 0.5 + p['b']) @ p['c'] * 0.4) @ p['d']

  x = floats(300, 12)
  network = jl.ptq(jl.Network(jl.from_function(apply, params), params, {}), [x])
  graph = quantized(listing.network_graph(network, x[:2]), x)
  (found,) = litert.answers(litert.litert_bytes(graph), {'input': x})
  wanted = reference.run(graph, x)
  assert np.abs(found - wanted).mean() < 1e-3 * np.ptp(wanted)
  assert agreement.same_largest(found, wanted) > 0.99


@runs
def test_infinities_stay_what_they_are():
  graph = listed(lambda x: (jnp.where(x > 0, x, -jnp.inf), jnp.minimum(x, jnp.inf)), floats(4, 3))
  x = np.array([[1.0, -1.0, np.inf], [-np.inf, np.nan, 0.0]], np.float32)
  for found, want in zip(
    litert.answers(litert.litert_bytes(graph), {'input': x}), reference.run(graph, x), strict=True
  ):
    np.testing.assert_array_equal(found, want)


def test_one_zero_pads_values_of_two_grids():
  graph = moved('reshape', (32,), new_sizes=(B, 32))
  values = {**graph.values, 'zero': Value((), INT8), 'p': Value((B, 33), INT8), 'o': Value((B, 33), INT8)}
  wide = {'padding_config': ((0, 0, 0), (0, 1, 0))}
  quantize, move, again, _ = graph.operations
  steps = (quantize, move, again, Operation('pad', ('m', 'zero'), ('p',), wide),
           Operation('pad', ('r', 'zero'), ('o',), wide))  # fmt: skip
  both = graph._replace(operations=steps, values=values, constants={'zero': np.array(3, np.int8)}, outputs=('p', 'o'))
  found = grids(separate(both))
  assert (found['p'], found['o']) == (Grid(0.05, 3), Grid(0.031, -128))
