"""oneDNN's products called without Python: handlers in C, compiled once where the machine has a C compiler.

A handler in Python takes the interpreter's lock and brings threads of its own, which compete with XLA's; one in C does
neither. The bits are the same, so nothing hangs on which of them runs: without a compiler `foreign` is used.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import jax

from jaxlite.compile_cache import user_cache
from jaxlite.graph.cpu import dnnl, onednn

_SOURCE = Path(__file__).with_name('handlers.c')
_FLAGS = ('-std=gnu11', '-O3', '-fPIC', '-shared', '-pthread')
_SECONDS = 60  # a compiler that takes longer is not waited for


class Product(ctypes.Structure):
  """One product, as handlers.c knows it."""

  _fields_ = (
    ('kind', ctypes.c_int64),
    ('chunks', ctypes.c_int64),
    ('same', ctypes.c_int64),
    ('steps', ctypes.c_int64 * 3),
    ('packed_bytes', ctypes.c_int64),
    ('scratch_bytes', ctypes.c_int64),
    ('numbers', ctypes.c_int64 * 3),
    ('primitive', ctypes.c_void_p),
    ('reorder', ctypes.c_void_p),
    ('batched', ctypes.c_void_p * 2),
    ('packed', ctypes.c_void_p),
    ('plain', ctypes.c_void_p),
    ('scratch', ctypes.c_void_p),
  )


def handler(of: onednn.Product) -> int | None:
  """Returns the address of a handler in C for a product; None where there is none.

  Args:
    of: the product. It has to outlive every program that calls the handler.
  """
  lib = library()
  if lib is None:
    return None
  product = Product(
    ('forward', 'input', 'weight').index(of.kind),
    of.chunks,
    of.same,
    of.steps,
    dnnl.size_of(of.packed),
    dnnl.size_of(of.scratch),
    of.numbers,
    of.primitive.value,
    of.reorder.value,
    tuple(md.value for md in of.mds),
    of.packed.value,
    of.plain.value,
    of.scratch.value,
  )
  return lib.jaxlite_handler(ctypes.byref(product))


@functools.cache
def library() -> Any:
  """Returns the compiled handlers, loaded and bound to oneDNN; None where they cannot be had."""
  path = _compiled(user_cache().parent / 'handlers')
  if path is None:
    return None
  try:
    lib = ctypes.CDLL(str(path))
  except OSError:  # a cache folder that no program may be run from
    return None
  lib.jaxlite_handler.restype = ctypes.c_void_p
  lib.jaxlite_setup((ctypes.c_void_p * 7)(*onednn.entry_points()))
  return lib


def _compiled(folder: Path) -> Path | None:
  """The compiled file in a folder, made now if it is not there."""
  text = _SOURCE.read_bytes()
  parts = (text, jax.lib.__version__.encode(), ' '.join(_FLAGS).encode(), os.uname().machine.encode())
  path = folder / f'handlers-{hashlib.sha256(b"|".join(parts)).hexdigest()[:16]}.so'
  if path.exists():
    return path
  compiler = next(filter(None, map(shutil.which, (os.environ.get('CC') or 'cc', 'gcc', 'clang'))), None)
  if compiler is None:
    return None
  with contextlib.suppress(OSError, subprocess.SubprocessError):
    folder.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkstemp(dir=folder, suffix='.part')[1])
    try:
      command = [compiler, *_FLAGS, f'-I{jax.ffi.include_dir()}', str(_SOURCE), '-o', str(made)]
      subprocess.run(command, check=True, capture_output=True, timeout=_SECONDS, stdin=subprocess.DEVNULL)
      os.replace(made, path)  # whole or not at all, whoever else compiles
    finally:
      made.unlink(missing_ok=True)
    return path
  return None
