"""What a run's records and measurements say about it: a verdict, its evidence, and one next action.

What belongs here: reading curves, measuring a model on a few batches, looking at data and at a program, and judging
what was found. Nothing here knows a run's folder: `jl.diagnose` and `--mode=diagnose` (in `run/`) open that and hand
values over. A verdict is never surer than its evidence: what was not seen stands under `unknown`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what the table below says, for type checkers and editors
  from jaxlite.diagnosis.judge import diagnose
  from jaxlite.diagnosis.verdict import Action, Diagnosis, Finding, from_json

_WHERE = {'judge': ('diagnose',), 'verdict': ('Action', 'Diagnosis', 'Finding', 'from_json')}
_MODULE = {name: module for module, names in _WHERE.items() for name in names}
__all__ = ['Action', 'Diagnosis', 'Finding', 'diagnose', 'from_json']


def __getattr__(name: str) -> Any:
  if name not in _MODULE:
    raise AttributeError(f'jaxlite.diagnosis has no {name!r}')
  value = getattr(importlib.import_module(f'jaxlite.diagnosis.{_MODULE[name]}'), name)
  globals()[name] = value
  return value


def __dir__() -> list[str]:
  return list(__all__)
