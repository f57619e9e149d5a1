"""Laws of magnitude pruning: exact zeros after every step, the target met, the masks of a stable sort."""

import functools
import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxlite as jl
from jaxlite import trees
from jaxlite.pruning._mask_state import PruneState
from jaxlite.pruning._top_k import keep_largest
from jaxlite.pruning.sparsity_schedules import cubic, one_shot, periodic
from programs import shared_flags

pytestmark = pytest.mark.unoptimized

OPTIMIZERS = {
  'sgd': lambda: optax.sgd(0.1, momentum=0.9),
  'adam': lambda: optax.adam(0.01),
  'adamw': lambda: optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.01)),
  'lion': lambda: optax.lion(0.01),
  'adafactor': lambda: optax.adafactor(0.01),
  'muon': lambda: optax.contrib.muon(0.01),
  'rmsprop': lambda: optax.rmsprop(0.01),
  # static: inject_hyperparams would round b2 = 0.999 to bfloat16's 1
  'inject_hyperparams': lambda: optax.inject_hyperparams(optax.adam, static_args=('b1', 'b2', 'eps', 'eps_root'))(
    learning_rate=optax.constant_schedule(0.01)
  ),
}


def sorted_mask(scores, keep):
  """The reference: a stable sort by falling magnitude, ties by index."""
  flat = np.abs(np.asarray(scores, np.float64)).ravel()
  mask = np.zeros(flat.size, bool)
  mask[np.argsort(-flat, kind='stable')[:keep]] = True
  return mask.reshape(np.shape(scores))


def cases(count, seed=0):
  rng = np.random.default_rng(seed)
  for index in range(count):
    size = int(2 ** rng.uniform(0, 12 if index % 10 else 20))
    kind = index % 5
    if kind == 0:
      values = rng.normal(size=size)
    elif kind == 1:
      values = rng.integers(0, 3, size).astype(float)  # ties everywhere, zeros among them
    elif kind == 2:
      values = rng.normal(size=size) * 1e-40  # denormals
    elif kind == 3:
      values = np.full(size, rng.normal())
    else:
      values = np.where(rng.random(size) < 0.5, 0.0, rng.normal(size=size))
    yield values, int(rng.integers(0, size + 1)), [np.float32, jnp.bfloat16, np.float16][index % 3]


@pytest.mark.parametrize('count', [30, pytest.param(10_000, marks=pytest.mark.slow)])
def test_kept_entries_are_those_of_a_stable_sort(count):
  marked = jax.jit(keep_largest)
  for values, keep, dtype in cases(count):
    padded = np.zeros(next(size for size in (8, 256, 2**13, 2**20) if size >= values.size))  # few compilations
    padded[: values.size] = values
    leaf = jnp.asarray(padded, dtype)
    np.testing.assert_array_equal(marked(leaf, keep), sorted_mask(np.asarray(leaf, np.float64), keep))


def test_kept_entries_in_double_precision():
  with jax.enable_x64(True):
    values = jnp.asarray(np.random.default_rng(0).normal(size=999) * 1e-200)
    assert values.dtype == jnp.float64
    np.testing.assert_array_equal(keep_largest(values, 100), sorted_mask(values, 100))


SOME = {('adam', False, 'bfloat16'), ('adafactor', True, 'float32'), ('muon', False, 'float32')}
EVERY = itertools.product(OPTIMIZERS, [False, True], ['float32', 'bfloat16'])


@pytest.mark.parametrize(
  'name, multi, dtype', [pytest.param(*case, marks=[] if case in SOME else [pytest.mark.slow]) for case in EVERY]
)
def test_pruned_weights_are_zero_after_every_step_of_a_foreign_loop(name, multi, dtype):
  tx = optax.chain(OPTIMIZERS[name](), jl.prune(0.8, begin=2, end=6, every=2))
  tx = optax.MultiSteps(tx, 2) if multi else tx
  rng = np.random.default_rng(0)
  params = {'w': jnp.asarray(rng.normal(size=(20, 10)), dtype), 'b': jnp.zeros(10, dtype)}
  state = tx.init(params)

  @jax.jit
  def step(params, state, x):
    grads = jax.grad(lambda p: jnp.sum((x @ p['w'].astype(jnp.float32) + p['b'].astype(jnp.float32)) ** 2))(params)
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state

  for _ in range(18 if multi else 9):
    params, state = step(params, state, jnp.asarray(rng.normal(size=(4, 20)), jnp.float32))
    (prune,) = trees.find(state, PruneState)
    mask = prune.masks['w']
    assert not np.any(np.asarray(params['w'])[~np.asarray(mask)])
    assert prune.masks['b'] is None
    if int(prune.count) > 6:
      assert int(np.count_nonzero(params['w'])) == 40
  assert int(prune.broken) == 0
  assert bool(prune.reached)
  assert params['w'].dtype == dtype


