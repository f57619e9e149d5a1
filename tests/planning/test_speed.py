"""How long a kernel takes: which of them are alike, and laws of what its shape and its layout do to it."""

import math

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from jaxlite.cpu.replace import for_cpu
from jaxlite.host.rates import Rates
from jaxlite.planning import speed
from jaxlite.planning.cost import cost

KINDS = {'float32': 1e11, 'bfloat16': 1e11, 'int8': 2e11}
ONE = Rates(KINDS, KINDS, KINDS, 1e9, 5e10, 1e10, 1e9, 5e-6)
RATES = ONE._replace(one_core=ONE)


def f32(*shape):
  return jax.ShapeDtypeStruct(shape, jnp.float32)


def program(fn, *args):
  return cost(jax.make_jaxpr(fn)(*args)).operations


def groups(fn, *args):
  return {speed.group_of(one) for one in program(fn, *args)}


def convolve(x, w, layout='NHWC'):
  numbers = (layout, 'HWIO' if layout == 'NHWC' else 'OIHW', layout)
  return jax.lax.conv_general_dilated(x, w, (1, 1), 'SAME', dimension_numbers=numbers)


def pool(x, layout='NHWC'):
  window = (1, 2, 2, 1) if layout == 'NHWC' else (1, 1, 2, 2)
  return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, window, 'VALID').sum()


def gradient_of_weights(x, w):
  return jax.grad(lambda w: (convolve(x, w) ** 2).sum())(w)


@pytest.mark.parametrize(
  ('fn', 'args', 'group'),
  [
    (convolve, (f32(4, 9, 9, 32), f32(3, 3, 32, 64)), 'convolutions'),
    (convolve, (f32(4, 9, 9, 32), f32(1, 1, 32, 64)), 'convolutions'),
    (convolve, (f32(4, 9, 9, 3), f32(3, 3, 3, 64)), 'narrow convolutions'),
    (lambda x, w: convolve(x, w, 'NCHW'), (f32(4, 32, 9, 9), f32(64, 32, 3, 3)), 'convolutions apart'),
    (lambda x, w: convolve(x, w, 'NCHW'), (f32(4, 1, 9, 9), f32(64, 1, 3, 3)), 'narrow convolutions apart'),
    (gradient_of_weights, (f32(4, 9, 9, 32), f32(3, 3, 32, 64)), 'convolutions to weights'),
    (gradient_of_weights, (f32(4, 9, 9, 1), f32(3, 3, 1, 64)), 'narrow convolutions'),
    (jax.grad(pool), (f32(4, 8, 8, 16),), 'gradients of pools'),
    (jax.grad(lambda x: pool(x, 'NCHW')), (f32(4, 16, 8, 8),), 'gradients of pools apart'),
    (jax.grad(pool), (f32(4, 8, 8, 12),), 'few by place'),
    (for_cpu(jax.grad(pool)), (f32(4, 8, 8, 12),), 'few by place'),
    (pool, (f32(4, 8, 8, 16),), 'windows'),
    (jnp.dot, (f32(64, 512), f32(512, 10)), 'narrow products'),
    (jnp.matmul, (f32(8, 64, 64), f32(8, 64, 64)), 'batched products'),
    (lambda x, w: jax.lax.ragged_dot(x, w, jnp.full(4, 16, 'i4')), (f32(64, 32), f32(4, 32, 32)), 'ragged products'),
  ],
)  # fmt: skip
def test_what_is_alike_is_of_one_group(fn, args, group):
  assert group in groups(fn, *args)
  assert group in speed.FACTORS


@pytest.mark.parametrize(
  ('fn', 'args', 'laid'),
  [
    (jnp.dot, (f32(32, 64), f32(64, 16)), False),
    (lambda x, w: x.T @ w, (f32(64, 32), f32(64, 16)), False),
    (lambda x, w: (x @ w).T, (f32(32, 64), f32(64, 16)), False),
    (lambda x, w: jnp.einsum('bsc,ch->bsh', x, w), (f32(8, 9, 16), f32(16, 32)), False),
    (lambda x, w: jnp.einsum('bsc,sh->bhc', x, w), (f32(8, 9, 16), f32(9, 32)), True),
    (lambda x: jnp.transpose(x, (0, 3, 1, 2)), (f32(8, 9, 9, 16),), True),
    (lambda x: jnp.transpose(x, (0, 2, 1, 3)), (f32(8, 9, 4, 16),), False),
    (lambda x: jnp.transpose(x, (0, 3, 1, 2)), (f32(8, 9, 9, 1),), False),
    (lambda x: jnp.transpose(x, (1, 0)), (f32(8, 0),), False),
    (lambda x: jnp.transpose(x, ()), (f32(),), False),
  ],
)
def test_what_is_laid_out_anew_is_seen(fn, args, laid):
  assert any(one.strided > 0 for one in program(fn, *args)) == laid


