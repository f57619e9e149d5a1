"""What is particular to Haiku: names, start values and what is not taken."""

import haiku as hk
import jax.numpy as jnp
import numpy as np
import pytest

from forward import KEY, X, run
from jaxlite import trees
from jaxlite.adapters import from_haiku


def test_haiku_names_are_paths_and_init_is_its_own():
  transformed = hk.transform(lambda x: hk.nets.MLP([4, 2])(x))
  model = from_haiku(transformed)
  params, state = model.init(KEY, X)
  assert trees.paths(params)[1] == 'mlp/~/linear_0/w'
  assert state == {}
  theirs = transformed.init(KEY, X)
  np.testing.assert_allclose(run(model, params, state)[0], transformed.apply(theirs, None, X), rtol=1e-5)
  outside = from_haiku(lambda x: x @ hk.get_parameter('w', (6, 2), init=jnp.ones))
  assert trees.paths(outside.init(KEY, X)[0]) == ['~/w']
  assert run(outside, *outside.init(KEY, X))[0].shape == (4, 2)


def test_haiku_start_values_must_fit_and_wrong_things_are_named():
  with pytest.raises(ValueError, match=r'has shape \(6, 2\), its start value \(6, 3\)'):
    from_haiku(lambda x: hk.Linear(2)(x), {'linear': {'w': np.ones((6, 3))}}).init(KEY, X)
  with pytest.raises(TypeError, match='without_apply_rng'):
    from_haiku(hk.without_apply_rng(hk.transform(lambda x: x)))
  with pytest.raises(TypeError, match='from_haiku takes a function'):
    from_haiku(3)
