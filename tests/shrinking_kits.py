"""Six architectures, each written once, in the layers of six frameworks: what shrinking is judged on.

An architecture is a function of a kit and an input; a kit has a framework's own layers by plain names. Where a
framework makes its layers before it calls them, the kit makes them on a first pass and takes them in turn afterwards.
"""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np

import jaxlite as jl

ARCHITECTURES = {}


def architecture(fn):
  ARCHITECTURES[fn.__name__] = fn
  return fn


@architecture
def mlp(kit, x):
  x = jax.nn.relu(kit.dense(kit.flat(x), 24))
  return kit.dense(jax.nn.gelu(kit.dense(x, 16)), 5)


@architecture
def lenet5(kit, x):
  for width in (6, 12):
    x = kit.pool(jax.nn.relu(kit.conv(x, width)))
  return kit.dense(jax.nn.relu(kit.dense(kit.flat(x), 20)), 5)


@architecture
def resnet20(kit, x):
  """Three stages of blocks, batch norms, a shortcut of zeros where channels grow; fewer blocks than twenty layers."""
  x = jax.nn.relu(kit.norm(kit.conv(x, 8)))
  for width, stride in ((8, 1), (16, 2), (16, 1)):
    y = jax.nn.relu(kit.norm(kit.conv(x, width, stride=stride)))
    y = kit.norm(kit.conv(y, width))
    short = kit.every(x, stride)
    grown = width - short.shape[-1]
    if grown:
      short = jnp.pad(short, [(0, 0)] * (short.ndim - 1) + [(0, grown)])
    x = jax.nn.relu(short + y)
  return kit.dense(kit.mean(x), 5)


@architecture
def depthwise(kit, x):
  x = jax.nn.relu(kit.norm(kit.conv(x, 8)))
  for width, stride in ((16, 2), (24, 1)):
    x = jax.nn.relu(kit.norm(kit.conv(x, x.shape[-1], stride=stride, groups=x.shape[-1])))
    x = jax.nn.relu(kit.norm(kit.conv(x, width, kernel=1)))
  return kit.dense(kit.mean(x), 5)


@architecture
def vit(kit, x):
  x = kit.tokens(kit.conv(x, 16, kernel=4, stride=4))
  for _ in range(2):
    x = x + kit.attention(kit.layer_norm(x), 4, 16)
    y = kit.layer_norm(x)
    x = x + kit.dense(jax.nn.gelu(kit.dense(y, 24)), 16)
  return kit.dense(kit.mean(kit.layer_norm(x)), 5)


@architecture
def decoder(kit, x):
  """Four heads of queries share two of keys and values; root mean square norms, SwiGLU."""
  x = kit.embed(x, 13, 16)
  for _ in range(2):
    y = kit.rms_norm(x)
    query, key, value = (kit.heads(kit.dense(y, heads * 8), heads) for heads in (4, 2, 2))
    mixed = jax.nn.dot_product_attention(query, key, value, is_causal=True)
    x = x + kit.dense(kit.joined(mixed), 16)
    y = kit.rms_norm(x)
    x = x + kit.dense(jax.nn.silu(kit.dense(y, 24)) * kit.dense(y, 24), 16)
  return kit.dense(kit.rms_norm(x), 13)


class Kit:
  """What needs no layer, of a batch."""

  lead = 1  # axes before those of an example

  def flat(self, x):
    return x.reshape(*x.shape[: self.lead], -1)

  def tokens(self, x):
    return x.reshape(*x.shape[: self.lead], -1, x.shape[-1])

  def mean(self, x):
    return x.mean(tuple(range(self.lead, x.ndim - 1)))

  def every(self, x, stride):
    return x[..., ::stride, ::stride, :]

  def heads(self, x, count):
    return x.reshape(*x.shape[:-1], count, -1)

  def joined(self, x):
    return x.reshape(*x.shape[:-2], -1)

  def pool(self, x):
    window = (1,) * self.lead + (2, 2, 1)
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, window, 'VALID')


class Taken(Kit):
  """Layers that are made on a first pass and taken in turn afterwards."""

  def __init__(self, layers=None):
    self.made, self.given = [], iter(layers) if layers is not None else None

  def layer(self, make):
    if self.given is not None:
      return next(self.given)
    self.made.append(make())
    return self.made[-1]


