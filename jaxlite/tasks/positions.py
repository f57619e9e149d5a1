"""A class at every position (tokens, pixels): the loss and the checks that language, tagging and segmentation share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_BLOCK = 1024


def check_positions(outputs: Any, batch: Mapping[str, Any], classes: int) -> tuple[jax.Array, jax.Array]:
  """Returns logits float[B, P, classes] and labels int32[B, P], all axes of positions in one.

  Args:
    outputs: float[B, ..., classes].
    batch: holds 'labels', int[B, ...].
    classes: how many.

  Raises:
    ValueError: anything else.

  >>> check_positions(jnp.zeros((2, 3, 4)), {'labels': jnp.zeros((2, 4), int)}, 4)
  Traceback (most recent call last):
    ...
  ValueError: labels are int[2, 3] for outputs [2, 3, 4]; got int32[2, 4]
  """
  shape: tuple[Any, ...] = getattr(outputs, 'shape', ())
  if len(shape) < 3 or shape[-1] != classes or not jnp.issubdtype(outputs.dtype, jnp.floating):
    got = f'{outputs.dtype}{list(shape)}' if hasattr(outputs, 'dtype') else type(outputs).__name__
    raise ValueError(f'outputs are logits at every position, float[B, ..., {classes}]; got {got}: fix the last layer')
  if 'labels' not in batch:
    raise ValueError(f"a batch has 'labels'; got {', '.join(map(repr, batch)) or 'nothing'}")
  labels = jnp.asarray(batch['labels'])
  if labels.shape != shape[:-1] or not jnp.issubdtype(labels.dtype, jnp.integer):
    got = f'{labels.dtype}{list(labels.shape)}'
    raise ValueError(f'labels are int{list(shape[:-1])} for outputs {list(shape)}; got {got}')
  return outputs.reshape(shape[0], -1, classes), labels.reshape(shape[0], -1).astype(jnp.int32)


def position_cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """Returns each example's mean cross-entropy over its own labeled positions, in nats; 0 where it has none.

  Args:
    logits: float[B, P, classes]; where nothing is labeled they may be anything.
    labels: int[B, P]; below 0 nothing is labeled. NaN where a label is no class.

  Returns:
    float[B], at least float32. With the number of labeled positions as weight, the mean over examples is the mean
    over positions, whatever the batches.
  """
  labeled = labels >= 0
  classes = logits.shape[-1]
  logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
  logits = jnp.where(labeled[..., None], logits, 0)  # NaN there would enter the gradient as 0 * NaN
  hit = labels[..., None] == jnp.arange(classes)[None, None]  # not a gather, whose gradient scatters
  picked = -jnp.sum(jnp.where(hit, jax.nn.log_softmax(logits), 0), axis=-1)
  each = jnp.where(labels < classes, jnp.where(labeled, picked, 0), jnp.nan)
  return _sum(each) / jnp.maximum(jnp.sum(labeled, axis=1), 1).astype(each.dtype)


def _sum(values: jax.Array) -> jax.Array:
  """The sum over positions, float[B, P] -> float[B], in blocks: a million float32 in a row lose the last digits."""
  if values.shape[1] <= _BLOCK:
    return jnp.sum(values, axis=1)
  padded = jnp.pad(values, ((0, 0), (0, -values.shape[1] % _BLOCK)))
  return jnp.sum(jnp.sum(padded.reshape(len(values), -1, _BLOCK), axis=2), axis=1)


def positions(labels: np.ndarray) -> np.ndarray:
  """Returns how many labeled positions each example has, float32[N].

  >>> positions(np.array([[1, -1], [-1, -1]])).tolist()
  [1.0, 0.0]
  """
  return np.count_nonzero(labels >= 0, axis=tuple(range(1, labels.ndim))).astype(np.float32)


def unlabeled(labels: np.ndarray, what: str) -> list[str]:
  """Returns the remark that some examples teach nothing, if so."""
  empty = int(np.count_nonzero(positions(labels) == 0))
  if not empty:
    return []
  return [f'train has {empty} of {len(labels)} examples without a labeled {what}: they teach nothing']
