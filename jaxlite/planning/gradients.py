"""Which products of a body make a weight's gradient: a program does not say, as nothing there multiplies the weight."""

from __future__ import annotations

import collections
import re
from collections.abc import Sequence
from typing import Any

from jaxlite.planning.flat import Node


def gradients(nodes: Sequence[Node]) -> dict[tuple[int, ...], str]:
  """Returns by what a product writes which weight's gradient it is: of what that was multiplied with, in its shape.

  Args:
    nodes: of a body.
  """
  moved: dict[int, int] = {}
  met: dict[int, list[tuple[str, tuple[int, ...]]]] = collections.defaultdict(list)
  by_shape: dict[tuple[int, ...], set[str]] = collections.defaultdict(set)
  found: dict[tuple[int, ...], str] = {}
  contractions = []
  for node in nodes:
    name = node.eqn.primitive.name
    if name in ('transpose', 'reshape', 'squeeze', 'convert_element_type', 'rev', 'copy', 'name', 'expand_dims'):
      moved[node.writes[0]] = moved.get(node.reads[0], node.reads[0])
    elif name in ('dot_general', 'conv_general_dilated'):
      contractions.append(node)
  for node in contractions:
    if node.layer and not node.layer.startswith('<'):
      name = re.sub(r'#\d+$', '', node.layer)
      for mine, other in ((0, 1), (1, 0)):
        shape = _shape(node.eqn.invars[other])
        met[moved.get(node.reads[mine], node.reads[mine])].append((name, shape))
        by_shape[shape].add(name)
  for node in reversed(contractions):
    if node.layer:
      continue
    shape = _shape(node.eqn.outvars[0])
    names = [name for value in node.reads for name, other in met.get(moved.get(value, value), ()) if other == shape]
    free = [name for name in names if name not in found.values()] or names
    if free:
      found[node.writes] = free[0]
    elif len(by_shape.get(shape, ())) == 1:
      found[node.writes] = next(iter(by_shape[shape]))
  return found


def _shape(atom: Any) -> tuple[int, ...]:
  return tuple(sorted(size for size in atom.aval.shape if size > 1))
