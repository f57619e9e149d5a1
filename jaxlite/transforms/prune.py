"""Magnitude pruning as the last link of an Optax chain: what it masks is exactly zero after every step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxlite import trees
from jaxlite.contract import Last
from jaxlite.transforms.threshold import keep_largest


class PruneState(NamedTuple):
  """State of `prune`: arrays only, the same tree whatever its arguments.

  Attributes:
    count: int32[], updates done.
    masks: bool[...] for each pruned leaf, True where a weight lives; None elsewhere.
    broken: int32[], weights that came in non-zero where the mask says zero: another part wrote after this one.
    sparsity: float32[], the sparsity last asked of the masks.
    reached: bool[], whether the schedule has reached its target.
  """

  count: jax.Array
  masks: Any
  broken: jax.Array
  sparsity: jax.Array
  reached: jax.Array


def prune(
  sparsity: float,
  *,
  begin: int = 0,
  end: int | None = None,
  every: int = 100,
  initial: float = 0.0,
  select: trees.Rule = None,
) -> Last:
  """Zeroes the smallest weights of each leaf, gradually, and holds them at exactly zero.

  Stands last in a chain and needs no call beside `update`. Masks are refreshed at `begin`, each `every`
  updates after it, and at `end`, where the target is reached whatever `every` is. Between them the sparsity
  follows the cubic schedule of Zhu and Gupta. The masks are those of a stable sort by magnitude.

  Args:
    sparsity: the share of each selected leaf that is zero from `end` on, in [0, 1).
    begin: the first update that masks, counted from 0.
    end: the update at which the target is reached; None prunes once, at `begin`.
    every: updates between refreshes.
    initial: the sparsity at `begin` of a gradual schedule.
    select: a rule on paths; None takes the weights (in a foreign loop: by shape and name).

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
  _check(sparsity, begin, end, every, initial)
  last = begin if end is None else end

  def init(params: Any, weights: frozenset[str] | None = None) -> PruneState:
    chosen = trees.weight_paths(params, select, weights, what='prune')
    masks = trees.map_with_path(lambda path, leaf: jnp.ones(leaf.shape, bool) if path in chosen else None, params)
    zero = jnp.zeros((), jnp.int32)
    return PruneState(zero, masks, zero, jnp.zeros((), jnp.float32), jnp.zeros((), bool))

  def update(updates: Any, state: PruneState, params: Any = None, **_: Any) -> tuple[Any, PruneState]:
    if params is None:
      raise ValueError('prune needs the weights to mask them: call update(grads, state, params)')
    count = state.count
    due = (count >= begin) & (count <= last) & (((count - begin) % every == 0) | (count == last))
    wanted = jnp.where(due, scheduled_sparsity(count, sparsity, begin, last, initial), state.sparsity)

    def refresh(mask: jax.Array, update: jax.Array, param: jax.Array) -> jax.Array:
      scores = jnp.abs((param + update).astype(param.dtype))
      return keep_largest(scores, _kept(param.size, wanted, sparsity, count >= last))

    broken = _over(lambda mask, param: jnp.sum((param != 0) & ~mask, dtype=jnp.int32), state.masks, params)
    masks = jax.lax.cond(due, lambda masks: _over(refresh, masks, updates, params), lambda masks: masks, state.masks)
    updates = _over(_to_zero, masks, updates, params, unmasked=lambda update: update)
    state = PruneState(
      count=optax.safe_increment(count),
      masks=masks,
      broken=state.broken + sum(jax.tree.leaves(broken), jnp.zeros((), jnp.int32)),
      sparsity=wanted,
      reached=state.reached | (count == last),
    )
    return updates, state

  return Last(init, update)


def scheduled_sparsity(count: jax.Array, target: float, begin: int, end: int, initial: float = 0.0) -> jax.Array:
  """Returns the cubic schedule's sparsity at an update.

  Args:
    count: int32[].
    target: reached at `end` exactly.
    begin: where the schedule starts.
    end: where it ends.
    initial: its value at `begin`, when `begin` < `end`.

  Returns:
    float32[].

  References:
    Zhu and Gupta, To prune, or not to prune, 2017, https://arxiv.org/abs/1710.01878

  >>> [round(float(scheduled_sparsity(jnp.int32(t), 0.8, 0, 10)), 2) for t in (0, 5, 10, 99)]
  [0.0, 0.7, 0.8, 0.8]
  """
  left = 1.0 - (count - begin).astype(jnp.float32) / max(end - begin, 1)
  ramp = target + (initial - target) * jnp.clip(left, 0.0, 1.0) ** 3
  return jnp.where(count >= end, jnp.float32(target), ramp.astype(jnp.float32))


def _kept(size: int, ramp: jax.Array, target: float, done: jax.Array) -> jax.Array:
  """How many weights live. The target is met to the weight: it is rounded in Python's float64, not on the device."""
  final = size - round(size * target)
  on_the_way = size - jnp.floor(size * ramp).astype(jnp.int32)
  return jnp.where(done, final, jnp.maximum(on_the_way, final))


def _to_zero(mask: jax.Array, update: jax.Array, param: jax.Array) -> jax.Array:
  # p + (-p) is exactly +0 in every float format, so apply_updates lands on zero; a bfloat16 update of a float32
  # weight has to widen for it.
  return jnp.where(mask, update, -param.astype(jnp.promote_types(update.dtype, param.dtype)))


def _over(fn: Callable[..., Any], masks: Any, *rest: Any, unmasked: Callable[[Any], Any] = lambda leaf: None) -> Any:
  """Maps `fn(mask, *leaves)` where there is a mask and `unmasked(first leaf)` elsewhere."""
  return jax.tree.map(
    lambda mask, *leaves: unmasked(leaves[0]) if mask is None else fn(mask, *leaves),
    masks,
    *rest,
    is_leaf=lambda node: node is None,
  )


def _check(sparsity: float, begin: int, end: int | None, every: int, initial: float) -> None:
  for name, value in (('sparsity', sparsity), ('initial', initial)):
    if not 0 <= value < 1:
      raise ValueError(f'prune: {name} is the share that becomes zero, in [0, 1); got {value}')
  if begin < 0:
    raise ValueError(f'prune: begin counts updates from 0; got {begin}')
  if end is not None and end < begin:
    raise ValueError(f'prune: end={end} lies before begin={begin}: the target would never be reached')
  if initial > sparsity:
    raise ValueError(f'prune: initial={initial} lies above sparsity={sparsity}: weights never come back, lower initial')
  if every < 1:
    raise ValueError(f'prune: every is a number of updates, at least 1; got {every}')
