"""Entries of each example's own table (the last state of a sequence, a column that the input names), by
comparing places: runtimes look up in one table for all."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlite.deployment.operations import edges

MOST = 1024  # entries along the axis that is looked along


def is_simple(params: Any, shape: tuple[int, ...]) -> bool:
  """Tells whether a gather looks along one axis of a table for each example, entry by entry.

  Args:
    params: of the equation.
    shape: of the table.
  """
  numbers, sizes = params['dimension_numbers'], params['slice_sizes']
  sought = [axis for axis in numbers.start_index_map if sizes[axis] != shape[axis]]
  whole = len(sought) == len(numbers.start_index_map) or 'CLIP' in str(params['mode'])
  rest = {*range(len(shape))} - {*numbers.operand_batching_dims, *sought}
  there = len(sought) == 1 and sizes[sought[0]] == 1 and shape[sought[0]] <= MOST
  return there and whole and all(sizes[axis] == shape[axis] for axis in rest)


def picked(params: Any, table: jax.Array, ids: jax.Array) -> jax.Array:
  """Returns what such a gather gives.

  Args:
    params: of the equation.
    table, ids: its operands.

  >>> from jax import lax
  >>> numbers = lax.GatherDimensionNumbers((), (1,), (1,), (0,), (0,))
  >>> told = {'dimension_numbers': numbers, 'slice_sizes': (1, 1), 'mode': 'FILL', 'fill_value': None}
  >>> picked(told, jnp.arange(6.0).reshape(2, 3), jnp.array([[[2], [0]], [[1], [5]]])).tolist()
  [[2.0, 0.0], [4.0, nan]]
  """
  numbers, sizes = params['dimension_numbers'], params['slice_sizes']
  (axis,) = (one for one in numbers.start_index_map if sizes[one] != table.shape[one])
  at, size = ids[..., list(numbers.start_index_map).index(axis)], table.shape[axis]
  of_lead = dict(zip(numbers.start_indices_batching_dims, numbers.operand_batching_dims, strict=True))
  out = [one for one in range(table.ndim) if one not in (*numbers.collapsed_slice_dims, *of_lead.values())]
  kept = [one for one in out if one != axis]
  rows = jnp.transpose(table, [*(of_lead[one] for one in sorted(of_lead)), *kept, axis])
  lead = [table.shape[of_lead[one]] if one in of_lead else 1 for one in range(at.ndim)]
  rows = rows.reshape([*lead, *(table.shape[one] for one in kept), size])
  wide = (slice(None),) * at.ndim + (None,) * len(kept)
  there = (at >= 0) & (at < size)
  hot = jnp.clip(at, 0, size - 1)[(*wide, None)] == jnp.arange(size, dtype=at.dtype)
  numeric = rows.astype(jnp.int32) if rows.dtype == jnp.bool_ else rows
  found = jnp.sum(jnp.where(hot, numeric, jnp.zeros((), numeric.dtype)), -1, dtype=numeric.dtype).astype(rows.dtype)
  if 'FILL' in str(params['mode']):
    filling = params['fill_value']
    filling = edges.nothing_of(np.dtype(table.dtype)) if filling is None else filling
    found = jnp.where(there[wide], found, jnp.asarray(filling, found.dtype))
  if axis in out:
    found = jnp.expand_dims(found, at.ndim + out.index(axis))
  left, inner = iter(range(at.ndim)), iter(range(at.ndim, found.ndim))
  order = [next(inner) if place in numbers.offset_dims else next(left) for place in range(found.ndim)]
  return jnp.transpose(found, order)
