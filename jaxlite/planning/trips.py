"""How often a while loop runs, read off its program: where it counts in equal steps, or ends after its first turn."""

from __future__ import annotations

from typing import Any

from jaxlite.graph import walk
from jaxlite.planning.flat import Flat, Node


def trips(node: Node, body: Flat) -> float | None:
  """Returns how often a while loop runs, where it counts from a number to a number in equal steps; else None.

  Args:
    node: the loop.
    body: that it stands in.
  """
  eqn = node.eqn
  cond, inner = (walk.opened(eqn.params[one])[0] for one in ('cond_jaxpr', 'body_jaxpr'))
  before, fixed = eqn.params['cond_nconsts'], eqn.params['body_nconsts']
  if len(cond.eqns) != 1 or cond.eqns[0].primitive.name not in ('lt', 'le', 'gt', 'ge', 'ne'):
    return None
  if cond.outvars[0] is not cond.eqns[0].outvars[0]:
    return None

  def known(atom: Any) -> tuple[float | None, int | None]:
    """(its number, where in the carry it stands)."""
    if hasattr(atom, 'val'):
      return float(atom.val), None
    at = cond.invars.index(atom)
    given = node.reads[at] if at < before else node.reads[at + fixed]
    value = body.literals.get(given)
    place = None if at < before else at - before
    same = place is not None and inner.outvars[place] is inner.invars[fixed + place]
    return (float(value) if value is not None else None), None if same else place

  (low, mine), (high, other) = (known(atom) for atom in cond.eqns[0].invars)
  if low is None or high is None or (mine is None) == (other is None):
    return None
  at = mine if mine is not None else other
  made = [one for one in inner.eqns if one.outvars[0] is inner.outvars[at]]
  if not made or made[0].primitive.name not in ('add', 'sub'):
    return None
  sides = made[0].invars
  moving = [i for i, atom in enumerate(sides) if atom is inner.invars[fixed + at]]  # type: ignore[operator]
  by = [float(atom.val) for atom in sides if hasattr(atom, 'val')]
  if len(moving) != 1 or len(by) != 1 or not by[0] or (made[0].primitive.name == 'sub' and moving[0] != 0):
    return None
  pace = by[0] if made[0].primitive.name == 'add' else -by[0]
  start, end = (low, high) if mine is not None else (high, low)
  kind = cond.eqns[0].primitive.name
  kind = kind if mine is not None else {'lt': 'gt', 'le': 'ge', 'gt': 'lt', 'ge': 'le', 'ne': 'ne'}[kind]
  return _count(kind, start, end, pace)


def is_conditional(eqn: Any) -> bool:
  """Whether a while loop asks a value of its carry that its first turn makes False: `alike.once` writes them so.

  Args:
    eqn: the loop.
  """
  cond, body = (walk.opened(eqn.params[one])[0] for one in ('cond_jaxpr', 'body_jaxpr'))
  carried = cond.invars[eqn.params['cond_nconsts'] :]
  if cond.eqns or cond.outvars[0] not in carried:
    return False
  after = body.outvars[carried.index(cond.outvars[0])]
  return hasattr(after, 'val') and not after.val


def _count(kind: str, start: float, end: float, pace: float) -> float | None:
  gap = (end - start) / pace
  going = {'lt': start < end, 'le': start <= end, 'gt': start > end, 'ge': start >= end, 'ne': start != end}[kind]
  if not going:
    return 0.0
  if gap < 0 or ((kind in ('lt', 'le')) != (pace > 0) and kind != 'ne'):
    return None
  if kind in ('le', 'ge'):
    return float(int(gap) + 1)
  return float(-(-gap // 1)) if kind != 'ne' or gap == int(gap) else None
