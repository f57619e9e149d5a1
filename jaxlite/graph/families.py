"""Families of units, out of the nodes that hang together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxlite.graph import walk
from jaxlite.graph.coupled import Coupled, Family, Nodes, Product, Program, Reader, Reshape
from jaxlite.graph.cut import named

_LARGEST = 2**22  # entries of a reshaped block that are looked at one by one


def couple(
  programs: Sequence[Program], shapes: Sequence[Sequence[int]], held: Mapping[int, str] | None = None
) -> Coupled:
  """Finds the families of units of programs over the same leaves.

  Args:
    programs: each form in which a model runs (training, evaluation).
    shapes: of the leaves.
    held: leaves of which nothing may be removed, and why.

  Returns:
    What may be removed, and why the rest may not.
  """
  reader = Reader()
  leaves = [reader.fresh(shape) for shape in shapes]
  reader.owners.update((id(one), leaf) for leaf, nodes in enumerate(leaves) for one in nodes)
  read = set()
  for number, program in enumerate(programs):
    bare = walk.opened(program.jaxpr)[0]
    used = {atom for eqn in bare.eqns for atom in eqn.invars if not hasattr(atom, 'val')}
    given = []
    for leaf, var in zip(program.ins, bare.invars, strict=True):
      shape = tuple(getattr(var.aval, 'shape', ()))
      given.append(reader.fresh(shape) if leaf is None else leaves[leaf])
      if leaf is None:
        reader.fix(given[-1], 'it is an input')
      elif var in used:
        read.add(leaf)
    before = len(reader.products)
    results = reader.body(program.jaxpr, given)
    if number:
      del reader.products[before:]
    for leaf, nodes in zip(program.outs, results, strict=True):
      if leaf is None:
        reader.fix(nodes, 'it is an output')
      elif leaf >= 0:
        for one, other in zip(leaves[leaf], nodes, strict=True):
          reader.tie(one, other)
  for leaf, why in (held or {}).items():
    reader.fix(leaves[leaf], why)
  for leaf, nodes in enumerate(leaves):
    if leaf not in read:
      reader.fix(nodes, 'nothing reads it')
  component, reasons = _components(reader)
  return _families(reader, leaves, component, reasons)


def connected(count: int, one: np.ndarray, other: np.ndarray) -> np.ndarray:
  """Returns for each node the least node that it hangs together with.

  Args:
    count: of nodes.
    one: int[edges], a node at one end.
    other: int[edges], the node at the other.

  >>> connected(5, np.array([1, 3]), np.array([3, 4])).tolist()
  [0, 1, 2, 1, 1]
  """
  least = np.arange(count)
  while True:
    new = least.copy()
    low = np.minimum(least[one], least[other])
    np.minimum.at(new, least[one], low)
    np.minimum.at(new, least[other], low)
    while True:  # each node points to the least one that is known: follow the pointers
      further = new[new]
      if np.array_equal(further, new):
        break
      new = further
    if np.array_equal(new, least):
      return least
    least = new


def _joined(reader: Reader) -> tuple[np.ndarray, np.ndarray]:
  """The component of each node, and which components are fixed."""
  one = np.concatenate([edge[0] for edge in reader.edges]) if reader.edges else np.zeros(0, int)
  other = np.concatenate([edge[1] for edge in reader.edges]) if reader.edges else np.zeros(0, int)
  component = connected(reader.count, one, other)
  fixed = np.zeros(reader.count, bool)
  for nodes, _ in reader.marks:
    fixed[component[nodes]] = True
  return component, fixed


def _components(reader: Reader) -> tuple[np.ndarray, dict[int, str]]:
  """Settles what reshapes tie: of the axes that one merges or splits, one at most may be cut."""
  waiting = list(reader.reshapes)
  while waiting:
    component, fixed = _joined(reader)

    def free(nodes: Nodes) -> list[int]:
      return [axis for axis, one in enumerate(nodes) if not fixed[component[one]].all()]  # noqa: B023

    forced = [one for one in waiting if len(free(one.old)) <= 1 and len(free(one.new)) <= 1]
    chosen = forced or waiting[:1]  # the outermost: heads, not what is in them
    for one in chosen:
      _settle(reader, one, (free(one.old) or [None])[0], (free(one.new) or [None])[0])
    waiting = [one for one in waiting if not any(one is other for other in chosen)]
  component, _ = _joined(reader)
  unread = np.ones(reader.count, bool)
  for nodes in reader.read:
    unread[component[nodes]] = False
  reasons: dict[int, str] = dict.fromkeys(np.flatnonzero(unread).tolist(), 'nothing sums over it')
  for nodes, why in reader.marks:
    for one in np.unique(component[nodes]).tolist():
      if unread[one] or one not in reasons:
        reasons[one] = why
  return component, reasons


def _settle(reader: Reader, reshape: Reshape, old: int | None, new: int | None) -> None:
  size = math.prod(len(one) for one in reshape.old)
  why = f'{named(reshape.eqn)} merges or splits it'
  if old is None or new is None or size > _LARGEST:
    reader.fix([*reshape.old, *reshape.new], why)
    return
  (flat,) = reader.fresh([size])
  for nodes, place in ((reshape.old, old), (reshape.new, new)):
    inner = math.prod(len(one) for one in nodes[place + 1 :])
    reader.edges.append((nodes[place][np.arange(size) // inner % len(nodes[place])], flat))
    reader.fix([one for axis, one in enumerate(nodes) if axis != place], why)


def _families(reader: Reader, leaves: Sequence[Nodes], component: np.ndarray, reasons: dict[int, str]) -> Coupled:
  fixed: dict[tuple[int, int], str] = {}
  units: dict[int, dict[tuple[int, int], list[int]]] = {}
  for leaf, nodes in enumerate(leaves):
    for axis, one in enumerate(nodes):
      held = component[one].tolist()
      for entry, unit in enumerate(held):
        if unit not in reasons:
          units.setdefault(unit, {}).setdefault((leaf, axis), []).append(entry)
      if held and all(unit in reasons for unit in held):
        fixed[leaf, axis] = reasons[held[0]]
  alike: dict[Any, list[int]] = {}
  for unit, parts in units.items():
    alike.setdefault(tuple(sorted((member, len(entries)) for member, entries in parts.items())), []).append(unit)
  families, of_unit = [], {}
  for key, several in alike.items():
    members = tuple(member for member, _ in key)
    if len(several) == 1:  # something must be left
      for member in members:
        fixed.setdefault(member, 'it is one alone')
      continue
    parts = tuple(tuple(tuple(units[unit][member]) for member in members) for unit in several)
    widths = tuple(
      len(one) * reader.beside.get(id(leaves[m[0]][m[1]]), 0) for m, one in zip(members, parts[0], strict=True)
    )
    families.append(Family(members, parts, widths))
    of_unit.update(dict.fromkeys(several, len(families) - 1))
  products = []
  for axes, each in reader.products:
    said = []
    for one in axes:
      counts: dict[int, int] = {}
      for unit in component[one].tolist():
        counts[of_unit.get(unit, -1)] = counts.get(of_unit.get(unit, -1), 0) + 1
      rest = counts.pop(-1, 0)
      if counts:
        said.append((rest, tuple(sorted(counts.items()))))
      else:
        each *= rest
    products.append(Product(tuple(said), each))
  return Coupled(tuple(families), fixed, tuple(products))
