"""Convolutions and matrix products by oneDNN's own kernels, through its C interface and ctypes.

The library comes with the extra `jaxlite[onednn]` and is loaded when the first product asks for it; without it, or
where a trial convolution comes out wrong, there is nothing here to call and `missing` says why. Kernels run on one
thread each. The batch is cut into a fixed number of chunks that run side by side on threads of this module, and the
chunks' weight gradients are added in order: the result hangs on the number of chunks and never on the number of
threads. (OpenMP's own team of threads would fight with XLA's.)
"""

from __future__ import annotations

import concurrent.futures
import ctypes
import functools
import math
import os

import numpy as np

from jaxlite.cpu.kernels import onednn_c
from jaxlite.cpu.kernels.match import Geometry, Layout

_TRAINING, _AUTO = 64, 3
_SRC, _DST, _WEIGHTS, _SCRATCHPAD, _DIFF_SRC, _DIFF_DST, _DIFF_WEIGHTS = 1, 17, 33, 80, 129, 145, 161
_SCRATCHPAD_MD = 136
_WEIGHTS_MD = {'forward': 131, 'input': 131, 'weight': 132}


@functools.cache
def missing() -> str:
  """Returns why oneDNN cannot be used here; '' if it can.

  >>> missing() == '' or 'onednn' in missing()
  True
  """
  try:
    onednn_c.library()
    _try_out()
  except (OSError, ImportError, RuntimeError) as error:
    return f'no onednn: {error} (pip install "jaxlite[onednn]")'
  return ''


def chunks_of(batch: int, wanted: int) -> int:
  """Returns the largest number of equal chunks of a batch, at most so many as wanted.

  >>> chunks_of(128, 4), chunks_of(6, 4), chunks_of(7, 4)
  (4, 3, 1)
  """
  return next(n for n in range(max(1, min(wanted, batch)), 0, -1) if batch % n == 0)


def entry_points() -> list[int | None]:
  """Returns the addresses of the functions that run a convolution, and the engine, in the order of handlers.c."""
  names = ('stream_create', 'memory_create', 'memory_set_data_handle', 'primitive_execute')
  functions = [getattr(onednn_c.library(), f'dnnl_{name}') for name in names]
  functions += [onednn_c.openmp().omp_get_max_threads, onednn_c.openmp().omp_set_num_threads]
  return [*(ctypes.cast(function, ctypes.c_void_p).value for function in functions), onednn_c.engine().value]


class Product:
  """A kernel ready to run on the addresses of two operands and a result; safe on several threads at once.

  Attributes:
    kind: 'weight' where every chunk makes a whole result and these are added.
    chunks: pieces that run side by side.
  """

  kind: str
  chunks: int
  idle: list[_Slot]
  desc: ctypes.c_void_p

  def _build(self) -> None:
    if onednn_c.implementation(self.desc).startswith('ref'):
      raise RuntimeError('onednn: it has only its reference for this, which is slow')
    self.primitive = onednn_c.new('dnnl_primitive_create', self.desc)
    self.scratch = onednn_c.query(self.desc, _SCRATCHPAD_MD)

  def __call__(self, first: int, second: int, out: int) -> None:
    try:
      slot = self.idle.pop()
    except IndexError:  # another thread is at it
      slot = _Slot(self)
    try:
      slot.run(first, second, out)
    finally:
      self.idle.append(slot)


