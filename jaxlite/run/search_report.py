"""What a study leaves beside its trials: a table for a terminal, Markdown and CSV, pictures, TensorBoard's hparams."""

from __future__ import annotations

import csv
import io
import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxlite.config.fields import settable
from jaxlite.errors import counted
from jaxlite.host.files import write_bytes, write_text
from jaxlite.planning.plan import spoken
from jaxlite.report import folder_page, tables
from jaxlite.run import hparams
from jaxlite.run.search import trial_folder
from jaxlite.tasks import figures as drawing
from jaxlite.tuning import figures, outcome
from jaxlite.tuning.importance import importances
from jaxlite.tuning.kinds import given, written
from jaxlite.tuning.ledger import COMPLETE, DONE, Report, Trial

_SHOWN = 20  # trials of the table on a terminal; the files have all


def cells(found: Any) -> list[list[str]]:
  """Returns the cells of the table, a trial to a row, the best first; the first row names the columns."""
  over = [name for name in found.limits if name not in {goal.name for goal in found.goals}]
  head = ['trial', *(goal.name for goal in found.goals), *over, *found.space, 'state', 'time', 'note']
  rows = [head]
  for trial in outcome.ranked(found.trials, found.goals, found.limits):
    point = [written(given(kind, trial.given[name])) for name, kind in found.space.items()]
    scores = [_number(trial.found.get(name)) for name in (*(goal.name for goal in found.goals), *over)]
    rows.append([str(trial.number), *scores, *point, trial.state, spoken(trial.seconds), _note(found, trial)])
  return rows


def _number(value: Any) -> str:
  if value is None:
    return '-'
  return f'{value:,}' if isinstance(value, int) else f'{value:.4g}'


def _note(found: Any, trial: Trial) -> str:
  notes = []
  if found.best is not None and trial.number == found.best.number:
    notes.append('best' if trial.state == COMPLETE else 'best so far')
  elif len(found.goals) > 1 and trial.number in {one.number for one in found.front}:
    notes.append('on the front')
  if trial.state == COMPLETE:
    notes += [f'over {name}' for name, by in outcome.over(trial, found.limits).items() if by > 0]
  if trial.attempts > 1:
    notes.append(f'{trial.attempts} attempts')
  return ', '.join([*notes, *([trial.why] if trial.why else [])])


def table(found: Any) -> str:
  """Returns the trials side by side for a terminal, and what to do next."""
  rows = cells(found)
  shown = [[cell if len(cell) <= 40 else f'{cell[:39]}…' for cell in row] for row in rows[: _SHOWN + 1]]
  widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
  lines = ['  '.join(f'{cell:>{width}}' for cell, width in zip(row, widths, strict=True)).rstrip() for row in shown]
  if len(rows) > _SHOWN + 1:
    lines.append(f'... and {len(rows) - 1 - _SHOWN} more in {found.folder / "trials.csv"}')
  return '\n'.join([*lines, *summary(found)])


def summary(found: Any) -> list[str]:
  """Returns lines on what was found and how to use it."""
  counts: dict[str, int] = {}
  for trial in found.trials:
    counts[trial.state] = counts.get(trial.state, 0) + 1
  said = ', '.join(f'{number} {state}' for state, number in counts.items()) or 'none'
  lines = [f'{counted(len(found.trials), "trial")} ({said}) in {spoken(found.seconds)}: {found.ended}']
  if found.best is None:
    return [*lines, _none(found)]
  best = found.best
  score = ', '.join(f'{goal.name} {_number(best.found.get(goal.name))}' for goal in found.goals)
  kind = 'the best' if best.state == COMPLETE else f'no trial came to its end; the best so far ({best.state})'
  lines.append(f'{kind} is trial {best.number}, by validation: {score}; {flags(found, best)}')
  test = best.found.get(f'test/{found.goals[0].name}')
  if test is not None:
    lines.append(f'on the test split, which chose nothing: {found.goals[0].name} {_number(test)}')
  folder = trial_folder(found.folder, best.number)
  if folder.is_dir():
    return [*lines, f'jl.load({str(folder)!r}) predicts with it']
  return [*lines, 'it was stopped beside others and is no run of its own: run the same again with a longer budget']


def _none(found: Any) -> str:
  complete = [one for one in found.trials if one.state == COMPLETE]
  if not complete:
    return 'no trial has come to a score yet: run the same again with a longer budget'
  nearest = min(complete, key=lambda one: max(over / found.limits[name] for name, over in _over(found, one).items()))
  kept = ', '.join(f'{name} {_number(nearest.found.get(name))}' for name in found.limits)
  wanted = ', '.join(f'{name} {limit:g}' for name, limit in found.limits.items())
  return f'no trial keeps the limits ({wanted}); the nearest is trial {nearest.number} with {kept}'


