"""Asking what is wrong with a run: `jl.diagnose`, and `--mode=diagnose`."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from jaxlite import checkpoint
from jaxlite.config.schema import Config, validate
from jaxlite.config.serialize import FORMAT, to_dict
from jaxlite.deployment.run_id import run_of
from jaxlite.diagnosis import judge
from jaxlite.diagnosis.look import Subject
from jaxlite.diagnosis.measure import Measured, measure, of_start
from jaxlite.diagnosis.verdict import Diagnosis
from jaxlite.host.files import expanded, read_json, write_text
from jaxlite.host.machine import versions
from jaxlite.run import folder as run_folder
from jaxlite.run import study_record
from jaxlite.run.record import Record
from jaxlite.run.records import read_records
from jaxlite.run.setup import Setup, prepare
from jaxlite.run.states import first_state
from jaxlite.step.state import TrainState

FILE = 'diagnosis.json'  # in a run's folder
_NAMED = 8  # runs of a folder that are named

Say = Callable[[str], None]


class Case(NamedTuple):
  """A run that was opened, and what is known of it.

  Attributes:
    folder: the run's.
    config: as it was trained; None where only its records were asked.
    setup: of that config; None likewise.
    record: what its newest checkpoint remembers; None before the first.
    diagnosis: of it.
  """

  folder: Path
  config: Config | None
  setup: Setup | None
  record: Record | None
  diagnosis: Diagnosis


def diagnose(
  workdir: str | Path,
  config: Config | None = None,
  *,
  model: Any = None,
  data: Any = None,
  seconds: float = 60.0,
  command: str = '',
  say: Say = print,
) -> Diagnosis:
  """Says what is wrong with a run, what that rests on, and the one thing to try next.

  Args:
    workdir: the folder of a run: finished, stopped, or failed.
    config: of the run: then its model and data are built, and measured on a few batches. None judges by the records
      alone, which says less.
    model: as `jl.train` was given it.
    data: likewise.
    seconds: after so many no further measurement is begun.
    command: the command line of the run, for that of the action.
    say: prints a line.

  Returns:
    The Diagnosis, which is kept in the folder as `diagnosis.json`; print it.

  Raises:
    ValueError: there is no run; its config, code or data are others; its record is damaged.

  References:
    Zhang et al., AutoTrainer: an automatic DNN training problem detection and repair system, 2021,
    https://arxiv.org/abs/2102.01848

  >>> import tempfile
  >>> import numpy as np
  >>> import jaxlite as jl
  >>> data = np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32), np.arange(64) % 2
  >>> config = jl.Config(name='x', train=jl.Duration(steps=4))
  >>> config.log.progress, config.data.batch_size = False, 16
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   _ = jl.train(config, folder, data=data, say=lambda line: None)
  ...   jl.diagnose(folder).certainty.split(':')[0]
  'from the records alone'
  """
  return opened(workdir, config, model=model, data=data, seconds=seconds, command=command, say=say).diagnosis


def opened(
  workdir: str | Path,
  config: Config | None,
  *,
  model: Any = None,
  data: Any = None,
  seconds: float = 60.0,
  command: str = '',
  say: Say = print,
) -> Case:
  """As `diagnose`, with all that was opened for it."""
  folder = expanded(workdir).absolute()
  record = run_folder.remembered(folder) if (folder / 'checkpoints').is_dir() else None
  history = read_records(folder)
  if record is None and not history and not (folder / 'config.json').is_file():
    raise ValueError(f'{folder} holds no run to diagnose: {_instead(folder)}')
  run = run_of(folder)
  failed = run_folder.failure(folder, run)
  about = _about(folder)
  unknown = [*about.pop('notes'), *_doubts(folder, record, history, failed)]
  setup, measured = None, None
  if config is not None:
    validate(config)
    if record is not None:
      config = run_folder.as_trained(record, config, say)
    setup = prepare(config, folder, model, data)
    measured = _measured(setup, folder, record, model, seconds, say)
    about = {'facts': setup.data.facts, 'task': setup.data.task.name, 'config': to_dict(config)}
    if model is not None:
      about['config'] |= {'model': 'given'}  # not the default one, whatever the config says
    about |= {'read': setup.reads.paths, 'own_loss': own_loss(setup)}
  elif record is not None:
    about['config'] = record.began.get('config') or about['config']
  ask = functools.partial(judge.diagnose, history, failed=failed, command=command, workdir=f'{workdir}-next', **about)
  found = ask(measured=measured)
  if record is None and found.verdict == 'unknown':  # its curves may tell, though its weights are gone
    found = ask()
  found = found._replace(unknown=(*unknown, *found.unknown))
  _keep(folder, run, found, say)
  return Case(folder, config, setup, record, found)


def _instead(folder: Path) -> str:
  """What to do where a folder is no run's."""
  if not folder.is_dir():
    what = 'it is a file' if folder.exists() else 'there is no such folder'
    return f'{what}: name the folder of a run, or train first, with --mode=train'
  of_study = (folder / study_record.DESCRIBED).is_file()
  found = sorted(folder.glob('trials/*/config.json' if of_study else '*/config.json'))
  names = [str(path.parent.relative_to(folder)) for path in found]
  shown = ', '.join(names[:_NAMED]) + (f' and {len(names) - _NAMED} more' if len(names) > _NAMED else '')
  if of_study:
    begun = f'name one of its trials, {shown}' if names else 'none of its trials has begun'
    return f'it is a study; {begun}'
  return f'name one of the runs in it, {shown}' if names else 'train first, with --mode=train'


