"""Points that a list lacks: where a value could be int8 and nothing says its range, it gets one from examples.

Both operands of an addition, what a mean or a norm or softmax reads of a contraction, and both operands of a product of
activations. A value that has a grid keeps it: one quantized value serves all that read it. Results stay float.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from jaxlite.deployment.integers.grids import Grid, calibrated, grid_in
from jaxlite.deployment.integers.points import MOVES, POOLS, absorbed
from jaxlite.deployment.operations import Graph, Operation, Value, pruned, readers

_FLOAT = np.dtype(np.float32)
_THROUGH = (*MOVES, 'relu', 'clip', 'pad', 'concatenate')
_SUMS = ('mean', 'softmax', 'reduce_sum', 'reduce_max', 'square')  # a norm or a softmax, from its first operation

Ranges = Callable[[Graph, tuple[str, ...]], Mapping[str, tuple[float, float]]]


def completed(graph: Graph, ranges: Ranges | None, bits: int) -> Graph:
  """Returns the graph with a point wherever one is wanted.

  Args:
    graph: of `points.pointed`, its activations recognized.
    ranges: (graph, names) -> the lowest and highest of each of these values; None where no example tells.
    bits: of the new points.

  Raises:
    ValueError: a range that is not known or was never seen.
  """
  makers = {name: one for one in graph.operations for name in one.outputs}
  wanted = _wanted(graph, makers)
  grids = {name: grid for name in wanted if (grid := _known(graph, makers, name, bits)) is not None}
  asked = tuple(name for name in wanted if name not in graph.constants)
  missing = [name for name in asked if name not in grids]
  if missing and ranges is None:
    raise ValueError(
      f'every=True quantizes {len(missing)} values that have no range, such as {missing[0]} ({wanted[missing[0]]}): '
      'give examples, a few hundred such as will be met'
    )
  spans = {name: _ends(graph.constants[name]) for name in wanted if name in graph.constants}
  if asked and ranges is not None:
    spans.update(ranges(graph, asked))
  for name, (low, high) in spans.items():
    if name in grids and (not low <= high or _covers(grids[name], low, high)):
      continue
    if not (np.isfinite(low) and np.isfinite(high) and low <= high):
      raise ValueError(
        f'integers need the range of every value that they stand for; of {name} ({wanted[name]}) no example shows a '
        'finite one: give examples as will be met'
      )
    grids[name] = calibrated(low, high, bits)
  return absorbed(pruned(_inserted(graph, grids)))


def _covers(grid: Grid, low: float, high: float) -> bool:
  """Whether a grid that was made for another reader, who may clip, clips next to nothing of a range."""
  ends = [grid.scale * (end - grid.zero_point) for end in (grid.low, grid.high)]
  spare = (ends[1] - ends[0]) / 8
  return ends[0] - spare <= low and high <= ends[1] + spare


def _ends(array: np.ndarray) -> tuple[float, float]:
  return float(array.min()), float(array.max())


def _wanted(graph: Graph, makers: Mapping[str, Operation]) -> dict[str, str]:
  """The values that should be on a grid, and why."""
  found: dict[str, str] = {}
  uses = readers(graph.operations, graph.outputs)

  def ask(name: str, why: str) -> None:
    maker = makers.get(name)
    if graph.values[name].dtype == _FLOAT and (maker is None or maker.kind != 'dequantize'):
      found.setdefault(name, why)

  for one in graph.operations:
    if one.kind == 'add' and all(_whole(graph, makers, name) for name in one.inputs):
      if graph.values[one.inputs[0]] == graph.values[one.inputs[1]]:
        for name in one.inputs:
          ask(name, f'read by {one.outputs[0]} = add')
    elif one.kind in _SUMS and _whole(graph, makers, one.inputs[0]) and not _answers(graph, one):
      ask(one.inputs[0], f'read by {one.outputs[0]} = {one.kind}')
    elif one.kind == 'concatenate' and all(_whole(graph, makers, name) for name in one.inputs):
      for name in one.inputs:
        if uses[name] > 1:  # else it takes the grid of the whole
          ask(name, f'read by {one.outputs[0]} = concatenate')
    elif one.kind == 'dot_general' and _of_activations(graph, one):
      for name in one.inputs:
        ask(name, f'read by {one.outputs[0]} = dot_general')
  return found


def _answers(graph: Graph, one: Operation) -> bool:
  """Whether a softmax is a result of the network: what it reads are logits, and two of 256 steps may tie."""
  return one.kind == 'softmax' and one.outputs[0] in graph.outputs


def _of_activations(graph: Graph, one: Operation) -> bool:
  floats = all(graph.values[name].dtype == _FLOAT for name in (*one.inputs, *one.outputs))
  return floats and not any(name in graph.constants for name in one.inputs)


def _whole(graph: Graph, makers: Mapping[str, Operation], name: str) -> bool:
  """Whether integers can make a value: it leaves a contraction, a sum or a mean of such, or is known beforehand."""
  todo, seen = [name], set()
  while todo:
    name = todo.pop()
    if name in seen:
      continue
    seen.add(name)
    maker = makers.get(name)
    if name in graph.constants:
      if graph.constants[name].size == 1:  # a number that shifts, as of a norm or an activation
        return False
    elif maker is None:
      if graph.values[name].dtype != _FLOAT:
        return False
    elif maker.kind in _THROUGH or maker.kind == 'add':
      todo += maker.inputs[:1] if maker.kind == 'pad' else maker.inputs
    elif maker.kind == 'take':
      if graph.values[maker.inputs[0]].dtype != _FLOAT:
        return False
    elif maker.kind == 'mean':
      todo.append(maker.inputs[0])
    elif maker.kind == 'dequantize':
      continue
    elif maker.kind not in ('scaled_dense', 'scaled_conv', 'scaled_dot', 'dot_general'):
      return False
  return True


def _known(graph: Graph, makers: Mapping[str, Operation], name: str, bits: int) -> Grid | None:
  """The grid that another reader of a value has it on, be it moved first; None where it has fewer bits."""
  grid = _found(graph, makers, name)
  return grid if grid is not None and grid.high - grid.low >= 2**bits - 1 else None


def _found(graph: Graph, makers: Mapping[str, Operation], name: str) -> Grid | None:
  names = {name}
  for one in graph.operations:
    if one.kind == 'quantize' and one.inputs[0] in names:
      return grid_in(one.attributes)
    if one.kind in MOVES and one.kind not in POOLS and one.inputs[0] in names:
      names.update(one.outputs)
  while (maker := makers.get(name)) is not None and maker.kind in MOVES:
    name = maker.inputs[0]
    for one in graph.operations:
      if one.kind == 'quantize' and one.inputs[0] == name:
        return grid_in(one.attributes)
  return None


def _inserted(graph: Graph, grids: Mapping[str, Grid]) -> Graph:
  """All that computes with one of these values reads it off its grid."""
  values, constants, operations = dict(graph.values), dict(graph.constants), []
  swapped: dict[str, str] = {}

  def point(name: str, grid: Grid) -> list[Operation]:
    q, real = _fresh(values, f'{name}_q'), _fresh(values, f'{name}_r')
    values[q], values[real] = Value(values[name].shape, np.dtype(np.int8)), Value(values[name].shape, _FLOAT)
    swapped[name] = real
    zero = {'scale': grid.scale, 'zero_point': grid.zero_point}
    return [Operation('quantize', (name,), (q,), grid.told), Operation('dequantize', (q,), (real,), zero)]

  for name, grid in grids.items():
    if name in graph.inputs or name in constants:
      operations += point(name, grid)
  for one in graph.operations:
    if one.kind != 'quantize' or _elsewhere(one, grids):
      one = one._replace(inputs=tuple(swapped.get(name, name) for name in one.inputs))
    if one.kind == 'dot_general' and all(name in swapped.values() or _on_grid(operations, name) for name in one.inputs):
      numbers = {'dimension_numbers': one.attributes['dimension_numbers'], 'factor': 1.0}
      one = one._replace(kind='scaled_dot', attributes=numbers)
    operations.append(one)
    for name in one.outputs:
      if name in grids:
        operations += point(name, grids[name])
  return Graph(graph.inputs, graph.outputs, tuple(operations), values, constants)


def _elsewhere(one: Operation, grids: Mapping[str, Grid]) -> bool:
  """Whether a 'quantize' reads a value that has another grid: it is brought from there, and no float between."""
  grid = grids.get(one.inputs[0])
  return grid is not None and grid.told != dict(one.attributes)


def _on_grid(operations: Iterable[Operation], name: str) -> bool:
  return any(one.kind == 'dequantize' and name in one.outputs for one in operations)


def _fresh(values: Mapping[str, Any], name: str) -> str:
  while name in values:
    name += '_'
  return name
