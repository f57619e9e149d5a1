"""One worker of a study: it takes a trial, trains it, says what it came to, and takes the next.

Several may work on one study, started like the first. What is true stands in the ledger; a worker that is killed loses
its trial to the next, who goes on from the checkpoint in the trial's folder, so that each ends as if nothing had been.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import math
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxlite import errors
from jaxlite.deployment.held import read_run
from jaxlite.deployment.load import load
from jaxlite.deployment.smaller import call_seconds
from jaxlite.host import preempt
from jaxlite.host.gc_pause import paused
from jaxlite.planning.plan import spoken
from jaxlite.report.result import Result
from jaxlite.run import loop, racing
from jaxlite.run.again import is_memory
from jaxlite.run.finetune_start import ready
from jaxlite.run.records import read_records, under
from jaxlite.run.search import Search, config_of, point, trial_folder
from jaxlite.run.watch import Halted, Watch
from jaxlite.run.workdir import WorkdirError
from jaxlite.tuning import outcome, sampling, stopping
from jaxlite.tuning.database import StorageError
from jaxlite.tuning.ledger import COMPLETE, DONE, FAILED, PRUNED, RUNNING, WAITING, Trial
from jaxlite.tuning.surrogate import next_by_surrogate

_STUCK = 20  # kills one after the other, without a further score, until a trial is given up
_TRIED = 3  # trials that fail, none having come through, until the study is given up
_OFTEN = 20  # trials after which compiled programs are let go of
_POLL = 0.5  # seconds between looks at what others do
_STARTS = 2.0  # seconds that it takes to go on with a trial


def work(search: Search) -> str:
  """Works until there is nothing left to do or the budget is over; returns which, in words.

  Raises:
    Preempted: a signal came; the trial at work was saved.
    StorageError: the database is gone; likewise.
    ValueError: the first trials failed, all of them.
  """
  done, tracks = 0, dict[Any, racing.Track | str]()
  with search.ledger.beating():
    while True:
      found = _next(search)
      if isinstance(found, str):
        return found
      if found is None:
        time.sleep(_POLL)
        continue
      for one in _raced(search, found, tracks) if search.members > 1 else [found]:
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
    if search.method in ('grid', 'random', 'gp'):
      if search.method == 'gp':
        found = next_by_surrogate(search.space, search.seed, trials, ledger.reports(), search.goals[0], search.limits)
      else:
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


def _heard(search: Search, trial: Trial, step: int, total: int, metrics: Mapping[str, float]) -> bool:
  """Notes the score of a trial at a step; False where another worker has it by now."""
  goal, sign = search.goals[0], 1 if search.goals[0].maximize else -1
  finite = math.isfinite(metrics[goal.name])
  value = sign * metrics[goal.name] if finite else -math.inf  # nothing is worse
  with search.ledger.locked():
    if not search.ledger.report(trial, step, step / total, value):
      return False
    if search.mirror is not None and finite:
      search.mirror.report(trial.mirror, step, metrics[goal.name])
  return True


def _stopped(search: Search, trial: Trial, step: int, total: int) -> str:
  """Why a trial is to be stopped at a step; '' where it goes on."""
  sign = 1 if search.goals[0].maximize else -1
  reports = search.ledger.reports() if search.stop != 'none' else []
  return stopping.verdict(search.stop, trial.number, trial.place, step / total, reports, sign=sign)


def _raced(search: Search, first: Trial, tracks: dict[Any, racing.Track | str]) -> list[Trial]:
  """Takes further trials beside a new one and trains those of one program side by side; returns who goes on alone.

  Raises:
    Preempted: a signal came; the members wait to be begun anew.
  """
  trials = [first]
  while trials[-1].attempts == 1 and len(trials) < search.members and isinstance(more := _next(search), Trial):
    trials.append(more)
  alone, groups = [one for one in trials if one.attempts > 1], dict[Any, list[Trial]]()
  for one in trials:
    if one.attempts == 1:
      groups.setdefault(racing.same(search.space, one), []).append(one)
  for key, members in groups.items():
    if len(members) > 1 and key not in tracks:
      config = config_of(search.config, search.space, members[0])
      made = racing.track(config, search.space, search.folder, search.model, search.data)
      if isinstance(made, str) and made not in tracks.values():
        search.say(f'note: trials are trained one by one, though members={search.members}: {made}')
      tracks[key] = made
    made = tracks.get(key, '')
    alone += members if isinstance(made, str) or len(members) == 1 else _side_by_side(search, made, members)
  return alone


def _side_by_side(search: Search, made: racing.Track, members: list[Trial]) -> list[Trial]:
  """Races members; ends those that are stopped, and returns the others."""
  began, goal = time.monotonic(), search.goals[0]
  deadline = began + _left(search)
  best: dict[int, dict[str, float]] = {}

  def heard(trial: Trial, step: int, total: int, metrics: Mapping[str, float]) -> None:
    if _heard(search, trial, step, total, metrics) and math.isfinite(value := metrics[goal.name]):
      held = best.get(trial.number, {}).get(goal.name, value)
      if trial.number not in best or (value > held if goal.maximize else value < held):
        best[trial.number] = {**metrics, 'step': step}

  with preempt.guard() as guard:
    due = lambda: 'the budget is over' if guard.requested or time.monotonic() >= deadline else ''  # noqa: E731
    configs = [config_of(search.config, search.space, one) for one in members]
    stop = functools.partial(_stopped, search)
    left, whys, end = racing.race(made, search.space, members, configs, heard, stop, due)
    seconds = (time.monotonic() - began) / len(members)
    for one in members:
      if one.number in whys:
        _finish(search, one, PRUNED, best.get(one.number, {}), seconds, whys[one.number])
      elif end:
        _finish(search, one, WAITING, {}, seconds, end)
    if guard.requested:
      raise loop.Preempted('stopped by a signal; the trials under way begin anew: run the same command to go on')
  return [] if end else left


def _train(search: Search, trial: Trial) -> None:
  """Trains a trial to its end, to where it is not worth going on, or to the end of the budget."""
  goal, began = search.goals[0], time.monotonic()
  deadline = began + _left(search)
  folder = trial_folder(search.folder, trial.number)
  ended = {'state': WAITING}

  def heard(step: int, total: int, metrics: Mapping[str, float]) -> str:
    if not _heard(search, trial, step, total, metrics):
      ended['state'] = 'lost'
      return 'another worker has it'
    if why := _stopped(search, trial, step, total):
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
        log=under(search.log, f'trial{trial.number}'),
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
  by_jax = type(error).__name__ in ('XlaRuntimeError', 'JaxRuntimeError')
  if by_jax or isinstance(error, ArithmeticError) or is_memory(error):
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
