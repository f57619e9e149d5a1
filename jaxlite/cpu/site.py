"""One equation that has other forms on CPU, and which of them is taken."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from jaxlite.contract import APART

XLA_FORM = 'xla'  # the name of the equation as it stands


class Where(NamedTuple):
  """What is known of the place of an equation.

  Attributes:
    looped: it stands in a loop.
    apart: it belongs to a network that runs beside the one in training.
  """

  looped: bool = False
  apart: bool = False

  def at(self, eqn: Any) -> Where:
    """Returns the place of an equation whose surroundings are this place."""
    return self._replace(apart=self.apart or APART in str(eqn.source_info.name_stack))

  def inside(self, eqn: Any) -> Where:
    """Returns the place of an equation's bodies. A scan that is wholly unrolled is no loop."""
    name = eqn.primitive.name
    repeats = name == 'while' or (name == 'scan' and int(eqn.params['unroll']) < eqn.params['length'])
    return self.at(eqn)._replace(looped=self.looped or repeats)


class Site(NamedTuple):
  """An equation with the forms that give the same result.

  Attributes:
    kind: what the equation is, in words.
    key: what the choice depends on, in words: sites of one key take one form.
    operands: their shapes and dtypes.
    forms: by name, functions of the operands; 'xla' is never among them.
    default: the form taken where nothing was measured; may be 'xla'.
    xla_form: the equation itself, as a function.
    flops: of the equation; 0 where its time does not depend on them.
    looped: whether it stands in a loop, where XLA's own form has to be avoided.
    exact: every form gives XLA's own bits, so that there is nothing to choose or record.
    read: what the program does with the result at once, and a form may be made for: measured with it.
  """

  kind: str
  key: str
  operands: tuple[jax.ShapeDtypeStruct, ...]
  forms: Mapping[str, Callable[..., jax.Array]]
  default: str
  xla_form: Callable[..., jax.Array]
  flops: int = 0
  looped: bool = False
  exact: bool = False
  read: Callable[[jax.Array], jax.Array] | None = None

  def form(self, name: str) -> Callable[..., jax.Array]:
    """Returns a form by its name, XLA's own too.

    Raises:
      ValueError: there is none of this name.
    """
    if name == XLA_FORM:
      return self.xla_form
    if name not in self.forms:
      known = ', '.join((*self.forms, XLA_FORM))
      raise ValueError(f'a choice names a form of its site ({known}); got {name!r} for {self.key!r}')
    return self.forms[name]


def xla_form(eqn: Any) -> Callable[..., jax.Array]:
  """Returns an equation with one result as a function of its operands."""

  def run(*operands: Any) -> jax.Array:
    return eqn.primitive.bind(*operands, **eqn.primitive.get_bind_params(eqn.params))

  return run


def describe(kind: str, eqn: Any, *words: Any) -> str:
  """Returns the key of an equation: its kind, operands and what else its cost depends on.

  >>> eqn = jax.make_jaxpr(lambda x: x + x)(jax.numpy.ones((2, 3))).jaxpr.eqns[0]
  >>> describe('sum', eqn, 'twice')
  'sum float32[2,3] float32[2,3] twice'
  """
  shapes = [f'{atom.aval.dtype}[{",".join(map(str, atom.aval.shape))}]' for atom in eqn.invars]
  return ' '.join([kind, *shapes, *map(str, words)])


def shapes_of(eqn: Any) -> tuple[jax.ShapeDtypeStruct, ...]:
  """Returns the shapes and dtypes of an equation's operands."""
  return tuple(jax.ShapeDtypeStruct(atom.aval.shape, atom.aval.dtype) for atom in eqn.invars)
