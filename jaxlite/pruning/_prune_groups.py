"""Gradual structured pruning: whole neurons, channels and heads become zero, and `jl.shrink` removes them."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxlite import trees
from jaxlite.contract import Account, Last, Status
from jaxlite.errors import counted, number
from jaxlite.graph import alike
from jaxlite.pruning._groups import Groups, along, by_leaf, find_groups, norms
from jaxlite.pruning._mask_state import CHECK, drawn, shortfall
from jaxlite.pruning._sharded import on_any_mesh
from jaxlite.pruning.sparsity_schedules import Schedule, schedule_of, share_of


class PruneGroupsState(NamedTuple):
  """State of `prune_groups`.

  Attributes:
    count: int32[], updates done.
    alive: of each family bool[units], True where a unit lives.
    broken: int32[], weights that came in non-zero where their unit is dead: another part wrote after this one.
    sparsity: float32[], the share of the target that was last asked of the units.
    reached: bool[], whether the schedule has reached its target.
    refreshes: int32[], how often units were chosen anew.
    last: int32[], the update that last chose them, -1 before the first.
    groups: what belongs together; structure, no array.
  """

  count: jax.Array  # type: ignore[assignment]  # tuples have a method of this name
  alive: tuple[jax.Array, ...]
  broken: jax.Array
  sparsity: jax.Array
  reached: jax.Array
  refreshes: jax.Array
  last: jax.Array
  groups: Groups

  def account(self, params: Any) -> Account:
    """Tells how many units are zero, and what could not be removed."""
    del params
    dead = sum(int(np.sum(~np.asarray(one))) for one in self.alive)
    units = sum(np.size(one) for one in self.alive)
    left = [shortfall(self, begun=bool(np.any(self.refreshes)))]
    left += [f'{members} stays whole: {why}' for members, why in self.groups.refused]
    if broken := int(np.sum(self.broken)):
      left.append(f'{broken:,} weights were written to after it: it must be the last part')
    told = drawn(int(np.max(self.refreshes)), int(np.max(self.last)))
    return Account(
      f'{counted(int(np.max(self.count)), "update")}; {told}',
      f'{counted(len(self.groups.families), "group")}; {dead:,} of {units:,} neurons, channels and heads are zero',
      '; '.join(filter(None, left)),
    )

  def status(self) -> Status:
    """Tells whether the schedule has reached its target, and how many weights another part wrote to."""
    return Status(self.reached, self.broken)

  def shrunk(self, kept: Mapping[tuple[str, int], tuple[int, ...]]) -> PruneGroupsState:
    """Returns the state of what is left: (path, axis) -> the entries that stay. `Shrunk.cut` asks for it."""
    pairs = [family.left(kept) for family in self.groups.families]
    groups = Groups(tuple(family for family, _ in pairs), self.groups.refused)
    alive = tuple(one[stay] for one, (_, stay) in zip(self.alive, pairs, strict=True))
    return self._replace(alive=alive, groups=groups)


def prune_groups(
  sparsity: float | Mapping[str, float],
  *,
  begin: int = 0,
  end: int | None = None,
  every: int = 100,
  penalty: float | Callable[[jax.Array], jax.Array] = 0.0,
  schedule: Schedule | None = None,
  groups: Groups | None = None,
  multiple: int = 8,
) -> Last:
  """Zeroes whole neurons, channels and heads gradually and holds them at exactly zero: the last part of a chain.

  A unit goes with all that belongs to it: its column, bias, batch norm and row, through residual sums, concatenations
  and heads (`find_groups`). Those of the smallest root mean square go first. What is masked gives zero, so `jl.shrink`
  removes exactly that, without a budget: of the trained model, with equal outputs; `shrunk.cut(state)` is the state
  with which training goes on.

  Args:
    sparsity: the share of the units of each group that is zero from `end` on, in [0, 1); or {regular expression on
      paths: share}, and groups of which no member matches stay whole.
    begin: the first update that masks, counted from 0.
    end: the update at which the target is reached; None prunes once, at `begin`.
    every: updates between choices; between `begin` and `end` the share follows the cubic schedule of Zhu and Gupta.
    penalty: of group lasso: by how much each update before the target is reached brings the root mean square of each
      unit toward zero (a proximal step, in units of the weights; a hundredth of the learning rate is a beginning). A
      number, or a function of the update count: a growing one lets weights leave a unit before it is masked.
    schedule: in place of `begin`, `end` and `every`.
    groups: of `find_groups`, for a loop of your own; None takes those of the model that `jl.train_step` trains.
    multiple: widths that are left are multiples of this, as `jl.shrink` leaves them; without effect where `groups` is
      given, which says it.

  Returns:
    An Optax transformation (a `Last`).

  Raises:
    ValueError: a share outside [0, 1) or a penalty below 0; at init, nothing that can be removed (each group with its
      reason), a pattern that matches none, groups of another network.

  References:
    Yuan and Lin, Model selection and estimation in regression with grouped variables, 2006,
    https://doi.org/10.1111/j.1467-9868.2005.00532.x
    Wang et al., Neural Pruning via Growing Regularization, 2021, https://arxiv.org/abs/2012.09243
    Fang et al., DepGraph: Towards Any Structural Pruning, 2023, https://arxiv.org/abs/2301.12900

  >>> import jaxlite as jl
  >>> params = {'a': jnp.array([[1.0, 9.0], [2.0, 9.0]]), 'b': jnp.array([[1.0], [9.0]])}
  >>> model = jl.from_function(lambda p, x: jax.nn.relu(x @ p['a']) @ p['b'], params)
  >>> found = find_groups(model, jnp.ones((1, 2)), multiple=1)
  >>> tx = optax.chain(optax.sgd(0.1), prune_groups(0.5, groups=found))
  >>> updates, state = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
  >>> optax.apply_updates(params, updates)['a'].tolist()
  [[0.0, 9.0], [0.0, 9.0]]
  """
  shares = dict(sparsity) if isinstance(sparsity, Mapping) else {'': sparsity}
  shares = {rule: share_of(share, 'prune_groups') for rule, share in shares.items()}
  penalty = penalty if callable(penalty) else number(penalty, 'prune_groups: penalty')
  if not callable(penalty) and not 0 <= penalty < math.inf:
    raise ValueError(f'prune_groups: a penalty is 0 or more, since less would make units grow; got {penalty}')
  plan, _ = schedule_of('prune_groups', max(shares.values(), default=0.0), begin, end, every, 0.0, schedule)

  def init(params: Any, weights: Mapping[str, Any] | None = None) -> PruneGroupsState:
    found = _groups(groups, weights, params, multiple)
    _check(found, params)
    _check_targets(found, _targets(found, shares), shares)
    alive = tuple(jnp.ones(family.units, bool) for family in found.families)
    zero = functools.partial(jnp.zeros, ())
    start = (zero(jnp.int32), zero(jnp.float32), zero(bool), zero(jnp.int32), jnp.full((), -1, jnp.int32))
    return PruneGroupsState(zero(jnp.int32), alive, *start, found)

  def update(updates: Any, state: PruneGroupsState, params: Any = None, **extra: Any) -> tuple[Any, PruneGroupsState]:
    if params is None:
      raise ValueError('prune_groups needs the weights to mask them: call update(grads, state, params)')
    count, found = state.count, state.groups
    _check(found, params)
    due = plan.due(count)
    target = max(shares.values(), default=0.0)
    part = plan.at(count, target) / max(target, 1e-30)  # of what goes in the end

    def refreshed(carry: Any) -> Any:
      sizes = norms(found, extra.get('point', params))
      goals = _targets(found, shares)
      chosen = (_chosen(*one, part) for one in zip(sizes, carry[1], goals, strict=True))
      return jnp.zeros((), bool), tuple(chosen)

    def looked(carry: Any) -> Any:
      del carry
      return jnp.zeros((), bool), _broken(found, state.alive, params)

    # A loop of at most one turn: what passes through a conditional is copied at every step.
    once = functools.partial(jax.lax.while_loop, lambda carry: carry[0])
    look = due | plan.due(count - 1) | (count % CHECK == 0)
    still, broken = once(looked, (look, jnp.zeros((), jnp.int32)))
    _, alive = once(refreshed, (due & ~still, state.alive))
    reached = state.reached | (due & (count >= plan.end))
    if callable(penalty) or penalty:
      pull = jnp.asarray(penalty(count) if callable(penalty) else penalty, jnp.float32)
      updates = _pulled(found, updates, params, jnp.where(reached | (count < begin), 0.0, pull))
    return _held(found, alive, updates, params), state._replace(
      count=optax.safe_increment(count),
      alive=alive,
      broken=state.broken + broken,
      sparsity=jnp.where(due, plan.at(count, target), state.sparsity),
      reached=reached,
      refreshes=state.refreshes + due,
      last=jnp.where(due, count, state.last),
    )

  return on_any_mesh(init, update, 'prune_groups')


def _groups(groups: Groups | None, weights: Any, params: Any, multiple: int) -> Groups:
  if groups is None:
    program = getattr(weights, 'program', None)
    if program is None:
      raise ValueError(
        'prune_groups removes what belongs together, and in a loop of your own only arrays are seen: give '
        'groups=jl.pruning.find_groups(model, inputs)'
      )
    model, inputs, key = program
    groups = find_groups(model, inputs, key=key, multiple=multiple).renamed(weights.names or {})
    known = {*trees.paths(params)}
    held = [all(path in known for path, _, _ in family.members) for family in groups.families]
    gone = [(str(one), 'not all of it is trained') for one, mine in zip(groups.families, held, strict=True) if not mine]
    mine = tuple(one for one, mine in zip(groups.families, held, strict=True) if mine)
    groups = Groups(mine, (*groups.refused, *gone))
  elif not isinstance(groups, Groups):
    raise TypeError(f'prune_groups: groups are those of jl.pruning.find_groups; got {type(groups).__name__}')
  if not groups.families:
    told = '; '.join(f'{members}: {why}' for members, why in groups.refused[:4])
    raise ValueError(f'prune_groups: nothing of this network can be removed; {told or "it has no hidden units"}')
  return groups


def _check(groups: Groups, params: Any) -> None:
  leaves = trees.by_path(params)
  for family in groups.families:
    for path, axis, ids in family.members:
      shape = jnp.shape(leaves[path]) if path in leaves else None
      if shape is None or axis >= len(shape) or shape[axis] != len(ids):
        got = 'nothing' if shape is None else list(shape)
        raise ValueError(
          f'prune_groups: these groups are of another network: {path!r} has {len(ids)} entries along axis {axis}, got '
          f'{got}: find them again, or cut the state with the network (shrunk.cut)'
        )


def _targets(groups: Groups, shares: Mapping[str, float]) -> list[int]:
  """How many units of each family go in the end."""
  paths = sorted({path for family in groups.families for path, _, _ in family.members})
  goals = [0] * len(groups.families)
  for pattern, share in shares.items():
    chosen = trees.select(paths, pattern or None, what='prune_groups: sparsity')
    for place, family in enumerate(groups.families):
      if any(path in chosen for path, _, _ in family.members):
        goals[place] = family.units - family.share(1 - share)
  return goals


def _check_targets(groups: Groups, goals: Sequence[int], shares: Mapping[str, float]) -> None:
  if not any(goals) and any(shares.values()):
    one = groups.families[0]
    raise ValueError(
      f'prune_groups: no group is wide enough to lose units in whole steps of its widths ({one}: {one.units} units, '
      f'{one.step} at a time): give multiple=1, or a larger sparsity'
    )


def _chosen(sizes: jax.Array, alive: jax.Array, goal: int, part: jax.Array) -> jax.Array:
  """The units that live: the largest, the earlier of equals; what is dead stays so."""
  scores = jnp.where(alive, jnp.where(jnp.isnan(sizes), jnp.inf, sizes), -1.0)
  rank = jnp.argsort(jnp.argsort(-scores, stable=True), stable=True)
  return alive & (rank < len(alive) - jnp.round(goal * part).astype(jnp.int32))


def _over(groups: Groups, fn: Callable[..., jax.Array], *trees_: Any) -> Any:
  """Maps `fn(parts, *leaves)` over the leaves that have a part in a unit; the first tree's others stay."""
  parts = by_leaf(groups)
  return trees.map_with_path(lambda path, *leaves: fn(parts[path], *leaves) if path in parts else leaves[0], *trees_)


