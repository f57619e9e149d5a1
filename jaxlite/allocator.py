"""Memory that stays mapped: the C library's allocator set so that a CPU step does not fault its buffers in again.

XLA's CPU backend takes its temporary buffers from malloc at every step and gives them back after it. glibc serves
blocks that large by mapping fresh pages, which the kernel zeroes one by one as the step touches them. Told to keep
what it has, the process is faster and stays as large as it was at its largest. A setting of the process: numbers do
not change. Only glibc can be told; elsewhere nothing is done, and said.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import NamedTuple

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
  peak = _status('VmHWM')
  room = available() if headroom is None else headroom
  if room < (_GROWTH - 1) * peak:
    return Decision(
      False, f'{_mib(room)} are free and the peak is {_mib(peak)}, so freed memory goes back to the system at each step'
    )
  for setting, value in _KEEP:
    libc.mallopt(setting, value)
  return Decision(True, f'freed memory stays mapped: faster, and up to {_GROWTH:.0f} times the peak of {_mib(peak)}')


def available() -> int:
  """Returns by how many bytes this process may grow: the least that machine, control group and limits allow."""
  import resource

  rooms = [_meminfo('MemAvailable')]
  for limit, used in ((resource.RLIMIT_AS, 'VmSize'), (resource.RLIMIT_DATA, 'VmData')):
    soft = resource.getrlimit(limit)[0]
    if soft != resource.RLIM_INFINITY:
      rooms.append(soft - _status(used))
  group = _control_group()
  return max(0, min([*rooms, *([] if group is None else [group])]))


def mapped() -> int:
  """Returns the bytes of address space that this process has, which `ulimit -v` limits; 0 where it is not told."""
  return _status('VmSize')


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


def _status(name: str) -> int:
  return _kibibytes(Path('/proc/self/status'), name)


def _meminfo(name: str) -> int:
  return _kibibytes(Path('/proc/meminfo'), name)


def _kibibytes(path: Path, name: str) -> int:
  """One line of the kernel's own tables, in bytes; 0 where there is none, which decides for frugality."""
  try:
    lines = path.read_text().splitlines()
  except OSError:
    return 0
  return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f'{name}:')), 0)


def _control_group(root: Path = Path('/sys/fs/cgroup')) -> int | None:
  """Bytes left in the control group (version 2 or 1); None where it sets no limit."""
  for limit, used in (
    ('memory.max', 'memory.current'),
    ('memory/memory.limit_in_bytes', 'memory/memory.usage_in_bytes'),
  ):
    try:
      text = (root / limit).read_text().strip()
      if text != 'max' and int(text) < 2**60:
        return int(text) - int((root / used).read_text())
    except (OSError, ValueError):
      continue
  return None


def _mib(size: int) -> str:
  return f'{size / 2**20:,.0f} MiB'
