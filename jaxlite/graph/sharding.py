"""Shards: over which mesh axes a value inside a `shard_map` differs from one shard to the next."""

from __future__ import annotations

import math
from typing import Any

import jax

_ALIKE = frozenset({'psum', 'psum_invariant', 'pmax', 'pmin', 'pmax_invariant', 'pmin_invariant'})
_GATHER = frozenset({'all_gather', 'all_gather_invariant'})
_OWN = frozenset({'axis_index', 'all_to_all', 'reduce_scatter', 'ppermute'})


def sizes(eqn: Any) -> dict[str, int]:
  """Returns the axes that a `shard_map` makes manual, and how many shards lie along each."""
  known = dict(eqn.params['mesh'].shape)
  return {axis: known[axis] for axis in sorted(eqn.params['newly_manual_axes'], key=str)}


def devices(eqn: Any) -> int:
  """Returns how many devices do what stands in a `shard_map`, each on a part of its own."""
  return math.prod(sizes(eqn).values())


def cut_over(eqn: Any) -> list[frozenset[str]]:
  """Returns for each operand of a `shard_map` the axes over which it is cut."""
  manual = frozenset(sizes(eqn))
  return [frozenset(_names(spec)) & manual for spec in eqn.params['in_specs']]


def _names(spec: Any) -> list[str]:
  if spec is None:
    return []
  return [name for entry in spec for name in (entry if isinstance(entry, tuple) else (entry,)) if name is not None]


def after(eqn: Any, shards: frozenset[str]) -> frozenset[str]:
  """Returns the axes over which a result differs, of an equation whose operands differ over some.

  Args:
    eqn: without a body.
    shards: of all its operands.
  """
  name = eqn.primitive.name
  if name in _ALIKE | _GATHER | _OWN:
    axes = eqn.params.get('axes', eqn.params.get('axis_name', ()))
    named = frozenset(axes if isinstance(axes, tuple | list) else (axes,))
    return shards | named if name in _OWN else shards - named if eqn.params.get('axis_index_groups') is None else shards
  return shards


def varying(value: Any) -> frozenset[str]:
  """Returns the axes over which a value is known to differ, where the program is traced inside a `shard_map`."""
  kind = getattr(getattr(value, 'aval', value), 'manual_axis_type', None)
  return frozenset(getattr(kind, 'varying', ()))


def ambient() -> dict[str, int]:
  """Returns the axes of the `shard_map` inside which the program is traced, and how many shards lie along each."""
  mesh = jax.sharding.get_abstract_mesh()
  return {axis: mesh.shape[axis] for axis in getattr(mesh, 'manual_axes', ())}


def unchecked() -> bool:
  """Tells whether the program is traced inside a `shard_map` that does not check what differs, or a `pmap`."""
  axes = ambient()
  return any(axis not in varying(jax.typeof(jax.lax.axis_index(axis))) for axis in axes)


def on_explicit_mesh(leaf: Any) -> bool:
  """Tells whether an array's type names axes of a mesh that it is sharded over.

  >>> on_explicit_mesh(jax.numpy.ones(2))
  False
  """
  return isinstance(leaf, jax.Array) and bool(getattr(jax.typeof(leaf).sharding.mesh, 'explicit_axes', ()))
