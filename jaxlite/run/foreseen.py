"""A run's forecast: said in a line as it begins, refused where it would be killed, compared with what came of it."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from jaxlite.errors import ConfigError, one_line
from jaxlite.host import limits as machine_limits
from jaxlite.host.accelerators import Accelerator, accelerators
from jaxlite.host.crowd import Clocks, clocks, free_cores
from jaxlite.host.machine import cores, forget_peak, resident, status
from jaxlite.host.rates import known_rates
from jaxlite.planning import calibration, cost, duration, memory
from jaxlite.planning.calibration import Outcome
from jaxlite.planning.job import Job
from jaxlite.planning.plan import TIGHT, TOO_LARGE, Plan, between, is_more, judged, mib, spoken
from jaxlite.planning.reference import rates
from jaxlite.planning.sizes import Process, process
from jaxlite.run import advice
from jaxlite.run.jobs import job_of
from jaxlite.run.setup import Setup

Say = Callable[[str], None]

_WORTH = 30.0  # seconds that a run should last before this machine is measured for its forecast, which takes some
_CHANGED = 0.1  # of a forecast's logarithm, from which on the one from the compiled step is said too
_SLOW = 5e9  # FLOP/s of a core that nobody has measured: the order of magnitude


class Entry(NamedTuple):
  """When a run was called for.

  Attributes:
    clock, cpu: seconds.
    alone: whether the process's peak was set back, so that it is the run's own.
    clocks: how busy the machine had been by then; None where that is not told.
  """

  clock: float
  cpu: float
  alone: bool
  clocks: Clocks | None = None


class Start(NamedTuple):
  """A run as it begins, for the comparison at its end.

  Attributes:
    plan: its forecast.
    entry: when it was called for.
    whole: whether the run begins at step 0.
    job: what was forecast.
    better: what memory it needs as told from its compiled step; None where that was not.
  """

  plan: Plan
  entry: Entry
  whole: bool
  job: Job
  better: memory.Memory | None = None


def entry() -> Entry:
  """Notes that a run is called for. The most memory that the process had is forgotten: an earlier run's is not its."""
  return Entry(time.monotonic(), time.process_time(), forget_peak(), clocks())


def held(alone: bool) -> Process:
  """Returns what this process holds.

  Args:
    alone: whether its peak is of the run that is forecast; else it is taken to be what it holds now.
  """
  now = process()
  return now if alone else now._replace(peak=now.anonymous + now.files)


def foreseen(
  job: Job,
  name: str,
  say: Say | None = None,
  *,
  measure: bool | None = None,
  compiled: bool = False,
  seen: Process | None = None,
  since: Clocks | None = None,
  tuned: bool = False,
) -> Plan:
  """Forecasts a run in this process; nothing is run, and nothing compiled unless asked.

  Args:
    job: the run.
    name: its name.
    say: is told when this machine is measured.
    measure: whether this machine is measured where that was not done before; None where the run is long enough.
    compiled: from the compiled program, which is made where it is not there yet.
    seen: what the process held before the run's first state was made; None: what it holds now.
    since: how busy the machine had been when the run was called for; None: it is looked at now, for a moment.
    tuned: whether the job's programs have the forms for this CPU already: time is told of what they compute, and asks
      of `job.rewrites` whether they run by such forms.
  """
  here, unknown = machine_limits.limits(), []
  if jax.default_backend() != 'cpu':
    unknown.append("whether it fits the device's own memory: that is told once the step is compiled")
  needs = verdict = times = None
  try:
    seen = seen or process()
    needs = (memory.compiled if compiled else memory.traced)(
      job._replace(rewrites=job.rewrites and not tuned), here, seen=seen
    )
    verdict = judged(needs, here, resident(), status('RssFile'))
    if verdict is not None and verdict.dies and job.compile_cache and not compiled:  # it may have been compiled before
      warm = judged(memory.forecast(needs.sizes, seen, 'traced', 'warm'), here, resident(), status('RssFile'))
      verdict = verdict._replace(dies=warm is None or warm.dies)
    if verdict is None:
      unknown.append('whether it fits: this system tells no limit of memory')
  except Exception as error:  # a forecast is no reason for a run to fail
    unknown.append(f'memory ({_short(error)})')
  try:
    known = known_rates()
    if known is None and (_is_long(job) if measure is None else measure):
      known = rates(say)
    if known is None:
      unknown.append('time: this machine is not measured yet (--mode=plan does it)')
    else:
      # As many examples at once as in training: the cost of that program is known, and goes with the examples.
      same = job._replace(evaluation=len(job.batch['weight']))
      times = duration.forecast(same, known, crowd=free_cores(since=since))
  except Exception as error:
    unknown.append(f'time ({_short(error)})')
  return Plan(name, verdict, needs, times, here, unknown=tuple(unknown))


