"""Host memory that was lent to JAX for a copy to a device, and that should go once it is copied.

JAX holds a NumPy array that it copies from until a thread of its own is done, and then puts it on a list. What is on
that list is freed by the next collection, of any generation, or the next such copy: a last large array would lie beside
its copy until then, which is minutes where nothing is allocated.
"""

from __future__ import annotations

import gc
import time
import weakref
from collections.abc import Iterable

import jax
import numpy as np

LEAST = 1 << 20  # bytes of an array for which anything is done
_PATIENCE = 0.1  # seconds; who still holds an array then may have a reason


def lent(arrays: Iterable[np.ndarray]) -> list[weakref.ref[np.ndarray]]:
  """Returns references to the large ones of some arrays, which keep none of them alive.

  >>> len(lent([np.zeros(3), np.zeros(LEAST)]))
  1
  """
  return [weakref.ref(array) for array in arrays if array.nbytes >= LEAST]


def free(sources: Iterable[weakref.ref[np.ndarray]], copies: Iterable[jax.Array]) -> bool:
  """Waits until copies are made and their sources are freed.

  Args:
    sources: what `lent` gave; nobody but JAX holds them any more.
    copies: what was made of them.

  Returns:
    Whether they are freed; False where somebody else holds one.

  >>> source = np.ones(LEAST)
  >>> sources, copies = lent([source]), [jax.device_put(source, may_alias=False)]
  >>> del source
  >>> free(sources, copies)
  True
  """
  alive = [source for source in sources if source() is not None]
  if not alive:
    return True
  jax.block_until_ready(list(copies))
  until = time.monotonic() + _PATIENCE
  while True:
    gc.collect(0)  # the youngest generation: JAX takes any collection as its sign
    if all(source() is None for source in alive):
      return True
    if time.monotonic() > until:
      return False
    time.sleep(0.001)  # the copy is ready a little before its thread lets go