def test_a_layout_that_must_be_turned_takes_longer_than_one_that_need_not():
  x, w = f32(64, 49, 64), f32(49, 49)
  turned = speed.spent(program(lambda x, w: jnp.einsum('bsc,sh->bhc', x, w), x, w), RATES, 2)
  straight = speed.spent(program(lambda x, w: x @ w, f32(64, 64, 49), w), RATES, 2)
  assert turned.wall > 1.3 * straight.wall


def test_many_tiny_products_take_longer_than_the_same_work_in_fewer():
  many, few = (
    speed.spent(program(jnp.matmul, f32(n, size, size), f32(n, size, size)), RATES, 2).processor
    for n, size in ((512, 16), (8, 64))
  )
  assert many > 1.5 * few


def test_cores_share_large_passes_and_leave_small_ones_to_one():
  for fn in (jnp.tanh, lambda x: x * 2 + 1, lambda x: x.sum(-1)):
    large, small = (speed.spent(program(fn, f32(n, 256)), RATES, 2) for n in (8192, 64))
    assert large.wall < 0.6 * large.processor
    assert small.wall == pytest.approx(small.processor)


@pytest.mark.parametrize('cores', [1, 2, 64])
def test_rates_of_a_whole_device_are_taken_as_they_are(cores):
  """Those of a GPU are of all of it: the number of its host's cores says nothing."""
  for fn, args in ((jnp.tanh, (f32(8192, 256),)), (convolve, (f32(32, 16, 16, 32), f32(3, 3, 32, 32)))):
    one, other = (speed.spent(program(fn, *args), ONE, count).wall for count in (1, cores))
    assert one == pytest.approx(other)


def test_kernels_share_the_batch_where_xla_does_not():
  args = f32(32, 16, 16, 32), f32(3, 3, 32, 32)
  found = speed.spent(program(convolve, *args), RATES, 2, kernels=True)
  alone = speed.spent(program(convolve, *args), RATES, 2, kernels=False)
  assert found.wall < 0.6 * alone.wall


def gradient_of_groups(x, w):
  numbers = ('NHWC', 'HWIO', 'NHWC')

  def loss(w):
    out = lax.conv_general_dilated(x, w, (1, 1), 'SAME', dimension_numbers=numbers, feature_group_count=4)
    return (out**2).sum()

  return jax.grad(loss)(w)


@pytest.mark.parametrize('rates', [ONE, RATES])
@pytest.mark.parametrize(
  ('fn', 'args'),
  [
    (lambda x: x.T @ x, (f32(0, 4),)),
    (lambda x: x @ x.T, (f32(3, 0),)),
    (lambda x, w: lax.conv_general_dilated(x, w, (1, 1), 'SAME'), (f32(0, 4, 8, 8), f32(6, 4, 3, 3))),
    (lambda x, w: lax.conv_general_dilated(x, w, (1, 1, 1), 'SAME'), (f32(2, 4, 8, 8, 8), f32(6, 4, 3, 3, 3))),
    (lambda x, w: lax.conv_transpose(x, w, (2, 2), 'SAME'), (f32(2, 8, 8, 16), f32(3, 3, 16, 8))),
    (gradient_of_groups, (f32(2, 8, 8, 16), f32(3, 3, 4, 32))),
    (lambda x: lax.reduce_window(x, 0.0, lax.add, (), (), 'VALID'), (f32(),)),
    (lambda x: jnp.fft.fft(x) @ x, (jax.ShapeDtypeStruct((8, 8), 'complex64'),)),
    (lambda x: jnp.einsum('abcd,cdef->abef', x, x), (jax.ShapeDtypeStruct((4, 5, 4, 5), 'float16'),)),
    (lambda x: x, (f32(3),)),
  ],
)
def test_what_is_odd_or_empty_takes_a_finite_time(fn, args, rates):
  operations = program(fn, *args)
  found = speed.spent(operations, rates, 2)
  assert 0 <= found.wall <= found.processor < math.inf
  assert 0 < speed.spread(operations, rates, 2) < 1


