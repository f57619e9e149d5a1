"""Convolutions and matrix products by oneDNN's own kernels, made through its C interface by ctypes.

The library comes with the extra `jaxlite[onednn]` and is loaded when the first product asks for it. Without it,
without the C compiler that makes what calls it (`onednn_handlers`), or where a trial convolution comes out wrong,
there is nothing here to call and `missing` says why. Kernels run on one thread each. The batch is cut into a fixed
number of chunks that run side by side on XLA's threads, and the chunks' weight gradients are added in order: the
result depends on the number of chunks and never on the number of threads. (OpenMP's own team of threads would
compete with XLA's.)
"""

from __future__ import annotations

import ctypes
import functools
import math

import jax.numpy as jnp
import numpy as np

from jaxlite.cpu.kernels import compiler, onednn_c, onednn_handlers
from jaxlite.cpu.kernels.match import ConvGeometry, MatmulLayout

_TRAINING, _AUTO = 64, 3
_SRC, _DST, _WEIGHTS, _SCRATCHPAD, _DIFF_SRC, _DIFF_DST, _DIFF_WEIGHTS = 1, 17, 33, 80, 129, 145, 161
_SCRATCHPAD_MD = 136
_UNCALLED = 'oneDNN is installed but not called: '
_WEIGHTS_MD = {'forward': 131, 'input': 131, 'weight': 132}


def uncalled() -> bool:
  """Tells whether oneDNN is there, but nothing that calls it can be compiled: then neither can our own kernels."""
  return missing().startswith(_UNCALLED)


@functools.cache
def missing(dtype: str = 'float32') -> str:
  """Returns why oneDNN cannot be used here; '' if it can.

  Args:
    dtype: of operands; bfloat16 needs a processor that multiplies it.

  >>> missing() == '' or 'onednn' in missing().lower()
  True
  """
  try:
    onednn_handlers.library()
    _try_out(dtype)
  except compiler.NoLibrary as error:
    return f'{_UNCALLED}{error}'
  except (OSError, ImportError, RuntimeError) as error:
    return f'no onednn: {error} (pip install "jaxlite[onednn]")'
  return ''


def chunks_of(batch: int, wanted: int) -> int:
  """Returns the largest number of equal chunks of a batch, at most so many as wanted.

  >>> chunks_of(128, 4), chunks_of(6, 4), chunks_of(7, 4)
  (4, 3, 1)
  """
  return next(n for n in range(max(1, min(wanted, batch)), 0, -1) if batch % n == 0)


class Product:
  """A kernel for two operands and a result, and all that its handler needs; never changed once it is made.

  Attributes:
    kind: 'weight' where every chunk makes a whole result and these are added.
    chunks: pieces that run side by side.
    values, dtypes: of both operands and the result; a call of others is refused.
  """

  kind: str
  chunks: int
  values: tuple[int, int, int]
  dtypes: tuple[str, str, str]
  desc: ctypes.c_void_p

  def _build(self) -> None:
    if onednn_c.implementation(self.desc).startswith('ref'):
      raise RuntimeError('onednn: it has only its reference for this, which is slow')
    self.primitive = onednn_c.new('dnnl_primitive_create', self.desc)
    self.scratch = onednn_c.query(self.desc, _SCRATCHPAD_MD)


class Convolution(Product):
  """One of a convolution's three products.

  Args:
    kind: 'forward' (image, weights -> result), 'input' (gradient of the result, weights -> gradient of the image) or
      'weight' (image, gradient of the result -> gradient of the weights).
    geometry: of the forward pass.
    chunks: pieces of the batch; a divisor of it.

  Raises:
    RuntimeError: oneDNN has no kernel for it but a slow reference.
  """

  def __init__(self, kind: str, geometry: ConvGeometry, chunks: int):
    self.kind, self.chunks = kind, chunks
    with onednn_c.OneThread():  # a kernel is made for as many threads as there are when it is made
      self._prepare(kind, geometry, chunks)

  def _prepare(self, kind: str, geometry: ConvGeometry, chunks: int) -> None:
    lib = onednn_c.library()
    batch = geometry.batch // chunks
    g = geometry
    x = onednn_c.strided((batch, g.inputs, *g.image), g.x, g.dtype)
    y = onednn_c.strided((batch, g.outputs, *g.result), g.y, g.dtype)
    each_in, each_out = g.inputs // g.groups, g.outputs // g.groups
    if g.groups == 1:
      shape, strides = (each_out, each_in, *g.kernel), g.w
    else:
      shape, strides = (g.groups, each_out, each_in, *g.kernel), (each_out * g.w[0], *g.w)
    # A gradient of weights is summed over chunks, in float32 whatever the operands are.
    plain, free = onednn_c.strided(shape, strides, g.dtype), onednn_c.free(shape, g.dtype)
    summed = free if kind != 'weight' else onednn_c.free(shape, 'float32')
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
      self.desc = onednn_c.new(name, engine, _AUTO, x, summed, None, y, *tail, hint, attr)
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
    each = batch * jnp.dtype(g.dtype).itemsize
    self.steps = each * first[0], each * second[0], 0  # bytes from chunk to chunk; weights are shared
    self.dtypes = (g.dtype,) * 3
    sizes = [math.prod(one) for one in ((g.batch, g.inputs, *g.image), shape, (g.batch, g.outputs, *g.result))]
    order = {'forward': (0, 1, 2), 'input': (2, 1, 0), 'weight': (0, 2, 1)}[kind]
    self.values = sizes[order[0]], sizes[order[1]], sizes[order[2]]
    self.numbers = {
      'forward': (_SRC, _WEIGHTS, _DST),
      'input': (_DIFF_DST, _WEIGHTS, _DIFF_SRC),
      'weight': (_SRC, _DIFF_WEIGHTS, _DIFF_DST),
    }[kind]


