"""Forecast and actual memory of runs: by family calibrated and held out.

  python experiments/bench/forecast_memory.py measure --results=FILE [--seconds=500] [--repeats=3] [--kept]
  python experiments/bench/forecast_memory.py sizes --results=FILE [--seconds=500]
  python experiments/bench/forecast_memory.py report --results=FILE
  python experiments/bench/forecast_memory.py fit --results=FILE [--write=jaxlite/planning/memory_table.py]

`measure` trains each configuration of `memory_cases.py` in processes of their own and appends their peaks (the kernel's
VmHWM) to a file of JSON lines; `sizes` appends what is told of each from its jaxpr. Both go on where they were stopped,
and leave off after so many seconds. `report` compares what the table of the package forecasts, before compiling and
after, with the median of the processes; `fit` makes that table anew, from the configurations of the calibration alone.
A third series is `--kept`: the same with freed memory kept mapped.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import memory_cases
from absl import app, flags

FLAGS = flags.FLAGS
flags.DEFINE_string('results', None, 'a file of JSON lines')
flags.DEFINE_float('seconds', 500, 'after which no further configuration begins')
flags.DEFINE_integer('repeats', 1, 'processes of each configuration')
flags.DEFINE_bool('kept', False, 'freed memory stays mapped')
flags.DEFINE_string('only', '', 'configurations whose name holds this')
flags.DEFINE_string('of', '', 'sizes of the configurations in this file of results alone')
flags.DEFINE_string('write', '', "the package's table, written anew")
flags.DEFINE_string('cache', '~/.cache/jaxlite-forecast', 'in place of the caches of the user')

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


def traced(path: Path, seconds: float, measured: Path | None) -> None:
  """Appends the sizes of each configuration, from its jaxpr."""
  import tempfile

  import memory_worker

  from jaxlite.planning import programs, sizes
  from jaxlite.run.foreseen import job_of
  from jaxlite.run.setup import prepare

  ends, done = time.monotonic() + seconds, {one['case'] for one in lines(path) if one['kind'] == 'sizes'}
  ran = {one['case'] for one in lines(measured)} if measured is not None else set(memory_cases.CASES)
  for case in interleaved():
    if case.name in done or case.name not in ran:
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


def main(arguments: list[str]) -> None:
  """Does what the first argument says."""
  mode, results = arguments[1] if len(arguments) > 1 else '', Path(FLAGS.results)
  cache = Path(FLAGS.cache).expanduser()
  if mode == 'measure':
    work('run', results, FLAGS.seconds, FLAGS.repeats, FLAGS.kept, cache, FLAGS.only)
  elif mode == 'sizes':
    traced(results, FLAGS.seconds, Path(FLAGS.of) if FLAGS.of else None)
  elif mode in ('fit', 'report'):
    import memory_fit

    os.environ['XDG_CACHE_HOME'] = str(cache)  # where nothing was learned yet
    if mode == 'fit':
      memory_fit.fit(results, Path(FLAGS.write) if FLAGS.write else None)
    else:
      memory_fit.report(results)
  else:
    raise app.UsageError('name what is to be done: measure, sizes, fit or report')


if __name__ == '__main__':
  flags.mark_flag_as_required('results')
  app.run(main)
