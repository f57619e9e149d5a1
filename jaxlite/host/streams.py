"""Speaking to a terminal, a pipe or a file that may take no more, or never was: a run is worth more than its lines."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

# A pipe without a reader, a terminal that hung up, a log on a disk that is full.
_GONE = (errno.EPIPE, errno.EIO, errno.EBADF, errno.ENOSPC, errno.EDQUOT)


def open_standard() -> None:
  """Makes sure that a process has its three standard streams, and that they take any text; for programs, not libraries.

  A job's starter may have closed them (`>&-`, some daemons). The next file that is opened would then get number 1 or 2,
  and what C++ code logs to these would be written into it: into a checkpoint, say. What an encoding lacks (a path in a
  terminal that knows ASCII alone) is shown as an escape.
  """
  while (handle := os.open(os.devnull, os.O_RDWR)) <= 2:  # the lowest number that is free; it stays open
    os.set_inheritable(handle, True)  # for processes that this one starts
  os.close(handle)
  for name, number, mode in (('stdin', 0, 'r'), ('stdout', 1, 'w'), ('stderr', 2, 'w')):
    stream = getattr(sys, name)
    if stream is None:
      setattr(sys, name, open(number, mode, encoding='utf-8', closefd=False))  # noqa: SIM115
    elif getattr(stream, 'errors', '') == 'strict' and mode == 'w':
      with contextlib.suppress(AttributeError, ValueError):  # a stand-in of somebody's
        stream.reconfigure(errors='backslashreplace')


def show(line: str) -> None:
  """Prints a line, or nothing where nobody takes it.

  >>> show('a line')
  a line
  """
  steady(functools.partial(print, flush=True))(line)


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
      try:
        say(line)
      except UnicodeEncodeError as error:  # of a terminal that knows less
        say(line.encode(error.encoding, 'backslashreplace').decode(error.encoding))
      if sys.stdout is not None:  # a process without a terminal, Windows' pythonw
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
