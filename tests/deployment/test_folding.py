"""Laws of a list that is written without values: with them put in it is what a list written with them is."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxlite as jl
from jaxlite import models, trees
from jaxlite.deployment.operations import UNKNOWN, listed, pruned, reference
from jaxlite.deployment.operations.folding import folded
from jaxlite.deployment.operations.lowering import lower, lower_open
from jaxlite.deployment.operations.patterns import recognized
from networks import FRAMEWORKS, convnet, dense

pytestmark = pytest.mark.unoptimized
RNG = np.random.default_rng(0)


def floats(*shape):
  return RNG.normal(size=shape).astype(np.float32)


def both_ways(fn, values, inputs):
  """(list written with the values, list into which they were put, the latter before)."""
  shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf), leaf.dtype), values)
  graph, known = lower_open(fn, shapes, inputs)
  again = listed.of_json(listed.to_json(graph), known)
  held = {path or 'params': np.asarray(leaf) for path, leaf in trees.by_path(values).items()}
  return lower(fn, values, inputs), folded(again, {name: held[path] for name, path in known.items()}), graph


def gru():
  import equinox as eqx

  class Net(eqx.Module):
    cell: eqx.nn.GRUCell

    def __call__(self, x):
      return jax.lax.scan(lambda h, row: (self.cell(row, h), None), jnp.zeros(6), x)[0]

  return Net(eqx.nn.GRUCell(4, 6, key=jax.random.key(0)))


TOKENS = RNG.integers(1, 50, (3, 9)).astype(np.int32)
TRAINED = {
  'fake quantization': (models.SmallCNN, floats(4, 12, 12, 1), lambda: [jl.fake_quant()]),
  'learned steps of 4 bits': (lambda: models.MLP((8,)), floats(4, 6), lambda: [jl.lsq(bits=4)]),
  'an average': (lambda: convnet(), floats(4, 4, 4, 1), lambda: [jl.average(0.5)]),
  'masks of its own': (lambda: models.MLP((8,)), floats(4, 6), lambda: [jl.pruning.straight_through(0.5, end=2)]),
  'standardized and recurrent': (gru, floats(4, 5, 4), lambda: [jl.optim.normalize(np.ones(4), np.full(4, 2.0))]),
  'a decoder, few bits': (lambda: models.Decoder(50, 16, 1, 2, length=9), TOKENS, lambda: [jl.fake_quant(bits=6)]),
}


QUICK = ('learned steps of 4 bits', 'function')  # the others compile each operation of a network on its own


def but_slow(names):
  return [one if one in QUICK else pytest.param(one, marks=pytest.mark.slow) for one in names]


@pytest.mark.parametrize('name', but_slow(TRAINED))
def test_with_the_values_of_a_checkpoint_it_is_the_list_that_knows_them(name):
  make, inputs, parts = TRAINED[name]
  loss = jl.cross_entropy if inputs.dtype != np.int32 else lambda outputs, batch: outputs.mean((1, 2))
  train = jl.train_step(jl.adapt(make()), loss, jl.chain(*parts(), optax.adam(1e-2)))
  batch = {'inputs': inputs, 'labels': np.arange(len(inputs)) % 2}
  state, _ = train.step(train.init(jax.random.key(0), batch), batch)
  whole = {**state.model_state, **({'jl.const': state.const} if state.const else {})}

  def forward(values, x):
    return train.model.apply(values['params'], values['model_state'], x, train=False, key=None)[0]

  values = {'params': state.params, 'model_state': whole}
  one, other, before = both_ways(forward, values, inputs)
  assert [each.kind for each in other.operations] == [each.kind for each in one.operations]
  assert len(before.operations) > len(other.operations) or name == 'standardized and recurrent'
  assert not set(before.constants) & set(trees.by_path(values))  # no value of a param was known
  want = np.asarray(jax.jit(forward)(values, inputs))
  for graph in (other, recognized(other)):
    found = reference.run(graph, inputs)
    np.testing.assert_allclose(found, want, rtol=2e-5, atol=2e-5)
  np.testing.assert_array_equal(reference.run(other, inputs), reference.run(one, inputs))


@pytest.mark.parametrize('framework', but_slow(FRAMEWORKS))
def test_it_is_so_in_every_framework(framework):
  model = dense(framework, [floats(6, 8), floats(8), floats(8, 3), floats(3)])[0]
  values = model.init(jax.random.key(0), floats(4, 6))
  one, other, _ = both_ways(lambda v, x: model.apply(*v, x, train=False, key=None)[0], values, floats(4, 6))
  assert [each.kind for each in recognized(other).operations] == ['dense', 'relu', 'dense']
  x = floats(4, 6)
  np.testing.assert_array_equal(reference.run(other, x), reference.run(one, x))


def bits(x):
  return jax.lax.bitcast_convert_type(x, jnp.int32)


WAYS = {
  'a way that the values choose': lambda p, x: jax.lax.cond(
    p['seen'], lambda y: y * p['low'], lambda y: y * y.max(), x
  ),
  'one of three ways': lambda p, x: jax.lax.switch(p['which'], [jnp.sin, lambda y: y + p['low'], jnp.cos], x),
  'a branch over the batch that is not taken': lambda p, x: jnp.where(p['seen'], x * p['low'], x - x.mean(0)),
  'a branch that counts the batch': lambda p, x: jnp.where(p['seen'], x * p['low'], x / x.shape[0]),
  'a branch that nothing can write': lambda p, x: jnp.where(
    p['seen'], x, jax.pure_callback(lambda y: y, jax.ShapeDtypeStruct(x.shape, x.dtype), x)
  ),
  'a loop over values': lambda p, x: jax.lax.scan(lambda c, row: (c * row, None), x, p['rows'])[0],
  'bits of values': lambda p, x: (
    x * jax.lax.bitcast_convert_type(jax.lax.bitcast_convert_type(p['rows'], jnp.int32) + 1, jnp.float32)[0]
  ),
  'bits that overflow': lambda p, x: x + ((bits(p['rows'][1]) + np.int32(2**31 - 1)) >> 31),
  'a constant as wide as the batch': lambda p, x: x + jnp.zeros((x.shape[0], 1)) @ p['rows'][:1] + p['low'],
  'values beside the inputs': lambda p, x: jnp.concatenate([x, jnp.broadcast_to(p['rows'][0], (x.shape[0], 3))], 1),
}


@pytest.mark.parametrize('name', WAYS)
def test_what_the_values_decide_is_decided_when_they_are_there(name):
  values = {'seen': np.array(True), 'which': np.int32(1), 'low': np.float32(1.5), 'rows': floats(2, 3)}
  x = floats(4, 3)
  one, other, _ = both_ways(WAYS[name], values, x)
  assert {each.kind for each in other.operations} <= {each.kind for each in one.operations} | {'reshape', 'slice'}
  np.testing.assert_array_equal(reference.run(other, x), reference.run(one, x))
  np.testing.assert_allclose(reference.run(other, x), WAYS[name](values, x), rtol=1e-6)


REFUSED = {
  'a mean over the batch': (lambda p, x: jnp.where(p['seen'], x, x - x.mean(0)), 'its own example alone'),
  'a batch that is counted': (lambda p, x: jnp.where(p['seen'], x, x * x.shape[0]), 'batch is counted'),
  'a way that inputs choose': (
    lambda p, x: jnp.where(p['seen'], x, jax.lax.cond(x[0, 0] > 0, jnp.sin, jnp.cos, x)),
    r'use jnp\.where',
  ),
  'a factorization': (lambda p, x: jnp.where(p['seen'], x, x @ jnp.linalg.cholesky(p['m'])), 'cholesky'),
  'a loop too long': (
    lambda p, x: jnp.where(p['seen'], x, jax.lax.fori_loop(0, 1000, lambda i, y: y + 1, x)),
    '256 iterations',
  ),
}


@pytest.mark.parametrize('name', REFUSED)
def test_what_cannot_be_written_is_refused_where_the_values_need_it_and_nowhere_else(name):
  fn, match = REFUSED[name]
  values = {'seen': np.array(True), 'm': np.eye(3, dtype=np.float32)}
  x = floats(4, 3)
  graph, known = lower_open(fn, values, x)
  assert UNKNOWN in [one.kind for one in graph.operations]
  assert not folded(graph, {name: values[path] for name, path in known.items()}).operations
  values['seen'] = np.array(False)
  with pytest.raises(ValueError, match=match) as caught:
    folded(graph, {name: values[path] for name, path in known.items()})
  assert '\n' not in str(caught.value)


def test_values_of_another_shape_or_missing_are_told():
  shapes = {'a': np.ones(3), 'b': np.ones(3)}  # float64, which JAX makes float32
  graph, known = lower_open(lambda p, x: x * p['a'] + p['b'], shapes, floats(4, 3))
  with pytest.raises(ValueError, match=r"takes 'a' as float32\[3\]; got float32\[2\]"):
    folded(graph, {'known/a': np.ones(2, np.float32), 'known/b': np.ones(3, np.float32)})
  with pytest.raises(ValueError, match=r"reads 'b', which has no value"):
    folded(graph, {'known/a': np.ones(3, np.float32)})
  assert pruned(graph) == graph
  assert set(known.values()) == {'a', 'b'}


def test_a_random_key_among_values_is_no_obstacle_where_nothing_draws():
  values = {'key': jax.random.key(0), 'w': floats(3, 2)}
  x = floats(4, 3)
  graph, known = lower_open(lambda p, x: x @ p['w'], values, x)
  assert list(known.values()) == ['w']
  drawn, _ = lower_open(lambda p, x: x + jax.random.normal(p['key'], (3,)), values, x)
  with pytest.raises(ValueError, match=r'random|draws'):
    folded(drawn, {})
  np.testing.assert_allclose(
    reference.run(folded(graph, {'known/w': values['w']}), x), x @ values['w'], rtol=1e-5, atol=1e-6
  )
