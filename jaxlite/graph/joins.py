"""Where activations meet outside of contractions: sums of two branches, and sums over axes, as means and norms have.

Beside the contractions these are the places that deployed integers need a range for. Candidates are read off the shape
of an equation alone, alike in training and evaluation; which of them integers can reach is read off the evaluation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxlite.graph import walk
from jaxlite.graph.plan import Plan, Site, Tag

ADD, SUM = 'add', 'reduce_sum'
KINDS = (ADD, SUM)
NAMES = {ADD: '<add>', SUM: '<sum>'}

# What moves values and computes none; the range of a result is that of the operand, or within it.
_IDENTITIES = (
  'copy',
  'copy_p',
  'stop_gradient',
  'optimization_barrier',
  'name',
  'sharding_constraint',
  'pvary',
  'pcast',
)
_TURNS = ('reshape', 'transpose', 'squeeze', 'expand_dims', 'broadcast_in_dim', 'rev', 'slice', 'pad', 'concatenate')
MOVES = frozenset({*_IDENTITIES, *_TURNS, 'reduce_window_max'})
BY_NUMBERS = ('add', 'sub', 'mul', 'div')
_HELD = frozenset(
  ['platform_index', 'cond', 'jit', 'pjit', 'bitcast_convert_type', 'or', 'broadcast_in_dim', 'custom_jvp_call']
)
_POOL = frozenset(['slice', 'max', 'reshape', 'squeeze', 'jit', 'pjit', 'reduce_window_max'])


def site(eqn: Any, given: Sequence[Tag], place: Any) -> Site | None:
  """Returns an addition of two activations, or a sum over some of their axes, as a site; None where it is neither.

  Args:
    eqn: the equation.
    given: the tags of its operands.
    place: where it stands.
  """
  kind, avals = eqn.primitive.name, [atom.aval for atom in eqn.invars]
  kind = ADD if kind == 'add_any' else kind
  if kind not in KINDS or not all(tag.data for tag in given):
    return None
  shape = avals[0].shape
  floats = all(jnp.issubdtype(aval.dtype, jnp.floating) and aval.dtype.itemsize > 1 for aval in avals)
  if not floats or len(shape) < 2 or any(aval.shape != shape for aval in avals):
    return None
  if kind == SUM and 0 in eqn.params['axes']:  # a statistic of the batch
    return None
  nothing: frozenset[str] = frozenset()
  return Site(
    name='',
    kind=kind,
    side=1,
    why_not=place.barred,
    stack=(),
    lengths=(),
    flops=math.prod(shape) * place.trips,
    shape=shape[1:],
    summed=(),
    paths=nothing,
    weights=nothing,
    custom=place.custom,
    weighs=False,
  )


def inlined(closed: Any) -> Any:
  """Returns a program with its inner jits written out, so that what follows a contraction stands beside it.

  Args:
    closed: a closed jaxpr.
  """

  def flat(*args: Any) -> list[Any]:
    return _evaluated(closed, args)

  return jax.make_jaxpr(flat)(*(var.aval for var in closed.jaxpr.invars))


def _evaluated(jaxpr: Any, args: Sequence[Any]) -> list[Any]:
  bare, consts = walk.opened(jaxpr)
  env: dict[Any, Any] = dict(zip([*bare.constvars, *bare.invars], [*consts, *args], strict=True))
  for eqn in bare.eqns:
    operands = [atom.val if hasattr(atom, 'val') else env[atom] for atom in eqn.invars]
    scope = str(eqn.source_info.name_stack)
    with eqn.ctx.manager, jax.named_scope(scope) if scope else jax.named_scope(''):
      if eqn.primitive.name in ('jit', 'pjit', 'closed_call', 'core_call') and not _pinned(eqn):
        results = _evaluated(eqn.params[walk.CALLS[eqn.primitive.name]], operands)
      else:
        results = eqn.primitive.bind(*operands, **eqn.primitive.get_bind_params(eqn.params))
        results = list(results) if eqn.primitive.multiple_results else [results]
    env.update(zip(eqn.outvars, results, strict=True))
  return [jnp.asarray(atom.val, atom.aval.dtype) if hasattr(atom, 'val') else env[atom] for atom in bare.outvars]


def _pinned(eqn: Any) -> bool:
  """Whether an inner jit asks for shardings or is kept as a call, and so stays one."""
  pins = (*eqn.params.get('in_shardings', ()), *eqn.params.get('out_shardings', ()))
  return any(isinstance(one, jax.sharding.Sharding) for one in pins) or eqn.params.get('name') == 'jaxlite_cpu_held'


class Clip(NamedTuple):
  """An operation that bounds its operand."""

  low: float
  high: float


def clip_of(eqn: Any) -> Clip | None:
  """Returns the bounds that an equation puts on its one operand that is no number, as a ReLU; None where it has none.

  >>> closed = jax.make_jaxpr(jax.nn.relu6)(jnp.ones(2))
  >>> clip_of(closed.jaxpr.eqns[-1])
  Clip(low=0.0, high=6.0)
  """
  kind = eqn.primitive.name
  if kind in ('max', 'min'):
    numbers = [_number(atom) for atom in eqn.invars]
    known = [one for one in numbers if one is not None]
    if len(known) != 1:
      return None
    return Clip(known[0], math.inf) if kind == 'max' else Clip(-math.inf, known[0])
  if kind == 'clamp':
    low, high = _number(eqn.invars[0]), _number(eqn.invars[2])
    return None if low is None or high is None else Clip(low, high)
  if kind in ('jit', 'pjit', 'custom_jvp_call') and len(eqn.outvars) == 1:
    found = Clip(-math.inf, math.inf)
    bare, _ = walk.opened(eqn.params[walk.CALLS[kind]])
    last = None
    for inner in bare.eqns:
      one = clip_of(inner)
      if one is None or (last is not None and last not in inner.invars):
        return None
      found = Clip(max(found.low, one.low), min(found.high, one.high))
      last = inner.outvars[0]
    return found if last is not None and bare.outvars == [last] and found.low <= found.high else None
  return None


def _number(atom: Any) -> float | None:
  if hasattr(atom, 'val') and getattr(atom.val, 'size', 1) == 1:
    return float(atom.val)
  return None


def is_move(eqn: Any) -> bool:
  """Tells whether an equation moves values and computes none: a reshape, a max-pool, a value that is written out."""
  kind = eqn.primitive.name
  if kind == 'pad':
    return _number(eqn.invars[1]) == 0
  if kind in MOVES:
    return True
  if kind not in ('custom_jvp_call', 'cond', 'jit', 'pjit') or len(eqn.outvars) != 1:
    return False
  inside = {one.primitive.name for one in walk.equations(eqn.params[walk.CALLS[kind]])} if kind in walk.CALLS else set()
  if kind == 'cond':
    inside = {one.primitive.name for body in walk.bodies(eqn) for one in walk.equations(body)}
  same = [atom.aval for atom in eqn.invars if getattr(atom.aval, 'shape', ()) == eqn.outvars[0].aval.shape]
  if inside <= _HELD and 'bitcast_convert_type' in inside and same:
    return True
  return kind != 'cond' and bool(inside & {'slice', 'reduce_window_max'}) and inside <= _POOL


def moved(eqn: Any) -> list[Any]:
  """Returns the operands that a move moves: of a pad not the number that it pads with."""
  return [atom for atom in eqn.invars[: 1 if eqn.primitive.name == 'pad' else None] if not hasattr(atom, 'val')]


class Reading(NamedTuple):
  """What is known of a program in evaluation.

  Attributes:
    live: of every body, by its id, the values that depend on inputs.
    names: the joins whose operands integers can make.
  """

  live: dict[int, set[Any]]
  names: frozenset[str]


def read(closed: Any, plan: Plan, live: Sequence[bool]) -> Reading:
  """Reads a program.

  Args:
    closed: the jaxpr.
    plan: of it, its joins among the sites.
    live: for each of its inputs, whether it is one of the network's.
  """
  found: dict[int, set[Any]] = {}
  names: set[str] = set()
  _read(closed, plan, live, live, found, names)
  return Reading(found, frozenset(names))


def _read(
  jaxpr: Any, plan: Plan, live: Sequence[bool], whole: Sequence[bool], found: dict[int, set[Any]], names: set[str]
) -> tuple[list[bool], list[bool]]:
  """Which results are live, and which whole: made by sums of products, by what moves, bounds or adds such."""
  bare, _ = walk.opened(jaxpr)
  alive = found.setdefault(id(bare), set())
  alive.update(var for var, one in zip(bare.invars, live, strict=True) if one)
  made = {
    var for var, one in zip(bare.invars, whole, strict=True) if one and jnp.issubdtype(var.aval.dtype, jnp.floating)
  }
  totals: set[Any] = set()  # sums over axes, which a number makes means

  def lives(atom: Any) -> bool:
    return not hasattr(atom, 'val') and atom in alive

  for index, eqn in enumerate(bare.eqns):
    inputs = [atom for atom in eqn.invars if lives(atom)]
    inner, site = plan.inner.get(index), plan.sites.get(index)
    if inner and not (is_move(eqn) or clip_of(eqn)):
      for var, (is_live, is_whole) in zip(eqn.outvars, _inside(eqn, inner, lives, made, found, names), strict=True):
        alive.update([var] if is_live else [])
        made.update([var] if is_whole else [])
      continue
    if not inputs:
      continue
    alive.update(eqn.outvars)
    every = all(atom in made for atom in inputs)
    kind = eqn.primitive.name
    if site is not None and site.kind in KINDS and len(inputs) == len(eqn.invars):
      if every and not site.why_not:
        names.add(site.name)
        (totals if site.kind == SUM else made).update(eqn.outvars)
    elif (
      (site is not None and site.kind not in KINDS)
      or (every and (is_move(eqn) or clip_of(eqn) is not None or (kind in BY_NUMBERS and len(inputs) == 1)))
      or (kind == 'gather' and not lives(eqn.invars[0]))
      or (kind in ('mul', 'div') and len(inputs) == 1 and inputs[0] in totals)
    ):
      made.update(eqn.outvars)
    elif is_move(eqn) and all(atom in totals for atom in inputs):
      totals.update(eqn.outvars)
  outs = list(bare.outvars)
  return [lives(atom) for atom in outs], [not hasattr(atom, 'val') and atom in made for atom in outs]


def _inside(
  eqn: Any,
  plans: Sequence[Plan],
  lives: Callable[[Any], bool],
  made: set[Any],
  found: dict[int, set[Any]],
  names: set[str],
) -> Iterator[tuple[bool, bool]]:
  """Results of an equation with bodies, each body given what it is given."""
  kind, params = eqn.primitive.name, eqn.params
  live = [lives(atom) for atom in eqn.invars]
  whole = [not hasattr(atom, 'val') and atom in made for atom in eqn.invars]
  if kind == 'scan':
    consts, carries = walk.scan_layout(eqn)
    for _ in range(2):
      outs, wholes = _read(params['jaxpr'], plans[0], live, whole, found, names)
      live[consts : consts + carries] = [a or b for a, b in zip(live[consts:], outs[:carries], strict=False)]
      whole[consts : consts + carries] = [a and b for a, b in zip(whole[consts:], wholes[:carries], strict=False)]
    return zip(outs, wholes, strict=True)
  if kind == 'while':
    skipped = params['cond_nconsts']
    outs, wholes = _read(params['body_jaxpr'], plans[1], live[skipped:], whole[skipped:], found, names)
    return zip(outs, wholes, strict=True)
  if kind == 'cond':
    several = [
      _read(branch, plan, live[1:], whole[1:], found, names)
      for branch, plan in zip(params['branches'], plans, strict=True)
    ]
    return zip(
      [any(each) for each in zip(*(one[0] for one in several), strict=True)],
      [all(each) for each in zip(*(one[1] for one in several), strict=True)],
      strict=True,
    )
  return zip(*_read(params[walk.CALLS[kind]], plans[0], live, whole, found, names), strict=True)
