"""One look at every file of a data set, remembered: which are damaged, what they hold, and what they come to together.

A file that turns out broken in the middle of a run costs the run, so each is decoded once before the first step. The
same look gives what else asks for every example: hashes of contents, mean and deviation, fingerprints of pictures that
look alike. It is kept among the user's caches, file by file (by path, size and time of change), and written while it
grows: a start that was killed goes on where it was, and the next start takes a moment.
"""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import sys
import time
import zipfile
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxlite.data import cache
from jaxlite.data.decoded import Workers
from jaxlite.errors import counted
from jaxlite.host import files as host_files

_LAYOUT = 1  # of what is remembered; another number makes older looks invisible
_SAVE_SECONDS = 3.0  # between two writes of a look that grows; ten times what a write takes, where that is longer
_QUIET_SECONDS = 2.0  # a look that is over before says nothing
_ASIDE = 64  # files whose look is under way, for each thread

Look = Callable[[str, bytes], dict[str, Any]]


class Inspection(NamedTuple):
  """What was found in files, a row for each.

  Attributes:
    digest: sha256 of each file, uint8 [N, 32].
    error: '' or why it cannot be used, str [N].
    columns: what else was found, by name: arrays [N, ...], 0 where a file cannot be used.
  """

  digest: np.ndarray
  error: np.ndarray
  columns: dict[str, np.ndarray]

  def fingerprint(self, files: Sequence[str], rows: np.ndarray, about: str) -> str:
    """Returns sha256 over names and contents of some files and what is made of them, in hexadecimal."""
    found = hashlib.sha256(about.encode())
    for row in rows.tolist():
      found.update(files[row].encode('utf-8', 'surrogateescape') + b'\0' + self.digest[row].tobytes())
    return found.hexdigest()


def inspect_files(
  root: pathlib.Path,
  files: Sequence[str],
  look: Look,
  empty: dict[str, np.ndarray],
  *,
  about: str,
  what: str,
  workers: Workers,
  progress: bool = True,
) -> Inspection:
  """Looks at every file once, by threads, and remembers what was found.

  Args:
    root: the folder of the files.
    files: relative paths.
    look: (path, content) -> values by name, each like those of `empty`; a ValueError says why a file cannot be used.
    empty: by name, what stands for a file that cannot be used: its dtype and shape are the column's.
    about: what decides the result beside the files, such as the size that pictures are brought to.
    what: the files are called, for the line of progress: 'pictures'.
    workers: threads.
    progress: whether lines on the standard error tell how far it is, where it takes seconds.

  Returns:
    The Inspection, in the order of `files`.
  """
  stats = [_stat(root / file) for file in files]
  count = len(files)
  digest = np.zeros((count, 32), np.uint8)
  error = np.full(count, '', object)
  columns = {name: np.zeros((count, *one.shape), one.dtype) for name, one in empty.items()}
  done = np.zeros(count, bool)
  place = _place(root, about)
  known = _remembered(place, empty)
  for row, key in enumerate(zip(files, stats, strict=True)):
    if stats[row] and key in known:
      source, old = known[key]
      digest[row], error[row], done[row] = source['digest'][old], str(source['error'][old]), True
      for name in columns:
        columns[name][row] = source[name][old]
  left = np.flatnonzero(~done).tolist()
  if not left:
    return Inspection(digest, error.astype(str), columns)

  def one(row: int) -> tuple[bytes, str, dict[str, Any]]:
    path = str(root / files[row])
    try:
      content = host_files.read_file(path)
    except OSError as failed:
      return b'', f'{path} cannot be read: {failed.strerror or failed}', {}
    sha256 = hashlib.sha256(content).digest()
    try:
      return sha256, '', look(path, content)
    except ValueError as failed:
      return sha256, str(failed), {}

  began, saved, cost, told = time.monotonic(), time.monotonic(), 0.0, 0.0
  jobs: list[tuple[int, Any]] = []
  upcoming = iter(left)

  def begin() -> None:
    for row in upcoming:
      jobs.append((row, workers.submit(one, row)))
      return

  def keep() -> None:
    values = {'digest': digest, 'error': error.astype(str), **columns}
    _remember(place, files, stats, done, values)

  for _ in range(_ASIDE * workers.threads):
    begin()
  finished = 0
  try:
    while jobs:
      row, job = jobs.pop(0)
      sha256, error[row], found = job.result()
      digest[row] = np.frombuffer(sha256.ljust(32, b'\0'), np.uint8)
      for name, value in found.items():
        columns[name][row] = value
      done[row], finished = True, finished + 1
      begin()
      now = time.monotonic()
      if now - saved > max(_SAVE_SECONDS, 10 * cost):
        keep()
        saved, cost = time.monotonic(), time.monotonic() - now
      if progress and now - began > _QUIET_SECONDS and now - told > 5:
        told = now
        rate = finished / (now - began)
        _say(
          f'looking at {what} once: {count - len(left) + finished:,} of {count:,} '
          f'({rate:,.0f} a second, {(len(left) - finished) / rate:,.0f} s to go)'
        )
  finally:
    for _, job in jobs:
      job.cancel()
    keep()
  if told:
    _say(f'looked at {counted(count, what.removesuffix("s"))}; remembered in {place.parent}')
  return Inspection(digest, error.astype(str), columns)


