"""Laws of rows that are looked up: whatever the ids, their dtype and what is asked of those beyond the table, a list
says what JAX says, and other runtimes say it where the network bounds its ids itself."""

import jax
import jax.numpy as jnp
import numpy as np
import onnxruntime
import pytest

from jaxlite.cpu.kernels.compiler import compiler
from jaxlite.deployment.c import check as c_check
from jaxlite.deployment.c.source import c_source
from jaxlite.deployment.onnx.file import onnx_bytes
from jaxlite.deployment.operations import reference
from jaxlite.deployment.operations.lowering import lower
from jaxlite.deployment.operations.patterns import recognized
from jaxlite.deployment.running.runner import runner
from lists import floats

pytestmark = pytest.mark.unoptimized
WAYS = {
  'indexed': lambda table, ids: table[ids],
  'clipped': lambda table, ids: jnp.take(table, ids, axis=0, mode='clip'),
  'filled': lambda table, ids: jnp.take(table, ids, axis=0),
  'one by one': lambda table, ids: jax.vmap(jax.vmap(lambda one: table[one]))(ids),  # as Equinox embeds
  'bounded': lambda table, ids: table[jnp.clip(ids, 0, 4)],
}
IDS = np.array([[0, 4, 5, 9], [-1, -5, -6, -10], [127, -128, -11, 2]])


@pytest.mark.parametrize('kind', ['int32', 'int8', 'uint8'])
def test_ids_beyond_a_table_find_what_jax_finds(kind):
  table, ids = jnp.asarray(floats(5, 3)), IDS.astype(kind)

  def looks(ways):
    fn = jax.jit(lambda table, ids: [WAYS[way](table, ids) for way in ways])
    return recognized(lower(fn, table, ids)), [np.asarray(one) for one in fn(table, ids)]

  graph, wanted = looks(WAYS)
  assert sum(one.kind == 'take' for one in graph.operations) == len(WAYS)
  ran = c_check.run(c_source(graph), graph, {'input': ids}, [compiler(), '-std=c99', '-O1'])
  for found in (reference.run(graph, ids), ran.results, runner(graph)(ids)):
    for got, want in zip(found, wanted, strict=True):
      np.testing.assert_array_equal(got, want)
  graph, wanted = looks(
    [way for way in WAYS if way != 'filled']
  )  # of those filled ONNX Runtime says that there is no row
  session = onnxruntime.InferenceSession(onnx_bytes(graph), providers=['CPUExecutionProvider'])
  for got, want in zip(session.run(None, {'input': ids}), wanted, strict=True):
    np.testing.assert_array_equal(got, want)


def test_ids_that_were_made_narrow_stay_so():
  table, ids = floats(300, 2), np.array([[256, 3]], np.int32)
  look = jax.jit(lambda table, ids: table[ids.astype(jnp.uint8)])
  np.testing.assert_array_equal(reference.run(recognized(lower(look, table, ids)), ids), look(table, ids))


def test_bytes_that_a_table_has_rows_for_are_not_bounded_again():
  graph = recognized(lower(lambda table, ids: table[ids], floats(256, 2), np.zeros((1, 3), np.uint8)))
  assert [one.kind for one in graph.operations] == ['convert_element_type', 'take']
