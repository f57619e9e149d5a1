"""Measuring a model on a split, and the evidence that a run hands back."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxlite import data as datasets
from jaxlite import trees
from jaxlite.contract import join_const
from jaxlite.deployment import inventory
from jaxlite.deployment.metadata import about_of
from jaxlite.deployment.packed_size import packed_size
from jaxlite.errors import counted
from jaxlite.graph.model import weights_of
from jaxlite.host import machine, preempt
from jaxlite.host.gc_pause import paused
from jaxlite.host.promised import Promised
from jaxlite.host.stacks import limited
from jaxlite.report import ledger
from jaxlite.report.result import Result
from jaxlite.run.answered import answered, reliability
from jaxlite.run.record import Record
from jaxlite.run.records import read_records
from jaxlite.run.setup import Setup
from jaxlite.step.evaluated import began, evaluated
from jaxlite.step.state import TrainState
from jaxlite.tasks import is_built_in
from jaxlite.tasks.metrics import Metrics
from jaxlite.tasks.task import Facts, Figure, Task

_EVIDENCE = 1 << 16  # values of an array that a result keeps: a confusion matrix of 256 classes


class Measured(NamedTuple):
  """What was found on a split.

  Attributes:
    values: the metrics: numbers and arrays by name.
    kept: what the metrics keep of each example, None for most.
  """

  values: dict[str, Any]
  kept: Any


def evaluate(
  setup: Setup, state: TrainState, split: Any, guard: preempt.Guard | None = None, metric: Metrics | None = None
) -> Measured | None:
  """Measures a split; None when a signal came first."""
  metric = metric or setup.metric
  merge = metric.merge or _append
  total, kept, before, promised = began(metric.init)(), None, None, Promised()
  for batch in datasets.eval_batches(split, setup.config.eval.batch_size):
    if guard is not None and guard.requested:
      return None
    if metric.keep is None or limited():
      jax.block_until_ready((total, before))  # gathering is overlapped; else tens of batches would wait in memory
    if limited():
      promised.returned()
    total, examples = evaluated(setup.train.eval, metric.update, metric.keep)(total, state, batch)
    if before is not None:  # one batch late: the device is at work on the next
      kept = merge(kept, jax.device_get(before))
    before = examples
  if metric.keep is None:
    return Measured(metric.compute(jax.device_get(total)), None)
  kept = merge(kept, jax.device_get(before))
  if metric.merge is None:
    count = len(split.labels)  # behind them stands the last batch's padding
    kept = jax.tree.map(lambda *parts: np.concatenate(parts)[:count], *kept)
  return Measured(metric.compute(jax.device_get(total), kept), kept)


def _append(parts: list[Any] | None, examples: Any) -> list[Any]:
  parts = [] if parts is None else parts
  parts.append(examples)
  return parts


def decide_and_test(
  setup: Setup, state: TrainState, guard: preempt.Guard | None = None
) -> tuple[Facts, Measured | None]:
  """What the task decides on validation (a threshold), and the test split measured with it."""
  data, metric = setup.data, setup.metric
  facts = data.facts
  if data.task.decide is not Task._field_defaults['decide'] and metric.keep is not None and len(data.validation.labels):
    found = evaluate(setup, state, data.validation, guard)
    if found is None:
      return facts, None
    facts = {**facts, **data.task.decide(found.kept, facts)}
    metric = data.task.metrics(facts)
  return facts, evaluate(setup, state, data.test, guard, metric)


def stopped_early(setup: Setup, record: Record) -> str:
  """A line on a run that early stopping ended, for the terminal and the report."""
  compared = f'a better {setup.score} than at step {record.best_step}'
  if record.best is None:  # a metric that validation does not have: that of a class without an example there
    compared = f'a {setup.score} that is a number: give eval.metric another one'
  return (
    f'stopped early at step {record.evaluated} of {setup.plan.total}: {counted(record.stale, "validation")} without '
    f'{compared}'
  )


def meaning(data: datasets.Dataset, facts: Facts) -> dict[str, Any]:
  """What a loaded run needs to take a user's inputs and to answer in a user's terms, as JSON takes it."""
  encoder = data.encoder.to_json() if data.encoder is not None else None
  named = {'task': data.task.name, 'built_in': is_built_in(data.task), 'facts': facts}
  return {**named, 'features': list(data.feature_names), 'encoder': encoder}


@paused()
def evidence(
  setup: Setup, state: TrainState, record: Record, facts: Facts, test: Measured, folder: Path, command: str
) -> tuple[Result, list[Figure]]:
  """All that the report shows of a run, and the pictures that its task draws."""
  full = join_const(state.model_state, state.const)
  inputs = setup.first_batch['inputs']
  weights = weights_of(setup.network, state.key, inputs)
  history = read_records(folder)
  task, name = setup.data.task, setup.config.name
  figures = task.figures(test.values, facts, name)
  about = about_of(record.run, int(state.step), task.name, facts, encoder=setup.data.encoder)
  sure = reliability(test.kept, facts, setup.data)
  result = Result(
    name=name,
    metrics=numbers(test.values),
    layers=inventory.layers(setup.train.model, state.params, full, inputs, weights, None if setup.integers else {}),
    seconds=record.seconds,
    history=history,
    task=task.name,
    facts=facts,
    rows=[list(row) for row in task.rows],
    curve=list(task.curve or ()),
    examples=len(setup.data.test.labels),
    interval=task.interval if setup.data.test.weight is None else '',
    evidence={**_arrays(test.values), **({'reliability': sure} if sure else {})},
    tables=task.tables(test.values, facts),
    figures=[[f'{figure.slug}.png', figure.caption] for figure in figures],
    command=command,
    versions=machine.versions(),
    machine=machine.machine(),
    notes=[
      *setup.notes,
      *([stopped_early(setup, record)] if record.stopped else []),
      *([f'threshold: {facts["threshold_note"]}'] if facts.get('threshold_note') else []),
      *_left_out(test.values),
    ],
    best_step=int(state.step),
    packed=packed_size(folder, record.run, trees.by_path({'params': state.params, 'model_state': full}), about),
    parts=[list(row) for row in ledger.account(setup.recipe, setup.network, setup.train.model, state, inputs, history)],
    falls=sorted({name for _, name, _ in task.rows if task.better(name) < 0}),
    **answered(setup.data, test.kept, facts),
  )
  return result, figures


def numbers(values: dict[str, Any]) -> dict[str, float]:
  return {name: float(value) for name, value in values.items() if np.ndim(value) == 0}


def _arrays(values: dict[str, Any]) -> dict[str, Any]:
  """The arrays among what was measured, as lists; without those that are too large to keep."""
  arrays = {name: np.asarray(value) for name, value in values.items() if np.ndim(value)}
  return {name: array.tolist() for name, array in arrays.items() if array.size <= _EVIDENCE}


def _left_out(values: dict[str, Any]) -> list[str]:
  """What `_arrays` leaves out, in a line each."""
  shapes = {name: np.shape(value) for name, value in values.items()}
  return [
    f'result.json leaves {name} out, {list(shape)}: it keeps arrays of up to {_EVIDENCE:,} values'
    for name, shape in shapes.items()
    if math.prod(shape) > _EVIDENCE
  ]
