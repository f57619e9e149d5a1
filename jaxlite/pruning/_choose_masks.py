"""From scores to masks: which leaves, how many units of each live, and which.

What every dynamic (gradual, RigL, straight-through, one-shot) does at a refresh.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlite import trees
from jaxlite.graph import alike
from jaxlite.graph.layouts import LeafLayout
from jaxlite.pruning._allocate import Allocate, Global, Leaf, allocated, by_rules
from jaxlite.pruning._structure import Structure, element, is_element
from jaxlite.pruning._top_k import keep_largest, keep_largest_of
from jaxlite.tasks import running

Structures = Structure | Mapping[str, Structure]


class Target(NamedTuple):
  """What a leaf is to become.

  Attributes:
    shape: of the weight.
    layout: its axes, None where they are not known.
    structure: its units.
    sparsity: its share of zeros in the end.
    shared: the allocation, where one threshold serves all leaves.
  """

  shape: tuple[int, ...]
  layout: LeafLayout | None
  structure: Structure
  sparsity: float
  shared: Global | None

  @property
  def layer(self) -> tuple[int, ...] | None:
    """The axes of one of the layers that the leaf stacks, None where it is a single one."""
    declared = {axis % len(self.shape) for axis in self.structure.stack}
    seen = self.layout.stack(len(self.shape)) if self.layout is not None else ()
    stack = {axis for axis in (*declared, *seen) if self.shape[axis] != 1}
    return tuple(axis for axis in range(len(self.shape)) if axis not in stack) if stack else None

  @property
  def layers(self) -> int:
    """How many layers the leaf stacks."""
    return 1 if self.layer is None else math.prod(self.shape) // max(math.prod(self.shape[a] for a in self.layer), 1)


def targets(
  leaves: Mapping[str, Any],
  layouts: Mapping[str, LeafLayout | None] | None,
  sparsity: float,
  structure: Structures,
  allocate: Allocate,
  *,
  what: str,
) -> dict[str, Target]:
  """Decides what each leaf is to become.

  Args:
    leaves: the arrays to prune, by path.
    layouts: by path, or None.
    sparsity: the overall one.
    structure: of all, or by rules on paths (the first that matches; element without one).
    allocate: how the sparsity is shared.
    what: names the asking part in an error.

  Returns:
    By path, the Target.

  Raises:
    ValueError: a rule that matches nothing; a sparsity that contradicts the structure or a floor; a structure that
      goes by axes of a weight whose axes the program does not show.
  """
  if not isinstance(structure, Structure | Mapping):
    raise TypeError(
      f'{what}: structure is element, channel(), n_m(2, 4), ... or rules, {{path: structure}}; got {structure!r}'
    )
  seen = {path: Leaf(tuple(leaf.shape), (layouts or {}).get(path)) for path, leaf in leaves.items()}
  alone = isinstance(structure, Structure)
  structures = (
    dict.fromkeys(seen, structure) if alone else by_rules(seen, structure, element, what=f'{what}: structure rule')
  )
  seen = {path: _declared(leaf, structures[path].stack, foreign=layouts is None) for path, leaf in seen.items()}
  # What a structure itself decides is no part of a budget; rules are told of it all the same, as they name paths.
  settled = {path for path, leaf in seen.items() if structures[path].fixed(leaf.shape, leaf.layout) is not None}
  asked = seen if isinstance(allocate, Mapping) else {path: leaf for path, leaf in seen.items() if path not in settled}
  shares = {**dict.fromkeys(settled, sparsity), **allocated(asked, sparsity, allocate, what=what)}
  shared = allocate if isinstance(allocate, Global) else None
  found = {}
  for path, leaf in seen.items():
    own, share = structures[path], shares[path]
    if not is_element(own) and len(leaf.shape) - len(own.stack) < 2:
      raise ValueError(f'{what}: the structure {own.describe} needs two axes; {path!r} has {len(leaf.shape)}')
    if own.by_axes and layouts is not None and not (leaf.layout and leaf.layout.summed):
      raise ValueError(
        f'{what}: {own.describe} goes by the axes that are summed, and those of {path!r} cannot be read off the program'
        ' (it mixes them, uses the weight in two ways, or sums none): say axis=, or give it another structure by a rule'
      )
    fixed = own.fixed(leaf.shape, leaf.layout)
    if shared and (fixed is not None or own.rivals(leaf.shape, leaf.layout) is not None):
      raise ValueError(
        f'{what}: one threshold for all leaves cannot hold {own.describe} ({path!r}): leave allocate out'
      )
    if fixed is not None:
      share = 1 - fixed / max(math.prod(leaf.shape), 1)
    found[path] = Target(leaf.shape, leaf.layout, own, share, shared)
  if alone and structure.share is not None and abs(sparsity - structure.share) > 1e-6:
    raise ValueError(
      f'{what}: {structure.describe} makes {structure.share:g} of the weights zero; got sparsity={sparsity}: pass that'
    )
  return found


def _declared(leaf: Leaf, stack: tuple[int, ...], *, foreign: bool) -> Leaf:
  """The leaf with the axes that are declared to stack layers; of the others a foreign loop tells nothing: as usual."""
  if not stack or (leaf.layout is None and not foreign):
    return leaf
  axes = {axis % len(leaf.shape) for axis in stack}
  usual = LeafLayout(tuple(range(len(leaf.shape) - 1)), (len(leaf.shape) - 1,))
  summed, outputs = (tuple(axis for axis in own if axis not in axes) for own in leaf.layout or usual)
  return leaf._replace(layout=LeafLayout(summed, outputs))


def draw(
  targets: Mapping[str, Target],
  scores: Mapping[str, jax.Array],
  at: Callable[[float], Any] | None = None,
  done: Any = True,
) -> dict[str, jax.Array]:
  """Draws masks.

  Args:
    targets: by path.
    scores: float[...] by path, non-negative: the largest live.
    at: target sparsity -> float32[], the sparsity asked now; None asks for the target.
    done: bool[], whether now is the end, where each target is met to the unit.

  Returns:
    bool[shape] by path.

  >>> import jax.numpy as jnp
  >>> from jaxlite.pruning._allocate import uniform
  >>> leaves = {'w': jnp.array([[1.0, 4.0], [3.0, 2.0]])}
  >>> draw(targets(leaves, None, 0.5, element, uniform, what='x'), leaves)['w'].tolist()
  [[False, True], [True, False]]
  """
  at = jnp.float32 if at is None else at
  if not targets:
    return {}
  units = {path: target.structure.units(scores[path], target.layout) for path, target in targets.items()}
  shared = next(iter(targets.values())).shared
  if shared is not None:
    live = _together(targets, units, shared, at, done)
  else:
    live, _ = _apart(targets, units, at, done)
  return {path: t.structure.spread(live[path], t.shape, t.layout) for path, t in targets.items()}


def redraw(
  targets: Mapping[str, Target],
  weights: Mapping[str, jax.Array],
  masks: Mapping[str, jax.Array],
  at: Callable[[float], Any],
  done: Any,
  due: jax.Array,
) -> tuple[dict[str, jax.Array], jax.Array]:
  """Draws the masks of single weights by magnitude where that is due, and counts those that the old ones do not hold.

  One reading of the leaves, joined, for both: each that is read again costs a deep network's program an operation.

  Args:
    targets: by path, all of single weights that compete within their leaf (`draws_in_one`).
    weights: float[...] by path.
    masks: bool[...] by path, as they are.
    at, done: as in `draw`.
    due: bool[]; where it is False the masks come back.

  Returns:
    (bool[shape] by path, how many weights are not zero where the old masks say so, int32[]).
  """
  return _apart(targets, weights, at, done, (due, masks))


def draws_in_one(targets: Mapping[str, Target], weights: Mapping[str, jax.Array]) -> bool:
  """Tells whether `redraw` serves these."""
  alone = all(is_element(target.structure) and target.shared is None for target in targets.values())
  return alone and all(jnp.issubdtype(weights[path].dtype, jnp.floating) for path in targets)  # magnitudes order so


def _apart(
  targets: Mapping[str, Target],
  units: Mapping[str, jax.Array],
  at: Callable[[float], Any],
  done: Any,
  before: tuple[jax.Array, Mapping[str, jax.Array]] | None = None,
) -> tuple[dict[str, jax.Array], jax.Array]:
  """Each leaf by itself, those of one kind in one loop; with masks from `before`, what `redraw` says."""
  kinds: dict[Any, list[str]] = {}
  for path, one in units.items():
    kinds.setdefault(_contest(targets[path], one), []).append(path)
  live: dict[str, jax.Array] = {}
  broken = jnp.zeros((), jnp.int32)

  def largest(several: list[jax.Array], old: list[jax.Array], kept: jax.Array, axes: Any) -> jax.Array:
    nonlocal broken
    joined = [jnp.stack(one) if len(one) > 1 else one[0] for one in (several, old) if one]
    if before is None:
      return keep_largest(joined[0], kept, axes=axes)
    broken += alike.count(lambda weight, mask: (weight != 0) & ~mask, joined[:1], joined[1:])
    return keep_largest(joined[0], kept, axes=axes, before=(before[0], joined[1]))

  for (axes, size, final, sparsity), paths in kinds.items():
    kept = _kept(size, final, at(sparsity), done)
    for group in alike.groups([units[path] for path in paths]):
      names = [paths[i] for i in group]
      several = [units[name] for name in names]
      old = [] if before is None else [before[1][name] for name in names]
      if len(group) == 1 or not several[0].ndim:
        masks = [largest([one], old[i : i + 1], kept, axes) for i, one in enumerate(several)]
      else:  # as layers of one stack
        within = range(several[0].ndim) if axes is None else axes
        masks = alike.unstacked(largest(several, old, kept, tuple(1 + axis for axis in within)), kept >= 0)
      live.update(zip(names, masks, strict=True))
  return live, broken


def _contest(target: Target, units: jax.Array) -> tuple[tuple[int, ...] | None, int, int, float]:
  """(the axes that compete, how many do, how many of them live in the end, the target's sparsity)."""
  structure = target.structure
  axes = structure.rivals(target.shape, target.layout)
  similar = target.layers if axes is None else 1
  axes = target.layer if axes is None else axes  # layers do not compete
  size = units.size if axes is None else math.prod(units.shape[axis] for axis in axes)
  final = structure.fixed(target.shape, target.layout)
  if final is not None:
    final //= similar
  else:
    final = max(size - round(size * target.sparsity), min(structure.fewest, size))
  return None if axes is None else tuple(axis % units.ndim for axis in axes), size, final, target.sparsity


def _together(
  targets: Mapping[str, Target],
  units: Mapping[str, jax.Array],
  shared: Global,
  at: Callable[[float], Any],
  done: Any,
) -> dict[str, jax.Array]:
  sparsity = next(iter(targets.values())).sparsity
  size = sum(one.size for one in units.values())
  final = size - round(size * sparsity)
  layers = {path: targets[path].layers for path in units}
  least = {path: targets[path].structure.fewest for path in units}
  floors = {  # of each layer
    path: max(math.ceil(shared.floor * (one.size // layers[path])), least[path]) for path, one in units.items()
  }
  floor = sum(floors[path] * layers[path] for path in units)
  if floor > final:
    raise ValueError(
      f'global_: floor={shared.floor} keeps {floor} units alive, sparsity={sparsity} only {final}: lower one of them'
    )
  competing = {}
  for path, one in units.items():
    axes = targets[path].layer
    wide = running.widened(one)
    if shared.normalize:
      top = jnp.max(wide, axis=axes, keepdims=True, initial=0.0)  # scaled, so that squares neither vanish nor overflow
      wide = wide / jnp.where(top > 0, top, 1)
      norm = jnp.sqrt(jnp.sum(wide**2, axis=axes, keepdims=True))
      wide = wide / jnp.where(norm > 0, norm, 1)
    competing[path] = jnp.where(keep_largest(wide, floors[path], axes=axes), jnp.inf, wide) if floors[path] else wide
  live = keep_largest_of(list(competing.values()), _kept(size, final, at(sparsity), done))
  return dict(zip(competing, live, strict=True))


def _kept(size: int, final: int, ramp: Any, done: Any) -> jax.Array:
  """How many units live. The target is met to the unit: it is rounded in Python's float64, not on the device."""
  on_the_way = size - jnp.floor(size * ramp).astype(jnp.int32)
  return jnp.where(done, final, jnp.maximum(on_the_way, final))


def scores_of(
  score: Any, params: Any, context: Any, targets: Mapping[str, Target], *, what: str
) -> dict[str, jax.Array]:
  """Returns the scores of the leaves that have a target.

  Args:
    score: (params, context) -> tree like params.
    params: pytree of arrays.
    context: what the score reads.
    targets: by path.
    what: names the asking part in an error.

  Raises:
    ValueError: the score gave another tree, or other shapes.
  """
  found = leaves_at(score(params, context), targets)
  for path, target in targets.items():
    got = jnp.shape(found[path]) if path in found else 'nothing'
    if got != target.shape:
      raise ValueError(f'{what}: a score returns a tree like params; {path!r} is {target.shape}, its score {got}')
  return found


def lowest(scores: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
  """Returns the least of the scores by path, at most 0; NaN counts as larger than everything."""
  real = {path: one for path, one in scores.items() if jnp.issubdtype(one.dtype, jnp.floating)}
  return {path: jnp.nanmin(one, initial=0.0) for path, one in real.items()}


def refuse_negative(least: Mapping[str, Any], what: str) -> None:
  """Raises ValueError where a score is below 0: masks are drawn by its bits, which know no sign. Traced ones pass.

  >>> refuse_negative({'w': jnp.float32(-2.0)}, 'sparsify')
  Traceback (most recent call last):
    ...
  ValueError: sparsify: a score is at least 0, and the largest live; that of 'w' falls to -2: give its exp, or its size
  """
  for path, value in least.items():
    if not _traced(value) and value < 0:
      raise ValueError(
        f'{what}: a score is at least 0, and the largest live; that of {path!r} falls to {float(value):g}: give '
        'its exp, or its size'
      )


def refuse_negative_now(score: Any, params: Any, context: Any, targets: Mapping[str, Target], *, what: str) -> None:
  """As `refuse_negative`, of a score that is not ours, where params are known already and not traced."""
  leaves = jax.tree.leaves((params, context))
  ours = getattr(score, '__module__', '').startswith('jaxlite.')
  if not ours and all(isinstance(leaf, jax.Array | np.ndarray) and not _traced(leaf) for leaf in leaves):
    refuse_negative(lowest(scores_of(score, params, context, targets, what=what)), what)


def _traced(leaf: Any) -> bool:
  return isinstance(leaf, jax.core.Tracer)


def leaves_at(tree: Any, paths: Any) -> dict[str, Any]:
  """Returns the leaves of a tree that stand at the given paths.

  >>> leaves_at({'a': {'w': 1, 'b': 2}}, ['a/w'])
  {'a/w': 1}
  """
  return {path: leaf for path, leaf in trees.by_path(tree).items() if path in paths}
