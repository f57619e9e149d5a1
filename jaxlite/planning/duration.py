"""How long a run takes: compiling, steps, evaluations, checkpoints, input; from its cost, and from probing it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from jaxlite.host.rates import Rates
from jaxlite.planning.job import Job


class Duration(NamedTuple):
  """Seconds, with the interval that holds 80 of 100.

  Attributes:
    seconds: the middle.
    low, high: its ends.
  """

  seconds: float
  low: float
  high: float


class Durations(NamedTuple):
  """Of a run.

  Attributes:
    compile: of all its programs, once.
    step: one step, on average.
    evaluation: one evaluation of the validation split.
    checkpoint: writing one.
    input: making one batch.
    total: of the whole run, from its start to its end.
    basis: 'cost' (nothing was run) or 'probe'.
    counts: how often the run does each: 'step', 'evaluation', 'checkpoint'.
    said: what was left out or assumed, a line each.
  """

  compile: Duration
  step: Duration
  evaluation: Duration
  checkpoint: Duration
  input: Duration
  total: Duration
  basis: str
  counts: dict[str, int]
  said: tuple[str, ...] = ()


def forecast(job: Job, rates: Rates) -> Durations:
  """Returns how long a run will take, from its programs' cost and this machine's rates; nothing is compiled or run."""
  raise NotImplementedError


def probed(job: Job, seconds: float = 20.0, say: Callable[[str], None] | None = None) -> Durations:
  """Returns how long a run will take, from running a little of it: at most so many seconds beside compiling."""
  raise NotImplementedError
