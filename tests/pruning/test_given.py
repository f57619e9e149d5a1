"""What people bring to pruning: masks of other libraries, rules that are masks, arguments that would do nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxlite.pruning import (
  apply_masks,
  channel,
  check,
  gather_statistics,
  global_,
  hold,
  n_m,
  prune,
  rigl,
  sparsegpt,
  sparsify,
  straight_through,
)
from jaxlite.pruning.scores import magnitude, random
from jaxlite.pruning.sparsity_schedules import cubic

pytestmark = pytest.mark.unoptimized


def weights():
  return {'w': jnp.arange(1.0, 17.0).reshape(2, 8), 'b': jnp.ones(8)}


def alternate(dtype):
  return (jnp.arange(16).reshape(2, 8) % 2).astype(dtype)


@pytest.mark.parametrize('dtype', ['uint8', 'float32', 'int32'])  # as JaxPruner, PyTorch and NumPy users keep them
@pytest.mark.parametrize(
  'give', [lambda masks: apply_masks(weights(), masks), lambda masks: hold(masks).init(weights())]
)
def test_a_mask_of_numbers_is_never_taken_for_bits(dtype, give):
  with pytest.raises(ValueError, match=r"bool\[2, 8\] or uint8\[2\], bits, for 'w'; got .*: give mask != 0"):
    give({'w': alternate(dtype)})


@pytest.mark.parametrize(
  'masks, words',
  [
    ({'w': jnp.ones((1, 8), bool)}, 'masks of these params'),
    ({'b': jnp.ones((2, 8), bool)}, "bool[8] or uint8[1], bits, for 'b'; got bool[2, 8]"),
    ({'v': jnp.ones((2, 8), bool)}, "the mask 'v' is of no parameter; nearest: "),
    ({'w': None, 'b': None}, 'there is no mask'),
  ],
)
def test_a_mask_that_does_not_fit_is_refused_in_one_line(masks, words):
  with pytest.raises(ValueError) as caught:
    apply_masks(weights(), masks)
  assert words in str(caught.value)
  assert '\n' not in str(caught.value)


def test_masks_come_as_a_tree_or_by_path_in_bools_or_bits_traced_or_not():
  params = {'layer': weights()}
  wanted = np.where(alternate(bool), params['layer']['w'], 0)
  scores = {'layer': {'w': alternate('float32'), 'b': params['layer']['b']}}
  _, packed = sparsify(params, 0.5, packed=True, score=lambda *_: scores)
  for masks in (
    {'layer': {'w': alternate(bool), 'b': None}},
    {'layer': {'w': alternate(bool)}},
    {'layer/w': np.asarray(alternate(bool))},
    packed,
  ):
    for apply in (apply_masks, jax.jit(apply_masks)):
      np.testing.assert_array_equal(apply(params, masks)['layer']['w'], wanted)
      np.testing.assert_array_equal(apply(params, masks)['layer']['b'], params['layer']['b'])


@pytest.mark.parametrize(
  'make, words',
  [
    (lambda: prune(0.5, select=[]), 'prune: rule is empty, so it picks no parameter'),
    (lambda: prune(0.5, select={'w': True, 'b': False}), 'a tree of booleans goes to optax.masked(part, tree)'),
    (lambda: prune(0.5, select=lambda tree: {'w': True}), 'a predicate takes a path'),
    (lambda: prune(0.5, initial=0.3), 'prune: initial=0.3 is the sparsity at begin of a gradual schedule'),
    (lambda: straight_through(0.5, initial=0.3), 'straight: initial=0.3 is the sparsity at begin'),
    (lambda: prune(0.5, every=5, schedule=cubic(0, 9)), 'schedule= already says when; leave begin, end, every'),
    (lambda: straight_through(0.5, every=2, schedule=cubic(0, 9)), 'schedule= already says when'),
  ],
)
def test_what_would_be_passed_over_is_refused(make, words):
  with pytest.raises((ValueError, TypeError)) as caught:
    make().init(weights())
  assert words in str(caught.value)
  assert '\n' not in str(caught.value)


def test_a_tree_of_booleans_picks_through_optax_masked():
  tx = optax.masked(prune(0.5), {'w': True, 'v': False})
  params = {'w': jnp.arange(1.0, 5.0).reshape(2, 2), 'v': jnp.arange(1.0, 5.0).reshape(2, 2)}
  updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
  found = optax.apply_updates(params, updates)
  assert found['w'].tolist() == [[0.0, 0.0], [3.0, 4.0]]
  assert found['v'].tolist() == params['v'].tolist()


def test_a_scalar_that_a_rule_names_is_a_leaf_of_one_weight():
  params = {'gain': jnp.float32(3), 'w': jnp.arange(1.0, 17.0).reshape(4, 4)}
  found, masks = sparsify(params, 0.5, select='.')
  assert float(found['gain']) == 3.0
  assert masks['gain'].shape == ()
  assert int((found['w'] == 0).sum()) == 8


def test_masks_inside_of_lookahead_do_not_hold_its_slow_weights_and_behind_it_they_do():
  start = {'w': jnp.array([[1.0, -2.0], [3.0, -4.0]])}

  def run(tx):
    params = optax.LookaheadParams.init_synced(start)
    state = tx.init(params)
    for _ in range(7):
      updates, state = tx.update({'w': jnp.ones((2, 2))}, state, params)
      params = optax.apply_updates(params, updates)
    return params, state

  params, state = run(optax.lookahead(optax.chain(optax.sgd(0.1), prune(0.5)), 3, 0.5))
  assert not np.any(params.slow['w'] == 0)
  with pytest.raises(ValueError, match=r'optax.chain\(optax.lookahead\(...\), prune\(...\)\)'):
    check(state)
  params, state = run(optax.chain(optax.lookahead(optax.sgd(0.1), 3, 0.5), prune(0.5)))
  assert int((params.slow['w'] == 0).sum()) == int((params.fast['w'] == 0).sum()) == 2
  check(state)


def test_a_pattern_is_found_where_ranks_are_not_promoted():
  params = {'w': jnp.arange(1.0, 29.0).reshape(7, 4)}
  plain, _ = sparsify(params, 0.5, structure=n_m(2, 4))
  with jax.numpy_rank_promotion('raise'), jax.numpy_dtype_promotion('strict'):
    strict, _ = sparsify(params, 0.5, structure=n_m(2, 4))
  np.testing.assert_array_equal(plain['w'], strict['w'])


def test_tree_map_params_says_what_to_do():
  tx = optax.chain(optax.adam(0.1), prune(0.5))
  with pytest.raises(ValueError, match='map over its state by paths'):
    optax.tree_utils.tree_map_params(tx, lambda leaf: leaf, tx.init(weights()))


@pytest.mark.parametrize(
  'part', [lambda score: sparsify(weights(), 0.5, score=score), lambda score: prune(0.5, score=score).init(weights())]
)
def test_a_score_below_zero_is_refused_and_not_taken_by_its_size(part):
  part(lambda params, _: jax.tree.map(jnp.abs, params))
  with pytest.raises(ValueError, match="the largest live; that of 'w' falls to -16: give its exp, or its size"):
    part(lambda params, _: jax.tree.map(jnp.negative, params))


@pytest.mark.parametrize('bad', [np.nan, np.inf, 1e30])
def test_inputs_that_are_not_finite_are_told_and_not_scored_by(bad):
  batch = {'inputs': jnp.ones((4, 2)).at[1, 0].set(bad)}
  with pytest.raises(ValueError, match="the inputs of 'w' are not finite, or too large for their squares"):
    gather_statistics(lambda params, x: x @ params['w'], weights(), batches=[batch])


def test_gradients_that_are_not_finite_are_told():
  def loss(outputs, batch):
    return jnp.sqrt(outputs[:, 0] * 0)  # its slope at 0 is infinite

  with pytest.raises(ValueError, match="the gradients of 'w' are not finite"):
    gather_statistics(lambda params, x: x @ params['w'], weights(), batches=[{'inputs': jnp.ones((4, 2))}], loss=loss)


@pytest.mark.parametrize(
  'wrong', [{'damping': np.nan}, {'damping': '0.1'}, {'damping': 0}, {'block': 1.5}, {'block': 0}]
)
def test_sparsegpt_takes_numbers(wrong):
  context = gather_statistics(lambda params, x: x @ params['w'], weights(), batches=[{'inputs': jnp.ones((4, 2))}])
  with pytest.raises((ValueError, TypeError), match=f'sparsegpt: {next(iter(wrong))} is'):
    sparsegpt(weights(), context, 0.5, **wrong)


def test_bits_are_read_where_ranks_are_not_promoted():
  _, packed = sparsify(weights(), 0.5, packed=True)
  with jax.numpy_rank_promotion('raise'), jax.numpy_dtype_promotion('strict'):
    found = apply_masks(weights(), packed)
  assert int((found['w'] == 0).sum()) == 8


@pytest.mark.parametrize(
  'batches, words',
  [
    ({'inputs': jnp.ones((4, 2))}, 'gather_statistics takes several batches; got one: give [batch]'),
    (
      [(jnp.ones((4, 2)), jnp.ones(4))],
      "takes batches that are dicts with 'inputs' (and 'labels', 'weight'); got tuple",
    ),
    ([{'x': jnp.ones((4, 2))}], "got the keys ['x']"),
  ],
)
def test_batches_are_dicts_and_several(batches, words):
  with pytest.raises(TypeError) as caught:
    gather_statistics(lambda params, x: x @ params['w'], weights(), batches=batches)
  assert words in str(caught.value)


def test_a_module_with_functions_in_it_is_refused_in_one_line():
  with pytest.raises(TypeError, match=r"sparsify takes arrays; 'activation' is .*: filter the module") as caught:
    sparsify({**weights(), 'activation': jax.nn.relu}, 0.5)
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize('part', [lambda: prune(0.5), lambda: rigl(optax.adam(0.1), 0.5, end=3, every=1)])
def test_numpy_weights_of_64_bits_are_masked_without_a_warning(part):
  params = {'w': np.arange(1.0, 17.0).reshape(2, 8)}
  part, state = part(), part().init(params)
  for _ in range(3):
    updates, state = part.update(params, state, params)
  assert int((optax.apply_updates(params, updates)['w'] == 0).sum()) >= 7


def test_weights_are_sparsified_inside_of_jit_and_vmap_too():
  params = {'w': weights()['w']}
  wanted = sparsify(params, 0.5)[0]['w']
  np.testing.assert_array_equal(jax.jit(lambda tree: sparsify(tree, 0.5)[0])(params)['w'], wanted)
  many = jax.tree.map(lambda leaf: jnp.stack([leaf, -leaf]), params)
  np.testing.assert_array_equal(jax.vmap(lambda tree: sparsify(tree, 0.5)[0])(many)['w'][0], wanted)


@pytest.mark.parametrize(
  'arguments', [{}, {'structure': n_m(2, 4)}, {'structure': channel()}, {'allocate': global_(normalize=True)}]
)
def test_what_has_no_size_may_stand_beside_the_weights(arguments):
  """Keys, counts, plain and NumPy's numbers among the params: masks are those of the weights alone."""
  odd = {**weights(), 'key': jax.random.key(0), 'count': np.arange(3), 'one': np.float32(2), 'two': 2.0}
  for score in (magnitude, random()):
    wanted = sparsify(weights(), 0.5, score=score, **arguments)[0]['w']
    np.testing.assert_array_equal(sparsify(odd, 0.5, score=score, **arguments)[0]['w'], wanted)
  part = prune(0.5, **arguments)
  updates = {**dict.fromkeys(odd), 'w': jnp.zeros((2, 8))}
  updates, _ = part.update(updates, part.init(odd), odd)
  np.testing.assert_array_equal(odd['w'] + updates['w'], sparsify(weights(), 0.5, **arguments)[0]['w'])
