"""Equations of a program exchanged for faster ones on CPU, at any depth, for that platform alone.

The program is traced, its jaxpr edited, and what was edited is bound again: an equation that is exchanged keeps the
types of its operands and results, so that nothing around it has to be emitted anew, and control flow, sharding, scopes
and effects stay what they were. The exchange is a choice by platform inside one call, made at lowering: a program for
GPU or TPU holds XLA's own equation and nothing else. All of it happens after differentiation; what comes out may be
differentiated, batched, partitioned and exported again.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
from jax.extend import core

from jaxlite.cpu import convolution, dense, pool
from jaxlite.cpu.sink import sunk
from jaxlite.cpu.site import XLA_FORM, Site, Where
from jaxlite.graph import walk
from jaxlite.graph.effects import without_effects
from jaxlite.host.gc_pause import paused

MARK = 'jaxlite_cpu'  # the name of every function that stands in: a lowered program shows it
Choices = Mapping[str, str]  # by a site's key, the name of a form

_BODIES = {
  **{name: (param,) for name, param in walk.CALLS.items()},
  'scan': ('jaxpr',),
  'while': ('cond_jaxpr', 'body_jaxpr'),
  'cond': ('branches',),
}


def for_cpu(fn: Callable[..., Any], choices: Choices | None = None) -> Callable[..., Any]:
  """Returns the same function, faster on CPU: other forms of max-pools, convolutions and large matrix products.

  Apply it outermost, to a whole train step rather than to its loss: what is slow is found in the program after
  differentiation. Other platforms get the program as it was.

  Args:
    fn: any function of pytrees of arrays.
    choices: by the key of a site, the name of its form, as `autotune` measures them; a site that is not named takes the
      form that its shape suggests. Names that do not fit are an error.

  Returns:
    A function of the same arguments, compiled when it is called; it can be jitted, differentiated and batched.

  Raises:
    TypeError: it is no function.
    ValueError: when called, where a choice names no form of its site, or the function changes its arguments (see
      `without_effects`).

  >>> import jax.numpy as jnp
  >>> pool = lambda x: jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (2,), (2,), 'VALID')
  >>> for_cpu(jax.grad(lambda x: pool(x).sum()))(jnp.array([1.0, 3.0, 2.0, 2.0])).tolist()
  [0.0, 1.0, 1.0, 0.0]
  """
  if not callable(fn):
    raise TypeError(f'for_cpu takes a function; got {type(fn).__name__}: of a model give what calls it')
  return exchanged(without_effects(fn, 'for_cpu'), choices)


def exchanged(fn: Callable[..., Any], choices: Choices | None = None) -> Callable[..., Any]:
  """As `for_cpu`, of a function that is known to have no effects."""
  traced = jax.jit(fn)  # one call in the outer program, so that only what is edited is bound again

  @jax.jit
  @functools.wraps(fn)
  @paused()
  def run(*args: Any, **kwargs: Any) -> Any:
    jaxpr, shapes = jax.make_jaxpr(traced, return_shape=True)(*args, **kwargs)
    results = core.jaxpr_as_fun(replaced(jaxpr, choices))(*jax.tree.leaves((args, kwargs)))
    return jax.tree.unflatten(jax.tree.structure(shapes), results)

  return run


def replaced(jaxpr: Any, choices: Choices | None = None) -> Any:
  """Returns a closed jaxpr with its sites exchanged, each by the form that is chosen for it.

  Args:
    jaxpr: closed.
    choices: as in `for_cpu`.

  Raises:
    ValueError: a choice names no form of its site.
  """
  return jaxpr.replace(jaxpr=_edited(jaxpr.jaxpr, Where(), _Exchange(choices or {}, {})))


def sites(jaxpr: Any) -> dict[str, Site]:
  """Returns the sites of a program, by key, at any depth.

  Args:
    jaxpr: open or closed.
  """
  return {site.key: site for site in _sites(walk.opened(jaxpr)[0], Where())}


def _sites(jaxpr: Any, where: Where) -> Iterator[Site]:
  turned = dense.turned(jaxpr)
  for eqn in jaxpr.eqns:
    site = _site(eqn, where, eqn in turned)
    if site is not None:
      yield site
    for _, body in _bodies(eqn):
      yield from _sites(walk.opened(body)[0], where.inside(eqn))


def _site(eqn: Any, where: Where, turned: bool) -> Site | None:
  """What is known of one equation. A new kind of site is a line here."""
  kind = eqn.primitive.name
  if kind == 'conv_general_dilated':
    return convolution.site(eqn, where.at(eqn))
  if kind == 'dot_general':
    return dense.site(eqn, where.at(eqn), turned)
  if kind == 'select_and_scatter_add':
    return pool.gradient(eqn)
  if kind == 'reduce_window_max':
    return pool.value(eqn)
  return None


def _bodies(eqn: Any) -> list[tuple[str, Any]]:
  """The bodies that may be edited, with the parameter each stands in."""
  if eqn.params.get('branches_platforms') is not None:  # already a choice by platform, perhaps ours
    return []
  found = []
  for param in _BODIES.get(eqn.primitive.name, ()):
    value = eqn.params[param]
    found += [(param, body) for body in (value if isinstance(value, tuple) else (value,))]
  return found


class _Exchange(NamedTuple):
  """What one reading of a program knows.

  Attributes:
    choices: as in `for_cpu`.
    calls: what stands in for each kind of equation, traced once: a deep network has few kinds, and what is one object
      is lowered once as well.
  """

  choices: Choices
  calls: dict[Any, Any]


def _edited(jaxpr: Any, where: Where, exchange: _Exchange) -> Any:
  """An open jaxpr with its sites exchanged; the same object where there are none."""
  old, jaxpr = jaxpr, sunk(jaxpr)
  turned = dense.turned(jaxpr)
  eqns = [_exchanged(eqn, where, eqn in turned, exchange) for eqn in jaxpr.eqns]
  same = all(one is other for one, other in zip(eqns, jaxpr.eqns, strict=True))
  if not same:
    return jaxpr.replace(eqns=eqns)
  return old if jaxpr is old else jaxpr


def _exchanged(eqn: Any, where: Where, turned: bool, exchange: _Exchange) -> Any:
  site = _site(eqn, where, turned)
  if site is not None:
    name = exchange.choices.get(site.key, site.default)
    form = site.form(name)
    return eqn if name == XLA_FORM else _either(eqn, site, name, form, exchange.calls)
  inside = where.inside(eqn)
  if eqn.primitive.name == 'shard_map' and eqn.params['check_vma']:
    return _sharded(eqn, inside, exchange)
  params = dict(eqn.params)
  for param, body in _bodies(eqn):
    new = _edited(walk.opened(body)[0], inside, exchange)
    if new is not walk.opened(body)[0]:
      new = body.replace(jaxpr=new) if hasattr(body, 'consts') else new
      old = params[param]
      params[param] = tuple(new if one is body else one for one in old) if isinstance(old, tuple) else new
  return eqn if all(params[name] is value for name, value in eqn.params.items()) else eqn.replace(params=params)


def _either(eqn: Any, site: Site, name: str, form: Callable[..., Any], calls: dict[Any, Any]) -> Any:
  """The equation as one call that holds the form for CPU and XLA's own for the others."""
  kind = (name, site.key, eqn.primitive, *sorted(eqn.params.items()), *(atom.aval for atom in eqn.invars), eqn.ctx)
  try:
    call = calls.get(kind)
  except TypeError:  # a parameter that cannot be compared
    kind = call = None
  if call is not None:
    return _standing_for(eqn, call)

  def chosen(*operands: Any) -> Any:
    return form(*operands)

  chosen.__name__ = f'{MARK}_{eqn.primitive.name}_{name}'

  def either(*operands: Any) -> Any:
    return jax.lax.platform_dependent(*operands, cpu=jax.jit(chosen), default=site.xla_form)

  either.__name__ = eqn.primitive.name
  call = _in_place_of(eqn, jax.jit(either))
  if kind is not None and call is not eqn:
    calls[kind] = call
  return call


