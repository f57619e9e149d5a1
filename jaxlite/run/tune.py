"""A search for settings as one call: a budget in time or in trials, workers that may die, and a table at its end.

What may be searched, which point comes next and who works on which trial stands in `jaxlite.tuning`; a trial is a run
like any other (`search.py`), and what came of all is written beside them (`search_report.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxlite.config.schema import Config
from jaxlite.host import streams
from jaxlite.run import search_report, study
from jaxlite.run.records import Log, Told
from jaxlite.run.search import Search, config_of, trial_folder
from jaxlite.run.worker import work
from jaxlite.tuning import outcome
from jaxlite.tuning.kinds import Space, given
from jaxlite.tuning.ledger import Trial
from jaxlite.tuning.outcome import Goal

Say = Callable[[str], None]


class Tuned(NamedTuple):
  """What a search found. `print` shows its table, the best first.

  Attributes:
    folder: of the study; `folder / 'report.md'` has the pictures.
    space: what was searched.
    goals: what was to become better.
    limits: at most, by name.
    trials: all of them.
    best: the best trial within the limits; None where there is none.
    front: of several goals, the trials that no other beats in all; of one, the best alone.
    seconds: that anybody worked on it, over all starts.
    config: of every trial, without its point.
    ended: why, in words.
  """

  folder: Path
  space: Space
  goals: tuple[Goal, ...]
  limits: dict[str, float]
  trials: tuple[Trial, ...]
  best: Trial | None
  front: tuple[Trial, ...]
  seconds: float
  config: Config
  ended: str

  def __str__(self) -> str:
    return search_report.table(self)

  def __repr__(self) -> str:
    return str(self)

  def values(self, trial: Trial | None = None) -> dict[str, Any]:
    """Returns the point of a trial by name, as the config takes it; of the best where none is given."""
    one = self._one(trial)
    return {name: given(kind, one.given[name]) for name, kind in self.space.items()}

  def workdir(self, trial: Trial | None = None) -> Path:
    """Returns the folder of a trial: `jl.load` of it predicts. Of the best where none is given."""
    return trial_folder(self.folder, self._one(trial).number)

  def trial_config(self, trial: Trial | None = None) -> Config:
    """Returns the config of a trial; of the best where none is given."""
    return config_of(self.config, self.space, self._one(trial))

  def _one(self, trial: Trial | None) -> Trial:
    if trial is None and self.best is None:
      raise ValueError('no trial came to a score within the limits: there is no best one')
    return trial if trial is not None else self.best  # type: ignore[return-value]


def tune(
  config: Config,
  workdir: str | Path,
  space: Mapping[str, Any],
  *,
  model: Any = None,
  data: Any = None,
  budget: str = '',
  trials: int | None = None,
  method: str = 'auto',
  stop: str = 'median',
  goals: Sequence[str] | str = (),
  limits: Mapping[str, float] | str | None = None,
  run: str = '',
  storage: str = '',
  seed: int = 0,
  members: int = 1,
  fresh: bool = False,
  command: str = '',
  say: Say = print,
  log: Log | None = None,
) -> Tuned:
  """Searches for the settings that validation likes best, within a budget; the same call again goes on.

  Each trial is a run in a folder of its own, `trials/0007`. It is killed, interrupted and gone on with like any other,
  and ends as if it never was. Start the same script several times at once, and they share the work.

  Args:
    config: of every trial; what the space names is set on it. Of a `jl.FineTune` each trial is what `jl.finetune` of
      `model` would be.
    workdir: the study's folder.
    space: names of fields ('optim.lr', 'data.batch_size', 'train.epochs') and of arguments of functions that the config
      names ('recipe.sparsity', 'model.width'), each with its kind: `jl.tuning.choice`, `uniform`, `log_uniform`,
      `integer`.
    model: as `jl.train` takes it.
    data: likewise.
    budget: time in all, over every start: '2 hours', '10 minutes'. A trial that is under way then is saved.
    trials: how many in all, over every start. One of the two ends the search, or both; a grid ends by itself.
    method: 'grid', 'random', 'gp' (a Gaussian process, one goal), or by Optuna 'tpe', 'cmaes' (numbers), 'nsga2'
      (several goals); 'auto' takes 'gp', and of several goals 'tpe' where Optuna is installed, else 'random'.
    stop: how trials are stopped early: 'median' of the others, 'halving' (one in three goes on, at a ninth and a third
      of the run), 'hyperband' (the same for some trials, later or never for others), or 'none'. Where tenths of a
      point count, 'median' or 'none': the other two stop slow beginners that may win at the end.
    goals: a validation metric, the task's own where none is named; beside it 'bytes', 'parameters' or 'latency'. With
      two, no trial is stopped early, and the result is a front.
    limits: 'bytes' and 'parameters' at most, and milliseconds of 'latency' (the median call with one example):
      {'bytes': 20_000} or 'bytes:20000'. A trial over one is never the best.
    run: of an experiment with several `runs`, the one that is searched.
    storage: 'postgresql://user:password@host/name' for workers on several machines, which share the workdir too; '' is
      a file in the workdir, for one machine.
    seed: of the points.
    members: of small models, trials that are raced in one vmapped step until halving has looked last: those of one
      program that differ in numbers of `optim`, `recipe`, `loss` and in the seed. Who goes on is then a run like any
      other; who was stopped leaves no folder. `experiments/bench/ensemble.py` measures for which sizes it is faster.
    fresh: what is in the workdir is moved aside, and the study starts again.
    command: the command line, for the reports.
    say: prints a line.
    log: as `jl.train` takes it, for the trials that this process works on: the kinds of trial 7 are 'trial7/train',
      'trial7/validation' and 'trial7/test'. It is a worker's own and no part of the study. Of a race of `members` it is
      told nothing: who goes on is told from its first step.

  Returns:
    The Tuned: its table, the best trial, its folder and config.

  Raises:
    ValueError: one line: an unknown field (with the near misses), a field's value out of range, no end to the search, a
      budget too short for one trial, no validation split, a storage that is gone, a study of something else in the
      workdir, or the first trials failed, all of them.
    Preempted: a signal came; the trial at work was saved.
    ImportError: a package that the search needs is not installed.
    TypeError: a log that is no function.

  References:
    Akiba et al., Optuna: A Next-generation Hyperparameter Optimization Framework, 2019,
    https://arxiv.org/abs/1907.10902

  >>> import tempfile
  >>> import jaxlite as jl
  >>> config = jl.Config(name='mine', train=jl.Duration(epochs=2))
  >>> tune(config, tempfile.mkdtemp(), {'optim.lrr': jl.tuning.log_uniform(1e-4, 1e-1)}, trials=3)
  Traceback (most recent call last):
    ...
  jaxlite.errors.ConfigError: the search space names 'optim.lrr', which the config does not have; nearest: optim.lr, ...
  """
  say = streams.steady(say)
  told = None if log is None else Told(log, say)
  search = study.opened(
    config,
    workdir,
    space,
    model=model,
    data=data,
    budget=budget,
    trials=trials,
    method=method,
    stop=stop,
    goals=goals,
    limits=limits,
    run=run,
    storage=storage,
    seed=seed,
    members=members,
    fresh=fresh,
    command=command,
    say=say,
  )._replace(log=told)
  try:
    ended = work(search)
    say(f'the search is over: {ended}')
    return reported(search, ended)
  finally:
    search.close()


def reported(search: Search, ended: str) -> Tuned:
  """Returns what a study came to, and writes its report. Under the lock: each worker does, and the last is right."""
  with search.ledger.locked():
    search.ledger.beat()
    rows, goals, limits = search.ledger.trials(), tuple(search.goals), dict(search.limits)
    best = outcome.best(rows, goals, limits)
    front = tuple(outcome.front(rows, goals, limits))
    seconds = search.ledger.spent()
    found = Tuned(search.folder, search.space, goals, limits, tuple(rows), best, front, seconds, search.config, ended)
    search_report.write(found, search.ledger.reports(), search.mirror, search.command)
  return found
