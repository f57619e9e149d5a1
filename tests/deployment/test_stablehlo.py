"""A forward written by a run is used without the code that made it, or says in one line why not."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxlite as jl
from jaxlite.deployment import stablehlo

pytestmark = pytest.mark.unoptimized

X = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)


def written(folder, apply=lambda p, x: x @ p['w']):
  model = jl.from_function(apply, {'w': jnp.arange(6.0).reshape(3, 2)})
  values = jl.Network(model, *model.init(jax.random.key(0), X))
  assert stablehlo.save_program(folder, model, jl.chain(optax.sgd(0.1)), values, X) == ''
  return values


def test_the_batch_size_is_open_and_the_numbers_are_the_models(tmp_path):
  values = written(tmp_path)
  loaded = stablehlo.load_program(tmp_path, values.params, values.model_state)
  for size in (0, 1, 5):
    np.testing.assert_array_equal(loaded.predict(X[:size]), values.predict(X[:size]))
  with pytest.raises(ValueError, match=r'takes float32\[B, 3\]; got an array of shape \[5, 2\]'):
    loaded.predict(X[:, :2])


@pytest.mark.parametrize('name', ['program.bin', 'program.json'])
@pytest.mark.parametrize('keep', [0, 40])
def test_a_damaged_program_is_told_in_one_line(name, keep, tmp_path):
  values = written(tmp_path)
  path = tmp_path / name
  path.write_bytes(path.read_bytes()[:keep])
  with pytest.raises(ValueError, match=r'damaged') as error:
    stablehlo.load_program(tmp_path, values.params, values.model_state)
  assert '\n' not in str(error.value)


def test_a_gradient_through_it_is_refused_in_a_line_and_one_past_it_is_not(tmp_path):
  values = written(tmp_path)
  loaded = stablehlo.load_program(tmp_path, values.params, values.model_state)

  def output(params, x):
    return loaded.model.apply(params, loaded.model_state, x, train=False, key=None)[0]

  for which in (0, 1):
    with pytest.raises(ValueError, match=r'without its model has no gradient: give its model') as error:
      jax.grad(lambda *given: output(*given).sum(), which)(values.params, X)
    assert '\n' not in str(error.value)
  held = jax.jit(jax.grad(lambda x: (jax.lax.stop_gradient(output(values.params, x)) * x[:, :2]).sum()))(X)
  np.testing.assert_array_equal(held[:, :2], values.predict(X))
