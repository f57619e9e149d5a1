"""Where networks of integers by kernels end: many operands, odd graphs, NaN, transformations of JAX, other limits."""

from __future__ import annotations

import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from jaxlite.cpu.kernels import integers
from jaxlite.deployment.operations import Batch, Graph, Operation, Value, reference
from jaxlite.deployment.operations.lowering import lower
from jaxlite.deployment.operations.patterns import recognized
from jaxlite.deployment.running import kernels as engine
from jaxlite.deployment.running import tables
from jaxlite.deployment.running.program import program
from jaxlite.deployment.running.runner import runner

pytestmark = pytest.mark.skipif(bool(integers.missing()), reason='needs a C compiler')

FLOAT, BYTE = np.dtype('float32'), np.dtype('int8')
WHOLE = {'low': -128, 'high': 127}


def _lowered(fn, x):
  return recognized(lower(lambda p, x: fn(x), {}, x))


def _graph(operations, outputs, shape=(4,), constants=None, **dtypes):
  """Of operations (kind, inputs, output, attributes) that keep the shape of the one input."""
  constants = constants or {}
  values = {'input': Value((Batch(), *shape), FLOAT)}
  values |= {name: Value(array.shape, array.dtype) for name, array in constants.items()}
  values |= {output: Value((Batch(), *shape), np.dtype(dtypes.get(output, FLOAT))) for _, _, output, _ in operations}
  made = tuple(Operation(kind, tuple(inputs), (output,), told) for kind, inputs, output, told in operations)
  return Graph(('input',), tuple(outputs), made, values, constants)


def _alike(graph, x, exact=True):
  found, want = jax.jit(runner(graph))(x), reference.run(graph, x)
  for got, wanted in zip(found, want, strict=True) if isinstance(want, tuple) else [(found, want)]:
    assert got.dtype == wanted.dtype
    if exact:
      np.testing.assert_array_equal(got, wanted)
    else:
      np.testing.assert_allclose(got, wanted, rtol=1e-6)


@pytest.mark.parametrize('count', [9, 64, 70])
def test_more_results_than_a_call_takes_are_left_to_xla(count):
  x = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
  _alike(_lowered(lambda x: tuple(x * (index + 1.0) for index in range(count)), x), x)


def test_many_values_between_kernels_and_xla():
  x = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
  fn = lambda x: sum(jnp.tanh(jnp.cumsum(x * (index + 1.0), 1)) for index in range(70))  # noqa: E731
  np.testing.assert_allclose(runner(_lowered(fn, x))(x), fn(x), rtol=1e-5, atol=1e-5)


def test_results_may_be_inputs_constants_and_one_another():
  x = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
  _alike(_lowered(lambda x: (x, x * 2, jnp.ones((x.shape[0], 3)), x, x * 2), x), x)
  graph = _graph([('tanh', ['input'], 'a', {}), ('exp', ['a'], 'b', {})], ['b', 'a', 'b', 'input'])
  _alike(graph, x[:, :4], exact=False)


def test_what_is_made_of_constants_alone_needs_no_kernel():
  two, three = np.full((1, 1), 2, np.float32), np.full((1, 4), 3, np.float32)
  graph = _graph([('add', ['two', 'three'], 'five', {}), ('mul', ['input', 'five'], 'out', {})], ['out', 'five'],
                 constants={'two': two, 'three': three})  # fmt: skip
  _alike(graph, np.ones((2, 4), np.float32))


def test_what_nobody_reads_is_no_harm():
  graph = _graph([('exp', ['input'], 'dead', {}), ('tanh', ['input'], 'out', {})], ['out'])
  (piece,) = engine.parted(graph)
  x = np.ones((2, 4), np.float32)
  np.testing.assert_allclose(engine.network(piece.graph)(x)[0], np.tanh(x), rtol=1e-6)
  graph = _graph([('tanh', ['input'], 'out', {}), ('mean', ['out'], 'sum', {'axes': (1,)})], ['out'])
  x = np.zeros((2, 4), np.float32)
  assert runner(graph._replace(operations=graph.operations[:1]))(x).shape == (2, 4)


