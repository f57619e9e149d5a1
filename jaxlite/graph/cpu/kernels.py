"""Convolution equations as oneDNN sees them: which of the three products one is, and the form that calls it."""

from __future__ import annotations

import ctypes
import functools
import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax import lax

from jaxlite.graph.cpu import foreign, native, onednn
from jaxlite.graph.cpu.onednn import Geometry

CHUNKS = min(8, max(2, os.cpu_count() or 1))  # part of a form's name, so that a resume takes the number it began with
_kept: list[onednn.Convolution] = []  # what handlers in C point to
_LAYOUT = 1  # of the names of targets; another meaning of the same numbers needs another


def recognised(eqn: Any) -> tuple[str, Geometry] | None:
  """Reads a `conv_general_dilated` over two axes as a product of a convolution.

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
  if {lhs.dtype.name, rhs.dtype.name, out.dtype.name} != {'float32'} or lhs.ndim != 4:
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


def forms(eqn: Any) -> dict[str, Callable[..., jax.Array]]:
  """Returns the form of an equation that calls oneDNN, by name; empty where there is none.

  Args:
    eqn: a `conv_general_dilated`.
  """
  if onednn.missing() or jax.local_device_count('cpu') > 1:  # a partitioned program would gather what it calls with
    return {}
  found = recognised(eqn)
  if found is None:
    return {}
  kind, geometry = found
  target = _target(kind, geometry, onednn.chunks_of(geometry.batch, CHUNKS))
  if target is None:
    return {}
  return {f'onednn{CHUNKS}': functools.partial(_call, eqn, kind, target)}


def _call(eqn: Any, kind: str, target: str, *operands: jax.Array) -> jax.Array:
  """The equation's product by oneDNN; its derivatives are the native ones, since it is linear in each operand."""
  native = functools.partial(eqn.primitive.bind, **eqn.primitive.get_bind_params(eqn.params))
  shape = jax.ShapeDtypeStruct(eqn.outvars[0].aval.shape, eqn.outvars[0].aval.dtype)

  @jax.custom_jvp
  def product(lhs: jax.Array, rhs: jax.Array) -> jax.Array:
    if kind == 'input':  # the equation's weights are turned round; oneDNN takes them as the forward pass does
      rhs = lax.rev(rhs, eqn.params['dimension_numbers'].rhs_spec[2:])
    return jax.ffi.ffi_call(target, shape, vmap_method='sequential')(lhs, rhs)

  @product.defjvp
  def _(primals: Any, tangents: Any) -> Any:
    (lhs, rhs), (dlhs, drhs) = primals, tangents
    return product(lhs, rhs), native(dlhs, rhs) + native(lhs, drhs)

  return product(*operands)


@functools.cache
def _target(kind: str, geometry: Geometry, chunks: int) -> str | None:
  """Registers a product and returns its name; None where oneDNN has no kernel."""
  try:
    product = onednn.Convolution(kind, geometry, chunks)
  except RuntimeError:
    return None
  flat = [number for part in geometry for number in (part if isinstance(part, tuple) else (part,))]
  name = '_'.join(['jaxlite_cpu_onednn', str(_LAYOUT), kind, str(chunks), *map(str, flat)])
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
