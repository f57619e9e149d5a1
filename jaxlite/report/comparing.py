"""Runs side by side: means over seeds with intervals, and paired tests, each told with what it may be asked.

Two questions, two tests. Whether one *recipe* is better than another is asked of runs that differ in their seed alone,
paired by seed: Student's t on the differences. Whether one *trained network* is better than another is asked of single
runs on the same test examples, paired by example: McNemar's exact test. Of several comparisons p is adjusted by Holm's
method. Where a test does not hold (fewer than two seeds in common, other test sets), there is a reason instead.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxlite.report.found import FINISHED, Run
from jaxlite.report.tables import written

_CHANCE = ('name', 'seed', 'runs', 'log', 'checkpoint')  # fields of a config that no number should hang on
_LEAST = 2  # seeds
_OTHERS = 'not tested: the test sets differ'


class Group(NamedTuple):
  """Runs that differ by chance alone.

  Attributes:
    name: what the names of its runs begin with, and how many there are.
    runs: one a seed.
    seeds: of the runs.
  """

  name: str
  runs: list[Run]
  seeds: list[int]


class Compared(NamedTuple):
  """What comparing has found: tables of text, and lines that say how they are to be read.

  Attributes:
    tables: (caption, rows) each.
    notes: lines.
  """

  tables: list[tuple[str, list[list[str]]]]
  notes: list[str]


def differing(runs: Sequence[Run], most: int = 12) -> list[list[str]]:
  """Returns the fields of the configs in which runs differ, a field a line, a run a column; [] where none does.

  Args:
    runs: of a page.
    most: fields that are shown.
  """
  flat = [_flat(run.config) for run in runs]
  if len(flat) < 2 or not all(flat):
    return []
  names = list(dict.fromkeys(name for one in flat for name in one if name.split('.')[0] not in ('name', 'runs')))
  lines = [[name, *(one.get(name, '-') for one in flat)] for name in names]
  lines = [line for line in lines if len(set(line[1:])) > 1]
  return [['', *(run.name for run in runs)], *lines[:most]] if lines else []


def _flat(config: Any, path: str = '', depth: int = 0) -> dict[str, str]:
  """A config's plain values by path; what is empty is left out, such as the units of a duration that are not meant."""
  if isinstance(config, Mapping) and depth < 6:
    return {
      name: value
      for key, inner in config.items()
      for name, value in _flat(inner, f'{path}.{key}' if path else str(key), depth + 1).items()
    }
  return {} if config is None or config == '' else {path: str(config)[:60]}


class Test(NamedTuple):
  """One comparison with the first.

  Attributes:
    name: what is compared.
    difference: of the metric, in its own units; NaN where it was not tested.
    low, high: ends of its 95 % interval.
    p: of the two-sided test.
    pairs: seeds, or examples on which the two differ.
    why: why there is none; '' where there is.
  """

  name: str
  difference: float = math.nan
  low: float = math.nan
  high: float = math.nan
  p: float = math.nan
  pairs: int = 0
  why: str = ''


def compare(runs: Sequence[Run]) -> Compared:
  """Returns how runs differ, with intervals and a paired test.

  Args:
    runs: of a page; what is not finished, or measured by another metric than the first, is left out and told.
  """
  done = [run for run in runs if run.state == FINISHED and run.result.rows and run.result.metrics]
  if len(done) < 2:
    return Compared([], [])
  label, metric, form = done[0].result.rows[0]
  notes = []
  asked = [run for run in done if metric in run.result.metrics and math.isfinite(run.result.metrics[metric])]
  if left := len(done) - len(asked):
    notes.append(f'{left} of {len(done)} finished runs have no finite {label} and are not compared')
  if len(asked) < 2:
    return Compared([], notes)
  groups, doubled = grouped(asked)
  notes += doubled
  share = form == 'percent'
  if any(len(group.runs) >= _LEAST for group in groups):
    tables, said = _by_seed(groups, metric, label, form)
  else:
    tables, said = _by_example([group.runs[0] for group in groups], label, share)
  return Compared(tables, notes + said)


def grouped(runs: Sequence[Run]) -> tuple[list[Group], list[str]]:
  """Returns runs by what they are but for chance: their config without name and seed, and the program that they ran.

  Args:
    runs: finished.

  Returns:
    (groups in order, lines on runs of one seed twice: the first stands).
  """
  found: dict[str, dict[int, Run]] = {}
  twice: dict[str, list[str]] = {}
  for run in runs:
    kept = {name: value for name, value in run.config.items() if name not in _CHANCE}
    seed = run.config.get('seed')
    if not kept or type(seed) is not int:
      found[f'alone {run.name}'] = {0: run}
      continue
    key = json.dumps([kept, run.program], sort_keys=True, default=str)
    of = found.setdefault(key, {})
    if seed in of and of[seed].result.tested != run.result.tested:  # folds: one config, one seed, other examples
      found.setdefault(f'{key} {run.result.tested}', {})[seed] = run
    elif seed in of:
      twice.setdefault(of[seed].name, []).append(run.name)
    else:
      of[seed] = run
  groups = []
  for of in found.values():
    members = list(of.values())
    groups.append(Group(_called(members, [group.name for group in groups]), members, list(of)))
  return groups, [_again(first, names) for first, names in twice.items()]


