"""Which operations of a program a kernel can take: contractions recognized, with their geometry."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple


class ConvGeometry(NamedTuple):
  """A convolution over one to three axes, as the forward pass sees it, whichever of its arrays is computed.

  Attributes:
    batch, inputs, outputs, groups: sizes; channels of all groups together.
    image, kernel, result: sizes along the axes that the kernel moves over, (height, width) of a picture.
    stride, dilation: 1 is none.
    low, high: padding before and after, not negative.
    x, w, y: strides in elements of the image [N, C, H, W], the weights [O, I / groups, KH, KW] and the result
      [N, O, H, W], in this order of axes whatever their layout; with fewer axes, or more, likewise.
    dtype: of all three.
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
  dtype: str = 'float32'


class MatmulLayout(NamedTuple):
  """A product of matrices, or of as many as a batch has: out[..., m, n] = sum over k of a[..., m, k] b[..., k, n].

  Attributes:
    batch: sizes of the axes that all three share; perhaps none.
    rows, inner, columns: m, k and n.
    a, b: strides in elements of [*batch, m, k] and [*batch, k, n], whatever their layout; `out` lies row by row.
    dtype, made: of both operands, and of the result.
  """

  batch: tuple[int, ...]
  rows: int
  inner: int
  columns: int
  a: tuple[int, ...]
  b: tuple[int, ...]
  dtype: str = 'float32'
  made: str = 'float32'


_AXES = 12  # that oneDNN knows
_DTYPES = ('float32', 'bfloat16')


def recognized(eqn: Any) -> tuple[str, ConvGeometry] | None:
  """Reads a `conv_general_dilated` over one to three axes as a product of a convolution.

  After differentiation a gradient of the weights is an equation that contracts over the batch, and a gradient of the
  image one whose image is spread out by the stride.

  Args:
    eqn: the equation.

  Returns:
    ('forward', 'input' or 'weight', its geometry); None for what oneDNN is not asked to do.

  >>> import jax
  >>> from jax import lax
  >>> conv = lambda x, w: lax.conv_general_dilated(x, w, (2, 2), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC'))
  >>> x, w = jax.numpy.ones((4, 8, 8, 3)), jax.numpy.ones((3, 3, 3, 5))
  >>> program = jax.make_jaxpr(jax.grad(lambda x, w: conv(x, w).sum(), (0, 1)))(x, w)
  >>> eqns = [eqn for eqn in program.eqns if eqn.primitive.name == 'conv_general_dilated']
  >>> [recognized(eqn)[0] for eqn in eqns]
  ['forward', 'weight', 'input']
  """
  params = eqn.params
  lhs, rhs, out = eqn.invars[0].aval, eqn.invars[1].aval, eqn.outvars[0].aval
  dtype = lhs.dtype.name
  if {rhs.dtype.name, out.dtype.name} != {dtype} or dtype not in _DTYPES or not 3 <= lhs.ndim <= 5:
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
    geometry = _geometry(left[1], left[0], right[0], batched, left, result, right, apart, steps, low, swapped, dtype)
    return ('weight', geometry) if geometry else None
  if plain and batched == 1 and min(low) >= 0 and min(high) >= 0:
    sizes = (tuple(left[2:]), tuple(right[2:]), tuple(result[2:]))
    ends = tuple(steps), tuple(apart), low, high
    return 'forward', ConvGeometry(
      left[0], left[1], right[0], groups, *sizes, *ends, tuple(x), tuple(w), tuple(y), dtype
    )
  alone = groups == left[1] == result[1]  # one channel a group: turned round, the weights lie as they did
  if batched == 1 and (groups == 1 or alone) and set(steps) == {1}:
    before = [(size - 1) * step - pad for size, step, pad in zip(right[2:], apart, low, strict=True)]
    swapped = tuple(y), tuple(w) if alone else (w[1], w[0], *w[2:]), tuple(x)
    sizes = (left[0], result[1], left[1], groups, result, right, left)
    geometry = _geometry(*sizes, spread, apart, before, swapped, dtype)
    return ('input', geometry) if geometry else None
  return None


