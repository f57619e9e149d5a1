"""Compiled programs kept between processes, so that the second start of a run compiles nothing.

JAX's own persistent cache, switched on where it serves: in the user's cache folder (never in a run's folder, which
may travel to a machine that these programs would crash), one folder for each jaxlib and processor, least recently
used programs dropped first, written under a lock. Before it is trusted a small program goes through it.

What lies there is machine code that is run, and JAX looks at neither owner nor hash: one flipped bit is a crash, a
wrong number, or a warning at every start. So the folder is this user's alone, a process that ends writes down the
hashes of what it added, and the next one removes what has another; that is compiled and written again.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import hashlib
import os
import platform
import shutil
import zlib
from pathlib import Path

from jaxlite.host.files import is_own_file, own_folder, read_file, user_cache
from jaxlite.host.machine import abilities
from jaxlite.host.sealed import Damaged, read_sealed, write_sealed

LIMIT = 1 << 30  # bytes; a run's programs take a few MiB
MOST = 500  # programs: with a limit JAX looks at each of them whenever it writes one; a run has some dozens
_HASHES, _LOCK = 'hashes.json', '.lockfile'  # ours, and JAX's own, beside the programs
_HIT = '/jax/compilation_cache/cache_hits'


def enable(root: str | os.PathLike[str] | None = None, *, limit: int = LIMIT) -> str:
  """Switches the persistent compile cache on for this process, or says why not.

  A cache folder that was already chosen (JAX_COMPILATION_CACHE_DIR, `jax.config`) stays as it is.

  Args:
    root: where folders of caches lie; None is the user's own cache folder.
    limit: bytes that one folder may hold.

  Returns:
    One line for the log.
  """
  import jax

  if jax.config.jax_compilation_cache_dir:
    return f'compile cache: {jax.config.jax_compilation_cache_dir}, as it was set'
  if not jax.config.jax_enable_compilation_cache:
    return 'no compile cache: jax_enable_compilation_cache is off'
  try:
    import filelock  # without its lock two processes could tear an entry, and nothing is ever dropped
  except ImportError:
    return 'no compile cache: filelock is missing; pip install filelock'
  folder = (Path(root) if root is not None else user_cache() / 'programs') / _machine(jax.lib.__version__)
  try:
    own_folder(folder)
    if not os.access(folder, os.W_OK):
      raise PermissionError
    _drop_unless_file(folder / _LOCK)
    with filelock.FileLock(folder / _LOCK, timeout=10):
      dropped = _drop_damaged(folder)
      _drop_oldest(folder)
  except (OSError, filelock.Timeout) as error:
    return f'no compile cache: {folder} cannot be written ({type(error).__name__}); $XDG_CACHE_HOME names another place'
  if not _is_known(folder):  # each program would be refused, with a warning
    return (
      f'no compile cache: the owner of {folder} has no entry among the users of this system (a container?), which '
      "JAX's cache asks for; a folder that JAX_COMPILATION_CACHE_DIR names needs none"
    )
  # Small programs too: a start is many of them.
  for name, value in _settings(str(folder), limit).items():
    jax.config.update(name, value)
  _forget()
  if not _serves():
    for name, value in _settings(None, -1).items():
      jax.config.update(name, value)
    _forget()
    return 'no compile cache: what was written did not come back, so every start compiles'
  _seal_at_the_end(folder)
  again = f' ({dropped} damaged entries are compiled again)' if dropped else ''
  return f'compile cache: {folder}{again}'


def _machine(jaxlib: str) -> str:
  """A name for what compiled code depends on: jaxlib, the processor's abilities, the compiler's flags."""
  parts = (platform.machine(), abilities(), os.environ.get('XLA_FLAGS', ''))
  return f'jaxlib-{jaxlib}-{hashlib.sha256("|".join(parts).encode()).hexdigest()[:12]}'


def _drop_damaged(folder: Path) -> int:
  """Removes what is not as it was written, and returns how many programs had another hash.

  JAX writes a program, then its time: what a kill left half-written is the one without the other.
  """
  known, dropped = _known(folder), 0
  for program in folder.glob('*-cache'):
    time = program.with_name(program.name.removesuffix('-cache') + '-atime')
    _drop_unless_file(time)
    torn = not time.exists()
    if torn or not _is_sound(program, known.get(program.name)):
      dropped += not torn
      _drop(program)
      _drop(time)
      known.pop(program.name, None)
  _remember(folder, known)
  return dropped


def _is_sound(program: Path, digest: str | None) -> bool:
  try:
    if not is_own_file(program):
      return False
    data = read_file(program)
  except OSError:
    return False
  return _hash(data) == digest if digest is not None else _unpacks(data)


def _unpacks(data: bytes) -> bool:
  """Whether a program that no hash is known of (its process was killed) is whole, as far as its packing tells."""
  if data[:4] != b'\x28\xb5\x2f\xfd':  # not packed by zstd, which JAX takes where it is installed
    try:
      return len(zlib.decompress(data)) > 4
    except zlib.error:
      return False
  try:
    import zstandard
  except ImportError:
    return False  # nothing here can tell, and JAX packs otherwise here
  try:
    return len(zstandard.ZstdDecompressor().decompress(data)) > 4
  except zstandard.ZstdError:
    return False


@functools.cache
def _seal_at_the_end(folder: Path) -> None:
  atexit.register(seal, folder)


def seal(folder: Path) -> None:
  """Writes down the hashes of the programs in a folder of the cache that have none yet.

  Args:
    folder: that of this process, where its own programs are as they were written.
  """
  import filelock

  with contextlib.suppress(OSError, filelock.Timeout), filelock.FileLock(folder / _LOCK, timeout=10):
    known = _known(folder)
    for program in folder.glob('*-cache'):
      if program.name not in known:
        known[program.name] = _hash(read_file(program))
    _remember(folder, known)


def _known(folder: Path) -> dict[str, str]:
  """Hashes by the name of the program; none where they are damaged themselves."""
  try:
    return {name: digest for name, digest in read_sealed(folder / _HASHES).items() if isinstance(digest, str)}
  except Damaged:
    return {}


def _remember(folder: Path, known: dict[str, str]) -> None:
  known = {name: digest for name, digest in known.items() if (folder / name).exists()}
  if known != _known(folder):
    _drop_unless_file(folder / _HASHES)
    write_sealed(folder / _HASHES, known)


def _hash(data: bytes) -> str:
  return hashlib.sha256(data).hexdigest()


def _drop_unless_file(path: Path) -> None:
  """Removes what stands in the place of a file and is none: a link, a folder, a pipe."""
  if os.path.lexists(path) and not is_own_file(path):
    _drop(path)


def _drop(path: Path) -> None:
  if path.is_dir() and not path.is_symlink():
    shutil.rmtree(path, ignore_errors=True)
  else:
    path.unlink(missing_ok=True)


def _drop_oldest(folder: Path) -> None:
  """Removes the programs that were used least recently beyond `MOST`."""
  for path in folder.glob('*-atime'):  # one that no program stands beside was not looked at yet
    _drop_unless_file(path)
  used = {path: read_file(path) for path in folder.glob('*-atime')}
  for path in sorted(used, key=lambda one: int.from_bytes(used[one], 'little'))[: max(0, len(used) - MOST)]:
    path.with_name(path.name.removesuffix('-atime') + '-cache').unlink(missing_ok=True)
    path.unlink(missing_ok=True)


def _is_known(folder: Path) -> bool:
  """Tells whether owner and group of a folder have names."""
  try:
    import grp
    import pwd
  except ImportError:  # Windows
    return True
  about = folder.stat()
  try:
    return bool(pwd.getpwuid(about.st_uid) and grp.getgrgid(about.st_gid))
  except KeyError:
    return False


def _settings(folder: str | None, limit: int) -> dict[str, object]:
  own = folder is not None
  return {
    'jax_compilation_cache_dir': folder,
    'jax_compilation_cache_max_size': limit,
    'jax_persistent_cache_min_compile_time_secs': 0.0 if own else 1.0,
    'jax_persistent_cache_min_entry_size_bytes': -1 if own else 0,
  }


def _serves() -> bool:
  """Compiles one small program until it comes from the folder: the second time at the latest, the first where an
  earlier process left it there."""
  import jax
  import numpy as np

  hits: list[str] = []

  def listen(event: str, **_: object) -> None:
    if event == _HIT:
      hits.append(event)

  jax.monitoring.register_event_listener(listen)
  try:
    for _ in range(2):  # two functions, so that JAX's own memory does not answer; one program, so that the folder can
      jax.jit(lambda x: x * 2 + 1)(np.float32(1))
      if hits:
        break
  finally:
    jax.monitoring.unregister_event_listener(listen)
  return bool(hits)


def _forget() -> None:
  """JAX opens the folder once a process: have it look again."""
  from jax.experimental.compilation_cache import compilation_cache

  compilation_cache.reset_cache()
