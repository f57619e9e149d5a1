"""First values computed by NumPy are those of the jitted draw, and whatever is unknown runs as it is."""

import contextlib

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.nn import initializers

import jaxlite as jl
from jaxlite import models
from jaxlite.graph.init_numpy import copied, on_host

pytestmark = pytest.mark.unoptimized

KEY = jax.random.key(3)
IMAGES = np.ones((2, 8, 8, 3), np.float32)
ROWS = np.ones((2, 8), np.float32)
COMPILES = '/jax/core/compile/backend_compile_duration'


@contextlib.contextmanager
def compiled():
  """The programs that are compiled meanwhile."""
  seen = []

  def told(event, seconds, **_):
    if event == COMPILES:
      seen.append(seconds)

  jax.monitoring.register_event_duration_secs_listener(told)
  try:
    yield seen
  finally:
    jax.monitoring.unregister_event_duration_listener(told)


def plain(leaf):
  return np.asarray(jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf)


def assert_close(found, wanted, tolerance=1e-6):
  assert jax.tree.structure(found) == jax.tree.structure(wanted)
  for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
    assert (one.dtype, one.shape) == (other.dtype, other.shape)
    one, other = plain(one), plain(other)
    if np.issubdtype(one.dtype, np.floating):
      np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance)
    else:
      np.testing.assert_array_equal(one, other)


DRAWN = {
  'zeros': initializers.zeros,
  'ones': initializers.ones,
  'constant': initializers.constant(0.3),
  'normal': initializers.normal(0.1),
  'uniform': initializers.uniform(0.1),
  'truncated_normal': initializers.truncated_normal(1.0),
  'he_normal': initializers.he_normal(),
  'he_uniform': initializers.he_uniform(),
  'lecun_normal': initializers.lecun_normal(),
  'lecun_uniform': initializers.lecun_uniform(),
  'glorot_normal': initializers.glorot_normal(),
  'glorot_uniform': initializers.glorot_uniform(),
  'variance_scaling': initializers.variance_scaling(2.0, 'fan_avg', 'truncated_normal', in_axis=-1, out_axis=0),
}
OTHERS = {
  'bits of every width': lambda key: [jax.random.bits(key, (9,), kind) for kind in ('uint8', 'uint16', 'uint32')],
  'keys': lambda key: (jax.random.fold_in(key, 3), jax.random.split(key, (2, 3)), jax.random.key_data(key)),
  'a seed': lambda key: (jax.random.key(5), jax.random.normal(jax.random.key(7), (3,))),
  'keys unpacked': lambda key: [jax.random.normal(one, (5,)) for one in jax.random.split(key, 3)],
  'keys mapped': lambda key: jax.vmap(lambda one: jax.random.uniform(one, (5,)))(jax.random.split(key, 4)),
  'a scan': lambda key: jax.lax.scan(lambda k, i: (jax.random.fold_in(k, i), jax.random.normal(k)), key, jnp.arange(4)),
  'a coin': lambda key: jax.random.bernoulli(key, 0.3, (100,)),
  'heavy tails': lambda key: (jax.random.exponential(key, (99,)), jax.random.laplace(key, (99,))),
  'sums': lambda key: (jax.random.normal(key, (5, 6)) ** 2).sum(0) / 5,
  'moved': lambda key: jnp.concatenate([jax.random.normal(key, (3, 4)).T[::-1, 1:], jnp.ones((4, 1))], 1)[:, ::2],
  'chosen': lambda key: jnp.where(jax.random.uniform(key, (20,)) < 0.5, 1, 2),
  'nothing': lambda key: jnp.zeros((0, 3)),
}


SHAPES = {(3, 3, 4, 8): [], **dict.fromkeys([(7,), (3, 5), (2, 40, 50)], pytest.mark.slow)}
OF_ANY_RANK = ('zeros', 'ones', 'constant', 'normal', 'uniform', 'truncated_normal')  # the others need two axes


