"""What is particular to NNX: shared modules, buffers, streams, the user's own module."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from forward import KEY, X, run
from jaxlite import trees
from jaxlite.adapters import from_nnx

pytestmark = pytest.mark.unoptimized


class Count(nnx.Variable):
  pass


class Everything(nnx.Module):
  def __init__(self, rngs):
    self.layers = nnx.List([nnx.Linear(6, 6, use_bias=False, rngs=rngs), nnx.BatchNorm(6, rngs=rngs)])
    self.drop = nnx.Dropout(0.5, rngs=rngs)
    self.tied = self.layers[0]
    self.calls = Count(jnp.zeros((), jnp.int32))
    self.shift = jnp.arange(6.0)
    self.rngs = rngs

  def __call__(self, x):
    self.calls[...] += 1
    for layer in self.layers:
      x = layer(x)
    return self.tied(self.drop(x) + self.shift + 0.0 * self.rngs.noise.normal((6,)))


def test_nnx_shared_modules_are_one_parameter_and_buffers_are_state():
  model = from_nnx(Everything(nnx.Rngs(0)))
  params, state = model.init(KEY, X)
  assert trees.paths(params) == ['layers/0/kernel', 'layers/1/bias', 'layers/1/scale']
  assert trees.paths(state) == ['state/calls', 'state/layers/1/mean', 'state/layers/1/var', 'state/shift']
  assert all(type(leaf) is type(jnp.ones(1)) for leaf in jax.tree.leaves((params, state)))
  _, new = run(model, params, state)
  assert new['state']['calls'] == 1
  assert run(model, params, new, train=False, key=None)[1]['state']['calls'] == 1
  grads = jax.grad(lambda p: run(model, p, state)[0].sum())(params)
  assert np.abs(grads['layers']['0']['kernel']).sum() > 0


def test_nnx_leaves_the_users_module_as_it_was():
  module = Everything(nnx.Rngs(0))
  module.eval()
  before = jax.tree.map(np.array, nnx.state(module, nnx.Not(nnx.RngState)))
  model = from_nnx(module)
  params, state = model.init(KEY, X)
  jax.jit(lambda p, s: (run(model, p, s), p), donate_argnums=(0, 1))(params, state)
  assert module.drop.deterministic
  assert module.layers[1].use_running_average
  jax.tree.map(np.testing.assert_array_equal, before, jax.tree.map(np.array, nnx.state(module, nnx.Not(nnx.RngState))))


def test_nnx_rngs_argument_of_the_forward_is_served():
  class Net(nnx.Module):
    def __init__(self, *, rngs):
      self.dense, self.drop = nnx.Linear(6, 32, rngs=rngs), nnx.Dropout(0.5)

    def __call__(self, x, *, deterministic, rngs=None):
      return self.drop(self.dense(x), deterministic=deterministic, rngs=rngs)

  model = from_nnx(Net)
  params, state = model.init(KEY, X)
  assert state == {}
  assert 0.2 < (run(model, params, state)[0] == 0).mean() < 0.8
  assert not np.any(run(model, params, state, train=False, key=None)[0] == 0)
  with pytest.raises(ValueError, match='needs a key'):
    run(model, params, state, key=None)


def test_nnx_stacked_streams_draw_different_numbers():
  class Net(nnx.Module):
    def __init__(self, rngs):
      @nnx.split_rngs(splits=3)
      @nnx.vmap
      def make(rngs):
        return nnx.Dropout(0.5, rngs=rngs)

      self.drops = make(rngs)

    def __call__(self, x):
      return nnx.vmap(lambda drop, x: drop(x), in_axes=(0, None))(self.drops, x)

  model = from_nnx(Net)
  x = np.ones((4, 64), np.float32)
  outputs = np.asarray(run(model, *model.init(KEY, x), x)[0])
  assert not np.array_equal(outputs[0], outputs[1])


def test_nnx_tied_arrays_are_an_error_and_not_silently_untied():
  module = Everything(nnx.Rngs(0))
  module.other = nnx.Linear(6, 6, rngs=nnx.Rngs(1))
  module.other.kernel.set_value(module.layers[0].kernel.get_value())
  with pytest.raises(ValueError, match='are one array'):
    from_nnx(module).init(KEY, X)


def test_nnx_old_style_keys_serve():
  model = from_nnx(Everything(nnx.Rngs(0)))
  params, state = model.init(KEY, X)
  assert run(model, params, state, key=jax.random.PRNGKey(0))[0].shape == X.shape
