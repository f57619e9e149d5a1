"""The whole page: one `report.html` of a run, of a folder of runs, or of a study, that asks for nothing but itself."""

from __future__ import annotations

import base64
import contextlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxlite.host.files import read_file
from jaxlite.report import charts, sections
from jaxlite.report import verdicts as verdicts_
from jaxlite.report.found import UNDER_WAY, Run
from jaxlite.report.markup import contents, escaped, notes, page, section, table
from jaxlite.report.sections import DETAILED, attempted

_DRAWN = ('confusion', 'confused', 'precision-recall', 'roc', 'predicted', 'labels')  # pictures that stand here as SVG
NO_RUN = 'No run lies in this folder: train one into it, with --workdir, and ask again.'
_LARGEST = 400_000  # bytes of a picture that is taken into the page


class Table(NamedTuple):
  """A table that somebody adds to a page: of a study, say.

  Attributes:
    caption: what it shows.
    cells: rows of text; the first row and the first column name the others.
    notes: lines below it.
    pictures: (file in the page's folder, caption) of PNG pictures below it.
    first: whether it stands above the results: a search chose by validation, and a best by test would contradict it.
  """

  caption: str
  cells: Sequence[Sequence[str]]
  notes: Sequence[str] = ()
  pictures: Sequence[tuple[str, str]] = ()
  first: bool = False


def html(
  runs: Sequence[Run],
  title: str = '',
  *,
  tables: Sequence[Table] = (),
  told: Sequence[str] = (),
  folder: Path | None = None,
) -> str:
  """Returns a page.

  Args:
    runs: to show; none is a page too.
    title: of the page; '' for the names of the runs.
    tables: to add, above or below the results.
    told: lines that the reader should know.
    folder: the page's own, for pictures of the runs' tasks and links to their pages; None for neither.
  """
  title = title or ' / '.join(run.name for run in runs[:4]) + (f' and {len(runs) - 4} more' if len(runs) > 4 else '')
  header, main = body(runs, title, tables=tables, told=told, folder=folder)
  return page(title, header, main)


def body(
  runs: Sequence[Run],
  title: str,
  *,
  tables: Sequence[Table] = (),
  told: Sequence[str] = (),
  folder: Path | None = None,
) -> tuple[str, str]:
  """Returns header and main part of a page, as of `html`."""
  single = len(runs) == 1
  verdicts = [_judged(run) for run in runs]
  chosen = any(one.first for one in tables)

  def added(first: bool) -> list[str]:
    return [
      attempted(one.caption, lambda one=one, place=place: section(
        f'table-{place}', one.caption, notes(one.notes) if first else '', table(one.caption, even(one.cells)),
        '' if first else notes(one.notes), _embedded(one.pictures, folder))
      ) for place, one in enumerate(tables) if one.first == first
    ]  # fmt: skip

  made: list[str] = [
    *added(True),
    attempted('Results', lambda: section(
      'results', 'Results', _none(runs), sections.numbers(runs, with_best=not chosen), sections.unfinished(runs),
      notes(told), _damage(runs), '' if single else verdicts_.side_by_side(runs, verdicts))
    ),
    attempted('Side by side', lambda: section(
      'compared', 'Side by side', sections.comparison(runs), sections.trade(runs))
    ),
    *added(False),
    attempted('Curves', lambda: section('curves', 'Curves', charts.curves(runs))),
  ]  # fmt: skip
  detailed = [run for run in runs if _has_details(run)]
  if len(detailed) <= DETAILED:
    for place, run in enumerate(detailed):
      plain = verdicts[runs.index(run)] if single else {}
      inside = _of_run(run, plain, '' if single else f'-{place}', 2 if single else 3, folder)
      made += [*inside] if single else [section(f'run-{place}', run.name, *inside)]
  made.append(section('pages', 'Pages of the runs', _links(runs, folder)) if not single else '')
  made.append(attempted('Made by', lambda: section('made', 'Made by', sections.made_by(runs))))
  found = re.findall(r'<h2 id="([^"]+)">(.*?)</h2>', '\n'.join(made))
  links = contents([(identity, _plain(name)) for identity, name in found])
  head = attempted('Verdict', lambda: verdicts_.shown(verdicts[0])) if single else ''
  return sections.heading(runs, title, head) + links, '\n'.join(filter(None, made))


