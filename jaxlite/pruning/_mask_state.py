"""The state of an update part that holds weights at zero, and what all such parts share."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxlite import trees
from jaxlite.contract import Account, Status
from jaxlite.errors import arrays, counted
from jaxlite.graph import alike
from jaxlite.graph.layouts import Layouts
from jaxlite.pruning import _masks as masking
from jaxlite.pruning._selection import left_out
from jaxlite.pruning.sparsity_schedules import Schedule

CHECK = 16  # updates between counts of broken weights; one more follows each refresh


class PruneState(NamedTuple):
  """State of every part that holds masks: arrays only, and the layouts as structure.

  Attributes:
    count: int32[], updates done.
    masks: bool[...] for each pruned leaf, True where a weight lives, or its bits (uint8); None elsewhere.
    broken: int32[], weights that came in non-zero where the mask says zero: another part wrote after this one.
      Counted on the update after each refresh, and on each sixteenth.
    sparsity: float32[], the sparsity last asked of the masks.
    reached: bool[], whether the schedule has reached its target.
    refreshes: int32[], how often masks were drawn anew.
    last: int32[], the update that last drew them, -1 before the first.
    context: what the scores read, None for most.
    layouts: axes of the weights, None where they are not known (a foreign loop).
  """

  count: jax.Array  # type: ignore[assignment]  # tuples have a method of this name
  masks: Any
  broken: jax.Array
  sparsity: jax.Array
  reached: jax.Array
  refreshes: jax.Array
  last: jax.Array
  context: Any = None
  layouts: Layouts | None = None

  def account(self, params: Any) -> Account:
    """Tells what the masks did to the params."""
    masked, leaves = trees.paths(self.masks), trees.by_path(params)
    held = [np.asarray(leaves[path]) for path in masked]
    zeros, size = sum(int((leaf == 0).sum()) for leaf in held), sum(leaf.size for leaf in held)
    left = [shortfall(self, begun=bool(np.any(self.refreshes)))]
    if broken := int(np.sum(self.broken)):
      left.append(f'{broken:,} weights were written to after it: it must be the last part')
    left.append(left_out(self.layouts))
    told = drawn(int(np.max(self.refreshes)), int(np.max(self.last)))
    return Account(
      f'{counted(int(np.max(self.count)), "update")}; {told}',
      f'{arrays(masked)}; {zeros:,} of {size:,} weights are zero',
      '; '.join(filter(None, left)),
    )

  def status(self) -> Status:
    """Tells whether the schedule has reached its target, and how many weights another part wrote to."""
    return Status(self.reached, self.broken)


def check(state: Any) -> None:
  """Raises where another part wrote to what masks hold at zero, in a loop of your own: they are not last in the chain.

  Call it at log steps: reading the counts waits for the device. `jaxlite.train` does so itself. It warns, too, where
  Optax's schedule-free weights are zero as they train and are not as `schedule_free_eval_params` reads them.

  Args:
    state: the optimizer's state, e.g. of `optax.chain(..., prune(0.9))`, or any pytree that holds it. Of a TrainState,
      which is read where its masks hold, give all, not its `opt_state`.

  Raises:
    ValueError: weights that are not zero where a mask says so; masks inside of `optax.lookahead`, which do not hold its
      slow weights; or nothing in the state holds masks, so that there is nothing to check.

  >>> params = {'w': jnp.ones((2, 2))}
  >>> state = start(params, {'w': jnp.eye(2, dtype=bool)}, packed=False)
  >>> check(state)
  >>> check(state._replace(broken=jnp.int32(2)))
  Traceback (most recent call last):
    ...
  ValueError: another part wrote to 2 values that a mask holds at zero: make the pruning part the last of its chain \
