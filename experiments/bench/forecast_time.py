"""How well the duration of a run is told: from its cost alone, and from a little probing; beside the run run again.

    python experiments/bench/forecast_time.py all --results=FILE [--seconds=7200]
    python experiments/bench/forecast_time.py measure --results=FILE [--seconds=500] [--only=linen] [--held_out]
    python experiments/bench/forecast_time.py report --results=FILE
    python experiments/bench/forecast_time.py retell --results=FILE --out=FILE [--free=2]
    python experiments/bench/forecast_time.py fit --results=FILE [--kernels=FILE]
    python experiments/bench/forecast_time.py rival

`measure` takes the configurations of `memory_cases.py` in turn, each in a process of its own: the forecast from its
cost is made first; then probe and run alternate, probe, run, probe, run. A run is so many steps as the loop takes them,
evaluations between, and a checkpoint. Its seconds on the clock and of all cores are kept, and the load. The file is
gone on with; `all` measures, then reports. `report` prints errors beside the difference of a run and its repetition,
and how often the interval holds the run: families that the factors were fitted on apart from others. `retell` tells
configurations that were measured by the code of now, from their cost. `fit` finds the factors of `planning/speed.py` on
the first, by CPU seconds. `rival` tells forward passes with neural-cost (`pip install neural-cost`) beside ours.
"""

from __future__ import annotations

import argparse
import collections
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import memory_cases
import numpy as np

HERE = Path(__file__).parent
PROBE_SECONDS = 1.5
RUN_SECONDS = 2.5
FITTED = {case.name for case in memory_cases.CALIBRATION}


def lines(path: Path) -> list[dict[str, Any]]:
  return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def interleaved() -> list[memory_cases.Case]:
  """Configurations of both sets in turn, so that a series that is stopped holds some of each."""
  sets = [[case for case in one if case.cache == 'cold'] for one in (memory_cases.CALIBRATION, memory_cases.HELD_OUT)]
  whole = max(map(len, sets))
  placed = [(i * whole / len(one), index, case) for index, one in enumerate(sets) for i, case in enumerate(one)]
  return [case for *_, case in sorted(placed, key=lambda triple: triple[:2])]


def held_out() -> list[memory_cases.Case]:
  """Configurations that nothing was fitted to, the first of each family before the second."""
  seen: collections.Counter[str] = collections.Counter()
  placed = []
  for case in interleaved():
    if case.name not in FITTED:
      placed.append((seen[case.family], case))
      seen[case.family] += 1
  return [case for _, case in sorted(placed, key=lambda pair: pair[0])]


def measure(path: Path, seconds: float, only: str, alone: bool) -> None:
  """Measures configurations until all are there or the time is up; one that failed is tried once more at the end."""
  ends, done = time.monotonic() + seconds, {one['case'] for one in lines(path)}
  cases = held_out() if alone else interleaved()
  waiting = [case for case in cases if case.name not in done and only in case.name]
  for case in (*waiting, *waiting):
    if case.name in done:
      continue
    if time.monotonic() > ends:
      print('left off')
      return
    command = [sys.executable, str(Path(__file__)), 'one', f'--results={path}', f'--only={case.name}']
    try:
      ran = subprocess.run(command, capture_output=True, text=True, check=True, timeout=900)
      found = json.loads(ran.stdout.splitlines()[-1])
    except (subprocess.SubprocessError, ValueError, IndexError) as error:
      said = str(getattr(error, 'stderr', '') or error).strip().splitlines()[-1:]
      print(case.name, 'failed:', said, flush=True)
      continue
    done.add(case.name)
    with path.open('a') as file:
      file.write(json.dumps(found) + '\n')
    told, was = found['cost']['step'], np.median([one['step'] for one in found['runs']])
    print(f'{case.name}: {1e3 * told:.2f} ms told, {1e3 * was:.2f} ms', flush=True)
  print('all done')


def job_of(case: memory_cases.Case, folder: Path) -> Any:
  """The run of a configuration, before its first step, and its network."""
  import memory_worker

  from jaxlite.run import jobs
  from jaxlite.run.setup import prepare

  model, data = memory_worker.made(case)
  setup = prepare(memory_cases.config(case, ''), folder, model, data)
  return jobs.job_of(setup)._replace(total=100_000, log=50, evaluate=2_000, checkpoint=5_000)


