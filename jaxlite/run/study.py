"""Opening a study: what was asked is checked before anything is trained, and its forecast is told in a line."""

from __future__ import annotations

import dataclasses
import functools
import math
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import filelock

from jaxlite import errors
from jaxlite.config.fields import is_group
from jaxlite.config.reads import Reads, watched
from jaxlite.config.schema import Config, validate
from jaxlite.errors import ConfigError, counted, nearest
from jaxlite.planning.plan import Plan, between, spoken
from jaxlite.run import study_record
from jaxlite.run.aside import set_aside
from jaxlite.run.finetune_start import ready
from jaxlite.run.foreseen import foreseen
from jaxlite.run.jobs import job_of
from jaxlite.run.search import Search
from jaxlite.run.setup import Setup, dataset_of, prepare
from jaxlite.run.workdir import check_workdir
from jaxlite.tuning import optuna_study, outcome, stopping
from jaxlite.tuning.database import Database, shown
from jaxlite.tuning.kinds import Range, Space, grid, lowest, middle
from jaxlite.tuning.ledger import Ledger
from jaxlite.tuning.outcome import Goal
from jaxlite.tuning.space import assigned, check

Say = Callable[[str], None]

METHODS = ('auto', 'grid', 'random', 'gp', *optuna_study.METHODS)
_END, _SHARE = 3.0, 0.05  # seconds, at most such a share of the budget, for the last save and the report
_WORTH = 120.0  # seconds of a budget from which on measuring the machine for its forecast is worth it


def opened(
  config: Config,
  workdir: str | Path,
  space: Mapping[str, Any],
  *,
  model: Any,
  data: Any,
  budget: str,
  trials: int | None,
  method: str,
  stop: str,
  goals: Sequence[str] | str,
  limits: Mapping[str, float] | str | None,
  run: str,
  storage: str,
  seed: int,
  fresh: bool,
  command: str,
  say: Say,
  members: int = 1,
  quiet: bool = False,
  began: float | None = None,
) -> Search:
  """Opens a study as `tune` takes it, makes sure that it can be gone on with, and says its forecast, unless `quiet`.
  The budget counts from `began`, by the monotonic clock; None: from now."""
  began = time.monotonic() if began is None else began
  errors.need('jaxlite.tune', 'orbax.checkpoint', 'flatbuffers')
  validate(config)
  base = of_run(config, run)
  kinds = check(space, base)
  seconds, most = outcome.seconds_of(budget), None if trials is None else errors.whole(trials, 'trials', least=1)
  bounds, seed = outcome.limits_of(limits), errors.whole(seed, 'seed', least=0)
  members = errors.whole(members, 'members', least=1)
  stopping.check(stop)
  if storage and not storage.startswith(('postgresql://', 'postgres://')):
    raise ConfigError(
      f"a storage is 'postgresql://user:password@host/name', or none for a file; got {shown(storage)!r}"
    )
  method = _method(method, kinds, len(_named(goals)) > 1, say)
  if method == 'grid':
    size = len(grid(kinds))
    most = size if most is None else min(most, size)
  if seconds is None and most is None:
    raise ConfigError("a search ends: give budget='2 hours' (or minutes), or trials=50")
  folder = check_workdir(workdir)
  if (folder / 'checkpoints').is_dir():
    raise ConfigError(f'{folder} holds a run, and a study has a folder of its own: give another workdir')
  if fresh and any(folder.iterdir()):
    _check_nobody_works(folder)
    say(f'moved the old study to {set_aside(folder)}')
    folder = check_workdir(workdir)
  if base.teacher:
    base = dataclasses.replace(base, teacher=str((folder / base.teacher).resolve()))
  reads = Reads()
  shared, loading = _shared(base, kinds, data, reads)
  if loading and not quiet:
    say(
      f'note: {", ".join(loading)} of the search space has a part in loading the data, so each trial loads its own; '
      'where the validation split differs, scores do not compare: give a Dataset whose splits are fixed'
    )
  again = functools.partial(_at_some_point, kinds, folder=folder, model=model, data=shared)
  setup = again(base)
  _check_validation(setup)
  wanted = _goals(goals, setup)
  if len(wanted) > 1 and stop != 'none':
    if stop != 'median' and not quiet:
      say(f'note: of several goals no trial is stopped early, so stop={stop!r} does nothing')
    stop = 'none'
  if members > 1 and stop not in stopping.RUNGS:
    raise ConfigError(
      f"members are raced until halving has looked last: stop='halving' or 'hyperband' and one goal; got stop={stop!r}"
    )
  if method in ('gp', 'cmaes') and len(wanted) > 1:
    raise ConfigError(f'{method} has one goal: take method=tpe or nsga2, or one goal')
  plan = _forecast(setup, seconds, say)
  low = plan.durations.total.low if plan.durations is not None else 0.0
  _check_storage(study_record.remembered(folder), folder, storage)  # before a server is asked
  database = Database(storage or folder / study_record.DATABASE, make=not (folder / study_record.DESCRIBED).exists())
  with database.locked():  # of workers that start at once, one begins the study
    kept = study_record.remembered(folder)
    if kept is None:
      kept = {'study': f'{base.name}-{secrets.token_hex(4)}', 'storage': shown(storage), 'begun': False}
      study_record.remember(folder, kept)
  _check_storage(kept, folder, storage)
  study, mirror = kept['study'], None
  ledger = Ledger(folder, study, database, ago=time.monotonic() - began)
  try:
    about = study_record.about(base, kinds, wanted, setup)
    study_record.agree(ledger, folder, kept, about, storage, base, kinds, again, setup, say)
    about = ledger.about() or about
    if about['mirror']:
      if why := optuna_study.lacking():
        raise ImportError(f'this study was begun with Optuna. {why}')
      with ledger.locked():
        mirror = optuna_study.Mirror(database, study, kinds, wanted)
    elif method in optuna_study.METHODS:
      raise ConfigError(
        f'this study was begun without Optuna, which {method} needs: go on by random, or use fresh=True'
      )
    spent = ledger.spent()
    done = len(ledger.trials())
    if seconds is not None and not done and low > seconds:
      took = between(plan.durations.total) if plan.durations is not None else ''
      raise ConfigError(
        f'a budget of {spoken(seconds)} is too short for one trial, which takes about {took}: give a longer budget, or '
        'a shorter run (train)'
      )
    if not quiet:
      say(_outlook(plan, base, kinds, method, stop, seconds, most, spent, done))
  except BaseException:
    if mirror is not None:
      mirror.close()
    ledger.close()
    raise
  return Search(
    config=base,
    space=kinds,
    goals=wanted,
    limits=bounds,
    method=method,
    stop=stop,
    seed=seed,
    most=most,
    budget=None if seconds is None else seconds - min(_END, _SHARE * seconds),
    expected=low,
    folder=folder,
    ledger=ledger,
    mirror=mirror,
    model=model,
    data=shared,
    read=frozenset(reads.paths),
    members=members,
    command=command,
    say=say,
  )


