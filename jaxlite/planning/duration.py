"""How long a run takes: compiling, steps, evaluations, checkpoints, input; told from its programs' cost alone.

Probing (`probing.py`) tells it better, from running a little of it. What came of earlier forecasts on this machine is
learned from in both.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from jaxlite.host import machine
from jaxlite.host.crowd import free_cores
from jaxlite.host.limits import usable_cores
from jaxlite.host.rates import Rates
from jaxlite.planning import calibration, speed
from jaxlite.planning.branches import BY_DATA
from jaxlite.planning.calibration import Outcome
from jaxlite.planning.cost import Cost, cost
from jaxlite.planning.elapsed import EIGHTY, elapsed
from jaxlite.planning.flow import size_of
from jaxlite.planning.job import Job
from jaxlite.step import multi_step

# Standard deviations of log(actual / forecast), where this machine has not taught better.
SPREADS = {'compile': 0.3, 'step': 0.35, 'evaluation': 0.4, 'checkpoint': 0.7, 'input': 0.7, 'rest': 0.5, 'total': 0.3}
_LEARNED = 2.0  # outcomes of this machine that say as much of others on it as nothing being known
_EVALUATION = 0.2  # by which an evaluation is less sure than a step
_FIRST = 3.0  # seconds from the start of a process to its first step, beside compiling: data, the first state
_BEFORE = 1.5  # of them, those that are over when a run tells its forecast
_REPORT = 3.5  # of a run's end: tables, figures, the inventory
_IMPROVED = 0.5  # of all evaluations, and then a checkpoint is written
# Processor seconds of compiling on the machine that this was fitted on: of a program, of a kernel, of products and
# convolutions that differ, and of loading what runs convolutions. A further program finds much of JAX at work already.
_COMPILING = {'program': 1.2, 'kernel': 0.0055, 'product': 0.2, 'convolution': 0.04, 'convolutions': 1.8}
_FURTHER = 0.6
_COMPILING_AT_ONCE = 0.58  # of them, what the clock shows where there are two cores: a part is compiled by several
_COMPILED = 2.8  # of the programs that `Rates.more` counts as 'compiling', in a second, on that machine
# Seconds that a step takes in Python where it is sent alone, and where many are sent at once.
_ALONE, _TOGETHER = 1.5e-4, 8e-6
_REFERENCE = 1.2e11  # FLOP/s of float32 products on one core there, for a machine whose compiling was not timed


class Duration(NamedTuple):
  """Seconds, with the interval that holds 80 of 100.

  Attributes:
    seconds: the middle.
    low, high: its ends.
  """

  seconds: float
  low: float
  high: float


class Durations(NamedTuple):
  """Of a run.

  Attributes:
    compile: of all its programs, once.
    step: one step on average, its input included.
    evaluation: one evaluation of the validation split.
    checkpoint: writing one.
    input: making one batch.
    total: of the whole run, from its start to its end.
    basis: 'cost' (nothing was run) or 'probe'.
    counts: how often the run does each: 'step', 'evaluation', 'checkpoint'.
    said: what was left out or assumed, a line each.
    rest: what is neither of these: the start of the process, the data, testing, the report.
    processor: seconds of all cores together that one step takes.
    raw: the middles before what was learned on this machine, by name: what `outcomes` keeps.
    features: what a correction depends on.
  """

  compile: Duration
  step: Duration
  evaluation: Duration
  checkpoint: Duration
  input: Duration
  total: Duration
  basis: str
  counts: dict[str, int]
  said: tuple[str, ...] = ()
  rest: Duration = Duration(0.0, 0.0, 0.0)
  processor: float = 0.0
  raw: Mapping[str, float] = {}
  features: Mapping[str, float] = {}


def forecast(job: Job, rates: Rates, *, among: Any = None, crowd: float | None = None) -> Durations:
  """Returns how long a run will take, from its programs' cost and this machine's rates; nothing is compiled or run.

  Args:
    job: the run.
    rates: of this machine.
    among: outcomes to learn from; this machine's where it is not given.
    crowd: cores that others leave to this process; None asks the machine.
  """
  cores = machine.cores()
  free = free_cores() if crowd is None else crowd
  step, eval_ = costs(job)
  in_c = job.rewrites and _has_kernels()
  of_step, of_batch = (elapsed(one, rates, free, in_c) for one in (step, eval_))
  batches = lambda count: math.ceil(count / max(1, job.evaluation))  # noqa: E731
  moved = 2.0 * _bytes(job.batch) / rates.memory
  read = job.decoding / max(1.0, min(cores, free))  # an example, by all cores: decoding takes them from the step
  taken = len(job.batch['weight']) * read + job.making
  gap = min(job.total, job.log, job.evaluate, job.checkpoint)
  convolves = any(one.kind in ('convolutions', 'depthwise') for one in step.operations)
  several = gap >= multi_step.least(gap) and of_step.wall < multi_step.SLOW_SECONDS and not convolves
  sent = _TOGETHER if several else _ALONE
  programs = (step, eval_, step) if several else (step, eval_)
  raw = {
    'compile': _slower(rates, cores) * compiling(*programs) * max(_COMPILING_AT_ONCE, 1 / free),
    'step': of_step.wall + (0.0 if several else rates.dispatch) + moved + taken + sent / min(1.0, free),
    'evaluation': batches(job.splits.validation) * (of_batch.wall + 2 * rates.dispatch + 2e-4)
    + job.splits.validation * read
    + 1e-3,
    'checkpoint': _writing(job),
    'input': moved + taken,
  }
  raw['rest'] = _FIRST + _REPORT + batches(job.splits.test) * (of_batch.wall + rates.dispatch)
  raw['rest'] += job.splits.test * read
  said = [line for line in step.said if not line.startswith('of a branch') or line == BY_DATA]
  said += of_step.said
  said += [f'of evaluation: {line}' for line in eval_.said if line not in step.said]
  if of_step.at_most > 1.05 and BY_DATA not in step.said:
    said.append(
      f'a step that does what is due now and then takes {of_step.at_most:.1f} times as long: it is told as any other'
    )
  if free < 0.7 * cores:
    why = 'its quota is' if usable_cores().usable < 1.1 * free else 'others leave'
    said.append(f'{why} about {free:.1f} of {cores} cores, and times are told for that')
  if job.compile_cache:
    said.append('compiling is told for programs that are not in the compile cache yet')
  said += rates.warnings
  spreads = {'step': of_step.spread, 'evaluation': math.hypot(of_step.spread, _EVALUATION)}
  others = {'step': (of_step.fewer, of_step.more), 'evaluation': (of_batch.fewer, of_batch.more)}
  features = features_of(step, rates, cores)
  return _whole(job, raw, 'cost', spreads, of_step.processor + sent, features, tuple(said), among, others)


def begun(found: Durations, spent: float) -> Durations:
  """Returns the forecast of a run that took longer than usual until it was made: measuring the machine, making kernels.

  Args:
    found: as `forecast` gave it.
    spent: seconds since the run was called for.
  """
  more = max(0.0, spent - _BEFORE)
  rest, total = (Duration(*(seconds + more for seconds in one)) for one in (found.rest, found.total))
  raw = {**found.raw, **{name: found.raw[name] + more for name in ('rest', 'total')}}
  return found._replace(rest=rest, total=total, raw=raw)


def costs(job: Job) -> tuple[Cost, Cost]:
  """The cost of a step, and of evaluating one batch."""
  on_cpu = jax.default_backend() == 'cpu'
  step, same = job.train.programs.jaxpr(job.abstract, job.batch)
  if len(job.batch['weight']) != job.evaluation:

    def resized(leaf: Any) -> jax.ShapeDtypeStruct:
      return jax.ShapeDtypeStruct((job.evaluation, *leaf.shape[1:]), leaf.dtype)

    same = job.train.programs.jaxpr(job.abstract, jax.tree.map(resized, job.batch))[1]
  return cost(step, recomputes=not on_cpu), cost(same, recomputes=not on_cpu)


def _has_kernels() -> bool:
  """Whether convolutions run in C here: jaxlite's own, or oneDNN's."""
  from jaxlite.cpu.kernels import direct, onednn

  return not (onednn.missing() and direct.missing())


def _slower(rates: Rates, cores: int) -> float:
  """By how much longer this machine compiles than the one that the figures were fitted on."""
  single = rates.one_core or rates
  if 'compiling' in single.more:
    return _COMPILED / single.more['compiling']
  return _REFERENCE * (1 if rates.one_core else cores) / single.products['float32']


def compiling(*programs: Cost) -> float:
  """Returns processor seconds that compiling takes on the machine that the figures were fitted on.

  Args:
    programs: the cost of each, in the order in which they are compiled.
  """
  total, known = 0.0, set()
  for index, one in enumerate(programs):
    total += _COMPILING['program'] if index == 0 else _FURTHER
    total += _COMPILING['kernel'] * len(one.operations)
    for each in one.operations:
      kind = {'products': 'product', 'convolutions': 'convolution', 'depthwise': 'convolution'}.get(each.kind)
      if kind and (what := (each.kind, each.sides, each.dtype)) not in known:
        known.add(what)
        total += _COMPILING[kind]
  return total + _COMPILING['convolutions'] * any(kind in ('convolutions', 'depthwise') for kind, *_ in known)


def _bytes(tree: Any) -> float:
  return float(sum(size_of(leaf) for leaf in jax.tree.leaves(tree)))


def _writing(job: Job) -> float:
  """Of one checkpoint: many small files, and bytes that are copied, hashed and written."""
  live = job.abstract._replace(const=None, key=None)
  return 0.06 + 1e-3 * len(jax.tree.leaves(live)) + _bytes(live) / 3e8


def features_of(step: Cost, rates: Rates, cores: int) -> dict[str, float]:
  """Returns what a correction of a forecast may depend on: the size of a step, and what it spends its time on.

  Args:
    step: its cost.
    rates: of the machine.
    cores: that it may use.
  """
  groups = speed.by_group(step.usual, rates, cores)
  total = sum(alone for alone, _ in groups.values()) or 1.0
  share = lambda *words: sum(v[0] for k, v in groups.items() if any(w in k for w in words)) / total  # noqa: E731
  return {
    'size': math.log10(total) / 1.5,
    'convolutions': 2 * share('convolutions', 'depthwise'),
    'products': 2 * share('products'),
    'loops': 2.0 * any(one.looped for one in step.usual),
  }


def counts_of(job: Job) -> dict[str, int]:
  """Returns how often a run steps, evaluates and writes a checkpoint; where an evaluation is the best so far, it writes
  one more, and of half of them that is assumed.

  Args:
    job: the run.
  """
  evaluations = math.ceil(job.total / job.evaluate) if job.splits.validation else 0
  planned = math.ceil(job.total / job.checkpoint)
  both = math.ceil(job.total / math.lcm(job.evaluate, job.checkpoint))
  more = math.ceil(_IMPROVED * max(0, evaluations - both))
  return {'step': job.total, 'evaluation': evaluations, 'checkpoint': planned + more}


def _whole(
  job: Job,
  raw: dict[str, float],
  basis: str,
  spreads: Mapping[str, float],
  processor: float,
  features: Mapping[str, float],
  said: tuple[str, ...],
  among: Any,
  others: Mapping[str, tuple[float, float]] | None = None,
) -> Durations:
  """Puts a forecast together: what was learned of each part, their sum, and what was learned of that.

  `others`: by how much, as a logarithm, a part is less where others leave the machine, and more where others come. What
  this machine's own runs came to holds that already.
  """
  counts = counts_of(job)
  among = calibration.outcomes() if among is None else among
  parts: dict[str, Duration] = {}
  wide: dict[str, float] = {}
  aside: dict[str, tuple[float, ...]] = {}
  for name, seconds in raw.items():
    asked = {'features': features, 'spread': spreads.get(name, SPREADS[name]), 'among': among}
    learned = calibration.correction(f'time/{name}', basis, **asked)
    wide[name] = max(learned.spread, spreads.get(name, 0.0) if basis == 'probe' else 0.0)
    known = _LEARNED / (_LEARNED + learned.count)
    aside[name] = tuple(known * one for one in (others or {}).get(name, (0.0, 0.0)))
    parts[name] = around(seconds * learned.factor, wide[name], aside[name])
  weigh = {'compile': 1, 'step': counts['step'], 'evaluation': counts['evaluation'], 'checkpoint': counts['checkpoint']}
  sums = {name: weigh.get(name, 1) * one.seconds for name, one in parts.items() if name != 'input'}
  whole = sum(sums.values())
  # Parts are off independently; what is common to all (others on the machine) is in the spread of steps.
  apart = math.sqrt(sum((sums[name] * wide[name]) ** 2 for name in sums)) / whole
  asked = {'features': features, 'spread': apart, 'among': among}
  learned = calibration.correction('time/total', basis, **asked)
  # Where others go, or come, they do of all parts at once.
  less, more = (sum(sums[name] * math.exp(sign * aside[name][at]) for name in sums) for at, sign in ((0, -1), (1, 1)))
  known = _LEARNED / (_LEARNED + learned.count)
  total = around(
    whole * learned.factor, learned.spread, (known * math.log(whole / less), known * math.log(more / whole))
  )
  if total.seconds < max(sums.values()):
    said += (f'runs here took {learned.factor:.1f} times the sum of such parts: the whole is told by them',)
  return Durations(
    **{name: parts[name] for name in ('compile', 'step', 'evaluation', 'checkpoint', 'input', 'rest')},
    **{'total': total, 'basis': basis, 'counts': counts, 'said': said, 'processor': processor},
    **{'raw': {**raw, 'total': whole}, 'features': dict(features)},
  )


def around(seconds: float, spread: float, others: Sequence[float] = (0.0, 0.0)) -> Duration:
  """Returns some seconds with their interval, wider by what others on the machine may change.

  Args:
    seconds: the middle.
    spread: the standard deviation of their logarithm.
    others: the logarithms by which they are less where others go, and more where others come.

  >>> around(2.0, 0.0, (0.0, 0.0))
  Duration(seconds=2.0, low=2.0, high=2.0)
  """
  low, high = (math.exp(math.hypot(EIGHTY * spread, one)) for one in others)
  return Duration(seconds, seconds / low, seconds * high)


def outcomes(found: Durations, actual: Mapping[str, float], run: str = '') -> list[Outcome]:
  """Returns what this machine's forecasts are to learn from a run: give it to `calibration.add`.

  Args:
    found: its forecast.
    actual: seconds by name: 'total', 'step', 'compile', 'evaluation', 'checkpoint'; any of them.
    run: its id.
  """
  return [
    Outcome(f'time/{name}', found.basis, found.raw[name], seconds, found.features, run)
    for name, seconds in actual.items()
    if name in found.raw and 0 < seconds < math.inf and found.raw[name] > 0
  ]


def probed(
  job: Job, seconds: float = 20.0, say: Callable[[str], None] | None = None, *, among: Any = None
) -> Durations:
  """Returns how long a run will take, from running a little of it: see `probing.measured`.

  Args:
    job: the run. Nothing of its own is changed: a state is made, trained a few steps, and thrown away.
    seconds: to spend at most, beside compiling.
    say: is told that it compiles.
    among: outcomes to learn from; this machine's where it is not given.
  """
  from jaxlite.planning import probing

  began = time.monotonic()
  found = probing.measured(job, seconds, say or (lambda line: None))
  raw = {**found.seconds, 'rest': _FIRST + _REPORT + found.test}
  lasted = time.monotonic() - began
  said = (*found.said, f'probed for {lasted:.0f} s, compiling included')
  return _whole(job, raw, 'probe', found.spreads, found.processor, {}, said, among)