def _plain(name: str) -> str:
  from html import unescape

  return unescape(name)


def even(cells: Sequence[Sequence[Any]]) -> list[list[str]]:
  """Returns rows of text of one length."""
  width = max((len(row) for row in cells), default=1)
  return [[*(str(cell) for cell in row), *[''] * (width - len(row))] for row in cells] or [['']]


def _none(runs: Sequence[Run]) -> str:
  return '' if runs else f'<p>{NO_RUN}</p>'


def _damage(runs: Sequence[Run]) -> str:
  return notes(f'{run.name}: {line}' if len(runs) > 1 else line for run in runs for line in run.notes)


def _has_details(run: Run) -> bool:
  result = run.result
  return bool(result.layers or result.tables or result.evidence or result.parts or result.figures or run.deployed)


def _of_run(run: Run, verdict: dict[str, Any], suffix: str, level: int, folder: Path | None) -> list[str]:
  made = []
  for identity, title, make in (
    ('test', 'On the test split', sections.evidence),
    ('worst', 'Worst mistakes', sections.mistakes),
    ('drawn', 'Pictures', lambda run: _pictures(run, folder)),
    ('layers', 'Sparsity and bits by layer', charts.layers),
    ('files', 'Size and latency of the files', sections.deployed),
    ('parts', 'What each part did', sections.parts),
    ('forecast', 'Forecast and actual', sections.expected),
  ):
    made.append(
      attempted(
        f'{title}{suffix}',
        lambda identity=identity, title=title, make=make: section(f'{identity}{suffix}', title, make(run), level=level),
      )
    )
  findings = attempted('Findings', lambda: verdicts_.findings(f'findings{suffix}', verdict, level))
  return [*made, findings]


def _judged(run: Run) -> dict[str, Any]:
  try:
    found = verdicts_.verdict_of(run)
    # What has not ended has not learned all that it will: only what is wrong already is told.
    return found if run.state != UNDER_WAY or found.get('verdict') in ('broken', 'overfitting') else {}
  except Exception as error:  # of records that no run writes
    return {'verdict': 'unknown', 'certainty': f'the records cannot be judged ({type(error).__name__})'}


def _pictures(run: Run, folder: Path | None) -> str:
  """Pictures of a task of somebody's own, which only its own code can draw."""
  pairs = [(pair[0], pair[1]) for pair in run.result.figures if len(pair) == 2]
  own = [pair for pair in pairs if not {Path(pair[0]).stem, Path(pair[0]).stem.split('-')[0]} & set(_DRAWN)]
  return _embedded(own, folder and folder / run.folder)


def _embedded(pictures: Sequence[tuple[str, str]], folder: Path | None) -> str:
  """PNG pictures of a folder, within the page; what is none, too large or not in that folder is left out."""
  made = []
  for file, caption in pictures[:12] if folder is not None else ():
    if folder is None or Path(file).name != file:
      continue
    with contextlib.suppress(OSError):
      path = folder / file
      data = b'' if path.is_symlink() else read_file(path)
      if data.startswith(b'\x89PNG') and len(data) <= _LARGEST:
        told = escaped(caption)
        made.append(
          f'<figure><img alt="{told}" src="data:image/png;base64,{base64.b64encode(data).decode()}" '
          f'style="max-width:100%"><figcaption>{told}.</figcaption></figure>'
        )
  return ''.join(made)


def _links(runs: Sequence[Run], folder: Path | None) -> str:
  items = []
  for run in runs:
    if folder is not None and run.folder and (folder / run.folder / 'report.html').is_file():
      where = '/'.join(_quoted(part) for part in run.folder.split('/'))
      items.append(f'<li><a href="{escaped(where)}/report.html">{escaped(run.name)}</a></li>')
  return f'<ul>{"".join(items)}</ul>' if items else ''


def _quoted(part: str) -> str:
  from urllib.parse import quote

  return './' + quote(part) if ':' in part else quote(part)  # 'a:b' would be a scheme
