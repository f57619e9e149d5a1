"""Equations as kernels see them: which of a convolution's three products one is, or which matrix product."""

from __future__ import annotations

import ctypes
import functools
import itertools
import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax import lax

from jaxlite.graph.contractions import flops_of
from jaxlite.graph.cpu import direct, foreign, native, onednn
from jaxlite.graph.cpu.onednn import Geometry, Layout

CHUNKS = min(8, max(2, os.cpu_count() or 1))  # part of a form's name, so that a resume takes the number it began with
_AXES = 12  # that oneDNN knows
_CHUNK = 4e6  # FLOPs of a matrix product up to which it is one thread's work
_kept: list[onednn.Product] = []  # what handlers in C point to
_LAYOUT = 2  # of the names of targets; another meaning of the same numbers needs another


def recognised(eqn: Any) -> tuple[str, Geometry] | None:
  """Reads a `conv_general_dilated` over one to three axes as a product of a convolution.

  After differentiation a gradient of the weights is an equation that contracts over the batch, and a gradient of the
  image one whose image is spread out by the stride.

  Args:
    eqn: the equation.

  Returns:
    ('forward', 'input' or 'weight', its geometry); None for what oneDNN is not asked to do.

  >>> conv = lambda x, w: lax.conv_general_dilated(x, w, (2, 2), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC'))
  >>> x, w = jax.numpy.ones((4, 8, 8, 3)), jax.numpy.ones((3, 3, 3, 5))
  >>> program = jax.make_jaxpr(jax.grad(lambda x, w: conv(x, w).sum(), (0, 1)))(x, w)
  >>> eqns = [eqn for eqn in program.eqns if eqn.primitive.name == 'conv_general_dilated']
  >>> [recognised(eqn)[0] for eqn in eqns]
  ['forward', 'weight', 'input']
  """
  params = eqn.params
  lhs, rhs, out = eqn.invars[0].aval, eqn.invars[1].aval, eqn.outvars[0].aval
  if {lhs.dtype.name, rhs.dtype.name, out.dtype.name} != {'float32'} or not 3 <= lhs.ndim <= 5:
    return None
  if not all(isinstance(size, int) and size > 0 for size in (*lhs.shape, *rhs.shape, *out.shape)):
    return None
  numbers = params['dimension_numbers']
  left, right, result = ([shape[axis] for axis in spec] for shape, spec in _pairs(numbers, lhs, rhs, out))
  x, w, y = ([strides[axis] for axis in spec] for strides, spec in _pairs(numbers, *map(_strides, (lhs, rhs, out))))
  steps, spread, apart = params['window_strides'], params['lhs_dilation'], params['rhs_dilation']
  low, high = zip(*params['padding'], strict=True)
  groups, batched = params['feature_group_count'], params['batch_group_count']
  plain = set(spread) == {1}
  if plain and is_weight_gradient(eqn):
    swapped = (x[1], x[0], *x[2:]), (y[1], y[0], *y[2:]), (w[1], w[0], *w[2:])
    geometry = _geometry(left[1], left[0], right[0], batched, left, result, right, apart, steps, low, swapped)
    return ('weight', geometry) if geometry else None
  if plain and batched == 1 and min(low) >= 0 and min(high) >= 0:
    sizes = (tuple(left[2:]), tuple(right[2:]), tuple(result[2:]))
    ends = tuple(steps), tuple(apart), low, high
    return 'forward', Geometry(left[0], left[1], right[0], groups, *sizes, *ends, tuple(x), tuple(w), tuple(y))
  if batched == groups == 1 and set(steps) == {1}:
    before = [(size - 1) * step - pad for size, step, pad in zip(right[2:], apart, low, strict=True)]
    swapped = tuple(y), (w[1], w[0], *w[2:]), tuple(x)
    geometry = _geometry(left[0], right[0], right[1], 1, result, right, left, spread, apart, before, swapped)
    return ('input', geometry) if geometry else None
  return None


def is_weight_gradient(eqn: Any) -> bool:
  """Tells whether a convolution is the gradient of another's weights, as JAX writes it.

  The batch, which comes first, is summed over, and the kernel outgrows the result.

  Args:
    eqn: a `conv_general_dilated`.
  """
  numbers = eqn.params['dimension_numbers']
  kernel = math.prod(eqn.invars[1].aval.shape[axis] for axis in numbers.rhs_spec[2:])
  result = math.prod(eqn.outvars[0].aval.shape[axis] for axis in numbers.out_spec[2:])
  return numbers.lhs_spec[1] == 0 and kernel >= result and eqn.params['feature_group_count'] == 1


