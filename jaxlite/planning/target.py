"""When a run will reach a target, from its learning curve so far and from curves of earlier runs.

A learning curve is taken to approach a level: a + b shape(step), where the shape falls as a power, an exponential, a
stretched one, or between. Each shape of a grid is fitted by Bayesian linear regression in closed form; shapes count by
how well they explain the curve, and by how well they explained earlier ones. From this mixture futures are drawn, each
with the noise that evaluations have; in each the target is reached at some step, or not within the run.

References:
  Domhan, Springenberg, Hutter, Speeding up Automatic Hyperparameter Optimization of Deep Neural Networks by
  Extrapolation of Learning Curves, 2015, https://www.ijcai.org/Proceedings/15/Papers/487.pdf
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

LEAST = 4  # points, below which nothing is said
_FUTURES = 1_000
_AHEAD = 400  # points of a future at most
_TRUST = 0.5  # how much of the weight of a shape is its share among earlier curves
_NOISE = 0.02  # of the curve's range so far: what an evaluation is believed to vary by before it was seen
_WIDE = 25.0  # how far level and gain may lie from what was seen, in units of noise


class Reach(NamedTuple):
  """When a metric is expected at a target.

  Attributes:
    step: the middle of all futures; infinite where more than half of them do not reach it within the run.
    low, high: of 80 of 100 futures; infinite likewise.
    share: of the futures that reach it within the run, from 0 to 1.
    now: it has been reached already, at `step`.
  """

  step: float
  low: float
  high: float
  share: float
  now: bool = False

  def __str__(self) -> str:
    """In words.

    >>> print(Reach(120.0, 90.0, math.inf, 0.8))
    at step 120 (80 of 100: 90 to beyond the run); not reached within the run: 20 of 100
    """
    if self.now:
      return f'reached at step {self.step:.0f}'
    ends = [f'{end:.0f}' if math.isfinite(end) else 'beyond the run' for end in (self.low, self.high)]
    never = '' if self.share > 0.995 else f'; not reached within the run: {100 * (1 - self.share):.0f} of 100'
    if not math.isfinite(self.step):
      return f'probably not within the run{never}'
    return f'at step {self.step:.0f} (80 of 100: {ends[0]} to {ends[1]}){never}'


Curve = tuple[Sequence[float], Sequence[float]]


def reach(
  steps: Sequence[float],
  values: Sequence[float],
  target: float,
  total: float,
  *,
  better: int = 1,
  limit: float = math.inf,
  earlier: Sequence[Curve] = (),
  seed: int = 0,
) -> Reach | None:
  """Returns when a metric will reach a target.

  Args:
    steps: at which it was measured, rising, float[n].
    values: what was measured, float[n]; those that are not finite are left out.
    target: the value to reach.
    total: steps of the whole run.
    better: 1 where more is better, -1 where less is.
    limit: the best value that there is, such as 1 for an accuracy or 0 for a loss.
    earlier: (steps, values) of finished runs of the same kind, in the same metric.
    seed: of the futures.

  Returns:
    The Reach; None where fewer than `LEAST` points were measured.

  Raises:
    ValueError: steps do not rise, or are not as many as values; better is neither 1 nor -1; the target is no number.

  >>> steps = list(range(1, 11))
  >>> found = reach(steps, [1 - 0.8 ** one for one in steps], target=0.98, total=50, limit=1.0)
  >>> 14 <= found.step <= 22, found.share > 0.7
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
  if goal > better * limit:
    return Reach(math.inf, math.inf, math.inf, 0.0)
  prior = _prior([_checked(*one, better) for one in earlier])
  ahead = _ahead(at, total)
  if not len(ahead):
    return Reach(math.inf, math.inf, math.inf, 0.0)
  futures = _futures(at, seen, ahead, total, prior, better * limit, np.random.default_rng(seed))
  hit = futures >= goal
  when = np.where(hit.any(1), ahead[hit.argmax(1)], np.inf)
  low, middle, high = (float(np.quantile(when, q, method='inverted_cdf')) for q in (0.1, 0.5, 0.9))
  return Reach(middle, low, high, float(np.isfinite(when).mean()))


def _checked(steps: Sequence[float], values: Sequence[float], better: int) -> tuple[np.ndarray, np.ndarray]:
  at, seen = np.asarray(steps, float), np.asarray(values, float)
  if at.ndim != 1 or at.shape != seen.shape:
    raise ValueError(f'a curve has as many steps as values, each [n]; got {list(at.shape)} and {list(seen.shape)}')
  if better not in (1, -1):
    raise ValueError(f'better is 1 (more is better) or -1 (less is); got {better}')
  if not np.isfinite(at).all() or (np.diff(at) <= 0).any():
    raise ValueError('the steps of a curve rise from one point to the next')
  kept = np.isfinite(seen)
  return at[kept], better * seen[kept]


