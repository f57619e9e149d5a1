"""One contraction of a jaxpr: which primitives are contractions, what they sum over, and what they cost."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

CONTRACTIONS = ('dot_general', 'conv_general_dilated')
# Read, never rewritten.
SPARSE = {  # those of a sparse matrix, held as its stored values: where the dense operand stands
  'bcoo_dot_general': 2,
  'bcsr_dot_general': 3,
  'coo_matvec': 3,
  'coo_matmat': 3,
  'csr_matvec': 3,
  'csr_matmat': 3,
}
OTHER_CONTRACTIONS = ('ragged_dot', 'ragged_dot_general', 'scaled_dot', 'scaled_matmul', *SPARSE)


def operands_of(eqn: Any) -> tuple[int, int]:
  """Returns at which positions of an equation its two operands stand."""
  return 0, SPARSE.get(eqn.primitive.name, 1)


def axes_of(eqn: Any, side: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
  """Returns the axes of an operand that a contraction sums over, and those that both operands share.

  Those of a sparse operand (its stored values in a row) are not told apart: all are summed.

  >>> import jax
  >>> closed = jax.make_jaxpr(lambda x, w: x @ w)(jax.numpy.ones((2, 3)), jax.numpy.ones((3, 4)))
  >>> axes_of(closed.jaxpr.eqns[-1], 1)
  ((0,), ())
  """
  name, ndim = eqn.primitive.name, eqn.invars[operands_of(eqn)[side]].aval.ndim
  if name == 'conv_general_dilated':
    if side == 1:
      return summed_axes(name, eqn.params, 1, ndim), ()
    return tuple(eqn.params['dimension_numbers'].lhs_spec[1:]), ()
  numbers = eqn.params.get('dimension_numbers')
  if name in SPARSE and side == 0:
    return tuple(range(ndim)), ()
  if name == 'ragged_dot_general':
    ragged = eqn.params['ragged_dot_dimension_numbers']
    contracted, batches = ragged.dot_dimension_numbers
    groups = tuple(ragged.rhs_group_dimensions) if side == 1 else ()
    return tuple(contracted[side]), (*batches[side], *groups)
  if numbers is None:  # x [..., K] by a weight [..., K, N], or what is kept transposed: not known
    return ((ndim - 1,) if side == 0 else (max(ndim - 2, 0),)), tuple(range(ndim - 2))
  contracted, batches = numbers
  return tuple(contracted[side]), tuple(batches[side])


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


def flops_of(eqn: Any, *, zeros: bool = True) -> int:
  """Returns the floating-point operations of a contraction: two for each multiplication of an output's sum.

  Four where one operand is complex, eight where both are.

  Args:
    eqn: the contraction.
    zeros: whether those count that multiply a convolution's padding, or what dilation puts between its inputs.

  >>> import jax
  >>> closed = jax.make_jaxpr(lambda x, w: x @ w)(jax.numpy.ones((2, 3)), jax.numpy.ones((3, 4)))
  >>> flops_of(closed.jaxpr.eqns[-1])
  48
  """
  lhs, rhs = (eqn.invars[position].aval for position in operands_of(eqn))
  out = math.prod(eqn.outvars[0].aval.shape)
  name = eqn.primitive.name
  each = (2, 4, 8)[sum(jnp.issubdtype(one.dtype, jnp.complexfloating) for one in (lhs, rhs))]  # complex is several
  if name in SPARSE:  # each stored value meets what the other operand has beside the summed axes
    taken = axes_of(eqn, 1)
    free = [size for axis, size in enumerate(rhs.shape) if axis not in (*taken[0], *taken[1])]
    return each * lhs.size * math.prod(free)
  if name == 'dot_general':
    summed = math.prod(lhs.shape[axis] for axis in eqn.params['dimension_numbers'][0][0])
  elif name == 'conv_general_dilated':
    out_features = rhs.shape[eqn.params['dimension_numbers'].rhs_spec[0]]
    summed = rhs.size // max(out_features, 1)
    if not zeros:
      met, all_of = _met(eqn)
      return each * out * summed * met // max(all_of, 1)
  else:
    summed = math.prod(lhs.shape[axis] for axis in axes_of(eqn, 0)[0])
  return each * out * summed


def _met(eqn: Any) -> tuple[int, int]:
  """Of the pairs of a convolution's outputs and its kernel's entries: how many meet a value of the image, and all."""
  spec = eqn.params['dimension_numbers']
  met = pairs = 1
  given = zip(
    *(spec.lhs_spec[2:], spec.rhs_spec[2:], spec.out_spec[2:], eqn.params['window_strides'], eqn.params['padding']),
    *(eqn.params['lhs_dilation'], eqn.params['rhs_dilation']),
    strict=True,
  )
  for image, kernel, result, stride, (low, _), apart, wide in given:
    entries, taps = eqn.invars[0].aval.shape[image], eqn.invars[1].aval.shape[kernel]
    outs = eqn.outvars[0].aval.shape[result]
    at = np.arange(outs)[:, None] * stride + np.arange(taps) * wide - low
    met *= int(((at >= 0) & (at < (entries - 1) * apart + 1) & (at % apart == 0)).sum()) if entries else 0
    pairs *= outs * taps
  return met, pairs