def one(name: str) -> dict[str, Any]:
  """Measures one configuration in this process."""
  import jax

  from jaxlite.host import allocator, machine
  from jaxlite.host.crowd import clocks, free_cores
  from jaxlite.planning import probing
  from jaxlite.planning.reference import rates

  case = memory_cases.CASES[name]
  allocator.share_one_arena()
  known, before = rates(), clocks()
  cores = machine.cores()
  with tempfile.TemporaryDirectory() as text:
    folder = Path(text)
    job = job_of(case, folder)
    told = by_cost(job, known, free_cores(since=before))
    key = jax.random.key(0)
    clock = time.process_time()
    probe = probing.Probe(job, job.train.init(key, job.batch), folder)
    compiled = time.process_time() - clock
    allocator.keep_mapped()
    choosing = probe.choose()
    load, probes, runs = os.getloadavg()[0], [], []
    for _ in range(2):
      probes.append(probe.run(PROBE_SECONDS)._asdict())
      runs.append(ran(probe, RUN_SECONDS))
  return {
    **{'case': name, 'fitted': name in FITTED, 'load': [load, os.getloadavg()[0]], 'probes': probes, 'runs': runs},
    **{'cores': cores, 'compile_wall': probe.compiling, 'compile_cpu': compiled},
    **{'choosing': choosing, 'at_once': probe.at_once, **told},
  }


def by_cost(job: Any, known: Any, free: float) -> dict[str, Any]:
  """What is told of a run from its cost alone, nothing learned, and what that was made of."""
  from jaxlite.host import machine
  from jaxlite.planning import duration, speed
  from jaxlite.planning.cost import equations

  began = time.process_time()
  told = duration.forecast(job, known, among=(), crowd=free)
  took = time.process_time() - began
  step, evaluation = duration.costs(job)
  wide = {
    name: (math.log(one.seconds / one.low), math.log(one.high / one.seconds))
    for name in told.raw
    if (one := getattr(told, name))
  }
  quiet = duration.elapsed(duration.costs(job)[0], known, free).spread
  return {
    **{'cost': told.raw, 'wide': wide, 'processor': told.processor, 'seconds': took, 'free': free, 'quiet': quiet},
    **{'groups': speed.by_group(step.usual, known, machine.cores()), 'features': told.features},
    **{'equations': [equations(step), equations(evaluation)], 'flops': step.flops, 'said': [*told.said]},
  }


def retold(path: Path, out: Path, free: float | None) -> None:
  """Tells what was measured anew, by the code of now, from its cost alone.

  Args:
    path: of what was measured.
    out: what is told stands there, in the place of what was.
    free: cores that others left, in the place of what was told then.
  """
  from jaxlite.planning.reference import rates

  done = {one['case'] for one in lines(out)}
  for found in lines(path):
    if found['case'] in done:
      continue
    with tempfile.TemporaryDirectory() as folder:
      told = by_cost(job_of(memory_cases.CASES[found['case']], Path(folder)), rates(), free or found['free'])
    with out.open('a') as file:
      file.write(json.dumps({**found, **told}) + '\n')


def ran(probe: Any, seconds: float) -> dict[str, float]:
  """A run of about so many seconds: steps, evaluations between, a checkpoint at its end."""
  from jaxlite import checkpoint

  each, _ = probe.steps(1)
  count = max(4, min(20_000, int(seconds / 4 / max(each, 1e-6))))
  began, cpu, steps, evaluations, walls = time.perf_counter(), time.process_time(), 0, 0, 0.0
  with checkpoint.Checkpoints(probe.folder / 'run', keep=1, log=lambda line: None) as saves:
    for _ in range(4):
      wall, of_all = probe.steps(count)
      steps += count
      walls += wall * count
      for _ in range(2):
        probe.evaluate(1)
        evaluations += 1
    probe.write(saves, int(time.time()))
  return {
    'seconds': time.perf_counter() - began, 'cpu': time.process_time() - cpu, 'steps': steps,
    'evaluations': evaluations, 'step': walls / steps, 'step_cpu': of_all,
  }  # fmt: skip


def told_by_probe(one: dict[str, Any], i: int) -> float:
  """Seconds of the run behind a probe."""
  probe, run = one['probes'][i]['seconds'], one['runs'][i]
  batches = run['evaluations'] * one['probes'][i]['batch']
  return run['steps'] * probe['step'] + batches + probe['checkpoint']


