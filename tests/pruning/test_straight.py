"""Laws of straight-through pruning: a sparse forward, dense learning, sparse exports, and masks that move."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxlite as jl
from jaxlite import trees
from jaxlite.checkpoint import Checkpoints
from jaxlite.pruning._allocate import erk, uniform
from jaxlite.pruning._masks import unpack
from jaxlite.pruning._rigl import rigl
from jaxlite.pruning._straight_through import see, straight_through
from jaxlite.pruning._structure import n_m
from jaxlite.pruning.sparsity_schedules import cubic, periodic
from programs import shared_flags

pytestmark = pytest.mark.unoptimized

RNG = np.random.default_rng(0)
START = {
  'a': RNG.normal(size=(8, 6)).astype(np.float32),
  'bias': np.zeros(6, np.float32),
  'b': RNG.normal(size=(4, 6)).astype(np.float32),
}
BATCH = {'inputs': RNG.normal(size=(10, 8)).astype(np.float32)}
TARGET = RNG.normal(size=(10, 4)).astype(np.float32)


def apply(p, x):
  return jnp.tanh(x @ p['a'] + p['bias']) @ p['b'].T


def trained(*parts):
  model = jl.from_function(apply, START)
  return jl.train_step(model, lambda outputs, batch: jnp.mean((outputs - TARGET) ** 2, axis=1), jl.chain(*parts))


@pytest.mark.unoptimized(False)
def test_the_gradient_reaches_every_weight_and_the_forward_only_the_living():
  """By hand: masks at the start, gradients at the masked weights, one step on the dense ones, masks anew."""
  train = trained(straight_through(0.5, allocate=uniform), optax.sgd(0.1))
  state = train.init(jax.random.key(0), BATCH)
  dense = {name: np.array(leaf) for name, leaf in START.items()}
  moved = []
  for _ in range(4):
    masks = {}
    for name in ('a', 'b'):
      order = np.argsort(-np.abs(dense[name]), axis=None, kind='stable')
      masks[name] = (np.argsort(order) < dense[name].size // 2).reshape(dense[name].shape)
    np.testing.assert_array_equal(state.model_state['jl.straight'].masks['a'], masks['a'])
    np.testing.assert_array_equal(state.model_state['jl.straight'].masks['b'], masks['b'])
    seen = {name: leaf * masks.get(name, 1) for name, leaf in dense.items()}
    value, grads = jax.value_and_grad(lambda p: jnp.mean((apply(p, BATCH['inputs']) - TARGET) ** 2))(seen)
    state, metrics = train.step(state, BATCH)
    np.testing.assert_allclose(metrics['loss'], value, rtol=1e-5)
    dense = {name: leaf - 0.1 * np.asarray(grads[name]) for name, leaf in dense.items()}
    for name, leaf in dense.items():
      np.testing.assert_allclose(state.params[name], leaf, atol=1e-6)
    dense = {name: np.asarray(leaf) for name, leaf in state.params.items()}  # ties and orders stay comparable
    moved.append(masks['a'])
  assert (moved[0] != moved[-1]).any()
  params, model_state = train.model.export(state.params, state.model_state)
  assert np.count_nonzero(params['a']) == 24
  assert np.count_nonzero(params['b']) == 12
  assert 'jl.straight' not in model_state
  outputs, _ = train.eval(state, BATCH)
  np.testing.assert_allclose(outputs, apply(params, BATCH['inputs']), rtol=1e-6)


@pytest.mark.unoptimized(False)  # bits are judged
def test_a_seen_weight_is_exact_in_value_and_gradient():
  for dtype in (jnp.float32, jnp.bfloat16):
    weight = jnp.asarray(RNG.normal(size=(30, 30)) * 10.0 ** RNG.integers(-30, 30, (30, 30)), dtype)
    mask = jnp.asarray(RNG.random((30, 30)) < 0.5)
    value, back = jax.vjp(lambda w, mask=mask: see({'w': w}, {'w': mask})['w'], weight)
    np.testing.assert_array_equal(value, jnp.where(mask, weight, 0))
    assert not np.signbit(np.asarray(value, np.float32)[~np.asarray(mask)]).any()
    np.testing.assert_array_equal(back(weight)[0], weight)


def test_masks_follow_the_schedule_and_a_plain_call_refreshes_for_ever():
  shown = {}
  for name, arguments in {
    'gradual': {'schedule': cubic(2, 4, 1)},
    'periodic': {'schedule': periodic(1, 3, 2)},
    'for ever': {'begin': 1, 'every': 2},
  }.items():
    train = trained(straight_through(0.5, allocate=uniform, **arguments), optax.sgd(0.3))
    state = train.init(jax.random.key(0), BATCH)
    masks = []
    for _ in range(7):
      masks.append(np.asarray(state.model_state['jl.straight'].masks['a']))
      state, _ = train.step(state, BATCH)
    shown[name] = masks
  changes = {name: [int((a != b).any()) for a, b in itertools.pairwise(m)] for name, m in shown.items()}
  assert [int(mask.sum()) for mask in shown['gradual']][:5] == [48, 48, 48, 27, 24]
  assert changes['gradual'] == [0, 0, 1, 1, 0, 0]
  assert changes['periodic'][3:] == [0, 0, 0]
  assert changes['for ever'] == [1, 0, 1, 0, 1, 0]


@pytest.mark.parametrize('every', [1, 7])
def test_a_dead_weight_comes_alive_at_most_as_many_updates_too_far_as_lie_between_refreshes(every):
  """Steps of one size (as Adam's), a weight that is dead and wanted: it runs until a refresh shows it."""
  rate, still = 0.01, 0.5  # `still` is where its rival stands, which no gradient reaches
  model = jl.from_function(lambda p, x: x * p['w'][0], {'w': np.array([0.0, still], np.float32)})
  parts = straight_through(0.5, every=every, select='w'), optax.sign_sgd(rate)
  train = jl.train_step(model, lambda outputs, batch: (outputs - 1) ** 2, jl.chain(*parts))
  batch = {'inputs': np.ones(1, np.float32)}
  state = train.init(jax.random.key(0), batch)
  alive_at = None
  for _ in range(2 * int(still / rate)):
    seen = train.model.export(state.params, state.model_state)[0]['w'][0]
    alive_at = float(seen) if seen and alive_at is None else alive_at
    state, _ = train.step(state, batch)
  beyond = alive_at - still
  assert 0 < beyond <= every * rate + 1e-5, beyond
  if every > 1:
    assert beyond > rate + 1e-5


def test_packed_masks_are_the_same_masks():
  states = []
  for packed in (False, True):
    train = trained(straight_through(0.5, structure=n_m(2, 4), packed=packed), optax.sgd(0.1))
    state = train.init(jax.random.key(0), BATCH)
    state, _ = train.step(state, BATCH)
    states.append(state)
  for name in ('a', 'b'):
    one, other = (state.model_state['jl.straight'].masks[name] for state in states)
    np.testing.assert_array_equal(one, unpack(other, START[name].shape))
    np.testing.assert_array_equal(states[0].params[name], states[1].params[name])
  assert (np.asarray(states[0].model_state['jl.straight'].masks['a']).reshape(2, 4, 6).sum(1) == 2).all()
  assert np.asarray(states[0].model_state['jl.straight'].masks['b'])[:, :4].sum(1).tolist() == [2] * 4  # (out, in)


RECIPES = {
  'straight through': lambda: (straight_through(0.5, structure=n_m(2, 4), packed=True), optax.adam(0.1)),
  'rigl': lambda: (rigl(optax.adam(0.1), 0.5, end=20, every=2),),
  'prune': lambda: (optax.adam(0.1), jl.prune(0.5, begin=1, end=5, every=2, allocate=erk, packed=True)),
}


@pytest.mark.sampled(1)
@pytest.mark.unoptimized(False)  # bits are judged
@pytest.mark.parametrize('name', RECIPES)
def test_a_resumed_run_is_the_same_to_the_last_bit(name, tmp_path):
  train = trained(*RECIPES[name]())
  state = train.init(jax.random.key(0), BATCH)
  for step in range(6):
    if step == 3:
      with Checkpoints(tmp_path) as saves:
        saves.save(3, state, {})
    state, _ = train.step(state, BATCH)
  again = trained(*RECIPES[name]())
  with Checkpoints(tmp_path) as saves:
    other = saves.restore(jax.eval_shape(lambda: again.init(jax.random.key(9), BATCH))).state
  for _ in range(3):
    other, _ = again.step(other, BATCH)
  assert jax.tree.structure(other) == jax.tree.structure(state)
  for one, two in zip(jax.tree.leaves(state), jax.tree.leaves(other), strict=True):
    if jnp.issubdtype(one.dtype, jax.dtypes.prng_key):
      one, two = jax.random.key_data(one), jax.random.key_data(two)
    np.testing.assert_array_equal(one, two)


@pytest.mark.sampled(1)
@pytest.mark.parametrize('name', ['rigl', 'prune'])
def test_an_ensemble_draws_when_due_and_each_member_is_a_single_run(name):
  train = trained(*RECIPES[name]())
  one = train.init(jax.random.key(0), BATCH)
  axes = jl.step.ensemble_axes(one)
  other = train.init(jax.random.key(0), BATCH)
  other = other._replace(params=jax.tree.map(lambda leaf: leaf * 0.5, other.params))

  def join(a, b):
    return jnp.stack([a, b])

  def stacked(path, a, b):
    return a if path.split('/')[-1] in ('count', 'step') or path.startswith('const') else join(a, b)

  many = trees.map_with_path(stacked, one, other)
  step = jax.vmap(train.step, in_axes=(axes, None), out_axes=(axes, 0))
  assert shared_flags(jax.make_jaxpr(step)(many, BATCH))
  step = jax.jit(step)
  for _ in range(4):
    many, _ = step(many, BATCH)
    other, _ = train.step(other, BATCH)
  np.testing.assert_allclose(many.params['a'][1], other.params['a'], rtol=1e-5, atol=1e-6)
  np.testing.assert_array_equal(np.asarray(many.params['a'][1]) != 0, np.asarray(other.params['a']) != 0)


def test_bad_arguments_are_refused_with_the_rule():
  for make, message in (
    (lambda: straight_through(1.0), r'straight: sparsity .* got 1.0'),
    (lambda: straight_through(0.5, begin=3, schedule=cubic(0, 3)), 'schedule= already says when'),
    (lambda: trained(straight_through(0.5, select='kernal'), optax.sgd(1)).init(jax.random.key(0), BATCH), 'kernal'),
  ):
    with pytest.raises(ValueError, match=message):
      make()
  with pytest.raises(TypeError, match='is a hook, not an Optax transformation'):
    optax.chain(straight_through(0.5), optax.sgd(0.1))


def test_a_loop_that_counts_in_plain_numbers_draws_the_masks_of_a_compiled_one():
  model, hook = jl.from_function(apply, START), straight_through(0.5, end=3)
  loop = jl.step.wrap(model, lambda outputs, batch: outputs[:, 0], hook)
  params, state = loop.init(jax.random.key(0), BATCH)
  plain = compiled = state
  for step in range(1, 4):
    plain = loop.model.after(params, plain, step)
    compiled = jax.jit(loop.model.after)(params, compiled, step)
    for name in ('a', 'b'):
      np.testing.assert_array_equal(plain['jl.straight'].masks[name], compiled['jl.straight'].masks[name])
  assert float(cubic(0, 4).at(2, 0.8)) == float(cubic(0, 4).at(jnp.int32(2), 0.8))
