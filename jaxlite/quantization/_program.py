"""A traced program and what is to be quantized in it: sites, bits by rule, the rewriting.

Between the public forms (`_quantize.py`, `_qat.py`, `_lsq.py`, `_ptq.py`) and the arithmetic of one contraction
(`_product.py`).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxlite import trees
from jaxlite.graph import provenance, rewrite, sharding
from jaxlite.quantization import _numerics as numerics
from jaxlite.quantization import _product as products
from jaxlite.quantization._multiply import Product
from jaxlite.quantization._numerics import Bits, check_bits
from jaxlite.quantization._points import Points
from jaxlite.quantization._points import body as every_body
from jaxlite.quantization._tracing import Passes as Passes
from jaxlite.quantization._tracing import Program as Program
from jaxlite.quantization._tracing import Rules as Rules
from jaxlite.quantization._tracing import bits_of as bits_of
from jaxlite.quantization._tracing import trace as trace
from jaxlite.quantization._tracing import trace_model as trace_model
from jaxlite.quantization._tracing import trace_training as trace_training

Ranges = Mapping[str, numerics.Range]
Chosen = dict[str, Bits | None]
# (site, product, activation, weight, what it reads or None, mesh axes) -> (result, record)
Visit = Callable[[provenance.Site, Product, jax.Array, jax.Array, Any, tuple[str, ...]], tuple[jax.Array, Any]]
Choose = Callable[[numerics.Range | None, numerics.Range], numerics.Range]


class Combine(NamedTuple):
  """How what sites record comes together: over branches, iterations and shards, in any order.

  Attributes:
    merge: (record, record) -> record.
    fold: record with a leading axis -> record.
    absent: (site, lengths of leading axes) -> the record that merges as nothing.
    across: (record, mesh axes) -> record.
  """

  merge: Callable[[Any, Any], Any]
  fold: Callable[[Any], Any]
  absent: Callable[[provenance.Site, tuple[int, ...]], Any]
  across: Callable[[Any, tuple[str, ...]], Any]


class Join(NamedTuple):
  """What stands at a site that is no contraction: a sum of two activations, or of one over axes."""

  eqn: Any

  def bind(self, x: Any, w: Any) -> Any:
    """Returns the float result."""
    return rewrite.bind(self.eqn, [x, w] if len(self.eqn.invars) == 2 else [x])[0]


def range_shape(site: provenance.Site, lengths: tuple[int, ...] | None = None) -> tuple[int, ...]:
  """Returns the shape of either end of a site's range: one per layer of a scan; of two activations, one each."""
  lengths = site.lengths if lengths is None else lengths
  return (*lengths, 2) if site.paired else lengths


def _across(span: numerics.Range, axes: tuple[str, ...]) -> numerics.Range:
  return lax.pmin(span[0], axes), lax.pmax(span[1], axes)


RANGES = Combine(
  merge=numerics.merge,
  fold=lambda span: (jnp.min(span[0], axis=0, initial=jnp.inf), jnp.max(span[1], axis=0, initial=-jnp.inf)),
  absent=lambda site, lengths: numerics.unseen(range_shape(site, lengths)),
  across=_across,
)
NOTHING = Combine(merge=lambda one, other: (), fold=lambda _: (), absent=lambda *_: (), across=lambda record, _: record)


def bits_by_site(plan: provenance.Plan, bits: Bits, rules: Rules | None, what: str) -> Chosen:
  """Decides the bits of every site; None keeps it float.

  Args:
    plan: of the program.
    bits: where no rule speaks.
    rules: by regular expression on the site's name; the first that matches decides.
    what: names the asking part in an error.
  """
  shards = {site.name: site for site in plan.all_sites() if site.shards and site.name}  # `whole` refuses them
  return bits_of_sites({**shards, **plan.weight_sites()}, bits, rules, what)


