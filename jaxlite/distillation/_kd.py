"""Distillation of softened predictions: what a student learns from, as a function of two arrays of logits."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def kd(student: jax.Array, teacher: jax.Array, *, temperature: float = 4.0) -> jax.Array:
  """Returns the divergence of a student's softened predictions from its teacher's, an example each.

  Args:
    student: logits, float[..., classes]. A class at -inf has no probability.
    teacher: logits, float[..., classes]; likewise.
    temperature: softens both; the result is scaled by its square, so that gradients keep their size.

  Returns:
    float32[...]: temperature^2 * KL(teacher || student).

  Raises:
    ValueError: the shapes differ, or there is one class only.

  References:
    Hinton et al., Distilling the Knowledge in a Neural Network, 2015, https://arxiv.org/abs/1503.02531

  >>> import jax.numpy as jnp
  >>> kd(jnp.array([[1.0, 2.0]]), jnp.array([[1.0, 2.0]])).tolist()
  [0.0]
  """
  check_classes(student, teacher)
  return temperature**2 * divergence(log_softened(teacher, temperature), log_softened(student, temperature))


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
