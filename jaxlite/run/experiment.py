"""What the launcher calls: an experiment of one run or of several, trained or only evaluated, and its table."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gc
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from jaxlite.config.reads import Reads, plain, watched
from jaxlite.config.schema import Config
from jaxlite.config.schema import smoke as shrink
from jaxlite.config.serialize import to_dict
from jaxlite.errors import ConfigError, nearest
from jaxlite.host import preempt, streams
from jaxlite.host.files import expanded
from jaxlite.report import page, tables
from jaxlite.run import acting, loop
from jaxlite.run import folder as run_folder
from jaxlite.run.aside import set_aside
from jaxlite.run.deploying import deploy_run
from jaxlite.run.diagnosing import opened
from jaxlite.run.workdir import WorkdirError, check_workdir, lock

_VERBS = {'eval': 'evaluate', 'deploy': 'deploy', 'diagnose': 'diagnose'}


def run(
  config: Config,
  workdir: str | Path,
  *,
  mode: str = 'train',
  fresh: bool = False,
  smoke: bool = False,
  command: str = '',
  only: Sequence[str] = (),
  deploying: Mapping[str, Any] | None = None,
  diagnosing: Mapping[str, Any] | None = None,
) -> int:
  """Runs an experiment and prints its table.

  Args:
    config: with `runs`, each variation of it is a run in a folder of its own.
    workdir: the experiment's folder.
    mode: 'train', 'eval' to test what was trained, 'deploy' to write it for other runtimes, or 'diagnose' to say what
      is wrong with it.
    fresh: move what is there aside and start again.
    smoke: a run of seconds, in a folder beside.
    command: the command line, for the report.
    only: which of several runs, by name; all when empty. The page of the whole folder is left as it is, and so are the
      other runs, which another process may be training.
    deploying: of mode 'deploy': formats, out, which, deadline, as `jaxlite.deploy` takes them.
    diagnosing: of mode 'diagnose': 'act' and 'minutes', as `--act` and `--minutes` say.

  Returns:
    The exit code: 0, or 75 when a signal stopped the run and it was saved.
  """
  say = streams.steady(functools.partial(print, flush=True))
  text = f'{workdir}-smoke' if smoke else str(workdir)  # not yet a Path, which makes gs:/ of gs://
  folder = expanded(text)
  if mode != 'train' and not folder.is_dir():
    what = 'it is a file' if folder.exists() else 'there is no such folder'
    raise ValueError(f'{folder} holds no run to {_VERBS[mode]}: {what}; train first, with --mode=train')
  if fresh and mode == 'deploy':
    raise ValueError('--fresh moves the old run aside, and --mode=deploy writes it for other runtimes: leave one out')
  if mode != 'train' and not only:
    config = _of_one_run(config, folder)
  config = _chosen(config, only)
  names = list(config.runs) or ['']
  if mode == 'deploy':
    _deploy(config, folder, smoke, dict(deploying or {}), say)
    return 0
  if mode == 'diagnose':
    return _diagnose(config, folder, smoke, dict(diagnosing or {}), command, say)
  try:
    check_workdir(text)
    kept = False
  except WorkdirError:  # a shared folder, an archive: what is finished there can be shown all the same
    kept = not fresh and all(run_folder.is_finished(folder / name) for name in names)
    if not kept:
      raise
  if fresh:
    for one in (folder / name for name in only) if only else (folder,):
      if (aside := set_aside(one)) is not None:
        say(f'moved the old run to {aside}')
    check_workdir(folder)
  varied = {name: _varied(config, name) for name in config.runs}
  several = {name: one for name, (one, _) in varied.items()}
  results = []
  with lock(folder) if several and not kept and not only else contextlib.nullcontext():
    for name, one in (several or {config.name: config}).items():
      one = dataclasses.replace(shrink(one) if smoke else one, runs={})
      if several:
        say(f'\n== {name}')
      try:
        where = folder / name if several else folder
        if mode == 'train':
          read = varied[name][1] if several else ()
          results.append(loop.train_varied(one, where, read, command=command, say=say))
        else:
          results.append(loop.evaluate_run(one, where, command=command, say=say))
        _forget()
      except loop.Preempted as stop:
        say(str(stop))
        return preempt.EXIT_PREEMPTED
    if several and mode == 'train' and not kept and not only:
      page.write(results, folder, list(several))
  say(f'\n{tables.table(results)}')
  alike = len(results) > 1 and len({_but_for_chance(one) for one in several.values()}) == 1
  if alike and (line := tables.spread(results)):
    say(f'\n{line}')
  if mode == 'train':
    say('\n' + '\n'.join(f'report: {where / "report.md"}' for where in ([folder / name for name in only] or [folder])))
  return 0


def _forget() -> None:
  """Frees what JAX keeps of a run's programs, 10 to 100 MB: the next run has its own, and the process is ours."""
  jax.clear_caches()
  gc.collect()


