"""What decides a result, hashed: arrays and compiled functions. What is kept between runs is named by it."""

from __future__ import annotations

import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlite import trees
from jaxlite.data.columns import digest


def of_arrays(values: Any) -> list[Any]:
  """Returns [path, sha256] of every leaf of a pytree.

  >>> of_arrays({'w': np.zeros(2, np.float32)}) == of_arrays({'w': np.zeros(2, np.int32)})
  False
  """
  found = []
  for path, leaf in zip(*trees.flatten(values)[:2], strict=True):
    keyed = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    found.append([path, digest(np.asarray(jax.random.key_data(leaf) if keyed else leaf))])
  return found


def of_program(fn: Any, *args: Any) -> str:
  """Hashes what a compiled function does, what it closes over included; the same on every machine.

  >>> double = jax.jit(lambda x: x * 2)
  >>> of_program(double, 1.0) == of_program(jax.jit(lambda x: x * 2), 1.0)
  True
  """
  lowered = fn.trace(*args).lower(lowering_platforms=('cpu',))
  return hashlib.sha256(lowered.as_text().encode()).hexdigest()