def fit(found: list[dict[str, Any]], small: list[dict[str, Any]]) -> dict[str, float]:
  """Finds factors of groups on CPU seconds, by relative error, each drawn towards what it is now.

  Args:
    found: steps that were measured; of them those of the fitted set.
    small: programs of one kind of kernel, as `kernel_cases.py` measures them: a tenth as weighty each.
  """
  from jaxlite.planning import speed

  steps = [one for one in found if one['fitted']]
  names = sorted(speed.FACTORS)
  actual = np.array([min(r['step_cpu'] for r in one['runs']) for one in steps] + [one['processor'] for one in small])
  rows = [[one['groups'].get(name, (0, 0))[0] for name in names] for one in (*steps, *small)]
  parts = np.array(rows) / actual[:, None]
  weights = np.array([1.0] * len(steps) + [0.1] * len(small))
  start = np.log([speed.FACTORS[name] for name in names])
  logs = start.copy()
  for _ in range(4000):  # gradient descent on the squared logarithms, and on those of the factors
    sums = parts * np.exp(logs)
    total = sums.sum(1)
    pull = np.tanh(np.log(total) / 0.5) * weights / weights.sum()  # one that is far off pulls no more than others
    slope = (sums / total[:, None] * pull[:, None]).sum(0) + 0.01 * (logs - start)
    logs -= 0.3 * slope
  return {name: round(float(value), 2) for name, value in zip(names, np.exp(logs), strict=True)}


def off(told: float, was: float) -> float:
  return abs(math.log(told / was))


def again(one: dict[str, Any], what: str = 'step') -> float:
  """How far a run and its repetition are apart."""
  return off(one['runs'][0][what], one['runs'][1][what])


def within(one: dict[str, Any], what: str, told: float, was: float) -> bool:
  """Whether the interval of a forecast by cost holds what was: of processor seconds, which others do not take, that of
  a machine that stays as it is."""
  apart, (below, above) = math.log(was / told), one['wide'][what]
  if told == one['processor']:
    below = above = 1.2816 * one['quiet']
  return -below <= apart <= above


def compiled(one: dict[str, Any]) -> float:
  """Seconds of compiling all programs of a run, choosing how many steps are sent at once included."""
  return one['probes'][0]['seconds']['compile']


def pairs(one: dict[str, Any]) -> list[tuple[Any, Any]]:
  return list(zip(one['probes'], one['runs'], strict=True))


# What is told of a configuration, and how far off it is: each time that it was.
COLUMNS = {
  'run against itself': lambda o: [again(o)],
  'its CPU': lambda o: [again(o, 'step_cpu')],
  'step by cost': lambda o: [off(o['cost']['step'], r['step']) for r in o['runs']],
  'its CPU by cost': lambda o: [off(o['processor'], r['step_cpu']) for r in o['runs']],
  'step by probe': lambda o: [off(p['seconds']['step'], r['step']) for p, r in pairs(o)],
  'its CPU by probe': lambda o: [off(p['processor'], r['step_cpu']) for p, r in pairs(o)],
  'run by probe': lambda o: [off(told_by_probe(o, i), r['seconds']) for i, r in enumerate(o['runs'])],
  'compiling by cost': lambda o: [off(o['cost']['compile'], compiled(o))],
}


def report(found: list[dict[str, Any]]) -> None:
  """Prints errors and coverage, by set and by family."""
  groups = collections.defaultdict(list)
  for one in found:
    groups['fitted' if one['fitted'] else 'held out'].append(one)
    groups[one['case'].split('/')[0]].append(one)
  load = np.median([one['load'][0] for one in found])
  print(f'{len(found)} configurations, load {load:.1f}; median errors in %, and the worst')
  print(f'| set | n | {" | ".join(COLUMNS)} | cost holds | CPU | compiling | probe |')
  print('|---|' + '--:|' * (len(COLUMNS) + 5))
  for name, rows in groups.items():
    cells = []
    for column in COLUMNS.values():
      errors = [100 * math.expm1(error) for one in rows for error in column(one)]
      cells.append(f'{np.median(errors):.0f} ({max(errors):.0f})')
    by_cost = [within(one, 'step', one['cost']['step'], r['step']) for one in rows for r in one['runs']]
    by_cpu = [within(one, 'step', one['processor'], r['step_cpu']) for one in rows for r in one['runs']]
    by_compiling = [within(one, 'compile', one['cost']['compile'], compiled(one)) for one in rows]
    by_probe = [
      off(p['seconds']['step'], r['step']) <= 1.2816 * p['spreads']['step'] for one in rows for p, r in pairs(one)
    ]
    holds = ' | '.join(f'{np.mean(one):.0%}' for one in (by_cost, by_cpu, by_compiling, by_probe))
    print(f'| {name} | {len(rows)} | {" | ".join(cells)} | {holds} |')
  undisturbed = [
    one for one in groups['held out'] if min(r['step_cpu'] / r['step'] for r in one['runs']) > 0.9 * one['cores']
  ]
  if undisturbed:
    errors = [abs(math.expm1(math.log(o['cost']['step'] / r['step']))) for o in undisturbed for r in o['runs']]
    held = np.mean([within(o, 'step', o['cost']['step'], r['step']) for o in undisturbed for r in o['runs']])
    print(
      f'held out, {len(undisturbed)} whose runs had all cores to themselves: a step by cost is {np.median(errors):.0%} '
      f'off in the median, {np.mean(errors):.0%} in the mean, {max(errors):.0%} at worst; the interval holds {held:.0%}'
    )
  for which, limit in (('cost', 1.10), ('probe', 1.05)):
    for name in ('fitted', 'held out'):
      met = []
      for one in groups[name]:
        told = one['cost']['step'] if which == 'cost' else one['probes'][0]['seconds']['step']
        met.append(off(told, one['runs'][0]['step']) <= max(math.log(limit), 1.5 * again(one)))
      if met:
        print(
          f'{name}: a step by {which} is off by at most the larger of {100 * (limit - 1):.0f} % and 1.5 times the run '
          f'against itself in {np.mean(met):.0%} of {len(met)}'
        )


