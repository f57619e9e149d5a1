"""What would make a run fit that does not, told from its forecast alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jaxlite.host.limits import Limits
from jaxlite.host.machine import resident
from jaxlite.planning import memory
from jaxlite.planning.edits import DRAWS, OTHER, Edit, edited, edits
from jaxlite.planning.plan import FITS, judged, mib
from jaxlite.run.jobs import job_of
from jaxlite.run.setup import Setup

BEST = 3


def advised(setup: Setup, limits: Limits, again: Callable[..., Any]) -> list[str]:
  """Returns up to three changes that are forecast to fit, those that change no result first.

  Args:
    setup: of the run.
    limits: of this process.
    again: (config) -> the Setup of a changed config.
  """
  found = []
  for edit in sorted(edits(setup.config, job_of(setup)), key=lambda edit: edit.result in (DRAWS, OTHER)):
    need = forecast(setup, edit, limits, again)
    if need is not None:
      found.append(f'{edit.flags} ({edit.result}, {mib(need)})')
    if len(found) == BEST:
      break
  return found


def forecast(setup: Setup, edit: Edit, limits: Limits, again: Callable[..., Any]) -> int | None:
  """Returns the bytes that a changed run is forecast to need where they are within the limit; else None."""
  try:
    changed = again(edited(setup.config, edit.fields))
    verdict = judged(memory.traced(job_of(changed), limits), limits, resident())
  except ValueError:  # what cannot be built is no advice
    return None
  return verdict.upper if verdict is not None and verdict.word == FITS else None
