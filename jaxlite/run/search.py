"""One worker of a study: it takes a trial, trains it, says what it came to, and takes the next.

Several may work on one study, started like the first. What is true stands in the ledger; a worker that is killed loses
its trial to the next, who goes on from the checkpoint in the trial's folder, so that each ends as if nothing had been.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gc
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxlite import errors
from jaxlite.config.schema import Config
from jaxlite.deployment.load import load, read_run
from jaxlite.deployment.smaller import call_seconds
from jaxlite.host.gc_pause import paused
from jaxlite.planning.plan import spoken
from jaxlite.report.result import Result
from jaxlite.run import loop
from jaxlite.run.finetune import ready
from jaxlite.run.records import read_records
from jaxlite.run.watch import Halted, Watch
from jaxlite.run.workdir import WorkdirError
from jaxlite.tuning import outcome, sampling, stopping
from jaxlite.tuning.database import StorageError
from jaxlite.tuning.kinds import Space, given, written
from jaxlite.tuning.ledger import COMPLETE, DONE, FAILED, PRUNED, RUNNING, WAITING, Ledger, Trial
from jaxlite.tuning.optuna_study import Mirror
from jaxlite.tuning.outcome import Goal
from jaxlite.tuning.space import assigned

_STUCK = 20  # kills one after the other, without a further score, until a trial is given up
_TRIED = 3  # trials that fail, none having come through, until the study is given up
_OFTEN = 20  # trials after which compiled programs are let go of
_POLL = 0.5  # seconds between looks at what others do
_STARTS = 2.0  # seconds that it takes to go on with a trial


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
    command: for the reports.
    say: prints a line.
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
  command: str
  say: Callable[[str], None]

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


def work(search: Search) -> str:
  """Works until there is nothing left to do or the budget is over; returns which, in words.

  Raises:
    Preempted: a signal came; the trial at work was saved.
    StorageError: the database is gone; likewise.
    ValueError: the first trials failed, all of them.
  """
  done = 0
  with search.ledger.beating():
    while True:
      one = _next(search)
      if isinstance(one, str):
        return one
      if one is None:
        time.sleep(_POLL)
        continue
      _train(search, one)
      _check_some_come_through(search)
      done += 1
      if done % _OFTEN == 0:  # each trial's rate is a number in a program of its own
        jax.clear_caches()
        gc.collect()


def _next(search: Search) -> Trial | str | None:
  """The next trial, this worker's by now; why there is none any more; None while others work on the last ones."""
  ledger, mirror = search.ledger, search.mirror
  with ledger.locked():
    for dead in ledger.reap():
      search.say(f'trial {dead.number}: its worker is gone; it goes on from its checkpoint')
    trials = ledger.trials()
    states = {one.state for one in trials}
    full = search.most is not None and len(trials) >= search.most
    if full and RUNNING in states and WAITING not in states and _left(search) > 0:
      return None
    if mirror is not None:
      mirror.settle(trials, functools.partial(_tell, search))
    left = None if search.budget is None else _left(search)
    if left is not None and left <= 0:
      return 'the budget is over'
    took = [one.seconds for one in trials if one.state == COMPLETE]
    needed = statistics.median(took) if took else 0.0
    short = False
    for one in trials:
      if one.state != WAITING:
        continue
      if left is not None and took and left < max(0.0, needed - one.seconds) + _STARTS:
        short = True
        continue
      attempt = -1 if mirror is None else mirror.add(one.number, one.given, _scores(search, one))
      taken = ledger.claim(one, attempt)
      if taken is not None and taken.stuck >= _STUCK:
        _finish(search, taken, FAILED, {}, 0.0, f'killed {taken.stuck} times, one after the other, without getting on')
        continue
      if taken is not None:
        return taken
    if short or (left is not None and took and left < needed):
      return f'{spoken(left or 0.0)} of the budget are left, too few for a trial of {spoken(needed)}'
    waits = bool(states & {RUNNING, WAITING})
    if full:
      return None if waits else f'all {len(trials)} trials are done'
    if search.method in ('grid', 'random'):
      draw = sampling.next_of_grid if search.method == 'grid' else sampling.next_at_random
      found = draw(search.space, search.seed, trials)
      if found is None:
        return None if waits else f'every point of the {"grid" if search.method == "grid" else "space"} was tried'
      number = max((one.number for one in trials), default=-1) + 1 if mirror is None else mirror.add(None, found, {})
    else:
      assert mirror is not None
      number, found = mirror.ask(search.method, search.seed, len(trials))
      if any(one.given == found for one in trials):  # it would come to the same
        mirror.drop(number)
        fresh = sampling.next_at_random(search.space, search.seed, trials)
        if fresh is None:
          return None if waits else 'every point of the space was tried'
        number, found = mirror.add(None, fresh, {}), fresh
      else:
        mirror.take(number)
    return ledger.add(number, found, -1 if mirror is None else number)


