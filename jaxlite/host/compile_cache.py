"""Compiled programs kept between processes, so that the second start of a run compiles nothing.

JAX's own persistent cache, switched on where it serves: in the user's cache folder (never in a run's folder, which
may travel to a machine that these programs would crash), one folder for each jaxlib and processor, least recently
used programs dropped first, written under a lock. Before it is trusted a small program goes through it.
"""

from __future__ import annotations

import hashlib
import os
import platform
from pathlib import Path

from jaxlite.host.files import user_cache
from jaxlite.host.machine import abilities

LIMIT = 1 << 30  # bytes; a run's programs take a few MiB
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
  try:
    import filelock  # without its lock two processes could tear an entry, and nothing is ever dropped
  except ImportError:
    return 'no compile cache: filelock is missing; pip install filelock'
  folder = (Path(root) if root is not None else user_cache() / 'programs') / _machine(jax.lib.__version__)
  try:
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
      raise PermissionError
    with filelock.FileLock(folder / '.lockfile', timeout=10):  # JAX's own lock on this folder
      _drop_torn(folder)
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
  return f'compile cache: {folder}'


def _machine(jaxlib: str) -> str:
  """A name for what compiled code depends on: jaxlib, the processor's abilities, the compiler's flags."""
  parts = (platform.machine(), abilities(), os.environ.get('XLA_FLAGS', ''))
  return f'jaxlib-{jaxlib}-{hashlib.sha256("|".join(parts).encode()).hexdigest()[:12]}'


def _drop_torn(folder: Path) -> None:
  """Removes what a kill left half-written. JAX writes a program, then its time: one without the other is torn, and
  would be read in vain at every start."""
  for program in folder.glob('*-cache'):
    if not program.with_name(program.name.removesuffix('-cache') + '-atime').exists():
      program.unlink(missing_ok=True)


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