def told(fn, *shapes):
  operations = cost(jax.make_jaxpr(fn)(*(jax.ShapeDtypeStruct(shape, 'float32') for shape in shapes))).operations
  return {speed.group_of(one) for one in operations}, speed.spent(operations, RATES, 1, kernels=False).processor


def test_a_sum_over_wide_rows_is_told_by_its_entries_and_others_by_their_bytes():
  """XLA for CPU sums 16,384 columns in order, and 24,000 in strides, at forty times the price."""
  down = lambda x: x.sum(0)  # noqa: E731
  wide, narrow = told(down, (32, 30_000)), told(down, (32, 15_000))
  assert 'sums over wide rows' in wide[0]
  assert 'sums over wide rows' not in narrow[0]
  assert wide[1] > 10 * narrow[1]
  masked = told(lambda x, d: jnp.where(x > 0, d, 0).sum(0), (32, 30_000), (32, 30_000))
  assert masked[1] < 1.5 * wide[1]  # its entries count once, whatever is computed of each on the way
  assert told(lambda x: x.sum(1), (32, 30_000))[0] == {'reductions'}
  assert told(lambda x: x.sum(), (32, 30_000))[0] == {'reductions'}


def test_taking_rows_and_adding_to_rows_are_two_kinds():
  taken = told(lambda t: jnp.take(t, jnp.arange(99) * 7 % 50, axis=0, mode='clip'), (50, 64))[0]
  added = told(lambda t, r: t.at[jnp.arange(99) * 7 % 50].add(r), (50, 64), (99, 64))[0]
  assert 'gathers' in taken
  assert 'scatters' in added
  assert 'scatters' not in taken


def processor(fn, *args, kernels=True):
  return speed.spent(program(fn, *args), RATES, 2, kernels=kernels).processor


def test_the_gradient_of_a_pool_of_few_channels_is_dear_in_either_form():
  """XLA for CPU fills vectors with 16 channels, and takes one of 12 at a time."""
  gradient = jax.grad(pool)
  few, more = (processor(gradient, f32(32, 28, 28, channels)) for channels in (12, 16))
  assert few > 3 * more
  tuned = processor(for_cpu(gradient), f32(32, 28, 28, 12))
  assert 0.6 < tuned / few < 1.7


def test_without_our_forms_the_gradient_of_a_pool_is_many_times_as_dear():
  """A loop of somebody's own takes XLA's."""
  own, plain = (processor(jax.grad(pool), f32(32, 28, 28, 32), kernels=kernels) for kernels in (True, False))
  assert plain > 5 * own


def test_a_sum_over_rows_takes_as_long_for_few_columns_as_for_a_vector_of_them():
  down = lambda x: x.sum((0, 1, 2))  # noqa: E731
  few, more = (processor(down, f32(64, 28, 28, columns)) for columns in (4, 16))
  assert few == pytest.approx(more, rel=0.3)
  assert not any(one.kind == 'reductions' for one in program(lambda x: x.sum(1), f32(64, 1, 30_000)))  # another shape
  assert processor(lambda x: x.sum(-1), f32(64, 28, 28, 4)) < 0.5 * few


def test_windows_that_overlap_ask_each_entry_more_than_once():
  def wide(x):
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), 'VALID').sum()

  assert processor(jax.grad(wide), f32(8, 29, 29, 32)) > 2 * processor(jax.grad(pool), f32(8, 29, 29, 32))


def test_a_sum_that_only_a_sum_reads_is_one_with_it():
  """A bias whose channels come first is summed over the batch, then over places: XLA sums once."""
  once = lambda x: x.sum((0, 2, 3))  # noqa: E731
  twice = lambda x: x.sum(0).sum((1, 2))  # noqa: E731
  x = f32(64, 24, 28, 28)  # 18,816 entries for each example: a wide row
  assert processor(twice, x) == pytest.approx(processor(once, x), rel=0.1)
  assert processor(lambda x: x.sum(0), x) > 10 * processor(once, x)
  assert processor(lambda x: (lambda s: (s, s.sum()))(x.sum(0)), x) > 10 * processor(once, x)  # that is given out