def _say(line: str) -> None:
  print(line, file=sys.stderr, flush=True)


def _stat(path: pathlib.Path) -> tuple[int, int] | tuple[()]:
  try:
    found = os.stat(path)
  except OSError:
    return ()
  return found.st_size, found.st_mtime_ns


def _place(root: pathlib.Path, about: str) -> pathlib.Path:
  told = json.dumps([_LAYOUT, os.fsencode(os.path.realpath(root)).hex(), about])
  return cache.root() / 'inspected' / f'{hashlib.sha256(told.encode()).hexdigest()[:20]}.npz'


def _remembered(place: pathlib.Path, empty: dict[str, np.ndarray]) -> dict[Any, tuple[dict[str, np.ndarray], int]]:
  """(file, (size, time)) -> where its values stand; nothing where there are none, or not such as are wanted."""
  try:
    with open(place, 'rb') as file, np.load(file, allow_pickle=False) as kept:
      found = {name: kept[name] for name in kept.files}
    names = bytes(found['files']).decode('utf-8', 'surrogateescape').split('\0')
    sizes, times = found['sizes'].tolist(), found['times'].tolist()
    if not all(found[name].shape == (len(names), *one.shape) for name, one in empty.items()):
      return {}
    if not len(names) == len(sizes) == len(times) == len(found['digest']) == len(found['error']):
      return {}
  except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
    return {}
  return {
    (name, (size, changed)): (found, row)
    for row, (name, size, changed) in enumerate(zip(names, sizes, times, strict=True))
  }


def _remember(
  place: pathlib.Path, files: Sequence[str], stats: Sequence[Any], done: np.ndarray, values: dict[str, np.ndarray]
) -> None:
  """Writes what was found so far. Where nothing can be written, the next start looks again."""
  read = done & values['digest'].any(axis=1)  # what could not be read may be tomorrow, unchanged
  rows = [row for row in np.flatnonzero(read).tolist() if stats[row]]
  if not rows:
    return
  names = '\0'.join(files[row] for row in rows).encode('utf-8', 'surrogateescape')
  arrays = {name: value[rows] for name, value in values.items()}
  arrays |= {'files': np.frombuffer(names, np.uint8), 'sizes': np.array([stats[row][0] for row in rows])}
  arrays['times'] = np.array([stats[row][1] for row in rows])
  try:
    place.parent.mkdir(parents=True, exist_ok=True)
    with host_files.whole_file(place) as part, open(part, 'wb') as file:
      np.savez(file, **arrays)
  except OSError:
    return
