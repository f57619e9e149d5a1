"""A little of a run, to see how long it takes: its programs are compiled, some steps taken, a few batches evaluated, a
checkpoint written into a temporary folder. The state is a new one, and thrown away."""

from __future__ import annotations

import functools
import math
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxlite import checkpoint
from jaxlite.cpu import autotune
from jaxlite.graph.init_numpy import on_host
from jaxlite.planning.job import Job
from jaxlite.step import multi_step, warm_up
from jaxlite.step.evaluated import began as metrics_began
from jaxlite.step.evaluated import evaluated
from jaxlite.step.state import TrainState

CHUNK_SECONDS = 0.15  # of steps that are timed together
RERUN = 0.11  # by which the same steps differ from one time to another on a machine that is left alone
_ROUNDS = 40


class Measured(NamedTuple):
  """What was seen.

  Attributes:
    seconds: medians: 'compile', 'step', 'evaluation', 'checkpoint', 'input'.
    spreads: standard deviations of their logarithms, for the rest of a run.
    test: seconds of testing once.
    batch: seconds of evaluating one batch.
    processor: seconds of all cores of one step.
    said: lines.
  """

  seconds: dict[str, float]
  spreads: dict[str, float]
  test: float
  batch: float
  processor: float
  said: tuple[str, ...]


def measured(job: Job, seconds: float, say: Callable[[str], None]) -> Measured:
  """Runs a little of a run.

  Args:
    job: the run.
    seconds: to spend at most, beside compiling.
    say: prints a line.
  """
  say('probing: compiling, then a few steps, evaluations and a checkpoint')
  key = on_host(lambda: jax.random.key(0))()
  state = job.train.init(key, job.batch)
  with tempfile.TemporaryDirectory(prefix='jaxlite-probe-') as folder:
    return Probe(job, state, Path(folder)).run(seconds)


