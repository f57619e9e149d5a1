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
from jaxlite.graph.contractions import axes_of, operands_of
from jaxlite.graph.covers import blocks

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
    box: (start, size) along each axis of the leaf, of the part that this contraction multiplies; None where it is not
      known, or multiplied together with other leaves' parts.
  """

  path: str
  layout: LeafLayout | None
  order: tuple[int, ...] = ()
  batch: tuple[int, ...] = ()
  box: tuple[tuple[int, int], ...] | None = None


def layouts_of(uses: Mapping[str, tuple[Use, ...]]) -> dict[str, LeafLayout | None]:
  """Returns one layout a path; None where it is not clear, or two uses disagree.

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

  Axes are followed through transposes, reshapes, squeezes, slices, splits, concatenations, elementwise operations
  (masks, casts, scales), scans over layers and calls. A weight whose axes a program mixes has a Use without a layout.

  Args:
    jaxpr: closed or open.
    plan: what `provenance.read` gave for it.
    tags: as `provenance.read` got them.

  Returns:
    By site name, a Use for each weight that its fixed operand is made of; of sites that are never rewritten, which may
    share a name, by name and place.
  """
  uses: dict[str, tuple[Use, ...]] = {}
  invars = walk.opened(jaxpr)[0].invars
  views = [
    {path: View.whole(var.aval.shape) for path in tag.paths if len(tag.paths) == 1}
    for var, tag in zip(invars, tags, strict=True)
  ]
  _follow(jaxpr, plan, views, uses)
  return uses


class View(NamedTuple):
  """Where a value holds a leaf.

  Attributes:
    axes: for each axis of the value, the axes of the leaf that it holds.
    sizes: how much of each axis of the leaf the value holds, as far as it is known.
    starts: where along each axis of the leaf that begins; None where the value is no such box of the leaf alone.
  """

  axes: Axes
  sizes: tuple[int, ...]
  starts: tuple[int, ...] | None

  @classmethod
  def whole(cls, shape: Sequence[int]) -> View:
    """Returns the view of a leaf itself."""
    return cls(tuple((axis,) for axis in range(len(shape))), tuple(shape), (0,) * len(shape))

  @property
  def box(self) -> tuple[tuple[int, int], ...] | None:
    """(start, size) along each axis of the leaf, or None."""
    return None if self.starts is None else tuple(zip(self.starts, self.sizes, strict=True))


Views = dict[str, View]  # of one value, by leaf


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
      if site.weights:
        views = operands[operands_of(eqn)[site.side]]
        name = site.name if not site.why_not else f'{site.name}!{len(uses)}'
        uses[name] = tuple(_use(site, eqn, path, views.get(path)) for path in sorted(site.weights))
    elif inner:
      out = _enter(eqn, inner, operands, uses)
    elif any(operands):
      out = _moved(eqn, operands)
    env.update(zip(eqn.outvars, out, strict=True))
  return [views_of(atom) for atom in bare.outvars]


def _is_clear(axes: Axes) -> bool:
  """Whether no axis of the leaf lies in two axes of the value (a reshape that splits it)."""
  held = [axis for group in axes for axis in group]
  return len(held) == len(set(held))


def _use(site: provenance.Site, eqn: Any, path: str, view: View | None) -> Use:
  if view is None or not _is_clear(view.axes) or (site.kind == 'bcoo_dot_general' and site.side == 0):
    return Use(path, None)
  axes = view.axes
  if site.kind == 'conv_general_dilated':
    features, channels, *spatial = eqn.params['dimension_numbers'].rhs_spec
    order, batch = (*spatial, channels), ()
    outputs = axes[features][_stacked(axes[features], view.sizes, eqn.params['feature_group_count']) :]
  else:
    summed, batches = axes_of(eqn, site.side)
    batch = tuple(sorted(batches, key=lambda axis: axes[axis]))
    order = tuple(sorted(summed, key=lambda axis: axes[axis]))
    outputs = tuple(a for axis, group in enumerate(axes) if axis not in order + batch for a in group)
  of_leaf = tuple(axis for one in order for axis in axes[one])
  return Use(path, LeafLayout(of_leaf, tuple(sorted(outputs))), order, batch, view.box)


def _stacked(held: Sequence[int], sizes: Sequence[int], groups: int) -> int:
  """How many of the axes along a convolution's outputs are layers: a vmap makes groups of them, outermost."""
  wide = [place for place, axis in enumerate(held) if sizes[axis] > 1]
  count = 0
  for place in wide[:-1]:
    if groups % math.prod(sizes[axis] for axis in held[: place + 1]):
      break
    count = place + 1
  return count


