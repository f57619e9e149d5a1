"""What a run says while it trains: metrics.jsonl, TensorBoard files and the progress line.

The JSON lines are the record; the TensorBoard files are rebuilt from them whenever a run resumes. A
checkpoint stores how long the record was, and a resume cuts it back to there: no point is torn or doubled.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
      raise ValueError(f'{self._file.name} has lost lines that the checkpoint knows of: start again with fresh=True')
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
        'fresh=True'
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
