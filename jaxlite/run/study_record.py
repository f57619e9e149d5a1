"""What a study was begun as, kept in its database and its folder: it goes on only as the same."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxlite.config.schema import Config
from jaxlite.config.serialize import as_saved, compare, to_dict
from jaxlite.errors import ConfigError
from jaxlite.host.files import read_json, write_text
from jaxlite.run import identity
from jaxlite.run.setup import Setup
from jaxlite.tuning import optuna_study
from jaxlite.tuning.database import StorageError, shown
from jaxlite.tuning.kinds import Choice, Space, as_text
from jaxlite.tuning.ledger import Ledger
from jaxlite.tuning.outcome import Goal

Say = Callable[[str], None]

DESCRIBED, DATABASE = 'study.json', 'study.db'
_FORMAT = 1


def about(base: Config, space: Space, goals: Sequence[Goal], setup: Setup) -> dict[str, Any]:
  """What a study is, as JSON: it goes on only as the same."""
  began = identity.identify(setup).began
  return {
    'format': _FORMAT,
    'config': to_dict(base),
    'space': {name: _plain(kind) for name, kind in space.items()},
    'goals': [list(goal) for goal in goals],
    'began': {name: began[name] for name in ('versions', 'data', 'programs', 'values')},
    'mirror': not optuna_study.lacking(),
  }


def _plain(kind: Any) -> Any:
  if isinstance(kind, Choice):
    return {'choice': [as_text(value) for value in kind.values]}
  return {'low': kind.low, 'high': kind.high, 'log': kind.log, 'step': kind.step}


def remembered(folder: Path) -> dict[str, Any] | None:
  """What the folder says of its study; None where it has none."""
  path = folder / DESCRIBED
  if not path.exists():
    if (folder / 'trials').exists():
      raise StorageError(f'{path} is gone, though a study was begun there: put it back, or start anew with fresh=True')
    return None
  try:
    kept = read_json(path)
    if isinstance(kept['study'], str) and isinstance(kept['storage'], str) and isinstance(kept['begun'], bool):
      return kept
  except (ValueError, KeyError, TypeError, OSError):
    pass
  raise StorageError(f'{path} is damaged: put it back, or start anew with fresh=True')


def remember(folder: Path, kept: Mapping[str, Any]) -> None:
  write_text(folder / DESCRIBED, json.dumps(dict(kept), indent=1) + '\n')


def agree(
  ledger: Ledger,
  folder: Path,
  kept: Mapping[str, Any],
  about: dict[str, Any],
  storage: str,
  base: Config,
  space: Space,
  again: Callable[[Config], Setup],
  setup: Setup,
  say: Say,
) -> None:
  """Begins a study, or makes sure that one goes on as what it was begun as.

  Raises:
    ConfigError: another config, space, goal, data or program.
  """
  way_out = 'take the change back, give another workdir, or start anew with fresh=True'
  with ledger.locked():
    before = ledger.about()
    if before is None:
      if kept['begun']:
        raise StorageError(
          f'the storage {shown(storage or folder / DATABASE)} knows nothing of the study in {folder}: bring it back or '
          'start anew with fresh=True'
        )
      identity.write(folder, identity.identify(setup))
      ledger.describe(about)
    if not kept['begun']:
      remember(folder, {**kept, 'begun': True})
  if before is None:
    return
  differences = compare(before['config'], base)
  refused = [*differences.refused, *(line for line in differences.allowed if line.startswith('train:'))]
  for name in {**before['space'], **about['space']}:
    if before['space'].get(name) != about['space'].get(name):
      refused.append(f'{name} of the search space: {before["space"].get(name)}, now {about["space"].get(name)}')
  if before['goals'] != about['goals']:
    refused.append(f'goals: {[one[0] for one in before["goals"]]}, now {[one[0] for one in about["goals"]]}')
  if refused:
    raise ConfigError(f'the study in {folder} was begun with others ({"; ".join(refused)}): {way_out}')
  for line in differences.allowed:
    say(f'config: {line}')
  saved = as_saved(before['config'], base)
  if to_dict(saved) != to_dict(base):
    setup = again(saved)
  identity.check(folder, {**before['began'], 'config': before['config']}, identity.identify(setup), say)
