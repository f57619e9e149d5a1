"""Memory that stays mapped: the C library's allocator set so that a CPU step does not fault its buffers in again.

XLA's CPU backend takes its temporary buffers from malloc at every step and gives them back after it. glibc serves
blocks that large by mapping fresh pages, which the kernel zeroes one by one as the step touches them. Told to keep
what it has, the process is faster and stays as large as it was at its largest. A setting of the process: numbers do
not change. Only glibc can be told; elsewhere nothing is done, and said.
"""

from __future__ import annotations

import ctypes
import os
from typing import NamedTuple

from jaxlite.host.machine import available, status

# malloc.h: what mallopt calls its settings, and what they are by default.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8
_KEEP = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1), (_TOP_PAD, 64 << 20))
_GROWTH = 2.0  # one arena that is never cut back fragments: it may take as much again as the step's own peak


class Decision(NamedTuple):
  """What was done, and why: one line for the log.

  Attributes:
    kept: whether freed memory stays with the process from now on.
    why: for a reader.
  """

  kept: bool
  why: str


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
  """Tells malloc to keep freed memory, where that can be afforded. Call it after the first step, whose peak it reads.

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
  room = available() if headroom is None else headroom
  if room < (_GROWTH - 1) * peak:
    return Decision(
      False, f'{_mib(room)} are free and the peak is {_mib(peak)}, so freed memory goes back to the system at each step'
    )
  for setting, value in _KEEP:
    libc.mallopt(setting, value)
  return Decision(True, f'freed memory stays mapped: faster, and up to {_GROWTH:.0f} times the peak of {_mib(peak)}')


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
