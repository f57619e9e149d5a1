"""How much memory and how many cores this process really has: the least that machine, control groups and limits say.

On Linux the kernel's tables say it. On macOS what is free is read out of what `vm_stat` and `sysctl` print, on Windows
out of one call; tests hold that these texts are understood, and nobody has run a training on either.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from jaxlite.host.groups import hidden, memory_limits, quota
from jaxlite.host.tables import counts, number, text

_SYSTEM = Path('/')


class Limits(NamedTuple):
  """What this process may use of memory. Swap is counted nowhere but in `swap`.

  Attributes:
    memory: bytes of resident memory that this process may come to in all: the least that the machine, its control
      group and each group above it, and the limits of the process allow; 0 where nothing is told (see `warnings`).
    free: bytes it may still grow by, with what others use taken off; 0 where nothing is told.
    address_space: what `ulimit -v` allows in all, in bytes; None: no limit.
    data_segment: what `ulimit -d` allows in all, in bytes; None: no limit.
    reason: which of them binds `memory`, in words.
    warnings: lines on what could not be read, or is odd.
    binds: which of them binds `free`, in words.
    physical: bytes of the machine's memory; 0 where it is not told.
    swap: bytes that could be swapped out, beside `free`: far slower than memory.
    resident_memory: `memory` as machine and control groups alone say: `ulimit -v` and `-d` count other things than
      resident memory.
    resident_free: `free` as they alone say.
  """

  memory: int
  free: int
  address_space: int | None
  data_segment: int | None
  reason: str
  warnings: tuple[str, ...] = ()
  binds: str = ''
  physical: int = 0
  swap: int = 0
  resident_memory: int = 0
  resident_free: int = 0


class Cores(NamedTuple):
  """The processor's cores.

  Attributes:
    usable: how many this process gets at most, which need not be whole: 1.5 under a quota of 150 ms in 100.
    allowed: how many it may run on.
    present: how many the machine has.
    reason: which of them binds `usable`, in words.
  """

  usable: float
  allowed: int
  present: int
  reason: str


def limits(root: Path = _SYSTEM) -> Limits:
  """Returns how much memory this process may use. It never raises: what is not told is left out, with a warning.

  Args:
    root: where the kernel's tables lie. Another folder than that of the system serves tests: it stands for all that a
      machine tells, and the limits of the process are read from its `proc/self/limits`.

  >>> limits().free <= limits().physical
  True
  """
  warnings: list[str] = []
  mem, own = counts(root / 'proc/meminfo'), counts(root / 'proc/self/status')
  resident = own.get('VmRSS', 0)
  files = min(own.get('RssFile', 0), own.get('VmExe', 0) + own.get('VmLib', 0))  # code; mapped data can be dropped
  physical = mem.get('MemTotal', 0) or (_physical() if root == _SYSTEM else 0)
  available, swap = _available(mem, root)
  most: list[tuple[int, str]] = []
  room: list[tuple[int, str]] = []
  if physical:
    most.append((physical, 'what the machine has'))
  else:
    warnings.append('this system does not tell how much memory it has')
  if available is not None:
    room.append((available, 'what no process uses'))
  elif physical:
    room.append((physical - resident, 'what the machine has'))
    warnings.append('this system does not tell how much memory other processes use: all but our own counts as free')
  for group in memory_limits(root, files, resident):
    most.append((group.limit, group.what))
    room.append((group.room, group.what))
    swap = swap if group.swap is None else min(swap, group.swap)
    if group.room <= 0:
      warnings.append(f'{group.what} allows {_gib(group.limit)}, and its processes use that much already')
  if group_name := hidden('memory', root):
    warnings.append(f'the control group {group_name} is not shown here: what it allows is not known')
  # Under strict accounting malloc fails before memory is full.
  if number(text(root / 'proc/sys/vm/overcommit_memory')) == 2 and 'CommitLimit' in mem:
    promised = 'CommitLimit, since the kernel promises no more memory than it has (vm.overcommit_memory = 2)'
    most.append((mem['CommitLimit'], promised))
    room.append((mem['CommitLimit'] - mem.get('Committed_AS', 0), promised))
  spaces = {}
  resident_memory, resident_free = min(most, default=(0, ''))[0], min([*room, *most], default=(0, ''))[0]
  for name, option, used in (('address space', '-v', 'VmSize'), ('data size', '-d', 'VmData')):
    spaces[name] = limit = _process_limit(name, root)
    if limit is None:
      continue
    what = f'`ulimit {option}`'
    most.append((limit, what))
    room.append((limit - own.get(used, resident), what))
    if limit <= own.get(used, resident):
      warnings.append(f'{what} allows {_gib(limit)}, and this process has that much already')
  memory, reason = min(most, default=(0, 'this system tells no limit'))
  free, binds = min([*room, (memory, reason)])
  return Limits(
    max(0, memory),
    max(0, free),
    spaces['address space'],
    spaces['data size'],
    reason,
    tuple(dict.fromkeys(warnings)),
    binds,
    physical,
    max(0, swap),
    max(0, resident_memory),
    max(0, resident_free),
  )


def usable_cores(root: Path = _SYSTEM) -> Cores:
  """Returns how many cores this process may use: by affinity (`taskset`, a CPU set) and by its control groups' quota.

  Args:
    root: where the kernel's tables lie; see `limits`.

  >>> 0 < usable_cores().usable <= usable_cores().allowed <= usable_cores().present
  True
  """
  allowed = allowed_cores()
  present = max(os.cpu_count() or 1, allowed)
  share = quota(root)
  if share is not None and share[0] < allowed:
    return Cores(share[0], allowed, present, share[1])
  few = allowed < present
  return Cores(float(allowed), allowed, present, 'the cores it may run on' if few else 'what the machine has')


def allowed_cores() -> int:
  """Returns how many cores this process may run on: fewer than the machine has under `taskset` or in a CPU set."""
  with contextlib.suppress(AttributeError, OSError):  # no such call on this system
    return max(1, len(os.sched_getaffinity(0)))
  count = getattr(os, 'process_cpu_count', os.cpu_count)()
  return count or 1


def throttled(found: Cores) -> str | None:
  """Returns in one line what a quota does to programs that use threads, and the way out; None where there is none.

  Args:
    found: of `usable_cores`.

  >>> throttled(Cores(2.0, 2, 2, 'what the machine has')) is None
  True
  """
  if found.usable >= found.allowed:
    return None
  few = max(1, int(found.usable))
  ids = sorted(os.sched_getaffinity(0))[:few] if hasattr(os, 'sched_getaffinity') else range(few)
  return (
    f'programs start {found.allowed} threads and are stopped when the quota of {found.usable:g} cores ({found.reason}) '
    f'is used up: `taskset -c {",".join(map(str, ids))}` in front of the command runs steadier'
  )


def disk_free(folder: str | os.PathLike[str]) -> int | None:
  """Returns the bytes that this user may still write to a folder's disk; None where that is not told.

  Args:
    folder: it, or those above it, need not be there yet.

  >>> (disk_free('/no/such/folder') or 0) > 0
  True
  """
  with contextlib.suppress(FileNotFoundError):  # where this process stands was removed
    place = Path(folder).absolute()
    for above in (place, *place.parents):
      with contextlib.suppress(OSError, ValueError):
        return shutil.disk_usage(above).free
  return None


def _available(mem: dict[str, int], root: Path) -> tuple[int | None, int]:
  """Bytes that no process uses, and bytes of swap that are free."""
  swap = mem.get('SwapFree', 0)
  if 'MemAvailable' in mem:
    return mem['MemAvailable'], swap
  if 'MemFree' in mem:  # kernels before 3.14
    cached = mem.get('Cached', 0) + mem.get('Buffers', 0) - mem.get('Shmem', 0)
    return mem['MemFree'] + max(0, cached), swap
  if root != _SYSTEM:
    return None, swap
  if sys.platform == 'darwin':
    return darwin_available(_said('/usr/bin/vm_stat')), darwin_swap(_said('/usr/sbin/sysctl', '-n', 'vm.swapusage'))
  if sys.platform == 'win32':
    found = _windows()
    return (found[1], max(0, found[2] - found[1])) if found else (None, 0)
  return None, swap


def darwin_available(table: str) -> int | None:
  """Returns the bytes that macOS could hand out, from what `vm_stat` prints; None where it says nothing.

  >>> darwin_available('(page size of 4096 bytes)\\nPages free: 10.\\nPages inactive: 5.\\nPages active: 9.')
  61440
  """
  size = re.search(r'page size of (\d+) bytes', table)
  pages = [re.search(rf'^Pages {name}:\s+(\d+)\.', table, re.MULTILINE) for name in ('free', 'inactive')]
  if size is None or pages[0] is None:
    return None
  return int(size[1]) * sum(int(found[1]) for found in pages if found)


def darwin_swap(line: str) -> int:
  """Returns the bytes of swap that are free, from what macOS prints as `vm.swapusage`.

  >>> darwin_swap('total = 2048.00M  used = 1024.00M  free = 1024.00M  (encrypted)')
  1073741824
  """
  free = re.search(r'free = (\d+(?:\.\d+)?)M', line)
  return int(float(free[1]) * 2**20) if free else 0


def _said(*command: str) -> str:
  """What a program of the system prints; '' where it cannot be run."""
  with contextlib.suppress(OSError, subprocess.SubprocessError):
    return subprocess.run(command, capture_output=True, text=True, errors='replace', timeout=5, check=True).stdout
  return ''


def _physical() -> int:
  with contextlib.suppress(AttributeError, ValueError, OSError):  # Linux without /proc, macOS
    return max(0, os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES'))
  found = _windows()
  return found[0] if found else 0


def _windows() -> tuple[int, int, int] | None:
  """Bytes of the machine's memory, of what is free of it, and of what a process may still ask for; None elsewhere."""
  if sys.platform != 'win32':
    return None
  import ctypes

  numbers = (ctypes.c_ulonglong * 8)()  # MEMORYSTATUSEX: two 32-bit numbers (its size, the load), then seven of 64 bits
  ctypes.cast(numbers, ctypes.POINTER(ctypes.c_uint32))[0] = ctypes.sizeof(numbers)
  with contextlib.suppress(AttributeError, OSError):
    if ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(numbers)):
      return numbers[1], numbers[2], numbers[4]
  return None


def _process_limit(name: str, root: Path) -> int | None:
  """A soft limit of this process in bytes ('address space', 'data size'); None where it has none."""
  for line in (text(root / 'proc/self/limits') or '').splitlines():
    if line.lower().startswith(f'max {name}'):
      return number(line[len(f'max {name}') :])
  if root != _SYSTEM:
    return None
  with contextlib.suppress(ImportError, AttributeError, OSError, ValueError):
    import resource

    soft = resource.getrlimit(resource.RLIMIT_AS if name == 'address space' else resource.RLIMIT_DATA)[0]
    return None if soft == resource.RLIM_INFINITY or soft >= 2**60 else soft
  return None


def _gib(size: int) -> str:
  return f'{size / 2**30:.1f} GiB' if size >= 2**30 else f'{size / 2**20:.0f} MiB'
