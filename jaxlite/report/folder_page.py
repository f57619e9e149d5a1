"""The report of a folder that is asked for: `--mode=report`, of a run in any state, of many, or of a study.

Runs are read, never locked or changed; what is written are `report.html`, `report.md` and its pictures. A folder may
hold a `report.json` beside its runs: tables and pictures that somebody adds, such as the trials of a search
(`run/search_report.py`), whose `report.md` is then left as it is.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxlite.errors import ConfigError
from jaxlite.host.files import expanded, parsed_json, read_file, write_text
from jaxlite.report.found import Run, folders_of_runs, runs_in
from jaxlite.report.html_page import Table, html
from jaxlite.report.page import PAGE, write_markdown
from jaxlite.report.points import Points

ADDED = 'report.json'
_MOST = 50  # tables of a study


def write(
  folder: str | os.PathLike[str],
  out: str | os.PathLike[str] | None = None,
  *,
  title: str = '',
  tables: Sequence[Table] = (),
) -> Path:
  """Writes `report.html` and `report.md` of the runs in a folder, whatever state they are in.

  Args:
    folder: of a run, of an experiment, of a study, or any that holds such; a few levels down are looked into.
    out: the folder of the files, made where it is missing; None for `folder` itself.
    title: of the page; '' for the names of the runs, or the folder's.
    tables: to add, beside those of a `report.json`.

  Returns:
    The path of `report.html`. A folder without runs has a page too, which says so.

  Raises:
    ConfigError: there is no such folder, or the files cannot be written.

  >>> import tempfile
  >>> with tempfile.TemporaryDirectory() as empty:
  ...   'No run lies in this folder' in write(empty).read_text()
  True
  """
  root = opened(folder)
  target = root if out is None else expanded(out)
  runs, title, tables, told = gathered(root, title, tables)
  try:
    target.mkdir(parents=True, exist_ok=True)
    path = target / PAGE
    write_text(path, html(runs, title, tables=tables, told=told, folder=root if target == root else None))
    if target != root or not (root / ADDED).is_file():  # a study writes its own report.md
      shown = runs if target == root else [_without_pictures(run) for run in runs]
      write_markdown(shown, target, title, tables, told)
  except OSError as error:
    why = error.strerror or error
    raise ConfigError(f'the report cannot be written to {target} ({why}): name another folder with --out') from error
  return path


def opened(folder: str | os.PathLike[str]) -> Path:
  """Returns a folder's path.

  Raises:
    ConfigError: there is none.
  """
  root = expanded(folder)
  if not root.is_dir():
    what = 'is a file' if root.exists() else 'is not there'
    raise ConfigError(f'a report is of a folder that holds runs, and {root} {what}: name one with --workdir')
  return root.absolute()


def gathered(
  root: Path, title: str = '', tables: Sequence[Table] = (), kept: dict[str, Points] | None = None
) -> tuple[list[Run], str, list[Table], list[str]]:
  """Returns what a page of a folder shows: runs, title, tables, lines to tell.

  Args:
    root: an existing folder.
    title: as of `write`.
    tables: as of `write`.
    kept: points that were read before, as for `found.runs_in`.
  """
  found = runs_in(root, kept)
  told = list(found.notes)
  study, own = _study(root, told)
  single = len(found.runs) == 1
  title = title or own or (found.runs[0].name if single else root.name or 'runs')
  return found.runs, title, [*study, *tables], told


def _study(root: Path, told: list[str]) -> tuple[list[Table], str]:
  """Tables and title of a `report.json`, {"title": "", "tables": [{"caption": "", "cells": [[]], "notes": [],
  "pictures": [["file.png", "caption"]]}]}; the last two may be missing."""
  path = root / ADDED
  try:
    plain: Any = {} if path.is_symlink() or not path.exists() else parsed_json(read_file(path))
    tables = [
      Table(
        str(one['caption']),
        [[str(cell) for cell in row] for row in one['cells']],
        list(map(str, one.get('notes', ()))),
        [(str(file), str(caption)) for file, caption in one.get('pictures', ())],
        first=True,
      )
      for one in plain.get('tables', ())[:_MOST]
    ]
    return tables, str(plain.get('title', ''))
  except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
    told.append(f'{ADDED} is damaged ({type(error).__name__}: {str(error)[:100]}): its tables are not shown')
    return [], ''


def _without_pictures(run: Run) -> Run:
  """A page in another folder than the run's cannot show the pictures that lie there."""
  run.result.figures = []
  return run


def is_empty(folder: str | os.PathLike[str]) -> bool:
  """Tells whether no run lies in a folder, nor in those below that are looked into.

  >>> import tempfile
  >>> is_empty(tempfile.mkdtemp())
  True
  """
  return not folders_of_runs(opened(folder))[0]
