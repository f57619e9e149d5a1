"""What a training step of a pretrained network costs on this machine; nothing is run, but the machine's rates once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxlite import adapters, contract, models
from jaxlite.finetuning.entries import Entry
from jaxlite.host.rates import rates
from jaxlite.planning.function import Call, call
from jaxlite.planning.plan import mib, spoken
from jaxlite.step.train_step import train_step
from jaxlite.tasks.losses import cross_entropy


def step_price(
  entry: Entry, batch_size: int, size: int | None = None, say: Callable[[str], None] | None = None
) -> tuple[Call, Call] | None:
  """Forecasts a step of full fine-tuning and a forward pass, of a network for photographs.

  Args:
    entry: of the catalogue.
    batch_size: examples in a step.
    size: side of the pictures; None is the published one.
    say: is told when this machine is measured, which takes some seconds once.

  Returns:
    (step, forward), each with its `time` and `peak`; None for a network that is not for photographs.
  """
  if entry.network is None or entry.pictures is None:
    return None
  kind, fields = entry.network
  module = getattr(models, kind)(**fields)
  side = size or entry.pictures.size
  images = jax.ShapeDtypeStruct((batch_size, side, side, 3), jnp.float32)
  batch = {'inputs': images, 'labels': jax.ShapeDtypeStruct((batch_size,), jnp.int32)}
  model, known = adapters.from_linen(module), rates(say)
  train = train_step(model, cross_entropy, contract.chain(optax.adamw(1e-3)))
  state = jax.eval_shape(train.init, jax.random.key(0), batch)
  params, model_state = jax.eval_shape(model.init, jax.random.key(0), images)

  def forward(params: Any, model_state: Any, images: Any) -> Any:
    return model.apply(params, model_state, images, train=False, key=None)[0]

  return call(train.step, (state, batch), known), call(forward, (params, model_state, images), known)


def told_price(entry: Entry, batch_size: int, size: int | None = None, say: Callable[[str], None] | None = None) -> str:
  """Returns the cost of a step in words; '' where there is none to tell."""
  found = step_price(entry, batch_size, size, say)
  if found is None:
    return ''
  step, forward = found
  if step.time is None or forward.time is None:
    return ''
  return (
    f'{spoken(step.time.seconds)} ({spoken(step.time.low)} to {spoken(step.time.high)}), {mib(step.peak)}; '
    f'features alone {spoken(forward.time.seconds)}'
  )
