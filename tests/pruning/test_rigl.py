"""Laws of RigL and SET: the published rule, states that start anew with a connection, the number that lives."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxlite as jl
from jaxlite import trees
from jaxlite.pruning._allocate import Leaf, erk, uniform
from jaxlite.pruning._masks import unpack
from jaxlite.pruning._rigl import rigl, set_, unreset

pytestmark = pytest.mark.unoptimized

RNG = np.random.default_rng(0)
SHAPE = (6, 7)
START = {'w': RNG.normal(size=SHAPE).astype(np.float32), 'bias': np.zeros(7, np.float32)}
GRADS = [{'w': RNG.normal(size=SHAPE).astype(np.float32), 'bias': np.ones(7, np.float32)} for _ in range(9)]


def top(scores, count, among):
  """The `count` largest inside `among`, then outside it; ties by index."""
  order = sorted(range(scores.size), key=lambda i: (not among.flat[i], -scores.flat[i], i))
  mask = np.zeros(scores.size, bool)
  mask[order[:count]] = True
  return mask.reshape(scores.shape)


def run(tx, grads=GRADS, params=START):
  params = jax.tree.map(jnp.array, params)
  state, update = tx.init(params), jax.jit(tx.update)
  yield params, state
  for grad in grads:
    updates, state = update(grad, state, params)
    params = optax.apply_updates(params, updates)
    yield params, state


def test_connections_move_by_the_published_rule_and_weights_learn_at_each_update():
  every, end, fraction, rate, beta = 2, 7, 0.4, 0.1, 0.9
  tx = rigl(optax.sgd(rate, momentum=beta), 0.5, end=end, every=every, fraction=fraction, allocate=uniform)
  found = list(run(tx))
  mask = np.asarray(found[0][1].masks.masks['w'])
  assert mask.sum() == 21
  weight, trace = np.where(mask, START['w'], 0), np.zeros(SHAPE, np.float32)
  moves = 0
  for count, grad in enumerate(GRADS):
    grad = grad['w']
    if 0 < count < end and count % every == 0:
      moving = math.floor(21 * fraction / 2 * (1 + math.cos(math.pi * count / end)))
      kept = top(np.abs(weight), 21 - moving, mask)
      new = kept | top(np.abs(grad), moving, ~kept)
      changed = new ^ mask
      weight, trace = np.where(new & mask, weight, 0), np.where(changed, 0, trace)
      moves += int(changed.sum())
      mask = new
    trace = np.where(mask, grad, 0) + np.float32(beta) * trace
    weight = np.where(mask, weight - np.float32(rate) * trace, 0)
    params, state = found[count + 1]
    np.testing.assert_array_equal(state.masks.masks['w'], mask)
    np.testing.assert_allclose(params['w'], weight, atol=1e-6)
    np.testing.assert_array_equal(np.asarray(params['w'])[~mask], 0)
  assert moves > 4


def test_set_drops_the_smallest_and_grows_at_random_the_same_for_a_seed_only():
  def masks_of(**arguments):
    tx = set_(optax.sgd(0.1), 0.5, end=8, every=3, **arguments)
    return np.stack([np.asarray(state.masks.masks['w']) for _, state in run(tx)])

  one, again, other = masks_of(), masks_of(), masks_of(seed=1)
  np.testing.assert_array_equal(one, again)
  assert (one != other).any()
  assert (one[0] != one[-1]).any()
  assert len(set(one.sum((1, 2)))) == 1
  np.testing.assert_array_equal(*masks_of(fraction=0)[[0, -1]])


# What `init` gives is not always zero: rprop's step sizes, adagrad's sums, schedule_free's iterate.
RESETS = {
  'adam': (lambda: optax.adam(0.1), {'mu', 'nu'}),
  'rprop': (lambda: optax.rprop(0.1), {'step_sizes', 'prev_updates'}),
  'adagrad': (lambda: optax.adagrad(0.1), {'sum_of_squares'}),
  'schedule_free': (lambda: optax.contrib.schedule_free(optax.sgd(0.1), 0.1, b1=0.9), {'z'}),
}


@pytest.mark.parametrize('name', RESETS)
def test_what_belongs_to_a_changed_weight_is_as_init_made_it(name):
  """The inner optimizer is frozen, so that its state shows the reset alone."""
  make, fields = RESETS[name]
  inner = make()

  def seen(grads, state, params=None, **_):
    return jax.tree.map(jnp.zeros_like, grads), state

  tx = rigl(optax.GradientTransformation(inner.init, seen), 0.5, end=9, every=1)
  params = jax.tree.map(jnp.array, START)
  state = tx.init(params)
  params = {**params, 'w': jnp.where(state.masks.masks['w'], params['w'], 0)}
  worn = jax.tree.map(lambda leaf: leaf + 7 if leaf.shape == SHAPE else leaf, state.inner)
  state = state._replace(inner=worn, masks=state.masks._replace(count=jnp.int32(1)))
  _, after = jax.jit(tx.update)(GRADS[0], state, params)
  changed = np.asarray(state.masks.masks['w'] ^ after.masks.masks['w'])
  assert 0 < changed.sum() < changed.size
  fresh = inner.init({**params, 'w': jnp.where(changed, 0, params['w'])})
  touched = set()
  for path, old, new, born in zip(
    trees.paths(worn), *(jax.tree.leaves(tree) for tree in (worn, after.inner, fresh)), strict=True
  ):
    if np.shape(old) == SHAPE:
      touched |= fields & set(path.split('/'))
      np.testing.assert_array_equal(new, np.where(changed, born, old))
    else:
      np.testing.assert_array_equal(new, old)
  assert touched == fields


def test_a_layer_that_is_called_as_a_moment_is_is_reset_by_its_own_masks():
  names = ['w', 'mu/w', 'nu/w']
  params = trees.nest({name: jnp.asarray(GRADS[i]['w']) for i, name in enumerate(names)})
  tx = rigl(optax.adam(0.1), 0.5, end=9, every=1)
  state = tx.init(params)
  slopes = trees.nest({name: jnp.asarray(GRADS[i + 3]['w']) for i, name in enumerate(names)})
  for _ in range(2):
    updates, state = tx.update(slopes, state, params)
    params = optax.apply_updates(params, updates)
  masks, moments = trees.by_path(state.masks.masks), trees.by_path(state.inner[0].mu)
  for name in names:
    assert not np.any(np.asarray(moments[name])[~np.asarray(masks[name])])
  assert unreset(state, params) == []


def test_what_cannot_be_reset_is_listed():
  params = {'w': jnp.ones((8, 8)), 'b': jnp.ones(8)}
  listed = {
    'adafactor': optax.adafactor(0.1, min_dim_size_to_factor=4),
    'adam': optax.adam(0.1),
    'lbfgs': optax.scale_by_lbfgs(3),
  }
  found = {name: unreset(rigl(tx, 0.5, end=3).init(params), params) for name, tx in listed.items()}
  assert found['adam'] == []
  assert found['adafactor'] == ['0/v_row/w', '0/v_col/w']
  assert len(found['lbfgs']) > 2


@pytest.mark.unoptimized(False)  # bits are judged
def test_packed_masks_are_the_same_masks():
  one = run(rigl(optax.adam(0.1), 0.5, end=8, every=2))
  other = run(rigl(optax.adam(0.1), 0.5, end=8, every=2, packed=True))
  for (params, state), (same, packed) in zip(one, other, strict=True):
    np.testing.assert_array_equal(params['w'], same['w'])
    assert packed.masks.masks['w'].dtype == jnp.uint8
    np.testing.assert_array_equal(state.masks.masks['w'], unpack(packed.masks.masks['w'], SHAPE))


def test_extra_arguments_reach_the_optimizer_inside():
  inner = optax.chain(optax.sgd(0.1), optax.contrib.reduce_on_plateau())
  tx = rigl(inner, 0.5, end=9)
  params = jax.tree.map(jnp.array, START)
  tx.update(GRADS[0], tx.init(params), params, value=jnp.float32(1.0))


def test_erk_is_the_published_allocation():
  """By bisection on the common factor, where the code goes leaf by leaf."""
  rng = np.random.default_rng(0)
  for _ in range(100):
    shapes = {str(i): tuple(rng.integers(1, 40, size=int(rng.integers(2, 5)))) for i in range(int(rng.integers(1, 6)))}
    sparsity = float(rng.uniform(0, 0.99))
    sizes = {path: math.prod(shape) for path, shape in shapes.items()}
    raw = {path: sum(shape) / math.prod(shape) for path, shape in shapes.items()}
    low, high = 0.0, 1e9
    for _ in range(200):
      middle = (low + high) / 2
      alive = sum(min(1, middle * raw[path]) * sizes[path] for path in shapes)
      low, high = (middle, high) if alive < (1 - sparsity) * sum(sizes.values()) else (low, middle)
    for path, share in erk({path: Leaf(shape) for path, shape in shapes.items()}, sparsity).items():
      assert share == pytest.approx(1 - min(1, low * raw[path]), abs=1e-6)


def test_it_trains_in_a_train_step_and_is_the_last_word():
  model = jl.from_function(lambda p, x: x @ p['w'] + p['bias'], START)
  loss = lambda outputs, batch: jnp.mean((outputs - 1) ** 2, axis=1)  # noqa: E731
  recipe = jl.chain(optax.clip_by_global_norm(1.0), rigl(optax.adamw(0.05), 0.5, end=20, every=3))
  train = jl.train_step(model, loss, recipe)
  batch = {'inputs': jnp.asarray(RNG.normal(size=(8, 6)), jnp.float32)}
  state = train.init(jax.random.key(0), batch)
  losses = []
  for _ in range(12):
    state, metrics = train.step(state, batch)
    losses.append(float(metrics['loss']))
    assert int(np.count_nonzero(state.params['w'])) == 21
  assert losses[-1] < losses[1]
  with pytest.raises(ValueError, match='no update may follow'):
    jl.chain(rigl(optax.sgd(0.1), 0.5, end=3), optax.sgd(0.1))


@pytest.mark.parametrize(
  'make, error, message',
  [
    (lambda: rigl(optax.sgd(0.1), 1.0, end=3), ValueError, r'in \[0, 1\); got 1.0'),
    (lambda: rigl(jl.fake_quant(), 0.5, end=3), TypeError, 'owns its optimizer'),
    (lambda: set_(optax.sgd(0.1), 0.5, end=3, fraction=1.5), ValueError, r'in \[0, 1\]; got 1.5'),
    (lambda: set_(optax.sgd(0.1), 0.5, end=3, every=0), ValueError, 'every is a whole number, at least 1'),
    (
      lambda: rigl(optax.sgd(0.1), 0.5, end=3, select='kernal').init({'kernel': jnp.ones((2, 2))}),
      ValueError,
      'kernal',
    ),
  ],
)
def test_bad_arguments_are_refused_with_the_rule(make, error, message):
  with pytest.raises(error, match=message):
    make()