def _enter(
  eqn: Any, plans: Sequence[provenance.Plan], given: list[Views], uses: dict[str, tuple[Use, ...]]
) -> list[Views]:
  name = eqn.primitive.name
  if name == 'scan':
    consts, carry = walk.scan_layout(eqn)
    split = consts + carry
    layers = [{path: view._replace(axes=view.axes[1:]) for path, view in views.items()} for views in given[split:]]
    body = eqn.params['jaxpr']
    bare = walk.opened(body)[0]
    through = _unchanged(given[consts:split], bare.outvars[:carry], bare.invars[consts:split])
    _follow(body, plans[0], [*given[:consts], *through, *layers], uses)
    return [*through, *({} for _ in eqn.outvars[carry:])]
  if name == 'while':
    conds, bodies = eqn.params['cond_nconsts'], eqn.params['body_nconsts']
    bare = walk.opened(eqn.params['body_jaxpr'])[0]
    through = _unchanged(given[conds + bodies :], bare.outvars, bare.invars[bodies:])
    _follow(eqn.params['body_jaxpr'], plans[1], [*given[conds : conds + bodies], *through], uses)
    return through
  if name == 'cond':
    found = [_follow(branch, plan, given[1:], uses) for branch, plan in zip(eqn.params['branches'], plans, strict=True)]
    return [_agreed(several) for several in zip(*found, strict=True)]
  return _follow(eqn.params[walk.CALLS[name]], plans[0], given, uses)


def _unchanged(views: Sequence[Views], out: Sequence[Any], into: Sequence[Any]) -> list[Views]:
  return [view if one is other else {} for view, one, other in zip(views, out, into, strict=True)]


def _agreed(several: Sequence[Views]) -> Views:
  """One view a leaf of what comes together; none where two say different things of its axes."""
  found: dict[str, View | None] = {}
  for views in several:
    for path, view in views.items():
      old = found.setdefault(path, view)
      if old is not None and old != view:
        found[path] = old._replace(starts=None) if old.axes == view.axes else None
  return {path: view for path, view in found.items() if view is not None}


def _moved(eqn: Any, given: list[Views]) -> list[Views]:
  """Where the axes lie after an equation that is no contraction."""
  shapes = [getattr(var.aval, 'shape', ()) for var in eqn.outvars]
  name = eqn.primitive.name
  if name in _MOVES:
    return [{path: _MOVES[name](eqn, view, shape) for path, view in given[0].items()} for shape in shapes]
  if name == 'split':
    ends = list(itertools.accumulate(eqn.params['sizes'], initial=0))
    return [
      {path: _cut(view, eqn.params['axis'], ends[place], size) for path, view in given[0].items()}
      for place, size in enumerate(eqn.params['sizes'])
    ]
  if name == 'optimization_barrier':
    return given
  if name == 'unstack':
    axis = eqn.params['axis']
    parts = [{p: _cut(v, axis, place, 1) for p, v in given[0].items()} for place in range(len(shapes))]
    return [{p: v._replace(axes=v.axes[:axis] + v.axes[axis + 1 :]) for p, v in part.items()} for part in parts]
  if name == 'stack':
    axis = eqn.params['axis']
    given = [{p: v._replace(axes=(*v.axes[:axis], (), *v.axes[axis:])) for p, v in views.items()} for views in given]
  if name in _MIXES or len(eqn.outvars) != 1:
    return [{} for _ in shapes]
  if name in _SIDE_BY_SIDE:  # each keeps its axes, and what is multiplied is no longer that leaf alone
    return [_agreed([{path: view._replace(starts=None) for path, view in views.items()} for views in given])]
  (shape,) = shapes
  fitting: list[Views] = []
  for atom, views in zip(eqn.invars, given, strict=True):
    own = getattr(atom.aval, 'shape', ())
    # Elementwise, or along an axis: every axis stays where it is, but for one of length 1 that is stretched.
    if len(own) == len(shape) and all(size in (1, wide) for size, wide in zip(own, shape, strict=True)):
      fitting.append({path: _stretched(view, own, shape) for path, view in views.items()})
  held = lambda view: sum(map(len, view.axes))  # noqa: E731
  most = {path: max(held(one[path]) for one in fitting if path in one) for one in fitting for path in one}
  # w * (its norm): the one that holds more of it.
  return [_agreed([{path: one for path, one in views.items() if held(one) == most[path]} for views in fitting])]


def _stretched(view: View, own: Sequence[int], shape: Sequence[int]) -> View:
  return view._replace(
    axes=tuple(group if size == wide else () for group, size, wide in zip(view.axes, own, shape, strict=True))
  )


