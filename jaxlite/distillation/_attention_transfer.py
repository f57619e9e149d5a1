"""Attention transfer: a student looks where its teacher looks, whatever their numbers of channels."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from jaxlite.errors import number


def attention_transfer(student: jax.Array, teacher: jax.Array, *, power: int = 2) -> jax.Array:
  """Returns how far two attention maps are apart, an example each.

  A map is the sum over channels of |activation|^power at each position, brought to Euclidean length 1.

  Args:
    student: activations, float[B, ..., channels], channels last.
    teacher: activations, float[B, ..., channels] at the same positions; its channels may be others.
    power: at least 1; more looks at the strongest channels only.

  Returns:
    float32[B]: the mean over positions of the maps' squared difference, as in the authors' code (the paper's
    formula takes the unsquared norm).

  Raises:
    ValueError: the positions differ, or there are none.

  References:
    Zagoruyko and Komodakis, Paying More Attention to Attention, 2016, https://arxiv.org/abs/1612.03928

  >>> maps = jnp.arange(8.0).reshape(1, 2, 2, 2)
  >>> attention_transfer(maps, 3 * maps).round(6).tolist()
  [0.0]
  """
  student, teacher, power = jnp.asarray(student), jnp.asarray(teacher), number(power, 'attention_transfer: power')
  if not (power >= 1 and math.isfinite(power)):
    raise ValueError(f'attention_transfer: power is at least 1; got {power}')
  if student.ndim < 3 or student.shape[:-1] != teacher.shape[:-1]:
    raise ValueError(
      f'attention_transfer compares positions, float[B, ..., channels]; the student has {list(student.shape)}, the '
      f'teacher {list(teacher.shape)}: tap layers of one resolution'
    )
  return jnp.mean(jnp.square(_map(student, power) - _map(teacher, power)), axis=1)


def _map(activations: jax.Array, power: int) -> jax.Array:
  size = jnp.abs(activations.astype(jnp.float32))
  # A map has no scale, and powers of large activations overflow: bring the largest to 1 first.
  most = jax.lax.stop_gradient(jnp.max(size, axis=tuple(range(1, size.ndim)), keepdims=True))
  size = size / jnp.where(most > 0, most, 1)
  flat = jnp.sum(size**power, axis=-1).reshape(len(size), -1)
  squared = jnp.sum(jnp.square(flat), axis=1, keepdims=True)
  return flat / jnp.sqrt(jnp.where(squared > 0, squared, 1))
