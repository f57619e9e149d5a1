"""What a model's program does with each of its leaves: which axes a kernel sums over, and of what kind it is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxlite import trees
from jaxlite.contract import CONST, Model
from jaxlite.finetuning.flattened import Flat, flattened
from jaxlite.graph import layouts, provenance, routes, walk
from jaxlite.graph.layouts import LeafLayout
from jaxlite.graph.model import model_tags

CONV = 'conv_general_dilated'


class Kernel(NamedTuple):
  """How a program multiplies a leaf.

  Attributes:
    kind: 'conv', 'dense', or 'mixed' where it does both.
    layout: of its axes; None where it is not clear.
    spatial: how many axes of a convolution's window there are.
    backward: a convolution whose input is spread out (transposed), where frameworks do not agree on the window's order.
    order: its place among the program's contractions.
    flat: the flattened picture that it sums over; None where it does not.
  """

  kind: str
  layout: LeafLayout | None
  spatial: int = 0
  backward: bool = False
  order: int = 0
  flat: Flat | None = None


class Program(NamedTuple):
  """What a forward reads.

  Attributes:
    kernels: what it multiplies, by path.
    order: the place of each leaf among those that it reads, by path; what it never reads is not there.
    flat: leaves that are no kernels and lie along a flattened picture, by path.
    tables: leaves whose rows are looked up.
  """

  kernels: dict[str, Kernel]
  order: dict[str, int]
  flat: dict[str, Flat]
  tables: frozenset[str]


def read_program(model: Model, params: Any, model_state: Any, inputs: Any) -> Program:
  """Traces the forward of evaluation; nothing is computed.

  Args:
    model: without hooks.
    params, model_state: arrays or ShapeDtypeStructs.
    inputs: one batch, likewise.
  """

  def forward(params: Any, state: Any, inputs: Any, key: Any, step: Any) -> Any:
    return model.apply(params, state, inputs, train=False, key=key, step=step)[0]

  args = (params, model_state, inputs, jax.eval_shape(lambda: jax.random.key(0)), jax.ShapeDtypeStruct((), jnp.int32))
  tags = model_tags(*args)
  jaxpr = jax.make_jaxpr(forward)(*args)
  plan = provenance.read(jaxpr, tags)
  known = layouts.layouts_of(layouts.read(jaxpr, plan, tags))
  own = frozenset(path for tag in tags for path in tag.paths)
  found: dict[str, Kernel] = {}
  for site, eqn in _sites(jaxpr, plan):
    for path in sorted(site.weights & own):
      one = _kernel(eqn, known.get(path), len(found))
      before = found.get(path)
      if before is None:
        found[path] = one
      elif (before.kind, before.spatial, before.backward) != (one.kind, one.spatial, one.backward):
        found[path] = before._replace(kind='mixed', layout=None)
  order: dict[str, int] = {}
  paths = [*trees.paths(params), *(path.removeprefix(f'{CONST}/keras/') for path in trees.paths(model_state))]
  leaves = dict(zip(jaxpr.jaxpr.invars, paths, strict=False))
  _first_uses(jaxpr.jaxpr, leaves, order)
  many = len(jax.tree.leaves(inputs))
  flat = flattened(jaxpr, leaves, jaxpr.jaxpr.invars[len(paths) : len(paths) + many])
  kernels = {path: kernel._replace(flat=flat.get(path)) for path, kernel in found.items()}
  others = routes.read(jaxpr, plan, [*paths, *[None] * (len(jaxpr.jaxpr.invars) - len(paths))]).others
  tables = frozenset(path for path, why in others.items() if why in ('gather', 'take'))
  return Program(kernels, order, {path: one for path, one in flat.items() if path not in kernels}, tables)


def _first_uses(bare: Any, names: dict[Any, str], order: dict[str, int]) -> None:
  """Numbers leaves in the order in which equations first read them, inside of calls too."""
  for eqn in bare.eqns:
    given = [None if hasattr(atom, 'val') else names.get(atom) for atom in eqn.invars]
    if not any(given):
      continue
    bodies = walk.bodies(eqn)
    inner = walk.opened(bodies[0])[0] if bodies else None
    if inner is not None and len(inner.invars) == len(given):
      _first_uses(inner, {var: one for var, one in zip(inner.invars, given, strict=True) if one}, order)
    for one in given:
      if one is not None:
        order.setdefault(one, len(order))


def _kernel(eqn: Any, layout: LeafLayout | None, order: int) -> Kernel:
  if eqn is None or eqn.primitive.name != CONV:
    return Kernel('dense', layout, order=order)
  spatial = len(eqn.params['window_strides'])
  return Kernel('conv', layout, spatial, any(one > 1 for one in eqn.params['lhs_dilation']), order)


def _sites(jaxpr: Any, plan: Any) -> Iterator[tuple[Any, Any]]:
  """Yields each contraction with its equation, in the program's order."""
  bare, _ = walk.opened(jaxpr)
  for index, eqn in enumerate(bare.eqns):
    if index in plan.sites:
      yield plan.sites[index], eqn
    elif index in plan.inner:
      for body, inner in zip(_bodies(eqn), plan.inner[index], strict=True):
        yield from _sites(body, inner)
  for site in plan.beyond:
    yield site, None


def _bodies(eqn: Any) -> list[Any]:
  """The bodies of an equation, in the order of its plans."""
  name = eqn.primitive.name
  if name == 'while':
    return [eqn.params['cond_jaxpr'], eqn.params['body_jaxpr']]
  if name == 'cond':
    return list(eqn.params['branches'])
  return [eqn.params['jaxpr'] if name == 'scan' else eqn.params[walk.CALLS[name]]]


def last(found: dict[str, Kernel], paths: list[str]) -> list[str]:
  """Returns the leaves of a model's head: its last kernel, and what stands beside it.

  >>> last({'a/w': Kernel('dense', None), 'b/w': Kernel('dense', None, order=1)}, ['a/w', 'b/w', 'b/bias'])
  ['b/w', 'b/bias']
  """
  if not found:
    return []
  path = max(found, key=lambda one: found[one].order)
  parent = path.rpartition('/')[0]
  return [one for one in paths if one.rpartition('/')[0] == parent] if parent else [path]
