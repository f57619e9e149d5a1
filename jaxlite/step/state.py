"""What goes through a train step: the state of a run, a batch, and the record of the first number not finite."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxlite import trees
from jaxlite.contract import Batch, Params, State
from jaxlite.graph import alike

HEALTH = 'jl.health'  # model_state: int32[2], when and where a number first was not finite; -1 while none was


class TrainState(NamedTuple):
  """All that a run is, arrays only.

  Attributes:
    step: int32[], optimizer steps done.
    key: the run's root key; never changes.
    params: what is trained.
    model_state: what else a forward needs.
    opt_state: the state of the update parts.
    const: arrays that never change (teachers, frozen leaves): an argument of the step, never donated.
  """

  step: jax.Array
  key: Any
  params: Params
  model_state: State
  opt_state: Any
  const: Any


def ensemble_axes(state: TrainState) -> TrainState:
  """Returns the `vmap` axes of a state of several models: counts and constants stay one for all.

  A count that is batched would turn every schedule's `cond` into a `select` that runs both branches. Use them
  for inputs and outputs alike: `vmap(train.step, in_axes=(axes, 0), out_axes=(axes, 0))`.

  Args:
    state: a state of one model, or its shapes.

  Returns:
    A TrainState of 0 and None.
  """
  counts = ('count', 'step', 'mini_step', 'gradient_step')

  def axis(path: str, leaf: Any) -> int | None:
    # A parameter may bear such a name, and so may its moments.
    return None if path.split('/')[-1] in counts and jnp.issubdtype(leaf.dtype, jnp.integer) else 0

  opt_state = trees.map_with_path(axis, state.opt_state)
  return TrainState(None, 0, 0, 0, opt_state, None)  # type: ignore[arg-type]  # axes in place of arrays


def went_nan(state: TrainState) -> tuple[int, str] | None:
  """Tells the first step that met a number that is not finite, and where it stood.

  Reading it waits for the device; call it at log steps.

  Args:
    state: a TrainState.

  Returns:
    (step, path): the step that wrote a bad parameter, or the step whose loss was bad while every parameter was
    good (path 'loss': look at the data); None when all is well.
  """
  at_step, leaf = map(int, jax.device_get(state.model_state[HEALTH]))
  if at_step < 0:
    return None
  return at_step, 'loss' if leaf < 0 else trees.paths(state.params)[leaf]


def health(before: jax.Array, total: jax.Array, params: Params, step: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Looks for the first failure in one more step.

  The leaves are only read once the loss has gone bad: a step in which all is well pays nothing.

  Args:
    before: int32[2], the record before the step.
    total: float[], the step's loss.
    params: before the step.
    step: int32[], before the step.

  Returns:
    (False when the leaves have been read, for `alike.following`; the record after the step, as `went_nan` reads it).
  """

  def look(_: Any) -> jax.Array:
    leaves = jax.tree.leaves(params)
    leaf = alike.first(lambda entries: ~jnp.isfinite(entries), leaves)
    blame = leaf < len(leaves)
    return jnp.stack([jnp.where(blame, step, step + 1), jnp.where(blame, leaf, -1)])

  first = ~jnp.isfinite(total) & (before[0] < 0)
  return alike.once(first, look, before)


def inputs_of(batch: Batch) -> Any:
  """Returns the inputs of a batch.

  Raises:
    TypeError: it is no dict.
    ValueError: it has none.
  """
  if not isinstance(batch, Mapping):
    raise TypeError(f"a batch is a dict, such as {{'inputs': x, 'labels': y}}; got {type(batch).__name__}")
  if 'inputs' not in batch:
    raise ValueError(f"a batch is a dict with 'inputs' (and 'labels', 'weight'); got the keys {sorted(batch)}")
  return batch['inputs']


def refuse_empty(inputs: Any) -> None:
  """Raises where a batch has no example: a mean of nothing is NaN, and so would be all that learns.

  Args:
    inputs: of the batch, arrays [B, ...]; one of several may have no rows (the edges of a graph).

  Raises:
    ValueError: none of them has a row.
  """
  leaves = {path: leaf for path, leaf in trees.by_path(inputs).items() if jnp.ndim(leaf)}
  if leaves and not any(jnp.shape(leaf)[0] for leaf in leaves.values()):
    path, leaf = next(iter(leaves.items()))
    raise ValueError(
      f'a step learns from one example at least; got a batch of none, inputs{f"/{path}" if path else ""} '
      f'{jnp.result_type(leaf)}{list(jnp.shape(leaf))}: leave out batches that a filter or the end of the data emptied'
    )