def _over(found: Any, trial: Trial) -> Mapping[str, float]:
  return outcome.over(trial, found.limits)


def flags(found: Any, trial: Trial) -> str:
  """Returns a trial's point as flags of the launcher; what no flag sets is named."""
  parts = []
  for name, kind in found.space.items():
    value = given(kind, trial.given[name])
    plain = value is None or isinstance(value, bool | int | float | str | tuple)
    flag = shlex.quote(f'--config.{name}={value}')  # a tuple has signs that a shell would read
    parts.append(flag if plain and _is_field(found, name) else f'{name}={written(value)}')
  return ' '.join(parts)


def _is_field(found: Any, name: str) -> bool:
  return name in settable(found.config)


def write(found: Any, reports: Sequence[Report], mirror: Any, command: str) -> None:
  """Writes all of it into the study's folder; each file whole.

  Args:
    found: what the study came to so far, a `Tuned`.
    reports: scores on the way.
    mirror: Optuna's study; None where there is none.
    command: the command line, for the page.
  """
  folder, rows = found.folder, cells(found)
  held = io.StringIO()
  csv.writer(held, lineterminator='\n').writerows(_exact(found))
  write_text(folder / 'trials.csv', held.getvalue())
  missing = drawing.lacking()
  pictures = {} if missing else _pictures(found, reports, mirror)
  told = [f'no pictures were drawn: {missing}'] if missing else []
  for name, (draw, _) in pictures.items():
    _save(draw, folder / f'{name}.png')
  text = [f'# Search: {found.config.name}', '']
  text += [f'- {line}' for line in [*summary(found), *told]]
  text += ['', tables.markdown(rows), '']
  text += [line for name, (_, caption) in pictures.items() for line in (f'![{caption}]({name}.png)', '')]
  if command:
    text += ['```', command, '```', '']
  write_text(folder / 'report.md', '\n'.join(text))
  shown = {
    'caption': 'Trials, the best first',
    'cells': rows,
    'notes': [*summary(found), *told, *([command] if command else [])],
  }
  shown['pictures'] = [[f'{name}.png', caption] for name, (_, caption) in pictures.items()]
  write_text(
    folder / folder_page.ADDED, json.dumps({'title': f'Search: {found.config.name}', 'tables': [shown]}) + '\n'
  )
  hparams.write(found)


def _exact(found: Any) -> list[list[Any]]:
  """The rows of the CSV: every number to its last digit."""
  names = list(dict.fromkeys(name for trial in found.trials for name in trial.found))
  rows: list[list[Any]] = [['trial', 'state', *found.space, *names, 'seconds', 'attempts', 'why']]
  for trial in found.trials:
    point = [given(kind, trial.given[name]) for name, kind in found.space.items()]
    shown = [value if isinstance(value, bool | int | float | str) else written(value) for value in point]
    scores = [trial.found.get(name, '') for name in names]
    rows.append([trial.number, trial.state, *shown, *scores, trial.seconds, trial.attempts, trial.why])
  return rows


def _pictures(found: Any, reports: Sequence[Report], mirror: Any) -> dict[str, tuple[Any, str]]:
  """What is drawn, by file: a function that draws it, and what it shows."""
  scored = [one for one in found.trials if one.state in DONE and outcome.values(one, found.goals[:1])]
  if not scored:
    return {}
  goal = found.goals[0]
  made: dict[str, tuple[Any, str]] = {
    'history': (lambda: figures.history(found.trials, reports, goal, found.config.name), 'scores as trials went'),
    'parallel': (
      lambda: figures.parallel(scored, goal, found.space, found.config.name),
      'each trial a line through its values',
    ),
  }
  shares = importances(scored, [one.found[goal.name] for one in scored], found.space)
  complete = [one for one in scored if one.state == COMPLETE]
  how = 'the share of ranks that each field alone accounts for'
  if mirror is not None and len(complete) >= 8 and (theirs := mirror.importances()):
    shares, how = theirs, 'by PED-ANOVA: what tells the best trials from the others'
  if shares:
    made['importance'] = (lambda: figures.importance(shares, goal, how, found.config.name), 'which fields matter')
  if len(found.goals) > 1:
    whole = [one for one in complete if outcome.values(one, found.goals)]
    if whole:
      front = found.front
      made['pareto'] = (lambda: figures.pareto(whole, front, found.goals[:2], found.config.name), 'what no other beats')
  return made


def _save(draw: Any, path: Path) -> None:
  held = io.BytesIO()
  draw().savefig(held, format='png', dpi=110)
  write_bytes(path, held.getvalue())
