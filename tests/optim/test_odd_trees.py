"""Penalties and plateaus in trees of other people: counts, keys, gradients that are None or have no bytes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxlite.contract import Model
from jaxlite.optim import l1_proximal, l2, normalize, plateau, project, spec_augment
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


def test_a_weight_of_eight_bits_decays_as_a_wide_one_does():
  found = []
  for dtype in ('float32', 'float8_e4m3fn'):
    params = {'w': weights()['w'].astype(dtype)}
    found.append(l2(0.5).update(jax.tree.map(jnp.zeros_like, params), l2(0.5).init(params), params)[0]['w'])
  assert found[1].dtype == 'float8_e4m3fn'
  np.testing.assert_array_equal(found[1].astype('float32'), found[0])


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


def same(key, inputs):
  return {}, {}


ITSELF = Model(same, lambda params, state, inputs, **_: (inputs, state))


def seen(hook, inputs):
  model = hook.model(ITSELF)
  params, state = model.init(jax.random.key(0), inputs)
  return model.apply(params, state, inputs, train=False, key=None)[0]


@pytest.mark.parametrize(
  'shape, mean', [((5,), [0.5]), ((5, 3), [0.5, 1.0, 2.0]), ((2, 4, 4, 3), [0.5, 1.0, 2.0]), ((5, 3), 0.5)]
)
def test_statistics_meet_each_example_where_ranks_are_not_promoted(shape, mean):
  inputs = jnp.arange(float(np.prod(shape))).reshape(shape)
  with jax.numpy_rank_promotion('raise'), jax.numpy_dtype_promotion('strict'):
    found = seen(normalize(mean, np.full(np.shape(mean), 2.0)), inputs)
    reduced = seen(project(np.ones((inputs[0].size, 2)), np.ones(inputs[0].size)), inputs)
  np.testing.assert_allclose(found, (np.asarray(inputs) - np.asarray(mean)) / 2.0)
  np.testing.assert_allclose(reduced[:, 0], (np.asarray(inputs).reshape(len(inputs), -1) - 1).sum(1), rtol=1e-6)


@pytest.mark.parametrize(
  'shape, mean', [((5,), np.ones(5)), ((5, 1), np.ones(3)), ((4, 4, 3), np.ones((4, 4, 3))), ((5, 3), np.ones(2))]
)
def test_a_statistic_never_meets_the_batch(shape, mean):
  with pytest.raises(ValueError, match='are broadcast against one example'):
    seen(normalize(mean, np.ones_like(mean)), jnp.ones(shape))
