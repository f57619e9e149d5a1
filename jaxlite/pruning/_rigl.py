"""RigL and SET: sparse from the start to the end, with connections that move.

Each is a wrapper that owns its optimizer, as `optax.MultiSteps` does: the raw gradient comes in, moments live
inside, and what it changes comes last. So it needs no extra arguments, and works wherever Optax works.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxlite import trees
from jaxlite.contract import Last, stream
from jaxlite.errors import number, whole
from jaxlite.picking import owned
from jaxlite.pruning import _masks as masking
from jaxlite.pruning._allocate import Allocate, Global, erk
from jaxlite.pruning._choose_masks import Structures, Target, leaves_at, targets
from jaxlite.pruning._mask_state import (
  PruneState,
  hold_at_zero,
  laid_out,
  layouts_in,
  start,
  watched,
)
from jaxlite.pruning._selection import maskable
from jaxlite.pruning._sharded import on_any_mesh
from jaxlite.pruning._structure import element
from jaxlite.pruning._top_k import keep_largest
from jaxlite.pruning.scores import named_key
from jaxlite.pruning.sparsity_schedules import Schedule, periodic, share_of

Grow = Callable[[str, jax.Array, jax.Array], jax.Array]  # (path, gradient, count) -> scores of dead weights


class DynamicState(NamedTuple):
  """State of `rigl` and `set_`.

  Attributes:
    masks: which weights live, as `prune` keeps them.
    inner: the state of the optimizer inside.
  """

  masks: PruneState
  inner: Any


def rigl(
  inner: optax.GradientTransformation,
  sparsity: float,
  *,
  end: int,
  every: int = 100,
  fraction: float = 0.3,
  structure: Structures = element,
  allocate: Allocate = erk,
  select: trees.Rule = None,
  seed: int = 0,
  packed: bool = False,
) -> Last:
  """Trains a sparse network whose smallest weights give way to the connections of largest gradient.

  Masks are drawn at random at init, and weights outside them are zero from the first update on. At each refresh a
  share of the live weights of a leaf dies, the smallest, and as many grow where the gradient is largest: they start
  at zero, their moments at what `inner.init` gives. Dead weights feed no moments. The share falls as a cosine to
  zero at `end`. As published, a refresh takes the place of a gradient step; here weights learn at it too, so that a
  schedule inside `inner` counts every update.

  Args:
    inner: the optimizer, an Optax transformation; it sees gradients that are zero where a weight is dead.
    sparsity: the share of the weights that is zero, in [0, 1).
    end: the update from which on connections stay; three quarters of a run is common.
    every: updates between refreshes.
    fraction: the share of a leaf's live weights that moves at first, in [0, 1].
    structure: what moves: `element`, `channel()`, `block(4, 4)`, `per_output()`, or by rules. Where no program tells
      which axes stack layers (a foreign loop, an ensemble over shared inputs), `stacked(..., axis=0)`.
    allocate: `erk`, `uniform`, or {regular expression on paths: sparsity}.
    select: a rule on paths; None takes the weights (in a foreign loop: by shape and name).
    seed: of the masks at init.
    packed: keep masks as bits, 1/32 of float32 weights.

  Returns:
    An Optax transformation (a `Last`).

  Raises:
    TypeError: inner is no Optax transformation.
    ValueError: an argument outside its range; at init, no weight selected, or N:M, whose groups have nothing to move.

  References:
    Evci et al., Rigging the Lottery: Making All Tickets Winners, 2020, https://arxiv.org/abs/1911.11134

  >>> import optax
  >>> tx = rigl(optax.adam(0.1), 0.5, end=100, every=10)
  >>> params = {'w': jnp.ones((4, 4))}
  >>> updates, state = tx.update({'w': jnp.ones((4, 4))}, tx.init(params), params)
  >>> int((optax.apply_updates(params, updates)['w'] != 0).sum())
  8
  """

  def grow(path: str, gradient: jax.Array, count: jax.Array) -> jax.Array:
    del path, count
    return jnp.abs(gradient)

  return _dynamic('rigl', inner, sparsity, end, every, fraction, structure, allocate, select, seed, packed, grow)


def set_(
  inner: optax.GradientTransformation,
  sparsity: float,
  *,
  end: int,
  every: int = 100,
  fraction: float = 0.3,
  structure: Structures = element,
  allocate: Allocate = erk,
  select: trees.Rule = None,
  seed: int = 0,
  packed: bool = False,
) -> Last:
  """Trains a sparse network whose smallest weights give way to connections drawn at random (SET).

  As `rigl` in all else; no dense gradient is needed to grow. `fraction=0` is static random sparsity.

  Args:
    inner: the optimizer, an Optax transformation.
    sparsity: the share of the weights that is zero, in [0, 1).
    end: the update from which on connections stay.
    every: updates between refreshes.
    fraction: the share of a leaf's live weights that moves at first, in [0, 1].
    structure: as in `rigl`.
    allocate: `erk`, `uniform`, or {regular expression on paths: sparsity}.
    select: a rule on paths; None takes the weights.
    seed: of the masks at init and of what grows.
    packed: keep masks as bits, 1/32 of float32 weights.

  Returns:
    An Optax transformation (a `Last`).

  Raises:
    TypeError: inner is no Optax transformation.
    ValueError: an argument outside its range; at init, no weight selected, or N:M, whose groups have nothing to move.

  References:
    Mocanu et al., Scalable training of artificial neural networks with adaptive sparse connectivity inspired by
    network science, 2018, https://doi.org/10.1038/s41467-018-04316-3

  >>> import optax
  >>> tx = set_(optax.sgd(0.1), 0.75, end=100)
  >>> int(tx.init({'w': jnp.ones((4, 4))}).masks.masks['w'].sum())
  4
  """

  def grow(path: str, gradient: jax.Array, count: jax.Array) -> jax.Array:
    return jax.random.uniform(stream(named_key(seed, f'grow/{path}'), 'set', count), gradient.shape)

  return _dynamic('set_', inner, sparsity, end, every, fraction, structure, allocate, select, seed, packed, grow)


def _dynamic(
  what: str,
  inner: optax.GradientTransformation,
  sparsity: float,
  end: int,
  every: int,
  fraction: float,
  structure: Structures,
  allocate: Allocate,
  select: trees.Rule,
  seed: int,
  packed: bool,
  grow: Grow,
) -> Last:
  sparsity = share_of(sparsity, what)
  if not isinstance(inner, optax.GradientTransformation | optax.GradientTransformationExtraArgs):
    raise TypeError(
      f'{what} owns its optimizer: give an Optax transformation such as optax.adam(1e-3); got {_kind(inner)}'
    )
  fraction = number(fraction, f'{what}: fraction')
  if not 0 <= fraction <= 1:
    raise ValueError(f'{what}: fraction is the share of live weights that moves, in [0, 1]; got {fraction}')
  if isinstance(allocate, Global):
    raise ValueError(f'{what}: connections move within a leaf, so allocate is erk, uniform or rules; got {allocate}')
  end, every = whole(end, f'{what}: end', least=0), whole(every, f'{what}: every', least=1)
  refreshes = periodic(0, end, every)
  # Not at 0, where the masks are fresh, and not at the end, where nothing moves any more.
  schedule = Schedule(
    refreshes.at, lambda count: (count > 0) & (count < end) & (count % every == 0), 0, refreshes.describe
  )
  inner = optax.with_extra_args_support(inner)

  def goals_of(params: Any, chosen: Any, layouts: Any) -> dict[str, Target]:
    goals = targets(leaves_at(params, chosen), layouts_in(layouts), sparsity, structure, allocate, what=what)
    for path, goal in goals.items():
      if goal.structure.pattern is not None:
        raise ValueError(
          f'{what}: a pattern says how many of each group live, so {goal.structure.describe} leaves {path!r} nothing to'
          ' move: prune or straight_through hold it'
        )
    return goals

  def init(params: Any, weights: Mapping[str, Any] | None = None) -> DynamicState:
    chosen, layouts = maskable(params, select, weights, what=what)
    drawn = {
      path: _drawn(jax.random.uniform(named_key(seed, f'masks/{path}'), goal.shape), goal)
      for path, goal in goals_of(params, chosen, layouts).items()
    }
    masks = start(params, drawn, packed=packed)
    masks = masks._replace(layouts=layouts, sparsity=jnp.full((), sparsity, jnp.float32))
    return DynamicState(masks, inner.init(masking.applied(params, masks.masks)))

  def update(updates: Any, state: DynamicState, params: Any = None, **extra: Any) -> tuple[Any, DynamicState]:
    if params is None:
      raise ValueError(f'{what} needs the weights to mask them: call update(grads, state, params)')
    held, count = state.masks, state.masks.count
    chosen = trees.paths(held.masks)
    goals = goals_of(params, chosen, held.layouts)
    share = fraction / 2 * (1 + jnp.cos(jnp.pi * count.astype(jnp.float32) / max(end, 1)))

    def move(masks: Any, inner_state: Any) -> tuple[Any, Any]:
      # Where the model is read at another point than it trains at, its weights are those that count.
      weights, gradients = leaves_at(extra.get('point', params), chosen), leaves_at(updates, chosen)
      before = {p: masking.unpack(mask, goals[p].shape) for p, mask in leaves_at(masks, chosen).items()}
      after = {
        path: _moved(before[path], weights[path], grow(path, gradients[path], count), share, goal)
        for path, goal in goals.items()
      }
      # A weight that grew starts at zero, whatever noise came in with it, and so does its optimizer.
      fresh = inner.init(_started(params, before, after))
      changed = {path: before[path] ^ after[path] for path in after}
      return laid_out(after, params, packed), _reset(inner_state, fresh, changed, params)

    held, inner_state = watched(held, params, schedule, state.inner, move, first=1)  # the first weights are the user's
    sparse = masking.applied(params, held.masks)  # what comes in first, or just died, is not zero yet
    moved, inner_state = inner.update(masking.applied(updates, held.masks), inner_state, sparse, **extra)
    held = held._replace(reached=jnp.ones((), bool))
    return hold_at_zero(moved, params, held.masks), DynamicState(held, inner_state)

  return on_any_mesh(init, update, what)


def _kind(thing: Any) -> str:
  return getattr(thing, '__name__', type(thing).__name__)


def _drawn(scores: jax.Array, goal: Target) -> jax.Array:
  """Masks of the units that live at first."""
  units = goal.structure.units(scores, goal.layout)
  axes, _, live = _competition(goal, units.shape)
  return goal.structure.spread(keep_largest(units, live, axes=axes), goal.shape, goal.layout)


def _competition(goal: Target, shape: tuple[int, ...]) -> tuple[tuple[int, ...] | None, int, int]:
  """Along which axes units compete, how many of them there are in each competition, and how many live."""
  axes = goal.structure.rivals(goal.shape, goal.layout) or goal.layer  # layers do not compete
  size = math.prod(shape) if axes is None else math.prod(shape[axis] for axis in axes)
  return axes, size, max(size - round(size * goal.sparsity), min(goal.structure.fewest, size))


def _moved(mask: jax.Array, weight: jax.Array, growth: jax.Array, share: jax.Array, goal: Target) -> jax.Array:
  """Drops a share of the live units of a leaf, the smallest, and grows as many among the dead, those just dropped too.

  Each of the layers that a leaf stacks by itself.
  """
  units = lambda values: goal.structure.units(values, goal.layout)  # noqa: E731
  alive = units(mask.astype(jnp.float32)) > 0
  axes, size, live = _competition(goal, alive.shape)
  moving = jnp.minimum(jnp.floor(live * share).astype(jnp.int32), size - live)
  kept = keep_largest(units(jnp.abs(weight)), live - moving, axes=axes, among=alive)
  kept |= keep_largest(units(growth), moving, axes=axes, among=~kept)
  return goal.structure.spread(kept, goal.shape, goal.layout)


def _started(params: Any, before: Mapping[str, jax.Array], after: Mapping[str, jax.Array]) -> Any:
  def value(path: str, param: jax.Array) -> jax.Array:
    return jnp.where(before[path] & after[path], param, jnp.zeros_like(param)) if path in after else param

  return trees.map_with_path(value, params)


def _reset(state: Any, fresh: Any, changed: Mapping[str, jax.Array], params: Any) -> Any:
  """Returns an optimizer's state in which what belongs to a changed weight is as `init` made it."""
  owner = _owners(state, params)

  def one(path: str, leaf: Any, new: Any) -> Any:
    return jnp.where(changed[owner[path]], new, leaf) if owner.get(path) in changed else leaf

  return trees.map_with_path(one, state, fresh)


