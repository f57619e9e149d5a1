"""The one training loop, read top to bottom: prepare, start or resume, train, test once, report.

`train` is what notebooks and the launcher call. A run is a function of its config, its data and its seed: the
batch of a step is computed from (seed, step), randomness from (key, name, step), and everything else that a
later step can see lies in the checkpoint. So a run that was killed ends as if it never was.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxlite import checkpoint, errors
from jaxlite import data as datasets
from jaxlite.config.reads import unread
from jaxlite.config.schema import Config, validate
from jaxlite.deployment import run_id
from jaxlite.host import allocator, compile_cache, machine, preempt, stacks, streams
from jaxlite.host.files import expanded
from jaxlite.optim import observe_score
from jaxlite.report.result import Result
from jaxlite.run import aside, foreseen, guards, home, spills, states
from jaxlite.run import folder as run_folder
from jaxlite.run.aiming import Aim
from jaxlite.run.evaluation import decide_and_test, evaluate, evidence, meaning, numbers, stopped_early
from jaxlite.run.identity import Identity, identify
from jaxlite.run.progress import Beside, Progress
from jaxlite.run.record import Record, recorded
from jaxlite.run.records import WEIGHT, Log, Records, Told, means_of
from jaxlite.run.setup import REWRITES, Setup, prepare, shortened
from jaxlite.run.watch import Halted, Preempted, Watch
from jaxlite.run.workdir import WorkdirError, check_workdir, lock
from jaxlite.step import multi_step, warm_up
from jaxlite.step.state import TrainState

__all__ = ['Preempted', 'evaluate_run', 'train', 'train_varied']
Say = Callable[[str], None]
_GROWS = 50  # steps at which freed memory that is kept finds its size


def train(
  config: Config,
  workdir: str | Path,
  *,
  model: Any = None,
  data: Any = None,
  fresh: bool = False,
  command: str = '',
  say: Say = print,
  log: Log | None = None,
) -> Result:
  """Trains one run to its end, or on from where it stopped, and reports it.

  Args:
    config: what to train and how. `config.model` and `config.recipe` are called after all overrides.
    workdir: the run's folder: config, checkpoints, metrics, report.
    model: instead of `config.model`: a Model, or a network of any framework that `jl.adapt` takes. A Network, such as
      `jl.load(workdir, model=...)` gives, is trained on from its values; it keeps its own preprocessing, and the data
      have to agree with it.
    data: instead of `config.data.source`: a `jaxlite.data.Dataset`, or arrays (inputs, labels) or (inputs, labels,
      weight) from which validation and test are carved.
    fresh: what is in the workdir is moved aside, and the run starts again.
    command: the command line, for the report.
    say: prints a line.
    log: (kind, step, values) is told each point as it is recorded: kind 'train' or 'validation', and 'test' at the
      last step, values plain numbers by name. It is called at these points alone, never within a step; what it raises
      is told once and the run goes on. Points since the last checkpoint come again, equal, when a killed run goes on.

  Returns:
    The Result: its table, metrics and history. Running it again resumes; a finished run is only reported.

  Raises:
    ValueError: one line on what cannot be right; nothing was lost. So it is where memory would not do (see `jl.plan`;
      `config.machine.force` starts all the same), and where the workdir holds a run of another config, of other data,
      or of other code: what the code of now makes is traced and compared.
    Preempted: a signal came; the run was saved.
    ImportError: a package that a run needs is not installed.
  """
  return train_varied(config, workdir, model=model, data=data, fresh=fresh, command=command, say=say, log=log)


def train_varied(
  config: Config,
  workdir: str | Path,
  read: Collection[str] = (),
  *,
  model: Any = None,
  data: Any = None,
  fresh: bool = False,
  command: str,
  say: Say,
  log: Log | None = None,
  only: int = 0,
  watch: Watch | None = None,
) -> Result:
  """As `train`, of a config that somebody has varied: `read` are the fields that were read to do so. `only` so many
  steps are a trial of it: of the same programs, with all that follows. Where `watch` ends it, it raises Halted."""
  called = foreseen.entry()
  errors.need('jaxlite.train', 'orbax.checkpoint', 'flatbuffers')
  validate(config)
  say = streams.steady(say)
  told = None if log is None else Told(log, say)
  try:
    folder = check_workdir(workdir)
  except WorkdirError:
    done = _only_reported(config, expanded(workdir), model, data, say)
    if done is None or fresh:
      raise
    return done
  if fresh:
    spills.forgotten(folder, say)
  if fresh and any(folder.iterdir()):
    say(f'moved the old run to {aside.set_aside(folder)}')
    check_workdir(workdir)
  if config.machine.keep_memory:
    allocator.share_one_arena()  # before JAX starts its threads
  with stacks.small(), lock(folder), preempt.guard() as guard:
    spills.taken_up(folder, say)
    before = run_folder.opened(folder, config, say)
    machine.print_device(say)
    if config.machine.compile_cache:
      say(compile_cache.enable())
    setup = prepare(config, folder, model, data, read)
    setup = shortened(setup, only) if only else setup
    for note in setup.notes:
      say(f'note: {note}')
    if before is None:
      began = identify(setup)
    else:
      began = run_folder.verify(setup, folder, before, lambda one: prepare(one, folder, model, setup.data), say)
      done = run_folder.reported(setup, folder, before, say)
      if done is not None:
        return done
    run = run_id.draw() if before is None else before.run
    unused = unread(config, setup.reads.paths)  # the step is traced by now
    for note in unused:
      say(f'warning: {note}')
    setup = setup._replace(notes=(*setup.notes, *unused))
    with home.Home(folder, run, keep=config.checkpoint.keep, say=say) as place:
      saves = place.saves
      if not only:
        foreseen.refuse_state(setup)
      seen = foreseen.held(called.alone)
      state, record = states.start(setup, saves, say)
      record.began, record.run = began.began, run
      run_folder.begin(folder, run, config, began, meaning(setup.data, setup.data.facts))
      if config.machine.rewrites:
        setup = setup._replace(train=warm_up.with_forms(setup.train, state, setup.first_batch, folder / REWRITES, say))
      else:
        say('rewrites for CPU: none, as machine.rewrites says')
      again = lambda one: prepare(one, folder, model, setup.data)  # noqa: E731
      # In a trial too: what a forecast leaves in memory is there in the run.
      foresight = foreseen.start(setup, int(state.step), called, seen, again, say)
      record.rewrites = run_folder.text(folder / REWRITES) or ''
      kept = {'length': record.log_bytes, 'kept': record.log, 'tensorboard': config.log.tensorboard, 'say': say}
      with Records(folder, **kept, log=told) as records:
        left = 0 if record.stopped else setup.plan.total - int(state.step)
        with warm_up.compiling(setup.train, state, setup.first_batch, steps=left) as took:
          run_folder.write_program(setup, folder, run, say, anew=int(state.step) == 0)
        foresight = foreseen.bettered(foresight, took.program, setup, again, say)
        aim = Aim(setup, folder)
        beside = (aim, guard, watch, say, took.seconds)
        try:
          state, record = _fit(setup, place, began, state, record, records, *beside)
        except guards.NotFinite as error:
          run_folder.fail(folder, run, error.step, error.where)
          raise
      ended, state = int(state.step), states.best(setup, state, record, saves, say)
    guards.check_targets(setup.recipe, state, say)
    facts, test = decide_and_test(setup, state, guard)
    if test is None:
      raise Preempted(f'stopped while testing at step {int(state.step)}: run the same command to finish')
    if note := facts.get('threshold_note'):
      say(f'threshold: {note}')
    result, figures = evidence(setup, state, record, facts, test, folder, command)
    if told is not None:
      told('test', ended, result.metrics)
    foretold = (None if only else foresight, aim)  # of a trial there is nothing to learn
    run_folder.finish(setup, folder, run, result, figures, meaning(setup.data, facts), foretold, say)
    return result


def _only_reported(config: Config, folder: Path, model: Any, data: Any, say: Say) -> Result | None:
  """The Result of a finished run in a folder that cannot be written: a shared one, an archive."""
  before = run_folder.opened(folder, config, say) if run_folder.is_finished(folder) else None
  if before is None:
    return None
  setup = prepare(config, folder, model, data)
  run_folder.verify(setup, folder, before, lambda one: prepare(one, folder, model, setup.data), say)
  return run_folder.reported(setup, folder, before, say)


def evaluate_run(
  config: Config, workdir: str | Path, *, model: Any = None, data: Any = None, command: str = '', say: Say = print
) -> Result:
  """Evaluates the best checkpoint of a run on the test split; changes nothing.

  Raises:
    ValueError: the run has no checkpoint, or another config.
  """
  validate(config)
  folder = expanded(workdir).absolute()
  before = run_folder.opened(folder, config, say)
  if before is None:
    raise ValueError(f'{folder} holds no checkpoint to evaluate: train first, with --mode=train')
  setup = prepare(config, folder, model, data)
  run_folder.verify(setup, folder, before, lambda one: prepare(one, folder, model, setup.data), say)
  with checkpoint.Checkpoints(folder / 'checkpoints', run=before.run, log=say) as saves:
    found = saves.restore(setup.abstract, which='best')
  facts, test = decide_and_test(setup, found.state)
  return evidence(setup, found.state, recorded(found.loop), facts, test, folder, command)[0]


def _fit(
  setup: Setup,
  place: home.Home,
  identity: Identity,
  state: TrainState,
  record: Record,
  records: Records,
  aim: Aim,
  guard: preempt.Guard,
  watch: Watch | None,
  say: Say,
  compiling: float,
) -> tuple[TrainState, Record]:
  config, plan, step = setup.config, setup.plan, int(state.step)
  # A forward pass is a third of a step's work, and a checkpoint is believed to be a few steps, until they were timed.
  looks = Beside(plan.evaluate, len(setup.data.validation.labels) / config.data.batch_size / 3)
  beside = {'evaluation': looks, 'save': Beside(plan.checkpoint, 5)}
  progress = Progress(plan.total, step, config.data.batch_size, show=config.log.progress, say=say, beside=beside)
  say = place.say = progress.say
  pending = [(terms, 1) for terms in record.pending]  # of one step or several; on the device until somebody looks
  began, started = time.monotonic() - record.seconds, step
  pace = multi_step.resumed(setup.train.step, record.pace, plan.gap, config.machine.steps_per_dispatch)
  growing = None  # what freed memory is kept by
  weights: dict[int, Any] = {}  # of the batches of steps under way: what each counts for in a point of the record

  def batches_at(step: int, count: int) -> Any:
    batches = datasets.batches_at(setup.data.train, config.data.batch_size, config.seed, step, count)
    weights.update(enumerate(batches['weight'].sum(1, dtype=float), step))
    return batches

  def took(step: int, terms: Any, count: int) -> None:
    multi_step.keep(pending, {**terms, WEIGHT: np.array([weights.pop(step + i) for i in range(count)])}, count)

  def save(*, wait: bool = False) -> None:
    record.pending = multi_step.fetched(pending)
    guards.check_finite(record.pending, state, place.saves)
    guards.check_params(state, place.saves)

    def write(folder: Path, saves: checkpoint.Checkpoints, wait: bool) -> None:
      record.log = records.keep(folder)
      record.log_bytes, record.seconds = records.length, time.monotonic() - began
      if folder == place.folder:
        run_folder.keep(setup, folder, identity, record, say)
      if record.best is not None and record.best_step != step and not place.holds(record.best_step):
        say(f'the checkpoint of step {record.best_step}, the best so far, is gone: the best from here on is taken')
        record.best, record.best_step, record.stale = None, 0, 0
      metric = record.best if record.best_step == step else None
      saves.save(step, state, dataclasses.asdict(record), metric=metric, wait=wait)

    place.write(write, wait=wait)

  while True:
    improved, shown, why = False, [], ''
    if plan.due(step, plan.log) and record.logged < step:
      values = multi_step.fetched(pending)
      guards.check_finite(values, state, place.saves)
      guards.check_unbroken(setup.recipe, state)
      means = means_of(values)
      record.logged, pending = step, []
      place.look()
      if means:
        records.write('train', step, {**means, 'examples_per_second': round(progress.rate(step), 1)})
      shown.append(f'loss {means["loss"]:.4f}' if means else 'every update since the last point was left out')

    first = config.eval.start and step == 0 and record.best is None
    if (first or (plan.due(step, plan.evaluate) and record.evaluated < step)) and len(setup.data.validation.labels):
      with progress.aside('evaluation', state):
        found = evaluate(setup, state, setup.data.validation, guard)
      if found is not None:
        scalars = numbers(found.values)
        record.evaluated = step
        records.write('validation', step, scalars)
        name = setup.score
        score = setup.data.task.better(name) * scalars[name]
        opt_state, model_state = observe_score((state.opt_state, state.model_state), score)
        state = state._replace(opt_state=opt_state, model_state=model_state)
        shown.append(f'validation {name} {scalars[name]:.4f}')
        aim.saw(step, scalars[name])
        why = watch.heard(step, plan.total, scalars) if watch is not None else ''
        if guards.complete(state):  # a model short of its target sparsity is no candidate, however good
          improved = not math.isnan(score) and (record.best is None or score > record.best)
          record.best, record.best_step = (score, step) if improved else (record.best, record.best_step)
          record.stale = 0 if improved else record.stale + 1
          record.stopped = 0 < config.eval.patience <= record.stale

    progress.line(step, *shown, *(aim.said(step, progress.rate(step)) if shown else ()))
    last = step >= plan.total or record.stopped
    if guard.requested:
      save(wait=True)
      where = f'stopped by a signal at step {step} of {plan.total}; {place.where()}'
      raise Preempted(f'{where}: run the same command to go on')
    if watch is not None and not last and (why := why or watch.due()):
      save(wait=True)
      progress.done()
      raise Halted(why)
    if improved or last or plan.due(step, plan.checkpoint):
      with progress.aside('save', state):
        save(wait=last)
    if last:
      progress.done()
      if not place.settle(lambda: save(wait=True), lambda: guard.requested):
        raise (Preempted if guard.requested else WorkdirError)(place.left())
      if record.stopped:
        say(stopped_early(setup, record))
      return state, record

    free = plan.free(step)
    if pace is None and step > started and free >= multi_step.least(plan.gap):
      room = multi_step.Room(step, free, plan.gap, plan.total - step, compiling)
      with progress.aside('dispatch', state):
        state, taken, pace = multi_step.choose(
          setup.train.step, state, batches_at, room, config.machine.steps_per_dispatch
        )
      progress.passed(len(taken))
      record.pace = pace.steps
      say(f'steps per dispatch: {pace.steps} ({pace.why})')
      for i, terms in enumerate(taken):
        took(step + i, terms, 1)
      step += len(taken)
    elif pace is not None and pace.run is not None and free > 1:
      count = min(pace.steps, free)
      batches = multi_step.stacked(batches_at(step, count), pace.steps)
      jax.block_until_ready(pending[-1:])  # never two under way: a signal waits for one at most
      state, terms = pace.run(state, batches, count)
      took(step, terms, count)
      step += count
    else:
      batch = datasets.batch_at(setup.data.train, config.data.batch_size, config.seed, step)
      state, terms = setup.train.step(state, batch)
      if step == started and config.machine.keep_memory:
        growing = warm_up.keep_memory(state, say)
      weights[step] = batch['weight'].sum(dtype=float)
      took(step, terms, 1)
      step += 1
    if growing is not None and (step - started <= _GROWS or plan.due(step, plan.log)):
      growing = allocator.watched(growing)
    progress.step(step)
