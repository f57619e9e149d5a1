"""Compiled C functions as operations of a CPU program."""

from __future__ import annotations

import ctypes
import threading

import jax

_kept: dict[str, ctypes.c_void_p] = {}
_lock = threading.Lock()


def register(name: str, handler: ctypes.c_void_p) -> None:
  """Makes a C function with XLA's calling convention a target for `jax.ffi.ffi_call` on CPU, for the process's life.

  Args:
    name: of the target. It stands in compiled programs, also in those of a cache on disk: another meaning needs
      another name. A name that is registered already stays as it is.
    handler: its address, in a library that stays loaded.
  """
  with _lock:
    if name not in _kept:
      jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(handler), platform='cpu')
      _kept[name] = handler
