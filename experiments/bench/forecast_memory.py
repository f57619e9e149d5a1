"""Forecast and actual memory of runs: by family calibrated and held out.

  python experiments/bench/forecast_memory.py all --results=FILE [--seconds=7200] [--repeats=3] [--held_out]
  python experiments/bench/forecast_memory.py measure --results=FILE [--seconds=7200] [--repeats=3] [--kept] [--large]
  python experiments/bench/forecast_memory.py report --results=FILE
  python experiments/bench/forecast_memory.py fit --results=FILE [--large] [--write=jaxlite/planning/memory_table.py]

`measure` trains each configuration of `memory_cases.py` in processes of their own, one after the other, and appends to
a file of JSON lines their peaks (the kernel's VmHWM) and what their own forecasts began from. It goes on where it was
stopped, and leaves off after so many seconds. `report` compares what the table of the package forecasts, before
compiling and after, with the median of the processes; `fit` makes that table anew, from the configurations of the
calibration alone. `all` measures, then reports. A further series is `--kept`: the same with freed memory kept mapped.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
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
flags.DEFINE_bool('held_out', False, 'the configurations that the table was not made from alone')
flags.DEFINE_bool('calibration', False, 'the configurations that the table is made from alone')
flags.DEFINE_bool('large', False, 'the networks whose weights are most of what is held, alone')
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
  """Takes a piece of work, unless another series beside this one is at it."""
  mark = path.with_suffix('.claims') / what.replace('/', '_')
  mark.parent.mkdir(exist_ok=True)
  with contextlib.suppress(OSError, ValueError):
    os.kill(int(mark.read_text()), 0)
    return int(mark.read_text()) == os.getpid()
  mark.write_text(str(os.getpid()))
  return True


def work(path: Path, seconds: float, repeats: int, kept: bool, cache: Path, cases: list[memory_cases.Case]) -> None:
  """Runs processes, one after the other, until all is there or the time is up."""
  ends = time.monotonic() + seconds
  mode, kind = 'run', 'run kept' if kept else 'run'
  for repeat in range(repeats):
    for case in cases:
      done = [(one['case'], one['kind']) for one in lines(path) if 'peak' in one]  # other series may add to it
      if done.count((case.name, kind)) > repeat:
        continue
      if time.monotonic() > ends:
        print('left off')
        return
      if not claimed(path, f'{case.name} {kind} {repeat}'):
        continue
      for learned in ('rewrites', 'forecasts'):  # each process is the first on its machine
        shutil.rmtree(cache / 'jaxlite' / learned, ignore_errors=True)
      environment = {**os.environ, 'XDG_CACHE_HOME': str(cache)}
      command = [sys.executable, str(HERE / 'memory_worker.py'), mode, case.name, *(['kept'] if kept else [])]
      if case.cache == 'warm':
        subprocess.run(
          [sys.executable, str(HERE / 'memory_worker.py'), 'run', case.name],
          capture_output=True,
          env=environment,
          check=False,
          timeout=600,
        )
      try:
        ran = subprocess.run(command, capture_output=True, text=True, env=environment, check=True, timeout=600)
        found: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
      except (subprocess.SubprocessError, ValueError, IndexError) as error:
        found = {
          'failed': getattr(error, 'returncode', None),
          'error': str(getattr(error, 'stderr', '') or error)[-600:],
        }
      with path.open('a') as file:
        file.write(json.dumps({'case': case.name, 'kind': kind, **found}) + '\n')
      print(case.name, kind, found.get('peak', 0) >> 20, found.get('error', '')[-300:], flush=True)
  print('all done')


def main(arguments: list[str]) -> None:
  """Does what the first argument says."""
  mode, results = arguments[1] if len(arguments) > 1 else '', Path(FLAGS.results)
  cache = Path(FLAGS.cache).expanduser()
  if mode not in ('all', 'measure', 'report', 'fit'):
    raise app.UsageError('name what is to be done: all, measure, report or fit')
  if mode in ('all', 'measure'):
    cases = list(memory_cases.HELD_OUT) if FLAGS.held_out else interleaved()
    cases = list(memory_cases.CALIBRATION) if FLAGS.calibration else cases
    cases = [*memory_cases.LARGE, *memory_cases.LARGE_HELD_OUT] if FLAGS.large else cases
    cases = [case for case in cases if FLAGS.only in case.name]
    work(results, FLAGS.seconds, FLAGS.repeats, FLAGS.kept, cache, cases)
  if mode != 'measure':
    import memory_fit

    with tempfile.TemporaryDirectory() as empty:  # where nothing was learned yet
      os.environ['XDG_CACHE_HOME'] = empty
      if mode == 'fit':
        memory_fit.fit(results, Path(FLAGS.write) if FLAGS.write else None, FLAGS.large)
      else:
        memory_fit.report(results)


if __name__ == '__main__':
  flags.mark_flag_as_required('results')
  app.run(main)
