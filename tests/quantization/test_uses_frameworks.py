"""A layer that training uses once more keeps the range of each use, in every framework."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlite as jl

pytestmark = pytest.mark.unoptimized
KEY, BIG = jax.random.key(3), 20.0
X = np.random.default_rng(0).normal(size=(16, 6)).astype(np.float32)


def aside(x):
  """What is computed and does not count."""
  return 0 * x.sum()


def tied(kind):
  """One dense layer used once by evaluation; training uses it before on what is 20 times as large."""
  if kind == 'linen':
    import flax.linen as nn

    class Tied(nn.Module):
      @nn.compact
      def __call__(self, x, train=False):
        dense = nn.Dense(6)
        extra = aside(dense(BIG * x)) if train else 0
        return extra + dense(nn.Dropout(0.2, deterministic=not train)(x))

    return jl.from_linen(Tied()), 'Dense_0/kernel'
  if kind == 'nnx':
    from flax import nnx

    class Tied(nnx.Module):
      def __init__(self, rngs):
        self.dense, self.drop = nnx.Linear(6, 6, rngs=rngs), nnx.Dropout(0.2, rngs=rngs)

      def __call__(self, x):
        extra = 0 if self.drop.deterministic else aside(self.dense(BIG * x))
        return extra + self.dense(self.drop(x))

    return jl.from_nnx(Tied(nnx.Rngs(0))), 'dense/kernel'
  if kind == 'equinox':
    import equinox as eqx

    class Tied(eqx.Module):
      dense: eqx.nn.Linear
      drop: eqx.nn.Dropout

      def __init__(self, key):
        self.dense, self.drop = eqx.nn.Linear(6, 6, key=key), eqx.nn.Dropout(0.2)

      def __call__(self, x, key=None):
        extra = 0 if self.drop.inference else aside(self.dense(BIG * x))
        return extra + self.dense(self.drop(x, key=key))

    return jl.from_equinox(Tied(KEY)), 'dense/weight'
  if kind == 'haiku':
    import haiku as hk

    def forward(x, is_training):
      dense = hk.Linear(6, name='dense')
      extra = aside(dense(BIG * x)) if is_training else 0
      return extra + dense(hk.dropout(hk.next_rng_key(), 0.2, x) if is_training else x)

    return jl.from_haiku(hk.transform(forward)), 'dense/w'
  import keras

  class Tied(keras.Model):
    def __init__(self):
      super().__init__()
      self.dense, self.drop = keras.layers.Dense(6), keras.layers.Dropout(0.2)

    def call(self, x, training=False):
      extra = 0 * keras.ops.sum(self.dense(BIG * x)) if training else 0
      return extra + self.dense(self.drop(x, training=training))

  return jl.from_keras(Tied()), 'dense/kernel'


@pytest.mark.sampled(2)
@pytest.mark.parametrize('kind', ['linen', 'nnx', 'equinox', 'haiku', 'keras'])
def test_in_every_framework(kind):
  network, path = tied(kind)
  x = X
  model = jl.fake_quant(decay=0.0).model(network)
  params, state = model.init(KEY, x)
  step = jax.jit(lambda p, s: model.apply(p, s, x, train=True, key=KEY, step=jnp.int32(0))[1])
  state = step(params, step(params, state))
  (first, second) = sorted(state['jl.fake_quant'])
  assert first.endswith(path.rpartition('/')[2])
  assert second == f'{first}#2'
  spread = np.ptp(np.asarray(state['jl.fake_quant'][first]))
  assert 0.5 * np.ptp(x) <= spread <= 1.3 * np.ptp(x)
  assert np.ptp(np.asarray(state['jl.fake_quant'][second])) == pytest.approx(BIG * np.ptp(x), rel=1e-4)
