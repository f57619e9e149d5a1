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
from typing import Any

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


def work(mode: str, path: Path, seconds: float, repeats: int, kept: bool, cache: Path, only: str) -> None:
  """Runs processes, one after the other, until all is there or the time is up."""
  ends = time.monotonic() + seconds
  done = [(one['case'], one['kind']) for one in lines(path)]
  kind = mode if not kept else f'{mode} kept'
  for repeat in range(repeats):
    for case in interleaved():
      if only not in case.name or done.count((case.name, kind)) > repeat:
        continue
      if time.monotonic() > ends:
        print('left off')
        return
      shutil.rmtree(cache / 'jaxlite' / 'rewrites', ignore_errors=True)
      environment = {**os.environ, 'XDG_CACHE_HOME': str(cache)}
      command = [sys.executable, str(HERE / 'memory_worker.py'), mode, case.name, *(['kept'] if kept else [])]
      if case.cache == 'warm':
        subprocess.run([sys.executable, str(HERE / 'memory_worker.py'), 'run', case.name], capture_output=True, env=environment, check=False)
      ran = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
      if ran.returncode:
        found: dict[str, Any] = {'failed': ran.returncode, 'error': ran.stderr[-600:]}
      else:
        found = json.loads(ran.stdout.splitlines()[-1])
      with path.open('a') as file:
        file.write(json.dumps({'case': case.name, 'kind': kind, **found}) + '\n')
      print(case.name, kind, found.get('peak', 0) >> 20, found.get('error', '')[-300:], flush=True)
  print('all done')


def main() -> None:
  arguments = argparse.ArgumentParser(description=__doc__)
  arguments.add_argument('mode', choices=['measure', 'forecast', 'report'])
  arguments.add_argument('--results', type=Path, required=True)
  arguments.add_argument('--seconds', type=float, default=500)
  arguments.add_argument('--repeats', type=int, default=1)
  arguments.add_argument('--kept', action='store_true')
  arguments.add_argument('--only', default='')
  arguments.add_argument('--cache', type=Path, default=Path('~/.cache/jaxlite-forecast').expanduser())
  given = arguments.parse_args()
  if given.mode != 'report':
    mode = 'run' if given.mode == 'measure' else 'forecast'
    work(mode, given.results, given.seconds, given.repeats, given.kept, given.cache, given.only)


if __name__ == '__main__':
  main()
