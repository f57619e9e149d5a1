"""Machine code from the C files of this folder: made once where there is a C compiler, kept in the user's cache."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jax

from jaxlite.host.files import user_cache, whole_file
from jaxlite.host.machine import abilities

_HERE = Path(__file__).parent
_FLAGS = ('-std=gnu11', '-O3', '-fPIC', '-shared', '-pthread')
WHY_NOT = "no C compiler was found, it failed, or the user's cache cannot be written"
_SECONDS = 60  # a compiler that takes longer is not waited for


def load(name: str, *, tuned: bool = False, folder: Path | None = None) -> Any:
  """Returns the library made from a C file; None where it cannot be had.

  Args:
    name: of the file, without its end.
    tuned: whether it may use all that this processor is able to, for kernels of our own.
    folder: where it is kept; None is the user's cache.
  """
  path = built(name, folder or user_cache() / 'handlers', tuned=tuned)
  if path is None:
    return None
  try:
    return ctypes.CDLL(str(path))
  except OSError:  # a cache folder that no program may be run from
    return None


def built(name: str, folder: Path, *, tuned: bool = False) -> Path | None:
  """Returns the compiled file in a folder, made now if it is not there; None where there is no compiler, or it fails.

  Args:
    name: as in `load`.
    folder: made where it is missing.
    tuned: as in `load`.
  """
  text = b''.join(path.read_bytes() for path in (_HERE / f'{name}.c', *sorted(_HERE.glob('*.h'))))
  parts = (text, jax.lib.__version__.encode(), ' '.join(_FLAGS).encode(), platform.machine().encode())
  parts += (abilities().encode(),) if tuned else ()
  path = folder / f'{name}-{hashlib.sha256(b"|".join(parts)).hexdigest()[:16]}.so'
  if path.exists():
    return path
  found = compiler()
  if found is None:
    return None
  for tuning in (('-march=native',), ('-mcpu=native',), ()) if tuned else ((),):  # compilers differ in what they take
    with contextlib.suppress(OSError, subprocess.SubprocessError):
      folder.mkdir(parents=True, exist_ok=True)
      with whole_file(path) as made:
        command = [found, *_FLAGS, *tuning, f'-I{jax.ffi.include_dir()}', str(_HERE / f'{name}.c'), '-o', str(made)]
        subprocess.run(command, check=True, capture_output=True, timeout=_SECONDS, stdin=subprocess.DEVNULL)
      return path
  return None


def compiler() -> str | None:
  """Returns the path of a C compiler; None where there is none. $CC names another."""
  return next(filter(None, map(shutil.which, (os.environ.get('CC') or 'cc', 'gcc', 'clang'))), None)