def bits_of_sites(sites: Mapping[str, provenance.Site], bits: Bits, rules: Rules | None, what: str) -> Chosen:
  """As `bits_by_site`, of sites by name."""
  for pattern, value in (rules or {}).items():
    if value is not None:
      check_bits(value, f'{what}: rule {pattern!r}')

  def decide(name: str, site: provenance.Site) -> Bits | None:
    own = bits_of(name, bits, rules, what)
    return None if own is not None and own.activation is None and (site.paired or site.joins) else own

  return {name: decide(name, site) for name, site in sites.items()}


def reached(chosen: Chosen, sites: Mapping[str, provenance.Site], names: Collection[str]) -> Chosen:
  """Returns the bits of sites, without those of sums of activations that are not among `names`."""
  return {
    name: None if name in sites and sites[name].joins and name not in names else own for name, own in chosen.items()
  }


def check(plan: provenance.Plan, bits: Bits, rules: Rules | None, what: str, others: Collection[str] = ()) -> Chosen:
  """Decides the bits of every site, as `bits_by_site`, and refuses what would silently do nothing, or do it twice.

  Args:
    plan: of the program.
    bits: where no rule speaks.
    rules: by regular expression on the site's name.
    what: names the asking part in an error.
    others: sites of another pass, which rules may name too.

  Raises:
    ValueError: nothing can be quantized; a rule matches nothing or asks for what cannot be; a weight that is
      integers already.
  """
  sites = plan.weight_sites()
  left = [site for site in plan.all_sites() if site.why_not]
  cut = sorted({site.name for site in left if site.shards})
  if not sites and not cut:
    reasons = '; '.join(sorted({f'{site.name or site.kind}: {site.why_not}' for site in left})[:4])
    raise ValueError(
      f'{what} finds no contraction of a parameter with an activation ({reasons or "no contraction at all"}):'
      ' pass the weights as arguments, not through a closure, or leave the part out'
    )
  if not isinstance(rules or {}, Mapping):
    raise TypeError(f'{what}: rules are {{regular expression: bits, or None to keep it float}}; got {rules!r}')
  for pattern, value in (rules or {}).items():
    try:
      trees.select([*sites, *others, *cut * (value is None)], pattern, what=f'{what}: rule')
    except ValueError:
      for site in left:
        if _matches(pattern, site.name):
          raise ValueError(f'{what}: rule {pattern!r} names {site.name}, which stays float: {site.why_not}') from None
      raise
  chosen = bits_by_site(plan, bits, rules, what)
  integers = frozenset().union(*(paths for name, paths in marks(plan) if name.startswith(numerics.MARK)))
  for name, site in sites.items():
    if chosen[name] is not None and site.paths & integers:
      raise ValueError(
        f'{what}: {name} is quantized already by another part: keep it float in one of them, rules={{{name!r}: None}}'
      )
  return chosen


def whole(plan: provenance.Plan, bits: Mapping[str, Bits | None], what: str) -> None:
  """Refuses a weight that is to be quantized where only a shard of it is seen.

  Args:
    plan: of the program.
    bits: by site.
    what: names the asking part in an error.

  Raises:
    ValueError: there is one.
  """
  if sharding.unchecked() and any(own is not None for own in bits.values()):
    raise ValueError(
      f'{what}: a scale belongs to a whole weight, and inside a shard_map with check_vma=False, or a pmap, none can be '
      'told from a shard: use jax.shard_map with check_vma=True, its default'
    )
  for site in plan.all_sites():
    if site.shards and bits.get(site.name) is not None:
      raise ValueError(
        f'{what}: a scale belongs to a whole weight, and in a shard_map {site.name} is {list(site.shape)}, what one '
        f'shard along {", ".join(sorted(site.shards))} has: gather it (jax.lax.all_gather), leave sharding to jax.jit, '
        f'or keep it float, rules={{{f"^{re.escape(site.name)}$"!r}: None}}'
      )


def marks(plan: provenance.Plan) -> list[tuple[str, frozenset[str]]]:
  """Returns (name, paths) of every `checkpoint_name` on a weight, at any depth."""
  return [mark for inner in plan.walk() for mark in inner.marks]