def _chosen(config: Config, only: Sequence[str]) -> Config:
  """The experiment with the runs that were named."""
  if not only:
    return config
  if not config.runs:
    raise ConfigError(f'--run names one of several runs, and this experiment is a single one; got {only[0]!r}')
  for name in only:
    if name not in config.runs:
      raise ConfigError(
        f'--run names one of {", ".join(config.runs)}; got {name!r}; nearest: {nearest(name, config.runs)}'
      )
  return dataclasses.replace(config, runs={name: config.runs[name] for name in config.runs if name in only})


def _deploy(config: Config, folder: Path, smoke: bool, given: dict[str, Any], say: Callable[[str], None]) -> None:
  """Writes each run of an experiment for other runtimes."""
  for name in list(config.runs) or ['']:
    one = _varied(config, name)[0] if name else config
    one = dataclasses.replace(shrink(one) if smoke else one, runs={})
    if name:
      say(f'\n== {name}')
    out = {'out': str(Path(given['out'], name))} if name and 'out' in given else {}
    say(f'\n{deploy_run(one, folder / name, say=say, **{**given, **out})}')


def _diagnose(
  config: Config, folder: Path, smoke: bool, given: dict[str, Any], command: str, say: Callable[[str], None]
) -> int:
  """Says of each run of an experiment what is wrong with it, and tries what that suggests where it was asked."""
  for name in list(config.runs) or ['']:
    one = _varied(config, name)[0] if name else config
    one = dataclasses.replace(shrink(one) if smoke else one, runs={})
    if name:
      say(f'\n== {name}')
    case = opened(folder / name, one, command='' if name else command, say=say)
    say(f'\n{case.diagnosis}')
    if given.get('act'):
      try:
        outcome = acting.act(case, minutes=given['minutes'], say=say)
      except loop.Preempted as stop:
        say(str(stop))
        return preempt.EXIT_PREEMPTED
      if outcome is not None:
        say(f'\n{outcome}')
  return 0


def _of_one_run(config: Config, folder: Path) -> Config:
  """The config of the run whose own folder it is, where an experiment of several was named."""
  if not config.runs or not (folder / 'checkpoints').is_dir():
    return config
  record = run_folder.remembered(folder)
  name = '' if record is None else record.began['config'].get('name')
  one = _varied(config, name)[0] if name in config.runs else config
  return dataclasses.replace(one, runs={})


def _varied(config: Config, name: str) -> tuple[Config, set[str]]:
  """One of several runs, and the fields that its variation was made from."""
  reads = Reads()
  one = plain(config.runs[name](watched(config, reads, copies=False)))
  return dataclasses.replace(one, name=name), reads.paths


def _but_for_chance(config: Config) -> str:
  """A config without its name and seed: runs that agree in it differ by chance alone."""
  return json.dumps(to_dict(dataclasses.replace(config, name='', seed=0, runs={})), sort_keys=True)
