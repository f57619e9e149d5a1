"""What a run must not go on with, and what it must not end without: numbers that are not finite, masks, targets.

The loop asks at log points and before it saves, so that no checkpoint holds what went wrong.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NoReturn

import jax
import jax.numpy as jnp

from jaxlite import trees
from jaxlite.optim._plateau import PlateauState
from jaxlite.pruning import _masks as masks
from jaxlite.pruning._mask_state import PruneState
from jaxlite.step.state import TrainState, went_nan


def check_finite(values: list[dict[str, float]], state: TrainState, saves: Any) -> None:
  """Raises where a loss since the last log point was not finite, naming the first step and leaf."""
  if not all(math.isfinite(value['loss']) for value in values):
    _refuse(*(went_nan(state) or (int(state.step), 'loss')), saves)


def check_params(state: TrainState, saves: Any) -> None:
  """A finite loss may have a gradient that is not: what it wrote must not be saved as good."""
  finite = jax.device_get(_are_finite(state.params))
  if not finite.all():
    _refuse(int(state.step), trees.paths(state.params)[int(finite.argmin())], saves)


@jax.jit
def _are_finite(params: Any) -> jax.Array:
  return jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(params)])


def _refuse(step: int, path: str, saves: Any) -> NoReturn:
  where = 'the loss, with every parameter finite: look at the data' if path == 'loss' else f'{path}: lower the rate'
  good = saves.latest_step()
  kept = 'no checkpoint was written yet' if good is None else f'the checkpoint of step {good} is good'
  raise ValueError(f'training met a number that is not finite at step {step}, first in {where} or clip; {kept}')


def check_masks(state: TrainState) -> None:
  """Raises where another part wrote to what prune holds at zero."""
  if any(int(prune.broken) for prune in trees.find(state.opt_state, PruneState)):
    raise ValueError('an update after prune wrote to weights that it holds at zero: make jl.prune the last part')


def complete(state: TrainState) -> bool:
  """Tells whether every pruning schedule has reached its target: before that a model is no candidate for the best."""
  return all(bool(prune.reached) for prune in trees.find(state.opt_state, PruneState))


def check_targets(state: TrainState, say: Callable[[str], None]) -> None:
  """Says which schedule did not reach its target, or never acted, by the end of the run."""
  for prune in trees.find(state.opt_state, PruneState):
    if not bool(prune.reached):
      say(f'warning: prune stands at sparsity {float(prune.sparsity):.3f}: its end lies beyond the last step')
  for name, view in masks.views(state.model_state).items():
    if not float(view['sparsity']):
      say(f'warning: {name} masked nothing: its begin lies beyond the last step')
  for plateau in trees.find(state.opt_state, PlateauState):
    if not int(plateau.observed):
      say('warning: plateau heard no validation, so it never lowered the rate: validate, or leave it out')
