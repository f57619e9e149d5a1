"""What the variables of a program hold while it is written as a list: known arrays, values, what cannot be written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlite.deployment.operations import equations


class Const(NamedTuple):
  """A known array; where `array` has size 1 and `shape` has not, it is repeated along that axis."""

  array: Any
  shape: tuple[int, ...]
  name: str = ''

  @property
  def whole(self) -> Any:
    return jnp.broadcast_to(self.array, self.shape)


class Ref(NamedTuple):
  """A value that depends on the inputs."""

  name: str
  shape: tuple[int, ...]
  dtype: Any


class Unknown(NamedTuple):
  """What cannot be written; an error only where a result needs it."""

  why: str


def never_seen(cases: Sequence[Any]) -> Unknown | None:
  """What is taken where a stored range is of nothing: that of the batch, which no list has."""
  if any(isinstance(one, Const) and one.array.size == 1 and not np.isfinite(one.array).all() for one in cases):
    why = 'an activation is quantized to a range that was kept, and one of this network was never seen'
    return Unknown(f'{why}: train or calibrate it with data that reach every layer')
  return None


def constant(value: Any) -> Const:
  array = value if isinstance(value, jax.Array) else jnp.asarray(value)
  return Const(array, array.shape)


def dtype_of(atom: Any) -> Any:
  return atom.array.dtype if isinstance(atom, Const) else atom.dtype


def made_of(operands: Sequence[Const], shape: Sequence[int]) -> str:
  """The name of what is made, entry by entry, of one named array, as rounded weights are; '' where it is of several."""
  names = {one.name.rstrip('_') for one in operands if one.name and tuple(one.shape) == tuple(shape)}
  return f'{names.pop()}_' if len(names) == 1 else ''


def computed(eqn: Any, operands: list[Const]) -> list[Const]:
  """What an equation gives for known operands; what repeats is not written out where the operation works entry by
  entry."""
  kind = eqn.primitive.name
  aval = eqn.outvars[0].aval
  name = made_of(operands, aval.shape) if kind in equations.UNARY | equations.BINARY else ''
  if kind == 'broadcast_in_dim' and len(operands) == 1:
    (one,), axes = operands, eqn.params['broadcast_dimensions']
    shape = [1] * len(aval.shape)
    for axis, size in zip(axes, one.array.shape, strict=True):
      shape[axis] = size
    same = one.name if one.array.size == np.prod(shape) else ''
    return [Const(equations.moved_by_numpy(one.array).reshape(shape), aval.shape, same)]
  if kind == 'convert_element_type' and equations.widens(operands[0].array.dtype, aval.dtype):
    return [
      Const(equations.moved_by_numpy(operands[0].array).astype(aval.dtype), aval.shape, made_of(operands, aval.shape))
    ]
  if kind in equations.UNARY:
    return [Const(eqn.primitive.bind(operands[0].array, **eqn.params), aval.shape, name)]
  if kind in equations.BINARY and all(len(one.shape) == len(aval.shape) for one in operands):
    shape = np.broadcast_shapes(*(one.array.shape for one in operands))
    arrays = [jnp.broadcast_to(one.array, shape) for one in operands]
    return [Const(eqn.primitive.bind(*arrays, **eqn.params), aval.shape, name)]
  results = eqn.primitive.bind(*(one.whole for one in operands), **eqn.params)
  return [constant(one)._replace(name=name) for one in (results if eqn.primitive.multiple_results else [results])]
