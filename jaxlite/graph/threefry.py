"""JAX's counter-based random numbers, in NumPy: the bits are JAX's own.

A key is held as one uint64, its first word in the low half, so that whatever moves arrays moves keys.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

IMPL = 'threefry2x32'
_BLOCK = 1 << 14  # numbers drawn at a time: what 20 rounds work on stays in the nearest cache
_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = np.uint32(0x1BD11BDA)


def is_known(dtype: Any) -> bool:
  """Tells whether keys of a dtype are drawn from here, and as JAX is set to draw from them.

  >>> is_known(jax.random.key(0).dtype), is_known(jax.random.key(0, impl='rbg').dtype)
  (True, False)
  """
  return dtype == _dtype() and bool(jax.config.jax_threefry_partitionable)


def _dtype() -> Any:
  return jax.random.wrap_key_data(np.zeros(2, np.uint32), impl=IMPL).dtype


def keys_of(data: np.ndarray) -> np.ndarray:
  """Returns keys of their data.

  Args:
    data: uint32[..., 2].

  Returns:
    uint64[...].
  """
  return data[..., 0].astype(np.uint64) | data[..., 1].astype(np.uint64) << np.uint64(32)


def data_of(keys: np.ndarray) -> np.ndarray:
  """Returns the data of keys, uint32[..., 2] of uint64[...].

  >>> data_of(keys_of(np.array([1, 2], np.uint32))).tolist()
  [1, 2]
  """
  return np.stack(_words(keys), -1)


def _words(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  keys = np.asarray(keys, np.uint64)
  return keys.astype(np.uint32), (keys >> np.uint64(32)).astype(np.uint32)


def fold_in(keys: np.ndarray, data: np.ndarray) -> np.ndarray:
  """Returns the keys that `jax.random.fold_in` gives for uint32 data of the same shape."""
  data = np.asarray(data).astype(np.uint32)
  return _pair(*_threefry(*_words(keys), np.zeros_like(data), data))


def split(keys: np.ndarray, shape: Sequence[int]) -> np.ndarray:
  """Returns the keys that `jax.random.split` gives: uint64[*keys.shape, *shape]."""
  drawn = [_pair(*_counted(key, math.prod(shape))) for key in np.ravel(keys)]
  return np.reshape(drawn, (*np.shape(keys), *shape)).astype(np.uint64)


def bits(keys: np.ndarray, shape: Sequence[int], width: int) -> np.ndarray:
  """Returns the random bits that JAX draws from each key.

  Args:
    keys: uint64[...].
    shape: of the numbers drawn from one key.
    width: 8, 16, 32 or 64 bits a number.

  Returns:
    Unsigned integers [*keys.shape, *shape].

  >>> key = keys_of(np.asarray(jax.random.key_data(jax.random.key(3))))
  >>> bool((bits(key, (5,), 32) == jax.random.bits(jax.random.key(3), (5,))).all())
  True
  """
  drawn = []
  for key in np.ravel(keys):
    high, low = _counted(key, math.prod(shape))
    if width == 64:
      drawn.append(high.astype(np.uint64) << np.uint64(32) | low)
    else:
      drawn.append((high ^ low).astype(f'uint{width}'))
  return np.reshape(drawn, (*np.shape(keys), *shape)).astype(f'uint{width}')


def _pair(first: np.ndarray, second: np.ndarray) -> np.ndarray:
  return first.astype(np.uint64) | second.astype(np.uint64) << np.uint64(32)


def _counted(key: np.uint64, size: int) -> tuple[np.ndarray, np.ndarray]:
  """Two words for each of the 64-bit counts 0, 1, ... size - 1."""
  words = _words(key)
  out = np.empty((2, size), np.uint32)
  for start in range(0, size, _BLOCK):
    counts = np.arange(start, min(start + _BLOCK, size), dtype=np.uint64)
    high, low = (counts >> np.uint64(32)).astype(np.uint32), counts.astype(np.uint32)
    out[:, start : start + _BLOCK] = _threefry(*words, high, low)
  return out[0], out[1]


def _threefry(k0: np.ndarray, k1: np.ndarray, x0: np.ndarray, x1: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Threefry-2x32 of 20 rounds on a pair of words.

  References:
    Salmon, Moraes, Dror and Shaw, Parallel Random Numbers: As Easy as 1, 2, 3, 2011,
    https://doi.org/10.1145/2063384.2063405
  """
  schedule = (k0, k1, k0 ^ k1 ^ _PARITY)
  with np.errstate(over='ignore'):  # sums are modulo 2^32
    x0, x1 = x0 + k0, x1 + k1
    for group in range(5):
      for by in _ROTATIONS[group % 2]:
        x0 = x0 + x1
        x1 = (x1 << np.uint32(by)) | (x1 >> np.uint32(32 - by))
        x1 = x1 ^ x0
      x0 = x0 + schedule[(group + 1) % 3]
      x1 = x1 + schedule[(group + 2) % 3] + np.uint32(group + 1)
  return x0, x1
