"""Workers that take turns: each framework lives in a process of its own and works only when it is asked.

A parent starts the workers and asks one at a time, so no two ever run at once: one line of JSON each way. Standard
library only, since the workers of every framework import it.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).parent
# malloc.h's names for what keeps freed memory with the process; jaxlite.host.allocator sets the same.
_ARENA_MAX, _MMAP_MAX, _TRIM_THRESHOLD, _TOP_PAD = -8, -4, -1, -2


class Worker(NamedTuple):
  """A process that answers.

  Attributes:
    process: it.
    began: when it was started, in this process's `time.perf_counter` seconds.
  """

  process: subprocess.Popen
  began: float


def start(python: str, script: str, spec: dict[str, Any]) -> Worker:
  """Starts a worker; `spec` is all that it knows."""
  began = time.perf_counter()
  command = [python, str(HERE / script), json.dumps(spec)]
  path = os.pathsep.join(filter(None, [str(HERE.parent.parent), os.environ.get('PYTHONPATH')]))  # jaxlite beside us
  process = subprocess.Popen(
    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, 'PYTHONPATH': path}
  )
  return Worker(process, began)


def ask(worker: Worker, *question: Any) -> Any:
  """Asks and waits for the answer.

  Raises:
    RuntimeError: the worker has died; what it said stands on stderr.
  """
  try:
    worker.process.stdin.write(json.dumps(question) + '\n')
    worker.process.stdin.flush()
    line = worker.process.stdout.readline()
  except BrokenPipeError:
    line = ''
  if not line:
    raise RuntimeError(f'a worker died at {question} with exit code {worker.process.wait()}; see above')
  return json.loads(line)


def since(worker: Worker) -> float:
  """Returns the seconds since a worker was started."""
  return time.perf_counter() - worker.began


def seconds(call: Callable[[], Any]) -> float:
  """Returns what a call takes."""
  began = time.perf_counter()
  call()
  return time.perf_counter() - began


def stop(worker: Worker) -> None:
  """Ends a worker and waits until it is gone."""
  worker.process.stdin.close()
  worker.process.wait()
  worker.process.stdout.close()


def serve(answers: dict[str, Callable[..., Any]]) -> None:
  """Answers until the parent closes the line. Whatever libraries print goes to stderr."""
  out = os.fdopen(os.dup(1), 'w')
  os.dup2(2, 1)
  sys.stdout = sys.stderr
  for line in sys.stdin:
    name, *arguments = json.loads(line)
    out.write(json.dumps(answers[name](*arguments)) + '\n')
    out.flush()


def missing(python: str, module: str) -> bool:
  """Tells whether an interpreter lacks a module; nothing of it is run."""
  look = f'import importlib.util, sys; sys.exit(importlib.util.find_spec({module!r}) is None)'
  try:
    return subprocess.run([python, '-c', look], check=False).returncode != 0
  except OSError:
    return True


def version(python: str, module: str) -> str:
  """Returns a module's version in an interpreter."""
  look = f'import importlib.metadata as m; print(m.version({module!r}))'
  return subprocess.run([python, '-c', look], check=True, capture_output=True, text=True).stdout.strip()


def one_arena() -> None:
  """As `jaxlite.host.allocator.share_one_arena`, for a process without jaxlite; elsewhere than on glibc, nothing."""
  _mallopt([(_ARENA_MAX, 1)])


def keep_mapped() -> None:
  """As `jaxlite.host.allocator.keep_mapped`, for a process without jaxlite; elsewhere than on glibc, nothing."""
  _mallopt([(_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1), (_TOP_PAD, 64 << 20)])


def _mallopt(settings: Sequence[tuple[int, int]]) -> None:
  libc = ctypes.CDLL(None)
  if hasattr(libc, 'mallopt'):
    for setting, value in settings:
      libc.mallopt(setting, value)


def peak() -> int:
  """Returns the most bytes that this process ever held in memory; 0 where the system does not tell."""
  try:
    lines = Path('/proc/self/status').read_text().splitlines()
  except OSError:
    return 0
  return next((int(line.split()[1]) * 1024 for line in lines if line.startswith('VmHWM:')), 0)


def cores() -> int:
  """Returns how many cores this process may use."""
  return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


class Running(NamedTuple):
  """A form of the train step that a worker keeps.

  Attributes:
    step: (index of the step) -> the losses of as many steps as a call takes, not waited for.
    numbers: (what `step` returned) -> a list of floats; waits for it.
    steps: how many steps a call takes.
    prepare: what sets the process up for this form, before its turn.
  """

  step: Callable[[int], Any]
  numbers: Callable[[Any], list[float]]
  steps: int = 1
  prepare: Callable[[], None] = lambda: None


def serve_steps(build: Callable[[str], Running], after_first: Callable[[], None] = lambda: None) -> None:
  """Serves what `against_pytorch` and `startup` ask of every framework. Each question names a form.

  `first` builds it and takes its first step, `losses` goes on to a number of steps and gives all their losses, `time`
  gives the seconds of some more, `peak` the bytes of the process.
  """
  running: dict[str, Running] = {}
  losses: dict[str, list[float]] = {}
  done: dict[str, int] = {}

  def call(form: str, calls: int) -> Any:
    running[form].prepare()
    for _ in range(calls):
      loss = running[form].step(done[form])
      done[form] += running[form].steps
    return running[form].numbers(loss)

  def first(form: str) -> float:
    running[form], done[form] = build(form), 0
    losses[form] = call(form, 1)
    after_first()
    return losses[form][0]

  def losses_of(form: str, steps: int) -> list[float]:
    while len(losses[form]) < steps:
      losses[form] += call(form, 1)
    return losses[form][:steps]

  def timed(form: str, steps: int) -> dict[str, float]:
    calls = max(1, round(steps / running[form].steps))
    began = time.perf_counter()
    call(form, calls)
    return {'seconds': time.perf_counter() - began, 'steps': calls * running[form].steps}

  serve({'first': first, 'losses': losses_of, 'time': timed, 'peak': peak})
