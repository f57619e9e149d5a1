"""The networks of `memory_cases.py`; each framework is imported for its own alone, since what is imported is memory."""

from __future__ import annotations

import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxlite as jl

VOCABULARY = 256


def network(family: str, size: Any, shape: tuple[int, ...], outputs: int) -> Any:
  """A network.

  Args:
    family: 'framework network'.
    size: as the network takes it.
    shape: of one example.
    outputs: of an example, or of a place.
  """
  framework, kind = family.split()
  make = {'linen': _linen, 'nnx': _nnx, 'equinox': _equinox, 'haiku': _haiku, 'plain': _plain}[framework]
  return make(kind, size, shape, outputs)


def _linen(kind: str, size: Any, shape: tuple[int, ...], outputs: int) -> Any:
  import flax.linen as nn

  from jaxlite import models

  if kind in ('mlp', 'teacher'):
    return models.MLP((size[0],) if kind == 'teacher' else size, classes=outputs)
  if kind == 'cnn':
    return models.SmallCNN(features=size, classes=outputs)
  if kind == 'resnet':
    return models.ResNet(blocks=size, classes=outputs)
  if kind == 'vit':
    return models.ViT(layers=size[0], width=size[1], hidden=4 * size[1], classes=outputs)
  if kind == 'decoder':
    return models.Decoder(
      vocabulary=VOCABULARY, layers=size[0], width=size[1], hidden=4 * size[1], heads=4, length=shape[0]
    )
  if kind == 'depthwise':
    blocks = ((2 * size, 2), (2 * size, 1), (4 * size, 2), (4 * size, 1))
    return models.DepthwiseCNN(stem=size, blocks=blocks, classes=outputs)
  if kind == 'lenet':
    return models.LeNet5(classes=outputs)
  if kind == 'bag':
    return models.EmbeddingBag(vocabulary=5000, classes=outputs, width=size)

  if kind == 'remat':

    class Layer(nn.Module):
      @nn.compact
      def __call__(self, x: Any) -> Any:
        return x + nn.Dense(size[1])(nn.gelu(nn.Dense(2 * size[1])(x)))

    class Deep(nn.Module):
      @nn.compact
      def __call__(self, x: Any) -> Any:
        x = nn.Dense(size[1])(x.reshape(len(x), -1))
        for _ in range(size[0]):
          x = nn.remat(Layer)()(x)
        return nn.Dense(outputs)(x)

    return Deep()

  class UNet(nn.Module):
    @nn.compact
    def __call__(self, x: Any) -> Any:
      kept = []
      for width in (size, 2 * size):
        x = nn.relu(nn.Conv(width, (3, 3))(x))
        kept.append(x)
        x = nn.avg_pool(x, (2, 2), (2, 2))
      x = nn.relu(nn.Conv(4 * size, (3, 3))(x))
      for width, before in ((2 * size, kept[1]), (size, kept[0])):
        x = jnp.repeat(jnp.repeat(x, 2, 1), 2, 2)
        x = nn.relu(nn.Conv(width, (3, 3))(jnp.concatenate([x, before], -1)))
      return nn.Conv(outputs, (1, 1))(x)

  return UNet()


