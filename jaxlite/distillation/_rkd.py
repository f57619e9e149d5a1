"""Relational distillation: distances and angles between the examples of a batch, in any two spaces."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxlite.distillation._kd import weights_of


def rkd(
  student: jax.Array,
  teacher: jax.Array,
  *,
  distance: float = 1.0,
  angle: float = 2.0,
  weight: jax.Array | None = None,
) -> jax.Array:
  """Returns how far the geometry of a student's batch is from its teacher's, an example each.

  Distances between examples, in units of their mean, and cosines of the angles at each example, compared by
  Huber's loss. Features may have different sizes: only their relations are compared. An example at a time, so that
  memory grows with B^2; time grows with B^3.

  Args:
    student: features or logits, float[B, ...].
    teacher: features or logits, float[B, ...].
    distance: weighs the distances.
    angle: weighs the angles. 0 leaves them out.
    weight: float[B] or None; examples of weight 0 stand in no pair.

  Returns:
    float32[B]: the mean over the pairs, and triples, that start at the example; the mean over examples is the
    published sum divided by the number of its terms.

  Raises:
    ValueError: the numbers of examples differ, or the weight is not one number each.

  References:
    Park et al., Relational Knowledge Distillation, 2019, https://arxiv.org/abs/1904.05068

  >>> points = jnp.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
  >>> rkd(points, 5 * points).round(6).tolist()
  [0.0, 0.0, 0.0]
  """
  student, teacher = jnp.asarray(student), jnp.asarray(teacher)
  if student.ndim < 2 or teacher.ndim < 2 or len(student) != len(teacher):
    raise ValueError(
      f'rkd compares the same examples, float[B, ...]; the student has {list(student.shape)}, the teacher '
      f'{list(teacher.shape)}'
    )
  count = len(student)
  counts = weights_of(weight, count, 'rkd')
  pair = counts[None, :] * (1 - jnp.eye(count))  # row: the example; column: its partner, never itself
  spaces = [_flat(features, counts) for features in (student, teacher)]
  result = jnp.zeros(count)
  if distance:
    one, other = (_distances(space, pair * counts[:, None]) for space in spaces)  # [B, B]
    result += distance * _mean(_huber(one - other), pair, axis=1)
  if angle:

    @jax.checkpoint  # else the backward pass would keep all B^3 cosines
    def at(anchor: jax.Array) -> jax.Array:
      one, other = (_cosines(space, anchor) for space in spaces)
      sides = jnp.take(pair, anchor, axis=0)
      both = sides[:, None] * sides[None, :] * (1 - jnp.eye(count))
      return _mean(_huber(one - other), both, axis=(0, 1))

    result += angle * jax.lax.map(at, jnp.arange(count))
  return result


def _flat(features: jax.Array, counts: jax.Array) -> jax.Array:
  flat = features.astype(jnp.float32).reshape(len(features), -1)
  flat = jnp.where(counts[:, None] > 0, flat, 0)  # padding may hold anything, NaN too
  # Relations know no scale, and squares of large features overflow: bring the largest to 1 first.
  most = jax.lax.stop_gradient(jnp.max(jnp.abs(flat), initial=0.0))
  return flat / jnp.where(most > 0, most, 1)


def _distances(space: jax.Array, pair: jax.Array) -> jax.Array:
  """Distances in units of their mean. As differences: the expanded square cancels where examples are close."""
  from_each = jax.checkpoint(lambda anchor: _length(space - jnp.take(space, anchor, axis=0)[None]))
  far = jax.lax.map(from_each, jnp.arange(len(space)))
  mean = _mean(far, pair, axis=(0, 1))
  return far / jnp.where(mean > 0, mean, 1)


def _cosines(space: jax.Array, anchor: jax.Array) -> jax.Array:
  away = space - jnp.take(space, anchor, axis=0)[None]
  length = _length(away)[:, None]
  unit = away / jnp.where(length > 0, length, 1)
  return unit @ unit.T


def _length(difference: jax.Array) -> jax.Array:
  squared = jnp.sum(jnp.square(difference), axis=-1)
  return jnp.where(squared > 0, jnp.sqrt(jnp.where(squared > 0, squared, 1)), 0)  # a root of 0 has no gradient


def _huber(difference: jax.Array) -> jax.Array:
  size = jnp.abs(difference)
  return jnp.where(size <= 1, 0.5 * jnp.square(difference), size - 0.5)


def _mean(values: jax.Array, counts: jax.Array, axis: int | tuple[int, ...]) -> jax.Array:
  total = jnp.sum(counts, axis=axis)
  return jnp.sum(values * counts, axis=axis) / jnp.where(total > 0, total, 1)