def _again(first: str, names: Sequence[str]) -> str:
  if len(names) == 1:
    return f'{names[0]} is {first} again, of the same seed: it is not counted twice'
  shown = ', '.join(names[:3]) + (f' and {len(names) - 3} more' if len(names) > 3 else '')
  return f'{shown} are {first} again, of the same seed: they are not counted twice'


def _called(members: list[Run], taken: list[str]) -> str:
  """A name for runs that differ in their seed: what their names begin with."""
  first = members[0].name
  if len(members) == 1:
    return first
  shared = os.path.commonprefix([run.name for run in members])  # noqa: RUF071 - letters are meant
  shared = shared.rstrip('-_./ ')
  named = f'{shared} ({len(members)} seeds)'
  return named if len(shared) > 1 and named not in taken else f'{first} and {len(members) - 1} more'


def _by_seed(
  groups: list[Group], metric: str, label: str, form: str
) -> tuple[list[tuple[str, list[list[str]]]], list[str]]:
  rows = [['runs that differ in their seed', 'seeds', label, '95 % interval']]
  for group in groups:
    values = [run.result.metrics[metric] for run in group.runs]
    low, high = mean_interval(values)
    told = f'{written(form, low)} to {written(form, high)}' if math.isfinite(low) else 'one seed: unknown'
    rows.append([group.name, str(len(values)), written(form, float(np.mean(values))), told])
  tables = [(f'{label}: mean over seeds, with the interval of Student', rows)]
  notes = [
    'The interval is of the mean over all seeds that could have been drawn, on the same data: of other data it tells '
    'nothing.'
  ]
  if len(groups) < 2:
    return tables, notes
  first = groups[0]
  tests = [by_seed(first, group, metric) for group in groups[1:]]
  tables.append(
    (f'{label}: difference to {first.name}, paired by seed (t-test)', _tested(tests, 'seeds in common', form))
  )
  notes += _read(tests)
  if any(test.pairs == _LEAST for test in tests):
    notes.append('Two seeds leave one degree of freedom: only very large differences show.')
  return tables, notes


def by_seed(first: Group, other: Group, metric: str) -> Test:
  """Returns the paired t-test of two groups over the seeds that both have.

  References:
    Student, The probable error of a mean, 1908, https://doi.org/10.2307/2331554
  """
  ours, theirs = (dict(zip(group.seeds, group.runs, strict=True)) for group in (first, other))
  seeds = [seed for seed in ours if seed in theirs]
  if len(seeds) < _LEAST:
    return Test(other.name, pairs=len(seeds), why=f'not tested: {_seeds(len(seeds))} in common, and it takes two')
  pairs = [(ours[seed], theirs[seed]) for seed in seeds]
  if reason := next((why for pair in pairs if (why := _other_test(*pair))), ''):
    return Test(other.name, pairs=len(seeds), why=reason)
  differences = np.array([b.result.metrics[metric] - a.result.metrics[metric] for a, b in pairs])
  low, high = mean_interval(differences)
  return Test(other.name, float(differences.mean()), low, high, t_test(differences), len(seeds))


def _seeds(count: int) -> str:
  return {0: 'no seed', 1: 'one seed'}.get(count, f'{count} seeds')


def _other_test(one: Run, other: Run) -> str:
  """Why two runs were not tested on the same examples, as far as is known; '' where they were."""
  if not one.result.tested or not other.result.tested:
    return 'not tested: an older run does not tell on which examples it was tested'
  return '' if one.result.tested == other.result.tested else _OTHERS


def mean_interval(values: Sequence[float] | np.ndarray) -> tuple[float, float]:
  """Returns the 95 % interval of a mean by Student's t; NaN of fewer than two values.

  >>> [round(end, 4) for end in mean_interval([0.90, 0.91, 0.92])]
  [0.8852, 0.9348]
  """
  from scipy import special

  values = np.asarray(values, np.float64)
  if len(values) < _LEAST:
    return math.nan, math.nan
  half = float(special.stdtrit(len(values) - 1, 0.975)) * values.std(ddof=1) / math.sqrt(len(values))
  return float(values.mean() - half), float(values.mean() + half)


def t_test(differences: Sequence[float] | np.ndarray) -> float:
  """Returns p of the two-sided t-test that differences have mean 0; 1 where all are 0, 0 where all are another number.

  >>> round(t_test([0.01, 0.02, 0.03]), 4)
  0.0742
  """
  from scipy import special

  differences = np.asarray(differences, np.float64)
  spread = differences.std(ddof=1)
  if not spread > 1e-14 * np.abs(differences).max(initial=0):
    return 1.0 if not differences.any() else 0.0
  t = differences.mean() / (spread / math.sqrt(len(differences)))
  return float(2 * special.stdtr(len(differences) - 1, -abs(t)))