class Contraction(Product):
  """A matrix product, or a batch of them.

  Args:
    layout: its operands'.
    chunks: pieces of the first axis of the batch, or of the rows where there is none; a divisor of it.

  Raises:
    RuntimeError: oneDNN has no kernel for it but a slow reference.
  """

  kind = 'forward'  # the second operand is read as it lies, by every chunk

  def __init__(self, layout: MatmulLayout, chunks: int):
    self.chunks, self.same, self.reorder = chunks, True, ctypes.c_void_p()
    with onednn_c.OneThread():
      batch, rows, inner, columns, a, b, dtype, made = layout
      outer = (*batch, rows)
      outer = (outer[0] // chunks, *outer[1:])
      out = [math.prod((*outer, columns)[axis + 1 :]) for axis in range(len(outer) + 1)]
      x, y = onednn_c.strided((*outer, inner), a, dtype), onednn_c.strided((*outer, columns), out, made)
      self.plain = self.packed = onednn_c.strided((*outer[:-1], inner, columns), b, dtype)
      attr = onednn_c.new('dnnl_primitive_attr_create')
      onednn_c.check('scratchpad mode', onednn_c.library().dnnl_primitive_attr_set_scratchpad_mode(attr, onednn_c.USER))
      self.desc = onednn_c.new('dnnl_matmul_primitive_desc_create', onednn_c.engine(), x, self.packed, None, y, attr)
      self._build()
      self.mds, self.numbers = (x, y), (_SRC, _WEIGHTS, _DST)
      times = math.prod(batch)
      self.values = times * rows * inner, times * inner * columns, times * rows * columns
      each, each_made = (outer[0] * jnp.dtype(one).itemsize for one in (dtype, made))
      self.steps = each * a[0], each_made * out[0], each * b[0] if batch else 0
      self.dtypes = dtype, dtype, made


def _try_out(dtype: str) -> None:
  """A small convolution and its weights' gradient, against NumPy; RuntimeError if they differ."""
  rng, kind = np.random.default_rng(0), jnp.dtype(dtype)
  x, w = rng.normal(size=(2, 4, 4, 3)).astype(kind), rng.normal(size=(2, 2, 3, 5)).astype(kind)
  y, back = np.zeros((2, 3, 3, 5), kind), np.zeros_like(w)
  views = np.stack([x[:, i : i + 3, j : j + 3] for i in range(2) for j in range(2)], 3).reshape(2, 3, 3, 12)
  strides = (48, 1, 12, 3), (1, 5, 30, 15), (45, 1, 15, 5)
  geometry = ConvGeometry(2, 3, 5, 1, (4, 4), (2, 2), (3, 3), (1, 1), (1, 1), (0, 0), (0, 0), *strides, dtype)
  for product, second, out in (('forward', w, y), ('weight', y, back)):
    address = onednn_handlers.handler(Convolution(product, geometry, 2))
    if address is None:
      raise RuntimeError('there is no room for its trial convolution')
    onednn_handlers.run(address, x, second, out)
  views, w, y, back = (array.astype(np.float32) for array in (views, w, y, back))
  right, rounded = np.tensordot(views, w.reshape(12, 5), 1), 0 if dtype == 'float32' else 0.01
  slope = np.tensordot(views, y, ([0, 1, 2], [0, 1, 2])).reshape(w.shape)
  if not (np.allclose(y, right, rounded or 1e-5, 1e-5) and np.allclose(back, slope, rounded or 1e-5, 1e-4)):
    raise RuntimeError('its trial convolution came out wrong on this processor')
