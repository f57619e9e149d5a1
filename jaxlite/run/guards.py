"""What a run must not go on with, and what it must not end without: numbers that are not finite, masks, targets.

The loop asks at log points and before it saves, so that no checkpoint holds what went wrong. Parts are asked by
`status` and `account` (see `contract.py`), whoever wrote them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from jaxlite import trees
from jaxlite.contract import Hook, Recipe, Status
from jaxlite.errors import counted
from jaxlite.graph import alike
from jaxlite.report.ledger import name_of, told
from jaxlite.step.state import TrainState, went_nan


class NotFinite(ValueError):  # noqa: N818 - named after what was met
  """Training met a number that is not finite.

  Attributes:
    step: where it was met.
    where: the first leaf, or 'loss'.
  """

  def __init__(self, message: str, step: int, where: str):
    """Args: the line to say, the step, and the first leaf."""
    super().__init__(message)
    self.step, self.where = step, where


def check_finite(values: list[dict[str, float]], state: TrainState, saves: Any) -> None:
  """Raises where a loss since the last log point was not finite, naming the first step and leaf.

  A step that a part left out (`optax.apply_if_finite`) is no failure of the run: the state does not know of it.
  """
  if not all(math.isfinite(value['loss']) for value in values) and (failed := went_nan(state)):
    _refuse(*failed, state, saves)


def check_params(state: TrainState, saves: Any) -> None:
  """A finite loss may have a gradient that is not: what it wrote must not be saved as good."""
  leaves = jax.tree.leaves(state.params)
  if all(device.platform == 'cpu' for device in state.step.devices()):  # NumPy reads them where they lie
    first = next((i for i, leaf in enumerate(leaves) if not np.isfinite(np.asarray(leaf)).all()), len(leaves))
  else:
    first = int(_first_not_finite(leaves))
  if first < len(leaves):
    _refuse(int(state.step), trees.paths(state.params)[first], state, saves)


@jax.jit
def _first_not_finite(leaves: list[jax.Array]) -> jax.Array:
  return alike.first(lambda entries: ~jnp.isfinite(entries), leaves)


def _refuse(step: int, path: str, state: TrainState, saves: Any) -> NoReturn:
  where = (
    'the loss, with every parameter finite: look at the data and the rate'
    if path == 'loss'
    else f'{path}: lower the rate'
  )
  good = saves.latest_step()
  kept = 'no checkpoint was written yet' if good is None else f'the checkpoint of step {good} is good'
  said = f'first in {where} or clip{_emptied(state)}; {kept}'
  message = f'training met a number that is not finite at step {step}, {said}'
  raise NotFinite(message, step, path)


def _emptied(state: TrainState) -> str:
  """Tells of masks that left a row or a column without a weight, whose norm is zero; '' where none did."""
  leaves = trees.by_path(state.params)
  for node in trees.nodes(list(_kept(state).values()), lambda node: hasattr(node, 'masks')):
    for path in trees.paths(node.masks):
      zero = np.asarray(leaves[path] == 0) if path in leaves else np.ones(())
      for axis in range(zero.ndim if zero.ndim > 1 else 0):
        if found := int(zero.all(axis=tuple(one for one in range(zero.ndim) if one != axis)).sum()):
          return (
            f'; or a norm without epsilon divides by zero: masks left {found} of {zero.shape[axis]} along axis {axis} '
            f'of {path!r} without a weight, which structure=jl.pruning.per_output() does not'
          )
  return ''


def complete(state: TrainState) -> bool:
  """Tells whether every part is at its goal (its target sparsity): before that a model is no candidate for the best."""
  return all(np.all(status.reached) for _, status in _answers(state))


def check_unbroken(recipe: Recipe, state: TrainState) -> None:
  """Raises where a part wrote to what another one holds (what prune masks)."""
  for where, status in _answers(state):
    if broken := int(np.sum(status.broken)):
      raise ValueError(
        f'another part wrote to {counted(broken, "value")} that {_name(recipe, state, where)} holds: make '
        f'{_name(recipe, state, where)} the last part of the chain'
      )


def check_targets(recipe: Recipe, state: TrainState, say: Callable[[str], None]) -> None:
  """Says what a part did not do or did not reach by the end of the run."""
  short = [where for where, status in _answers(state) if not np.all(status.reached)]
  for where, own in _kept(state).items():
    left = told(own, state.params).left
    if where in short and not left:
      left = 'its goal was not reached'
    if left:
      say(f'warning: {_name(recipe, state, where)}: {left}')


def _kept(state: TrainState) -> dict[str | int, Any]:
  """What parts keep: of update parts by place, of hooks by name."""
  hooks = {name.removeprefix('jl.'): own for name, own in state.model_state.items() if name.startswith('jl.')}
  return {**dict(enumerate(state.opt_state)), **hooks}


def _answers(state: TrainState) -> list[tuple[str | int, Status]]:
  """Every state that can tell how it stands, and what it says, on the host."""
  asked = [(where, node) for where, own in _kept(state).items() for node in trees.able(own, 'status')]
  said = jax.device_get([node.status() for _, node in asked])
  return [(where, status) for (where, _), status in zip(asked, said, strict=True)]


def _name(recipe: Recipe, state: TrainState, where: str | int) -> str:
  if isinstance(where, str):
    return where
  updates = [part for part in recipe.parts if not isinstance(part, Hook)]
  return name_of(updates[where], state.opt_state[where])
