"""What a body lays out anew against the order in which it lies: transpositions that no neighbour takes in.

XLA for CPU reads such an array entry by entry, which takes many times what a pass over it does.
"""

from __future__ import annotations

import collections
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

from jaxlite.planning.flat import Node
from jaxlite.planning.flow import size_of

_OPERAND = 6  # passes over an operand that is read so: it is laid out, and its neighbours wait for that
_PRODUCTS = frozenset({'dot_general', 'ragged_dot', 'ragged_dot_general'})


def turned(nodes: Sequence[Node]) -> Iterator[tuple[Node, float]]:
  """Gives the nodes at which arrays are laid out anew, each with the bytes that are read and written for it.

  A matrix that a product reads or has written either way round costs nothing; an axis in the middle that is summed
  over, or that is to be the last one, does.

  Args:
    nodes: of a body without calls.
  """
  made = {value: node.eqn.primitive.name for node in nodes for value in node.writes}
  readers: dict[int, set[str]] = collections.defaultdict(set)
  for node in nodes:
    for value in node.reads:
      readers[value].add(node.eqn.primitive.name)
  for node in nodes:
    name = node.eqn.primitive.name
    if name == 'dot_general':
      size = sum(_of_operand(node.eqn, side) for side in (0, 1))
    elif name == 'transpose':
      near = made.get(node.reads[0]) in _PRODUCTS or (readers[node.writes[0]] or {''}) <= _PRODUCTS
      size = _of_axes(node.eqn, near)
    else:
      continue
    if size:
      yield node, size


def _of_axes(eqn: Any, near: bool) -> float:
  """Of a transposition; one beside a product that exchanges rows and columns costs nothing."""
  shape = eqn.invars[0].aval.shape
  axes = [axis for axis in eqn.params['permutation'] if shape[axis] > 1]
  if not axes or axes[-1] == max(axes):
    return 0.0
  first = axes.index(min(axes))
  if near and axes[first:] + axes[:first] == sorted(axes):
    return 0.0
  return 2 * size_of(eqn.outvars[0].aval)


def _of_operand(eqn: Any, side: int) -> float:
  """Of a product's operand: it is read as a matrix where the axes that are summed over lie together at an end."""
  aval = eqn.invars[side].aval
  summed, batch = (axes[side] for axes in eqn.params['dimension_numbers'])
  rest = [axis in summed for axis in range(len(aval.shape)) if axis not in batch and aval.shape[axis] > 1]
  changes = sum(one != other for one, other in itertools.pairwise(rest))
  return _OPERAND * size_of(aval) if changes > 1 and math.prod(aval.shape) else 0.0
