"""Attention of text models: rotary positions, grouped queries, and keys and values that are kept from step to step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax


class KVCache(NamedTuple):
  """Keys and values of what a decoder has read, in slots that all rows fill together.

  Rows of different lengths end together: what stands before a row's first token is padding, which nothing attends to.

  Attributes:
    keys: a block's each, [B, groups, S, head width], S slots.
    values: as keys.
    begin: int32[B], the slot of each row's first token.
    count: int32[], slots that are filled.
  """

  keys: tuple[jax.Array, ...]
  values: tuple[jax.Array, ...]
  begin: jax.Array
  count: jax.Array

  @classmethod
  def empty(cls, layers: int, groups: int, head_width: int, slots: int, begin: Any, dtype: Any = 'float32') -> KVCache:
    """Returns a cache with nothing in it.

    Args:
      layers: blocks of the decoder.
      groups: heads of keys and values.
      head_width: entries of one head.
      slots: S, the most tokens that it holds, padding included.
      begin: int[B], the slot at which each row's first token will stand.
      dtype: of keys and values.

    >>> cache = KVCache.empty(2, 1, 4, 8, [0, 3])
    >>> len(cache.keys), cache.keys[0].shape, int(cache.count)
    (2, (2, 1, 8, 4), 0)
    """
    begin = jnp.asarray(begin, jnp.int32)

    def zeros() -> tuple[jax.Array, ...]:  # each its own buffer, since a step is given them all to write on
      return tuple(jnp.zeros((len(begin), groups, slots, head_width), dtype) for _ in range(layers))

    return cls(zeros(), zeros(), begin, jnp.zeros((), jnp.int32))

  def seen_from(self, size: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns what the next `size` tokens of each row may see, their positions, and which of them are tokens.

    (bool[B, size, S], int32[B, size], bool[B, size]); each sees itself, so that no softmax is over nothing.
    """
    slots = jnp.arange(self.keys[0].shape[2])
    own = self.count + jnp.arange(size)
    real = own[None] >= self.begin[:, None]
    allowed = (slots[None, None] <= own[None, :, None]) & (slots >= self.begin[:, None])[:, None]
    return allowed | (slots == own[:, None])[None], jnp.maximum(own[None] - self.begin[:, None], 0), real

  def written(self, layer: int, key: jax.Array, value: jax.Array) -> KVCache:
    """Returns the cache with the next keys and values of one block, [B, T, groups, head width]; `count` stays."""

    def put(kept: Sequence[jax.Array], new: jax.Array) -> tuple[jax.Array, ...]:
      new = jnp.swapaxes(new, 1, 2).astype(kept[layer].dtype)
      changed = lax.dynamic_update_slice_in_dim(kept[layer], new, self.count, axis=2)
      return (*kept[:layer], changed, *kept[layer + 1 :])

    return self._replace(keys=put(self.keys, key), values=put(self.values, value))


def turned(
  x: jax.Array, places: jax.Array, base: float = 10_000.0, *, order: str = 'half', slower: Sequence[float] = ()
) -> jax.Array:
  """Turns queries or keys by their positions: a product of two of them then depends on the distance only.

  A plane holds two entries of a head: i and i + d/2 where the order is 'half', 2i and 2i + 1 where it is
  'interleaved'. It is turned by the angle place * base^(-2i/d). Weights that were trained in one order give nonsense in
  the other: files of Hugging Face's Llama models are in halves, those of GGUF files of it interleaved.

  Args:
    x: float[B, T, heads, d], d even.
    places: int[B, T] or int[1, T].
    base: the slowest plane turns about once in 2 * pi * base places.
    order: 'half' or 'interleaved'.
    slower: what divides the speed of each plane, d/2 numbers; none divides nothing.

  Returns:
    float[B, T, heads, d], of x's dtype; the angles are float32.

  References:
    Su et al., RoFormer: Enhanced Transformer with Rotary Position Embedding, 2021, https://arxiv.org/abs/2104.09864

  >>> turned(jnp.array([[[[1.0, 0.0]]]]), jnp.array([[0]])).tolist()
  [[[[1.0, 0.0]]]]
  """
  half = x.shape[-1] // 2
  speeds = base ** (-jnp.arange(half, dtype=jnp.float32) / half)
  if slower:
    speeds = speeds / jnp.asarray(slower, jnp.float32)
  angles = places[..., None, None].astype(jnp.float32) * speeds
  wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  cos, sin = jnp.cos(angles), jnp.sin(angles)
  if order == 'interleaved':
    pairs = wide.reshape(*wide.shape[:-1], half, 2)
    one, other = pairs[..., 0], pairs[..., 1]
    both = jnp.stack([one * cos - other * sin, one * sin + other * cos], axis=-1)
    return both.reshape(x.shape).astype(x.dtype)
  one, other = wide[..., :half], wide[..., half:]
  return jnp.concatenate([one * cos - other * sin, one * sin + other * cos], axis=-1).astype(x.dtype)


def attention(query: jax.Array, key: jax.Array, value: jax.Array, allowed: jax.Array) -> jax.Array:
  """Mixes values by the softmax of products of queries and keys, where it is allowed.

  The softmax is in at least float32, its division last: of d numbers per token in place of T. Where keys have fewer
  heads than queries, as many queries, one after the other, share each.

  Args:
    query: float[B, T, heads, d].
    key: float[B, S, groups, d]; `heads` is a multiple of `groups`.
    value: float[B, S, groups, d].
    allowed: bool[B, T, S] or bool[1, T, S]; each query may see one key at least.

  Returns:
    float[B, T, heads, d], of value's dtype.

  References:
    Grouped queries: Ainslie et al., 2023, https://arxiv.org/abs/2305.13245

  >>> one = jnp.ones((1, 2, 1, 4))
  >>> attention(one, one, one, jnp.tri(2, dtype=bool)[None]).shape
  (1, 2, 1, 4)
  """
  wide = jnp.promote_types(query.dtype, jnp.float32)
  batch, size, heads, width = query.shape
  groups = key.shape[2]
  query = query * width**-0.5
  if groups == heads:
    scores = jnp.einsum('bqhd,bkhd->bhqk', query, key, preferred_element_type=wide)
    scores = jnp.where(allowed[:, None], scores, -jnp.inf)
  else:
    query = query.reshape(batch, size, groups, heads // groups, width)
    scores = jnp.einsum('bqgrd,bkgd->bgrqk', query, key, preferred_element_type=wide)
    scores = jnp.where(allowed[:, None, None], scores, -jnp.inf)
  shares = jnp.exp(scores - lax.stop_gradient(scores.max(-1, keepdims=True)))
  whole = shares.sum(-1)
  shares = shares.astype(value.dtype)
  if groups == heads:
    mixed = jnp.einsum('bhqk,bkhd->bqhd', shares, value, preferred_element_type=wide)
    return (mixed / jnp.swapaxes(whole, 1, 2)[..., None]).astype(value.dtype)
  mixed = jnp.einsum('bgrqk,bkgd->bqgrd', shares, value, preferred_element_type=wide)
  mixed = mixed / jnp.moveaxis(whole, 3, 1)[..., None]
  return mixed.reshape(batch, size, heads, width).astype(value.dtype)
