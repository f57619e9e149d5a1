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
    if move is not None and move.kind in _MOVES and not any(name in graph.constants for name in move.inputs):
      (output,), names = one.outputs, []
      for index, name in enumerate(move.inputs):
        names.append(f'{output}/{index}')
        values[names[-1]] = values[name]
        put(one._replace(inputs=(name,), outputs=(names[-1],)))
      one = move._replace(inputs=tuple(names), outputs=(output,))
    kept.append(one)
    made.update(dict.fromkeys(one.outputs, one))

  for one in graph.operations:
    put(one)
  return pruned(graph._replace(operations=tuple(kept), values=values))
