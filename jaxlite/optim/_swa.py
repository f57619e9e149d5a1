"""Stochastic weight averaging: the equal average of the weights of many steps, and its batch statistics."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlite import trees
from jaxlite.contract import Account, Batch, Hook, Model, Params, State, join_const, split_const
from jaxlite.errors import arrays, counted, whole
from jaxlite.graph import alike
from jaxlite.optim._average import averaged
from jaxlite.tasks import running
from jaxlite.tasks.lift import dicts_in


class SwaState(NamedTuple):
  """What `swa` keeps.

  Attributes:
    count: int32[], how many weights are in the mean.
    mean: their equal average, at least float32; zeros while the count is 0.
  """

  count: jax.Array  # type: ignore[assignment]  # tuples have a method of this name
  mean: Params

  def account(self, params: Params) -> Account:
    """Tells how many sets of weights are in the mean."""
    count = int(np.max(self.count))
    left = '' if count else 'it averaged nothing: its begin was not reached'
    kept = arrays(trees.paths(self.mean), most=0)
    return Account(f'{counted(count, "set")} of weights averaged', f'keeps {kept}', left)


def swa(begin: int, every: int = 1, *, name: str = 'swa') -> Hook:
  """Averages the weights after `begin` steps and each `every` steps from there, all alike; evaluation sees the mean.

  Before `begin` evaluation sees the weights themselves. A weight that is exactly zero (pruned) is exactly zero
  in what is seen, so the average is as sparse as the weights are now. Use it with a learning rate that stays
  high: constant, or `cosine_restarts` with `every` as its period.

  Batch statistics are averaged alike. `refresh_statistics` re-estimates them for the averaged weights themselves,
  which is better still where the weights differ much.

  Args:
    begin: optimizer steps done before the first weights are taken, at least 1.
    every: optimizer steps from one to the next.
    name: the hook's name.

  Returns:
    A Hook on the model.

  Raises:
    ValueError: begin or every is under 1.

  References:
    Izmailov, Podoprikhin, Garipov, Vetrov and Wilson, Averaging Weights Leads to Wider Optima and Better
    Generalization, 2018, https://arxiv.org/abs/1803.05407

  >>> swa(begin=100, every=10).name
  'swa'
  """
  begin = whole(begin, 'swa: begin', least=1)
  every = whole(every, 'swa: every', least=1)

  def start(params: Params) -> SwaState:
    mean = jax.tree.map(lambda leaf: jnp.zeros_like(running.widened(leaf)), params)
    return SwaState(jnp.zeros((), jnp.int32), mean)

  def advance(own: SwaState, params: Params, step: Any) -> SwaState:
    def take(own: SwaState) -> SwaState:
      count = own.count + 1

      def moved(old: jax.Array, new: jax.Array) -> jax.Array:
        return old + (new.astype(old.dtype) - old) / count.astype(jnp.finfo(old.dtype).dtype)

      return SwaState(count, jax.tree.map(moved, own.mean, params))

    due = (step >= begin) & ((step - begin) % every == 0)
    return alike.once(due, take, own)[1]

  def read(own: SwaState, params: Params) -> Params:
    def seen(mean: jax.Array, live: jax.Array) -> jax.Array:
      return jnp.where(own.count == 0, live, mean.astype(live.dtype))

    return jax.tree.map(seen, own.mean, params)

  return averaged(name, start, advance, read)


def refresh_statistics(
  model: Model, params: Params, model_state: State, batches: Iterable[Batch], *, key: jax.Array | None = None
) -> State:
  """Re-estimates running statistics (batch norm's) for given weights, by running training forwards over batches.

  The statistics move as in training, with the momentum of the layers, while the weights stand still; so what
  they were is forgotten like momentum ** batches: give several times 1 / (1 - momentum) batches.

  For the average of a run: `params, state = train.model.export(state.params, {**state.model_state, 'jl.const':
  state.const})`, then this with the network's own model and batches as it sees them.

  Args:
    model: a Model, e.g. of `jaxlite.adapt`.
    params: the weights.
    model_state: the state to start from.
    batches: each a dict with 'inputs', [B, ...]; all of one shape, or each shape is compiled anew.
    key: the root key, for networks that draw in training (dropout); a draw is that of its batch's number.

  Returns:
    The new model_state, of the same structure.

  Raises:
    TypeError: batches that are no dicts, or a single one.
    ValueError: no batch, or a network without statistics.

  >>> def apply(p, s, x, *, train, key, step=None):
  ...   return x, {'mean': 0.5 * s['mean'] + 0.5 * x.mean()}
  >>> model = Model(lambda key, x: ({}, {'mean': jnp.zeros(())}), apply)
  >>> float(refresh_statistics(model, {}, {'mean': jnp.zeros(())}, [{'inputs': jnp.ones(3)}] * 3)['mean'])
  0.875
  """
  live, const = split_const(model_state)
  if not jax.tree.leaves(live):
    raise ValueError('refresh_statistics: the network keeps no statistics; leave the call out')

  @jax.jit
  def forward(params: Params, live: State, const: Any, inputs: Any, key: Any, step: Any) -> State:
    _, new = model.apply(params, join_const(live, const), inputs, train=True, key=key, step=step)
    return split_const(new)[0]

  step = -1
  for step, batch in enumerate(dicts_in(batches, 'refresh_statistics')):
    live = forward(params, live, const, batch['inputs'], key, jnp.int32(step))
  if step < 0:
    raise ValueError('refresh_statistics needs a batch at least; got none')
  return join_const(live, const)
