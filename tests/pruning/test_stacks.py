"""A leaf that stacks layers is pruned as those layers, unrolled, would be; a gain never."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

import jaxlite as jl
from jaxlite.contract import Model
from jaxlite.deployment.inventory import layers
from jaxlite.graph.layouts import LeafLayout, parameter_layouts
from jaxlite.pruning import (
  channel,
  element,
  erk,
  gather_statistics,
  global_,
  n_m,
  per_output,
  sparsegpt,
  sparsify,
  stacked,
  uniform,
)
from jaxlite.pruning._choose_masks import draw, targets
from jaxlite.pruning.scores import wanda

pytestmark = pytest.mark.unoptimized

RNG = np.random.default_rng(0)
# Layers of very different size, so that one budget for all of them would kill the smallest.
STACK = (RNG.normal(size=(3, 8, 6)) * np.array([1, 1e-2, 1e-4])[:, None, None]).astype(np.float32)
LAYERS, IN_OUT = LeafLayout((1,), (2,)), LeafLayout((0,), (1,))


def masks_of(leaves, layouts, structure, allocate, sparsity=0.5):
  goals = targets(leaves, layouts, sparsity, structure, allocate, what='test')
  found = draw(goals, {path: jnp.abs(jnp.asarray(leaf)) for path, leaf in leaves.items()})
  return {path: np.asarray(mask) for path, mask in found.items()}


BOTH = {
  'uniform': (element, uniform),
  'erk': (element, erk),
  'global': (element, global_(floor=0.2, normalize=True)),
  'channel': (channel(), uniform),
  'channel, global': (channel(), global_()),
  '2:4': (n_m(2, 4), uniform),
  'per output': (per_output(), uniform),
}


@pytest.mark.sampled(3)
@pytest.mark.parametrize('name', BOTH)
def test_a_stack_is_pruned_as_its_layers_unrolled(name):
  structure, allocate = BOTH[name]
  wide = np.abs(RNG.normal(size=(24, 20))).astype(np.float32)
  rolled = masks_of({'w': STACK, 'v': wide}, {'w': LAYERS, 'v': IN_OUT}, structure, allocate)
  unrolled = {f'w{i}': layer for i, layer in enumerate(STACK)}
  expected = masks_of({**unrolled, 'v': wide}, dict.fromkeys([*unrolled, 'v'], IN_OUT), structure, allocate)
  np.testing.assert_array_equal(rolled['w'], np.stack([expected[f'w{i}'] for i in range(3)]))
  np.testing.assert_array_equal(rolled['v'], expected['v'])
  foreign = masks_of({'w': STACK, 'v': wide}, None, {'^w$': stacked(structure), '^v$': structure}, allocate)
  np.testing.assert_array_equal(foreign['w'], rolled['w'])


def scanned(p, x):
  return lax.scan(lambda c, w: (jnp.tanh(c @ w), None), x, p['w'])[0]


def test_rigl_moves_within_each_layer():
  params = {'w': jnp.asarray(RNG.normal(size=(3, 6, 6)) * np.array([1, 1e-2, 1e-4])[:, None, None], jnp.float32)}
  tx = jl.rigl(optax.sgd(0.0), 0.5, end=4, every=1)
  weights = parameter_layouts(scanned, params, jnp.ones((2, 6)))
  state, update = tx.init(params, weights), jax.jit(tx.update)
  for _ in range(3):
    _, state = update({'w': jnp.asarray(RNG.normal(size=(3, 6, 6)), jnp.float32)}, state, params)
    assert np.asarray(state.masks.masks['w']).sum((1, 2)).tolist() == [18, 18, 18]


def normed(p, x):
  return x @ (p['v'] * (p['s'] * p['g'] / jnp.linalg.norm(p['v'], axis=0)))


def test_gains_and_learned_scalars_are_left_alone_by_every_part():
  params = {
    'v': jnp.asarray(RNG.normal(size=(8, 5)), jnp.float32),
    'g': jnp.linspace(0.1, 1, 5)[None],
    's': jnp.float32(1e-3),
  }
  x = np.asarray(RNG.normal(size=(16, 8)), np.float32)
  weights = parameter_layouts(normed, params, x)
  for tx in (
    jl.prune(0.75, begin=0),
    jl.prune(0.5, begin=0, structure=n_m(2, 4)),
    jl.rigl(optax.sgd(0.1), 0.75, end=2),
    jl.optim.l2(0.1),
  ):
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params, weights), params)
    assert np.asarray(updates['v']).any()
    assert not np.asarray(updates['g']).any()
    assert not np.asarray(updates['s']).any()
  assert [(row.name, row.bits) for row in jl.coverage(normed)(params, x)] == [('v', 8)]
  base = Model(lambda key, x: (params, {}), lambda p, s, x, *, train, key, step=None: (normed(p, x), s))
  _, state = jl.pruning.straight_through(0.75).model(base).init(jax.random.key(0), x)
  assert {*state['jl.straight'].masks} == {'v'}
  found = gather_statistics(normed, params, batches=[{'inputs': x}])
  np.testing.assert_allclose(found.grams['v'][0], x.T.astype(np.float64) @ x, rtol=1e-4, atol=1e-4)
  assert {*found.grams} == {'v'}
  for pruned, masks in (
    sparsegpt(params, found, 0.5),
    sparsify(params, 0.5, score=wanda, context=found, structure=per_output()),
  ):
    assert np.asarray(masks['v']).sum() == 20
    np.testing.assert_array_equal(pruned['g'], params['g'])


def parts(p, x):
  """A gated cell as Haiku writes one: the last third of a fused weight meets another input than the rest."""
  a, b = jnp.split(p['w'], [12], 1)
  return jnp.tanh(x @ a)[:, :6] @ b


def unrolled(p, x):
  return jnp.tanh(jnp.tanh(x @ p['w'][0]) @ p['w'][1]) @ p['w'][2]


@pytest.mark.parametrize('name', ['fused', 'unrolled'])
def test_statistics_of_a_weight_that_is_used_in_parts(name):
  rng = np.random.default_rng(0)  # its own: of two scores that are nearly equal either may win
  x = np.asarray(rng.normal(size=(16, 6)), np.float32)
  if name == 'fused':
    forward, params = parts, {'w': rng.normal(size=(6, 18)).astype(np.float32)}
    inputs = [x, x, np.tanh(x @ params['w'][:, :12])[:, :6]]
    of = lambda leaf, part: leaf[:, 6 * part : 6 * part + 6]  # noqa: E731
  else:
    forward, params = unrolled, {'w': rng.normal(size=(3, 6, 6)).astype(np.float32)}
    one = np.tanh(x @ params['w'][0])
    inputs = [x, one, np.tanh(one @ params['w'][1])]
    of = lambda leaf, part: leaf[part]  # noqa: E731
  found = gather_statistics(forward, params, batches=[{'inputs': x}])
  pruned, masks = sparsegpt(params, found, 0.5, structure=n_m(1, 2))
  for part, rows in enumerate(inputs):
    np.testing.assert_allclose(found.grams['w'][part], rows.T @ rows, rtol=1e-4, atol=1e-3)
    norms = of(np.broadcast_to(found.norms['w'], params['w'].shape), part)
    np.testing.assert_allclose(norms, np.broadcast_to(np.linalg.norm(rows, axis=0)[:, None], norms.shape), rtol=1e-4)
    # As if it were a weight of its own.
    own = {'w': of(params['w'], part)}
    alone = gather_statistics(lambda p, x: x @ p['w'], own, batches=[{'inputs': rows}])
    expected, mask = sparsegpt(own, alone, 0.5, structure=n_m(1, 2))
    np.testing.assert_array_equal(of(np.asarray(masks['w']), part), mask['w'])
    np.testing.assert_allclose(of(np.asarray(pruned['w']), part), expected['w'], rtol=1e-3, atol=1e-4)


def test_inputs_of_one_weight_that_several_layers_scale_are_added_up():
  params = {'w': RNG.normal(size=(6, 6)).astype(np.float32) / 3, 'a': np.array([1.0, 2.0, 0.5], np.float32)}
  forward = lambda p, x: lax.scan(lambda c, a: (jnp.tanh(c @ (p['w'] * a)), None), x, p['a'])[0]  # noqa: E731
  x = np.asarray(RNG.normal(size=(4, 6)), np.float32)
  found = gather_statistics(forward, params, batches=[{'inputs': x}])
  expected = 0
  for a in params['a']:
    expected, x = expected + x.T @ x, np.tanh(x @ (params['w'] * a))
  np.testing.assert_allclose(found.grams['w'], expected[None], rtol=1e-4, atol=1e-4)


def test_axes_that_cannot_be_followed_are_refused():
  params = {'w': jnp.asarray(RNG.normal(size=(6, 6)), jnp.float32)}
  both = lambda p, x: x @ (p['w'] + p['w'].T)  # noqa: E731
  found = gather_statistics(both, params, batches=[{'inputs': np.ones((2, 6), np.float32)}])
  weights = parameter_layouts(both, params, jnp.ones((2, 6)))
  for structure in (n_m(2, 4), channel(), per_output()):
    with pytest.raises(ValueError, match="axes that are summed, and those of 'w' cannot be read"):
      jl.prune(0.5, begin=0, structure=structure).init(params, weights)
  with pytest.raises(ValueError, match="no Gram matrix of the inputs of 'w': the program mixes its axes"):
    sparsegpt(params, found, 0.5)
  with pytest.raises(ValueError, match="wanda knows nothing of the inputs of 'w': the program mixes its axes"):
    sparsify(params, 0.5, score=wanda, context=found)
  jl.prune(0.5, begin=0, structure=n_m(2, 4, axis=0)).init(params, weights)  # said, it is known


def test_experts_that_data_pick_are_pruned_each_by_itself():
  params = {'w': jnp.asarray(STACK)}
  x = RNG.normal(size=(4, 8)).astype(np.float32)
  routed = lambda p, x: jax.vmap(lambda x, i: x @ p['w'][i])(x, jnp.argmax(x[:, :3], 1))  # noqa: E731
  tx = jl.prune(0.5, begin=0, structure=n_m(2, 4))
  updates, _ = tx.update(
    {'w': jnp.zeros_like(params['w'])}, tx.init(params, parameter_layouts(routed, params, x)), params
  )
  live = np.asarray(optax.apply_updates(params, updates)['w']) != 0
  assert (live.reshape(3, 2, 4, 6).sum(2) == 2).all()
  found = gather_statistics(
    lambda p, x: routed(p, x) @ p['v'], {**params, 'v': np.ones((6, 2), np.float32)}, batches=[{'inputs': x}]
  )
  assert found.layouts.skipped == (('w', 'data pick its weight'),)


def test_complex_weights_are_pruned_by_their_size():
  w = (RNG.normal(size=(8, 4)) + 1j * RNG.normal(size=(8, 4))).astype(np.complex64)
  params = {'w': jnp.asarray(w)}
  weights = parameter_layouts(lambda p, x: x @ p['w'], params, jnp.ones((2, 8)))
  tx = jl.prune(0.5, begin=0)
  updates, _ = tx.update({'w': jnp.zeros_like(params['w'])}, tx.init(params, weights), params)
  live = np.asarray(optax.apply_updates(params, updates)['w']) != 0
  np.testing.assert_array_equal(live, np.abs(w) > np.sort(np.abs(w).ravel())[15])


def test_a_report_counts_each_layer_of_a_stack():
  apply = lambda p, s, x, *, train, key, step=None: (scanned(p, x), s)  # noqa: E731
  params = {'w': jnp.ones((3, 6, 6)).at[1, :3].set(0)}
  rows = layers(Model(None, apply), params, {}, jnp.ones((2, 6)), {'w': LAYERS})
  assert [(row.path, row.size, row.nonzero) for row in rows] == [('w[0]', 36, 36), ('w[1]', 36, 18), ('w[2]', 36, 36)]


def ensemble(p, x):
  return jax.vmap(lambda w: x @ w)(p['w'])  # over shared inputs: one wide layer to any reader


def unit_masks(name, mask):
  """Which units live: of each layer, of each output, of each channel."""
  return mask.reshape(3, -1) if name == 'layers' else mask.any(1)


RIGL = {
  # name: (structure, program, what lives of each competition)
  'layers': (stacked(axis=0), ensemble, 24),
  'channels': (channel(), scanned, 3),
}


@pytest.mark.parametrize('name', RIGL)
def test_rigl_moves_units_of_each_layer(name):
  structure, forward, live = RIGL[name]
  shape = (3, 8, 6) if name == 'layers' else (3, 6, 6)
  params = {'w': jnp.asarray(RNG.normal(size=shape) * np.array([1, 1e-2, 1e-4])[:, None, None], jnp.float32)}
  slope = np.asarray(RNG.normal(size=shape), np.float32)
  tx = jl.rigl(optax.sgd(0.0), 0.5, end=4, every=1, fraction=0.7, structure=structure)
  state = tx.init(params, parameter_layouts(forward, params, jnp.ones((2, shape[1]))))
  update, size = jax.jit(tx.update), np.abs(np.asarray(params['w']))
  units = lambda values: values.reshape(3, -1) if name == 'layers' else np.sqrt((values**2).sum(1))  # noqa: E731
  for count in range(3):
    before = unit_masks(name, np.asarray(state.masks.masks['w']))
    _, state = update({'w': jnp.asarray(slope)}, state, params)
    mask = np.asarray(state.masks.masks['w'])
    after = unit_masks(name, mask)
    assert after.sum(1).tolist() == [live] * 3
    if name == 'channels':
      assert (mask == mask[:, :1]).all()  # whole columns
    moving = int(live * 0.35 * (1 + np.cos(np.pi * count / 4))) if count else 0
    for layer in range(3):
      kept = np.zeros(before.shape[1], bool)
      kept[np.argsort(-np.where(before[layer], units(size)[layer], -1), kind='stable')[: live - moving]] = True
      grown = np.argsort(-np.where(kept, -1, units(np.abs(slope))[layer]), kind='stable')[:moving]
      kept[grown] = True
      np.testing.assert_array_equal(after[layer], kept)


def test_rigl_refuses_a_pattern_in_one_line():
  with pytest.raises(ValueError, match=r"rigl: a pattern says how many of each group live, so 2:4 leaves 'w' nothing"):
    jl.rigl(optax.sgd(0.1), 0.5, end=4, structure=n_m(2, 4)).init({'w': jnp.ones((8, 8))})


@pytest.mark.parametrize('part', [jl.rigl, jl.pruning.set_])
def test_connections_are_dropped_by_the_weights_that_are_read(part):
  """A schedule-free optimizer trains at one point and is read at another: the smallest there give way."""
  params = {'w': jnp.asarray(RNG.normal(size=(8, 8)), jnp.float32)}
  tx = part(optax.sgd(0.0), 0.5, end=4, every=1, fraction=0.5, seed=3)
  state = tx.init(params)
  slope, point = {'w': jnp.ones((8, 8))}, {'w': jnp.asarray(RNG.normal(size=(8, 8)), jnp.float32)}
  _, state = tx.update(slope, state, params, point=point)
  before = np.asarray(state.masks.masks['w'])
  _, state = tx.update(slope, state, params, point=point)
  dropped = before & ~np.asarray(state.masks.masks['w'])
  moving = int(32 * 0.25 * (1 + np.cos(np.pi / 4)))
  smallest = np.argsort(np.where(before, np.abs(point['w']), np.inf).ravel())[:moving]
  assert {*np.flatnonzero(dropped)} <= {*smallest}
  assert dropped.any()


def test_padded_examples_count_in_no_statistic():
  params = {'w': jnp.asarray(RNG.normal(size=(6, 4)), jnp.float32)}
  x = np.asarray(RNG.normal(size=(5, 6)), np.float32)
  padded = np.concatenate([x, np.full((3, 6), 7, np.float32)])
  weight = np.array([1, 2, 1, 1, 1, 0, 0, 0], np.float32)
  whole = {'inputs': padded, 'labels': np.zeros((8, 4), np.float32), 'weight': weight}
  empty = {**whole, 'weight': np.zeros(8, np.float32)}
  loss = lambda outputs, batch: ((outputs - batch['labels']) ** 2).mean(-1)  # noqa: E731
  found = gather_statistics(lambda p, x: x @ p['w'], params, batches=[empty, whole, empty], loss=loss)
  np.testing.assert_allclose(found.grams['w'][0], x.T @ x, rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(found.norms['w'][:, 0], np.linalg.norm(x, axis=0), rtol=1e-5)
  slope = x.T @ (x @ params['w'] * weight[:5, None]) / 2 / weight.sum()
  np.testing.assert_allclose(found.gradients['w'], slope, rtol=1e-4, atol=1e-5)
  with pytest.raises(ValueError, match='at least one batch'):
    gather_statistics(lambda p, x: x @ p['w'], params, batches=[empty])
