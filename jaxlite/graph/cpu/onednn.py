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
from typing import NamedTuple

import numpy as np

from jaxlite.graph.cpu import dnnl

_TRAINING, _AUTO = 64, 3
_SRC, _DST, _WEIGHTS, _SCRATCHPAD, _DIFF_SRC, _DIFF_DST, _DIFF_WEIGHTS = 1, 17, 33, 80, 129, 145, 161
_SCRATCHPAD_MD = 136
_WEIGHTS_MD = {'forward': 131, 'input': 131, 'weight': 132}


class Geometry(NamedTuple):
  """A convolution over one to three axes, as the forward pass sees it, whichever of its arrays is computed.

  Attributes:
    batch, inputs, outputs, groups: sizes; channels of all groups together.
    image, kernel, result: sizes along the axes that the kernel moves over, (height, width) of a picture.
    stride, dilation: 1 is none.
    low, high: padding before and after, not negative.
    x, w, y: strides in elements of the image [N, C, H, W], the weights [O, I / groups, KH, KW] and the result
      [N, O, H, W], in this order of axes whatever their layout; with fewer axes, or more, likewise.
  """

  batch: int
  inputs: int
  outputs: int
  groups: int
  image: tuple[int, ...]
  kernel: tuple[int, ...]
  result: tuple[int, ...]
  stride: tuple[int, ...]
  dilation: tuple[int, ...]
  low: tuple[int, ...]
  high: tuple[int, ...]
  x: tuple[int, ...]
  w: tuple[int, ...]
  y: tuple[int, ...]


@functools.cache
def missing() -> str:
  """Returns why oneDNN cannot be used here; '' if it can.

  >>> missing() == '' or 'onednn' in missing()
  True
  """
  try:
    dnnl.library()
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
  functions = [getattr(dnnl.library(), f'dnnl_{name}') for name in names]
  functions += [dnnl.openmp().omp_get_max_threads, dnnl.openmp().omp_set_num_threads]
  return [*(ctypes.cast(function, ctypes.c_void_p).value for function in functions), dnnl.engine().value]


