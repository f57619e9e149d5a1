"""The composition law: parts keep their promises beside any other part, in any order that is permitted."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxlite as jl
from jaxlite import trees
from jaxlite.contract import CONST, TAPS
from jaxlite.pruning._mask_state import PruneState
from networks import convnet, dense

STEPS, SPARSITY = 200, 0.75
RNG = np.random.default_rng(0)
W1, B1 = (RNG.normal(size=(20, 16)) / 4).astype(np.float32), (RNG.normal(size=16) / 8).astype(np.float32)
W2, B2 = (RNG.normal(size=(16, 5)) / 4).astype(np.float32), (RNG.normal(size=5) / 8).astype(np.float32)
TEACHER = (RNG.normal(size=(20, 5)) / 4).astype(np.float32)
FIRST = r'^(a|0|layers/0)/(kernel|weight|w|0)$'  # the first layer's matrix, in any framework


@functools.cache
def batches(steps=STEPS, size=8, shape=(20,)):
  """Labels that can be learned; now and then rows of weight 0."""
  rng = np.random.default_rng(1)
  inputs = rng.normal(size=(steps, size, *shape)).astype(np.float32)
  flat = inputs.reshape(steps, size, -1)
  labels = (flat @ rng.normal(size=(flat.shape[-1], 5 if shape == (20,) else 3))).argmax(-1).astype(np.int32)
  weight = np.ones((steps, size), np.float32)
  weight[::3, -2:] = 0
  return jax.tree.map(jnp.asarray, {'inputs': inputs, 'labels': labels, 'weight': weight})


def teacher():
  return jl.Network(jl.from_function(lambda p, x: x @ p['w'], {'w': TEACHER}), {'w': jnp.asarray(TEACHER)}, {})


def when(steps):
  return {'begin': steps // 10, 'end': steps // 2, 'every': 10, 'allocate': jl.pruning.uniform}


# A kind is (hooks, what wraps the optimizer, update parts after it), made anew for every recipe.
KINDS = {
  'prune': lambda steps: ([], None, [jl.prune(SPARSITY, **when(steps))]),
  'rigl': lambda steps: ([], lambda inner: jl.rigl(inner, SPARSITY, end=steps // 2, every=10), []),
  'straight_through': lambda steps: (
    [jl.pruning.straight_through(SPARSITY, **when(steps))],
    None,
    [],
  ),
  'l1_proximal': lambda steps: ([], None, [jl.optim.l1_proximal(1e-3, 1e-2)]),
  'fake_quant': lambda steps: ([jl.fake_quant()], None, []),
  'lsq': lambda steps: ([jl.lsq(4)], None, []),
  'distill': lambda steps: ([jl.distill(teacher())], None, []),
  'self_distill': lambda steps: ([jl.distillation.self_distill(0.9)], None, []),
  'freeze': lambda steps: ([jl.freeze(FIRST)], None, []),
  'accumulate': lambda steps: ([jl.accumulate(2)], None, []),
  'sam': lambda steps: ([jl.optim.sam()], None, []),
  'average': lambda steps: ([jl.average(0.9)], None, []),
  'swa': lambda steps: ([jl.optim.swa(steps // 2, 5)], None, []),
  'label_smoothing': lambda steps: ([jl.optim.label_smoothing(0.1)], None, []),
}
# Two parts that give the same weight two grids: a contraction is in integers once.
REFUSED = {frozenset(('fake_quant', 'lsq'))}


def recipe(names, steps=STEPS):
  """The kinds in this order, around clip and Adam."""
  kinds = [KINDS[name](steps) for name in names]
  optimizer = optax.chain(
    optax.clip_by_global_norm(1.0), optax.adam(jl.optim.warmup_cosine(1e-2, steps, warmup_steps=5))
  )
  for _, wrap, _ in kinds:
    optimizer = wrap(optimizer) if wrap else optimizer
  hooks = [hook for some, _, _ in kinds for hook in some]
  return jl.chain(*hooks, optimizer, *(last for _, _, some in kinds for last in some))


def begin(names, model, data=None, steps=STEPS):
  data = data or batches()
  train = jl.train_step(model, jl.cross_entropy, recipe(names, steps))
  return train, train.init(jax.random.key(0), jax.tree.map(lambda leaf: leaf[0], data))


def part_of(data, start, stop):
  return jax.tree.map(lambda leaf: leaf[start:stop], data)


def matrices(tree):
  found = trees.by_path(tree)
  return {path: np.asarray(leaf) for path, leaf in found.items() if leaf.ndim > 1 and not trees.is_extra(path)}


def zeros_of(leaf):
  return round(SPARSITY * leaf.size)


def check_promises(names, train, state, inputs):
  """What each part said of itself holds at this state, whatever stood beside it."""
  full = {**state.model_state, CONST: state.const}
  live = matrices(state.params)
  exported = matrices(train.model.export(state.params, full)[0])
  for own in trees.find(state.opt_state, PruneState):  # prune's, and rigl's inside it
    assert int(own.broken) == 0
    assert bool(own.reached)
    masks = trees.by_path(own.masks)
    assert set(masks) == set(live)
    for path, mask in masks.items():
      assert not live[path][~np.asarray(mask)].any(), path
      if 'rigl' not in names:
        assert (~np.asarray(mask)).sum() == zeros_of(mask)
    total = sum(mask.size for mask in masks.values())
    assert sum(int((~np.asarray(mask)).sum()) for mask in masks.values()) == pytest.approx(SPARSITY * total, abs=2)
    if not {'straight_through', 'freeze'} & set(names):
      for path, leaf in exported.items():
        assert not leaf[~np.asarray(masks[path])].any(), path  # averages are as sparse as the weights
  if 'straight_through' in names:
    # What freeze took out comes back inside it: a mask to its right sees it, a mask to its left does not.
    seen = live if names.index('straight_through') < (*names, 'freeze').index('freeze') else exported
    for path in seen:
      assert (exported[path] == 0).sum() >= zeros_of(exported[path]), path
  if 'l1_proximal' in names:
    assert all(np.isfinite(leaf).all() for leaf in live.values())
  if 'freeze' in names:
    assert len(live) == 1
    (frozen,) = jax.tree.leaves(state.const['freeze'])
    assert sorted(frozen.shape) == sorted(W1.shape)
    np.testing.assert_array_equal(frozen if frozen.shape == W1.shape else frozen.T, W1)
  if {'fake_quant', 'lsq'} & set(names):
    bits = jl.quantization.weight_bits(train.model, state.params, full, inputs)
    assert len(bits) == 2  # the frozen layer too
    assert set(bits.values()) == {4 if 'lsq' in names else 8}
  if 'distill' in names:
    apply = jax.jit(functools.partial(train.model.apply, train=True))
    _, after = apply(state.params, full, inputs, key=state.key, step=state.step)
    own = jax.jit(lambda x: x @ TEACHER)(inputs)
    np.testing.assert_array_equal(after[TAPS]['distill/logits'], own)


def digest(state):
  key = jax.random.key_data(state.key)
  return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state._replace(key=key))]


def run(names, framework='function', *, resumed=False):
  """Trains; with `resumed`, once more, cut in the middle, from copies and with a recipe built anew."""
  data = batches()
  model = dense(framework, (W1, B1, W2, B2))[0]
  train, state = begin(names, model, data)
  inputs = data['inputs'][0]
  middle, first = train.steps(state, part_of(data, 0, STEPS // 2))
  kept = jax.tree.map(jnp.copy, middle)
  end, last = train.steps(middle, part_of(data, STEPS // 2, STEPS))
  check_promises(names, train, end, inputs)
  losses = np.concatenate([first['loss'], last['loss']])
  assert np.isfinite(losses).all()
  if resumed:
    again, _ = begin(names, dense(framework, (W1, B1, W2, B2))[0], data)
    other, _ = again.steps(kept, part_of(data, STEPS // 2, STEPS))
    assert digest(other) == digest(end)
  return losses


PAIRS = [pair for pair in itertools.combinations(KINDS, 2) if frozenset(pair) not in REFUSED]


# Six parts at a time, so that every pair stands together in a few programs: a sparsifier (all of them are a group of
# their own), a grid, and two of four couples of the others: each way to choose two, so that couples meet too.
SPARSE, GRIDS = ('prune', 'rigl', 'straight_through', 'l1_proximal'), ('fake_quant', 'lsq')
OTHERS = [name for name in KINDS if name not in SPARSE + GRIDS]
COUPLES = [OTHERS[i : i + 2] for i in range(0, 8, 2)]
CHOSEN = ((0, 3), (0, 2), (2, 3), (0, 1))  # beside the first grid, sparsifier by sparsifier; the rest beside the second
SIXES = [
  (sparse, grid, *(name for i, couple in enumerate(COUPLES) if (i in chosen) == (grid == GRIDS[0]) for name in couple))
  for sparse, chosen in zip(SPARSE, CHOSEN, strict=True)
  for grid in GRIDS
]
GROUPS = [*SIXES, SPARSE]


def test_every_pair_stands_in_a_group():
  seen = {frozenset(pair) for group in GROUPS for pair in itertools.combinations(group, 2)}
  assert seen == set(map(frozenset, PAIRS))


@pytest.mark.sampled(2)
@pytest.mark.unoptimized
@pytest.mark.parametrize('group', GROUPS, ids='+'.join)
def test_every_group_keeps_its_promises(group):
  losses = run(group)
  assert losses[-20:].mean() < losses[:20].mean()  # and it learned


@pytest.mark.slow
@pytest.mark.parametrize('pair', PAIRS, ids='+'.join)
def test_every_pair_keeps_its_promises(pair):
  losses = run(pair)
  assert losses[-20:].mean() < losses[:20].mean()


@pytest.mark.parametrize('pair', sorted(map(sorted, REFUSED)), ids='+'.join)
def test_two_grids_for_one_weight_are_refused(pair):
  for order in itertools.permutations(pair):
    with pytest.raises(ValueError, match=r'quant|lsq'):
      begin(order, dense('function', (W1, B1, W2, B2))[0])


@pytest.mark.sampled(2)
@pytest.mark.parametrize('order', list(itertools.permutations(('prune', 'fake_quant', 'distill'))), ids='+'.join)
def test_the_three_in_every_order_resume_to_the_bit(order):
  run(order, resumed=True)


@pytest.mark.slow
@pytest.mark.parametrize('framework', ['linen', 'nnx', 'equinox'])
@pytest.mark.parametrize('pair', PAIRS, ids='+'.join)
def test_every_pair_in_both_orders_and_three_frameworks(pair, framework):
  for order in (pair, pair[::-1]):
    run(order, framework, resumed=True)


@pytest.mark.slow
@pytest.mark.parametrize('fourth', [kind for kind in KINDS if kind not in ('prune', 'fake_quant', 'distill', 'lsq')])
def test_the_three_in_every_order_beside_each_other_part(fourth):
  for order in itertools.permutations(('prune', 'fake_quant', 'distill', fourth)):
    run(order)


CHAIN = ('accumulate', 'average', 'fake_quant', 'distill', 'label_smoothing', 'prune')


def full_chain(model, shape, steps, every):
  """No pruned weight is ever non-zero, over the whole run, and it resumes from any of its parts."""
  names = CHAIN if shape == (20,) else tuple(name for name in CHAIN if name != 'distill')
  data = batches(every, 8, shape)
  train, state = begin(names, model(), data, steps)
  for start in range(0, steps, every):
    state, metrics = train.steps(state, data)
    (own,) = trees.find(state.opt_state, PruneState)
    assert int(own.broken) == 0, start
    masks = trees.by_path(own.masks)
    for path, leaf in matrices(state.params).items():
      assert not leaf[~np.asarray(masks[path])].any(), (start, path)
    assert np.isfinite(metrics['loss']).all()
    if start == steps // 2 // every * every:
      kept = jax.tree.map(jnp.copy, state)
      left = (steps - start) // every - 1
  assert all((~np.asarray(mask)).sum() == zeros_of(mask) for mask in masks.values())
  again, _ = begin(names, model(), data, steps)
  for _ in range(left):
    kept, _ = again.steps(kept, data)
  assert digest(kept) == digest(state)


def test_the_full_chain_in_its_short_form():
  full_chain(lambda: dense('function', (W1, B1, W2, B2))[0], (20,), 400, 100)


@pytest.mark.slow
def test_the_full_chain_for_ten_thousand_steps():
  full_chain(lambda: dense('function', (W1, B1, W2, B2))[0], (20,), 10_000, 500)
  full_chain(convnet, (4, 4, 1), 10_000, 500)
