"""Laws of the plan of one call: counted as by hand, held at least as much as goes in and out, near what XLA holds."""

import math
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxlite as jl
from jaxlite.host import mapping
from jaxlite.host.rates import Rates
from jaxlite.planning import elapsed, speed
from jaxlite.planning.cost import cost
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
  model = jl.from_function(lambda w, x: x @ w, jnp.ones((3, 2)))
  train = jl.train_step(model, jl.cross_entropy, jl.chain(optax.sgd(1)))
  with pytest.raises(TypeError, match=r'jl\.plan\(train\.step, args=\(state, batch\)\)'):
    jl.plan(train, args=(1,))
  with pytest.raises(TypeError, match='args= and donated= go with a function; got Config'):
    jl.plan(jl.Config(name='x'), args=(1,))


def test_what_a_function_closes_over_is_held_too():
  large = np.ones((256, 256), np.float32)
  table = jnp.asarray(large)
  inside = lambda x: jax.lax.scan(lambda c, _: (c @ table, None), x, length=3)[0]  # noqa: E731
  given = lambda w, x: jax.lax.scan(lambda c, _: (c @ w, None), x, length=3)[0]  # noqa: E731
  found, other = call(inside, (large[:8],)), call(given, (large, large[:8]))
  assert found.arguments == other.arguments
  assert any('closes over' in line for line in found.said)
  assert not any('closes over' in line for line in other.said)


def test_what_a_jitted_function_is_given_to_keep_is_known_and_what_is_static_too():
  kept = jax.jit(lambda scale, x: x * scale, donate_argnums=1, static_argnums=0)
  for compiled in (False, True):
    assert call(kept, (3, np.ones((64, 64), np.float32)), compiled=compiled).outputs == 0
  assert call(jax.jit(lambda x: x * 2), (np.ones(4),), donated=(-1,)).outputs == 0


def test_equal_results_are_two_arrays():
  twice = lambda x: (x + 1, 1 + x)  # noqa: E731
  args = (np.ones((512, 512), np.float32),)
  found, exact = (call(twice, args, compiled=one) for one in (False, True))
  assert found.outputs == 2 * 4 * 512 * 512 <= exact.outputs < found.outputs + 1024


ON_FOUR = """
import jax, jax.numpy as jnp, numpy as np
from jaxlite.planning.function import call
mesh = jax.sharding.Mesh(np.array(jax.devices()), ('d',))
P = jax.sharding.PartitionSpec
cut = jax.sharding.NamedSharding(mesh, P('d'))
body = lambda x: jnp.tanh(x @ x.T) @ x
shards = jax.shard_map(body, mesh=mesh, in_specs=P('d'), out_specs=P('d'))
x = jax.ShapeDtypeStruct((1024, 64), 'float32')
placed = jax.ShapeDtypeStruct((1024, 64), 'float32', sharding=cut)
wide = lambda x: jnp.tanh(x @ jnp.ones((64, 512))) @ jnp.ones((512, 64))
one = call(body, (jax.ShapeDtypeStruct((256, 64), 'float32'),))
for fn, arg in ((shards, x), (wide, placed), (jax.jit(wide, in_shardings=cut), x)):
  told, exact = call(fn, (arg,)), call(fn, (arg,), compiled=True)
  assert told.devices == exact.devices == 4, (told, exact)
  assert told.arguments == exact.arguments == 4 * 1024 * 64
  assert told.outputs == exact.outputs
  # What each device has a copy of (the ones) is seen once, where XLA places it and not the program.
  assert 0.6 * exact.temporaries <= told.temporaries <= 2.1 * exact.temporaries, (told, exact)
  assert any('all 4 devices' in line for line in told.said)
  if fn is shards:
    assert told.flops == 4 * one.flops and told.temporaries == 4 * one.temporaries
"""