def of_run(config: Config, run: str) -> Config:
  """Returns the config of the run that is searched.

  Raises:
    ConfigError: there are several and none is named, or the name is none of theirs.
  """
  if not config.runs:
    if run:
      raise ConfigError(f'the experiment has one run, and {run!r} is no name of several: leave it out')
    return config
  if run not in config.runs:
    known = ', '.join(config.runs)
    got = f'got {run!r}, nearest: {nearest(run, config.runs, 1)}' if run else 'name one of them'
    first = next(iter(config.runs))
    raise ConfigError(
      f'a search is of one run, and this experiment has {known}; {got} (--run={first}, or run={first!r})'
    )
  one = config.runs[run](config)
  validate(one)
  return dataclasses.replace(one, name=run, runs={})


def _check_storage(kept: Mapping[str, Any] | None, folder: Path, storage: str) -> None:
  """Raises where a study is kept elsewhere than where it is asked for."""
  if kept is None or kept['storage'] == shown(storage):
    return
  where = (
    f'in {kept["storage"]}: give that, with its password' if kept['storage'] else 'in the workdir: leave storage out'
  )
  raise ConfigError(f'the study in {folder} is kept {where}; got {shown(storage)!r}')


def _method(method: str, space: Space, several: bool, say: Say) -> str:
  if method not in METHODS:
    raise ConfigError(
      f'a method is one of {", ".join(METHODS)}; got {method!r}, nearest: {nearest(method, METHODS, 1)}'
    )
  if method == 'auto':
    why = optuna_study.lacking() if several else ''
    method = 'gp' if not several else 'random' if why else 'tpe'
    if why:
      say(f'points are drawn at random; of several goals Optuna would learn from what was tried. {why}')
  if method in optuna_study.METHODS:
    if why := optuna_study.lacking():
      raise ImportError(f'the method {method} needs Optuna. {why}')
    errors.need(f'the method {method}', *(['cmaes'] if method == 'cmaes' else []))
  if method == 'cmaes' and not any(isinstance(kind, Range) for kind in space.values()):
    raise ConfigError('cmaes is of numbers, and this space has choices alone: take method=tpe')
  return method


