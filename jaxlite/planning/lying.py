"""How what a kernel reads lies in memory, where its own equation does not say: arrays that others have turned, sums
that a compiler makes into one, entries that are asked for their own place.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Sequence

from jaxlite.planning.flat import Flat, Node
from jaxlite.planning.work import work_of

_RENAMED = ('reshape', 'broadcast_in_dim', 'squeeze', 'expand_dims', 'convert_element_type')


def lying(body: Flat) -> dict[tuple[int, ...], tuple[int, ...]]:
  """Returns by what a node writes the sides that it has, as `work.Work` has them, where they are not those it shows.

  XLA turns no array that a sliding window reads: it slides over it as it lies, which decides how many entries are side
  by side. A sum that only other sums read is one with them.

  Args:
    body: without calls.
  """
  made = {value: node for node in body.nodes for value in node.writes}
  readers: dict[int, list[Node]] = collections.defaultdict(list)
  for node in body.nodes:
    for value in node.reads:
      readers[value].append(node)
  found = {}
  for node in body.nodes:
    name = node.eqn.primitive.name
    if name == 'reduce_sum' and node.writes[0] not in body.outputs:
      others = readers[node.writes[0]]
      if others and all(one.eqn.primitive.name == 'reduce_sum' for one in others):
        found[node.writes] = (0, work_of(node.eqn).sides[1])
    elif name.startswith('reduce_window') or name == 'select_and_scatter_add':
      turned = _before(node.reads[-1 if name.startswith('select') else 0], made)
      sides = work_of(node.eqn).sides if turned is not None else ()
      if turned is not None and len(sides) == 4 and not sides[1]:
        shape = turned.eqn.invars[0].aval.shape  # a picture's rows follow each other: it slides along them
        found[node.writes] = (*sides[:2], math.prod(shape[-2:]), sides[3])
  return found


def _before(value: int, made: dict[int, Node]) -> Node | None:
  """The transposition that made a value, under other names or shapes; None where none did."""
  while (node := made.get(value)) is not None:
    if node.eqn.primitive.name == 'transpose':
      return node
    if node.eqn.primitive.name not in _RENAMED:
      return None
    value = node.reads[0]
  return None


def by_place(nodes: Sequence[Node]) -> dict[tuple[int, ...], int]:
  """Returns by what a node writes that takes the remainder of an entry's own place how many entries lie side by side.

  Args:
    nodes: of a body without calls.
  """
  places: set[int] = set()
  found = {}
  for node in nodes:
    name, shape = node.eqn.primitive.name, node.eqn.outvars[0].aval.shape if node.eqn.outvars else ()
    if name == 'iota' or (name in _RENAMED and node.reads[0] in places):
      places.update(node.writes)
    elif name == 'rem' and node.reads[0] in places and shape:
      found[node.writes] = shape[-1]
  return found