def _matches(pattern: str, name: str) -> bool:
  if not name:
    return False
  try:
    return re.search(pattern, name) is not None
  except re.error:
    return False


def run(
  program: Program,
  leaves: Sequence[Any],
  bits: Mapping[str, Bits | None],
  visit: Visit,
  combine: Combine = NOTHING,
  reads: Mapping[str, Any] | None = None,
  points: Points | None = None,
) -> tuple[Any, dict[str, Any]]:
  """Runs a program with other arithmetic at its sites.

  Args:
    program: what was traced.
    leaves: its inputs, flat.
    bits: by site; None leaves it as it is.
    visit: what is done at a site.
    combine: of what visits record.
    reads: by site, what its visit reads, with the lengths of the enclosing scans as leading axes; may lack a site.
    points: rounds every value where it is made, in place of what `visit` does at a site.

  Returns:
    (results, the records by site).

  Raises:
    ValueError: of a weight that is to be quantized only a shard is seen.
  """
  whole(program.plan, bits, 'quantization')

  def at(site: provenance.Site, eqn: Any, operands: Sequence[Any], read: Any, axes: tuple[str, ...]) -> Any:
    if site.joins:
      return visit(site, Join(eqn), operands[0], operands[-1], read, axes)
    product = Product(eqn.primitive, eqn.params, site.side, eqn.outvars[0].aval.dtype)
    return visit(site, product, operands[1 - site.side], operands[site.side], read, axes)

  body = None if points is None else functools.partial(every_body, points)
  rules = rewrite.Rules(at, lambda site: bits.get(site.name) is not None, *combine, body=body)
  known = {name: read for name, read in (reads or {}).items() if bits.get(name) is not None}
  results, records = rewrite.run(program.jaxpr, program.plan, leaves, rules, known)
  return jax.tree.unflatten(program.out_tree, results), records


def seen(site: provenance.Site, x: jax.Array, w: jax.Array, axes: tuple[str, ...]) -> numerics.Range:
  """Returns the range of a site's activation, or of both: of the whole tensor, not of this shard."""
  span = numerics.observe(x)
  if site.paired:
    span = jax.tree.map(lambda *ends: jnp.stack(ends), span, numerics.observe(w))
  return _across(span, axes) if axes else span


def observing(site: provenance.Site, product: Product, x: Any, w: Any, read: Any, axes: Any) -> Any:
  """A Visit that computes in float and records the activation's range."""
  del read
  return product.bind(x, w), seen(site, x, w, axes)


def in_integers(
  bits: Mapping[str, Bits | None],
  choose: Choose,
  *,
  real: bool = False,
  active: jax.Array | None = None,
  observe: bool = True,
) -> Visit:
  """Returns the Visit that quantizes.

  Args:
    bits: by site.
    choose: (stored range or None, observed range) -> the range to use.
    real: whether to execute int8 operands.
    active: bool[] or None; False is float.
    observe: whether to record the activation's range (combine by `RANGES`); else stored ranges are used as they are,
      no activation is looked through, and there is no record (`NOTHING`).
  """

  def visit(site: provenance.Site, product: Product, x: Any, w: Any, stored: Any, axes: Any) -> Any:
    own = bits[site.name]
    if own.activation is None:
      out = products.weight_quantized(product, x, w, bits=own, active=active)
      return out, numerics.unseen() if observe else ()
    span = seen(site, x, w, axes) if observe or stored is None else stored
    used = choose(stored, span) if observe else span
    multiply = products.pair_quantized if site.paired else products.quantized
    return multiply(product, x, w, used, bits=own, real=real, active=active), span if observe else ()

  return visit


def stored_or(stored: numerics.Range | None, span: numerics.Range) -> numerics.Range:
  """Takes the stored range where it holds anything, else that of the call."""
  if stored is None:
    return span
  known = numerics.is_seen(stored)
  return jnp.where(known, stored[0], span[0]), jnp.where(known, stored[1], span[1])
