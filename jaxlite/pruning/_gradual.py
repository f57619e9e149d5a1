"""Gradual pruning as the last link of an Optax chain: what it masks is exactly zero after every step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxlite import trees
from jaxlite.contract import Last
from jaxlite.pruning import _masks as masking
from jaxlite.pruning._allocate import Allocate, erk
from jaxlite.pruning._choose_masks import (
  Structures,
  draw,
  draws_in_one,
  leaves_at,
  redraw,
  refuse_negative_now,
  scores_of,
  targets,
)
from jaxlite.pruning._mask_state import (
  PruneState,
  hold_at_zero,
  laid_out,
  layouts_in,
  start,
  watched,
  watched_in_one,
)
from jaxlite.pruning._selection import maskable
from jaxlite.pruning._sharded import on_any_mesh
from jaxlite.pruning._structure import element
from jaxlite.pruning.scores import Score, magnitude
from jaxlite.pruning.sparsity_schedules import Schedule, schedule_of


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
  allocate: Allocate = erk,
  packed: bool = False,
) -> Last:
  """Zeroes the weights that matter least, gradually, and holds them at exactly zero: the last part of a chain.

  It needs no call beside `update`. What an update after it writes to dead weights is counted; in a loop of your own
  `jl.pruning.check(state)` raises on it. Masks are drawn at `begin`, each `every` updates after
  it, and at `end`, where the target is reached whatever `every` is. Between them the sparsity follows the cubic
  schedule of Zhu and Gupta. The masks are those of a stable sort by score.

  It holds the weights that train. Optax's schedule-free optimizers are read elsewhere, and there dead weights are not
  zero: in a loop of your own read them with `jl.optim.evaluation_point(state, params)`, where they are, in place of
  `optax.contrib.schedule_free_eval_params`. `jl.train_step` does so itself.

  Args:
    sparsity: the share of the selected weights that is zero from `end` on, in [0, 1); `allocate` says where.
    begin: the first update that masks, counted from 0.
    end: the update at which the target is reached; None prunes once, at `begin`.
    every: updates between refreshes.
    initial: the sparsity at `begin` of a gradual schedule.
    select: a rule on paths; None takes the weights (in a foreign loop: by shape and name).
    schedule: of `sparsity_schedules`, `cubic`, `one_shot`, `periodic` or `constant`, for `begin`, `end`, `every`
      and `initial`.
    score: (params, context) -> tree like params, non-negative: the largest live. It sees the weights as they came in:
      what is dead is zero, so by magnitude nothing comes back (`straight_through` and `rigl` let weights come back).
    context: arrays that the score reads, such as a `Calibration`; kept in the state, so no program captures them.
    structure: `element`, `channel()`, `n_m(2, 4)`, `per_output()`, `block(4, 4)`; or by rules, {regular expression
      on paths: structure}. Where no program tells which axes stack layers (a foreign loop), `stacked(..., axis=0)`.
    allocate: how leaves share the zeros. `erk`, the default, takes more of large leaves than of small ones and keeps
      accuracy best (`experiments/README.md`); `uniform` takes the same share of each, `global_(floor=0.1)` has all
      compete; or {regular expression on paths: sparsity}.
    packed: keep a mask as bits, 1/32 of float32 weights, instead of bytes.

  Returns:
    An Optax transformation (a `Last`).

  Raises:
    ValueError: a sparsity outside [0, 1), `end` before `begin`, `every` under 1; at init, no weight selected, or (of
      a score of your own, where params are known then) scores below 0.

  References:
    Zhu and Gupta, To prune, or not to prune, 2017, https://arxiv.org/abs/1710.01878

  >>> import jax.numpy as jnp, optax
  >>> tx = optax.chain(optax.sgd(0.1), prune(0.5))
  >>> params = {'w': jnp.arange(1.0, 5.0).reshape(2, 2)}
  >>> updates, state = tx.update({'w': jnp.zeros((2, 2))}, tx.init(params), params)
  >>> optax.apply_updates(params, updates)['w'].tolist()
  [[0.0, 0.0], [3.0, 4.0]]
  """
  schedule, sparsity = schedule_of('prune', sparsity, begin, end, every, initial, schedule)

  def init(params: Any, weights: Mapping[str, Any] | None = None) -> PruneState:
    chosen, layouts = maskable(params, select, weights, what='prune')
    goals = targets(leaves_at(params, chosen), layouts_in(layouts), sparsity, structure, allocate, what='prune')
    refuse_negative_now(score, params, context, goals, what='prune')
    dense = {path: jnp.ones(goal.shape, bool) for path, goal in goals.items()}
    return start(params, dense, packed=packed)._replace(context=jax.tree.map(jnp.copy, context), layouts=layouts)

  def update(updates: Any, state: PruneState, params: Any = None, **extra: Any) -> tuple[Any, PruneState]:
    if params is None:
      raise ValueError('prune needs the weights to mask them: call update(grads, state, params)')
    count = state.count
    chosen = trees.paths(state.masks)
    goals = targets(leaves_at(params, chosen), layouts_in(state.layouts), sparsity, structure, allocate, what='prune')

    weights = leaves_at(params, goals)
    at, done = (lambda goal: schedule.at(count, goal)), count >= schedule.end

    def refresh(masks: Any, kept: Any) -> tuple[Any, Any]:
      # Not of params + updates: a branch that reads the updates would have them written out at every step.
      # Where the model is read at another point than it trains at, its weights are those that count.
      scores = scores_of(score, extra.get('point', params), state.context, goals, what='prune')
      return laid_out(draw(goals, scores, at, done), params, packed), kept

    def in_one(masks: Any, due: jax.Array) -> tuple[Any, jax.Array]:
      before = {path: masking.unpack(mask, weights[path].shape) for path, mask in leaves_at(masks, goals).items()}
      drawn, broken = redraw(goals, weights, before, at, done, due)
      return laid_out(drawn, params, packed), broken

    if score is magnitude and 'point' not in extra and draws_in_one(goals, weights):
      state = watched_in_one(state, schedule, in_one, sparsity)
    else:
      state, _ = watched(state, params, schedule, (), refresh, sparsity=sparsity)
    return hold_at_zero(updates, params, state.masks), state

  return on_any_mesh(init, update, 'prune')