@pytest.mark.parametrize('count', [3, 15, 16, 17, 33])
@pytest.mark.parametrize('axis', [1, 2])
def test_the_largest_of_what_holds_nan_is_nan(count, axis):
  shape = (count, 2) if axis == 1 else (2, count)
  for where in range(count):
    x = np.random.default_rng(where).normal(size=(1, *shape)).astype(np.float32)
    x[(0, where, 0) if axis == 1 else (0, 0, where)] = np.nan
    graph = _lowered(lambda x: x.max(axis), x)
    assert [piece.by_kernels for piece in engine.parted(graph)] == [True]
    np.testing.assert_array_equal(runner(graph)(x), x.max(axis))


def test_bytes_are_read_from_the_zero_that_each_reader_says():
  graph = _graph(
    [
      ('quantize', ['input'], 'q', {'scale': 0.5, 'zero_point': 3, **WHOLE}),
      ('dequantize', ['q'], 'a', {'scale': 0.5, 'zero_point': 3}),
      ('dequantize', ['q'], 'b', {'scale': 0.25, 'zero_point': -7}),
      ('sub', ['a', 'b'], 'c', {}),
    ],
    ['c', 'q'],
    q=BYTE,
  )
  _alike(graph, np.linspace(-20, 20, 12, dtype=np.float32).reshape(3, 4))


@pytest.mark.parametrize(('low', 'high'), [(-50.5, 90.5), (-np.inf, 3.0), (5, np.inf)])
def test_ends_of_a_clip_of_integers_need_not_be_whole(low, high):
  graph = _graph(
    [
      ('quantize', ['input'], 'q', {'scale': 1.0, 'zero_point': 0, **WHOLE}),
      ('clip', ['q'], 'out', {'low': low, 'high': high}),
    ],
    ['out'],
    q=BYTE,
    out=BYTE,
  )
  _alike(graph, np.arange(-128, 128, dtype=np.float32).reshape(64, 4))


def test_a_table_takes_no_name_that_is_there():
  told = {'scale': 0.5, 'zero_point': 0}
  graph = _graph(
    [
      ('quantize', ['input'], 'q', {**told, **WHOLE}),
      ('dequantize', ['q'], 'a', told),
      ('mul', ['a', 'r/table'], 'b', {}),
      ('quantize', ['b'], 'r', {**told, **WHOLE}),
      ('dequantize', ['r'], 'c', told),
      ('add', ['c', 'r/table'], 'out', {}),
    ],
    ['out'],
    constants={'r/table': np.full((1, 1), 2.0, np.float32)},
    q=BYTE,
    r=BYTE,
  )
  assert 'table' in [one.kind for one in tables.tabled(graph).operations]
  _alike(graph, np.linspace(-20, 20, 12, dtype=np.float32).reshape(3, 4))


def test_rows_that_make_no_whole_example_are_refused():
  values = {'input': Value((Batch(2), 3), FLOAT), 'out': Value((Batch(2), 3), FLOAT)}
  graph = Graph(('input',), ('out',), (Operation('tanh', ('input',), ('out',), {}),), values, {})
  x = np.ones((6, 3), np.float32)
  for run in (runner(graph), program(graph)):
    np.testing.assert_allclose(run(x), np.tanh(x), rtol=1e-6)
    assert run(x[:0]).shape == (0, 3)
    with pytest.raises(ValueError, match='2 rows for each example; got 5'):
      run(x[:5])


def _integers():
  graph = _graph(
    [
      ('quantize', ['input'], 'q', {'scale': 0.5, 'zero_point': 3, **WHOLE}),
      ('dequantize', ['q'], 'a', {'scale': 0.5, 'zero_point': 3}),
      ('tanh', ['a'], 'out', {}),
    ],
    ['out'],
    q=BYTE,
  )
  return graph, np.random.default_rng(0).normal(0, 3, (2, 5, 4)).astype(np.float32)


def test_it_is_mapped_scanned_and_rematerialized_like_any_function():
  graph, x = _integers()
  run = runner(graph)
  want = np.stack([run(one) for one in x])
  np.testing.assert_array_equal(jax.vmap(run)(x), want)
  np.testing.assert_array_equal(jax.jit(jax.vmap(run, in_axes=1, out_axes=1))(x), want)
  np.testing.assert_array_equal(jax.lax.scan(lambda carry, one: (carry, jax.checkpoint(run)(one)), 0, x)[1], want)


