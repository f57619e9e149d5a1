"""What trials came to: goals, limits, which trial is best, and which of two goals' trials no other beats in both."""

from __future__ import annotations

import math
import numbers
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jaxlite.errors import ConfigError, nearest
from jaxlite.tuning.ledger import COMPLETE, Trial

# What is told of every finished trial beside its metrics; less of each is better.
SIZES = ('bytes', 'parameters', 'latency')
_UNITS = {'minute': 60.0, 'min': 60.0, 'hour': 3600.0, 'second': 1.0, 'sec': 1.0, 'day': 86_400.0}
_UNITS |= {'s': 1.0, 'm': 60.0, 'h': 3600.0, 'd': 86_400.0}


class Goal(NamedTuple):
  """What is to become better.

  Attributes:
    name: of a validation metric, or one of `SIZES`.
    maximize: whether more is better.
  """

  name: str
  maximize: bool


def limits_of(given: Mapping[str, Any] | str | None) -> dict[str, float]:
  """Returns limits by name, each 'at most': bytes, parameters, and milliseconds of latency.

  Args:
    given: a dict, or its text, 'bytes:20000,latency:2'.

  Raises:
    ConfigError: an unknown name, or no number above 0.

  >>> limits_of('bytes:20000, latency:2')
  {'bytes': 20000.0, 'latency': 2.0}
  """
  if isinstance(given, str):
    pairs = [part.partition(':')[::2] for part in given.split(',') if part.strip()]
    given = {name.strip(): value.strip() for name, value in pairs}
  found = {}
  for name, value in (given or {}).items():
    if name not in SIZES:
      raise ConfigError(f'a limit is of {", ".join(SIZES)}; got {name!r}, nearest: {nearest(str(name), SIZES, 1)}')
    try:
      found[name] = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
      found[name] = math.nan
    if not 0 < found[name] < math.inf:
      raise ConfigError(f"the limit of {name} is a number above 0, such as 'bytes:20000,latency:2'; got {value!r}")
  return found


def seconds_of(budget: Any) -> float | None:
  """Returns a budget of time in seconds; None for none.

  Args:
    budget: text with a unit, '2 hours', '1.5h', '10 minutes', '1 hour 30 minutes'; '' and None for none.

  Raises:
    ConfigError: it is no length of time.

  >>> seconds_of('2 hours'), seconds_of('10 min'), seconds_of('1h 30m'), seconds_of('')
  (7200.0, 600.0, 5400.0, None)
  """
  form = "a budget is a length of time with its unit, such as '2 hours' or '10 minutes'"
  if budget is None or budget == '':
    return None
  if isinstance(budget, numbers.Real):
    raise ConfigError(f'{form}; got {budget!r} without one')
  text = str(budget).strip().lower()
  part = r'([\d.]+(?:e-?\d+)?)\s*([a-z]+)'
  if not re.fullmatch(rf'(?:{part}[\s,]*)+', text):
    raise ConfigError(f'{form}; got {budget!r}')
  total = 0.0
  for amount, unit in re.findall(part, text):
    known = unit if unit in _UNITS else unit.removesuffix('s')
    try:
      total += float(amount) * _UNITS[known]
    except (KeyError, ValueError):
      raise ConfigError(f'{form}; got {budget!r}') from None
  if not 0 < total < math.inf:
    raise ConfigError(f'{form}, above 0; got {budget!r}')
  return total


def values(trial: Trial, goals: Sequence[Goal]) -> tuple[float, ...]:
  """Returns what a trial came to, a number for each goal; () where one is missing or not finite."""
  return values_of(trial.found, goals)


def values_of(found: Mapping[str, Any], goals: Sequence[Goal]) -> tuple[float, ...]:
  """As `values`, of metrics by name."""
  scores = tuple(found.get(goal.name, math.nan) for goal in goals)
  return scores if all(map(math.isfinite, scores)) else ()


def over(trial: Trial, limits: Mapping[str, float]) -> dict[str, float]:
  """Returns by how much a trial is over each limit; at most 0 is within. What was not measured is over by infinity."""
  return {name: trial.found.get(name, math.inf) - limit for name, limit in limits.items()}


def within(trial: Trial, limits: Mapping[str, float]) -> bool:
  """Tells whether a trial keeps all limits."""
  return all(one <= 0 for one in over(trial, limits).values())


def _larger(trial: Trial, goals: Sequence[Goal]) -> tuple[float, ...]:
  return tuple(value if goal.maximize else -value for value, goal in zip(values(trial, goals), goals, strict=True))


def ranked(trials: Sequence[Trial], goals: Sequence[Goal], limits: Mapping[str, float]) -> list[Trial]:
  """Returns trials, the best first: complete ones within the limits by the first goal, then those over them, then what
  was pruned or interrupted by its best so far, and what has no score last."""

  def key(trial: Trial) -> tuple[Any, ...]:
    scored = values(trial, goals[:1])
    first = -_larger(trial, goals[:1])[0] if scored else math.inf
    complete = trial.state == COMPLETE
    return (not scored, not complete, not within(trial, limits) if complete else False, first, trial.place)

  return sorted(trials, key=key)


def best(trials: Sequence[Trial], goals: Sequence[Goal], limits: Mapping[str, float]) -> Trial | None:
  """Returns the best trial: complete and within the limits. Where none is complete, the interrupted or pruned one with
  the best score so far, which can be used too; None where there is none, or where all that are complete are over."""
  order = [trial for trial in ranked(trials, goals, limits) if values(trial, goals[:1])]
  complete = [trial for trial in order if trial.state == COMPLETE]
  if complete:
    return next((trial for trial in complete if within(trial, limits)), None)
  return order[0] if order else None


def front(trials: Sequence[Trial], goals: Sequence[Goal], limits: Mapping[str, float]) -> list[Trial]:
  """Returns the complete trials within the limits that no other beats in one goal without being worse in another.

  Args:
    trials: of a study.
    goals: one or more.
    limits: by name.

  Returns:
    Those, by the first goal, the best first; of equal ones the first.

  >>> def made(number, accuracy, size):
  ...   found = {'accuracy': accuracy, 'bytes': size}
  ...   return Trial(number, number, {}, 'complete', '', '', 0.0, 1, 0, -1, -1, 0.0, found, '')
  >>> trials = [made(0, 0.9, 100), made(1, 0.8, 50), made(2, 0.7, 60)]
  >>> [one.number for one in front(trials, [Goal('accuracy', True), Goal('bytes', False)], {})]
  [0, 1]
  """
  able = [one for one in trials if one.state == COMPLETE and values(one, goals) and within(one, limits)]
  scores = {one.number: _larger(one, goals) for one in able}
  found: list[Trial] = []
  for one in able:
    mine = scores[one.number]
    others = (theirs for theirs in scores.values() if theirs != mine)
    beaten = any(all(b >= a for a, b in zip(mine, theirs, strict=True)) for theirs in others)
    twin = any(scores[other.number] == mine for other in found)
    if not (beaten or twin):
      found.append(one)
  return ranked(found, goals, limits)
