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
from jaxlite.config.serialize import compare, to_dict
from jaxlite.errors import ConfigError
from jaxlite.host.files import write_text
from jaxlite.report import page
from jaxlite.report.result import Result, from_json, to_json
from jaxlite.run.workdir import lock
from jaxlite.tasks.task import Figure

_FORMAT = 1


def settle(folder: Path, config: Config, say: Callable[[str], None]) -> Result | None:
  """Tells whether a folder is this config's, and finished; changes nothing.

  Args:
    folder: exists.
    config: what is to be run there.
    say: is given a line for each difference that is allowed.

  Returns:
    The Result of a run that is already finished; None when there is something to do.

  Raises:
    ConfigError: the folder belongs to a run with another config.
  """
  done = folder / 'result.json'
  if is_begun(folder):  # until its first checkpoint a run that failed may be mended and started again
    saved = match(folder, config, say)
    if done.exists() and saved['train'] == to_dict(config)['train']:
      return _read_result(done)
  return None


def begin(folder: Path, config: Config, meaning: dict[str, Any]) -> None:
  """Makes a folder this config's own, and says there what its inputs and outputs mean."""
  _write_meaning(folder, meaning)
  write_text(folder / 'config.json', json.dumps({'format': _FORMAT, 'config': to_dict(config)}, indent=1) + '\n')
  (folder / 'result.json').unlink(missing_ok=True)  # a longer run is not finished any more


def is_begun(folder: Path) -> bool:
  """Tells whether a folder holds a checkpoint."""
  with Checkpoints(folder / 'checkpoints') as saves:
    return saves.latest_step() is not None


def match(folder: Path, config: Config, say: Callable[[str], None]) -> dict[str, Any]:
  """Returns the config that a run began with, as saved; says what differs.

  Raises:
    ConfigError: another config than this one, in a field that may not change.
  """
  saved = _read_config(folder / 'config.json')
  differences = compare(saved, config)
  if differences.refused:
    raise ConfigError(
      f'{folder} holds a run with another config ({"; ".join(differences.refused)}): give another --workdir, '
      'move the old run aside with --fresh, or take the change back'
    )
  for line in differences.allowed:
    say(f'config: {line}')
  return saved


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
    raise ConfigError(f'{path} is missing or damaged: restore it, or move the run aside with --fresh') from None
  raise ConfigError(f'{path} has format {saved["format"]}, this jaxlite reads {_FORMAT}: use a newer jaxlite')


def _read_result(path: Path) -> Result:
  try:
    return from_json(path.read_text())
  except (ValueError, KeyError, TypeError):
    raise ConfigError(f'{path} is damaged: delete it, and the same command tests the run again') from None