def linen(arch):
  import flax.linen as nn

  class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
      class Own(Kit):
        def dense(self, x, width):
          return nn.Dense(width)(x)

        def conv(self, x, width, kernel=3, stride=1, groups=1):
          return nn.Conv(width, (kernel,) * 2, stride, feature_group_count=groups, use_bias=kernel != 1)(x)

        def norm(self, x):
          return nn.BatchNorm(use_running_average=not train)(x)

        def layer_norm(self, x):
          return nn.LayerNorm()(x)

        def rms_norm(self, x):
          return nn.RMSNorm()(x)

        def attention(self, x, heads, width):
          return nn.MultiHeadDotProductAttention(heads, qkv_features=width)(x)

        def embed(self, x, count, width):
          return nn.Embed(count, width)(x)

      return arch(Own(), x)

  return jl.from_linen(Net())


def nnx(arch):
  from flax import nnx

  class Own(Taken):
    rngs = nnx.Rngs(0)

    def dense(self, x, width):
      return self.layer(lambda: nnx.Linear(x.shape[-1], width, rngs=self.rngs))(x)

    def conv(self, x, width, kernel=3, stride=1, groups=1):
      sizes = x.shape[-1], width, (kernel,) * 2
      return self.layer(lambda: nnx.Conv(*sizes, strides=stride, feature_group_count=groups, rngs=self.rngs))(x)

    def norm(self, x):
      return self.layer(lambda: nnx.BatchNorm(x.shape[-1], rngs=self.rngs))(x)

    def layer_norm(self, x):
      return self.layer(lambda: nnx.LayerNorm(x.shape[-1], rngs=self.rngs))(x)

    def rms_norm(self, x):
      return self.layer(lambda: nnx.RMSNorm(x.shape[-1], rngs=self.rngs))(x)

    def attention(self, x, heads, width):
      return self.layer(lambda: nnx.MultiHeadAttention(heads, x.shape[-1], width, decode=False, rngs=self.rngs))(x)

    def embed(self, x, count, width):
      return self.layer(lambda: nnx.Embed(count, width, rngs=self.rngs))(x)

  class Net(nnx.Module):
    def __init__(self, inputs):
      first = Own()
      arch(first, inputs)
      self.layers = nnx.List(first.made)

    def __call__(self, x):
      return arch(Own(self.layers), x)

  return jl.from_nnx(Net(jnp.asarray(inputs_of(arch))))


