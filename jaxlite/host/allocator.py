"""Memory that stays mapped: the C library's allocator set so that a CPU step does not fault its buffers in again.

XLA's CPU backend takes its temporary buffers from malloc at every step and gives them back after it. glibc serves
blocks that large by mapping fresh pages, which the kernel zeroes one by one as the step touches them. Told to keep
what it has, the process is faster, but larger: a step takes its temporaries in one block, and once anything small lies
in the hole that the last one left, the next block needs a new one. So the growth has an end: near it, a block that
finds no hole is mapped and given back as before. A setting of the process: numbers do not change. Only glibc can be
told; elsewhere nothing is done, and said.
"""

from __future__ import annotations

import ctypes
import os
from typing import NamedTuple

from jaxlite.host.machine import available, resident, status

# malloc.h: what mallopt calls its settings.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -2, -3, -4, -8
_KEEP = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1), (_TOP_PAD, 16 << 20))
GROWTH = 2.5  # of the peak: two holes for a step's block beside the one in use, where half of the peak is that block
_LEAST = 2.0  # of the peak that has to be there, so that keeping is worth its while
_BLOCKS = 1 << 20, 32 << 20  # bytes above which a block is mapped once growth has ended; glibc takes no more


class Decision(NamedTuple):
  """What was done, and why: one line for the log.

  Attributes:
    kept: whether freed memory stays with the process from now on.
    why: for a reader.
    most: bytes of resident memory that the process comes to by what it keeps; 0 where it keeps nothing.
  """

  kept: bool
  why: str
  most: int = 0


class Growing(NamedTuple):
  """A process that keeps what it frees, on its way to the end of its growth.

  Attributes:
    most: bytes of resident memory that it may come to.
    seen: bytes when it was last looked at.
    once: the largest growth between two looks, in bytes.
  """

  most: int
  seen: int
  once: int = 0


def share_one_arena() -> bool:
  """Lets all threads of the process draw from one pool: what a thread's own pool holds, no setting keeps mapped.

  It has to be said before JAX starts its threads, and costs nothing by itself.

  Returns:
    Whether it was said.
  """
  libc = _glibc()
  if libc is None or _own_settings():
    return False
  libc.mallopt(_ARENA_MAX, 1)
  return True


def keep_mapped(headroom: int | None = None) -> Decision:
  """Tells malloc to keep freed memory, where that can be afforded. Call it after the first step, whose peak it reads,
  and `watched` from then on.

  It serves the threads that began after `share_one_arena`. Settings that the user made (`MALLOC_*` or
  `GLIBC_TUNABLES` in the environment, another malloc preloaded) stand.

  Args:
    headroom: bytes that the process may still grow by; None asks the machine (see `available`).

  Returns:
    The Decision. It holds for the rest of the process.

  >>> keep_mapped(headroom=0).kept
  False
  """
  libc = _glibc()
  if libc is None:
    return Decision(False, 'the allocator is not glibc, so it is left as it is')
  if own := _own_settings():
    return Decision(False, f'{own} is set, so the allocator is left as it is')
  peak = status('VmHWM')
  most = most_kept(peak, available() if headroom is None else headroom)
  if not most:
    room = available() if headroom is None else headroom
    return Decision(
      False, f'{_mib(room)} are free and the peak is {_mib(peak)}, so freed memory goes back to the system at each step'
    )
  for setting, value in _KEEP:
    libc.mallopt(setting, value)
  return Decision(
    True, f'freed memory stays mapped: faster, and up to {_mib(most)}; the peak so far is {_mib(peak)}', most
  )


def most_kept(peak: int, room: int) -> int:
  """Returns to how many bytes a process comes by keeping what it frees; 0 where it should not.

  Args:
    peak: bytes that it has at the most without.
    room: bytes that it may still grow by.

  >>> most_kept(100, 1000), most_kept(100, 120), most_kept(100, 90)
  (250, 208, 0)
  """
  if room < (_LEAST - 1) * peak:
    return 0
  return int(min(GROWTH * peak, peak + 0.9 * room))


def watched(growing: Growing) -> Growing | None:
  """Ends the growth of what is kept before its bound: from then on a large block that finds no hole is mapped.

  Costs 10 us; a loop looks after each of its first steps, in which the holes come to be, then at its log points.

  Args:
    growing: as the last look left it.

  Returns:
    As this look leaves it; None once the growth has ended.
  """
  now = resident()
  once = max(growing.once, now - growing.seen)
  if now + 2 * once <= growing.most:  # what is under way, and one more that may have to be mapped
    return Growing(growing.most, now, once)
  libc = _glibc()
  if libc is not None:
    block = max(_BLOCKS[0], min(_BLOCKS[1], once // 2))
    for setting, value in (
      (_MMAP_THRESHOLD, block),
      (_TRIM_THRESHOLD, 2**31 - 1),
      (_TOP_PAD, 1 << 20),
      (_MMAP_MAX, 1 << 16),
    ):
      libc.mallopt(setting, value)
  return None


class _Counted(ctypes.Structure):
  """What glibc's mallinfo2 gives, in its order."""

  _fields_ = [
    (name, ctypes.c_size_t)
    for name in ('arena', 'blocks', 'small', 'mapped', 'of_mapped', 'none', 'of_small', 'used', 'free', 'top')
  ]


def freed() -> int:
  """Returns the bytes that were freed and that malloc holds on to for what comes next, in all of its pools; not all of
  them need be resident. 0 where the C library does not tell.

  >>> freed() >= 0
  True
  """
  libc = _glibc()
  if libc is None or not hasattr(libc, 'mallinfo2'):  # glibc before 2.33
    return 0
  libc.mallinfo2.restype = _Counted
  return int(libc.mallinfo2().free)


def _own_settings() -> str:
  """The first sign in the environment that the user chose or tuned an allocator; '' where there is none."""
  names = (name for name in os.environ if name.startswith('MALLOC_') or name in ('GLIBC_TUNABLES', 'LD_PRELOAD'))
  return next(names, '')


def _glibc() -> ctypes.CDLL | None:
  try:
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, 'gnu_get_libc_version') and hasattr(libc, 'mallopt') else None
  except (OSError, TypeError):  # no handle on the running program: Windows
    return None


def _mib(size: int) -> str:
  return f'{size / 2**20:,.0f} MiB'
