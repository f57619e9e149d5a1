"""A small vision transformer."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxlite.models.layers import as_images, dense, depth_rates


class ViT(nn.Module):
  """A transformer over square patches: embedded linearly, learned positions added, pre-norm blocks, mean or token.

  A block is attention over all patches and a dense pair with GELU, each normalized before and added to
  what came in. Query, key and value are one projection. With d the width, h the hidden width, L layers, C
  channels, patches of p pixels a side, and T patches (the class token is one more):

      parameters  p*p*C*d + d + T*d + L*(4*d*d + 2*d*h + 9*d + h) + 2*d + d*classes + classes
      mult-adds   T*p*p*C*d + L*(T*(4*d*d + 2*d*h) + 2*T*T*d) + d*classes

  By default, on 32x32x3 images: 809,098 parameters and 2 * 54,920,448 = 109,840,896 FLOPs per example. On 28x28x1
  images 803,082 parameters and 2 * 41,095,424 = 82,190,848 FLOPs.

  Attributes:
    patch: side of a patch in pixels; it divides both sides of the image.
    width: d, a multiple of `heads`.
    layers: L, number of blocks.
    heads: attention heads.
    hidden: h, width of the dense pair.
    classes: number of logits.
    class_token: the logits come from a learned token in place of the patches' mean.
    drop_path: stochastic depth: the share of training examples that pass by a branch of the last block, in
      [0, 1); it grows linearly from block to block. Draws from the stream 'dropout'.
    exact_gelu: GELU by the error function, as timm's and Hugging Face's weights were trained, not by tanh.
    epsilon: added to the variance in layer norm.
    dtype: what it computes in; parameters are float32, and so is the softmax of attention.

  References:
    Dosovitskiy et al., An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale, 2020,
    https://arxiv.org/abs/2010.11929. Stochastic depth: Huang et al., 2016, https://arxiv.org/abs/1603.09382

  >>> from jaxlite.models import summary
  >>> summary(ViT(), (1, 32, 32, 3))
  Summary(parameters=809098, flops=109840896)
  """

  patch: int = 4
  width: int = 128
  layers: int = 4
  heads: int = 4
  hidden: int = 512
  classes: int = 10
  class_token: bool = False
  drop_path: float = 0.0
  exact_gelu: bool = False
  epsilon: float = 1e-6
  dtype: Any = jnp.float32

  classifier = 'dense'

  @nn.compact
  def __call__(self, x: Any, train: bool = False, pooled: bool = False) -> jax.Array:
    """Returns float32[B, classes] of [B, H, W, C] or [B, H, W]; with `pooled`, what `features` returns."""
    if min(self.heads, self.width) < 1 or self.width % self.heads:
      raise ValueError(f'the width of a ViT is a multiple of its heads; got width={self.width}, heads={self.heads}')
    rates = depth_rates(self.drop_path, self.layers, 'ViT')
    x = as_images(x, 'ViT', self.dtype, smallest=self.patch)
    x = dense(self.width, self.dtype, 'embed')(_patches(x, self.patch))
    if self.class_token:
      token = self.param('class_token', nn.initializers.zeros, (self.width,))
      token = jnp.broadcast_to(token.astype(self.dtype), (x.shape[0], 1, self.width))
      x = jnp.concatenate([token, x], axis=1)
    x = x + self._positions(x.shape[1]).astype(self.dtype)
    for index, rate in enumerate(rates, 1):
      settings = (self.exact_gelu, self.epsilon, self.dtype)
      x = _Block(self.heads, self.hidden, rate, *settings, name=f'block{index}')(x, train)
    x = nn.LayerNorm(epsilon=self.epsilon, dtype=self.dtype, name='norm')(x)
    x = x[:, 0] if self.class_token else jnp.mean(x, axis=1)
    # Not from zeros, as published: with them no other weight has a gradient at first, and scores read off it.
    return x if pooled else dense(self.classes, self.dtype, self.classifier)(x).astype(jnp.float32)

  def features(self, x: Any, train: bool = False) -> jax.Array:
    """Returns what the classifier reads, float[B, D]."""
    return self(x, train, pooled=True)

  def _positions(self, tokens: int) -> jax.Array:
    # Called a bias since it is one, for each token: selections by name leave biases alone.
    name = 'position_bias'
    if not self.is_initializing() and self.has_variable('params', name):
      known = self.get_variable('params', name).shape[0]
      if known != tokens:
        raise ValueError(f'a ViT works on the image size that it began with: {known} tokens; this image has {tokens}')
    return self.param(name, nn.initializers.normal(0.02), (tokens, self.width))


class ViTSmall(ViT):
  """ViT-S/16: 16x16 patches, width 384, 12 blocks of 6 heads, a class token, exact GELU.

  Published weights in timm's form fit it, `vit_small_patch16_224` (`jaxlite.models.published`); for images of another
  size the positions are interpolated there. On 224x224x3 images: 22,050,664 parameters and 2 * 4,598,882,304 =
  9,197,764,608 FLOPs per example.

  Attributes:
    patch, width, layers, heads, hidden, classes, class_token, drop_path, exact_gelu, epsilon, dtype: as in `ViT`.

  References:
    Steiner et al., How to train your ViT? Data, Augmentation, and Regularization in Vision Transformers, 2021,
    https://arxiv.org/abs/2106.10270

  >>> from jaxlite.models import summary
  >>> summary(ViTSmall(), (1, 224, 224, 3))
  Summary(parameters=22050664, flops=9197764608)
  """

  patch: int = 16
  width: int = 384
  layers: int = 12
  heads: int = 6
  hidden: int = 1536
  classes: int = 1000
  class_token: bool = True
  exact_gelu: bool = True

  classifier = 'head'


class _Block(nn.Module):
  heads: int
  hidden: int
  drop_rate: float
  exact_gelu: bool
  epsilon: float
  dtype: Any

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    batch, tokens, width = x.shape

    def normed(x: jax.Array, name: str) -> jax.Array:
      x = nn.LayerNorm(epsilon=self.epsilon, dtype=self.dtype, name=name)(x)
      return x.reshape(batch * tokens, width)  # one product of two matrices is quicker on CPU than a batched one

    def added(x: jax.Array, branch: jax.Array) -> jax.Array:
      branch = branch.reshape(batch, tokens, width)
      return x + nn.Dropout(self.drop_rate, broadcast_dims=(1, 2), deterministic=not train)(branch)  # whole examples

    qkv = dense(3 * width, self.dtype, 'qkv')(normed(x, 'norm1'))
    query, key, value = jnp.moveaxis(qkv.reshape(batch, tokens, 3, self.heads, width // self.heads), 2, 0)
    mixed = _attention(query, key, value).reshape(batch * tokens, width)
    x = added(x, dense(width, self.dtype, 'out')(mixed))
    grown = nn.gelu(dense(self.hidden, self.dtype, 'dense1')(normed(x, 'norm2')), approximate=not self.exact_gelu)
    return added(x, dense(width, self.dtype, 'dense2')(grown))


def _attention(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
  """Softmax attention, each [B, T, heads, d / heads]; the softmax in at least float32, its division last: of d / heads
  numbers per token in place of T, in the gradient too."""
  scaled = query * query.shape[-1] ** -0.5
  wide = jnp.promote_types(query.dtype, jnp.float32)
  scores = jnp.einsum('bqhd,bkhd->bhqk', scaled, key, preferred_element_type=wide)
  shares = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
  whole = jnp.swapaxes(shares.sum(-1), 1, 2)[..., None]
  mixed = jnp.einsum('bhqk,bkhd->bqhd', shares.astype(value.dtype), value, preferred_element_type=wide)
  return (mixed / whole).astype(value.dtype)


def _patches(x: jax.Array, size: int) -> jax.Array:
  """[B, H, W, C] -> [B, patches, size * size * C], by a reshape: a model without a convolution may be scanned."""
  batch, height, width, channels = x.shape
  if size < 1 or height % size or width % size:
    raise ValueError(f'the patches of a ViT tile the image; got {size}x{size} for {height}x{width}: set patch=')
  x = x.reshape(batch, height // size, size, width // size, size, channels)
  return jnp.swapaxes(x, 2, 3).reshape(batch, (height // size) * (width // size), size * size * channels)
