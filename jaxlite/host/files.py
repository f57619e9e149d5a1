"""Files: written whole or not at all, made aside and renamed, and where a user keeps what can be made again."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path


def user_cache() -> Path:
  """Returns jaxlite's folder among the user's caches: $XDG_CACHE_HOME/jaxlite, else where the system keeps caches.

  Everything in it can be made again. It is not made here.

  >>> user_cache().name
  'jaxlite'
  """
  named = os.environ.get('XDG_CACHE_HOME')
  if named:
    base = Path(named)
  elif sys.platform == 'darwin':
    base = Path('~/Library/Caches')
  elif sys.platform == 'win32':
    base = Path(os.environ.get('LOCALAPPDATA', '~/AppData/Local'))
  else:
    base = Path('~/.cache')
  try:
    return base.expanduser() / 'jaxlite'
  except RuntimeError:  # no HOME, and no entry for this user: a container
    return Path(tempfile.gettempdir()) / f'jaxlite-{os.getuid() if hasattr(os, "getuid") else "user"}'


def expanded(path: str | os.PathLike[str]) -> Path:
  """Returns a path with its `~` as the home.

  Raises:
    ValueError: the home is not known: no HOME, and no entry for this user (a container). A folder of the name `~` is
      never made in its place.

  >>> expanded('runs/mine').as_posix()
  'runs/mine'
  """
  try:
    return Path(path).expanduser()
  except RuntimeError:
    raise ValueError(f'the home in {os.fspath(path)!r} is not known here: set HOME, or give a full path') from None


@contextlib.contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[Path]:
  """Gives the block a name to write to, and renames that file to `path` when the block ends well.

  So a reader finds the old file or the new one, whole, and of several writers at once one wins. When the block raises,
  the old file stands and nothing is left over.

  Args:
    path: of the file; its folder exists.

  Yields:
    A path in the same folder that belongs to this thread alone; the block writes that file.

  >>> with tempfile.TemporaryDirectory() as folder:
  ...   with whole_file(Path(folder) / 'a.txt') as part:
  ...     _ = part.write_text('all of it')
  ...   (Path(folder) / 'a.txt').read_text(), os.listdir(folder)
  ('all of it', ['a.txt'])
  """
  path = Path(path)
  part = path.with_name(f'.{path.name}.{os.getpid()}-{threading.get_ident()}.part')
  try:
    yield part
    os.replace(part, path)
  except OSError as error:
    if error.errno is None or error.filename is not None:
      raise
    raise OSError(error.errno, error.strerror, str(path)) from error  # a write does not say to where
  finally:
    part.unlink(missing_ok=True)


def write_text(path: str | os.PathLike[str], text: str) -> None:
  """Writes a text file, UTF-8, whole or not at all (see `whole_file`)."""
  write_bytes(path, text.encode())


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
  """Writes a file whole or not at all (see `whole_file`)."""
  with whole_file(path) as part:
    part.write_bytes(data)


@contextlib.contextmanager
def scratch(where: Path, prefix: str, *, stale_seconds: float) -> Iterator[Path]:
  """Gives the block a fresh folder to make something in, removed at the end; `settle` takes out what is complete.

  A killed process leaves its scratch folder behind: the next one removes it once it is old enough.

  Args:
    where: the folder that it is made in; made where it is missing.
    prefix: of its name, which no other kind of scratch in the same place has.
    stale_seconds: of this age, scratch was left by a process that was killed.

  Yields:
    The folder, empty.

  Raises:
    OSError: it cannot be written.
  """
  where.mkdir(parents=True, exist_ok=True)
  for old in where.glob(f'{prefix}*'):
    with contextlib.suppress(FileNotFoundError):  # its process has just removed it
      if time.time() - old.stat().st_mtime > stale_seconds:
        shutil.rmtree(old, ignore_errors=True)
  with tempfile.TemporaryDirectory(prefix=prefix, dir=where) as folder:
    yield Path(folder)


def settle(made: Path, final: Path, complete: Callable[[Path], bool]) -> None:
  """Renames a complete folder into its place, unless another process was first with the same.

  Args:
    made: on the same file system as `final`.
    final: its place; the folder above is made where it is missing.
    complete: tells whether a folder at `final` will do instead.

  Raises:
    OSError: it cannot be renamed, and what stands there is not complete.
  """
  final.parent.mkdir(parents=True, exist_ok=True)
  try:
    os.rename(made, final)
  except OSError:
    if not complete(final):
      raise
