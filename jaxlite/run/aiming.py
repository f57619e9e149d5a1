"""A run with a target: when the metric that picks the best model will reach it, said as it trains, told at its end.

What is expected is read off the learning curve so far (`planning.target`) and off those of earlier runs on this
machine, which are kept by what they have in common: the data and the metric.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxlite.host import files
from jaxlite.planning.plan import spoken
from jaxlite.planning.target import LEAST, Curve, Reach, reach
from jaxlite.run.records import read_records
from jaxlite.run.setup import Setup

EARLY = 0.2  # of the run: what was expected then is compared with what came
_KEPT = 20  # curves of one kind
_POINTS = 200  # of one curve


class Aim:
  """What is known of a run's way to its target.

  Attributes:
    target: the value; None: there is none.
    metric: its name.
  """

  def __init__(self, setup: Setup, folder: Path):
    """Begins, with what the run has measured before.

    Args:
      setup: of the run.
      folder: its own.
    """
    self.target, self.metric = setup.config.eval.target, setup.score
    self._better, self._total = setup.data.task.better(self.metric), setup.plan.total
    self._batch = setup.config.data.batch_size
    self._file = _place(setup)
    self._steps: list[int] = []
    self._values: list[float] = []
    self._earlier: list[Curve] = []
    self._expected: Reach | None = None
    if self.target is None:
      return
    self._earlier = [(one['steps'], one['values']) for one in _kept(self._file)]
    for point in read_records(folder):
      if point['kind'] == 'validation':
        self._took(point['step'], point.get(self.metric))
    self._expected = self._at(len(self._steps))  # once: what was expected before, nobody asks

  def saw(self, step: int, value: Any) -> None:
    """Takes a point of the learning curve.

    Args:
      step: at which it was measured.
      value: of the metric; what is no number counts for nothing.
    """
    if self.target is not None and self._took(step, value):
      self._expected = self._at(len(self._steps))

  def _took(self, step: int, value: Any) -> bool:
    if not isinstance(value, int | float) or step <= (self._steps[-1] if self._steps else 0):
      return False
    self._steps.append(step)
    self._values.append(float(value))
    return True

  def said(self, step: int, rate: float) -> list[str]:
    """Returns what is to be said at a point of the run: a text, or none.

    Args:
      step: that was taken last.
      rate: examples a second.
    """
    found = self._expected
    if self.target is None or found is None:
      return []
    shown = f'{self.metric} {self.target:g}'
    if found.now:
      return [f'{shown} {found}']
    left = (found.step - step) * self._batch / rate if rate > 0 and math.isfinite(found.step) else 0.0
    return [f'{shown} {found}' + (f', in {spoken(left)}' if left > 0 else '')]

  def outcome(self) -> dict[str, Any]:
    """Returns what came of it, for the run's result: {} without a target.

    'metric', 'target', 'reached' (the step, or None), 'early': what was expected at a fifth of the run, with 'at',
    'step', 'low', 'high' (None: not within the run) and 'share'; None where too little had been measured.
    """
    if self.target is None:
      return {}
    whole = self._at(len(self._steps))
    reached = whole.step if whole is not None and whole.now else None
    count = next((i + 1 for i, step in enumerate(self._steps) if i + 1 >= LEAST and step >= EARLY * self._total), 0)
    found = self._at(count) if count else None
    early = None
    if found is not None and not found.now:
      numbers = {name: getattr(found, name) for name in ('step', 'low', 'high', 'share')}
      early = {'at': self._steps[count - 1]} | {
        name: value if math.isfinite(value) else None for name, value in numbers.items()
      }
    return {'metric': self.metric, 'target': self.target, 'reached': reached, 'early': early}

  def _at(self, count: int) -> Reach | None:
    """What is expected from the first so many points."""
    assert self.target is not None
    steps, values = self._steps[:count], self._values[:count]
    if not steps:
      return None
    seen = [value for value in values if math.isfinite(value)]
    given = {'better': self._better, 'limit': _limit(seen, self.target, self._better), 'earlier': self._earlier}
    return reach(steps, values, self.target, self._total, **given)


def _limit(seen: list[float], target: float, better: int) -> float | None:
  """The best value that there is, as far as the curve shows: 1 of what stays within 0 and 1, 0 of what is no less."""
  known = [*seen, target]
  if better > 0:
    return 1.0 if all(0 <= value <= 1 for value in known) else None
  return 0.0 if all(value >= 0 for value in known) else None


def told(found: Mapping[str, Any]) -> str:
  """Returns in a line what came of a target.

  Args:
    found: as `Aim.outcome` gives it.

  >>> told({'metric': 'accuracy', 'target': 0.9, 'reached': 40.0, 'early': None})
  'accuracy 0.9 was reached at step 40'
  """
  name = f'{found["metric"]} {found["target"]:g}'
  said = f'{name} was not reached' if found['reached'] is None else f'{name} was reached at step {found["reached"]:.0f}'
  early = found['early']
  if early is None:
    return said
  if early['step'] is None:
    return f'{said}; at step {early["at"]} it was not expected within the run'
  interval = f'{early["low"]:.0f} to {early["high"]:.0f}'
  return f'{said}; at step {early["at"]} it was expected at step {early["step"]:.0f} (80 of 100: {interval})'


def keep(setup: Setup, folder: Path, run: str) -> None:
  """Keeps the learning curve of a finished run for those to come on the same data.

  Args:
    setup: of the run.
    folder: its own.
    run: its id: its curve is kept once.
  """
  points = [
    (point['step'], float(value))
    for point in read_records(folder)
    if point['kind'] == 'validation' and isinstance(value := point.get(setup.score), int | float)
  ]
  points = [(step, value) for step, value in points if step > 0 and math.isfinite(value)]
  points = points[:: max(1, math.ceil(len(points) / _POINTS))]
  if len(points) < LEAST:
    return
  steps, values = zip(*points, strict=True)
  path = _place(setup)
  curves = [one for one in _kept(path) if one.get('run') != run] + [{'run': run, 'steps': steps, 'values': values}]
  with contextlib.suppress(OSError):  # a cache that cannot be written is no reason for a finished run to fail
    files.own_folder(path.parent)
    files.write_text(path, ''.join(json.dumps(one) + '\n' for one in curves[-_KEPT:]))


def _place(setup: Setup) -> Path:
  kind = hashlib.sha256(f'{setup.data.fingerprint} {setup.score}'.encode()).hexdigest()[:16]
  return files.user_cache() / 'curves' / f'{kind}.jsonl'


def _kept(path: Path | os.PathLike[str]) -> list[dict[str, Any]]:
  """The curves of a file; what is damaged is passed over."""
  try:
    lines = files.read_file(path).split(b'\n')
  except OSError:
    return []
  found = []
  for line in lines:
    with contextlib.suppress(ValueError, TypeError, KeyError):
      one = files.parsed_json(line)
      steps, values = one['steps'], one['values']
      numbers = all(isinstance(value, int | float) and math.isfinite(value) for value in [*steps, *values])
      rises = all(low < high for low, high in zip([0, *steps], steps, strict=False))
      if numbers and rises and len(steps) == len(values) >= LEAST:
        found.append(one)
  return found