def _nnx(kind: str, size: Any, shape: tuple[int, ...], outputs: int) -> Any:
  from flax import nnx

  rngs = nnx.Rngs(0)

  class MLP(nnx.Module):
    def __init__(self) -> None:
      sizes = (math.prod(shape), *size)
      self.layers = nnx.List([nnx.Linear(a, b, rngs=rngs) for a, b in itertools.pairwise(sizes)])
      self.head = nnx.Linear(sizes[-1], outputs, rngs=rngs)

    def __call__(self, x: Any) -> Any:
      x = x.reshape(len(x), -1)
      for layer in self.layers:
        x = nnx.relu(layer(x))
      return self.head(x)

  class CNN(nnx.Module):
    def __init__(self) -> None:
      sizes = (shape[-1], *size)
      self.layers = nnx.List([nnx.Conv(a, b, (3, 3), rngs=rngs) for a, b in itertools.pairwise(sizes)])
      self.head = nnx.Linear(sizes[-1], outputs, rngs=rngs)

    def __call__(self, x: Any) -> Any:
      for layer in self.layers:
        x = nnx.max_pool(nnx.relu(layer(x)), (2, 2), (2, 2))
      return self.head(x.mean((1, 2)))

  class Attention(nnx.Module):
    def __init__(self) -> None:
      depth, width = size
      self.first = nnx.Linear(shape[-1], width, rngs=rngs)
      self.norms = nnx.List([nnx.LayerNorm(width, rngs=rngs) for _ in range(2 * depth)])
      self.attend = nnx.List([nnx.MultiHeadAttention(4, width, decode=False, rngs=rngs) for _ in range(depth)])
      self.up = nnx.List([nnx.Linear(width, 4 * width, rngs=rngs) for _ in range(depth)])
      self.down = nnx.List([nnx.Linear(4 * width, width, rngs=rngs) for _ in range(depth)])
      self.head = nnx.Linear(width, outputs, rngs=rngs)

    def __call__(self, x: Any) -> Any:
      x = self.first(x)
      for i, attend in enumerate(self.attend):
        x = x + attend(self.norms[2 * i](x))
        x = x + self.down[i](nnx.gelu(self.up[i](self.norms[2 * i + 1](x))))
      return self.head(x.mean(1))

  class Norm(nnx.Module):
    def __init__(self) -> None:
      sizes = (shape[-1], *size)
      self.layers = nnx.List([nnx.Conv(a, b, (3, 3), rngs=rngs) for a, b in itertools.pairwise(sizes)])
      self.norms = nnx.List([nnx.BatchNorm(b, rngs=rngs) for b in size])
      self.drop = nnx.Dropout(0.1, rngs=rngs)
      self.head = nnx.Linear(sizes[-1], outputs, rngs=rngs)

    def __call__(self, x: Any) -> Any:
      for layer, norm in zip(self.layers, self.norms, strict=True):
        x = nnx.max_pool(nnx.relu(norm(layer(x))), (2, 2), (2, 2))
      return self.head(self.drop(x.mean((1, 2))))

  return {'mlp': MLP, 'cnn': CNN, 'attention': Attention, 'norm': Norm}[kind]()


def _equinox(kind: str, size: Any, shape: tuple[int, ...], outputs: int) -> Any:
  import equinox as eqx

  keys = iter(jax.random.split(jax.random.key(0), 64))

  if kind == 'mlp':
    sizes = (math.prod(shape), *size, outputs)
    layers: list[Any] = []
    for a, b in itertools.pairwise(sizes):
      layers += [eqx.nn.Linear(a, b, key=next(keys)), eqx.nn.Lambda(jax.nn.relu)]
    return eqx.nn.Sequential([eqx.nn.Lambda(jnp.ravel), *layers[:-1]])
  turned = eqx.nn.Lambda(lambda x: x.transpose(2, 0, 1).astype(jnp.float32))
  if kind == 'cnn':
    sizes = (shape[-1], *size)
    layers = [turned]
    for a, b in itertools.pairwise(sizes):
      layers += [eqx.nn.Conv2d(a, b, 3, padding=1, key=next(keys)), eqx.nn.Lambda(jax.nn.relu)]
      layers += [eqx.nn.MaxPool2d(2, 2)]
    side = shape[0] // 2 ** len(size)
    return eqx.nn.Sequential(
      [*layers, eqx.nn.Lambda(jnp.ravel), eqx.nn.Linear(size[-1] * side**2, outputs, key=next(keys))]
    )

  class Block(eqx.Module):
    one: Any
    two: Any

    def __call__(self, x: Any, *, key: Any = None) -> Any:
      return jax.nn.relu(x + self.two(jax.nn.relu(self.one(x))))

  depth, width = size
  conv = lambda a, b: eqx.nn.Conv2d(a, b, 3, padding=1, key=next(keys))  # noqa: E731
  blocks = [Block(conv(width, width), conv(width, width)) for _ in range(depth)]
  mean = eqx.nn.Lambda(lambda x: x.mean((1, 2)))
  return eqx.nn.Sequential(
    [turned, conv(shape[-1], width), *blocks, mean, eqx.nn.Linear(width, outputs, key=next(keys))]
  )


