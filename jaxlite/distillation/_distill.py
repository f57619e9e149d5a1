"""Distillation: a student learns a teacher's softened outputs beside the labels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from jaxlite.contract import CONST, Context, Loss, Model, Params, Side, State, Terms, drop_extras, with_const, with_tap
from jaxlite.distillation import _teachers as teachers
from jaxlite.distillation._kd import kd
from jaxlite.distillation._teachers import Divergence, Share, Teacher
from jaxlite.errors import number


def distill(
  teacher: Teacher | Sequence[Teacher],
  *,
  temperature: float | None = None,
  alpha: Share = 0.9,
  loss: Divergence = kd,
  weights: Sequence[float] | None = None,
  name: str = 'distill',
) -> Side:
  """Adds the teacher's softened predictions as a term of the loss, and scales the task's by 1 - alpha.

  A teacher runs in evaluation mode, outside every rewrite of the student, only while training. Its arrays are
  constants of the compiled step: no gradient, no copy in the program. What it gave is left as the tap
  '<name>/logits' ('<name>/logits/0', ... of several).

  Args:
    teacher: a Network (`jaxlite.load(workdir)` gives that of a run), a function from inputs to logits, or the name
      of logits that come with the batch (`jaxlite.data.cache_logits`, `jaxlite.data.attach`) or as another part's
      tap ('hint/logits'). Of several teachers the softened probabilities are averaged.
    temperature: softens student and teacher; None takes the loss's own default.
    alpha: the teacher's share of the loss, in [0, 1]; or a schedule of it, step -> share.
    loss: (student, teacher) -> float[B], of logits float[B, classes]: `kd`, `dkd`, `dist`, `rkd` or your own. Of
      `temperature=`, `labels=` and `weight=` it is given those that it names.
    weights: of several teachers, a positive number each; None counts them alike.
    name: the hook's name.

  Returns:
    A Hook.

  Raises:
    ValueError: alpha outside [0, 1], temperature not positive, weights that fit no teachers; at trace time, other
      classes, or logits that the batch lacks.
    TypeError: the teacher is none of these.

  References:
    Hinton et al., Distilling the Knowledge in a Neural Network, 2015, https://arxiv.org/abs/1503.02531

  >>> import jax.numpy as jnp
  >>> distill(lambda x: x @ jnp.ones((4, 10))).name
  'distill'
  """
  several = isinstance(teacher, list | tuple) and not hasattr(teacher, '_fields')  # a Model is one mistake, not four
  who: list[Any] = list(teacher) if several else [teacher]  # type: ignore[arg-type]
  alpha = teachers.share_of(alpha, name)
  temperature = teachers.temperature_of(loss, temperature, name)
  shares = _shares(weights, len(who), name)
  for one in who:
    teachers.check_teacher(one, name)
  softened_at = teachers.own_temperature(loss) if temperature is None else temperature
  taps = [f'{name}/logits/{index}' for index in range(len(who))] if several else [f'{name}/logits']
  runs = {str(index): one for index, one in enumerate(who) if not isinstance(one, str)}

  def model(inner: Model) -> Model:
    def init(key: Any, inputs: Any) -> tuple[Params, State]:
      params, state = inner.init(key, inputs)
      return params, with_const(state, name, {index: teachers.values_of(one) for index, one in runs.items()})

    def apply(params: Params, state: State, inputs: Any, *, train: bool, key: Any, step: Any = None) -> Any:
      if not train:
        return inner.apply(params, state, inputs, train=False, key=key, step=step)
      values = state[CONST][name]
      logits = {index: teachers.run(one, values[index], inputs) for index, one in runs.items()}
      outputs, state = inner.apply(params, state, inputs, train=True, key=key, step=step)
      for index, value in logits.items():
        state = with_tap(state, taps[int(index)], value)
      return outputs, state

    def export(params: Params, state: State) -> tuple[Params, State]:
      return inner.export(params, drop_extras(state, name))

    return Model(init, apply, inner.after, export)

  def add(inner: Loss) -> Loss:
    def terms(context: Context) -> Terms:
      values = inner(context)
      given = [
        teachers.found(context, one if isinstance(one, str) else tap, name) for one, tap in zip(who, taps, strict=True)
      ]
      logits = teachers.soft_mean(given, shares, softened_at)
      divergence = teachers.term(loss, context.outputs, logits, context, name, temperature)
      share = alpha(context.step) if callable(alpha) else alpha
      return {**values, 'task': (1 - share) * values['task'], name: share * divergence}

    return terms

  distribution = several or teachers.compares_classes(loss)
  return Side(name, model=teachers.brought(model, who), loss=add, distribution=distribution)


def _shares(weights: Sequence[float] | None, count: int, what: str) -> list[float]:
  if not count:
    raise ValueError(f'{what}: several teachers are at least one; got none')
  weights = [1.0] * count if weights is None else [number(weight, f'{what}: a weight') for weight in weights]
  if len(weights) != count or not all(weight > 0 and math.isfinite(weight) for weight in weights):
    raise ValueError(f'{what}: weights are a positive number for each of {count} teachers; got {weights}')
  return [weight / sum(weights) for weight in weights]
