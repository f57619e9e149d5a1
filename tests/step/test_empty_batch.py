"""A step of no example is refused before it spoils the state: its mean would be NaN, and so all that learns of it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxlite as jl
from jaxlite.contract import Network
from networks import convnet

pytestmark = pytest.mark.unoptimized

TEACHER = Network(convnet(), *convnet().init(jax.random.key(9), None))


def batch_of(size):
  rng = np.random.default_rng(0)
  return {
    'inputs': jnp.asarray(rng.normal(size=(size, 4, 4, 1)), jnp.float32),
    'labels': jnp.asarray(rng.integers(0, 3, size), jnp.int32),
    'weight': jnp.ones(size),
  }


@pytest.mark.parametrize(
  'parts',
  [(), (jl.accumulate(2),), (jl.optim.sam(0.05),), (jl.augment(jl.optim.mixup(0.2, 3)),), (jl.distill(TEACHER),)],
  ids=['plain', 'micro-batches', 'sam', 'mixed', 'distilled'],
)
def test_a_step_of_no_example_is_refused_and_the_state_lives_on(parts):
  train = jl.train_step(convnet(), jl.cross_entropy, jl.chain(*parts, optax.adam(1e-2)))
  state, _ = train.step(train.init(jax.random.key(0), batch_of(8)), batch_of(8))
  told = r'one example at least; got a batch of none, inputs float32\[0, 4, 4, 1\]: leave out'
  for batch in (batch_of(0), {name: leaf for name, leaf in batch_of(0).items() if name != 'weight'}):
    with pytest.raises(ValueError, match=told):
      train.step(state, batch)
  with pytest.raises(ValueError, match=told):
    train.steps(state, jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), batch_of(0)))
  state, metrics = train.step(state, batch_of(8))
  assert int(state.step) == 2
  assert np.isfinite(metrics['loss'])


def test_an_empty_part_of_the_inputs_is_no_empty_batch():
  """A graph without edges, say, in a loop of one's own with a loss of one's own."""
  model = jl.from_function(lambda p, x: x['nodes'] @ p['w'] + x['edges'].sum(), {'w': jnp.ones((3, 2))})
  train = jl.train_step(model, lambda outputs, batch: (outputs**2).mean(), jl.chain(optax.sgd(0.1)))
  batch = {'inputs': {'edges': jnp.zeros((0, 2)), 'nodes': jnp.ones((4, 3))}}
  assert np.isfinite(train.step(train.init(jax.random.key(0), batch), batch)[1]['loss'])