def _haiku(kind: str, size: Any, shape: tuple[int, ...], outputs: int) -> Any:
  import haiku as hk

  def mlp(x: Any) -> Any:
    x = x.reshape(len(x), -1).astype(jnp.float32)
    for width in size:
      x = jax.nn.relu(hk.Linear(width)(x))
    return hk.Linear(outputs)(x)

  def cnn(x: Any) -> Any:
    x = x.astype(jnp.float32)
    for width in size:
      x = jax.nn.relu(hk.Conv2D(width, 3)(x))
      x = hk.max_pool(x, (2, 2, 1), (2, 2, 1), 'VALID')
    return hk.Linear(outputs)(hk.Flatten()(x))

  def gated(x: Any) -> Any:
    width, depth = size
    x = hk.Linear(width)(x.reshape(len(x), -1))
    for _ in range(depth):
      x = x + jax.nn.sigmoid(hk.Linear(width)(x)) * jnp.tanh(hk.Linear(width)(x))
    return hk.Linear(outputs)(x)

  def lstm(x: Any) -> Any:
    core = hk.LSTM(size)
    outs, _ = hk.dynamic_unroll(core, x.swapaxes(0, 1), core.initial_state(len(x)))
    return hk.Linear(outputs)(outs[-1])

  return jl.from_haiku({'mlp': mlp, 'cnn': cnn, 'gated': gated, 'lstm': lstm}[kind])


def _plain(kind: str, size: Any, shape: tuple[int, ...], outputs: int) -> Any:
  draw = np.random.default_rng(0)
  drawn = lambda *of: (draw.normal(size=of) / math.sqrt(of[-2])).astype(np.float32)  # noqa: E731
  count = math.prod(shape)

  if kind in ('mlp', 'wide'):
    width = size[0] if kind == 'mlp' else size

    def mlp(p: Any, x: Any) -> Any:
      return jax.nn.relu(x.reshape(len(x), -1) @ p['a'] + p['c']) @ p['b']

    return jl.from_function(
      mlp, {'a': drawn(count, width), 'b': drawn(width, outputs), 'c': np.zeros(width, np.float32)}
    )

  if kind in ('scan', 'remat'):
    depth, width = size

    def scanned(p: Any, x: Any) -> Any:
      layer = lambda h, w: (h + jnp.tanh(h @ w), None)  # noqa: E731
      layer = jax.checkpoint(layer) if kind == 'remat' else layer
      h, _ = jax.lax.scan(layer, x @ p['a'], p['w'])
      return h @ p['b']

    return jl.from_function(
      scanned, {'a': drawn(count, width), 'w': 0.1 * drawn(depth, width, width), 'b': drawn(width, outputs)}
    )

  if kind == 'gru':

    def gru(p: Any, x: Any) -> Any:
      def step(h: Any, row: Any) -> Any:
        gates = jax.nn.sigmoid(row @ p['x'] + h @ p['h'])
        z, r = jnp.split(gates, 2, -1)
        new = jnp.tanh(row @ p['n'] + (r * h) @ p['m'])
        return (1 - z) * h + z * new, None

      h, _ = jax.lax.scan(step, jnp.zeros((len(x), size)), x.swapaxes(0, 1))
      return h @ p['b']

    f = shape[-1]
    return jl.from_function(
      gru,
      {
        'x': drawn(f, 2 * size),
        'h': drawn(size, 2 * size),
        'n': drawn(f, size),
        'm': drawn(size, size),
        'b': drawn(size, outputs),
      },
    )

  if kind in ('ensemble', 'nested', 'branches', 'experts', 'bfloat16'):
    return _odd(kind, size, count, outputs, drawn)
  depth, width = size

  def mixer(p: Any, x: Any) -> Any:
    x = x @ p['a']
    for one, two in zip(p['tokens'], p['channels'], strict=True):
      x = x + jnp.einsum('btc,ts->bsc', jax.nn.gelu(x), one)
      x = x + jax.nn.gelu(x @ two)
    return x.mean(1) @ p['b']

  return jl.from_function(
    mixer,
    {
      'a': drawn(shape[1], width),
      'tokens': [drawn(shape[0], shape[0]) for _ in range(depth)],
      'channels': [drawn(width, width) for _ in range(depth)],
      'b': drawn(width, outputs),
    },
  )