def _left(search: Search) -> float:
  """Seconds of the budget that are left, to now; infinity where there is none."""
  if search.budget is None:
    return math.inf
  search.ledger.beat()
  return search.budget - search.ledger.spent()


def _scores(search: Search, trial: Trial) -> dict[int, float]:
  sign = 1 if search.goals[0].maximize else -1
  own = [one for one in search.ledger.reports() if one.number == trial.number and math.isfinite(one.value)]
  return {one.step: sign * one.value for one in own}


def _train(search: Search, trial: Trial) -> None:
  """Trains a trial to its end, to where it is not worth going on, or to the end of the budget."""
  ledger, goal, began = search.ledger, search.goals[0], time.monotonic()
  deadline = began + _left(search)
  folder, sign = trial_folder(search.folder, trial.number), 1 if goal.maximize else -1
  ended = {'state': WAITING}

  def heard(step: int, total: int, metrics: Mapping[str, float]) -> str:
    finite = math.isfinite(metrics[goal.name])
    value = sign * metrics[goal.name] if finite else -math.inf  # nothing is worse
    with ledger.locked():
      if not ledger.report(trial, step, step / total, value):
        ended['state'] = 'lost'
        return 'another worker has it'
      if search.mirror is not None and finite:
        search.mirror.report(trial.mirror, step, metrics[goal.name])
      reports = ledger.reports() if search.stop != 'none' else []
    if why := stopping.verdict(search.stop, trial.number, trial.place, step / total, reports, sign=sign):
      ended['state'] = PRUNED
    return why

  def due() -> str:
    return 'the budget is over' if time.monotonic() >= deadline else ''

  found: dict[str, Any] = {}
  why = ''
  try:
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / 'log.txt', 'a', encoding='utf-8') as log:

      def say(line: str) -> None:
        log.write(line + '\n')
        log.flush()

      config, model, data, read = ready(config_of(search.config, search.space, trial), search.model, search.data, say)
      result = loop.train_varied(
        config,
        folder,
        search.read | read,
        model=model,
        data=data,
        command=search.command,
        say=say,
        watch=Watch(heard, due),
      )
    found, ended['state'] = found_of(search, result, folder), COMPLETE
    if not outcome.values_of(found, search.goals):
      ended['state'], why = FAILED, f'its {goal.name} is no finite number'
  except Halted as end:
    if ended['state'] == 'lost':
      search.say(f'trial {trial.number}: another worker has it by now')
      return
    found, why = _so_far(search, folder), str(end)
  except loop.Preempted:
    _finish(search, trial, WAITING, {}, time.monotonic() - began, '')
    raise
  except StorageError:
    raise
  except WorkdirError as error:  # whoever had it last is not dead yet
    _finish(search, trial, WAITING, {}, 0.0, '')
    search.say(f'trial {trial.number}: {error}')
    time.sleep(2 * _POLL)
    return
  except Exception as error:
    if not _is_of_the_trial(error):
      with contextlib.suppress(StorageError):
        _finish(search, trial, WAITING, {}, 0.0, '')
      raise
    ended['state'], why = FAILED, ' '.join((errors.one_line(error) or f'{type(error).__name__}: {error}').split())[:300]
  _finish(search, trial, ended['state'], found, time.monotonic() - began, why)


