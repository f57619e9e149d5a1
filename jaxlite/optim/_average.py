"""Weight averaging: evaluation and export see a moving average of the weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxlite import trees
from jaxlite.contract import Hook, Model, Params, State, drop_extras
from jaxlite.errors import number
from jaxlite.tasks import running


def average(decay: float = 0.999, *, warmup: bool = True, name: str = 'average') -> Hook:
  """Keeps an exponential moving average of the params, used whenever the model does not train.

  Batch statistics of the network are averaged alike, and every average is kept in at least float32. A weight that is
  exactly zero (pruned) is exactly zero in the average too, so the average is as sparse as the weights.

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
  decay = number(decay, 'average: decay')
  if not 0 <= decay < 1:
    raise ValueError(f'average: decay is the share of the old average kept, in [0, 1); got {decay}')

  def share(step: Any) -> Any:
    if not warmup:
      return decay
    done = jnp.asarray(step).astype(jnp.float32)
    return jnp.minimum(decay, (1.0 + done) / (10.0 + done))

  def start(values: Params) -> Params:
    return jax.tree.map(lambda leaf: jnp.array(running.widened(leaf), copy=True), values)

  def advance(own: Params, values: Params, step: Any) -> Params:
    means = running.moved(own, values, share(step))

    def held(path: str, mean: jax.Array, live: jax.Array) -> jax.Array:
      return mean if path.startswith(f'{running.STATISTICS}/') else jnp.where(live == 0, jnp.zeros_like(mean), mean)

    return trees.map_with_path(held, means, values)

  return averaged(name, start, advance, lambda own, values: own)


def averaged(
  name: str,
  start: Callable[[Params], Any],
  advance: Callable[[Any, Params, Any], Any],
  read: Callable[[Any, Params], Params],
) -> Hook:
  """Makes the Hook of an average: it follows the params after each optimizer step and stands in for them.

  The network's own statistics (batch norm's) are averaged with them, under the key 'jl.statistics': those of the live
  weights fit no average of weights. What hooks keep stays as it is.

  Args:
    name: the hook's name; what it keeps is `model_state['jl.<name>']`.
    start: params -> what is kept, at init.
    advance: (kept, params, step) -> kept, on the new params.
    read: (kept, params) -> the average. Evaluation and export see it in the dtypes of the params, and a param that is
      exactly zero as zero.

  Returns:
    A Hook on the model.

  >>> hook = averaged('last', lambda params: params, lambda own, params, step: params, lambda own, params: own)
  >>> hook.name
  'last'
  """
  slot = f'jl.{name}'

  def seen(params: Params, state: State) -> tuple[Params, State]:
    return running.read_average(read(state[slot], running.with_statistics(params, state)), params, state)

  def model(inner: Model) -> Model:
    def init(key: Any, inputs: Any) -> tuple[Params, State]:
      params, state = inner.init(key, inputs)
      return params, {**state, slot: start(running.with_statistics(params, state))}

    def apply(params: Params, state: State, inputs: Any, *, train: bool, key: Any, step: Any = None) -> Any:
      if train:
        return inner.apply(params, state, inputs, train=True, key=key, step=step)
      weights, statistics = seen(params, state)
      outputs, new = inner.apply(weights, statistics, inputs, train=False, key=key, step=step)
      return outputs, {**new, **{own: value for own, value in state.items() if not trees.is_extra(own)}}  # live ones

    def after(params: Params, state: State, step: Any) -> State:
      own = advance(state[slot], running.with_statistics(params, state), step)
      return inner.after(params, {**state, slot: own}, step)

    def export(params: Params, state: State) -> tuple[Params, State]:
      params, state = seen(params, state)
      return inner.export(params, drop_extras(state, name))

    return Model(init, apply, after, export)

  return Hook(name, model=model)
