"""What a run says while it trains: metrics.jsonl, TensorBoard files and the progress line.

The JSON lines are the record. A checkpoint stores how long it was, and a resume cuts it back to there: no point is torn
or doubled, and TensorBoard's files are cut likewise. What is older than its last 64 KiB lies beside the checkpoints in
chunks that are written once, the rest in each checkpoint: a record that was damaged or deleted is put together again.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import json
import math
import os
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxlite.host.files import comes_loose, parsed_json, read_file, write_bytes
from jaxlite.run.events import EventFiles
from jaxlite.run.workdir import unlinked

CHUNKS = 'checkpoints/history'  # in a run's folder
_CHUNK = 1 << 16  # bytes
CLOCK = ('time', 'seconds', 'examples_per_second')  # fields that a resume may change
WEIGHT = 'jl.weight'  # among the metrics of a step: the total weight of its batch


Log = Callable[[str, int, dict[str, float]], Any]


class Told:
  """A user's own log, called beside the record: what it raises is told once and ends no run.

  >>> told = Told(lambda kind, step, values: 1 / 0, print)
  >>> told('train', 10, {'loss': 0.5})
  warning: log raised ZeroDivisionError (division by zero) at step 10: the run goes on, and it is called again
  >>> told('train', 20, {'loss': 0.25})
  """

  def __init__(self, log: Log, say: Callable[[str], None]):
    """Args: log, (kind, step, values); say, prints a line."""
    if not callable(log):
      raise TypeError(
        f'log is a function (kind, step, values); got {type(log).__name__}: hand over the function itself'
      )
    if inspect.iscoroutinefunction(log):
      raise TypeError('log is called and not awaited, so a coroutine function would do nothing: give a plain function')
    self._log, self._say, self._failed = log, say, False

  def __call__(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
    """Calls it with a copy of the values, plain numbers on the host."""
    try:
      given = self._log(kind, step, dict(values))
      if inspect.iscoroutine(given):  # of a lambda, or of an object that is called
        given.close()
        raise TypeError('it gave a coroutine, which nobody awaits')
    except Exception as error:
      if not self._failed:
        said = ' '.join(str(error).split())[:200]
        what = f'{type(error).__name__} ({said})' if said else type(error).__name__
        self._say(f'warning: log raised {what} at step {step}: the run goes on, and it is called again')
      self._failed = True


def under(told: Told | None, place: str) -> Log | None:
  """Returns the log of one run among several: it is told 'place/kind' for kind.

  >>> under(Told(print, print), 'fold2')('train', 10, {'loss': 0.5})
  fold2/train 10 {'loss': 0.5}
  """
  return None if told is None else lambda kind, step, values: told(f'{place}/{kind}', step, values)


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

  def __init__(
    self,
    workdir: str | os.PathLike[str],
    *,
    length: int,
    kept: Mapping[str, Any] | None = None,
    tensorboard: bool = True,
    say: Callable[[str], None] = print,
    log: Told | None = None,
  ):
    """Opens the record, cut back to its first `length` bytes (0 for a new run).

    Args:
      workdir: the run's folder.
      length: what `length` was when the checkpoint was saved.
      kept: what `keep` gave then; None for a new run, and in checkpoints of older versions.
      tensorboard: also write TensorBoard files.
      say: is given a line where the record was damaged.
      log: is also told each point.

    Raises:
      ValueError: lines are missing, and `kept` is None.
    """
    self._told = log
    self._workdir = Path(workdir)
    self._path = self._workdir / 'metrics.jsonl'
    events = (kept or {}).get('events') if length else []  # a new run has none, whatever lies there
    if kept:
      found = mend(self._workdir, length, kept, say)
      length, events = found, events if found == length else None
    self._file = open(self._path, 'a+b', opener=unlinked)  # noqa: SIM115
    if self._file.tell() < length:
      self._file.close()
      raise ValueError(f'{self._file.name} has lost lines that the checkpoint knows of: start again with fresh=True')
    self._file.truncate(length)
    self._file.seek(0)
    self._hashes: list[str] = []  # of what is written, chunk by chunk
    self._chunks: list[bytes] = []  # the same, packed: the disk that they lie on may come loose
    self._tail = self._file.read()  # what is behind the last full chunk; the file stands at its end
    self._length = len(self._tail)
    self._hash_chunks()
    self._tensorboard: EventFiles | None = None
    try:
      if tensorboard:
        self._tensorboard = EventFiles(self._workdir / 'tensorboard', events, lambda: read_records(self._workdir))
    except Exception:
      self._file.close()
      raise

  @property
  def length(self) -> int:
    """Bytes written so far; a checkpoint keeps it."""
    return self._length

  def keep(self, workdir: Path | None = None) -> dict[str, Any]:
    """Returns what a checkpoint needs to put the record together again, and makes sure that the rest is on disk.

    Args:
      workdir: where it is to lie from now on; None for where it does.
    """
    if workdir is not None and workdir != self._workdir:
      self._workdir, self._path = workdir, workdir / 'metrics.jsonl'
      if self._tensorboard is not None:
        self._tensorboard.folder = workdir / 'tensorboard'
    if not self._stands():
      self._rewrite()
    for digest, packed in zip(self._hashes, self._chunks, strict=True):
      path = _chunk_path(self._workdir, digest)
      if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, zlib.decompress(packed))
    events = {} if self._tensorboard is None else {'events': self._tensorboard.keep()}
    return {'chunks': list(self._hashes), 'tail': self._tail.decode(), **events}

  def _hash_chunks(self) -> None:
    while len(self._tail) >= _CHUNK:
      self._hashes.append(hashlib.sha256(self._tail[:_CHUNK]).hexdigest())
      self._chunks.append(zlib.compress(self._tail[:_CHUNK], 1))
      self._tail = self._tail[_CHUNK:]

  def _stands(self) -> bool:
    try:
      found = os.fstat(self._file.fileno())
      return os.path.samestat(os.stat(self._path), found) and found.st_size == self._length
    except (OSError, ValueError):  # or closed
      return False

  def _rewrite(self) -> None:
    """The file was removed, renamed or replaced under the run, or its disk took no more: all of it is in memory."""
    with contextlib.suppress(OSError):  # of a disk that came loose
      self._file.close()
    self._path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(self._path, b''.join([*map(zlib.decompress, self._chunks), self._tail]))
    self._file = open(self._path, 'a+b', opener=unlinked)  # noqa: SIM115

  def write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
    """Appends one point.

    Args:
      kind: 'train' or 'validation'.
      step: optimizer steps done.
      values: plain numbers by name.
    """
    point = {'kind': kind, 'step': step, 'time': round(time.time(), 3), **values}
    line = (json.dumps(point) + '\n').encode()
    self._tail += line
    self._length += len(line)
    self._hash_chunks()
    try:
      self._file.write(line)
      self._file.flush()  # in the kernel's hands before the next checkpoint begins: a killed process loses nothing
      if self._tensorboard is not None:
        self._tensorboard.add(point)
    except OSError as error:
      if not comes_loose(error):  # else the next `keep` writes what is in memory
        raise OSError(error.errno, error.strerror, error.filename or str(self._path)) from error
    except ValueError:  # closed: nothing could be written where it was to lie; the next `keep` does so likewise
      if not self._file.closed and not (self._tensorboard is not None and self._tensorboard.closed):
        raise
    if self._told is not None:
      self._told(kind, step, values)

  def close(self) -> None:
    """Closes the files."""
    for file in (self._file, self._tensorboard):
      try:
        if file is not None:
          file.close()
      except OSError as error:
        if not comes_loose(error):
          raise

  def __enter__(self) -> Records:
    return self

  def __exit__(self, *_: object) -> None:
    self.close()


def mend(workdir: Path, length: int, kept: Mapping[str, Any], say: Callable[[str], None]) -> int:
  """Makes sure that the first `length` bytes of a record are those that a checkpoint knows of.

  Args:
    workdir: the run's folder.
    length: of the record when the checkpoint was saved.
    kept: what `Records.keep` gave then.
    say: is given a line where the record was damaged.

  Returns:
    The length; less where the record is damaged and its copies are too.
  """
  path = workdir / 'metrics.jsonl'
  try:
    data = read_file(path)[:length]
  except OSError:
    data = b''
  parts, lost = [], False
  for number, digest in enumerate(kept['chunks']):
    part = data[number * _CHUNK : (number + 1) * _CHUNK]
    if hashlib.sha256(part).hexdigest() != digest:
      with contextlib.suppress(OSError):
        copy = read_file(_chunk_path(workdir, digest))
        part = copy if hashlib.sha256(copy).hexdigest() == digest else part
      lost = lost or hashlib.sha256(part).hexdigest() != digest
    parts.append(part)
  whole = b''.join([*parts, kept['tail'].encode()])
  if whole == data and not lost:
    return length
  if not lost:
    say(f'{path} was damaged or cut: written again from the checkpoints')
  else:
    lines = [line for line in whole.split(b'\n') if _is_point(line)]
    whole = b''.join(line + b'\n' for line in lines)
    say(f'{path} was damaged, and so is its copy in {CHUNKS}: {len(lines)} points are kept, the others are lost')
  write_bytes(path, whole)
  return len(whole)


def _is_point(line: bytes) -> bool:
  try:
    point = parsed_json(line)
  except ValueError:
    return False
  return isinstance(point, dict) and {'kind', 'step', 'time'} <= set(point)


def _chunk_path(workdir: Path, digest: str) -> Path:
  return workdir / CHUNKS / f'{digest[:32]}.jsonl'


def read_records(workdir: str | os.PathLike[str]) -> list[dict[str, Any]]:
  """Returns the points of a run in order; a last line that was torn by a kill is left out.

  Raises:
    ValueError: a line before the last is damaged.
  """
  path = Path(workdir) / 'metrics.jsonl'
  if not path.exists():
    return []
  points = []
  for number, line in enumerate(read_file(path).split(b'\n')[:-1], start=1):
    try:
      points.append(parsed_json(line))
    except ValueError:
      raise ValueError(
        f'{path}: line {number} is no JSON, so it was changed by hand or damaged: bring it back, or start again with '
        'fresh=True'
      ) from None
  return points
