"""The networks of constructed runs, each in three frameworks with the same first values."""

from __future__ import annotations

import itertools
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxlite as jl

VOCABULARY = 12  # of texts


class Shape(NamedTuple):
  """A network: widths of its hidden layers, activation, deviation of the first weights beside the usual, their bias."""

  widths: tuple[int, ...]
  act: str = 'relu'
  scale: float = 1.0
  bias: float = 0.0
  end: str = ''


_ACT = {
  'relu': jax.nn.relu,
  'tanh': jnp.tanh,
  'sigmoid': jax.nn.sigmoid,
  'gelu': jax.nn.gelu,
  'softmax': jax.nn.softmax,
  '': lambda x: x,
}


def network(framework: str, shape: Shape, outputs: int, features: int, tokens: bool, seed: int) -> Any:
  """A network of one of the frameworks; of tokens it sees the last two, one-hot."""
  make = {'function': _function, 'linen': _linen, 'equinox': _equinox}[framework]
  return make(shape, outputs, 2 * VOCABULARY if tokens else features, tokens, seed)


def _seen(x: Any) -> Any:
  """Of each position the token and the one before, one-hot: [..., L, 2 V]."""
  before = jnp.concatenate([x[..., :1], x[..., :-1]], axis=-1)
  return jnp.concatenate([jax.nn.one_hot(x, VOCABULARY), jax.nn.one_hot(before, VOCABULARY)], axis=-1)


def begun(shape: Shape, params: Any) -> Any:
  """The first weights of a shape: scaled, and hidden biases set; the last layer's stay."""
  paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
  last = max(paths, key=lambda path: [int(one) for one in re.findall(r'\d+', path)] or [0])
  own = re.sub(r'[^\d]', '', last)

  def changed(path: Any, leaf: Any) -> Any:
    if leaf.ndim > 1:
      return leaf * shape.scale
    hidden = re.sub(r'[^\d]', '', jax.tree_util.keystr(path)) != own
    return jnp.full_like(leaf, shape.bias) if hidden else leaf

  return jax.tree_util.tree_map_with_path(changed, params)


def _function(shape: Shape, outputs: int, features: int, tokens: bool, seed: int) -> Any:
  rng = np.random.default_rng(seed)
  sizes = (features, *shape.widths, outputs)
  params = {}
  for i, (a, b) in enumerate(itertools.pairwise(sizes)):
    gain = np.sqrt(2) if shape.act == 'relu' and i < len(shape.widths) else 1.0
    params[f'layer{i}'] = {
      'w': (rng.normal(size=(a, b)) * gain / np.sqrt(a)).astype(np.float32),
      'b': np.zeros(b, np.float32),
    }

  def apply(params: Any, x: Any) -> Any:
    x = _seen(x) if tokens else x
    for i in range(len(sizes) - 1):
      x = x @ params[f'layer{i}']['w'] + params[f'layer{i}']['b']
      x = _ACT[shape.act](x) if i < len(shape.widths) else _ACT[shape.end](x)
    return x

  return jl.from_function(apply, params)


def _linen(shape: Shape, outputs: int, features: int, tokens: bool, seed: int) -> Any:
  import flax.linen as nn

  class Net(nn.Module):
    @nn.compact
    def __call__(self, x: Any) -> Any:
      x = _seen(x) if tokens else x
      for width in shape.widths:
        gain = 2.0 if shape.act == 'relu' else 1.0
        kernel = nn.initializers.variance_scaling(gain, 'fan_in', 'normal')
        x = nn.Dense(width, kernel_init=kernel)(x)
        x = _ACT[shape.act](x)
      x = nn.Dense(outputs, kernel_init=nn.initializers.variance_scaling(1.0, 'fan_in', 'normal'))(x)
      return _ACT[shape.end](x)

  return Net()


def _equinox(shape: Shape, outputs: int, features: int, tokens: bool, seed: int) -> Any:
  import equinox as eqx

  sizes = (features, *shape.widths, outputs)
  rng = np.random.default_rng(seed)

  class Net(eqx.Module):
    layers: list[Any]

    def __init__(self) -> None:
      keys = jax.random.split(jax.random.key(seed), len(sizes) - 1)
      self.layers = [eqx.nn.Linear(a, b, key=key) for a, b, key in zip(sizes, sizes[1:], keys, strict=False)]
      for i, (a, b) in enumerate(itertools.pairwise(sizes)):
        gain = np.sqrt(2) if shape.act == 'relu' and i < len(shape.widths) else 1.0
        weight = jnp.asarray(rng.normal(size=(b, a)) * gain / np.sqrt(a), jnp.float32)
        bias = jnp.zeros(b, jnp.float32)
        self.layers[i] = eqx.tree_at(lambda one: (one.weight, one.bias), self.layers[i], (weight, bias))

    def one(self, x: Any) -> Any:
      for layer in self.layers[:-1]:
        x = _ACT[shape.act](layer(x))
      return _ACT[shape.end](self.layers[-1](x))

    def __call__(self, x: Any) -> Any:
      return jax.vmap(self.one)(_seen(x)) if tokens else self.one(x)

  return Net()
