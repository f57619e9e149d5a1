"""What would make a run fit that does not, told from its forecast alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jaxlite.host.limits import Limits
from jaxlite.host.machine import resident
from jaxlite.planning import memory
from jaxlite.planning.edits import OTHER, Edit, edited, edits, forms
from jaxlite.planning.plan import FITS, TIGHT, Verdict, judged, mib
from jaxlite.run.jobs import job_of
from jaxlite.run.micro_batches import labelled
from jaxlite.run.own_edits import own_edits
from jaxlite.run.setup import Setup, reformed

BEST = 3


def advised(setup: Setup, limits: Limits, again: Callable[..., Any]) -> list[str]:
  """Returns up to three changes that are forecast to fit, those that change no result first, then those that fit best.

  Args:
    setup: of the run.
    limits: of this process.
    again: (config) -> the Setup of a changed config.
  """
  job = job_of(setup)
  others = [edit for edit in edits(setup.config, job) if edit.result == OTHER and not _shorter(edit)]
  changes = [*labelled(setup, forms(setup.config, job)[1:], limits.resident_free), *others, *own_edits(setup, job)]
  found = [(edit, forecast(setup, edit, limits, again)) for edit in changes]
  known = [(edit, verdict) for edit, verdict in found if verdict is not None and verdict.word in (FITS, TIGHT)]
  known.sort(key=lambda pair: (pair[1].word != FITS, pair[0].result == OTHER))
  return [f'{edit.flags} ({edit.result}; {_told(verdict)})' for edit, verdict in known[:BEST]]


def _shorter(edit: Edit) -> bool:
  """Whether a change is of a run's length alone, which takes as much memory."""
  return all(path.startswith('train.') for path in edit.fields)


def _told(verdict: Verdict) -> str:
  return f'{mib(verdict.need)}, at most {mib(verdict.upper)}'


def forecast(setup: Setup, edit: Edit, limits: Limits, again: Callable[..., Any]) -> Verdict | None:
  """Returns how a changed run is forecast to stand to the limit; None where it cannot be built.

  Args:
    setup: of the run as it is.
    edit: the change.
    limits: of this process.
    again: (config) -> the Setup of a changed config.
  """
  config = edited(setup.config, edit.fields)
  try:
    changed = again(config) if edit.result == OTHER else reformed(setup, config)
    return judged(memory.traced(job_of(changed), limits), limits, resident())
  except ValueError:  # what cannot be built is no advice
    return None
