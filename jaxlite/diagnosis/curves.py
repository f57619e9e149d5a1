"""Reading curves: what the points of a run's record say about its course, from numbers alone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np


class Curve(NamedTuple):
  """The points of one measure, in order.

  Attributes:
    steps: float64[k], rising.
    values: float64[k]; NaN and infinity stand where they were met.
  """

  steps: np.ndarray
  values: np.ndarray

  def finite(self) -> Curve:
    """Returns the points that are finite."""
    good = np.isfinite(self.values)
    return Curve(self.steps[good], self.values[good])


def curve(history: Iterable[Mapping[str, Any]], kind: str, *names: str) -> Curve:
  """Returns a measure of 'train' or 'validation' points.

  Args:
    history: points as metrics.jsonl has them.
    kind: of the points.
    *names: of the measure; of several the first that a point has.

  >>> curve([{'kind': 'train', 'step': 5, 'loss': 0.5}], 'train', 'task', 'loss').values.tolist()
  [0.5]
  """
  pairs = []
  for point in history:
    if not isinstance(point, Mapping) or point.get('kind') != kind:
      continue
    value = next((point[name] for name in names if name in point), None)
    step = point.get('step')
    if isinstance(step, int | float) and isinstance(value, int | float):
      pairs.append((float(step), float(value)))
  pairs = sorted(dict(pairs).items())
  return Curve(np.array([step for step, _ in pairs]), np.array([value for _, value in pairs]))


def roughness(values: Sequence[float] | np.ndarray) -> float:
  """Returns how much positive values jump from point to point, trend taken out: a robust deviation of the logarithm.

  >>> roughness([8, 4, 2, 1, 0.5]) < 1e-12, round(roughness([1, 3, 1, 3, 1, 3]), 2)
  (True, 1.33)
  """
  logs = np.log(np.maximum(np.asarray(values, np.float64), 1e-12))
  if len(logs) < 3:
    return math.nan
  bends = logs[2:] - 2 * logs[1:-1] + logs[:-2]
  return float(1.4826 * np.median(np.abs(bends)) / math.sqrt(6))


def late_progress(values: Sequence[float] | np.ndarray) -> float:
  """Returns which share of all that was gained was gained in the last quarter; NaN where nothing was.

  >>> round(late_progress(np.linspace(1, 0, 101)), 2), round(late_progress([1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1]), 2)
  (0.25, 0.0)
  """
  values = np.asarray(values, np.float64)
  if len(values) < 4:
    return math.nan
  quarter = max(1, len(values) // 4)
  gained = values[0] - values[-1]
  before, after = np.median(values[-2 * quarter : -quarter]), np.median(values[-quarter:])
  return float((before - after) / gained) if gained > 0 else math.nan


def rise(values: Sequence[float] | np.ndarray) -> tuple[int, float]:
  """Returns where a loss was smallest, and how far above that it ended, as a share of what was gained until then.

  >>> rise([1.0, 0.5, 0.75])
  (1, 0.5)
  """
  values = np.asarray(values, np.float64)
  best = int(values.argmin())
  gained = values[0] - values[best]
  end = float(np.median(values[-max(1, min(3, len(values) - 1 - best)) :])) if best < len(values) - 1 else values[-1]
  return best, float((end - values[best]) / max(gained, 1e-12)) if end > values[best] else 0.0
