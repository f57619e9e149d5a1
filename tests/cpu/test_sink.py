"""A held pool: written after its bias and activation, with the same bits, where nothing reads what lies between."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxpr_as_fun

import jaxlite as jl
from jaxlite.cpu.fusion import held
from jaxlite.cpu.sink import sunk
from jaxlite.models import LeNet5, SmallCNN, max_pool

CHAINS = {
  'bias': lambda y, b: y + b,
  'bias and ReLU': lambda y, b: jax.nn.relu(y + b),
  'scale, bias and leaky ReLU': lambda y, b: jax.nn.leaky_relu(b * y + b),
  'ReLU alone': lambda y, b: jnp.maximum(y, 0),
}
LEFT = {
  'what lies between is read': lambda y, b: (y + b, jax.nn.relu(y + b * 2)),
  'it is returned': lambda y, b: (y, jax.nn.relu(y + b)),
  'an operand is large': lambda y, b: y + jnp.ones_like(y),
  'an operation is dear': lambda y, b: jnp.tanh(y),
  'its end is read by two cheap ones': lambda y, b: (lambda z: (jax.nn.relu(z), z > 0))(y + b),
  'it meets itself': lambda y, b: y * y,
}


def program(after):
  def fn(x, kernel, b):
    y = jax.lax.conv_general_dilated(x, kernel, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC'))
    return jax.tree.map(lambda y: jnp.concatenate([y, y], -1), after(max_pool(y), b))

  rng = np.random.default_rng(3)
  operands = [rng.normal(size=shape).astype(np.float32) for shape in ((4, 10, 9, 2), (3, 3, 2, 20), (20,))]
  operands[0][0, :2, :2] = np.nan, -np.inf
  return jax.make_jaxpr(fn)(*operands), operands


def names(jaxpr):
  return ['held' if 'jaxlite_cpu_held' in str(eqn) else eqn.primitive.name for eqn in jaxpr.eqns]


@pytest.mark.parametrize('after', CHAINS.values(), ids=CHAINS)
def test_the_end_of_a_chain_is_held_with_every_bit_as_it_was(after):
  closed, operands = program(after)
  moved = closed.replace(jaxpr=sunk(closed.jaxpr))
  before, then = names(closed.jaxpr), names(moved.jaxpr)
  assert sorted(before) == sorted(then)
  assert then[then.index('held') + 1] == 'concatenate'
  assert then.index('held') > before.index('held')
  one, other = (jax.jit(jaxpr_as_fun(each))(*operands)[0] for each in (closed, moved))
  assert np.asarray(one).tobytes() == np.asarray(other).tobytes()
  slopes = [
    jax.jit(jax.grad(lambda *given, each=each: jaxpr_as_fun(each)(*given)[0][1:].sum(), (1, 2)))
    for each in (closed, moved)
  ]
  for mine, theirs in zip(*(slope(*operands) for slope in slopes), strict=True):
    np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize('after', LEFT.values(), ids=LEFT)
def test_what_would_be_computed_twice_or_rounded_otherwise_stays(after):
  closed, _ = program(after)
  assert sunk(closed.jaxpr) is closed.jaxpr


def test_what_is_held_for_another_reason_stays():
  """A product that is held is rounded before the sum that follows it."""
  closed = jax.make_jaxpr(lambda x: held(x * x) + 1)(jnp.ones((8, 8)))
  assert sunk(closed.jaxpr) is closed.jaxpr


@pytest.mark.parametrize('network', [SmallCNN(features=(4, 8), hidden=16), LeNet5(), SmallCNN(batch_norm=True)])
def test_a_network_answers_alike_and_its_train_step_keeps_its_program(network):
  model = jl.from_linen(network)
  x = np.random.default_rng(0).normal(size=(5, 28, 28, 1)).astype(np.float32)
  params, state = model.init(jax.random.key(0), x)

  def answer(params, x):
    return model.apply(params, state, x, train=False, key=None)[0]

  closed = jax.make_jaxpr(answer)(params, x)
  moved = closed.replace(jaxpr=sunk(closed.jaxpr))
  assert moved.jaxpr is not closed.jaxpr
  one, other = (jax.jit(jaxpr_as_fun(each))(*jax.tree.leaves((params, x)))[0] for each in (closed, moved))
  assert np.asarray(one).tobytes() == np.asarray(other).tobytes()
  if not isinstance(network, LeNet5):  # it has no ReLU whose mask is read
    slope = jax.make_jaxpr(jax.grad(lambda params, x: jnp.log(answer(params, x) ** 2).sum()))(params, x)
    assert sunk(slope.jaxpr) is slope.jaxpr
