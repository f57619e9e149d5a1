"""A network as a list of operations: what everything that leaves jaxlite is written from.

A `Graph` is plain data: named values with shapes, operations in order, constants as NumPy arrays. `lowering` makes one
of a function, `patterns` puts several operations into one that runtimes know by name, `reference` runs one in NumPy.
The batch is open: an axis that grows with it is a `Batch`, whatever size the function was traced at.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

UNKNOWN = 'unknown'  # the kind of what cannot be written, with its reason; no list that is used holds one
VERSION = 1  # of the list: raised when the meaning of an operation changes


class Batch(NamedTuple):
  """A size that grows with the batch: `times` entries for each example."""

  times: int = 1

  def __str__(self) -> str:
    return 'B' if self.times == 1 else f'{self.times}B'


Size = int | Batch
Shape = tuple[Size, ...]


class Value(NamedTuple):
  """What is known of an array before it is computed."""

  shape: Shape
  dtype: np.dtype[Any]

  def __str__(self) -> str:
    return f'{self.dtype}[{",".join(map(str, self.shape))}]'


class Operation(NamedTuple):
  """One step: values in, values out.

  Attributes:
    kind: a primitive's name as JAX has it ('add', 'dot_general'), or that of a pattern ('relu', 'dense').
    inputs: names of values or constants.
    outputs: names of values.
    attributes: what else decides the result: ints, floats, strings, `Batch`, and tuples of them.
  """

  kind: str
  inputs: tuple[str, ...]
  outputs: tuple[str, ...]
  attributes: Mapping[str, Any]

  def __str__(self) -> str:
    told = ', '.join(f'{name}={_told(value)}' for name, value in self.attributes.items())
    return f'{", ".join(self.outputs)} = {self.kind}({", ".join(self.inputs)}{"; " if told else ""}{told})'


class Graph(NamedTuple):
  """A program without control flow.

  Attributes:
    inputs: names of the inputs, each with a leading `Batch()`.
    outputs: names of the results.
    operations: in an order in which each can be computed.
    values: shape and dtype of everything that has a name, constants among it.
    constants: arrays by name. One may be shorter than its `Value`: an axis of size 1 stands for any size.
  """

  inputs: tuple[str, ...]
  outputs: tuple[str, ...]
  operations: tuple[Operation, ...]
  values: Mapping[str, Value]
  constants: Mapping[str, np.ndarray]

  def __str__(self) -> str:
    heads = [f'{name}: {self.values[name]}' for name in self.inputs]
    lines = [f'({", ".join(heads)}) -> {", ".join(f"{name}: {self.values[name]}" for name in self.outputs)}']
    lines += [f'  {one}  # {", ".join(str(self.values[name]) for name in one.outputs)}' for one in self.operations]
    return '\n'.join(lines)


def readers(operations: Iterable[Operation], outputs: Iterable[str] = ()) -> dict[str, int]:
  """Returns how often each value is read, results of the whole counting once more.

  >>> readers([Operation('add', ('a', 'a'), ('b',), {})], ['b'])
  {'a': 2, 'b': 1}
  """
  counts: dict[str, int] = {}
  for name in [*(name for one in operations for name in one.inputs), *outputs]:
    counts[name] = counts.get(name, 0) + 1
  return counts


def pruned(graph: Graph) -> Graph:
  """Returns the graph without what no result needs.

  >>> x = Value((Batch(), 2), np.dtype('float32'))
  >>> both = (Operation('neg', ('x',), ('y',), {}), Operation('exp', ('x',), ('z',), {}))
  >>> print(pruned(Graph(('x',), ('y',), both, {'x': x, 'y': x, 'z': x}, {})))
  (x: float32[B,2]) -> y: float32[B,2]
    y = neg(x)  # float32[B,2]
  """
  needed, kept = set(graph.outputs), []
  for one in reversed(graph.operations):
    if needed.intersection(one.outputs):
      kept.append(one)
      needed.update(one.inputs)
  names = {*needed, *graph.inputs, *(name for one in kept for name in one.outputs)}
  return graph._replace(
    operations=tuple(reversed(kept)),
    values={name: value for name, value in graph.values.items() if name in names},
    constants={name: value for name, value in graph.constants.items() if name in names},
  )


def sized(shape: Iterable[Size], batch: int) -> tuple[int, ...]:
  """Returns a shape at one batch size.

  >>> sized((Batch(), 3, Batch(4)), 2)
  (2, 3, 8)
  """
  return tuple(batch * size.times if isinstance(size, Batch) else size for size in shape)


def _told(value: Any) -> str:
  if isinstance(value, Batch):
    return str(value)
  if isinstance(value, tuple):
    return f'({",".join(map(_told, value))})'
  return str(value)