def rival(seconds: float, only: str) -> None:
  """Tells forwards by neural-cost, calibrated here but never on a network, and by our own figures, and times them
  (the least of up to 200 times)."""
  import jax
  import jax.extend
  from neural_cost.adapters import JaxAdapter
  from neural_cost.estimate import estimate_operation

  from jaxlite.host import machine
  from jaxlite.planning import speed
  from jaxlite.planning.cost import cost
  from jaxlite.planning.reference import rates

  adapter, known, cores = JaxAdapter(), rates(), machine.cores()
  calibration, ends = adapter.calibrate(), time.monotonic() + seconds
  errors: dict[str, list[float]] = {'neural-cost': [], 'jaxlite': []}
  print('| forward | ms | ms by neural-cost | ms by jaxlite |\n|---|--:|--:|--:|')
  for case in (one for one in interleaved() if only in one.name and one.name not in FITTED):
    if time.monotonic() > ends:
      break
    with tempfile.TemporaryDirectory() as folder:
      job = job_of(case, Path(folder))
    state = job.train.init(jax.random.key(0), job.batch)
    forward = jax.jit(lambda state, batch, job=job: job.train.eval(state, batch)[0])
    jax.block_until_ready(forward(state, job.batch))
    times = []
    while len(times) < 5 or (len(times) < 200 and sum(times) < 0.5):
      began = time.perf_counter()
      jax.block_until_ready(forward(state, job.batch))
      times.append(time.perf_counter() - began)
    read = (state.params, state.model_state, state.const, state.step)
    program = job.train.programs.jaxpr(state, job.batch)[1]
    plain = jax.extend.core.jaxpr_as_fun(program)
    operations = adapter.operations(plain, tuple(jax.tree.leaves((read, job.batch))))
    execution, _ = calibration.predict([estimate_operation(one) for one in operations])
    told = {  # a compiled forward is one dispatch, not one for each operation
      'neural-cost': execution + calibration.call_overhead_seconds + calibration.dispatch_seconds,
      'jaxlite': speed.spent(cost(program).usual, known, cores).wall + known.dispatch,
    }
    was = min(times)  # others' work makes a forward longer, never shorter
    for name, value in told.items():
      errors[name].append(abs(value / was - 1))
    print(
      f'| {case.name} | {1e3 * was:.2f} | ' + ' | '.join(f'{1e3 * one:.2f}' for one in told.values()) + ' |', flush=True
    )
  for name, some in errors.items():
    print(f'{name}: mean {np.mean(some):.0%}, median {np.median(some):.0%} off, {len(some)} forwards')


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('mode', choices=['all', 'measure', 'one', 'report', 'retell', 'fit', 'rival'])
  parser.add_argument('--results', type=Path)
  parser.add_argument('--out', type=Path)
  parser.add_argument('--free', type=float)
  parser.add_argument('--kernels', type=Path)
  parser.add_argument('--held_out', action='store_true')
  parser.add_argument('--seconds', type=float, default=500)
  parser.add_argument('--only', default='')
  args = parser.parse_args()
  if args.mode in ('all', 'measure'):
    measure(args.results, args.seconds, args.only, args.held_out)
    if args.mode == 'all':
      report(lines(args.results))
  elif args.mode == 'one':
    print(json.dumps(one(args.only)))
  elif args.mode == 'rival':
    rival(args.seconds, args.only)
  elif args.mode == 'retell':
    retold(args.results, args.out, args.free)
    report(lines(args.out))
  elif args.mode == 'fit':
    print(fit(lines(args.results), lines(args.kernels) if args.kernels else []))
  else:
    report(lines(args.results))


if __name__ == '__main__':
  main()
