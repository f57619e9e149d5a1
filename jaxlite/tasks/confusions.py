"""Many classes: what is counted by class on the device, and mistakes as pairs on the host.

A matrix of confusions grows with the square of the classes: 20,000 of them would take 6 GiB. Above `DENSE` classes the
device counts labels, predictions and right predictions of each class, and a mistake comes to the host as a pair (label,
prediction), where equal ones are added up. Both are exact, whatever the batches.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

DENSE = 256  # classes up to which there is a whole matrix: 1 MiB on the device, legible as a picture
SHOWN = 100  # pairs of confused classes that are kept as evidence
_BLOCK = 128
_PART = 24  # bits of a weight behind the point that one int64 adds up: 2**39 examples do not overflow
_FOLD = 1 << 16  # mistakes that wait until they are added up


class Mistakes(NamedTuple):
  """Mistakes so far.

  Attributes:
    key: int64[n], ascending: label * classes + prediction.
    weight: int64[3, n], of each pair: whole numbers, the 24 bits behind the point, and the next 24.
    waiting: further (key, weight), not yet added up.
  """

  key: np.ndarray
  weight: np.ndarray
  waiting: tuple[tuple[np.ndarray, np.ndarray], ...] = ()


def add_mistakes(
  so_far: Mistakes | None, labels: np.ndarray, predicted: np.ndarray, weight: np.ndarray, classes: int
) -> Mistakes:
  """Adds the mistakes among some predictions.

  Args:
    so_far: those before; None at the start.
    labels: int[n]; what is no class counts for nothing.
    predicted: int[n], `classes` where nothing was predicted (NaN).
    weight: float[n]; 0 is padding.
    classes: how many.

  Returns:
    The Mistakes.

  >>> found = add_mistakes(None, np.array([0, 1, 1]), np.array([1, 1, 0]), np.array([0.5, 1, 1]), 2)
  >>> most_confused(found, 2)[0].tolist()
  [[1.0, 0.0, 1.0], [0.0, 1.0, 0.5]]
  """
  if so_far is None:
    so_far = Mistakes(np.zeros(0, np.int64), np.zeros((3, 0), np.int64))
  labels, predicted, weight = (np.asarray(array).reshape(-1) for array in (labels, predicted, weight))
  wrong = (labels != predicted) & (weight > 0) & (labels >= 0) & (labels < classes) & (predicted < classes)
  if not wrong.any():
    return so_far
  rest, parts = np.minimum(weight[wrong].astype(np.float64), 2**16 - 1), []
  for _ in range(3):
    parts.append(np.floor(rest))
    rest = (rest - parts[-1]) * 2.0**_PART  # exact, as weights are float32
  new = labels[wrong].astype(np.int64) * classes + predicted[wrong], np.stack(parts).astype(np.int64)
  waiting = (*so_far.waiting, new)
  if sum(len(key) for key, _ in waiting) <= max(_FOLD, len(so_far.key)):  # so each is sorted a few times, not n times
    return so_far._replace(waiting=waiting)
  return _folded(so_far._replace(waiting=waiting))


def most_confused(mistakes: Mistakes | None, classes: int, most: int = SHOWN) -> tuple[np.ndarray, np.ndarray]:
  """Returns the pairs of classes that are confused most, and how much there is in all.

  Args:
    mistakes: what `add_mistakes` gave; None is none.
    classes: how many.
    most: pairs at most.

  Returns:
    (float64[k, 3], float64[2]): (label, prediction, weight) each, the heaviest first; and the number of different
    pairs and the weight of all mistakes.
  """
  if mistakes is None:
    return np.zeros((0, 3)), np.zeros(2)
  key, parts, _ = _folded(mistakes)
  weight = np.tensordot(2.0 ** (-_PART * np.arange(3)), parts.astype(np.float64), axes=1)
  first = np.lexsort((key, -weight))[:most]
  rows = np.stack([key[first] // classes, key[first] % classes, weight[first]], axis=1)
  return rows.astype(np.float64), np.array([len(key), weight.sum()])


def _folded(mistakes: Mistakes) -> Mistakes:
  if not mistakes.waiting:
    return mistakes
  keys, weights = zip((mistakes.key, mistakes.weight), *mistakes.waiting, strict=True)
  key, place = np.unique(np.concatenate(keys), return_inverse=True)
  whole = np.concatenate(weights, axis=1)
  weight = np.zeros((3, len(key)), np.int64)
  for row, values in zip(weight, whole, strict=True):
    np.add.at(row, place.reshape(-1), values)
  return Mistakes(key, weight)


def by_class(counts: np.ndarray, classes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns right predictions, predictions and labels of each class, float64[C + 1] each; the last is 'no class'.

  Args:
    counts: float64[C + 1, C + 1], by label and prediction; or float64[3, C + 1], what is returned.
    classes: C.
  """
  if classes <= DENSE:
    return np.diag(counts), counts.sum(axis=0), counts.sum(axis=1)
  return counts[0], counts[1], counts[2]


