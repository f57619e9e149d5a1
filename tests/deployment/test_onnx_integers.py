"""Laws of integers in ONNX: ONNX Runtime gives the integers of the rules and puts the operations together again, and a
file that answers otherwise is not written."""

import collections

import numpy as np
import pytest

from jaxlite.deployment import agreement
from jaxlite.deployment.accounting import costs
from jaxlite.deployment.onnx import quantized as onnx_quantized
from jaxlite.deployment.onnx.file import onnx_bytes, write_onnx
from jaxlite.deployment.operations import Batch, Graph, Operation, Value, pruned, reference

RNG = np.random.default_rng(0)
B, FLOAT = Batch(), np.dtype(np.float32)
ACT = {'scale': 0.03125, 'zero_point': 0, 'low': -128, 'high': 127}


class Builder:
  """A graph of integers, written by hand."""

  def __init__(self, shape):
    self.values, self.constants, self.operations = {'input': Value((B, *shape), FLOAT)}, {}, []

  def const(self, name, array):
    self.constants[name], self.values[name] = array, Value(array.shape, array.dtype)
    return name

  def op(self, kind, inputs, output, shape, dtype=np.int8, **attributes):
    self.values[output] = Value((B, *shape), np.dtype(dtype))
    self.operations.append(Operation(kind, tuple(inputs), (output,), attributes))
    return output

  def layer(self, kind, x, name, weight, shape, dtype=np.int8, bias=True, **attributes):
    out = weight.shape[0] if kind == 'quantized_conv' else weight.shape[1]
    names = [x, self.const(f'{name}w', weight), self.const(f'{name}s', RNG.uniform(0.5, 1.5, out).astype('f') * 0.003)]
    if bias:
      names.append(self.const(f'{name}b', RNG.integers(-2000, 2000, out).astype(np.int32)))
    return self.op(kind, names, name, shape, dtype, **attributes)

  def graph(self, *outputs):
    return Graph(('input',), outputs, tuple(self.operations), self.values, self.constants)


def integers(*shape):
  return RNG.integers(-127, 128, shape).astype(np.int8)


def geometry(**given):
  plain = {'strides': (1, 1), 'padding': ((1, 1), (1, 1)), 'dilation': (1, 1), 'input_dilation': (1, 1), 'groups': 1}
  return {**plain, **given}


def on(scale, zero_point=-128, low=-128, high=127):
  return {'y_scale': scale, 'y_zero_point': zero_point, 'low': low, 'high': high}


def of(scale, zero_point=-128, letter='x'):
  return {f'{letter}_scale': scale, f'{letter}_zero_point': zero_point}


def residual(zero_point=-128, low=-128, high=127):
  """Two convolutions, an addition, a pool, a depthwise convolution, a mean and float logits."""
  b = Builder((8, 8, 3))
  b.op('quantize', ['input'], 'q', (8, 8, 3), **ACT)
  grid = on(0.0625, zero_point, low, high)
  b.layer('quantized_conv', 'q', 'one', integers(8, 3, 3, 3), (8, 8, 8), **of(0.03125, 0), **grid, **geometry())
  two = {**of(0.0625, zero_point), **on(0.125, 3)}
  b.layer('quantized_conv', 'one', 'two', integers(8, 3, 3, 8), (8, 8, 8), **two, **geometry())
  b.op(
    'quantized_add', ['one', 'two'], 'sum', (8, 8, 8), **of(0.0625, zero_point, 'a'), **of(0.125, 3, 'b'), **on(0.125)
  )
  b.op('max_pool', ['sum'], 'pool', (4, 4, 8), window=(2, 2), strides=(2, 2), padding=((0, 0), (0, 0)))
  depth = {**of(0.125), **on(0.25, high=100), **geometry(groups=8, strides=(2, 2))}
  b.layer('quantized_conv', 'pool', 'depth', integers(8, 3, 3, 1), (2, 2, 8), **depth)
  b.op('quantized_mean', ['depth'], 'mean', (8,), axes=(1, 2), **of(0.25), **on(0.125))
  b.layer('quantized_dense', 'mean', 'logits', integers(8, 10), (10,), np.float32, **of(0.125))
  return b.graph('logits')


def optimized(graph, path):
  import onnx
  import onnxruntime

  options = onnxruntime.SessionOptions()
  options.optimized_model_filepath, options.log_severity_level = str(path), 3
  session = onnxruntime.InferenceSession(onnx_bytes(graph), options, providers=['CPUExecutionProvider'])
  return session, collections.Counter(node.op_type for node in onnx.load(str(path)).graph.node)


@pytest.mark.parametrize('grid', [{}, {'zero_point': -20, 'low': -20}, {'low': -120, 'high': 7}], ids=str)
def test_every_layer_runs_in_integers_and_ends_on_those_of_the_rules(grid, tmp_path):
  graph = residual(**grid)
  x = RNG.normal(size=(32, 8, 8, 3)).astype(np.float32) * 2
  apart = write_onnx(graph, tmp_path / 'net.onnx', {'input': x})
  assert apart < 0.01  # of a step
  session, kinds = optimized(graph, tmp_path / 'fast.onnx')
  put_together = {'QLinearConv': 3, 'QLinearAdd': 1, 'QLinearGlobalAveragePool': 1, 'QGemm': 1}
  assert {kind: kinds[kind] for kind in put_together} == put_together
  assert not {'Conv', 'Gemm', 'Add', 'DequantizeLinear', 'Relu'} & set(kinds)
  np.testing.assert_allclose(session.run(None, {'input': x})[0], reference.run(graph, x), rtol=1e-6, atol=1e-6)


