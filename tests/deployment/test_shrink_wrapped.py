"""A network in the hooks that it trained in is cut as it is evaluated: the averages and points with the weights."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxlite as jl
from jaxlite.contract import join_const
from shrinking import masked, ones

pytestmark = pytest.mark.unoptimized
X = np.random.default_rng(1).normal(size=(12, 6)).astype(np.float32)
BATCH = {'inputs': X, 'labels': np.arange(12) % 2}
RECIPES = {
  'average': lambda: [jl.average(0.5), optax.adam(0.05)],
  'weights averaged late': lambda: [jl.optim.swa(begin=1, every=1), optax.adam(0.05)],
  'schedule-free': lambda: [optax.contrib.schedule_free_adamw(0.05)],
  'average of few bits': lambda: [jl.average(0.5), jl.fake_quant(bits=8), optax.adam(0.05)],
  'average of low rank': lambda: [jl.average(0.5), jl.optim.lora(rank=2), optax.adam(0.05)],
}


def fn(p, x):
  return jax.nn.relu(x @ p['a'] + p['b']) @ p['c']


def trained(parts, steps=4):
  train = jl.train_step(jl.from_function(fn, ones(a=(6, 16), b=(16,), c=(16, 2))), jl.cross_entropy, jl.chain(*parts))
  state = train.init(jax.random.key(0), BATCH)
  for _ in range(steps):
    state, _ = train.step(state, BATCH)
  return train, state


@pytest.mark.parametrize('name', RECIPES)
def test_what_evaluation_sees_is_cut_with_what_trains(name):
  train, state = trained(RECIPES[name]())
  full = join_const(state.model_state, state.const)
  small = jl.shrink(train.model, state.params, full, X, keep=0.5, key=state.key)
  left = small.cut(state)
  held = [(one, tuple(leaf.shape)) for one, leaf in jl.trees.by_path(left._asdict()).items() if hasattr(leaf, 'shape')]
  assert not [one for one in held if 16 in one[1]]  # weights, moments, averages, points: all are cut

  whole, state_of_whole = masked(small, state.params, full)
  answers = [
    train.model.apply(whole, state_of_whole, X, train=False, key=None)[0],
    train.model.apply(state.params, full, X, train=True, key=state.key, step=state.step)[0],
  ]
  got = small.model.apply(small.params, small.model_state, X, train=False, key=None)[0]
  np.testing.assert_allclose(got, answers[0], rtol=0, atol=1e-5)
  assert not np.allclose(answers[0], answers[1], atol=1e-3)  # live weights answer otherwise

  again = jl.train_step(small.model, jl.cross_entropy, jl.chain(*_unhooked(RECIPES[name]())))
  left, metrics = again.step(left, BATCH)
  assert np.isfinite(metrics['loss'])
  outputs, _ = again.eval(left, BATCH)
  assert not np.allclose(outputs, got, atol=1e-6)  # what evaluation sees goes on to move


def _unhooked(parts):
  """The update parts alone: a model that was shrunk in its hooks has them inside."""
  return [part for part in parts if not isinstance(part, jl.Hook)]


def test_a_schedule_free_network_does_not_keep_its_old_point():
  """No forward reads the params and the point, so nothing but their names says that they are one."""
  train, state = trained(RECIPES['schedule-free']())
  small = jl.shrink(
    train.model, state.params, state.model_state, X, keep=0.5, scores={**_by(state), 'b': jnp.arange(16)}
  )
  assert {frozenset(one.members) for one in small.groups if one.kept < one.units} == {
    frozenset({'a[1]', 'b[0]', 'c[0]', 'jl.point/a[1]', 'jl.point/b[0]', 'jl.point/c[0]'})
  }
  np.testing.assert_array_equal(small.model_state['jl.point']['b'], state.model_state['jl.point']['b'][8:])
  np.testing.assert_array_equal(small.params['b'], state.params['b'][8:])


def _by(state):
  return jax.tree.map(lambda leaf: np.zeros(leaf.shape), state.params)


@pytest.mark.parametrize(
  'part',
  [lambda: jl.quantization.clustered(8), lambda: jl.pruning.straight_through(0.5, end=4)],
  ids=['clusters', 'ste'],
)
def test_hooks_that_pick_weights_are_refused_with_what_helps(part):
  train, state = trained([part(), optax.adam(0.05)])
  full = join_const(state.model_state, state.const)
  with pytest.raises(ValueError, match=r'wrapped in hooks \((clusters|straight)\): shrink the bare one .*export\('):
    jl.shrink(train.model, state.params, full, X, keep=0.5)
  bare = jl.from_function(fn, ones(a=(6, 16), b=(16,), c=(16, 2)))
  values = train.model.export(state.params, {**state.model_state, 'jl.const': state.const})
  np.testing.assert_allclose(fn(values[0], X), train.eval(state, BATCH)[0], atol=1e-6)  # as the line says
  assert jl.shrink(bare, *values, X, keep=0.5).params['a'].shape == (6, 8)
