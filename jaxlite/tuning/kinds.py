"""Kinds of values: one of some, a real or whole number between two ends, by equal differences or equal ratios.

A value is stored as a plain number: of a choice its place, else the number itself. So it goes into JSON, a database and
Optuna whatever the type of the field, and comes back to the last bit.
"""

from __future__ import annotations

import functools
import itertools
import json
import math
import numbers
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxlite.config.serialize import plain
from jaxlite.errors import ConfigError, whole

_LARGEST = 1_000_000  # points of a grid


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
    *values: at least one, of whatever type the field has: numbers, texts, tuples, durations, functions by name,
      `functools.partial` of them, so that an alternative has settings of its own. What another process could not tell
      apart (two lambdas, objects) is refused: give names, and look them up where the config is read.

  Raises:
    ConfigError: none, two that are alike, or one that has no text of its own.

  >>> choice(32, 64).values
  (32, 64)
  """
  if not values:
    raise ConfigError('choice takes at least one value: jl.tuning.choice(32, 64, 128)')
  values = tuple(value.item() if isinstance(value, np.generic) else value for value in values)
  shown = [as_text(value) for value in values]
  if twice := sorted({one for one in shown if shown.count(one) > 1}):
    names = any(callable(value) for value in values)
    fix = ': functions are told apart by name, so give each one, or give names and look them up' if names else ''
    raise ConfigError(f'a choice has different values; got {twice[0]} twice{fix}')
  return Choice(values)


def as_text(value: Any) -> str:
  """Returns the text by which a value of a choice is known in every process.

  >>> as_text((64, 0.5)), as_text(max)
  ('[64, 0.5]', '"builtins:max"')
  """
  try:
    return json.dumps(plain(value, 'it'), allow_nan=not (isinstance(value, float) and math.isnan(value)))
  except ValueError:  # a ConfigError too
    raise ConfigError(
      'a choice is of numbers, texts, tuples and functions by name, which are the same in every process; got '
      f'{" ".join(repr(value).split())[:80]}: give names, and look them up in config.model or config.recipe'
    ) from None


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
  if not math.isfinite(made.high - made.low):
    raise ConfigError(f'{name} takes ends whose difference is a finite number; got {made.low!r}, {made.high!r}')
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
  if isinstance(value, functools.partial):
    given = [*map(written, value.args), *(f'{name}={written(one)}' for name, one in value.keywords.items())]
    return f'{written(value.func)}({", ".join(given)})'
  if callable(value):
    return getattr(value, '__name__', type(value).__name__)
  return str(value)


def labels(kind: Choice) -> list[Any]:
  """Returns the values of a choice as Optuna takes them: themselves where all are plain, else texts, no two equal.

  >>> labels(choice(1, 2.5, None)), labels(choice(True, 1)), labels(choice((8,), max))
  ([1, 2.5, None], ['true', '1'], ['(8,)', 'max'])
  """
  found: list[Any] = list(kind.values)
  if not all(value is None or isinstance(value, bool | int | float | str) for value in found):
    found = [value if isinstance(value, str) else written(value) for value in found]
  alike = any(one == other for one, other in itertools.combinations(found, 2))  # Optuna looks for the first equal one
  return [as_text(value) for value in kind.values] if alike else found


def held(kind: Kind, value: Any) -> Any:
  """Returns a value as it is stored: of a choice its place, else the number."""
  if isinstance(kind, Choice):
    return [as_text(one) for one in kind.values].index(as_text(value))
  return value


def given(kind: Kind, stored: Any) -> Any:
  """Returns the value that was stored, as the config takes it."""
  return kind.values[stored] if isinstance(kind, Choice) else stored


def at(kind: Kind, part: float) -> Any:
  """Returns what lies at a part of a kind, as it is stored: parts that are spread evenly give values that are.

  Args:
    kind: a choice or a range.
    part: in [0, 1).

  >>> round(at(log_uniform(0.01, 1.0), 0.5), 6), at(integer(0, 3), 0.99), at(choice('a', 'b'), 0.5)
  (0.1, 3, 1)
  """
  if isinstance(kind, Choice):
    return int(part * len(kind.values))
  low, high = (math.log(kind.low), math.log(kind.high + (kind.step > 0))) if kind.log else (kind.low, kind.high)
  if kind.step and not kind.log:
    return int(kind.low + kind.step * math.floor(part * ((kind.high - kind.low) // kind.step + 1)))
  value = low + part * (high - low)
  if kind.log:
    value = math.exp(value)
  return min(kind.high, max(kind.low, math.floor(value) if kind.step else float(value)))


def draw(kind: Kind, rng: np.random.Generator) -> Any:
  """Returns a value of a kind at random, as it is stored."""
  return at(kind, rng.random())


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
  """Returns every point of a grid over a space, as values are stored: all choices, all or some points of a range.

  Raises:
    ConfigError: it has more than a million points.
  """
  count = math.prod(map(_count, space.values()))
  if count > _LARGEST:
    raise ConfigError(
      f'a grid has at most {_LARGEST:,} points, and this one would have {count:,}: give ranges fewer (points=4), or '
      'search by another method'
    )
  lists = [_points(kind) for kind in space.values()]
  return [dict(zip(space, point, strict=True)) for point in itertools.product(*lists)]


def _count(kind: Kind) -> int:
  """How many points a grid takes of a kind, at the most."""
  if isinstance(kind, Choice):
    return len(kind.values)
  return int((kind.high - kind.low) // kind.step) + 1 if kind.step and kind.points == -1 else kind.points


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
