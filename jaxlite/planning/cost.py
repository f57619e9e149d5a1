"""What a program costs, read off its jaxpr: FLOPs and bytes by kind and by layer, every loop by its true length.

XLA's own analysis counts the body of a loop once. Here each body counts as often as it runs, a branch as its dearest
side (`branches.py` says of which side time is told), and what is computed element by element counts the bytes that
enter and leave the kernel that it becomes.
"""

from __future__ import annotations

import collections
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax

from jaxlite import trees
from jaxlite.graph import provenance, walk
from jaxlite.graph.plan import CONSTANT, DATA, Plan, Tag, weight
from jaxlite.planning import strided
from jaxlite.planning.branches import BY_DATA, SCHEDULED, are_counters, carried, counted
from jaxlite.planning.flat import Flat, Node, flat
from jaxlite.planning.flow import size_of
from jaxlite.planning.fused import Kernel, kernels
from jaxlite.planning.gradients import gradients
from jaxlite.planning.lying import by_place, lying
from jaxlite.planning.trips import is_conditional, trips


class Operation(NamedTuple):
  """One kernel of a program.

  Attributes:
    kind: as `work.KINDS` names it; of a chain that of its dearest part.
    primitive: JAX's name of what gives its result.
    layer: the weight that it multiplies, or whose gradient it makes; '' for none.
    flops: of one run; transcendental functions are no FLOPs.
    padded: with those that multiply padding.
    bytes: that enter and leave, of one run.
    transcendentals: of one run.
    times: how often it runs.
    sides: of a contraction or a reduction, as `work.Work` says; of what asks each entry for its place (entries side
      by side,).
    dtype: of what it reads first.
    looped: it stands in a loop.
    branch: 'dear' and 'cheapest' for what only these sides of a branch do, 'between' for what only others do; '' else.
      What is done on the dearest sides is in the sums.
    out: entries of its result.
    strided: bytes that are laid out anew, against the order in which they lie: what that costs beside passing over
      them is not in `bytes`.
    share: of all times that the program runs, those in which it does this: below 1 on sides of branches.
  """

  kind: str
  primitive: str
  layer: str
  flops: float
  padded: float
  bytes: float
  transcendentals: float
  times: float
  sides: tuple[int, ...]
  dtype: str
  looped: bool
  branch: str
  out: float
  strided: float = 0.0
  share: float = 1.0


class Cost(NamedTuple):
  """Of a program.

  Attributes:
    operations: in order; of a branch all sides, each marked.
    said: what was assumed, or could not be counted, a line each.
  """

  operations: tuple[Operation, ...]
  said: tuple[str, ...]

  @property
  def counted(self) -> tuple[Operation, ...]:
    """All operations, of a branch its dearest side."""
    return tuple(one for one in self.operations if one.branch in ('', 'dear'))

  @property
  def usual(self) -> tuple[Operation, ...]:
    """What time is told of: of a branch by a counter its cheapest side, as a schedule takes at most steps; of one by
    data each side as often as the others."""
    return tuple(one._replace(times=one.times * one.share, share=1.0) for one in self.operations if one.share)

  @property
  def least(self) -> tuple[Operation, ...]:
    """All operations, of a branch its cheapest side."""
    return tuple(one for one in self.operations if one.branch in ('', 'cheapest'))

  @property
  def flops(self) -> float:
    """Of all operations."""
    return sum(one.flops * one.times for one in self.counted)

  @property
  def transcendentals(self) -> float:
    """Of all operations."""
    return sum(one.transcendentals * one.times for one in self.counted)

  @property
  def bytes(self) -> float:
    """Of all operations, read and written."""
    return sum(one.bytes * one.times for one in self.counted)

  def by(self, what: str) -> dict[str, tuple[float, float]]:
    """Returns (FLOPs, bytes) by 'kind', 'layer' or 'primitive', the dearest first.

    >>> import jax
    >>> cost(jax.make_jaxpr(lambda x: x @ x)(jax.numpy.ones((8, 8)))).by('kind')
    {'small products': (1024.0, 512.0)}
    """
    found: dict[str, tuple[float, float]] = {}
    for one in self.counted:
      flops, size = found.get(getattr(one, what), (0.0, 0.0))
      found[getattr(one, what)] = (flops + one.flops * one.times, size + one.bytes * one.times)
    return dict(sorted(found.items(), key=lambda item: item[1], reverse=True))


