"""Masks: which weights live, as booleans or as bits, and weights seen through them.

A tree of masks has the structure of the params, with None where a leaf is not pruned. A mask is bool[...] of its
weight's shape or, packed, uint8[ceil(n / 8)]: eight weights a byte, 1/32 of float32 weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlite import trees
from jaxlite.errors import nearest


def pack(mask: jax.Array) -> jax.Array:
  """Packs a mask into bits, row-major, the first in the highest bit of a byte.

  Args:
    mask: bool[...].

  Returns:
    uint8[ceil(mask.size / 8)].

  >>> pack(jnp.array([[True, False], [True, True]])).tolist()
  [176]
  """
  return jnp.packbits(mask.reshape(-1))


def unpack(mask: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """Returns a mask as booleans, packed or not.

  Args:
    mask: bool[shape], or uint8[ceil(n / 8)] as `pack` gives it.
    shape: of the weight.

  Raises:
    TypeError: it is neither.

  >>> unpack(jnp.uint8([176]), (2, 2)).tolist()
  [[True, False], [True, True]]
  """
  if mask.dtype == jnp.bool_:
    return mask
  if mask.dtype != jnp.uint8:
    raise TypeError(
      f'masks are booleans or bits; these are {mask.dtype}{list(mask.shape)}: a wrapper computes with the state that '
      'it is given (optax.contrib.sam does): put the pruning part outside of it, behind it in the chain'
    )
  bits = (mask[:, None] >> jnp.arange(7, -1, -1, dtype=jnp.uint8)[None]) & 1
  return (bits.reshape(-1)[: math.prod(shape)] != 0).reshape(shape)


def bits(mask: Any) -> np.ndarray:
  """Returns a mask's values on the host, packed or not; what fills up its last byte is 0.

  >>> bits(np.uint8([176])).tolist()
  [1, 0, 1, 1, 0, 0, 0, 0]
  """
  mask = np.asarray(mask)
  return mask if mask.dtype == bool else np.unpackbits(mask, axis=-1)


def over(fn: Callable[..., Any], masks: Any, *rest: Any, unmasked: Callable[[Any], Any] = lambda leaf: None) -> Any:
  """Maps `fn(mask, *leaves)` where there is a mask and `unmasked(first leaf)` elsewhere."""
  return jax.tree.map(
    lambda mask, *leaves: unmasked(leaves[0]) if mask is None else fn(mask, *leaves),
    masks,
    *rest,
    is_leaf=lambda node: node is None,
  )


def applied(params: Any, masks: Any) -> Any:
  """As `apply_masks`, of masks that are known to fit.

  >>> applied({'w': jnp.array([1.0, jnp.inf])}, {'w': jnp.array([True, False])})['w'].tolist()
  [1.0, 0.0]
  """
  return over(
    lambda mask, leaf: jnp.where(unpack(mask, leaf.shape), leaf, jnp.zeros_like(leaf)),
    masks,
    params,
    unmasked=lambda leaf: leaf,
  )


def apply_masks(params: Any, masks: Any) -> Any:
  """Returns params with exact zeros where their masks say so.

  Args:
    params: any pytree of arrays.
    masks: as `sparsify` gives them, packed or not: a tree like the params with None where nothing is pruned, or a dict
      of masks by path. What they do not know stays as it is.

  Raises:
    ValueError: no mask at all, a mask of no parameter, of another shape, or that is neither booleans nor bits.

  >>> apply_masks({'w': jnp.array([1.0, jnp.inf])}, {'w': jnp.array([True, False])})['w'].tolist()
  [1.0, 0.0]
  """
  found = _fitting(masks, params, 'apply_masks')
  return applied(params, trees.map_with_path(lambda path, _: found.get(path), params))


def by_path(masks: Any, params: Any, *, what: str) -> Any:
  """Lays masks out for params that may hold more than the masks know (what hooks learn, biases).

  Args:
    masks: a pytree of masks, or a dict of them by path.
    params: pytree of arrays.
    what: names the asking part in an error.

  Returns:
    Masks in the structure of params, bool or packed as they came, each an array of its own.

  Raises:
    ValueError: no mask at all, a mask of no parameter, or of another shape.
  """
  found = _fitting(masks, params, what)
  return trees.map_with_path(lambda path, _: jnp.array(found[path]) if path in found else None, params)


def _fitting(masks: Any, params: Any, what: str) -> dict[str, Any]:
  """Masks by path, each of which fits its parameter."""
  found, leaves = trees.by_path(masks), trees.by_path(params)
  if not found:
    raise ValueError(f'{what}: there is no mask in what was given: sparsify first')
  for path, mask in found.items():
    if path not in leaves:
      raise ValueError(f'{what}: the mask {path!r} is of no parameter; nearest: {nearest(path, leaves)}')
    shape, dtype = np.shape(leaves[path]), np.dtype(getattr(mask, 'dtype', type(mask)))
    packed = (-(-math.prod(shape) // 8),)
    if (dtype, np.shape(mask)) not in ((np.dtype(bool), shape), (np.dtype(np.uint8), packed)):
      numbers = np.shape(mask) == shape and dtype.kind in 'biuf'
      raise ValueError(
        f'{what}: a mask is bool{list(shape)} or uint8{list(packed)}, bits, for {path!r};'
        f' got {dtype}{list(np.shape(mask))}: give {"mask != 0" if numbers else "masks of these params"}'
      )
  return found