def _finish(search: Search, trial: Trial, state: str, found: Mapping[str, Any], seconds: float, why: str) -> None:
  with search.ledger.locked():
    if not search.ledger.finish(trial, state, found, seconds=seconds, why=why):
      search.say(f'trial {trial.number}: another worker has it by now; what this one found is left out')
      return
    now = next(one for one in search.ledger.trials() if one.number == trial.number)
    if search.mirror is not None:
      _tell(search, now)
  search.say(_line(search, now))


def _tell(search: Search, trial: Trial) -> None:
  """Tells Optuna's study what a trial came to."""
  assert search.mirror is not None
  shown = trial._replace(found={name: value for name, value in trial.found.items() if not name.startswith('test/')})
  over = outcome.over(trial, search.limits) if trial.state == COMPLETE else {}
  finite = {name: value for name, value in over.items() if math.isfinite(value)}
  search.mirror.finish(shown, outcome.values(trial, search.goals), finite)


def _line(search: Search, trial: Trial) -> str:
  scores = ', '.join(f'{goal.name} {trial.found[goal.name]:.4g}' for goal in search.goals if goal.name in trial.found)
  said = {
    COMPLETE: scores,
    PRUNED: f'stopped, {trial.why}',
    FAILED: f'failed: {trial.why}',
    WAITING: f'interrupted{f" ({trial.why})" if trial.why else ""}, saved',
  }[trial.state]
  return f'trial {trial.number}: {said} ({point(trial, search.space)}; {spoken(trial.seconds)})'


def _is_of_the_trial(error: Exception) -> bool:
  """Whether an error is a point's own (a rate that diverges, too large a network), and not everybody's."""
  if isinstance(error, MemoryError | ArithmeticError) or type(error).__name__ in ('XlaRuntimeError', 'JaxRuntimeError'):
    return True
  return isinstance(error, ValueError) and errors.one_line(error) is not None


def _check_some_come_through(search: Search) -> None:
  ended = [one for one in search.ledger.trials() if one.state in DONE]
  if len(ended) >= _TRIED and all(one.state == FAILED for one in ended):
    raise ValueError(
      f'the first {len(ended)} trials failed, all of them, the last ({point(ended[-1], search.space)}) because: '
      f'{ended[-1].why}'
    )


@paused()
def found_of(search: Search, result: Result, folder: Path) -> dict[str, Any]:
  """Returns what a finished trial came to, by name: validation metrics at its best step, sizes, and the test's as
  'test/<metric>', which choose nothing."""
  points = [one for one in result.history if one['kind'] == 'validation']
  at_best = [one for one in points if one['step'] == result.best_step] or points
  found = (
    {name: value for name, value in at_best[-1].items() if name not in ('kind', 'step', 'time')} if at_best else {}
  )
  found |= {'step': result.best_step, 'bytes': result.bytes, 'parameters': result.parameters}
  if 'latency' in {*search.limits, *(goal.name for goal in search.goals)}:
    found['latency'] = _latency(folder)
  return {**found, **{f'test/{name}': value for name, value in result.metrics.items()}}


def _latency(folder: Path) -> float:
  """Milliseconds of a call with one example, the median of many, measured here."""
  held = read_run(folder)
  network = load(folder, held.step)
  shapes = jax.tree.unflatten(held.stored.input_tree(), held.stored.inputs())
  inputs = jax.tree.map(lambda one: np.zeros(one.shape, one.dtype), shapes)
  return 1e3 * call_seconds(network, inputs)


def _so_far(search: Search, folder: Path) -> dict[str, Any]:
  """The validation metrics of a trial that was stopped, at its best point."""
  goal = search.goals[0]
  points = [one for one in read_records(folder) if one['kind'] == 'validation' and math.isfinite(one[goal.name])]
  if not points:
    return {}
  best = max(points, key=lambda one: one[goal.name] if goal.maximize else -one[goal.name])
  return {name: value for name, value in best.items() if name not in ('kind', 'time')}
