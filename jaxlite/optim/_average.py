"""Weight averaging: evaluation and export see a moving average of the weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxlite.contract import Hook, Model, Params, State, drop_extras


def average(decay: float = 0.999, *, warmup: bool = True, name: str = 'average') -> Hook:
  """Keeps an exponential moving average of the params, used whenever the model does not train.

  A weight that is exactly zero (pruned) is exactly zero in the average too, so the average is as sparse as
  the weights.

  Args:
    decay: the share of the old average kept each optimizer step, in [0, 1).
    warmup: start with min(decay, (1 + step) / (10 + step)), so that the random start is soon forgotten.
    name: the hook's name.

  Returns:
    A Hook on the model.

  Raises:
    ValueError: decay outside [0, 1).

  References:
    Polyak and Juditsky, Acceleration of Stochastic Approximation by Averaging, 1992,
    https://doi.org/10.1137/0330046

  >>> average(0.99).name
  'average'
  """
  if not 0 <= decay < 1:
    raise ValueError(f'average: decay is the share of the old average kept, in [0, 1); got {decay}')

  def advance(own: Params, params: Params, step: Any) -> Params:
    kept = jnp.minimum(decay, (1.0 + step) / (10.0 + step)) if warmup else decay
    return jax.tree.map(lambda old, new: _move(old, new, kept), own, params)

  return averaged(name, lambda params: jax.tree.map(jnp.copy, params), advance, lambda own, params: own)


def averaged(
  name: str,
  start: Callable[[Params], Any],
  advance: Callable[[Any, Params, Any], Any],
  read: Callable[[Any, Params], Params],
) -> Hook:
  """Makes the Hook of an average: it follows the params after each optimizer step and stands in for them.

  Args:
    name: the hook's name; what it keeps is `model_state['jl.<name>']`.
    start: params -> what is kept, at init.
    advance: (kept, params, step) -> kept, on the new params.
    read: (kept, params) -> params, as evaluation and export see them.

  Returns:
    A Hook on the model.

  >>> hook = averaged('last', lambda params: params, lambda own, params, step: params, lambda own, params: own)
  >>> hook.name
  'last'
  """
  slot = f'jl.{name}'

  def model(inner: Model) -> Model:
    def init(key: Any, inputs: Any) -> tuple[Params, State]:
      params, state = inner.init(key, inputs)
      return params, {**state, slot: start(params)}

    def apply(params: Params, state: State, inputs: Any, *, train: bool, key: Any, step: Any = None) -> Any:
      seen = params if train else read(state[slot], params)
      return inner.apply(seen, state, inputs, train=train, key=key, step=step)

    def after(params: Params, state: State, step: Any) -> State:
      return inner.after(params, {**state, slot: advance(state[slot], params, step)}, step)

    def export(params: Params, state: State) -> tuple[Params, State]:
      return inner.export(read(state[slot], params), drop_extras(state, name))

    return Model(init, apply, after, export)

  return Hook(name, model=model)


def _move(old: jax.Array, new: jax.Array, decay: Any) -> jax.Array:
  # The running value stays in the leaf's own dtype; bfloat16 loses small steps, so the sum is taken in float32.
  wide = old.astype(jnp.float32) + (1 - decay) * (new.astype(jnp.float32) - old.astype(jnp.float32))
  return jnp.where(new == 0, jnp.zeros_like(new), wide.astype(new.dtype))
