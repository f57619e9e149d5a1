"""What others on this machine leave to this process, from how busy its cores were beside this process's own work.

The load that a system tells is a mean of a minute, and counts what has just ended, this process too: a run that begins
after another one would be told half of the machine that stands idle. So the cores' own clocks are read twice, and what
this process took between is left out.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import NamedTuple

from jaxlite.host.limits import usable_cores
from jaxlite.host.machine import all_cores, cores
from jaxlite.host.tables import text

_SEEN = 0.15  # seconds between two readings: clocks tick a hundred times a second
_STEP = 1.25  # by which a step of niceness changes a process's share of a core, on Linux
_FULL = 0.93  # of the machine busy: how much more others want is not seen from its clocks


class Clocks(NamedTuple):
  """A reading of the cores' clocks.

  Attributes:
    at: when, in seconds of a clock that only goes forward.
    busy: seconds that all cores together were busy since the system began.
    nice: of them, at a low priority.
    own: seconds that this process took.
  """

  at: float
  busy: float
  nice: float
  own: float


def clocks() -> Clocks | None:
  """Returns a reading; None where the system does not tell it."""
  line = (text(Path('/proc/stat')) or '').partition('\n')[0].split()
  try:
    tick = os.sysconf('SC_CLK_TCK')
    user, nice, system, _, _, irq, soft, steal = (int(one) / tick for one in line[1:9])
  except (ValueError, AttributeError, OSError):
    return None
  return Clocks(time.monotonic(), user + nice + system + irq + soft + steal, nice, time.process_time())


def free_cores(since: Clocks | None = None) -> float:
  """Returns how many cores others, and its quota, leave to this process; all that it may use where that is not told.

  Args:
    since: a reading from when this process began to work; None takes one, and another after a moment.

  >>> 0 < free_cores() <= cores()
  True
  """
  mine, whole, quota = cores(), all_cores(), usable_cores().usable
  before, now = since or clocks(), clocks()
  if before is None or now is None:
    return float(min(mine, quota))
  if now.at - before.at < _SEEN:
    time.sleep(_SEEN - (now.at - before.at))
    now = clocks() or now
  return min(quota, left(before, now, mine, whole))


def left(before: Clocks, now: Clocks, mine: int, whole: int) -> float:
  """Returns how many cores a process gets that wants all it may use, beside others as busy as between two readings.

  Args:
    before, now: readings.
    mine: cores that this process may use.
    whole: that the machine has.

  >>> before, mine_alone = Clocks(0.0, 0.0, 0.0, 0.0), Clocks(2.0, 2.0, 0.0, 2.0)
  >>> left(before, mine_alone, 2, 2)
  2.0
  """
  spent = max(1e-3, now.at - before.at)
  busy = (now.busy - before.busy) / spent
  own = (now.own - before.own) / spent
  nice, low = _niceness(), (now.nice - before.nice) / spent
  others = busy - own - low * (nice <= 0)
  if others < 0.1:
    return float(mine)
  ahead = max(0.0, others - max(0.0, low - own)) if nice > 0 else others  # of them, those that do not give way
  if busy > _FULL * whole:  # then others may want more than they got
    ahead += max(0.0, _load() - 1 - others)
    others = max(others, _load() - 1)
  weighed = others - ahead + ahead * _STEP ** max(0, nice)
  got = max(whole - others, whole * mine / (mine + weighed))
  return min(mine, max(0.1, got))


def _niceness() -> int:
  """How far this process gives way to others: then those that do so too count as much as it, and the rest more."""
  try:
    return os.getpriority(os.PRIO_PROCESS, 0)
  except (AttributeError, OSError):
    return 0


def _load() -> float:
  try:
    return os.getloadavg()[0]
  except (AttributeError, OSError):
    return 0.0
