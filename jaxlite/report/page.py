"""The files of a run or of several side by side: `report.md`, the pictures beside it, and `report.html`."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxlite.deployment.inventory import stored_bytes
from jaxlite.host.files import write_text
from jaxlite.report.charts import shown_runs
from jaxlite.report.comparing import compare
from jaxlite.report.found import FINISHED, Run, read
from jaxlite.report.html_page import NO_RUN, Table, even, html
from jaxlite.report.points import Points
from jaxlite.report.result import Result
from jaxlite.report.sections import DETAILED
from jaxlite.report.tables import PACKED, foreseen, listed, markdown, plain, rows
from jaxlite.tasks.figures import lacking
from jaxlite.tasks.tables import percent

PAGE, MARKDOWN = 'report.html', 'report.md'


def write(results: Sequence[Result], directory: str | os.PathLike[str], folders: Sequence[str] = ()) -> Path:
  """Writes report.md and its pictures, and report.html.

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
  folder = Path(directory)
  runs = []
  for result, inside in zip(results, folders or [''] * len(results), strict=True):
    found = read(folder / inside, folder, without_points=True)
    shown = found._replace(name=result.name, folder=inside, state=FINISHED, result=result, notes=())
    runs.append(shown._replace(points=Points.of(result.history)))
  write_text(folder / PAGE, html(runs, folder=folder))
  return write_markdown(runs, folder)


def write_markdown(
  runs: Sequence[Run], folder: Path, title: str = '', tables: Sequence[Table] = (), told: Sequence[str] = ()
) -> Path:
  """Writes report.md and its pictures.

  Args:
    runs: to show, in order.
    folder: of the page.
    title: of it; '' for the names of the runs.
    tables: to add.
    told: lines that the reader should know.

  Returns:
    Its path.
  """
  results = [run.result for run in runs if run.state == FINISHED]
  text = [f'# {plain(title or " / ".join(run.name for run in runs))}', *([] if runs else [NO_RUN])]
  if results:
    text += [markdown(rows(results)), f'`bytes packed`: {PACKED}.']
    text += [f'- {plain(result.name)}: {plain(note)}' for result in results for note in result.notes]
  left = [run for run in runs if run.state != FINISHED]
  if left:
    text.append(markdown([['run', 'state', 'step'], *([run.name, run.state, f'{run.points.step:,}'] for run in left)]))
  text += [f'- {line}' for line in told]
  text += [f'- {plain(run.name)}: {plain(line)}' for run in runs for line in run.notes]
  compared = compare(runs) if len(results) > 1 else None
  for caption, cells in compared.tables if compared else ():
    text += [f'{caption}:', markdown(cells)]
  text += [f'- {line}' for line in (compared.notes if compared else ())]
  for one in tables:
    text += [f'## {one.caption}', markdown(even(one.cells)), *(f'- {line}' for line in one.notes)]
  if results:
    text += _pictures([run for run in runs if run.state == FINISHED], folder)
  for result in results if len(results) <= DETAILED else ():
    text += _details(result)
  made = _provenance(results)
  text += ['## Made by', *made] if made else []
  path = folder / MARKDOWN
  whole = '\n\n'.join(text) + '\n'
  write_text(path, whole.encode('utf-8', 'replace').decode())  # a name may hold half a surrogate
  return path


def _pictures(runs: Sequence[Run], folder: Path) -> list[str]:
  if why := lacking():
    return [f'No pictures stand here: {why}. [{PAGE}]({PAGE}) draws its own.']
  from jaxlite.report import figures

  text, results = [], [run.result for run in runs]
  colored = [runs[index] for index in shown_runs(runs)]

  def picture(figure: Any, file: str, caption: str) -> None:
    if figure is not None:
      figures.save(figure, folder / file)
      text.append(f'![{caption}]({file})\n\n{caption}.')

  tested = {result.name: result.best_step for result in results}
  curve = next((result.curve for result in results if result.curve), None)
  curves = figures.curves({run.result.name: run.points for run in colored}, tested, curve)
  best = f' of the {len(colored)} best of {len(runs)} runs' if len(colored) < len(runs) else ''
  picture(curves, 'curves.png', f'Learning curves{best}; the training loss includes what the recipe adds to it')
  for run in runs if len(runs) <= DETAILED else ():
    for file, caption in run.result.figures:
      inside = f'{run.folder}/{file}' if run.folder else file
      text.append(f'![{caption}]({inside})\n\n{caption}.')
  layers = {run.name: [layer for layer in run.result.layers if layer.weight] for run in colored}
  picture(figures.sparsity(layers), 'sparsity.png', 'Weights that are left, layer by layer')
  return text


def _slug(name: str) -> str:
  return re.sub(r'[^\w.-]+', '-', name).strip('-.') or 'run'


def _details(result: Result) -> list[str]:
  text = [f'## {plain(result.name)}']
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
    text.append(markdown([['', 'forecast', 'bounds', 'actual', 'told from'], *foreseen(result.forecast)]))
  return text if len(text) > 1 else []


def _provenance(results: Sequence[Result]) -> list[str]:
  """Command, versions and machine: once where all runs share them."""
  text = []
  for title, facts in (
    ('Command', [result.command for result in results]),
    ('Versions', [listed(result.versions) for result in results]),
    ('Machine', [listed(result.machine) for result in results]),
  ):
    shared = len(set(facts)) == 1
    for result, fact in list(zip(results, facts, strict=True))[: 1 if shared else None]:
      if fact:
        text.append(f'{title}{"" if shared else f" of {result.name}"}: {f"`{fact}`" if title == "Command" else fact}')
  return text