class Convolution(Product):
  """One of a convolution's three products, ready to run on addresses; safe on several threads at once.

  Args:
    kind: 'forward' (image, weights -> result), 'input' (gradient of the result, weights -> gradient of the image) or
      'weight' (image, gradient of the result -> gradient of the weights).
    geometry: of the forward pass.
    chunks: pieces of the batch; a divisor of it.

  Raises:
    RuntimeError: oneDNN has no kernel for it but a slow reference.
  """

  def __init__(self, kind: str, geometry: Geometry, chunks: int):
    self.kind, self.chunks = kind, chunks
    with onednn_c.OneThread():  # a kernel is made for as many threads as there are when it is made
      self._prepare(kind, geometry, chunks)
      self.idle: list[_Slot] = [_Slot(self)]

  def _prepare(self, kind: str, geometry: Geometry, chunks: int) -> None:
    lib = onednn_c.library()
    batch = geometry.batch // chunks
    g = geometry
    x = onednn_c.strided((batch, g.inputs, *g.image), g.x)
    y = onednn_c.strided((batch, g.outputs, *g.result), g.y)
    each_in, each_out = g.inputs // g.groups, g.outputs // g.groups
    if g.groups == 1:
      shape, strides = (each_out, each_in, *g.kernel), g.w
    else:
      shape, strides = (g.groups, each_out, each_in, *g.kernel), (each_out * g.w[0], *g.w)
    plain, free = (
      onednn_c.strided(shape, strides),
      onednn_c.new('dnnl_memory_desc_create_with_tag', len(shape), onednn_c.dims(shape), onednn_c.F32, onednn_c.ANY),
    )
    tail = [
      onednn_c.dims(g.stride),
      onednn_c.dims([d - 1 for d in g.dilation]),
      onednn_c.dims(g.low),
      onednn_c.dims(g.high),
    ]
    attr = onednn_c.new('dnnl_primitive_attr_create')
    onednn_c.check('scratchpad mode', lib.dnnl_primitive_attr_set_scratchpad_mode(attr, onednn_c.USER))
    engine = onednn_c.engine()
    make = functools.partial(onednn_c.new, 'dnnl_convolution_forward_primitive_desc_create', engine, _TRAINING, _AUTO)
    self.desc = hint = make(x, free, None, y, *tail, attr)
    if kind == 'input':
      name = 'dnnl_convolution_backward_data_primitive_desc_create'
      self.desc = onednn_c.new(name, engine, _AUTO, x, free, y, *tail, hint, attr)
    elif kind == 'weight':
      name = 'dnnl_convolution_backward_weights_primitive_desc_create'
      self.desc = onednn_c.new(name, engine, _AUTO, x, free, None, y, *tail, hint, attr)
    self._build()
    self.packed = onednn_c.query(self.desc, _WEIGHTS_MD[kind])
    ways = (plain, self.packed) if kind != 'weight' else (self.packed, plain)
    self.plain, self.free = plain, free
    self.same = bool(lib.dnnl_memory_desc_equal(plain, self.packed))
    self.reorder = onednn_c.new(
      'dnnl_primitive_create',
      onednn_c.new('dnnl_reorder_primitive_desc_create', ways[0], engine, ways[1], engine, None),
    )
    self.mds = {'forward': (x, y), 'input': (y, x), 'weight': (x, y)}[kind]  # the two arrays with a batch
    first, second = {'forward': (g.x, g.y), 'input': (g.y, g.x), 'weight': (g.x, g.y)}[kind]
    self.steps = 4 * batch * first[0], 4 * batch * second[0], 0  # bytes from chunk to chunk; weights are shared
    self.numbers = {
      'forward': (_SRC, _WEIGHTS, _DST),
      'input': (_DIFF_DST, _WEIGHTS, _DIFF_SRC),
      'weight': (_SRC, _DIFF_WEIGHTS, _DIFF_DST),
    }[kind]


