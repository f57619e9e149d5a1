"""A small decoder-only transformer: the logits of the next token at every position."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from jaxlite.models.attention import KVCache, attention, turned
from jaxlite.models.int8 import embedded, linear
from jaxlite.models.tokens import as_tokens, check_rate, mean_of, rows_of

__all__ = ['Decoder', 'attention', 'turned']


class Decoder(nn.Module):
  """A causal transformer over token ids: embedded, pre-norm blocks, a norm, logits over the vocabulary.

  A block is causal attention and a dense branch, each normalized before by its root mean square and added to what came
  in. In the form 'gpt' query, key and value are one projection, the branch is a pair with GELU (by tanh), and no layer
  has a bias. In the form 'llama' they are three, several query heads may share a head of keys and values, and the
  branch is SwiGLU. With V the vocabulary, d the width, h the hidden width, L layers, T tokens and P the longest length:

      parameters  V*d + L*(4*d*d + 2*d*h + 2*d) + d, P*d more with learned positions, V*d more if not tied
      mult-adds   L*(T*(4*d*d + 2*d*h) + 2*T*T*d) + T*V*d, attention in full: half of it is masked

  and of a 'llama', whose heads of queries are a wide together, those of keys k:

      parameters  V*d + L*(2*d*a + 2*d*k + 3*d*h + 2*d) + d, a + 2*k more a layer with biases, V*d more if not tied
      mult-adds   L*(T*(2*d*a + 2*d*k + 3*d*h) + 2*T*T*a) + T*V*d

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
    hidden: h, width of the dense branch.
    length: P, the longest sequence that learned positions know; rotary positions have no such limit, though what
      lies beyond the lengths of training is not learned.
    positions: 'rope', rotary: query and key are turned by angles that grow with the position; or 'learned', added
      to the embeddings.
    tied: whether logits are products with the embedding itself.
    dropout: the share of values dropped in training, of the embeddings and of each branch, in [0, 1).
    epsilon: added to the mean square in a norm.
    dtype: what it computes in; parameters and logits are float32, and so is the softmax of attention. Parameters of
      another dtype, as published weights have them, stay in it.
    form: 'gpt' or 'llama'.
    groups: heads of keys and values of a 'llama', a divisor of `heads`; 0 takes as many as heads.
    head_width: entries of a head of a 'llama'; 0 takes width / heads.
    biases: whether query, key and value of a 'llama' have one.
    order: what a plane of rotary positions holds: entries 'half' a head apart, or neighbors, 'interleaved'.
    base: of rotary angles.
    slower: what divides the speeds of the planes of rotary positions, one number a plane; () divides nothing.
    int8: whether kernels and embedding are kept as int8 with a scale for each output: to predict with.

  References:
    Radford et al., Language Models are Unsupervised Multitask Learners, 2019,
    https://cdn.openai.com/better-language-models/language_models_are_unsupervised_multitask_learners.pdf. Rotary
    positions: Su et al., RoFormer, 2021, https://arxiv.org/abs/2104.09864. Tied embedding: Press and Wolf, 2016,
    https://arxiv.org/abs/1608.05859. Norm: Zhang and Sennrich, 2019, https://arxiv.org/abs/1910.07467. Llama: Touvron
    et al., 2023, https://arxiv.org/abs/2302.13971. SwiGLU: Shazeer, 2020, https://arxiv.org/abs/2002.05202

  >>> from jaxlite.models import summary
  >>> summary(Decoder(257), (1, 256), 'int32')
  Summary(parameters=820480, flops=553713664)
  >>> Decoder(257, form='llama', groups=2).init_with_output(jax.random.key(0), jnp.ones((1, 3), int))[0].shape
  (1, 3, 257)
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
  form: str = 'gpt'
  groups: int = 0
  head_width: int = 0
  biases: bool = False
  order: str = 'half'
  base: float = 10_000.0
  slower: tuple[float, ...] = ()
  int8: bool = False

  @nn.compact
  def __call__(
    self, inputs: Any, train: bool = False, cache: KVCache | None = None, give: str = 'logits'
  ) -> jax.Array | tuple[jax.Array, KVCache]:
    """Returns float32[B, T, vocabulary] of int[B, T] or {'tokens': int[B, T], 'mask': bool[B, T]}.

    Logits at position t are those of the token after it and depend on tokens up to t only. Padding, where a mask
    tells it, is not attended to, and positions count tokens: on either side it changes no token's logits. What
    stands at padding itself has no meaning. An id outside the vocabulary gives NaN, in the whole sequence.

    Args:
      inputs: token ids, with or without a mask.
      train: whether values are dropped.
      cache: what was read before, of `empty_cache`: then inputs are the next tokens, without a mask, and the cache
        with them comes back beside the logits. There is to be room for them, which no program can check.
      give: 'logits'; 'last', those after the last token, [B, 1, vocabulary]; or 'states', [B, T, width], as they
        leave the last norm.
    """
    self._check()
    tokens, mask = as_tokens(inputs, 'Decoder')
    size = tokens.shape[1]
    if size < 1:
      raise ValueError(f'a Decoder needs one token at least; got {list(tokens.shape)}')
    if self.positions == 'learned' and size > self.length:
      raise ValueError(f'learned positions end at length={self.length}; got {size} tokens: cut them, or raise length=')
    allowed, places = jnp.tri(size, dtype=bool)[None], jnp.arange(size)[None]
    if cache is not None:
      if mask is not None or size > cache.keys[0].shape[2]:
        raise ValueError(
          f'a cache of {cache.keys[0].shape[2]} slots takes no more tokens, without a mask: what is padding stands '
          f'in it; got {size} tokens' + (' and a mask' if mask is not None else '')
        )
      allowed, places, mask = cache.seen_from(size)
    elif mask is not None:
      # Each position sees itself, so that no softmax is over nothing.
      allowed = allowed & mask[:, None, :] | jnp.eye(size, dtype=bool)
      places = jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0)
    if mask is not None:
      tokens = jnp.where(mask, tokens, 0)
    x, logits = self._ends(tokens)
    if self.positions == 'learned':
      # Called a bias since it is one, for each place: selections by name leave biases alone.
      learned = self.param('position_bias', nn.initializers.normal(0.02), (self.length, self.width))
      x = x + rows_of(learned, places)
    x = nn.Dropout(self.dropout, deterministic=not train)(x.astype(self.dtype))
    fields = _Fields(*(getattr(self, name) for name in _Fields._fields))
    for layer in range(self.layers):
      x, cache = _Block(fields, name=f'block{layer + 1}')(x, allowed, places, train, cache, layer)
    if give == 'last':
      x = x[:, -1:]
    x = nn.RMSNorm(epsilon=self.epsilon, dtype=self.dtype, name='norm')(x)
    if give != 'states':
      x = logits(x.reshape(-1, self.width)).reshape(*x.shape[:2], self.vocabulary).astype(jnp.float32)
    return x if cache is None else (x, cache._replace(count=cache.count + size))

  def features(self, inputs: Any, train: bool = False) -> jax.Array:
    """Returns what stands for a whole text, float32[B, width]: the mean of its tokens' last states."""
    states = self(inputs, train, give='states')
    return mean_of(states, as_tokens(inputs, 'Decoder')[1])

  def empty_cache(self, slots: int, begin: Any, dtype: Any = None) -> KVCache:
    """Returns a cache of `slots` tokens for rows that begin at these slots, int[B]; `dtype` None takes the model's."""
    each = self.head_width or self.width // self.heads
    dtype = self.dtype if dtype is None else dtype
    return KVCache.empty(self.layers, self.groups or self.heads, each, slots, begin, dtype)

  def _ends(self, tokens: jax.Array) -> tuple[jax.Array, Callable[[jax.Array], jax.Array]]:
    """The embedded tokens, and what gives logits [N, V] of states [N, d]."""
    x, table, scale = embedded(self, 'embedding', (self.vocabulary, self.width), tokens, self.int8)

    def logits(states: jax.Array) -> jax.Array:
      if not self.tied:
        return _kernel(self, self.vocabulary, 1.0, 'head')(states)
      wide = jnp.promote_types(self.dtype, jnp.float32)
      over_width = (((1,), (1,)), ((), ()))
      found = lax.dot_general(states, table.astype(self.dtype), over_width, preferred_element_type=wide)
      return found if scale is None else found * scale[:, 0]

    return x, logits

  def _check(self) -> None:
    names = ('vocabulary', 'width', 'layers', 'heads', 'hidden', 'length')
    sizes = {name: getattr(self, name) for name in names}
    if min(sizes.values()) < 1:
      raise ValueError(f'the sizes of a Decoder are at least 1; got {sizes}')
    for name, known in (
      ('positions', ('rope', 'learned')),
      ('form', ('gpt', 'llama')),
      ('order', ('half', 'interleaved')),
    ):
      if getattr(self, name) not in known:
        raise ValueError(f'the {name} of a Decoder is {known[0]!r} or {known[1]!r}; got {getattr(self, name)!r}')
    if self.form == 'gpt' and (self.groups or self.head_width or self.biases):
      raise ValueError("groups, head_width and biases are of the form 'llama'; this Decoder has the form 'gpt'")
    if self.width % self.heads and not self.head_width:
      raise ValueError(f'the width of a Decoder is a multiple of its heads; got width={self.width}, heads={self.heads}')
    if self.groups < 0 or self.head_width < 0 or self.heads % (self.groups or 1):
      raise ValueError(
        f'groups of a Decoder divide its heads, and neither they nor head_width are negative; got '
        f'heads={self.heads}, groups={self.groups}, head_width={self.head_width}'
      )
    each = self.head_width or self.width // self.heads
    if self.positions == 'rope' and each % 2:
      raise ValueError(
        f'rotary positions turn pairs, so width / heads is even; got {self.width} / {self.heads} = {each}'
      )
    if self.slower and (len(self.slower) != each // 2 or not min(self.slower) > 0):
      raise ValueError(f'slower has a number above 0 for each of {each // 2} planes; got {len(self.slower)} numbers')
    check_rate(self.dropout, 'Decoder')


class _Fields(NamedTuple):
  """What a block needs to know of its decoder."""

  width: int
  layers: int
  heads: int
  hidden: int
  positions: str
  dropout: float
  epsilon: float
  dtype: Any
  form: str
  groups: int
  head_width: int
  biases: bool
  order: str
  base: float
  slower: tuple[float, ...]
  int8: bool


class _Block(nn.Module):
  net: _Fields

  @nn.compact
  def __call__(
    self, x: jax.Array, allowed: jax.Array, places: jax.Array, train: bool, cache: KVCache | None, layer: int
  ) -> tuple[jax.Array, KVCache | None]:
    net = self.net
    batch, size, width = x.shape
    heads, groups, each = net.heads, net.groups or net.heads, net.head_width or net.width // net.heads

    def normed(x: jax.Array, name: str) -> jax.Array:
      x = nn.RMSNorm(epsilon=net.epsilon, dtype=net.dtype, name=name)(x)
      return x.reshape(batch * size, width)  # one product of two matrices is quicker on CPU than a batched one

    def added(x: jax.Array, branch: jax.Array, name: str) -> jax.Array:
      # What 2 * layers branches add to a stream has the size of one.
      branch = _kernel(net, width, 1 / (2 * net.layers), name)(branch).reshape(batch, size, width)
      return x + nn.Dropout(net.dropout, deterministic=not train)(branch)

    own = normed(x, 'norm1')
    if net.form == 'gpt':
      qkv = _kernel(net, 3 * heads * each, 1.0, 'qkv')(own)
      query, key, value = jnp.moveaxis(qkv.reshape(batch, size, 3, heads, each), 2, 0)
    else:
      query, key, value = (
        _kernel(net, many * each, 1.0, name, net.biases)(own).reshape(batch, size, many, each)
        for name, many in (('query', heads), ('key', groups), ('value', groups))
      )
    if net.positions == 'rope':
      how = {'base': net.base, 'order': net.order, 'slower': net.slower}
      query, key = turned(query, places, **how), turned(key, places, **how)
    if cache is not None:
      cache = cache.written(layer, key, value)
      key, value = (jnp.swapaxes(one[layer], 1, 2).astype(query.dtype) for one in (cache.keys, cache.values))
    x = added(x, attention(query, key, value, allowed).reshape(batch * size, heads * each), 'out')
    own = normed(x, 'norm2')
    if net.form == 'gpt':
      return added(x, nn.gelu(_kernel(net, net.hidden, 1.0, 'dense1')(own)), 'dense2'), cache
    gate = nn.silu(_kernel(net, net.hidden, 1.0, 'gate')(own))
    return added(x, gate * _kernel(net, net.hidden, 1.0, 'up')(own), 'down'), cache


def _kernel(net: Any, width: int, scale: float, name: str, bias: bool = False) -> Any:
  return linear(width, name, int8=net.int8, dtype=net.dtype, use_bias=bias, scale=scale)
