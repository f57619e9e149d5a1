"""Handlers in C: the same bits on any threads, errors that are seen, and a way back where they cannot be compiled."""

import concurrent.futures
import ctypes
import itertools
import platform

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxlite.cpu import autotune
from jaxlite.cpu.kernels import choose, compiler, direct, ffi, onednn, onednn_handlers
from jaxlite.cpu.kernels.match import ConvGeometry, MatmulLayout

pytestmark = pytest.mark.skipif(
  platform.system() != 'Linux' or platform.machine() != 'x86_64', reason='the extra has no wheel for this platform'
)
SHAPES = {'x': (8, 6, 6, 4), 'w': (3, 3, 4, 5), 'y': (8, 6, 6, 5), 'a': (8, 9, 5), 'b': (8, 7, 5), 'c': (8, 9, 7)}
LAYOUT = MatmulLayout((8,), 9, 5, 7, (45, 5, 1), (35, 1, 5))
GEOMETRY = ConvGeometry(
  *(8, 4, 5, 1),
  *((6, 6), (3, 3), (6, 6)),
  *((1, 1), (1, 1), (1, 1), (1, 1)),
  *((144, 1, 24, 4), (1, 5, 60, 20), (180, 1, 30, 5)),
)
OPERANDS = {
  'forward': 'xwy',
  'input': 'ywx',
  'weight': 'xyw',
  'matmul': 'abc',
}  # two that are read, one that is written
numbers = itertools.count()


def operands(kind):
  rng = np.random.default_rng(0)
  return [rng.normal(size=SHAPES[name]).astype(np.float32) for name in OPERANDS[kind][:2]]


def product(kind, chunks):
  return onednn.Contraction(LAYOUT, chunks) if kind == 'matmul' else onednn.Convolution(kind, GEOMETRY, chunks)


def needed():
  """Where there is a compiler, handlers that do not compile are a mistake, not a reason to skip."""
  if compiler.compiler() is None:
    pytest.skip('this machine has no C compiler')


def handler(kind, chunks):
  needed()
  assert onednn.missing() == ''
  return onednn_handlers.handler(product(kind, chunks))


def in_a_program(kind, address):
  """An operation of XLA that calls a handler."""
  name = f'jaxlite_test_onednn_{next(numbers)}'
  ffi.register(name, ctypes.c_void_p(address))
  return jax.jit(jax.ffi.ffi_call(name, jax.ShapeDtypeStruct(SHAPES[OPERANDS[kind][2]], np.float32)))


def alone(kind, address, arrays):
  """The same on this thread, without XLA."""
  out = np.zeros(SHAPES[OPERANDS[kind][2]], np.float32)
  onednn_handlers.run(address, *arrays, out)
  return out


