"""Regularisers: label smoothing on the loss, L2 off biases and norms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxlite import trees
from jaxlite.contract import Account, Context, Hook, Loss, Selective, Terms
from jaxlite.errors import arrays, counted, number
from jaxlite.tasks import running
from jaxlite.tasks.lift import LABELS


def label_smoothing(amount: float = 0.1, *, name: str = 'label_smoothing') -> Hook:
  """Mixes the labels with the uniform distribution: `amount` of the loss pulls toward every class alike.

  The user's own loss is asked a second time, for the uniform distribution in place of the labels; one that takes
  whole labels only is asked for each class, and the answers are averaged.

  Args:
    amount: the uniform share, in [0, 1).
    name: the hook's name.

  Returns:
    A Hook on the loss: 'task' is scaled by 1 - amount, the loss against the uniform distribution is a term of its own.
    The outputs must be logits, float[B, ..., classes].

  Raises:
    ValueError: amount outside [0, 1); at trace time, outputs that are no logits, or a loss of more than 256 classes
      that takes no distribution.

  References:
    Szegedy et al., Rethinking the Inception Architecture for Computer Vision, 2015,
    https://arxiv.org/abs/1512.00567

  >>> label_smoothing(0.1).name
  'label_smoothing'
  """
  amount = number(amount, 'label_smoothing: amount')
  if not 0 <= amount < 1:
    raise ValueError(f'label_smoothing: amount is the uniform share, in [0, 1); got {amount}')

  def loss(inner: Loss) -> Loss:
    def terms(context: Context) -> Terms:
      values = inner(context)
      return {**values, 'task': (1 - amount) * values['task'], name: amount * _uniform(inner, context, name)}

    return terms

  return Hook(name, loss=loss, distribution=True)


_MOST_CLASSES = 256  # for which a loss is asked one by one


def _uniform(inner: Loss, context: Context, name: str) -> jax.Array:
  """The term 'task' against the uniform distribution over classes, all else as it is."""
  outputs, labels = context.outputs, context.batch.get('labels')
  if not hasattr(outputs, 'shape') or outputs.ndim < 2 or not jnp.issubdtype(outputs.dtype, jnp.floating):
    got = f'{outputs.dtype}{list(outputs.shape)}' if hasattr(outputs, 'shape') else type(outputs).__name__
    raise ValueError(f'{name} works on logits, float[B, ..., classes]; got {got}: leave it out')
  if labels is None:
    raise ValueError(f"{name} needs the batch's labels; it has {', '.join(context.batch)}")
  classes, labels = outputs.shape[-1], jnp.asarray(labels)
  whole = jnp.issubdtype(labels.dtype, jnp.integer) and labels.shape == outputs.shape[:-1]
  soft = jnp.issubdtype(labels.dtype, jnp.floating) and labels.shape == outputs.shape
  if classes < 2 or not (whole or soft):
    raise ValueError(
      f'{name} needs classes of which one is right: labels int{list(outputs.shape[:-1])} or a distribution each, and '
      f'at least 2 logits; got {labels.dtype}{list(labels.shape)} for outputs {list(outputs.shape)}: leave it out'
    )

  def against(labels: jax.Array) -> jax.Array:
    return inner(context._replace(batch={**context.batch, LABELS: labels}))['task']

  even = jnp.full(outputs.shape, 1 / classes, running.widened(outputs).dtype)
  try:
    jax.eval_shape(against, even)
  except Exception as error:  # a loss for whole labels; what it raises has no common class
    if not jnp.issubdtype(labels.dtype, jnp.integer) or classes > _MOST_CLASSES:
      reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
      raise ValueError(
        f'{name} needs a loss that takes labels as a distribution, float{list(outputs.shape)}, such as '
        f'jl.cross_entropy; this one says: {reason}'
      ) from None
    each = jnp.arange(classes, dtype=labels.dtype)
    return jnp.mean(jax.vmap(lambda label: against(jnp.where(labels < 0, labels, label)))(each))  # -1: no label
  return against(even)


class L2State(NamedTuple):
  """State of `l2`: the rate of each leaf, real[], at least float32; 0 where it does not apply."""

  rates: Any

  def account(self, params: Any) -> Account:
    """Tells which leaves have a rate."""
    return rated(self.rates)._replace(when='each step')


class ScheduledL2State(NamedTuple):
  """State of `l2` with a schedule.

  Attributes:
    count: int32[], updates done.
    rates: 1 for each leaf that has the scheduled rate and 0 for the others, real[], at least float32.
  """

  count: jax.Array  # type: ignore[assignment]  # tuples have a method of this name
  rates: Any

  def account(self, params: Any) -> Account:
    """Tells which leaves have a rate."""
    return rated(self.rates)._replace(when=counted(int(np.max(self.count)), 'update'))


def rated(rates: Any) -> Account:
  """Tells which leaves have a rate above 0."""
  touched = [path for path, rate in trees.by_path(rates).items() if np.any(rate)]
  return Account('', arrays(touched), '' if touched else 'it has a rate of 0 everywhere')


def rate_of(rate: float, leaf: Any) -> jax.Array:
  """Returns a rate in the precision of the leaf that it multiplies: real, at least float32."""
  if not has_fractions(leaf):
    return jnp.asarray(rate, jnp.float32)
  return jnp.asarray(rate, jnp.finfo(running.widened(leaf).dtype).dtype)


def l2(rate: float | optax.Schedule, *, select: trees.Rule = None) -> Selective:
  """Adds `rate` times the weight to the update, for weights only: biases and norms are left alone.

  Before an optimizer it is the gradient of rate/2 * ||w||^2; after `scale_by_adam` and before the learning
  rate it is decoupled weight decay.

  Args:
    rate: at least 0; or a schedule of it, int32[] -> float32[], by the updates that it has seen.
    select: a rule on paths; None takes the weights (in a foreign loop: by shape and name).

  Returns:
    An Optax transformation. What has no fractions (counts, keys) and no gradient (None) is handed through.

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
  schedule = rate if callable(rate) else None
  first = 1.0 if callable(rate) else number(rate, 'l2: rate')
  if not first >= 0:
    raise ValueError(f'l2: rate is at least 0; got {first}')

  def init(params: Any, weights: frozenset[str] | None = None) -> L2State | ScheduledL2State:
    chosen = trees.weight_paths(params, select, weights, what='l2')
    rates = trees.map_with_path(lambda path, leaf: rate_of(first if path in chosen else 0, leaf), params)
    return L2State(rates) if schedule is None else ScheduledL2State(jnp.zeros((), jnp.int32), rates)

  def update(updates: Any, state: Any, params: Any = None, **_: Any) -> tuple[Any, Any]:
    if params is None:
      raise ValueError('l2 needs the weights: call update(grads, state, params)')
    now = None if schedule is None else schedule(state.count)

    def decayed(update: Any, weight: Any, own: Any) -> Any:
      if now is not None:
        own = own * jnp.asarray(now, own.dtype)
      return update + (own * running.widened(weight)).astype(update.dtype)

    updates = where_fractions(decayed, updates, params, state.rates)
    return updates, state if schedule is None else state._replace(count=optax.safe_increment(state.count))

  return Selective(init, update)


def has_fractions(leaf: Any) -> bool:
  """Tells whether a leaf is an array of floats or complex numbers, or such a number: not None, a count or a key.

  >>> has_fractions(jnp.ones(2, 'bfloat16')), has_fractions(0.5), has_fractions(3), has_fractions(None)
  (True, True, False, False)
  """
  return isinstance(leaf, float | complex) or jnp.issubdtype(getattr(leaf, 'dtype', np.int32), np.inexact)


def where_fractions(fn: Callable[..., Any], updates: Any, params: Any, *rest: Any) -> Any:
  """Maps fn(update, param, *others) over the leaves that are numbers with fractions; other updates stay as they are.

  An update may be None, as Equinox leaves them, or have no bytes, as JAX's gradients of integers.

  >>> where_fractions(lambda update, param: update + param, [jnp.ones(1), None], [jnp.ones(1), 3])
  [Array([2.], dtype=float32), None]
  """

  def one(update: Any, param: Any, *others: Any) -> Any:
    return fn(jnp.asarray(update), jnp.asarray(param), *others) if has_fractions(update) else update

  return jax.tree.map(one, updates, params, *rest, is_leaf=lambda node: node is None)