def is_weight_gradient(eqn: Any) -> bool:
  """Tells whether a convolution is the gradient of another's weights, as JAX writes it.

  The batch, which comes first, is summed over. Of a kernel without groups the equation's own kernel, the gradient of
  the output, outgrows the result; where pictures are smaller than kernels, deep in a network, it is as quick to take it
  for a forward pass. Groups of the batch are what gradients of grouped kernels have, however small a picture is.

  Args:
    eqn: a `conv_general_dilated`.

  >>> import jax
  >>> from jax import lax
  >>> options = dict(dimension_numbers=('NHWC', 'HWIO', 'NHWC'), feature_group_count=3)
  >>> conv = lambda x, w: lax.conv_general_dilated(x, w, (1, 1), 'SAME', **options)
  >>> x, w = jax.numpy.ones((4, 2, 2, 3)), jax.numpy.ones((5, 5, 1, 3))
  >>> program = jax.make_jaxpr(jax.grad(lambda x, w: conv(x, w).sum(), (0, 1)))(x, w)
  >>> [is_weight_gradient(eqn) for eqn in program.eqns if eqn.primitive.name == 'conv_general_dilated']
  [False, True, False]
  """
  numbers = eqn.params['dimension_numbers']
  kernel = math.prod(eqn.invars[1].aval.shape[axis] for axis in numbers.rhs_spec[2:])
  result = math.prod(eqn.outvars[0].aval.shape[axis] for axis in numbers.out_spec[2:])
  outgrown = kernel >= result or eqn.params['batch_group_count'] > 1
  return numbers.lhs_spec[1] == 0 and outgrown and eqn.params['feature_group_count'] == 1


def contraction(eqn: Any) -> MatmulLayout | None:
  """Reads a `dot_general` as a product of matrices, or of a batch of them, whose operands stay as they lie.

  Args:
    eqn: the equation.

  Returns:
    Its layout; None for what oneDNN is not asked to do: another dtype than float32 or bfloat16, axes that do not lie
    together.

  >>> import jax
  >>> program = jax.make_jaxpr(lambda x, g: jax.numpy.einsum('bti,bto->io', x, g))(*[jax.numpy.ones((2, 3, 4))] * 2)
  >>> layout = contraction(next(eqn for eqn in program.eqns if eqn.primitive.name == 'dot_general'))
  >>> layout.rows, layout.inner, layout.columns, layout.a
  (4, 6, 4, (1, 4))
  """
  lhs, rhs, out = eqn.invars[0].aval, eqn.invars[1].aval, eqn.outvars[0].aval
  dtype, made = lhs.dtype.name, out.dtype.name
  if rhs.dtype.name != dtype or dtype not in _DTYPES or made not in (dtype, 'float32'):
    return None
  if eqn.params['out_sharding'] is not None:
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
  return MatmulLayout(tuple(lhs.shape[axis] for axis in batch), rows[0], across[0], columns[0], a, b, dtype, made)


def exchanged(of: MatmulLayout) -> MatmulLayout:
  (*outer, row, across), (*outer_too, across_too, column) = of.a, of.b
  a, b = (*outer_too, column, across_too), (*outer, across, row)
  return of._replace(rows=of.columns, columns=of.rows, a=a, b=b)


def _merged(aval: Any, axes: Sequence[int]) -> tuple[int, int] | None:
  """(size, stride) of several axes taken as one; None where they do not lie together in this order."""
  strides = _strides(aval)
  axes = [axis for axis in axes if aval.shape[axis] > 1]
  for one, other in itertools.pairwise(axes):
    if strides[one] != strides[other] * aval.shape[other]:
      return None
  return (math.prod(aval.shape[axis] for axis in axes), strides[axes[-1]] if axes else 1)


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
  dtype: str,
) -> ConvGeometry | None:
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
  return ConvGeometry(
    batch, inputs, outputs, groups, *sizes, *map(tuple, (stride, dilation, low, high)), x, w, y, dtype
  )


def _pairs(numbers: Any, lhs: Any, rhs: Any, out: Any) -> list[tuple[Any, Any]]:
  specs = numbers.lhs_spec, numbers.rhs_spec, numbers.out_spec
  return [(getattr(one, 'shape', one), spec) for one, spec in zip((lhs, rhs, out), specs, strict=True)]


def _strides(aval: Any) -> list[int]:
  """In elements, rows last."""
  return [math.prod(aval.shape[axis + 1 :]) for axis in range(aval.ndim)]
