"""What a run is to whoever forecasts it: its programs, shapes, sizes and timetable, without the run's folder."""

from __future__ import annotations

from typing import Any, NamedTuple

from jaxlite.step.state import TrainState
from jaxlite.step.train_step import Train


class Splits(NamedTuple):
  """Examples in each split.

  Attributes:
    train, validation, test: counts.
    held_bytes: what the arrays of all splits take in memory; those that are mapped from a file, 0.
  """

  train: int
  validation: int
  test: int
  held_bytes: int


class Job(NamedTuple):
  """A run before its first step, of any framework, task and recipe.

  Attributes:
    train: its pure functions, as `jaxlite.train_step` gives them.
    abstract: the shapes of its first state.
    batch: its first batch, arrays [B, ...].
    evaluation: examples in a batch of evaluation.
    splits: how many examples there are.
    total, log, evaluate, checkpoint: steps: the length of the run, and between its points.
    keep_memory, compile_cache, rewrites: as `config.machine` says.
    task: its name.
    metric: of the task: its state is held beside evaluation's.
    decoding: seconds of one core to decode an example that lies in a file; 0 where examples are arrays.
    making: seconds in which a batch is made that no array holds: of a stream, or a mixture; else 0.
  """

  train: Train
  abstract: TrainState
  batch: Any
  evaluation: int
  splits: Splits
  total: int
  log: int
  evaluate: int
  checkpoint: int
  keep_memory: bool
  compile_cache: bool
  rewrites: bool
  task: str
  metric: Any
  decoding: float = 0.0
  making: float = 0.0