@pytest.mark.sampled(5)
@pytest.mark.parametrize(
  'name, shape',
  [
    pytest.param(name, shape, marks=marks)
    for name in DRAWN
    for shape, marks in SHAPES.items()
    if len(shape) > 1 or name in OF_ANY_RANK
  ],
)
def test_initializers_draw_what_they_draw_jitted_and_compile_nothing(name, shape):
  def draw(key):
    return DRAWN[name](key, shape)

  with compiled() as programs:
    found = on_host(draw)(KEY)
  assert not programs
  assert_close(found, jax.jit(draw)(KEY))


@pytest.mark.sampled(5)
@pytest.mark.parametrize('name', OTHERS)
def test_what_initializers_are_made_of_is_what_it_is_jitted(name):
  with compiled() as programs:
    found = on_host(OTHERS[name])(KEY)
  assert not programs
  assert_close(found, jax.jit(OTHERS[name])(KEY))


@pytest.mark.parametrize('seed', range(8))
def test_bits_are_those_of_the_device_beyond_one_block(seed):
  def draw(key):
    return jax.random.bits(key, (3, 20_001))

  assert (on_host(draw)(jax.random.key(seed)) == draw(jax.random.key(seed))).all()


@pytest.mark.parametrize(
  'draw',
  [
    lambda key: initializers.orthogonal()(key, (6, 6)),
    lambda key: initializers.he_normal()(key, (6, 6), jnp.bfloat16),
    lambda key: jax.random.permutation(key, 20),
    lambda key: jax.random.normal(key, (3, 4)) @ jnp.ones((4, 2)),
    lambda key: jnp.int32(7) // jax.random.randint(key, (4,), 1, 5),
  ],
  ids=['orthogonal', 'narrow floats', 'sorted', 'a product', 'integers divided'],
)
def test_what_is_unknown_runs_as_it_is(draw):
  assert_close(on_host(draw)(KEY), draw(KEY), 0)


@pytest.mark.parametrize('seed', [0, 7, -1, 2**31 - 1, 2**32 - 1, -(2**31)])
def test_a_seed_gives_the_key_that_it_gives(seed):
  found = on_host(lambda: jax.random.key(seed))()
  assert (jax.random.key_data(found) == jax.random.key_data(jax.random.key(seed))).all()


def test_other_generators_run_as_they_are():
  def draw(key):
    return jax.random.normal(key, (4,))

  for impl in ('rbg', 'unsafe_rbg'):
    key = jax.random.key(3, impl=impl)
    assert_close(on_host(draw)(key), draw(key), 0)


def test_it_stays_a_function_that_jax_can_transform():
  def draw(key, scale):
    return scale * jax.random.normal(key, (4,))

  host, keys = on_host(draw), jax.random.split(KEY, 3)
  assert jax.eval_shape(host, KEY, 2.0) == jax.eval_shape(draw, KEY, 2.0)
  assert_close(jax.jit(host)(KEY, 2.0), jax.jit(draw)(KEY, 2.0))
  assert_close(jax.jit(lambda: host(KEY, 2.0))(), jax.jit(draw)(KEY, 2.0))
  assert_close(jax.vmap(host, (0, None))(keys, 2.0), jax.vmap(draw, (0, None))(keys, 2.0))
  assert_close(jax.vmap(lambda scale: host(KEY, scale))(jnp.ones(3)), jnp.tile(draw(KEY, 1.0), (3, 1)))
  assert_close(jax.grad(lambda scale: host(KEY, scale).sum())(1.0), draw(KEY, 1.0).sum(), 1e-5)


def test_results_that_hang_on_data_are_left_to_the_device():
  def fn(key, data):
    return (jax.random.normal(key, (2,)), data.sum())

  with compiled() as programs:
    on_host(fn, unread=(1,))(KEY, np.ones(5, np.float32))
  assert programs


