"""Losses: functions (outputs, batch) -> float[B], one value for each example, whatever its weight.

Weights and means are the contract's business (`contract.task`); penalties and smoothing are transforms.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp


def cross_entropy(outputs: Any, batch: Mapping[str, Any]) -> jax.Array:
  """Returns the cross-entropy of softmax(outputs) against the labels, in nats.

  Args:
    outputs: logits, float[B, classes]; below float32 they are widened first.
    batch: holds 'labels', int[B] or float[B, classes] (a distribution each, as mixup leaves them).

  Returns:
    float[B], at least float32. NaN where an int label is no class: a loss that is seen, not a wrong one.

  Raises:
    ValueError: shapes or dtypes that no classifier and no labels have.

  References:
    Bridle, Probabilistic Interpretation of Feedforward Classification Network Outputs, 1990,
    https://doi.org/10.1007/978-3-642-76153-9_28

  >>> logits = jnp.array([[0.0, 0.0], [-1000.0, 1000.0]])
  >>> [round(float(value), 4) for value in cross_entropy(logits, {'labels': jnp.array([0, 0])})]
  [0.6931, 2000.0]
  """
  logits, labels = check_classes(outputs, batch)
  logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
  log_p = jax.nn.log_softmax(logits)
  if labels.ndim == 2:
    used = labels != 0  # a class without a share may have probability 0: 0 * -inf would be NaN, forward and back
    return -jnp.sum(jnp.where(used, labels * jnp.where(used, log_p, 0), 0), axis=1)
  classes = logits.shape[1]
  picked = jnp.take_along_axis(log_p, jnp.clip(labels, 0, classes - 1)[:, None], axis=1)[:, 0]
  return jnp.where((labels >= 0) & (labels < classes), -picked, jnp.nan)


def check_classes(outputs: Any, batch: Mapping[str, Any]) -> tuple[jax.Array, jax.Array]:
  """Returns logits float[B, classes] and labels int32[B] or float[B, classes], or says what they are instead.

  Raises:
    ValueError: anything else.

  >>> check_classes(jnp.zeros((2, 3)), {'labels': jnp.zeros(3, int)})
  Traceback (most recent call last):
    ...
  ValueError: labels are int[2] or float[2, 3] for logits [2, 3]; got int32[3]
  """
  if not hasattr(outputs, 'shape') or outputs.ndim != 2 or not jnp.issubdtype(outputs.dtype, jnp.floating):
    got = f'{outputs.dtype}{list(outputs.shape)}' if hasattr(outputs, 'shape') else type(outputs).__name__
    raise ValueError(f'a classifier returns logits, float[B, classes]; got {got}: write a loss for other outputs')
  if 'labels' not in batch:
    raise ValueError(f"a classifier's batch has 'labels'; got {', '.join(map(repr, batch)) or 'nothing'}")
  labels = jnp.asarray(batch['labels'])
  size, classes = outputs.shape
  index = labels.shape == (size,) and jnp.issubdtype(labels.dtype, jnp.integer)
  soft = labels.shape == (size, classes) and jnp.issubdtype(labels.dtype, jnp.floating)
  if not (index or soft):
    raise ValueError(
      f'labels are int[{size}] or float[{size}, {classes}] for logits [{size}, {classes}]; '
      f'got {labels.dtype}{list(labels.shape)}'
    )
  return outputs, labels if soft else labels.astype(jnp.int32)  # bytes would overflow where 256 classes are met
