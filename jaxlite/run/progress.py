"""How far a run is: a bar on a terminal and in a notebook, and a line where something is measured."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, TextIO

from jaxlite.host import notebook
from jaxlite.host.gc_pause import paused
from jaxlite.host.machine import resident
from jaxlite.host.streams import listening, steady

_REDRAW_SECONDS = 0.2


class Beside(NamedTuple):
  """What a run does beside its steps, again and again.

  Attributes:
    every: steps between two of them; the last step has one too.
    steps: how many steps one is believed to last, until one was timed that compiled nothing.
  """

  every: int
  steps: float


class _Took(NamedTuple):
  """Seconds of what was done beside steps: the first of its kind, which may have compiled, and all others."""

  first: float
  others: float = 0.0
  count: int = 0


class Progress:
  """Says how far a run is: steps, rate, time left and memory.

  The rate is that of the steps alone. The time left is theirs, and that of the evaluations and checkpoints to come;
  what was compiled on the way is in neither.

  A bar is redrawn where a person looks on: on a terminal, and where IPython's kernel runs (a notebook). Lines go to
  `say`, like all that a run says. Nothing is said when `show` is False.
  """

  def __init__(
    self,
    total: int,
    start: int,
    batch_size: int,
    *,
    show: bool = True,
    say: Callable[[str], None] | None = None,
    out: TextIO | None = None,
    beside: Mapping[str, Beside] | None = None,
  ):
    """Begins.

    Args:
      total: steps of the run.
      start: steps that are behind it.
      batch_size: in examples.
      show: whether anything is said.
      say: prints a line.
      out: where a bar is drawn.
      beside: what the time left counts beside steps, by the kind that `aside` is given.
    """
    self._total, self._start, self._batch_size = total, start, batch_size
    self._origin = start
    self._out = out or sys.stdout
    self._say = say or steady(lambda line: print(line, file=self._out))
    self._show = show
    self._terminal = self._out.isatty()
    looked_on = notebook.in_notebook(self._out)
    self._live = show and (self._terminal or looked_on)
    self._shown = notebook.bar() if self._live and looked_on else None
    self._began: float | None = None
    self._seen = start
    self._drawn = 0.0
    self._width = 0  # of the bar that stands there
    self._beside = dict(beside or {})
    self._took: dict[str, _Took] = {}

  def step(self, step: int) -> None:
    """Redraws at most five times a second; costs a clock reading otherwise."""
    now = time.monotonic()
    if self._began is None:
      self._began, self._start = now, step  # the first step compiles: it says nothing of the rate
    if self._live and now - self._drawn > _REDRAW_SECONDS:
      self._drawn = now
      if self._shown is not None:
        self._shown.draw(f'step {step:,} of {self._total:,}  {self._numbers(step)}', step / max(self._total, 1))
      else:
        self._draw(f'{self._bar(step)} {self._numbers(step)}')
    self._seen = step

  @contextlib.contextmanager
  def aside(self, kind: str, after: Any = ()) -> Iterator[None]:
    """Leaves the time of this block out of the rate: it is no step. The first of a kind compiles something.

    Args:
      kind: what is done: 'evaluation', say.
      after: arrays of the steps before, which may still be under way: their time counts.
    """
    if self._began is None:
      yield
      return
    import jax

    before = self._took.get(kind)
    jax.block_until_ready(after)
    began = time.monotonic()
    with paused() if before is None else contextlib.nullcontext():  # it imports and traces
      yield
    took = time.monotonic() - began
    self._began += took
    if before is None:
      self._took[kind] = _Took(took)
    else:
      self._took[kind] = before._replace(others=before.others + took, count=before.count + 1)

  def passed(self, steps: int) -> None:
    """Leaves steps out of the rate that were taken while the clock of `aside` stood."""
    self._start += steps

  def rate(self, step: int) -> float:
    """Examples per second, without what is compiled on the way."""
    spent = time.monotonic() - (self._began or time.monotonic())
    return max(0, step - self._start) * self._batch_size / spent if spent > 0 else 0.0

  def left(self, step: int) -> float | None:
    """Returns the seconds that are left after a step, evaluations and checkpoints counted; None before a step is timed.

    Args:
      step: that was taken last.
    """
    rate = self.rate(step)
    if not rate:
      return None
    each = self._batch_size / rate
    seconds = (self._total - step) * each
    for kind, (every, steps) in self._beside.items():
      took = self._took.get(kind)
      if took is None:
        one = steps * each
      else:
        one = took.others / took.count if took.count else min(took.first, steps * each)
      # Of what is done more often than it is due (a checkpoint for each new best) as much is expected of the rest.
      due, done = self._due(step, every) - self._due(self._origin, every), 0 if took is None else 1 + took.count
      more = max(1.0, done / due) if due > 0 else 1.0
      seconds += (self._due(self._total, every) - self._due(step, every)) * one * more
    return seconds

  def _due(self, step: int, every: int) -> int:
    """How often something is due up to a step."""
    return step // every + (step == self._total and step % every > 0)

  def line(self, step: int, *texts: str) -> None:
    """Says what was measured at a point, without tearing the bar.

    Args:
      step: of the point.
      *texts: what to say; one line for all of them.
    """
    if not self._show or not texts:
      return
    self.say('  '.join([f'step {step}/{self._total}', *texts, self._numbers(step)]))

  def say(self, line: str) -> None:
    """Says a line that is about something else, without tearing the bar."""
    self._draw('')
    self._say(line)

  def done(self) -> None:
    """Clears the bar; a notebook keeps where it ended."""
    if self._shown is not None and self._began is not None:
      self._shown.draw(f'step {self._seen:,} of {self._total:,}  {self.rate(self._seen):,.0f} examples/s')
    self._draw('')

  def _draw(self, text: str) -> None:
    """Puts a text in the place of the bar that stands there."""
    if not self._live or self._shown is not None or not (text or self._width):
      return
    # A notebook knows the carriage return alone: what was longer is written over.
    shown = f'\r\x1b[K{text}' if self._terminal else f'\r{text.ljust(self._width)}' + ('' if text else '\r')
    self._width = len(text)
    with listening(self._out):
      self._out.write(shown)
      self._out.flush()

  def _bar(self, step: int) -> str:
    width = 24
    full = width * step // max(self._total, 1)
    return f'[{"#" * full}{"." * (width - full)}] {step}/{self._total}'

  def _numbers(self, step: int) -> str:
    seconds = self.left(step)
    left = '' if seconds is None else f'{self.rate(step):,.0f} examples/s  {_clock(seconds)} left  '
    return f'{left}{memory_in_use() / 2**20:,.0f} MiB'


def _clock(seconds: float) -> str:
  whole = round(seconds)
  hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
  return f'{hours}:{minutes:02}:{rest:02}' if hours else f'{minutes}:{rest:02}'


def memory_in_use() -> int:
  """Returns bytes in use: of the accelerator where one is used, else of this process."""
  import jax

  stats = jax.local_devices()[0].memory_stats() if jax.local_devices()[0].platform != 'cpu' else None
  if stats and 'bytes_in_use' in stats:
    return int(stats['bytes_in_use'])
  return resident()
