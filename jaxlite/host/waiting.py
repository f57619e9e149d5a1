"""Waiting for a process that may hang: as long as it computes it is waited for."""

from __future__ import annotations

import contextlib
import os
import subprocess
from pathlib import Path


def ended(process: subprocess.Popen[str], still: float) -> int | None:
  """Returns the exit code of a process, once it has ended; None where it stood still, and it runs on then.

  Args:
    process: that was started.
    still: seconds without a hundredth of them on a processor after which it is taken to hang. Where the system keeps no
      /proc it is waited for to its end.

  >>> import sys
  >>> ended(subprocess.Popen([sys.executable, '-c', 'print(end="")']), 60.0)
  0
  """
  before = 0.0
  while True:
    try:
      return process.wait(still)
    except subprocess.TimeoutExpired:
      now = processor_seconds(process.pid)
      if now is not None and now - before < 0.01 * still:
        return None
      before = now or 0.0


def processor_seconds(pid: int) -> float | None:
  """Returns what a process has computed so far, all threads together; None where that cannot be read.

  Args:
    pid: its number.

  >>> (processor_seconds(os.getpid()) or 1.0) > 0
  True
  """
  with contextlib.suppress(OSError, ValueError, IndexError):
    fields = Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()
    return sum(map(int, fields[11:13])) / os.sysconf('SC_CLK_TCK')
  return None
