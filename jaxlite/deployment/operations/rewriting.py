"""Writing a list of operations anew, one operation after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxlite.deployment.operations import Graph, Operation, Shape, Value, readers


class Editor(NamedTuple):
  """A graph being read in order and written anew."""

  values: dict[str, Value]
  constants: dict[str, np.ndarray]
  operations: list[Operation]
  made: dict[str, Operation]  # by value
  same: dict[str, str]  # values that turned out to be another
  uses: dict[str, int]

  def of(self, name: str) -> str:
    return self.same.get(name, name)

  def add(self, kind: str, inputs: Sequence[str], output: str, shape: Shape, **attributes: Any) -> str:
    """Writes an operation whose one result is `output`."""
    self.values[output] = Value(shape, self.values[output if output in self.values else inputs[0]].dtype)
    return self.put(Operation(kind, tuple(inputs), (output,), attributes))

  def put(self, one: Operation) -> str:
    self.operations.append(one)
    self.made.update(dict.fromkeys(one.outputs, one))
    return one.outputs[0]

  def drop(self, one: Operation) -> None:
    """Takes back an operation that was written, most likely among the last."""
    for place in reversed(range(len(self.operations))):
      if self.operations[place] is one:
        del self.operations[place]
        return
    self.operations.remove(one)  # an equal one

  def fresh(self, near: str) -> str:
    name = f'{near}_'
    while name in self.values:
      name += '_'
    return name

  def constant(self, near: str, array: np.ndarray, shape: Shape | None = None) -> str:
    name = near if near not in self.values else self.fresh(near)
    self.constants[name] = array
    self.values[name] = Value(array.shape if shape is None else shape, array.dtype)
    return name

  def number(self, name: str) -> float | None:
    """The value of a constant that is one number wherever it stands."""
    array = self.constants.get(name)
    if array is None or array.size != 1 or array.dtype.kind == 'c':
      return None
    return float(array.reshape(()))

  def maker(self, name: str, kind: str) -> Operation | None:
    """The operation that makes a value, where it is of this kind and nothing else reads the value."""
    one = self.made.get(name)
    return one if one is not None and one.kind == kind and self.uses.get(name, 0) == 1 else None

  def graph(self, graph: Graph) -> Graph:
    outputs = tuple(map(self.of, graph.outputs))
    return Graph(graph.inputs, outputs, tuple(self.operations), self.values, self.constants)


def edited(graph: Graph, rule: Callable[[Editor, Operation], str | None]) -> Graph:
  """Passes each operation through a rule.

  Args:
    graph: any.
    rule: (editor, operation, its inputs renamed) -> the name of the value that its result now is, or None where the
      operation stays. What it needs it writes by the editor.

  Returns:
    The graph as it was written anew; what nobody reads any more is still in it.
  """
  uses = readers(graph.operations, graph.outputs)
  editor = Editor(dict(graph.values), dict(graph.constants), [], {}, {}, uses)
  for one in graph.operations:
    one = one._replace(inputs=tuple(map(editor.of, one.inputs)))
    result = rule(editor, one)
    if result is None:
      editor.put(one)
    elif result != one.outputs[0]:
      editor.same[one.outputs[0]] = result
  return editor.graph(graph)
