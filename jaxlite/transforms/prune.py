"""Gradual pruning as the last link of an Optax chain: what it masks is exactly zero after every step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxlite import trees
from jaxlite.contract import Last
from jaxlite.graph.layouts import Layouts
from jaxlite.transforms import masks as masking
from jaxlite.transforms.allocate import Allocate, uniform
from jaxlite.transforms.draw import Structures, check_sparsity, draw, leaves_at, scores_of, targets
from jaxlite.transforms.scores import Score, magnitude
from jaxlite.transforms.sparsity import Schedule, cubic, one_shot
from jaxlite.transforms.structure import element

_CHECK = 16  # updates between counts of broken weights; one more follows each refresh


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
    layouts: axes of the weights, where a structure or an allocation asks for them.
  """

  count: jax.Array
  masks: Any
  broken: jax.Array
  sparsity: jax.Array
  reached: jax.Array
  refreshes: jax.Array
  last: jax.Array
  context: Any = None
  layouts: Layouts | None = None


def prune(
  sparsity: float,
  *,
  begin: int = 0,
  end: int | None = None,
  every: int = 100,
  initial: float = 0.0,
  select: trees.Rule = None,
  schedule: Schedule | None = None,
  score: Score = magnitude,
  context: Any = None,
  structure: Structures = element,
  allocate: Allocate = uniform,
  packed: bool = False,
) -> Last:
  """Zeroes the weights that matter least, gradually, and holds them at exactly zero.

  Stands last in a chain and needs no call beside `update`. Masks are drawn at `begin`, each `every` updates after
  it, and at `end`, where the target is reached whatever `every` is. Between them the sparsity follows the cubic
  schedule of Zhu and Gupta. The masks are those of a stable sort by score.

  Args:
    sparsity: the share of each selected leaf that is zero from `end` on, in [0, 1).
    begin: the first update that masks, counted from 0.
    end: the update at which the target is reached; None prunes once, at `begin`.
    every: updates between refreshes.
    initial: the sparsity at `begin` of a gradual schedule.
    select: a rule on paths; None takes the weights (in a foreign loop: by shape and name).
    schedule: `cubic`, `one_shot`, `periodic` or `constant`, in place of `begin`, `end`, `every` and `initial`.
    score: (params, context) -> tree like params, non-negative: the largest live. It sees the weights as they came in:
      what is dead is zero, so by magnitude nothing comes back (`straight_through` and `rigl` let weights come back).
    context: arrays that the score reads, such as a `Calibration`; kept in the state, so no program captures them.
    structure: `element`, `channel()`, `n_m(2, 4)`, `per_output()`, `block(4, 4)`; or by rules, {regular expression
      on paths: structure}.
    allocate: `uniform`, `erk`, `global_(floor=0.1)`; or {regular expression on paths: sparsity}.
    packed: keep a mask as bits, 1/32 of float32 weights, instead of bytes.

  Returns:
    An Optax transformation (a `Last`).

  Raises:
    ValueError: a sparsity outside [0, 1), `end` before `begin`, `every` under 1; at init, no weight selected.

  References:
    Zhu and Gupta, To prune, or not to prune, 2017, https://arxiv.org/abs/1710.01878

  >>> import jax.numpy as jnp, optax
  >>> tx = optax.chain(optax.sgd(0.1), prune(0.5))
  >>> params = {'w': jnp.arange(1.0, 5.0).reshape(2, 2)}
  >>> updates, state = tx.update({'w': jnp.zeros((2, 2))}, tx.init(params), params)
  >>> optax.apply_updates(params, updates)['w'].tolist()
  [[0.0, 0.0], [3.0, 4.0]]
  """
  schedule = schedule_of('prune', sparsity, begin, end, every, initial, schedule)

  def init(params: Any, weights: Mapping[str, Any] | None = None) -> PruneState:
    chosen = trees.weight_paths(params, select, weights, what='prune')
    layouts = layouts_for(chosen, weights, structure, allocate)
    goals = targets(leaves_at(params, chosen), layouts_in(layouts), sparsity, structure, allocate, what='prune')
    dense = {path: jnp.ones(goal.shape, bool) for path, goal in goals.items()}
    return start(params, dense, packed=packed)._replace(context=jax.tree.map(jnp.copy, context), layouts=layouts)

  def update(updates: Any, state: PruneState, params: Any = None, **_: Any) -> tuple[Any, PruneState]:
    if params is None:
      raise ValueError('prune needs the weights to mask them: call update(grads, state, params)')
    count = state.count
    chosen = trees.paths(state.masks)
    goals = targets(leaves_at(params, chosen), layouts_in(state.layouts), sparsity, structure, allocate, what='prune')

    def refresh(masks: Any, kept: Any) -> tuple[Any, Any]:
      # Not of params + updates: a branch that reads the updates would have them written out at every step.
      scores = scores_of(score, params, state.context, goals, what='prune')
      drawn = draw(goals, scores, lambda goal: schedule.at(count, goal), count >= schedule.end)
      return laid_out(drawn, params, packed), kept

    masks, _, broken = watched(state, params, schedule, (), refresh)
    return hold_at_zero(updates, params, masks), state._replace(
      count=optax.safe_increment(count),
      masks=masks,
      broken=state.broken + broken,
      sparsity=jnp.where(schedule.due(count), schedule.at(count, sparsity), state.sparsity),
      reached=state.reached | (count >= schedule.end),
      **drawn_at(state, schedule),
    )

  return Last(init, update)


