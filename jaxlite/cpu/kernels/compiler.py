"""Machine code from the C files of this folder: made once where there is a C compiler, kept in the user's cache.

What is found there is run, so it is looked at first: a file is taken when it is this user's (or root's), when nobody
else may write to it or to its folder, and when its bytes have the hash that its name says. Any other is made anew.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import platform
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

from jaxlite.host.files import is_safe, own_folder, read_file, scratch, user_cache
from jaxlite.host.machine import abilities

_HERE = Path(__file__).parent
_FLAGS = ('-std=gnu11', '-O3', '-fno-math-errno', '-fno-trapping-math', '-fPIC', '-shared', '-pthread')
_SECONDS = 60  # a compiler that takes longer is not waited for, unless it is seen to compute: the machine may be busy
_TIMES = 10  # that long, where it computes all the while
_BUSY = 0.02  # of a core
_FORGET = 24 * 3600  # seconds after which it is tried again: the machine may have been busy


class NoLibrary(Exception):  # noqa: N818  (no failure: whoever asks goes on without)
  """A C file cannot be had as machine code here; the text says why, for a line."""


def load(name: str, *, tuned: bool = False, folder: Path | None = None, source: Path | None = None) -> Any:
  """Returns the library made from a C file.

  Args:
    name: of the file, without its end.
    tuned: whether it may use all that this processor is able to, for kernels of our own.
    folder: where it is kept; None is the user's cache.
    source: the file itself, where it lies in another room: it includes nothing of ours or XLA's, and JAX is not asked.

  Raises:
    NoLibrary: it cannot be had.
  """
  path = built(name, folder or user_cache() / 'handlers', tuned=tuned, source=source)
  try:
    return ctypes.CDLL(str(path))
  except OSError as error:  # a cache folder that no program may be run from
    raise NoLibrary(f'{path.parent} holds no program that can be run ({str(error)[-80:]}); {_ELSEWHERE}') from None


_ELSEWHERE = '$XDG_CACHE_HOME names another place'


def built(name: str, folder: Path, *, tuned: bool = False, source: Path | None = None) -> Path:
  """Returns the compiled file in a folder, made now if it is not there or is not as it was made.

  Args:
    name: as in `load`.
    folder: made where it is missing.
    tuned: as in `load`.
    source: as in `load`.

  Raises:
    NoLibrary: there is no compiler, it fails or hangs, or the folder is not this user's own.
  """
  files, headers = (source,), ()
  if source is None:
    import jax  # whose headers ours include

    source = _HERE / f'{name}.c'
    files, headers = (source, *sorted(_HERE.glob('*.h'))), (f'-I{jax.ffi.include_dir()}',)
  text = b''.join(path.read_bytes() for path in files)
  made_for = jax.lib.__version__ if headers else ''
  parts = (text, made_for.encode(), ' '.join(_FLAGS).encode(), platform.machine().encode())
  parts += (abilities().encode(),) if tuned else ()
  start = f'{name}-{hashlib.sha256(b"|".join(parts)).hexdigest()[:16]}-'
  try:
    own_folder(folder)
    for path in sorted(folder.glob(f'{start}*.so')):
      with contextlib.suppress(FileNotFoundError):  # another process, which starts now too, was faster to remove it
        if _is_sound(path):
          return path
        path.unlink()
    return _compiled(source, headers, folder, start, tuned)
  except OSError as error:
    raise NoLibrary(f'{folder} cannot be used ({error.strerror or error}); {_ELSEWHERE}') from None


def _is_sound(path: Path) -> bool:
  """Whether a file is ours and as it was made: its name ends in the hash of its bytes."""
  return is_safe(path) and path.stem.rpartition('-')[2] == _hash(read_file(path))


def _hash(data: bytes) -> str:
  return hashlib.sha256(data).hexdigest()[:32]


def _compiled(source: Path, headers: tuple[str, ...], folder: Path, start: str, tuned: bool) -> Path:
  found = compiler()
  if found is None:
    raise NoLibrary('no C compiler was found')
  about = os.stat(found)
  mark = folder / f'hung-{_hash(f"{found} {about.st_mtime_ns} {about.st_size}".encode())}'
  with contextlib.suppress(FileNotFoundError):
    if 0 <= time.time() - mark.stat().st_mtime < _FORGET:
      raise NoLibrary(f'the C compiler {found} hung when it was last tried (to try it now: delete {mark})')
  ends = time.monotonic() + _TIMES * _SECONDS
  for tuning in (('-march=native',), ('-mcpu=native',), ()) if tuned else ((),):  # compilers differ in what they take
    with scratch(folder, '.making-', stale_seconds=_FORGET) as aside:
      made = aside / 'made.so'
      command = [found, *_FLAGS, *tuning, *headers, str(source), '-o', str(made)]
      try:
        done = _run(command, ends)
      except subprocess.TimeoutExpired as error:
        mark.write_bytes(b'')
        raise NoLibrary(f'the C compiler {found} took over {error.timeout:.1f} s and was ended') from None
      if done == 0 and made.exists():
        made.chmod(0o700)
        path = folder / f'{start}{_hash(read_file(made))}.so'
        os.replace(made, path)
        return path
  raise NoLibrary(f'the C compiler {found} failed')


def _run(command: list[str], ends: float) -> int:
  """Runs a command in a group of its own, which is ended with it: a compiler has children, and these have some.

  It has `_SECONDS`, and as many again whenever it computed in the last ones, but none beyond `ends`.
  """
  process = subprocess.Popen(
    command,
    stdin=subprocess.DEVNULL,
    stdout=subprocess.DEVNULL,  # a pipe would be open as long as any of them lives
    stderr=subprocess.DEVNULL,
    start_new_session=True,
  )
  began, before = time.monotonic(), 0.0
  try:
    while True:
      try:
        return process.wait(max(0.0, min(_SECONDS, ends - time.monotonic())))
      except subprocess.TimeoutExpired:
        computed, now = _computed(process.pid), time.monotonic()
        if computed - before < _BUSY * _SECONDS or now >= ends:
          raise subprocess.TimeoutExpired(command, now - began) from None
        before = computed
  finally:
    if process.poll() is None:
      if hasattr(os, 'killpg'):
        os.killpg(process.pid, signal.SIGKILL)
      process.kill()
      process.wait()


def _computed(session: int) -> float:
  """Processor seconds of a session's processes that live, and of their children that ended; 0 where /proc has none."""
  ticks = 0
  for path in Path('/proc').glob('[0-9]*/stat'):
    with contextlib.suppress(OSError, ValueError, IndexError):  # it may end now
      fields = path.read_text().rpartition(')')[2].split()
      ticks += sum(map(int, fields[11:15])) if int(fields[3]) == session else 0
  return ticks / os.sysconf('SC_CLK_TCK') if ticks else 0.0


def compiler() -> str | None:
  """Returns the path of a C compiler; None where there is none. $CC names another."""
  return next(filter(None, map(shutil.which, (os.environ.get('CC') or 'cc', 'gcc', 'clang'))), None)
