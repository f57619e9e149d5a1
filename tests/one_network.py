"""One small network in six frameworks, its arrays as PyTorch names them, and what it computes, in NumPy."""

import os

os.environ['KERAS_BACKEND'] = 'jax'  # before anybody imports it

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import keras
import numpy as np
from flax import nnx

INPUTS = np.random.default_rng(3).normal(size=(2, 6, 6, 4)).astype(np.float32)


def torch_arrays(seed=0, classes=3):
  """A state dict as PyTorch keeps it: every kernel [out, in, ...]."""
  rng = np.random.default_rng(seed)
  draw = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
  return {
    'conv.weight': draw(4, 4, 3, 3),
    'conv.bias': draw(4),
    'depth.weight': draw(4, 1, 3, 3),
    'norm.weight': draw(4),
    'norm.bias': draw(4),
    'norm.running_mean': draw(4),
    'norm.running_var': draw(4) ** 2 + 0.5,
    'norm.num_batches_tracked': np.array(7),
    'square.weight': draw(4, 4),
    'square.bias': draw(4),
    'head.weight': draw(classes, 4),
    'head.bias': draw(classes),
  }


def expected(arrays, x):
  """The network in NumPy, from PyTorch's own definitions."""

  def convolved(x, w, groups):
    x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    out = np.zeros((x.shape[0], x.shape[1] - 2, x.shape[2] - 2, w.shape[0]), np.float64)
    for o in range(w.shape[0]):
      for i in range(w.shape[1]):
        channel = i + o // (w.shape[0] // groups) * w.shape[1]
        for dy in range(3):
          for dx in range(3):
            out[..., o] += w[o, i, dy, dx] * x[:, dy : dy + out.shape[1], dx : dx + out.shape[2], channel]
    return out

  a = arrays
  h = convolved(x, a['conv.weight'], 1) + a['conv.bias']
  h = np.maximum(convolved(h, a['depth.weight'], 4), 0)
  h = (h - a['norm.running_mean']) / np.sqrt(a['norm.running_var'] + 1e-5) * a['norm.weight'] + a['norm.bias']
  h = np.maximum(h.mean((1, 2)) @ a['square.weight'].T + a['square.bias'], 0)
  return h @ a['head.weight'].T + a['head.bias']


class Linen(nn.Module):
  classes: int = 3

  @nn.compact
  def __call__(self, x, train=False):
    x = nn.Conv(4, (3, 3), name='conv')(x)
    x = nn.relu(nn.Conv(4, (3, 3), feature_group_count=4, use_bias=False, name='depth')(x))
    x = nn.BatchNorm(use_running_average=not train, name='norm')(x)
    x = nn.relu(nn.Dense(4, name='square')(x.mean((1, 2))))
    return nn.Dense(self.classes, name='head')(x)


class Nnx(nnx.Module):
  def __init__(self, rngs):
    self.conv = nnx.Conv(4, 4, (3, 3), rngs=rngs)
    self.depth = nnx.Conv(4, 4, (3, 3), feature_group_count=4, use_bias=False, rngs=rngs)
    self.norm = nnx.BatchNorm(4, rngs=rngs)
    self.square, self.head = nnx.Linear(4, 4, rngs=rngs), nnx.Linear(4, 3, rngs=rngs)

  def __call__(self, x):
    x = self.norm(nnx.relu(self.depth(self.conv(x))))
    return self.head(nnx.relu(self.square(x.mean((1, 2)))))


