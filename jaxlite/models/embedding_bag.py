"""A text classifier that averages the embeddings of a document's tokens."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxlite.models.layers import dense
from jaxlite.models.tokens import as_tokens, check_rate, rows_of


class EmbeddingBag(nn.Module):
  """The mean of a document's token embeddings, classified by a dense layer, or by two with a ReLU between them.

  The order of tokens does not matter. With V the vocabulary, d the width, h the hidden width and c classes:

      parameters  V*d + d*c + c, with a hidden layer V*d + d*h + h + h*c + c
      mult-adds   d*c, with a hidden layer d*h + h*c; the mean costs T*d additions and is not counted

  With V = 20,000 and the defaults: 1,280,650 parameters and 2 * 640 = 1,280 FLOPs a document.

  The embedding is looked up, so it is no weight to `prune` or `fake_quant` by default; the kernels are. A rule may
  name it, `prune(0.9, select='embedding')`.

  Attributes:
    vocabulary: V, number of token ids.
    classes: number of logits.
    width: d, of an embedding.
    hidden: h, of the hidden layer; 0 for none.
    dropout: the share of the mean's values, and of the hidden layer's, dropped in training; in [0, 1).
    padding: the id that fills up short documents where no mask comes; None counts every id.
    dtype: what it computes in; parameters and the mean are float32.

  References:
    Joulin, Grave, Bojanowski and Mikolov, Bag of Tricks for Efficient Text Classification, 2016,
    https://arxiv.org/abs/1607.01759

  >>> from jaxlite.models import summary
  >>> summary(EmbeddingBag(20_000), (1, 100), 'int32')
  Summary(parameters=1280650, flops=1280)
  """

  vocabulary: int
  classes: int = 10
  width: int = 64
  hidden: int = 0
  dropout: float = 0.0
  padding: int | None = 0
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, inputs: Any, train: bool = False) -> jax.Array:
    """Returns float32[B, classes] of int[B, T] or {'tokens': int[B, T], 'mask': bool[B, T]}.

    With a mask, the mask alone tells what is padding. A document of padding only has a mean of zero. An id outside
    the vocabulary gives NaN.
    """
    if min(self.vocabulary, self.classes, self.width) < 1 or self.hidden < 0:
      sizes = {name: getattr(self, name) for name in ('vocabulary', 'classes', 'width', 'hidden')}
      raise ValueError(f'the sizes of an EmbeddingBag are at least 1, hidden at least 0; got {sizes}')
    check_rate(self.dropout, 'EmbeddingBag')
    tokens, mask = as_tokens(inputs, 'EmbeddingBag')
    if mask is None:
      mask = jnp.ones(tokens.shape, bool) if self.padding is None else tokens != self.padding
    table = self.param('embedding', nn.initializers.normal(0.1), (self.vocabulary, self.width))
    found = jnp.where(mask[..., None], rows_of(table, tokens), 0)
    count = jnp.maximum(jnp.sum(mask, axis=1, keepdims=True), 1)
    x = (jnp.sum(found, axis=1) / count).astype(self.dtype)
    x = nn.Dropout(self.dropout, deterministic=not train)(x)
    if self.hidden:
      x = nn.relu(dense(self.hidden, self.dtype, 'dense1')(x))
      x = nn.Dropout(self.dropout, deterministic=not train)(x)
    return dense(self.classes, self.dtype, 'dense2' if self.hidden else 'dense')(x).astype(jnp.float32)
