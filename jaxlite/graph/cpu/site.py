"""One equation that has other forms on CPU, and which of them is taken."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

NATIVE = 'native'  # the name of the equation as it stands


class Site(NamedTuple):
  """An equation with the forms that give the same result.

  Attributes:
    key: what the choice hangs on, in words: sites of one key take one form.
    operands: their shapes and dtypes.
    forms: by name, functions of the operands; 'native' is never among them.
    default: the form taken where nothing was measured; may be 'native'.
    exact: every form gives the native bits, so that there is nothing to record.
  """

  key: str
  operands: tuple[jax.ShapeDtypeStruct, ...]
  forms: Mapping[str, Callable[..., jax.Array]]
  default: str
  exact: bool = False


def describe(kind: str, eqn: Any, *words: Any) -> str:
  """Returns the key of an equation: its kind, operands and what else its cost hangs on.

  >>> eqn = jax.make_jaxpr(lambda x: x + x)(jax.numpy.ones((2, 3))).jaxpr.eqns[0]
  >>> describe('sum', eqn, 'twice')
  'sum float32[2,3] float32[2,3] twice'
  """
  shapes = [f'{atom.aval.dtype}[{",".join(map(str, atom.aval.shape))}]' for atom in eqn.invars]
  return ' '.join([kind, *shapes, *map(str, words)])


def shapes_of(eqn: Any) -> tuple[jax.ShapeDtypeStruct, ...]:
  """Returns the shapes and dtypes of an equation's operands."""
  return tuple(jax.ShapeDtypeStruct(atom.aval.shape, atom.aval.dtype) for atom in eqn.invars)
