"""Where a held pool is written: after the bias and the activation that follow it, in place of before them.

`held` has a pool written out once. Where a bias and an activation follow, and nothing else reads what lies between,
they would read it back and write it again: a pass over memory for a few instructions' work. So the end of such a chain
is held, and XLA computes the chain with the pool. Entry by entry the operations stay what they were. A program that was
differentiated reads the values between, for the mask of its ReLU, and stays as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jax.extend import core

from jaxlite.graph import walk

# Cheap for each entry; after a comparison none of them is rounded together with what came before.
_CHEAP = frozenset({'add', 'sub', 'mul', 'neg', 'max', 'min', 'gt', 'ge', 'lt', 'le', 'select_n'})
_SMALL = 16  # an operand of a sixteenth of the entries, a bias say, is read from the nearest cache


def sunk(jaxpr: Any) -> Any:
  """Returns an open jaxpr in which pools are held after the chain that follows; the same object where there are none.

  Args:
    jaxpr: open.
  """
  holds = [eqn for eqn in jaxpr.eqns if _is_hold(eqn)]
  if not holds:
    return jaxpr
  makers = {var: eqn for eqn in jaxpr.eqns for var in eqn.outvars}
  readers: dict[Any, list[Any]] = {}
  for eqn in jaxpr.eqns:
    for atom in filter(_is_var, eqn.invars):
      readers.setdefault(atom, []).append(eqn)
  for var in filter(_is_var, jaxpr.outvars):
    readers.setdefault(var, []).append(None)
  instead: dict[int, list[Any]] = {}
  for hold in holds:
    chain = _chain(hold, readers) if _compares(makers.get(hold.invars[0])) else []
    if chain:
      instead |= _moved(hold, chain)
  return jaxpr.replace(eqns=[new for eqn in jaxpr.eqns for new in instead.get(id(eqn), [eqn])]) if instead else jaxpr


def _is_var(atom: Any) -> bool:
  return isinstance(atom, core.Var)


def _is_hold(eqn: Any) -> bool:
  return eqn.primitive.name == 'custom_jvp_call' and any(
    inner.params.get('name') == 'jaxlite_cpu_held' for inner in walk.equations(eqn.params['call_jaxpr'])
  )


def _compares(eqn: Any) -> bool:
  """Whether the last thing done to each entry is to choose it."""
  if eqn is not None and eqn.primitive.name == 'custom_jvp_call':
    body = walk.opened(eqn.params['call_jaxpr'])[0]
    eqn = next((inner for inner in body.eqns if body.outvars[0] in inner.outvars), None)
  return eqn is not None and eqn.primitive.name in ('max', 'reduce_window_max')


def _chain(hold: Any, readers: Mapping[Any, list[Any]]) -> list[Any]:
  """The cheap equations that follow one by one, each the only reader of the one before."""
  chain, at = list[Any](), hold.outvars[0]
  while len(found := readers.get(at, [])) == 1 and found[0] is not None:
    (eqn,) = found
    others = [atom for atom in eqn.invars if atom is not at]
    small = all(atom.aval.size * _SMALL <= at.aval.size for atom in others)
    if not small or len(eqn.outvars) != 1 or eqn.outvars[0].aval != at.aval or not _is_cheap(eqn):
      break
    chain.append(eqn)
    at = eqn.outvars[0]
  return [] if any(eqn is not None and _is_cheap(eqn) for eqn in found) else chain


def _is_cheap(eqn: Any) -> bool:
  """Tells whether an equation, or all that a function does (an activation is one), is cheap and goes entry by entry."""
  if eqn.primitive.name not in walk.CALLS:
    return eqn.primitive.name in _CHEAP
  body = walk.opened(eqn.params[walk.CALLS[eqn.primitive.name]])[0]
  return bool(body.eqns) and all(map(_is_cheap, body.eqns))


def _moved(hold: Any, chain: list[Any]) -> dict[int, list[Any]]:
  """By the identity of an equation, what stands in its place."""
  first, last = chain[0], chain[-1]
  before = core.Var(last.outvars[0].aval)
  read = [hold.invars[0] if atom is hold.outvars[0] else atom for atom in first.invars]
  places: dict[int, list[Any]] = {id(hold): [], id(first): [first.replace(invars=read)]}
  (end,) = places.get(id(last), [last])
  return places | {id(last): [end.replace(outvars=[before]), hold.replace(invars=[before], outvars=last.outvars)]}
