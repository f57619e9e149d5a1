"""Kinds of values: one of some, a real or whole number between two ends, by equal differences or equal ratios.

A value is stored as a plain number: of a choice its place, else the number itself. So it goes into JSON, a database and
Optuna whatever the type of the field, and comes back to the last bit.
"""

from __future__ import annotations

import itertools
import math
import numbers
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxlite.errors import ConfigError, whole


class Choice(NamedTuple):
  """One of some values, of any type; made by `choice`."""

  values: tuple[Any, ...]


class Range(NamedTuple):
  """Numbers between two ends; made by `uniform`, `log_uniform` and `integer`.

  Attributes:
    low, high: both can be taken.
    log: whether equal ratios are equally likely, not equal differences.
    step: between whole numbers; 0 for real ones.
    points: that a grid takes of it.
  """

  low: float
  high: float
  log: bool = False
  step: int = 0
  points: int = 4


Kind = Choice | Range
Space = Mapping[str, Kind]


def choice(*values: Any) -> Choice:
  """Returns the kind of a field that takes one of some values, all alike.

  Args:
    *values: at least one, of whatever type the field has: numbers, texts, tuples, functions.

  Raises:
    ConfigError: none, or two that are written alike.

  >>> choice(32, 64).values
  (32, 64)
  """
  if not values:
    raise ConfigError('choice takes at least one value: jl.tuning.choice(32, 64, 128)')
  values = tuple(value.item() if isinstance(value, np.generic) else value for value in values)
  shown = [written(value) for value in values]
  if twice := sorted({one for one in shown if shown.count(one) > 1}):
    raise ConfigError(f'a choice has different values; got {twice[0]} twice')
  return Choice(values)


def uniform(low: float, high: float, *, points: int = 4) -> Range:
  """Returns the kind of a real number between two ends, every difference alike.

  Args:
    low, high: the ends.
    points: that a grid takes, the ends among them.

  Raises:
    ConfigError: ends that are not finite, or the wrong way round.

  >>> uniform(0.0, 0.5).high
  0.5
  """
  return _range(Range(low, high, points=points), 'uniform')


def log_uniform(low: float, high: float, *, points: int = 4) -> Range:
  """Returns the kind of a real number between two ends, every ratio alike: for rates and penalties.

  Args:
    low, high: the ends, above 0.
    points: that a grid takes, the ends among them.

  Raises:
    ConfigError: ends that are not above 0, or the wrong way round.

  >>> grid({'x': log_uniform(1e-3, 1e-1, points=3)})
  [{'x': 0.001}, {'x': 0.01}, {'x': 0.1}]
  """
  return _range(Range(low, high, log=True, points=points), 'log_uniform')


def integer(low: int, high: int, *, step: int = 1, log: bool = False, points: int = 0) -> Range:
  """Returns the kind of a whole number between two ends.

  Args:
    low, high: the ends.
    step: between neighbors, counted from `low`.
    log: whether every ratio is alike, not every difference; then the step is 1.
    points: that a grid takes, the ends among them; 0 takes every number.

  Raises:
    ConfigError: ends that are no whole numbers, or the wrong way round.

  >>> grid({'x': integer(2, 8, step=3)})
  [{'x': 2}, {'x': 5}, {'x': 8}]
  """
  for value in (low, high, step):
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
      raise ConfigError(f'integer takes whole numbers; got {value!r}: jl.tuning.uniform is for others')
  if step < 1 or (log and step > 1):
    raise ConfigError(f'the step of an integer is at least 1, and 1 with log=True; got {step}')
  made = Range(int(low), int(high), log=log, step=int(step), points=points or -1)
  return _range(made, 'integer')


def _range(made: Range, name: str) -> Range:
  for value in (made.low, made.high):
    real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not real or not math.isfinite(value):
      raise ConfigError(f'{name} takes finite numbers; got {value!r}')
  if made.low > made.high:
    raise ConfigError(f'{name} takes the lower end first; got {made.low!r}, {made.high!r}')
  if made.log and made.low <= 0:
    raise ConfigError(f'{name} with equal ratios begins above 0; got {made.low!r}: uniform may begin there')
  if made.points != -1:
    whole(made.points, f'points of {name}', least=1)
  return made if made.step else made._replace(low=float(made.low), high=float(made.high))


