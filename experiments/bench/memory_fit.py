"""Fits the table of `jaxlite/planning/memory_table.py` to measured runs, and compares forecasts with them."""

from __future__ import annotations

import json
import pprint
import statistics
from pathlib import Path
from typing import Any, NamedTuple

import memory_cases
import numpy as np
from scipy.optimize import nnls

from jaxlite.planning import memory, memory_table
from jaxlite.planning.sizes import Process, Sizes

MIB = 1 << 20
BASES = ('traced', 'planned', 'compiled')
UNSEEN = 0.5  # that share where no run with a warm cache was measured: a prototype saw less
WIDER = 1.5  # the spread over families that were not seen, by that of the ones that were
COMPILER = ('first', 'equations', 'root')  # of which a warm compile cache takes a part
SMALLEST = 100  # equations of the two programs of a run
STAGES = memory.STAGES[2:]
LEAST = {'steps': 'step', 'evaluation': 'evaluation'}  # counts once at least


class Row(NamedTuple):
  """One configuration with what was measured of it.

  Attributes:
    case: the configuration.
    sizes: by basis.
    seen: by basis, what the process held when the forecast is made.
    stages: the most in each.
    files: of it, pages of programs and libraries.
    peak: of the run: the median of its processes.
    peaks: of all of them.
    imported: after importing.
    segment, mapped: the most of what `ulimit -d` and `-v` count.
    program: whether a step is one program, from which memory was told.
    room: where freed memory may stay mapped, bytes that the process could grow by.
  """

  case: memory_cases.Case
  sizes: dict[str, Sizes]
  seen: dict[str, Process]
  stages: dict[str, int]
  files: dict[str, int]
  peak: int
  peaks: list[int]
  imported: int
  segment: int
  mapped: int
  program: bool
  room: int


def lines(path: Path) -> list[dict[str, Any]]:
  """The lines of a file of results."""
  return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def rows(path: Path, kind: str = 'run') -> list[Row]:
  """Configurations that were measured.

  Args:
    path: of the results.
    kind: 'run', or 'run kept' where freed memory stayed mapped.
  """
  runs: dict[str, list[dict[str, Any]]] = {}
  for one in lines(path):
    if one['kind'] == kind and one['case'] in memory_cases.CASES and 'traced' in one.get('facts', {}).get('told', {}):
      runs.setdefault(one['case'], []).append(one)
  return [_row(memory_cases.CASES[name], sorted(some, key=lambda run: run['peak'])) for name, some in runs.items()]