def contraction(eqn: Any) -> Layout | None:
  """Reads a `dot_general` as a product of matrices, or of a batch of them, whose operands stay as they lie.

  Args:
    eqn: the equation.

  Returns:
    Its layout; None for what oneDNN is not asked to do: another dtype than float32, axes that do not lie together.

  >>> program = jax.make_jaxpr(lambda x, g: jax.numpy.einsum('bti,bto->io', x, g))(*[jax.numpy.ones((2, 3, 4))] * 2)
  >>> layout = contraction(next(eqn for eqn in program.eqns if eqn.primitive.name == 'dot_general'))
  >>> layout.rows, layout.inner, layout.columns, layout.a
  (4, 6, 4, (1, 4))
  """
  lhs, rhs, out = eqn.invars[0].aval, eqn.invars[1].aval, eqn.outvars[0].aval
  if {lhs.dtype.name, rhs.dtype.name, out.dtype.name} != {'float32'} or eqn.params['out_sharding'] is not None:
    return None
  if not all(isinstance(size, int) and size > 0 for size in (*lhs.shape, *rhs.shape)):
    return None
  if not isinstance(eqn.params['precision'], tuple | None):  # an algorithm of its own was asked for
    return None
  (summed, summed_too), (batch, batch_too) = eqn.params['dimension_numbers']
  if len(batch) > _AXES - 2:
    return None
  order = sorted(range(len(summed)), key=lambda at: summed[at])
  inner, inner_too = ([axes[at] for at in order] for axes in (summed, summed_too))
  parts = []
  for aval, shared, contracted in ((lhs, batch, inner), (rhs, batch_too, inner_too)):
    free = [axis for axis in range(aval.ndim) if axis not in (*shared, *contracted)]
    strides = _strides(aval)
    parts.append([[strides[axis] for axis in shared], _merged(aval, free), _merged(aval, contracted)])
  (outer, rows, across), (outer_too, columns, across_too) = parts
  if None in (rows, across, columns, across_too):
    return None
  a, b = (*outer, rows[1], across[1]), (*outer_too, across_too[1], columns[1])
  return Layout(tuple(lhs.shape[axis] for axis in batch), rows[0], across[0], columns[0], a, b)


def _exchanged(of: Layout) -> Layout:
  (*outer, row, across), (*outer_too, across_too, column) = of.a, of.b
  a, b = (*outer_too, column, across_too), (*outer, across, row)
  return Layout(of.batch, of.columns, of.inner, of.rows, a, b)


def _merged(aval: Any, axes: Sequence[int]) -> tuple[int, int] | None:
  """(size, stride) of several axes taken as one; None where they do not lie together in this order."""
  strides = _strides(aval)
  axes = [axis for axis in axes if aval.shape[axis] > 1]
  for one, other in itertools.pairwise(axes):
    if strides[one] != strides[other] * aval.shape[other]:
      return None
  return (math.prod(aval.shape[axis] for axis in axes), strides[axes[-1]] if axes else 1)


