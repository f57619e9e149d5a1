"""The workdir of a run: whether one may live there, and that it lives there alone.

The kernel holds the lock on an open file and lets go when the process dies, however it dies: a killed run
leaves nothing to clean up. What the file says is for the message only. Where the system cannot lock (some
network file systems, Windows) the file's word is all there is: a process of this machine that has died is
seen through, one of another machine is believed.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import json
import os
import socket
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxlite.host.files import parsed_json

try:
  import fcntl
except ImportError:  # Windows
  fcntl = None

_FILE = '.lock'


class WorkdirError(ValueError):
  """A run cannot live in this workdir."""


def check_workdir(workdir: str | os.PathLike[str]) -> Path:
  """Makes a run's folder and makes sure that it can be written.

  Args:
    workdir: a local path; `~` is the home.

  Returns:
    Its absolute path.

  Raises:
    TypeError: neither a str nor a Path.
    WorkdirError: a bucket or URL, a file in the way, a name that no file has or that is no text here, or a folder that
      cannot be written.

  >>> check_workdir('gs://bucket/run')
  Traceback (most recent call last):
  ...
  jaxlite.run.workdir.WorkdirError: a workdir is a local folder, got 'gs://bucket/run': ...
  """
  if not isinstance(workdir, str | os.PathLike):
    raise TypeError(f'a workdir is a local folder, a str or a Path; got {type(workdir).__name__}: name one')
  text = os.fspath(workdir)
  if not text:
    raise WorkdirError("a workdir is a local folder, got '': name one")
  if '://' in text:
    raise WorkdirError(
      f'a workdir is a local folder, got {text!r}: buckets come later, copy there when the run is done'
    )
  if '\0' in text:
    raise WorkdirError(f'a workdir is a local folder, and no name has a zero byte; got {text!r}: name another')
  try:
    path = Path(text).expanduser().absolute()
  except RuntimeError:
    raise WorkdirError(f'the home in the workdir {text!r} is not known here: give another workdir') from None
  except FileNotFoundError:
    raise WorkdirError(
      f'the workdir {text!r} lies in the folder where this process stands, which was removed: go to another, or give a '
      'full path'
    ) from None
  try:
    str(path).encode()
  except UnicodeEncodeError:  # bytes, in its name or above it, that are no text here; checkpoints are named in UTF-8
    named = text if not text.isascii() else str(path)
    raise WorkdirError(
      f'a workdir is named in text, and under the encoding {sys.getfilesystemencoding()} of this process {named!a} is '
      'none: set PYTHONUTF8=1 (or LC_ALL=C.UTF-8), or give another workdir'
    ) from None
  try:
    path.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=path):  # permission bits do not tell: try
      pass
  except OSError as error:
    raise WorkdirError(
      f'the workdir {path} cannot be written ({error.strerror or error}): give another workdir'
    ) from error
  return path


@contextlib.contextmanager
def lock(workdir: str | os.PathLike[str]) -> Iterator[Path]:
  """Keeps every other run out of a workdir while the context lasts.

  Args:
    workdir: an existing folder.

  Returns:
    A context manager that gives the folder's path.

  Raises:
    WorkdirError: another run has it; says which process, where and since when.

  >>> with tempfile.TemporaryDirectory() as folder, lock(folder):
  ...   with lock(folder):
  ...     pass
  Traceback (most recent call last):
  ...
  jaxlite.run.workdir.WorkdirError: another run has the workdir ...
  """
  path = Path(workdir).absolute()
  file = path / _FILE
  try:
    handle = open(file, 'a+', encoding='utf-8', opener=unlinked)  # noqa: SIM115  (appended to, never emptied)
  except OSError as error:
    raise WorkdirError(f'{file} cannot be opened ({error.strerror}): whose is it? Give another workdir') from error
  try:
    held = _kernel_lock(handle)
    holder = _read(handle)
    if held is False or (held is None and holder and _lives(holder)):
      raise WorkdirError(_refusal(path, holder, sure=held is False))
    _write(handle, {'pid': os.getpid(), 'host': socket.gethostname(), 'since': _now()})
    try:
      yield path
    finally:
      with contextlib.suppress(OSError):  # of a mount that came loose meanwhile
        _write(handle, None)
  finally:
    with contextlib.suppress(OSError):
      handle.close()  # which lets go of the lock


def is_held(workdir: Path) -> bool:
  """Tells whether this very process holds the lock of a folder: of the folder that stands there now."""
  try:
    with open(workdir / _FILE, encoding='utf-8', opener=unlinked) as handle:
      holder = _read(handle)
  except OSError:
    return False
  return holder.get('pid') == os.getpid() and holder.get('host') == socket.gethostname()


def unlinked(path: str, flags: int) -> int:
  """Opens a file for `open`, and never what a link in its place names: what stands behind is not the run's.

  Raises:
    OSError: it is a link, or no plain file: a pipe would be waited for.
  """
  handle = os.open(path, flags | getattr(os, 'O_NOFOLLOW', 0) | getattr(os, 'O_NONBLOCK', 0), 0o666)
  if not stat.S_ISREG(os.fstat(handle).st_mode):
    os.close(handle)
    raise OSError(errno.EINVAL, 'no plain file', os.fspath(path))
  return handle


def _kernel_lock(handle: Any) -> bool | None:
  """True: ours. False: another's. None: this system cannot tell."""
  if fcntl is None:
    return None
  try:
    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except OSError as error:
    return False if error.errno in (errno.EWOULDBLOCK, errno.EACCES) else None
  return True


def _read(handle: Any) -> dict[str, Any]:
  handle.seek(0)
  try:
    holder = parsed_json(handle.read(1 << 16))
  except ValueError:  # empty, or the other run is writing it right now
    return {}
  return holder if isinstance(holder, dict) else {}


def _write(handle: Any, holder: dict[str, Any] | None) -> None:
  handle.seek(0)
  handle.truncate()
  handle.write(json.dumps(holder) if holder else '')
  handle.flush()


def _lives(holder: dict[str, Any]) -> bool:
  if holder.get('host') != socket.gethostname() or os.name == 'nt':  # os.kill on Windows kills
    return True
  try:
    os.kill(int(holder.get('pid', 0)), 0)
  except ProcessLookupError:
    return False
  except (PermissionError, ValueError, TypeError, OverflowError):
    return True
  return True


def _refusal(path: Path, holder: dict[str, Any], *, sure: bool) -> str:
  who = 'process {pid} on {host}, since {since}'.format_map({'pid': '?', 'host': '?', 'since': '?', **holder})
  fix = 'wait for it, end it, or give another workdir'
  if not sure:
    fix += f'; if it is gone, delete {path / _FILE}'
  elif holder and not _lives(holder):
    fix = 'that process is gone, but a child of it lives on: end it, or give another workdir'
  return f'another run has the workdir {path} ({who}): {fix}'


def _now() -> str:
  return datetime.datetime.now().astimezone().isoformat(sep=' ', timespec='seconds')
