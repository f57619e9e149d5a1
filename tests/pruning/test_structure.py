"""Laws of structures, allocations and packed masks: what lives, how many, and along which axis."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxlite as jl
from jaxlite import trees
from jaxlite.graph.layouts import LeafLayout
from jaxlite.pruning._allocate import erk, global_, uniform
from jaxlite.pruning._choose_masks import draw, targets
from jaxlite.pruning._hold import hold
from jaxlite.pruning._mask_state import PruneState
from jaxlite.pruning._masks import apply_masks, pack, unpack
from jaxlite.pruning._one_shot import sparsify
from jaxlite.pruning._rewind import rewind, rounds
from jaxlite.pruning._structure import block, channel, element, n_m, per_output
from jaxlite.pruning.scores import random
from jaxlite.pruning.sparsity_schedules import cubic

pytestmark = pytest.mark.unoptimized

RNG = np.random.default_rng(0)


def drawn(structure, scores, sparsity, layout=None, **rest):
  goals = targets({'w': scores}, layout and {'w': layout}, sparsity, structure, uniform, what='test')
  return np.asarray(draw(goals, {'w': jnp.asarray(scores)}, **rest)['w'])


def pattern_by_hand(rows, n, m):
  """N:M of float[outputs, K], a group at a time; a tail of r keeps ceil(r * n / m)."""
  mask = np.zeros(rows.shape, bool)
  for row, start in itertools.product(range(rows.shape[0]), range(0, rows.shape[1], m)):
    group = rows[row, start : start + m]
    mask[row, start + np.argsort(-group, kind='stable')[: -(-len(group) * n // m)]] = True
  return mask


LAYOUTS = {
  '(in, out)': ((10, 3), LeafLayout((0,), (1,)), lambda w: w.T),
  '(out, in)': ((3, 10), LeafLayout((1,), (0,)), lambda w: w),
  'HWIO': ((2, 2, 3, 4), LeafLayout((0, 1, 2), (3,)), lambda w: w.reshape(12, 4).T),
  'OIHW': ((4, 3, 2, 2), LeafLayout((2, 3, 1), (0,)), lambda w: w.transpose(0, 2, 3, 1).reshape(4, 12)),
  'layers': ((2, 8, 3), LeafLayout((1,), (2,)), lambda w: w.transpose(0, 2, 1).reshape(6, 8)),
  'a foreign loop': ((2, 5, 3), None, lambda w: w.transpose(0, 2, 1).reshape(6, 5)),
}


@pytest.mark.sampled(8)
@pytest.mark.parametrize('n, m', [(2, 4), (1, 3), (4, 4), (1, 16)])
@pytest.mark.parametrize('name', LAYOUTS)
def test_n_of_m_along_the_contraction_axis_of_every_layout(name, n, m):
  shape, layout, rows = LAYOUTS[name]
  scores = np.abs(RNG.integers(0, 4, shape)).astype(np.float32)  # ties
  mask = drawn(n_m(n, m), scores, 1 - n / m, layout)
  np.testing.assert_array_equal(rows(mask), pattern_by_hand(rows(scores), n, m))


def test_n_of_m_comes_gradually_and_ends_at_the_pattern():
  scores = RNG.random((9, 5)).astype(np.float32)
  final = drawn(n_m(2, 4), scores, 0.5)
  before = None
  for share in (0.0, 0.1, 0.3, 0.45):
    mask = drawn(n_m(2, 4), scores, 0.5, at=lambda _, share=share: jnp.float32(share), done=False)
    assert (mask | ~final).all()  # what the pattern keeps always lives
    assert mask.sum() == max(45 - int(np.floor(45 * share)), final.sum())
    assert before is None or (before | ~mask).all()
    before = mask


def test_n_of_m_holds_where_scores_are_not_finite():
  scores = np.array([[np.nan, np.inf, np.inf, np.nan, 1.0, 2.0, 3.0, 4.0]], np.float32)
  assert drawn(n_m(1, 4), scores, 0.75, LeafLayout((1,), (0,))).reshape(2, 4).sum(1).tolist() == [1, 1]


def test_channels_live_or_die_whole():
  scores = RNG.random((3, 3, 4, 10)).astype(np.float32)
  mask = drawn(channel(), scores, 0.7)
  norms = np.linalg.norm(scores.reshape(36, 10).astype(np.float64), axis=0)
  assert sorted(np.nonzero(mask.all((0, 1, 2)))[0]) == sorted(np.argsort(-norms)[:3])
  assert mask.sum() == 3 * 36
  np.testing.assert_array_equal(drawn(channel(), scores.T, 0.7, LeafLayout((1, 2, 3), (0,))), mask.T)
  assert drawn(channel(), scores[..., :2], 0.99).all((0, 1, 2)).sum() == 1  # the last one lives


def test_channels_of_small_scores_are_told_apart():
  scores = np.full((4, 3), 1e-30, np.float32) * np.array([1, 3, 2], np.float32)
  assert drawn(channel(), scores, 0.6).any(0).tolist() == [False, True, False]


def test_each_output_keeps_its_own_share():
  scores = RNG.random((8, 5)).astype(np.float32) * np.arange(1, 6)
  mask = drawn(per_output(), scores, 0.75)
  assert mask.sum(0).tolist() == [2] * 5
  np.testing.assert_array_equal(mask, np.argsort(np.argsort(-scores, axis=0), axis=0) < 2)
  np.testing.assert_array_equal(drawn(per_output(), scores.T.copy(), 0.75, LeafLayout((1,), (0,))), mask.T)


def test_blocks_live_or_die_whole():
  scores = RNG.random((5, 7)).astype(np.float32)
  mask = drawn(block(2, 3), scores, 0.5)
  means = {(i, j): scores[i : i + 2, j : j + 3].mean() for i in range(0, 5, 2) for j in range(0, 7, 3)}
  for i, j in sorted(means, key=means.get)[4:]:
    assert mask[i : i + 2, j : j + 3].all()
  for i, j in sorted(means, key=means.get)[:4]:
    assert not mask[i : i + 2, j : j + 3].any()


def leaves():
  return {'a': RNG.random((8, 6)).astype(np.float32), 'b': 100 * RNG.random((4, 5)).astype(np.float32)}


def shared(scores, sparsity, **arguments):
  goals = targets(scores, None, sparsity, element, global_(**arguments), what='test')
  return {path: np.asarray(mask) for path, mask in draw(goals, scores).items()}


def test_one_threshold_for_all_leaves_is_exact():
  for sparsity in (0.0, 0.3, 0.77, 0.98):
    scores = leaves()
    masks = shared(scores, sparsity)
    flat, live = (np.concatenate([tree[p].ravel() for p in scores]) for tree in (scores, masks))
    assert live.sum() == flat.size - round(flat.size * sparsity)
    assert flat[live].min() >= flat[~live].max(initial=0)


def test_a_floor_keeps_every_layer_alive_and_norms_let_small_ones_compete():
  scores = leaves()
  assert shared(scores, 0.8)['a'].sum() == 0  # its scores are a hundredth of the other's: the layer dies
  floored = shared(scores, 0.8, floor=0.1)
  assert floored['a'].sum() == 5
  np.testing.assert_array_equal(floored['a'].ravel().nonzero()[0], np.sort(np.argsort(-scores['a'], axis=None)[:5]))
  assert sum(mask.sum() for mask in floored.values()) == 68 - round(68 * 0.8)
  normal = shared(scores, 0.5, normalize=True)
  both = {path: value / np.linalg.norm(value) for path, value in scores.items()}
  threshold = np.sort(np.concatenate([v.ravel() for v in both.values()]))[34]
  for path in both:
    np.testing.assert_array_equal(normal[path], both[path] >= threshold * (1 - 1e-6))
  with pytest.raises(ValueError, match=r'floor=0.3 keeps 21 units alive, sparsity=0.9 only 7'):
    shared(scores, 0.9, floor=0.3)


# --- in a chain ----------------------------------------------------------------------------------------------------


def stepped(tx, params, steps=2):
  state, update = tx.init(params), jax.jit(tx.update)
  for _ in range(steps):
    updates, state = update(jax.tree.map(jnp.zeros_like, params), state, params)
    params = optax.apply_updates(params, updates)
  return params, state


def test_rules_give_each_leaf_its_own_share_and_structure():
  params = {f'{name}/kernel': jnp.asarray(RNG.normal(size=(8, 6)), jnp.float32) for name in ('a', 'b', 'c')}
  tx = jl.prune(0.25, allocate={'^a': 0.75}, structure={'^b': n_m(2, 4), '^c': channel()})
  after, _ = stepped(tx, params)
  live = {path: np.asarray(leaf) != 0 for path, leaf in after.items()}
  assert live['a/kernel'].sum() == 12
  assert (live['b/kernel'].reshape(2, 4, 6).sum(1) == 2).all()
  assert sorted(live['c/kernel'].sum(0)) == [0, 0, 8, 8, 8, 8]
  for rules in ({'allocate': {'kernal': 0.5}}, {'structure': {'kernal': channel()}}):
    with pytest.raises(ValueError, match="rule 'kernal' matches no parameter"):
      jl.prune(0.5, **rules).init(params)


@pytest.mark.parametrize('arguments', [{}, {'structure': n_m(2, 4)}, {'allocate': erk}, {'allocate': global_()}])
def test_packed_masks_are_the_same_masks_in_a_32nd_of_the_bytes(arguments):
  params = {'w': jnp.asarray(RNG.normal(size=(8, 12)), jnp.float32), 'b': jnp.ones(3)}
  after, state = stepped(jl.prune(0.5, **arguments), params)
  same, packed = stepped(jl.prune(0.5, packed=True, **arguments), params)
  np.testing.assert_array_equal(after['w'], same['w'])
  np.testing.assert_array_equal(state.masks['w'], unpack(packed.masks['w'], (8, 12)))
  assert packed.masks['w'].nbytes * 32 == params['w'].nbytes
  assert packed.masks['b'] is None


def test_packing_loses_nothing():
  for shape in ((), (1,), (7,), (8,), (3, 5), (0, 4), (2, 3, 11)):
    mask = RNG.random(shape) < 0.5
    np.testing.assert_array_equal(unpack(pack(jnp.asarray(mask)), shape), mask)


def test_the_layout_of_the_model_decides_in_a_train_step():
  """The same network kept as (in, out) and as (out, in): the same groups along the inputs."""
  weight = RNG.normal(size=(8, 6)).astype(np.float32)
  loss = lambda outputs, batch: jnp.sum(outputs**2, axis=1)  # noqa: E731
  batch = {'inputs': jnp.ones((2, 8))}
  found = []
  for model in (
    jl.from_function(lambda p, x: x @ p['w'], {'w': weight}),
    jl.from_function(lambda p, x: x @ p['w'].T, {'w': weight.T.copy()}),
  ):
    train = jl.train_step(model, loss, jl.chain(optax.sgd(0.0), jl.prune(0.5, structure=n_m(2, 4))))
    state, _ = train.step(train.init(jax.random.key(0), batch), batch)
    found.append(np.asarray(state.params['w']) != 0)
    (pruned,) = trees.find(state.opt_state, PruneState)
    assert int(pruned.broken) == 0
  np.testing.assert_array_equal(found[0], found[1].T)
  np.testing.assert_array_equal(found[1], pattern_by_hand(np.abs(weight.T), 2, 4))


@pytest.mark.parametrize(
  'arguments, message',
  [
    ({'sparsity': 0.9, 'structure': n_m(2, 4)}, '2:4 makes 0.5 of the weights zero; got sparsity=0.9'),
    ({'sparsity': 0.5, 'structure': n_m(2, 4), 'allocate': global_()}, 'one threshold for all leaves cannot hold 2:4'),
    ({'sparsity': 0.5, 'allocate': {'w': 1.5}}, r"in \[0, 1\); 'w' got 1.5"),
    ({'sparsity': 0.5, 'structure': channel(), 'select': 'b'}, "needs two axes; 'b' has 1"),
  ],
)
def test_what_cannot_be_is_refused(arguments, message):
  with pytest.raises(ValueError, match=message):
    jl.prune(**arguments).init({'w': jnp.ones((4, 4)), 'b': jnp.ones(4)})


@pytest.mark.parametrize(
  'make, error, message',
  [
    (lambda w: jl.prune('0.5'), TypeError, "sparsity is a number; got '0.5'"),
    (lambda w: jl.prune(0.5, structure='2:4').init(w), TypeError, "structure is element.* got '2:4'"),
    (lambda w: jl.prune(0.5, structure=channel).init(w), TypeError, 'structure is element.* got <function channel'),
    (lambda w: jl.prune(0.5, allocate='erk').init(w), TypeError, "allocate is erk, uniform.* got 'erk'"),
    (lambda w: jl.prune(0.5, schedule=cubic), TypeError, 'schedule is cubic'),
    (lambda w: sparsify(w, 0.5, score=lambda p, c: p['w']), ValueError, "a tree like params; 'w' is .* nothing"),
    (lambda w: sparsify(w, 0.5, score=lambda p, c: {'w': p['w'][0]}), ValueError, 'its score'),
  ],
)
def test_what_is_no_such_thing_is_told(make, error, message):
  with pytest.raises(error, match=message):
    make({'w': jnp.ones((4, 4))})


@pytest.mark.parametrize('n, m', [(5, 4), (0, 4), (-1, 4), (2.0, 4)])
def test_n_above_m_is_refused(n, m):
  with pytest.raises(ValueError, match=r'1 <= n <= m'):
    n_m(n, m)


# --- one shot, held, rewound ---------------------------------------------------------------------------------------


def test_given_masks_are_held_in_fine_tuning():
  params = {'w': jnp.asarray(RNG.normal(size=(6, 4)), jnp.float32), 'b': jnp.ones(4)}
  sparse, masks = sparsify(params, 0.5)
  np.testing.assert_array_equal(sparse['w'], apply_masks(params, masks)['w'])
  extended = {**sparse, 'jl.hint': {'projector': jnp.ones((2, 2))}}
  for given in (masks, {'w': masks['w']}, {'w': pack(masks['w'])}):
    tx = optax.chain(optax.adam(0.1), hold(given, packed=given is masks))
    state, moved = tx.init(extended), extended
    for _ in range(3):
      updates, state = tx.update(jax.tree.map(jnp.ones_like, moved), state, moved)
      moved = optax.apply_updates(moved, updates)
    np.testing.assert_array_equal(np.asarray(moved['w']) != 0, masks['w'])
    (pruned,) = trees.find(state, PruneState)
    assert float(pruned.sparsity) == 0.5
    assert bool(pruned.reached)
    assert int(pruned.broken) == 0
  with pytest.raises(ValueError, match="'v' is of no parameter"):
    hold({'v': masks['w']}).init(params)
  with pytest.raises(ValueError, match=r'bool\[6, 4\] or uint8\[3\]'):
    hold({'w': masks['w'][:2]}).init(params)
  with pytest.raises(ValueError, match='no mask'):
    hold({}).init(params)


def test_rewinding_goes_back_to_early_weights_and_never_revives():
  early = {'w': jnp.asarray(RNG.normal(size=(8, 8)), jnp.float32), 'b': jnp.zeros(8)}
  trained, masks = early, None
  for share in rounds(0.9, 4):
    moved = jax.tree.map(lambda leaf: leaf + 0.3 * jnp.sin(37 * leaf), trained)
    trained, new = rewind(moved if masks is None else apply_masks(moved, masks), early, share)
    assert int(new['w'].sum()) == 64 - round(64 * share)
    assert masks is None or not np.any(np.asarray(new['w']) & ~np.asarray(masks['w']))
    np.testing.assert_array_equal(trained['w'], np.where(new['w'], early['w'], 0))
    masks = new
  with pytest.raises(ValueError, match='two states of one network'):
    rewind(early, {'w': early['w']}, 0.5)


def test_a_random_score_is_random_by_leaf_and_the_same_for_a_seed():
  params = {'a': {'w': jnp.ones((5, 8))}, 'b': {'w': jnp.ones((5, 8))}}
  one, again, other = (sparsify(params, 0.5, score=random(seed))[1] for seed in (0, 0, 1))
  np.testing.assert_array_equal(one['a']['w'], again['a']['w'])
  assert (one['a']['w'] != other['a']['w']).any()
  assert (one['a']['w'] != one['b']['w']).any()


@pytest.mark.parametrize(
  'arguments', [{'structure': channel()}, {'structure': block(2, 2)}, {'allocate': global_(normalize=True)}]
)
def test_weights_that_no_rule_promotes_are_pruned_as_they_are(arguments):
  """float8: JAX promotes it to nothing, so scores widen by themselves."""
  weight = jnp.asarray(RNG.permutation(np.arange(1, 17)).reshape(4, 4) / 4.0, jnp.float8_e4m3fn)
  narrow, _ = sparsify({'w': weight}, 0.5, **arguments)
  wide, _ = sparsify({'w': weight.astype(jnp.float32)}, 0.5, **arguments)
  assert narrow['w'].dtype == weight.dtype
  np.testing.assert_array_equal(np.asarray(narrow['w'], np.float32), np.asarray(wide['w']))