def _sharded(eqn: Any, where: Where, exchange: _Exchange) -> Any:
  """A body in which types tell over which axes of the mesh a value varies: JAX keeps count of that only while it
  traces such a body, so the body is traced once more and edited meanwhile."""
  body = eqn.params['jaxpr']
  if not any(_sites(walk.opened(body)[0], where)):
    return eqn

  def shard(*operands: Any) -> Any:
    bare, consts = walk.opened(body)
    return core.jaxpr_as_fun(core.ClosedJaxpr(_edited(bare, where, exchange), consts))(*operands)

  mapped = jax.shard_map(
    shard,
    mesh=eqn.params['mesh'],
    in_specs=tuple(eqn.params['in_specs']),
    out_specs=list(eqn.params['out_specs']),
    axis_names=set(eqn.params['newly_manual_axes']),
    check_vma=True,
  )
  return _in_place_of(eqn, mapped)


def _in_place_of(eqn: Any, fn: Callable[..., Any]) -> Any:
  """A call of a function in the place of an equation; the equation itself where the types would not be kept."""
  with eqn.ctx.manager:  # the mesh and what else was ambient
    call = jax.make_jaxpr(fn)(*(atom.aval for atom in eqn.invars))
  kept = call.out_avals == [var.aval for var in eqn.outvars]
  if not kept or call.consts or len(call.eqns) != 1 or list(call.jaxpr.outvars) != list(call.eqns[0].outvars):
    return eqn
  return _standing_for(eqn, call.eqns[0])


def _standing_for(eqn: Any, call: Any) -> Any:
  return call.replace(invars=eqn.invars, outvars=eqn.outvars, source_info=eqn.source_info)
