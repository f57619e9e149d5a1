"""Which kernel serves an equation: oneDNN's, one of our own, or none."""

from __future__ import annotations

import ctypes
import functools
import re
from collections.abc import Callable
from typing import Any

import jax
from jax import lax

from jaxlite.cpu.kernels import direct, ffi, onednn, onednn_handlers
from jaxlite.cpu.kernels.match import ConvGeometry, MatmulLayout, contraction, exchanged, recognized
from jaxlite.graph.contractions import flops_of
from jaxlite.host.machine import all_cores

# The bits of a sum depend on the number of chunks, so it is that of the machine, not of the cores a process may use;
# it is part of a form's name, so that a resume takes the number it began with.
CHUNKS = min(8, max(2, all_cores()))
_WIDE = 3  # places along an axis of a depthwise kernel, up to which oneDNN's gradients of it are fast
_CHUNK = 4e6  # FLOPs of a matrix product up to which it is one thread's work
_Call = Callable[..., jax.Array]  # (shape and dtype of the result, *operands) -> the result
_LAYOUT = 2  # of the names of targets; another meaning of the same numbers needs another


def names() -> tuple[str, ...]:
  """Returns the names of the forms that call a kernel here: those of oneDNN, of our own, both, or none."""
  if _partitioned():
    return ()
  there = {'onednn': not onednn.missing(), 'direct': not direct.missing()}
  return tuple(f'{name}{CHUNKS}' for name, here in there.items() if here)


def _partitioned() -> bool:
  """Whether programs may be split over devices: such a program would gather what it calls a kernel with."""
  return jax.local_device_count('cpu') > 1


def is_kernel(name: str) -> bool:
  """Tells whether a form of this name calls a kernel, here or on another machine.

  >>> is_kernel('onednn8'), is_kernel('direct2'), is_kernel('outer')
  (True, True, False)
  """
  return re.fullmatch(r'(onednn|direct)\d+', name) is not None


def forms(eqn: Any, turned: bool = False) -> dict[str, Callable[..., jax.Array]]:
  """Returns the form of an equation that calls a kernel, by name; empty where there is none.

  Where there is a C compiler, oneDNN's if that extra is installed; for a convolution one of our own without it, where
  channels lie apart (of such arrays oneDNN is two times slower, and ours lays rows out itself), and for the gradient of
  a depthwise kernel of 5 x 5 and more. Operands in
  bfloat16 are multiplied as they are where the processor does that, which is twice as fast, and else in float32: each
  product is summed in float32 and rounded once.

  Args:
    eqn: a `conv_general_dilated` or a `dot_general`.
    turned: a `dot_general` without a batch is made with its operands exchanged and transposed.
  """
  if _partitioned():
    return {}
  if eqn.primitive.name == 'dot_general':
    kind, found = 'turned' if turned else 'matmul', contraction(eqn)
    found = exchanged(found) if found and turned else found
    wanted = min(CHUNKS, 1 + int(flops_of(eqn) // _CHUNK))
  else:
    (kind, found), wanted = recognized(eqn) or ('', None), CHUNKS
  if found is None:
    return {}
  narrow = found._replace(dtype='float32', **({'made': 'float32'} if isinstance(found, MatmulLayout) else {}))
  ours = isinstance(found, ConvGeometry) and (1 not in (found.x[1], found.y[1]) or _is_wide_alone(kind, found))
  own = _direct(narrow, kind) if isinstance(narrow, ConvGeometry) and (ours or onednn.missing()) else None
  if own:
    name, of, call = f'direct{CHUNKS}', narrow, own
  elif onednn.missing():
    return {}
  else:
    of = narrow if onednn.missing(found.dtype) else found
    first = of.batch if isinstance(of, ConvGeometry) else (*of.batch, of.rows)[0]
    target = _target(kind, of, onednn.chunks_of(first, wanted))
    if not target:
      return {}
    name, call = f'onednn{CHUNKS}', functools.partial(_ffi, target)
  call = call if of == found else functools.partial(_in_float32, call)
  return {name: functools.partial(_call, eqn, kind, call)}


def _is_wide_alone(kind: str, of: ConvGeometry) -> bool:
  """Whether these are the gradients of wide depthwise kernels, for which oneDNN has no good code."""
  return kind == 'weight' and 1 < of.groups == of.inputs == of.outputs and max(of.kernel) > _WIDE


def _ffi(target: str, shape: jax.ShapeDtypeStruct, *operands: jax.Array) -> jax.Array:
  return jax.ffi.ffi_call(target, shape, vmap_method='sequential')(*operands)


def _in_float32(call: _Call, shape: jax.ShapeDtypeStruct, *operands: jax.Array) -> jax.Array:
  found = call(shape.update(dtype='float32'), *(lax.convert_element_type(one, 'float32') for one in operands))
  return lax.convert_element_type(found, shape.dtype)


def _direct(of: ConvGeometry, kind: str) -> _Call | None:
  if not direct.fits(of) or direct.missing():
    return None
  chunks = onednn.chunks_of(of.batch, CHUNKS) if kind == 'weight' else 1
  return functools.partial(direct.call, kind, of, chunks)


def _call(eqn: Any, kind: str, call: _Call, *operands: jax.Array) -> jax.Array:
  """The equation's product by a kernel; its derivatives are XLA's own, since it is linear in each operand."""
  xla_form = functools.partial(eqn.primitive.bind, **eqn.primitive.get_bind_params(eqn.params))
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
    return product(lhs, rhs), xla_form(dlhs, rhs) + xla_form(lhs, drhs)

  return product(*operands)


@functools.cache
def _target(kind: str, of: ConvGeometry | MatmulLayout, chunks: int) -> str | None:
  """Registers a product and returns its name; None where oneDNN has no kernel, or there is no room for a handler."""
  try:
    product = onednn.Contraction(of, chunks) if isinstance(of, MatmulLayout) else onednn.Convolution(kind, of, chunks)
  except RuntimeError:
    return None
  parts = [part for part in of if part != 'float32']
  sizes = ('x'.join(map(str, part)) if isinstance(part, tuple) else str(part) for part in parts)
  name = '_'.join(['jaxlite_cpu_onednn', str(_LAYOUT), kind, str(chunks), *sizes])
  address = onednn_handlers.handler(product)
  if address is None:
    return None
  ffi.register(name, ctypes.c_void_p(address))
  return name
