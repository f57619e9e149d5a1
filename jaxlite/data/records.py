"""A prepared cache: what was decoded and scaled once, in one file, read back row by row.

The file is named by a hash of the contents it was made of and of all that decides what is in it, so it is never stale.
It grows from its beginning, and beside it an index says how far it is whole: making it goes on where it was killed.
Each record has a checksum, looked at whenever it is read.
"""

from __future__ import annotations

import os
import pathlib
import shutil
import sys
import threading
import time
import weakref
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

import filelock
import numpy as np

from jaxlite.data.decoded import Workers
from jaxlite.host import files

_SAVE_SECONDS = 2.0
_ASIDE = 8  # records under way, for each thread


class Records:
  """Byte strings of a file, by row.

  Attributes:
    path: of the file.
    offsets: where each begins and the last ends, int64 [N + 1].
    sums: crc32 of each, uint32 [N].
  """

  def __init__(self, path: pathlib.Path, offsets: np.ndarray, sums: np.ndarray):
    self.path, self.offsets, self.sums = path, offsets, sums
    self._lock, self._file = threading.Lock(), open(path, 'rb')  # noqa: SIM115 - as long as the data set lives
    weakref.finalize(self, self._file.close)

  def read(self, row: int, out: np.ndarray | None = None) -> Any:
    """Returns a record, or writes it into `out`, uint8 of its size; None where it is damaged.

    Args:
      row: which.
      out: contiguous, or None.
    """
    start, end = self.offsets[row : row + 2].tolist()
    into = np.empty(end - start, np.uint8) if out is None else out.reshape(-1)
    if into.nbytes != end - start:
      return None
    try:
      if hasattr(os, 'preadv'):
        got = 0
        while got < end - start:
          step = os.preadv(self._file.fileno(), [memoryview(into)[got:]], start + got)
          if step <= 0:
            return None
          got += step
      else:
        with self._lock:
          self._file.seek(start)
          if self._file.readinto(memoryview(into)) != end - start:
            return None
    except OSError:
      return None
    return into if zlib.crc32(into) == int(self.sums[row]) else None

  def __reduce__(self) -> Any:
    return type(self), (self.path, self.offsets, self.sums)

  def __deepcopy__(self, memo: Any) -> Records:
    return self


def make_records(
  path: pathlib.Path,
  count: int,
  encode: Callable[[int], bytes],
  *,
  expected: int,
  workers: Workers,
  what: str,
  progress: bool = True,
) -> Records:
  """Returns the records of a file, made first where it is not whole.

  Args:
    path: of the file; its name covers what is in it.
    count: N.
    encode: row -> bytes, the same each time.
    expected: bytes of the whole, about; what the disk has to have.
    workers: threads.
    what: is kept, for the line of progress.
    progress: whether lines on the standard error tell how far it is.

  Raises:
    ValueError: it cannot be written, or the disk has no room for it.
  """
  index = path.with_suffix('.index.npz')
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(f'{path}.lock'):  # a second process waits for what the first makes
      done, offsets, sums = _read_index(index, count)
      if done and (not path.exists() or path.stat().st_size < offsets[done]):
        done = 0
      if done < count:
        free = shutil.disk_usage(path.parent).free
        if expected - int(offsets[done]) > free:
          raise ValueError(
            f'{path.parent} has {free / 1e9:.1f} GB free, the prepared {what} take about {expected / 1e9:.1f}: set '
            "JAXLITE_DATA to a folder with more, or take keep='jpeg' or keep='folder'"
          )
        _append(path, index, done, offsets, sums, encode, workers, what, progress)
  except OSError as error:
    raise ValueError(
      f"cannot keep prepared {what} in {path.parent} ({error}): set JAXLITE_DATA to another folder, or keep='folder'"
    ) from None
  return Records(path, offsets, sums)


def _append(
  path: pathlib.Path,
  index: pathlib.Path,
  done: int,
  offsets: np.ndarray,
  sums: np.ndarray,
  encode: Callable[[int], bytes],
  workers: Workers,
  what: str,
  progress: bool,
) -> None:
  count, first = len(sums), done
  began = saved = told = time.monotonic()
  jobs: list[Any] = []
  with open(path, 'r+b' if path.exists() else 'w+b') as file:
    file.truncate(int(offsets[done]))
    file.seek(int(offsets[done]))
    try:
      for row in range(done, count):
        while len(jobs) < _ASIDE * workers.threads and row + len(jobs) < count:
          jobs.append(workers.submit(encode, row + len(jobs)))
        content = jobs.pop(0).result()
        file.write(content)
        offsets[row + 1] = offsets[row] + len(content)
        sums[row] = zlib.crc32(content)
        done, now = row + 1, time.monotonic()
        if now - saved > _SAVE_SECONDS:
          _write_index(index, file, done, offsets, sums)
          saved = time.monotonic()
        if progress and now - told > 5:
          told, rate = now, (done - first) / (now - began)
          line = f'preparing {what}: {done:,} of {count:,} ({rate:,.0f} a second, {(count - done) / rate:,.0f} s to go)'
          print(line, file=sys.stderr, flush=True)
    finally:
      for job in jobs:
        job.cancel()
      _write_index(index, file, done, offsets, sums)


def _write_index(index: pathlib.Path, file: Any, done: int, offsets: np.ndarray, sums: np.ndarray) -> None:
  file.flush()
  os.fsync(file.fileno())  # what the index calls whole is whole also after the machine goes down
  with files.whole_file(index) as part, open(part, 'wb') as out:
    np.savez(out, done=done, offsets=offsets[: done + 1], sums=sums[:done])


def _read_index(index: pathlib.Path, count: int) -> tuple[int, np.ndarray, np.ndarray]:
  offsets, sums = np.zeros(count + 1, np.int64), np.zeros(count, np.uint32)
  try:
    with open(index, 'rb') as file, np.load(file, allow_pickle=False) as kept:
      done, before, known = int(kept['done']), kept['offsets'], kept['sums']
    if not (0 <= done <= count and before.shape == (done + 1,) and known.shape == (done,) and (before >= 0).all()):
      return 0, offsets, sums
    offsets[: done + 1], sums[:done] = before, known
    return done, offsets, sums
  except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile):
    return 0, offsets, sums
