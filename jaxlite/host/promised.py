"""What a call took of a limit that counts what is promised, and whether that has come back.

JAX on CPU takes all that a program needs for its work once that is sent, and gives it back some moments after its
results are there. So of two programs under way a limit counts both (`ulimit -d`, `ulimit -v`), and of one that follows
at once too.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from jaxlite.host.machine import text

_LARGE = 16 << 20  # bytes: for less nobody waits
_LONGEST = 0.05  # seconds that something is waited for which may never come: memory that malloc keeps
_QUICK = 5e-4  # seconds in which no program can fill what is large
_LOOKS = 8  # calls by which it is known how long one takes


class Promised:
  """What calls of one program take while they are under way, as this process's data segment shows it.

  Attributes:
    matters: whether one can take much; not once one of eight calls was too quick for that.

  >>> promised = Promised()
  >>> promised.returned()
  >>> promised.matters
  True
  """

  def __init__(self) -> None:
    self.matters = True
    self._before: int | None = None
    self._looks, self._least, self._sent = 0, float('inf'), 0.0

  def returned(self) -> None:
    """Waits until what the last call took has come back, a twentieth of a second at the most.

    To be called before each call, once the results of the last one are there.
    """
    if self._before is not None:
      now = time.monotonic()
      self._looks, self._least = self._looks + 1, min(self._least, now - self._sent)
      self.matters = self._looks < _LOOKS or self._least > _QUICK
      while data() > self._before + _LARGE and time.monotonic() < now + _LONGEST:
        time.sleep(2e-4)
    self._before, self._sent = data(), time.monotonic()


def data() -> int:
  """Returns the bytes of data and stacks of this process, as limits count them; 0 where that is not told.

  >>> data() >= 0
  True
  """
  fields = (text(Path('/proc/self/statm')) or '').split()
  return int(fields[5]) * os.sysconf('SC_PAGE_SIZE') if len(fields) > 5 else 0