def test_a_network_of_integers_has_no_gradient_one_of_floats_has_its_own():
  graph, (x, _) = _integers()
  with pytest.raises(ValueError, match='a network of integers has no gradient'):
    jax.grad(lambda x: runner(graph)(x).sum())(x)
  fn = lambda x: jnp.tanh(x) * x  # noqa: E731
  run = runner(_lowered(fn, x))
  slopes = [jax.jit(jax.grad(lambda x, f=f: f(x).sum()))(x) for f in (run, fn)]
  np.testing.assert_allclose(*slopes, rtol=1e-5)


def test_no_portable_file_holds_the_call_of_a_kernel():
  graph, (x, _) = _integers()
  run = jax.jit(runner(graph))
  for platforms in (('cpu',), ('cpu', 'cuda')):
    with pytest.raises(ValueError, match='custom calls'):
      export.export(run, platforms=platforms)(x)
  assert 'jaxlite_cpu' not in export.export(run, platforms=('cuda', 'tpu'))(x).mlir_module()


def test_threads_may_call_at_once_and_leave_nothing_behind():
  """In a process of its own: others may have told the allocator to keep what is freed."""
  done = subprocess.run([sys.executable, __file__], capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr[-2000:]


def called_by_threads():
  graph, (x, _) = _integers()
  plan, weights = engine.planned(engine.parted(graph)[0].graph)
  plan[3], plan[5] = 1 << 25, 1  # the arena: what a thread kept would be seen
  lib, want = integers.compiler.load('integers', tuned=True), np.asarray(runner(graph)(x))
  found = [np.zeros_like(want) for _ in range(24)]

  def memory():
    with open('/proc/self/statm') as file:
      return int(file.read().split()[1]) * 4096

  before = memory()
  for at in range(0, 24, 2):
    pair = [threading.Thread(target=integers.run, args=(lib, plan, weights, [x], [found[at + i]])) for i in range(2)]
    for one in pair:
      one.start()
    for one in pair:
      one.join()
  assert memory() - before < 24 * plan[3] // 3
  for one in found:
    np.testing.assert_array_equal(one, want)


def test_plans_beyond_reason_are_refused():
  plan, weights = engine.planned(engine.parted(_integers()[0])[0].graph)
  assert integers.is_sound(plan, weights)
  for arena, at_once, sound in ((1 << 28, 1, True), (1 << 28, 2, False), (1 << 20, 1 << 9, False)):
    other = plan.copy()
    other[3], other[5] = arena, at_once
    assert integers.is_sound(other, weights) == sound
  step = 8 + 3 * plan[6] + 28 * (plan[7] - 1)  # the last: a copy of floats into the result
  assert integers.KINDS[plan[step]] == 'copy'
  for at, number in ((4, 1 << 28), (8, 5), (19, -1)):
    other = plan.copy()
    other[step + at] = number
    assert not integers.is_sound(other, weights)
  result = next(index for index in range(plan[6]) if plan[8 + 3 * index] == 2)
  other = plan.copy()
  other[8 + 3 * result + 2] += 1  # floats of the second example would lie askew
  other[step : step + 28] = [integers.KINDS.index('dequantize'), 1, 1, result, 4, 0, 0, *[0] * 21]
  assert not integers.is_sound(other, weights)
  other[8 + 3 * result + 2] -= 1
  assert integers.is_sound(other, weights)


def test_results_that_lie_in_the_weights_are_refused():
  """They would change what was looked at before it was run."""
  graph = _graph([('quantize', ['input'], 'q', {'scale': 1.0, 'zero_point': 0, **WHOLE})], ['q'], shape=(1,), q=BYTE)
  plan, weights = engine.planned(engine.parted(graph)[0].graph)
  x = jnp.zeros((len(weights), 1), jnp.float32)
  result = [jax.ShapeDtypeStruct((len(weights),), jnp.int8)]

  def run(weights, x):
    call = jax.ffi.ffi_call(integers.TARGET, result, input_output_aliases={1: 0})
    return call(x, weights, plan=plan)[0]

  with pytest.raises(Exception, match='a result lies in the weights'):
    jax.block_until_ready(jax.jit(run, donate_argnums=0)(jnp.asarray(weights), x))


if __name__ == '__main__':
  called_by_threads()
