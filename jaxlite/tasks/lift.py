"""From values to the terms that a step minimizes: the mean over a batch, and a user's loss as a `Loss`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxlite.contract import LOSSES, TAPS, Batch, Context, Loss, Terms


def weighted_mean(values: jax.Array, weight: jax.Array | None) -> jax.Array:
  """Returns the mean over examples, each counted by its weight (0 is padding); 0 when all weigh nothing.

  Args:
    values: float[B].
    weight: float[B] or None.

  Returns:
    float[].

  >>> import jax.numpy as jnp
  >>> float(weighted_mean(jnp.array([1.0, 3.0, jnp.nan]), jnp.array([1.0, 1.0, 0.0])))
  2.0
  """
  if weight is None:
    return jnp.mean(values)
  weight = weight.astype(values.dtype)
  total = jnp.sum(weight)
  summed = jnp.sum(jnp.where(weight > 0, values, 0) * weight)
  return jnp.where(total > 0, summed / jnp.where(total > 0, total, 1), 0)


def lift_loss(loss: Callable[[Any, Batch], jax.Array]) -> Loss:
  """Lifts a user's loss into a Loss: the term 'task', and those that the network's forward brought itself.

  Args:
    loss: (outputs, batch) -> float[B], or a scalar that is taken as it is.

  Returns:
    A Loss: the weighted mean over the batch; a tap 'loss/x' (regularizers of layers) is the term 'x' beside it.

  Raises:
    ValueError: the loss is neither a scalar nor one value per example.
  """

  def term(context: Context) -> Terms:
    values = jnp.asarray(loss(context.outputs, context.batch))
    weight = context.batch.get('weight')
    taps = context.model_state.get(TAPS, {}).items()
    own = {name.removeprefix(LOSSES): value for name, value in taps if name.startswith(LOSSES)}
    if values.ndim == 0:
      return {'task': values, **own}
    if values.ndim != 1 or (weight is not None and values.shape != weight.shape):
      expected = '[B]' if weight is None else str(list(weight.shape))
      raise ValueError(f'a loss gives one value per example, float{expected}, or a scalar; got {list(values.shape)}')
    return {'task': weighted_mean(values, weight), **own}

  return term
