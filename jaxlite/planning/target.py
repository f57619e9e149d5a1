"""When a run will reach a target, from its learning curve so far."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Reach(NamedTuple):
  """When a metric is expected at a target.

  Attributes:
    step: at the middle; infinite where more than half of the futures do not reach it within the run.
    low, high: of 80 of 100 futures.
    share: of the futures that reach it within the run, from 0 to 1.
  """

  step: float
  low: float
  high: float
  share: float


def reach(
  steps: Sequence[float],
  values: Sequence[float],
  target: float,
  total: float,
  *,
  better: int = 1,
  earlier: Sequence[tuple[Sequence[float], Sequence[float]]] = (),
) -> Reach:
  """Returns when a metric will reach a target (stub)."""
  raise NotImplementedError
