"""Blocks of memory that the system maps anew at every call, and what that takes.

glibc serves a block of more than 32 MiB by mapping fresh pages, and gives them back when it is freed. Each page is
zeroed as it is first touched, which takes several times as long as passing over it: XLA for CPU takes its temporaries
in one block, and each result in its own, at every call. `allocator` keeps them mapped in runs of ours.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import time
from collections.abc import Iterable

from jaxlite.host.machine import available

LARGE = 32 << 20  # bytes above which glibc maps a block apart, whatever it has learned
_TOUCHED = 8 << 20  # bytes that are mapped to see how long it takes
_TRIES = 3


def anew(blocks: Iterable[int]) -> int:
  """Returns how many bytes are mapped anew, of blocks of these sizes.

  >>> anew([10 << 20, 40 << 20]) >> 20
  40
  """
  return sum(size for size in blocks if size > LARGE)


@functools.cache
def seconds_a_byte() -> float:
  """Returns how long a fresh byte takes here, at its first touch; 0 where it cannot be measured."""
  room = available()
  if not hasattr(mmap, 'MAP_ANONYMOUS') or (room is not None and room < 4 * _TOUCHED):
    return 0.0
  found = []
  for _ in range(_TRIES):
    began = time.process_time()
    try:
      with mmap.mmap(-1, _TOUCHED, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as block:
        first = ctypes.c_char.from_buffer(block)
        ctypes.memset(ctypes.addressof(first), 1, _TOUCHED)
        del first
    except (OSError, ValueError):
      return 0.0
    found.append(time.process_time() - began)
  return min(found) / _TOUCHED
