"""How many dispatches may be under way: the device always has a next one, and few batches wait in memory for theirs.

A dispatch returns before it is done. A loop that never looks is soon tens of steps ahead, and each of them holds its
batch: with JAX on CPU up to 32, which of large pictures is most of a process. Nothing is gained by it, since a device
with one more step at hand is never idle. Where a limit of the process counts what is promised, one is under way: on a
CPU each would take what all of its work needs as it is sent.
"""

from __future__ import annotations

import collections
import itertools
from collections.abc import Callable
from typing import Any

import jax

from jaxlite.host.promised import Promised
from jaxlite.host.stacks import limited

WAITING_BYTES = 16 << 20  # of batches that may wait, where more than LEAST of them fit into it
LEAST, MANY = 2, 32  # where MANY fit, nothing is held back: JAX on CPU does not send off more
LOOK = 8  # calls between two looks at how large batches are


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
  calls, most, held = itertools.count(), LEAST, False
  promised, largest = Promised(), 0

  def called(state: Any, batch: Any) -> tuple[Any, Any]:
    nonlocal most, held, promised, largest
    if not next(calls) % LOOK:  # a step may take no longer than looking at its batch does
      most, held = max(LEAST, WAITING_BYTES // max(1, _bytes(batch))), limited()
    if held and (not sent or _on_cpu(sent[-1])):
      if (size := _bytes(batch)) > largest:  # what was quick of a smaller one need not be
        promised, largest = Promised(), size
      if promised.matters:
        _wait(sent, 0)
        promised.returned()
        return sends(state, batch)
    if most >= MANY:
      return call(state, batch)
    if len(sent) >= most:
      _wait(sent, most // 2)  # to the half: to be woken at each step costs more than a small step
    return sends(state, batch)

  def sends(state: Any, batch: Any) -> tuple[Any, Any]:
    state, metrics = call(state, batch)
    done = metrics['loss'] if 'loss' in metrics else next(iter(jax.tree.leaves(metrics)), None)
    if isinstance(done, jax.Array) and not isinstance(done, jax.core.Tracer):
      sent.append(done)
    return state, metrics

  return called


def _on_cpu(array: jax.Array) -> bool:
  return array.is_deleted() or all(device.platform == 'cpu' for device in array.devices())


def _bytes(batch: Any) -> int:
  return sum(getattr(leaf, 'nbytes', 0) for leaf in jax.tree.leaves(batch))


def _wait(sent: collections.deque[jax.Array], most: int) -> None:
  """Waits until at most `most` are under way."""
  while len(sent) > most:
    try:
      first = sent.popleft()
    except IndexError:  # another thread was faster
      return
    if not first.is_deleted():
      first.block_until_ready()
