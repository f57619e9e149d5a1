"""Weight gradients of transposed convolutions, told as those of the convolutions that they transpose.

The picture of a transposed convolution is spread out by its stride, zeros between its entries, and XLA multiplies the
zeros too where it computes the gradient of the weights. Yet that gradient sums over the same pairs as the gradient of
an ordinary convolution with the stride, whose picture is the slope that came back and whose slope is the picture that
went in. For that one there are fast forms.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax import lax

from jaxlite.cpu.kernels import match

_Form = Callable[[jax.Array, jax.Array], jax.Array]


def exchanged(eqn: Any) -> Any | None:
  """Returns the weight gradient of an ordinary convolution that sums what that of a transposed one does.

  Args:
    eqn: a `conv_general_dilated`.

  Returns:
    An equation that takes the operands the other way round, and whose result has its window reversed, see `restored`;
    None for any but the gradient of a transposed convolution without groups.

  >>> import jax.numpy as jnp
  >>> def loss(w):
  ...   return lax.conv_transpose(jnp.ones((8, 4, 4, 3)), w, (2, 2), 'SAME').sum()
  >>> def convolutions(found):
  ...   return [eqn for eqn in found.eqns if eqn.primitive.name == 'conv_general_dilated']
  >>> eqn = convolutions(jax.make_jaxpr(jax.grad(loss))(jnp.ones((2, 2, 3, 5))))[-1]
  >>> eqn.params['lhs_dilation'], exchanged(eqn).params['lhs_dilation'], exchanged(eqn).params['rhs_dilation']
  ((2, 2), (1, 1), (2, 2))
  """
  params = eqn.params
  numbers, spread, apart = params['dimension_numbers'], params['lhs_dilation'], params['rhs_dilation']
  grouped = params['batch_group_count'] > 1 or params['feature_group_count'] > 1
  if grouped or set(spread) == {1} or set(apart) != {1} or not match.is_weight_gradient(eqn):
    return None
  picture, slope, out = (atom.aval for atom in (*eqn.invars, *eqn.outvars))
  room = []
  for place, (low, _) in enumerate(params['padding']):
    size, other, window = (
      aval.shape[spec[2 + place]]
      for aval, spec in ((picture, numbers.lhs_spec), (slope, numbers.rhs_spec), (out, numbers.out_spec))
    )
    before = (window - 1) * params['window_strides'][place] - low
    after = (window - 1) * params['window_strides'][place] + (size - 1) * spread[place] + 1 - other - before
    room.append((before, after))
  result = (numbers.out_spec[1], numbers.out_spec[0], *numbers.out_spec[2:])

  def turned(slope: jax.Array, picture: jax.Array) -> jax.Array:
    return lax.conv_general_dilated(
      slope,
      picture,
      params['window_strides'],
      room,
      rhs_dilation=spread,
      dimension_numbers=lax.ConvDimensionNumbers(numbers.rhs_spec, numbers.lhs_spec, result),
      precision=params['precision'],
      preferred_element_type=params['preferred_element_type'],
    )

  found = jax.make_jaxpr(turned)(slope, picture).eqns[0]
  same = found.primitive is eqn.primitive and found.outvars[0].aval == out
  return found if same and match.is_weight_gradient(found) else None


def restored(eqn: Any, form: _Form) -> _Form:
  """Returns a form of an equation, out of one of what `exchanged` gives for it."""
  window = eqn.params['dimension_numbers'].out_spec[2:]

  def run(picture: jax.Array, slope: jax.Array) -> jax.Array:
    return lax.rev(form(slope, picture), window)

  return run
