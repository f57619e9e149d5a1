"""What lies in a folder of runs, however it was left: finished, under way, killed, damaged, of another version.

Nothing here raises for what a file holds, and nothing is locked or written: a report can be asked for at any time, of
any folder. What could not be read is told in a note of its run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import re
import socket
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jaxlite.config.serialize import FORMAT
from jaxlite.deployment.inventory import Layer
from jaxlite.host.files import parsed_json, read_file
from jaxlite.host.sealed import RUN, unsealed
from jaxlite.report.points import Points
from jaxlite.report.result import Result

FINISHED, UNDER_WAY, STOPPED, EMPTY = 'finished', 'under way', 'stopped before its end', 'not begun'
MARKS = ('config.json', 'result.json', 'metrics.jsonl')
_OURS = ('checkpoints', 'tensorboard', 'deployed')  # within a run: no runs in there
_DEEP, _FOLDERS, _MOST = 4, 20_000, 400
_HASHES = re.compile(r'[#@][0-9a-f]+')  # of captured arrays, in step.txt
_LARGEST = 1 << 28  # bytes of a JSON file that is read


class Run(NamedTuple):
  """A run as its folder shows it.

  Attributes:
    name: its own, or the folder's; unique in a page.
    folder: its path relative to the page's folder, with '/'; '' for the page's own.
    state: one of FINISHED, UNDER_WAY, STOPPED, EMPTY.
    points: of its metrics.
    result: what it handed back; of one that is not finished, only what is known of it.
    config: its config as saved; {} where there is none.
    deployed: what its deployment wrote, as `deployed.json` holds it; {} where there is none.
    diagnosis: as `diagnosis.json` holds it; {} where there is none.
    program: what its step computes, by hash and without values; '' where that is not known.
    notes: lines on what is missing, damaged or of another version.
  """

  name: str
  folder: str
  state: str
  points: Points
  result: Result
  config: Mapping[str, Any] = {}
  deployed: Mapping[str, Any] = {}
  diagnosis: Mapping[str, Any] = {}
  program: str = ''
  notes: tuple[str, ...] = ()


class Found(NamedTuple):
  """The runs in a folder.

  Attributes:
    runs: in the order of their paths.
    notes: lines on what was left out.
  """

  runs: list[Run]
  notes: tuple[str, ...] = ()


def runs_in(root: Path, kept: dict[str, Points] | None = None) -> Found:
  """Returns the runs in a folder: itself, or those below it.

  Args:
    root: an existing folder.
    kept: points that were read before, by a run's path: only what was added is read, and it is kept there.

  Returns:
    Found; no run is no error.
  """
  folders, notes = folders_of_runs(root)
  if len(folders) > _MOST:
    notes.append(f'{len(folders):,} runs lie here; the first {_MOST} by name are shown: name a folder further in')
  return Found(_named([read(folder, root, kept) for folder in folders[:_MOST]]), tuple(notes))


def folders_of_runs(root: Path) -> tuple[list[Path], list[str]]:
  """Returns the folders at and below one that hold a run, run2 before run10, and lines on what was not looked into."""
  notes: list[str] = []
  folders = [folder for folder in _walked(root, notes) if _is_run(folder)]
  return sorted(folders, key=lambda one: _natural(one, root)), notes


def _natural(folder: Path, root: Path) -> list[tuple[int, int, str]]:
  """A path as people sort it: run2 before run10."""
  parts, number = [], ''
  for letter in [*folder.relative_to(root).as_posix(), '']:
    if letter.isascii() and letter.isdigit() and len(number) < 18:
      number += letter
      continue
    parts += [(0, int(number), '')] if number else []
    number = ''
    parts.append((1, 0, letter))
  return parts


def _is_run(folder: Path) -> bool:
  if any(_is_file(folder / name) for name in MARKS):
    return True
  return (folder / 'checkpoints').is_dir()


def _is_file(path: Path) -> bool:
  with contextlib.suppress(OSError):
    return stat.S_ISREG(os.lstat(path).st_mode)
  return False


def _walked(root: Path, notes: list[str]) -> Iterator[Path]:
  """The folders at and below one, links left alone."""
  count, stack = 0, [(root, 0)]
  while stack:
    folder, depth = stack.pop()
    count += 1
    if count > _FOLDERS:
      notes.append(f'only the first {_FOLDERS:,} folders were looked into: name a folder further in')
      return
    yield folder
    if depth == _DEEP:
      continue
    inside = _is_run(folder)
    try:
      with os.scandir(folder) as entries:
        below = sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
    except OSError as error:
      notes.append(f'{folder} cannot be read ({error.strerror or error})')
      continue
    stack += [
      (folder / name, depth + 1)
      for name in reversed(below)
      if not name.startswith('.') and not (inside and name in _OURS)
    ]


def _named(runs: list[Run]) -> list[Run]:
  """Runs whose names tell them apart: of those of one name, the path."""
  names = [run.name for run in runs]
  made: list[Run] = []
  for run in runs:
    name = run.name if names.count(run.name) == 1 or not run.folder else run.folder
    made.append(run._replace(name=name, result=dataclasses.replace(run.result, name=name)))
  return made


def read(folder: Path, root: Path, kept: dict[str, Points] | None = None, *, without_points: bool = False) -> Run:
  """Returns what a run's folder shows.

  Args:
    folder: of the run.
    root: the page's.
    kept: as for `runs_in`.
    without_points: leaves its metrics unread.
  """
  where = folder.relative_to(root).as_posix()
  where = '' if where == '.' else where
  notes: list[str] = []
  plain = _object(folder / 'result.json', notes, sealed=True)
  saved = _object(folder / 'config.json', notes)
  config = saved['config'] if isinstance(saved.get('config'), dict) else {}
  if saved and not config:
    notes.append('config.json has another shape than this version writes: it is not shown')
  elif config and saved.get('format', FORMAT) != FORMAT:
    notes.append(f'config.json is of another version of jaxlite (format {saved["format"]!r}): it is shown as it stands')
  if plain and saved and plain.get(RUN, '') != saved.get(RUN, '') and saved.get(RUN):
    notes.append('result.json is of another run than config.json: its numbers are not shown')
    plain = {}
  result = _result(plain, notes) if plain else Result('', {})
  points = Points() if without_points else _points(folder, where, kept, notes)
  name = result.name or (config.get('name') if isinstance(config.get('name'), str) else '') or folder.resolve().name
  state = _state(folder, bool(plain), points)
  deployed = _object(folder / 'deployed' / 'deployed.json', notes)
  judged = _object(folder / 'diagnosis.json', notes)
  if judged and judged.get(RUN, '') not in ('', saved.get(RUN, '')):
    notes.append('diagnosis.json is of another run than config.json: it is not shown')
    judged = {}
  result.name = str(name)[:200] or 'run'
  return Run(result.name, where, state, points, result, config, deployed, judged, _program(folder), tuple(notes))


def _program(folder: Path) -> str:
  """The step of `run.identity`, values by hash left out: those of a teacher or of data differ from seed to seed."""
  try:
    text = read_file(folder / 'step.txt').decode()
  except (OSError, ValueError):
    return ''
  step = text.split('\n== ')[0]
  return hashlib.sha256(_HASHES.sub('_', step).encode()).hexdigest()


def _state(folder: Path, finished: bool, points: Points) -> str:
  if alive(folder):
    return UNDER_WAY
  if finished:
    return FINISHED
  return STOPPED if points.count or (folder / 'checkpoints').is_dir() else EMPTY


def alive(folder: Path) -> bool:
  """Tells whether a process is at work in a run's folder, by what its lock file says: nothing is locked to see it.

  A process of another machine is believed.
  """
  try:
    holder = parsed_json(read_file(folder / '.lock')[: 1 << 16])
    here = holder['host'] == socket.gethostname()
    pid = int(holder['pid'])
    if not isinstance(holder['host'], str) or not holder['host'] or pid <= 0:
      return False
  except (OSError, ValueError, TypeError, KeyError, OverflowError):
    return False
  if not here or os.name == 'nt':  # os.kill on Windows kills
    return True
  try:
    os.kill(pid, 0)
  except (ProcessLookupError, OverflowError):
    return False
  except PermissionError:
    return True
  return True


def _points(folder: Path, where: str, kept: dict[str, Points] | None, notes: list[str]) -> Points:
  points = Points() if kept is None else kept.setdefault(where, Points())
  try:
    points.follow(folder / 'metrics.jsonl')
  except FileNotFoundError:
    notes.append('metrics.jsonl is missing: there are no curves')
    points = Points()
  except OSError as error:
    notes.append(f'metrics.jsonl cannot be read ({error.strerror or error})')
  if points.damaged:
    lines = 'line' if points.damaged == 1 else 'lines'
    notes.append(f'{points.damaged:,} {lines} of metrics.jsonl are damaged and left out')
  return points


def _object(path: Path, notes: list[str], *, sealed: bool = False) -> dict[str, Any]:
  """What a JSON file holds; {} where it is missing, and a note where it is damaged."""
  try:
    found = os.lstat(path)
  except OSError:
    return {}
  try:
    if not stat.S_ISREG(found.st_mode) or found.st_size > _LARGEST:
      raise ValueError('it is no plain file, or far too large')
    data = read_file(path)
    plain = unsealed(data) if sealed else parsed_json(data)
    if not isinstance(plain, dict):
      raise ValueError('it holds no table of names')
  except (OSError, ValueError) as error:
    notes.append(f'{path.name} is damaged ({str(error)[:120]}): what it says is not shown')
    return {}
  return plain


def _result(plain: dict[str, Any], notes: list[str]) -> Result:
  """A Result of what of it is as this version writes it; what is not is told."""
  made, other = Result('', {}), []
  known = {field.name: field for field in dataclasses.fields(Result)}
  for name, value in plain.items():
    if name == RUN:
      continue
    if name not in known:
      other.append(name)
    else:
      try:
        setattr(made, name, _SHAPES.get(name, _like(getattr(made, name)))(value))
      except (TypeError, ValueError, KeyError, AttributeError, OverflowError):
        other.append(name)
  if other:
    notes.append(
      f'result.json was written by another version of jaxlite: {", ".join(sorted(map(str, other)))[:200]} of it is not '
      'shown'
    )
  made.metrics = {str(name): value for name, value in made.metrics.items()}
  return made


def _like(default: Any) -> Callable[[Any], Any]:
  kind = type(default)

  def fits(value: Any) -> Any:
    if kind is float and type(value) is int:
      return float(value)
    if type(value) is not kind:
      raise TypeError
    return value

  return fits


def _texts(value: Any) -> list[str]:
  if not isinstance(value, list):
    raise TypeError
  return [str(one) for one in value]


def _rows(value: Any) -> list[list[str]]:
  if not isinstance(value, list):
    raise TypeError
  return [_texts(row) for row in value if row]


def _forms(value: Any) -> list[list[str]]:
  rows = [row for row in _rows(value) if len(row) == 3]
  for _, _, form in rows:
    if form != 'percent':
      form.format(0.5)
      if len(form) > 12:  # a width of a million columns is a format too
        raise ValueError
  return rows


def _layer(value: Any) -> Layer:
  layer = Layer(**{name: value[name] for name in Layer._fields if name in value})
  for number in (layer.size, layer.nonzero, layer.bits, layer.scales):
    if type(number) is not int or not 0 <= number < 2**62:
      raise ValueError
  return layer._replace(path=str(layer.path), weight=bool(layer.weight))


def _list_of(fits: Callable[[Any], Any]) -> Callable[[Any], Any]:
  def each(value: Any) -> Any:
    if not isinstance(value, list):
      raise TypeError
    return [fits(one) for one in value]

  return each


def _numbers(value: Any) -> dict[str, float]:
  return {str(name): float(one) for name, one in value.items()}


def _facts(value: Any) -> dict[str, str]:
  return {str(name): str(one) for name, one in value.items()}


def _forecast(value: Any) -> dict[str, Any]:
  """What is compared later: numbers where numbers are read."""
  found = {}
  for name, keys in (('time', ('low', 'high')), ('memory', ('upper',)), ('memory compiled', ('upper',))):
    if one := value.get(name):
      found[name] = {key: float(one[key]) for key in ('forecast', 'actual', *keys)} | {'basis': str(one['basis'])}
  if target := value.get('target'):
    json.dumps(target)
    found['target'] = {**target, 'target': float(target['target']), 'metric': str(target['metric'])}
    if not isinstance(target['early'], dict | None):
      raise TypeError
  return found


def _mistakes(value: Any) -> list[dict[str, str]]:
  return [{str(name): str(one) for name, one in each.items()} for each in value]


_SHAPES: dict[str, Callable[[Any], Any]] = {
  'name': str,
  'metrics': _numbers,
  'layers': _list_of(_layer),
  'rows': _forms,
  'curve': _texts,
  'tables': _list_of(_rows),
  'figures': _rows,
  'versions': _facts,
  'machine': _facts,
  'notes': _texts,
  'parts': _rows,
  'best_step': lambda value: None if value is None else int(value),
  'falls': lambda value: None if value is None else _texts(value),
  'mistakes': _mistakes,
  'forecast': _forecast,
  'seconds': lambda value: float(value) if math.isfinite(value) else 0.0,
}