def container(name):
  w, b = jnp.arange(1.0, 41.0).reshape(8, 5), jnp.ones(5)
  if name == 'nnx':
    linear = nnx.Linear(8, 5, rngs=nnx.Rngs(0))
    linear.kernel[...] = w
    return nnx.state(linear, nnx.Param)
  if name == 'equinox':
    module = eqx.tree_at(lambda m: m.weight, eqx.nn.Linear(5, 8, key=jax.random.key(0)), w)
    return eqx.filter(module, eqx.is_inexact_array)
  return {'dict': {'w': w, 'b': b}, 'list': [{'w': w}, {'b': b}], 'tuple': ({'w': w}, ({'b': b},))}[name]


@pytest.mark.sampled(2)
@pytest.mark.parametrize('name', ['dict', 'list', 'tuple', 'nnx', 'equinox'])
def test_masks_are_the_same_in_every_container(name):
  params = container(name)
  tx = optax.chain(optax.sgd(0.0), jl.prune(0.5))
  updates, _ = jax.jit(tx.update)(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
  pruned = optax.apply_updates(params, updates)
  weights = [leaf for path, leaf in trees.by_path(pruned).items() if np.shape(leaf) == (8, 5)]
  assert jax.tree.structure(pruned) == jax.tree.structure(params)
  np.testing.assert_array_equal(weights[0], np.where(np.arange(40) < 20, 0, np.arange(1.0, 41.0)).reshape(8, 5))


def test_every_schedule_ends_at_its_target_and_draws_masks_then():
  rng = np.random.default_rng(1)
  for _ in range(200):
    begin, every = int(rng.integers(0, 12)), int(rng.integers(1, 15))
    end, target = begin + int(rng.integers(0, 12)), round(float(rng.uniform(0, 0.99)), 3)
    for schedule in (cubic(begin, end, every), periodic(begin, end, every), one_shot(begin)):
      counts = np.arange(50)  # one shape: compiled once
      due = np.asarray(schedule.due(counts))
      shares = np.asarray(schedule.at(counts, target)) + np.zeros(len(counts))
      last = int(np.nonzero(due)[0][-1])
      assert schedule.end <= last <= end
      assert shares[last] == np.float32(target)
      assert not due[:begin].any()
      assert np.all(np.diff(shares) >= 0)


@pytest.mark.parametrize('begin, end, every', [(0, None, 1), (1, 5, 3), (2, 2, 100), (0, 4, 100)])
def test_the_target_is_met_for_any_begin_end_and_every(begin, end, every):
  target, last = 0.731, begin if end is None else end
  tx = jl.prune(target, begin=begin, end=end, every=every)
  params = {'w': jnp.asarray(np.random.default_rng(0).normal(size=(2, 97)), jnp.float32)}
  state, update = tx.init(params), jax.jit(tx.update)
  for _ in range(last + 2):
    updates, state = update({'w': jnp.zeros((2, 97))}, state, params)
    params = optax.apply_updates(params, updates)
  assert int(np.count_nonzero(params['w'])) == 194 - round(194 * target)
  assert bool(state.reached)
  assert float(state.sparsity) == np.float32(target)


def test_the_schedule_is_the_published_cubic():
  for t in range(0, 30):
    expected = 0.9 + (0.1 - 0.9) * (1 - min(max((t - 5) / 15, 0), 1)) ** 3
    np.testing.assert_allclose(cubic(5, 20, initial=0.1).at(jnp.int32(t), 0.9), expected, rtol=1e-6)


def test_before_begin_nothing_is_touched():
  tx = jl.prune(0.9, begin=3)
  params = {'w': jnp.ones((4, 4))}
  updates, state = tx.update({'w': jnp.full((4, 4), 0.5)}, tx.init(params), params)
  np.testing.assert_array_equal(updates['w'], 0.5)
  assert not bool(state.reached)


def test_a_wrong_order_hidden_in_optax_chain_is_counted():
  hidden = optax.chain(jl.prune(0.5), optax.adamw(0.1))
  params = {'w': jnp.arange(1.0, 17.0).reshape(4, 4)}
  state = hidden.init(params)
  for _ in range(3):
    updates, state = hidden.update({'w': jnp.ones((4, 4))}, state, params)
    params = optax.apply_updates(params, updates)
  (prune,) = trees.find(state, PruneState)
  assert int(prune.broken) > 0


def test_states_of_two_recipes_have_one_structure():
  params = {'w': jnp.ones((4, 4))}
  one, other = jl.prune(0.5).init(params), jl.prune(0.9, begin=1, end=9).init(params)
  assert jax.tree.structure(one) == jax.tree.structure(other)


def test_optax_masked_and_partition_hold():
  params = {'a': jnp.arange(16.0).reshape(4, 4), 'c': jnp.arange(16.0).reshape(4, 4)}
  zeros = jax.tree.map(jnp.zeros_like, params)
  labels = {'a': 'p', 'c': 'k'}
  for tx in (
    optax.masked(jl.prune(0.5), {'a': True, 'c': False}),
    optax.partition({'p': jl.prune(0.5), 'k': optax.sgd(0.1)}, labels),
  ):
    updates, _ = tx.update(zeros, tx.init(params), params)
    after = optax.apply_updates(params, updates)
    assert np.count_nonzero(after['a']) == 8
    np.testing.assert_array_equal(after['c'], params['c'])


def test_an_ensemble_counts_and_draws_only_when_due_and_equals_single_runs():
  tx = jl.prune(0.5, begin=1)
  params = {'w': jnp.asarray(np.random.default_rng(0).normal(size=(3, 4, 4)), jnp.float32)}
  single = tx.init({'w': params['w'][0]})
  axes = PruneState(None, {'w': 0}, 0, None, None, None, None)
  state = jax.vmap(tx.init, out_axes=axes)(params)
  step = jax.vmap(tx.update, in_axes=({'w': 0}, axes, {'w': 0}), out_axes=({'w': 0}, axes))
  grads = {'w': jnp.zeros_like(params['w'])}
  assert shared_flags(jax.make_jaxpr(step)(grads, state, params)) >= 2
  for _ in range(2):
    updates, state = step(grads, state, params)
    alone, single = tx.update({'w': grads['w'][0]}, single, {'w': params['w'][0]})
    np.testing.assert_array_equal(updates['w'][0], alone['w'])


def test_a_mask_refresh_sorts_nothing():
  tx = jl.prune(0.5)
  params = {'w': jnp.ones((64, 64))}
  program = str(jax.make_jaxpr(tx.update)(params, tx.init(params), params))
  assert 'sort[' not in program
  assert 'top_k' not in program


@pytest.mark.parametrize(
  'arguments, message',
  [
    ({'sparsity': 1.0}, r'in \[0, 1\); got 1.0'),
    ({'sparsity': -0.1}, r'in \[0, 1\)'),
    ({'sparsity': float('nan')}, r'in \[0, 1\)'),
    ({'sparsity': 0.5, 'begin': 9, 'end': 3}, 'end=3 lies before begin=9'),
    ({'sparsity': 0.5, 'every': 0}, 'at least 1; got 0'),
    ({'sparsity': 0.5, 'begin': -1}, 'begin is a whole number, at least 0'),
    ({'sparsity': 0.5, 'initial': 0.7, 'end': 3}, 'lower initial'),
  ],
)
def test_bad_arguments_are_refused_with_the_rule(arguments, message):
  with pytest.raises(ValueError, match=message):
    jl.prune(**arguments)


def test_a_rule_that_matches_nothing_is_refused():
  params = {'dense': {'kernel': jnp.ones((2, 2))}}
  with pytest.raises(ValueError, match="'kernal' matches no parameter; nearest paths: dense/kernel"):
    jl.prune(0.5, select='kernal').init(params)
  with pytest.raises(ValueError, match='finds no weight'):
    jl.prune(0.5).init({'bias': jnp.ones(3)})


def test_params_are_asked_for():
  tx = jl.prune(0.5)
  with pytest.raises(ValueError, match=r'update\(grads, state, params\)'):
    tx.update({'w': jnp.ones((2, 2))}, tx.init({'w': jnp.ones((2, 2))}))


def test_in_a_train_step_the_model_says_what_a_weight_is():
  def apply(params, state, inputs, *, train, key, step=None):
    return (inputs @ params['odd_scale']) + jnp.sum(params['table']), state

  model = jl.Model(lambda key, x: ({'odd_scale': jnp.ones((4, 4)), 'table': jnp.ones((4, 4))}, {}), apply)
  loss = functools.partial(lambda outputs, batch: jnp.sum(outputs, 1))
  train = jl.train_step(model, loss, jl.chain(optax.sgd(0.1), jl.prune(0.5)))
  state = train.init(jax.random.key(0), {'inputs': jnp.ones((2, 4))})
  (prune,) = trees.find(state.opt_state, PruneState)
  assert prune.masks['table'] is None
  assert prune.masks['odd_scale'].shape == (4, 4)


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16, jnp.float16, jnp.complex64])
def test_leaves_that_are_read_together_are_pruned_and_watched_as_each_alone(dtype):
  """Drawing anew and counting what another part wrote read the same joined leaves, at the times of a schedule."""
  rng = np.random.default_rng(0)
  draw = lambda: rng.integers(-4, 5, (6, 5)) / 2 + (rng.integers(-4, 5, (6, 5)) * 1j if dtype == jnp.complex64 else 0)  # noqa: E731
  leaves = {f'w{i}': jnp.asarray(draw(), dtype) for i in range(5)}
  tx = jl.prune(0.6, begin=1, end=5, every=2)
  update = jax.jit(tx.update)
  alone = {name: tx.init({name: leaf}) for name, leaf in leaves.items()}
  state, broken = tx.init(leaves), 0
  for step in range(18):
    moved = jax.tree.map(lambda leaf: jnp.zeros_like(leaf) + leaf / 8, leaves)
    updates, after = update(moved, state, leaves)
    dead = sum(int(((leaves[n] != 0) & ~state.masks[n]).sum()) for n in leaves)
    broken += dead if step in (1, 2, 3, 4, 5, 6) or step % 16 == 0 else 0
    assert int(after.broken) == broken
    for name, leaf in leaves.items():
      _, alone[name] = update({name: moved[name]}, alone[name], {name: leaf})
      np.testing.assert_array_equal(after.masks[name], alone[name].masks[name])
    assert (int(after.refreshes), int(after.last)) == (
      (0, -1) if step < 1 else (3, 5) if step >= 5 else (1 + step // 3, 3 if step >= 3 else 1)
    )
    assert bool(after.reached) == (step >= 5)
    state, leaves = after, optax.apply_updates(leaves, updates)
    if step in (3, 15):  # another part writes to what the masks hold at zero
      leaves = {name: leaf + 1 for name, leaf in leaves.items()}
  assert broken > 0
  sizes = np.abs(np.asarray(alone['w0'].masks['w0'])).sum()
  assert sizes == 30 - 18


@pytest.mark.parametrize('packed', [False, True])
def test_check_tells_that_schedule_free_weights_are_read_where_no_mask_holds(packed):
  tx = optax.chain(optax.contrib.schedule_free_sgd(0.1), jl.prune(0.5, packed=packed))
  params = {'w': jnp.arange(1.0, 13.0).reshape(3, 4)}
  state = tx.init(params)
  for _ in range(3):
    updates, state = tx.update({'w': jnp.ones((3, 4))}, state, params)
    params = optax.apply_updates(params, updates)
  with pytest.warns(UserWarning, match='schedule_free_eval_params is not zero at 6 values that a mask holds at zero'):
    jl.pruning.check(state)
  dead = params['w'] == 0
  assert dead.sum() == 6
  assert (optax.contrib.schedule_free_eval_params(state[0], params)['w'][dead] != 0).all()
  assert (jl.optim.evaluation_point(state, params)['w'][dead] == 0).all()
