"""Distillation of relations between predictions: a student need only correlate with its teacher."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxlite.distillation._kd import logits_of, positive, weights_of


def dist(
  student: jax.Array,
  teacher: jax.Array,
  *,
  beta: float = 1.0,
  gamma: float = 1.0,
  temperature: float = 1.0,
  weight: jax.Array | None = None,
) -> jax.Array:
  """Returns how far a student's predictions are from correlating with its teacher's, an example each.

  Pearson's distance, 1 less the correlation, of the classes of each example (inter-class) and of the examples of
  each class (intra-class, one number for the batch, added to every example).

  Args:
    student: logits, float[B, classes].
    teacher: logits, float[B, classes].
    beta: weighs the inter-class distance.
    gamma: weighs the intra-class distance.
    temperature: as in `kd`.
    weight: float[B] or None; examples of weight 0 are not correlated with.

  Returns:
    float32[B]: temperature^2 * (beta * inter + gamma * intra). What does not vary correlates with nothing.

  Raises:
    ValueError: the shapes differ, or are not [B, classes]; a temperature that is not above 0.

  References:
    Huang et al., Knowledge Distillation from A Stronger Teacher, 2022, https://arxiv.org/abs/2205.10536

  >>> logits = jnp.array([[1.0, 2.0, 3.0], [3.0, 0.0, 1.0]])
  >>> dist(logits, logits).round(5).tolist()
  [0.0, 0.0]
  """
  student, teacher = logits_of(student, teacher)
  temperature = positive(temperature, 'dist: temperature')
  if student.ndim != 2:
    raise ValueError(f'dist correlates examples, so logits are float[B, classes]; got {list(student.shape)}')
  p = jax.nn.softmax(teacher.astype(jnp.float32) / temperature)
  q = jax.nn.softmax(student.astype(jnp.float32) / temperature)
  counts = weights_of(weight, len(p), 'dist')[:, None]
  inter = 1 - _correlation(p, q, jnp.ones_like(p), axis=1)
  counted = counts > 0  # a padding example may hold anything, NaN too
  intra = jnp.mean(1 - _correlation(jnp.where(counted, p, 0), jnp.where(counted, q, 0), counts, axis=0))
  return temperature**2 * (beta * inter + gamma * intra)


def _correlation(one: jax.Array, other: jax.Array, counts: jax.Array, *, axis: int) -> jax.Array:
  def centered(values: jax.Array) -> jax.Array:
    total = jnp.sum(counts, axis=axis, keepdims=True)
    mean = jnp.sum(counts * values, axis=axis, keepdims=True) / jnp.where(total > 0, total, 1)
    away = values - mean
    # Pearson's r knows no scale, and squares of small probabilities underflow: bring the largest to 1 first.
    most = jax.lax.stop_gradient(jnp.max(jnp.abs(away), axis=axis, keepdims=True))
    return away / jnp.where(most > 0, most, 1)

  one, other = centered(one), centered(other)
  spread = jnp.sum(counts * one**2, axis=axis) * jnp.sum(counts * other**2, axis=axis)
  varies = spread > 0
  return jnp.where(varies, jnp.sum(counts * one * other, axis=axis) / jnp.sqrt(jnp.where(varies, spread, 1)), 0)