class Probe:
  """One probe under way: what it has compiled, its state, and what it has seen."""

  def __init__(self, job: Job, state: TrainState, folder: Path):
    self.job, self.folder = job, folder
    began = time.perf_counter()
    self.train = job.train
    if job.rewrites and jax.default_backend() == 'cpu':  # the forms that the run itself would choose
      choose = functools.partial(autotune.settle, folder / 'rewrites.json', say=lambda line: None)
      self.train = warm_up.tuned(job.train, state, job.batch, choose)
    self.state, _ = jax.block_until_ready(self.train.step(state, job.batch))
    self.compiling = time.perf_counter() - began
    self.batch = _resized(job.batch, job.evaluation)
    self.add = evaluated(self.train.eval, job.metric.update, job.metric.keep)
    began = time.perf_counter()
    self.evaluate(1)
    self.evaluating = time.perf_counter() - began
    self.run_several: Any = None
    self.at_once = 1
    self.choosing: float | None = None
    self.input = _copying(job.batch)

  def batches(self, start: int, count: int) -> Any:
    return jax.tree.map(lambda leaf: np.stack([np.asarray(leaf)] * count), self.job.batch)

  def choose(self) -> float:
    """Sends several steps at once where the run would; returns the seconds that this takes, once."""
    if self.choosing is not None:
      return self.choosing
    job = self.job
    gap = min(job.total, job.log, job.evaluate, job.checkpoint)
    began = time.perf_counter()
    if job.total > multi_step.least(gap) + 1 and gap >= multi_step.least(gap):
      room = multi_step.Room(1, gap, gap, job.total - 1, self.compiling)
      self.state, _, pace = multi_step.choose(self.train.step, self.state, self.batches, room)
      if pace.run is not None:
        self.at_once, self.run_several = pace.steps, pace.run
    self.choosing = time.perf_counter() - began
    return self.choosing

  def steps(self, count: int) -> tuple[float, float]:
    """Takes steps as the loop does, its input made for each; returns seconds of one on the clock and of all cores."""
    jax.block_until_ready(self.state)
    began, cpu, terms, done = time.perf_counter(), time.process_time(), None, 0
    while done < count:
      if self.run_several is not None:
        batches = self.batches(0, self.at_once)
        jax.block_until_ready(terms)
        self.state, terms = self.run_several(self.state, batches, self.at_once)
        done += self.at_once
      else:
        self.state, terms = self.train.step(self.state, jax.tree.map(np.copy, self.job.batch))
        done += 1
    jax.block_until_ready(self.state)
    return (time.perf_counter() - began) / done, (time.process_time() - cpu) / done

  def evaluate(self, count: int) -> float:
    """Evaluates batches; returns seconds of one."""
    total, kept = metrics_began(self.job.metric.init)(), None
    began = time.perf_counter()
    for _ in range(count):
      total, kept = self.add(total, self.state, self.batch)
    jax.block_until_ready((total, kept))
    if kept is not None:
      jax.device_get(kept)
    return (time.perf_counter() - began) / count

  def write(self, saves: Any, step: int) -> float:
    began = time.perf_counter()
    saves.save(step, self.state, {}, wait=True)
    return time.perf_counter() - began

  def run(self, seconds: float) -> Measured:
    """Looks for so many seconds, choosing how steps are sent counted the first time."""
    before = self.choosing or 0.0
    choosing = self.choose()
    end = time.perf_counter() + max(0.5, seconds - (choosing - before))
    first = self.steps(1)[0]
    count = max(self.at_once, min(200, int(CHUNK_SECONDS / max(first, 1e-6)) or 1))
    evals = math.ceil(self.job.splits.validation / max(1, self.job.evaluation))
    walls, cpus, batches, writes = [], [], [], []
    place = self.folder / f'checkpoints-{time.monotonic_ns()}'
    with checkpoint.Checkpoints(place, keep=1, log=lambda line: None) as saves:
      for turn in range(_ROUNDS):
        wall, cpu = self.steps(count)
        walls.append(wall)
        cpus.append(cpu)
        if evals and (turn < 3 or turn % 4 == 0):
          batches.append(self.evaluate(min(evals, 4)))
        if turn in (0, 4, 12) and time.perf_counter() < end:
          writes.append(self.write(saves, turn))
        left = end - time.perf_counter()
        if left < (wall * count + (batches[-1] if batches else 0)) * 1.5:
          break
    return self.seen(walls, cpus, batches or [self.evaluating], writes or [0.1], evals, choosing)

  def seen(
    self, walls: list[float], cpus: list[float], batches: list[float], writes: list[float], evals: int, choosing: float
  ) -> Measured:
    step, batch = statistics.median(walls), statistics.median(batches)
    tests = math.ceil(self.job.splits.test / max(1, self.job.evaluation))
    compiling = max(0.0, self.compiling - step) + max(0.0, self.evaluating - batch) + choosing
    found = {
      **{'compile': max(compiling, 1e-3), 'step': step + self.job.making, 'evaluation': max(evals * batch, 1e-6)},
      **{'checkpoint': statistics.median(writes), 'input': self.input + self.job.making},
    }
    spreads = {
      **{'step': _spread(walls), 'evaluation': _spread(batches) + 0.05, 'checkpoint': _spread(writes) + 0.2},
      **{'compile': 0.2, 'input': 0.3},
    }
    said = []
    if self.at_once > 1:
      said.append(f'{self.at_once} steps are sent at once')
    if len(walls) < 4:
      said.append(f'only {len(walls)} times some steps could be timed: the interval is wide')
    return Measured(found, spreads, tests * batch, batch, statistics.median(cpus), tuple(said))


def _spread(times: list[float]) -> float:
  """By how much, as a logarithm, the rest of a run may differ from the median of these."""
  logs = np.log(np.maximum(times, 1e-9))
  if len(logs) < 2:
    return 0.3
  middle = np.median(logs)
  each = 1.4826 * float(np.median(np.abs(logs - middle)))
  tails = float(np.quantile(logs, 0.9) - np.quantile(logs, 0.1)) / 2.56
  return math.sqrt(RERUN**2 + max(each, tails) ** 2 * (0.25 + 1 / len(logs)))


def _resized(batch: Any, size: int) -> Any:
  """A batch of another size, its examples repeated."""
  return jax.tree.map(lambda leaf: np.resize(np.asarray(leaf), (size, *leaf.shape[1:])), batch)


def _copying(batch: Any) -> float:
  jax.tree.map(np.copy, batch)
  began = time.perf_counter()
  for _ in range(3):
    jax.tree.map(np.copy, batch)
  return max((time.perf_counter() - began) / 3, 1e-7)