def equinox(arch):
  import equinox as eqx

  keys = (jax.random.key(index) for index in itertools.count())

  class Own(Taken):
    """An example at a time. Channels come first in its convolutions alone."""

    lead = 0

    def dense(self, x, width):
      layer = self.layer(lambda: eqx.nn.Linear(x.shape[-1], width, key=next(keys)))
      for _ in range(x.ndim - 1):
        layer = jax.vmap(layer)
      return layer(x)

    def conv(self, x, width, kernel=3, stride=1, groups=1):
      told = {'padding': kernel // 2 if kernel != 4 else 0, 'groups': groups}
      layer = self.layer(lambda: eqx.nn.Conv2d(x.shape[-1], width, kernel, stride, key=next(keys), **told))
      return jnp.moveaxis(layer(jnp.moveaxis(x, -1, 0)), 0, -1)

    def norm(self, x):
      layer = self.layer(lambda: eqx.nn.GroupNorm(x.shape[-1], x.shape[-1]))
      return jnp.moveaxis(layer(jnp.moveaxis(x, -1, 0)), 0, -1)

    def layer_norm(self, x):
      return jax.vmap(self.layer(lambda: eqx.nn.LayerNorm(x.shape[-1])))(x)

    def rms_norm(self, x):
      return jax.vmap(self.layer(lambda: eqx.nn.RMSNorm(x.shape[-1])))(x)

    def attention(self, x, heads, width):
      return self.layer(lambda: eqx.nn.MultiheadAttention(heads, x.shape[-1], key=next(keys)))(x, x, x)

    def embed(self, x, count, width):
      return jax.vmap(self.layer(lambda: eqx.nn.Embedding(count, width, key=next(keys))))(x)

  class Net(eqx.Module):
    layers: list

    def __init__(self, x):
      first = Own()
      arch(first, x)
      self.layers = first.made

    def __call__(self, x):
      return arch(Own(self.layers), x)

  return jl.from_equinox(Net(jnp.asarray(inputs_of(arch))[0]))


def haiku(arch):
  import haiku as hk

  def net(x, is_training):
    class Own(Kit):
      def dense(self, x, width):
        return hk.Linear(width)(x)

      def conv(self, x, width, kernel=3, stride=1, groups=1):
        if groups == x.shape[-1] > 1:
          return hk.DepthwiseConv2D(1, kernel, stride)(x)
        return hk.Conv2D(width, kernel, stride, feature_group_count=groups)(x)

      def norm(self, x):
        return hk.BatchNorm(True, True, 0.9)(x, is_training)

      def layer_norm(self, x):
        return hk.LayerNorm(-1, True, True)(x)

      def rms_norm(self, x):
        return hk.RMSNorm(-1)(x)

      def attention(self, x, heads, width):
        return hk.MultiHeadAttention(heads, width // heads, w_init=hk.initializers.VarianceScaling(1.0))(x, x, x)

      def embed(self, x, count, width):
        return hk.Embed(count, width)(x)

    return arch(Own(), x)

  return jl.from_haiku(net)


def keras(arch):
  import keras

  layers = keras.layers

  class Own(Taken):
    def __init__(self, layers=None, training=False):
      super().__init__(layers)
      self.training = training

    def dense(self, x, width):
      return self.layer(lambda: layers.Dense(width))(x)

    def conv(self, x, width, kernel=3, stride=1, groups=1):
      if groups == x.shape[-1] > 1:
        return self.layer(lambda: layers.DepthwiseConv2D(kernel, stride, padding='same'))(x)
      return self.layer(lambda: layers.Conv2D(width, kernel, stride, padding='same', groups=groups))(x)

    def norm(self, x):
      return self.layer(layers.BatchNormalization)(x, training=self.training)

    def layer_norm(self, x):
      return self.layer(layers.LayerNormalization)(x)

    def rms_norm(self, x):
      return self.layer(layers.RMSNormalization)(x)

    def attention(self, x, heads, width):
      return self.layer(lambda: layers.MultiHeadAttention(heads, width // heads))(x, x)

    def embed(self, x, count, width):
      return self.layer(lambda: layers.Embedding(count, width))(x)

  class Net(keras.Model):
    def __init__(self, x):
      super().__init__()
      first = Own()
      arch(first, x)
      self.parts = first.made

    def call(self, x, training=False):
      return arch(Own(self.parts, training), x)

  return jl.from_keras(Net(jnp.asarray(inputs_of(arch))))


def function(arch):
  """Arrays in a list: no framework."""
  rng = np.random.default_rng(0)

  class Own(Taken):
    def array(self, *shape):
      return self.layer(lambda: jnp.asarray(rng.normal(size=shape) / np.sqrt(np.prod(shape[:-1])), jnp.float32))

    def dense(self, x, width):
      return x @ self.array(x.shape[-1], width) + self.array(width)

    def conv(self, x, width, kernel=3, stride=1, groups=1):
      w = self.array(kernel, kernel, x.shape[-1] // groups, width)
      order = ('NHWC', 'HWIO', 'NHWC')
      y = jax.lax.conv_general_dilated(x, w, (stride,) * 2, 'SAME', dimension_numbers=order, feature_group_count=groups)
      return y + self.array(width)

    def norm(self, x):
      mean = x.mean((0, 1, 2))
      y = (x - mean) * jax.lax.rsqrt(((x - mean) ** 2).mean((0, 1, 2)) + 1e-5)
      return y * self.array(x.shape[-1]) + self.array(x.shape[-1])

    def layer_norm(self, x):
      return jax.nn.standardize(x) * self.array(x.shape[-1]) + self.array(x.shape[-1])

    def rms_norm(self, x):
      return x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-6) * self.array(x.shape[-1])

    def attention(self, x, heads, width):
      query, key, value = (self.heads(self.dense(x, width), heads) for _ in range(3))
      return self.dense(self.joined(jax.nn.dot_product_attention(query, key, value)), x.shape[-1])

    def embed(self, x, count, width):
      return self.array(count, width)[x]

  first = Own()
  arch(first, jnp.asarray(inputs_of(arch)))
  return jl.from_function(lambda params, x: arch(Own(params), x), first.made)


KITS = {'linen': linen, 'nnx': nnx, 'equinox': equinox, 'haiku': haiku, 'keras': keras, 'function': function}


def inputs_of(arch):
  """What an architecture reads: tokens or pictures."""
  rng = np.random.default_rng(0)
  if arch is decoder:
    return rng.integers(0, 13, (2, 6)).astype(np.int32)
  return rng.normal(size=(3, 8, 8, 3)).astype(np.float32)


def network(name):
  """(Model, inputs) of 'framework architecture'."""
  framework, arch = name.split()
  return KITS[framework](ARCHITECTURES[arch]), inputs_of(ARCHITECTURES[arch])


NAMES = [f'{framework} {arch}' for framework in KITS for arch in ARCHITECTURES]
