"""Which grid each int8 value of a graph lies on: LiteRT keeps it with the value, our list with those that read it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from jaxlite.deployment.integers import rules as integer_rules
from jaxlite.deployment.operations import Graph, Operation

KINDS = frozenset(integer_rules.rules(lambda: None, lambda: None))  # type: ignore[arg-type]  # their names alone
_TWO = ('quantized_add', 'quantized_dot')


class Grid(NamedTuple):
  """What a stored integer stands for: scale * (stored - zero_point)."""

  scale: float
  zero_point: int


def separate(graph: Graph) -> Graph:
  """Returns a graph in which each reader has an int8 constant of its own: one zero pads values of several grids."""
  values, constants, operations = dict(graph.values), dict(graph.constants), []
  for index, one in enumerate(graph.operations):
    names = []
    for name in one.inputs:
      if name in graph.constants and graph.values[name].dtype == np.int8:
        own = f'{name}/{index}'
        values[own], constants[own] = graph.values[name], graph.constants[name]
        name = own
      names.append(name)
    operations.append(one._replace(inputs=tuple(names)))
  return graph._replace(operations=tuple(operations), values=values, constants=constants)


def grids(graph: Graph) -> dict[str, Grid]:
  """Returns the grid of each int8 value that has one; what only moves values passes its grid on.

  Raises:
    ValueError: a value is written on one grid and read as of another.
  """
  found: dict[str, Grid] = {}
  for one in graph.operations:
    for name, grid in told_by(one).items():
      _agree(found, name, grid)
  before = -1
  while len(found) != before:
    before = len(found)
    for one in graph.operations:
      small = [name for name in (*one.inputs, *one.outputs) if graph.values[name].dtype == np.int8]
      known = next((found[name] for name in small if name in found), None)
      if one.kind not in KINDS and known is not None:
        for name in small:
          _agree(found, name, known)
  return found


def told_by(one: Operation) -> dict[str, Grid]:
  """The grids that an operation's attributes tell, by value."""
  told = one.attributes
  if one.kind not in KINDS or (one.kind == 'dequantize' and len(one.inputs) == 2):
    return {}
  if one.kind in ('quantize', 'dequantize'):
    name = one.outputs[0] if one.kind == 'quantize' else one.inputs[0]
    return {name: Grid(told.get('scale', 1.0), told.get('zero_point', 0))}
  letters = 'ab' if one.kind in _TWO else 'x'
  pairs = zip(one.inputs, letters, strict=False)
  read = {name: Grid(told[f'{letter}_scale'], told[f'{letter}_zero_point']) for name, letter in pairs}
  if told.get('y_scale') is not None:
    read[one.outputs[0]] = Grid(told['y_scale'], told.get('y_zero_point', 0))
  return read


def _agree(found: dict[str, Grid], name: str, grid: Grid) -> None:
  if found.setdefault(name, grid) != grid:
    raise ValueError(f'LiteRT knows one grid of each value; {name} is read as of {found[name]} and of {grid}')
