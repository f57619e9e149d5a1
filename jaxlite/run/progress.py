"""The progress line: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from typing import TextIO

from jaxlite.host.machine import resident
from jaxlite.host.streams import listening


class Progress:
  """One line that is redrawn on a terminal, or one plain line per log point elsewhere.

  Shows steps, rate, time left and memory. Prints nothing when `show` is False.
  """

  def __init__(self, total: int, start: int, batch_size: int, *, show: bool = True, out: TextIO | None = None):
    """Args: total and start in steps; batch_size in examples."""
    self._total, self._start, self._batch_size = total, start, batch_size
    self._out = out or sys.stdout
    self._show = show
    self._live = show and self._out.isatty()
    self._began: float | None = None
    self._drawn = 0.0

  def step(self, step: int) -> None:
    """Redraws at most five times a second; costs a clock reading otherwise."""
    now = time.monotonic()
    if self._began is None:
      self._began, self._start = now, step  # the first step compiles: it says nothing of the rate
    if self._live and now - self._drawn > 0.2:
      self._drawn = now
      self._write(f'\r\x1b[K{self._bar(step)} {self._numbers(step)}')

  def rate(self, step: int) -> float:
    """Examples per second since the first step was compiled."""
    spent = time.monotonic() - (self._began or time.monotonic())
    return (step - self._start) * self._batch_size / spent if spent > 0 else 0.0

  def line(self, step: int, text: str) -> None:
    """Says something at a log point without tearing the bar."""
    if not self._show:
      return
    cleared = '\r\x1b[K' if self._live else ''
    self._write(f'{cleared}step {step}/{self._total}  {text}  {self._numbers(step)}\n')

  def done(self) -> None:
    """Clears the bar."""
    if self._live:
      self._write('\r\x1b[K')

  def _write(self, text: str) -> None:
    with listening(self._out):
      self._out.write(text)
      self._out.flush()

  def _bar(self, step: int) -> str:
    width = 24
    full = width * step // max(self._total, 1)
    return f'[{"#" * full}{"." * (width - full)}] {step}/{self._total}'

  def _numbers(self, step: int) -> str:
    rate = self.rate(step)
    left = (self._total - step) * self._batch_size / rate if rate else 0.0
    return f'{rate:,.0f} examples/s  {_clock(left)} left  {memory_in_use() / 2**20:,.0f} MiB'


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
