"""One contraction of a jaxpr: which primitives are contractions, what they sum over, and what they cost."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

CONTRACTIONS = ('dot_general', 'conv_general_dilated')
OTHER_CONTRACTIONS = ('ragged_dot', 'ragged_dot_general', 'scaled_dot', 'scaled_matmul')  # read, never rewritten


def summed_axes(kind: str, params: Mapping[str, Any], side: int, ndim: int) -> tuple[int, ...]:
  """Returns the axes of a weight that a contraction sums over; the others are its output channels.

  Args:
    kind: 'dot_general' or 'conv_general_dilated'.
    params: of the equation.
    side: which operand is the weight, 0 or 1.
    ndim: of the weight.
  """
  if kind == 'conv_general_dilated':
    out_features = params['dimension_numbers'].rhs_spec[0]
    return tuple(axis for axis in range(ndim) if axis != out_features)
  return tuple(params['dimension_numbers'][0][side])


def flops_of(eqn: Any) -> int:
  """Returns the floating-point operations of a contraction: two for each multiplication of an output's sum.

  >>> import jax
  >>> closed = jax.make_jaxpr(lambda x, w: x @ w)(jax.numpy.ones((2, 3)), jax.numpy.ones((3, 4)))
  >>> flops_of(closed.jaxpr.eqns[-1])
  48
  """
  lhs, rhs = (atom.aval for atom in eqn.invars[:2])
  out = math.prod(eqn.outvars[0].aval.shape)
  if eqn.primitive.name == 'dot_general':
    summed = math.prod(lhs.shape[axis] for axis in eqn.params['dimension_numbers'][0][0])
  elif eqn.primitive.name == 'conv_general_dilated':
    out_features = rhs.shape[eqn.params['dimension_numbers'].rhs_spec[0]]
    summed = rhs.size // max(out_features, 1)
  else:
    summed = lhs.shape[-1] if lhs.shape else 1
  return 2 * out * summed
