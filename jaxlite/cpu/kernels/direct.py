"""Convolutions by kernels of this folder: for machines that have a C compiler and no oneDNN.

XLA:CPU runs a convolution of many channels on one thread and oneDNN's extra is made for one platform; these kernels
(`direct.c`) are compiled for the processor at hand, run on XLA's threads and take every layout. Of the gradient of the
weights a fixed number of chunks of the batch is added in order, and nothing else depends on how the work is shared:
the result is the same for any number of threads.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
from typing import Any

import jax
import numpy as np

from jaxlite.cpu.kernels import compiler, ffi
from jaxlite.cpu.kernels.match import ConvGeometry

TARGET = 'jaxlite_cpu_direct_1'  # it stands in compiled programs: another meaning of `spec` needs another number
KINDS = ('forward', 'input', 'weight')
AXES = 3  # that a kernel may move over, at most
LEAST = 4  # channels of a group


@functools.cache
def missing() -> str:
  """Returns why the kernels cannot be used here; '' if they can.

  >>> missing() == '' or missing().startswith('no convolutions in C')
  True
  """
  try:
    lib = compiler.load('direct', tuned=True)
  except compiler.NoLibrary as error:
    return f'no convolutions in C: {error}'
  if not _tried(lib.jaxlite_product):
    return 'no convolutions in C: their trial came out wrong on this processor'
  ffi.register(TARGET, ctypes.cast(lib.jaxlite_direct, ctypes.c_void_p))
  return ''


def spec(kind: str, of: ConvGeometry, chunks: int) -> np.ndarray:
  """Returns a product of a convolution as direct.c reads it: over three axes, the first of size 1 where it has fewer.

  Args:
    kind: one of KINDS.
    of: the forward pass.
    chunks: of the batch, a divisor of it; it matters to a gradient of the weights alone.

  Raises:
    ValueError: a convolution over more axes than there is a kernel for.
  """
  if len(of.image) > AXES:
    raise ValueError(f'direct kernels are for convolutions over up to {AXES} axes; got {len(of.image)}')
  more = AXES - len(of.image)
  sizes = [(1,) * more + one for one in (of.image, of.kernel, of.result, of.stride, of.dilation)]
  strides = [(*one[:2], *one[:1] * more, *one[2:]) for one in (of.x, of.w, of.y)]
  numbers = (KINDS.index(kind), chunks, of.batch, of.inputs // of.groups, of.outputs // of.groups, of.groups)
  return np.array([*numbers, *itertools.chain(*sizes, (0,) * more + of.low, *strides)], np.int64)


def fits(of: ConvGeometry) -> bool:
  """Tells whether a kernel serves a convolution.

  Groups of few channels leave most of a vector idle, but for those of one channel, in arrays where these lie last.

  Args:
    of: the forward pass.
  """
  if len(of.image) > AXES or of.dtype != 'float32':
    return False
  alone = of.inputs == of.outputs == of.groups and of.x[1] == of.y[1] == 1
  return of.groups == 1 or alone or min(of.inputs, of.outputs) >= LEAST * of.groups


def call(kind: str, of: ConvGeometry, chunks: int, shape: jax.ShapeDtypeStruct, *operands: jax.Array) -> jax.Array:
  """Returns one of a convolution's three products.

  Args:
    kind: 'forward' (of image and weights), 'input' (of the result's gradient and the weights) or 'weight' (of image
      and the result's gradient).
    of: the forward pass, with the strides of all three arrays.
    chunks: as in `spec`.
    shape: of what comes out.
    operands: float32.
  """
  return jax.ffi.ffi_call(TARGET, shape, vmap_method='sequential')(*operands, spec=spec(kind, of, chunks))


def _tried(product: Any) -> bool:
  """A small convolution and both its gradients, against NumPy; without XLA, since this may be asked inside a trace."""
  rng = np.random.default_rng(0)
  x, w, g = (rng.normal(size=size).astype(np.float32) for size in ((2, 5, 5, 3), (3, 3, 3, 18), (2, 3, 3, 18)))
  of = ConvGeometry(
    *(2, 3, 18, 1, (5, 5), (3, 3), (3, 3), (2, 2), (1, 1), (1, 1), (1, 1)),
    *((75, 1, 15, 3), (1, 18, 162, 54), (162, 1, 54, 18)),
  )
  padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
  y, slope, back = np.zeros_like(g), np.zeros_like(w), np.zeros_like(padded)
  for i, j in itertools.product(range(3), repeat=2):
    view = (slice(None), slice(i, i + 5, 2), slice(j, j + 5, 2))
    y += padded[view] @ w[i, j]
    slope[i, j] = np.tensordot(padded[view], g, ([0, 1, 2], [0, 1, 2]))
    back[view] += g @ w[i, j].T
  right = {'forward': (x, w, y), 'weight': (x, g, slope), 'input': (g, w, back[:, 1:-1, 1:-1])}
  for kind, (one, other, want) in right.items():
    arrays = spec(kind, of, 2), one, other, (found := np.zeros(want.shape, np.float32))
    if product(*(ctypes.c_void_p(array.ctypes.data) for array in arrays), None) or not np.allclose(
      found, want, atol=1e-4
    ):
      return False
  return True