(or they are not finite: look at the losses)
  """
  told = [node.status() for node in trees.able(state, 'status')]
  if not told:
    raise ValueError('pruning.check finds no part that holds masks in this state: give it the state of the optimizer')
  within = trees.nodes(state, lambda node: isinstance(node, optax.LookaheadState))
  if any(trees.able(node.fast_state, 'status') for node in within):
    raise ValueError(
      'optax.lookahead writes its slow weights over what a mask inside of it holds at zero, and they are no zeros: put '
      'the pruning part behind it, optax.chain(optax.lookahead(...), prune(...))'
    )
  if broken := sum(int(np.sum(jax.device_get(one.broken))) for one in told):
    raise ValueError(
      f'another part wrote to {counted(broken, "value")} that a mask holds at zero: make the pruning part the last of '
      'its chain (or they are not finite: look at the losses)'
    )
  if not (hasattr(state, 'opt_state') and hasattr(state, 'const')) and (alive := _alive_where_read(state)):
    warnings.warn(
      f'optax.contrib.schedule_free_eval_params is not zero at {counted(alive, "value")} that a mask holds at zero: it '
      'reads the model elsewhere than it trains; read it with jl.optim.evaluation_point(state, params), which is zero '
      'there',
      stacklevel=2,
    )


def _alive_where_read(state: Any) -> int:
  """How many weights are zero where schedule-free weights train and are not at the point where they are read.

  Where y is zero, that point, (y - (1 - b1) z) / b1, is zero where z is.
  """
  found = 0
  for averaged in trees.nodes(state, lambda node: isinstance(node, optax.contrib.ScheduleFreeState)):
    points = trees.by_path(averaged.z)
    for masks in (node.masks for node in trees.nodes(state, lambda node: hasattr(node, 'masks'))):
      for path, mask in trees.by_path(masks).items():
        if path in points and (mask.dtype == bool or mask.ndim == 1):  # else an ensemble's bits
          found += int(jnp.sum((points[path] != 0) & ~masking.unpack(mask, points[path].shape)))
  return found


def drawn(times: int, last: int) -> str:
  if not times:
    return 'masks never drawn anew'
  return f'masks drawn {"once, at" if times == 1 else f"{times:,} times, last at"} update {last:,}'


def shortfall(state: Any, *, begun: bool) -> str:
  """Tells what is missing to the target of a state with `reached` and `sparsity`; '' where nothing is."""
  if np.all(state.reached):
    return ''
  if not begun:
    return 'it masked nothing: its begin was not reached'
  return f'its target was not reached: masks stand at sparsity {float(np.mean(state.sparsity)):.3f}'


def layouts_in(layouts: Layouts | None) -> dict[str, Any] | None:
  """Returns the layouts of a state by path."""
  return None if layouts is None else layouts.by_path()


def start(params: Any, masks: Mapping[str, jax.Array], *, packed: bool) -> PruneState:
  """Returns the state of a part that holds `masks` and has done nothing yet."""
  return PruneState(
    count=jnp.zeros((), jnp.int32),  # each an array of its own: a loop may donate the state
    masks=laid_out(masks, params, packed),
    broken=jnp.zeros((), jnp.int32),
    sparsity=jnp.zeros((), jnp.float32),
    reached=jnp.zeros((), bool),
    refreshes=jnp.zeros((), jnp.int32),
    last=jnp.full((), -1, jnp.int32),
  )


def laid_out(masks: Mapping[str, jax.Array], params: Any, packed: bool) -> Any:
  """Returns masks by path in the structure of params, None elsewhere."""
  form = masking.pack if packed else lambda mask: mask
  return trees.map_with_path(lambda path, _: form(masks[path]) if path in masks else None, params)


def hold_at_zero(updates: Any, params: Any, masks: Any) -> Any:
  """Returns updates that land exactly on zero where a mask says so."""

  def held(mask: jax.Array, update: jax.Array, param: jax.Array) -> jax.Array:
    # p + (-p) is exactly +0 in every float format, so apply_updates lands on zero; a bfloat16 update of a float32
    # weight has to widen for it.
    wide = -param.astype(jnp.promote_types(update.dtype, param.dtype))
    return jnp.where(masking.unpack(mask, param.shape), update, wide)

  return masking.over(held, masks, updates, params, unmasked=lambda update: update)


def watched(
  state: PruneState,
  params: Any,
  schedule: Schedule,
  kept: Any,
  refresh: Callable[[Any, Any], tuple[Any, Any]],
  *,
  sparsity: float | None = None,
  first: int = 0,
) -> tuple[PruneState, Any]:
  """Draws anew where the schedule says so, and now and then counts what another part wrote where masks hold zero.

  Args:
    state: before this update.
    params: as they came in.
    schedule: when to draw.
    kept: what else a refresh changes.
    refresh: (masks, kept) -> (masks, kept), anew.
    sparsity: that is asked in the end, where the schedule leads there.
    first: the first update at which weights may be found broken.

  Returns:
    (the state after this update, what was kept).
  """
  due, look = _times(state, schedule)
  looking, broken = looked(state, params, look & (state.count >= first))
  turn = lambda old: (*refresh(*old[:2]), _noted(old[2], state.count, schedule, sparsity))  # noqa: E731
  # Begins when the masks that it replaces have been read.
  _, (masks, kept, noted) = alike.once(due & ~looking, turn, (state.masks, kept, _notes(state)))
  return _after(state, masks, broken, noted), kept


def watched_in_one(
  state: PruneState, schedule: Schedule, refresh: Callable[[Any, jax.Array], tuple[Any, jax.Array]], sparsity: float
) -> PruneState:
  """As `watched`, where drawing and counting read the leaves together.

  Args:
    state, schedule, sparsity: as there.
    refresh: (masks, whether they are to be drawn anew) -> (masks, how many weights the old ones do not hold).
  """
  due, look = _times(state, schedule)

  def turn(old: tuple[Any, jax.Array, PruneState]) -> tuple[Any, jax.Array, PruneState]:
    masks, found = refresh(old[0], due)
    _, noted = alike.once(due, lambda noted: _noted(noted, state.count, schedule, sparsity), old[2])
    return masks, old[1] + found, noted

  _, (masks, broken, noted) = alike.once(look, turn, (state.masks, state.broken, _notes(state)))
  return _after(state, masks, broken, noted)


def _times(state: PruneState, schedule: Schedule) -> tuple[jax.Array, jax.Array]:
  """(whether masks are drawn at this update, whether weights are looked at)."""
  due = schedule.due(state.count)
  # A wrong order breaks every step, so the first look after a refresh finds it.
  return due, due | schedule.due(state.count - 1) | (state.count % CHECK == 0)


def _notes(state: PruneState) -> PruneState:
  """What a state notes of a refresh. It changes in the same loop: each number apart would be a piece of code."""
  others: dict[str, Any] = dict.fromkeys(('count', 'masks', 'broken', 'context', 'layouts'))
  return state._replace(**others)


def _noted(notes: PruneState, count: jax.Array, schedule: Schedule, sparsity: float | None) -> PruneState:
  asked = notes.sparsity if sparsity is None else schedule.at(count, sparsity)
  reached = notes.reached | (count >= schedule.end)
  return notes._replace(sparsity=asked, reached=reached, refreshes=notes.refreshes + 1, last=count)


def _after(state: PruneState, masks: Any, broken: jax.Array, notes: PruneState) -> PruneState:
  held = {'masks': masks, 'broken': broken, 'context': state.context, 'layouts': state.layouts}
  return notes._replace(count=optax.safe_increment(state.count), **held)


def looked(state: PruneState, params: Any, look: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Counts, where `look` says so, what another part wrote: (False by now, as `alike.once` has it; the count in all)."""
  return alike.once(look, lambda found: found + broken_weights(state.masks, params), state.broken)


def broken_weights(masks: Any, params: Any) -> jax.Array:
  """Counts the weights that are not zero where the masks hold zero; it reads every weight."""
  found = jax.tree.leaves(masking.over(lambda mask, param: masking.unpack(mask, param.shape), masks, params))
  held = jax.tree.leaves(masking.over(lambda mask, param: param, masks, params))
  return alike.count(lambda mask, param: (param != 0) & ~mask, found, held)
