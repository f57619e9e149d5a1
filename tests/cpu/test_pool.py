"""The law of the max-pools on CPU: the gradient is XLA's own, entry by entry, in ties and NaN too."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlite.cpu.replace import for_cpu, sites
from jaxlite.graph import walk


def pooled(window, stride, padding, layout='NHWC'):
  """The gradient of a max-pool, in float32[B, H, W, C] or with the channels first."""

  def pool(x):
    spread = (lambda pair: (1, 1, *pair)) if layout == 'NCHW' else (lambda pair: (1, *pair, 1))
    pads = padding if isinstance(padding, str) else [(0, 0), *padding, (0, 0)]
    if layout == 'NCHW' and not isinstance(padding, str):
      pads = [(0, 0), (0, 0), *padding]
    lowest = np.array(-np.inf, x.dtype)
    return jax.lax.reduce_window(x, lowest, jax.lax.max, spread(window), spread(stride), pads)

  return pool


def both(pool, x, key):
  """(xla, rewritten) of a pool and its gradient under one cotangent."""
  shape = jax.eval_shape(pool, x)
  cotangent = jax.random.normal(key, shape.shape, jnp.float32).astype(shape.dtype)

  def run(x, cotangent):
    y, back = jax.vjp(pool, x)
    return y, back(cotangent)[0]

  return jax.jit(run)(x, cotangent), for_cpu(run)(x, cotangent), sites(jax.make_jaxpr(run)(x, cotangent))


def tied(rng, shape, dtype='float32'):
  """Few values, so that most windows have ties."""
  return jnp.asarray(rng.integers(-2, 2, shape), dtype)


CASES = {
  'two by two': ((2, 2), (2, 2), 'VALID', (3, 8, 8, 5)),
  'rows and columns left over': ((2, 2), (2, 2), 'VALID', (2, 7, 9, 3)),
  'padded to fit': ((2, 2), (2, 2), 'SAME', (2, 7, 9, 3)),
  'windows that overlap': ((3, 3), (2, 2), 'SAME', (2, 9, 10, 3)),
  'a stride of one': ((3, 3), (1, 1), 'SAME', (2, 5, 6, 2)),
  'gaps between windows': ((2, 2), (3, 3), 'VALID', (2, 9, 8, 2)),
  'oblong': ((1, 3), (2, 1), ((0, 0), (1, 1)), (2, 6, 7, 2)),
  'uneven padding': ((4, 3), (3, 2), ((3, 1), (0, 2)), (1, 8, 9, 3)),
  'one image of one window': ((2, 2), (2, 2), 'VALID', (1, 2, 2, 1)),
}


def check(window, stride, padding, shape, layout='NHWC'):
  shape = shape if layout == 'NHWC' else (shape[0], shape[3], *shape[1:3])
  x = tied(np.random.default_rng(0), shape)
  xla, ours, found = both(pooled(window, stride, padding, layout), x, jax.random.key(1))
  assert [site.exact for site in found.values()] == [True, True]
  for one, other in zip(xla, ours, strict=True):
    np.testing.assert_array_equal(one, other)


QUICK = ('two by two', 'padded to fit', 'windows that overlap', 'uneven padding')


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
  'name', [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in CASES]
)
def test_gradient_and_value_are_the_native_ones_in_ties_too(name):
  check(*CASES[name])


def test_channels_may_come_first():
  check(*CASES['windows that overlap'], 'NCHW')


def test_nan_and_infinities_win_where_they_win_natively():
  rng = np.random.default_rng(2)
  for window, stride, padding in [((3, 3), (2, 2), 'SAME')]:
    x = rng.choice([np.nan, np.inf, -np.inf, 0.0, 1.0], (4, 7, 8, 3)).astype(np.float32)
    xla, ours, _ = both(pooled(window, stride, padding), jnp.asarray(x), jax.random.key(0))
    for one, other in zip(xla, ours, strict=True):
      np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize('dtype', ['bfloat16', 'int32', pytest.param('float16', marks=pytest.mark.slow)])
def test_other_dtypes_are_exact_or_native(dtype):
  x = tied(np.random.default_rng(3), (2, 7, 7, 3), dtype)
  for window, stride in (((2, 2), (2, 2)), ((3, 3), (2, 2))):
    if dtype == 'int32':
      pool = lambda x, w=window, s=stride: nn.max_pool(x, w, s)  # noqa: E731
      np.testing.assert_array_equal(jax.jit(pool)(x), for_cpu(pool)(x))
      assert not sites(jax.make_jaxpr(pool)(x))
    else:
      xla, ours, found = both(pooled(window, stride, 'SAME'), x, jax.random.key(0))
      assert len(found) == 1 + (window == stride)  # sums in half precision stay XLA's
      for one, other in zip(xla, ours, strict=True):
        np.testing.assert_array_equal(one.astype(np.float32), other.astype(np.float32))


def test_double_precision():
  with jax.enable_x64(True):
    x = tied(np.random.default_rng(3), (2, 7, 7, 3), 'float64')
    xla, ours, found = both(pooled((3, 3), (2, 2), 'SAME'), x, jax.random.key(0))
    assert len(found) == 2
    for one, other in zip(xla, ours, strict=True):
      assert other.dtype == np.float64
      np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
  ('shape', 'words'),
  [
    ((0, 4, 4, 1), {}),
    ((1, 16, 16, 1), {'window': (8, 8)}),
    ((1, 8, 8, 1), {'dilation': 2}),
  ],
)
def test_what_is_not_covered_stays_native(shape, words):
  window = words.get('window', (2, 2))

  def pool(x):
    dilation = (1, words.get('dilation', 1), 1, 1)
    return jax.lax.reduce_window(
      x, -jnp.inf, jax.lax.max, (1, *window, 1), (1, *window, 1), 'VALID', window_dilation=dilation
    )

  x = jnp.arange(np.prod(shape), dtype=jnp.float32).reshape(shape)
  program = jax.make_jaxpr(pool)(x)
  assert walk.has_primitive(program, 'reduce_window_max')
  assert not sites(program)
  np.testing.assert_array_equal(for_cpu(pool)(x), jax.jit(pool)(x))


def random_case(seed):
  rng = np.random.default_rng(seed)
  window, stride = rng.integers(1, 5, 2), rng.integers(1, 5, 2)
  size = window + rng.integers(0, 7, 2)
  padding = [tuple(map(int, rng.integers(0, k, 2))) for k in window]
  shape = (int(rng.integers(1, 4)), *map(int, size), int(rng.integers(1, 4)))
  return tuple(map(int, window)), tuple(map(int, stride)), padding, tied(rng, shape)


def check_random(seeds):
  for seed in seeds:
    window, stride, padding, x = random_case(seed)
    xla, ours, _ = both(pooled(window, stride, padding), x, jax.random.key(seed))
    for one, other in zip(xla, ours, strict=True):
      np.testing.assert_array_equal(one, other, err_msg=f'{window} {stride} {padding} {x.shape}')


def test_random_windows():
  check_random(range(1))


@pytest.mark.slow
def test_two_hundred_random_windows():
  check_random(range(200))
