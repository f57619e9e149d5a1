"""Laws of a list as a JAX function: sums of integers are exact by whatever products a platform has, and what leaves
them is what NumPy says, on millions of values."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlite as jl
from jaxlite import models
from jaxlite.deployment.integers import rules as integer_rules
from jaxlite.deployment.operations import Batch, Graph, Operation, Value, reference
from jaxlite.deployment.operations.lowering import lower
from jaxlite.deployment.operations.patterns import recognized
from jaxlite.deployment.running import program as programs
from jaxlite.deployment.running import program_integers as integers
from networks import first_values

pytestmark = pytest.mark.unoptimized
RNG = np.random.default_rng(0)


def floats(*shape):
  return RNG.normal(size=shape).astype(np.float32)


def test_the_rule_is_the_same_in_numpy_eager_compiled_and_as_fake_quantization_on_four_million_values():
  count = 4_000_000
  totals = RNG.integers(-(2**26), 2**26, count).astype(np.int32)
  factor, zero = np.float32(2**-19), 3
  totals[: count // 2] = (totals[: count // 2] >> 19 << 19) + 2**18  # halves of a step, exactly
  told = {'y_scale': 1.0, 'y_zero_point': zero, 'low': -100, 'high': 127}
  wanted = integer_rules.leaves(totals, factor, **told)
  real = totals.astype(np.float32)  # by hand, in floats
  by_hand = np.minimum(np.maximum(np.rint(real * factor), np.float32(-103)), np.float32(124))
  np.testing.assert_array_equal(by_hand + 3, wanted)
  np.testing.assert_array_equal(integers.leaves(totals, factor, **told), wanted)
  np.testing.assert_array_equal(jax.jit(functools.partial(integers.leaves, **told))(totals, factor), wanted)


def product(dtype):
  return lambda x, w: jax.lax.dot_general(x, jnp.asarray(w), (((1,), (0,)), ((), ())), preferred_element_type=dtype)


@pytest.mark.parametrize('length', [3, 100, 700, 12_000])
def test_a_sum_is_exact_however_long_it_is(length):
  """Of one float32, of two, of int32: on this platform, and the one of int8 that others take."""
  q, w = RNG.integers(-128, 128, (3, length)).astype(np.int8), RNG.integers(-127, 128, (length, 4)).astype(np.int8)
  q[0], w[:, 0] = 127, 127  # the largest sum
  for zero in (0, -128, 5):
    wanted = (q.astype(np.int64) - zero) @ w.astype(np.int64)
    found = jax.jit(lambda q, zero=zero: integers.sums(q, w, zero, 1, product(jnp.float32), product(jnp.int32)))(q)
    np.testing.assert_array_equal(found, wanted)
    other = integers.by_int8(q, w, zero, product(jnp.int32))
    np.testing.assert_array_equal(other, wanted)


GEOMETRIES = {
  'strided': {
    'strides': (2, 3),
    'padding': ((1, 2), (0, 1)),
    'dilation': (1, 1),
    'input_dilation': (1, 1),
    'groups': 1,
  },
  'dilated': {
    'strides': (1, 1),
    'padding': ((2, 2), (1, 3)),
    'dilation': (2, 3),
    'input_dilation': (1, 1),
    'groups': 2,
  },
  'transposed': {
    'strides': (1, 1),
    'padding': ((2, 2), (1, 0)),
    'dilation': (1, 1),
    'input_dilation': (2, 3),
    'groups': 1,
  },
  'depthwise': {
    'strides': (1, 2),
    'padding': ((1, 1), (1, 1)),
    'dilation': (1, 1),
    'input_dilation': (1, 1),
    'groups': 4,
  },
}


@pytest.mark.parametrize('name', GEOMETRIES)
def test_a_convolution_by_places_of_its_kernel_is_the_convolution(name):
  told = GEOMETRIES[name]
  q = RNG.integers(-128, 128, (2, 9, 10, 4)).astype(np.int8)
  w = RNG.integers(-127, 128, (8, 3, 2, 4 // told['groups'])).astype(np.int8)
  wanted = reference.RULES['conv'](q.astype(np.float64), w.astype(np.float64), **told)
  np.testing.assert_array_equal(integers.by_places(jnp.asarray(q), jnp.asarray(w), **told), wanted)
  scales = {'x_scale': 0.1, 'x_zero_point': -7, 'y_scale': 30.0, 'y_zero_point': 2, 'low': -128, 'high': 127}
  given = (q, w, np.full(8, 0.5, np.float32), RNG.integers(-900, 900, 8).astype(np.int32))
  wanted = reference.RULES['quantized_conv'](*given, **told, **scales)
  np.testing.assert_array_equal(integers.LAYERS['quantized_conv'](*given, **told, **scales), wanted)
  by_places = lambda x, w: integers.by_places(x, jnp.asarray(w), **told)  # noqa: E731
  share = reference.RULES['conv'](q.astype(np.float64) + 7, w.astype(np.float64), **told)
  np.testing.assert_array_equal(integers.by_int8(q, w, -7, by_places), share)


@pytest.mark.parametrize('length', [3, 300, 5000])
def test_a_product_of_activations_is_exact_however_long_it_is(length):
  a, b = (RNG.integers(-128, 128, (2, 3, length)).astype(np.int8) for _ in range(2))
  a[0, 0], b[0, 0] = -128, -128
  numbers = (((2,), (2,)), ((0,), (0,)))
  for zeros in ((127, 127), (0, 0), (-3, 9)):
    told = {'a_scale': 0.5, 'a_zero_point': zeros[0], 'b_scale': 2.0, 'b_zero_point': zeros[1]}
    wanted = reference.RULES['quantized_dot'](a, b, dimension_numbers=numbers, **told)
    found = jax.jit(lambda a, b, told=told: integers.RULES['quantized_dot'](a, b, dimension_numbers=numbers, **told))(
      a, b
    )
    np.testing.assert_array_equal(found, wanted)
    whole = integers.pair_by_int8(a, b, numbers, *zeros)
    np.testing.assert_array_equal(np.asarray(whole).astype(np.float32), wanted)


def test_a_program_says_what_it_cannot_run():
  x = Value((Batch(), 3), np.dtype(np.float32))
  with pytest.raises(ValueError, match='frobnicate has no form'):
    programs.program(Graph(('x',), ('y',), (Operation('frobnicate', ('x',), ('y',), {}),), {'x': x, 'y': x}, {}))(
      floats(2, 3)
    )
  graph = lower(lambda p, x: x + 1, {}, floats(2, 3))
  for given, match in ((floats(2, 4), r'got an array of shape \[2, 4\]'), ({'z': floats(2, 3)}, 'takes the inputs')):
    with pytest.raises(ValueError, match=match):
      programs.program(graph)(given)


NETWORKS = {
  'small cnn': (models.SmallCNN, floats(8, 14, 14, 1)),
  'vit': (lambda: models.ViT(patch=4, width=16, layers=1, heads=2), floats(8, 8, 8, 1)),
  'text': (lambda: models.EmbeddingBag(50, 3), RNG.integers(1, 50, (8, 9)).astype(np.int32)),
}


@pytest.mark.parametrize('name', NETWORKS)
def test_a_list_of_floats_is_a_program_too(name):
  make, inputs = NETWORKS[name]
  model = jl.adapt(make())
  known = first_values(model, inputs)
  fn = lambda known, x: model.apply(*known, x, train=False, key=None)[0]  # noqa: E731
  graph = lower(fn, known, inputs)
  wanted = jax.jit(fn)(known, inputs)
  for one in (graph, recognized(graph)):
    np.testing.assert_allclose(jax.jit(programs.program(one))(inputs), wanted, atol=2e-5 * np.abs(wanted).max())