# How a program's line begins that is dearer than its cost says: what runs there is not counted, or only once.
UNKNOWN_LENGTH = 'a while loop whose length is not known counts once'
NOT_COUNTED = (
  'a while loop whose length',
  'products of ',
  'a network that was loaded',
  'a call back to Python',
  'the body of',
)

BY_BYTES = 'is counted by its bytes alone'  # stands in a line on what is not known

_RARELY = 'of a branch, '
_FILLS = ('broadcast_in_dim', 'full', 'iota')
_PAIRWISE = ('reduce', 'scatter', 'select_and', 'sort', 'arg', 'cum')


class _Place(NamedTuple):
  times: float = 1.0
  looped: bool = False


def cost(jaxpr: Any, tags: Sequence[Tag] | None = None, *, recomputes: bool = True) -> Cost:
  """Returns what a program costs.

  Args:
    jaxpr: closed or open, such as `train.programs.jaxpr(state, batch)[0]`.
    tags: of its inputs, as `graph.provenance.read` takes them: operations are then told by layer.
    recomputes: whether what `jax.checkpoint` computes anew counts. XLA for CPU merges it with the first time where no
      loop stands between.

  >>> import jax
  >>> loop = lambda x: jax.lax.scan(lambda c, _: (c @ c, None), x, length=10)[0]
  >>> cost(jax.make_jaxpr(loop)(jax.numpy.ones((8, 8)))).flops
  10240.0
  """
  plan = provenance.read(jaxpr, tags) if tags is not None else None
  said: dict[str, None] = {}
  opened = flat(jaxpr, plan, recomputes=recomputes)
  found = _of_body(opened, _Place(), said, recomputes, are_counters([var.aval for var in walk.opened(jaxpr)[0].invars]))
  return Cost(tuple(found), tuple(said))


def step_tags(state: Any, batch: Any) -> list[Tag]:
  """Returns the tags of a step's program, whose inputs are a state without key and constants, these, and a batch.

  Args:
    state: a `TrainState`, or its shapes.
    batch: likewise.
  """
  count = lambda tree: len(jax.tree.leaves(tree))  # noqa: E731
  tags = [CONSTANT] * count(state.step) + [weight(path) for path in trees.paths(state.params)]
  return tags + [DATA] * count((state.model_state, state.opt_state, state.key, state.const, batch))


def _of_body(
  body: Flat, place: _Place, said: dict[str, None], recomputes: bool, given: Sequence[bool]
) -> list[Operation]:
  deep = [_is_deep(node.eqn) for node in body.nodes]
  layers, asked, lies = gradients(body.nodes), by_place(body.nodes), lying(body)
  counters = counted(body, given) if any(deep) else frozenset()
  found: list[Operation] = []
  for kernel in kernels(body, deep):
    node = kernel.nodes[-1]
    if not kernel.works:
      flags = tuple(value < 0 or value in counters for value in node.reads)
      found += _of_bodies(node, body, place, said, recomputes, flags)
    else:
      one = _operation(kernel, place, layers.get(node.writes, node.layer))
      beside = min((asked[each.writes] for each in kernel.nodes if each.writes in asked), default=0)
      if node.writes in lies:
        one = one._replace(sides=lies[node.writes])
      found.append(one._replace(sides=(beside,)) if beside and one.kind == 'elementwise' else one)
    _say(kernel, said)
  found += [_turning(node, size, place) for node, size in strided.turned(body.nodes)]
  return found + _begun(body, place)


def _begun(body: Flat, place: _Place) -> list[Operation]:
  """What is filled in before rows are added to it, such as the gradient of a table."""
  filled = {value for node in body.nodes if node.eqn.primitive.name in _FILLS for value in node.writes}
  nodes = [node for node in body.nodes if node.eqn.primitive.name.startswith('scatter') and node.reads[0] in filled]
  return [_filling(node.eqn.outvars[:1], place._replace(times=place.times * node.copies)) for node in nodes]


