"""Gradual unfreezing: nothing jumps at the boundary of two phases, and the second is a run as any other."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxlite import trees
from jaxlite.contract import Model, chain
from jaxlite.optim._average import average
from jaxlite.optim._freeze import freeze
from jaxlite.optim._swa import swa
from jaxlite.optim._unfreeze import next_phase, unfreezing
from jaxlite.pruning._allocate import uniform
from jaxlite.pruning._gradual import prune
from jaxlite.step.train_step import train_step
from jaxlite.tasks.losses import cross_entropy

pytestmark = pytest.mark.unoptimized

RNG = np.random.default_rng(0)
BATCHES = [{'inputs': RNG.normal(size=(8, 4)).astype(np.float32), 'labels': RNG.integers(0, 3, 8)} for _ in range(12)]


def init(key, inputs):
  del inputs
  sizes = {'first': (4, 6), 'second': (6, 5), 'head': (5, 3)}
  draw = {
    name: {'w': jax.random.normal(jax.random.fold_in(key, i), size) / 2} for i, (name, size) in enumerate(sizes.items())
  }
  return draw, {'stats': {'mean': jnp.zeros(4)}}


def apply(params, state, inputs, *, train, key, step=None):
  del key, step
  if train:
    state = {**state, 'stats': {'mean': 0.9 * state['stats']['mean'] + 0.1 * inputs.mean(0)}}
  hidden = jnp.tanh(jnp.tanh(inputs @ params['first']['w']) @ params['second']['w'])
  return hidden @ params['head']['w'], state


MODEL = Model(init, apply)


def phase(rule, *parts):
  frozen = [freeze(rule)] if rule else []
  return train_step(MODEL, cross_entropy, chain(*frozen, *(parts or (optax.adam(0.05),))))


def steps(train, state, begin, end):
  for step in range(begin, end):
    state, _ = train.step(state, BATCHES[step])
  return state


def host(tree):
  return trees.by_path(jax.tree.map(np.array, tree))


def test_weights_statistics_moments_step_and_key_go_on_and_new_moments_are_at_their_first_values():
  rules = unfreezing(['^first', '^second', '^head'])
  train = phase(rules[0])
  state = steps(train, train.init(jax.random.key(3), BATCHES[0]), 0, 3)
  for done, rule in ((3, rules[1]), (6, rules[2])):
    weights, moments = host({**state.params, **state.const.get('freeze', {})}), host(state.opt_state)
    stats, key = host(state.model_state), jax.random.key_data(state.key)
    train = phase(rule)
    state = next_phase(state, train, BATCHES[0])
    now = host({**state.params, **state.const.get('freeze', {})})
    assert now.keys() == weights.keys() == {'first/w', 'second/w', 'head/w'}
    for path, value in weights.items():
      np.testing.assert_array_equal(now[path], value)
    assert int(state.step) == done
    np.testing.assert_array_equal(jax.random.key_data(state.key), key)
    np.testing.assert_array_equal(state.model_state['stats']['mean'], stats['stats/mean'])
    carried = host(state.opt_state)
    assert moments.keys() < carried.keys()
    for path, value in carried.items():
      np.testing.assert_array_equal(value, moments.get(path, np.zeros_like(value)))
    assert any(np.abs(value).max() > 0 for path, value in carried.items() if '/mu/' in path)
    state = steps(train, state, done, done + 3)
    after = host({**state.params, **state.const.get('freeze', {})})
    learned = {path.split('/')[0] for path in after if (after[path] != now[path]).any()}
    assert learned == ({'second', 'head'} if done == 3 else {'first', 'second', 'head'})


def test_a_phase_that_changes_nothing_is_the_same_run():
  train = phase(['^first'])
  straight = steps(train, train.init(jax.random.key(0), BATCHES[0]), 0, 8)
  half = steps(train, train.init(jax.random.key(0), BATCHES[0]), 0, 4)
  again = phase(['^first'])
  resumed = steps(again, next_phase(half, again, BATCHES[0]), 4, 8)
  a, b = (host(state._replace(key=None)) for state in (straight, resumed))
  assert a.keys() == b.keys()
  for path in a:
    np.testing.assert_array_equal(a[path], b[path], err_msg=path)


def test_the_old_state_lives_on_and_shares_no_array_with_the_new_one():
  train, wider = phase(['^first', '^second']), phase(['^first'])
  state = steps(train, train.init(jax.random.key(0), BATCHES[0]), 0, 2)
  new = next_phase(state, wider, BATCHES[0])
  steps(wider, new, 2, 4)  # donates the new one
  assert all(np.isfinite(leaf).all() for leaf in host(state._replace(key=None)).values())
  steps(train, state, 2, 3)


def test_averages_and_masks_of_what_was_learning_go_on_and_new_ones_begin_at_the_weights():
  parts = lambda: (average(0.5), optax.adam(0.05), prune(0.5, begin=1, end=1, allocate=uniform))  # noqa: E731
  train = phase(['^first'], *parts())
  state = steps(train, train.init(jax.random.key(0), BATCHES[0]), 0, 4)
  kept, weights = host(state.model_state['jl.average']), host({**state.params, **state.const['freeze']})
  wider = phase([], *parts())
  new = next_phase(state, wider, BATCHES[0])
  now = host(new.model_state['jl.average'])
  np.testing.assert_array_equal(now['first/w'], weights['first/w'])
  for path in ('second/w', 'head/w'):
    np.testing.assert_array_equal(now[path], kept[path])
  new = steps(wider, new, 4, 6)
  for path in ('second/w', 'head/w'):
    assert not host(new.params)[path][weights[path] == 0].any()
    assert (host(new.params)[path] == 0).mean() == pytest.approx(0.5, abs=0.04)


def test_a_mean_over_steps_counts_those_in_which_a_leaf_was_frozen():
  parts = lambda rule: [swa(1), *([freeze(rule)] if rule else []), optax.sgd(0.0)]  # noqa: E731
  first, second = (train_step(MODEL, cross_entropy, chain(*parts(rule))) for rule in (['^first'], []))
  state = steps(first, first.init(jax.random.key(0), BATCHES[0]), 0, 4)
  state = steps(second, next_phase(state, second, BATCHES[0]), 4, 6)
  mean, weights = host(state.model_state['jl.swa'].mean), host(state.params)
  for path, value in weights.items():
    np.testing.assert_allclose(mean[path], value, rtol=1e-6)


def test_another_optimizer_is_refused():
  train = phase(['^first'], optax.sgd(0.1))
  state = train.init(jax.random.key(0), BATCHES[0])
  with pytest.raises(ValueError, match=r"the optimizer goes on, but its '0/0/count' is new: keep the update parts"):
    next_phase(state, phase([]), BATCHES[0])


@pytest.mark.parametrize('groups', [[], ['^a'], '^a'])
def test_unfreezing_needs_groups(groups):
  with pytest.raises(ValueError, match='unfreezing takes two groups of layers or more, from input to output'):
    unfreezing(groups)