@pytest.mark.parametrize('kind', OPERANDS)
def test_chunks_and_not_threads_decide_the_bits(kind):
  arrays, found = operands(kind), {}
  for chunks in (1, 2, 8):
    address = handler(kind, chunks)
    call = in_a_program(kind, address)
    found[chunks] = alone(kind, address, arrays)
    for _ in range(2):  # the memory of a call is used again
      np.testing.assert_array_equal(call(*arrays), found[chunks])
    np.testing.assert_allclose(found[chunks], found[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('kind', list(OPERANDS))
def test_calls_at_once_do_not_meet(kind):
  arrays, address = operands(kind), handler(kind, 4)
  call = in_a_program(kind, address)
  want = {scale: alone(kind, address, [arrays[0] * np.float32(scale), arrays[1]]) for scale in (1, 2)}

  def one(index):
    scale = 1 + index % 2
    return np.array_equal(call(arrays[0] * np.float32(scale), arrays[1]), want[scale])

  with concurrent.futures.ThreadPoolExecutor(4) as pool:
    assert all(pool.map(one, range(200)))


def test_a_failure_inside_becomes_an_error_of_the_program():
  needed()
  broken = product('forward', 1)
  broken.numbers = (0, 0, 0)  # no operand has these
  address = onednn_handlers.handler(broken)
  with pytest.raises(RuntimeError, match='a product failed'):
    alone('forward', address, operands('forward'))
  with pytest.raises(jax.errors.JaxRuntimeError, match='a product failed'):
    jax.block_until_ready(in_a_program('forward', address)(*operands('forward')))


@pytest.fixture
def afresh():
  """What is asked once a process is asked anew, in the test and after it."""
  known = onednn.missing, onednn_handlers.library
  for one in known:
    one.cache_clear()
  yield
  for one in known:
    one.cache_clear()


def convolution():
  x, w = jnp.ones((8, 6, 6, 4)), jnp.ones((3, 3, 4, 5))
  conv = lambda x, w: lax.conv_general_dilated(x, w, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC'))  # noqa: E731
  return jax.make_jaxpr(conv)(x, w).jaxpr.eqns[0]


def test_where_handlers_cannot_be_compiled_xla_does_it_and_the_run_says_why(afresh, monkeypatch, tmp_path):
  taken = {'gone': f'onednn{choose.CHUNKS}', 'ours': f'direct{choose.CHUNKS}', 'xla': 'xla', 'made': 'outer'}
  autotune.write(tmp_path / 'table', autotune.Table(taken, 'a machine that had them'))

  def load(name, **_):
    raise compiler.NoLibrary('the C compiler failed')

  monkeypatch.setattr(onednn_handlers.compiler, 'load', load)
  direct.missing.cache_clear()
  try:
    assert onednn.missing() == 'oneDNN is installed but not called: the C compiler failed'
    assert (choose.forms(convolution()), choose.names()) == ({}, ())
    assert autotune.without() == onednn.missing()  # one reason for all kernels, said once
    assert 'onednn' not in autotune.machine()
    assert autotune.recorded(tmp_path / 'table') == {'xla': 'xla', 'made': 'outer'}
    said = []
    autotune.settle(tmp_path / 'table', [], said.append)
    assert said[1].startswith('note: 3 operations ran by direct')
    assert said[1].endswith(f'the last bits will differ. {onednn.missing()}')
  finally:
    direct.missing.cache_clear()


def test_more_products_than_there_is_room_for_are_left_to_xla(monkeypatch):
  needed()
  assert onednn.missing() == ''
  monkeypatch.setattr(onednn_handlers, 'handler', lambda of: None)
  choose._target.cache_clear()
  assert choose.forms(convolution()) == {}
  choose._target.cache_clear()


@pytest.mark.parametrize('kind', OPERANDS)
def test_a_product_is_never_run_on_arrays_of_other_sizes(kind):
  name, shapes = f'jaxlite_test_onednn_{next(numbers)}', [SHAPES[name] for name in OPERANDS[kind]]
  ffi.register(name, ctypes.c_void_p(handler(kind, 2)))

  def call(one, other, out, dtype=np.float32):
    run = jax.jit(jax.ffi.ffi_call(name, jax.ShapeDtypeStruct(out, dtype)))
    return jax.block_until_ready(run(np.ones(one, dtype), np.ones(other, dtype)))

  assert call(*shapes).shape == shapes[2]
  for wrong in range(3):
    for change in (lambda s: (s[0] - 1, *s[1:]), lambda s: (*s, 2), lambda s: ()):
      with pytest.raises(jax.errors.JaxRuntimeError, match='of other sizes than it was made for'):
        call(*(change(shape) if at == wrong else shape for at, shape in enumerate(shapes)))
  with pytest.raises(jax.errors.JaxRuntimeError, match='of other sizes than it was made for'):
    call(*shapes, dtype=np.int32)
  with pytest.raises(jax.errors.JaxRuntimeError, match='of other sizes than it was made for'):
    call(*shapes, dtype=jnp.bfloat16)
