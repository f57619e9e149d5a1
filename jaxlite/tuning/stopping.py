"""Which trials are not worth their time: told at each evaluation from the scores that the others had by then.

Trials are compared at the same share of their run, since a batch size or a length that is searched changes how many
steps one has. Only scores in the ledger count, each trial's once however often it was killed. Scores are larger is
better.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

from jaxlite.errors import ConfigError, nearest
from jaxlite.tuning.ledger import Report

RULES = ('none', 'median', 'halving', 'hyperband')
RUNGS = ('halving', 'hyperband')  # rules that look at a few shares of a run, and let one in three go on at each
_SHARE, _FACTOR = 1 / 9, 3  # of the run, after which halving looks first; how many go on from there: one in three
LAST = _SHARE * _FACTOR  # the last share at which they look
_LEAST = 4  # trials that the median is of
_NEAR = 1e-9


def check(rule: str) -> None:
  """Raises ConfigError where there is no such rule.

  >>> check('median')
  """
  if rule not in RULES:
    near = nearest(str(rule), RULES, 1)
    raise ConfigError(f'trials are stopped early by {", ".join(RULES)}; got {rule!r}, nearest: {near}')


def verdict(rule: str, number: int, place: int, share: float, reports: Sequence[Report], *, sign: int = 1) -> str:
  """Returns why a trial is to be stopped; '' where it goes on.

  Args:
    rule: 'none', 'median', 'halving' or 'hyperband'.
    number: of the trial.
    place: how many trials were made before it.
    share: of its run that is done.
    reports: of all trials, this one's latest among them.
    sign: -1 where scores are told the other way round, since less of them is better.

  References:
    Golovin et al., Google Vizier: A Service for Black-Box Optimization, 2017, https://doi.org/10.1145/3097983.3098043
    Li et al., A System for Massively Parallel Hyperparameter Tuning, 2020, https://arxiv.org/abs/1810.05934
    Li et al., Hyperband: A Novel Bandit-Based Approach to Hyperparameter Optimization, 2018,
    https://jmlr.org/papers/v18/16-558.html

  >>> rows = [Report(number, 1, 0.5, value) for number, value in enumerate([0.9, 0.8, 0.7, 0.6, 0.1])]
  >>> verdict('median', 4, 4, 0.5, rows)
  'at 50 % of its run 0.1 is below 0.75, the median of 4 others'
  """
  if rule == 'none' or not _NEAR < share < 1 - _NEAR:  # at its end nothing is saved, at its start nothing is learned
    return ''
  curves: dict[int, list[Report]] = {}
  for one in reports:
    curves.setdefault(one.number, []).append(one)
  if rule == 'median':
    return _median(number, share, curves, sign)
  rungs = [_SHARE * _FACTOR**power for power in range(4) if _SHARE * _FACTOR**power < 1 - _NEAR]
  if rule == 'hyperband':  # a third of the trials is looked at from the first rung on, a third later, a third never
    rungs = rungs[place % (len(rungs) + 1) :]
  return _halving(number, share, curves, rungs, sign)


def _median(number: int, share: float, curves: Mapping[int, Sequence[Report]], sign: int) -> str:
  own = _best_until(curves[number], share)
  others = [_best_until(curve, share) for other, curve in curves.items() if other != number and _reached(curve, share)]
  if len(others) < _LEAST or own >= statistics.median(others):
    return ''
  middle = sign * statistics.median(others)
  told = f'{sign * own:.4g} is {"below" if sign > 0 else "above"} {middle:.4g}'
  return f'at {100 * share:.0f} % of its run {told}, the median of {len(others)} others'


def _halving(
  number: int, share: float, curves: Mapping[int, Sequence[Report]], rungs: Sequence[float], sign: int
) -> str:
  own = curves[number]
  passed = [rung for rung in rungs if share >= rung - _NEAR]
  if not passed or (len(own) > 1 and own[-2].share >= passed[-1] - _NEAR):  # judged there before
    return ''
  at = [value for curve in curves.values() if (value := _first_from(curve, passed[-1])) is not None]
  mine = _first_from(own, passed[-1])
  assert mine is not None
  better = sum(one > mine for one in at)
  if len(at) < _FACTOR or better < len(at) // _FACTOR:
    return ''
  place = f'number {better + 1} of {len(at)}, and one in {_FACTOR} goes on'
  return f'at {100 * share:.0f} % of its run {sign * mine:.4g} is {place}'


def _reached(curve: Sequence[Report], share: float) -> bool:
  return curve[-1].share >= share - _NEAR


def _best_until(curve: Sequence[Report], share: float) -> float:
  values = [one.value for one in curve if one.share <= share + _NEAR and not math.isnan(one.value)]
  return max(values, default=-math.inf)


def _first_from(curve: Sequence[Report], share: float) -> float | None:
  return next((one.value for one in curve if one.share >= share - _NEAR), None)
