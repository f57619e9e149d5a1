"""How much memory and how many cores this process really has: the least that machine, control groups and limits say."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple


class Limits(NamedTuple):
  """What this process may use.

  Attributes:
    memory: bytes of resident memory that this process may come to in all: the least that the machine, its control
      group and each group above it, and the limits of the process allow.
    free: bytes it may still grow by, others' use counted; swap is not among them.
    address_space: what `ulimit -v` allows in all, in bytes; None: no limit.
    data_segment: what `ulimit -d` allows in all, in bytes; None: no limit.
    reason: which of them binds `memory`, in words.
    warnings: lines on what could not be read, or is odd.
    binds: which of them binds `free`, in words.
    physical: bytes of the machine's memory; 0 where it is not told.
    swap: bytes that could be swapped out, beside `free`: far slower than memory.
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


class Cores(NamedTuple):
  """The processor's cores.

  Attributes:
    usable: how many this process gets at most, as a number with a part: 1.5 under a quota of 150 ms in 100.
    allowed: how many it may run on.
    present: how many the machine has.
    reason: which of them binds `usable`, in words.
  """

  usable: float
  allowed: int
  present: int
  reason: str


def limits(root: Path = Path('/')) -> Limits:
  """Returns how much memory this process may use.

  Args:
    root: where the kernel's tables lie; another folder serves tests.
  """
  raise NotImplementedError


def usable_cores(root: Path = Path('/')) -> Cores:
  """Returns how many cores this process may use: by affinity, CPU set and quota.

  Args:
    root: as in `limits`.
  """
  raise NotImplementedError