def forms(eqn: Any, turned: bool = False) -> dict[str, Callable[..., jax.Array]]:
  """Returns the form of an equation that calls a kernel, by name; empty where there is none.

  oneDNN's where that extra is installed, else for a convolution one of our own where there is a C compiler.

  Args:
    eqn: a `conv_general_dilated` or a `dot_general`.
    turned: a `dot_general` without a batch is made with its operands exchanged and transposed.
  """
  if jax.local_device_count('cpu') > 1:  # a partitioned program would gather what it calls with
    return {}
  if eqn.primitive.name == 'dot_general':
    kind, found = 'turned' if turned else 'matmul', None if onednn.missing() else contraction(eqn)
    found = _exchanged(found) if found and turned else found
    first = (*found.batch, found.rows)[0] if found else 0
    wanted = min(CHUNKS, 1 + int(flops_of(eqn) // _CHUNK))
  else:
    kind, found = recognised(eqn) or ('', None)
    first, wanted = found.batch if found else 0, CHUNKS
    if onednn.missing():
      return _direct(eqn, kind, found)
  target = _target(kind, found, onednn.chunks_of(first, wanted)) if found else None
  if not target:
    return {}

  def call(shape: jax.ShapeDtypeStruct, *operands: jax.Array) -> jax.Array:
    return jax.ffi.ffi_call(target, shape, vmap_method='sequential')(*operands)

  return {f'onednn{CHUNKS}': functools.partial(_call, eqn, kind, call)}


def _direct(eqn: Any, kind: str, of: Geometry | None) -> dict[str, Callable[..., jax.Array]]:
  if of is None or not direct.fits(of) or direct.missing():
    return {}
  chunks = onednn.chunks_of(of.batch, CHUNKS) if kind == 'weight' else 1
  return {f'direct{CHUNKS}': functools.partial(_call, eqn, kind, functools.partial(direct.call, kind, of, chunks))}


def _call(eqn: Any, kind: str, call: Callable[..., jax.Array], *operands: jax.Array) -> jax.Array:
  """The equation's product by a kernel; its derivatives are the native ones, since it is linear in each operand."""
  native = functools.partial(eqn.primitive.bind, **eqn.primitive.get_bind_params(eqn.params))
  shape = jax.ShapeDtypeStruct(eqn.outvars[0].aval.shape, eqn.outvars[0].aval.dtype)

  @jax.custom_jvp
  def product(lhs: jax.Array, rhs: jax.Array) -> jax.Array:
    if kind == 'turned':
      first = lhs.ndim - len(eqn.params['dimension_numbers'][0][0])
      front, back = shape.shape[first:], shape.shape[:first]
      found = call(shape.update(shape=(*front, *back)), rhs, lhs)
      return lax.transpose(found, (*range(len(front), found.ndim), *range(len(front))))
    if kind == 'input':  # the equation's weights are turned round; kernels take them as the forward pass does
      rhs = lax.rev(rhs, eqn.params['dimension_numbers'].rhs_spec[2:])
    return call(shape, lhs, rhs)

  @product.defjvp
  def _(primals: Any, tangents: Any) -> Any:
    (lhs, rhs), (dlhs, drhs) = primals, tangents
    return product(lhs, rhs), native(dlhs, rhs) + native(lhs, drhs)

  return product(*operands)


@functools.cache
def _target(kind: str, of: Geometry | Layout, chunks: int) -> str | None:
  """Registers a product and returns its name; None where oneDNN has no kernel."""
  try:
    product = onednn.Contraction(of, chunks) if isinstance(of, Layout) else onednn.Convolution(kind, of, chunks)
  except RuntimeError:
    return None
  sizes = ('x'.join(map(str, part)) if isinstance(part, tuple) else str(part) for part in of)
  name = '_'.join(['jaxlite_cpu_onednn', str(_LAYOUT), kind, str(chunks), *sizes])
  compiled = native.handler(product)
  if compiled is None:
    foreign.register(name, product)
  else:
    _kept.append(product)
    foreign.register_address(name, ctypes.c_void_p(compiled))
  return name


def _geometry(
  batch: int,
  inputs: int,
  outputs: int,
  groups: int,
  image: Sequence[int],
  kernel: Sequence[int],
  result: Sequence[int],
  stride: Sequence[int],
  dilation: Sequence[int],
  low: Sequence[int],
  strides: tuple[Sequence[int], Sequence[int], Sequence[int]],
) -> Geometry | None:
  """The forward pass of a gradient: padding at the end is what makes its sizes agree."""
  sizes = tuple(image[2:]), tuple(kernel[2:]), tuple(result[2:])
  high = [
    max(0, (n - 1) * step + (k - 1) * apart + 1 - size - before)
    for size, k, n, step, apart, before in zip(*sizes, stride, dilation, low, strict=True)
  ]
  agree = all(
    (size + before + after - (k - 1) * apart - 1) // step + 1 == n
    for size, k, n, step, apart, before, after in zip(*sizes, stride, dilation, low, high, strict=True)
  )
  if not agree or min(low) < 0:
    return None
  x, w, y = map(tuple, strides)
  return Geometry(batch, inputs, outputs, groups, *sizes, *map(tuple, (stride, dilation, low, high)), x, w, y)


def _pairs(numbers: Any, lhs: Any, rhs: Any, out: Any) -> list[tuple[Any, Any]]:
  specs = numbers.lhs_spec, numbers.rhs_spec, numbers.out_spec
  return [(getattr(one, 'shape', one), spec) for one, spec in zip((lhs, rhs, out), specs, strict=True)]


def _strides(aval: Any) -> list[int]:
  """In elements, rows last."""
  return [math.prod(aval.shape[axis + 1 :]) for axis in range(aval.ndim)]