class Contraction(Product):
  """A matrix product, or a batch of them, ready to run on addresses; safe on several threads at once.

  Args:
    layout: its operands'.
    chunks: pieces of the first axis of the batch, or of the rows where there is none; a divisor of it.

  Raises:
    RuntimeError: oneDNN has no kernel for it but a slow reference.
  """

  kind = 'forward'  # the second operand is read as it lies, by every chunk

  def __init__(self, layout: Layout, chunks: int):
    self.chunks, self.same, self.reorder = chunks, True, ctypes.c_void_p()
    with onednn_c.OneThread():
      batch, rows, inner, columns, a, b = layout
      outer = (*batch, rows)
      outer = (outer[0] // chunks, *outer[1:])
      out = [math.prod((*outer, columns)[axis + 1 :]) for axis in range(len(outer) + 1)]
      x, y = onednn_c.strided((*outer, inner), a), onednn_c.strided((*outer, columns), out)
      self.plain = self.packed = onednn_c.strided((*outer[:-1], inner, columns), b)
      attr = onednn_c.new('dnnl_primitive_attr_create')
      onednn_c.check('scratchpad mode', onednn_c.library().dnnl_primitive_attr_set_scratchpad_mode(attr, onednn_c.USER))
      self.desc = onednn_c.new('dnnl_matmul_primitive_desc_create', onednn_c.engine(), x, self.packed, None, y, attr)
      self._build()
      self.mds, self.numbers = (x, y), (_SRC, _WEIGHTS, _DST)
      each = 4 * outer[0]
      self.steps = each * a[0], each * out[0], each * b[0] if batch else 0
      self.idle = [_Slot(self)]


class _Slot:
  """The memory that one call of a product needs beside its operands."""

  def __init__(self, of: Product):
    self.of = of
    self.read = of.same and of.kind != 'weight'  # as they lie, no copy
    weights = 1 if of.kind != 'weight' else of.chunks
    self.weights = [] if self.read else [onednn_c.room(of.packed) for _ in range(weights)]
    self.scratch = [onednn_c.room(of.scratch) for _ in range(of.chunks)]
    self.plain = onednn_c.memory(of.plain)
    self.calls = []
    for index in range(of.chunks):
      pair = [onednn_c.memory(md) for md in of.mds]
      own = onednn_c.memory(of.packed, None if self.read else self.weights[min(index, weights - 1)].ctypes.data)
      scratch = onednn_c.memory(of.scratch, self.scratch[index].ctypes.data)
      one, middle, other = of.numbers
      args = (_Arg * 4)((one, pair[0]), (middle, own), (other, pair[1]), (_SCRATCHPAD, scratch))
      self.calls.append((pair, own, args))
    packed = self.calls[0][1]
    ways = (self.plain, packed) if of.kind != 'weight' else (packed, self.plain)
    self.moves = (_Arg * 2)((_SRC, ways[0]), (_DST, ways[1]))

  def run(self, first: int, second: int, out: int) -> None:
    of = self.of
    one, other = (first, second) if of.kind == 'weight' else (first, out)
    with onednn_c.OneThread():
      if of.kind != 'weight':
        self.move(second)
      rest = [_workers().submit(self.chunk, index, one, other) for index in range(1, of.chunks)]
      self.chunk(0, one, other)
      for task in rest:
        task.result()
      if of.kind == 'weight':
        for more in self.weights[1:]:
          np.add(self.weights[0], more, out=self.weights[0])
        self.move(out)

  def chunk(self, index: int, one: int, other: int) -> None:
    pair, _, args = self.calls[index]
    lib = onednn_c.library()
    for memory, at, step in zip(pair, (one, other), self.of.steps[:2], strict=True):
      onednn_c.check('set', lib.dnnl_memory_set_data_handle(memory, at + index * step))
    with onednn_c.OneThread():
      onednn_c.check('product', lib.dnnl_primitive_execute(self.of.primitive, onednn_c.stream(), 4, args))

  def move(self, weights: int) -> None:
    lib, of = onednn_c.library(), self.of
    if self.read:
      for index, (_, own, _) in enumerate(self.calls):
        onednn_c.check('set', lib.dnnl_memory_set_data_handle(own, weights + index * of.steps[2]))
      return
    onednn_c.check('set', lib.dnnl_memory_set_data_handle(self.plain, weights))
    onednn_c.check('reorder', lib.dnnl_primitive_execute(of.reorder, onednn_c.stream(), 2, self.moves))


@functools.cache
def _workers() -> concurrent.futures.ThreadPoolExecutor:
  return concurrent.futures.ThreadPoolExecutor(max(1, (os.cpu_count() or 1) - 1), 'jaxlite-onednn')


class _Arg(ctypes.Structure):
  _fields_ = (('number', ctypes.c_int), ('memory', ctypes.c_void_p))


def _try_out() -> None:
  """A small convolution and its weights' gradient, against NumPy; RuntimeError if they differ."""
  rng = np.random.default_rng(0)
  x, w = rng.normal(size=(2, 4, 4, 3)).astype(np.float32), rng.normal(size=(2, 2, 3, 5)).astype(np.float32)
  y, back = np.zeros((2, 3, 3, 5), np.float32), np.zeros_like(w)
  views = np.stack([x[:, i : i + 3, j : j + 3] for i in range(2) for j in range(2)], 3).reshape(2, 3, 3, 12)
  strides = (48, 1, 12, 3), (1, 5, 30, 15), (45, 1, 15, 5)
  geometry = Geometry(2, 3, 5, 1, (4, 4), (2, 2), (3, 3), (1, 1), (1, 1), (0, 0), (0, 0), *strides)
  Convolution('forward', geometry, 2)(x.ctypes.data, w.ctypes.data, y.ctypes.data)
  Convolution('weight', geometry, 2)(x.ctypes.data, y.ctypes.data, back.ctypes.data)
  right = np.tensordot(views, w.reshape(12, 5), 1)
  slope = np.tensordot(views, right, ([0, 1, 2], [0, 1, 2])).reshape(w.shape)
  if not (np.allclose(y, right, atol=1e-5) and np.allclose(back, slope, atol=1e-4)):
    raise RuntimeError('its trial convolution came out wrong on this processor')
