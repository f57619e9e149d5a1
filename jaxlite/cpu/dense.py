"""Matrix products by oneDNN, where that extra and a C compiler are installed and the product is large.

XLA:CPU lays operands out anew before it multiplies them, above all in the gradient of a dense layer's weights, whose
operands both lie the wrong way round: oneDNN takes them as they lie. In a teacher a product is always XLA's own:
its bits are what the same network gives when it is called alone.
"""

from __future__ import annotations

import collections
import functools
from typing import Any

from jax import lax

from jaxlite.cpu.kernels import choose
from jaxlite.cpu.site import Site, Where, describe, shapes_of, xla_form
from jaxlite.graph.contractions import flops_of

_LEAST, _LEAST_TURNED = 20e6, 1e6  # FLOPs below which a call of its own gains little; XLA turns operands slowly


def site(eqn: Any, where: Where, turned: bool = False) -> Site | None:
  """Returns the site of a `dot_general`; None where only XLA's own form is sure, or good enough.

  Args:
    eqn: the equation.
    where: it stands. A product of a network apart is left alone.
    turned: whether it is one of `turned`: then the product is made that way round, and the two transpositions cancel.
  """
  flops = flops_of(eqn)
  if where.apart or flops < (_LEAST_TURNED if turned else _LEAST):
    return None
  forms = choose.forms(eqn, turned)
  if not forms:
    return None
  numbers = str(eqn.params['dimension_numbers']).replace(' ', '')
  key = describe('matrix product', eqn, numbers, *(['turned'] if turned else []))
  read = functools.partial(lax.transpose, permutation=_turn(eqn)) if turned else None
  return Site('matrix product', key, shapes_of(eqn), forms, next(iter(forms)), xla_form(eqn), flops=flops, read=read)


def turned(jaxpr: Any) -> set[Any]:
  """Returns the products of a program whose result is read once, with the second operand's axes moved to the front.

  So JAX writes the gradient of a dense layer's weights. XLA exchanges the operands of its own product then; a call of
  another's would be followed by a transposition.

  Args:
    jaxpr: open.

  >>> import jax
  >>> x, w = jax.numpy.ones((2, 3)), jax.numpy.ones((3, 4))
  >>> len(turned(jax.make_jaxpr(jax.grad(lambda w, x: (x @ w).sum()))(w, x).jaxpr))
  1
  """
  if all(eqn.primitive.name != 'dot_general' for eqn in jaxpr.eqns):
    return set()
  made = {eqn.outvars[0]: eqn for eqn in jaxpr.eqns if eqn.primitive.name == 'dot_general'}
  read = collections.Counter(atom for eqn in jaxpr.eqns for atom in eqn.invars if not hasattr(atom, 'val'))
  read.update(atom for atom in jaxpr.outvars if not hasattr(atom, 'val'))
  found = set()
  for eqn in jaxpr.eqns:
    if eqn.primitive.name != 'transpose' or read.get(eqn.invars[0]) != 1 or eqn.invars[0] not in made:
      continue
    product = made[eqn.invars[0]]
    _, (batch, _) = product.params['dimension_numbers']
    if not batch and tuple(eqn.params['permutation']) == _turn(product):
      found.add(product)
  return found


def _turn(eqn: Any) -> tuple[int, ...]:
  """The axes of a product's result, those of its second operand first."""
  (summed, _), _ = eqn.params['dimension_numbers']
  first, whole = eqn.invars[0].aval.ndim - len(summed), eqn.outvars[0].aval.ndim
  return *range(first, whole), *range(first)
