"""TensorBoard's files of a run: written point by point, cut back where a resume goes on, never read for anything.

An event file is a row of records, each a length, its checksum, the event and its checksum; an event is a protocol
buffer of a time, a step and numbers by tag. That is little enough to write here: nothing is queued in another process,
so it is known which bytes hold which points. A resume cuts the files at what its checkpoint knows and goes on in a new
one, since a TensorBoard that is open has read on in the old one.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import socket
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from jaxlite.run.protobuf import PREFIX, VERSION, double, embedded, float32, record_of, varint
from jaxlite.run.workdir import unlinked

_MOST = 64  # files, one a resume; with more the points are written into one again
_PIECE = 1 << 20  # bytes
_PREFIX = PREFIX


class EventFiles:
  """Writes points as scalars into a folder that TensorBoard reads.

  >>> import tempfile
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   files = EventFiles(Path(folder) / 'tensorboard', None, lambda: [])
  ...   files.add({'kind': 'train', 'step': 1, 'time': 0.0, 'loss': 0.5})
  ...   known = files.keep()
  ...   files.close()
  >>> len(known)
  1
  """

  def __init__(
    self, folder: Path, kept: Sequence[Sequence[Any]] | None, points: Callable[[], Iterable[Mapping[str, Any]]]
  ):
    """Cuts the files back to what a checkpoint knows of them, or writes them anew where they are not as it knows them.

    Args:
      folder: made where it is missing.
      kept: what `keep` gave then; None where it is not known.
      points: () -> all points so far, asked only where the files are written anew.

    Raises:
      ValueError: the folder is a link.
    """
    self.folder, self._points = folder, points  # where they lie may change: then `keep` writes them there
    self._done: list[list[Any]] = []  # [name, bytes, sha256] of the files before
    self._file: BinaryIO = io.BytesIO()  # until one is open
    self._torn = False  # a point was not written whole
    if folder.is_symlink():
      raise ValueError(f"{folder} is a link, and what stands behind it is not the run's: remove the link")
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(kept, Sequence) and len(kept) < _MOST and all(_stands(folder, file) for file in kept):
      self._done = [list(file) for file in kept]
      for name, length, _ in self._done:
        os.truncate(folder / name, length)
      self._begin()
    else:
      self._anew()

  def add(self, point: Mapping[str, Any]) -> None:
    """Writes the numbers of a point of the record, and hands them to the kernel."""
    self._torn = True
    self._put(_event(point))
    self._flush()
    self._torn = False

  def keep(self) -> list[list[Any]]:
    """Returns what a checkpoint needs to know of the files; writes them again where they were taken away."""
    if self._torn or not self._there():
      self._anew()
    return [*self._done, [self._name, self._length, self._hash.hexdigest()]]

  @property
  def closed(self) -> bool:
    """Whether no file is open: it was closed, or another could not be made."""
    return self._file.closed

  def close(self) -> None:
    """Closes the file; nothing is written after."""
    self._file.close()

  def _anew(self) -> None:
    self._done = []
    with contextlib.suppress(OSError):  # of a disk that came loose
      self._file.close()
    self.folder.mkdir(parents=True, exist_ok=True)
    self._begin()
    for point in self._points():
      self._put(_event(point))
    self._flush()
    self._torn = False

  def _begin(self) -> None:
    """Removes what no checkpoint knows of, and opens a file whose name sorts behind those that are left."""
    names = [name for name, _, _ in self._done]
    seconds = max([int(time.time()), *(_seconds(name) + 1 for name in names)])
    for old in self.folder.glob(f'{_PREFIX}*'):
      if old.name not in names:
        seconds = max(seconds, _seconds(old.name) + 1)  # an open TensorBoard goes on to a later name only
        old.unlink()
    self._name = f'{_PREFIX}{seconds:010}.{socket.gethostname()}'
    self._file = open(self.folder / self._name, 'wb', opener=unlinked)  # noqa: SIM115
    self._length, self._hash = 0, hashlib.sha256()
    self._put(double(1, time.time()) + embedded(3, VERSION))
    self._flush()

  def _there(self) -> bool:
    try:
      here = os.stat(self.folder / self._name)
      return os.path.samestat(here, os.fstat(self._file.fileno())) and all(
        (self.folder / name).exists() for name, _, _ in self._done
      )
    except (OSError, ValueError):  # or closed
      return False

  def _put(self, event: bytes) -> None:
    record = record_of(event)
    self._said(lambda: self._file.write(record))
    self._length += len(record)
    self._hash.update(record)

  def _flush(self) -> None:
    self._said(self._file.flush)

  def _said(self, act: Callable[[], Any]) -> None:
    try:
      act()
    except OSError as error:
      raise OSError(error.errno, error.strerror, str(self.folder / self._name)) from error


def _stands(folder: Path, kept: Any) -> bool:
  """Whether the first bytes of a file are those that were written."""
  try:
    name, left, digest = kept
    if not _is_ours(name) or not isinstance(left, int):
      return False
    found = hashlib.sha256()
    with open(folder / name, 'rb', opener=unlinked) as file:
      while left and (piece := file.read(min(left, _PIECE))):
        found.update(piece)
        left -= len(piece)
  except (OSError, ValueError, TypeError):
    return False
  return left == 0 and found.hexdigest() == digest


def _is_ours(name: Any) -> bool:
  return isinstance(name, str) and name.startswith(_PREFIX) and os.path.basename(name) == name


def _seconds(name: str) -> int:
  part = name.split('.')[3]
  return int(part) if part.isdigit() else 0


def _event(point: Mapping[str, Any]) -> bytes:
  values = b''
  for name, value in point.items():
    if name not in ('kind', 'step', 'time') and isinstance(value, int | float):
      tag = f'{point["kind"]}/{name}'.encode()
      values += embedded(1, embedded(1, tag) + b'\x15' + float32(value))
  return double(1, point['time']) + b'\x10' + varint(point['step']) + (embedded(5, values) if values else b'')
