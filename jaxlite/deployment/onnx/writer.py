"""An ONNX graph while it is written: nodes, arrays, and the forms in which each value is there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxlite.deployment.operations import Batch, Graph, Operation, Shape, Size


class Writer(NamedTuple):
  """An ONNX graph, growing. A value has one or more forms: as it is (key ()), or with its axes in another order.

  Runtimes are quickest with uint8 between layers, so what is int8 here stands 128 higher there.
  """

  graph: Graph
  helper: Any
  arrays: Any
  nodes: list[Any]
  initializers: dict[str, Any]
  forms: dict[str, dict[tuple[int, ...], str]]
  held: dict[tuple[Any, ...], str]
  count: list[int]
  shifted: frozenset[str] = frozenset()  # int8 values that are uint8 there, 128 higher

  def fresh(self, near: str) -> str:
    self.count[0] += 1
    return f'{near}.{self.count[0]}'

  def node(self, kind: str, inputs: Sequence[str], output: str = '', /, **attributes: Any) -> str:
    output = output or self.fresh(kind.lower())
    self.nodes.append(self.helper.make_node(kind, list(inputs), [output], name=output, **attributes))
    return output

  def array(self, array: Any, near: str = 'constant') -> str:
    """An array of the file; equal ones are one."""
    array = np.asarray(array, order='C')  # one number stays without an axis: runtimes fuse no grid of shape [1]
    key = (array.dtype.str, array.shape, array.tobytes())
    if key not in self.held:
      name = near if near not in self.initializers else self.fresh(near)
      self.initializers[name] = self.arrays.from_array(array, name)
      self.held[key] = name
    return self.held[key]

  def ints(self, *numbers: int) -> str:
    return self.array(np.array(numbers, np.int64), 'shape')

  def shape(self, name: str) -> Shape:
    return self.graph.values[name].shape

  def get(self, name: str, order: tuple[int, ...] = ()) -> str:
    """A value with its axes in an order, turned where it is not there in that one. A constant may be shorter than its
    shape along axes of equal entries."""
    if name in self.graph.constants:
      array = self.graph.constants[name]
      if name in self.shifted:
        array = (array.astype(np.int16) + 128).astype(np.uint8)
      return self.array(array.transpose(order) if order and array.ndim == len(order) else array, name)
    forms = self.forms[name]
    if order == tuple(range(len(order))):
      order = ()
    if order not in forms:
      have, source = next(iter(forms.items()))
      rank = len(self.shape(name))
      have = have or tuple(range(rank))
      turn = [have.index(axis) for axis in order or range(rank)]
      forms[order] = self.node('Transpose', [source], perm=turn)
    return forms[order]

  def put(self, name: str, value: str, order: tuple[int, ...] = ()) -> None:
    self.forms[name] = {() if order == tuple(range(len(order))) else order: value}

  def whole(self, name: str) -> str:
    """A constant as long as its shape says."""
    if name not in self.graph.constants or self.graph.constants[name].shape == self.shape(name):
      return self.get(name)
    shape = self.shape(name)
    if not any(isinstance(size, Batch) for size in shape) and name not in self.shifted:
      return self.array(np.broadcast_to(self.graph.constants[name], shape), name)
    return self.node('Expand', [self.get(name), self.sizes(shape)])

  def sizes(self, shape: Sequence[Size]) -> str:
    """A shape as a value, where it grows with the batch."""
    if not any(isinstance(size, Batch) for size in shape):
      return self.ints(*(int(size) for size in shape if isinstance(size, int)))
    batch = self.node('Shape', [self.get(self.graph.inputs[0])], start=0, end=1)
    parts = [
      self.ints(size) if isinstance(size, int) else self.node('Mul', [batch, self.ints(size.times)]) for size in shape
    ]
    return self.node('Concat', parts, axis=0)

  def reaches(self, one: Operation) -> bool:
    """Whether the operands, as the file holds them, make every axis as long as the result's."""
    found = []
    for name in one.inputs:
      known = self.graph.constants.get(name)
      found.append(self.shape(name) if known is None else known.shape)
    shape = self.shape(one.outputs[0])
    return all(any(len(each) == len(shape) and each[axis] == size for each in found) for axis, size in enumerate(shape))

  def number(self, value: float, like: str) -> str:
    return self.array(np.array(value, self.graph.values[like].dtype), 'number')


def channels_first(rank: int) -> tuple[int, ...]:
  """Returns the order of axes in which a convolution stands in ONNX: channels before space.

  >>> channels_first(4)
  (0, 3, 1, 2)
  """
  return (0, rank - 1, *range(1, rank - 1))
