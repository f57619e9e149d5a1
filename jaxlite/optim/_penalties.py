"""Regularisers: label smoothing on the loss, L2 off biases and norms."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlite import trees
from jaxlite.contract import Account, Context, Hook, Loss, Selective, Terms
from jaxlite.errors import arrays
from jaxlite.tasks.lift import weighted_mean


def label_smoothing(amount: float = 0.1, *, name: str = 'label_smoothing') -> Hook:
  """Mixes the labels with the uniform distribution: `amount` of the loss pulls toward every class alike.

  Args:
    amount: the uniform share, in [0, 1).
    name: the hook's name.

  Returns:
    A Hook on the loss: 'task' is scaled by 1 - amount, the uniform cross-entropy is a term of its own. The
    outputs must be logits, float[B, classes].

  Raises:
    ValueError: amount outside [0, 1).

  References:
    Szegedy et al., Rethinking the Inception Architecture for Computer Vision, 2015,
    https://arxiv.org/abs/1512.00567

  >>> label_smoothing(0.1).name
  'label_smoothing'
  """
  if not 0 <= amount < 1:
    raise ValueError(f'label_smoothing: amount is the uniform share, in [0, 1); got {amount}')

  def loss(inner: Loss) -> Loss:
    def terms(context: Context) -> Terms:
      values = inner(context)
      uniform = -jnp.mean(jax.nn.log_softmax(context.outputs.astype(jnp.float32)), axis=-1)
      smoothed = amount * weighted_mean(uniform, context.batch.get('weight'))
      return {**values, 'task': (1 - amount) * values['task'], name: smoothed}

    return terms

  return Hook(name, loss=loss)


class L2State(NamedTuple):
  """State of `l2`: the rate of each leaf, float32[]; 0 where it does not apply."""

  rates: Any

  def account(self, params: Any) -> Account:
    """Tells which leaves have a rate."""
    return rated(self.rates)._replace(when='each step')


def rated(rates: Any) -> Account:
  """Tells which leaves have a rate above 0."""
  touched = [path for path, rate in trees.by_path(rates).items() if np.any(rate)]
  return Account('', arrays(touched), '' if touched else 'it has a rate of 0 everywhere')


def l2(rate: float, *, select: trees.Rule = None) -> Selective:
  """Adds `rate` times the weight to the update, for weights only: biases and norms are left alone.

  Before an optimizer it is the gradient of rate/2 * ||w||^2; after `scale_by_adam` and before the learning
  rate it is decoupled weight decay.

  Args:
    rate: at least 0.
    select: a rule on paths; None takes the weights (in a foreign loop: by shape and name).

  Returns:
    An Optax transformation.

  Raises:
    ValueError: a negative rate; at init, no weight selected.

  References:
    Loshchilov and Hutter, Decoupled Weight Decay Regularization, 2017, https://arxiv.org/abs/1711.05101

  >>> params = {'kernel': jnp.ones((2, 2)), 'bias': jnp.ones(2)}
  >>> tx = l2(0.5)
  >>> updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
  >>> updates['kernel'][0, 0].item(), updates['bias'][0].item()
  (0.5, 0.0)
  """
  if rate < 0:
    raise ValueError(f'l2: rate is at least 0; got {rate}')

  def init(params: Any, weights: frozenset[str] | None = None) -> L2State:
    chosen = trees.weight_paths(params, select, weights, what='l2')
    return L2State(trees.map_with_path(lambda path, leaf: jnp.float32(rate if path in chosen else 0), params))

  def update(updates: Any, state: L2State, params: Any = None, **_: Any) -> tuple[Any, L2State]:
    if params is None:
      raise ValueError('l2 needs the weights: call update(grads, state, params)')
    return jax.tree.map(lambda u, w, r: u + (r * w).astype(u.dtype), updates, params, state.rates), state

  return Selective(init, update)