def _is_long(job: Job) -> bool:
  """Whether a run is likely to last so long that measuring the machine first is worth it."""
  step = cost.cost(job.train.programs.jaxpr(job.abstract, job.batch)[0])
  return step.flops * job.total > _WORTH * _SLOW * cores()


def _short(error: Exception) -> str:
  said = one_line(error) or str(error).strip().split('\n')[0]
  return f'{type(error).__name__}: {said[:120]}' if said else type(error).__name__


def refuse_state(setup: Setup) -> None:
  """Raises where the state of a run alone is more than it may have, before it is made.

  Raises:
    ConfigError: it would be killed, and `machine.force` does not ask for it all the same.
  """
  state = setup.abstract
  size = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves((state.params, state.opt_state)))
  here = machine_limits.limits()
  rooms = [(here.resident_free, here.binds)] if here.resident_memory else []
  if here.data_segment is not None:
    rooms.append((here.data_segment - status('VmData'), '`ulimit -d`'))
  room, why = min(rooms, default=(size, ''))
  if size > room and not setup.config.machine.force:
    raise ConfigError(
      f'this run would be killed: its parameters and optimizer alone take {mib(size)}, and {mib(max(0, room))} are '
      f'left ({why}): take a smaller model, or an optimizer that keeps less (SGD, Adafactor)'
    )


def start(setup: Setup, done: int, called: Entry, seen: Process, again: Callable[..., Any], say: Say) -> Start:
  """Says a run's forecast in a line, before anything is compiled; what it traces the run compiles.

  Args:
    setup: of the run, the forms for this CPU chosen.
    done: steps that are behind it.
    called: when it was called for.
    seen: what the process held before the run's state was made.
    again: (config) -> the Setup of a changed config, for what is advised where the run does not fit.
    say: prints a line.

  Raises:
    ConfigError: it would be killed, and `machine.force` does not ask for it all the same.
  """
  job = job_of(setup)
  left = job._replace(total=max(1, job.total - done))
  plan = foreseen(left, setup.config.name, say, seen=seen, since=called.clocks, tuned=True)
  left = left._replace(rewrites=False)  # they are in its programs
  if plan.durations is not None:
    plan = plan._replace(durations=duration.begun(plan.durations, time.monotonic() - called.clock))
  rest = '' if not done else f' for the {left.total:,} steps that are left'
  missing = f' ({"; ".join(plan.unknown)})' if plan.unknown else ''
  say(f'forecast: {plan.line()}{rest}{missing}')
  refuse(plan, setup, again, say)
  return Start(plan, called, not done, left)


def bettered(began: Start, program: Any, setup: Setup, again: Callable[..., Any], say: Say) -> Start:
  """Forecasts memory anew from the compiled step, before it runs; says it where that changes anything.

  Args:
    began: as `start` gave it.
    program: a `jax.stages.Compiled`; None where a step is several programs: then the first forecast stands.
    setup, again, say: as `start` takes them.

  Raises:
    ConfigError: it would be killed, and `machine.force` does not ask for it all the same.
  """
  before = began.plan.memory
  if program is not None and jax.default_backend() != 'cpu':
    say(device_line(program, accelerators()))
  if program is None or before is None or before.sizes is None:
    return began
  try:
    here = machine_limits.limits()
    better = memory.from_program(began.job, before.sizes, program, here)
    verdict = judged(better, here, resident(), status('RssFile'))
  except Exception as error:  # a forecast is no reason for a run to fail
    say(f'note: memory could not be told from the compiled step ({_short(error)})')
    return began
  plan = Plan(began.plan.name, verdict, better, None, here)
  was = began.plan.verdict.word if began.plan.verdict is not None else ''
  word = verdict.word if verdict is not None else ''
  if word != was or abs(math.log(better.peak / before.peak)) > _CHANGED:
    say(f'forecast from the compiled step: {plan.line()}')
  if word != was or (verdict is not None and verdict.dies):
    refuse(plan, setup, again, say)
  return began._replace(better=better)


