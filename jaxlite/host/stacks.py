"""The stacks of threads, where a limit of the process counts them.

Of 8 MiB that a thread's stack may take by default hardly a page is ever touched, so nobody misses them, until `ulimit
-d` or `ulimit -v` counts what is promised: the thirty and more threads of JAX and Orbax then hold a quarter of a GiB.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
from collections.abc import Iterator

SMALL = 2 << 20  # bytes: four times what threads have by default on macOS, where all of these libraries run as well
_ATTRIBUTES = 128  # bytes: more than a pthread_attr_t has anywhere


@contextlib.contextmanager
def small() -> Iterator[int]:
  """Gives threads that begin in the block stacks of 2 MiB, where this process has a limit that counts them.

  Only glibc can be told; elsewhere, without such a limit, and where stacks are as small already, nothing changes.

  Yields:
    By how many bytes each of these threads holds less.

  >>> with small() as less:
  ...   less >= 0
  True
  """
  less = spared() if limited() and default() > SMALL else 0
  if not less or not _give(SMALL):
    yield 0
    return
  try:
    yield less
  finally:
    _give(SMALL + less)


@functools.cache  # as it is before the first block
def spared() -> int:
  """Returns by how many bytes each thread holds less under a limit that counts its stack.

  >>> spared() >= 0
  True
  """
  return max(0, default() - SMALL)


def limited() -> bool:
  """Returns whether a limit of this process counts stacks: of its data segment, or of its address space."""
  try:
    import resource
  except ImportError:  # Windows
    return False
  return any(resource.getrlimit(one)[0] != resource.RLIM_INFINITY for one in (resource.RLIMIT_DATA, resource.RLIMIT_AS))


def default() -> int:
  """Returns the bytes of stack that a thread which begins now gets; 0 where the C library does not tell.

  >>> default() >= 0
  True
  """
  libc, size = _glibc(), ctypes.c_size_t()
  attributes = ctypes.create_string_buffer(_ATTRIBUTES)
  if libc is None or libc.pthread_getattr_default_np(attributes):
    return 0
  return 0 if libc.pthread_attr_getstacksize(attributes, ctypes.byref(size)) else size.value


def _give(size: int) -> bool:
  libc, attributes = _glibc(), ctypes.create_string_buffer(_ATTRIBUTES)
  if libc is None or libc.pthread_getattr_default_np(attributes):
    return False
  return not (
    libc.pthread_attr_setstacksize(attributes, ctypes.c_size_t(size)) or libc.pthread_setattr_default_np(attributes)
  )


def _glibc() -> ctypes.CDLL | None:
  try:
    libc = ctypes.CDLL(None)
  except (OSError, TypeError):  # no handle on the running program: Windows
    return None
  return libc if hasattr(libc, 'pthread_setattr_default_np') else None