def _cut(view: View, axis: int, start: int | None, size: int) -> View:
  """The view of a slice along one axis of the value; a start of None is not known."""
  if not view.axes[axis]:
    return view
  (leaf, *others) = view.axes[axis]
  if others:  # of several axes in one, what is left is no box
    return view._replace(starts=None)
  sizes = tuple(size if one == leaf else old for one, old in enumerate(view.sizes))
  if view.starts is None or start is None:
    return View(view.axes, sizes, None)
  return View(view.axes, sizes, tuple(old + start * (one == leaf) for one, old in enumerate(view.starts)))


def _sliced(eqn: Any, view: View, shape: Sequence[int]) -> View:
  own, strides = eqn.invars[0].aval.shape, eqn.params['strides']
  for axis, start in enumerate(eqn.params['start_indices']):
    if own[axis] != shape[axis]:
      view = _cut(view, axis, None if strides is not None and strides[axis] != 1 else start, shape[axis])
  return view


def _sliced_at_run_time(eqn: Any, view: View, shape: Sequence[int]) -> View:
  for axis, (size, start) in enumerate(zip(eqn.invars[0].aval.shape, eqn.invars[1:], strict=False)):
    if size != shape[axis]:
      view = _cut(view, axis, int(start.val) if hasattr(start, 'val') else None, shape[axis])
  return view


def _gathered(eqn: Any, view: View, shape: Sequence[int]) -> View:
  numbers = eqn.params['dimension_numbers']
  gone = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
  own, taken = eqn.invars[0].aval.shape, eqn.params['slice_sizes']
  whole = [size == wide and axis not in gone for axis, (size, wide) in enumerate(zip(taken, own, strict=True))]
  left = [view.axes[axis] if whole[axis] else () for axis in range(len(own)) if axis not in gone]
  out = dict(zip(numbers.offset_dims, left, strict=True))
  # Along the indices lies what they pick from: in several of them, or with more than one entry at a time, mixed.
  along = tuple(a for axis, group in enumerate(view.axes) if not whole[axis] for a in group * (1 + (taken[axis] > 1)))
  return View(tuple(out.get(axis, along) for axis in range(len(shape))), view.sizes, None)


def _transposed(eqn: Any, view: View, shape: Sequence[int]) -> View:
  return view._replace(axes=tuple(view.axes[axis] for axis in eqn.params['permutation']))


def _squeezed(eqn: Any, view: View, shape: Sequence[int]) -> View:
  return view._replace(axes=tuple(g for axis, g in enumerate(view.axes) if axis not in eqn.params['dimensions']))


def _broadcast(eqn: Any, view: View, shape: Sequence[int]) -> View:
  out: list[tuple[int, ...]] = [()] * len(shape)
  for group, axis, size in zip(view.axes, eqn.params['broadcast_dimensions'], eqn.invars[0].aval.shape, strict=True):
    out[axis] = group if size == shape[axis] else ()
  return view._replace(axes=tuple(out))


def _reshaped(eqn: Any, view: View, shape: Sequence[int]) -> View:
  """Axes of one block of equal size lie together: merged into one, or, split, in each of them."""
  before, axes = eqn.invars[0].aval.shape, view.axes
  order = eqn.params.get('dimensions')
  if order is not None:
    before, axes = tuple(before[axis] for axis in order), tuple(axes[axis] for axis in order)
  out: list[tuple[int, ...]] = [()] * len(shape)
  for old, new in blocks(before, shape):
    several = len(old) > 1  # of several, those of length 1 hold nothing
    held = tuple(a for axis in old for a in axes[axis] if before[axis] > 1 or not several)
    for axis in [axis for axis in new if shape[axis] != 1] or new[:1]:
      out[axis] = held
  return view._replace(axes=tuple(out))


def _padded(eqn: Any, view: View, shape: Sequence[int]) -> View:
  return view if tuple(shape) == eqn.invars[0].aval.shape else view._replace(starts=None)


def _in_place(eqn: Any, view: View, shape: Sequence[int]) -> View:
  return view._replace(starts=None)


_MOVES: dict[str, Callable[[Any, View, Sequence[int]], View]] = {
  'transpose': _transposed,
  'squeeze': _squeezed,
  'broadcast_in_dim': _broadcast,
  'reshape': _reshaped,
  'slice': _sliced,
  'dynamic_slice': _sliced_at_run_time,
  'gather': _gathered,
  'pad': _padded,
  'rev': _in_place,
  'tile': _in_place,
}
_SIDE_BY_SIDE = frozenset({'concatenate', 'stack', 'dynamic_update_slice'})
_MIXES = frozenset(
  {*provenance.CONTRACTIONS, *provenance.OTHER_CONTRACTIONS, 'scatter', 'scatter-add', 'triangular_solve', 'sort'}
)


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
