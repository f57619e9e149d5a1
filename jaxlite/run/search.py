"""What a worker of a study works on: what was asked, the ledger of its trials, where each lies and by which config."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxlite.config.schema import Config
from jaxlite.run.records import Told
from jaxlite.tuning.kinds import Space, given, written
from jaxlite.tuning.ledger import Ledger, Trial
from jaxlite.tuning.optuna_study import Mirror
from jaxlite.tuning.outcome import Goal
from jaxlite.tuning.space import assigned


class Search(NamedTuple):
  """What a worker works on.

  Attributes:
    config: of every trial, without its point.
    space: what is searched.
    goals: what is to become better, a validation metric first.
    limits: at most, by name.
    method: 'grid', 'random', or one of Optuna's.
    stop: the rule by which trials are stopped early.
    seed: of the points.
    most: trials in all; None where time alone ends it.
    budget: seconds in all; None where their number ends it.
    expected: seconds of one trial at the least, as it was forecast; 0 where that is not known.
    folder: of the study.
    ledger: of its trials.
    mirror: Optuna's study of them; None where Optuna is not there.
    model, data: as `jl.train` takes them.
    read: fields of the config that were read to make the data.
    members: trials that are raced in one vmapped step; 1 trains each as a run from the start.
    command: for the reports.
    say: prints a line.
    log: a person's own, told each point of the trials.
  """

  config: Config
  space: Space
  goals: Sequence[Goal]
  limits: Mapping[str, float]
  method: str
  stop: str
  seed: int
  most: int | None
  budget: float | None
  expected: float
  folder: Path
  ledger: Ledger
  mirror: Mirror | None
  model: Any
  data: Any
  read: frozenset[str]
  members: int
  command: str
  say: Callable[[str], None]
  log: Told | None = None

  def close(self) -> None:
    """Ends the connections to the database; a trial that this worker still has waits for another."""
    try:
      if self.mirror is not None:
        self.mirror.close()
    finally:
      self.ledger.close()


def trial_folder(folder: Path, number: int) -> Path:
  """Returns where a trial lies: a run's folder, as any other's."""
  return folder / 'trials' / f'{number:04}'


def point(trial: Trial, space: Space) -> str:
  """Returns the point of a trial, as it is written in a line."""
  return ', '.join(f'{name} {written(given(kind, trial.given[name]))}' for name, kind in space.items())


def config_of(config: Config, space: Space, trial: Trial) -> Config:
  """Returns the config of a trial: `jl.train(config_of(...), folder)` asks the same run again."""
  one = assigned(config, space, trial.given)
  log = dataclasses.replace(one.log, progress=False)
  return dataclasses.replace(one, name=f'{one.name}-{trial.number:04}', log=log, runs={})
