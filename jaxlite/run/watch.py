"""Who looks at a run from outside and may end it: a search that stops what is not worth its time, or its budget.

Two functions, no more. A run that is ended so is saved like one that a signal stops, and goes on when it is run again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple


class Halted(Exception):  # noqa: N818 - not an error: the run is saved and goes on when it is started again
  """Whoever watches the run asked it to stop; it did, after saving."""


class Watch(NamedTuple):
  """What a run asks of whoever watches it.

  Attributes:
    heard: (step, steps in all, metrics) is told each evaluation on validation, and returns why the run is to stop
      there; '' where it goes on.
    due: () -> why it is to stop before its next step; ''. Asked often, so it must be quick.
  """

  heard: Callable[[int, int, Mapping[str, float]], str]
  due: Callable[[], str]