def _named(goals: Sequence[str] | str) -> list[str]:
  if not isinstance(goals, str | Sequence | None) or not all(isinstance(one, str) for one in goals or ()):
    raise ConfigError(f"goals are names, 'accuracy' or ('accuracy', 'bytes'); got {goals!r:.60}")
  names = [one.strip() for one in goals.split(',')] if isinstance(goals, str) else list(goals or ())
  return [name for name in names if name]


def _goals(given_goals: Sequence[str] | str, setup: Setup) -> tuple[Goal, ...]:
  """The goals, a validation metric first, each with its direction."""
  names = _named(given_goals) or [setup.score]
  known = (*setup.metric.names, *outcome.SIZES)
  for name in names:
    if name not in known:
      raise ConfigError(
        f'a goal is a validation metric or one of {", ".join(outcome.SIZES)}; got {name!r}; nearest: '
        f'{nearest(str(name), known)}'
      )
  if len(set(names)) < len(names):
    raise ConfigError(f'each goal is named once; got {", ".join(names)}')
  if names[0] in outcome.SIZES:
    raise ConfigError(f'the first goal is a validation metric, such as {setup.score!r}; got {names[0]!r}')
  if names[0] != setup.score:
    raise ConfigError(
      f'the first goal picks the best model of each trial too: set eval.metric to {names[0]!r}; it is {setup.score!r}'
    )
  task = setup.data.task
  return tuple(Goal(name, name not in outcome.SIZES and task.better(name) > 0) for name in names)


def _at_some_point(space: Space, config: Config, *, folder: Path, model: Any, data: Any) -> Setup:
  """A run in the middle of a space, which is forecast and known by its program; at its low end where that cannot be."""
  made = [assigned(config, space, {name: at(kind) for name, kind in space.items()}) for at in (middle, lowest)]

  def prepared(one: Config) -> Setup:
    one, network, own, read = ready(dataclasses.replace(one, runs={}), model, data, lambda line: None)
    return prepare(one, folder, network, own, read)

  try:
    return prepared(made[0])
  except ValueError as error:
    try:
      return prepared(made[1])
    except ValueError:
      raise error from None


def _check_validation(setup: Setup) -> None:
  """Raises where no split is held out that trials could be compared by."""
  if not len(setup.data.validation.labels):
    raise ConfigError(
      'a search compares trials by validation, and this run holds no validation split out: set data.validation to 0.1, '
      'or give a Dataset that has one'
    )


def _shared(config: Config, space: Space, data: Any, reads: Reads) -> tuple[Any, list[str]]:
  """The data, loaded once where no name of the space has a part in loading them; else as given, and these names."""
  own = Reads()
  made = dataset_of(watched(config, own), data)
  read = {path for path in own.paths if not is_group(functools.reduce(getattr, path.split('.'), config))}
  within = lambda one, other: one == other or one.startswith(f'{other}.')  # noqa: E731
  loading = [name for name in space if any(within(name, path) or within(path, name) for path in read)]
  if loading:
    return data, loading
  reads.paths.update(own.paths)
  return made, []


def _forecast(setup: Setup, seconds: float | None, say: Say) -> Plan:
  return foreseen(job_of(setup), setup.config.name, say, measure=True if seconds and seconds >= _WORTH else None)


def _outlook(
  plan: Plan,
  base: Config,
  space: Space,
  method: str,
  stop: str,
  seconds: float | None,
  most: int | None,
  spent: float,
  done: int,
) -> str:
  """The line that a search begins with."""
  one, times = plan.line(), plan.durations
  count = f'{counted(most, "trial")}' if most is not None else 'trials'
  words = [f'search of {counted(len(space), "field")} by {method}, {count}']
  if stop != 'none':
    words[0] += f', stopped early by {stop}'
  if done:
    words.append(f'{counted(done, "trial")} and {spoken(spent)} are behind it')
  line = f'{"; ".join(words)}. forecast: a trial {one}'
  if times is None:
    return f'{line} (time: this machine is not measured yet)'
  left = None if most is None else max(0, most - done)
  whole = None if left is None else left * times.total.seconds
  if whole is not None:
    line += f'; all that are left about {spoken(whole)} one after the other'
  if seconds is not None:
    rest = max(0.0, seconds - spent)
    fits = math.floor(rest / times.total.seconds)
    if whole is None or whole > rest:
      line += f'; about {fits} of them within the {spoken(rest)} that are left of {spoken(seconds)}'
  return line


def _check_nobody_works(folder: Path) -> None:
  """Raises where a worker of this machine is at work on the study that is to be moved aside."""
  for path in sorted((folder / 'workers').glob('*.lock')):
    try:
      with filelock.FileLock(path, timeout=0, thread_local=False):
        pass
    except filelock.Timeout:
      raise ConfigError(f'a worker is at work on the study in {folder}: end it before it is moved aside') from None
