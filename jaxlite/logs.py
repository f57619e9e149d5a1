"""What a run says while it trains: metrics.jsonl, TensorBoard files and the progress line.

The JSON lines are the record; the TensorBoard files are rebuilt from them whenever a run resumes. A
checkpoint stores how long the record was, and a resume cuts it back to there: no point is torn or doubled.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TextIO

CLOCK = ('time', 'seconds', 'examples_per_second')  # fields that a resume may change


class Records:
  """The metrics of a run, appended line by line.

  >>> import tempfile
  >>> with tempfile.TemporaryDirectory() as folder, Records(folder, length=0, tensorboard=False) as records:
  ...   records.write('train', 10, {'loss': 0.5})
  ...   [line['loss'] for line in read_records(folder)]
  [0.5]
  """

  def __init__(self, workdir: str | os.PathLike[str], *, length: int, tensorboard: bool = True):
    """Opens the record, cut back to its first `length` bytes (0 for a new run)."""
    self._workdir = Path(workdir)
    self._file = open(self._workdir / 'metrics.jsonl', 'ab')  # noqa: SIM115
    if self._file.tell() < length:
      self._file.close()
      raise ValueError(f'{self._file.name} has lost lines that the checkpoint knows of: start again with --fresh')
    self._file.truncate(length)
    self._file.seek(length)  # truncating leaves the position where it was: `length` would lie until the next point
    self._tensorboard = _event_writer(self._workdir, read_records(self._workdir)) if tensorboard else None

  @property
  def length(self) -> int:
    """Bytes written so far; a checkpoint keeps it."""
    return self._file.tell()

  def write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
    """Appends one point.

    Args:
      kind: 'train' or 'validation'.
      step: optimizer steps done.
      values: plain numbers by name.
    """
    point = {'kind': kind, 'step': step, 'time': round(time.time(), 3), **values}
    self._file.write((json.dumps(point) + '\n').encode())
    self._file.flush()  # in the kernel's hands before the next checkpoint begins: a killed process loses nothing
    if self._tensorboard is not None:
      _add_point(self._tensorboard, point)
      self._tensorboard.flush()

  def close(self) -> None:
    """Closes the files."""
    self._file.close()
    if self._tensorboard is not None:
      self._tensorboard.close()

  def __enter__(self) -> Records:
    return self

  def __exit__(self, *_: object) -> None:
    self.close()


def read_records(workdir: str | os.PathLike[str]) -> list[dict[str, Any]]:
  """Returns the points of a run in order; a last line that was torn by a kill is left out.

  Raises:
    ValueError: a line before the last is damaged.
  """
  path = Path(workdir) / 'metrics.jsonl'
  if not path.exists():
    return []
  points = []
  for number, line in enumerate(path.read_bytes().split(b'\n')[:-1], start=1):
    try:
      points.append(json.loads(line))
    except ValueError:
      raise ValueError(
        f'{path}: line {number} is no JSON, so it was changed by hand or damaged: bring it back, or start again with '
        '--fresh'
      ) from None
  return points


def _event_writer(workdir: Path, points: list[dict[str, Any]]) -> Any:
  """A TensorBoard writer on fresh files that hold the points kept: event files cannot be cut back."""
  try:
    from tensorboardX import SummaryWriter
  except ImportError:
    print('no TensorBoard files: tensorboardX is missing; pip install tensorboardX', file=sys.stderr)
    return None
  folder = workdir / 'tensorboard'
  for old in folder.glob('events.out.tfevents.*'):
    old.unlink()
  writer = SummaryWriter(str(folder), flush_secs=3600)
  for point in points:
    _add_point(writer, point)
  writer.flush()
  return writer


def _add_point(writer: Any, point: Mapping[str, Any]) -> None:
  for name, value in point.items():
    if name not in ('kind', 'step', 'time') and isinstance(value, int | float):
      writer.add_scalar(f'{point["kind"]}/{name}', value, point['step'], walltime=point['time'])


class Progress:
  """One line that is redrawn on a terminal, or a plain line a log point elsewhere.

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
      self._out.write(f'\r\x1b[K{self._bar(step)} {self._numbers(step)}')
      self._out.flush()

  def rate(self, step: int) -> float:
    """Examples a second since the first step was compiled."""
    spent = time.monotonic() - (self._began or time.monotonic())
    return (step - self._start) * self._batch_size / spent if spent > 0 else 0.0

  def line(self, step: int, text: str) -> None:
    """Says something at a log point without tearing the bar."""
    if not self._show:
      return
    if self._live:
      self._out.write('\r\x1b[K')
    self._out.write(f'step {step}/{self._total}  {text}  {self._numbers(step)}\n')
    self._out.flush()

  def done(self) -> None:
    """Clears the bar."""
    if self._live:
      self._out.write('\r\x1b[K')
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
  try:
    with open('/proc/self/statm') as statm:
      return int(statm.read().split()[1]) * os.sysconf('SC_PAGE_SIZE')
  except OSError:
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == 'darwin' else peak * 1024


def print_device(say: Callable[[str], None] = print) -> None:
  """Prints what the run computes on, with a warning when an accelerator stands idle."""
  import jax

  devices = jax.devices()
  kinds = ', '.join(sorted({device.device_kind for device in devices}))
  say(f'device: {len(devices)} x {devices[0].platform} ({kinds}), {os.cpu_count()} CPU cores, jax {jax.__version__}')
  if devices[0].platform == 'cpu':
    for sign, what, fix in _SIGNS:
      if any(Path('/dev').glob(sign)):
        say(f'warning: {what} is present but JAX does not see it, so the CPU is used: {fix}')
        break


_SIGNS = (
  ('nvidia[0-9]*', 'an NVIDIA GPU', "pip install -U 'jax[cuda12]'"),
  ('kfd', 'an AMD GPU', "pip install -U 'jax[rocm]'"),
  ('accel[0-9]*', 'a TPU', "pip install -U 'jax[tpu]'"),
)
