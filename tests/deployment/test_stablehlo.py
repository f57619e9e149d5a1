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
