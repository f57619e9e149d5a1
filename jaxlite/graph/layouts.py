"""Which axes of a weight are summed over, whatever the framework's layout: read off the program.

Linen and Haiku keep a kernel as (in, out) or HWIO, Equinox as (out, in) or OIHW. What the contraction does with the
axes is the same, so a structure along the contraction axis, a norm of inputs or a Gram matrix finds its axes here.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, NamedTuple

import jax

from jaxlite import trees
from jaxlite.graph import by_hand, provenance, walk, zeros
from jaxlite.graph.contractions import SPARSE, axes_of, operands_of
from jaxlite.graph.views import UNKNOWN, View, Views, agreed, contracted, moved


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
    filled: (path, operation) of the weights whose zeros are none where they are multiplied, see `zeros`.
    bent: (path, operation) of the weights of which no multiple is multiplied, but a curve.

  >>> jax.tree.leaves(Layouts((('w', LeafLayout((0,), (1,))),)))
  []
  """

  items: tuple[tuple[str, LeafLayout | None], ...] = ()
  skipped: tuple[tuple[str, str], ...] = ()
  filled: tuple[tuple[str, str], ...] = dataclasses.field(default=(), repr=False)  # older states are written without
  bent: tuple[tuple[str, str], ...] = dataclasses.field(default=(), repr=False)

  def by_path(self) -> dict[str, LeafLayout | None]:
    """Returns the layouts by path."""
    return dict(self.items)


class Use(NamedTuple):
  """One contraction of one leaf.

  Attributes:
    path: of the leaf.
    layout: of the leaf, in this contraction.
    order: the weight operand's contracted axes, in the order of `layout.summed`.
    batch: its batch axes that hold axes of the leaf, in the leaf's order.
    many: how many weights of their own it multiplies at once: along its batch axes, or in groups of a convolution.
    box: (start, size) along each axis of the leaf, of the part that this contraction multiplies; None where it is not
      known, or multiplied together with other leaves' parts.
  """

  path: str
  layout: LeafLayout | None
  order: tuple[int, ...] = ()
  batch: tuple[int, ...] = ()
  many: int = 1
  box: tuple[tuple[int, int], ...] | None = None


class Leaves(dict[str, LeafLayout | None]):
  """Layouts of weights by path.

  Attributes:
    filled: what makes a zero of a weight no zero where it is multiplied, by path, see `zeros`.
  """

  filled: Mapping[str, str] = {}


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


def _follow(jaxpr: Any, plan: provenance.Plan, given: Sequence[Views], uses: dict[str, tuple[Use, ...]]) -> list[Views]:
  bare, _ = walk.opened(jaxpr)
  env: dict[Any, Views] = {var: {} for var in bare.constvars}
  env.update(zip(bare.invars, given, strict=True))
  products: dict[Any, Any] = {}  # the equation that made each product

  def views_of(atom: Any) -> Views:
    return {} if hasattr(atom, 'val') else env.get(atom, {})

  for index, eqn in enumerate(bare.eqns):
    operands = [views_of(atom) for atom in eqn.invars]
    by_hand.follow(eqn, eqn, products)
    site = plan.sites.get(index)
    inner = plan.inner.get(index, ())
    out: list[Views] = [{} for _ in eqn.outvars]
    if site is not None:
      if site.weights:
        written_out = site.kind == by_hand.KIND
        views = operands[0 if written_out else operands_of(eqn)[site.side]]
        made = products[eqn.invars[0]] if written_out else eqn
        name = site.name if not site.why_not else f'{site.name}!{len(uses)}'
        uses[name] = tuple(_use(site, made, path, views) for path in sorted(site.weights))
      elif site.kind == 'dot_general' and any(operands):
        out = [contracted(eqn, operands)]
    elif inner:
      out = _enter(eqn, inner, operands, uses)
    elif any(operands):
      out = moved(eqn, operands)
    env.update(zip(eqn.outvars, out, strict=True))
  return [views_of(atom) for atom in bare.outvars]


def _use(site: provenance.Site, eqn: Any, path: str, views: Views) -> Use:
  if site.kind == by_hand.KIND:
    summed, batches = site.summed, by_hand.shared(eqn, site.side, site.summed)
  else:
    summed, batches = axes_of(eqn, site.side)
  view = views.get(path)
  if view is None or not view.is_clear(batches) or (site.kind in SPARSE and site.side == 0):
    return Use(path, None)
  axes = view.axes
  if site.kind == 'conv_general_dilated':
    features, channels, *spatial = eqn.params['dimension_numbers'].rhs_spec
    order, batch = (*spatial, channels), ()
    stacked = _stacked(axes[features], view.sizes, eqn.params['feature_group_count'])
    many = math.prod(view.sizes[axis] for axis in axes[features][:stacked])
    outputs = axes[features][stacked:]
  else:
    batch = tuple(sorted((axis for axis in batches if axes[axis]), key=lambda axis: axes[axis]))
    many = math.prod(site.shape[axis] for axis in batch)
    order = tuple(sorted(summed, key=lambda axis: axes[axis]))
    outputs = tuple(a for axis, group in enumerate(axes) if axis not in order + batch for a in group)
  of_leaf = tuple(axis for one in order for axis in axes[one])
  for axis, met in view.inner:
    side = _side(path, views, summed, batches)
    if side in ('', 'both'):  # what it met there tells where the axis went; of a mixture of layers nothing does
      beyond = {_side(one, views, summed, batches, {path}) for one in met} - ({''} if side else set())
      side = beyond or (side if UNKNOWN not in met else '')
    if side in ({'outputs'}, 'summed'):  # what it makes of the inputs, or passes on
      outputs += (axis,)
    elif side in ({'summed'}, 'outputs'):
      of_leaf += (axis,)
    elif side != 'both':  # a mixture of layers
      return Use(path, None)
  return Use(path, LeafLayout(of_leaf, tuple(sorted(outputs))), order, batch, many, view.box)


def _side(
  path: str, views: Views, summed: Sequence[int], batch: Sequence[int], seen: AbstractSet[str] = frozenset()
) -> str:
  """On which side of a product a factor stands: it meets the inputs, 'summed', gives the outputs, or 'both'; else ''.

  With `seen`, the factors that it was asked from, one in the middle answers for those beyond it.
  """
  view = views.get(path)
  if view is None:
    return ''
  held = {
    'summed' if place in summed else 'outputs' for place, group in enumerate(view.axes) if group and place not in batch
  }
  if not held and seen:
    beyond = {one for _, met in view.inner for one in met} - seen
    held = {_side(one, views, summed, batch, seen | {path}) for one in beyond} - {''}
  return 'both' if len(held) > 1 else held.pop() if held else ''


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
    return [agreed(several) for several in zip(*found, strict=True)]
  return _follow(eqn.params[walk.CALLS[name]], plans[0], given, uses)


def _unchanged(views: Sequence[Views], out: Sequence[Any], into: Sequence[Any]) -> list[Views]:
  return [view if one is other else {} for view, one, other in zip(views, out, into, strict=True)]


def model_layouts(fn: Callable[..., Any], tags: Sequence[provenance.Tag], *args: Any) -> Leaves:
  """Finds the weights of a program and their layouts.

  Args:
    fn: takes `args`; it is traced, never run.
    tags: one per leaf of `args`.
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
  leaves = Leaves({path: known.get(path) for path in sorted(weights)})
  leaves.filled = zeros.filled(jaxpr, plan, tags)
  return leaves


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
