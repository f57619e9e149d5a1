"""What was predicted and what happened on this machine, kept, and what is learned from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple


class Outcome(NamedTuple):
  """One forecast and what came of it.

  Attributes:
    what: the quantity: 'time/step', 'memory/peak', ...
    basis: 'cost' or 'probe', 'traced' or 'compiled'.
    predicted, actual: in its unit (seconds, bytes), above 0.
    features: numbers that a correction may depend on.
    run: the run's own id; '' for none. Of a run and quantity and basis one outcome is kept, the latest.
  """

  what: str
  basis: str
  predicted: float
  actual: float
  features: Mapping[str, float] = {}
  run: str = ''


class Correction(NamedTuple):
  """What forecasts of one quantity are to be multiplied by.

  Attributes:
    factor: the middle.
    spread: the standard deviation of log(actual / corrected), for the interval.
    count: outcomes that it was learned from.
  """

  factor: float
  spread: float
  count: int


def outcomes(folder: Path | None = None) -> tuple[Outcome, ...]:
  """Returns what is kept of this machine (stub)."""
  raise NotImplementedError


def add(found: Sequence[Outcome], folder: Path | None = None) -> None:
  """Keeps outcomes (stub)."""
  raise NotImplementedError


def correction(
  what: str, basis: str, features: Mapping[str, float] | None = None, folder: Path | None = None, spread: float = 0.3
) -> Correction:
  """Returns what was learned of one quantity (stub)."""
  raise NotImplementedError
