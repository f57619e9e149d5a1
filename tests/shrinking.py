"""What the tests of shrinking share: the masked network as the oracle, and small networks in every framework."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

import jaxlite as jl
import shrinking_kits
from jaxlite import models, trees
from jaxlite.deployment.shrink import ways
from networks import first_values


def masked(small, params, state):
  """The whole (params, state) with zeros where `small` has nothing left."""
  ids = jax.tree.map(lambda leaf: np.arange(np.size(leaf)).reshape(np.shape(leaf)), {'p': params, 's': state})
  left = small.cut(ids)

  def one(leaf, whole, stays):
    return jnp.where(np.isin(whole, np.asarray(stays)), leaf, jnp.zeros_like(leaf))

  both = jax.tree.map(one, {'p': params, 's': state}, ids, left)
  return both['p'], both['s']


def scrambled(tree, seed):
  """Random numbers in place of first values, so that no bias is zero and no scale is one."""
  rng = np.random.default_rng(seed)

  def one(path, leaf):
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
      return leaf
    noise = rng.normal(size=leaf.shape)
    if 'var' in path:
      return jnp.asarray(0.5 + np.abs(noise), leaf.dtype)
    return jnp.asarray(np.asarray(leaf) + 0.1 * noise, leaf.dtype)

  return trees.map_with_path(one, tree)


def random_scores(params, rng):
  """Scores by which random units stay."""
  return jax.tree.map(lambda leaf: rng.random(np.shape(leaf)) ** 8, params)


def grouped_decoder(params, tokens):
  """A block of a decoder whose four query heads share two heads of keys and values; root mean square norms, SwiGLU."""

  def normed(x, scale):
    return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6) * scale

  x = params['embed'][tokens] + params['places'][: tokens.shape[1]]
  y = normed(x, params['norm1'])
  query = (y @ params['query']).reshape(*y.shape[:2], 4, 8)
  key = jnp.repeat((y @ params['key']).reshape(*y.shape[:2], 2, 8), 2, axis=2)
  value = jnp.repeat((y @ params['value']).reshape(*y.shape[:2], 2, 8), 2, axis=2)
  scores = jnp.einsum('bqhd,bkhd->bhqk', query, key) / np.sqrt(8)
  scores = jnp.where(jnp.tril(jnp.ones(scores.shape[-2:], bool)), scores, -1e9)
  mixed = jnp.einsum('bhqk,bkhd->bqhd', jax.nn.softmax(scores), value)
  x = x + mixed.reshape(*y.shape[:2], 32) @ params['out']
  gate, up = jnp.split(normed(x, params['norm2']) @ params['up'], 2, axis=-1)
  x = x + (jax.nn.silu(gate) * up) @ params['down']
  return normed(x, params['norm3']) @ params['embed'].T


def grouped_params(seed=0):
  shapes = {
    'embed': (11, 24), 'places': (16, 24), 'norm1': (24,), 'norm2': (24,), 'norm3': (24,), 'query': (24, 32),
    'key': (24, 16), 'value': (24, 16), 'out': (32, 24), 'up': (24, 48), 'down': (24, 24),
  }  # fmt: skip
  rng = np.random.default_rng(seed)
  return {name: jnp.asarray(0.4 * rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()}


def _linen(name):
  made = {
    'mlp': models.MLP((32, 24)),
    'lenet5': models.LeNet5(),
    'resnet8': models.ResNet8(),
    'resnet20': models.ResNet20(),
    'depthwise': models.DepthwiseCNN(stem=8, blocks=((16, 2), (16, 1), (24, 2))),
    'vit': models.ViT(width=32, layers=2, heads=4, hidden=48),
    'decoder': models.Decoder(19, width=32, layers=2, heads=4, hidden=48, dropout=0.1),
    'llama': models.Decoder(19, width=32, layers=2, heads=4, groups=2, hidden=48, form='llama'),
  }[name]
  if name in ('decoder', 'llama'):
    inputs = np.random.default_rng(0).integers(0, 19, (2, 7)).astype(np.int32)
  else:
    size = {'mlp': (8, 8), 'lenet5': (28, 28, 1)}.get(name, (16, 16, 3))
    inputs = np.random.default_rng(0).normal(size=(3, *size)).astype(np.float32)
  return jl.from_linen(made), inputs


def choices(network, seed, count):
  """Yields smaller networks of random units, and of each group a random share, some whole; 'why' where it is refused.

  Args:
    network: (model, params, state, inputs).
    seed: of the choice.
    count: of networks.
  """
  model, params, state, inputs = network
  rng = np.random.default_rng(seed)
  for index in range(count):
    if index % 5 == 0:  # other units are the best
      scores = random_scores(params, rng)
      found = ways(model, params, state, inputs, multiple=1, scores=scores, key=jax.random.key(3))
    path = found.path
    kept = [len(family.units) for family in path.cost.families]
    for place, (units, step, is_open) in enumerate(zip(tuple(kept), path.steps, path.open, strict=True)):
      if is_open and units > step and rng.random() < 0.8:
        kept[place] = int(rng.integers(1, -(-units // step))) * step
    try:
      yield found.make(kept)
    except ValueError as error:
      yield str(error)


def _images(seed=0):
  return np.random.default_rng(seed).normal(size=(3, 8, 8, 3)).astype(np.float32)


def _nnx():
  from flax import nnx

  class Net(nnx.Module):
    def __init__(self, rngs):
      self.a, self.b = nnx.Conv(3, 8, (3, 3), rngs=rngs), nnx.Conv(8, 8, (3, 3), rngs=rngs)
      self.norms = nnx.List([nnx.BatchNorm(8, rngs=rngs) for _ in range(2)])
      self.depth = nnx.Conv(8, 8, (3, 3), feature_group_count=8, rngs=rngs)
      self.attention = nnx.MultiHeadAttention(4, 8, qkv_features=16, decode=False, rngs=rngs)
      self.norm, self.c = nnx.LayerNorm(8, rngs=rngs), nnx.Linear(8, 5, rngs=rngs)
      self.drop = nnx.Dropout(0.3, rngs=rngs)

    def __call__(self, x):
      x = nnx.relu(self.norms[0](self.a(x)))
      x = self.drop(nnx.relu(x + self.norms[1](self.b(x))))
      x = nnx.avg_pool(self.depth(x), (2, 2), (2, 2))
      x = x.reshape(x.shape[0], -1, x.shape[-1])
      x = self.norm(x + self.attention(x))
      return self.c(x.mean(1))

  return jl.from_nnx(Net(nnx.Rngs(0))), _images()


def _equinox():
  import equinox as eqx

  class Net(eqx.Module):
    a: eqx.nn.Conv2d
    b: eqx.nn.Conv2d
    c: eqx.nn.Linear
    d: eqx.nn.Linear
    norm: eqx.nn.LayerNorm
    attention: eqx.nn.MultiheadAttention
    drop: eqx.nn.Dropout

    def __init__(self, key):
      keys = jax.random.split(key, 5)
      self.a = eqx.nn.Conv2d(3, 8, 3, padding=1, key=keys[0])
      self.b = eqx.nn.Conv2d(8, 16, 3, padding=1, groups=4, key=keys[1])
      self.c, self.d = eqx.nn.Linear(16, 24, key=keys[2]), eqx.nn.Linear(24, 5, key=keys[3])
      self.norm, self.attention = eqx.nn.LayerNorm(16), eqx.nn.MultiheadAttention(4, 16, key=keys[4])
      self.drop = eqx.nn.Dropout(0.2)

    def __call__(self, x, key=None):
      x = jax.nn.relu(self.b(jax.nn.elu(self.a(jnp.moveaxis(x, -1, 0)))))
      x = x.reshape(x.shape[0], -1).T[::8]
      x = jax.vmap(self.norm)(x + self.attention(x, x, x))
      x = jax.nn.gelu(self.c(x.mean(0)))
      return self.d(self.drop(x, key=key))

  return jl.from_equinox(Net(jax.random.key(0))), _images()


def _haiku():
  import haiku as hk

  def net(x, is_training):
    x = hk.Conv2D(8, 3, with_bias=False)(x)
    x = jax.nn.relu(hk.BatchNorm(True, True, 0.9)(x, is_training))
    x = jnp.concatenate([x, hk.Conv2D(16, 3)(x)], axis=-1)
    x = hk.DepthwiseConv2D(1, 3)(x)
    x = hk.MaxPool(2, 2, 'SAME')(x)
    x = hk.Flatten()(x)
    x = hk.LayerNorm(-1, True, True)(hk.Linear(24)(x))
    a, b = jnp.split(hk.Linear(32)(x), 2, axis=-1)
    return hk.Linear(5)(jax.nn.sigmoid(a) * b)

  return jl.from_haiku(net), _images()


def _keras():
  import keras

  layers = keras.layers
  x = given = keras.Input((8, 8, 3))
  x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(8, 3, padding='same')(x)))
  x = layers.Add()([x, layers.SeparableConv2D(8, 3, padding='same')(x)])
  x = layers.Flatten()(layers.MaxPooling2D()(x))
  x = layers.LayerNormalization()(layers.Dense(24, activation='gelu')(x))
  return jl.from_keras(keras.Model(given, layers.Dense(5)(layers.Dense(16, activation='silu')(x)))), _images()


def _function():
  return jl.from_function(grouped_decoder, grouped_params()), np.arange(14).reshape(2, 7) % 11


FRAMEWORKS = {'nnx': _nnx, 'equinox': _equinox, 'haiku': _haiku, 'keras': _keras, 'function': _function}
LINEN = ('mlp', 'lenet5', 'resnet8', 'depthwise', 'vit', 'decoder', 'llama')


def network(name, seed=0):
  """(model, params, state, inputs) with random values."""
  if ' ' in name:
    model, inputs = shrinking_kits.network(name)
  else:
    model, inputs = FRAMEWORKS[name]() if name in FRAMEWORKS else _linen(name)
  params, state = first_values(model, inputs)
  return model, scrambled(params, seed), scrambled(state, seed + 1), inputs


@functools.lru_cache(maxsize=8)
def compiled(apply, train):
  key, step = (jax.random.key(5), jnp.int32(3)) if train else (None, None)
  return jax.jit(lambda params, state, inputs: apply(params, state, inputs, train=train, key=key, step=step))


def close(one, other):
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), one, other)


def agree(small, model, params, state, inputs, modes=(False, True)):
  """Outputs and new state of a shrunk network are the masked one's."""
  whole = masked(small, params, state)
  for train in modes:
    wanted, wanted_state = compiled(model.apply, train)(*whole, inputs)
    got, got_state = compiled(small.model.apply, train)(small.params, small.model_state, inputs)
    scale = max(1.0, float(jnp.abs(wanted).max()))
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5 * scale)
    close(got_state, small.cut(wanted_state))


def groups(fn, params, inputs, **options):
  small = jl.shrink(fn, params, None, inputs, **{'keep': 0.5, 'multiple': 1, **options})
  return small, {frozenset(one.members): (one.units, one.kept) for one in small.groups}


def ones(**shapes):
  rng = np.random.default_rng(0)
  return {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()}
