"""Forecast and actual memory of runs: by family calibrated and held out.

  python experiments/bench/forecast_memory.py measure --results=FILE [--seconds=500] [--repeats=1] [--kept]
  python experiments/bench/forecast_memory.py forecast --results=FILE [--seconds=500]
  python experiments/bench/forecast_memory.py report --results=FILE

`measure` trains each configuration of `memory_cases.py` in processes of their own and appends their peaks (the kernel's
VmHWM) to a file of JSON lines; `forecast` appends what the forecast sees of each, before compiling and after, in another
process. Both go on where they were stopped, and leave off after so many seconds. `report` compares.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import memory_cases

HERE = Path(__file__).parent


def lines(path: Path) -> list[dict[str, Any]]:
  return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def interleaved() -> list[memory_cases.Case]:
  """Configurations of both sets in turn, so that a series that is stopped holds some of each."""
  sets = (list(memory_cases.CALIBRATION), list(memory_cases.HELD_OUT))
  whole = max(map(len, sets))
  placed = [(i * whole / len(one), case) for one in sets for i, case in enumerate(one)]
  return [case for _, case in sorted(placed, key=lambda pair: pair[0])]


def claimed(path: Path, what: str) -> bool:
  """Takes a piece of work, unless another series beside this one took it within the last ten minutes."""
  mark = path.with_suffix('.claims') / what.replace('/', '_')
  mark.parent.mkdir(exist_ok=True)
  if mark.exists() and time.time() - mark.stat().st_mtime < 600:
    return False
  mark.touch()
  return True


def work(mode: str, path: Path, seconds: float, repeats: int, kept: bool, cache: Path, only: str) -> None:
  """Runs processes, one after the other, until all is there or the time is up."""
  ends = time.monotonic() + seconds
  kind = mode if not kept else f'{mode} kept'
  for repeat in range(repeats):
    for case in interleaved():
      done = [(one['case'], one['kind']) for one in lines(path)]  # other series may add to it
      if only not in case.name or done.count((case.name, kind)) > repeat:
        continue
      if time.monotonic() > ends:
        print('left off')
        return
      if not claimed(path, f'{case.name} {kind} {repeat}'):
        continue
      shutil.rmtree(cache / 'jaxlite' / 'rewrites', ignore_errors=True)
      environment = {**os.environ, 'XDG_CACHE_HOME': str(cache)}
      command = [sys.executable, str(HERE / 'memory_worker.py'), mode, case.name, *(['kept'] if kept else [])]
      if case.cache == 'warm':
        subprocess.run(
          [sys.executable, str(HERE / 'memory_worker.py'), 'run', case.name],
          capture_output=True,
          env=environment,
          check=False,
        )
      ran = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
      if ran.returncode:
        found: dict[str, Any] = {'failed': ran.returncode, 'error': ran.stderr[-600:]}
      else:
        found = json.loads(ran.stdout.splitlines()[-1])
      with path.open('a') as file:
        file.write(json.dumps({'case': case.name, 'kind': kind, **found}) + '\n')
      print(case.name, kind, found.get('peak', 0) >> 20, found.get('error', '')[-300:], flush=True)
  print('all done')


def traced(path: Path, seconds: float) -> None:
  """Appends the sizes of each configuration, from its jaxpr."""
  import tempfile

  import memory_worker

  from jaxlite.planning import programs, sizes
  from jaxlite.run.foreseen import job_of
  from jaxlite.run.setup import prepare

  ends, done = time.monotonic() + seconds, {one['case'] for one in lines(path) if one['kind'] == 'sizes'}
  for case in interleaved():
    if case.name in done:
      continue
    if time.monotonic() > ends:
      print('left off')
      return
    with tempfile.TemporaryDirectory() as folder:
      model, data = memory_worker.made(case)
      job = job_of(prepare(memory_cases.config(case, folder), Path(folder), model, data))
      began = time.process_time()
      found = sizes.sizes(programs.traced(job))
      took = time.process_time() - began
    with path.open('a') as file:
      file.write(json.dumps({'case': case.name, 'kind': 'sizes', 'sizes': found._asdict(), 'seconds': took}) + '\n')
    print(case.name, f'{took:.1f} s', found, flush=True)
  print('all done')


class Row(NamedTuple):
  """One configuration with what was measured of it: medians over its processes."""

  case: memory_cases.Case
  sizes: Any
  before: Any
  after: Any
  stages: dict[str, int]
  files: dict[str, int]
  peak: int
  started: int
  segment: int
  mapped: int


def rows(path: Path) -> list[Row]:
  """Configurations that were both measured and traced."""
  from jaxlite.planning.sizes import Process, Sizes

  found = lines(path)
  known = {one['case']: Sizes(**one['sizes']) for one in found if one['kind'] == 'sizes'}
  result = []
  for name, held in known.items():
    runs = [one for one in found if one['case'] == name and one['kind'] == 'run' and 'peak' in one]
    if not runs:
      continue
    runs.sort(key=lambda run: run['peak'])
    run = runs[len(runs) // 2]
    stages, program = run['stages'], run['facts'].get('program')
    first = max(stages[stage]['VmHWM'] for stage in ('import', 'data', 'prepare', 'identify'))
    at = lambda stage, peak: Process(
      *(stages[stage][one] for one in ('RssAnon', 'RssFile')),
      peak,
      *(stages[stage][one] for one in ('VmData', 'VmSize')),
    )  # noqa: E731
    end = stages['after report']
    compiled = held
    if program:
      step = program['temp'] + program['output'] - program['alias']
      compiled = held._replace(step=step, gradients=min(held.gradients, step))
    high = {'compile': max(stages[one]['VmHWM'] for one in ('start', 'forms', 'compile'))}
    high |= {stage: stages[stage]['VmHWM'] for stage in ('steps', 'evaluation', 'checkpoint', 'report')}
    files = {stage: stages[f'after {stage}']['RssFile'] for stage in high}
    result.append(
      Row(
        memory_cases.CASES[name],
        (held, compiled),
        at('after identify', first),
        at('after compile', high['compile']),
        high,
        files,
        run['peak'],
        stages['import']['VmRSS'],
        end['VmPeak'] - end['VmSize'] + end['VmData'],
        end['VmPeak'],
      )
    )
  return result


def fitted(known: list[Row]) -> dict[str, Any]:
  """The table, from rows of the calibration: for each stage non-negative factors, by relative squares."""
  import numpy as np
  from scipy.optimize import nnls

  from jaxlite.planning import memory, memory_table

  files = {stage: int(np.median([row.files[stage] for row in known])) for stage in memory.STAGES[2:]}
  table: dict[str, Any] = {'FILES': files, 'TABLE': {}}
  memory_table.FILES = files
  for basis in ('traced', 'compiled'):
    table['TABLE'][basis] = {}
    for cache in ('cold', 'warm'):
      chosen = [row for row in known if row.case.cache == cache]
      if (
        cache == 'warm' and len(chosen) < 6
      ):  # too few for all: programs that are read take a part of what compiling takes
        table['TABLE'][basis]['warm'] = _warmed(table['TABLE'][basis]['cold'], chosen, basis, files)
        continue
      of_stage = {}
      for stage in memory.STAGES[2 if basis == 'traced' else 3 :]:
        names = list(memory.features(stage, chosen[0].sizes[0], chosen[0].before))
        left = np.array([[_features(row, basis, stage)[name] for name in names] for row in chosen])
        right = np.array([_over(row, basis, stage, files) for row in chosen])
        weight = 1 / np.array([row.peak for row in chosen])
        scale = np.maximum(1e-9, np.abs(left).max(0))
        found = nnls(left / scale * weight[:, None], np.maximum(0, right) * weight)[0] / scale
        of_stage[stage] = {name: float(f'{value:.4g}') for name, value in zip(names, found, strict=True) if value > 0}
      table['TABLE'][basis][cache] = of_stage
  return table


def _warmed(cold: Any, chosen: list[Row], basis: str, files: dict[str, int]) -> Any:
  import numpy as np

  found = {}
  for stage, factors in cold.items():

    def off(share: float, stage: str = stage, factors: Any = factors) -> float:
      said = [
        sum(
          v * factors.get(n, 0) * (share if n in ('one', 'first', 'equations') else 1)
          for n, v in _features(row, basis, stage).items()
        )
        for row in chosen
      ]
      return sum(abs(a - _over(row, basis, stage, files)) for a, row in zip(said, chosen, strict=True))

    share = min(np.linspace(0, 1, 41), key=off) if chosen else 1.0
    found[stage] = {
      name: float(f'{value * (share if name in ("one", "first", "equations") else 1):.4g}')
      for name, value in factors.items()
    }
  return found


def _features(row: Row, basis: str, stage: str) -> dict[str, float]:
  from jaxlite.planning import memory

  return memory.features(stage, _sizes(row, basis), row.before if basis == 'traced' else row.after)


def _sizes(row: Row, basis: str) -> Any:
  return row.sizes[basis != 'traced']


def _over(row: Row, basis: str, stage: str, files: dict[str, int]) -> float:
  seen = row.before if basis == 'traced' else row.after
  return row.stages[stage] - seen.anonymous - max(seen.files, files[stage])


def install(table: dict[str, Any]) -> None:
  from jaxlite.planning import memory_table

  memory_table.TABLE, memory_table.FILES = table['TABLE'], table['FILES']
  memory_table.SPREAD = table.get('SPREAD', {'traced': 0.05, 'compiled': 0.03})
  memory_table.MARGIN = table.get('MARGIN', 0)


def said(row: Row, basis: str) -> Any:
  """The forecast of a row, corrected by nothing but the table."""
  from jaxlite.planning import memory

  seen = row.before if basis == 'traced' else row.after
  return memory.forecast(_sizes(row, basis), seen, basis, row.case.cache)


def report(known: list[Row], title: str, show: bool) -> None:
  import numpy as np

  for basis in ('traced', 'compiled'):
    errors, over, increase = [], 0, []
    for row in known:
      told = said(row, basis)
      errors.append(told.raw / row.peak - 1)
      increase.append((told.raw - row.peak) / (row.peak - row.started))
      over += row.peak > told.upper
      if show:
        print(
          f'  {basis:8} {row.case.name:76} {row.peak / 2**20:6.0f} {told.raw / 2**20:6.0f} {told.upper / 2**20:6.0f} {errors[-1]:+6.1%} {max(told.stages, key=lambda s: told.stages[s]):10} {max(row.stages, key=lambda s: row.stages[s])}'
        )
    print(
      f'{title} {basis:8} {len(known):3} configurations: total {np.mean(np.abs(errors)):.1%} (worst {np.max(np.abs(errors)):.0%}, mean {np.mean(errors):+.1%}), '
      f'increase over import {np.mean(np.abs(increase)):.1%}, above the bound {over}'
    )


def fit(path: Path, write: bool) -> None:
  import numpy as np

  known = rows(path)
  calibration = [row for row in known if row.case in memory_cases.CALIBRATION]
  table = fitted(calibration)
  install(table)
  spread = {}
  for basis in ('traced', 'compiled'):
    left_out = []
    for family in {row.case.family for row in calibration}:
      others = [row for row in calibration if row.case.family != family]
      install(fitted(others))
      left_out += [np.log(row.peak / said(row, basis).raw) for row in calibration if row.case.family == family]
    spread[basis] = float(np.sqrt(np.mean(np.square(left_out))))
    print(f'{basis}: leave one family out {np.mean(np.abs(left_out)):.1%}, spread {spread[basis]:.3f}')
  table['SPREAD'] = spread
  install(table)
  print(json.dumps(table))
  report(calibration, 'calibration', True)
  report([row for row in known if row.case not in memory_cases.CALIBRATION], 'held out', True)
  Path('/tmp/w/scr/mem_table.json').write_text(json.dumps(table))


def main() -> None:
  arguments = argparse.ArgumentParser(description=__doc__)
  arguments.add_argument('mode', choices=['measure', 'sizes', 'fit', 'report'])
  arguments.add_argument('--results', type=Path, required=True)
  arguments.add_argument('--seconds', type=float, default=500)
  arguments.add_argument('--repeats', type=int, default=1)
  arguments.add_argument('--kept', action='store_true')
  arguments.add_argument('--only', default='')
  arguments.add_argument('--cache', type=Path, default=Path('~/.cache/jaxlite-forecast').expanduser())
  given = arguments.parse_args()
  if given.mode == 'measure':
    work('run', given.results, given.seconds, given.repeats, given.kept, given.cache, given.only)
  elif given.mode == 'sizes':
    traced(given.results, given.seconds)
  elif given.mode == 'fit':
    fit(given.results, False)


if __name__ == '__main__':
  main()
