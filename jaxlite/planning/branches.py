"""Which side of a branch a program takes: one that counts steps takes the cheap side at most of them, one that looks at
data may take any.

Hooks that act now and then (pruning, averaging, refreshing what is kept) ask a counter; mixtures and early exits ask
the data. The first are told from the second by what the question is computed from: scalars of whole numbers or truth
values among a program's arguments, and numbers that stand in it, are counters; all else is data.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxlite.graph import walk
from jaxlite.planning.flat import Flat, flat

SCHEDULED = 'of a branch that a counter picks the dearest side counts, and time is told of the cheapest'
BY_DATA = 'of a branch that data pick the dearest side counts, and time is told as if each side were as likely'


def are_counters(avals: Sequence[Any]) -> tuple[bool, ...]:
  """Returns of each argument of a program whether it is a counter or a flag.

  >>> import jax
  >>> are_counters(jax.make_jaxpr(lambda step, x: x)(3, jax.numpy.ones(2)).in_avals)
  (True, False)
  """
  return tuple(_is_counter(aval) for aval in avals)


def _is_counter(aval: Any) -> bool:
  dtype = getattr(aval, 'dtype', None)
  whole = isinstance(dtype, np.dtype) and dtype.kind in 'iub'
  return whole and getattr(aval, 'shape', (1,)) == ()


def counted(body: Flat, given: Sequence[bool]) -> frozenset[int]:
  """Returns the values of a body that hang on counters alone.

  Args:
    body: it.
    given: of each of its inputs, whether that does.
  """
  found = {value for value, yes in zip(body.inputs, given, strict=True) if yes}
  for node in body.nodes:
    if not node.eqn.effects and all(value < 0 or value in found for value in node.reads):
      found.update(node.writes)
  return frozenset(found)


def carried(eqn: Any, given: Sequence[bool]) -> tuple[bool, ...]:
  """Returns of each input of a loop's body whether it hangs on counters alone, at every turn.

  Args:
    eqn: a scan, or a while loop.
    given: of each of its operands, whether that does.
  """
  loops = eqn.primitive.name == 'while'
  given = list(given[eqn.params['cond_nconsts'] if loops else 0 :])
  body = eqn.params['body_jaxpr'] if loops else walk.bodies(eqn)[0]
  if not walk.has_primitive(body, 'cond', 'while'):
    return (False,) * len(given)  # nobody asks
  fixed, carry = (
    (eqn.params['body_nconsts'], len(given) - eqn.params['body_nconsts']) if loops else walk.scan_layout(eqn)
  )
  opened = flat(body)
  while True:  # ends: each turn takes at least one away
    known = counted(opened, given)
    out = [value < 0 or value in known for value in opened.outputs[:carry]]
    after = [yes and (not fixed <= at < fixed + carry or out[at - fixed]) for at, yes in enumerate(given)]
    if after == given:
      return tuple(given)
    given = after
