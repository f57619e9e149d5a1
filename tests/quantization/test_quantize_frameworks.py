"""The same network with the same weights gives the same integers, whatever framework wrote it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxlite.adapters import adapt
from jaxlite.quantization._qat import fake_quant
from jaxlite.quantization._quantize import coverage, quantize

pytestmark = pytest.mark.unoptimized

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
KERNEL = jnp.asarray(RNG.normal(size=(3, 3, 2, 4)), jnp.float32)
BIAS = jnp.asarray(RNG.normal(size=(4,)), jnp.float32)
DEPTHWISE = jnp.asarray(RNG.normal(size=(3, 3, 1, 4)), jnp.float32)
DENSE = jnp.asarray(RNG.normal(size=(100, 3)), jnp.float32)
X = jnp.asarray(RNG.normal(size=(2, 5, 5, 2)), jnp.float32)
NUMBERS = ('NHWC', 'HWIO', 'NHWC')


def integers(x, w, axes):
  """What the stored integers stand for, and their scales."""
  w_scale = jnp.max(jnp.abs(w), axis=axes, keepdims=True) * np.float32(1 / 127)
  low, high = jnp.minimum(x.min(), 0), jnp.maximum(x.max(), 0)
  x_scale = (high * 0.5 - low * 0.5) * np.float32(2 / 255)
  zero = jnp.clip(-128 + jnp.round(-low * (1 / x_scale)), -128, 127)
  stored = jnp.clip(jnp.round(x * (1 / x_scale)) + zero, -128, 127)
  return stored - zero, jnp.round(w * (1 / w_scale)), (x_scale * w_scale).reshape(-1)


@jax.jit
def by_hand():
  x, w, scale = integers(X, KERNEL, (0, 1, 2))
  hidden = lax.conv_general_dilated(x, w, (1, 1), 'SAME', dimension_numbers=NUMBERS) * scale + BIAS
  x, w, scale = integers(jax.nn.relu(hidden), DEPTHWISE, (0, 1, 2))
  hidden = lax.conv_general_dilated(x, w, (1, 1), 'SAME', dimension_numbers=NUMBERS, feature_group_count=4) * scale
  x, w, scale = integers(jax.nn.relu(hidden).reshape(2, -1), DENSE, 0)
  return (x @ w) * scale


def linen():
  from flax import linen as nn

  class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
      x = nn.relu(nn.Conv(4, (3, 3))(x))
      x = nn.relu(nn.Conv(4, (3, 3), feature_group_count=4, use_bias=False)(x))
      return nn.Dense(3, use_bias=False)(x.reshape(len(x), -1))

  params = {
    'Conv_0': {'kernel': KERNEL, 'bias': BIAS},
    'Conv_1': {'kernel': DEPTHWISE},
    'Dense_0': {'kernel': DENSE},
  }
  net = Net()
  names = ['Conv_0/kernel', 'Conv_1/kernel', 'Dense_0/kernel']
  return lambda p, x: net.apply({'params': p}, x), params, names, net


def nnx():
  from flax import nnx

  class Net(nnx.Module):
    def __init__(self):
      rngs = nnx.Rngs(0)
      self.first = nnx.Conv(2, 4, (3, 3), rngs=rngs)
      self.second = nnx.Conv(4, 4, (3, 3), feature_group_count=4, use_bias=False, rngs=rngs)
      self.last = nnx.Linear(100, 3, use_bias=False, rngs=rngs)

    def __call__(self, x):
      x = jax.nn.relu(self.second(jax.nn.relu(self.first(x))))
      return self.last(x.reshape(len(x), -1))

  net = Net()
  net.first.kernel[...], net.first.bias[...] = KERNEL, BIAS
  net.second.kernel[...], net.last.kernel[...] = DEPTHWISE, DENSE
  graph, params, rest = nnx.split(net, nnx.Param, ...)
  run = lambda p, x: nnx.merge(graph, p, rest)(x)  # noqa: E731
  return run, params, ['first/kernel', 'second/kernel', 'last/kernel'], net


def equinox():
  import equinox as eqx

  class Net(eqx.Module):
    first: eqx.nn.Conv2d
    second: eqx.nn.Conv2d
    last: eqx.nn.Linear

    def __init__(self):
      key = jax.random.key(0)
      self.first = eqx.nn.Conv2d(2, 4, 3, padding=1, key=key)
      self.second = eqx.nn.Conv2d(4, 4, 3, padding=1, groups=4, use_bias=False, key=key)
      self.last = eqx.nn.Linear(100, 3, use_bias=False, key=key)

    def __call__(self, x):
      x = jax.nn.relu(self.second(jax.nn.relu(self.first(x.transpose(2, 0, 1)))))
      return self.last(x.transpose(1, 2, 0).reshape(-1))

  where = lambda net: (net.first.weight, net.first.bias, net.second.weight, net.last.weight)  # noqa: E731
  values = (KERNEL.transpose(3, 2, 0, 1), BIAS[:, None, None], DEPTHWISE.transpose(3, 2, 0, 1), DENSE.T)
  net = eqx.tree_at(where, Net(), values)
  return lambda net, x: jax.vmap(net)(x), net, ['first/weight', 'second/weight', 'last/weight'], net


def haiku():
  import haiku as hk

  def forward(x):
    x = jax.nn.relu(hk.Conv2D(4, 3)(x))
    x = jax.nn.relu(hk.DepthwiseConv2D(1, 3, with_bias=False)(x))
    return hk.Linear(3, with_bias=False)(x.reshape(len(x), -1))

  net = hk.transform(forward)
  params = {'conv2_d': {'w': KERNEL, 'b': BIAS}, 'depthwise_conv2_d': {'w': DEPTHWISE}, 'linear': {'w': DENSE}}
  run = lambda p, x: net.apply(p, None, x)  # noqa: E731
  return run, params, ['conv2_d/w', 'depthwise_conv2_d/w', 'linear/w'], net


def plain():
  def run(p, x):
    x = lax.conv_general_dilated(x, p['a'], (1, 1), 'SAME', dimension_numbers=NUMBERS) + BIAS
    x = jax.nn.relu(x)
    x = lax.conv_general_dilated(x, p['b'], (1, 1), 'SAME', dimension_numbers=NUMBERS, feature_group_count=4)
    return jax.nn.relu(x).reshape(len(x), -1) @ p['c']

  params = {'a': KERNEL, 'b': DEPTHWISE, 'c': DENSE}
  return run, params, ['a', 'b', 'c'], (run, params)


@pytest.mark.sampled(2)
@pytest.mark.parametrize('framework', [linen, nnx, equinox, haiku, plain])
def test_the_integers_are_the_same_in_every_framework(framework):
  run, params, names, _ = framework()
  plain_run = jax.jit(run)
  before = np.asarray(plain_run(params, X))
  got = jax.jit(quantize(run))(params, X)
  np.testing.assert_allclose(got, by_hand(), atol=1e-4)
  assert [row.name for row in coverage(run)(params, X) if row.quantized] == names
  np.testing.assert_array_equal(plain_run(params, X), before)
  assert np.abs(before - got).max() > 1e-3


@pytest.mark.sampled(2)
@pytest.mark.parametrize('framework', [linen, nnx, equinox, haiku, plain])
def test_a_hook_names_its_ranges_as_the_framework_names_its_weights(framework):
  _, _, names, network = framework()
  _, state = jax.eval_shape(fake_quant().model(adapt(network)).init, KEY, X)
  assert sorted(state['jl.fake_quant']) == sorted(names)
