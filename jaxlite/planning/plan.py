"""A forecast as a person reads it: does it fit, how long will it take, what holds the memory, what is not known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from jaxlite.host.limits import Limits
from jaxlite.planning.cost import BY_BYTES, NOT_COUNTED
from jaxlite.planning.duration import Duration, Durations
from jaxlite.planning.memory import Memory
from jaxlite.planning.time_to_loss import TimeToLoss

FITS, TIGHT, TOO_LARGE = 'FITS', 'TIGHT', 'DOES NOT FIT'


class Verdict(NamedTuple):
  """Whether a run fits, against the limit that is nearest to it.

  Attributes:
    word: 'FITS': the 95 % bound is within the limit; 'TIGHT': only the estimate is; 'DOES NOT FIT': neither.
    need: bytes, the estimate.
    upper: bytes that are not passed in 95 of 100 runs.
    limit: bytes.
    reason: which limit it is, in words.
    dies: not even what 95 of 100 runs exceed is within the limit: to start would be to be killed.
  """

  word: str
  need: int
  upper: int
  limit: int
  reason: str
  dies: bool


class Tried(NamedTuple):
  """What one change to a run does, found by compiling and running it.

  Attributes:
    name: of the change, as a flag or in words.
    result: what becomes of the run's result: 'same bits', 'same up to rounding', 'other draws' or 'another result'.
    peak: bytes of resident memory at the most; None where the process was killed, or there is no such run.
    seconds: of one step; None likewise.
    fits: whether it came through under this machine's limits.
    how: how to get it.
    steps: of the whole run; 0 is not known.
    end: of one without a peak, what became of it.
  """

  name: str
  result: str
  peak: int | None
  seconds: float | None
  fits: bool
  how: str
  steps: int = 0
  end: str = 'killed'


class Plan(NamedTuple):
  """What a run will need, before it begins. `print` shows all of it, `line()` the one that a run begins with.

  Attributes:
    name: of the run.
    verdict: whether it fits; None where memory could not be told.
    memory: the forecast, by stage and by what holds it; None where it could not be made.
    durations: the forecast; None where it was not made.
    limits: of this process.
    changes: what was tried, the run as it is first; () where nothing was.
    unknown: what was left out, and why, a line each.
    elsewhere: the same run on other machines, a line each.
    to_loss: when the training loss comes to a target; None where nobody asked, or it cannot be told.
  """

  name: str
  verdict: Verdict | None
  memory: Memory | None
  durations: Durations | None
  limits: Limits
  changes: tuple[Tried, ...] = ()
  unknown: tuple[str, ...] = ()
  elsewhere: tuple[str, ...] = ()
  to_loss: TimeToLoss | None = None

  def line(self) -> str:
    """In one line: what it needs, of what there is, and how long it takes."""
    said = []
    if self.verdict is not None:
      one = self.verdict
      word = '' if one.word == FITS else f' ({one.word}: {one.reason})'
      said.append(f'needs {mib(one.need)}, at most {mib(one.upper)}, of {mib(one.limit)}{word}')
    elif self.memory is not None:
      said.append(f'needs {mib(self.memory.peak)}, at most {mib(self.memory.upper)}')
    if self.memory is not None and self.memory.kept:
      said[-1] += f' (and, where it is free, up to {mib(self.memory.upper + self.memory.kept)} kept mapped)'
    if self.durations is not None:
      missing = [line for line in self.durations.said if is_more(line)]
      about = f'at least {spoken(self.durations.total.low)} ({missing[0]})' if missing and _by_cost(self) else ''
      said.append(about or f'about {between(self.durations.total)}')
    return ', '.join(said) or 'not known'

  def __str__(self) -> str:
    return '\n'.join(_page(self))


def is_more(line: str) -> bool:
  """Whether a line says that a program takes longer than its cost tells.

  >>> is_more('a call back to Python is not counted')
  True
  """
  return line.removeprefix('of evaluation: ').startswith(NOT_COUNTED) or BY_BYTES in line


def _by_cost(plan: Plan) -> bool:
  return plan.durations is not None and plan.durations.basis == 'cost'


def judged(memory: Memory, limits: Limits, held: int, files: int | None = None) -> Verdict | None:
  """Judges a forecast of memory by the limit that it comes nearest to; None where no limit is told.

  Args:
    memory: the forecast.
    limits: of the process.
    held: bytes of resident memory that the process has now.
    files: of `held`, pages of files, which `ulimit` does not count; None where that is not known.

  >>> memory = Memory({}, {}, 100, 120, 150, 900, 'traced')
  >>> here = Limits(110, 1000, None, None, 'the control group', resident_memory=110, resident_free=1000)
  >>> judged(memory, here, held=50).word
  'TIGHT'
  """
  share = memory.upper / max(1, memory.peak)
  least = 2 * memory.peak - memory.upper  # of resident memory, exceeded by 95 of 100 runs
  own = least - (held if files is None else files)
  pairs = []
  if limits.resident_memory:  # not `memory`: `ulimit` counts other things than resident memory
    room = min(limits.resident_memory, held + limits.resident_free)
    shared = room < limits.resident_memory
    why = f'{mib(room - held)} more are free' if shared else _whose(limits)
    pairs.append((memory.peak, memory.upper, room, why, least))
  for limit, upper, expected, what in (
    (limits.data_segment, memory.data_segment, memory.data_expected, 'the data segment, ulimit -d'),
    (limits.address_space, memory.address_space, memory.space_expected, 'the address space, ulimit -v'),
  ):
    if limit is not None:
      pairs.append((expected or int(upper / share), upper, limit, what, own))
  if not pairs:
    return None
  dies = any(low > limit for _, _, limit, _, low in pairs)
  need, upper, limit, reason, _ = max(pairs, key=lambda pair: pair[1] / max(1, pair[2]))
  word = FITS if upper <= limit else TIGHT if need <= limit else TOO_LARGE
  return Verdict(word, need, upper, limit, reason, dies and word == TOO_LARGE)


def _whose(limits: Limits) -> str:
  """Which limit of resident memory it is, in words."""
  if limits.memory == limits.resident_memory:
    return limits.reason
  return 'the memory of the machine' if limits.resident_memory == limits.physical else 'its control group'


def mib(size: float) -> str:
  """Writes a size of memory.

  >>> mib(412 * 2**20), mib(1.94 * 2**30), mib(300)
  ('412 MiB', '1.9 GiB', '0.0 MiB')
  """
  if size >= 1000 * 2**20:
    return f'{size / 2**30:.1f} GiB'
  return f'{size / 2**20:.0f} MiB' if size >= 9.5 * 2**20 else f'{size / 2**20:.1f} MiB'


def spoken(seconds: float) -> str:
  """Writes a time as it is spoken.

  >>> spoken(3e-5), spoken(0.004), spoken(7.25), spoken(42), spoken(200), spoken(7_900)
  ('30 us', '4.0 ms', '7.2 s', '42 s', '3.3 min', '2.2 h')
  """
  if 0 < seconds < 9.95e-5:
    return f'{1e6 * seconds:.0f} us' if seconds >= 9.95e-6 else f'{1e6 * seconds:.1f} us'
  for most, size, unit in ((1.0, 1e-3, 'ms'), (100.0, 1.0, 's'), (5400.0, 60.0, 'min'), (172_800.0, 3600.0, 'h')):
    if seconds < most:
      value = seconds / size
      return f'{value:.0f} {unit}' if value >= 9.95 else f'{value:.1f} {unit}'
  return f'{seconds / 86_400:.1f} days'


def between(time: Duration) -> str:
  """Writes a time with its interval.

  >>> between(Duration(180, 120, 300))
  '3.0 min (2.0 min to 5.0 min)'
  """
  return f'{spoken(time.seconds)} ({spoken(time.low)} to {spoken(time.high)})'


def _page(plan: Plan) -> list[str]:
  lines = [f'{plan.name}: {plan.line()}']
  if plan.verdict is not None:
    one = plan.verdict
    meaning = {
      FITS: 'the bound that 95 of 100 runs keep is within the limit',
      TIGHT: 'the estimate is within the limit, its 95 % bound is not: it may be killed',
      TOO_LARGE: 'it would be killed' if one.dies else 'it will probably be killed',
    }[one.word]
    lines.append(f'  {one.word}: {meaning} ({mib(one.limit)}, {one.reason})')
  if plan.memory is not None:
    memory = plan.memory
    lines += _aligned('memory by stage', [(name, mib(size)) for name, size in memory.stages.items()])
    held = sorted(memory.parts.items(), key=lambda part: -part[1])
    lines += _aligned('memory by what holds it', [(name, mib(size)) for name, size in held if size > 0])
    known = 'the compiled program' if memory.basis == 'compiled' else 'the traced program; nothing was compiled'
    lines.append(f'  memory is told from {known}, the compile cache {memory.cache}')
    if memory.kept:
      lines.append(f'  freed memory that stays mapped may add {mib(memory.kept)} (machine.keep_memory)')
  if plan.durations is not None:
    lines += _times(plan.durations)
  if plan.to_loss is not None:
    reached = plan.to_loss
    lines += [f'  {reached}{_in_seconds(plan)}', *(f'    {line}' for line in reached.told)]
  if plan.changes:
    lines += changes(plan.changes)
  lines += [f'  {line}' for line in plan.elsewhere]
  notes = [*(plan.memory.notes if plan.memory else ()), *(plan.durations.said if plan.durations else ())]
  lines += [f'  not known: {line}' for line in (*plan.unknown, *notes)]
  return [*lines, *(f'  warning: {line}' for line in plan.limits.warnings)]


def _in_seconds(plan: Plan) -> str:
  """How long the steps to a loss take."""
  if plan.durations is None or plan.to_loss is None or not 0 < plan.to_loss.reach.step < math.inf:
    return ''
  return f'; so many steps take {spoken(plan.to_loss.reach.step * plan.durations.step.seconds)}'


def _times(found: Durations) -> list[str]:
  counts = found.counts
  cells = [('compiling', between(found.compile))]
  for name, one in (('step', found.step), ('evaluation', found.evaluation), ('checkpoint', found.checkpoint)):
    cells.append((f'{counts.get(name, 0):,} x {name}', between(one)))
  cells += [('a batch', between(found.input)), ('in all', between(found.total))]
  basis = 'running a little of it' if found.basis == 'probe' else "its program's cost; nothing was run"
  return [*_aligned('time, and the interval that holds 8 of 10', cells), f'  time is told from {basis}']


def changes(tried: Sequence[Tried]) -> list[str]:
  """Returns a table of what was tried, the run as it is first.

  Args:
    tried: at least one.
  """
  first, rows = tried[0], [('change', 'memory', 'step', 'all steps', 'result', 'fits', 'how')]
  for one in tried:
    saved = '' if one is first or None in (one.peak, first.peak) else f' ({_signed(one.peak, first.peak)})'
    cost = '' if one is first or None in (one.seconds, first.seconds) else f' ({_ratio(one.seconds, first.seconds)})'
    peak = one.end if one.peak is None else mib(one.peak) + saved
    seconds = '-' if one.seconds is None else spoken(one.seconds) + cost
    whole = spoken(one.seconds * one.steps) if one.seconds is not None and one.steps else '-'
    rows.append((one.name, peak, seconds, whole, one.result, 'yes' if one.fits else 'no', one.how))
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  lines = ['  what to change, each compiled and run for a few steps:']
  return lines + [
    '    ' + '  '.join(f'{cell:<{width}}' for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
  ]


def _signed(now: Any, before: Any) -> str:
  return f'{"-" if now <= before else "+"}{mib(abs(now - before))}'


def _ratio(now: Any, before: Any) -> str:
  return f'x {now / before:.2f}'


def _aligned(title: str, cells: Sequence[tuple[str, str]]) -> list[str]:
  width = max((len(name) for name, _ in cells), default=0)
  return [f'  {title}:', *(f'    {name:<{width}}  {value}' for name, value in cells)]
