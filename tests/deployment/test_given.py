"""Law of what is given to a network that left: no value becomes another one on its way in."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlite.deployment.c.check import run
from jaxlite.deployment.c.source import c_source
from jaxlite.deployment.operations import reference
from jaxlite.deployment.operations.lowering import lower
from jaxlite.deployment.packed.file import pack, unpack
from jaxlite.deployment.running.program import program
from jaxlite.deployment.running.runner import runner

pytestmark = pytest.mark.unoptimized
GRAPH = lower(lambda p, x: x.astype('float32') @ p, np.ones((3, 2), 'float32'), np.ones((1, 3), 'uint8'))


def c_entry(inputs):
  return run(c_source(GRAPH), GRAPH, {'input': inputs}, ['cc', '-std=c99']).results[0]


WAYS = {
  'numpy': lambda inputs: reference.run(GRAPH, inputs),
  'jax': program(GRAPH),
  'kernels': runner(GRAPH),
  'pack': unpack(pack(GRAPH)).predict,
  'c': c_entry,
}


@pytest.mark.parametrize('way', WAYS)
@pytest.mark.parametrize(
  ('inputs', 'told'),
  [
    (np.full((2, 3), 0.5, 'float32'), 'got float32: give whole numbers'),
    (np.full((2, 3), 2.0), 'got float64: give whole numbers'),
    (np.full((2, 3), 256), 'int64 from 256 to 256'),
    (np.full((2, 3), -1, 'int8'), 'int8 from -1 to -1'),
    (np.ones((2, 3), bool), 'got bool: give whole numbers'),
    (np.ones((2, 3), complex), 'got complex128: give whole numbers'),
  ],
)
def test_what_would_become_another_number_is_refused(way, inputs, told):
  with pytest.raises(ValueError, match=f'input takes uint8, raw as in training; .*{told}'):
    WAYS[way](inputs)


@pytest.mark.parametrize('way', WAYS)
def test_whole_numbers_that_fit_are_taken_whatever_their_width(way):
  given = np.array([[0, 255, 3]])
  wanted = [[258.0, 258.0]]
  for dtype in ('int64', 'uint8', 'int16'):
    np.testing.assert_array_equal(WAYS[way](given.astype(dtype)), wanted)


def test_traced_numbers_are_converted_by_who_gives_them():
  fn = jax.jit(program(GRAPH))
  with pytest.raises(ValueError, match='in a traced function, whose values may not fit: convert them to uint8 there'):
    fn(jnp.ones((1, 3), 'int32'))
  assert fn(jnp.ones((1, 3), 'uint8')).tolist() == [[3.0, 3.0]]


def test_floats_take_what_floats_hold():
  graph = lower(lambda p, x: x @ p, np.ones((3, 2), 'float32'), np.ones((1, 3), 'float32'))
  for given in (np.ones((1, 3)), np.ones((1, 3), 'int64'), [[1, 1, 1]], np.ones((1, 3), bool)):
    np.testing.assert_array_equal(reference.run(graph, given), [[3.0, 3.0]])
  with pytest.raises(ValueError, match='give its real numbers'):
    reference.run(graph, np.ones((1, 3), complex))
