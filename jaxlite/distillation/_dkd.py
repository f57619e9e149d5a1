"""Decoupled distillation: how sure the teacher is, and how it ranks the other classes, weighed apart."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxlite.distillation._kd import divergence, logits_of, positive


def dkd(
  student: jax.Array,
  teacher: jax.Array,
  labels: jax.Array,
  *,
  alpha: float = 1.0,
  beta: float = 8.0,
  temperature: float = 4.0,
) -> jax.Array:
  """Returns KD's divergence split at the label's class, an example each, its two parts weighed freely.

  KD is the case alpha = 1, beta = the teacher's probability of all the other classes: the surer a teacher, the
  less of its knowledge about them comes through.

  Args:
    student: logits, float[..., classes], two classes at least.
    teacher: logits, float[..., classes].
    labels: int[...], 0 .. classes - 1.
    alpha: weighs the label's class against all others (TCKD).
    beta: weighs the other classes among themselves (NCKD).
    temperature: as in `kd`.

  Returns:
    float32[...]: temperature^2 * (alpha * TCKD + beta * NCKD). NaN where a label is no class: a loss that is seen.

  Raises:
    ValueError: shapes differ, labels are no integers of the leading shape, there is one class only, or a temperature
      that is not above 0.

  References:
    Zhao et al., Decoupled Knowledge Distillation, 2022, https://arxiv.org/abs/2203.08679

  >>> logits = jnp.array([[1.0, 2.0, 3.0]])
  >>> dkd(logits, logits, jnp.array([2])).tolist()
  [0.0]
  """
  student, teacher = logits_of(student, teacher)
  labels, temperature = jnp.asarray(labels), positive(temperature, 'dkd: temperature')
  if not jnp.issubdtype(labels.dtype, jnp.integer) or labels.shape != student.shape[:-1]:
    raise ValueError(
      f'dkd needs one integer label for each of {list(student.shape[:-1])}; got {labels.dtype}{list(labels.shape)}: '
      'where labels are blended (mixup), use kd'
    )
  classes = student.shape[-1]
  own = jax.nn.one_hot(labels, classes, dtype=bool)
  target_t, others_t = _parts(teacher, own, temperature)
  target_s, others_s = _parts(student, own, temperature)
  both = temperature**2 * (alpha * divergence(target_t, target_s) + beta * divergence(others_t, others_s))
  return jnp.where((labels >= 0) & (labels < classes), both, jnp.nan)


def _parts(logits: jax.Array, own: jax.Array, temperature: float) -> tuple[jax.Array, jax.Array]:
  """Log probabilities of (label, not label), float32[..., 2], and of the others among themselves."""
  scaled = logits.astype(jnp.float32) / temperature
  mine = jnp.sum(jnp.where(own, scaled, 0), axis=-1)
  # Both are differences of sums of exponentials: 1 - p would lose all digits of a sure teacher.
  most = jax.lax.stop_gradient(jnp.max(scaled, axis=-1, keepdims=True, where=~own, initial=-jnp.inf))
  most = jnp.where(jnp.isfinite(most), most, 0)
  total = jnp.sum(jnp.exp(jnp.where(own, -jnp.inf, scaled - most)), axis=-1, keepdims=True)
  some = total > 0  # none where a network rules every other class out by -inf: then there is no ranking to learn
  rest = most + jnp.log(jnp.where(some, total, 1))
  others = jnp.where(own | ~some, -jnp.inf, scaled - rest)
  both = jnp.stack([mine, jnp.where(some, rest, -jnp.inf)[..., 0]], axis=-1)
  return jax.nn.log_softmax(both), others
