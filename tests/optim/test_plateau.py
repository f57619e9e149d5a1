"""The scale falls when validation stops improving: against a table, PyTorch's own rule, and a resume."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxlite.optim._plateau import PlateauState, observe_score, plateau
from jaxlite.trees import find

# score, then what must hold after it: scale, best, wait, cooldown. factor 0.5, patience 1, cooldown 2, floor 0.2
TABLE = [
  (0.50, 1.0, 0.50, 0, 0),
  (0.60, 1.0, 0.60, 0, 0),
  (0.60, 1.0, 0.60, 1, 0),  # not better than the best: the first that patience bears
  (0.70, 1.0, 0.70, 0, 0),
  (0.10, 1.0, 0.70, 1, 0),
  (0.20, 0.5, 0.70, 0, 2),  # one more than it bears: a fall
  (0.30, 0.5, 0.70, 0, 1),
  (0.30, 0.5, 0.70, 0, 0),
  (0.30, 0.5, 0.70, 1, 0),  # the cooldown is over
  (float('nan'), 0.25, 0.70, 0, 2),
  (0.80, 0.25, 0.80, 0, 1),  # improving in a cooldown is noticed
  (0.80, 0.25, 0.80, 0, 0),
  (0.80, 0.25, 0.80, 1, 0),
  (0.80, 0.2, 0.80, 0, 2),  # the floor
]


def test_the_table():
  state = plateau(0.5, 1, cooldown=2, floor=0.2).init({'w': jnp.ones(2)})
  for count, (score, *wanted) in enumerate(TABLE, 1):
    state = observe_score(state, score)
    got = [float(value) for value in (state.scale, state.best, state.wait, state.cooldown)]
    np.testing.assert_allclose(got, wanted, rtol=1e-6, err_msg=f'after score {count}')
    assert int(state.observed) == count


def torch_rule(scores, factor, patience, cooldown, min_delta, floor):
  """The documented algorithm of ReduceLROnPlateau, mode 'max', threshold_mode 'abs', for a rate of 1."""
  rate, best, bad, cooling, rates = 1.0, -np.inf, 0, 0, []
  for score in scores:
    if score > best + min_delta:
      best, bad = score, 0
    else:
      bad += 1
    if cooling > 0:
      cooling, bad = cooling - 1, 0
    if bad > patience:
      rate, cooling, bad = max(rate * factor, floor), cooldown, 0
    rates.append(rate)
  return rates


@pytest.mark.parametrize('seed', range(12))
def test_any_run_of_scores_is_as_in_pytorch(seed):
  rng = np.random.default_rng(seed)
  rule = {'factor': 0.5, 'patience': int(rng.integers(0, 4)), 'cooldown': int(rng.integers(0, 4))}
  rule |= {'min_delta': float(rng.choice([0, 0.25])), 'floor': float(rng.choice([0, 0.125]))}
  scores = rng.integers(-4, 8, 60) / 8  # exact in float32: comparisons are those of Python
  state, rates = plateau(**rule).init({}), []
  for score in scores:
    state = observe_score(state, score)
    rates.append(float(state.scale))
  assert rates == torch_rule(scores, **rule)


def test_updates_are_scaled_in_their_own_dtype_wherever_the_part_stands():
  tx = optax.chain(optax.sgd(1.0), optax.masked(plateau(0.25, 0), True))
  params = {'w': jnp.ones(3), 'b': jnp.ones(2, jnp.bfloat16)}
  state = observe_score(tx.init(params), 0.0)
  updates, _ = tx.update(params, state, params)
  assert updates['w'].tolist() == [-1.0] * 3
  state = observe_score(state, -1.0)
  updates, state = jax.jit(tx.update)(params, state, params)
  assert updates['w'].tolist() == [-0.25] * 3
  assert updates['b'].dtype == jnp.bfloat16
  assert float(find(state, PlateauState)[0].scale) == 0.25


def test_observing_keeps_structure_dtypes_and_everything_else():
  tx = optax.chain(optax.adam(1e-3), plateau())
  state = tx.init({'w': jnp.ones(3)})
  new = observe_score(state, jnp.float32(0.5))
  assert jax.tree.structure(new) == jax.tree.structure(state)
  for old, now in zip(jax.tree.leaves(state), jax.tree.leaves(new), strict=True):
    assert old.aval == now.aval  # weak types too: a step compiled for one takes the other
  assert new[0] == state[0]
  plain = optax.adam(1e-3).init({'w': jnp.ones(3)})
  assert all(a is b for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(observe_score(plain, 0.5)), strict=True))


@pytest.mark.parametrize(
  'arguments, message',
  [
    ({'factor': 1.0}, r'plateau: factor is what the scale is multiplied by at a fall, in \(0, 1\); got 1.0'),
    ({'factor': 0.0}, 'plateau: factor'),
    ({'patience': -1}, 'plateau: patience is a whole number, at least 0; got -1'),
    ({'patience': 1.5}, 'plateau: patience'),
    ({'cooldown': True}, 'plateau: cooldown'),
    ({'min_delta': -1.0}, 'plateau: min_delta is at least 0'),
    ({'floor': 1.0}, r'plateau: floor is the least scale, in \[0, 1\); got 1.0'),
  ],
)
def test_bad_arguments_are_named(arguments, message):
  with pytest.raises(ValueError, match=message):
    plateau(**arguments)


@pytest.mark.parametrize('score, error', [([0.1, 0.2], ValueError), (None, TypeError), ('0.3', TypeError)])
def test_a_score_is_one_number(score, error):
  state = optax.chain(optax.sgd(0.1), plateau(0.5, 1)).init({'w': jnp.ones(3)})
  with pytest.raises(error, match='plateau hears one score, a number; got') as caught:
    observe_score(state, score)
  assert '\n' not in str(caught.value)


def test_states_of_an_ensemble_hear_a_score_each_or_one_for_all():
  many = jax.vmap(lambda _: plateau(0.5, patience=0).init({}))(jnp.arange(2))
  many = observe_score(observe_score(many, 0.5), jnp.array([0.4, 0.6]))
  assert many.scale.tolist() == [0.5, 1.0]


def test_a_plateau_in_nnx_optimizer_hears_and_keeps_its_boxes():
  net = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
  optimizer = nnx.Optimizer(net, optax.chain(optax.sgd(1.0), plateau(0.5, patience=0)), wrt=nnx.Param)
  before = jax.tree.structure(optimizer.opt_state)
  for score in (0.5, 0.4):
    optimizer.opt_state = observe_score(optimizer.opt_state, score)
  assert jax.tree.structure(optimizer.opt_state) == before
  start = jnp.array(net.bias[...])
  optimizer.update(net, jax.tree.map(jnp.ones_like, nnx.state(net, nnx.Param)))
  np.testing.assert_array_equal(net.bias[...], start - 0.5)
