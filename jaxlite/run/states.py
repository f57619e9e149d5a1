"""The states that a run begins with and ends at: a new one or the latest good checkpoint's, and the best one's."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from jaxlite import checkpoint
from jaxlite.diagnosis import repairs
from jaxlite.graph.init_numpy import on_host
from jaxlite.host import machine
from jaxlite.run.record import Record, recorded
from jaxlite.run.setup import Setup
from jaxlite.step.state import TrainState

Say = Callable[[str], None]


def start(setup: Setup, saves: Any, say: Say) -> tuple[TrainState, Record]:
  """The state of the latest good checkpoint, or a new one."""
  here = {**machine.machine(), 'jaxlib': machine.versions().get('jaxlib', ''), **(tuned := machine.tuned())}
  found = saves.restore(setup.abstract)
  if found is None:
    return first_state(setup), Record(data=setup.data.fingerprint, machine=here)
  record = recorded(found.loop)
  if record.data != setup.data.fingerprint:
    raise ValueError(
      'the data differ from those this run began with: bring them back, or move the run aside with fresh=True'
    )
  for name, value in here.items():
    if record.machine.get(name, value if name in tuned else None) != value:  # older runs did not keep what is tuned
      say(f'note: {name} was {record.machine.get(name)}, now {value}: the run goes on, but not bit for bit')
  say(f'resumed at step {found.step} of {setup.plan.total}')
  record.stopped = record.stopped and record.stale >= setup.config.eval.patience > 0
  return found.state, record


def first_state(setup: Setup) -> TrainState:
  """The state that a run begins with."""
  state = setup.train.init(on_host(lambda: jax.random.key(setup.config.seed))(), setup.first_batch)
  return repairs.started(setup.train, state, setup.first_batch) if setup.config.repair.start else state


def best(setup: Setup, state: TrainState, record: Record, saves: Any, say: Say) -> TrainState:
  """The state that validation liked best; the last one where nothing was validated, or where the best is gone."""
  if record.best is None or record.best_step == int(state.step):
    return state
  step, why = int(state.step), f'no checkpoint of step {record.best_step} is there'
  if saves.holds(record.best_step):
    try:
      return saves.restore(setup.abstract, which=record.best_step).state
    except checkpoint.CheckpointError as error:
      why = str(error)
  say(f'the best model is lost ({why}): the model in memory, of step {step}, is taken and saved')
  record.best, record.best_step = None, 0
  saves.save(step, state, dataclasses.asdict(record), wait=True)
  return state