def class_evidence(counts: np.ndarray, classes: int, kept: Mapping[str, Any] | Mistakes | None) -> dict[str, Any]:
  """Returns what tables and figures of a classifier are made of.

  Returns:
    'confusion', float64[C, C], labels in rows. Above `DENSE` classes instead 'right_each', 'predicted_each' and
    'actual_each', float64[C]; 'confused', float64[k, 3], the heaviest (label, prediction, weight); and 'confused_of',
    float64[2], how many different pairs there are and the weight of all mistakes.
  """
  if classes <= DENSE:
    return {'confusion': counts[:-1, :-1]}
  right, called, actual = (row[:-1] for row in by_class(counts, classes))
  pairs, of = most_confused(kept if isinstance(kept, Mistakes) else None, classes)
  return {'right_each': right, 'predicted_each': called, 'actual_each': actual, 'confused': pairs, 'confused_of': of}


def predictions(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns the first of the largest logits, int32[...], and whether there is a NaN among them, bool[...].

  XLA finds the place of a maximum one value at a time, and a maximum alone several at a time: so it is looked for in
  blocks, and only in that block again which holds it.

  Args:
    logits: float[..., classes]. Where one is NaN the place means nothing.

  >>> predictions(jnp.array([[1.0, 3.0, 3.0], [jnp.nan, 0.0, 0.0]]))[1].tolist()
  [False, True]
  """
  classes = logits.shape[-1]
  if classes < 8 * _BLOCK:
    return jnp.argmax(logits, axis=-1).astype(jnp.int32), jnp.any(jnp.isnan(logits), axis=-1)
  rows = logits.reshape(-1, classes)
  count = classes // _BLOCK
  top = jnp.max(rows[:, : count * _BLOCK].reshape(-1, count, _BLOCK), axis=2)
  if classes % _BLOCK:
    top = jnp.concatenate([top, jnp.max(rows[:, count * _BLOCK :], axis=1, keepdims=True)], axis=1)
  # The last block may be short: it is read from further left, where there is no value as large.
  start = jnp.minimum(jnp.argmax(top, axis=1) * _BLOCK, classes - _BLOCK).astype(jnp.int32)
  block = jax.vmap(lambda row, at: jax.lax.dynamic_slice(row, (at,), (_BLOCK,)))(rows, start)
  place = start + jnp.argmax(block, axis=1).astype(jnp.int32)
  # A sum is NaN where a value is, or where infinities of both signs are: rarely, and then each value is asked.
  suspect = jnp.isnan(jnp.sum(rows, axis=1))
  each = lambda: jnp.any(jnp.isnan(rows), axis=1)  # noqa: E731
  nan = jax.lax.cond(jnp.any(suspect), each, lambda: jnp.zeros_like(suspect))
  return place.reshape(logits.shape[:-1]), nan.reshape(logits.shape[:-1])
