"""Laws of how zeros are shared where nobody says how: large layers give more, so that a small one is not starved."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxlite as jl
from jaxlite.pruning import gather_statistics, n_m, rewind, sparsegpt, sparsify, straight_through, uniform
from jaxlite.pruning._allocate import Leaf, erk

pytestmark = pytest.mark.unoptimized

RNG = np.random.default_rng(0)
SHAPES = {'one': (20, 30), 'two': (30, 25), 'three': (25, 4)}
PARAMS = {name: RNG.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}
X = RNG.normal(size=(64, 20)).astype(np.float32)
SPARSITY = 0.9


def apply(params, x):
  return jnp.tanh(jnp.tanh(x @ params['one']) @ params['two']) @ params['three']


def loss(outputs, batch):
  return jnp.mean(outputs**2, axis=1)


def by_prune():
  tx = optax.chain(optax.sgd(0.0), jl.prune(SPARSITY))
  zeros = jax.tree.map(jnp.zeros_like, PARAMS)
  return optax.apply_updates(PARAMS, tx.update(zeros, tx.init(PARAMS), PARAMS)[0])


def by_straight_through():
  train = jl.train_step(jl.from_function(apply, PARAMS), loss, jl.chain(straight_through(SPARSITY), optax.sgd(0.0)))
  state = train.init(jax.random.key(0), {'inputs': X})
  return train.model.export(state.params, state.model_state)[0]


PARTS = {
  'prune': by_prune,
  'straight_through': by_straight_through,
  'sparsify': lambda: sparsify(PARAMS, SPARSITY)[0],
  'rewind': lambda: rewind(PARAMS, PARAMS, SPARSITY)[0],
  'sparsegpt': lambda: sparsegpt(PARAMS, gather_statistics(apply, PARAMS, batches=[{'inputs': X}]), SPARSITY)[0],
}


@pytest.mark.sampled(2)
@pytest.mark.parametrize('name', list(PARTS))
def test_a_part_that_is_told_nothing_shares_zeros_by_the_published_rule(name):
  """Oracle: density proportional to (inputs + outputs) / (inputs * outputs), scaled to the total."""
  raw = {name: sum(shape) / np.prod(shape) for name, shape in SHAPES.items()}
  sizes = {name: np.prod(shape) for name, shape in SHAPES.items()}
  scale = (1 - SPARSITY) * sum(sizes.values()) / sum(raw[name] * sizes[name] for name in SHAPES)
  live = {leaf: int(np.count_nonzero(values)) for leaf, values in PARTS[name]().items()}
  assert live == {name: round(float(scale * raw[name] * sizes[name])) for name in SHAPES}
  assert abs(sum(live.values()) - (1 - SPARSITY) * sum(sizes.values())) <= len(SHAPES) / 2
  assert live['three'] > 2 * (1 - SPARSITY) * sizes['three']  # what feeds the outputs is not starved


def test_layers_that_are_alike_get_the_sparsity_as_it_was_written():
  for sparsity in (0.5, 0.9, 1 / 3, 0.75, 0.1):
    for shapes in ([(3, 3)], [(3, 5)] * 7, [(3, 3, 2, 8)] * 3):
      leaves = {str(i): Leaf(shape) for i, shape in enumerate(shapes)}
      shares, plain = erk(leaves, sparsity), uniform(leaves, sparsity)
      for path, leaf in leaves.items():
        assert round(np.prod(leaf.shape) * shares[path]) == round(np.prod(leaf.shape) * plain[path])


def test_a_layer_whose_structure_says_how_much_lives_is_no_part_of_the_others_budget():
  structure = {'two': n_m(2, 4)}
  masks = sparsify(PARAMS, 0.5, structure=structure)[1]
  alone = sparsify({name: PARAMS[name] for name in ('one', 'three')}, 0.5)[1]
  assert int(masks['two'].sum()) == 30 // 4 * 2 * 25 + 25
  for name in ('one', 'three'):
    np.testing.assert_array_equal(masks[name], alone[name])


def test_an_empty_leaf_neither_divides_by_zero_nor_changes_the_others():
  leaves = {'a': Leaf((10, 20)), 'b': Leaf((20, 40))}
  with_empty = erk({**leaves, 'none': Leaf((0, 3))}, 0.8)
  assert {path: with_empty[path] for path in leaves} == erk(leaves, 0.8)
  assert erk({'none': Leaf((0, 3))}, 0.8) == {'none': 0.0}