def _live(parts: Any, alive: Any, rank: int) -> jax.Array:
  masks = (along(alive[family], ids, axis, rank, True) for family, axis, ids in parts)
  return functools.reduce(jnp.logical_and, masks)


def _held(groups: Groups, alive: Any, updates: Any, params: Any) -> Any:
  def held(parts: Any, update: jax.Array, param: jax.Array) -> jax.Array:
    wide = -param.astype(jnp.promote_types(update.dtype, param.dtype))  # p + (-p) is exactly +0
    return jnp.where(_live(parts, alive, param.ndim), update, wide)

  return _over(groups, held, updates, params)


def _pulled(groups: Groups, updates: Any, params: Any, pull: jax.Array) -> Any:
  """Updates with a proximal step of group lasso behind them."""
  new = _over(groups, lambda parts, update, param: param + update, updates, params)
  sizes = norms(groups, new)
  shares = [jnp.maximum(1 - pull / jnp.maximum(one, 1e-30), 0.0) for one in sizes]

  def pulled(parts: Any, update: jax.Array, param: jax.Array) -> jax.Array:
    factors = (along(shares[family], ids, axis, param.ndim, 1.0) for family, axis, ids in parts)
    less = 1 - functools.reduce(jnp.multiply, factors)
    return (update - less * (param + update)).astype(update.dtype)

  return _over(groups, pulled, updates, params)


def _broken(groups: Groups, alive: Any, params: Any) -> jax.Array:
  parts, leaves = by_leaf(groups), trees.by_path(params)
  masks = [
    jnp.broadcast_to(_live(own, alive, jnp.ndim(leaves[path])), leaves[path].shape) for path, own in parts.items()
  ]
  return alike.count(lambda mask, param: (param != 0) & ~mask, masks, [leaves[path] for path in parts])
