"""A run that finds no memory begins again from its last checkpoint: the process replaces itself by the same command.

Near a limit it is chance whether a large piece is still free in one piece: of fifty runs that came through a trial, one
dies. A new process has all its memory in one piece, and goes on where the checkpoint stands.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

# How a limit of memory shows. A thread's stack, of 8 MiB or so, is what `ulimit -d` and `-v` refuse first.
NO_MEMORY = (
  *('RESOURCE_EXHAUSTED', 'bad_alloc', 'YNNPACK', 'MemoryError', 'Cannot allocate memory', 'start new thread'),
  *('not enough memory', 'Memory allocation'),  # of what a checkpoint is packed with, and of OpenBLAS
  'Resource temporarily unavailable',  # of C++ threads
)
_NO_DISK = ('No space left on device', 'Disk quota exceeded')  # which TensorStore tells as RESOURCE_EXHAUSTED too


def is_memory(error: BaseException) -> bool:
  """Tells whether an exception means that there was no memory.

  >>> is_memory(MemoryError()), is_memory(RuntimeError("can't start new thread")), is_memory(ValueError('no class 7'))
  (True, True, False)
  >>> is_memory(ValueError('RESOURCE_EXHAUSTED: Error writing "a" [strerror="No space left on device"]'))
  False
  """
  causes: list[BaseException] = [error]
  while (cause := causes[-1].__cause__) is not None:
    causes.append(cause)
  if any(word in str(one) for one in causes for word in _NO_DISK):
    return False
  return any(isinstance(one, MemoryError) or any(word in str(one) for word in NO_MEMORY) for one in causes)


def words(command: Sequence[str], left: int) -> list[str]:
  """Returns the command that goes on with a run.

  Args:
    command: that this process was started by.
    left: how often that may be done again.

  >>> words(['python', 'launch.py', '--fresh', '--again=3', '--seed', '1'], 2)
  ['python', 'launch.py', '--seed', '1', '--again=2']
  """
  return [*without(command, 'again', switches=('fresh',)), f'--again={left}']


def without(command: Sequence[str], *names: str, switches: Sequence[str] = ()) -> list[str]:
  """Returns a command without some flags.

  Args:
    command: words.
    *names: of flags that take a value, in the same word or the next.
    switches: names of flags that take none.

  >>> without(['launch.py', '-mode', 'fit', '--fresh', '--seed=1'], 'mode')
  ['launch.py', '--fresh', '--seed=1']
  """
  kept, skip = [], False
  for word in command:
    name = word.lstrip('-').split('=')[0] if word.startswith('-') else ''
    if not skip and name not in (*names, *switches):
      kept.append(word)
    skip = not skip and name in names and '=' not in word
  return kept


def begin(command: Sequence[str], left: int) -> NoReturn:
  """Becomes the command that goes on with a run.

  Args:
    command: that this process was started by, the interpreter first.
    left: how often that may be done again.
  """
  print(f'no memory was left: the run begins again from its last checkpoint ({left} more times if need be)', flush=True)
  sys.stderr.flush()
  found = words(command, left)
  os.execv(found[0], found)


def leave(error: BaseException, message: str | None) -> NoReturn:
  """Ends this process where there was no memory: at once, since what waits for a thread that never began waits on.

  Args:
    error: that says so.
    message: it in a line; None shows where it comes from.
  """
  if message is None:
    traceback.print_exception(error)
  else:
    known = any(word in message for word in NO_MEMORY)  # the line may have lost what its cause says
    print(f'error: {message}' + ('' if known else ' (not enough memory)'), file=sys.stderr)
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(1 if message is None else 2)
