"""When a run will reach a target, from its learning curve so far and from curves of earlier runs.

No one form fits all learning curves, and a form that fits the start best is often wrong at the end. So three simple
readings are averaged, in the logarithm of the step: what is missing to the best value there is falls as a power of the
step; it falls exponentially; it goes as in earlier runs of the same kind, which were faster or slower. The middle of
what is left of the run stands beside them as what one would say without looking. How far such an average is off grows
with how far it looks ahead, by a factor that was measured on real runs: `experiments/bench/forecast_target.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

LEAST = 4  # points, below which nothing is said
# Measured: the standard deviation of log(truth / told) by log(told / now), and what is added to that.
_OFF, _SOON = 0.36, 0.1
_OFF_AT_ALL = 0.6  # likewise of readings that may lie beyond the run: whether it is reached at all
_BEYOND = 3.0  # runs, beyond which readings are all the same
_RECENT = 0.75  # of the points, which laws are read from: the start follows others
# Within how many variances of the best one's squares a law counts as one that fits too, and by how many standard
# deviations what it ends at may lie higher: of 186 targets that real runs reached after 20 or 40 % of their length 4
# were then told to lie beyond (`experiments/bench/forecast_target.py`).
_AS_GOOD, _HIGHER = 10.0, 8.0
_LAWS = (0.25, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0)  # powers of the step; exponentials and its logarithm stand beside them
_SPEEDS = np.geomspace(0.15, 8.0, 49)  # of earlier runs
_SPEED = 1.0  # the standard deviation of log(speed) among runs of a kind


class Reach(NamedTuple):
  """When a metric is expected at a target.

  Attributes:
    step: the middle of the futures that reach it within the run; infinite where hardly any does.
    low, high: of 80 of 100 of these.
    share: of all futures that reach it within the run, from 0 to 1.
    now: it has been reached already, at `step`.
    level: where the curve ends, if by every law that fits it that is short of the target, and no earlier run got there;
      None: it may.
  """

  step: float
  low: float
  high: float
  share: float
  now: bool = False
  level: float | None = None

  def __str__(self) -> str:
    """In words.

    >>> print(Reach(120.0, 90.0, 150.0, 0.8))
    about step 120 (80 of 100: 90 to 150); not reached within the run: 20 of 100
    """
    if self.now:
      return f'reached at step {self.step:.0f}'
    if self.level is not None:
      return f'not expected within the run or after it: the curve levels off near {self.level:.3g}, short of the target'
    never = f'not reached within the run: {100 * (1 - self.share):.0f} of 100'
    if not math.isfinite(self.step):
      return never
    about = f'about step {self.step:.0f} (80 of 100: {self.low:.0f} to {self.high:.0f})'
    return f'{about}; {never}' if self.share >= 0.5 else f'{never}; else {about}'


NEVER = Reach(math.inf, math.inf, math.inf, 0.0)
Curve = tuple[Sequence[float], Sequence[float]]


def reach(
  steps: Sequence[float],
  values: Sequence[float],
  target: float,
  total: float,
  *,
  better: int = 1,
  limit: float | None = None,
  earlier: Sequence[Curve] = (),
) -> Reach | None:
  """Returns when a metric will reach a target.

  Args:
    steps: at which it was measured, rising and above 0, float[n].
    values: what was measured, float[n]; those that are not finite are left out.
    target: the value to reach.
    total: steps of the whole run.
    better: 1 where more is better, -1 where less is.
    limit: the best value that there is, such as 1 for an accuracy or 0 for a loss; None where there is none.
    earlier: (steps, values) of finished runs of the same kind, in the same metric.

  Returns:
    The Reach; None where fewer than `LEAST` points were measured.

  Raises:
    ValueError: steps do not rise, or are not as many as values; better is neither 1 nor -1; the target is no number.

  >>> steps = list(range(1, 11))
  >>> found = reach(steps, [1 - 0.8 ** one for one in steps], target=0.98, total=50, limit=1.0)
  >>> found.low < 18 < found.high, found.share > 0.7
  (True, True)
  """
  at, seen = _checked(steps, values, better)
  if not math.isfinite(target):
    raise ValueError(f'a target is a number; got {target}')
  goal = better * target
  if (reached := np.flatnonzero(seen >= goal)).size:
    first = float(at[reached[0]])
    return Reach(first, first, first, 1.0, True)
  if len(at) < LEAST:
    return None
  best = better * limit if limit is not None else float(goal + 0.5 * (seen.max() - seen.min()) + 1e-12)
  now = float(at[-1])
  if goal > best or now >= total:
    return NEVER
  others = [_checked(*one, better) for one in earlier]
  level = None if any(values.max(initial=-math.inf) >= goal for _, values in others) else _level(at, seen)
  if level is not None and level[1] < goal:
    return NEVER._replace(level=better * level[0])
  readings = [*_straight(at, seen, goal, best)]
  told = [_as_before(at, seen, goal, total, one) for one in others]
  if before := _middle([pair for some in told for pair in some]):
    readings.append(before)
  middle = (now + total) / 2
  logs = [math.log(min(max(one, 1.02 * now), total)) for one in (*readings, middle)]
  told_at = sum(logs) / len(logs)
  wide = _OFF * (told_at - math.log(now) + _SOON)
  share = _share([min(max(one, 1.02 * now), _BEYOND * total) for one in readings], now, total)
  low, at_middle, high = (math.exp(_within(q, told_at, wide, math.log(now), math.log(total))) for q in (0.1, 0.5, 0.9))
  return Reach(at_middle, low, high, share) if share > 0.05 else NEVER._replace(share=share)


def _checked(steps: Sequence[float], values: Sequence[float], better: int) -> tuple[np.ndarray, np.ndarray]:
  at, seen = np.asarray(steps, float), np.asarray(values, float)
  if at.ndim != 1 or at.shape != seen.shape:
    raise ValueError(f'a curve has as many steps as values, each [n]; got {list(at.shape)} and {list(seen.shape)}')
  if better not in (1, -1):
    raise ValueError(f'better is 1 (more is better) or -1 (less is); got {better}')
  if not np.isfinite(at).all() or (np.diff(at) <= 0).any() or (at <= 0).any():
    raise ValueError('the steps of a curve are above 0 and rise from one point to the next')
  kept = np.isfinite(seen)
  return at[kept], better * seen[kept]


def _level(at: np.ndarray, seen: np.ndarray) -> tuple[float, float] | None:
  """Where a curve ends by the law that fits it best, and the highest that it may; None of too few points."""
  start = len(at) // 4
  x, y = at[start:] / at[-1], seen[start:]
  if len(x) < LEAST + 2:
    return None
  laws = [np.exp((x[0] - x) / time) for time in np.geomspace(0.05, 2, 12)] + [x**-power for power in _LAWS]
  found: list[tuple[float, float]] = []
  for law in (*laws, -np.log(x)):
    columns = np.stack([np.ones_like(x), -law], 1)
    (end, gain), *_ = np.linalg.lstsq(columns, y, rcond=None)
    squares = float(((y - columns @ (end, gain)) ** 2).sum())
    if gain <= 0:  # it has stopped, or goes back
      end = max(y.mean(), y[-3:].mean())
    found.append((squares, float(end) if gain <= 0 or len(found) < len(laws) else math.inf))  # a logarithm has no end
  best, end = min(found)
  noise = max(best / (len(x) - 3), 1e-14)
  most = max(level for squares, level in found if squares <= best + _AS_GOOD * noise)
  return end, most + _HIGHER * math.sqrt(noise)


def _straight(at: np.ndarray, seen: np.ndarray, goal: float, best: float) -> list[float]:
  """The steps at which lines reach the goal: of log(what is missing) by log(step), and by step."""
  missing, wanted = np.log(np.maximum(best - seen, 1e-12)), math.log(max(best - goal, 1e-12))
  recent = max(LEAST, int(len(at) * _RECENT))
  found = []
  for x, back in ((np.log(at[-recent:]), math.exp), (at[-recent:], float)):
    slope, level = np.polyfit(x, missing[-recent:], 1)
    when = (wanted - level) / slope if slope < -1e-12 else math.inf
    found.append(back(when) if when < 700 or back is float else math.inf)
  return found


def _as_before(
  at: np.ndarray, seen: np.ndarray, goal: float, total: float, other: tuple[np.ndarray, np.ndarray]
) -> list[tuple[float, float]]:
  """(the step, the logarithm of its weight) for each speed at which another run may have gone through this curve."""
  there, values = other
  if len(there) < LEAST:
    return []
  noise = max(float(np.std(np.diff(seen))) / 1.4, 0.02 * float(np.ptp(seen)), 1e-9)
  weight = np.clip(at / at[-1], 0.1, 1.0)
  best = np.maximum.accumulate(values)
  hit = float(there[int(np.argmax(best >= goal))]) if best[-1] >= goal else math.inf
  found = []
  for speed in _SPEEDS:
    inside = at * speed <= there[-1]
    if inside.sum() < max(LEAST, 0.7 * len(at)):
      continue
    off = (seen - np.interp(at * speed, there, values))[inside]
    squares = float((weight[inside] * off**2).sum() / weight[inside].sum())
    apart = squares / (2 * noise**2) * min(len(at), 6) + 0.5 * (math.log(speed) / _SPEED) ** 2
    found.append((hit / speed if math.isfinite(hit) else 1.2 * total, -apart))
  return found


def _middle(pairs: list[tuple[float, float]]) -> float | None:
  """The weighted median; None of nothing."""
  if not pairs:
    return None
  ordered = sorted(pairs)
  weights = np.exp(np.array([one for _, one in ordered]) - max(one for _, one in ordered))
  passed = np.cumsum(weights) / weights.sum()
  return ordered[min(int(np.searchsorted(passed, 0.5)), len(ordered) - 1)][0]


def _share(readings: list[float], now: float, total: float) -> float:
  """Of all futures, those that reach the goal within the run."""
  told = sum(map(math.log, readings)) / len(readings)
  return _normal((math.log(total) - told) / (_OFF_AT_ALL * (told - math.log(now) + _SOON)))


def _normal(x: float) -> float:
  return 0.5 * math.erfc(-x / math.sqrt(2))


def _within(share: float, middle: float, wide: float, low: float, high: float) -> float:
  """The quantile of a normal that is cut off on both sides."""
  first, last = _normal((low - middle) / wide), _normal((high - middle) / wide)
  wanted, left, right = first + share * (last - first), low, high
  for _ in range(60):
    half = (left + right) / 2
    left, right = (half, right) if _normal((half - middle) / wide) < wanted else (left, half)
  return (left + right) / 2
