"""What is particular to functions: the names of their arguments, the pytrees they expect, their state."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from forward import KEY, X, run
from jaxlite import trees
from jaxlite.adapters import from_function

pytestmark = pytest.mark.unoptimized


@pytest.mark.parametrize(
  'apply, in_training',
  [
    (lambda p, x, train: train, True),
    (lambda p, x, *, training: training, True),
    (lambda p, x, is_training=False: is_training, True),
    (lambda p, x, deterministic: deterministic, False),
    (lambda p, x, use_running_average: use_running_average, False),
    (lambda p, x, *, inference=True: inference, False),
    (lambda p, x, train, deterministic: train and not deterministic, True),
  ],
)
def test_a_forward_is_told_its_mode_by_the_names_that_it_uses(apply, in_training):
  model = from_function(apply, {'w': 1.0})
  params, state = model.init(KEY, X)
  for train in (True, False):
    assert run(model, params, state, train=train)[0] is (in_training is train)


@pytest.mark.parametrize(
  'params, apply, names',
  [
    (np.ones((6, 2)), lambda p, x: x @ p, ['value']),
    ([np.ones((6, 2)), np.zeros(2)], lambda p, x: x @ p[0] + p[1], ['0', '1']),
    ({'layers': ({'w': np.ones((6, 2))},)}, lambda p, x: x @ p['layers'][0]['w'], ['layers/0/w']),
    ({0: np.ones((6, 2)), 1: None}, lambda p, x: x @ p[0], ['0']),
    (lambda key: [jax.random.normal(key, (6, 2))], lambda p, x: x @ p[0], ['0']),
    (lambda key, x: {'w': jnp.ones((x.shape[-1], 2))}, lambda p, x: x @ p['w'], ['w']),
  ],
  ids=['array', 'list', 'dict of tuple', 'integer keys', 'constructor', 'constructor that reads inputs'],
)
def test_functions_get_the_pytree_that_they_expect(params, apply, names):
  model = from_function(apply, params)
  found, state = model.init(KEY, X)
  assert isinstance(found, dict)
  assert trees.paths(found) == names
  assert state == {}
  assert run(model, found, state)[0].shape == (4, 2)
  one, rest = trees.split(found, [names[0]])
  assert run(model, trees.merge(rest, one), state)[0].shape == (4, 2)


def test_functions_take_state_and_mistakes_are_named():
  def apply(params, x, *, state):
    return x * params['w'], state + 1

  model = from_function(apply, lambda key: ({'w': jnp.ones(6)}, jnp.zeros(())))
  params, state = model.init(KEY, X)
  assert run(model, params, state)[1] == {'state': 1}
  growing = from_function(lambda p, x, state: (x, jnp.append(state, 1.0)), {'w': 1.0}, jnp.zeros(2))
  with pytest.raises(ValueError, match=r"'state' went from \(2,\) to \(3,\)"):
    run(growing, *growing.init(KEY, X))
  with pytest.raises(TypeError, match='argument named state'):
    from_function(lambda p, x: x, {'w': 1.0}, jnp.zeros(2))
  forgetful = from_function(lambda p, x, state: x, {'w': 1.0}, jnp.zeros(2))
  with pytest.raises(TypeError, match='takes state returns'):
    run(forgetful, *forgetful.init(KEY, X))
  with pytest.raises(ValueError, match=r"'jl\.mine': rename it"):
    from_function(lambda p, x: x, {'jl.mine': 1.0}).init(KEY, X)
  with pytest.raises(TypeError, match='from_function takes a function'):
    from_function({'w': 1.0}, {'w': 1.0})
  with pytest.raises(TypeError, match="'act' is str"):
    from_function(lambda p, x: x, {'act': 'relu'}).init(KEY, X)
  with pytest.raises(ValueError, match="'a' names both"):
    from_function(lambda p, x: x, {'a': np.ones(1), 'a/b': np.ones(1)}).init(KEY, X)
  tied = np.ones(3)
  with pytest.raises(ValueError, match='are one array'):
    from_function(lambda p, x: x, [tied, tied]).init(KEY, X)


def test_state_keeps_its_dtype():
  model = from_function(lambda p, x, state: (x, state * 1.5), {'w': 1.0}, jnp.ones((), jnp.bfloat16))
  _, new = run(model, *model.init(KEY, X))
  assert new['state'].dtype == jnp.bfloat16
  assert not new['state'].weak_type
