"""A run's evidence: tables, figures, pages, and the ledger of what each part did.

`write` makes the page of any folder of runs, `serve` shows it while they are under way, a `Table` is what somebody adds
to it. Pages are plain HTML and SVG, written here: no JAX and no matplotlib is imported for them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what the table below says, for type checkers and editors
  from jaxlite.report.folder_page import write
  from jaxlite.report.html_page import Table
  from jaxlite.report.live import serve
  from jaxlite.report.result import Result

_WHERE = {'folder_page': ('write',), 'html_page': ('Table',), 'live': ('serve',), 'result': ('Result',)}
_MODULE = {name: module for module, names in _WHERE.items() for name in names}
__all__ = ['Result', 'Table', 'serve', 'write']


def __getattr__(name: str) -> Any:
  if name not in _MODULE:
    raise AttributeError(f'jaxlite.report has no {name!r}')
  value = getattr(importlib.import_module(f'jaxlite.report.{_MODULE[name]}'), name)
  globals()[name] = value
  return value


def __dir__() -> list[str]:
  return list(__all__)
