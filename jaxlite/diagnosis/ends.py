"""What a run's program shows: what the network ends in, what labels lie beyond, and what its loss makes of outputs."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlite.contract import join_const
from jaxlite.diagnosis import program
from jaxlite.diagnosis.look import Looker, Subject
from jaxlite.tasks import is_built_in


def of_program(subject: Subject, looker: Looker, missing: list[str], known: Any = None) -> dict[str, Any]:
  """What the outputs end in, whether labels lie within that, and whether the loss is the right one.

  `known` are labels of training, more than a batch has: of numbers, one that lies far out sets the scale of all.
  """
  data, state, batch = subject.data, subject.end, looker.batches[0]
  task = data.task
  network = subject.network
  full = join_const(state.model_state, state.const)
  found: dict[str, Any] = {'ends_in': '', 'outside': float('nan'), 'loss_fits': None, 'chance_loss': float('nan')}
  if not is_built_in(task):
    missing.append('output activation and loss: the task is of your own')
    return found

  def forward(params: Any, inputs: Any) -> Any:
    return subject.train.model.apply(params, full, inputs, train=False, key=None, step=state.step)[0]

  def bare(key: Any, inputs: Any) -> Any:
    params, own = network.init(key, inputs)
    return network.apply(params, own, inputs, train=False, key=None)[0]

  try:
    found['ends_in'] = program.output_activation(jax.make_jaxpr(bare)(state.key, batch['inputs']))
  except Exception as error:  # a network that only its own run can call
    missing.append(f'output activation: the program could not be read ({type(error).__name__})')
  labels = np.asarray(batch['labels'])
  if task.name == 'regression' and found['ends_in']:
    mean = np.asarray(data.facts.get('mean') or 0.0, np.float64)
    std = np.asarray(data.facts.get('std') or 1.0, np.float64)
    scaled = (labels.reshape(len(labels), -1).astype(np.float64) - mean) / std
    low, high = program.RANGES[found['ends_in']]
    found['outside'] = float(np.mean((scaled < low - 1e-6) | (scaled > high + 1e-6)))
  own = task.loss(data.facts)
  outputs = jax.eval_shape(forward, state.params, batch['inputs'])
  if not hasattr(outputs, 'shape'):
    missing.append('loss: outputs are no single array')
    return found
  seen = {name: batch[name] for name in ('inputs', 'labels', 'weight') if name in batch}
  alike = np.zeros(outputs.shape, np.float32)
  guessed, judged = alike, seen
  if task.name == 'regression':
    if subject.loss is None and known is not None:  # the task's own asks for labels alone
      guessed, labels = np.zeros((len(known), *outputs.shape[1:]), np.float32), np.asarray(known)
      judged = {'labels': jnp.asarray(labels)}
    guessed = guessed + labels.reshape(len(labels), -1).mean(0).reshape((1, *outputs.shape[1:]))
  try:
    found['chance_loss'] = float(np.mean(jax.jit(subject.loss or own)(jnp.asarray(guessed, jnp.float32), judged)))
  except Exception as error:
    missing.append(f'loss of knowing nothing ({type(error).__name__})')
  if subject.loss is None:
    return found
  metric, sign = subject.metric, task.better(subject.score)

  def score(free: Any) -> float:
    kept: Any = metric.keep(free, seen) if metric.keep is not None else None
    total = metric.update(metric.init(), free, seen, jnp.mean(own(free, seen)))
    if metric.keep is None:
      values = metric.compute(jax.device_get(total))
    else:
      kept = jax.device_get({**kept, 'weight': seen['weight']})
      values = metric.compute(jax.device_get(total), kept)
    return sign * float(values[subject.score])

  shape = np.zeros(outputs.shape, np.float32)
  try:
    found['loss_fits'] = program.fits_labels(subject.loss, own, shape, seen, score)
  except Exception as error:
    missing.append(f'loss: it could not be descended on free outputs ({type(error).__name__})')
  return found
