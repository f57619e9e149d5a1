"""Which axes of a weight are summed over, whatever the framework's layout: read off the program.

Linen and Haiku keep a kernel as (in, out) or HWIO, Equinox as (out, in) or OIHW. What the contraction does with the
axes is the same, so a structure along the contraction axis, a norm of inputs or a Gram matrix finds its axes here.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from jaxlite import trees
from jaxlite.graph import provenance, walk

Axes = tuple[tuple[int, ...], ...]  # for each axis of a value, the axes of a leaf that it holds


class LeafLayout(NamedTuple):
  """What a contraction does with the axes of a weight; an axis in neither field stacks independent weights.

  Attributes:
    summed: the axes summed over, in ascending order but for a convolution's, where the input channels come last.
    outputs: the axes that become outputs.
  """

  summed: tuple[int, ...]
  outputs: tuple[int, ...]

  def stack(self, ndim: int) -> tuple[int, ...]:
    """Returns the axes along which independent weights are stacked.

    >>> LeafLayout((1,), (2,)).stack(3)
    (0,)
    """
    return tuple(axis for axis in range(ndim) if axis not in self.summed + self.outputs)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Layouts:
  """Layouts by path, as a part of a state: it holds no array, so it is part of the tree's structure.

  Attributes:
    items: (path, layout or None) of each weight.
    skipped: (path, why) of the weights of whose inputs nothing is known.

  >>> jax.tree.leaves(Layouts((('w', LeafLayout((0,), (1,))),)))
  []
  """

  items: tuple[tuple[str, LeafLayout | None], ...] = ()
  skipped: tuple[tuple[str, str], ...] = ()

  def by_path(self) -> dict[str, LeafLayout | None]:
    """Returns the layouts by path."""
    return dict(self.items)


class Use(NamedTuple):
  """One contraction of one leaf.

  Attributes:
    path: of the leaf.
    layout: of the leaf, in this contraction.
    order: the weight operand's contracted axes, in the order of `layout.summed`.
    batch: its batch axes, in the leaf's order.
  """

  path: str
  layout: LeafLayout
  order: tuple[int, ...]
  batch: tuple[int, ...]


def layouts_of(uses: Mapping[str, tuple[Use, ...]]) -> dict[str, LeafLayout | None]:
  """Returns one layout a path; None where two uses disagree.

  >>> one, other = Use('w', LeafLayout((0,), (1,)), (0,), ()), Use('w', LeafLayout((1,), (0,)), (1,), ())
  >>> layouts_of({'w': (one,), 'w#2': (other,)})
  {'w': None}
  """
  found: dict[str, LeafLayout | None] = {}
  for use in itertools.chain.from_iterable(uses.values()):
    found[use.path] = use.layout if found.setdefault(use.path, use.layout) == use.layout else None
  return found


def read(jaxpr: Any, plan: provenance.Plan, tags: Sequence[provenance.Tag]) -> dict[str, tuple[Use, ...]]:
  """Follows each parameter's axes to the contractions that use it.

  Axes are followed through transposes, reshapes, squeezes, elementwise operations (masks, casts, scales), scans
  over layers and calls. A weight whose axes a program mixes has no entry.

  Args:
    jaxpr: closed or open.
    plan: what `provenance.read` gave for it.
    tags: as `provenance.read` got them.

  Returns:
    By site name, a Use for each leaf that its weight is made of.
  """
  uses: dict[str, tuple[Use, ...]] = {}
  invars = walk.opened(jaxpr)[0].invars
  views = [
    {next(iter(tag.paths)): tuple((axis,) for axis in range(len(var.aval.shape)))} if len(tag.paths) == 1 else {}
    for var, tag in zip(invars, tags, strict=True)
  ]
  _follow(jaxpr, plan, views, uses)
  return uses


Views = dict[str, Axes]  # of one value: by leaf, where its axes lie


def _follow(jaxpr: Any, plan: provenance.Plan, given: Sequence[Views], uses: dict[str, tuple[Use, ...]]) -> list[Views]:
  bare, _ = walk.opened(jaxpr)
  env: dict[Any, Views] = {var: {} for var in bare.constvars}
  env.update(zip(bare.invars, given, strict=True))

  def views_of(atom: Any) -> Views:
    return {} if hasattr(atom, 'val') else env.get(atom, {})

  for index, eqn in enumerate(bare.eqns):
    operands = [views_of(atom) for atom in eqn.invars]
    site = plan.sites.get(index)
    inner = plan.inner.get(index, ())
    out: list[Views] = [{} for _ in eqn.outvars]
    if site is not None:
      if site.side is not None and site.weighs:
        clear = {path: axes for path, axes in operands[site.side].items() if _is_clear(axes)}
        uses[site.name] = tuple(_use(site, eqn, path, axes) for path, axes in clear.items())
    elif inner:
      out = _enter(eqn, inner, operands, uses)
    elif any(operands) and len(eqn.outvars) == 1:
      out = [_moved(eqn, operands)]
    env.update(zip(eqn.outvars, out, strict=True))
  return [views_of(atom) for atom in bare.outvars]


def _is_clear(axes: Axes) -> bool:
  """Whether no axis of the leaf lies in two axes of the value (a reshape that splits it)."""
  held = [axis for group in axes for axis in group]
  return len(held) == len(set(held))


def _use(site: provenance.Site, eqn: Any, path: str, axes: Axes) -> Use:
  numbers = eqn.params['dimension_numbers']
  batch: tuple[int, ...] = ()
  if site.kind == 'conv_general_dilated':
    features, channels, *spatial = numbers.rhs_spec
    order, outputs = (*spatial, channels), (features,)
  else:
    contracted, batches = numbers
    batch = tuple(sorted(batches[site.side], key=lambda axis: axes[axis]))
    order = tuple(sorted(contracted[site.side], key=lambda axis: axes[axis]))
    outputs = tuple(axis for axis in range(len(axes)) if axis not in order + batch)

  def of_leaf(own: Sequence[int]) -> tuple[int, ...]:
    return tuple(axis for one in own for axis in axes[one])

  return Use(path, LeafLayout(of_leaf(order), tuple(sorted(of_leaf(outputs)))), order, batch)


def _enter(
  eqn: Any, plans: Sequence[provenance.Plan], given: list[Views], uses: dict[str, tuple[Use, ...]]
) -> list[Views]:
  name = eqn.primitive.name
  if name == 'scan':
    consts, carry = walk.scan_layout(eqn)
    split = consts + carry
    layers = [{path: axes[1:] for path, axes in views.items()} for views in given[split:]]
    body = eqn.params['jaxpr']
    bare = walk.opened(body)[0]
    kept = [out is var for out, var in zip(bare.outvars[:carry], bare.invars[consts:split], strict=True)]
    through = [views if same else {} for views, same in zip(given[consts:split], kept, strict=True)]
    _follow(body, plans[0], [*given[:consts], *through, *layers], uses)
    return [*through, *({} for _ in eqn.outvars[carry:])]
  if name == 'while':
    conds, bodies = eqn.params['cond_nconsts'], eqn.params['body_nconsts']
    nothing: list[Views] = [{} for _ in eqn.outvars]
    _follow(eqn.params['body_jaxpr'], plans[1], [*given[conds : conds + bodies], *nothing], uses)
    return nothing
  if name == 'cond':
    found = [_follow(branch, plan, given[1:], uses) for branch, plan in zip(eqn.params['branches'], plans, strict=True)]
    return [first if all(first == other for other in rest) else {} for first, *rest in zip(*found, strict=True)]
  return _follow(eqn.params[walk.CALLS[name]], plans[0], given, uses)


def _moved(eqn: Any, given: list[Views]) -> Views:
  """Where the axes lie after an equation that is no contraction."""
  shape = eqn.outvars[0].aval.shape
  move = _MOVES.get(eqn.primitive.name)
  if move is not None:
    return {path: move(eqn, axes, shape) for path, axes in given[0].items()}
  if eqn.primitive.name in _MIXES:
    return {}
  out: Views = {}
  for atom, views in zip(eqn.invars, given, strict=True):
    own = getattr(atom.aval, 'shape', ())
    # Elementwise, or along an axis: every axis stays where it is, but for one of length 1 that is stretched.
    if len(own) == len(shape) and all(size in (1, wide) for size, wide in zip(own, shape, strict=True)):
      for path, axes in views.items():
        seen = tuple(group if size == wide else () for group, size, wide in zip(axes, own, shape, strict=True))
        if sum(map(len, seen)) > sum(map(len, out.get(path, ()))):  # w * (its norm): the one that holds more of it
          out[path] = seen
  return out


def _transposed(eqn: Any, axes: Axes, shape: Sequence[int]) -> Axes:
  return tuple(axes[axis] for axis in eqn.params['permutation'])


def _squeezed(eqn: Any, axes: Axes, shape: Sequence[int]) -> Axes:
  return tuple(group for axis, group in enumerate(axes) if axis not in eqn.params['dimensions'])


def _broadcast(eqn: Any, axes: Axes, shape: Sequence[int]) -> Axes:
  out: list[tuple[int, ...]] = [()] * len(shape)
  for group, axis, size in zip(axes, eqn.params['broadcast_dimensions'], eqn.invars[0].aval.shape, strict=True):
    out[axis] = group if size == shape[axis] else ()
  return tuple(out)


def _reshaped(eqn: Any, axes: Axes, shape: Sequence[int]) -> Axes:
  """Axes of one block of equal size lie together: merged into one, or, split, in each of them."""
  before = eqn.invars[0].aval.shape
  if 0 in before or eqn.params.get('dimensions') is not None:
    return ((),) * len(shape)
  out: list[tuple[int, ...]] = []
  start = 0
  while len(out) < len(shape):
    stop, end = start + (start < len(before)), len(out) + 1
    while math.prod(before[start:stop]) != math.prod(shape[len(out) : end]):
      if math.prod(before[start:stop]) < math.prod(shape[len(out) : end]):
        stop += 1
      else:
        end += 1
    while stop < len(before) and before[stop] == 1 and end == len(shape):
      stop += 1
    several = stop - start > 1  # of several, those of length 1 hold nothing
    held = tuple(
      a for group, n in zip(axes[start:stop], before[start:stop], strict=True) if n > 1 or not several for a in group
    )
    wide = [axis for axis in range(len(out), end) if shape[axis] != 1]
    bearer = wide[:1] or [len(out)]
    out += [held if axis in (wide or bearer) else () for axis in range(len(out), end)]
    start = stop
  return tuple(out)


_MOVES: dict[str, Callable[[Any, Axes, Sequence[int]], Axes]] = {
  'transpose': _transposed,
  'squeeze': _squeezed,
  'broadcast_in_dim': _broadcast,
  'reshape': _reshaped,
}
_MIXES = frozenset({*provenance.CONTRACTIONS, *provenance.OTHER_CONTRACTIONS, 'gather', 'scatter', 'triangular_solve'})


def model_layouts(fn: Callable[..., Any], tags: Sequence[provenance.Tag], *args: Any) -> dict[str, LeafLayout | None]:
  """Finds the weights of a program and their layouts.

  Args:
    fn: takes `args`; it is traced, never run.
    tags: one a leaf of `args`.
    *args: pytrees of arrays or ShapeDtypeStructs.

  Returns:
    By path: the leaves that enter a contraction with an activation; None where the axes are not clear.

  >>> import jax.numpy as jnp
  >>> tags = [provenance.weight('w'), provenance.DATA]
  >>> model_layouts(lambda w, x: x @ w.T, tags, jnp.ones((5, 3)), jnp.ones((2, 3)))
  {'w': LeafLayout(summed=(1,), outputs=(0,))}
  """
  jaxpr = jax.make_jaxpr(fn)(*args)
  plan = provenance.read(jaxpr, tags)
  weights = frozenset().union(*(site.weights for site in plan.all_sites()))
  known = layouts_of(read(jaxpr, plan, tags))
  return {path: known.get(path) for path in sorted(weights)}


def parameter_layouts(fn: Callable[..., Any], params: Any, *args: Any, **kwargs: Any) -> dict[str, LeafLayout | None]:
  """As `provenance.contraction_weights`, with the layout of each.

  Args:
    fn: (params, *args, **kwargs) -> anything; it is traced, never run.
    params: pytree of arrays or ShapeDtypeStructs.
    *args: pytrees of arrays or ShapeDtypeStructs.
    **kwargs: passed on as they are.
  """
  tags = [provenance.weight(name) for name in trees.paths(params)]
  tags += [provenance.DATA] * len(jax.tree.leaves(args))
  return model_layouts(lambda params, *args: fn(params, *args, **kwargs), tags, params, *args)
