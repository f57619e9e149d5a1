"""From a signal to a clean save: SIGTERM or Ctrl-C sets a flag that the loop looks at, and no more.

So do a terminal that hangs up (SIGHUP) and a cluster's notices (SIGUSR1, SIGUSR2, SIGXCPU), unless the user has a
handler for them, or has told the process not to mind (`nohup`).

The loop asks `guard.requested` before each step and each evaluation batch; where it is set it saves, and the
launcher leaves with `EXIT_PREEMPTED`. A second signal leaves at once.

Python runs its signal handlers between bytecodes: not while XLA compiles, which may take a minute. So the
signal's number is also written to a pipe, at C level, and a thread that reads it answers at once.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from jaxlite.host.streams import listening

EXIT_PREEMPTED = 75  # EX_TEMPFAIL of sysexits.h: saved, run the same command again

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_NOTICES = tuple(getattr(signal, name) for name in ('SIGHUP', 'SIGUSR1', 'SIGUSR2', 'SIGXCPU') if hasattr(signal, name))
_ECHO_SECONDS = 0.5  # `timeout` and some schedulers send a signal to a process and then to its group: twice


class Guard:
  """Knows whether somebody asked the run to stop.

  >>> Guard().requested
  False
  """

  def __init__(self) -> None:
    self.signals = _SIGNALS + tuple(one for one in _NOTICES if signal.getsignal(one) == signal.SIG_DFL)
    self._signal: int | None = None
    self._handled = 0.0
    self._pid = os.getpid()
    self._interactive = hasattr(sys, 'ps1') or 'ipykernel' in sys.modules

  @property
  def requested(self) -> bool:
    """True once a signal came; cheap enough for every step."""
    return self._signal is not None

  def agreed(self, step: int) -> bool:
    """Tells whether to save and leave after this step: in every process of a run at the same step.

    Args:
      step: the step; each process asks for every step, in order.

    Returns:
      `requested` in a run of one process; else what `jax.distributed` made the processes agree on.
    """
    if not _distributed():
      return self.requested
    from jax.experimental import multihost_utils

    if multihost_utils.reached_preemption_sync_point(step):
      self._signal = signal.SIGTERM
    return self.requested

  def _handle(self, number: int, frame: Any) -> None:
    """Python's handler, between bytecodes of the main thread."""
    del frame
    if os.getpid() != self._pid:  # a forked child inherits handlers, and is no run
      signal.signal(number, signal.SIG_DFL)
      os.kill(os.getpid(), number)
      return
    now = time.monotonic()
    again = self.requested and self._handled and now - self._handled > _ECHO_SECONDS
    self._signal = number
    self._handled = self._handled or now
    if again and self._interactive:
      raise KeyboardInterrupt  # a notebook's process holds more than this run: leave the cell, not the process

  def _watch(self, pipe: int, forward: int) -> None:
    """Answers each signal at once, whatever the main thread is busy with."""
    first = 0.0
    while data := os.read(pipe, 1):
      if forward >= 0:
        with contextlib.suppress(OSError):
          os.write(forward, data)
      number, now = data[0], time.monotonic()
      if number not in self.signals:
        continue
      self._signal = number
      name = signal.Signals(number).name
      if not first:
        first = now
        _say(f'{name}: saving at the next step, then leaving; once more leaves at once')
      elif now - first > _ECHO_SECONDS and not self._interactive:
        _say(f'{name} again: leaving at once; what the last checkpoint holds is safe')
        os._exit(128 + number)


@contextlib.contextmanager
def guard() -> Iterator[Guard]:
  """Catches the signals that ask a run to stop while the context lasts; afterwards the old handlers are back.

  Outside the main thread, where Python allows no handlers, and where `jax.distributed` runs, which has its own
  notice of preemption (a handler here would silence it), nothing is installed.

  Returns:
    A context manager that gives the Guard.

  >>> with guard() as stop:
  ...   signal.raise_signal(signal.SIGTERM)
  ...   stop.requested
  True
  """
  watch = Guard()
  if threading.current_thread() is not threading.main_thread() or _distributed():
    yield watch
    return
  reader, writer = os.pipe()
  os.set_blocking(writer, False)
  _keep_children_out()
  forward = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
  thread = threading.Thread(target=watch._watch, args=(reader, forward), name='jaxlite-preempt', daemon=True)
  thread.start()
  before = {number: signal.signal(number, watch._handle) for number in watch.signals}
  try:
    yield watch
  finally:
    for number, handler in before.items():
      signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: not installed from Python
    signal.set_wakeup_fd(forward)
    os.close(writer)
    thread.join()
    os.close(reader)


@functools.cache
def _keep_children_out() -> None:
  """A forked child shares the pipe: a signal to it must not look like one to the run."""
  if hasattr(os, 'register_at_fork'):
    os.register_at_fork(after_in_child=functools.partial(signal.set_wakeup_fd, -1))


def _distributed() -> bool:
  jax = sys.modules.get('jax')  # not imported: not initialized
  return jax is not None and jax.distributed.is_initialized()


def _say(line: str) -> None:
  with listening(sys.stderr):
    print(line, file=sys.stderr, flush=True)
