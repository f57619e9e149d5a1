"""Batches as pure functions of (seed, step): nothing is carried, so a resume in the middle of an epoch is free."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from jaxlite.data.columns import Columns
from jaxlite.data.dataset import Split
from jaxlite.data.decoded import expect, foresees
from jaxlite.data.mixtures import Mixture
from jaxlite.data.streams import Stream
from jaxlite.errors import whole

Batch = dict[str, Any]
Source = Split | Columns | Stream | Mixture

_FORESEEN = 2  # batches that are decoded while the device is at work, where examples lie in files


def steps_per_epoch(split: Source, batch_size: int) -> int:
  """Returns how many batches show every example once; the last may be padded.

  Args:
    split: N examples, or a stream, which says itself how long an epoch is.
    batch_size: examples per batch, 1 .. N; a stream's own.

  Raises:
    ValueError: batch_size is below 1 or above N, or not the stream's.

  >>> steps_per_epoch(Split(np.zeros((10, 1), np.uint8), np.zeros(10, np.int32)), 4)
  3
  """
  if isinstance(split, Stream | Mixture):
    return split.steps_of(batch_size)
  count = len(split.labels)
  if whole(batch_size, 'batch_size', least=1) > count:
    raise ValueError(f'a batch holds at most the {count} examples of the split; got batch_size {batch_size}: lower it')
  return -(-count // batch_size)


def batch_at(split: Source, batch_size: int, seed: int, step: int) -> Batch:
  """Returns the batch of one step: shuffled anew each epoch, every example exactly once an epoch.

  Args:
    split: N examples.
    batch_size: examples per batch, 1 .. N.
    seed: not negative; with `step` it decides the batch.
    step: not negative; the epoch is `step // steps_per_epoch(split, batch_size)`.

  Returns:
    inputs, a tree of [batch_size, ...] in the split's dtypes, labels [batch_size, ...], weight float32 [batch_size]
    (the examples' own, 1 where they have none), and the split's columns where it has some (`jaxlite.data.attach`).
    The last batch of an epoch is filled up with other examples of that epoch at weight 0: real images, so
    that batch statistics see none that do not exist.

  Raises:
    ValueError: batch_size is below 1 or above N; seed or step is negative.

  >>> split = Split(np.arange(10, dtype=np.uint8)[:, None], np.arange(10, dtype=np.int32))
  >>> batch_at(split, 4, seed=0, step=2)['weight'].tolist()
  [1.0, 1.0, 0.0, 0.0]
  """
  steps = steps_per_epoch(split, batch_size)
  step, seed = whole(step, 'step', least=0), whole(seed, 'seed', least=0)
  if isinstance(split, Stream):
    return split.at(seed, step)
  if isinstance(split, Mixture):
    return split.at(batch_size, seed, step)
  epoch, index = divmod(step, steps)
  order = _order(len(split.labels), seed, epoch)
  if foresees(split[:2]):
    following = [_rows_at(split, batch_size, seed, step + later)[0] for later in range(1, _FORESEEN + 1)]
    expect(split[:2], np.concatenate(following))
  return _gather(split, order[index * batch_size : (index + 1) * batch_size], order, batch_size, (seed, step))


def batches_at(split: Source, batch_size: int, seed: int, step: int, count: int) -> Batch:
  """Returns the batches of several steps in a row, gathered at once: row i is `batch_at(..., step + i)`.

  Args:
    split: N examples.
    batch_size: examples per batch, 1 .. N.
    seed: as in `batch_at`.
    step: the first step.
    count: how many steps, at least 1.

  Returns:
    The arrays of `batch_at`, [count, batch_size, ...].

  Raises:
    ValueError: as `batch_at`; count is below 1.

  >>> split = Split(np.arange(10, dtype=np.uint8)[:, None], np.arange(10, dtype=np.int32))
  >>> batches_at(split, 4, seed=0, step=2, count=2)['weight'].tolist()
  [[1.0, 1.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]]
  """
  steps_per_epoch(split, batch_size)
  step, count = whole(step, 'step', least=0), whole(count, 'count', least=1)
  seed = whole(seed, 'seed', least=0)
  if isinstance(split, Stream | Mixture):
    each = (batch_at(split, batch_size, seed, step + row) for row in range(count))
    return jax.tree.map(lambda *parts: np.stack(parts), *each)
  rows, weight = _rows_at(split, batch_size, seed, step, count)
  if foresees(split[:2]):
    expect(split[:2], _rows_at(split, batch_size, seed, step + count, count)[0])
  return _weighed(split.take(rows, (seed, range(step, step + count))), weight)


def _rows_at(
  split: Split | Columns, batch_size: int, seed: int, step: int, count: int = 1
) -> tuple[np.ndarray, np.ndarray]:
  """Which examples stand in the batches of some steps, int64[count, batch_size], and 1 or 0 for padding."""
  total = len(split.labels)
  epoch_steps = steps_per_epoch(split, batch_size)
  rows = np.empty((count, batch_size), np.int64)
  weight = np.ones((count, batch_size), np.float32)
  done = 0
  while done < count:  # one turn per epoch
    epoch, index = divmod(step + done, epoch_steps)
    order = _order(total, seed, epoch)
    here = min(count - done, epoch_steps - index)
    short = max(0, (index + here) * batch_size - total)  # what the epoch's last batch lacks
    part = order[index * batch_size : (index + here) * batch_size]
    rows[done : done + here].reshape(-1)[: len(part)] = part
    if short:
      rows[done + here - 1, batch_size - short :] = order[:short]
      weight[done + here - 1, batch_size - short :] = 0
    done += here
  return rows, weight


def _weighed(batch: Batch, weight: np.ndarray) -> Batch:
  """Puts the weight of padding, 1 or 0, into a batch: times the examples' own where they have one."""
  own = batch.get('weight')
  return {**batch, 'weight': weight if own is None else weight * own}


@functools.lru_cache(maxsize=4)  # pure: only saves drawing an epoch's order at each of its steps
def _order(count: int, seed: int, epoch: int) -> np.ndarray:
  order = np.random.default_rng((seed, epoch)).permutation(count)
  order.flags.writeable = False
  return order


def eval_batches(split: Split | Columns, batch_size: int) -> Iterator[Batch]:
  """Yields every example once, in order, in batches of one size; the last is padded at weight 0.

  Args:
    split: N examples.
    batch_size: examples per batch; above N it becomes N, as no padding is then needed.

  Yields:
    Batches as `batch_at` gives them.

  Raises:
    ValueError: batch_size is below 1, or the split is empty.

  >>> split = Split(np.arange(3, dtype=np.uint8)[:, None], np.arange(3, dtype=np.int32))
  >>> [(batch['labels'].tolist(), batch['weight'].tolist()) for batch in eval_batches(split, 2)]
  [([0, 1], [1.0, 1.0]), ([2, 0], [1.0, 0.0])]
  """
  count = len(split.labels)
  if not count:
    raise ValueError('evaluation needs at least one example; the split is empty')
  batch_size = min(batch_size, count)
  order = np.arange(count)
  starts = range(0, steps_per_epoch(split, batch_size) * batch_size, batch_size)

  def at(start: int) -> Batch:
    if foresees(split[:2]):
      expect(split[:2], order[start + batch_size : start + 2 * batch_size])
    return _gather(split, order[start : start + batch_size], order, batch_size)

  return (at(start) for start in starts)


def _gather(
  split: Split | Columns,
  rows: np.ndarray,
  order: np.ndarray,
  batch_size: int,
  draw: tuple[int, int] | None = None,
) -> Batch:
  weight = np.zeros(batch_size, np.float32)
  weight[: len(rows)] = 1
  if len(rows) < batch_size:  # the epoch's first rows: never among its last ones, as batch_size <= N
    rows = np.concatenate([rows, order[: batch_size - len(rows)]])
  return _weighed(split.take(rows, draw), weight)
