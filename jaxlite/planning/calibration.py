"""What was predicted and what happened on this machine, kept, and what is learned from it.

One file for each machine (processor, cores, jaxlib, accelerator) in the user's cache: a line for each forecast and what
came of it. A line is added in one write; what is damaged, or not understood, is passed over; old lines go when the
file grows.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxlite.host import files, machine

KEPT = 1_000  # outcomes
BYTES = 1 << 20  # of a file, above which it is written anew
_PRIOR = 2.0  # outcomes that the belief that a forecast is right weighs as much as
_ODD = 7.0  # of the logarithm of actual over predicted: a thousand times is damage, not an outcome
_APART = 1e3  # differences of features beyond which they are as different as can be
_FAR = 1.0  # a difference of features at which an outcome counts exp(-1/2)


class Outcome(NamedTuple):
  """One forecast and what came of it.

  Attributes:
    what: the quantity: 'time/step', 'memory/peak', ...
    basis: 'cost' or 'probe', 'traced' or 'compiled'.
    predicted, actual: in its unit (seconds, bytes), above 0; predicted without any correction.
    features: numbers that a correction may depend on, so scaled that a difference of 1 is a large one.
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
    factor: the middle; 1 where nothing was learned.
    spread: the standard deviation of log(actual / corrected), for the interval.
    count: outcomes that it was learned from, those of other features counting less.
  """

  factor: float
  spread: float
  count: float


def place(folder: Path | None = None) -> Path:
  """Returns where this machine's outcomes are kept; the file need not be there.

  Args:
    folder: in place of the one among the user's caches.

  >>> place(Path('kept')).suffix
  '.jsonl'
  """
  import jax
  import jaxlib

  words: tuple[Any, ...] = (machine.machine().get('processor', ''), machine.cores(), jaxlib.__version__)
  if jax.default_backend() != 'cpu':  # runs there teach nothing of those on the processor beside it
    words += (jax.devices()[0].device_kind,)
  name = hashlib.sha256(repr(words).encode()).hexdigest()[:16]
  return (files.user_cache() / 'forecasts' if folder is None else folder) / f'{name}.jsonl'


def outcomes(folder: Path | None = None) -> tuple[Outcome, ...]:
  """Returns what is kept of this machine, the oldest first; () where nothing is, or nothing can be read.

  Args:
    folder: in place of the one among the user's caches.
  """
  return outcomes_in(place(folder))


def outcomes_in(path: Path) -> tuple[Outcome, ...]:
  """Returns the outcomes of one file, such as another machine's; () where it cannot be read.

  Args:
    path: of the file.
  """
  try:
    lines = files.read_file(path).split(b'\n')
  except OSError:
    return ()
  found: dict[Any, Outcome] = {}
  for index, line in enumerate(lines):
    one = _parsed(line)
    if one is not None:
      key = (one.run, one.what, one.basis) if one.run else index
      found.pop(key, None)
      found[key] = one
  return tuple(found.values())[-KEPT:]


def add(found: Iterable[Outcome], folder: Path | None = None) -> bool:
  """Keeps outcomes for the forecasts to come.

  Args:
    found: what was predicted, and what happened.
    folder: in place of the one among the user's caches.

  Returns:
    Whether they are kept: not where the disk is full, or the folder cannot be written.

  Raises:
    ValueError: a quantity is not above 0 and finite.
  """
  found = tuple(found)
  for one in found:
    if not (_is_amount(one.predicted) and _is_amount(one.actual)):
      raise ValueError(
        f'an outcome has two amounts above 0; got {one.what}: predicted {one.predicted}, actual {one.actual}'
      )
  path = place(folder)
  text = ''.join(f'\n{_line(one)}' for one in found) + '\n'  # a line that another process left torn ends here
  try:
    files.own_folder(path.parent)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), 'ab', buffering=0) as file:
      file.write(text.encode())
      size = file.tell()
    if size > BYTES:
      files.write_text(path, _latest(outcomes(folder)))
  except OSError:
    return False
  return True


def correction(
  what: str,
  basis: str,
  features: Mapping[str, float] | None = None,
  *,
  spread: float,
  among: Sequence[Outcome] | None = None,
) -> Correction:
  """Returns what was learned of one quantity: outcomes that are alike in their features count most.

  With few outcomes it stays near 1, and near the spread that is given.

  Args:
    what: the quantity.
    basis: of the forecast.
    features: of the forecast; those that an outcome lacks do not count.
    spread: the standard deviation of log(actual / predicted) where nothing is known.
    among: what to learn from; this machine's outcomes where it is not given.

  >>> two = [Outcome('time/step', 'cost', 1.0, 2.0)] * 6
  >>> learned = correction('time/step', 'cost', spread=0.3, among=two)
  >>> round(learned.factor, 2), learned.spread < 0.3
  (1.68, True)
  """
  known = [one for one in (outcomes() if among is None else among) if (one.what, one.basis) == (what, basis)]
  weighed = [(_off(one), _alike(one.features, features or {})) for one in known]
  total = sum(weight for _, weight in weighed)
  if total < 1e-6:
    return Correction(1.0, spread, 0.0)
  middle = _median(weighed)  # one run on a machine that stood still must not move it
  trust = total / (total + _PRIOR)
  squares = sum(weight * min(abs(ratio - middle), 2.0) ** 2 for ratio, weight in weighed)
  wide = math.sqrt((squares + _PRIOR * spread**2) / (total + _PRIOR))
  return Correction(math.exp(trust * middle), wide, total)


def _off(one: Outcome) -> float:
  return math.log(one.actual) - math.log(one.predicted)


def _alike(one: Mapping[str, float], other: Mapping[str, float]) -> float:
  apart = sum(min(abs(one[name] - other[name]), _APART) ** 2 for name in one.keys() & other.keys())
  return math.exp(-apart / (2 * _FAR**2))


def _median(weighed: list[tuple[float, float]]) -> float:
  ordered, half = sorted(weighed), sum(weight for _, weight in weighed) / 2
  passed = 0.0
  for index, (value, weight) in enumerate(ordered):
    passed += weight
    if passed > half or index == len(ordered) - 1:
      return value
    if math.isclose(passed, half):
      return (value + ordered[index + 1][0]) / 2
  raise AssertionError('an empty list has no median')


def _is_amount(value: Any) -> bool:
  return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def _latest(known: Sequence[Outcome]) -> str:
  """The last lines that take half of what a file may hold."""
  lines, size = [], 0
  for one in reversed(known):
    lines.append(_line(one) + '\n')
    size += len(lines[-1])
    if size > BYTES // 2:
      break
  return ''.join(reversed(lines))


def _line(one: Outcome) -> str:
  return json.dumps({**one._asdict(), 'features': dict(one.features)}, allow_nan=False)


def _parsed(line: bytes) -> Outcome | None:
  """An outcome; None for what is none."""
  try:
    given = files.parsed_json(line)
    one = Outcome(**given)
    texts = all(isinstance(text, str) for text in (one.what, one.basis, one.run))
    numbers = all(isinstance(value, int | float) and math.isfinite(value) for value in one.features.values())
  except (ValueError, TypeError, AttributeError):
    return None
  sound = texts and numbers and _is_amount(one.predicted) and _is_amount(one.actual)
  return one if sound and abs(_off(one)) < _ODD else None
