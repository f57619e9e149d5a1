"""Convolutions as steps of C, channels last: windows are laid out side by side, a few at a time, and are rows then.

Where every channel has a kernel of its own, the channels are added up side by side instead.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxlite.deployment.c import kernels as c_kernels
from jaxlite.deployment.c import products as c_products
from jaxlite.deployment.c import scalars as c_scalars
from jaxlite.deployment.c.steps import Builder
from jaxlite.deployment.c.text import type_of
from jaxlite.deployment.operations import Operation

_ROWS = 4  # windows that are laid out at once


class Geometry(NamedTuple):
  """A convolution of [1, space..., channels] with kernels [outputs, space..., channels / groups]."""

  size: tuple[int, ...]
  out: tuple[int, ...]
  kernel: tuple[int, ...]
  channels: int
  outputs: int
  groups: int
  strides: Sequence[int]
  padding: Sequence[tuple[int, int]]
  dilation: Sequence[int]
  spread: Sequence[int]

  @property
  def depth(self) -> int:
    return math.prod(self.kernel) * self.channels // self.groups

  @property
  def pointwise(self) -> bool:
    """Whether each place is a row as it stands."""
    still = all(one == 1 for one in (*self.kernel, *self.strides, *self.spread)) and not any(map(any, self.padding))
    return still and self.groups == 1

  @property
  def each_alone(self) -> bool:
    return self.groups > 1 and self.groups == self.channels == self.outputs


def _geometry(b: Builder, one: Operation) -> Geometry:
  told = one.attributes
  x, kernel, out = b.shape(one.inputs[0]), b.shape(one.inputs[1]), b.shape(one.outputs[0])
  return Geometry(
    x[1:-1],
    out[1:-1],
    kernel[1:-1],
    x[-1],
    kernel[0],
    told['groups'],
    told['strides'],
    told['padding'],
    told['dilation'],
    told['input_dilation'],
  )


def conv(b: Builder, one: Operation) -> None:
  x, kernel, *bias = one.inputs
  g, dtype = _geometry(b, one), b.dtype(x)
  known = c_products.weights(b, kernel, 0)
  if known is None or dtype.name not in ('float32', 'float64'):
    what = 'whose kernel is computed' if known is None else f'of {dtype.name}'
    raise ValueError(f'a convolution {what} has no rule in a C99 file ({one.outputs[0]})')
  if known.scale is not None and (g.each_alone or dtype != np.float32):
    wide = known.scale.reshape([-1] + [1] * (known.array.ndim - 1))
    known = c_products.Weights((known.array * wide).astype(np.float32))
  source = b.side_by_side(x)
  if 0 in (*g.out, g.outputs):
    return b.put(one, '', [source])
  if g.each_alone:
    inputs = [source, (b.constant(_by_tap(known.array).astype(dtype)), 0)]
    last = []
    if bias:
      last = [f'for (long n = 0; n < {g.channels}; ++n) y[n] += a2[n];']
      inputs.append(b.side_by_side(bias[0]))
    lines = _alone(g, 'y[n] += x[n] * w[n];', 'y', last, type_of(dtype, x))
    return b.put(one, '\n'.join(lines), inputs)
  flat = known._replace(array=known.array.reshape(g.outputs, g.depth))
  rows = c_products.float_rows(b, flat, dtype, bias[0] if bias else None, 1, g.groups)
  if g.pointwise:
    lines = rows.call('a0', str(g.depth), 'out', str(math.prod(g.out)), '')
    return b.put(one, '\n'.join(lines), [source, *rows.inputs])
  column = b.buffer('column', dtype, g.depth * min(_ROWS, math.prod(g.out)))
  calls = rows.call('s0', str(g.depth), f'out + first * {g.outputs}', 'count', 'group')
  lines = _by_window(g, type_of(dtype, x), 'a0[{0}]', calls)
  b.put(one, '\n'.join(lines), [source, *rows.inputs], scratch=(column,))


def quantized_conv(b: Builder, one: Operation) -> None:
  g = _geometry(b, one)
  source = b.side_by_side(one.inputs[0])
  found = c_products.integers(b, one, lambda array: array.reshape(array.shape[0], -1), 2)
  stored = 'a0[{0}]'
  if 0 in (*g.out, g.outputs):
    return b.put(one, '', [source])
  if g.each_alone:
    w = _by_tap(found.array.reshape(g.outputs, *g.kernel, 1))
    inputs = [source, (b.constant(w.astype(np.int8)), 0), *found.inputs]
    sums = b.buffer('sums', np.int32, g.channels)
    last = [f'for (long n = 0; n < {g.channels}; ++n) y[n] = {found.leave("s0[n]", "n")};']
    product = f's0[n] += (int32_t)(int16_t){c_scalars.whole("x[n]", found.point)} * w[n];'
    lines = _alone(g, product, 's0', last, 'int8_t', _type(one))
    return b.put(one, '\n'.join(lines), inputs, scratch=(sums,))
  inputs = [source, (b.constant(found.array.astype(np.int8)), 0), *found.inputs]
  at_once = min(_ROWS, math.prod(g.out))
  width = g.outputs // g.groups
  column, sums = b.buffer('column', np.int16, g.depth * at_once), b.buffer('sums', np.int32, width * at_once)
  w = f'a1 + group * {width * g.depth}' if g.groups > 1 else 'a1'
  output = f'group * {width} + n' if g.groups > 1 else 'n'
  calls = [
    *c_kernels.sums_calls('s0', w, 's1', 'count', g.depth, width),
    'for (long p = 0; p < count; ++p)',
    f'  for (long n = 0; n < {width}; ++n)',
    f'    out[(first + p) * {g.outputs} + {output}] = {found.leave(f"s1[p * {width} + n]", f"{output}")};',
  ]
  lines = _by_window(g, 'int16_t', f'(int16_t){c_scalars.whole(stored, found.point)}', calls)
  b.put(one, '\n'.join(lines), inputs, scratch=(column, sums))


def _type(one: Operation) -> str:
  return 'float' if one.attributes.get('y_scale') is None else 'int8_t'


def _by_tap(array: np.ndarray) -> np.ndarray:
  """Kernels [channels, space..., 1] as [space, channels]."""
  return np.ascontiguousarray(array.reshape(array.shape[0], -1).T)


def _place(g: Geometry) -> str:
  """The index of the window at hand among all."""
  text = 'o0'
  for axis in range(1, len(g.out)):
    text = f'({text} * {g.out[axis]} + o{axis})'
  return text


def _checks(g: Geometry, axis: int, pad: str) -> list[str]:
  """Where along an axis the entry under a tap lies: `x` and whether it is `in`side."""
  low = g.padding[axis][0]
  apart = f'o{axis} * {g.strides[axis]} + w{axis} * {g.dilation[axis]}'
  where = f'{apart} - {low}' if low >= 0 else f'{apart} + {-low}'
  before = f'in{axis - 1} && ' if axis else ''
  if g.spread[axis] == 1:
    return [
      f'{pad}const long x{axis} = {where};',
      f'{pad}const int in{axis} = {before}x{axis} >= 0 && x{axis} < {g.size[axis]};',
    ]
  step = g.spread[axis]
  return [
    f'{pad}const long y{axis} = {where}, x{axis} = y{axis} / {step};',
    f'{pad}const int in{axis} = {before}y{axis} >= 0 && y{axis} % {step} == 0 && x{axis} < {g.size[axis]};',
  ]


def _entry(g: Geometry, last: str = '') -> str:
  """The index of the first channel at x0, x1, ..., of which the last may be called otherwise."""
  names = [f'x{axis}' for axis in range(len(g.size))]
  names[-1] = last or names[-1]
  text = names[0]
  for size, name in zip(g.size[1:], names[1:], strict=True):
    text = f'({text} * {size} + {name})'
  return f'{text} * {g.channels}'


def _by_window(g: Geometry, kind: str, entry: str, calls: list[str]) -> list[str]:
  """Lines that lay out windows in s0, `count` at once from the one `first` on, and call what makes outputs of them."""
  places, depth = math.prod(g.out), g.depth
  some = min(_ROWS, places)
  if g.pointwise:  # rows stand side by side already: they are only converted
    inner = [f'for (long k = 0; k < count * {depth}; ++k) s0[k] = {entry.format(f"first * {depth} + k")};']
  else:
    inner = ['for (long p = 0; p < count; ++p) {', f'  {kind} *column = s0 + p * {depth};']
    step = 1
    for axis in reversed(range(len(g.out))):
      inner.append(f'  const long o{axis} = (first + p) / {step} % {g.out[axis]};')
      step *= g.out[axis]
    inner += ['  ' + line for line in _window(g, entry)] + ['}']
  lines = [
    f'for (long first = 0; first < {places}; first += {some}) {{',
    f'  const long count = {places} - first < {some} ? {places} - first : {some};',
    *('  ' + line for line in (*inner, *calls)),
    '}',
  ]
  if g.groups > 1:
    lines = [f'for (long group = 0; group < {g.groups}; ++group) {{', *('  ' + line for line in lines), '}']
  return lines


def _window(g: Geometry, entry: str) -> list[str]:
  """Lines that lay out the window at o0, o1, ... from `column` on, zero where nothing is."""
  last, some = len(g.size) - 1, g.channels // g.groups
  group = f'group * {some} + ' if g.groups > 1 else ''
  row = g.kernel[last] * g.channels
  whole = g.groups == 1 and g.dilation[last] == 1 and g.spread[last] == 1 and g.kernel[last] > 1
  lines = ['int done = 0;'] if whole and not last else []
  for axis in range(last + 1):
    pad = '  ' * axis
    if axis == last and whole:  # a row of the window lies in one piece where no edge cuts it
      low = g.padding[last][0]
      first = f'o{last} * {g.strides[last]} - {low}' if low >= 0 else f'o{last} * {g.strides[last]} + {-low}'
      before = f'in{last - 1} && ' if last else ''
      lines += [
        f'{pad}const long x = {first};',
        f'{pad}if ({before}x >= 0 && x + {g.kernel[last]} <= {g.size[last]}) {{',
        f'{pad}  const long at = {_entry(g, "x")};',
        f'{pad}  for (long n = 0; n < {row}; ++n) column[n] = {entry.format("at + n")};',
        f'{pad}  column += {row};',
        f'{pad}  continue;' if last else f'{pad}  done = 1;',
        f'{pad}}}',
      ]
    also = 'done == 0 && ' if axis == last and whole and not last else ''
    lines.append(f'{pad}for (long w{axis} = 0; {also}w{axis} < {g.kernel[axis]}; ++w{axis}) {{')
    lines += _checks(g, axis, pad + '  ')
  pad = '  ' * (last + 1)
  return [
    *lines,
    f'{pad}const long at = in{last} ? {group}{_entry(g)} : 0;',
    f'{pad}if (in{last})',
    f'{pad}  for (long n = 0; n < {some}; ++n) column[n] = {entry.format("at + n")};',
    f'{pad}else',
    f'{pad}  for (long n = 0; n < {some}; ++n) column[n] = 0;',
    f'{pad}column += {some};',
    *('  ' * axis + '}' for axis in reversed(range(last + 1))),
  ]


def _alone(g: Geometry, product: str, acc: str, last: list[str], kind: str, out: str = '') -> list[str]:
  """Lines of a convolution in which each channel has its own kernel."""
  axes = range(len(g.size))
  lines: list[Any] = [
    f'{out or kind} *restrict y = out + {_place(g)} * {g.channels};',
    f'for (long n = 0; n < {g.channels}; ++n) {acc}[n] = 0;',
  ]
  tap = 'w0'
  for axis in axes:
    pad = '  ' * axis
    lines.append(f'{pad}for (long w{axis} = 0; w{axis} < {g.kernel[axis]}; ++w{axis}) {{')
    lines += _checks(g, axis, pad + '  ')
    tap = f'({tap} * {g.kernel[axis]} + w{axis})' if axis else tap
  pad = '  ' * len(g.size)
  weight = 'int8_t' if kind == 'int8_t' else kind
  lines += [
    f'{pad}if (!in{len(g.size) - 1}) continue;',
    f'{pad}const {kind} *restrict x = a0 + {_entry(g)};',
    f'{pad}const {weight} *restrict w = a1 + {tap} * {g.channels};',
    f'{pad}for (long n = 0; n < {g.channels}; ++n) {product}',
    *('  ' * axis + '}' for axis in reversed(axes)),
    *last,
  ]
  for axis in reversed(axes):
    lines = [f'for (long o{axis} = 0; o{axis} < {g.out[axis]}; ++o{axis}) {{', *('  ' + line for line in lines), '}']
  return lines
