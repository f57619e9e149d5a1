"""What a training step of a pretrained network costs on this machine; nothing is run, but the machine's rates once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxlite import adapters, contract, models
from jaxlite.finetuning.entries import Entry
from jaxlite.host.rates import Rates
from jaxlite.planning.function import Call, call
from jaxlite.planning.plan import mib, spoken
from jaxlite.planning.reference import rates as machine_rates
from jaxlite.step.train_step import train_step


def step_price(
  entry: Entry, batch_size: int, size: int | None = None, rates: Rates | None = None
) -> tuple[Call, Call] | None:
  """Forecasts a step of full fine-tuning by AdamW and a forward pass.

  Args:
    entry: of the catalogue.
    batch_size: examples in a step: pictures, or texts of `entry.tokens` tokens.
    size: side of the pictures; None is the published one.
    rates: of the machine; None tells no time.

  Returns:
    (step, forward), each with its `time` and `peak`; None where jaxlite has no such network.
  """
  if entry.network is None:
    return None
  kind, fields = entry.network
  if entry.pictures is not None:
    side = size or entry.pictures.size
    inputs = jax.ShapeDtypeStruct((batch_size, side, side, 3), jnp.float32)
  else:
    inputs = jax.ShapeDtypeStruct((batch_size, entry.tokens), jnp.int32)
  module = getattr(models, kind)(**fields)
  outputs = jax.eval_shape(lambda key, x: module.init_with_output(key, x)[0], jax.random.key(0), inputs).shape
  batch = {'inputs': inputs, 'labels': jax.ShapeDtypeStruct(outputs[:-1], jnp.int32)}
  model = adapters.from_linen(module)
  train = train_step(model, _loss, contract.chain(optax.adamw(1e-3)))
  state = jax.eval_shape(train.init, jax.random.key(0), batch)
  params, model_state = jax.eval_shape(model.init, jax.random.key(0), inputs)

  def forward(params: Any, model_state: Any, inputs: Any) -> Any:
    return model.apply(params, model_state, inputs, train=False, key=None)[0]

  return call(train.step, (state, batch), rates), call(forward, (params, model_state, inputs), rates)


def _loss(outputs: jax.Array, batch: Any) -> jax.Array:
  """Cross entropy of the classes, or of the next token at every position: float[B]."""
  losses = optax.softmax_cross_entropy_with_integer_labels(outputs, batch['labels'])
  return losses.reshape(len(losses), -1).mean(1)


def told_price(entry: Entry, batch_size: int, size: int | None = None, say: Callable[[str], None] | None = None) -> str:
  """Returns the cost of a step in words; '' where there is none to tell."""
  found = step_price(entry, batch_size, size, machine_rates(say))
  if found is None:
    return ''
  step, forward = found
  if step.time is None or forward.time is None:
    return ''
  return (
    f'{spoken(step.time.seconds)} ({spoken(step.time.low)} to {spoken(step.time.high)}), {mib(step.peak)}; '
    f'features alone {spoken(forward.time.seconds)}'
  )
