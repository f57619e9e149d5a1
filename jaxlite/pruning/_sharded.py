"""Masks of sharded parameters: what is chosen is chosen among the whole array, wherever its parts lie."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from jaxlite import trees
from jaxlite.contract import Last
from jaxlite.graph import sharding
from jaxlite.picking import owned


def on_any_mesh(init: Callable[..., Any], update: Callable[..., Any], what: str) -> Last:
  """Returns the Last of both, which takes parameters that are sharded in their types (an explicit mesh) too.

  Args:
    init: (params, weights) -> state.
    update: (updates, state, params, **extra) -> (updates, state), the state of the same structure.
    what: names the part in an error.

  Raises:
    ValueError: when called inside a `shard_map` with a shard of a parameter.
  """

  @functools.wraps(init)
  def begin(params: Any, weights: Mapping[str, Any] | None = None) -> Any:
    mesh = _mesh_of(params, what)
    if mesh is None:
      return init(params, weights)
    bare = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), params)
    shapes = jax.eval_shape(lambda params: init(params, weights), bare)
    known = trees.by_path(params)
    owner = owned(trees.paths(shapes), known)

    def placed(path: str, leaf: Any) -> NamedSharding:  # what is kept for each parameter (moments) lies where it does
      like = known.get(owner.get(path, ''))
      own = like is not None and like.shape == leaf.shape
      return NamedSharding(mesh, jax.typeof(like).sharding.spec if own else PartitionSpec())

    return _automatic(lambda params: init(params, weights), mesh, trees.map_with_path(placed, shapes))(params)

  @functools.wraps(update)  # a ledger names the part by it
  def go_on(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
    mesh = _mesh_of(params, what)
    if mesh is None:
      return update(updates, state, params, **extra)
    places = jax.tree.map(lambda leaf: NamedSharding(mesh, jax.typeof(leaf).sharding.spec), (updates, state))
    fixed = {name: value for name, value in extra.items() if callable(value)}
    given = {name: value for name, value in extra.items() if name not in fixed}

    def run(updates: Any, state: Any, params: Any, given: Any) -> Any:
      return update(updates, state, params, **given, **fixed)

    return _automatic(run, mesh, places)(updates, state, params, given)

  return Last(begin, go_on)


def _automatic(fn: Callable[..., Any], mesh: Any, places: Any) -> Callable[..., Any]:
  automatic = jax.sharding.auto_axes(fn, axes=mesh.explicit_axes, out_sharding=places)

  def run(*args: Any) -> Any:
    leaves = jax.tree.leaves(args)
    traced = any(isinstance(leaf, jax.core.Tracer) for leaf in leaves)
    if traced:
      return automatic(*args)
    with jax.set_mesh(
      next(leaf.sharding.mesh for leaf in leaves if sharding.on_explicit_mesh(leaf))
    ):  # outside of a jit it must be said
      return automatic(*args)

  return run


def _mesh_of(tree: Any, what: str) -> Any:
  """The mesh over which leaves are sharded in their types; None where none is."""
  found = None
  for path, leaf in zip(trees.paths(tree), jax.tree.leaves(tree), strict=True):
    if not isinstance(leaf, jax.Array):
      continue
    kind = jax.typeof(leaf)
    shards = sharding.varying(kind)
    if shards:
      raise ValueError(
        f'{what} chooses among whole weights, and in a shard_map {path} is {list(leaf.shape)}, what one shard along '
        f'{", ".join(sorted(shards))} has: update outside of it, or gather first (jax.lax.all_gather)'
      )
    if sharding.on_explicit_mesh(leaf):
      found = kind.sharding.mesh
  return found