def _ahead(at: np.ndarray, total: float) -> np.ndarray:
  """The points of evaluation to come, as far apart as those that were."""
  gap = float(np.median(np.diff(at)))
  gap = max(gap, (total - at[-1]) / _AHEAD)
  return np.arange(at[-1] + gap, total + 0.5 * gap, gap)


def _shapes(at: np.ndarray, total: float) -> np.ndarray:
  """The shapes of the grid at these steps, [shapes, n]: each falls towards 0."""
  x = at[None] / total
  found = [
    *(((x + c) / (1 + c)) ** -p for p in (0.15, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0) for c in (0.003, 0.02, 0.08, 0.3)),
    *(np.exp(-((x / t) ** p)) for p in (0.35, 0.6, 1.0, 1.4) for t in np.geomspace(0.01, 3, 12)),
    *(1 / (1 + (x / t) ** p) for p in (0.7, 1.0, 1.5, 2.5) for t in np.geomspace(0.01, 3, 10)),
  ]
  return np.concatenate(found)


class _Fit(NamedTuple):
  """The posterior of every shape: of (level, gain) normal given the noise, of the noise an inverse gamma."""

  log_evidence: np.ndarray  # [shapes]
  mean: np.ndarray  # [shapes, 2]
  factor: np.ndarray  # [shapes, 2, 2], the Cholesky factor of the covariance in units of the noise
  alpha: float
  beta: np.ndarray  # [shapes]


def _fit(shapes: np.ndarray, seen: np.ndarray, weight: np.ndarray) -> _Fit:
  """Args: shapes [k, n], seen [n] in units of its range, weight [n]."""
  scale = shapes[:, :1]
  design = np.stack([np.ones_like(shapes), -shapes / scale], -1)  # [k, n, 2]: level, and the gain from the first point
  before = np.array([seen[-1] + 0.2, 1.2])
  precision = np.eye(2) / _WIDE**2
  weighed = design * weight[:, None]
  after = np.einsum('kni,knj->kij', weighed, design) + precision
  mean = np.linalg.solve(after, (weighed * seen[:, None]).sum(1)[..., None] + (precision @ before)[:, None])[..., 0]
  alpha = 1.0 + weight.sum() / 2
  squares = (weight * seen**2).sum() + before @ precision @ before - np.einsum('ki,kij,kj->k', mean, after, mean)
  beta = _NOISE**2 + np.maximum(squares, 0) / 2
  log_evidence = -0.5 * np.linalg.slogdet(after)[1] - alpha * np.log(beta)
  return _Fit(log_evidence, mean, np.linalg.cholesky(np.linalg.inv(after)), alpha, beta)


def _scaled(at: np.ndarray, seen: np.ndarray) -> tuple[np.ndarray, float, float, np.ndarray]:
  """Values from 0 to about 1, their origin and range, and what each counts: the start says least of the end."""
  low, high = float(np.min(seen)), float(np.max(seen))
  span = high - low or max(abs(high), 1e-12)
  return (seen - low) / span, low, span, np.clip(at / at[-1], 0.05, 1.0) ** 0.5


def _prior(earlier: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray | None:
  """What share of earlier curves each shape explained best; None without any."""
  shares = []
  for at, seen in earlier:
    if len(at) >= 2 * LEAST:
      values, _, _, weight = _scaled(at, seen)
      evidence = _fit(_shapes(at, at[-1]), values, weight).log_evidence / math.sqrt(len(at))
      share = np.exp(evidence - evidence.max())
      shares.append(share / share.sum())
  return np.mean(shares, 0) if shares else None


def _futures(
  at: np.ndarray,
  seen: np.ndarray,
  ahead: np.ndarray,
  total: float,
  prior: np.ndarray | None,
  limit: float,
  rng: np.random.Generator,
) -> np.ndarray:
  """Draws values at the points ahead, [futures, points]."""
  values, low, span, weight = _scaled(at, seen)
  shapes, far = _shapes(at, total), _shapes(ahead, total)
  fit = _fit(shapes, values, weight)
  weights = np.exp(fit.log_evidence - fit.log_evidence.max())
  if prior is not None:
    weights = weights * (_TRUST * prior * len(prior) + 1 - _TRUST)
  kind = rng.choice(len(weights), 4 * _FUTURES, p=weights / weights.sum())
  noise = np.sqrt(fit.beta[kind] / rng.gamma(fit.alpha, size=len(kind)))
  drawn = np.einsum('fij,fj->fi', fit.factor[kind], rng.normal(size=(len(kind), 2))) * noise[:, None] + fit.mean[kind]
  curves = drawn[:, :1] - drawn[:, 1:] * far[kind] / shapes[kind, :1]
  cap = (limit - low) / span
  fine = (drawn[:, 1] > 0) & (drawn[:, 0] <= cap + 3 * noise)  # it learns, and to no more than can be
  kept = np.flatnonzero(fine)[:_FUTURES] if fine.sum() >= 50 else np.arange(_FUTURES)
  curves = np.minimum(curves[kept], cap) + noise[kept, None] * rng.normal(size=(len(kept), len(ahead)))
  return low + span * np.minimum(curves, cap)