def _row(case: memory_cases.Case, runs: list[dict[str, Any]]) -> Row:
  run = runs[len(runs) // 2]
  stages, told = run['stages'], run['facts']['told']
  sizes = {basis: Sizes(**one['sizes']) for basis, one in told.items()}
  seen = {basis: Process(**one['seen']) for basis, one in told.items()}
  seen = {basis: one._replace(free=0) if basis == 'compiled' else one for basis, one in seen.items()}
  most = {'compile': max(stages[one]['VmHWM'] for one in ('start', 'forms', 'compile') if one in stages)}
  most |= {stage: stages[stage]['VmHWM'] for stage in STAGES[1:]}
  # The best state is read back between the last step and the report.
  most['report'] = max(most['report'], stages['begin']['VmHWM'])
  end = stages['after report']
  return Row(
    case=case,
    sizes={'traced': sizes['traced'], 'compiled': sizes.get('compiled', sizes['traced'])},
    seen={'traced': seen['traced'], 'compiled': seen.get('compiled', seen['traced'])},
    stages=most,
    files={stage: stages[f'after {stage}']['RssFile'] for stage in most},
    peak=run['peak'],
    peaks=[one['peak'] for one in runs],
    imported=stages['import']['VmRSS'],
    segment=end['VmPeak'] - end['VmSize'] + end['VmData'],
    mapped=end['VmPeak'],
    program='compiled' in told,
    room=told['traced']['room'],
  )


class Table(NamedTuple):
  """As the module of that name holds it."""

  TABLE: dict[str, Any]
  FILES: dict[str, int]
  SPREAD: dict[str, float]
  DATA_SEGMENT: tuple[int, float, float]
  ADDRESS_SPACE: tuple[int, float, float]


def use(table: Table) -> None:
  """Forecasts by this table from here on."""
  for name, value in table._asdict().items():
    setattr(memory_table, name, value)


def told(row: Row, basis: str) -> memory.Memory:
  """The forecast of a row; of several programs a step there is none but that from the trace."""
  basis = basis if row.program else 'traced'
  sizes = row.sizes['traced' if basis == 'traced' else 'compiled']
  seen = row.seen['compiled' if basis == 'compiled' else 'traced']
  return memory.forecast(sizes, seen, basis, row.case.cache, row.room)


def fitted(known: list[Row]) -> Table:
  """A table from some rows: for each stage factors that are not negative, by the least relative squares."""
  files = {stage: round(statistics.median(row.files[stage] for row in known)) for stage in STAGES}
  memory_table.FILES = files
  table: dict[str, Any] = {}
  for basis in ('traced', 'compiled'):
    cold = [row for row in known if row.case.cache == 'cold']
    stages = STAGES if basis == 'traced' else STAGES[1:]
    table[basis] = {'cold': {stage: _factors(cold, basis, stage, files) for stage in stages}}
    warm = [row for row in known if row.case.cache == 'warm']
    table[basis]['warm'] = {
      stage: _warmed(warm, basis, stage, files, factors) for stage, factors in table[basis]['cold'].items()
    }
  empty = Table(table, files, dict.fromkeys(BASES, 0.05), (0, 1.0, 0.05), (0, 1.0, 0.05))
  use(empty)
  grown = [row.peak - max(row.files.values()) - row.seen['traced'].anonymous for row in known]
  segment = _line(grown, [row.segment - row.seen['traced'].data_segment for row in known])
  mapped = _line(grown, [row.mapped - row.seen['traced'].address_space for row in known])
  return empty._replace(DATA_SEGMENT=(*segment, 0.05), ADDRESS_SPACE=(*mapped, 0.02))


def _line(grown: list[int], actual: list[int]) -> tuple[int, float]:
  """The line through the middle."""
  slope = max(1.0, float(np.polyfit(grown, actual, 1)[0]))
  return round(float(np.median(np.array(actual) - slope * np.array(grown)))), round(slope, 3)


def _factors(chosen: list[Row], basis: str, stage: str, files: dict[str, int]) -> dict[str, float]:
  given = [memory.features(stage, row.sizes[basis], row.seen[basis]) for row in chosen]
  names = list(given[0])
  left = np.array([[one[name] for name in names] for one in given])
  weight = 1 / np.array([row.peak for row in chosen])
  scale = np.maximum(1e-9, np.abs(left).max(0))
  least = np.array([float(name == LEAST.get(stage)) for name in names])  # what a program holds at once is all resident
  right = np.maximum(0, np.array([_over(row, basis, stage, files) for row in chosen]) - left @ least)
  found = nnls(left / scale * weight[:, None], right * weight)[0] / scale + least
  return {name: float(f'{value:.4g}') for name, value in zip(names, found, strict=True) if value > 0}


def _warmed(
  chosen: list[Row], basis: str, stage: str, files: dict[str, int], cold: dict[str, float]
) -> dict[str, float]:
  """The same with that share of what the compiler takes which serves programs that are read from the cache best."""

  def factors(share: float, more: float = 1.0) -> dict[str, float]:
    parts = {**dict.fromkeys(COMPILER, share), 'one': more}
    return {name: float(f'{value * parts.get(name, 1):.4g}') for name, value in cold.items()}

  def off(pair: tuple[float, float]) -> float:
    of, total = factors(*pair), 0.0
    for row in chosen:
      given = memory.features(stage, row.sizes[basis], row.seen[basis])
      said = sum(value * of.get(name, 0) for name, value in given.items())
      total += abs(said - _over(row, basis, stage, files)) / row.peak
    return total

  def never_more(pair: tuple[float, float]) -> bool:
    """Whether the smallest of programs takes no more than with a cold cache."""
    least = {'one': 1.0, 'equations': SMALLEST, 'root': SMALLEST**0.5}
    of = factors(*pair)
    return sum((of.get(name, 0.0) - cold.get(name, 0.0)) * value for name, value in least.items()) <= 0

  shares = [(share, more) for share in np.linspace(0, 1, 41) for more in (1.0, 1.25, 1.5, 2.0, 2.5)]
  shares = [pair for pair in shares if never_more(pair)]
  return factors(*min(shares, key=off)) if chosen else factors(UNSEEN)


def _over(row: Row, basis: str, stage: str, files: dict[str, int]) -> float:
  seen = row.seen[basis]
  return row.stages[stage] - (seen.anonymous - seen.free) - max(seen.files, files[stage])


def calibrated(known: list[Row]) -> Table:
  """The table of some rows, with the spread that leaving out one after the other shows; wider, for other families."""
  off: dict[str, list[float]] = {one: [] for one in (*BASES, 'data segment', 'address space')}
  for row in known:
    use(fitted([other for other in known if other is not row]))
    for basis in BASES:
      one = told(row, basis)
      off[basis].append(float(np.log(row.peak / one.raw)))
      if basis == 'traced':
        off['data segment'].append(float(np.log(row.segment / one.data_expected)))
        off['address space'].append(float(np.log(row.mapped / one.space_expected)))
  spread = {}
  for basis, errors in off.items():
    middle = 1.4826 * float(np.median(np.abs(errors)))  # one far off is one that reaches out
    spread[basis] = round(max(WIDER * middle, float(np.quantile(np.abs(errors), 0.95)) / 1.645), 4)
    print(f'{basis}: one left out {np.mean(np.abs(errors)):.1%}, spread {spread[basis]:.3f}')
  table = fitted(known)
  return table._replace(
    SPREAD={basis: spread[basis] for basis in BASES},
    DATA_SEGMENT=(*table.DATA_SEGMENT[:2], spread['data segment']),
    ADDRESS_SPACE=(*table.ADDRESS_SPACE[:2], spread['address space']),
  )


def with_beyond(large: list[Row]) -> Table:
  """The table as it is with what state beyond the first pieces adds, which the small networks of the calibration do not
  show: a factor for each stage, by the least relative squares."""
  table = {basis: {cache: {**stages} for cache, stages in one.items()} for basis, one in memory_table.TABLE.items()}
  for basis, by_cache in table.items():
    for cache, stages in by_cache.items():
      for stage, factors in stages.items():
        known = {name: value for name, value in factors.items() if name != 'beyond'}
        beyond, left = [], []
        for row in large:
          given = memory.features(stage, row.sizes[basis], row.seen[basis])
          said = sum(value * known.get(name, 0.0) for name, value in given.items())
          beyond.append(given['beyond'] / row.peak)
          left.append((_over(row, basis, stage, memory_table.FILES) - said) / row.peak)
        factor = max(0.0, float(np.dot(beyond, left) / np.dot(beyond, beyond)))
        if stage == 'report':  # some runs read their best state back, and some have it
          factor = max(factor, *(over / state for over, state in zip(left, beyond, strict=True)))
        by_cache[cache][stage] = {**known, 'beyond': float(f'{factor:.4g}')}
    for stage in by_cache['warm']:  # measured with a cold cache, and state is the same with a warm one
      by_cache['warm'][stage]['beyond'] = by_cache['cold'][stage]['beyond']
  rest = {name: getattr(memory_table, name) for name in Table._fields[1:]}
  return Table(table, **rest)


def compare(known: list[Row], title: str, show: bool) -> None:
  """Prints how far forecasts are off."""
  for basis in BASES if known else ():
    found = [(row, told(row, basis)) for row in known]
    if show:
      for row, one in found:
        stage, true = max(one.stages, key=one.stages.__getitem__), max(row.stages, key=row.stages.__getitem__)
        numbers = (f'{size / MIB:6.0f}' for size in (row.peak, one.raw, one.upper))
        print(f'  {basis:8} {row.case.name:76}', *numbers, f'{one.raw / row.peak - 1:+7.1%} {stage:10} {true}')
    off = np.array([one.raw / row.peak - 1 for row, one in found])
    grown = np.array([(one.raw - row.peak) / (row.peak - row.imported) for row, one in found])
    over = sum(row.peak > one.upper for row, one in found)
    segment = sum(row.segment > one.data_segment for row, one in found)
    mapped = sum(row.mapped > one.address_space for row, one in found)
    apart = [np.mean([abs(one.data_expected / row.segment - 1) for row, one in found])]
    apart += [np.mean([abs(one.space_expected / row.mapped - 1) for row, one in found])]
    print(
      f'{title}, {basis}, {len(known)} configurations in {sum(len(row.peaks) for row in known)} processes: total '
      f'{np.mean(np.abs(off)):.1%} off (mean {np.mean(off):+.1%}, worst {np.max(np.abs(off)):.0%}), increase over '
      f'import {np.mean(np.abs(grown)):.1%}; above the bound {over}; data segment {apart[0]:.1%} off, above its bound '
      f'{segment}; address space {apart[1]:.1%}, {mapped}'
    )


def fit(path: Path, write: Path | None, large: bool = False) -> None:
  """Fits on the calibration, compares there and on what was held out, and writes the table.

  Args:
    path: of the results.
    write: of the table; None writes none.
    large: whether the large networks alone are fitted to, all factors but theirs kept.
  """
  known = rows(path)
  if large:
    table = with_beyond([row for row in known if row.case in memory_cases.LARGE])
  else:
    table = calibrated([row for row in known if row.case in memory_cases.CALIBRATION])
  use(table)
  report(path)
  if write is None:
    return
  text = write.read_text()
  body = '\n'.join(f'{name} = {pprint.pformat(value, width=110)}' for name, value in table._asdict().items())
  write.write_text(text[: text.index('\nTABLE')] + '\n' + body + '\n')


def report(path: Path) -> None:
  """Compares forecasts by the table as it is with what was measured."""
  known = rows(path)
  compare([row for row in known if row.case in memory_cases.CALIBRATION], 'calibration', True)
  compare([row for row in known if row.case in memory_cases.HELD_OUT], 'held out', True)
  compare([row for row in known if row.case in memory_cases.LARGE], 'large, calibration', True)
  compare([row for row in known if row.case in memory_cases.LARGE_HELD_OUT], 'large, held out', True)
  kept = [(row, told(row, 'traced')) for row in rows(path, 'run kept')]
  for row, one in kept:
    print(f'  kept {row.case.name:76} {max(row.peaks) / MIB:6.0f} {(one.upper + one.kept) / MIB:6.0f}')
  if kept:
    over = sum(peak > one.upper + one.kept for row, one in kept for peak in row.peaks)
    print(f'kept mapped: above the bound {over} of {sum(len(row.peaks) for row, _ in kept)} processes')
  failed = sorted({one['case'] for one in lines(path) if 'peak' not in one and one['case'] not in {
    other['case'] for other in lines(path) if 'peak' in other}})  # fmt: skip
  print(f'failed: {len(failed)} {failed}')
