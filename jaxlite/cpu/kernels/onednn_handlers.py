"""What calls oneDNN's products inside a program: handlers in C, compiled once where the machine has a C compiler.

They run on XLA's own threads and without the interpreter's lock. Where there is no compiler oneDNN is not used.
"""

from __future__ import annotations

import ctypes
import functools
from typing import Any

import numpy as np

from jaxlite.cpu.kernels import compiler, onednn_c


class CProduct(ctypes.Structure):
  """One product, as handlers.c knows it."""

  _fields_ = (
    ('kind', ctypes.c_int64),
    ('chunks', ctypes.c_int64),
    ('same', ctypes.c_int64),
    ('steps', ctypes.c_int64 * 3),
    ('packed_bytes', ctypes.c_int64),
    ('scratch_bytes', ctypes.c_int64),
    ('values', ctypes.c_int64 * 3),
    ('halves', ctypes.c_int64 * 3),
    ('numbers', ctypes.c_int64 * 3),
    ('primitive', ctypes.c_void_p),
    ('reorder', ctypes.c_void_p),
    ('batched', ctypes.c_void_p * 2),
    ('packed', ctypes.c_void_p),
    ('plain', ctypes.c_void_p),
    ('scratch', ctypes.c_void_p),
  )


@functools.cache
def library() -> Any:
  """Returns the compiled handlers, loaded and bound to oneDNN.

  Raises:
    compiler.NoLibrary: they cannot be compiled.
    OSError, ImportError: oneDNN cannot be had.
  """
  functions = _entry_points()
  lib = compiler.load('handlers')
  lib.jaxlite_handler.restype = ctypes.c_void_p
  lib.jaxlite_run.argtypes = [ctypes.c_void_p] * 4
  lib.jaxlite_setup((ctypes.c_void_p * len(functions))(*functions))
  return lib


def handler(of: Any) -> int | None:
  """Returns the address of a handler for a product; None where there is no room for more of them.

  Args:
    of: an `onednn.Product`.
  """
  product = CProduct(
    ('forward', 'input', 'weight').index(of.kind),
    of.chunks,
    of.same,
    of.steps,
    onednn_c.size_of(of.packed),
    onednn_c.size_of(of.scratch),
    of.values,
    tuple(dtype == 'bfloat16' for dtype in of.dtypes),
    of.numbers,
    of.primitive.value,
    of.reorder.value,
    tuple(md.value for md in of.mds),
    of.packed.value,
    of.plain.value,
    of.scratch.value,
  )
  return library().jaxlite_handler(ctypes.byref(product))


def run(address: int, first: np.ndarray, second: np.ndarray, out: np.ndarray) -> None:
  """Runs a product outside of any program, on this thread alone.

  Args:
    address: of its handler.
    first, second: laid out as the product was made for, in its dtypes.
    out: is written.

  Raises:
    RuntimeError: it failed.
  """
  if library().jaxlite_run(address, *(array.ctypes.data for array in (first, second, out))):
    raise RuntimeError('onednn: a product failed')


def _entry_points() -> list[int | None]:
  """The addresses of the functions that run a product, and the engine, in the order of handlers.c."""
  names = ('stream_create', 'memory_create', 'memory_set_data_handle', 'primitive_execute')
  functions = [getattr(onednn_c.library(), f'dnnl_{name}') for name in names]
  functions += [onednn_c.openmp().omp_get_max_threads, onednn_c.openmp().omp_set_num_threads]
  return [*(ctypes.cast(function, ctypes.c_void_p).value for function in functions), onednn_c.engine().value]