def _owners(state: Any, params: Any) -> dict[str, str]:
  """By path of a state's leaf, the parameter that it is of (`picking.owned`) and whose shape it has."""
  shapes = {path: np.shape(leaf) for path, leaf in trees.by_path(params).items()}
  leaves = trees.by_path(state)
  return {path: name for path, name in owned(leaves, shapes).items() if np.shape(leaves[path]) == shapes[name]}


def unreset(state: Any, params: Any) -> list[str]:
  """Lists what `rigl` and `set_` cannot reset when a connection moves: arrays that hold no value per weight.

  Adafactor's factored moments, SM3's accumulators and L-BFGS's memory are such; they stay as they are.

  Args:
    state: a DynamicState, or any state that holds some.
    params: what it was initialized with.

  Returns:
    Paths in the state of the inner optimizer, of arrays of more than one element.

  >>> import optax
  >>> params = {'w': jnp.ones((256, 128))}
  >>> unreset(rigl(optax.adafactor(0.1), 0.5, end=9).init(params), params)
  ['0/v_row/w', '0/v_col/w']
  """
  found = []
  for one in trees.find(state, DynamicState):
    owned = _owners(one.inner, params)
    for path, leaf in trees.by_path(one.inner).items():
      if np.size(leaf) > 1 and path not in owned:
        found.append(path)
  return found
