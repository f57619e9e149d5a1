"""L1 by a proximal step: small weights become exactly zero."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxlite import trees
from jaxlite.contract import Account, Last
from jaxlite.errors import counted, number
from jaxlite.optim._penalties import rate_of, rated, where_fractions


class ProximalState(NamedTuple):
  """State of `l1_proximal`.

  Attributes:
    count: int32[], updates done.
    rates: the rate of each leaf, real[], at least float32; 0 where it does not apply.
  """

  count: jax.Array  # type: ignore[assignment]  # tuples have a method of this name
  rates: Any

  def account(self, params: Any) -> Account:
    """Tells which leaves have a rate."""
    return rated(self.rates)._replace(when=counted(int(np.max(self.count)), 'update'))


def l1_proximal(rate: float, learning_rate: float | optax.Schedule, *, select: trees.Rule = None) -> Last:
  """Minimizes the loss plus `rate` times the sum of |weight|: after the update, weights shrink to real zeros.

  Each selected weight moves toward zero by learning_rate * rate and stops there exactly, where a penalty in the
  loss would only hover around it. Zeros may come back when their gradient is strong enough.

  It comes after the optimizer, since it acts on what the update leads to: a `Last`. Beside another Last the
  order is free, as each keeps a zero zero; left of `prune`, prune's scores see the shrunk weights. With an
  adaptive optimizer the step is that of the plain learning rate, as decoupled weight decay is.

  Args:
    rate: strength of the penalty, at least 0, in units of the loss per unit of weight.
    learning_rate: that of the optimizer: a float, or its schedule, int32[] -> float32[].
    select: a rule on paths; None takes the weights (in a foreign loop: by shape and name).

  Returns:
    An Optax transformation.

  Raises:
    ValueError: a negative rate or learning rate; at init, no weight selected.

  References:
    Daubechies, Defrise and De Mol, An iterative thresholding algorithm for linear inverse problems with a
    sparsity constraint, 2003, https://arxiv.org/abs/math/0307152

  >>> tx = optax.chain(optax.sgd(0.1), l1_proximal(5.0, 0.1))
  >>> params = {'w': jnp.array([[0.25, -2.0], [1.0, -0.5]])}
  >>> updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
  >>> optax.apply_updates(params, updates)['w'].tolist()
  [[0.0, -1.5], [0.5, 0.0]]
  """
  rate = number(rate, 'l1_proximal: rate')
  if not rate >= 0:
    raise ValueError(f'l1_proximal: rate is at least 0; got {rate}')
  learning_rate = learning_rate if callable(learning_rate) else number(learning_rate, 'l1_proximal: learning_rate')
  if not callable(learning_rate) and not learning_rate >= 0:
    raise ValueError(f'l1_proximal: learning_rate is that of the optimizer, at least 0; got {learning_rate}')

  def init(params: Any, weights: frozenset[str] | None = None) -> ProximalState:
    chosen = trees.weight_paths(params, select, weights, what='l1_proximal')
    rates = trees.map_with_path(lambda path, leaf: rate_of(rate if path in chosen else 0, leaf), params)
    return ProximalState(jnp.zeros((), jnp.int32), rates)

  def update(updates: Any, state: ProximalState, params: Any = None, **_: Any) -> tuple[Any, ProximalState]:
    if params is None:
      raise ValueError('l1_proximal needs the weights: call update(grads, state, params)')
    step_size = learning_rate(state.count) if callable(learning_rate) else learning_rate
    updates = where_fractions(lambda u, w, own: _shrink(u, w, own, step_size), updates, params, state.rates)
    return updates, ProximalState(optax.safe_increment(state.count), state.rates)

  return Last(init, update)


def _shrink(update: jax.Array, weight: jax.Array, rate: jax.Array, step_size: Any) -> jax.Array:
  # An update of -w lands on exactly 0 in every float format wide enough to hold -w; and since rounding is monotone,
  # what lands beyond the threshold never passes zero on its way back.
  dtype = jnp.promote_types(update.dtype, weight.dtype)
  landed = weight.astype(dtype) + update.astype(dtype)
  threshold = (rate * step_size).astype(jnp.finfo(dtype).dtype)  # of a complex weight the length shrinks
  shrunk = update.astype(dtype) - jnp.sign(landed) * threshold
  held = jnp.where(jnp.abs(landed) <= threshold, -weight.astype(dtype), shrunk)
  return jnp.where(rate > 0, held, update.astype(dtype))
