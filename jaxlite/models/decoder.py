"""A small decoder-only transformer: the logits of the next token at every position."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from jaxlite.models.layers import scaled_normal
from jaxlite.models.tokens import as_tokens, check_rate, rows_of


class Decoder(nn.Module):
  """A causal transformer over token ids: embedded, pre-norm blocks, a norm, logits over the vocabulary.

  A block is causal attention and a dense pair with GELU (by tanh), each normalized before by its root mean square
  and added to what came in. Query, key and value are one projection; no layer has a bias. With V the vocabulary, d
  the width, h the hidden width, L layers, T tokens and P the longest length:

      parameters  V*d + L*(4*d*d + 2*d*h + 2*d) + d, P*d more with learned positions, V*d more if not tied
      mult-adds   L*(T*(4*d*d + 2*d*h) + 2*T*T*d) + T*V*d, attention in full: half of it is masked

  With V = 257 (bytes) and the defaults, on 256 tokens: 820,480 parameters and 2 * 276,856,832 = 553,713,664 FLOPs an
  example.

  Tied, one leaf, 'embedding', is looked up and gives the logits. It is a weight: `prune` masks it in both uses, and
  `fake_quant` quantizes the logits' product and looks up float rows. Not tied, it is looked up only, hence no weight,
  and the kernel of 'head' is one.

  Attributes:
    vocabulary: V, number of token ids.
    width: d, a multiple of `heads`.
    layers: L, number of blocks.
    heads: attention heads.
    hidden: h, width of the dense pair.
    length: P, the longest sequence that learned positions know; rotary positions have no such limit, though what
      lies beyond the lengths of training is not learned.
    positions: 'rope', rotary: query and key are turned by angles that grow with the position; or 'learned', added
      to the embeddings.
    tied: whether logits are products with the embedding itself.
    dropout: the share of values dropped in training, of the embeddings and of each branch, in [0, 1).
    epsilon: added to the mean square in a norm.
    dtype: what it computes in; parameters and logits are float32, and so is the softmax of attention.

  References:
    Radford et al., Language Models are Unsupervised Multitask Learners, 2019,
    https://cdn.openai.com/better-language-models/language_models_are_unsupervised_multitask_learners.pdf. Rotary
    positions: Su et al., RoFormer, 2021, https://arxiv.org/abs/2104.09864. Tied embedding: Press and Wolf, 2016,
    https://arxiv.org/abs/1608.05859. Norm: Zhang and Sennrich, 2019, https://arxiv.org/abs/1910.07467

  >>> from jaxlite.models import summary
  >>> summary(Decoder(257), (1, 256), 'int32')
  Summary(parameters=820480, flops=553713664)
  """

  vocabulary: int
  width: int = 128
  layers: int = 4
  heads: int = 4
  hidden: int = 512
  length: int = 256
  positions: str = 'rope'
  tied: bool = True
  dropout: float = 0.0
  epsilon: float = 1e-6
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, inputs: Any, train: bool = False) -> jax.Array:
    """Returns float32[B, T, vocabulary] of int[B, T] or {'tokens': int[B, T], 'mask': bool[B, T]}.

    Logits at position t are those of the token after it and depend on tokens up to t only. Padding, where a mask
    tells it, is not attended to, and positions count tokens: on either side it changes no token's logits. What
    stands at padding itself has no meaning. An id outside the vocabulary gives NaN, in the whole sequence.
    """
    self._check()
    tokens, mask = as_tokens(inputs, 'Decoder')
    batch, size = tokens.shape
    if size < 1:
      raise ValueError(f'a Decoder needs one token at least; got {list(tokens.shape)}')
    if self.positions == 'learned' and size > self.length:
      raise ValueError(f'learned positions end at length={self.length}; got {size} tokens: cut them, or raise length=')
    allowed, places = jnp.tri(size, dtype=bool)[None], jnp.arange(size)[None]
    if mask is not None:
      tokens = jnp.where(mask, tokens, 0)
      # Each position sees itself, so that no softmax is over nothing.
      allowed = allowed & mask[:, None, :] | jnp.eye(size, dtype=bool)
      places = jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0)
    table = self.param('embedding', nn.initializers.normal(0.02), (self.vocabulary, self.width))
    x = rows_of(table, tokens)
    if self.positions == 'learned':
      # Called a bias since it is one, for each place: selections by name leave biases alone.
      learned = self.param('position_bias', nn.initializers.normal(0.02), (self.length, self.width))
      x = x + rows_of(learned, places)
    x = nn.Dropout(self.dropout, deterministic=not train)(x.astype(self.dtype))
    for index in range(1, self.layers + 1):
      block = _Block(
        self.heads,
        self.hidden,
        self.layers,
        self.positions,
        self.dropout,
        self.epsilon,
        self.dtype,
        name=f'block{index}',
      )
      x = block(x, allowed, places, train)
    x = nn.RMSNorm(epsilon=self.epsilon, dtype=self.dtype, name='norm')(x).reshape(batch * size, self.width)
    if self.tied:
      wide = jnp.promote_types(self.dtype, jnp.float32)
      over_width = (((1,), (1,)), ((), ()))
      x = lax.dot_general(x, table.astype(self.dtype), over_width, preferred_element_type=wide)
    else:
      x = _kernel(self.vocabulary, 1.0, self.dtype, 'head')(x)
    return x.reshape(batch, size, self.vocabulary).astype(jnp.float32)

  def _check(self) -> None:
    sizes = {name: getattr(self, name) for name in ('vocabulary', 'width', 'layers', 'heads', 'hidden', 'length')}
    if min(sizes.values()) < 1:
      raise ValueError(f'the sizes of a Decoder are at least 1; got {sizes}')
    if self.positions not in ('rope', 'learned'):
      raise ValueError(f"the positions of a Decoder are 'rope' or 'learned'; got {self.positions!r}")
    if self.width % self.heads:
      raise ValueError(f'the width of a Decoder is a multiple of its heads; got width={self.width}, heads={self.heads}')
    if self.positions == 'rope' and self.width // self.heads % 2:
      each = self.width // self.heads
      raise ValueError(
        f'rotary positions turn pairs, so width / heads is even; got {self.width} / {self.heads} = {each}'
      )
    check_rate(self.dropout, 'Decoder')


class _Block(nn.Module):
  heads: int
  hidden: int
  layers: int
  positions: str
  dropout: float
  epsilon: float
  dtype: Any

  @nn.compact
  def __call__(self, x: jax.Array, allowed: jax.Array, places: jax.Array, train: bool) -> jax.Array:
    batch, size, width = x.shape

    def normed(x: jax.Array, name: str) -> jax.Array:
      x = nn.RMSNorm(epsilon=self.epsilon, dtype=self.dtype, name=name)(x)
      return x.reshape(batch * size, width)  # one product of two matrices is quicker on CPU than a batched one

    def added(x: jax.Array, branch: jax.Array, name: str) -> jax.Array:
      # What 2 * layers branches add to a stream has the size of one.
      branch = _kernel(width, 1 / (2 * self.layers), self.dtype, name)(branch).reshape(batch, size, width)
      return x + nn.Dropout(self.dropout, deterministic=not train)(branch)

    qkv = _kernel(3 * width, 1.0, self.dtype, 'qkv')(normed(x, 'norm1'))
    query, key, value = jnp.moveaxis(qkv.reshape(batch, size, 3, self.heads, width // self.heads), 2, 0)
    if self.positions == 'rope':
      query, key = turned(query, places), turned(key, places)
    x = added(x, attention(query, key, value, allowed).reshape(batch * size, width), 'out')
    grown = nn.gelu(_kernel(self.hidden, 1.0, self.dtype, 'dense1')(normed(x, 'norm2')))
    return added(x, grown, 'dense2')


def _kernel(width: int, scale: float, dtype: Any, name: str) -> nn.Dense:
  return nn.Dense(width, use_bias=False, kernel_init=scaled_normal(scale), dtype=dtype, name=name)


def turned(x: jax.Array, places: jax.Array, base: float = 10_000.0) -> jax.Array:
  """Turns queries or keys by their positions: a product of two of them then depends on the distance only.

  Entry i of a head and entry i + d/2 are a point in a plane, turned by the angle place * base^(-2i/d).

  Args:
    x: float[B, T, heads, d], d even.
    places: int[B, T] or int[1, T].
    base: the slowest plane turns about once in 2 * pi * base places.

  Returns:
    float[B, T, heads, d], of x's dtype; the angles are float32.

  References:
    Su et al., RoFormer: Enhanced Transformer with Rotary Position Embedding, 2021, https://arxiv.org/abs/2104.09864

  >>> turned(jnp.array([[[[1.0, 0.0]]]]), jnp.array([[0]])).tolist()
  [[[[1.0, 0.0]]]]
  """
  half = x.shape[-1] // 2
  speeds = base ** (-jnp.arange(half, dtype=jnp.float32) / half)
  angles = places[..., None, None].astype(jnp.float32) * speeds
  wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  one, other = wide[..., :half], wide[..., half:]
  cos, sin = jnp.cos(angles), jnp.sin(angles)
  return jnp.concatenate([one * cos - other * sin, one * sin + other * cos], axis=-1).astype(x.dtype)


def attention(query: jax.Array, key: jax.Array, value: jax.Array, allowed: jax.Array) -> jax.Array:
  """Mixes values by the softmax of products of queries and keys, where it is allowed.

  The softmax is in at least float32, its division last: of d numbers per token in place of T.

  Args:
    query: float[B, T, heads, d].
    key: float[B, S, heads, d].
    value: float[B, S, heads, d].
    allowed: bool[B, T, S] or bool[1, T, S]; each query may see one key at least.

  Returns:
    float[B, T, heads, d], of value's dtype.

  >>> one = jnp.ones((1, 2, 1, 4))
  >>> attention(one, one, one, jnp.tri(2, dtype=bool)[None]).shape
  (1, 2, 1, 4)
  """
  wide = jnp.promote_types(query.dtype, jnp.float32)
  scores = jnp.einsum('bqhd,bkhd->bhqk', query * query.shape[-1] ** -0.5, key, preferred_element_type=wide)
  scores = jnp.where(allowed[:, None], scores, -jnp.inf)
  shares = jnp.exp(scores - lax.stop_gradient(scores.max(-1, keepdims=True)))
  whole = jnp.swapaxes(shares.sum(-1), 1, 2)[..., None]
  mixed = jnp.einsum('bhqk,bkhd->bqhd', shares.astype(value.dtype), value, preferred_element_type=wide)
  return (mixed / whole).astype(value.dtype)
