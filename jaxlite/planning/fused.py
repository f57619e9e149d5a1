"""Which equations of a body become one kernel, and the bytes that enter and leave it."""

from __future__ import annotations

import collections
from collections.abc import Sequence
from typing import Any, NamedTuple

from jaxlite.planning.flat import Flat, Node
from jaxlite.planning.flow import size_of
from jaxlite.planning.work import Work, work_of

_PRODUCTS = frozenset({'dot_general', 'ragged_dot', 'ragged_dot_general'})
_CUTS = frozenset({'slice', 'dynamic_slice', 'gather'})


class Kernel(NamedTuple):
  """Some equations that run as one, or one with bodies.

  Attributes:
    nodes: in order; the last gives the result.
    works: of each; () for one with bodies.
    bytes: that enter and leave.
  """

  nodes: tuple[Node, ...]
  works: tuple[Work, ...]
  bytes: float


class _Uses(NamedTuple):
  """Of each node of a body: its work, what it is to its readers, and who they are.

  Attributes:
    works: None for a node with bodies.
    free: it costs nothing: its readers read what it reads.
    readers: by value, the nodes that read it, through free ones.
    out: values that leave the body, through free ones.
    source: of a free node's value, the value behind it; None where there is none (an iota).
    avals: of every value.
  """

  works: list[Work | None]
  free: list[bool]
  readers: dict[int, set[int]]
  out: set[int]
  source: dict[int, int | None]
  avals: dict[int, Any]


def kernels(body: Flat, has_bodies: Sequence[bool]) -> list[Kernel]:
  """Returns what a body runs, in order: chains of element by element work are one kernel each.

  A chain ends where its value leaves the body, is read by several kernels, or by one that cannot take it in.

  Args:
    body: without calls.
    has_bodies: of each of its nodes, whether it is a loop, a branch, or the like.
  """
  uses = _read(body, has_bodies)
  group = _grouped(body.nodes, uses)
  members: dict[int, list[int]] = {}
  for index, head in enumerate(group):
    if head >= 0:
      members.setdefault(head, []).append(index)
  return [_kernel(body.nodes, members[head], head, group, uses) for head in sorted(members)]


def _read(body: Flat, has_bodies: Sequence[bool]) -> _Uses:
  nodes = body.nodes
  works = [None if deep else work_of(node.eqn) for node, deep in zip(nodes, has_bodies, strict=True)]
  free = [work is not None and work.kind == '' for work in works]
  readers: dict[int, set[int]] = {}
  out, avals = set(body.outputs), {}
  made = {value: node.eqn.primitive.name for node in nodes for value in node.writes}
  read = collections.Counter(value for node in nodes for value in node.reads)
  for index in reversed(range(len(nodes))):
    node = nodes[index]
    mine = set().union(*(readers.get(value, set()) for value in node.writes))
    if node.eqn.primitive.name == 'transpose' and not any(value in out for value in node.writes):
      # Products read either way round, and write so where nobody else reads what they gave.
      turned = made.get(node.reads[0]) in _PRODUCTS and read[node.reads[0]] == 1
      free[index] = turned or (bool(mine) and all(nodes[one].eqn.primitive.name in _PRODUCTS for one in mine))
    leaves = free[index] and any(value in out for value in node.writes)
    for value in node.reads:
      readers.setdefault(value, set()).update(mine if free[index] else {index})
      if leaves:
        out.add(value)
  source: dict[int, int | None] = {}
  for index, node in enumerate(nodes):
    for atom, value in zip(node.eqn.invars, node.reads, strict=True):
      avals.setdefault(value, atom.aval)
    for var, value in zip(node.eqn.outvars, node.writes, strict=True):
      avals.setdefault(value, var.aval)
    if free[index]:
      pairs = node.reads if len(node.reads) == len(node.writes) else node.reads[:1] * len(node.writes)
      for value, behind in zip(node.writes, pairs or (None,) * len(node.writes), strict=True):
        source[value] = source.get(behind, behind) if behind is not None else None
  return _Uses(works, free, readers, out, source, avals)


def _grouped(nodes: Sequence[Node], uses: _Uses) -> list[int]:
  """For each node the last one of its kernel; -1 for what is free."""
  group = [-1] * len(nodes)
  for index in reversed(range(len(nodes))):
    if uses.free[index]:
      continue
    group[index] = index
    work = uses.works[index]
    if work is None or not work.fused or any(value in uses.out for value in nodes[index].writes):
      continue
    mine = set().union(*(uses.readers.get(value, set()) for value in nodes[index].writes))
    into = {group[one] for one in mine}
    takers = [uses.works[one] for one in mine]
    if len(into) == 1 and all(one is not None and (one.fused or _sums(one, nodes, mine)) for one in takers):
      group[index] = into.pop()
  return group


def _sums(work: Work, nodes: Sequence[Node], readers: set[int]) -> bool:
  """Whether a kernel computes what it sums as it reads it: plain reductions do, sliding windows do not."""
  names = {nodes[one].eqn.primitive.name for one in readers}
  return work.kind == 'reductions' and not any('window' in name or 'select_and' in name for name in names)


def _kernel(nodes: Sequence[Node], members: list[int], head: int, group: list[int], uses: _Uses) -> Kernel:
  own = {value for index in members for value in nodes[index].writes}
  reads: dict[int, float] = {}
  alone = len(members) == 1 and not (uses.works[head] or Work('')).fused
  for index in members:
    node = nodes[index]
    name = node.eqn.primitive.name
    for atom, value in zip(node.eqn.invars, node.reads, strict=True):
      behind = value if alone else uses.source.get(value, value)
      if behind is None or behind in own or behind < 0:
        continue
      size = size_of(atom.aval) if alone else size_of(uses.avals[behind])
      if name in _CUTS and value == node.reads[0]:
        size = min(size, size_of(node.eqn.outvars[0].aval))
      reads[behind] = max(reads.get(behind, 0.0), size)
  written = 0.0
  for index in members:
    for var, value in zip(nodes[index].eqn.outvars, nodes[index].writes, strict=True):
      outside = any(group[one] != head for one in uses.readers.get(value, ()))
      if index == head or value in uses.out or outside:
        written += size_of(var.aval)
  total = sum(reads.values()) + written
  name = nodes[head].eqn.primitive.name
  if alone and name == 'dynamic_update_slice':
    total = 2 * size_of(nodes[head].eqn.invars[1].aval)  # in place
  elif alone and name.startswith('scatter'):
    total = 3 * size_of(nodes[head].eqn.invars[2].aval) + size_of(nodes[head].eqn.invars[1].aval)
  works = tuple(work for work in (uses.works[index] for index in members) if work is not None)
  return Kernel(tuple(nodes[index] for index in members), works, total)
