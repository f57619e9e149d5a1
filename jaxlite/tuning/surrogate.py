"""Which point comes next, by a Gaussian process: a smooth guess of the score between the points that were tried.

Where a trial costs minutes there are few, and the guess has to be good after five of them: so it says how sure it is,
and how much of a score is noise. What is tried next is where the best so far is expected to be beaten by most. NumPy
alone; a point is a function of the seed and of what came before, as all are here.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxlite.tuning import outcome
from jaxlite.tuning.kinds import Choice, Kind, Space, at, share, size
from jaxlite.tuning.ledger import COMPLETE, DONE, PRUNED, Report, Trial
from jaxlite.tuning.outcome import Goal
from jaxlite.tuning.sampling import next_at_random, spread

_SPREAD = (5, 10)  # points that fill the space evenly before any is suggested: two more than fields, within these
_MOST = 150  # trials that the guess is made from: the best half, and the latest
_SETTINGS, _CLOSER = 200, 100  # of the process that are tried, and again near the best of them
_LENGTH, _NOISE, _WIDE = 0.5, 0.1, (0.7, 1.0)  # where these are looked for: the middle, and by how many powers of e
_JITTER, _TOGETHER = 1e-6, 2_000_000  # keeps a kernel invertible; numbers of kernels that are made at once
_OTHER = 0.5  # how far apart two choices are
_FAR = 1e6  # times its limit: what was not measured is over it by that
_ANYWHERE, _NEAR, _APART = 1500, 200, 0.08  # candidates: in the whole space, near each of the three best, how near


def next_by_surrogate(
  space: Space, seed: int, past: Sequence[Trial], reports: Sequence[Report], goal: Goal, limits: Mapping[str, float]
) -> dict[str, Any] | None:
  """Returns the next point, none twice; None where a finite space is used up.

  Args:
    space: its choices and ranges.
    seed: of the study.
    past: trials so far; of those under way the guess itself is believed, so that workers do not crowd together.
    reports: scores on the way, larger is better: what was stopped early is judged by what others gained from there on.
    goal: what is to become better.
    limits: at most, by name: what is over one counts as the worst.

  References:
    Snoek et al., Practical Bayesian Optimization of Machine Learning Algorithms, 2012,
    https://arxiv.org/abs/1206.2944

  >>> from jaxlite.tuning.kinds import uniform
  >>> next_by_surrogate({'x': uniform(0.0, 1.0)}, 0, [], [], Goal('accuracy', True), {}).keys()
  dict_keys(['x'])
  """
  tried = {tuple(one.given[name] for name in space) for one in past}
  if len(tried) >= size(space):
    return None
  if len(past) < min(_SPREAD[1], max(_SPREAD[0], len(space) + 2)):
    found = spread(space, seed, len(past))
    return next_at_random(space, seed, past) if tuple(found.values()) in tried else found
  rng = np.random.default_rng([seed, len(past), len(space)])
  scores = scored(past, reports, goal, limits)
  known = _chosen([one for one in past if one.number in scores], scores)
  under_way = [one for one in past if one.number not in scores]
  candidates = _candidates(space, sorted(known, key=lambda one: -scores[one.number])[:3], tried, rng)
  if len(known) < 2 or not candidates:
    return next_at_random(space, seed, past)
  x, y = _features(space, [one.given for one in known]), _leveled([scores[one.number] for one in known])
  process = _fitted(space, x, y, rng)
  if under_way:
    beside = _features(space, [one.given for one in under_way])
    believed = np.concatenate([y, process.at(beside)[0]])
    process = _process(process.lengths, process.noise, process.choices, np.concatenate([x, beside]), believed)
  mean, deviation = process.at(_features(space, candidates))
  return candidates[int(np.argmax(_improvement(mean, deviation, float(process.at(x)[0].max()))))]


def scored(
  past: Sequence[Trial], reports: Sequence[Report], goal: Goal, limits: Mapping[str, float]
) -> dict[int, float]:
  """Returns what the trials that ended are worth, by number; larger is better.

  Args:
    past: trials so far.
    reports: scores on the way, larger is better.
    goal: what is to become better.
    limits: at most, by name.
  """
  curves: dict[int, list[Report]] = {}
  for row in reports:
    if math.isfinite(row.value):
      curves.setdefault(row.number, []).append(row)
  whole = [curves[one.number] for one in past if one.state == COMPLETE and one.number in curves]
  found: dict[int, float] = {}
  over = {one.number: _over(one, limits) for one in past if one.state == COMPLETE}
  for one in past:
    value = outcome.values(one, [goal])
    if one.state in (COMPLETE, PRUNED) and value and math.isfinite(value[0]):
      found[one.number] = value[0] if goal.maximize else -value[0]
    if one.state == PRUNED and one.number in found and one.number in curves:
      until = curves[one.number][-1].share
      gains = [_best(curve, 1.0) - _best(curve, until) for curve in whole if curve[0].share <= until]
      found[one.number] += statistics.median(gains) if gains else 0.0
  bad = {number for number, by in over.items() if by > 0}
  if limits and over and bad == over.keys():
    found, bad = {number: -by for number, by in over.items()}, set()  # what is least over them is the best there is
  bad |= {one.number for one in past if one.state in DONE and one.number not in found}
  worst = min(found.values(), default=0.0)
  return {**found, **dict.fromkeys(bad, worst)}


def _over(trial: Trial, limits: Mapping[str, float]) -> float:
  """By what part of a limit a trial is over it, at the most."""
  shares = (by / max(abs(limits[name]), 1e-12) for name, by in outcome.over(trial, limits).items())
  return min(max(shares, default=0.0), _FAR)


def _best(curve: Sequence[Report], until: float) -> float:
  return max(one.value for one in curve if one.share <= until + 1e-9)


def _chosen(known: list[Trial], scores: Mapping[int, float]) -> list[Trial]:
  """As many as the guess is made from, in their order."""
  if len(known) <= _MOST:
    return known
  best = {one.number for one in sorted(known, key=lambda one: -scores[one.number])[: _MOST // 2]}
  late = [one.number for one in known if one.number not in best][-(_MOST - len(best)) :]
  return [one for one in known if one.number in best or one.number in late]


def _leveled(scores: Sequence[float]) -> np.ndarray:
  """Scores of mean 0 and deviation 1, the bad ones leveled: how bad they are says nothing of where the best lies."""
  y = np.asarray(scores, np.float64)
  y = y / max(float(np.abs(y).max()), 1e-300)  # squares of large ones would overflow
  top, middle = float(y.max()), float(np.median(y))
  y = np.maximum(y, middle - (top - middle))
  y = y - y.mean()
  deviation = float(y.std())
  return y / deviation if deviation > 0 else y


# Points as rows of numbers: where in a range a value lies, which of a choice it is.


def _features(space: Space, points: Sequence[Mapping[str, Any]]) -> np.ndarray:
  """float64[n, fields]."""
  columns = [
    [float(one[name]) if isinstance(kind, Choice) else share(kind, one[name]) for one in points]
    for name, kind in space.items()
  ]
  return np.array(columns, np.float64).T.reshape(len(points), len(space))


def _part(kind: Kind, stored: Any) -> float:
  """Where `kinds.at` gives a value back."""
  if isinstance(kind, Choice):
    return (stored + 0.5) / len(kind.values)
  if kind.step and not kind.log:
    return ((stored - kind.low) // kind.step + 0.5) / ((kind.high - kind.low) // kind.step + 1)
  return share(kind, stored)


def _candidates(
  space: Space, best: Sequence[Trial], tried: set[tuple[Any, ...]], rng: np.random.Generator
) -> list[dict[str, Any]]:
  """Points that were not tried: anywhere, and near the best ones."""
  parts = [rng.random((_ANYWHERE, len(space)))]
  for one in best:
    own = np.array([_part(kind, one.given[name]) for name, kind in space.items()])
    near = own + _APART * rng.normal(size=(_NEAR, len(space)))
    choices = np.array([isinstance(kind, Choice) for kind in space.values()])
    stay = rng.random(near.shape) < 0.8
    parts.append(np.where(choices, np.where(stay, own, rng.random(near.shape)), near))
  rows = np.clip(np.concatenate(parts), 0.0, 1.0 - 1e-12).tolist()
  made = ({name: at(kind, part) for (name, kind), part in zip(space.items(), row, strict=True)} for row in rows)
  return list({key: one for one in made if (key := tuple(one.values())) not in tried}.values())


# The process.


class _Process(NamedTuple):
  """What is believed of the score everywhere.

  Attributes:
    lengths: float64[fields], over what part of a range scores are alike.
    noise: of a score's variance of 1, what is noise.
    choices: bool[fields].
    x, weights, factor: points, and what was made of their scores.
  """

  lengths: np.ndarray
  noise: float
  choices: np.ndarray
  x: np.ndarray
  weights: np.ndarray
  factor: np.ndarray

  def at(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """float64[n] each: the mean and the deviation of the score at points."""
    across = _alike(_apart(x, self.x, self.choices), self.lengths[None])[0]
    inside = np.linalg.solve(self.factor, across.T)
    return across @ self.weights, np.sqrt(np.maximum(1.0 - (inside**2).sum(0), 1e-12))


def _apart(a: np.ndarray, b: np.ndarray, choices: np.ndarray) -> np.ndarray:
  """float64[n, m, fields], squared differences; two choices are as far apart as half of a range, or not at all."""
  apart = a[:, None] - b[None]
  return np.where(choices, _OTHER**2 * (apart != 0), apart**2)


def _alike(apart: np.ndarray, lengths: np.ndarray) -> np.ndarray:
  """float64[settings, n, m], Matern's kernel of 5/2: twice differentiable, no smoother than scores are."""
  n, m, fields = apart.shape
  r = math.sqrt(5) * np.sqrt((1 / lengths**2) @ apart.reshape(n * m, fields).T).reshape(len(lengths), n, m)
  return (1 + r + r * r / 3) * np.exp(-r)