def _filling(variables: Sequence[Any], place: _Place) -> Operation:
  size, entries = sum(size_of(var.aval) for var in variables), sum(map(_entries, variables))
  return Operation('movement', 'fill', '', 0.0, 0.0, size, 0.0, place.times, (), '', place.looped, '', entries)


def _turning(node: Node, size: float, place: _Place) -> Operation:
  times = place.times * node.copies
  entries = _entries(node.eqn.outvars[0])
  return Operation(
    *('movement', 'transpose', '', 0.0, 0.0, 0.0, 0.0, times, (), '', place.looped, '', entries), strided=size
  )


def _is_deep(eqn: Any) -> bool:
  """Whether an equation runs programs of its own; what a reduction or a scatter does to two entries is none."""
  return bool(walk.bodies(eqn)) and not eqn.primitive.name.startswith(_PAIRWISE)


def _say(kernel: Kernel, said: dict[str, None]) -> None:
  name = kernel.nodes[-1].eqn.primitive.name
  if name == walk.SEALED:
    said['a network that was loaded without its model is not counted: nobody sees inside it'] = None
  elif 'callback' in name or name.startswith('debug_'):
    said['a call back to Python is not counted'] = None
  elif kernel.works and not kernel.works[-1].known:
    what = kernel.nodes[-1].eqn.params.get('target_name', name)
    said[f'{what} {BY_BYTES}: what it computes is not known'] = None


def _operation(kernel: Kernel, place: _Place, layer: str) -> Operation:
  node, works = kernel.nodes[-1], kernel.works
  kinds = {work.kind for work in works}
  last = works[-1].kind
  kind = last if not works[-1].fused else 'transcendental' if 'transcendental' in kinds else last
  if kind in ('elementwise', 'movement') and works[-1].fused:
    kind = 'elementwise' if 'elementwise' in kinds else 'movement'
  return Operation(
    kind=kind,
    primitive=node.eqn.primitive.name,
    layer=re.sub(r'#\d+$', '', layer) if not layer.startswith('<') else '',
    flops=sum(work.flops for work in works),
    padded=sum(work.padded or work.flops for work in works),
    bytes=kernel.bytes,
    transcendentals=sum(work.transcendentals for work in works),
    times=place.times * node.copies,
    sides=works[-1].sides,
    dtype=str(getattr(node.eqn.invars[0].aval, 'dtype', '')) if node.eqn.invars else '',
    looped=place.looped,
    branch='',
    out=sum(_entries(var) for var in node.eqn.outvars),
  )


def _entries(var: Any) -> float:
  size = 1.0
  for length in getattr(var.aval, 'shape', ()):
    size *= length
  return size


def _of_bodies(
  node: Node, body: Flat, place: _Place, said: dict[str, None], recomputes: bool, flags: tuple[bool, ...]
) -> list[Operation]:
  """Of a loop, a branch, or another equation with bodies; `flags`: which operands hang on counters alone."""
  name, eqn = node.eqn.primitive.name, node.eqn
  place = place._replace(times=place.times * node.copies)
  bodies = [eqn.params[one] for one in ('cond_jaxpr', 'body_jaxpr')] if name == 'while' else walk.bodies(eqn)
  plans = node.plans if len(node.plans) == len(bodies) else (None,) * len(bodies)

  def inside(jaxpr: Any, plan: Plan | None, where: _Place, given: Sequence[bool], said: dict[str, None]) -> Any:
    opened = flat(jaxpr, plan, recomputes=recomputes)
    known = given if len(given) == len(opened.inputs) else (False,) * len(opened.inputs)
    return _of_body(opened, where, said, recomputes, known)

  if name == 'scan':
    length = eqn.params['length']
    where = place._replace(times=place.times * length, looped=place.looped or length > int(eqn.params['unroll']))
    return inside(bodies[0], plans[0], where, carried(eqn, flags), said) + _slices(eqn, where)
  if name == 'while':
    rare = is_conditional(eqn)
    times = 1.0 if rare else trips(node, body)
    if times is None:
      said[UNKNOWN_LENGTH] = None
    where = place._replace(times=place.times * (1 if times is None else times), looped=True)
    lines: dict[str, None] = {}
    found = inside(bodies[0], plans[0], where, (), lines)
    found += inside(bodies[1], plans[1], where, carried(eqn, flags), lines)
    return _of_branches([([], {}), (found, lines)], True, said) if rare else _heard(found, lines, said)
  if name == 'cond':
    if eqn.params.get('branches_platforms') is not None:  # not a choice at run time: forms of one thing
      return inside(walk.lowered(eqn, jax.default_backend()), None, place, flags[1:], said)
    sides = []
    for jaxpr, plan in zip(bodies, plans, strict=True):
      lines = {}
      sides.append((inside(jaxpr, plan, place, flags[1:], lines) + _filled(jaxpr, place), lines))
    return _of_branches(sides, flags[0], said)
  if name == 'custom_linear_solve':  # of its four programs this one runs
    return inside(eqn.params['jaxprs'].solve, None, place, (), said)
  grid = getattr(eqn.params.get('grid_mapping'), 'grid', None)  # of a Pallas kernel
  if grid is not None and all(isinstance(length, int) for length in grid):
    place = place._replace(times=place.times * math.prod(grid), looped=True)
  elif name not in walk.CALLS:
    said[f'the body of {name} counts once'] = None
  return [one for jaxpr, plan in zip(bodies, plans, strict=True) for one in inside(jaxpr, plan, place, (), said)]


