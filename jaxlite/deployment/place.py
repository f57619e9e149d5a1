"""The folder that files are written to: it can be, nobody else writes there, and files are replaced all or none."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from jaxlite.host.files import expanded, read_json, write_text

try:
  import fcntl
except ImportError:  # Windows
  fcntl = None

ASIDE = '.trying-'  # how the folders begin in which files are tried
READY = '.ready-'  # and those of a deployment that is whole, on the way to its place
_TRIAL = '.jaxlite-'  # empty files, by which it is seen that one may write
_GONE = 'gone.json'  # in the latter: names of files that it replaces by nothing


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
    trial = path / f'{_TRIAL}{os.getpid()}'
    trial.touch()
    trial.unlink(missing_ok=True)
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
  leaves no file and goes with the process. What a killed deployment left half done goes, what it had done is finished.

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
  made = [each for each in (path, *path.parents) if not each.exists()]
  try:
    path.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise _refused(path, error) from None
  with contextlib.ExitStack() as stack:
    stack.push(functools.partial(_unmade, made))
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
      for left in path.glob(f'{ASIDE}*'):
        shutil.rmtree(left, ignore_errors=True)
      for left in path.glob(f'{_TRIAL}*'):
        left.unlink(missing_ok=True)
    _finish(path)
    yield


@contextlib.contextmanager
def replacing(path: Path, names: Iterable[str]) -> Iterator[Path]:
  """Gives the block a folder to write files into, which take the place of the old ones together when it ends well.

  When it raises, the old files are as they were. A process may be killed at any moment: until the new files are all
  there the old ones stand, untouched; from then on the new ones are there, and where the last of them was not yet moved
  to its place, `alone` does that on the next call.

  Args:
    path: the folder, which is this deployment's alone.
    names: of the files that go: those that the block does not write anew are removed.

  Yields:
    The folder of the new files.

  Raises:
    ValueError: a folder bears one of the names, or an old file cannot be replaced.

  >>> import tempfile
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   old = Path(folder, 'values')
  ...   _ = old.write_text('old')
  ...   with contextlib.suppress(OSError), replacing(Path(folder), ['values']) as new:
  ...     _ = (new / 'values').write_text('new')
  ...     raise OSError('full')
  ...   old.read_text(), len(list(Path(folder).iterdir()))
  ('old', 1)
  """
  names = list(names)
  for name in names:
    if (path / name).is_dir():
      raise ValueError(f'{path / name} is a folder where a file is written: move it, or give another folder by out=')
  new = Path(tempfile.mkdtemp(prefix=ASIDE, dir=path))
  try:
    yield new
    gone = [name for name in names if not (new / name).exists()]
    write_text(new / _GONE, json.dumps(gone))
    os.rename(new, path / new.name.replace(ASIDE, READY, 1))  # from here on it is deployed
  except BaseException:
    shutil.rmtree(new, ignore_errors=True)
    raise
  _finish(path)


def _finish(path: Path) -> None:
  """Moves what is deployed to its place, perhaps for a process that was killed there; twice is as good as once."""
  for ready in sorted(path.glob(f'{READY}*')):
    try:
      for name in _names_in(ready / _GONE):
        (path / name).unlink(missing_ok=True)
      for each in sorted(ready.iterdir()):
        if each.name != _GONE and not each.is_dir():
          os.replace(each, path / each.name)
    except OSError as error:
      with contextlib.suppress(OSError):
        if not ready.exists():  # another process was faster, on a file system that locks no folders
          continue
      why = error.strerror or error
      raise ValueError(
        f'{error.filename2 or error.filename} cannot be replaced ({why}): the new files are in {ready}, and the next '
        'deployment to this folder moves them'
      ) from None
    shutil.rmtree(ready, ignore_errors=True)


def _unmade(folders: Iterable[Path], kind: Any, *error: Any) -> bool:
  """Removes, where an error ends it, what was made for nothing, as far as it is empty."""
  with contextlib.suppress(OSError):
    for each in folders if kind is not None else ():
      each.rmdir()
  return False


def _names_in(path: Path) -> list[str]:
  """The names of files, and of nothing elsewhere, that a file lists."""
  try:
    found = read_json(path)
  except (OSError, ValueError):  # it goes last
    return []
  names = found if isinstance(found, list) else []
  return [name for name in names if isinstance(name, str) and name not in ('', '.', '..') and Path(name).name == name]


def _refused(path: Path, error: OSError | ValueError) -> ValueError:
  shown = str(path).encode('unicode_escape').decode() if '\0' in str(path) else path
  why = getattr(error, 'strerror', None) or error
  return ValueError(f'the folder {shown} cannot be written ({why}): give another by out=')
