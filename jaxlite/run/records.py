"""What a run says while it trains: metrics.jsonl, TensorBoard files and the progress line.

The JSON lines are the record; the TensorBoard files are rebuilt from them whenever a run resumes. A
checkpoint stores how long the record was, and a resume cuts it back to there: no point is torn or doubled.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

CLOCK = ('time', 'seconds', 'examples_per_second')  # fields that a resume may change
WEIGHT = 'jl.weight'  # among the metrics of a step: the total weight of its batch


def means_of(steps: Sequence[Mapping[str, float]]) -> dict[str, float]:
  """Returns the mean of each metric over the examples of several steps: each step by the weight of its batch.

  Args:
    steps: the metrics of each, plain numbers, and `WEIGHT`.

  Returns:
    The means; empty where no loss was finite. A step whose loss was not finite, and that a part left out, is no part
    of them.

  >>> means_of([{'loss': 1.0, WEIGHT: 3.0}, {'loss': 2.0, WEIGHT: 1.0}, {'loss': math.nan, WEIGHT: 4.0}])
  {'loss': 1.25}
  """
  taken = [step for step in steps if math.isfinite(step['loss'])]
  weights = [step.get(WEIGHT, 1.0) for step in taken]
  if not math.fsum(weights) > 0:  # nothing but padding: its loss is 0 whatever it counts
    weights = [1.0] * len(taken)
  names = [name for name in taken[0] if name != WEIGHT] if taken else []
  total = math.fsum(weights)
  return {
    name: math.fsum(step[name] * weight for step, weight in zip(taken, weights, strict=True)) / total for name in names
  }


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
