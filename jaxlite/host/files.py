"""Files: written whole or not at all, made aside and renamed, and where a user keeps what can be made again."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


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
    A path in the same folder that belongs to this block alone; the block writes that file. It is there already, empty,
    under a name that nobody could know before: a link that waits there in a shared folder is not written through.

  >>> with tempfile.TemporaryDirectory() as folder:
  ...   with whole_file(Path(folder) / 'a.txt') as part:
  ...     _ = part.write_text('all of it')
  ...   (Path(folder) / 'a.txt').read_text(), os.listdir(folder)
  ('all of it', ['a.txt'])
  """
  path = Path(path)
  part = path.with_name(f'.{path.name}.{secrets.token_hex(8)}.part')
  try:
    os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
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


# What a mounted folder answers whose server or process is gone for now: FUSE (Google Drive), NFS, SMB, a USB disk; or
# that nobody may write to any more: a ticket that ran out (AFS, NFS with Kerberos), a disk mounted anew as read-only.
_LOOSE = tuple(
  getattr(errno, name)
  for name in (
    *('EIO', 'ENXIO', 'ENODEV', 'ENOTCONN', 'ESTALE', 'EREMOTEIO', 'ETIMEDOUT', 'ECONNABORTED', 'ECONNRESET'),
    *('EHOSTDOWN', 'EHOSTUNREACH', 'ENETDOWN', 'ENETUNREACH', 'ENOLINK', 'ECOMM', 'ESHUTDOWN'),
    *('EROFS', 'EACCES', 'EPERM', 'EKEYEXPIRED', 'EKEYREVOKED', 'EKEYREJECTED'),
  )
  if hasattr(errno, name)
)


def comes_loose(error: BaseException | None) -> bool:
  """Tells whether an error, or one that it came from, says that a mounted folder is out of reach, perhaps for a while.

  >>> comes_loose(OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN)))
  True
  >>> comes_loose(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
  False
  """
  while error is not None:
    if isinstance(error, OSError) and error.errno in _LOOSE:
      return True
    if any(os.strerror(code) in str(error) for code in _LOOSE):  # libraries in C++ tell it in their own errors
      return True
    error = error.__cause__ or error.__context__
  return False


def read_file(path: str | os.PathLike[str]) -> bytes:
  """Returns what a file holds, if it is one: a pipe would be waited for, a device read without end.

  Raises:
    OSError: it cannot be read, is no plain file, or larger than what memory is left.

  >>> read_file(os.devnull)
  Traceback (most recent call last):
    ...
  OSError: [Errno 22] no plain file: '/dev/null'
  """
  with open(os.open(path, os.O_RDONLY | getattr(os, 'O_NONBLOCK', 0) | getattr(os, 'O_BINARY', 0)), 'rb') as file:
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
      raise OSError(errno.EINVAL, 'no plain file', os.fspath(path))
    try:
      return file.read()
    except MemoryError:
      raise OSError(errno.EFBIG, 'larger than the memory that is left', os.fspath(path)) from None


def is_safe(path: str | os.PathLike[str]) -> bool:
  """Tells whether what a file or folder holds may be run: it is this user's (or root's), and nobody else may write it.

  >>> is_safe(os.devnull)
  False
  """
  found = os.lstat(path)
  if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
    return False
  return not hasattr(os, 'geteuid') or (found.st_uid in (0, os.geteuid()) and not found.st_mode & 0o022)


def is_own_file(path: str | os.PathLike[str]) -> bool:
  """Tells whether a plain file of this user's (or root's) is there, whoever else may write it: in a folder of
  `own_folder` nobody else can, and other programs write there as the user's umask says.

  >>> is_own_file(os.devnull)
  False
  """
  try:
    found = os.lstat(path)
  except OSError:
    return False
  return stat.S_ISREG(found.st_mode) and (not hasattr(os, 'geteuid') or found.st_uid in (0, os.geteuid()))


def own_folder(path: Path) -> None:
  """Makes a folder that nobody else may enter, for what will be run; takes others' rights from one that is there.

  Raises:
    OSError: it cannot be made, or belongs to another user.
  """
  path.mkdir(parents=True, exist_ok=True, mode=0o700)
  path = path.resolve()  # a cache may lie on another disk
  found = path.stat()
  if hasattr(os, 'geteuid') and found.st_uid == os.geteuid() and found.st_mode & 0o077:
    path.chmod(stat.S_IMODE(found.st_mode) & ~0o077)
  if not is_safe(path):
    raise PermissionError(errno.EPERM, 'it belongs to another user', os.fspath(path))


def parsed_json(text: str | bytes) -> Any:
  """Returns what a JSON text holds.

  Raises:
    ValueError: it is no JSON, or nested too deep to be any of ours.

  >>> parsed_json('[' * 100_000)
  Traceback (most recent call last):
    ...
  ValueError: nested too deep
  """
  try:
    return json.loads(text)
  except RecursionError:
    raise ValueError('nested too deep') from None


def read_json(path: str | os.PathLike[str]) -> Any:
  """Returns what a JSON file holds: see `read_file` and `parsed_json`."""
  return parsed_json(read_file(path))


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