def written(value: Any) -> str:
  """Returns a value as a person reads it in a table: numbers in four digits, functions by name.

  >>> written(0.00123456), written((64, 128)), written(max)
  ('0.001235', '(64, 128)', 'max')
  """
  if isinstance(value, bool) or value is None or isinstance(value, str):
    return str(value)
  if isinstance(value, numbers.Integral):
    return str(int(value))
  if isinstance(value, numbers.Real):
    return f'{float(value):.4g}'
  if callable(value):
    return getattr(value, '__name__', type(value).__name__)
  return str(value)


def label(value: Any) -> Any:
  """Returns a value of a choice as JSON and Optuna take it: itself where it is plain, else as it is written."""
  return value if value is None or isinstance(value, bool | int | float | str) else written(value)


def held(kind: Kind, value: Any) -> Any:
  """Returns a value as it is stored: of a choice its place, else the number."""
  if isinstance(kind, Choice):
    return next(place for place, one in enumerate(kind.values) if one is value or written(one) == written(value))
  return value


def given(kind: Kind, stored: Any) -> Any:
  """Returns the value that was stored, as the config takes it."""
  return kind.values[stored] if isinstance(kind, Choice) else stored


def draw(kind: Kind, rng: np.random.Generator) -> Any:
  """Returns a value of a kind at random, as it is stored."""
  if isinstance(kind, Choice):
    return int(rng.integers(len(kind.values)))
  if kind.step:
    if kind.log:
      return int(min(kind.high, math.floor(math.exp(rng.uniform(math.log(kind.low), math.log(kind.high + 1))))))
    return int(kind.low + kind.step * rng.integers((kind.high - kind.low) // kind.step + 1))
  if kind.log:
    return float(min(kind.high, max(kind.low, math.exp(rng.uniform(math.log(kind.low), math.log(kind.high))))))
  return float(rng.uniform(kind.low, kind.high))


def middle(kind: Kind) -> Any:
  """Returns what lies in the middle of a kind, as it is stored."""
  points = _points(kind._replace(points=3) if isinstance(kind, Range) else kind)
  return points[len(points) // 2]


def lowest(kind: Kind) -> Any:
  """Returns the first of a kind, as it is stored."""
  return 0 if isinstance(kind, Choice) else kind.low


def share(kind: Kind, stored: Any) -> float:
  """Returns where in a kind a stored value lies, in [0, 1]."""
  if isinstance(kind, Choice):
    return stored / max(1, len(kind.values) - 1)
  low, high, at = (math.log(one) if kind.log else float(one) for one in (kind.low, kind.high, stored))
  return (at - low) / (high - low) if high > low else 0.5


def size(space: Space) -> float:
  """Returns how many points a space has; infinity where a real number is among its kinds."""
  counts = []
  for kind in space.values():
    if isinstance(kind, Choice):
      counts.append(float(len(kind.values)))
    else:
      counts.append(
        (kind.high - kind.low) // kind.step + 1 if kind.step else 1.0 if kind.low == kind.high else math.inf
      )
  return math.prod(counts)


def grid(space: Space) -> list[dict[str, Any]]:
  """Returns every point of a grid over a space, as values are stored: all choices, all or some points of a range."""
  lists = [_points(kind) for kind in space.values()]
  return [dict(zip(space, point, strict=True)) for point in itertools.product(*lists)]


def _points(kind: Kind) -> list[Any]:
  if isinstance(kind, Choice):
    return list(range(len(kind.values)))
  if kind.step and kind.points == -1:
    return list(range(int(kind.low), int(kind.high) + 1, kind.step))
  count = kind.points
  spaced = np.geomspace if kind.log else np.linspace
  if count == 1:
    found = [math.sqrt(kind.low * kind.high) if kind.log else (kind.low + kind.high) / 2]
  else:
    found = [min(kind.high, max(kind.low, float(f'{one:.12g}'))) for one in spaced(kind.low, kind.high, count)]
    found[0], found[-1] = kind.low, kind.high
  if kind.step:
    last = (kind.high - kind.low) // kind.step
    steps = (min(last, round((one - kind.low) / kind.step)) for one in found)
    return list(dict.fromkeys(int(kind.low + kind.step * one) for one in steps))
  return list(dict.fromkeys(float(one) for one in found))
