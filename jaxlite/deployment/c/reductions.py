"""Operations that make one entry of several, as steps of C: sums, means, extremes, softmax, windows, running sums."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxlite.deployment.c import scalars as c_scalars
from jaxlite.deployment.c.steps import Builder, added, nest, whole_strides
from jaxlite.deployment.c.text import number, type_of
from jaxlite.deployment.integers import rules as integer_rules
from jaxlite.deployment.operations import Operation

_LANES = 8  # partial sums: a compiler may not reorder a sum of floats, and these add up to less rounding too
_MOST = 2**31 - 1


def joined(kind: str, dtype: np.dtype[Any]) -> tuple[str, str]:
  """How two entries become one, and what the first is joined with."""
  lowest = -np.inf if c_scalars.floating(dtype) else np.iinfo(dtype).min if dtype != np.bool_ else 0
  highest = np.inf if c_scalars.floating(dtype) else np.iinfo(dtype).max if dtype != np.bool_ else 1
  told: tuple[str, Any] = {
    'sum': (c_scalars.RULES['add']([dtype] * 2, dtype, {}).text, 0),
    'prod': (c_scalars.RULES['mul']([dtype] * 2, dtype, {}).text, 1),
    'max': (c_scalars.largest('{0}', '{1}', dtype), lowest),
    'min': (c_scalars.largest('{0}', '{1}', dtype, '<'), highest),
    'and': ('({0} & {1})', 1 if dtype == np.bool_ else -1),
    'or': ('({0} | {1})', 0),
  }[kind]
  return told[0], number(told[1], dtype)


def _reduce(b: Builder, one: Operation, kind: str, last: str = '{0}') -> None:
  """Joins entries along axes; `last` is done to each result."""
  name, axes = one.inputs[0], one.attributes['axes']
  view, dtype, out = b.view(name), b.dtype(name), b.dtype(one.outputs[0])
  text, start = joined(kind, dtype)
  c = type_of(dtype, name)
  kept = [axis for axis in range(len(view.shape)) if axis not in axes]
  target = whole_strides([view.shape[axis] for axis in kept])
  outer_steps, inner_steps = ([view.strides[axis] for axis in some] for some in (kept, axes))
  inner = [view.shape[axis] for axis in axes]
  rows = bool(kept) and view.strides[kept[-1]] == 1 and view.shape[kept[-1]] > 1 and 0 not in inner
  if rows and dtype == out and not (axes and view.strides[axes[-1]] == 1):
    wide, lead = view.shape[kept[-1]], kept[:-1]

    def row(at: list[str]) -> list[str]:
      head = [f'for (long n = 0; n < {wide}; ++n) out[{added(at[0], "n", 1)}] = {start};']
      more = nest(
        inner,
        (inner_steps,),
        lambda to: [
          f'for (long n = 0; n < {wide}; ++n) {{',
          f'  const {c} x = a0[{added(to[0], "n", 1)}], y = out[{added(at[0], "n", 1)}];',
          f'  out[{added(at[0], "n", 1)}] = {text.format("y", "x")};',
          '}',
        ],
        'j',
        [at[1]],
      )
      place = f'out[{added(at[0], "n", 1)}]'
      tail = [f'for (long n = 0; n < {wide}; ++n) {place} = {last.format(place)};'] if last != '{0}' else []
      return head + more + tail

    lines = nest([view.shape[axis] for axis in lead], (target[:-1], outer_steps[:-1]), row)
    return b.put(one, '\n'.join(lines), [(view.buffer, view.offset)])

  def body(at: list[str]) -> list[str]:
    found = total(inner, inner_steps, at[1], c, text, start)
    return [*found, f'out[{at[0]}] = {c_scalars.cast(dtype, out, last.format("total"))};']

  lines = nest([view.shape[axis] for axis in kept], (target, outer_steps), body)
  b.put(one, '\n'.join(lines), [(view.buffer, view.offset)])


def total(
  shape: Sequence[int],
  strides: Sequence[int],
  begin: str,
  c: str,
  text: str,
  start: str,
  entry: Callable[[str], str] = 'a0[{}]'.format,
) -> list[str]:
  """Lines that leave in `total` what all entries of a shape are joined to."""
  long = [(size, step) for size, step in zip(shape, strides, strict=True) if size != 1]
  if len(long) == 1 and long[0][0] >= 2 * _LANES and c in ('float', 'double'):
    size, step = long[0]
    whole = size - size % _LANES
    at, rest = entry(added(begin, '(k + j)', step)), entry(added(begin, 'k', step))
    lines = [
      f'{c} lanes[{_LANES}];',
      f'for (long j = 0; j < {_LANES}; ++j) lanes[j] = {start};',
      f'for (long k = 0; k < {whole}; k += {_LANES})',
      f'  for (long j = 0; j < {_LANES}; ++j) {{',
      f'    const {c} x = {at};',
      f'    lanes[j] = {text.format("lanes[j]", "x")};',
      '  }',
      f'{c} total = {start};',
      f'for (long j = 0; j < {_LANES}; ++j) total = {text.format("total", "lanes[j]")};',
    ]
    if whole < size:
      lines += [
        f'for (long k = {whole}; k < {size}; ++k) {{',
        f'  const {c} x = {rest};',
        f'  total = {text.format("total", "x")};',
        '}',
      ]
    return lines
  inner = nest(
    shape,
    (strides,),
    lambda to: [f'const {c} x = {entry(to[0])};', f'total = {text.format("total", "x")};'],
    'j',
    [begin],
  )
  inner = inner if not inner or inner[0].startswith('for') else ['{', *inner, '}']
  return [f'{c} total = {start};', *inner]


def _mean(b: Builder, one: Operation) -> None:
  shape, dtype = b.shape(one.inputs[0]), b.dtype(one.inputs[0])
  count = math.prod(shape[axis] for axis in one.attributes['axes'])
  if not c_scalars.floating(dtype):
    raise ValueError('a mean of whole numbers has no rule in a C99 file: compute it in float32')
  _reduce(b, one, 'sum', f'({{0}} / {number(count, dtype)})')


def _quantized_mean(b: Builder, one: Operation) -> None:
  told, view = one.attributes, b.view(one.inputs[0])
  axes, point = told['axes'], c_scalars.grid(told, 'x_zero_point')
  count = math.prod(view.shape[axis] for axis in axes)
  if count * 255 > _MOST:
    raise ValueError(f'a mean of {count:,} integers may leave int32')
  kept = [axis for axis in range(len(view.shape)) if axis not in axes]
  factor = number(integer_rules.multiplier(told['x_scale'], 1.0 / count, told.get('y_scale')), 'float32')
  target = whole_strides([view.shape[axis] for axis in kept])

  def body(at: list[str]) -> list[str]:
    found = total(
      [view.shape[axis] for axis in axes],
      [view.strides[axis] for axis in axes],
      at[1],
      'int32_t',
      '({0} + {1})',
      '0',
      lambda where: c_scalars.whole(f'a0[{where}]', point),
    )
    return [*found, f'out[{at[0]}] = {c_scalars.leaving("total", factor, told)};']

  lines = nest([view.shape[axis] for axis in kept], (target, [view.strides[axis] for axis in kept]), body)
  b.put(one, '\n'.join(lines), [(view.buffer, view.offset)])


def _extreme(b: Builder, one: Operation, sign: str) -> None:
  """Where the largest stands: the first of equal ones, and the first NaN before all."""
  view, (axis, *_), dtype = b.view(one.inputs[0]), one.attributes['axes'], b.dtype(one.inputs[0])
  out, c = type_of(b.dtype(one.outputs[0]), 'argmax'), type_of(dtype, 'argmax')
  kept = [index for index in range(len(view.shape)) if index != axis]
  target = whole_strides([view.shape[index] for index in kept])
  nan = ' || (x != x && best == best)' if c_scalars.floating(dtype) else ''
  stop = ' && best == best' if c_scalars.floating(dtype) else ''

  def body(at: list[str]) -> list[str]:
    return [
      f'{c} best = a0[{at[1]}];',
      'long where = 0;',
      f'for (long k = 1; k < {view.shape[axis]}; ++k) {{',
      f'  const {c} x = a0[{added(at[1], "k", view.strides[axis])}];',
      f'  if ((x {sign} best{stop}){nan}) {{',
      '    best = x;',
      '    where = k;',
      '  }',
      '}',
      f'out[{at[0]}] = ({out})where;',
    ]

  lines = nest([view.shape[index] for index in kept], (target, [view.strides[index] for index in kept]), body)
  b.put(one, '\n'.join(lines), [(view.buffer, view.offset)])


def _running(b: Builder, one: Operation, kind: str) -> None:
  view, axis, dtype = b.view(one.inputs[0]), one.attributes['axis'], b.dtype(one.inputs[0])
  text, start = joined(kind, dtype)
  c, shape, size = type_of(dtype, 'cumsum'), view.shape, view.shape[axis]
  target = whole_strides(shape)
  which = f'{size - 1} - k' if one.attributes.get('reverse') else 'k'

  def body(at: list[str]) -> list[str]:
    return [
      f'{c} total = {start};',
      f'for (long k = 0; k < {size}; ++k) {{',
      f'  const {c} x = a0[{added(at[1], f"({which})", view.strides[axis])}];',
      f'  total = {text.format("total", "x")};',
      f'  out[{added(at[0], f"({which})", target[axis])}] = total;',
      '}',
    ]

  outer = [1 if index == axis else size for index, size in enumerate(shape)] if size else [0]
  b.put(one, '\n'.join(nest(outer, (target, view.strides), body)), [(view.buffer, view.offset)])


def _softmax(b: Builder, one: Operation) -> None:
  view, axis, dtype = b.view(one.inputs[0]), one.attributes['axis'], b.dtype(one.inputs[0])
  axis %= len(view.shape)
  size, target = view.shape[axis], whole_strides(view.shape)
  c, e = type_of(dtype, 'softmax'), c_scalars.end(dtype)
  most, lowest = joined('max', dtype)

  def body(at: list[str]) -> list[str]:
    source, to = added(at[1], 'k', view.strides[axis]), added(at[0], 'k', target[axis])
    return [
      f'{c} most = {lowest}, sum = 0;',
      f'for (long k = 0; k < {size}; ++k) {{',
      f'  const {c} x = a0[{source}];',
      f'  most = {most.format("most", "x")};',
      '}',
      f'for (long k = 0; k < {size}; ++k) {{',
      f'  const {c} x = exp{e}(a0[{source}] - most);',
      f'  out[{to}] = x;',
      '  sum += x;',
      '}',
      f'for (long k = 0; k < {size}; ++k) out[{to}] /= sum;',
    ]

  outer = [1 if index == axis else wide for index, wide in enumerate(view.shape)] if size else [0]
  b.put(one, '\n'.join(nest(outer, (target, view.strides), body)), [(view.buffer, view.offset)])


# --- windows ----------------------------------------------------------------------------------------------------------


def _max_pool(b: Builder, one: Operation) -> None:
  told = one.attributes
  ones = (1,) * len(b.shape(one.inputs[0]))
  full = {
    'window_dimensions': (1, *told['window'], 1),
    'window_strides': (1, *told['strides'], 1),
    'padding': ((0, 0), *told['padding'], (0, 0)),
    'base_dilation': ones,
    'window_dilation': ones,
  }
  _windows(b, one._replace(attributes=full), 'max')


def _windows(b: Builder, one: Operation, kind: str) -> None:
  """Joins the entries of a window around each place; what lies in the padding is left out."""
  told, view, dtype = one.attributes, b.view(one.inputs[0]), b.dtype(one.inputs[0])
  shape = b.shape(one.outputs[0])
  window, strides, padding = told['window_dimensions'], told['window_strides'], told['padding']
  spread, apart = told['base_dilation'], told['window_dilation']
  text, start = joined(kind, dtype)
  target, rank, c = whole_strides(shape), len(shape), type_of(dtype, 'a pool')
  plain = [(window[a], strides[a], spread[a], *padding[a]) == (1, 1, 1, 0, 0) for a in range(rank)]
  moving = [axis for axis in range(rank) if not plain[axis]]
  row = rank - 1 if rank and plain[-1] and shape[-1] > 1 and view.strides[-1] == target[-1] == 1 else None
  free = [axis for axis in range(rank) if plain[axis] and axis != row]
  if 0 in shape:
    return b.put(one, '', [])

  def inside(at: list[str]) -> list[str]:
    to, source = at[0], at[1]
    for axis in moving:
      to = added(to, f'o{axis}', target[axis])
    taps: list[str] = []
    pad = ''
    for axis in moving:
      low, size = padding[axis][0], view.shape[axis]
      taps.append(f'{pad}for (long w{axis} = 0; w{axis} < {window[axis]}; ++w{axis}) {{')
      pad += '  '
      place = f'o{axis} * {strides[axis]} + w{axis} * {apart[axis]} - {low}'
      if spread[axis] == 1:
        taps.append(f'{pad}const long x{axis} = {place};')
        taps.append(f'{pad}if (x{axis} < 0 || x{axis} >= {size}) continue;')
      else:
        taps.append(f'{pad}const long y{axis} = {place}, x{axis} = y{axis} / {spread[axis]};')
        taps.append(f'{pad}if (y{axis} < 0 || y{axis} % {spread[axis]} != 0 || x{axis} >= {size}) continue;')
      source = added(source, f'x{axis}', view.strides[axis])
    if row is None:
      join = [f'{pad}const {c} x = a0[{source}];', f'{pad}total = {text.format("total", "x")};']
      head, tail = [f'{c} total = {start};'], [f'out[{to}] = total;']
    else:
      place = f'out[{added(to, "n", 1)}]'
      join = [
        f'{pad}for (long n = 0; n < {shape[row]}; ++n) {{',
        f'{pad}  const {c} x = a0[{added(source, "n", 1)}], y = {place};',
        f'{pad}  {place} = {text.format("y", "x")};',
        f'{pad}}}',
      ]
      head, tail = [f'for (long n = 0; n < {shape[row]}; ++n) {place} = {start};'], []
    ends = ['  ' * depth + '}' for depth in reversed(range(len(moving)))]
    lines = [*head, *taps, *join, *ends, *tail] if moving else [*head, '{', *join, '}', *tail]
    for axis in reversed(moving):
      lines = [f'for (long o{axis} = 0; o{axis} < {shape[axis]}; ++o{axis}) {{', *('  ' + each for each in lines), '}']
    return lines

  outer = [shape[axis] for axis in free]
  lines = nest(outer, ([target[axis] for axis in free], [view.strides[axis] for axis in free]), inside)
  b.put(one, '\n'.join(lines), [(view.buffer, view.offset)])


RULES: dict[str, Callable[[Builder, Operation], None]] = {
  'reduce_sum': lambda b, one: _reduce(b, one, 'sum'),
  'reduce_max': lambda b, one: _reduce(b, one, 'max'),
  'reduce_min': lambda b, one: _reduce(b, one, 'min'),
  'reduce_prod': lambda b, one: _reduce(b, one, 'prod'),
  'reduce_and': lambda b, one: _reduce(b, one, 'and'),
  'reduce_or': lambda b, one: _reduce(b, one, 'or'),
  'mean': _mean,
  'quantized_mean': _quantized_mean,
  'argmax': lambda b, one: _extreme(b, one, '>'),
  'argmin': lambda b, one: _extreme(b, one, '<'),
  'cumsum': lambda b, one: _running(b, one, 'sum'),
  'cumprod': lambda b, one: _running(b, one, 'prod'),
  'cummax': lambda b, one: _running(b, one, 'max'),
  'cummin': lambda b, one: _running(b, one, 'min'),
  'softmax': _softmax,
  'max_pool': _max_pool,
  'reduce_window_max': lambda b, one: _windows(b, one, 'max'),
  'reduce_window_sum': lambda b, one: _windows(b, one, 'sum'),
}
