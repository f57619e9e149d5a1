"""Penalties and plateaus in trees of other people: counts, keys, gradients that are None or have no bytes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxlite.optim import l1_proximal, l2, plateau, spec_augment
from jaxlite.pruning import prune

pytestmark = pytest.mark.unoptimized

PARTS = {
  'l2': lambda: l2(0.5),
  'l2 by a schedule': lambda: l2(optax.constant_schedule(0.5)),
  'l1': lambda: l1_proximal(0.5, 0.1),
  'plateau': plateau,
  'prune': lambda: prune(0.5),
}


def weights():
  return {'w': jnp.arange(1.0, 5.0).reshape(2, 2)}


@pytest.mark.parametrize('name', PARTS)
def test_what_has_no_gradient_is_handed_through_and_the_rest_is_as_alone(name):
  part, alone = PARTS[name](), PARTS[name]()
  wanted, _ = alone.update(weights(), alone.init(weights()), weights())
  odd = {**weights(), 'count': jnp.arange(3), 'key': jax.random.key(0), 'free': None}
  slopes = jax.grad(lambda tree: jnp.sum(tree['w'] ** 2) / 2, allow_int=True)({'w': odd['w'], 'count': odd['count']})
  updates = {**slopes, 'key': None, 'free': None}
  found, _ = part.update(updates, part.init(odd), odd)
  np.testing.assert_array_equal(found['w'], wanted['w'])
  assert found['count'].dtype == jax.dtypes.float0
  assert found['key'] is None


def test_a_scheduled_rate_is_that_of_optax_update_by_update_and_compiles_once():
  schedule = optax.linear_schedule(0.5, 0.1, 3)
  params = {**weights(), 'b': jnp.ones(2)}
  ours, theirs = l2(schedule), optax.add_decayed_weights(schedule, mask={'w': True, 'b': False})
  states = [ours.init(params), theirs.init(params)]
  steps = [jax.jit(ours.update), jax.jit(theirs.update)]
  for _ in range(5):
    for place, step in enumerate(steps):
      updates, states[place] = step(jax.tree.map(jnp.zeros_like, params), states[place], params)
      if place == 0:
        found = updates
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-6), found, updates)
  assert int(states[0].count) == 5
  assert steps[0]._cache_size() == 1
  assert '1 array: w' in states[0].account(params).touched
  assert states[0].account(params).when == '5 updates'


def test_stretches_are_blanked_where_ranks_are_not_promoted():
  batch = {'inputs': jnp.arange(2 * 30 * 16.0).reshape(2, 30, 16)}
  plain = spec_augment(longest=5)(jax.random.key(1), batch)
  with jax.numpy_rank_promotion('raise'):
    strict = spec_augment(longest=5)(jax.random.key(1), batch)
  np.testing.assert_array_equal(plain['inputs'], strict['inputs'])
