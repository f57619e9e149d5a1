"""Examples that lie in files and are decoded when a batch asks for them: rows of an array that never stands in memory.

A batch is a function of (seed, step), so nothing needs to be remembered of what was read. Threads decode (Pillow, zlib
and NumPy let go of the interpreter), each example by itself, so their number changes no bit. What the next steps will
ask for is decoded while the device computes, within a bound of bytes; what was foreseen and not asked for is dropped.
"""

from __future__ import annotations

import collections
import concurrent.futures
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxlite.data.chosen import Chosen
from jaxlite.errors import whole
from jaxlite.host import machine

AHEAD = 1 << 26  # bytes of examples that are decoded before they are asked for: 64 MiB

Make = Callable[[int, np.ndarray], None]


class Workers:
  """Threads that start when they are first needed; a copy, also in another process, starts its own.

  >>> Workers(2).submit(lambda: 3).result()
  3
  """

  def __init__(self, threads: int | None = None):
    """Args: threads, from 1; None takes one a core, 8 at most."""
    self.threads = min(8, machine.cores()) if threads is None else whole(threads, 'threads', least=1)
    self._lock, self._pool = threading.Lock(), None

  def submit(self, call: Callable[..., Any], *args: Any) -> concurrent.futures.Future[Any]:
    """Returns the future of a call."""
    with self._lock:
      if self._pool is None:
        self._pool = concurrent.futures.ThreadPoolExecutor(self.threads, 'jaxlite-decode')
      return self._pool.submit(call, *args)

  def __reduce__(self) -> Any:
    return type(self), (self.threads,)

  def __deepcopy__(self, memo: Any) -> Workers:
    return self