def test_a_pool_slides_over_its_input_as_it_lies():
  """Behind a transposition of 12 channels to the end it slides along rows, however short."""
  turned = jax.grad(lambda x: (pool(x.transpose(0, 2, 3, 1)) ** 2).sum())
  first = jax.grad(lambda x: (pool(x) ** 2).sum())
  assert 'few by place' in groups(first, f32(8, 32, 32, 12))
  for side in (32, 14):
    assert 'few by place' not in groups(turned, f32(8, 12, side, side))


def slid(groups=1, stride=1):
  numbers = {3: ('NHC', 'HIO', 'NHC'), 4: ('NHWC', 'HWIO', 'NHWC'), 5: ('NDHWC', 'DHWIO', 'NDHWC')}
  return lambda x, w: lax.conv_general_dilated(
    *(x, w, (stride,) * (x.ndim - 2), 'SAME'), dimension_numbers=numbers[x.ndim], feature_group_count=groups
  )


def spread_apart(x, w):
  return lax.conv_transpose(x, w, (2, 2), 'SAME')


def to_weights(fn):
  return lambda x, w: jax.grad(lambda w: (fn(x, w) ** 2).sum())(w)


@pytest.mark.parametrize(
  ('fn', 'args', 'least'),
  [
    (slid(), (f32(4, 8, 8, 8, 16), f32(3, 3, 3, 16, 32)), 5),
    (to_weights(slid()), (f32(4, 8, 8, 8, 16), f32(3, 3, 3, 16, 32)), 5),
    (slid(4), (f32(16, 16, 16, 32), f32(3, 3, 8, 32)), 4),
    (to_weights(slid(4)), (f32(16, 16, 16, 32), f32(3, 3, 8, 32)), 50),
    (to_weights(slid(4)), (f32(8, 200, 64), f32(5, 16, 64)), 4),
    (slid(), (f32(16, 16, 16, 32), f32(3, 3, 32, 32)), 0),
  ],
  ids=['3-D', '3-D to weights', 'groups', 'groups to weights', 'groups along a line', 'of two axes'],
)
def test_what_xla_convolves_slowly_is_told_so_where_no_kernel_stands_in(fn, args, least):
  operations = program(fn, *args)
  ours, theirs = (speed.spent(operations, RATES, 1, kernels=one).processor for one in (True, False))
  assert theirs > least * ours
  if not least:
    assert theirs == pytest.approx(ours, rel=0.3)


def test_a_sparse_product_takes_longer_than_a_dense_one_of_as_many_flops_and_its_rows_are_held():
  from jax.experimental import sparse

  from jaxlite.planning.function import call

  stored, columns = 4_000, 64
  matrix = sparse.BCOO((jnp.ones(stored), jnp.zeros((stored, 2), jnp.int32)), shape=(500, 500))
  found = call(lambda m, x: m @ x, (matrix, jnp.ones((500, columns))), RATES)
  dense = call(lambda a, b: a @ b, (jnp.ones((16, stored // 16)), jnp.ones((stored // 16, columns))), RATES)
  assert found.flops == dense.flops
  assert found.time.seconds > 2 * dense.time.seconds
  assert found.temporaries >= 4 * stored * columns
  assert not found.said


def test_the_gradient_of_a_transposed_convolution_is_dear_where_no_kernel_stands_in_and_that_of_a_strided_one_is_not():
  spread = program(to_weights(spread_apart), f32(16, 8, 8, 16), f32(4, 4, 16, 16))
  few = f32(8, 4, 4, 256), f32(3, 3, 256, 256)  # fewer places than are summed, as in the last layers of a network
  strided = program(lambda x, w: jax.grad(lambda x: (slid(stride=2)(x, w) ** 2).sum())(x), *few)
  for kernels in (True, False):
    assert ('gradients of spread convolutions by XLA' in {speed.group_of(one, kernels) for one in spread}) != kernels
    assert 'gradients of spread convolutions by XLA' not in {speed.group_of(one, kernels) for one in strided}