class Layout(NamedTuple):
  """A product of matrices, or of as many as a batch has: out[..., m, n] = sum over k of a[..., m, k] b[..., k, n].

  Attributes:
    batch: sizes of the axes that all three share; perhaps none.
    rows, inner, columns: m, k and n.
    a, b: strides in elements of [*batch, m, k] and [*batch, k, n], whatever their layout; `out` lies row by row.
  """

  batch: tuple[int, ...]
  rows: int
  inner: int
  columns: int
  a: tuple[int, ...]
  b: tuple[int, ...]


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
    if dnnl.implementation(self.desc).startswith('ref'):
      raise RuntimeError('onednn: it has only its reference for this, which is slow')
    self.primitive = dnnl.new('dnnl_primitive_create', self.desc)
    self.scratch = dnnl.query(self.desc, _SCRATCHPAD_MD)

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
    with dnnl.OneThread():  # a kernel is made for as many threads as there are when it is made
      self._prepare(kind, geometry, chunks)
      self.idle: list[_Slot] = [_Slot(self)]

  def _prepare(self, kind: str, geometry: Geometry, chunks: int) -> None:
    lib = dnnl.library()
    batch = geometry.batch // chunks
    g = geometry
    x = dnnl.strided((batch, g.inputs, *g.image), g.x)
    y = dnnl.strided((batch, g.outputs, *g.result), g.y)
    each_in, each_out = g.inputs // g.groups, g.outputs // g.groups
    if g.groups == 1:
      shape, strides = (each_out, each_in, *g.kernel), g.w
    else:
      shape, strides = (g.groups, each_out, each_in, *g.kernel), (each_out * g.w[0], *g.w)
    plain, free = (
      dnnl.strided(shape, strides),
      dnnl.new('dnnl_memory_desc_create_with_tag', len(shape), dnnl.dims(shape), dnnl.F32, dnnl.ANY),
    )
    tail = [dnnl.dims(g.stride), dnnl.dims([d - 1 for d in g.dilation]), dnnl.dims(g.low), dnnl.dims(g.high)]
    attr = dnnl.new('dnnl_primitive_attr_create')
    dnnl.check('scratchpad mode', lib.dnnl_primitive_attr_set_scratchpad_mode(attr, dnnl.USER))
    engine = dnnl.engine()
    make = functools.partial(dnnl.new, 'dnnl_convolution_forward_primitive_desc_create', engine, _TRAINING, _AUTO)
    self.desc = hint = make(x, free, None, y, *tail, attr)
    if kind == 'input':
      name = 'dnnl_convolution_backward_data_primitive_desc_create'
      self.desc = dnnl.new(name, engine, _AUTO, x, free, y, *tail, hint, attr)
    elif kind == 'weight':
      name = 'dnnl_convolution_backward_weights_primitive_desc_create'
      self.desc = dnnl.new(name, engine, _AUTO, x, free, None, y, *tail, hint, attr)
    self._build()
    self.packed = dnnl.query(self.desc, _WEIGHTS_MD[kind])
    ways = (plain, self.packed) if kind != 'weight' else (self.packed, plain)
    self.plain, self.free = plain, free
    self.same = bool(lib.dnnl_memory_desc_equal(plain, self.packed))
    self.reorder = dnnl.new(
      'dnnl_primitive_create', dnnl.new('dnnl_reorder_primitive_desc_create', ways[0], engine, ways[1], engine, None)
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
    with dnnl.OneThread():
      batch, rows, inner, columns, a, b = layout
      outer = (*batch, rows)
      outer = (outer[0] // chunks, *outer[1:])
      out = [math.prod((*outer, columns)[axis + 1 :]) for axis in range(len(outer) + 1)]
      x, y = dnnl.strided((*outer, inner), a), dnnl.strided((*outer, columns), out)
      self.plain = self.packed = dnnl.strided((*outer[:-1], inner, columns), b)
      attr = dnnl.new('dnnl_primitive_attr_create')
      dnnl.check('scratchpad mode', dnnl.library().dnnl_primitive_attr_set_scratchpad_mode(attr, dnnl.USER))
      self.desc = dnnl.new('dnnl_matmul_primitive_desc_create', dnnl.engine(), x, self.packed, None, y, attr)
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
    self.weights = [] if self.read else [dnnl.room(of.packed) for _ in range(weights)]
    self.scratch = [dnnl.room(of.scratch) for _ in range(of.chunks)]
    self.plain = dnnl.memory(of.plain)
    self.calls = []
    for index in range(of.chunks):
      pair = [dnnl.memory(md) for md in of.mds]
      own = dnnl.memory(of.packed, None if self.read else self.weights[min(index, weights - 1)].ctypes.data)
      scratch = dnnl.memory(of.scratch, self.scratch[index].ctypes.data)
      one, middle, other = of.numbers
      args = (_Arg * 4)((one, pair[0]), (middle, own), (other, pair[1]), (_SCRATCHPAD, scratch))
      self.calls.append((pair, own, args))
    packed = self.calls[0][1]
    ways = (self.plain, packed) if of.kind != 'weight' else (packed, self.plain)
    self.moves = (_Arg * 2)((_SRC, ways[0]), (_DST, ways[1]))

  def run(self, first: int, second: int, out: int) -> None:
    of = self.of
    one, other = (first, second) if of.kind == 'weight' else (first, out)
    with dnnl.OneThread():
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
    lib = dnnl.library()
    for memory, at, step in zip(pair, (one, other), self.of.steps[:2], strict=True):
      dnnl.check('set', lib.dnnl_memory_set_data_handle(memory, at + index * step))
    with dnnl.OneThread():
      dnnl.check('product', lib.dnnl_primitive_execute(self.of.primitive, dnnl.stream(), 4, args))

  def move(self, weights: int) -> None:
    lib, of = dnnl.library(), self.of
    if self.read:
      for index, (_, own, _) in enumerate(self.calls):
        dnnl.check('set', lib.dnnl_memory_set_data_handle(own, weights + index * of.steps[2]))
      return
    dnnl.check('set', lib.dnnl_memory_set_data_handle(self.plain, weights))
    dnnl.check('reorder', lib.dnnl_primitive_execute(of.reorder, dnnl.stream(), 2, self.moves))


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
