"""When a run's training loss comes below a target, told before it begins: what of a run is given to the forecast."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from jaxlite.contract import Context, Hook, Selective, join_const
from jaxlite.data.dataset import Split
from jaxlite.graph.init_numpy import on_host
from jaxlite.graph.model import weights_of
from jaxlite.optim import evaluation_point
from jaxlite.planning.outputs import Subject, UnpredictableError
from jaxlite.planning.time_to_loss import TimeToLoss
from jaxlite.planning.time_to_loss import time_to_loss as told_by
from jaxlite.run.setup import Setup
from jaxlite.tasks.lift import lift_loss
from jaxlite.trees import able

_ALIKE = ('accumulate', 'machine.micro_batches')  # hooks on the gradient that leave it what it is


def time_to_loss(
  setup: Setup, target: float, *, examples: int = 0, say: Callable[[str], None] | None = None
) -> TimeToLoss:
  """Tells when a run's training loss will come to a target, by its network linearized where it begins.

  Args:
    setup: of the run, before its first step.
    target: a loss of the task, the mean over the training examples.
    examples: how many of them stand for all; 0 chooses.
    say: prints a line where it takes long.

  Raises:
    ValueError: a target that is no number.
    UnpredictableError: it cannot be told so, and why.
  """
  data, recipe = setup.data, setup.recipe
  if not isinstance(data.train, Split):
    raise UnpredictableError(f'plain examples are looked at; these are a {type(data.train).__name__}')
  default = Hook._field_defaults
  for part in recipe.parts:
    if isinstance(part, Hook) and part.grad is not default['grad'] and part.name not in _ALIKE:
      raise UnpredictableError(
        f'{part.name} changes the batch or the gradient of each step: leave it out to ask without'
      )
    if isinstance(part, Hook) and part.loss is not default['loss']:
      raise UnpredictableError(f'{part.name} adds to the loss of the task or changes it: leave it out to ask without')
  key = on_host(lambda: jax.random.key(setup.config.seed))()
  state = setup.train.init(key, setup.first_batch)
  if evaluation_point(state.opt_state, state.params) is not None:
    raise UnpredictableError('the optimizer has the network read at another point than it trains (schedule-free)')
  selects = any(isinstance(part, Selective) for part in recipe.parts)
  terms = lift_loss(setup.config.loss or data.task.loss(data.facts))

  def loss(outputs: jax.Array, batch: Any) -> jax.Array:
    return terms(Context(outputs, batch, {}, {}, None, None))['task']

  subject = Subject(
    apply=setup.train.model.apply,
    params=state.params,
    model_state=join_const(state.model_state, state.const),
    tx=recipe.tx,
    weights=weights_of(setup.network, key, setup.first_batch['inputs']) if selects else None,
    loss=loss,
    train=data.train,
    batch_size=setup.config.data.batch_size,
    total=setup.plan.total,
    seed=setup.config.seed,
  )
  found = told_by(subject, target, examples=examples, say=say)
  hears = able(state.opt_state, 'hear')
  doubts = ('a rate that follows validation scores is taken to stay as it is',) if hears else ()
  return found._replace(told=(*found.told, *doubts))
