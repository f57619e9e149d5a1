"""oneDNN's products called without Python: handlers in C, compiled once where the machine has a C compiler.

A handler in Python takes the interpreter's lock and brings threads of its own, which compete with XLA's; one in C does
neither. The bits are the same, so nothing hangs on which of them runs: without a compiler `foreign` is used.
"""

from __future__ import annotations

import ctypes
import functools
from typing import Any

from jaxlite.cpu.kernels import compiler, onednn, onednn_c


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
    onednn_c.size_of(of.packed),
    onednn_c.size_of(of.scratch),
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
  lib = None if onednn.missing() else compiler.load('handlers')
  if lib is None:
    return None
  lib.jaxlite_handler.restype = ctypes.c_void_p
  lib.jaxlite_setup((ctypes.c_void_p * 7)(*onednn.entry_points()))
  return lib
