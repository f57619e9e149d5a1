"""Self-distillation: the teacher is the moving average of the student's own weights (mean teacher)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxlite.contract import TAPS, Context, Loss, Model, Params, Side, State, Terms, drop_extras, with_tap
from jaxlite.distillation import _teachers as teachers
from jaxlite.distillation._kd import kd
from jaxlite.distillation._teachers import Divergence, Share
from jaxlite.errors import number
from jaxlite.tasks import running


def self_distill(
  decay: float = 0.999,
  *,
  temperature: float | None = None,
  alpha: Share = 0.5,
  loss: Divergence = kd,
  name: str = 'self_distill',
) -> Side:
  """Lets the student learn from the average of its own past weights, beside the labels.

  The teacher is the student as it is evaluated (no dropout, running statistics, its own quantization), with the
  averaged weights in place of the live ones; where `average` is in the recipe, evaluation is on that average, and
  so is the teacher. It runs on the same, augmented, inputs, only while training, and gets no gradient. The average
  lies in model_state['jl.<name>'], in at least float32; a weight that is exactly zero (pruned) is exactly zero in it.

  Args:
    decay: the share of the old average kept each optimizer step, in [0, 1); 1 - 1 / step while that is less, so
      that the random start is soon forgotten.
    temperature: softens student and teacher; None takes the loss's own default.
    alpha: the teacher's share of the loss, in [0, 1]; or a schedule of it, step -> share: a young teacher knows
      nothing, so it is often ramped up.
    loss: as in `distill`.
    name: the hook's name.

  Returns:
    A Hook.

  Raises:
    ValueError: decay outside [0, 1), alpha outside [0, 1], temperature not positive.

  References:
    Tarvainen and Valpola, Mean teachers are better role models, 2017, https://arxiv.org/abs/1703.01780

  >>> self_distill(0.99).name
  'self_distill'
  """
  decay = number(decay, f'{name}: decay')
  if not 0 <= decay < 1:
    raise ValueError(f'{name}: decay is the share of the old average kept, in [0, 1); got {decay}')
  alpha = teachers.share_of(alpha, name)
  temperature = teachers.temperature_of(loss, temperature, name)
  slot, tap = f'jl.{name}', f'{name}/logits'

  def model(inner: Model) -> Model:
    def init(key: Any, inputs: Any) -> tuple[Params, State]:
      params, state = inner.init(key, inputs)
      return params, {**state, slot: jax.tree.map(_start, params)}

    def apply(params: Params, state: State, inputs: Any, *, train: bool, key: Any, step: Any = None) -> Any:
      if not train:
        return inner.apply(params, state, inputs, train=False, key=key, step=step)

      def evaluated(averaged: Params, state: State, inputs: Any) -> Any:
        return inner.apply(averaged, state, inputs, train=False, key=None, step=step)[0]

      averaged, _ = running.read_average(state[slot], params, state)
      logits = teachers.apart(evaluated, averaged, state, inputs)
      outputs, state = inner.apply(params, state, inputs, train=True, key=key, step=step)
      return outputs, with_tap(state, tap, logits)

    def after(params: Params, state: State, step: Any) -> State:
      kept = jnp.minimum(decay, 1 - 1 / jnp.maximum(step, 1))
      moved = running.moved(state[slot], params, kept)
      moved = jax.tree.map(lambda mean, live: jnp.where(live == 0, 0, mean), moved, params)
      return inner.after(params, {**state, slot: moved}, step)

    def export(params: Params, state: State) -> tuple[Params, State]:
      return inner.export(params, drop_extras(state, name))

    return Model(init, apply, after, export)

  def add(inner: Loss) -> Loss:
    def terms(context: Context) -> Terms:
      values = inner(context)
      divergence = teachers.term(loss, context.outputs, context.model_state[TAPS][tap], context, name, temperature)
      share = alpha(context.step) if callable(alpha) else alpha
      return {**values, 'task': (1 - share) * values['task'], name: share * divergence}

    return terms

  return Side(name, model=model, loss=add, distribution=teachers.compares_classes(loss))


def _start(leaf: jax.Array) -> jax.Array:
  return jnp.array(running.widened(leaf), copy=True)  # a step donates both
