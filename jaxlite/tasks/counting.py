"""Counting positions exactly: any number of them a batch, fractional weights, up to 2**48 in all.

A weight is written in digits of base 2**16 (`metrics` does so for examples). Here a batch may hold millions of
positions, so they are added in pieces of 2**16, the most that uint32 takes before digits are carried.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlite.tasks.metrics import _digits

PLACES = 5  # two digits before the binary point, three behind it
_BASE = 16
_PIECE = 2**16 - 1


def with_weight(batch: Mapping[str, Any], labels: jax.Array) -> Mapping[str, Any]:
  """Returns the batch with a 'weight': where it has none, how many labeled positions each example of int[B, P] has."""
  if batch.get('weight') is not None:
    return batch
  return {**batch, 'weight': jnp.sum(labels >= 0, axis=1, dtype=jnp.int32).astype(jnp.float32)}


def position_weight(labels: jax.Array, batch: Mapping[str, Any]) -> jax.Array:
  """Returns each position's weight, float[B, P]: the example's weight over how many positions it has; 0 where none is.

  A batch's weight is the example's own weight times its number of labeled positions. Where that division has a
  whole result it is exact on every device.

  Args:
    labels: int[B, P], below 0 where nothing is labeled.
    batch: holds 'weight', float[B].
  """
  labeled = labels >= 0
  count = jnp.sum(labeled, axis=1, dtype=jnp.int32).astype(jnp.float32)
  weight = jnp.asarray(batch['weight']).astype(jnp.float32)
  each = weight / jnp.maximum(count, 1)
  near = jnp.round(each)
  each = jnp.where(near * count == weight, near, each)  # some devices divide with an error in the last bit
  return jnp.where(labeled, each[:, None], 0)


def count(weight: jax.Array, times: jax.Array) -> jax.Array:
  """Returns the sum of weight * times over all positions, uint32[5], digits.

  Args:
    weight: float[P].
    times: bool[P] (the positions that hit) or int[P] in [0, 2**16).
  """
  products = _digits(weight) * times.astype(jnp.uint32)
  short = -products.shape[1] % _PIECE
  pieces = jnp.pad(products, ((0, 0), (0, short))).reshape(len(products), -1, _PIECE)
  low = jnp.sum(pieces & (2**_BASE - 1), axis=2, dtype=jnp.uint32)
  high = jnp.sum(pieces >> _BASE, axis=2, dtype=jnp.uint32)
  none = jnp.zeros_like(low[:1])
  sums = carry(jnp.concatenate([none, low])) + carry(jnp.concatenate([high, none]))
  return carry(jnp.sum(sums, axis=1, dtype=jnp.uint32))


def count_pairs(weight: jax.Array, rows: jax.Array, columns: jax.Array, size: int) -> jax.Array:
  """Returns how much weight each pair (row, column) has over all positions, uint32[5, size, size], digits.

  Args:
    weight: float[P].
    rows: int[P], in [0, size).
    columns: int[P], in [0, size).
    size: how many rows and columns there are.
  """
  return count_places(weight, rows * size + columns, size * size).reshape(PLACES, size, size)


def count_places(weight: jax.Array, places: jax.Array, size: int) -> jax.Array:
  """Returns how much weight each place has over all positions, uint32[5, size], digits.

  Args:
    weight: float[P].
    places: int[P], in [0, size).
    size: how many places there are.
  """
  digits = _digits(weight)
  total = digits.shape[1]

  def one(digits: jax.Array, places: jax.Array) -> jax.Array:
    return _split(jnp.zeros((len(digits), size), jnp.uint32).at[:, places].add(digits))

  if total <= _PIECE:
    return one(digits, places)
  short = -total % _PIECE

  def cut(array: jax.Array) -> jax.Array:  # padding has no digits, so its place does not matter
    padded = jnp.pad(array, ((0, 0),) * (array.ndim - 1) + ((0, short),))
    return jnp.moveaxis(padded.reshape(*array.shape[:-1], -1, _PIECE), -2, 0)

  def add(sums: jax.Array, piece: Any) -> tuple[jax.Array, None]:
    return carry(sums + one(*piece)), None

  start = jnp.zeros((PLACES, size), jnp.uint32)
  return jax.lax.scan(add, start, (cut(digits), cut(places)))[0]


def _split(digits: jax.Array) -> jax.Array:
  """Digits uint32[4, ...] of any size as uint32[5, ...] below 2**16 each."""
  return carry(jnp.concatenate([jnp.zeros_like(digits[:1]), digits]))


def carry(digits: jax.Array) -> jax.Array:
  """Brings every digit but the first, uint32[places, ...], below 2**16 again."""
  rows = list(digits)
  for place in range(len(rows) - 1, 0, -1):
    rows[place - 1] = rows[place - 1] + (rows[place] >> _BASE)
    rows[place] = rows[place] & (2**_BASE - 1)
  return jnp.stack(rows)


def number(digits: Any) -> np.ndarray:
  """Reads digits, uint32[5, ...], as float64[...].

  >>> float(number(jax.jit(count)(jnp.full(3, 0.5), jnp.array([True, True, False]))))
  1.0
  """
  places = 2.0 ** (-_BASE * (np.arange(PLACES) - 1))
  return np.tensordot(places, np.asarray(digits, np.float64), axes=1)
