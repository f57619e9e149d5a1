"""Distillation of softened predictions: what a student learns from, as a function of two arrays of logits."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxlite.errors import number


def kd(student: jax.Array, teacher: jax.Array, *, temperature: float = 4.0) -> jax.Array:
  """Returns the divergence of a student's softened predictions from its teacher's, an example each.

  Args:
    student: logits, float[..., classes]. A class at -inf has no probability.
    teacher: logits, float[..., classes]; likewise.
    temperature: softens both; the result is scaled by its square, so that gradients keep their size.

  Returns:
    float32[...]: temperature^2 * KL(teacher || student).

  Raises:
    ValueError: the shapes differ, there is one class only, or a temperature that is not above 0 and finite.

  References:
    Hinton et al., Distilling the Knowledge in a Neural Network, 2015, https://arxiv.org/abs/1503.02531

  >>> import jax.numpy as jnp
  >>> kd(jnp.array([[1.0, 2.0]]), jnp.array([[1.0, 2.0]])).tolist()
  [0.0]
  """
  student, teacher = logits_of(student, teacher)
  temperature = positive(temperature, 'kd: temperature')
  return temperature**2 * divergence(log_softened(teacher, temperature), log_softened(student, temperature))


def logits_of(student: Any, teacher: Any) -> tuple[jax.Array, jax.Array]:
  """Returns both as arrays that can be compared, or raises as `check_classes`; complex numbers are no logits.

  >>> [one.shape for one in logits_of([[1.0, 2.0]], [[2.0, 1.0]])]
  [(1, 2), (1, 2)]
  """
  student, teacher = jnp.asarray(student), jnp.asarray(teacher)
  for who, one in (('student', student), ('teacher', teacher)):
    if jnp.issubdtype(one.dtype, jnp.complexfloating):
      raise ValueError(f'distill: logits are real; the {who} gives {one.dtype}: give their real part, or loss=')
  check_classes(student, teacher)
  return student, teacher


def positive(value: Any, what: str) -> Any:
  """Returns a number above 0, plain; a traced one, which nobody knows yet, as it is.

  Raises:
    ValueError: it is not above 0 or not finite; a traced one has axes.

  >>> positive(4, 'temperature')
  4
  """
  if isinstance(value, jax.core.Tracer):
    if value.ndim:
      raise ValueError(f'{what} is one number; got {value.dtype}{list(value.shape)}')
    return value
  plain = number(value, what)
  if not (plain > 0 and math.isfinite(plain)):
    raise ValueError(f'{what} is above 0 and finite; got {plain}')
  return plain


def weights_of(weight: Any, count: int, what: str) -> jax.Array:
  """Returns the weight of each example, float32[count]; ones where there is none.

  Raises:
    ValueError: another shape.

  >>> weights_of(None, 2, 'rkd').tolist(), weights_of([True, False], 2, 'rkd').tolist()
  ([1.0, 1.0], [1.0, 0.0])
  """
  if weight is None:
    return jnp.ones(count)
  weight = jnp.asarray(weight)
  if weight.shape != (count,):
    raise ValueError(f'{what}: weight is one number an example, float[{count}]; got {list(weight.shape)}')
  return weight.astype(jnp.float32)


def check_classes(student: jax.Array, teacher: jax.Array) -> None:
  """Raises ValueError where logits differ in shape, or are of one class: its softmax is always 1."""
  if student.shape != teacher.shape:
    raise ValueError(
      f'distill: teacher and student need the same classes; the teacher gives {list(teacher.shape)}, the student '
      f'{list(student.shape)}: train the teacher on this label set'
    )
  if student.ndim < 1 or student.shape[-1] < 2:
    raise ValueError(
      f'distill: softened predictions are over at least two classes; got logits {list(student.shape)}: give loss=, '
      'such as a squared difference'
    )


def log_softened(logits: jax.Array, temperature: float) -> jax.Array:
  """Returns log softmax(logits / temperature) in float32, float32[..., classes].

  >>> log_softened(jnp.zeros((1, 1)), 2.0).tolist()
  [[0.0]]
  """
  return jax.nn.log_softmax(logits.astype(jnp.float32) / temperature)


def divergence(log_p: jax.Array, log_q: jax.Array) -> jax.Array:
  """Returns KL(p || q) of log probabilities over the last axis; where p is 0 nothing is added.

  Args:
    log_p: float32[..., classes], -inf allowed.
    log_q: likewise.

  >>> round(float(divergence(jnp.array([0.0, -jnp.inf]), jnp.log(jnp.array([0.5, 0.5])))), 4)
  0.6931
  """
  p = jnp.exp(log_p)
  # 0 * (-inf - -inf) is NaN, forward and back, so the difference is not even taken where p is 0.
  gap = jnp.where(p > 0, jnp.where(p > 0, log_p, 0) - jnp.where(p > 0, log_q, 0), 0)
  return jnp.sum(p * gap, axis=-1)
