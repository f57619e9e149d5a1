"""What every side of the table of peers shares: the work, and how a worker is asked and measured.

NumPy and the standard library only, in any version: a peer may live in an old environment. A worker is given the
training split and the inputs of the test, never its labels. It trains, writes a file by its own means, opens that file
again and says what the file answers; all that is scored and timed is the file.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import serving

WORKS = ('dense', 'pruned', 'int8', 'distilled', 'all')
SIZES = (1, 32)  # batches whose latency is measured
_ANSWERED = 500  # examples that a file is asked at once


class Course(NamedTuple):
  """One piece of work.

  Attributes:
    work: one of WORKS.
    seeds: first weights and the order of examples.
    folder: where arrays lie and files go.
    train: float32[N, D], standardized, and int[N].
    test: float32[M, D].
    logits: float32[N, classes], of the teacher on the training split; None where the work has none.
    teacher: (kernel, bias) of the teacher's dense layers; empty likewise.
    widths: sizes of all layers, inputs and classes too.
    teacher_widths: likewise of the teacher.
    epochs, batch, rate: of training; the rate falls to 0 by a cosine.
    sparsity: zeros among the weights of matrices.
    temperature, alpha: of distillation; alpha is the teacher's share.
  """

  work: str
  seeds: tuple[int, ...]
  folder: Path
  train: tuple[np.ndarray, np.ndarray]
  test: np.ndarray
  logits: np.ndarray | None
  teacher: list[tuple[np.ndarray, np.ndarray]]
  widths: tuple[int, ...]
  teacher_widths: tuple[int, ...]
  epochs: int
  batch: int
  rate: float
  sparsity: float
  temperature: float
  alpha: float

  @property
  def each(self) -> int:
    """Steps of an epoch; what does not fill a batch is left out."""
    return len(self.train[1]) // self.batch

  @property
  def steps(self) -> int:
    """Steps of the whole."""
    return self.epochs * self.each

  @property
  def half(self) -> int:
    """The step at which training in 8 bits begins: before it all train in float32, as the peers advise."""
    return self.steps // 2

  @property
  def pruning(self) -> tuple[int, int, int]:
    """First step that prunes, last, and steps between: Zhu and Gupta's cubic schedule in the middle of training."""
    return self.steps // 4, 3 * self.steps // 4, max(1, self.steps // 40)

  def prunes(self) -> bool:
    return self.work in ('pruned', 'all')

  def quantizes(self) -> bool:
    return self.work in ('int8', 'all')

  def distills(self) -> bool:
    return self.work in ('distilled', 'all')

  def rate_at(self, step: int) -> float:
    """The learning rate."""
    return 0.5 * self.rate * (1 + math.cos(math.pi * step / self.steps))

  def sparsity_at(self, step: int, begin: int, end: int) -> float:
    """Zhu and Gupta's cubic schedule."""
    gone = min(max((step - begin) / max(1, end - begin), 0.0), 1.0)
    return self.sparsity * (1 - (1 - gone) ** 3)

  def order(self, seed: int) -> np.ndarray:
    """Which examples are in which step: int[steps, batch]."""
    rng = np.random.default_rng(seed)
    epochs = [rng.permutation(len(self.train[1]))[: self.each * self.batch] for _ in range(self.epochs)]
    return np.concatenate(epochs).reshape(self.steps, self.batch)

  def weights(self, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """First (kernel, bias) of each layer: float32[inputs, outputs], He's normal, and zeros."""
    rng = np.random.default_rng(1000 + seed)
    return [
      ((rng.normal(size=(one, two)) * math.sqrt(2 / one)).astype(np.float32), np.zeros(two, np.float32))
      for one, two in itertools.pairwise(self.widths)
    ]


class File(NamedTuple):
  """What a peer's export wrote.

  Attributes:
    kind: how the table calls it.
    path: a file or a folder.
    opened: (size) -> (float32[size, D] -> outputs [size, classes]); reads the file.
  """

  kind: str
  path: Path
  opened: Callable[[int], Callable[[np.ndarray], Any]]


class Side(NamedTuple):
  """A peer.

  Attributes:
    trained: (course, seed) -> whatever `exported` takes.
    exported: (course, what was trained, a folder, first) -> files, the one that is scored first; `first` asks for
      those too that are only weighed and timed.
    zeros: (what was trained) -> its weights' zeros, as a share.
    how: (course) -> in a few words, by which of its means the peer does the work.
    versions: packages whose versions the table names.
    weighed: whether its files are weighed and timed: not those of the teacher.
  """

  trained: Callable[[Course, int], Any]
  exported: Callable[[Course, Any, Path, bool], list[File]]
  zeros: Callable[[Any], float]
  how: Callable[[Course], str]
  versions: tuple[str, ...]
  weighed: bool = True


def read(spec: dict[str, Any]) -> Course:
  """The course of a worker's spec."""
  folder = Path(spec['folder'])
  with np.load(folder / 'data.npz') as held:
    arrays = {name: held[name] for name in held.files}
  logits, teacher = None, []
  if spec['work'] in ('distilled', 'all'):
    with np.load(folder / 'teacher.npz') as held:
      logits = held['logits']
      teacher = [(held[f'kernel{i}'], held[f'bias{i}']) for i in range(len(held.files) // 2)]
  given = {name: spec[name] for name in ('epochs', 'batch', 'rate', 'sparsity', 'temperature', 'alpha')}
  return Course(
    spec['work'],
    tuple(spec['seeds']),
    folder,
    (arrays['train_x'], arrays['train_y']),
    arrays['test_x'],
    logits,
    teacher,
    tuple(spec['widths']),
    tuple(spec['teacher']),
    **given,
  )


def serve(sides: dict[str, Side]) -> None:
  """Does what the spec on the command line asks of one side, a line of JSON a seed; libraries' words go to stderr."""
  out = os.fdopen(os.dup(1), 'w')
  os.dup2(2, 1)
  sys.stdout = sys.stderr
  spec = json.loads(sys.argv[1])
  course, side = read(spec), sides[spec['side']]
  from importlib import metadata

  versions = ', '.join(f'{name} {metadata.version(name)}' for name in side.versions)
  for at, seed in enumerate(course.seeds):
    began, worked = time.perf_counter(), time.process_time()
    trained = side.trained(course, seed)
    told: dict[str, Any] = {'seed': seed, 'how': side.how(course), 'versions': versions}
    told |= {'clock': time.perf_counter() - began, 'processor': time.process_time() - worked, 'peak': serving.peak()}
    told['zeros'] = side.zeros(trained)
    place = course.folder / f'{spec["side"]}-{course.work}-{seed}'
    place.mkdir(parents=True, exist_ok=True)
    files = side.exported(course, trained, place, at == 0)
    told['labels'] = [int(one) for one in labels(files[0], course.test)]
    if at == 0 and side.weighed:
      told['files'] = [measured(file, course, spec['seconds']) for file in files]
    out.write(json.dumps(told) + '\n')
    out.flush()


def labels(file: File, inputs: np.ndarray) -> np.ndarray:
  """What a file says of inputs, in batches of one size: the last is filled up with the first rows."""
  call = file.opened(_ANSWERED)
  found = []
  for at in range(0, len(inputs), _ANSWERED):
    rows = inputs[np.arange(at, at + _ANSWERED) % len(inputs)]
    outputs = np.asarray(call(rows))
    assert outputs.shape[0] == _ANSWERED, f'{file.kind} answers {outputs.shape} to {_ANSWERED} examples'
    found.append(outputs.argmax(-1))
  return np.concatenate(found)[: len(inputs)]


def measured(file: File, course: Course, seconds: float) -> dict[str, Any]:
  """Bytes of a file as it is and as gzip leaves it, and milliseconds of a call."""
  raw = data_of(file.path)
  told: dict[str, Any] = {'kind': file.kind, 'bytes': len(raw), 'gzip': zipped(raw)}
  told['latency'] = [latency(file.opened(size), course.test[:size], seconds) for size in SIZES]
  return told


def data_of(path: Path) -> bytes:
  """The bytes of a file, or of all files of a folder one after the other."""
  if path.is_dir():
    return b''.join(one.read_bytes() for one in sorted(path.rglob('*')) if one.is_file())
  return path.read_bytes()


def zipped(raw: bytes) -> int:
  """Bytes after gzip at its best, or as they were where that is less."""
  import gzip

  return min(len(raw), len(gzip.compress(raw, 9)))


def latency(call: Callable[[np.ndarray], Any], rows: np.ndarray, seconds: float) -> float:
  """Milliseconds of a call: the median of the quietest of five turns, since other work may share the machine."""
  for _ in range(3):
    np.asarray(call(rows))
  medians = []
  for _ in range(5):
    times, end = [], time.perf_counter() + seconds / 5
    while len(times) < 5 or (time.perf_counter() < end and len(times) < 5000):
      began = time.perf_counter()
      np.asarray(call(rows))
      times.append(time.perf_counter() - began)
    medians.append(float(np.median(times)))
  return 1e3 * min(medians)


def zeros_of(kernels: Sequence[Any]) -> float:
  """The share of zeros among matrices."""
  arrays = [np.asarray(one) for one in kernels]
  return float(sum((one == 0).sum() for one in arrays) / sum(one.size for one in arrays))


def rows_of(course: Course, seed: int) -> Iterator[tuple[int, np.ndarray]]:
  """(step, indices of its examples), in order."""
  yield from enumerate(course.order(seed))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
  """A library's warnings are not ours to mend here."""
  import warnings

  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    yield
