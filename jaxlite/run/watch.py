"""What ends a run early and saved: a signal, or who looks at it from outside (a search: its judgment, its budget).

Whoever watches gives two functions, no more. A run that ends so goes on when it is run again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple


class Halted(Exception):  # noqa: N818 - not an error: the run is saved and goes on when it is started again
  """Whoever watches the run asked it to stop; it did, after saving."""


class Preempted(Exception):  # noqa: N818 - not an error: the run is saved and goes on when it is started again
  """A signal asked the run to leave; it did, after saving."""

  def _render_traceback_(self) -> list[str]:
    """What a notebook shows of it, which asks by this name: where the code was when somebody pressed stop is nothing
    to mend. The cells below still do not run."""
    said = str(self).replace('run the same command', 'run this cell again')
    return [f'{said[:1].upper()}{said[1:]}.']


class Watch(NamedTuple):
  """What a run asks of whoever watches it.

  Attributes:
    heard: (step, steps in all, metrics) is told each evaluation on validation, and returns why the run is to stop
      there; '' where it goes on.
    due: () -> why it is to stop before its next step; ''. Asked often, so it must be quick.
  """

  heard: Callable[[int, int, Mapping[str, float]], str]
  due: Callable[[], str]
