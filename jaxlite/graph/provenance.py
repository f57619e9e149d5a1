"""Where a value comes from: which contractions multiply a weight by an activation, and which weight.

An operand is *fixed* when it depends on parameters and constants only, whatever the operations between: masks,
transposes, weight norm and low-rank sums keep it fixed, and nothing is guessed from shapes. Which of its leaves are
weights and which only scale or shift them is `covers`' to say. This file reads a program once and writes a `Plan` of
it: the sites, named by the paths of their weights. What is done at a site is `rewrite`'s business and its callers'.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxlite import trees
from jaxlite.graph import by_hand, joins, sharding, walk
from jaxlite.graph import covers as covering
from jaxlite.graph.contractions import CONTRACTIONS, OTHER_CONTRACTIONS, axes_of, flops_of, operands_of
from jaxlite.graph.covers import Cover
from jaxlite.graph.plan import CONSTANT, DATA, Plan, Site, Tag
from jaxlite.graph.plan import weight as weight


class _Place(NamedTuple):
  """Where in the program the reader stands: what it must know about the enclosing bodies."""

  lengths: tuple[int, ...] = ()  # of the enclosing scans, outermost first
  trips: int = 1  # how often this body runs in one pass
  custom: bool = False
  barred: str = ''  # a reason for which nothing here can be rewritten
  pairs: bool = False  # products of two activations may be rewritten too
  meets: bool = False  # and where they are added, or summed over axes
  mesh: Mapping[str, int] = {}  # the axes of the enclosing shard_maps, and how many shards lie along each


def read(jaxpr: Any, tags: Sequence[Tag], *, pairs: bool = False, meets: bool = False) -> Plan:
  """Reads a program.

  Args:
    jaxpr: closed or open.
    tags: one for each of its inputs.
    pairs: whether products of two activations are sites that may be rewritten, as those of a weight are.
    meets: whether sums of activations are, see `joins`.

  Returns:
    The Plan, its sites named.
  """
  own = [
    tag._replace(
      covers=covering.merged([covering.whole(path, var.aval.shape) for path in tag.paths]), shards=sharding.varying(var)
    )
    for tag, var in zip(tags, walk.opened(jaxpr)[0].invars, strict=True)
  ]
  return _named(_read(jaxpr, own, _Place(pairs=pairs, meets=meets, mesh=sharding.ambient())), {}, {})


def _join(tags: Sequence[Tag], covers: Mapping[str, Cover] | None = None) -> Tag:
  """The tag of what depends on several; `covers` of their own, where they do not come together element by element."""
  data = any(tag.data for tag in tags)
  paths = frozenset() if data else frozenset().union(*(tag.paths for tag in tags))
  varies = frozenset().union(*(tag.varies for tag in tags))
  if covers is None:  # data that picked nothing leave nothing
    covers = {} if any(tag.data and not tag.covers for tag in tags) else covering.merged([tag.covers for tag in tags])
  return Tag(paths, data, varies, covers, frozenset().union(*(tag.shards for tag in tags)))


def _joined(eqn: Any, given: Sequence[Tag], out: Any) -> Tag:
  """The tag of a result of an equation without a body."""
  name, shape = eqn.primitive.name, getattr(out.aval, 'shape', ())
  several = [covering.through(eqn, position, tag.covers, shape) for position, tag in enumerate(given)]
  if name in CONTRACTIONS + OTHER_CONTRACTIONS:  # an inner product: its sides were judged, and span it together
    for side, position in enumerate(operands_of(eqn)):
      summed, batch = axes_of(eqn, side)
      shape_of = eqn.invars[position].aval.shape  # without axes of its own it only scales or mixes the other
      winners = covering.judged(given[position].covers, shape_of, summed, batch, strict=True)
      several[position] = covering.pieces(several[position], winners, range(len(shape)), shape)
  elif name in _SIDE_BY_SIDE and sum(map(bool, several)) > 1:
    along = eqn.params.get('dimension', eqn.params.get('axis'))  # of a concatenation, of a stack
    axes = range(len(shape)) if along is None else [along]
    single = [along is not None and (name == 'stack' or atom.aval.shape[along] == 1) for atom in eqn.invars]
    several = [
      covering.pieces(c, covering.tops(c), axes, shape, single=s) for c, s in zip(several, single, strict=True)
    ]
    several = covering.repeated(several)
  together = covering.merged(several)
  if any(tag.data for tag in given):
    together = covering.picked(eqn, given, together)
  return _join(given, together)


_SIDE_BY_SIDE = frozenset({'concatenate', 'stack', 'dynamic_update_slice', 'scatter', 'scatter-add'})


def _read(jaxpr: Any, tags: Sequence[Tag], place: _Place) -> Plan:
  bare, _ = walk.opened(jaxpr)
  env: dict[Any, Tag] = dict.fromkeys(bare.constvars, CONSTANT)
  env.update(zip(bare.invars, tags, strict=True))
  sites: dict[int, Site] = {}
  inner: dict[int, tuple[Plan, ...]] = {}
  beyond: list[Site] = []
  marks: list[tuple[str, frozenset[str]]] = []
  products: dict[Any, tuple[Any, list[Tag]]] = {}  # by result: the equation, its operands' tags

  def tag_of(atom: Any) -> Tag:
    if hasattr(atom, 'val'):
      return CONSTANT
    # A reference is written from elsewhere, so what it holds cannot be known from how it began.
    return DATA if 'Ref' in type(atom.aval).__name__ else env[atom]

  for index, eqn in enumerate(bare.eqns):
    given = [tag_of(atom) for atom in eqn.invars]
    name = eqn.primitive.name
    by_hand.follow(eqn, (eqn, given), products)
    if name in CONTRACTIONS:
      sites[index] = _site(eqn, given, place)
    elif name in OTHER_CONTRACTIONS:
      sites[index] = _site(eqn, given, place._replace(barred=f'{name} has no rule'))
    elif name == by_hand.KIND and not hasattr(eqn.invars[0], 'val') and eqn.invars[0] in products:
      if (site := by_hand.summed(eqn, *products[eqn.invars[0]], place)) is not None:
        sites[index] = site
    elif name == 'name' and given[0].paths:
      marks.append((eqn.params['name'], covering.tops(given[0].covers) or given[0].paths))
    if place.meets and index not in sites and (site := joins.site(eqn, given, place)) is not None:
      sites[index] = site
    if name in _READERS:
      out, inner[index] = _READERS[name](eqn, given, place)
    elif name in walk.CALLS:
      custom = place.custom or name.startswith('custom_')
      body = eqn.params[walk.CALLS[name]]
      into, outof = walk.opened(body)[0].invars, walk.opened(body)[0].outvars
      inside, cut = place._replace(custom=custom), _of_shards(given, eqn.invars, into)
      manual: frozenset[str] = frozenset()
      if name == 'shard_map':
        manual = frozenset(sharding.sizes(eqn))
        inside = inside._replace(mesh={**place.mesh, **sharding.sizes(eqn)})
        over = zip(cut, sharding.cut_over(eqn), strict=True)
        cut = [tag._replace(shards=tag.shards | axes) for tag, axes in over]
      plan = _read(body, cut, inside)
      whole = [tag._replace(shards=tag.shards - manual) for tag in plan.out]
      out, inner[index] = tuple(_of_shards(whole, outof, eqn.outvars)), (plan,)
    else:
      from_outside = 'callback' in name or (not given and eqn.effects and name != 'axis_index')
      out = tuple(DATA if from_outside else _joined(eqn, given, var) for var in eqn.outvars)
      out = tuple(given) if name == 'optimization_barrier' else out
      out = tuple(tag._replace(shards=sharding.after(eqn, tag.shards)) for tag in out) if place.mesh else out
      if any(tag.data for tag in out):
        beyond.extend(_unwired(eqn, place))
    env.update(zip(eqn.outvars, out, strict=True))
  out = tuple(tag_of(atom) for atom in bare.outvars)
  return Plan(out, sites, inner, tuple(beyond), tuple(marks), len(place.lengths))


def _of_shards(tags: Sequence[Tag], given: Sequence[Any], taken: Sequence[Any]) -> list[Tag]:
  """Tags of values that have another shape on the other side of a call: one shard of them, or all."""

  def fitted(cover: Cover, own: tuple[int, ...], shape: tuple[int, ...]) -> Cover:
    extents = zip(cover.extents, own, shape, strict=True)
    return cover._replace(extents=tuple(wide if e == size else min(e, wide) for e, size, wide in extents), own=None)

  found = []
  for tag, one, other in zip(tags, given, taken, strict=True):
    own, shape = (getattr(var.aval, 'shape', ()) for var in (one, other))
    covers = {path: fitted(cover, own, shape) for path, cover in tag.covers.items()} if own != shape else tag.covers
    found.append(tag._replace(covers=covers))
  return found


def _site(eqn: Any, given: Sequence[Tag], place: _Place) -> Site:
  positions = operands_of(eqn)
  pair = [given[position] for position in positions]
  avals = [eqn.invars[position].aval for position in positions]
  axes = [axes_of(eqn, side) for side in (0, 1)]
  weights = [side for side, tag in enumerate(pair) if tag.paths]
  dtypes = [aval.dtype for aval in avals]
  why_not = ''
  paired = place.pairs and eqn.primitive.name == 'dot_general' and all(tag.data for tag in pair)
  mine = [
    covering.judged(tag.covers, aval.shape, *own, strict=tag.data)
    for tag, aval, own in zip(pair, avals, axes, strict=True)
  ]
  if len(weights) == 2:
    why_not = 'both operands are weights: it can be folded'
  elif not weights and all(tag.data for tag in pair):
    why_not = '' if paired else 'both operands are activations'
    if not paired and sum(map(bool, mine)) == 1:
      weights = [0 if mine[0] else 1]
      why_not = 'data pick its weight'
  elif not weights:
    why_not = 'its fixed operand is no parameter'
  elif not pair[1 - weights[0]].data:
    why_not = 'its other operand is a constant: it can be folded'
  elif eqn.primitive.name == 'conv_general_dilated' and weights[0] == 0:
    why_not = 'its weight stands in the image position'
  side = weights[0] if len(weights) == 1 else 1 if paired else None
  meets = side is not None and not paired and why_not in ('', 'data pick its weight')
  weighs = meets and bool(mine[side]) and jnp.issubdtype(dtypes[side], jnp.inexact)
  why_not = why_not or place.barred
  shards = frozenset() if side is None or paired else pair[side].shards
  if shards and not why_not:
    why_not = f'its weight is one shard of several along {", ".join(map(repr, sorted(shards)))}'
  if not why_not and not all(jnp.issubdtype(dtype, jnp.floating) and dtype.itemsize > 1 for dtype in dtypes):
    why_not = f'its operands are {dtypes[0]} and {dtypes[1]}'
  varies = pair[side].varies if side is not None and not paired else frozenset()
  stack = tuple(sorted(varies))
  paths = frozenset().union(*(tag.covers.keys() if tag.data and weighs else tag.paths for tag in pair))
  lengths = tuple(place.lengths[depth] for depth in stack)
  own = pair[0].shards | pair[1].shards
  flops = flops_of(eqn) * place.trips * math.prod(place.mesh.get(axis, 1) for axis in own)
  shape = () if side is None else avals[side].shape
  return Site(
    name='',
    kind=eqn.primitive.name,
    side=side,
    why_not=why_not,
    stack=stack,
    lengths=lengths,
    flops=flops,
    shape=shape,
    summed=() if side is None else axes[side][0],
    paths=paths,
    weights=mine[side] if weighs else frozenset(),
    custom=place.custom,
    weighs=weighs,
    shards=shards,
  )


def _unwired(eqn: Any, place: _Place) -> Iterator[Site]:
  for body in walk.bodies(eqn):
    for inside in walk.equations(body):
      if inside.primitive.name in CONTRACTIONS + OTHER_CONTRACTIONS:
        yield _site(inside, [DATA] * len(inside.invars), place._replace(barred=''))._replace(
          why_not=f'it stands inside {eqn.primitive.name}'
        )


def _read_scan(eqn: Any, given: Sequence[Tag], place: _Place) -> tuple[tuple[Tag, ...], tuple[Plan, ...]]:
  num_consts, num_carry = walk.scan_layout(eqn)
  depth, length = len(place.lengths), eqn.params['length']
  inside = place._replace(lengths=(*place.lengths, length), trips=place.trips * length)
  here = frozenset((depth,))
  split = num_consts + num_carry
  consts, carry = given[:num_consts], list(given[num_consts:split])
  xs = [tag._replace(varies=tag.varies | here, covers=_of_one(tag.covers)) for tag in given[split:]]
  body = eqn.params['jaxpr']
  bare = walk.opened(body)[0]
  kept = [out is var for out, var in zip(bare.outvars[:num_carry], bare.invars[num_consts:split], strict=True)]
  while True:  # tags only grow, and are finitely many
    plan = _read(body, [*consts, *carry, *xs], inside)
    grown = []
    for before, after, same in zip(carry, plan.out[:num_carry], kept, strict=True):
      joined = _join([before, after])
      grown.append(joined if same else joined._replace(varies=joined.varies | here))
    if grown == carry:
      break
    carry = grown
  ys = [tag._replace(covers=_of_all(tag.covers, length)) for tag in plan.out[num_carry:]]
  return tuple(tag._replace(varies=tag.varies - here) for tag in (*carry, *ys)), (plan,)


def _of_one(covers: Mapping[str, Cover]) -> dict[str, Cover]:
  """What one iteration of a scan sees of a stack."""
  return {
    path: Cover(c.extents[1:], c.rank - (c.extents[0] > 1), c.lost, None if c.own is None else c.own[1:])
    for path, c in covers.items()
  }


def _of_all(covers: Mapping[str, Cover], length: int) -> dict[str, Cover]:
  return {path: cover._replace(extents=(length, *cover.extents), own=None) for path, cover in covers.items()}


def _read_while(eqn: Any, given: Sequence[Tag], place: _Place) -> tuple[tuple[Tag, ...], tuple[Plan, ...]]:
  cond_consts, body_consts = eqn.params['cond_nconsts'], eqn.params['body_nconsts']
  for_cond, for_body = given[:cond_consts], given[cond_consts : cond_consts + body_consts]
  carry = list(given[cond_consts + body_consts :])
  bare = walk.opened(eqn.params['body_jaxpr'])[0]
  kept = [out is var for out, var in zip(bare.outvars, bare.invars[body_consts:], strict=True)]
  barred = place._replace(barred='it stands in the condition of a while')
  while True:
    cond = _read(eqn.params['cond_jaxpr'], [*for_cond, *carry], barred)
    body = _read(eqn.params['body_jaxpr'], [*for_body, *carry], place)
    # How often the body runs may depend on data; then so does all that it changes.
    stop = Tag(data=cond.out[0].data)
    grown = [
      before if same else _join([before, after]) if not stop.data else _join([before, after, stop], {})
      for before, after, same in zip(carry, body.out, kept, strict=True)
    ]
    if grown == carry:
      return tuple(carry), (cond, body)
    carry = grown


def _read_cond(eqn: Any, given: Sequence[Tag], place: _Place) -> tuple[tuple[Tag, ...], tuple[Plan, ...]]:
  plans = tuple(_read(branch, given[1:], place) for branch in eqn.params['branches'])
  return tuple(
    _join([given[0], *outs], _join(outs).covers) for outs in zip(*(p.out for p in plans), strict=True)
  ), plans


_READERS: dict[str, Callable[..., tuple[tuple[Tag, ...], tuple[Plan, ...]]]] = {
  'scan': _read_scan,
  'while': _read_while,
  'cond': _read_cond,
}


def _named(plan: Plan, counts: dict[str, int], shapes: dict[str, Any]) -> Plan:
  """Names the sites in program order. Branches of a cond are alternatives, so they share names."""
  sites, inner = {}, {}
  for index in sorted({*plan.sites, *plan.inner}):
    if index in plan.sites:
      sites[index] = _name(plan.sites[index], counts, shapes)
      continue
    branches = []
    after = dict(counts)
    alternatives = len(plan.inner[index]) > 1
    for body in plan.inner[index]:
      own = dict(counts) if alternatives else after
      branches.append(_named(body, own, shapes))
      after.update({base: max(after.get(base, 0), count) for base, count in own.items()})
    inner[index] = tuple(branches)
    counts.update(after)
  beyond = tuple(_name(site, counts, shapes) for site in plan.beyond)
  return plan._replace(sites=sites, inner=inner, beyond=beyond)


def _name(site: Site, counts: dict[str, int], shapes: dict[str, Any]) -> Site:
  known = site.weights or site.paths
  own = [path for path in known if not trees.is_extra(path)]
  base = '+'.join(sorted(own or known))  # what a hook added to a weight does not rename it
  base = joins.NAMES[site.kind] if site.joins else '<activations>' if site.paired else base
  if site.why_not or not base:
    return site._replace(name=base)
  own_shapes = site.lengths, site.shape, site.summed  # alternatives share a name where what is kept by name fits both
  for count in itertools.count(counts.get(base, 0) + 1):
    name = base if count == 1 else f'{base}#{count}'
    if shapes.setdefault(name, own_shapes) == own_shapes:
      counts[base] = count
      return site._replace(name=name)
  raise AssertionError('unreachable: the count is endless')


def contraction_weights(fn: Callable[..., Any], params: Any, *args: Any, **kwargs: Any) -> frozenset[str]:
  """Finds the parameters that enter a contraction with an activation.

  A leaf counts when a contraction, at any depth of control flow, multiplies data by something that depends on that
  leaf and otherwise on parameters and constants only: kernels, also masked, transposed, reshaped, normalized, summed
  of factors, or picked whole by data; no bias, gain, norm scale or looked-up embedding. The data may be of any type:
  a kernel that meets raw uint8 pixels is one.

  Args:
    fn: (params, *args, **kwargs) -> anything; it is traced, never run.
    params: pytree of arrays or ShapeDtypeStructs.
    *args: pytrees of arrays or ShapeDtypeStructs.
    **kwargs: passed on as they are.

  Returns:
    The paths, as `trees.paths` writes them.

  >>> import jax.numpy as jnp
  >>> params = {'w': jnp.ones((3, 4)), 'gain': jnp.ones(4), 'b': jnp.ones(4)}
  >>> sorted(contraction_weights(lambda p, x: x @ (p['w'] * p['gain']) + p['b'], params, jnp.ones((2, 3))))
  ['w']
  """
  names, _, _ = trees.flatten(params)
  closed = jax.make_jaxpr(lambda params, *args: fn(params, *args, **kwargs))(params, *args)
  inputs = [weight(name) for name in names]
  inputs += [DATA] * (len(walk.opened(closed)[0].invars) - len(inputs))
  sites = read(closed, inputs).all_sites()
  return frozenset().union(*(site.weights for site in sites))