def device_line(program: Any, found: Sequence[Accelerator]) -> str:
  """Returns in a line what a compiled step takes of a device's own memory, by the compiler, and of how much.

  Args:
    program: a `jax.stages.Compiled`.
    found: the accelerators of this machine.
  """
  needs = memory.device(program)['peak']
  known = [one.memory for one in found if one.used_by_jax and one.memory]
  line = f"the compiled step takes {mib(needs)} of each device's memory, by the compiler's own figures"
  if not known:
    return f'{line}; how much there is is not told'
  return f'{line}, of {mib(min(known))}{": warning: that is more than there is" if needs > min(known) else ""}'


def refuse(plan: Plan, setup: Setup, again: Callable[..., Any], say: Say) -> None:
  """Raises where a run would be killed; warns where it may be.

  Raises:
    ConfigError: with what would make it fit.
  """
  verdict = plan.verdict
  if verdict is None or verdict.word not in (TIGHT, TOO_LARGE):
    return
  if not verdict.dies:
    say(f'warning: {verdict.word}: it may be killed for want of memory. --mode=fit finds a form that fits')
    return
  if setup.config.machine.force:
    say('warning: it would be killed for want of memory, and is started all the same, as machine.force says')
    return
  found = advice.advised(setup, plan.limits, again)
  hints = '; '.join(found) or 'nothing that changes no result is forecast to fit: a smaller model or batch would'
  raise ConfigError(
    f'this run would be killed: it needs {mib(verdict.need)}, and '
    f'{verdict.reason} allows {mib(verdict.limit)}. What would fit, by its forecast: {hints}. --mode=fit tries and '
    'trains; machine.force=True starts it all the same'
  )


def ended(began: Start, run: str, say: Say) -> dict[str, Any]:
  """Compares a run that is done with its forecast, says it, and lets this machine's forecasts learn from it.

  Args:
    began: as `start` gave it.
    run: its id.
    say: prints a line.

  Returns:
    What stands in the run's result: 'memory' and 'time', each with 'forecast', 'low' or 'upper', 'actual'.
  """
  plan, called = began.plan, began.entry
  seconds, peak = time.monotonic() - called.clock, status('VmHWM')
  found: dict[str, Any] = {}
  said = []
  if plan.durations is not None and began.whole:
    total = plan.durations.total
    found['time'] = {
      **{
        'forecast': total.seconds,
        'low': total.low,
        'high': total.high,
        'actual': seconds,
        'cpu': time.process_time() - called.cpu,
      },
      'basis': plan.durations.basis,
      'raw': plan.durations.raw.get('total', 0.0),  # before what was learned: what is learned from
      'features': dict(plan.durations.features),
      'least': any(map(is_more, plan.durations.said)),
    }
    said.append(f'{between(total)}, and it took {spoken(seconds)}')
  if plan.memory is not None and peak:
    found['memory'] = {**_compared(plan.memory, peak, called), 'word': plan.verdict.word if plan.verdict else ''}
    whose = '' if called.alone else ' by this process'
    last = began.better or plan.memory
    once = '' if began.better is None else f', once compiled {mib(last.peak)}'
    said.append(
      f'{mib(plan.memory.peak)}{once} (at most {mib(last.upper + last.kept)}), and {mib(peak)} were used{whose}'
    )
  if began.better is not None and peak:
    found['memory compiled'] = _compared(began.better, peak, called)
  if said:
    say(f'forecast and actual: {"; ".join(said)}')
  learn(found, run)
  return found


def _compared(told: memory.Memory, peak: int, called: Entry) -> dict[str, Any]:
  return {
    **{'forecast': told.peak, 'upper': told.upper + told.kept, 'actual': peak},
    **{'basis': told.basis, 'raw': told.raw, 'kept': told.kept, 'alone': called.alone},
    'features': memory.likeness(told.raw),
  }


def learn(found: dict[str, Any], run: str) -> None:
  """Lets this machine's forecasts learn from a run.

  Args:
    found: as `ended` gives it.
    run: its id: what is learned from it twice counts once.
  """
  outcomes = []
  for what, name in (('time', 'time/total'), ('memory', 'memory/peak'), ('memory compiled', 'memory/peak')):
    one = found.get(what)
    if not one or one.get('kept') or one.get('least'):  # what stays mapped, or is not counted, is bounded alone
      continue
    if one.get('alone', True) and min(one.get('raw', one['forecast']), one['actual']) > 0:
      forecast, features = one.get('raw', one['forecast']), one.get('features', {})
      outcomes.append(Outcome(name, one['basis'], forecast, one['actual'], features, run))
  with contextlib.suppress(Exception):  # a cache that cannot be written is no reason for a finished run to fail
    calibration.add(outcomes)