def _by_example(runs: list[Run], label: str, share: bool) -> tuple[list[tuple[str, list[list[str]]]], list[str]]:
  reason = 'Runs of one seed each cannot tell whether one recipe is better than another: train each with several seeds.'
  first = runs[0]
  if len(runs) < 2:  # all others are the first again
    return [], []
  if not share or right_of(first) is None:
    return [], [reason]
  tests = [by_example(first, run) for run in runs[1:]]
  if all(test.why == _OTHERS for test in tests):
    return [], ['The runs were tested on different examples, so no two of them are compared.']
  caption = f'{label}: difference to {first.name}, paired by test example (exact test of McNemar)'
  rows = _tested(tests, 'examples where one of the two is right', 'percent')
  told = 'This compares the trained networks as they are. ' + reason
  return [(caption, rows)], [told, *_read(tests)]


def right_of(run: Run) -> np.ndarray | None:
  """Returns which test examples a run has right, bool[N]; None where it does not tell."""
  count = run.result.examples
  try:
    bits = np.frombuffer(base64.b64decode(run.result.right, validate=True), np.uint8)
  except (binascii.Error, ValueError):
    return None
  return np.unpackbits(bits)[:count].astype(bool) if count and len(bits) == -(-count // 8) else None


def by_example(first: Run, other: Run) -> Test:
  """Returns McNemar's exact test of two trained networks on the same examples, with Agresti and Min's interval.

  References:
    McNemar, Note on the sampling error of the difference between correlated proportions or percentages, 1947,
    https://doi.org/10.1007/BF02295996
    Agresti and Min, Simple improved confidence intervals for comparing matched proportions, 2005,
    https://doi.org/10.1002/sim.1781
  """
  ours, theirs = right_of(first), right_of(other)
  if reason := _other_test(first, other):
    return Test(other.name, why=reason)
  if ours is None or theirs is None or len(ours) != len(theirs):
    return Test(other.name, why='not tested: it does not tell which examples it has right')
  lost, won = int((ours & ~theirs).sum()), int((theirs & ~ours).sum())
  return Test(other.name, (won - lost) / len(ours), *_matched(lost, won, len(ours)), mcnemar(lost, won), lost + won)


def _matched(lost: int, won: int, count: int) -> tuple[float, float]:
  count, b, c = count + 2, lost + 0.5, won + 0.5
  middle = (c - b) / count
  half = 1.959964 * math.sqrt(max(0.0, b + c - (c - b) ** 2 / count)) / count
  return max(-1.0, middle - half), min(1.0, middle + half)


def mcnemar(lost: int, won: int) -> float:
  """Returns p of the exact two-sided test that, of the examples where two networks differ, either is right as often.

  >>> mcnemar(1, 9)
  0.021484375
  """
  from scipy import special

  count = lost + won
  return min(1.0, 2 * float(special.bdtr(min(lost, won), count, 0.5))) if count else 1.0


def holm(values: Sequence[float]) -> list[float]:
  """Returns p-values adjusted for their number; NaN counts for none.

  References:
    Holm, A simple sequentially rejective multiple test procedure, 1979, https://www.jstor.org/stable/4615733

  >>> holm([0.01, 0.04])
  [0.02, 0.04]
  """
  order = sorted((index for index, value in enumerate(values) if not math.isnan(value)), key=lambda i: values[i])
  made, most = [math.nan] * len(values), 0.0
  for place, index in enumerate(order):
    most = max(most, min(1.0, (len(order) - place) * values[index]))
    made[index] = most
  return made


def _tested(tests: Sequence[Test], pairs: str, form: str) -> list[list[str]]:
  several = sum(not test.why for test in tests) > 1
  adjusted = holm([test.p for test in tests])
  rows = [['', 'difference', '95 % interval', pairs, 'p, adjusted' if several else 'p']]
  for test, p in zip(tests, adjusted, strict=True):
    if test.why:
      rows.append([test.name, test.why, '', '', ''])
      continue
    ends = f'{_signed(form, test.low)} to {_signed(form, test.high)}'
    rows.append(
      [test.name, _signed(form, test.difference), ends, f'{test.pairs:,}', f'{p:.2g}' if p >= 1e-4 else '< 0.0001']
    )
  return rows


def _signed(form: str, value: float) -> str:
  told = f'{100 * value:+.2f} points' if form == 'percent' else written(form, value)
  return told if form == 'percent' or value < 0 else f'+{told}'


def _read(tests: Sequence[Test]) -> list[str]:
  tested = [test for test in tests if not test.why]
  if not tested:
    return []
  adjusted = holm([test.p for test in tested])
  clear = sum(p < 0.05 for p in adjusted)
  lines = [
    f'{clear} of {len(tested)} differences {"is" if clear == 1 else "are"} beyond chance at p < 0.05'
    + (", adjusted by Holm's method." if len(tested) > 1 else '.')
  ]
  if clear < len(tested):
    lines.append('Where p is larger, nothing is shown: neither that there is a difference nor that there is none.')
  return lines
