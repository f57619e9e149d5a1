"""What a run will hold in memory: its peak by stage and by what holds it, before the first step.

A forecast starts from what this process holds now, which is known, and adds what is to come: what compiling leaves
behind, the state and its copies, what the programs hold at once, the pages of libraries that are touched on the way.
How much of each is measured, not derived (`memory_table.py` and the command that made it); what this machine's own runs
came to then corrects it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxlite.host import allocator, stacks
from jaxlite.host.machine import available
from jaxlite.planning import calibration, memory_table, programs
from jaxlite.planning.job import Job
from jaxlite.planning.sizes import Process, Sizes, process, sizes

STAGES = ('import', 'data', 'compile', 'steps', 'evaluation', 'checkpoint', 'report')
QUANTITY = 'memory/peak'  # as it stands among this machine's outcomes
_USED = 0.8  # of the compiler's pages: more are in when it was used before
_ALL = 0.97  # of a stage's pages: more are in when another run of this process was in that stage
_AGAIN = 0.3  # of what is set up once, such as the libraries of a report, when it was before
_ALIKE = 4.0  # differences of features that are counted as large, in a factor of 2.7 of size
_PIECES = 32 << 20  # bytes of state: glibc maps what is larger by itself, and gives it back at once when it is freed
_CHOOSING = 1.5  # seconds for forms that nobody has timed here, as a run takes
_THREADS = 12  # of JAX and Orbax that begin after a forecast: eighteen and more on two cores
_SURE = 1.645  # standard deviations above which 5 in 100 lie


class Memory(NamedTuple):
  """A forecast of the memory of one run in one process.

  Attributes:
    stages: bytes of resident memory at the most in each stage, in their order: 'import', 'data', 'compile', 'steps',
      'evaluation', 'checkpoint', 'report'.
    parts: bytes by what holds them at the peak: 'runtime', 'data', 'parameters', 'optimizer', 'state', 'constants',
      'batch', 'activations', 'gradients', 'compiler', 'copies and pieces'; they sum up to `peak`.
    peak: the most of `stages`.
    upper: what `peak` stays below in 95 of 100 runs, without `kept`.
    data_segment: what that which `ulimit -d` counts stays below in 95 of 100 runs, in bytes.
    address_space: likewise of what `ulimit -v` counts.
    basis: 'traced' (from the jaxpr) or 'compiled' (from the program).
    cache: 'cold' or 'warm': whether XLA compiles the programs or reads them.
    kept: bytes that freed memory which stays mapped may add to `upper`; 0 where it goes back.
    notes: lines on what is left out or assumed.
    raw: `peak` before what this machine's runs taught: what the next ones learn from.
    data_expected, space_expected: of `data_segment` and `address_space` the estimates, as `peak` is that of `upper`.
    sizes: what it was told from.
  """

  stages: dict[str, int]
  parts: dict[str, int]
  peak: int
  upper: int
  data_segment: int
  address_space: int
  basis: str
  cache: str = 'cold'
  kept: int = 0
  notes: tuple[str, ...] = ()
  raw: int = 0
  data_expected: int = 0
  space_expected: int = 0
  sizes: Sizes | None = None


def traced(job: Job, limits: Any = None, *, cache: str = 'cold', seen: Process | None = None) -> Memory:
  """Forecasts a run's memory from its jaxpr alone: nothing is compiled.

  Args:
    job: the run, in the process that would run it.
    limits: `host.limits.Limits`, whose `free` decides whether freed memory stays mapped; None asks the machine.
    cache: 'cold' or 'warm', the larger of the two by default: whether the compile cache holds the run's programs.
    seen: what the process held before the run's first state was made; None: what it holds now.
  """
  return forecast(sizes(programs.traced(job)), seen or process(), 'traced', cache, _room(job, limits))


def compiled(job: Job, limits: Any = None, *, cache: str = 'cold', seen: Process | None = None) -> Memory:
  """Forecasts a run's memory once its step is compiled, which is done here: the run reuses it, by the compile cache or
  in this process.

  Args:
    job: the run, in the process that will run it.
    limits: as in `traced`.
    cache: whether evaluation's program, which is not compiled here, is in the compile cache.
    seen: as in `traced`.
  """
  found, seen = programs.traced(job, seconds=_CHOOSING), seen or process()
  if found.step is None:
    told = forecast(sizes(found), seen, 'traced', cache, _room(job, limits))
    return told._replace(notes=(*told.notes, 'a step is several programs, so memory is told from the jaxpr'))
  held = exactly(sizes(found), found.step.lower().compile())
  return forecast(held, seen, 'planned', cache, _room(job, limits))


def from_program(job: Job, held: Sizes, program: Any, limits: Any = None, *, cache: str = 'cold') -> Memory:
  """Forecasts the memory of a run that has compiled its step and written its program: nothing is traced or compiled.

  Args:
    job: the run.
    held: its sizes, as its forecast from the trace has them.
    program: a `jax.stages.Compiled`, as `warm_up.Took` has it.
    limits: as in `traced`.
    cache: whether evaluation's program is in the compile cache.
  """
  # What compiling has freed lies in the pools of its threads: what follows does not take it.
  return forecast(exactly(held, program), process()._replace(free=0), 'compiled', cache, _room(job, limits))


def exactly(held: Sizes, program: Any) -> Sizes:
  """Returns the sizes with what a compiled step says of itself.

  Args:
    held: of the job.
    program: a `jax.stages.Compiled`.
  """
  found = program.memory_analysis()
  step = found.temp_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes
  return held._replace(step=step, gradients=min(held.gradients, step))


def device(program: Any) -> dict[str, int]:
  """Returns the bytes that a compiled program takes of a device's own memory: a GPU's or TPU's.

  The compiler's own figures, with no resident part; nobody has measured how near they are. On CPU, `compiled` tells
  more.

  Args:
    program: a `jax.stages.Compiled`.

  Returns:
    'arguments', 'outputs' (those that do not lie in an argument's place), 'temporaries', 'code', and their sum, 'peak'.

  >>> import jax
  >>> device(jax.jit(lambda x: x + 1).lower(jax.numpy.ones(8)).compile())['outputs']
  32
  """
  found = program.memory_analysis()
  told = {
    'arguments': found.argument_size_in_bytes,
    'outputs': found.output_size_in_bytes - found.alias_size_in_bytes,
    'temporaries': found.temp_size_in_bytes,
    'code': found.generated_code_size_in_bytes,
  }
  return {**told, 'peak': sum(told.values())}


def forecast(held: Sizes, seen: Process, basis: str, cache: str, room: int = 0) -> Memory:
  """Returns the forecast of sizes and of what a process holds; nothing is asked of the machine but its outcomes.

  Args:
    held: of the job.
    seen: the process, before compiling or after.
    basis: 'traced'; 'planned', with the compiled step's own size but the process before it was compiled; or 'compiled',
      with the process of a run that has compiled its step and written its program.
    cache: 'cold' or 'warm'.
    room: bytes that the process may grow by where freed memory may stay mapped, else 0.
  """
  table = memory_table.TABLE['compiled' if basis == 'compiled' else 'traced'][cache]
  now = seen.anonymous + seen.files
  stages = {'import': now - held.data, 'data': now if basis == 'compiled' else max(now, seen.peak)}
  terms = {stage: _terms(stage, held, seen, table[stage]) for stage in STAGES[2:] if stage in table}
  for stage, found in terms.items():
    own = max(seen.anonymous, seen.anonymous - seen.free + sum(found.values()))  # what was freed is taken first
    stages[stage] = int(own + max(seen.files, memory_table.FILES[stage]))
  if 'compile' not in stages:
    stages = {**dict(list(stages.items())[:2]), 'compile': seen.peak, **dict(list(stages.items())[2:])}
  at = max(stages, key=lambda stage: stages[stage])
  raw = stages[at]
  kind = 'traced' if basis == 'traced' else 'compiled'
  learned = calibration.correction(QUANTITY, kind, likeness(raw), spread=memory_table.SPREAD[basis])
  factor = learned.factor
  # What this machine has taught is no reason to tell less than the process holds already.
  stages = {stage: max(int(size * factor), int(min(size, now))) for stage, size in stages.items()}
  peak = stages[at]
  upper = int(peak * math.exp(_SURE * learned.spread))
  files = max(seen.files, memory_table.FILES.get(at, 0))
  grown = max(0, peak - files - seen.anonymous)
  data, data_upper = _counted(seen.data_segment, grown, memory_table.DATA_SEGMENT, learned.spread)
  space, space_upper = _counted(seen.address_space, grown, memory_table.ADDRESS_SPACE, learned.spread)
  most = max(allocator.most_kept(size, room - max(0, size - now)) for size in (peak, upper)) if room else 0
  return Memory(
    stages={stage: stages[stage] for stage in STAGES},
    parts=_parts(held, seen, terms.get(at, {}), peak),
    peak=peak,
    upper=upper,
    data_segment=data_upper,
    address_space=space_upper,
    basis=kind,
    cache=cache,
    kept=max(0, most - upper),
    notes=_notes(cache, bool(room and not most)),
    raw=raw,
    data_expected=data,
    space_expected=space,
    sizes=held,
  )


def likeness(raw: float) -> dict[str, float]:
  """Returns what forecasts must have in common to learn from each other: what was off by a part of a small process says
  little of one twice as large.

  Args:
    raw: bytes, before any correction.

  >>> small, large = likeness(400e6), likeness(800e6)
  >>> 2 < large['size'] - small['size'] < 3
  True
  """
  return {'size': _ALIKE * math.log(max(1.0, raw))}


def _counted(now: int, grown: int, factors: tuple[float, float, float], spread: float) -> tuple[int, int]:
  """What a limit of the process counts at the most: expected, and not passed in 95 of 100 runs.

  Args:
    now: bytes.
    grown: by how many bytes memory that stands for no file will grow.
    factors: a constant, a slope, and the standard deviation of the logarithm of what is left over.
    spread: of the forecast of resident memory, where this machine has taught that it is wider.
  """
  constant, slope, own = factors
  expected = now + max(0.0, constant - _THREADS * stacks.spared()) + slope * grown  # measured without a limit
  return int(expected), int(expected * math.exp(_SURE * max(own, spread)))


def features(stage: str, held: Sizes, seen: Process) -> dict[str, float]:
  """What a stage's memory over that of now depends on; the table holds a factor for each.

  Args:
    stage: 'compile' or a later one.
    held: of the job.
    seen: the process.
  """
  equations = float(held.equations + held.evaluation_equations)
  # What the compiler sets up when it is first used, which shows by the pages of its code that are not in yet.
  first = float(seen.files < _USED * memory_table.FILES.get('compile', 0))
  one = 1.0 if seen.files < _ALL * memory_table.FILES.get(stage, 0) else _AGAIN
  common = {'one': one, 'first': first, 'equations': equations, 'step': float(held.step)}
  # Copies of small arrays leave pieces behind that stay with the process; of large ones only copies count.
  common |= {'live': float(min(held.live, _PIECES)), 'beyond': float(max(0, held.live - _PIECES))}
  common['root'] = math.sqrt(equations)  # equal code is compiled once, and large programs hold much of it
  evaluation = float(held.evaluation + held.evaluation_batch)
  return {
    'compile': common,
    'steps': {**common, 'batch': float(held.batch)},
    'evaluation': {**common, 'evaluation': evaluation},
    'checkpoint': common,
    'report': {**common, 'evaluation': evaluation},
  }[stage]


def _terms(stage: str, held: Sizes, seen: Process, factors: Mapping[str, float]) -> dict[str, float]:
  return {name: value * factors.get(name, 0.0) for name, value in features(stage, held, seen).items()}


def _parts(held: Sizes, seen: Process, terms: Mapping[str, float], peak: int) -> dict[str, int]:
  """What holds the peak; what the state and the programs take beyond their own size is copies and pieces."""
  gradients = min(held.gradients, int(terms.get('step', 0)))
  activations = int(terms.get('step', 0) + terms.get('evaluation', 0)) - gradients
  parts = {
    'data': held.data,
    'parameters': held.parameters,
    'optimizer': held.optimizer,
    'state': held.state,
    'constants': held.constants,
    'batch': held.batch,
    'gradients': gradients,
    'activations': activations,
    'compiler': int(sum(terms.get(name, 0) for name in ('equations', 'root', 'one', 'first'))),
    'copies and pieces': max(0, int(terms.get('live', 0) + terms.get('beyond', 0)) - held.live),
  }
  if not terms:  # the peak is behind us
    parts = {'data': held.data}
  over = sum(parts.values()) - peak  # what lies where something was freed is in no need of more
  for name in ('compiler', 'copies and pieces', 'activations', 'gradients', *parts):
    cut = max(0, min(over, parts.get(name, 0)))
    over, parts = over - cut, {**parts, name: parts.get(name, 0) - cut} if cut else parts
  return {'runtime': peak - sum(parts.values()), **parts}


def _notes(cache: str, tight: bool) -> tuple[str, ...]:
  other = 'a warm compile cache takes less' if cache == 'cold' else 'with a cold compile cache it takes more'
  left_out = 'other processes, and what a model or a part of your own allocates outside of JAX, are left out'
  off = 'there is too little room to keep freed memory mapped, so it goes back at each step'
  return (other, left_out, *([off] if tight else []))


def _room(job: Job, limits: Any) -> int:
  """Bytes of room where freed memory may stay mapped."""
  if not job.keep_memory:
    return 0
  return available() if limits is None else limits.free
