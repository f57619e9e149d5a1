"""Speaking to a terminal, a pipe or a file that may take no more: a run is worth more than the lines about it."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

# A pipe without a reader, a terminal that hung up, a log on a disk that is full.
_GONE = (errno.EPIPE, errno.EIO, errno.EBADF, errno.ENOSPC, errno.EDQUOT)


def steady(say: Callable[[str], Any]) -> Callable[[str], None]:
  """Returns the same function, which falls silent where nobody takes lines (`| head -1`, a full disk).

  >>> import io
  >>> heard = []
  >>> steady(heard.append)('a line')
  >>> heard
  ['a line']
  """

  def said(line: str) -> None:
    with listening(sys.stdout):
      say(line)
      sys.stdout.flush()  # here, and not when the interpreter ends

  return said


@contextlib.contextmanager
def listening(stream: Any) -> Iterator[None]:
  """Runs the block; where writing fails because nobody takes it, the stream writes to nowhere from then on.

  Args:
    stream: what the block writes to.
  """
  try:
    yield
  except OSError as error:
    if error.errno not in _GONE:
      raise
    with contextlib.suppress(OSError, ValueError, AttributeError):  # a stream of Python's own has no descriptor
      nowhere = os.open(os.devnull, os.O_WRONLY)
      os.dup2(nowhere, stream.fileno())
      os.close(nowhere)
