"""`--mode=tune`: a search from the command line, by one worker or several on this machine; and two quick questions.

Several workers are the same command, each with `--worker`. One that is killed is started again: whoever comes next goes
on with its trial.
"""

from __future__ import annotations

import dataclasses
import functools
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jaxlite.config.schema import Config
from jaxlite.config.schema import smoke as shrink
from jaxlite.errors import ConfigError, counted
from jaxlite.host import preempt, streams
from jaxlite.host.files import expanded
from jaxlite.run import loop, study
from jaxlite.run.batch_size import batch_size
from jaxlite.run.lr_range import lr_range
from jaxlite.run.tune import reported
from jaxlite.run.worker import work
from jaxlite.tasks.figures import lacking
from jaxlite.tuning.space import parsed

_SMOKE = 3  # trials
_AGAIN = 100  # workers that are started anew, until something else must be wrong
_LOOK = 0.2  # seconds


def tune(
  config: Config,
  workdir: str,
  declared: Any,
  words: Sequence[str],
  *,
  fresh: bool,
  smoke: bool,
  command: str,
  space: str = '',
  workers: int = 1,
  worker: bool = False,
  home: str = '',
  began: float | None = None,
  **asked: Any,
) -> int:
  """Searches, prints the table, and returns the exit code: 0, or 75 when a signal stopped it and all was saved.

  Args:
    config: of the experiment.
    workdir: of the study.
    declared: the space that stands beside the experiment, `SPACE` of its file; None where there is none.
    words: the command line, for further workers.
    fresh: move what is there aside and start again.
    smoke: three trials of seconds, in a folder beside.
    command: the command line, for the report.
    space: instead of `declared`, as a person types it.
    workers: processes.
    worker: this is one of several, and prints no table.
    home: where the experiment's runs lie when nothing else is said: a teacher lies beside them.
    began: when the command did, by the monotonic clock.
    **asked: as `jl.tune` takes them: budget, trials, method, stop, goals, limits, run, storage.

  Raises:
    ConfigError: no space; a number of workers that cannot be.
  """
  say = streams.steady(functools.partial(print, flush=True))
  run = asked.pop('run', '')
  chosen = study.of_run(config, run)
  if chosen.teacher:
    chosen = dataclasses.replace(chosen, teacher=str(Path(home, run, chosen.teacher).resolve()))
  if smoke:
    workdir, chosen = f'{workdir}-smoke', shrink(chosen)
    asked['trials'] = min(asked.get('trials') or _SMOKE, _SMOKE)
  if workers < 1:
    raise ConfigError(f'--workers is at least 1; got {workers}')
  found = parsed(space, chosen) if space else declared
  if found is None:
    raise ConfigError(
      "the experiment declares no search space: write SPACE = {'optim.lr': jl.tuning.log_uniform(1e-4, 1e-1)} in its "
      "file, or give --space='optim.lr=log(1e-4,1e-1)'"
    )
  given = {'budget': '', 'trials': None, 'method': 'auto', 'stop': 'median', 'goals': '', 'limits': None, 'storage': ''}
  given |= {'model': None, 'data': None, 'run': '', 'seed': 0, 'command': command, 'say': say, **asked}
  search = study.opened(chosen, workdir, found, fresh=fresh, quiet=worker, began=began, **given)
  try:
    if worker or workers == 1:
      ended = work(search)
    else:
      ended = _several(search.folder, words, workers, say)
    if not worker:
      say(f'the search is over: {ended}\n')
      say(f'{reported(search, ended)}\n\nreport: {search.folder / "report.md"}')
  except loop.Preempted as stop:
    say(str(stop))
    return preempt.EXIT_PREEMPTED
  finally:
    search.close()
  return 0


def ask(mode: str, config: Config, workdir: str, run: str) -> int:
  """Answers one question about a run's settings, and returns the exit code.

  Args:
    mode: 'lr_range' or 'batch_size'.
    config: of the experiment.
    workdir: of the run, for a teacher beside it and for the picture.
    run: which one, of several.
  """
  say = streams.steady(functools.partial(print, flush=True))
  one = study.of_run(config, run)
  place = f'{workdir}/{run}' if run else workdir  # not yet a Path, which makes gs:/ of gs://
  if mode == 'lr_range':
    say(str(lr_range(one, place, say=say)))
    if not lacking():
      say(f'picture: {expanded(place) / "lr_range.png"}')
  else:
    say(str(batch_size(one, place, say=say)))
  return 0


def _several(folder: Path, words: Sequence[str], count: int, say: Callable[[str], None]) -> str:
  """Starts workers, starts killed ones again, and waits for all; returns why it ended, in words.

  Raises:
    Preempted: a signal came; each worker saved its trial.
    ConfigError: a worker met a mistake, which it has told.
  """
  again, left = 0, [_started(words) for _ in range(count)]
  wrong = 0
  with preempt.guard() as guard:
    while left:
      if guard.requested:
        for one in left:
          one.send_signal(signal.SIGTERM)
        for one in left:
          one.wait()
        raise loop.Preempted(f'{counted(count, "worker")} stopped by a signal; saved: run the same command to go on')
      running = []
      for one in left:
        code = one.poll()
        if code is None:
          running.append(one)
        elif code < 0 and again < _AGAIN:
          again += 1
          say(f'a worker was killed by {signal.Signals(-code).name}; another is started')
          running.append(_started(words))
        elif code != 0:
          wrong = code
      left = running
      time.sleep(_LOOK)
  if wrong:
    raise ConfigError(f'a worker ended with exit code {wrong} and has told why; what was trained lies in {folder}')
  return f'{counted(count, "worker")} found nothing left to do within the budget'


def _started(words: Sequence[str]) -> subprocess.Popen[bytes]:
  return subprocess.Popen([*words, '--worker', '--nofresh'])
