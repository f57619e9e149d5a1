"""Laws of the plan of one call: counted as by hand, held at least as much as goes in and out, near what XLA holds."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxlite as jl
from jaxlite.host.rates import Rates
from jaxlite.planning.function import call

ONE = {'float32': 1e11, 'bfloat16': 1e11, 'int8': 1e11}
RATES = Rates(ONE, ONE, ONE, 1e10, 1e10, 1e10, 1e9, 1e-5)


def loss(params, x, y):
  for w in params:
    x = jnp.tanh(x @ w)
  return jnp.mean((x - y) ** 2)


def step(state, x, y):
  params, opt_state = state
  updates, opt_state = optax.adam(1e-3).update(jax.grad(loss)(params, x, y), opt_state, params)
  return optax.apply_updates(params, updates), opt_state


def arguments(width=256, batch=512, depth=4):
  params = [jnp.zeros((width, width))] * depth
  x = jax.ShapeDtypeStruct((batch, width), jnp.float32)
  return (params, optax.adam(1e-3).init(params)), x, x


def test_a_step_of_somebody_elses_is_told_of_as_it_is_compiled():
  args = arguments()
  found = jl.plan(jax.jit(step), args=args, donated=(0,))
  products = 3 * 4 * 2 * 512 * 256 * 256 - 2 * 512 * 256 * 256  # forward, and two gradients but that of the inputs
  assert products <= found.flops <= 1.2 * products
  state = sum(leaf.nbytes for leaf in jax.tree.leaves(args[0]))
  assert found.arguments == state + 2 * 4 * 512 * 256
  assert found.outputs == 0  # all of it lies where the donated state lay
  exact = jl.plan(step, args=args, donated=(0,), compiled=True)
  assert exact.arguments == found.arguments
  assert 0 <= exact.outputs - found.outputs < 1024  # a table of addresses
  assert abs(found.temporaries - exact.temporaries) <= 0.35 * exact.temporaries
  for words in ('MFLOP', 'temporaries', 'a call on this machine'):
    assert words in str(found)


def test_time_goes_with_the_work_and_is_not_told_of_a_machine_that_was_not_measured():
  small, large = (call(step, arguments(batch=batch), RATES) for batch in (512, 4096))
  assert 3 < large.time.seconds / small.time.seconds < 12
  assert small.time.low < small.time.seconds < small.time.high
  nothing = call(step, arguments())
  assert nothing.time is None
  assert 'on this machine' not in str(nothing)


def test_any_function_and_nothing_at_all():
  found = call(lambda: jnp.zeros(3), ())
  assert found.arguments == 0
  assert call(lambda x: x, (np.zeros((0, 3), np.float32),)).flops == 0
  many = jax.vmap(lambda x: x @ x)
  assert call(many, (np.ones((5, 8, 8), np.float32),)).flops == pytest.approx(5 * 2 * 8**3, rel=0.1)


@pytest.mark.parametrize(
  'given',
  [{'args': None}, {'args': (1.0,), 'model': 1}, {'args': (1.0,), 'data': (1, 2)}, {'args': (1.0,), 'workdir': 'x'}],
)
def test_a_function_goes_with_its_arguments_alone(given):
  with pytest.raises(TypeError, match=r'jl\.plan of a function takes its arguments'):
    jl.plan(lambda x: x, **given)


def test_a_config_goes_without_arguments():
  with pytest.raises(TypeError, match='args= and donated= go with a function; got Config'):
    jl.plan(jl.Config(name='x'), args=(1,))
