"""Distillation: a student learns a teacher's softened outputs beside the labels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxlite.contract import (
  CONST,
  TAPS,
  Context,
  Loss,
  Model,
  Network,
  Params,
  Side,
  State,
  Terms,
  drop_extras,
  weighted_mean,
  with_const,
  with_tap,
)


def kd(student: jax.Array, teacher: jax.Array, *, temperature: float = 4.0) -> jax.Array:
  """Returns the divergence of a student's softened predictions from its teacher's, an example each.

  Args:
    student: logits, float[..., classes].
    teacher: logits, float[..., classes].
    temperature: softens both; the result is scaled by its square, so that gradients keep their size.

  Returns:
    float32[...]: temperature^2 * KL(teacher || student).

  Raises:
    ValueError: the shapes differ.

  References:
    Hinton et al., Distilling the Knowledge in a Neural Network, 2015, https://arxiv.org/abs/1503.02531

  >>> import jax.numpy as jnp
  >>> kd(jnp.array([[1.0, 2.0]]), jnp.array([[1.0, 2.0]])).tolist()
  [0.0]
  """
  if student.shape != teacher.shape:
    raise ValueError(
      f'distill: teacher and student need the same classes; the teacher gives {list(teacher.shape)}, the student '
      f'{list(student.shape)}: train the teacher on this label set'
    )
  log_p = jax.nn.log_softmax(teacher.astype(jnp.float32) / temperature)
  log_q = jax.nn.log_softmax(student.astype(jnp.float32) / temperature)
  return temperature**2 * jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)


def distill(
  teacher: Network | Callable[[Any], jax.Array], *, temperature: float = 4.0, alpha: float = 0.9, name: str = 'distill'
) -> Side:
  """Adds the teacher's softened predictions as a term of the loss, and scales the task's by 1 - alpha.

  The teacher runs in evaluation mode, outside every rewrite of the student, only while training. Its arrays
  are constants of the compiled step: no gradient, no copy in the program.

  Args:
    teacher: a Network (what `jaxlite.load` gives), or a function from inputs to logits.
    temperature: see `kd`.
    alpha: the teacher's share of the loss, in [0, 1].
    name: the hook's name.

  Returns:
    A Hook.

  Raises:
    ValueError: alpha outside [0, 1], temperature not positive; at trace time, other classes.
    TypeError: the teacher is neither.

  References:
    Hinton et al., Distilling the Knowledge in a Neural Network, 2015, https://arxiv.org/abs/1503.02531

  >>> distill(lambda x: x @ jnp.ones((4, 10))).name
  'distill'
  """
  if not 0 <= alpha <= 1:
    raise ValueError(f"distill: alpha is the teacher's share of the loss, in [0, 1]; got {alpha}")
  if not temperature > 0:
    raise ValueError(f'distill: temperature is positive; got {temperature}')
  is_network = all(hasattr(teacher, field) for field in Network._fields)
  if not is_network and not callable(teacher):
    raise TypeError(f'distill: a teacher is a Network (see jaxlite.load) or a function; got {type(teacher).__name__}')
  tap = f'{name}/logits'

  def model(inner: Model) -> Model:
    def init(key: Any, inputs: Any) -> tuple[Params, State]:
      params, state = inner.init(key, inputs)
      values = {'params': teacher.params, 'model_state': teacher.model_state} if is_network else {}
      return params, with_const(state, name, values)

    def apply(params: Params, state: State, inputs: Any, *, train: bool, key: Any, step: Any = None) -> Any:
      if not train:
        return inner.apply(params, state, inputs, train=False, key=key, step=step)
      logits = _teacher_logits(teacher, state[CONST][name] if is_network else None, inputs)
      outputs, state = inner.apply(params, state, inputs, train=True, key=key, step=step)
      return outputs, with_tap(state, tap, logits)

    def export(params: Params, state: State) -> tuple[Params, State]:
      return inner.export(params, drop_extras(state, name))

    return Model(init, apply, inner.after, export)

  def loss(inner: Loss) -> Loss:
    def terms(context: Context) -> Terms:
      values = inner(context)
      logits = context.model_state[TAPS][tap]
      divergence = weighted_mean(kd(context.outputs, logits, temperature=temperature), context.batch.get('weight'))
      return {**values, 'task': (1 - alpha) * values['task'], name: alpha * divergence}

    return terms

  return Side(name, model=model, loss=loss)


def _teacher_logits(teacher: Any, values: Any, inputs: Any) -> jax.Array:
  # The barriers keep XLA from fusing the teacher with its surroundings: its logits stay bit-equal to its own.
  if values is None:
    return jax.lax.stop_gradient(jax.lax.optimization_barrier(teacher(jax.lax.optimization_barrier(inputs))))
  values, inputs = jax.lax.optimization_barrier((values, inputs))
  values = jax.lax.stop_gradient(values)
  logits, _ = teacher.model.apply(values['params'], values['model_state'], inputs, train=False, key=None)
  return jax.lax.stop_gradient(jax.lax.optimization_barrier(logits))
