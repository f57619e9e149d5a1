"""What text models share: token ids with or without a mask, checked, and the rows of an embedding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp


def as_tokens(inputs: Any, name: str) -> tuple[jax.Array, jax.Array | None]:
  """Returns the token ids of a batch and where tokens stand.

  Args:
    inputs: int[B, T], or {'tokens': int[B, T], 'mask': bool or number[B, T]}, 0 where there is padding.
    name: the network that asks.

  Returns:
    (int32[B, T], bool[B, T] or None where no mask came).

  Raises:
    ValueError: other keys, shapes or dtypes.

  >>> tokens, mask = as_tokens({'tokens': jnp.array([[5, 0]]), 'mask': jnp.array([[1.0, 0.0]])}, 'Decoder')
  >>> tokens.tolist(), mask.tolist()
  ([[5, 0]], [[True, False]])
  """
  mask = None
  if isinstance(inputs, Mapping):
    if 'tokens' not in inputs or set(inputs) - {'tokens', 'mask'}:
      raise ValueError(f"{name} takes a dict of 'tokens' and, where there is padding, 'mask'; got {sorted(inputs)}")
    inputs, mask = inputs['tokens'], inputs.get('mask')
  tokens = jnp.asarray(inputs)
  if tokens.ndim != 2:
    raise ValueError(f'{name} takes a batch of token ids, int[B, T]; got {list(tokens.shape)}: add the missing axis')
  if not jnp.issubdtype(tokens.dtype, jnp.integer):
    raise ValueError(f'{name} takes token ids, int[B, T]; got {tokens.dtype}: ids are not standardized, nor cast')
  if mask is not None:
    mask = jnp.asarray(mask)
    if mask.shape != tokens.shape:
      raise ValueError(f'{name}: a mask has one entry per token, {list(tokens.shape)}; got {list(mask.shape)}')
    mask = mask != 0
  return tokens.astype(jnp.int32), mask


def rows_of(table: jax.Array, tokens: jax.Array) -> jax.Array:
  """Looks up the rows of an embedding; the row of an id outside the table is NaN, and has no gradient.

  Args:
    table: float[V, d], or integers, whose row is 0 where a float's is NaN.
    tokens: int32[...].

  Returns:
    [..., d], of the table's dtype.

  >>> rows_of(jnp.ones((2, 1)), jnp.array([1, 2, -1]))[:, 0].tolist()
  [1.0, nan, nan]
  """
  # A negative id would count from the end, a large one would be cut off: a row that is wrong and not seen.
  tokens = jnp.where(tokens < 0, table.shape[0], tokens)
  floating = jnp.issubdtype(table.dtype, jnp.floating)
  return jnp.take(table, tokens, axis=0, mode='fill', fill_value=jnp.nan if floating else 0)


def mean_of(states: jax.Array, mask: jax.Array | None) -> jax.Array:
  """Returns the mean of each text's states over its tokens, in at least float32; of a text without tokens, 0.

  Args:
    states: float[B, T, d].
    mask: bool[B, T], where tokens stand; None is everywhere.

  >>> mean_of(jnp.array([[[2.0], [4.0], [9.0]]]), jnp.array([[True, True, False]])).tolist()
  [[3.0]]
  """
  states = states.astype(jnp.promote_types(states.dtype, jnp.float32))
  if mask is None:
    return jnp.mean(states, axis=1)
  count = jnp.maximum(jnp.sum(mask, axis=1, keepdims=True), 1)
  return jnp.sum(jnp.where(mask[..., None], states, 0), axis=1) / count


def check_rate(rate: float, name: str) -> None:
  """Raises ValueError where a rate of dropout is none.

  >>> check_rate(0.1, 'Decoder')
  """
  if not 0 <= rate < 1:
    raise ValueError(f'{name}: dropout is the share of values dropped, in [0, 1); got {rate}')
