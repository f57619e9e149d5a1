"""The page of a run or of several side by side: `report.md` and the pictures beside it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxlite.deployment.inventory import stored_bytes
from jaxlite.host.files import write_text
from jaxlite.report.result import Result
from jaxlite.report.tables import PACKED, markdown, rows
from jaxlite.tasks.tables import percent


def write(results: Sequence[Result], directory: str | os.PathLike[str], folders: Sequence[str] = ()) -> Path:
  """Writes report.md and its pictures.

  Args:
    results: runs to show side by side, in order.
    directory: an existing folder.
    folders: where each run lies in it, for the pictures that its task drew; none where it is the run's own folder.

  Returns:
    The path of report.md.

  Raises:
    ValueError: no result, or two of one name.
  """
  names = [result.name for result in results]
  if not results or len({_slug(name) for name in names}) < len(names):
    raise ValueError(f'a report shows at least one run, each with a name of its own; got {", ".join(names) or "none"}')
  from jaxlite.report import figures

  folder = Path(directory)
  text = [f'# {" / ".join(names)}', markdown(rows(results)), f'`bytes packed`: {PACKED}.']
  text += [f'- {result.name}: {note}' for result in results for note in result.notes]

  def picture(figure: Any, file: str, caption: str) -> None:
    if figure is not None:
      figures.save(figure, folder / file)
      text.append(f'![{caption}]({file})\n\n{caption}.')

  tested = {result.name: result.best_step for result in results}
  curve = next((result.curve for result in results if result.curve), None)
  curves = figures.curves({result.name: result.history for result in results}, tested, curve)
  picture(curves, 'curves.png', 'Learning curves; the training loss includes what the recipe adds to it')
  for result, inside in zip(results, folders or [''] * len(results), strict=True):
    for file, caption in result.figures:
      text.append(f'![{caption}]({inside}/{file})\n\n{caption}.' if inside else f'![{caption}]({file})\n\n{caption}.')
  layers = {result.name: [layer for layer in result.layers if layer.weight] for result in results}
  picture(figures.sparsity(layers), 'sparsity.png', 'Weights that are left, layer by layer')

  for result in results:
    text += _details(result)
  text += ['## Made by', *_provenance(results)]
  path = folder / 'report.md'
  write_text(path, '\n\n'.join(text) + '\n')
  return path


def _slug(name: str) -> str:
  return re.sub(r'[^\w.-]+', '-', name).strip('-.') or 'run'


def _details(result: Result) -> list[str]:
  text = [f'## {result.name}']
  text += [markdown(table) for table in result.tables]
  if result.layers:
    named = [
      [
        f'`{layer.path}`',
        f'{layer.size:,}',
        f'{layer.nonzero:,}',
        percent(1 - layer.nonzero / max(1, layer.size), 1),
        str(layer.bits),
        f'{stored_bytes(layer.size, layer.nonzero, layer.bits, layer.scales):,}',
      ]
      for layer in result.layers
    ]
    text.append(markdown([['parameters', 'values', 'not zero', 'sparsity', 'bits', 'bytes by a plain count'], *named]))
  if result.parts:
    text.append('### What each part did')
    text.append(markdown([['part', 'when', 'what it touched', 'what it could not'], *result.parts]))
  if result.forecast:
    text.append('### Forecast and actual')
    text.append(markdown([['', 'forecast', 'bounds', 'actual', 'told from'], *_foreseen(result.forecast)]))
  return text if len(text) > 1 else []


def _foreseen(found: Mapping[str, Any]) -> list[list[str]]:
  """What a run was said to need before it began, beside what it took."""
  rows = []
  if time := found.get('time'):
    bounds = f'{time["low"]:,.1f} to {time["high"]:,.1f} (80 %)'
    rows.append(['seconds', f'{time["forecast"]:,.1f}', bounds, f'{time["actual"]:,.1f}', str(time['basis'])])
  for memory in filter(None, (found.get('memory'), found.get('memory compiled'))):
    sizes = {name: f'{memory[name] / 2**20:,.0f}' for name in ('forecast', 'upper', 'actual')}
    bounds = f'at most {sizes["upper"]} (95 %)'
    rows.append(['MiB of memory', sizes['forecast'], bounds, sizes['actual'], str(memory['basis'])])
  if target := found.get('target'):
    early, name = target['early'], f'step of {target["metric"]} {target["target"]:g}'
    told = 'not within the run' if early and early['step'] is None else f'{early["step"]:,.0f}' if early else '-'
    bounds = f'{early["low"]:,.0f} to {early["high"]:,.0f} (80 %)' if early and early['step'] is not None else '-'
    actual = 'not reached' if target['reached'] is None else f'{target["reached"]:,.0f}'
    rows.append([name, told, bounds, actual, f'the curve up to step {early["at"]:,}' if early else '-'])
  return rows


def _provenance(results: Sequence[Result]) -> list[str]:
  """Command, versions and machine: once where all runs share them."""
  text = []
  for title, facts in (
    ('Command', [result.command for result in results]),
    ('Versions', [_listed(result.versions) for result in results]),
    ('Machine', [_listed(result.machine) for result in results]),
  ):
    shared = len(set(facts)) == 1
    for result, fact in list(zip(results, facts, strict=True))[: 1 if shared else None]:
      if fact:
        text.append(f'{title}{"" if shared else f" of {result.name}"}: {f"`{fact}`" if title == "Command" else fact}')
  return text


def _listed(facts: Mapping[str, str]) -> str:
  return ', '.join(f'{name} {value}' for name, value in facts.items())