def test_of_several_devices_all_are_told_together():
  environment = {**os.environ, 'XLA_FLAGS': '--xla_force_host_platform_device_count=4', 'JAX_PLATFORMS': 'cpu'}
  done = subprocess.run([sys.executable, '-c', ON_FOUR], env=environment, capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr[-2000:]


def test_what_takes_longer_than_is_told_says_at_least():
  endless = lambda x: jax.lax.while_loop(lambda x: x.sum() < 9, lambda x: x @ x, x)  # noqa: E731
  square = np.ones((64, 64), np.float32)
  assert 'at least' in str(call(endless, (square,), RATES))
  assert 'at least' not in str(call(lambda x: x @ x, (square,), RATES))


def test_what_is_multiplied_in_a_type_of_no_known_rate_is_said_and_wide_floats_take_longer():
  product = lambda x: x @ x  # noqa: E731
  shape = (256, 256)
  took = lambda dtype: speed.spent(cost(jax.make_jaxpr(product)(jax.ShapeDtypeStruct(shape, dtype))).usual, RATES, 1)  # noqa: E731
  assert took('complex64').wall > 4 * took('float32').wall  # four products of real numbers
  assert any('int32' in line for line in call(product, (np.ones(shape, np.int32),), RATES).said)
  assert not call(product, (np.ones(shape, np.float32),), RATES).said


def test_others_widen_the_interval_to_the_side_on_which_they_change_it(monkeypatch):
  monkeypatch.setattr(elapsed.machine, 'cores', lambda: 4)
  shared = lambda x: x @ x  # noqa: E731
  alone = lambda x: jax.lax.fori_loop(0, 999, lambda _, x: x + 1, x)  # noqa: E731
  rates = RATES._replace(one_core=RATES._replace(products={'float32': 2.5e10}))
  found = {}
  for name, fn, size in (('shared', shared, 2048), ('alone', alone, 8)):
    work = cost(jax.make_jaxpr(fn)(jax.ShapeDtypeStruct((size, size), 'float32')))
    found[name] = [elapsed.elapsed(work, rates, free, False) for free in (4.0, 2.0, 1.0)]
  quiet, busy, busier = found['shared']
  assert quiet.wall < busy.wall < busier.wall
  assert quiet.fewer == 0 < busy.fewer < busier.fewer
  assert all(math.exp(one.more) == pytest.approx(2, rel=0.1) for one in found['shared'])
  assert all(one.fewer == one.more == 0 for one in found['alone'][:2])  # it has a core for itself either way
  assert found['alone'][0].wall == found['alone'][2].wall


# What other frameworks hand over, and what a stranger's loop holds.


@jax.tree_util.register_pytree_node_class
class Layer:
  """A module as Equinox has them: a tree whose leaves are arrays and functions."""

  def __init__(self, weight, act):
    self.weight, self.act = weight, act

  def __call__(self, x):
    return self.act(x @ self.weight)

  def __hash__(self):
    raise TypeError('it holds arrays')

  def tree_flatten(self):
    return (self.weight, self.act), None

  @classmethod
  def tree_unflatten(cls, _, leaves):
    return cls(*leaves)


def test_what_is_no_array_in_a_tree_is_taken_as_it_is():
  layer, x = Layer(jnp.ones((64, 32)), jnp.tanh), jnp.ones((8, 64))
  whole = call(lambda layer, x: (layer, layer(x)), (layer, x))
  bare = call(lambda weight, x: (weight, jnp.tanh(x @ weight)), (layer.weight, x))
  assert whole[:5] == bare[:5]
  assert call(layer, (x,)).flops == bare.flops  # a module itself, whose weights it closes over
  named = call(lambda given, x: x * len(given['name']), ({'name': 'mean', 'none': None}, x), donated=(1,))
  assert named.outputs == 0


def test_steps_of_nnx_count_what_they_write_into_their_modules():
  nnx = pytest.importorskip('flax.nnx')

  def step(model, optimizer, x):
    loss, gradient = nnx.value_and_grad(lambda model: (model(x) ** 2).mean())(model)
    optimizer.update(model, gradient)
    return loss

  model = nnx.Linear(64, 32, use_bias=False, rngs=nnx.Rngs(0))
  before = np.asarray(model.kernel[...])
  optimizer = nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param)
  x = jnp.ones((128, 64))
  plain, jitted = (call(one, (model, optimizer, x)) for one in (step, nnx.jit(step)))
  for found in (plain, jitted):
    assert found.flops >= 2 * 2 * 128 * 64 * 32  # forward and backward: what nobody would read is not computed
    assert found.outputs >= 4 * 64 * 32
  assert any('writes into its arguments' in line for line in plain.said)
  assert (np.asarray(model.kernel[...]) == before).all()
  assert not isinstance(model.kernel[...], jax.core.Tracer)


def test_what_is_given_to_a_jitted_step_inside_is_known():
  inner = jax.jit(lambda w, x: (w * 2, x.sum()), donate_argnums=0)
  args = jnp.ones((64, 64)), jnp.ones(8)
  assert call(lambda w, x: inner(w, x), args).outputs == call(inner, args).outputs == 4
  assert call(lambda w, x: inner(w + 1, x), args).outputs > 4  # not an argument


@pytest.mark.parametrize(
  'asks',
  [
    lambda x: x if x.sum() > 0 else -x,
    lambda x: x * float(x.sum()),
    lambda x: np.sin(x),
    lambda x: jnp.zeros(x.astype(int)[0]),
    jax.jit(lambda x: x * x.sum().item()),
  ],
  ids=['if', 'float', 'numpy', 'shape', 'item'],
)
def test_who_asks_for_a_value_is_told_in_one_line(asks):
  with pytest.raises(TypeError, match=r'^jl\.plan traces a function and runs nothing') as caught:
    call(asks, (jnp.ones(4),))
  assert '\n' not in str(caught.value)


def test_a_mistake_in_the_function_is_its_own_error():
  with pytest.raises(ZeroDivisionError):
    call(lambda x: 1 / 0, (jnp.ones(4),))