class Equinox(eqx.Module):
  conv: eqx.nn.Conv2d
  depth: eqx.nn.Conv2d
  norm: dict
  square: eqx.nn.Linear
  head: eqx.nn.Linear

  def __init__(self, key):
    self.conv = eqx.nn.Conv2d(4, 4, 3, padding=1, key=key)
    self.depth = eqx.nn.Conv2d(4, 4, 3, padding=1, groups=4, use_bias=False, key=key)
    self.norm = {name: jnp.ones(4) for name in ('weight', 'bias', 'running_mean', 'running_var')}
    self.square, self.head = eqx.nn.Linear(4, 4, key=key), eqx.nn.Linear(4, 3, key=key)

  def __call__(self, x):  # [H, W, C], one example
    h = jax.nn.relu(self.depth(self.conv(x.transpose(2, 0, 1))))
    n = {name: one[:, None, None] for name, one in self.norm.items()}
    h = (h - n['running_mean']) * jax.lax.rsqrt(n['running_var'] + 1e-5) * n['weight'] + n['bias']
    return self.head(jax.nn.relu(self.square(h.mean((1, 2)))))


def haiku_net(x):
  x = hk.Conv2D(4, 3, name='conv')(x)
  x = jax.nn.relu(hk.DepthwiseConv2D(1, 3, with_bias=False, name='depth')(x))
  mean, var = (hk.get_parameter(f'norm_{name}', [4], init=jnp.ones) for name in ('mean', 'var'))
  scale, bias = (hk.get_parameter(f'norm_{name}', [4], init=jnp.ones) for name in ('scale', 'bias'))
  x = (x - mean) * jax.lax.rsqrt(var + 1e-5) * scale + bias
  x = jax.nn.relu(hk.Linear(4, name='square')(x.mean((1, 2))))
  return hk.Linear(3, name='head')(x)


def keras_net():
  layers = keras.layers
  return keras.Sequential(
    [
      keras.Input((6, 6, 4)),
      layers.Conv2D(4, 3, padding='same', name='conv'),
      layers.DepthwiseConv2D(3, padding='same', use_bias=False, activation='relu', name='depth'),
      layers.BatchNormalization(epsilon=1e-5, name='norm'),
      layers.GlobalAveragePooling2D(name='pool'),
      layers.Dense(4, activation='relu', name='square'),
      layers.Dense(3, name='head'),
    ],
    name='net',
  )


def plain(p, x):  # a function whose square matrix is [out, in], and whose head is [in, out]
  x = jax.lax.conv_general_dilated(x, p['conv']['w'], (1, 1), 'SAME', dimension_numbers=('NHWC', 'OIHW', 'NHWC'))
  x = x + p['conv']['b']
  x = jax.lax.conv_general_dilated(
    x, p['depth']['w'], (1, 1), 'SAME', feature_group_count=4, dimension_numbers=('NHWC', 'HWIO', 'NHWC')
  )
  n = p['norm']
  x = (jax.nn.relu(x) - n['mean']) * jax.lax.rsqrt(n['var'] + 1e-5) * n['w'] + n['b']
  x = jax.nn.relu(x.mean((1, 2)) @ p['square']['w'].T + p['square']['b'])
  return x @ p['head']['w'] + p['head']['b']


def plain_params():
  shapes = {'conv': (4, 4, 3, 3), 'depth': (3, 3, 1, 4), 'square': (4, 4), 'head': (4, 3)}
  params = {name: {'w': jnp.zeros(shape), 'b': jnp.zeros(shape[-1])} for name, shape in shapes.items()}
  del params['depth']['b']
  params['conv']['b'] = jnp.zeros(4)
  params['norm'] = {name: jnp.zeros(4) for name in ('w', 'b', 'mean', 'var')}
  return params


RULES_OF_HAIKU = {r'^norm\.weight$': '~/norm_scale', r'^norm\.running_': '~/norm_', r'^norm\.bias$': '~/norm_bias'}
MODELS = {
  'linen': (Linen, None),
  'nnx': (lambda: Nnx(nnx.Rngs(0)), None),
  'equinox': (lambda: Equinox(jax.random.key(0)), None),
  'haiku': (lambda: hk.transform(haiku_net), RULES_OF_HAIKU),
  'keras': (keras_net, None),
  'function': (lambda: (plain, plain_params()), None),
}
