"""Points on every value: a program whose activations stand on grids from one contraction to the next (`every=True`).

A value is rounded where it is made, once for all that read it: what a contraction multiplies, both operands of an
addition, what a mean or a norm sums; before it is moved or pooled, and after bias, norm and ReLU. In evaluation what
leaves a contraction, an addition or a mean is one product of its integers (`_rule.py`), with the norm and bias that
follow in scale and bias, so that it shows the integers of deployment. Gradients are those of the float program.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxlite.graph import joins, provenance, rewrite, walk
from jaxlite.graph.contractions import CONTRACTIONS, operands_of
from jaxlite.graph.joins import Clip
from jaxlite.quantization import _numerics as numerics
from jaxlite.quantization import _product as products
from jaxlite.quantization import _rule
from jaxlite.quantization import _totals as totals
from jaxlite.quantization._multiply import Product
from jaxlite.quantization._numerics import Bits, Grid
from jaxlite.quantization._totals import OPEN, Total

_SAME = frozenset(['copy', 'copy_p', 'stop_gradient', 'name', 'sharding_constraint', 'pvary', 'pcast'])
Ask = tuple[provenance.Site, int]  # who first reads a value, and as which operand


class OnGrid(NamedTuple):
  """Said of a value that was rounded."""

  grid: Grid
  seen: Any  # the range that was observed before, or ()


class Points(NamedTuple):
  """How a program is run.

  Attributes:
    bits: by site; None keeps it float.
    choose: (stored range or None, observed range) -> the range to use.
    carried: by a scan's body's id, how many constants and carries it has; grows.
    real: whether to execute int8 operands.
    active: bool[] or None; False is float.
    observe: whether ranges are observed, and recorded.
    live: by a body's id, the values that depend on inputs; None where the rule of integers is not followed.
  """

  bits: Mapping[str, Bits | None]
  choose: Callable[..., numerics.Range]
  carried: dict[int, tuple[int, int]]
  real: bool = False
  active: jax.Array | None = None
  observe: bool = True
  live: Mapping[int, set[Any]] | None = None


def body(
  points: Points, runner: rewrite.Runner, jaxpr: Any, plan: provenance.Plan, args: Sequence[Any], reads: Any
) -> tuple[list[Any], dict[str, Any]]:
  """Runs a body, for `rewrite.Rules.body`."""
  bare, consts = walk.opened(jaxpr)
  env = dict(zip([*bare.constvars, *bare.invars], [*consts, *args], strict=True))
  live = None if points.live is None else points.live.get(id(bare), set())
  here = _Body(points, runner, reads, env, {}, _asked(points, bare, plan), live, {}, {})
  for var in bare.invars:
    here.settle(var)
  for index, eqn in enumerate(bare.eqns):
    scope = str(eqn.source_info.name_stack)
    with eqn.ctx.manager, jax.named_scope(scope) if scope else contextlib.nullcontext():
      here.equation(eqn, index, plan)
      for var in eqn.outvars:
        here.settle(var)
  return [rewrite.as_typed(here.value(atom), atom.aval) for atom in bare.outvars], here.records


def _wanted(points: Points, site: provenance.Site | None) -> bool:
  if site is None or site.why_not:
    return False
  own = points.bits.get(site.name)
  return own is not None and own.activation is not None


def _asked(points: Points, bare: Any, plan: provenance.Plan) -> dict[Any, Ask]:
  """The values that are read by a site, be they moved first, and the first that reads them."""
  asks: dict[Any, Ask] = {}
  for index, eqn in enumerate(bare.eqns):
    site = plan.sites.get(index)
    if site is not None and _wanted(points, site):
      for position, atom in _operands(eqn, site):
        if not hasattr(atom, 'val'):
          asks.setdefault(atom, (site, position))
    if eqn.primitive.name == 'scan' and index in plan.inner:
      (inner,), (consts, carries) = plan.inner[index], walk.scan_layout(eqn)
      inside = walk.opened(eqn.params['jaxpr'])[0]
      points.carried[id(inside)] = consts, carries
      for atom, ask in zip(eqn.invars[consts : consts + carries], _carries(points, inside, inner), strict=True):
        if ask is not None and not hasattr(atom, 'val'):
          asks.setdefault(atom, ask)
  if id(bare) in points.carried:
    consts, carries = points.carried[id(bare)]
    for atom, var in zip(bare.outvars[:carries], bare.invars[consts : consts + carries], strict=True):
      if var in asks and plan.depth - 1 not in asks[var][0].stack and not hasattr(atom, 'val'):
        asks.setdefault(atom, asks[var])
  for eqn in reversed(bare.eqns):
    if len(eqn.outvars) == 1 and eqn.outvars[0] in asks and joins.is_move(eqn):
      for atom in joins.moved(eqn):
        if jnp.issubdtype(atom.aval.dtype, jnp.floating):
          asks.setdefault(atom, asks[eqn.outvars[0]])
  return asks


def _carries(points: Points, bare: Any, plan: provenance.Plan) -> list[Ask | None]:
  """Who first reads each carry of a scan, where all of its iterations read it on one grid."""
  consts, carries = points.carried[id(bare)]
  asks = _asked(points, bare, plan)
  found = [asks.get(var) for var in bare.invars[consts : consts + carries]]
  return [None if ask is None or plan.depth - 1 in ask[0].stack else ask for ask in found]


def _operands(eqn: Any, site: provenance.Site) -> list[tuple[int, Any]]:
  """The activations that a site reads, by their place in its range."""
  if site.kind == joins.SUM:
    return [(0, eqn.invars[0])]
  if site.paired:
    return list(enumerate(eqn.invars[:2]))
  return [(0, eqn.invars[operands_of(eqn)[1 - (site.side or 0)]])]


class _Body(NamedTuple):
  points: Points
  runner: rewrite.Runner
  reads: Mapping[str, Any]
  env: dict[Any, Any]  # values, as floats
  notes: dict[Any, Any]  # what is known of them
  asks: dict[Any, Ask]
  live: set[Any] | None
  records: dict[str, Any]
  narrow: dict[Any, Any]  # of values that were broadcast, what they were before, with axes of size 1

  def raw(self, atom: Any) -> Any:
    return atom.val if hasattr(atom, 'val') else self.env[atom]

  def note(self, atom: Any) -> Any:
    return None if hasattr(atom, 'val') else self.notes.get(atom)

  def value(self, atom: Any) -> Any:
    """A value for who only knows floats: the integers' own, with the gradient of the float program."""
    found = self.note(atom)
    if not isinstance(found, Total):
      return self.raw(atom)
    self.env[atom] = rewrite.with_gradient_of([totals.real(found).astype(self.env[atom].dtype)], [self.env[atom]])[0]
    del self.notes[atom]
    return self.env[atom]

  def settle(self, var: Any) -> None:
    """Rounds a value that somebody asked for."""
    if var not in self.asks or isinstance(self.note(var), OnGrid) or not hasattr(var.aval, 'shape'):
      return
    points, (site, position), x = self.points, self.asks[var], self.env[var]
    own = points.bits[site.name]
    assert own is not None
    assert own.activation is not None
    axes = self.runner.axes if self.runner.collectives else ()
    stored = self.reads.get(site.name)
    if stored is not None and site.paired:
      stored = (stored[0][position], stored[1][position])
    seen: Any = ()
    if points.observe or stored is None:
      seen = numerics.observe(x)
      seen = (lax.pmin(seen[0], axes), lax.pmax(seen[1], axes)) if axes else seen
    used = points.choose(stored, seen) if points.observe else (seen if stored is None else stored)
    rounded, grid = products.on_grid(x, used, own.activation, points.active)
    found = self.notes.get(var)
    if isinstance(found, Total):
      whole = (totals.steps(found, grid) * grid.scale).astype(x.dtype)
      rounded = rewrite.with_gradient_of([whole], [rounded])[0]
    self.env[var], self.notes[var] = rounded, OnGrid(grid, seen if points.observe else ())

  def equation(self, eqn: Any, index: int, plan: provenance.Plan) -> None:
    site = plan.sites.get(index)
    if site is not None and _wanted(self.points, site):
      return self.site(eqn, site)
    inside = any(self.runner.wanted(one) for one in plan.inner.get(index, ()))
    contraction = site is not None and not site.joins
    if contraction or inside or not any(self.note(atom) for atom in eqn.invars):
      results, new = self.runner.equation(eqn, index, plan, [self.value(atom) for atom in eqn.invars], self.reads)
      self.records.update(new)
      self.env.update(zip(eqn.outvars, results, strict=True))
      if eqn.primitive.name == 'broadcast_in_dim' and len(eqn.invars) == 1 and not hasattr(eqn.invars[0], 'val'):
        sizes = dict(zip(eqn.params['broadcast_dimensions'], eqn.invars[0].aval.shape, strict=True))
        ones = [sizes.get(axis, 1) for axis in range(eqn.outvars[0].aval.ndim)]
        self.narrow[eqn.outvars[0]] = self.env[eqn.invars[0]].reshape(ones)
      return None
    found = self.followed(eqn)
    operands = [self.raw(atom) if found is not None else self.value(atom) for atom in eqn.invars]
    self.env.update(zip(eqn.outvars, rewrite.bind(eqn, operands), strict=True))
    if found is not None:
      self.notes[eqn.outvars[0]] = found
    return None

  def site(self, eqn: Any, site: provenance.Site) -> None:
    points, own = self.points, self.points.bits[site.name]
    assert own is not None
    given: list[Any] = [self.notes[atom] if not hasattr(atom, 'val') else None for _, atom in _operands(eqn, site)]
    out, found = eqn.outvars[0], None
    if site.kind in CONTRACTIONS and not site.paired:
      product = Product(eqn.primitive, eqn.params, site.side or 0, out.aval.dtype)
      x, w = (self.value(eqn.invars[operands_of(eqn)[side]]) for side in (1 - product.side, product.side))
      done = products.gridded(product, x, w, given[0].grid, bits=own, real=points.real, active=points.active)
      self.env[out] = done.out
      found = Total(done.sums, given[0].grid.scale, done.scale, spare=_rule.spare(own.weight))
    elif site.kind in CONTRACTIONS:
      product = Product(eqn.primitive, eqn.params, 1, out.aval.dtype)
      x, y = map(self.value, eqn.invars)
      self.env[out], sums = products.pair_gridded(
        product, x, y, *(one.grid for one in given), real=points.real, active=points.active
      )
      found = Total(sums, given[0].grid.scale, given[1].grid.scale.reshape((1,) * out.aval.ndim))
    else:
      (self.env[out],) = rewrite.bind(eqn, [self.value(atom) for atom in eqn.invars])
      found = self.total_of(eqn, site, given)
    if self.live is not None and found is not None and out.aval.dtype == jnp.float32 and points.active is None:
      self.notes[out] = found
    if points.observe:
      seen = [one.seen for one in given]
      self.records[site.name] = jax.tree.map(lambda *ends: jnp.stack(ends), *seen) if site.paired else seen[0]

  def total_of(self, eqn: Any, site: provenance.Site, given: Sequence[Any]) -> Total | None:
    """An addition, or a sum over axes, in integers."""
    whole = [
      lax.clamp(one.grid.low, numerics.to_steps(self.env[atom], one.grid.scale), one.grid.high).astype(jnp.int32)
      for atom, one in zip((atom for _, atom in _operands(eqn, site)), given, strict=True)
    ]
    if site.kind == joins.SUM:
      total = jnp.sum(whole[0], axis=tuple(eqn.params['axes']))
      return Total(total, given[0].grid.scale)
    a, b = (one.grid.scale for one in given)
    most = jnp.maximum(a, b)
    total = whole[0] * _rule.times(a, most) + whole[1] * _rule.times(b, most)
    return Total(total, most * np.float32(2.0**-_rule.ADD_BITS))

  # --- what follows a sum of integers --------------------------------------------------------------------------------

  def followed(self, eqn: Any) -> Any:
    """What is known of the result of an equation, by what is known of its operands; None where nothing is."""
    if len(eqn.outvars) != 1 or not hasattr(eqn.outvars[0].aval, 'dtype'):
      return None
    given = [self.note(atom) for atom in eqn.invars]
    same = eqn.outvars[0].aval.dtype == next(a for a, n in zip(eqn.invars, given, strict=True) if n).aval.dtype
    if joins.is_move(eqn) and same:
      return self.carried(eqn, [self.note(atom) for atom in joins.moved(eqn)])
    if not same or sum(one is not None for one in given) != 1:
      return None
    at = next(index for index, one in enumerate(given) if one is not None)
    found = given[at]
    if not isinstance(found, Total):
      return None
    bounds = joins.clip_of(eqn)
    if bounds is not None:
      low, high = max(found.clip.low, bounds.low), min(found.clip.high, bounds.high)
      return found._replace(clip=Clip(low, high)) if low <= 0 <= high else None
    if eqn.primitive.name in ('neg', *joins.BY_NUMBERS) and found.clip == OPEN:
      other = eqn.invars[1 - at] if len(eqn.invars) == 2 else None
      return self.scaled(eqn.primitive.name, found, other, at)
    return None

  def carried(self, eqn: Any, given: Sequence[Any]) -> Any:
    """Through what only moves values."""
    if not given or any(type(one) is not type(given[0]) or one is None for one in given):
      return None
    first = given[0]
    if isinstance(first, OnGrid):
      return first if all(one.grid is first.grid for one in given) else None
    if len(given) > 1 or eqn.primitive.name in ('pad', 'concatenate', 'broadcast_in_dim', 'rev'):
      return None
    shape, kind = eqn.outvars[0].aval.shape, eqn.primitive.name
    ndim = first.total.ndim
    each = [one for one in (first.scale, first.bias) if one is not None]
    if kind in _SAME:
      turned = each
    elif kind == 'transpose':
      turned = [one.transpose(eqn.params['permutation']) for one in each]
    elif kind in ('reshape', 'squeeze', 'expand_dims'):
      turned = [totals.reshaped(one, first.total.shape, shape) for one in each]
    elif len(shape) == ndim and not first.turned and all(one.shape[-1] in (1, shape[-1]) for one in each):
      turned = each  # a pool, or a part along other axes: the order is that of the sums while no factor turns it
      if any(size not in (1, new) for one in each for size, new in zip(one.shape, shape, strict=True)):
        return None
    else:
      return None
    if any(one is None for one in turned):
      return None
    rest = iter(turned)
    scale = None if first.scale is None else next(rest)
    bias = None if first.bias is None else next(rest)
    dtype = first.total.dtype
    operands = [first.total.astype(jnp.float32) if self.note(atom) else self.raw(atom) for atom in eqn.invars]
    (total,) = rewrite.bind(eqn, operands)
    return first._replace(total=total.astype(dtype), scale=scale, bias=bias)

  def scaled(self, kind: str, found: Total, other: Any, at: int) -> Total | None:
    """Added to, subtracted from, multiplied or divided by what does not depend on inputs."""
    assert self.live is not None
    scale, bias = found.scale, found.bias
    if kind == 'neg':
      negated = jnp.asarray(-1.0 if scale is None else -scale)
      return found._replace(scale=negated, bias=None if bias is None else -bias, turned=True)
    if not hasattr(other, 'val') and other in self.live:
      return None
    if scale is None and kind in ('mul', 'div'):  # of a sum over axes: a mean
      return self.mean(kind, found, other, at)
    if scale is None:
      return None
    number = self.compact(other, found)
    if number is None or (kind == 'div' and at == 1):
      return None
    if kind in ('mul', 'div'):
      by = jnp.multiply if kind == 'mul' else jnp.divide
      bias = None if bias is None else _rule.alone(by(bias, number))
      return found._replace(scale=_rule.alone(by(scale, number)), bias=bias, turned=True)
    bias = jnp.zeros((), jnp.float32) if bias is None else bias
    if kind == 'add':
      return found._replace(bias=_rule.alone(bias + number))
    if at == 0:
      return found._replace(bias=_rule.alone(bias - number))
    return found._replace(scale=-scale, bias=_rule.alone(number - bias), turned=True)

  def mean(self, kind: str, found: Total, other: Any, at: int) -> Total | None:
    number = float(other.val) if hasattr(other, 'val') and np.size(other.val) == 1 else 0.0
    if found.terms != 1 or (at == 1 and kind == 'div') or number <= 0:
      return None
    count = round(number if kind == 'div' else 1 / number)
    if count < 1 or number != (count if kind == 'div' else float(np.float32(1 / count))):
      return None
    return found._replace(terms=count)

  def compact(self, other: Any, found: Total) -> jax.Array | None:
    """A number for each output, with size 1 along all other axes; None where it differs along those."""
    if hasattr(other, 'val'):
      return jnp.asarray(other.val, jnp.float32) if np.size(other.val) == 1 else None
    value, shape = self.env[other], found.total.shape
    if value.dtype != jnp.float32:
      return None
    assert found.scale is not None
    sizes = found.scale.shape
    if not value.ndim:
      return value
    value = self.narrow.get(other, value)
    if value.ndim != len(shape) or any(size not in (1, most) for size, most in zip(value.shape, sizes, strict=True)):
      return None
    return value
