"""Losses: functions (outputs, batch) -> float[B], one value for each example, whatever its weight.

Weights and means are `lift.py`'s business; penalties and smoothing are parts of a recipe (`jl.optim`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlite.errors import whole


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
  return _cross_entropy(*check_classes(outputs, batch), None)


def weighted_cross_entropy(weights: Any) -> Callable[[Any, Mapping[str, Any]], jax.Array]:
  """Makes a cross-entropy in which each class counts by its weight: rare classes more, say.

  A soft label's classes count each by its own weight. The mean over a batch stays the mean over examples: with
  `class_weights` the weights of the training split average 1, so the scale of the loss does not change.

  Args:
    weights: float[classes], or {class: weight} of every class; at least 0 and not all 0. `class_weights(labels,
      classes)` gives balanced ones.

  Returns:
    A loss, (outputs, batch) -> float[B], as `cross_entropy`.

  Raises:
    ValueError: weights of another shape, negative or not finite; when called, as many weights as classes are not.

  >>> loss = weighted_cross_entropy([1.0, 3.0])
  >>> [round(float(value), 4) for value in loss(jnp.zeros((2, 2)), {'labels': jnp.array([0, 1])})]
  [0.6931, 2.0794]
  """
  known = np.asarray(_in_order(weights), np.float32)
  if known.ndim != 1 or not (np.isfinite(known).all() and (known >= 0).all() and known.any()):
    raise ValueError(f'class weights are float[classes], at least 0, finite and not all 0; got {weights}')

  def loss(outputs: Any, batch: Mapping[str, Any]) -> jax.Array:
    logits, labels = check_classes(outputs, batch)
    if logits.shape[1] != len(known):
      raise ValueError(f'class weights are one per class; got {len(known)} for logits {list(logits.shape)}')
    return _cross_entropy(logits, labels, known)

  return loss


def _in_order(weights: Any) -> Any:
  """Weights by class as a list of them."""
  if isinstance(weights, jax.core.Tracer):
    raise TypeError('weighted_cross_entropy: weights are known before a program is compiled; got a traced value')
  if not isinstance(weights, Mapping):
    return weights
  if set(weights) != set(range(len(weights))):
    raise ValueError(
      f'weighted_cross_entropy: weights by class are {{0: ..., 1: ..., ...}}, one for every class; got {dict(weights)}'
    )
  return [weights[one] for one in range(len(weights))]


def class_weights(labels: Any, classes: int) -> np.ndarray:
  """Returns balanced weights: examples / (classes * examples of the class), so that every class counts alike.

  Args:
    labels: int[N], those of the training split.
    classes: how many classes there are.

  Returns:
    float32[classes]; their mean over the labels is 1.

  Raises:
    ValueError: labels that are no classes, or a class without an example, whose weight nobody knows.

  References:
    King and Zeng, Logistic Regression in Rare Events Data, 2001, https://doi.org/10.1093/oxfordjournals.pan.a004868

  >>> class_weights([0, 0, 0, 1, 2, 2], 3).tolist()
  [0.6666666865348816, 2.0, 1.0]
  """
  labels, classes = np.asarray(labels), whole(classes, 'class_weights: classes', least=1)
  if labels.ndim != 1 or not labels.size or not np.issubdtype(labels.dtype, np.integer):
    raise ValueError(f'class_weights takes labels int[N]; got {labels.dtype}{list(labels.shape)}')
  if labels.min() < 0 or labels.max() >= classes:
    raise ValueError(f'class_weights: labels are 0 to {classes - 1}; got {labels.min()} to {labels.max()}')
  counts = np.bincount(labels, minlength=classes)
  if not counts.all():
    raise ValueError(f'class_weights: every class needs an example; none of class {int(counts.argmin())}: give weights')
  return (labels.size / (classes * counts)).astype(np.float32)


def _cross_entropy(logits: jax.Array, labels: jax.Array, weights: Any) -> jax.Array:
  logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
  log_p = jax.nn.log_softmax(logits)
  if weights is not None:
    weights = jnp.expand_dims(weights, 0)
    log_p = jnp.where(weights > 0, log_p * weights, 0)  # a class that does not count, even at -inf
  if labels.ndim == 2:
    used = labels != 0  # a class without a share may have probability 0: 0 * -inf would be NaN, forward and back
    return -jnp.sum(jnp.where(used, labels * jnp.where(used, log_p, 0), 0), axis=1)
  classes = logits.shape[1]
  # Not a gather, whose gradient scatters: the same bits in fewer kernels.
  hit = labels[:, None] == jnp.arange(classes)[None]
  picked = jnp.sum(jnp.where(hit, log_p, 0), axis=1)
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
  if outputs.shape[1] == 1:
    raise ValueError(
      f'a classifier returns logits of two classes or more; got {outputs.dtype}{list(outputs.shape)}, of which softmax '
      'makes 1 whatever they are: give it two outputs, or take the loss of jl.tasks.binary() for one'
    )
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
