"""Integer operations in ONNX's words: quantized and dequantized around floats, which runtimes put together again.

Where the two stand decides about speed (ONNX Runtime: 0.5 of float32's time, or twice of it): uint8 between layers, a
quantization after each layer and on both sides of an addition, weights stored as int8, biases as int32 on the sum's
grid. A grid of fewer than 8 bits, or a ReLU whose zero is not the lowest entry, is cut in integers behind it, so that
nothing stands between a layer and its quantization.

References:
  ONNX operators, QuantizeLinear and DequantizeLinear, 2024, https://onnx.ai/onnx/operators/onnx__QuantizeLinear.html
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from jaxlite.deployment.integers import rules as integer_rules
from jaxlite.deployment.onnx.contractions import convolution, product
from jaxlite.deployment.onnx.writer import Writer, channels_first
from jaxlite.deployment.operations import Batch, Graph, Operation

_SHIFT = 128  # uint8 less int8
_LOW, _HIGH = -128, 127
_KINDS = frozenset(integer_rules.rules(lambda: None, lambda: None))  # type: ignore[arg-type]  # their names alone
_TWO = ('quantized_add', 'quantized_dot')


def is_quantized(graph: Graph) -> bool:
  """Tells whether a graph computes with integers."""
  return any(one.kind in _KINDS for one in graph.operations)


def shifted(graph: Graph) -> frozenset[str]:
  """Returns the int8 values that are uint8 in the file: all that lie on a grid; weights stay int8."""
  found: set[str] = set()
  for one in graph.operations:
    if one.kind == 'dequantize' and len(one.inputs) == 2:
      continue
    if one.kind in _KINDS and one.kind != 'quantize':
      found.update(one.inputs[: 2 if one.kind in _TWO else 1])
    if one.kind in _KINDS:
      found.update(name for name in one.outputs if graph.values[name].dtype == np.int8)
  before = -1
  while len(found) != before:  # through what only moves or compares values, from both sides
    before = len(found)
    for one in graph.operations:
      small = [name for name in (*one.inputs, *one.outputs) if graph.values[name].dtype == np.int8]
      if one.kind not in _KINDS and found.intersection(small):
        found.update(small)
  return frozenset(found)


def _grid(w: Writer, scale: float, zero_point: int) -> list[str]:
  return [w.array(np.float32(scale), 'scale'), w.array(np.uint8(zero_point + _SHIFT), 'zero point')]


def _real(w: Writer, name: str, order: tuple[int, ...], scale: float, zero_point: int) -> str:
  """A value of a grid as a float, for one reader."""
  tensor = w.get(name, order) if name not in w.graph.constants or not order else _constant(w, name, order)
  return w.node('DequantizeLinear', [tensor, *_grid(w, scale, zero_point)])


def _constant(w: Writer, name: str, order: tuple[int, ...]) -> str:
  whole = w.whole(name)
  return whole if order == tuple(range(len(order))) else w.node('Transpose', [whole], perm=list(order))


def _left(w: Writer, one: Operation, real: str, order: tuple[int, ...] = ()) -> None:
  """What leaves an operation: on its grid where it has one."""
  w.put(one.outputs[0], _on_grid(w, one, real), order)


def _on_grid(w: Writer, one: Operation, real: str) -> str:
  told = one.attributes
  if told.get('y_scale') is None:
    return real
  q = w.node('QuantizeLinear', [real, *_grid(w, told['y_scale'], told.get('y_zero_point', 0))])
  return _cut(w, q, told.get('low', _LOW), told.get('high', _HIGH))


def _cut(w: Writer, q: str, low: int, high: int) -> str:
  if (low, high) == (_LOW, _HIGH):
    return q
  edges = [w.array(np.uint8(edge + _SHIFT), 'edge') for edge in (low, high)]
  return w.node('Clip', [q, *edges])


def _quantize(w: Writer, one: Operation) -> None:
  (x,), told = one.inputs, one.attributes
  order, source = ((), w.whole(x)) if x in w.graph.constants else next(iter(w.forms[x].items()))
  q = w.node('QuantizeLinear', [source, *_grid(w, told['scale'], told['zero_point'])])
  w.put(one.outputs[0], _cut(w, q, told['low'], told['high']), order)


def _dequantize(w: Writer, one: Operation) -> None:
  q, *scales = one.inputs
  told = one.attributes
  if scales:
    array, axis = w.graph.constants[q], told.get('axis', 0)
    # Not as DequantizeLinear: of it and a product ONNX Runtime makes one that rounds what it is multiplied with, too.
    real = w.node('Cast', [w.array(array, q)], to=w.helper.np_dtype_to_tensor_dtype(np.dtype(np.float32)))
    wide = w.graph.constants[scales[0]].astype(np.float32)
    wide = wide.reshape([-1 if index == axis else 1 for index in range(array.ndim)])
    return w.put(one.outputs[0], w.node('Mul', [real, w.array(wide, scales[0])]))
  order, source = ((), w.whole(q)) if q in w.graph.constants else next(iter(w.forms[q].items()))
  grid = _grid(w, told.get('scale', 1.0), told.get('zero_point', 0))
  w.put(one.outputs[0], w.node('DequantizeLinear', [source, *grid]), order)


def _requantize(w: Writer, one: Operation) -> None:
  (q,), told = one.inputs, one.attributes
  order = next(iter(w.forms[q]))
  _left(w, one, _real(w, q, order, told['x_scale'], told['x_zero_point']), order)


def _weights(w: Writer, one: Operation) -> tuple[np.ndarray, Callable[[np.ndarray, str, int], str], list[str]]:
  """The integers of a layer, what writes them as floats, and its bias as a float."""
  told, scales = one.attributes, w.graph.constants[one.inputs[2]].astype(np.float32)
  array = w.graph.constants[one.inputs[1]]

  def put(array: np.ndarray, near: str, axis: int) -> str:
    wide = np.broadcast_to(scales, (array.shape[axis],))
    zero = w.array(np.zeros(wide.shape, np.int8), 'zero')  # said aloud: without it ONNX Runtime leaves Gemm a float's
    return w.node('DequantizeLinear', [w.array(array, near), w.array(wide, one.inputs[2]), zero], axis=axis)

  if len(one.inputs) < 4:
    return array, put, []
  bias = w.graph.constants[one.inputs[3]].astype(np.int32)
  sums = np.broadcast_to((np.float64(told['x_scale']) * scales).astype(np.float32), bias.shape)
  return array, put, [w.node('DequantizeLinear', [w.array(bias, one.inputs[3]), w.array(sums, 'bias scale')], axis=0)]


def _dense(w: Writer, one: Operation) -> None:
  """Rows by a matrix; of more axes the leading ones are one, so that the bias is part of the sum."""
  x, told = one.inputs[0], one.attributes
  array, put, bias = _weights(w, one)
  shape, out = w.shape(x), w.shape(one.outputs[0])
  if len(shape) == 2:
    real = _real(w, x, (), told['x_scale'], told['x_zero_point'])
    return _left(w, one, w.node('Gemm', [real, put(array, one.inputs[1], 1), *bias]))
  if sum(isinstance(size, Batch) for size in out) > 1:
    raise ValueError(f'ONNX keeps one open axis; {one.outputs[0]} has several')
  rows = w.node('Reshape', [w.get(x), w.ints(-1, array.shape[0])])
  real = w.node('DequantizeLinear', [rows, *_grid(w, told['x_scale'], told['x_zero_point'])])
  found = _on_grid(w, one, w.node('Gemm', [real, put(array, one.inputs[1], 1), *bias]))
  sizes = [-1 if isinstance(size, Batch) else size for size in out]
  w.put(one.outputs[0], w.node('Reshape', [found, w.ints(*sizes)]))


def _conv(w: Writer, one: Operation) -> None:
  x, told = one.inputs[0], one.attributes
  array, put, bias = _weights(w, one)
  order = channels_first(len(w.shape(x)))
  real = _real(w, x, order, told['x_scale'], told['x_zero_point'])
  _left(w, one, convolution(w, one, real, array, put, bias), order)


def _dot(w: Writer, one: Operation) -> None:
  told = one.attributes

  def reader(letter: str) -> Callable[[Writer, str, tuple[int, ...]], str]:
    return lambda w, name, order: _real(w, name, order, told[f'{letter}_scale'], told[f'{letter}_zero_point'])

  _left(w, one, product(w, one, (reader('a'), reader('b'))))


def _add(w: Writer, one: Operation) -> None:
  told, rank = one.attributes, len(w.shape(one.outputs[0]))
  live = [name for name in one.inputs if name not in w.graph.constants]
  order = next(iter(w.forms[live[0]])) if live and all(len(w.shape(name)) == rank for name in one.inputs) else ()
  a, b = (
    _real(w, name, order, told[f'{letter}_scale'], told[f'{letter}_zero_point'])
    for name, letter in zip(one.inputs, 'ab', strict=True)
  )
  _left(w, one, w.node('Add', [a, b]), order)


def _mean(w: Writer, one: Operation) -> None:
  (q,), told = one.inputs, one.attributes
  rank, axes = len(w.shape(q)), tuple(sorted(axis % len(w.shape(q)) for axis in told['axes']))
  have = next(iter(w.forms[q])) or tuple(range(rank))
  if rank > 2 and axes == tuple(range(1, rank - 1)):  # what runtimes have in integers
    real = _real(w, q, channels_first(rank), told['x_scale'], told['x_zero_point'])
    pooled = _on_grid(w, one, w.node('GlobalAveragePool', [real]))
    return w.put(one.outputs[0], w.node('Flatten', [pooled], axis=1))
  real = _real(w, q, have, told['x_scale'], told['x_zero_point'])
  value = w.node('ReduceMean', [real, w.ints(*sorted(have.index(axis) for axis in axes))], keepdims=0)
  left = [axis for axis in have if axis not in axes]
  _left(w, one, value, tuple(sorted(left).index(axis) for axis in left))


RULES: dict[str, Callable[[Writer, Operation], Any]] = {
  'quantize': _quantize,
  'dequantize': _dequantize,
  'requantize': _requantize,
  'quantized_dense': _dense,
  'quantized_conv': _conv,
  'quantized_dot': _dot,
  'quantized_add': _add,
  'quantized_mean': _mean,
}
