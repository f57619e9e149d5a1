"""Networks that more than one test file trains; one that a single file needs stands in that file.

Here are a small convolution in plain JAX, and dense layers that are the same in every framework. A framework is
imported when its network is asked for: laws/resumable.py is started anew for every kill and needs none of them.
"""

import jax
import jax.numpy as jnp

import jaxlite as jl
from jaxlite.contract import stream
from jaxlite.graph.init_numpy import on_host


def first_values(model, inputs):
  """(params, state) of a Model. What draws them is computed by NumPy: one by one its programs take seconds."""
  return on_host(model.init)(jax.random.key(0), inputs)


FRAMEWORKS = ('linen', 'nnx', 'equinox', 'haiku', 'keras', 'function')


def convnet(*, keep=1.0, traces=None):
  """A convolution, a running mean (batch statistics), dropout below keep=1 and a dense layer: 4x4 images, 3 classes.

  Whenever its forward is traced, its mode is appended to `traces`.
  """

  def init(key, inputs):
    one, two = jax.random.split(key)
    params = {
      'conv': {'w': jax.random.normal(one, (3, 3, 1, 4)) * 0.3, 'b': jnp.zeros(4)},
      'dense': {'w': jax.random.normal(two, (64, 3)) * 0.2, 'b': jnp.zeros(3)},
    }
    return params, {'stats': {'mean': jnp.zeros(4)}}

  def apply(params, state, inputs, *, train, key, step=None):
    if traces is not None:
      traces.append(train)
    x = jax.lax.conv_general_dilated(
      inputs, params['conv']['w'], (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
    )
    x = x + params['conv']['b']
    if train:
      state = {**state, 'stats': {'mean': 0.9 * state['stats']['mean'] + 0.1 * x.mean((0, 1, 2))}}
    x = jax.nn.relu(x - state['stats']['mean']).reshape(x.shape[0], -1)
    if train and keep < 1:
      x = x * jax.random.bernoulli(stream(key, 'dropout', step), keep, x.shape) / keep
    return x @ params['dense']['w'] + params['dense']['b'], state

  return jl.Model(init, apply)


# --- dense, relu, dense, as a person writes it in each framework; sizes are of inputs, hidden and outputs ---------


def linen_dense(sizes):
  import flax.linen as nn

  class Dense(nn.Module):
    @nn.compact
    def __call__(self, x):
      return nn.Dense(sizes[2], name='b')(nn.relu(nn.Dense(sizes[1], name='a')(x)))

  return Dense()


def nnx_dense(sizes):
  from flax import nnx

  class Dense(nnx.Module):
    def __init__(self, rngs):
      self.layers = nnx.List([nnx.Linear(*sizes[:2], rngs=rngs), nnx.Linear(*sizes[1:], rngs=rngs)])

    def __call__(self, x):
      return self.layers[1](nnx.relu(self.layers[0](x)))

  return Dense(nnx.Rngs(0))


def equinox_dense(sizes):
  import equinox as eqx

  class Dense(eqx.Module):
    a: eqx.nn.Linear
    b: eqx.nn.Linear

    def __init__(self, key):
      self.a, self.b = eqx.nn.Linear(*sizes[:2], key=key), eqx.nn.Linear(*sizes[1:], key=key)

    def __call__(self, x):
      return self.b(jax.nn.relu(self.a(x)))

  return Dense(jax.random.key(0))


def haiku_dense(sizes):
  import haiku as hk

  return lambda x: hk.Linear(sizes[2], name='b')(jax.nn.relu(hk.Linear(sizes[1], name='a')(x)))


def keras_dense(sizes):
  import keras

  layers = [keras.layers.Dense(sizes[1], activation='relu', name='a'), keras.layers.Dense(sizes[2], name='b')]
  return keras.Sequential([keras.Input(sizes[:1]), *layers], name='net')


def function_dense(params, x):
  (w1, b1), (w2, b2) = params
  return jax.nn.relu(x @ w1 + b1) @ w2 + b2


def dense(framework, weights):
  """Dense, relu, dense with the weights (w1, b1, w2, b2).

  Returns (model, names of the four, whether the matrices lie transposed).
  """
  w1, b1, w2, b2 = weights
  sizes = (*w1.shape, w2.shape[1])
  if framework == 'linen':
    values = {'params': {'a': {'kernel': w1, 'bias': b1}, 'b': {'kernel': w2, 'bias': b2}}}
    return jl.from_linen(linen_dense(sizes), values), ('a/kernel', 'a/bias', 'b/kernel', 'b/bias'), False
  if framework == 'nnx':
    module = nnx_dense(sizes)
    for layer, weight, bias in zip(module.layers, (w1, w2), (b1, b2), strict=True):
      layer.kernel[...], layer.bias[...] = weight, bias
    return jl.from_nnx(module), tuple(f'layers/{i}/{n}' for i in (0, 1) for n in ('kernel', 'bias')), False
  if framework == 'equinox':
    import equinox as eqx

    where = lambda m: (m.a.weight, m.a.bias, m.b.weight, m.b.bias)  # noqa: E731
    module = eqx.tree_at(where, equinox_dense(sizes), tuple(map(jnp.asarray, (w1.T, b1, w2.T, b2))))
    return jl.from_equinox(module), ('a/weight', 'a/bias', 'b/weight', 'b/bias'), True
  if framework == 'haiku':
    values = {'a': {'w': w1, 'b': b1}, 'b': {'w': w2, 'b': b2}}
    return jl.from_haiku(haiku_dense(sizes), values), ('a/w', 'a/b', 'b/w', 'b/b'), False
  if framework == 'keras':
    module = keras_dense(sizes)
    module.set_weights(weights)
    return jl.from_keras(module), ('net/a/kernel', 'net/a/bias', 'net/b/kernel', 'net/b/bias'), False
  return jl.from_function(function_dense, [(w1, b1), (w2, b2)]), ('0/0', '0/1', '1/0', '1/1'), False


def equinox_net(between=lambda x: x):
  """Channels first: a convolution in steps, one in groups added to what it reads, and a dense layer behind both.

  Args:
    between: an activation of the sum.
  """
  import equinox as eqx

  class Net(eqx.Module):
    convs: list
    last: eqx.nn.Linear

    def __init__(self, key):
      self.convs = [eqx.nn.Conv2d(3, 8, 3, 2, 1, key=key), eqx.nn.Conv2d(8, 8, 3, 1, 1, groups=2, key=key)]
      self.last = eqx.nn.Linear(128, 5, key=key)

    def __call__(self, x):
      x = jax.nn.relu(self.convs[0](x))
      return self.last(between(x + self.convs[1](x)).reshape(-1))

  return Net(jax.random.key(0))
