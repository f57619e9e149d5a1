"""What a run will need, told before it begins: `jl.plan`, and `--mode=plan` of the launcher."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import jax

from jaxlite.config.schema import Config, validate
from jaxlite.contract import Network
from jaxlite.deployment import run_id
from jaxlite.finetuning.head import HEAD
from jaxlite.graph.init_numpy import on_host
from jaxlite.host import limits as machine_limits
from jaxlite.host.crowd import free_cores
from jaxlite.host.files import expanded
from jaxlite.host.machine import resident
from jaxlite.host.rates import known_rates
from jaxlite.planning import duration, memory
from jaxlite.planning.cost import Cost, cost
from jaxlite.planning.edits import ROUNDING, Edit, edited, forms
from jaxlite.planning.elsewhere import Run, machine_in, table
from jaxlite.planning.function import Call, call
from jaxlite.planning.job import Job
from jaxlite.planning.machines import MACHINES, Machine, machine_named
from jaxlite.planning.outputs import UnpredictableError
from jaxlite.planning.plan import Plan, judged
from jaxlite.planning.reference import rates
from jaxlite.run.finetune_start import FineTune, ready
from jaxlite.run.foreseen import entry, foreseen, held
from jaxlite.run.jobs import job_of
from jaxlite.run.loss_forecast import time_to_loss
from jaxlite.run.micro_batches import PARTS, parts_agree
from jaxlite.run.setup import Setup, prepare, reformed
from jaxlite.step.train_step import Train

Say = Callable[[str], None]


@overload
def plan(
  config: Config,
  workdir: str | Path | None = None,
  *,
  model: Any = None,
  data: Any = None,
  compiled: bool = False,
  target: float | None = None,
  say: Say | None = None,
) -> Plan: ...


@overload
def plan(
  config: Callable[..., Any],
  workdir: None = None,
  *,
  args: Sequence[Any],
  donated: Sequence[int] = (),
  compiled: bool = False,
  say: Say | None = None,
) -> Call: ...


def plan(
  config: Config | Callable[..., Any],
  workdir: str | Path | None = None,
  *,
  model: Any = None,
  data: Any = None,
  args: Sequence[Any] | None = None,
  donated: Sequence[int] = (),
  compiled: bool = False,
  target: float | None = None,
  say: Say | None = None,
) -> Plan | Call:
  """Forecasts what `jl.train` of the same arguments will need in memory and time; nothing is trained or written.

  In a training loop of your own, give the step itself: what one call of it computes, holds and takes is told.

  Args:
    config: as `jl.train` takes it; or a function of arrays, jitted or not, with `args`.
    workdir: of the run, for a teacher that lies beside it; None where there is none.
    model: as `jl.train` takes it.
    data: likewise.
    args: of a function: its arguments, or their shapes; trees may hold what is no array, and what a function writes
      into them (NNX's modules) is counted.
    donated: of a function: the positions of the arguments that it is given to keep, as `jax.jit` takes them.
    target: a training loss: also tells at which step it will be reached, from the network as if it were linear in its
      weights (`plan.to_loss`); so near where it begins are pretrained networks. Where that cannot be told the plan
      says why.
    compiled: tells memory from the compiled step, which is nearer than its trace; the step is compiled for it.
    say: is told when this machine is measured, which takes some seconds once.

  Returns:
    The Plan: `print(plan)` shows it, `plan.line()` is the line that a run begins with, `plan.verdict.word` is 'FITS',
    'TIGHT' or 'DOES NOT FIT'. Of a function, a Call: its FLOPs, bytes, memory and time.

  Raises:
    TypeError: neither a config nor a function with its arguments, or one that asks for a value while it is traced.
    ValueError: what `jl.train` would say of the arguments.

  >>> import numpy as np
  >>> import jaxlite as jl
  >>> data = np.zeros((400, 8), np.float32), np.arange(400) % 2
  >>> found = plan(jl.Config(name='x', train=jl.Duration(steps=5)), data=data)
  >>> found.verdict.word
  'FITS'
  >>> plan(lambda x: x @ x, args=(np.ones((64, 64)),)).flops
  524288.0
  """
  if callable(config) and not isinstance(config, Config):
    if args is None or model is not None or data is not None or workdir is not None or target is not None:
      raise TypeError(
        'jl.plan of a function takes its arguments, or their shapes, as args=(...), and neither model, data nor target'
      )
    try:
      known, why = rates(say), ''
    except RuntimeError as error:
      known, why = None, f'time: {error}'
    told = call(config, args, known, donated=donated, compiled=compiled)
    return told._replace(said=(*told.said, why)) if why else told
  if isinstance(config, Train):
    raise TypeError('of what jl.train_step gives, the step is planned: jl.plan(train.step, args=(state, batch))')
  if args is not None or donated:
    raise TypeError(f'args= and donated= go with a function; got {type(config).__name__}: leave them out')
  validate(config)
  folder = expanded(workdir).absolute() if workdir is not None else Path(tempfile.gettempdir(), 'jaxlite-plan-none')
  called = entry()
  read: frozenset[str] = frozenset()
  if isinstance(config, FineTune) and model is not None and not _is_begun(model):
    config, model, data, read = ready(config, model, data, say or (lambda line: None))
  setup = prepare(dataclasses.replace(config, runs={}), folder, model, data, read)
  found = foreseen(job_of(setup), config.name, say, measure=True, compiled=compiled, seen=held(called.alone))
  return found if target is None else with_loss(found, setup, target, say)


def _is_begun(model: Any) -> bool:
  """Whether a network has the head already that fine-tuning puts on."""
  return isinstance(model, Network) and HEAD in model.params


def with_loss(found: Plan, setup: Setup, target: float, say: Say | None = None) -> Plan:
  """Adds to a plan when the training loss comes to a target, or why that is not known.

  Args:
    found: the plan.
    setup: of the run.
    target: the loss.
    say: prints a line where it takes long.
  """
  try:
    return found._replace(to_loss=time_to_loss(setup, target, say=say))
  except UnpredictableError as error:
    return found._replace(unknown=(*found.unknown, f'when the training loss is at {target:g}: {error}'))


@contextlib.contextmanager
def ground(config: Config, workdir: str, run: str) -> Iterator[Path]:
  """Gives the folder that a run is planned in: its own; where its teacher is another run of the experiment that is not
  trained yet, a stand-in beside one of that.

  Args:
    config: of the whole experiment.
    workdir: its folder.
    run: its name; '' for the only one.
  """
  own = expanded(workdir).absolute()
  folder = own / run if run else own
  one = dataclasses.replace(config.runs[run](config), name=run) if run else config
  teacher = (folder / one.teacher).resolve() if one.teacher else None
  name = '' if teacher is None else teacher.name
  if teacher is None or (teacher / 'checkpoints').is_dir() or name not in config.runs or teacher.parent != own:
    yield folder
    return
  with tempfile.TemporaryDirectory(prefix='jaxlite-plan-') as place:
    other = dataclasses.replace(config.runs[name](config), name=name, runs={})
    stand_in(other, Path(place, name))
    yield Path(place, run)


def placed(config: Config, folder: Path) -> Config:
  """Returns a config whose teacher is named by its whole path: the folder that it is relative to need not be there."""
  return dataclasses.replace(config, teacher=str((folder / config.teacher).resolve())) if config.teacher else config


def stand_in(config: Config, folder: Path) -> None:
  """Writes a run that has trained nothing, so that whoever learns from it can be planned."""
  from jaxlite import checkpoint
  from jaxlite.run import folder as run_folder
  from jaxlite.run.evaluation import meaning
  from jaxlite.run.identity import identify
  from jaxlite.run.record import Record

  folder.mkdir(parents=True)
  setup = prepare(config, folder)
  state = setup.train.init(on_host(lambda: jax.random.key(config.seed))(), setup.first_batch)
  began, run = identify(setup), run_id.draw()
  quiet: Say = lambda line: None  # noqa: E731
  run_folder.begin(folder, run, config, began, meaning(setup.data, setup.data.facts))
  run_folder.write_program(setup, folder, run, quiet, anew=True)
  record = Record(run=run, data=setup.data.fingerprint, began=began.began)
  with checkpoint.Checkpoints(folder / 'checkpoints', run=run, log=quiet) as saves:
    saves.save(1, state._replace(step=state.step + 1), dataclasses.asdict(record), metric=0.0, wait=True)


def outlook(config: Config, folder: Path) -> dict[str, Any]:
  """Forecasts every form that a run may take so that it fits: JSON values.

  Args:
    config: of the run.
    folder: as `ground` gives it.

  Returns:
    'line', 'word': of the run as it is; 'keeps': whether it keeps freed memory; 'steps': how many it has;
    'evaluation': of how many examples; 'forms': for each its 'name', 'fields', 'result', 'upper', 'limit', 'word',
    'dies', 'room' (of resident memory, in bytes), 'step' and 'total' in seconds, None where they are not known.
  """
  setup = prepare(placed(config, folder), folder)
  here, found = machine_limits.limits(), []
  free = free_cores()  # looked at once: forms are compared as if others did the same beside each
  whole = foreseen(job_of(setup), config.name, print)
  offered = forms(config, job_of(setup))
  if any(PARTS in edit.fields and edit.result == ROUNDING for edit in offered) and not parts_agree(setup):
    offered = [edit for edit in offered if PARTS not in edit.fields]
  for edit in offered:
    with contextlib.suppress(ValueError):  # what cannot be built is no form
      found.append(_forecast(setup, edit, here, free))
  word = whole.verdict.word if whole.verdict else ''
  about = {'line': whole.line(), 'word': word, 'keeps': config.machine.keep_memory, 'steps': setup.plan.total}
  about['evaluation'] = config.eval.batch_size
  return {**about, 'forms': found}


def elsewhere(job: Job, found: Plan, asked: str) -> Plan:
  """Adds to a plan what the same run would take on other machines; extrapolated, and marked so.

  Args:
    job: the run.
    found: its plan here.
    asked: the name of a machine of the table, the file in which another one keeps its rates, or 'all' of the table.

  Raises:
    ValueError: there is no such machine.
  """
  machines = machines_of(asked)
  known, times = known_rates(), found.durations
  if known is None or times is None:
    return found._replace(unknown=(*found.unknown, 'the same elsewhere: what it takes here is not known'))
  step = cost(job.train.programs.jaxpr(job.abstract, job.batch)[0])
  counts = times.counts
  run = Run(
    flops=max(step.flops, 1.0),
    bytes=max(step.bytes, 1.0),
    precision=_precision(step),
    step=times.step.seconds,
    steps=job.total,
    input=times.input.seconds,
    once=times.compile.seconds + times.rest.seconds + counts.get('checkpoint', 0) * times.checkpoint.seconds,
    evaluation=counts.get('evaluation', 0) * times.evaluation.seconds,
    kernels=int(sum(one.times for one in step.operations)),
    memory=found.memory.peak if found.memory is not None else 0,
  )
  return found._replace(elsewhere=tuple(one.line() for one in table(run, known, machines)))


def machines_of(asked: str) -> tuple[Machine, ...]:
  """Returns the machines that `elsewhere` tells of.

  Raises:
    ValueError: there is no such machine.
  """
  if asked == 'all':
    return tuple(MACHINES)
  return (machine_in(asked) if os.path.isfile(asked) else machine_named(asked),)


def _precision(step: Cost) -> str:
  """What most of a step's products are computed in, of the precisions that machines have rates of."""
  by: dict[str, float] = {'float32': 0.0}
  for one in step.counted:
    if one.kind in ('products', 'small products', 'convolutions', 'depthwise') and one.dtype in ('bfloat16', 'int8'):
      by[one.dtype] = by.get(one.dtype, 0.0) + one.flops * one.times
    else:
      by['float32'] += one.flops * one.times
  return max(by, key=lambda name: by[name])


def _forecast(setup: Setup, edit: Edit, here: Any, free: float) -> dict[str, Any]:
  changed = reformed(setup, edited(setup.config, edit.fields)) if edit.fields else setup
  job, known = job_of(changed), known_rates()
  told: dict[str, Any] = {'name': edit.name, 'fields': edit.fields, 'result': edit.result}
  told |= dict.fromkeys(('upper', 'limit', 'word', 'dies', 'step', 'total'))
  told['room'] = min(here.resident_memory, resident() + here.resident_free) if here.resident_memory else None
  with contextlib.suppress(Exception):  # the trial tells
    verdict = judged(memory.traced(job, here), here, resident())
    if verdict is not None:
      told |= {'upper': verdict.upper, 'limit': verdict.limit, 'word': verdict.word, 'dies': verdict.dies}
  with contextlib.suppress(Exception):
    if known is not None:
      times = duration.forecast(job, known, crowd=free)
      told |= {'step': times.step.seconds, 'total': times.total.seconds}
  return told
