"""A traced program and what is to be quantized in it: sites, bits by rule, the rewriting.

Between the public forms (`quantize.py`) and the arithmetic of one contraction (`quant_numerics.py`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxlite import trees
from jaxlite.graph import provenance, rewrite
from jaxlite.transforms import quant_numerics as numerics
from jaxlite.transforms.quant_numerics import check_bits

Rules = Mapping[str, int | None]
Ranges = Mapping[str, numerics.Range]
Choose = Callable[[numerics.Range | None, numerics.Range], numerics.Range]


class Program(NamedTuple):
  """A function at some shapes.

  Attributes:
    jaxpr: closed.
    plan: read from it.
    out_tree: the structure of its results.
  """

  jaxpr: Any
  plan: provenance.Plan
  out_tree: Any


def trace(fn: Callable[..., Any], args: Sequence[Any], tags: Sequence[provenance.Tag]) -> Program:
  """Traces and reads a function.

  Args:
    fn: takes `args`.
    args: pytrees of arrays.
    tags: one a leaf of `args`, in order.
  """
  jaxpr, shapes = jax.make_jaxpr(fn, return_shape=True)(*args)
  return Program(jaxpr, provenance.read(jaxpr, tags), jax.tree.structure(shapes))


def bits_by_site(plan: provenance.Plan, bits: int, rules: Rules | None) -> dict[str, int | None]:
  """Decides the bits of every site; None keeps it float.

  Args:
    plan: of the program.
    bits: where no rule speaks.
    rules: by regular expression on the site's name; the first that matches decides.
  """

  def decide(name: str) -> int | None:
    return next((value for pattern, value in (rules or {}).items() if re.search(pattern, name)), bits)

  return {name: decide(name) for name in plan.weight_sites()}


def check(plan: provenance.Plan, rules: Rules | None, what: str) -> None:
  """Raises ValueError where nothing can be quantized, or a rule matches nothing or asks for what cannot be.

  Args:
    plan: of the program.
    rules: by regular expression on the site's name.
    what: names the asking part in an error.
  """
  sites = plan.weight_sites()
  left = [site for site in plan.all_sites() if site.why_not]
  if not sites:
    reasons = '; '.join(sorted({f'{site.name or site.kind}: {site.why_not}' for site in left})[:4])
    raise ValueError(
      f'{what} finds no contraction of a parameter with an activation ({reasons or "no contraction at all"}):'
      ' pass the weights as arguments, not through a closure, or leave the part out'
    )
  for pattern, value in (rules or {}).items():
    if value is not None:
      check_bits(value, f'{what}: rule {pattern!r}')
    try:
      trees.select(sites, pattern, what=f'{what}: rule')
    except ValueError:
      for site in left:
        if _matches(pattern, site.name):
          raise ValueError(f'{what}: rule {pattern!r} names {site.name}, which stays float: {site.why_not}') from None
      raise


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
  bits: Mapping[str, int | None],
  choose: Choose,
  *,
  ranges: Ranges | None = None,
  real: bool = False,
  active: jax.Array | None = None,
  floating: bool = False,
) -> tuple[Any, dict[str, numerics.Range]]:
  """Runs a program with its sites in integers.

  Args:
    program: what was traced.
    leaves: its inputs, flat.
    bits: by site; None keeps it float.
    choose: (stored range or None, observed range) -> the range to use.
    ranges: by site, float32[*lengths] each end; may lack a site.
    real: whether to execute int8 operands.
    active: bool[] or None; False is float.
    floating: whether only to observe.

  Returns:
    (results, the ranges observed by site).
  """

  def visit(site: provenance.Site, eqn: Any, operands: Sequence[Any], stored: Any, axes: tuple[str, ...]) -> Any:
    side = site.side
    x, w = operands[1 - side], operands[side]
    seen = numerics.observe(x)
    if axes:  # of the whole tensor, not of this shard
      seen = across(seen, axes)
    if floating:
      return eqn.primitive.bind(*operands, **eqn.params), seen
    product = numerics.Product(eqn.primitive, eqn.params, side, eqn.outvars[0].aval.dtype)
    span = choose(stored, seen)
    return numerics.quantized(product, x, w, span, bits=bits[site.name], real=real, active=active), seen

  def across(span: numerics.Range, axes: tuple[str, ...]) -> numerics.Range:
    return lax.pmin(span[0], axes), lax.pmax(span[1], axes)

  rules = rewrite.Rules(
    visit=visit,
    wanted=lambda site: bits.get(site.name) is not None,
    merge=numerics.merge,
    fold=lambda span: (jnp.min(span[0], axis=0, initial=jnp.inf), jnp.max(span[1], axis=0, initial=-jnp.inf)),
    absent=numerics.unseen,
    across=across,
  )
  reads = {name: span for name, span in (ranges or {}).items() if bits.get(name) is not None}
  results, seen = rewrite.run(program.jaxpr, program.plan, leaves, rules, reads)
  return jax.tree.unflatten(program.out_tree, results), seen
