"""Handlers in C: the bits of those in Python, and a clean way back where they cannot be compiled."""

import concurrent.futures
import ctypes
import itertools
import os
import platform
import shutil

import jax
import numpy as np
import pytest

from jaxlite.cpu.kernels import ffi, onednn, onednn_handlers
from jaxlite.cpu.kernels.match import Geometry, Layout

pytestmark = pytest.mark.skipif(
  platform.system() != 'Linux' or platform.machine() != 'x86_64', reason='the extra has no wheel for this platform'
)
SHAPES = {'x': (8, 6, 6, 4), 'w': (3, 3, 4, 5), 'y': (8, 6, 6, 5), 'a': (8, 9, 5), 'b': (8, 7, 5), 'c': (8, 9, 7)}
LAYOUT = Layout((8,), 9, 5, 7, (45, 5, 1), (35, 1, 5))
GEOMETRY = Geometry(
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


def by_ctypes(kind, chunks, arrays):
  out = np.zeros(SHAPES[OPERANDS[kind][2]], np.float32)
  product(kind, chunks)(*(array.ctypes.data for array in (*arrays, out)))
  return out


def compiler():
  """Where there is a compiler, handlers that do not compile are a mistake, not a reason to skip."""
  if not any(map(shutil.which, (os.environ.get('CC') or 'cc', 'gcc', 'clang'))):
    pytest.skip('this machine has no C compiler')


def compiled(kind, chunks):
  """An operation of XLA that calls a handler in C, and what has to outlive it."""
  compiler()
  one = product(kind, chunks)
  address = onednn_handlers.handler(one)
  assert address
  name = f'jaxlite_test_native_{next(numbers)}'
  ffi.register_address(name, ctypes.c_void_p(address))
  shape = jax.ShapeDtypeStruct(SHAPES[OPERANDS[kind][2]], np.float32)
  return jax.jit(jax.ffi.ffi_call(name, shape)), one


@pytest.mark.parametrize('kind, chunks', [*itertools.product(OPERANDS, (1, 2, 8))])
def test_the_bits_are_those_of_the_handler_in_python(kind, chunks):
  assert onednn.missing() == ''
  arrays = operands(kind)
  call, _kept = compiled(kind, chunks)
  for _ in range(2):  # the memory of a call is used again
    np.testing.assert_array_equal(call(*arrays), by_ctypes(kind, chunks, arrays))


@pytest.mark.parametrize('kind', list(OPERANDS))
def test_calls_at_once_do_not_meet(kind):
  arrays = operands(kind)
  call, _kept = compiled(kind, 4)
  want = {scale: by_ctypes(kind, 4, [arrays[0] * np.float32(scale), arrays[1]]) for scale in (1, 2)}

  def one(index):
    scale = 1 + index % 2
    return np.array_equal(call(arrays[0] * np.float32(scale), arrays[1]), want[scale])

  with concurrent.futures.ThreadPoolExecutor(4) as pool:
    assert all(pool.map(one, range(200)))


def test_what_was_compiled_but_cannot_be_loaded_is_no_error(monkeypatch):
  monkeypatch.setattr(onednn_handlers.compiled, 'load', lambda name: None)
  onednn_handlers.library.cache_clear()
  try:
    assert onednn_handlers.library() is None
  finally:
    onednn_handlers.library.cache_clear()


def test_more_products_than_there_is_room_for_go_through_python(monkeypatch):
  one = product('forward', 1)

  class Full:
    def jaxlite_handler(self, _):
      return None

  monkeypatch.setattr(onednn_handlers, 'library', Full)
  assert onednn_handlers.handler(one) is None
