"""What a list of operations costs: parameters, non-zeros, multiplications, and layer by layer what is in integers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from jaxlite.deployment.operations import Batch, Graph, Operation, Shape

_KERNELS = ('dense', 'conv', 'dot_general', 'conv_general_dilated', 'take')
_INTEGER = ('quantized_dense', 'quantized_conv', 'quantized_dot', 'quantized_add', 'quantized_mean')


class Layer(NamedTuple):
  """One contraction, table or integer operation.

  Attributes:
    name: of its weight, or of its result where it has none.
    kind: of the operation.
    macs: multiplications with an addition, for one example; of a transposed convolution those of what was there, not of
      the zeros that stand between.
    size, nonzero: of its weight.
    bits: of the weight and of what it is multiplied with: '8/8', '32/32', '8/32'.
    why_float: why it multiplies floats; '' where it does not.
    dtype: that it multiplies in.
  """

  name: str
  kind: str
  macs: int
  size: int
  nonzero: int
  bits: str
  why_float: str
  dtype: str = ''


class Costs(NamedTuple):
  """Of a whole network, for one example.

  Attributes:
    parameters, nonzero: values of all constants of more than one entry, and how many of them are not zero.
    macs: of all contractions.
    layers: in order.
  """

  parameters: int
  nonzero: int
  macs: int
  layers: tuple[Layer, ...]


def costs(graph: Graph) -> Costs:
  """Counts what a network costs.

  Args:
    graph: of `patterns.recognized`, or of integers.

  >>> from jaxlite.deployment.operations import Value
  >>> x, y, w = (Value(shape, np.dtype('float32')) for shape in ((Batch(), 3), (Batch(), 2), (3, 2)))
  >>> dense = (Operation('dense', ('x', 'w'), ('y',), {}),)
  >>> found = costs(Graph(('x',), ('y',), dense, {'x': x, 'y': y, 'w': w}, {'w': np.eye(3, 2, dtype='float32')}))
  >>> found.parameters, found.nonzero, found.macs
  (6, 2, 6)
  """
  arrays = [array for array in graph.constants.values() if array.size > 1]
  stored = {one.outputs[0]: one.inputs[0] for one in graph.operations if one.kind == 'dequantize'}
  layers = [_layer(graph, one, stored) for one in graph.operations if one.kind in _KERNELS or one.kind in _INTEGER]
  return Costs(
    sum(array.size for array in arrays),
    sum(int(np.count_nonzero(array)) for array in arrays),
    sum(one.macs for one in layers),
    tuple(layers),
  )


def _layer(graph: Graph, one: Operation, stored: Mapping[str, str]) -> Layer:
  known = [name for name in one.inputs[:2] if name in graph.constants]
  packed = [stored[name] for name in one.inputs[:2] if stored.get(name) in graph.constants]
  name = (known or packed or [one.outputs[0]])[0]
  array = graph.constants.get(name)
  size, nonzero = (0, 0) if array is None else (array.size, int(np.count_nonzero(array)))
  widths = [_bits(graph, each) for each in one.inputs[:2]] if not packed else [8, 32]
  weight, value = (widths[one.inputs.index(name)], widths[1 - one.inputs.index(name)]) if known else (widths * 2)[:2]
  integer = one.kind in _INTEGER
  why = '' if integer or one.kind == 'take' else _why(graph, one, bool(packed))
  dtype = 'int8' if integer else graph.values[one.outputs[0]].dtype.name
  return Layer(name, one.kind, _macs(graph, one), size, nonzero, f'{weight}/{value}', why, dtype)


def _bits(graph: Graph, name: str) -> int:
  return 8 * graph.values[name].dtype.itemsize


def _why(graph: Graph, one: Operation, packed: bool) -> str:
  if packed:
    return 'only its weights have few bits'
  if all(name not in graph.constants for name in one.inputs[:2]):
    return 'a product of two values, whose ranges nobody observed'
  return 'its weights and inputs are floats'


def _macs(graph: Graph, one: Operation) -> int:
  out = _entries(graph.values[one.outputs[0]].shape)
  if one.kind in ('dense', 'quantized_dense'):
    return out * _entries(graph.values[one.inputs[1]].shape[:1])
  if one.kind in ('conv', 'quantized_conv'):
    shape = graph.values[one.inputs[1]].shape
    return out * _entries(shape[1:]) // math.prod(one.attributes['input_dilation'])
  if one.kind in ('dot_general', 'quantized_dot'):
    (inner, _), _ = one.attributes['dimension_numbers']
    shape = graph.values[one.inputs[0]].shape
    return out * math.prod(_entries((shape[axis],)) for axis in inner)
  if one.kind == 'conv_general_dilated':
    _, kernel, _ = one.attributes['dimension_numbers']
    shape = graph.values[one.inputs[1]].shape
    return out * _entries(tuple(shape[axis] for axis in kernel[1:])) // math.prod(one.attributes['lhs_dilation'])
  return 0


def _entries(shape: Shape) -> int:
  """Of one example."""
  return math.prod(size.times if isinstance(size, Batch) else size for size in shape)
