"""What LiteRT looks up, repeats and spreads: at every batch size, and as JAX does at the edges."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxlite.deployment.litert import file as litert
from jaxlite.deployment.operations import reference
from jaxlite.deployment.operations.lowering import lower
from jaxlite.deployment.operations.patterns import recognized

HERE = all(importlib.util.find_spec(name) for name in ('litert_converter', 'ai_edge_litert'))
pytestmark = [pytest.mark.unoptimized, pytest.mark.skipif(not HERE, reason='needs litert-converter and ai-edge-litert')]
RNG = np.random.default_rng(0)


def floats(*shape):
  return RNG.normal(size=shape).astype(np.float32)


def listed(fn, inputs):
  return recognized(lower(lambda _, x: fn(x), {}, inputs))


@pytest.mark.parametrize('kind', ['uint8', 'int8'])
def test_bytes_are_compared_and_looked_up(kind):
  ids, table = np.array([[0, 3, 7], [2, 2, 5]], kind), floats(8, 2)
  graph = listed(lambda x: (jax.nn.one_hot(x, 8), jnp.asarray(table)[x], x > 2), ids)
  found = litert.answers(litert.litert_bytes(graph), {'input': ids})
  for got, want in zip(found, reference.run(graph, ids), strict=True):
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize('space', [1, 2, 3])
def test_transposed_convolutions_have_an_open_batch(space):
  x, letters = floats(3, *(4, 3, 2)[:space], 2), 'HWD'[:space]
  kernel, numbers = floats(*(3, 2, 3)[:space], 2, 4), (f'N{letters}C', f'{letters}IO', f'N{letters}C')

  def fn(x):
    return lax.conv_transpose(x, kernel, (2, 3, 1)[:space], 'SAME', dimension_numbers=numbers)

  (found,) = litert.answers(litert.litert_bytes(listed(fn, x)), {'input': x})
  np.testing.assert_allclose(found, fn(x), rtol=1e-5, atol=1e-5)


def test_heads_that_several_queries_share_are_repeated():
  x = floats(4, 3, 6)

  def fn(x):  # and a mask that is as long as they are
    heads = jnp.repeat(x.reshape(*x.shape[:2], 2, 3), 2, axis=2)
    seen = jnp.broadcast_to((x > 0).any(-1)[:, :, None, None], heads.shape)
    return heads, jnp.where(seen, heads, -1.0), jnp.repeat(x.astype(jnp.int32), 2, axis=1)

  found = litert.answers(litert.litert_bytes(listed(fn, x)), {'input': x})
  for got, want in zip(found, fn(x), strict=True):
    np.testing.assert_array_equal(got, want)


def test_places_beyond_a_table_are_its_nearest():
  places, table = np.array([[0, 1], [-1, 9], [-9, 2]], np.int32), jnp.asarray(floats(4, 3))
  graph = listed(lambda x: table[x[:, 0], x[:, 1]], places)
  (found,) = litert.answers(litert.litert_bytes(graph), {'input': places})
  np.testing.assert_array_equal(found, table[places[:, 0], places[:, 1]])


def test_what_is_gathered_along_an_axis_has_an_open_batch():
  x = floats(4, 3, 2)
  data = litert.litert_bytes(listed(lambda x: jax.image.resize(x, (x.shape[0], 5, 2), 'nearest'), x))
  np.testing.assert_array_equal(litert.answers(data, {'input': x})[0], x[:, [0, 0, 1, 2, 2]])


def test_the_cube_root_of_a_negative_number_is_one():
  x = np.array([[-8.0, 0.0, 27.0]], np.float32)
  (found,) = litert.answers(litert.litert_bytes(listed(jnp.cbrt, x)), {'input': x})
  np.testing.assert_allclose(found, [[-2.0, 0.0, 3.0]], rtol=1e-5)
