"""Another grid is taken before values are moved, not behind it: LiteRT's moves and pools have one grid on both sides.

To move values, or to take the largest of some, and then to bring them to another grid gives the same integers as the
other way round, since the way between two grids never changes an order.
"""

from __future__ import annotations

from jaxlite.deployment.operations import Graph, Operation, pruned

_MOVES = frozenset(('reshape', 'transpose', 'squeeze', 'slice', 'rev', 'broadcast_in_dim', 'concatenate', 'max_pool'))


def requantized_earlier(graph: Graph) -> Graph:
  """Returns a graph in which no 'requantize' reads what was only moved, unless a constant was.

  Args:
    graph: any; what has other readers stays for them.
  """
  values = dict(graph.values)
  made: dict[str, Operation] = {}
  kept: list[Operation] = []

  def put(one: Operation) -> None:
    move = made.get(one.inputs[0]) if one.kind == 'requantize' else None
    if move is not None and move.kind == 'quantize':
      return put_all(_from_float(one, move))
    if move is not None and move.kind in _MOVES and not any(name in graph.constants for name in move.inputs):
      (output,), names = one.outputs, []
      for index, name in enumerate(move.inputs):
        names.append(f'{output}/{index}')
        values[names[-1]] = values[name]
        put(one._replace(inputs=(name,), outputs=(names[-1],)))
      one = move._replace(inputs=tuple(names), outputs=(output,))
    kept.append(one)
    made.update(dict.fromkeys(one.outputs, one))

  def put_all(several: tuple[Operation, ...]) -> None:
    for one in several:
      values.setdefault(one.outputs[0], values[one.inputs[0]])
      kept.append(one)
      made[one.outputs[0]] = one

  for one in graph.operations:
    put(_without_nothing(graph, one))
  return pruned(graph._replace(operations=tuple(kept), values=values))


def _from_float(one: Operation, first: Operation) -> tuple[Operation, ...]:
  """A float that is quantized twice goes to the second grid by itself, cut where the first one ends: what lies between
  two entries of the first may end a step away."""
  (output,), told, ends = one.outputs, one.attributes, first.attributes
  edges = {key: (ends[key] - ends['zero_point']) * ends['scale'] for key in ('low', 'high')}
  grid = {'scale': told['y_scale'], 'zero_point': told.get('y_zero_point', 0)}
  limits = {'low': told.get('low', -128), 'high': told.get('high', 127)}
  return (
    Operation('clip', first.inputs, (f'{output}/cut',), edges),
    Operation('quantize', (f'{output}/cut',), one.outputs, {**grid, **limits}),
  )


def _without_nothing(graph: Graph, one: Operation) -> Operation:
  """To add zeros, as a bias is that was never trained, is only to take another grid; a converter leaves it out."""
  if one.kind != 'quantized_add':
    return one
  told = one.attributes
  for letter, other, name, left in zip('ab', 'ba', one.inputs, reversed(one.inputs), strict=True):
    array = graph.constants.get(name)
    if array is not None and (array == told[f'{letter}_zero_point']).all() and left not in graph.constants:
      rest = {key: value for key, value in told.items() if key.startswith('y_') or key in ('low', 'high')}
      grid = {'x_scale': told[f'{other}_scale'], 'x_zero_point': told[f'{other}_zero_point']}
      return Operation('requantize', (left,), one.outputs, {**grid, **rest})
  return one
