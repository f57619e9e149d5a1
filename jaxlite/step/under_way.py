"""How many dispatches may be under way: the device always has a next one, and few batches wait in memory for theirs.

A dispatch returns before it is done. A loop that never looks is soon tens of steps ahead, and each of them holds its
batch: with JAX on CPU up to 32, which of large pictures is most of a process. Nothing is gained by it, since a device
with one more step at hand is never idle.
"""

from __future__ import annotations

import collections
from collections.abc import Callable
from typing import Any

import jax

WAITING_BYTES = 16 << 20  # of batches that may wait, where more than LEAST of them fit into it
LEAST, MOST = 2, 32


def few_under_way(call: Callable[[Any, Any], tuple[Any, Any]]) -> Callable[[Any, Any], tuple[Any, Any]]:
  """Wraps (state, batch) -> (state, metrics) so that a call waits while the calls before it fill what may be under way.

  Numbers do not change. While it is traced, nothing is held back.

  Args:
    call: it returns at least one array that nobody donates, in its second result.

  >>> step = few_under_way(jax.jit(lambda state, batch: (state + batch.sum(), {'loss': batch.max()})))
  >>> state, metrics = step(1.0, jax.numpy.arange(3.0))
  >>> float(state), float(metrics['loss'])
  (4.0, 2.0)
  """
  sent: collections.deque[jax.Array] = collections.deque()

  def called(state: Any, batch: Any) -> tuple[Any, Any]:
    size = sum(getattr(leaf, 'nbytes', 0) for leaf in jax.tree.leaves(batch))
    _wait(sent, max(LEAST, min(MOST, WAITING_BYTES // max(1, size))))
    state, metrics = call(state, batch)
    done = next(iter(jax.tree.leaves(metrics)), None)  # all results of a program are there at once
    if isinstance(done, jax.Array) and not isinstance(done, jax.core.Tracer):
      sent.append(done)
    return state, metrics

  return called


def _wait(sent: collections.deque[jax.Array], most: int) -> None:
  """Waits until fewer than `most` are under way."""
  while len(sent) >= most:
    try:
      first = sent.popleft()
    except IndexError:  # another thread was faster
      return
    if not first.is_deleted():
      first.block_until_ready()