def _evidence(x: np.ndarray, y: np.ndarray, lengths: np.ndarray, noise: np.ndarray, choices: np.ndarray) -> np.ndarray:
  """float64[settings], the logarithm of how likely the scores are, less a constant."""
  apart, found, some = _apart(x, x, choices), [], max(1, _TOGETHER // len(x) ** 2)
  for first in range(0, len(lengths), some):
    own = _alike(apart, lengths[first : first + some]) + (noise[first : first + some, None, None] + _JITTER) * np.eye(
      len(x)
    )
    factor = np.linalg.cholesky(own)
    inside = np.linalg.solve(factor, np.broadcast_to(y[:, None], (len(own), len(y), 1)))[..., 0]
    found.append(-0.5 * (inside**2).sum(1) - np.log(np.diagonal(factor, axis1=1, axis2=2)).sum(1))
  return np.concatenate(found)


def _process(lengths: np.ndarray, noise: float, choices: np.ndarray, x: np.ndarray, y: np.ndarray) -> _Process:
  own = _alike(_apart(x, x, choices), lengths[None])[0] + (noise + _JITTER) * np.eye(len(x))
  factor = np.linalg.cholesky(own)
  return _Process(lengths, noise, choices, x, np.linalg.solve(factor.T, np.linalg.solve(factor, y)), factor)


def _fitted(space: Space, x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> _Process:
  """The process of the likeliest settings, near what is usual."""
  choices = np.array([isinstance(kind, Choice) for kind in space.values()])
  middle = np.array([math.log(_LENGTH * math.sqrt(max(1.0, len(space) / 3)))] * len(space) + [math.log(_NOISE)])
  wide = np.array([_WIDE[0]] * len(space) + [_WIDE[1]])
  best = middle
  for count, around in ((_SETTINGS, 1.0), (_CLOSER, 0.3)):
    logs = np.concatenate([best[None], best + around * wide * rng.normal(size=(count, len(middle)))])
    logs = logs.clip(math.log(1e-3), math.log(1e3))
    usual = -0.5 * (((logs - middle) / wide) ** 2).sum(1)
    likely = _evidence(x, y, np.exp(logs[:, :-1]), np.exp(logs[:, -1]), choices) + usual
    best = logs[int(np.argmax(likely))]
  return _process(np.exp(best[:-1]), float(np.exp(best[-1])), choices, x, y)


def _improvement(mean: np.ndarray, deviation: np.ndarray, best: float) -> np.ndarray:
  """By how much the best is expected to be beaten."""
  z = (mean - best) / deviation
  below = 0.5 * (1 + np.array([math.erf(one) for one in (z / math.sqrt(2)).tolist()]))
  return deviation * (z * below + np.exp(-z * z / 2) / math.sqrt(2 * math.pi))
