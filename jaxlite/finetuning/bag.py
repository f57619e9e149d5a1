"""tf-idf over a backbone's own tokens, as a part of the network: words tell what a mean of embeddings blurs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

BAG = 'bag'  # the collection of model_state
_ROWS = 256


class Bag(NamedTuple):
  """What of a vocabulary is counted, and how rare it is.

  Attributes:
    column: int32[vocabulary], the feature of a token id; the last, which is dropped, for one that is not counted.
    idf: float32[features].
  """

  column: np.ndarray
  idf: np.ndarray

  @property
  def state(self) -> dict[str, Any]:
    """What `tf_idf` reads, among the model_state."""
    return {BAG: {'column': jnp.asarray(self.column), 'idf': jnp.asarray(self.idf)}}


def is_text(inputs: Any) -> bool:
  """Whether inputs are token ids with a mask."""
  return isinstance(inputs, Mapping) and set(inputs) == {'tokens', 'mask'} and np.ndim(inputs['tokens']) == 2


def fit_bag(inputs: Mapping[str, Any], vocabulary: int | None = None) -> Bag:
  """Counts in how many texts each token stands; one that is in every text, or in none, is left out.

  Args:
    inputs: {'tokens': int[N, T], 'mask': bool[N, T]} of the training texts.
    vocabulary: how many ids there are; None takes those that occur.

  Returns:
    The Bag; its idf is scikit-learn's smooth one, log((1 + N) / (1 + df)) + 1.

  >>> bag = fit_bag({'tokens': np.array([[1, 2], [1, 3]]), 'mask': np.ones((2, 2), bool)})
  >>> bag.column.tolist(), bag.idf.tolist() == [np.float32(np.log(3 / 2) + 1)] * 2
  ([2, 2, 0, 1], True)
  """
  tokens, mask = np.asarray(inputs['tokens']), np.asarray(inputs['mask'])
  size = max(int(tokens.max(initial=0)) + 1, vocabulary or 0)
  df = np.zeros(size, np.int64)
  for row, there in zip(tokens, mask, strict=True):
    df[np.unique(row[there])] += 1
  kept = np.flatnonzero((df > 0) & (df < len(tokens)))
  kept = kept if len(kept) else np.flatnonzero(df > 0)
  column = np.full(size, len(kept), np.int32)
  column[kept] = np.arange(len(kept), dtype=np.int32)
  return Bag(column, (np.log((1 + len(tokens)) / (1 + df[kept])) + 1).astype(np.float32))


def tf_idf(state: Mapping[str, Any], inputs: Mapping[str, Any]) -> Any:
  """Returns float32[B, features] of unit length: (1 + log count) times idf, as scikit-learn's with sublinear_tf."""
  own = state[BAG]
  tokens, mask = jnp.asarray(inputs['tokens']), jnp.asarray(inputs['mask'])
  size = own['idf'].shape[0]
  known = mask & (tokens < own['column'].shape[0])
  column = jnp.where(known, own['column'][jnp.where(known, tokens, 0)], size)
  counts = jnp.zeros((tokens.shape[0], size + 1), jnp.float32)
  counts = counts.at[jnp.arange(tokens.shape[0])[:, None], column].add(1.0)[:, :size]
  values = jnp.where(counts > 0, 1 + jnp.log(jnp.maximum(counts, 1.0)), 0.0) * own['idf']
  length = jnp.sqrt(jnp.sum(values**2, axis=1, keepdims=True))
  return values / jnp.maximum(length, 1e-12)


def tf_idf_of(bag: Bag, inputs: Mapping[str, Any]) -> np.ndarray:
  """Returns `tf_idf` of many texts, float32[N, features], some at a time."""
  count = len(inputs['tokens'])
  parts = [
    np.asarray(tf_idf(bag.state, {name: np.asarray(one[start : start + _ROWS]) for name, one in inputs.items()}))
    for start in range(0, count, _ROWS)
  ]
  return np.concatenate(parts) if parts else np.zeros((0, len(bag.idf)), np.float32)
