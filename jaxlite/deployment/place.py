"""The folder that files are written to: it can be, nobody else writes there, and what a killed deployment left goes."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from jaxlite.host.files import expanded

try:
  import fcntl
except ImportError:  # Windows
  fcntl = None

ASIDE = '.trying-'  # how the folders begin in which files are tried
BEFORE = '.before-'  # and those that hold what is being replaced


def writable(out: str | os.PathLike[str]) -> Path:
  """Makes sure that a folder can be written to, and leaves nothing of the trial, nor the folder where it was not there.

  Args:
    out: the folder; `~` is the home.

  Returns:
    Its absolute path.

  Raises:
    ValueError: it cannot be written.
  """
  path = expanded(out).absolute()
  made: list[Path] = []
  try:
    for each in reversed([path, *path.parents]):
      if not each.is_dir():
        each.mkdir()
        made.append(each)
    trial = path / f'.jaxlite-{os.getpid()}'
    trial.touch()
    trial.unlink()
  except (OSError, ValueError) as error:  # a name that no file can have
    raise _refused(path, error) from None
  finally:
    with contextlib.suppress(OSError):  # somebody else writes there by now
      for each in reversed(made):
        each.rmdir()
  return path


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
  """Makes a folder and keeps other deployments out of it while the context lasts; where the system can, by a lock that
  leaves no file and goes with the process.

  Raises:
    ValueError: it cannot be made, or another deployment writes there.

  >>> import tempfile
  >>> with tempfile.TemporaryDirectory() as folder, alone(Path(folder)):
  ...   with alone(Path(folder)):
  ...     pass
  Traceback (most recent call last):
    ...
  ValueError: another deployment writes to ...: wait for it, or give another folder by out=
  """
  try:
    path.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise _refused(path, error) from None
  with contextlib.ExitStack() as stack:
    locked = False
    if fcntl is not None:
      handle = os.open(path, os.O_RDONLY)
      stack.callback(os.close, handle)
      try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        locked = True
      except BlockingIOError:
        raise ValueError(f'another deployment writes to {path}: wait for it, or give another folder by out=') from None
      except OSError:  # a file system that locks no folders
        pass
    if locked:  # so whoever made these was killed
      for left in (*path.glob(f'{ASIDE}*'), *path.glob(f'{BEFORE}*')):
        shutil.rmtree(left, ignore_errors=True)
    yield


@contextlib.contextmanager
def replacing(path: Path, names: Iterable[str]) -> Iterator[None]:
  """Takes files out of the way while new ones of these names are written, so that no two networks lie side by side. If
  that ends by an error (a disk that is full) the new ones go and the old ones are back.

  Args:
    path: the folder, which is this deployment's alone.
    names: of the files.

  >>> import tempfile
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   old = Path(folder, 'values')
  ...   _ = old.write_text('old')
  ...   with contextlib.suppress(OSError), replacing(Path(folder), ['values']):
  ...     _ = old.write_text('new')
  ...     raise OSError('full')
  ...   old.read_text(), len(list(Path(folder).iterdir()))
  ('old', 1)
  """
  names = list(names)
  old = [name for name in names if (path / name).exists()]
  if not old:
    yield
    return
  aside = Path(tempfile.mkdtemp(prefix=BEFORE, dir=path))
  try:
    for name in old:
      os.replace(path / name, aside / name)
    yield
  except BaseException:
    for name in names:
      if (aside / name).exists():
        os.replace(aside / name, path / name)
      elif name not in old:
        (path / name).unlink(missing_ok=True)
    raise
  finally:
    shutil.rmtree(aside, ignore_errors=True)


def _refused(path: Path, error: OSError | ValueError) -> ValueError:
  shown = str(path).encode('unicode_escape').decode() if '\0' in str(path) else path
  why = getattr(error, 'strerror', None) or error
  return ValueError(f'the folder {shown} cannot be written ({why}): give another by out=')