def test_a_pallas_kernel_counts_for_each_place_of_its_grid():
  pallas = pytest.importorskip('jax.experimental.pallas')

  def kernel(x, out):
    out[...] = x[...] @ x[...]

  def run(count, x):
    block = pallas.BlockSpec((32, 32), lambda i: (i, 0))
    shape = jax.ShapeDtypeStruct((32 * count, 32), 'float32')
    return pallas.pallas_call(kernel, out_shape=shape, grid=(count,), in_specs=[block], out_specs=block)(x)

  found = [call(lambda x, n=n: run(n, x), (jnp.ones((32 * n, 32)),)) for n in (1, 4)]
  assert found[0].flops == 2 * 32**3
  assert found[1].flops == 4 * found[0].flops


def test_a_machine_that_cannot_be_measured_still_tells_the_rest(monkeypatch):
  def none(say):
    raise RuntimeError('rates could not be measured: 9 MiB are free')

  monkeypatch.setattr('jaxlite.run.planning.rates', none)
  found = jl.plan(lambda x: x @ x, args=(jnp.ones((8, 8)),))
  assert found.time is None
  assert found.flops == 2 * 8**3
  assert any('could not be measured' in line for line in found.said)


def test_results_too_large_to_be_kept_take_longer_unless_they_lie_where_an_argument_lay(monkeypatch):
  monkeypatch.setattr(mapping, 'seconds_a_byte', lambda: 1e-9)
  monkeypatch.setattr('jaxlite.planning.function.free_cores', lambda: 2.0)  # what others do changes between two calls
  size = mapping.LARGE // 4 + 1
  args = (jax.ShapeDtypeStruct((size,), 'float32'),)
  one_more = lambda x: x + 1  # noqa: E731
  fresh, donated = call(one_more, args, RATES), call(one_more, args, RATES, donated=(0,))
  assert fresh.time.seconds - donated.time.seconds == pytest.approx(4e-9 * size)
  assert any('mapped anew' in line for line in fresh.said)
  assert 'note: ' in str(fresh)
  assert not donated.said
  small = (jax.ShapeDtypeStruct((size - 1,), 'float32'),)
  assert call(one_more, small, RATES).time.seconds < donated.time.seconds * 1.01


@pytest.mark.parametrize(
  'fn', [jnp.sin, lambda x: x**1.7, lambda x: x.argmax(-1), lambda x: jnp.cumsum(x, 1), jax.lax.lgamma]
)
def test_what_xla_computes_entry_by_entry_takes_longer_than_a_hyperbolic_tangent(fn):
  args = (jax.ShapeDtypeStruct((1000, 1000), 'float32'),)
  assert call(fn, args, RATES).time.seconds > 1.5 * call(lambda x: jnp.tanh(x).sum(), args, RATES).time.seconds


def test_what_is_filled_in_before_rows_are_added_to_it_is_counted():
  rows = jnp.arange(64)
  gradient = lambda t: jax.grad(lambda t: (t[rows] ** 2).sum())(t)  # noqa: E731
  small, large = (call(gradient, (jax.ShapeDtypeStruct((n, 32), 'float32'),), RATES) for n in (1_000, 100_000))
  assert large.bytes - small.bytes > 0.9 * 99_000 * 32 * 4


def test_what_computes_later_is_refused():
  with pytest.raises(TypeError, match='generator, which computes later'):
    call(lambda x: (row @ row for row in x), (np.ones((4, 3)),), RATES)


def test_the_generator_of_xla_takes_longer_than_threefry_and_holds_less():
  draw = lambda key: jax.random.bits(key, (500, 500)).max(0)  # noqa: E731
  threefry, xla = (call(draw, (jax.random.key(0, impl=one),), RATES) for one in ('threefry2x32', 'rbg'))
  assert xla.time.seconds > 2 * threefry.time.seconds
  assert xla.temporaries < threefry.temporaries


def test_a_constant_that_a_product_reads_is_an_array():
  fn = lambda x: jnp.ones((256, 256)) @ x  # noqa: E731
  told, exact = (call(fn, (np.ones((256, 256), np.float32),), RATES, compiled=one) for one in (False, True))
  assert told.temporaries == pytest.approx(exact.temporaries, rel=0.1)


class Foreign:
  """An array of a framework that JAX does not know."""

  shape, dtype = (3, 3), 'foreign.float32'


@pytest.mark.parametrize(
  ('fn', 'args', 'said'),
  [
    (lambda x: x, np.ones((4, 4)), r'args=\(x,\) for one; got ndarray'),
    (lambda x: x, (Foreign(),), r'got .*Foreign of foreign\.float32: give numpy\.asarray'),
    (lambda x: x, ([np.array(['a'])],), 'got numpy.ndarray of <U1'),
    (jax.jit(lambda x: x).lower(1.0).compile(), (1.0,), 'the function it was compiled from'),
  ],
  ids=['no tuple', 'another framework', 'texts', 'compiled'],
)
def test_what_cannot_be_an_argument_is_refused_in_a_line(fn, args, said):
  with pytest.raises(TypeError, match=said) as caught:
    call(fn, args, RATES)
  assert '\n' not in str(caught.value)


def test_a_tiny_call_is_told_in_microseconds():
  assert ' us' in str(call(lambda x: x + 1, (np.ones(3),), RATES))