def _filled(jaxpr: Any, place: _Place) -> list[Operation]:
  """What a side writes for the others: zeros in the place of gradients, and of what these keep for them."""
  bare, _ = walk.opened(jaxpr)
  made = {var: eqn.primitive.name for eqn in bare.eqns for var in eqn.outvars}
  filled = [var for var in bare.outvars if not hasattr(var, 'val') and made.get(var) in _FILLS]
  return [_filling(filled, place)] if any(size_of(var.aval) for var in filled) else []


def _heard(found: list[Operation], lines: dict[str, None], said: dict[str, None]) -> list[Operation]:
  said |= lines
  return found


def _of_branches(
  sides: Sequence[tuple[list[Operation], dict[str, None]]], by_counter: bool, said: dict[str, None]
) -> list[Operation]:
  """All sides of a branch, marked by what each is; with each what was said of it."""
  order = sorted(range(len(sides)), key=lambda i: _weight(sides[i][0]))
  if _weight(sides[order[0]][0]) == _weight(sides[order[-1]][0]):
    return _heard(*sides[order[-1]], said)
  said[SCHEDULED if by_counter else BY_DATA] = None
  found: list[Operation] = []
  for place, index in enumerate(order[::-1]):
    operations, lines = sides[index]
    share = float(place == len(sides) - 1) if by_counter else 1 / len(sides)
    # On a side that a schedule takes now and then a line says little of a run's time.
    said |= lines if share else {f'{_RARELY}{line.removeprefix(_RARELY)}': None for line in lines}
    mark = 'dear' if place == 0 else 'cheapest' if place == len(sides) - 1 else 'between'
    found += [
      one._replace(branch=mark if one.branch in ('', mark) else 'between', share=share * one.share)
      for one in operations
    ]
  return found


def _weight(side: Sequence[Operation]) -> tuple[float, float]:
  counted = [one for one in side if one.branch in ('', 'dear')]
  return sum(one.flops * one.times for one in counted), sum(one.bytes * one.times for one in counted)


def _slices(eqn: Any, place: _Place) -> list[Operation]:
  """What a scan takes out of its stacked operands and puts into its stacked results at every turn."""
  consts, carry = walk.scan_layout(eqn)
  bare, _ = walk.opened(walk.bodies(eqn)[0])
  moved = [var.aval for var in (*bare.invars[consts + carry :], *bare.outvars[carry:])]
  size = 2 * sum(map(size_of, moved))
  if not size:
    return []
  return [
    Operation('movement', 'scan', '', 0.0, 0.0, size, 0.0, place.times, (), '', True, '', size / 4),
  ]


def equations(cost: Cost) -> Mapping[str, int]:
  """Returns how many kernels of each kind there are to compile, however often each runs.

  >>> import jax
  >>> equations(cost(jax.make_jaxpr(lambda x: x @ x)(jax.numpy.ones((8, 8)))))
  {'small products': 1}
  """
  return dict(collections.Counter(one.kind for one in cost.operations))