def schedule_of(
  what: str, sparsity: float, begin: int, end: int | None, every: int, initial: float, schedule: Schedule | None
) -> Schedule:
  """Returns the schedule that the short arguments of a part describe, or the given one."""
  check_sparsity(sparsity, what)
  if schedule is not None:
    if not isinstance(schedule, Schedule):
      raise TypeError(
        f'{what}: schedule is cubic(...), one_shot(...), periodic(...) or constant(...); got {schedule!r}'
      )
    if (begin, end, initial) != (0, None, 0.0):
      raise ValueError(f'{what}: schedule= already says when; leave begin, end and initial out')
    return schedule
  if not 0 <= initial < 1:
    raise ValueError(f'{what}: initial is the share that becomes zero, in [0, 1); got {initial}')
  if begin < 0:
    raise ValueError(f'{what}: begin counts updates from 0; got {begin}')
  if initial > sparsity:
    raise ValueError(
      f'{what}: initial={initial} lies above sparsity={sparsity}: weights never come back, lower initial'
    )
  if every < 1:
    raise ValueError(f'{what}: every is a number of updates, at least 1; got {every}')
  return one_shot(begin) if end is None else cubic(begin, end, every, initial)


def layouts_for(
  chosen: frozenset[str], weights: Mapping[str, Any] | None, structure: Structures, allocate: Allocate
) -> Layouts | None:
  """Returns the layouts that a state must remember: None where nothing asks for them, or none are known."""
  if not isinstance(weights, Mapping) or (structure is element and allocate is uniform):
    return None
  return Layouts(tuple((path, weights.get(path)) for path in sorted(chosen)))


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


def drawn_at(state: PruneState, schedule: Schedule) -> dict[str, jax.Array]:
  """Returns the fields of a state that tell how often, and when last, masks were drawn, this update counted in."""
  due = schedule.due(state.count)
  return {'refreshes': state.refreshes + due, 'last': jnp.where(due, state.count, state.last)}


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
  state: PruneState, params: Any, schedule: Schedule, kept: Any, refresh: Callable[[Any, Any], tuple[Any, Any]]
) -> tuple[Any, Any, jax.Array]:
  """Draws anew where the schedule says so, and now and then counts what another part wrote where masks hold zero.

  Args:
    state: before this update.
    params: as they came in.
    schedule: when to draw.
    kept: what else a refresh changes.
    refresh: (masks, kept) -> (masks, kept), anew.

  Returns:
    (masks, kept, int32[] weights found broken).
  """
  due = schedule.due(state.count)
  # A wrong order breaks every step, so the first look after a refresh finds it.
  look = due | schedule.due(state.count - 1) | (state.count % _CHECK == 0)

  def turn(carry: Any) -> Any:
    _, masks, kept, _ = carry
    broken = broken_weights(masks, params)
    return jnp.zeros((), bool), *jax.lax.cond(due, refresh, lambda *old: old, masks, kept), broken

  # A conditional written as a loop of at most one turn: what a loop carries XLA keeps in place, what passes through
  # a conditional it copies, at every step.
  carry = (look, state.masks, kept, jnp.zeros((), jnp.int32))
  return jax.lax.while_loop(lambda carry: carry[0], turn, carry)[1:]


def broken_weights(masks: Any, params: Any) -> jax.Array:
  """Counts the weights that are not zero where the masks hold zero; it reads every weight."""
  wrong = masking.over(
    lambda mask, param: jnp.sum((param != 0) & ~masking.unpack(mask, param.shape), dtype=jnp.int32),
    masks,
    params,
  )
  return sum(jax.tree.leaves(wrong), jnp.zeros((), jnp.int32))
