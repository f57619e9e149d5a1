"""A run's folder: its config, whether it is finished, the evidence it leaves, and using what it made.

`config.json` is what the run began with, `result.json` is there once it is done, `program.bin` and `checkpoints/`
are what `load` needs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jaxlite.checkpoint import Checkpoints
from jaxlite.config.schema import Config
from jaxlite.config.serialize import as_saved, compare, to_dict
from jaxlite.errors import ConfigError
from jaxlite.host.files import write_text
from jaxlite.report import page
from jaxlite.report.result import Result, from_json, to_json
from jaxlite.run import identity
from jaxlite.run.identity import Identity
from jaxlite.run.record import Record, recorded
from jaxlite.run.setup import Setup
from jaxlite.run.workdir import lock
from jaxlite.tasks.task import Figure

_FORMAT = 1

Say = Callable[[str], None]


def opened(folder: Path, config: Config, say: Callable[[str], None]) -> Record | None:
  """Tells whether a folder holds a run, and that it is this config's; changes nothing.

  Args:
    folder: exists.
    config: what is to be run there.
    say: is given a line for each difference that is allowed.

  Returns:
    What the run's newest checkpoint remembers. None where there is none: until then a run that failed may be mended
    and started again.

  Raises:
    ConfigError: the folder belongs to a run with another config.
  """
  with Checkpoints(folder / 'checkpoints') as saves:
    if saves.latest_step() is None:
      return None
    record = recorded(saves.loop() or {})
  saved = record.began.get('config') or _read_config(folder / 'config.json')
  record.began['config'] = saved
  differences = compare(saved, config)
  if differences.refused:
    raise ConfigError(
      f'{folder} holds a run with another config ({"; ".join(differences.refused)}): give another workdir, '
      'move the old run aside with fresh=True, or take the change back'
    )
  for line in differences.allowed:
    say(f'config: {line}')
  return record


def verify(setup: Setup, folder: Path, record: Record, again: Callable[[Config], Setup], say: Say) -> Identity:
  """Makes sure that a run's code and data are those that it began with.

  Args:
    setup: of now.
    folder: the run's.
    record: as `opened` gave it.
    again: makes a Setup of another config with the data of `setup`.
    say: is given a line on what may differ and does.

  Returns:
    The Identity of `setup`.

  Raises:
    ConfigError: another program, or other data.
  """
  now = identity.identify(setup)
  if 'programs' not in record.began:
    say('note: this run was begun by an older jaxlite, which kept no text of its program: taken for the code of now')
    return now
  before = as_saved(record.began['config'], setup.config)
  same = to_dict(before) == now.began['config']
  kept = identity.check(folder, record.began, now if same else identity.identify(again(before)), say)
  if not kept and is_finished(folder):
    identity.write(folder, now)
  return now


def reported(folder: Path, config: Config, record: Record, say: Say) -> Result | None:
  """Returns the Result of a run that is finished, which is said; None when there is something to do."""
  if not is_finished(folder) or record.began['config']['train'] != to_dict(config)['train']:
    return None
  result = _read_result(folder / 'result.json')
  say(f'this run is finished: reported from {folder}, nothing is trained (to train anew: fresh=True)')
  return result


def begin(folder: Path, config: Config, began: Identity, meaning: dict[str, Any]) -> None:
  """Makes a folder this config's own, and says there what it runs and what its inputs and outputs mean."""
  _write_meaning(folder, meaning)
  identity.write(folder, began)
  write_text(folder / 'config.json', json.dumps({'format': _FORMAT, 'config': to_dict(config)}, indent=1) + '\n')
  (folder / 'result.json').unlink(missing_ok=True)  # a longer run is not finished any more


def is_finished(folder: Path) -> bool:
  """Tells whether a folder holds the result of a run."""
  return (folder / 'result.json').exists()


def finish(folder: Path, result: Result, figures: Sequence[Figure], meaning: dict[str, Any]) -> None:
  """Writes the report and its pictures, then the mark that the run is done."""
  from jaxlite.report.figures import save  # matplotlib, which nothing else of a run needs

  for figure in figures:
    save(figure.draw(), folder / f'{figure.slug}.png')
  _write_meaning(folder, meaning)
  page.write([result], folder)
  write_text(folder / 'result.json', to_json(result) + '\n')


def set_aside(folder: Path) -> Path | None:
  """Renames a run's folder out of the way.

  Returns:
    The new name; None where there was nothing.

  Raises:
    WorkdirError: another process is at work in it.
  """
  if not folder.exists():
    return None
  with lock(folder):
    number = 1
    while (aside := folder.with_name(f'{folder.name}.old{number}')).exists():
      number += 1
    folder.rename(aside)
  return aside


def _write_meaning(folder: Path, meaning: dict[str, Any]) -> None:
  write_text(folder / 'task.json', json.dumps({'format': _FORMAT, **meaning}, indent=1) + '\n')


def _read_config(path: Path) -> dict[str, Any]:
  try:
    saved = json.loads(path.read_text())
    if saved['format'] == _FORMAT:
      return saved['config']
  except (ValueError, KeyError, TypeError, OSError):
    raise ConfigError(f'{path} is missing or damaged: restore it, or move the run aside with fresh=True') from None
  raise ConfigError(f'{path} has format {saved["format"]}, this jaxlite reads {_FORMAT}: use a newer jaxlite')


def _read_result(path: Path) -> Result:
  try:
    return from_json(path.read_text())
  except (ValueError, KeyError, TypeError):
    raise ConfigError(f'{path} is damaged: delete it, and the same command tests the run again') from None
