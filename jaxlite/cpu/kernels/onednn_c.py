"""oneDNN's C interface by ctypes: the library loaded, and its objects made.

Nothing here is ever given back: there is one of each object per shape, for the process.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.metadata
import os
from collections.abc import Sequence
from typing import Any

PACKAGE = 'onednn-cpu-gomp'
ANY, CPU, USER = 1, 1, 1
DTYPES = {'bfloat16': 2, 'float32': 3}  # as the library numbers them
_IMPLEMENTATION = 8
Dims = ctypes.c_int64 * 12


def version() -> str:
  """Returns the version of the library that was loaded, such as '3.2.0'."""

  class Version(ctypes.Structure):
    _fields_ = (('major', ctypes.c_int), ('minor', ctypes.c_int), ('patch', ctypes.c_int))

  get = library().dnnl_version
  get.restype = ctypes.POINTER(Version)
  found = get().contents
  return f'{found.major}.{found.minor}.{found.patch}'


def size_of(md: ctypes.c_void_p) -> int:
  """Returns the bytes of a memory by its description."""
  return library().dnnl_memory_desc_get_size(md)


class OneThread:
  """One OpenMP thread for this thread of Python, while it lasts: what else the thread runs keeps its own number."""

  def __enter__(self) -> None:
    omp = openmp()
    self.before = omp.omp_get_max_threads()
    omp.omp_set_num_threads(1)

  def __exit__(self, *_: Any) -> None:
    openmp().omp_set_num_threads(self.before)


@functools.cache
def openmp() -> Any:
  """Returns the OpenMP runtime that the library uses."""
  return ctypes.CDLL('libgomp.so.1')


@functools.cache
def library() -> Any:
  """Returns the library of the extra's wheel, loaded.

  Raises:
    OSError, ImportError: it cannot be had.
  """
  files = importlib.metadata.files(PACKAGE) or []
  path = next((str(file.locate()) for file in files if file.name == 'libdnnl.so.3'), None)
  if path is None:
    raise OSError(f'{PACKAGE} holds no libdnnl.so.3')
  openmp()  # a slim image may lack it: said before the larger library fails for it
  lib = ctypes.CDLL(os.path.realpath(path))
  lib.dnnl_primitive_desc_query_md.restype = ctypes.c_void_p
  lib.dnnl_memory_desc_get_size.restype = ctypes.c_size_t
  lib.dnnl_memory_desc_get_size.argtypes = [ctypes.c_void_p]
  lib.dnnl_memory_desc_equal.argtypes = [ctypes.c_void_p] * 2
  return lib


@functools.cache
def engine() -> ctypes.c_void_p:
  """Returns the CPU engine."""
  return new('dnnl_engine_create', CPU, ctypes.c_size_t(0))


def new(name: str, *args: Any) -> ctypes.c_void_p:
  """Calls a function of the library whose first argument is what it makes, and returns that."""
  made = ctypes.c_void_p()
  check(name, getattr(library(), name)(ctypes.byref(made), *args))
  return made


def check(what: str, status: int) -> None:
  """Raises RuntimeError for a status that is not success."""
  if status:
    raise RuntimeError(f'onednn: {what} gave status {status}')


def dims(sizes: Sequence[int]) -> Any:
  """Returns sizes as the library takes them."""
  return Dims(*sizes)


def strided(shape: Sequence[int], strides: Sequence[int], dtype: str) -> ctypes.c_void_p:
  """Returns the description of an array; strides in elements."""
  return new('dnnl_memory_desc_create_with_strides', len(shape), dims(shape), DTYPES[dtype], dims(strides))


def free(shape: Sequence[int], dtype: str) -> ctypes.c_void_p:
  """Returns the description of an array that lies as the library likes it best."""
  return new('dnnl_memory_desc_create_with_tag', len(shape), dims(shape), DTYPES[dtype], ANY)


def query(desc: ctypes.c_void_p, what: int) -> ctypes.c_void_p:
  """Returns the description of one of a primitive's memories."""
  return ctypes.c_void_p(library().dnnl_primitive_desc_query_md(desc, what, 0))


def implementation(desc: ctypes.c_void_p) -> str:
  """Returns the name of the kernel that the library has for a product, such as 'brg:avx512_core'."""
  name = ctypes.c_char_p()
  check('query', library().dnnl_primitive_desc_query(desc, _IMPLEMENTATION, 0, ctypes.byref(name)))
  return (name.value or b'').decode()