class Decoded:
  """An array [N, ...] of examples, each made by a function when it is asked for.

  `rows` gives the form in which a Split holds it.

  >>> def make(row, out):
  ...   out[:] = row
  >>> array = Decoded(make, 5, (2,), np.float32)
  >>> array.take([3, 1], axis=0).tolist(), array[4].tolist(), array.made
  ([[3.0, 3.0], [1.0, 1.0]], [4.0, 4.0], 3)
  """

  def __init__(
    self,
    make: Make,
    count: int,
    shape: tuple[int, ...],
    dtype: Any,
    *,
    workers: Workers | None = None,
    ahead: int = AHEAD,
  ):
    """Describes the array; makes nothing.

    Args:
      make: (row, out) writes example `row` into `out[...]`, an array of `shape` and `dtype`; the same each time.
      count: N.
      shape: of one example.
      dtype: of the array.
      workers: threads, which several arrays may share.
      ahead: bytes that may be made before they are asked for; 0 foresees nothing.
    """
    self._make, self._workers = make, workers or Workers()
    self.shape, self.dtype = (count, *shape), np.dtype(dtype)
    self.ahead = ahead
    self.made = 0  # examples so far: what shows that decoding does not lead
    self._next: np.ndarray | None = None
    self._waiting: collections.OrderedDict[int, concurrent.futures.Future[np.ndarray]] = collections.OrderedDict()
    self._lock, self._count_lock = threading.Lock(), threading.Lock()

  @property
  def ndim(self) -> int:
    """Number of axes."""
    return len(self.shape)

  @property
  def example_bytes(self) -> int:
    """Bytes of one example."""
    return int(np.prod(self.shape[1:], dtype=np.int64)) * self.dtype.itemsize

  @property
  def held_bytes(self) -> int:
    """Bytes of examples that may lie in memory before they are asked for."""
    return min(self.ahead, self.example_bytes * len(self))

  def seconds(self) -> float:
    """Returns about how long one example takes one thread, as three of them take now."""
    took = []
    for row in sorted({0, len(self) // 2, len(self) - 1}):
      began = time.perf_counter()
      self._alone(row)
      took.append(time.perf_counter() - began)
    return sorted(took)[len(took) // 2]

  def __len__(self) -> int:
    return self.shape[0]

  def rows(self, which: np.ndarray | None = None) -> Chosen:
    """Returns these examples, all by default, as an array that a Split takes."""
    return Chosen(self, np.arange(len(self)) if which is None else np.asarray(which, np.int64))

  def expect(self, rows: np.ndarray) -> None:
    """Says which rows the calls after the next one will ask for, soonest first."""
    self._next = np.asarray(rows).reshape(-1)

  def take(self, rows: Any, axis: int = 0) -> np.ndarray:
    """Returns these examples, [*rows.shape, ...]."""
    if axis != 0:
      raise ValueError(f'examples are taken along axis 0; got axis={axis}')
    rows = np.asarray(rows)
    if rows.size and not (-len(self) <= rows.min() and rows.max() < len(self)):
      raise IndexError(f'rows are in [0, {len(self)}); got {rows.min()} to {rows.max()}')
    rows = np.where(rows < 0, rows + len(self), rows).astype(np.int64)
    out = np.empty((*rows.shape, *self.shape[1:]), self.dtype)
    flat = out.reshape(rows.size, *self.shape[1:])
    with self._lock:
      upcoming, self._next = self._next, None
      ready = {row: self._waiting.pop(row) for row in dict.fromkeys(rows.reshape(-1).tolist()) if row in self._waiting}
      jobs: list[Any] = []
      for place, row in enumerate(rows.reshape(-1).tolist()):
        future = ready.pop(row, None)
        jobs.append((place, future or self._workers.submit(self._into, row, flat[place, ...]), future is not None))
      self._foresee(upcoming)
    try:
      for place, future, copies in jobs:
        found = future.result()
        if copies:
          flat[place] = found
    finally:
      for _, future, _ in jobs:
        future.cancel()
    return out

  def __getitem__(self, index: Any) -> np.ndarray:
    if isinstance(index, slice):
      return self.take(np.arange(len(self))[index])
    rows = np.asarray(index)
    if rows.dtype == bool:
      return self.take(np.flatnonzero(rows))
    return self.take(rows)

  def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
    found = self.take(np.arange(len(self)))
    return found if dtype is None else found.astype(dtype, copy=False)

  def __getstate__(self) -> dict[str, Any]:
    return {**self.__dict__, '_waiting': collections.OrderedDict(), '_lock': None, '_count_lock': None, '_next': None}

  def __setstate__(self, state: dict[str, Any]) -> None:
    self.__dict__.update(state, _lock=threading.Lock(), _count_lock=threading.Lock())

  def __repr__(self) -> str:
    return f'Decoded({self.dtype}{list(self.shape)})'

  def _foresee(self, upcoming: np.ndarray | None) -> None:
    """Drops what is not expected any more, and begins what is, up to the bound."""
    wanted = dict.fromkeys([] if upcoming is None else upcoming.tolist())
    for row in [row for row in self._waiting if row not in wanted]:
      self._waiting.pop(row).cancel()
    room = self.ahead // max(1, self.example_bytes)
    for row in wanted:
      if len(self._waiting) >= room:
        break
      if row not in self._waiting:
        self._waiting[row] = self._workers.submit(self._alone, row)

  def _into(self, row: int, out: np.ndarray) -> None:
    self._make(row, out)
    with self._count_lock:
      self.made += 1

  def _alone(self, row: int) -> np.ndarray:
    out = np.empty(self.shape[1:], self.dtype)
    self._into(row, out)
    return out


def is_decoded(array: Any) -> bool:
  """Whether an array's examples are made when they are asked for."""
  return isinstance(array, Chosen) and isinstance(array.base, Decoded)


def head(array: Any, most: int) -> Any:
  """Returns the first rows of an array; those of a decoded one are not decoded yet."""
  return array.choose_rows(np.arange(min(most, len(array)))) if is_decoded(array) else array[:most]


def expect(inputs: Any, rows: np.ndarray) -> None:
  """Tells every leaf that decodes which examples will be asked for after the next ones: `rows` int64[...]."""
  import jax

  for leaf in jax.tree.leaves(inputs):
    if is_decoded(leaf):
      leaf.base.expect(leaf.indices.take(np.asarray(rows).reshape(-1)))


def foresees(inputs: Any) -> bool:
  """Whether any leaf decodes its examples, so that it pays to say which ones come next."""
  import jax

  return any(is_decoded(leaf) for leaf in jax.tree.leaves(inputs))
