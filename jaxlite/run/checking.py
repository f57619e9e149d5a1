"""Forecast and actual of runs that are done: `--mode=plan --check`."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxlite.errors import ConfigError, counted
from jaxlite.host import machine
from jaxlite.host.files import expanded, read_file
from jaxlite.host.sealed import RUN, unsealed
from jaxlite.planning.plan import mib, spoken
from jaxlite.report.result import from_json
from jaxlite.run import foreseen


def table(folder: str | Path) -> str:
  """Returns a table of what the runs in a folder were said to need, and what they took.

  Args:
    folder: that of one run, of an experiment, or any that holds such.

  Raises:
    ConfigError: no finished run lies there.
  """
  root = expanded(folder)
  files = sorted(root.rglob('result.json')) if root.is_dir() else []
  rows, old, others, here = [], 0, 0, machine.machine()
  for file in files:
    try:
      text = read_file(file).decode()
      result = from_json(text)
      forecast = result.forecast
      if _is_of_here(result.machine, here):
        foreseen.learn(forecast, unsealed(text).get(RUN, ''))
      else:
        others += bool(forecast)
    except (ValueError, OSError) as error:
      rows.append([str(file.parent.relative_to(root)), f'damaged: {str(error)[:60]}', *[''] * 6])
      continue
    old += not forecast
    if forecast:
      rows.append([str(file.parent.relative_to(root)), *_cells(forecast)])
  if not rows:
    why = f': {old} have none, of an older version' if old else ''
    raise ConfigError(f'{root} holds no finished run with a forecast{why}')
  head = ['run', 'seconds: forecast', 'actual', 'error', 'memory: forecast', 'at most', 'actual', 'error']
  cells = [head, *rows]
  widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
  lines = ['  '.join(f'{cell:<{width}}' for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
  if others:
    lines.append(f'{counted(others, "run")} of another machine: shown, and nothing is learned from that')
  return '\n'.join([*lines, *_summary(files)])


def _is_of_here(there: Mapping[str, str], here: Mapping[str, str]) -> bool:
  """Whether a run was on this machine; one that does not say is taken to be."""
  return all(there.get(name, here.get(name)) == here.get(name) for name in ('processor', 'cores', 'devices'))


def _cells(found: dict[str, Any]) -> list[str]:
  time, memory = found.get('time'), found.get('memory')
  cells = ['-', '-', '-']
  if time:
    bounds = f'{spoken(time["forecast"])} ({spoken(time["low"])} to {spoken(time["high"])})'
    cells = [bounds, spoken(time['actual']), _error(time)]
  if memory:
    upper = mib(memory['upper']) + (' passed' if memory['actual'] > memory['upper'] else '')
    return [*cells, mib(memory['forecast']), upper, mib(memory['actual']), _error(memory)]
  return [*cells, '-', '-', '-', '-']


def _error(one: dict[str, Any]) -> str:
  return f'{100 * (one["forecast"] / one["actual"] - 1):+.0f} %' if one['actual'] else '-'


def _summary(files: list[Path]) -> list[str]:
  lines = []
  every = []
  for file in files:
    try:
      every.append(from_json(read_file(file).decode()).forecast)
    except (ValueError, OSError):
      continue
  for what, holds, share in (
    ('time', lambda one: one['low'] <= one['actual'] <= one['high'], 'in the 80 % interval'),
    ('memory', lambda one: one['actual'] <= one['upper'], 'within the 95 % bound'),
  ):
    known = [one[what] for one in every if one.get(what) and one[what]['actual'] > 0]
    if known:
      errors = [abs(math.log(one['forecast'] / one['actual'])) for one in known if one['forecast'] > 0]
      middle = 100 * math.expm1(statistics.median(errors)) if errors else math.nan
      kept = sum(map(holds, known))
      lines.append(f'{what}: median error {middle:.0f} %, {kept} of {len(known)} {share}')
  return lines + _targets([one['target'] for one in every if one.get('target')])


def _targets(found: list[dict[str, Any]]) -> list[str]:
  """How runs with a target came to it, and how right a fifth of the run was about the step."""
  if not found:
    return []
  met = [one for one in found if one['reached'] is not None]
  lines = [f'target: {len(met)} of {len(found)} reached']
  told = [one for one in met if one['early'] and one['early']['step'] is not None]
  if told:
    middle = statistics.median(abs(one['early']['step'] / one['reached'] - 1) for one in told)
    kept = sum(one['early']['low'] <= one['reached'] <= one['early']['high'] for one in told)
    lines[0] += f'; from a fifth of the run median error {middle:.0%}, {kept} of {len(told)} in the 80 % interval'
  return lines
