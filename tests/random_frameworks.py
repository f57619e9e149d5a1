"""Random networks of frameworks' own layers, in Linen, NNX, Equinox and Haiku: see `random_models`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

import jaxlite as jl
from jaxlite import trees
from random_forms import IN_OUT, OUT_IN, Fact
from random_references import (
  WIDE,
  a_convolution,
  a_dense,
  a_haiku_gru,
  a_linen_gru,
  a_norm,
  a_normed_dense,
  a_scan,
  a_simple_cell,
  an_attention,
  an_equinox_gru,
  an_nnx_gru,
)

BATCH, TIME = 6, 6


class Layer(NamedTuple):
  """A framework's layer.

  Attributes:
    make: (name, size, out) -> in Linen and Haiku x -> y; in NNX and Equinox (key) -> a module.
    reference: (float64 leaves by path, name, x) -> a generator that asks for Dots and returns y.
    facts: of its weights, by what follows its name.
    out: how many features come out; None as many as asked for, 0 as many as came in.
  """

  make: Callable[..., Any]
  reference: Callable[..., Any]
  facts: dict[str, Fact]
  out: int | None = None


LAYERS = {'kernel': Fact((1,), (2,))}
LINEN = {
  'dense': Layer(
    lambda name, size, out: lambda x: nn.tanh(nn.Dense(out, name=name)(x)), a_dense('kernel'), {'kernel': IN_OUT}
  ),
  'weight norm': Layer(
    lambda name, size, out: lambda x: nn.tanh(nn.WeightNorm(nn.Dense(out, name=name), name=f'norm_of_{name}')(x)),
    a_normed_dense,
    {'kernel': IN_OUT},
  ),
  'convolution': Layer(
    lambda name, size, out: lambda x: nn.tanh(nn.Conv(8, (3,), feature_group_count=2, name=name)(x)),
    a_convolution('kernel', (0, 1, 2), 2),
    {'kernel': Fact((0, 1), (2,))},
    8,
  ),
  'attention': Layer(
    lambda name, size, out: lambda x: x + nn.MultiHeadDotProductAttention(num_heads=2, name=name)(x, x),
    an_attention(['query/kernel', 'key/kernel', 'value/kernel', 'out/kernel'], turned=False),
    {f'{one}/kernel': Fact((0,), (1, 2)) for one in ('query', 'key', 'value')} | {'out/kernel': Fact((0, 1), (2,))},
    0,
  ),
  'gru': Layer(
    lambda name, size, out: nn.RNN(nn.GRUCell(WIDE, name=name)),
    a_linen_gru,
    {f'{way}{gate}/kernel': IN_OUT for way in 'ih' for gate in 'rzn'},
    WIDE,
  ),
  'simple cell': Layer(
    lambda name, size, out: nn.RNN(nn.SimpleCell(WIDE, name=name)),
    a_simple_cell,
    {'i/kernel': IN_OUT, 'h/kernel': IN_OUT},
    WIDE,
  ),
  'norm': Layer(lambda name, size, out: nn.LayerNorm(name=name), a_norm('scale', 'bias', 1e-6), {}, 0),
  'scan': Layer(
    lambda name, size, out: (
      lambda x: nn.scan(
        lambda layer, x, _: (nn.tanh(layer(x)), None),
        variable_axes={'params': 0},
        split_rngs={'params': True},
        length=3,
      )(nn.Dense(size, name=name), x, None)[0]
    ),
    a_scan,
    LAYERS,
    0,
  ),
}


class NnxScan(nnx.Module):
  def __init__(self, size, key):
    make = nnx.vmap(lambda key: nnx.Linear(size, size, rngs=nnx.Rngs(key)), in_axes=0, out_axes=0)
    made = make(jax.random.split(key, 3))
    self.kernel, self.bias = nnx.Param(made.kernel[...]), nnx.Param(made.bias[...])

  def __call__(self, x):
    body = lambda x, layer: (jnp.tanh(x @ layer[0] + layer[1]), None)  # noqa: E731
    return lax.scan(body, x, (self.kernel[...], self.bias[...]))[0]


NNX = {
  'dense': Layer(
    lambda name, size, out: lambda rngs: nnx.Linear(size, out, rngs=rngs), a_dense('kernel'), {'kernel': IN_OUT}
  ),
  'convolution': Layer(
    lambda name, size, out: lambda rngs: nnx.Conv(size, 8, (3,), feature_group_count=2, rngs=rngs),
    LINEN['convolution'].reference,
    LINEN['convolution'].facts,
    8,
  ),
  'attention': Layer(
    lambda name, size, out: lambda rngs: nnx.MultiHeadAttention(2, in_features=size, decode=False, rngs=rngs),
    LINEN['attention'].reference,
    LINEN['attention'].facts,
    0,
  ),
  'gru': Layer(
    lambda name, size, out: lambda rngs: nnx.RNN(nnx.GRUCell(size, WIDE, rngs=rngs)),
    an_nnx_gru,
    {'cell/dense_i/kernel': IN_OUT, 'cell/dense_h/kernel': IN_OUT},
    WIDE,
  ),
  'norm': Layer(
    lambda name, size, out: lambda rngs: nnx.LayerNorm(size, rngs=rngs), a_norm('scale', 'bias', 1e-6), {}, 0
  ),
  'scan': Layer(lambda name, size, out: lambda rngs: NnxScan(size, rngs.params()), a_scan, LAYERS, 0),
}
EQUINOX = {
  'dense': Layer(
    lambda name, size, out: lambda key: eqx.nn.Linear(size, out, key=key),
    a_dense('weight', turned=True),
    {'weight': OUT_IN},
  ),
  'convolution': Layer(
    lambda name, size, out: lambda key: eqx.nn.Conv1d(size, 8, 3, padding='SAME', groups=2, key=key),
    a_convolution('weight', (2, 1, 0), 2),
    {'weight': Fact((2, 1), (0,))},
    8,
  ),
  'attention': Layer(
    lambda name, size, out: lambda key: eqx.nn.MultiheadAttention(2, size, key=key),
    an_attention([f'{one}_proj/weight' for one in ('query', 'key', 'value', 'output')], turned=True),
    {f'{one}_proj/weight': OUT_IN for one in ('query', 'key', 'value', 'output')},
    0,
  ),
  'gru': Layer(
    lambda name, size, out: lambda key: eqx.nn.GRUCell(size, WIDE, key=key),
    an_equinox_gru,
    {'weight_ih': OUT_IN, 'weight_hh': OUT_IN},
    WIDE,
  ),
  'norm': Layer(lambda name, size, out: lambda key: eqx.nn.LayerNorm(size), a_norm('weight', 'bias', 1e-5), {}, 0),
}
HAIKU = {
  'dense': Layer(lambda name, size, out: lambda x: jnp.tanh(hk.Linear(out, name=name)(x)), a_dense('w'), {'w': IN_OUT}),
  'convolution': Layer(
    lambda name, size, out: lambda x: jnp.tanh(hk.Conv1D(8, 3, name=name)(x)),
    a_convolution('w', (0, 1, 2), 1),
    {'w': Fact((0, 1), (2,))},
    8,
  ),
  'attention': Layer(
    lambda name, size, out: (
      lambda x: x + hk.MultiHeadAttention(2, size // 2, w_init=hk.initializers.VarianceScaling(1.0), name=name)(x, x, x)
    ),
    an_attention(['query/w', 'key/w', 'value/w', 'linear/w'], turned=False),
    dict.fromkeys(('query/w', 'key/w', 'value/w', 'linear/w'), IN_OUT),
    0,
  ),
  'gru': Layer(
    lambda name, size, out: (
      lambda x: hk.dynamic_unroll(hk.GRU(WIDE, name=name), x, jnp.zeros((x.shape[0], WIDE)), time_major=False)[0]
    ),
    a_haiku_gru,
    {'w_i': IN_OUT, 'w_h': IN_OUT},
    WIDE,
  ),
  'norm': Layer(
    lambda name, size, out: hk.LayerNorm(-1, True, True, name=name), a_norm('scale', 'offset', 1e-5), {}, 0
  ),
}


# --- whole networks: `plan` is (kind, name, size, out) of each layer ----------------------------------------------


def linen(plan):
  class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
      for kind, name, size, out in plan:
        x = LINEN[kind].make(name, size, out)(x)
      return x.mean(1)

  return jl.from_linen(Net())


def from_nnx(plan):
  class Net(nnx.Module):
    def __init__(self, rngs):
      for kind, name, size, out in plan:
        setattr(self, name, NNX[kind].make(name, size, out)(rngs))

    def __call__(self, x):
      for kind, name, _, _ in plan:
        y = getattr(self, name)(x)
        x = jnp.tanh(y) if kind in ('dense', 'convolution') else x + y if kind == 'attention' else y
      return x.mean(1)

  return jl.from_nnx(Net(nnx.Rngs(0)))


def equinox(plan):
  class Net(eqx.Module):
    __annotations__ = {name: Any for _, name, _, _ in plan}

    def __init__(self):
      for place, (kind, name, size, out) in enumerate(plan):
        setattr(self, name, EQUINOX[kind].make(name, size, out)(jax.random.key(place)))

    def __call__(self, x):
      for kind, name, _, _ in plan:
        layer = getattr(self, name)
        if kind == 'gru':
          step = lambda h, row, layer=layer: (layer(row, h),) * 2  # noqa: E731
          x = lax.scan(step, jnp.zeros(WIDE), x)[1]
        elif kind == 'attention':
          x = x + layer(x, x, x)
        elif kind == 'convolution':
          x = jnp.tanh(layer(x.T).T)
        else:
          y = jax.vmap(layer)(x)
          x = jnp.tanh(y) if kind == 'dense' else y
      return x.mean(0)

  return jl.from_equinox(Net())


def haiku(plan):
  def net(x):
    for kind, name, size, out in plan:
      x = HAIKU[kind].make(name, size, out)(x)
    return x.mean(1)

  return jl.from_haiku(net)


FRAMEWORKS = [('Linen', LINEN, linen), ('NNX', NNX, from_nnx), ('Equinox', EQUINOX, equinox), ('Haiku', HAIKU, haiku)]


def network(rng):
  """Draws a network: (its name, params, apply, inputs, reference, facts, Model)."""
  framework, layers, build = FRAMEWORKS[rng.integers(len(FRAMEWORKS))]
  plan, size = [], int(rng.choice([4, 6, 8]))
  inputs = rng.normal(size=(BATCH, TIME, size)).astype(np.float32)
  kinds = list(layers)
  for place in range(rng.integers(2, 5)):
    kind = kinds[rng.integers(len(kinds))]
    out = int(rng.choice([4, 6, 8]))
    own = layers[kind].out
    out = out if own is None else own or size
    plan.append((kind, f'layer{place}', size, out))
    size = out
  plan.append(('dense', 'head', size, 4))
  model = build(plan)
  params, state = jax.jit(model.init)(jax.random.key(0), inputs)
  # Away from zeros and from columns of one length.
  params = jax.tree.map(lambda leaf: leaf + rng.normal(size=leaf.shape).astype(np.float32) / 9, params)
  model = model._replace(init=lambda key, inputs: (params, state))
  facts = {f'{name}/{path}': fact for kind, name, _, _ in plan for path, fact in layers[kind].facts.items()}

  def reference(p, x):
    leaves = trees.by_path(p)
    for kind, name, _, _ in plan:
      x = yield from layers[kind].reference(leaves, name, x)
    return x.mean(1)

  def apply(p, x):
    return model.apply(p, state, x, train=False, key=None)[0]

  title = f'{framework}: {", ".join(kind for kind, _, _, _ in plan)}'
  return title, params, apply, inputs, reference, facts, model