def subject_of(setup: Setup, start: TrainState, end: TrainState) -> Subject:
  """What `measure` takes of a run."""
  config = setup.config
  return Subject(
    train=setup.train,
    network=setup.network,
    recipe=setup.recipe,
    loss=config.loss,
    data=setup.data,
    metric=setup.metric,
    score=setup.score,
    batch_size=config.data.batch_size,
    seed=config.seed,
    total=setup.plan.total,
    start=start,
    end=end,
  )


def own_loss(setup: Setup) -> bool:
  """Whether a run's loss takes logits: the task's, or another of jaxlite's."""
  loss: Any = setup.config.loss
  return loss is None or (getattr(loss, '__module__', None) or '').startswith('jaxlite.tasks.')


def _measured(setup: Setup, folder: Path, record: Record | None, model: Any, seconds: float, say: Say) -> Measured:
  """Measures a run at its newest good checkpoint, or at its start where it has none."""
  start = first_state(setup)
  if record is None:
    return of_start(measure(subject_of(setup, start, start), seconds))
  run_folder.verify(setup, folder, record, lambda one: prepare(one, folder, model, setup.data), say)
  if setup.data.fingerprint != record.data:
    raise ValueError(
      f'the data differ from those this run was trained on: to diagnose {folder} bring them back, or leave the config '
      'out, which judges by its records'
    )
  with checkpoint.Checkpoints(folder / 'checkpoints', run=record.run, log=say) as saves:
    found = saves.restore(setup.abstract)
  return measure(subject_of(setup, start, start if found is None else found.state), seconds)


def _about(folder: Path) -> dict[str, Any]:
  """What a run's folder says of its task and config, for who has no config; as far as it can be read."""
  found: dict[str, Any] = {'facts': {}, 'task': '', 'config': None, 'notes': []}
  for name, take in (('task.json', ('facts', 'task')), ('config.json', ('config',))):
    try:
      said = read_json(folder / name)
    except (OSError, ValueError):
      continue
    if isinstance(said, dict):
      if said.get('format', FORMAT) != FORMAT:
        found['notes'].append(f'what {name} says: it is of another version of jaxlite (format {said["format"]!r})')
        continue
      kinds = {'facts': dict, 'task': str, 'config': dict}
      found |= {one: said[one] for one in take if isinstance(said.get(one), kinds[one])}
  return found


def _doubts(folder: Path, record: Record | None, history: list[Any], failed: Any) -> list[str]:
  """What a person should know of how much of the run there is."""
  lines = []
  if not history:
    lines.append('anything of its course: the run left no points (log.every)')
  if record is None:
    lines.append('anything of its end: the run left no checkpoint; what is measured is its start')
  elif not run_folder.is_finished(folder) and not failed:
    lines.append('how it ends: the run is not finished; what is measured is its newest checkpoint')
  began = (record.began.get('versions') or {}) if record is not None else {}
  now = versions()
  other = [f'{name} {began[name]}' for name in ('jaxlite', 'jax') if name in began and began[name] != now.get(name)]
  if other:
    lines.append(f'whether it would go the same way today: the run was made by {" and ".join(other)}')
  return lines


def _keep(folder: Path, run: str, found: Diagnosis, say: Say) -> None:
  try:
    write_text(folder / FILE, json.dumps({'run': run, **found.to_json()}, indent=1) + '\n')
  except OSError as error:
    say(f'{folder / FILE} cannot be written ({error.strerror or error}): the diagnosis is only shown')
