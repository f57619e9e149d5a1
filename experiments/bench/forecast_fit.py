"""How near `--mode=fit` comes to the fastest form that fits, found by trying all of them.

    python experiments/bench/forecast_fit.py --results=FILE [--jobs=10] [--first=100] [--rounds=3] [--seconds=7200]
    python experiments/bench/forecast_fit.py --results=FILE --report

The jobs are the random ones of `tests/run/test_fit.py`, as long runs (100,000 steps, of which few are taken), each
under its limit of the data segment (RLIMIT_DATA). For each, `fit` looks for a form first; then every form that it may
choose among, with freed memory kept and without, is run under the same limit, in processes of their own: all once for a
few steps, then those within six tenths of the best for three seconds each, in turn with the chosen one. A form counts
where it came through each time, once more where it died; those that differ in the evaluation's batch alone have the
same step, and are timed together, by the long turns alone. The share is the best form's median step by the chosen
one's: 1 where they are the same. A file that exists is gone on with; a table is printed at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
EXPERIMENT = ROOT / 'tests' / 'run' / 'fitted.py'
LONG = 100_000  # steps: what makes a search for speed worth its trials
NEAR = 1.6  # of the best step: what is run again


def lines(path: Path) -> list[dict[str, Any]]:
  return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def measure(path: Path, first: int, jobs: int, rounds: int, seconds: float) -> None:
  """Measures jobs until all are there or the time is up."""
  ends, done = time.monotonic() + seconds, {one['seed'] for one in lines(path)}
  for seed in range(first, first + jobs):
    if seed in done:
      continue
    if time.monotonic() > ends:
      print('left off')
      return
    command = [sys.executable, str(Path(__file__)), f'--one={seed}', f'--rounds={rounds}', f'--results={path}']
    with tempfile.TemporaryDirectory() as place:
      environment = {**os.environ, 'JOB': str(Path(place, 'job.json')), 'XDG_CACHE_HOME': str(Path(place, 'cache'))}
      environment['PYTHONPATH'] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get('PYTHONPATH', '')]))
      ran = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, check=False)
    if ran.returncode:
      print(seed, 'failed:', ran.stderr.strip().splitlines()[-1:], flush=True)
      continue
    found = json.loads(ran.stdout.splitlines()[-1])
    with path.open('a') as file:
      file.write(json.dumps(found) + '\n')
    print(row(found), flush=True)


def one(seed: int, rounds: int) -> dict[str, Any]:
  """Searches and tries one job; this process's own limit is that of the job, and those it starts inherit it."""
  import resource

  sys.path.insert(0, str(ROOT / 'tests'))
  from jaxlite.run import fitting
  from jaxlite.run.trial import MARGIN, Source, asked
  from random_jobs import random_job

  job, limit = random_job(seed)
  job['steps'] = LONG
  Path(os.environ['JOB']).write_text(json.dumps(job))
  resource.setrlimit(resource.RLIMIT_DATA, (limit << 20,) * 2)
  source = Source(str(EXPERIMENT), [], str(ROOT), False, 'run')
  said: list[str] = []
  began = time.monotonic()
  chosen = fitting.search(source, '', said.append).fields
  searched = time.monotonic() - began
  told = asked(source, '', 'outlook')
  forms = [{**form['fields'], **kept} for form in told['forms'] for kept in ({}, {'machine.keep_memory': False})]
  forms += [] if chosen in forms else [chosen]
  first: dict[int, float] = {}
  steps: list[list[float]] = [[] for _ in forms]
  for turn in range(rounds):
    alive = [i for i, some in enumerate(steps) if turn == 0 or (i in first and len(some) == turn - 1)]
    best = min(first.values(), default=0.0)
    alive = [i for i in alive if turn == 0 or forms[i] == chosen or first[i] <= NEAR * best]
    for i in alive:
      step = _ran(source, forms[i], first.get(i))
      if step is not None and turn:
        steps[i].append(step)
      elif step is not None:
        first[i] = step
  pooled: dict[str, list[float]] = {}
  for form, some in zip(forms, steps, strict=True):
    pooled.setdefault(_step_of(form), []).extend(some)
  through = {
    i: statistics.median(pooled[_step_of(forms[i])]) for i, some in enumerate(steps) if len(some) == rounds - 1
  }
  own = through.get(forms.index(chosen))
  return {
    **{'seed': seed, 'job': job, 'limit': limit, 'chosen': chosen, 'chosen_step': own, 'searched': searched},
    **{'best': forms[min(through, key=through.__getitem__)] if through else None, 'margin': MARGIN},
    **{'best_step': min(through.values(), default=None), 'tried': len(forms), 'through': len(through), 'said': said},
  }


def _ran(source: Any, form: dict[str, Any], step: float | None) -> float | None:
  """Seconds of a step; None where a form died twice: the second time what was compiled lies in the cache, and a run
  that dies begins again too."""
  from jaxlite.run.trial import Died, asked

  for _ in range(2):
    try:
      return asked(source, '', 'trial', fields=form, step=step)['step']
    except ValueError:
      return None
    except Died:
      continue
  return None


def _step_of(form: dict[str, Any]) -> str:
  """What a form's step is told by: of two that differ in the evaluation's batch alone the same program is timed."""
  return json.dumps({path: value for path, value in form.items() if path != 'eval.batch_size'}, sort_keys=True)


def share(found: dict[str, Any]) -> float:
  return found['best_step'] / found['chosen_step'] if found['chosen_step'] else 0.0


def row(found: dict[str, Any]) -> str:
  job = found['job']
  form = f'{job["kind"]} {job["width"]}x{job["depth"]}, batch {job["batch"]}'
  step = [f'{1e3 * one:.1f}' if one else 'died' for one in (found['chosen_step'], found['best_step'])]
  found_best = found['best'] or 'as it is'
  cells = [found['seed'], form, found['limit'], found['chosen'] or 'as it is', step[0], found_best, step[1]]
  cells += [f'{share(found):.0%}', f'{found["searched"]:.0f}']
  return f'| {" | ".join(map(str, cells))} |'


def report(found: list[dict[str, Any]]) -> None:
  """Prints a row for each job, and how many come near enough."""
  print('| job | form | MiB | chosen | ms | the best that fits | ms | share | s to find |')
  print('|--:|---|--:|---|--:|---|--:|--:|--:|')
  for one in found:
    print(row(one))
  near = sum(share(one) >= 0.9 for one in found)
  print(f'{near} of {len(found)} jobs at 90 % of the best form that fits, or more')


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--results', type=Path, required=True)
  parser.add_argument('--jobs', type=int, default=10)
  parser.add_argument('--first', type=int, default=100)
  parser.add_argument('--rounds', type=int, default=3, help='one short, the others long')
  parser.add_argument('--seconds', type=float, default=7200)
  parser.add_argument('--one', type=int)
  parser.add_argument('--report', action='store_true')
  args = parser.parse_args()
  if args.one is not None:
    print(json.dumps(one(args.one, args.rounds)))
    return
  if not args.report:
    measure(args.results.absolute(), args.first, args.jobs, args.rounds, args.seconds)
  report(lines(args.results))


if __name__ == '__main__':
  main()