@pytest.mark.sampled(3)
@pytest.mark.parametrize('output', ['q', 'one', 'two', 'sum', 'pool', 'depth', 'mean'])
def test_integers_at_the_end_are_int8_and_those_of_the_rules(output, tmp_path):
  graph = pruned(residual(zero_point=-20, low=-20)._replace(outputs=(output,)))
  x = RNG.normal(size=(16, 8, 8, 3)).astype(np.float32) * 2
  session, _ = optimized(graph, tmp_path / 'fast.onnx')
  (found,), want = session.run(None, {'input': x}), reference.run(graph, x)
  assert found.dtype == np.int8
  apart = np.abs(found.astype(int) - want)
  assert apart.max() <= 1
  assert (apart == 0).mean() > 0.999


def test_products_of_rows_tables_and_moves_of_integers(tmp_path):
  b = Builder((4, 6))
  b.op('quantize', ['input'], 'q', (4, 6), **ACT)
  b.layer('quantized_dense', 'q', 'rows', integers(6, 8), (4, 8), **of(0.03125, 0), **on(0.05, 4))
  b.layer('quantized_dense', 'q', 'bare', integers(6, 8), (4, 8), bias=False, **of(0.03125, 0), **on(0.05, 4))
  numbers = (((2,), (2,)), ((0,), (0,)))
  b.op(
    'quantized_dot', ['rows', 'bare'], 'scores', (4, 4), dimension_numbers=numbers, **of(0.05, 4, 'a'),
    **of(0.05, 4, 'b'), **on(0.3, -7),
  )  # fmt: skip
  b.const('zero', np.array(-7, np.int8))
  b.op('pad', ['scores', 'zero'], 'wide', (5, 4), padding_config=((0, 0, 0), (1, 0, 0), (0, 0, 0)))
  b.op('transpose', ['wide'], 'turned', (4, 5), permutation=(0, 2, 1))
  b.op('slice', ['turned'], 'cut', (4, 4), start_indices=(0, 0, 1), limit_indices=(B, 4, 5))
  b.op('requantize', ['cut'], 'again', (4, 4), **of(0.3, -7), **on(0.6, 11))
  b.op('concatenate', ['again', 'again'], 'two', (8, 4), dimension=1)
  b.op('reshape', ['two'], 'flat', (32,), new_sizes=(B, 32))
  b.op('dequantize', ['flat'], 'real', (32,), np.float32, scale=0.6, zero_point=11)
  graph = b.graph('real')
  x = RNG.normal(size=(16, 4, 6)).astype(np.float32)
  write_onnx(graph, tmp_path / 'net.onnx', {'input': x})
  assert agreement.step_of(graph, 'real') == 0.6
  _, kinds = optimized(graph, tmp_path / 'fast.onnx')
  assert kinds['QGemm'] == 2
  assert kinds['QLinearMatMul'] == 1


def test_weights_alone_are_stored_as_int8_once(tmp_path):
  b = Builder((8, 8, 3))
  for name, array, axis in (('k', integers(4, 3, 3, 3), 0), ('m', integers(256, 5), 1)):
    b.const(f'{name}q', array)
    b.const(f'{name}s', np.full(array.shape[axis], 0.01, np.float32))
    b.values[name] = Value(array.shape, FLOAT)
    b.operations.append(Operation('dequantize', (f'{name}q', f'{name}s'), (name,), {'axis': axis}))
  b.op('conv', ['input', 'k'], 'c', (8, 8, 4), np.float32, **geometry())
  b.op('reshape', ['c'], 'flat', (256,), np.float32, new_sizes=(B, 256))
  b.op('dense', ['flat', 'm'], 'y', (5,), np.float32)
  graph = b.graph('y')
  x = RNG.normal(size=(4, 8, 8, 3)).astype(np.float32)
  write_onnx(graph, tmp_path / 'net.onnx', {'input': x})
  assert (tmp_path / 'net.onnx').stat().st_size < 108 + 1280 + 1800  # a byte each, and what is said of them


def test_int8_that_is_no_grid_stays_what_it_is(tmp_path):
  b = Builder((3,))
  b.values['input'] = Value((B, 3), np.dtype(np.int8))
  b.op('convert_element_type', ['input'], 'x', (3,), np.float32, new_dtype='float32')
  b.op('quantize', ['x'], 'q', (3,), **ACT)
  b.op('dequantize', ['q'], 'y', (3,), np.float32, scale=0.03125, zero_point=0)
  graph = b.graph('y')
  assert onnx_quantized.shifted(graph) == {'q'}
  write_onnx(graph, tmp_path / 'net.onnx', {'input': np.array([[-128, 0, 3]], np.int8)})


def test_what_answers_otherwise_is_not_written(tmp_path, monkeypatch):
  graph, x = residual(), RNG.normal(size=(16, 8, 8, 3)).astype(np.float32)
  right = reference.RULES['quantized_mean']
  monkeypatch.setitem(reference.RULES, 'quantized_mean', lambda q, **told: right(q, **{**told, 'y_zero_point': 60}))
  with pytest.raises(ValueError, match=r'steps of its last grid|largest output'):
    write_onnx(graph, tmp_path / 'net.onnx', {'input': x})
  assert not list(tmp_path.iterdir())


def test_what_it_costs_layer_by_layer():
  found = costs(residual())
  kinds = [(one.kind, one.macs, one.bits, one.why_float) for one in found.layers]
  assert kinds == [
    ('quantized_conv', 8 * 8 * 8 * 27, '8/8', ''),
    ('quantized_conv', 8 * 8 * 8 * 72, '8/8', ''),
    ('quantized_add', 0, '8/8', ''),
    ('quantized_conv', 2 * 2 * 8 * 9, '8/8', ''),
    ('quantized_mean', 0, '8/8', ''),
    ('quantized_dense', 8 * 10, '8/8', ''),
  ]
  assert found.macs == sum(macs for _, macs, *_ in kinds)
