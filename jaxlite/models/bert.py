"""The encoder of BERT and of the sentence models that stand on it: features of a text, and classes of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxlite.models.attention import attention
from jaxlite.models.int8 import embedded, linear
from jaxlite.models.layers import scaled_normal
from jaxlite.models.tokens import as_tokens, check_rate, mean_of, rows_of

_ACTIVATIONS = {
  'gelu': lambda x: nn.gelu(x, approximate=False),
  'gelu_new': nn.gelu,  # by tanh
  'relu': nn.relu,
  'silu': nn.silu,
}
_POOLINGS = ('mean', 'first', 'pooler')


class Bert(nn.Module):
  """A transformer that reads a text in both directions: one vector a text, or the logits of its class.

  Words, positions and types of segments are embedded, added and normalized; a block is attention and a dense pair, each
  added to what came in and normalized after. With V the vocabulary, d the width, h the hidden width, L layers, T
  tokens, P the longest length, t types and c classes:

      parameters  (V + P + t)*d + 2*d + L*(4*d*d + 2*d*h + 9*d + h), with classes d*c + c more
      mult-adds   L*(T*(4*d*d + 2*d*h) + 2*T*T*d), with classes d*c more

  The defaults are those of MiniLM with 6 layers: 22,565,376 parameters and, on 128 tokens, 2 * 1,434,451,968 =
  2,868,903,936 FLOPs a text.

  Attributes:
    vocabulary: V, number of token ids.
    width: d, a multiple of `heads`.
    layers: L, number of blocks.
    heads: attention heads.
    hidden: h, width of the dense pair.
    length: P, the longest text, in tokens.
    types: t, of segments; 0 for models without them. All tokens are of type 0 but where 'types' says other.
    classes: number of logits; 0 gives the features themselves.
    pooling: what stands for a text: the 'mean' over its tokens, its 'first' token, or the 'pooler', a dense layer with
      tanh upon the first.
    normalized: whether features have the length 1.
    activation: 'gelu', exact, 'gelu_new', by tanh, 'relu' or 'silu'.
    dropout: the share of values dropped in training, of the embeddings, each branch and the features, in [0, 1).
    epsilon: added to the variance in layer norm.
    dtype: what it computes in; parameters are float32, and so are the softmax of attention, features and logits.
      Parameters of another dtype, as published weights have them, stay in it.
    int8: whether kernels and embedding of words are kept as int8 with a scale for each output: to predict with.

  References:
    Devlin et al., BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding, 2018,
    https://arxiv.org/abs/1810.04805. Sentence embeddings: Reimers and Gurevych, Sentence-BERT, 2019,
    https://arxiv.org/abs/1908.10084. MiniLM: Wang et al., 2020, https://arxiv.org/abs/2002.10957

  >>> from jaxlite.models import summary
  >>> summary(Bert(), (1, 128), 'int32')
  Summary(parameters=22565376, flops=2868903936)
  """

  vocabulary: int = 30_522
  width: int = 384
  layers: int = 6
  heads: int = 12
  hidden: int = 1536
  length: int = 512
  types: int = 2
  classes: int = 0
  pooling: str = 'mean'
  normalized: bool = False
  activation: str = 'gelu'
  dropout: float = 0.0
  epsilon: float = 1e-12
  dtype: Any = jnp.float32
  int8: bool = False

  @nn.compact
  def __call__(self, inputs: Any, train: bool = False, give: str = '') -> jax.Array:
    """Returns float32[B, classes], or without classes the features, float32[B, width].

    Args:
      inputs: int[B, T], or {'tokens': int[B, T], 'mask': bool[B, T]}, with 'types', int[B, T], where there are several
        segments. Padding changes no text's features; those of padding only are not told from each other. An id
        outside the vocabulary, or a type that there is not, gives NaN.
      train: whether values are dropped.
      give: '' for that, 'features', or 'states', [B, T, width].
    """
    self._check()
    segments = None
    if isinstance(inputs, Mapping) and 'types' in inputs:
      inputs = dict(inputs)
      segments = inputs.pop('types')
    tokens, mask = as_tokens(inputs, 'Bert')
    batch, size = tokens.shape
    if not 1 <= size <= self.length:
      raise ValueError(f'this Bert takes texts of 1 to length={self.length} tokens; got {size}: cut them')
    if segments is None:
      segments = jnp.zeros((1, size), jnp.int32)
    elif not self.types:
      raise ValueError("this Bert has types=0, so it knows no segments; got 'types': leave them out")
    else:
      segments = as_tokens(segments, "Bert's types")[0]
      if segments.shape != tokens.shape:
        raise ValueError(f'types are one a token, {list(tokens.shape)}; got {list(segments.shape)}')
    if mask is not None:
      tokens, segments = jnp.where(mask, tokens, 0), jnp.where(mask, segments, 0)
    normal = nn.initializers.normal(0.02)
    x, _, _ = embedded(self, 'words', (self.vocabulary, self.width), tokens, self.int8)
    # Called biases since they are, for each place and segment: selections by name leave biases alone.
    x = x.astype(self.dtype)  # before sums, where parameters are kept in few bits
    places = self.param('position_bias', normal, (self.length, self.width))
    # Positions count tokens: texts may be padded on either side.
    x = x + (places[:size] if mask is None else rows_of(places, jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0)))
    if self.types:
      x = x + rows_of(self.param('type_bias', normal, (self.types, self.width)), segments)
    x = self._norm(x, 'norm')
    x = nn.Dropout(self.dropout, deterministic=not train)(x)
    allowed = jnp.ones((1, size, size), bool)
    if mask is not None:  # a text of padding only sees all of it, so that no softmax is over nothing
      allowed = jnp.broadcast_to((mask | ~mask.any(1, keepdims=True))[:, None], (batch, size, size))
    for index in range(1, self.layers + 1):
      block = _Block(
        self.heads,
        self.hidden,
        self.activation,
        self.dropout,
        self.epsilon,
        self.dtype,
        self.int8,
        name=f'block{index}',
      )
      x = block(x, allowed, train)
    if give == 'states':
      return x
    features = self._pooled(x, mask)
    if give == 'features' or not self.classes:
      return features
    features = nn.Dropout(self.dropout, deterministic=not train)(features.astype(self.dtype))
    head = nn.Dense(self.classes, kernel_init=scaled_normal(1.0), dtype=self.dtype, name=self.classifier)
    return head(features).astype(jnp.float32)

  @property
  def classifier(self) -> str:
    """The name of the last layer, which is there where there are classes."""
    return 'head'

  def features(self, inputs: Any, train: bool = False) -> jax.Array:
    """Returns what stands for each text, float32[B, width], as pooling and `normalized` say."""
    return self(inputs, train, give='features')

  def _pooled(self, x: jax.Array, mask: jax.Array | None) -> jax.Array:
    if self.pooling == 'mean':
      pooled = mean_of(x, mask)
    else:
      # Where texts are padded on the left, the first token is not in the first place.
      first = jnp.zeros(len(x), jnp.int32) if mask is None else jnp.argmax(mask, axis=1)
      pooled = jnp.take_along_axis(x, first[:, None, None], axis=1)[:, 0]
      if self.pooling == 'pooler':
        dense = linear(self.width, 'pooler', int8=self.int8, dtype=self.dtype, use_bias=True)
        pooled = jnp.tanh(dense(pooled))
      pooled = pooled.astype(jnp.promote_types(pooled.dtype, jnp.float32))
    if self.normalized:
      pooled = pooled / jnp.maximum(jnp.sqrt(jnp.sum(pooled * pooled, axis=-1, keepdims=True)), 1e-12)
    return pooled.astype(jnp.float32)

  def _norm(self, x: jax.Array, name: str) -> jax.Array:
    return nn.LayerNorm(epsilon=self.epsilon, dtype=self.dtype, name=name, use_fast_variance=False)(x)

  def _check(self) -> None:
    sizes = {name: getattr(self, name) for name in ('vocabulary', 'width', 'layers', 'heads', 'hidden', 'length')}
    if min(sizes.values()) < 1 or min(self.types, self.classes) < 0:
      raise ValueError(
        f'the sizes of a Bert are at least 1, types and classes at least 0; got {sizes}, types={self.types}, '
        f'classes={self.classes}'
      )
    if self.width % self.heads:
      raise ValueError(f'the width of a Bert is a multiple of its heads; got width={self.width}, heads={self.heads}')
    for name, known in (('pooling', _POOLINGS), ('activation', tuple(_ACTIVATIONS))):
      if getattr(self, name) not in known:
        raise ValueError(f'the {name} of a Bert is one of {", ".join(known)}; got {getattr(self, name)!r}')
    check_rate(self.dropout, 'Bert')


class _Block(nn.Module):
  heads: int
  hidden: int
  activation: str
  dropout: float
  epsilon: float
  dtype: Any
  int8: bool

  @nn.compact
  def __call__(self, x: jax.Array, allowed: jax.Array, train: bool) -> jax.Array:
    batch, size, width = x.shape
    kind = {'int8': self.int8, 'dtype': self.dtype, 'use_bias': True}
    x = x.reshape(batch * size, width)  # one product of two matrices is quicker on CPU than a batched one

    def added(x: jax.Array, branch: jax.Array, name: str, norm: str) -> jax.Array:
      branch = nn.Dropout(self.dropout, deterministic=not train)(linear(width, name, **kind)(branch))
      return nn.LayerNorm(epsilon=self.epsilon, dtype=self.dtype, name=norm, use_fast_variance=False)(x + branch)

    query, key, value = (
      linear(width, name, **kind)(x).reshape(batch, size, self.heads, width // self.heads)
      for name in ('query', 'key', 'value')
    )
    x = added(x, attention(query, key, value, allowed).reshape(batch * size, width), 'out', 'norm1')
    grown = _ACTIVATIONS[self.activation](linear(self.hidden, 'dense1', **kind)(x))
    return added(x, grown, 'dense2', 'norm2').reshape(batch, size, width)
