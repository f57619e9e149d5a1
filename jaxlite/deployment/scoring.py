"""The score of outputs that came from somewhere else: another runtime, another process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlite.tasks.task import Facts, Task

_ROWS = 256  # at once


def scores(task: Task, facts: Facts, outputs: Any, labels: Any, weight: Any = None) -> dict[str, float]:
  """Returns a task's metrics of outputs.

  Args:
    task: what was learned.
    facts: of the run.
    outputs: as the model gives them, a tree of arrays [N, ...].
    labels: [N, ...], as the task has them.
    weight: float[N]; None where every example counts once.

  >>> from jaxlite import tasks
  >>> found = scores(tasks.classification(2), {'classes': 2, 'top': (1,)}, np.eye(2, dtype='float32'), np.array([0, 0]))
  >>> found['accuracy']
  0.5
  """
  metric, loss = task.metrics(facts), task.loss(facts)
  total, kept = metric.init(), None
  labels = np.asarray(labels)
  weight = np.ones(len(labels), np.float32) if weight is None else np.asarray(weight, np.float32)

  def update(total: Any, outputs: Any, batch: Any) -> tuple[Any, Any]:
    each = loss(outputs, batch)
    mean = jnp.sum(each * batch['weight']) / jnp.maximum(jnp.sum(batch['weight']), 1e-30) if jnp.ndim(each) else each
    examples = None if metric.keep is None else {**metric.keep(outputs, batch), 'weight': batch['weight']}
    return metric.update(total, outputs, batch, mean), examples

  step = jax.jit(update)
  for start in range(0, len(labels), _ROWS):
    rows = slice(start, start + _ROWS)
    batch = {'labels': labels[rows], 'weight': weight[rows]}
    total, examples = step(total, jax.tree.map(lambda leaf, rows=rows: jnp.asarray(leaf[rows]), outputs), batch)
    if metric.keep is not None:
      kept = (metric.merge or _append)(kept, jax.device_get(examples))
  if metric.keep is None:
    values = metric.compute(jax.device_get(total))
  else:
    if metric.merge is None:
      kept = jax.tree.map(lambda *parts: np.concatenate(parts), *(kept or []))
    values = metric.compute(jax.device_get(total), kept)
  return {name: float(value) for name, value in values.items() if np.ndim(value) == 0}


def _append(parts: Sequence[Any] | None, examples: Any) -> list[Any]:
  return [*(parts or ()), examples]