def test_an_error_is_the_functions_own():
  def fails(key):
    raise ValueError('the reason')

  with pytest.raises(ValueError, match='the reason'):
    on_host(fails)(KEY)


def test_results_lie_where_the_key_is_bound_to():
  def draw(key):
    return (jax.random.normal(key, (3,)), jnp.zeros(2), key)

  for key in (KEY, jax.device_put(KEY, jax.devices()[0])):
    for leaf in jax.tree.leaves(on_host(draw)(key)):
      assert leaf.devices() == key.devices()
      assert leaf.committed == key.committed


def test_results_are_new_arrays_that_a_step_may_take():
  array = jnp.arange(3.0)
  twice = on_host(lambda key, x: (copied(x), copied(x), jnp.ones(64)))(KEY, array)
  pointers = {leaf.unsafe_buffer_pointer() for leaf in (*twice, array, copied(array))}
  assert len(pointers) == 5
  jax.jit(lambda *xs: [x + 1 for x in xs], donate_argnums=(0, 1, 2))(*twice)
  assert array.tolist() == [0, 1, 2]


def test_a_copy_is_never_weakly_typed():
  assert not copied(jnp.asarray(1.0)).weak_type
  assert copied(np.float64(2)).dtype == jnp.float32


class Scanned(nn.Module):
  """Three layers, stacked."""

  @nn.compact
  def __call__(self, x):
    layers = nn.scan(
      lambda layer, carry, _: (layer(carry), None), variable_axes={'params': 0}, split_rngs={'params': True}, length=3
    )
    return layers(nn.Dense(8), x, None)[0]


NETWORKS = {
  'linen, convolutions': (lambda: jl.from_linen(models.ResNet20()), IMAGES),
  'linen, attention': (lambda: jl.from_linen(nn.MultiHeadDotProductAttention(2)), ROWS[:, None]),
  'linen, a table': (lambda: jl.from_linen(nn.Embed(5, 3)), np.zeros((2,), np.int32)),
  'linen, a scan': (lambda: jl.from_linen(Scanned()), ROWS),
  'nnx': (lambda: jl.from_nnx(lambda rngs: nnx.Linear(8, 4, rngs=rngs)), ROWS),
  'nnx, an instance': (lambda: jl.from_nnx(nnx.Linear(8, 4, rngs=nnx.Rngs(0))), ROWS),
  'equinox': (lambda: jl.from_equinox(lambda key: eqx.nn.MLP(8, 4, 16, 2, key=key)), ROWS),
  'equinox, an instance': (lambda: jl.from_equinox(eqx.nn.MLP(8, 4, 16, 2, key=KEY)), ROWS),
  'haiku': (lambda: jl.from_haiku(lambda x: hk.nets.MLP([4, 2])(x)), ROWS),
  'a function': (lambda: jl.from_function(lambda p, x: x @ p, lambda key: jax.random.normal(key, (8, 4))), ROWS),
}


@pytest.mark.sampled(4)
@pytest.mark.parametrize('name', NETWORKS)
def test_networks_of_every_framework_start_as_they_do_jitted_and_compile_nothing(name):
  make, inputs = NETWORKS[name]
  model = make()
  with compiled() as programs:
    found = model.init(KEY, inputs)
  assert not programs
  assert_close(found, jax.jit(model.init)(KEY, inputs))


@pytest.mark.sampled(4)
@pytest.mark.parametrize('name', NETWORKS)
def test_a_whole_state_compiles_nothing(name):
  make, inputs = NETWORKS[name]
  train = jl.train_step(make(), lambda outputs, batch: outputs.sum(), jl.chain(optax.adamw(1e-3)))
  with compiled() as programs:
    state = train.init(KEY, {'inputs': inputs})
  assert not programs
  assert_close(state, jax.jit(train.init)(KEY, {'inputs': inputs}))
  assert all(one is not other for one in jax.tree.leaves(state) for other in [KEY])