def _odd(kind: str, size: Any, count: int, outputs: int, drawn: Any) -> Any:
  """Programs that formulas of memory are often wrong about."""
  if kind == 'ensemble':
    members, width = size

    def ensemble(p: Any, x: Any) -> Any:
      one = lambda q: jax.nn.gelu(jax.nn.gelu(x @ q['a']) @ q['b']) @ q['c']  # noqa: E731
      return jax.vmap(one)(p).mean(0)

    shapes = {'a': (count, width), 'b': (width, width), 'c': (width, outputs)}
    return jl.from_function(ensemble, {name: drawn(members, *of) for name, of in shapes.items()})
  if kind == 'nested':
    outer, inner, width = size

    def nested(p: Any, x: Any) -> Any:
      layer = lambda h, w: (h + 0.1 * jnp.tanh(h @ w), None)  # noqa: E731
      block = lambda h, ws: (jax.lax.scan(layer, h, ws)[0], None)  # noqa: E731
      return jax.lax.scan(block, x @ p['a'], p['w'])[0] @ p['b']

    return jl.from_function(
      nested, {'a': drawn(count, width), 'w': drawn(outer, inner, width, width), 'b': drawn(width, outputs)}
    )
  if kind == 'branches':
    small, large = size

    def branches(p: Any, x: Any) -> Any:
      wide = lambda x: jnp.tanh(x @ p['w']) @ p['v']  # noqa: E731
      narrow = lambda x: jnp.tanh(x @ p['n']) @ p['m']  # noqa: E731
      return jax.lax.cond(x.mean() > 0, wide, narrow, x)

    shapes = {'w': (count, large), 'v': (large, outputs), 'n': (count, small), 'm': (small, outputs)}
    return jl.from_function(branches, {name: drawn(*of) for name, of in shapes.items()})
  if kind == 'experts':
    experts, width = size

    def mixture(p: Any, x: Any) -> Any:
      one = jnp.argmax(x @ p['gate'], -1)
      order = jnp.argsort(one)
      groups = jnp.bincount(one, length=experts).astype(jnp.int32)
      h = jax.nn.gelu(jax.lax.ragged_dot(x[order], p['a'], groups))
      return jnp.zeros((len(x), outputs)).at[order].set(jax.lax.ragged_dot(h, p['b'], groups))

    shapes = {'gate': (count, experts), 'a': (experts, count, width), 'b': (experts, width, outputs)}
    return jl.from_function(mixture, {name: drawn(*of) for name, of in shapes.items()})

  def halves(p: Any, x: Any) -> Any:
    x = x.reshape(len(x), -1).astype(jnp.bfloat16)
    for name in ('a', 'b'):
      x = jax.nn.gelu(x @ p[name])
    return (x @ p['c']).astype(jnp.float32)

  shapes = {'a': (count, size[0]), 'b': (size[0], size[1]), 'c': (size[1], outputs)}
  return jl.from_function(halves, {name: jnp.asarray(drawn(*of), jnp.bfloat16) for name, of in shapes.items()})
