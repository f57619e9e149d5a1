"""Hashes of arrays by path: how two states are told apart, bit for bit.

A leaf's hash covers its path, dtype, shape and bytes, so a renamed, recast, reshaped or damaged leaf never
passes for the old one. Files are not hashed: two saves of one state differ in file names and bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlite import trees


def is_key(leaf: Any) -> bool:
  """Tells whether a leaf (or its abstract form) is a typed PRNG key.

  >>> import jax
  >>> is_key(jax.random.key(0)), is_key(jax.random.PRNGKey(0))
  (True, False)
  """
  return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def dtype_name(leaf: Any) -> str:
  """Returns the name of a leaf's dtype, without its byte order.

  >>> import jax, numpy as np
  >>> dtype_name(np.zeros(2, '>f4')), dtype_name(jax.random.key(0))
  ('float32', 'key<fry>')
  """
  return str(leaf.dtype) if is_key(leaf) else jnp.dtype(leaf.dtype).name


def to_host(leaf: Any) -> np.ndarray:
  """Returns an array's values as native-endian NumPy; a typed key's as its data, uint32[..., n].

  On CPU the result may share the array's buffer: copy it before the array is donated.

  >>> import jax
  >>> to_host(jax.random.key(7))
  array([0, 7], dtype=uint32)
  """
  host = np.asarray(jax.random.key_data(leaf) if is_key(leaf) else leaf)
  return np.asarray(host, dtype=host.dtype.newbyteorder('='), order='C')


def leaf_hash(path: str, dtype: str, shape: Sequence[int], data: Any) -> str:
  """Returns the sha256 over one leaf.

  Args:
    path: the leaf's path.
    dtype: the dtype's name.
    shape: the leaf's shape.
    data: the leaf's bytes, as anything with the buffer protocol.

  Returns:
    64 hexadecimal digits.

  >>> leaf_hash('w', 'uint8', [1], b'0') == leaf_hash('v', 'uint8', [1], b'0')
  False
  """
  digest = hashlib.sha256(json.dumps([path, dtype, list(shape)]).encode())
  digest.update(data)
  return digest.hexdigest()


def hashes(tree: Any) -> dict[str, str]:
  """Returns the hash of every leaf by path.

  Args:
    tree: any pytree of arrays and typed keys.

  Returns:
    {path: sha256}.

  Raises:
    ValueError: two leaves share one path.

  >>> import numpy as np
  >>> list(hashes({'w': np.ones(2), 'b': np.zeros(0)}))
  ['b', 'w']
  """
  names, leaves, _ = trees.flatten(tree)
  return {
    name: leaf_hash(name, dtype_name(leaf), leaf.shape, to_host(leaf).reshape(-1).view(np.uint8))
    for name, leaf in zip(names, leaves, strict=True)
  }


def combined(leaf_hashes: Mapping[str, str]) -> str:
  """Returns one hash for a tree from the hashes of its leaves, whatever their order.

  >>> combined({'a': '1', 'b': '2'}) == combined({'b': '2', 'a': '1'})
  True
  """
  return hashlib.sha256(json.dumps(sorted(leaf_hashes.items())).encode()).hexdigest()


def fingerprint(tree: Any) -> str:
  """Returns one sha256 over (path, dtype, shape, bytes) of every leaf of a tree.

  Args:
    tree: any pytree of arrays and typed keys.

  Returns:
    64 hexadecimal digits.

  >>> import numpy as np
  >>> fingerprint({'w': np.float32([0.0])}) == fingerprint({'w': np.float32([-0.0])})
  False
  """
  return combined(hashes(tree))
