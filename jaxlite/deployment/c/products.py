"""Contractions as steps of C: dense layers and products of two values; `c_convolutions` holds the rest.

Floats are summed for 16 outputs at once, whose weights stand together in the file; integers along their depth, four
outputs of two rows at once: what gcc and clang turn into the machine's own products. Both work on rows of entries side
by side.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from jaxlite.deployment.c import scalars as c_scalars
from jaxlite.deployment.c.kernels import TILE, sums_calls
from jaxlite.deployment.c.reductions import joined, total
from jaxlite.deployment.c.steps import Builder, added, nest, whole_strides
from jaxlite.deployment.c.text import number, type_of
from jaxlite.deployment.integers import rules as integer_rules
from jaxlite.deployment.operations import Operation

_MOST = 2**31 - 1


class Weights(NamedTuple):
  """Weights [outputs, depth] as a layer reads them, and a scale of each output where they are int8 for floats."""

  array: np.ndarray
  scale: np.ndarray | None = None


def weights(b: Builder, name: str, axis: int) -> Weights | None:
  """The weights of a layer of floats; None where they are no constants.

  Args:
    b: the builder.
    name: of the weights.
    axis: of their outputs.
  """
  if name in b.graph.constants:
    return Weights(np.broadcast_to(b.graph.constants[name], b.shape(name)))
  maker = b.made.get(name)
  if maker is None or maker.kind != 'dequantize' or any(name not in b.graph.constants for name in maker.inputs):
    return None
  q, *scales = (np.broadcast_to(b.graph.constants[one], b.shape(one)) for one in maker.inputs)
  told = maker.attributes
  if (scales and told.get('axis', 0) % q.ndim != axis) or (not scales and told.get('zero_point', 0)):
    return Weights(integer_rules.dequantize(q, *scales, **told))
  scale = scales[0] if scales else np.full(q.shape[axis], told['scale'], np.float32)
  return Weights(q, scale.astype(np.float32))


class Rows(NamedTuple):
  """How rows of floats become outputs: calls of a kernel, and what they read."""

  inputs: tuple[tuple[str, int], ...]
  call: Callable[[str, str, str, str, str], list[str]]


def float_rows(b: Builder, known: Weights, dtype: np.dtype[Any], bias: str | None, first: int, groups: int = 1) -> Rows:
  """Prepares products of rows with weights.

  Args:
    b: the builder.
    known: weights, [outputs, depth] in `array`.
    dtype: of the rows.
    bias: name of what is added, [outputs].
    first: index of the next free input of the step.
    groups: outputs come in so many parts, each with rows of its own.
  """
  outputs, depth = known.array.shape
  width = outputs // groups
  tiles = [(start, min(TILE, width - start)) for start in range(0, width, TILE)]
  parts = [
    known.array[group * width + start : group * width + start + size].T.reshape(-1)
    for group in range(groups)
    for start, size in tiles
  ]
  flat = np.concatenate([*parts, np.zeros(0, known.array.dtype)])
  inputs = [(b.constant(flat if known.scale is not None else flat.astype(dtype)), 0)]
  w, kind = f'a{first}', {'float32': 'f', 'float64': 'd'}[dtype.name]
  added_text, scale_text = 'NULL', ''
  if bias is not None:
    added_text = f'a{first + len(inputs)}'
    inputs.append(b.side_by_side(bias))
  if known.scale is not None:
    scale_text, kind = f'a{first + len(inputs)}', 'q'
    inputs.append((b.constant(known.scale), 0))

  def call(x: str, x_step: str, y: str, rows: str, group: str) -> list[str]:
    """Lines that fill rows at `y`, outputs apart, from rows at `x`."""
    whole = width // TILE * TILE
    begin = f'{group} * {width}' if groups > 1 else ''

    def one(start: str, size: int) -> str:
      place = ' + '.join(filter(None, (begin, start)))
      at = f' + {place}' if place else ''
      times = f' + ({place}) * {depth}' if place else ''
      told = [f'{x}, {x_step}, {w}{times}', added_text + at if bias is not None else 'NULL']
      told += [scale_text + at] if scale_text else []
      return f'@_rows{size}{kind}({", ".join(told)}, {y}{at}, {outputs}, {rows}, {depth});'

    lines = []
    if whole == TILE:
      lines.append(one('', TILE))
    elif whole:
      lines.append(f'for (long o = 0; o < {whole}; o += {TILE}) {one("o", TILE)}')
    if width > whole:
      lines.append(one(str(whole) if whole else '', width - whole))
    return lines

  return Rows(tuple(inputs), call)


class Integers(NamedTuple):
  """An integer layer: its weights [outputs, depth], what the step reads, and how a sum leaves it."""

  array: np.ndarray
  point: int
  inputs: tuple[tuple[str, int], ...]
  leave: Callable[[str, str], str]


def integers(b: Builder, one: Operation, order: Callable[[np.ndarray], np.ndarray], first: int) -> Integers:
  """Prepares an integer layer.

  Args:
    b: the builder.
    one: 'quantized_dense' or 'quantized_conv'.
    order: its weights as [outputs, depth].
    first: index of the next free input of the step.

  Raises:
    ValueError: weights that are no constants, or sums that may leave int32.
  """
  _, w, w_scale, *bias = one.inputs
  known = b.graph.constants
  if any(name not in known for name in one.inputs[1:]):
    raise ValueError(f'weights, scales and biases of an integer layer are constants; those of {one.outputs[0]} are not')
  array = order(np.broadcast_to(known[w], b.shape(w)))
  outputs, told = array.shape[0], one.attributes
  point = c_scalars.grid(told, 'x_zero_point')
  most = np.abs(array.astype(np.int64)).sum(1) * max(127 - point, point + 128)
  added = np.zeros(outputs, np.int32)
  if bias:
    added = np.broadcast_to(known[bias[0]], (outputs,)).astype(np.int32)
  if (top := int((most + np.abs(added.astype(np.int64))).max(initial=0))) > _MOST:
    raise ValueError(f'sums of an integer layer fit in int32; those of {one.outputs[0]} may be {top:,}')
  scale = np.broadcast_to(known[w_scale], b.shape(w_scale))
  factor = np.broadcast_to(integer_rules.multiplier(told['x_scale'], scale, told.get('y_scale')), (outputs,))
  inputs: list[tuple[str, int]] = []
  with_bias, with_factor = '', number(factor[0], 'float32') if outputs else '0.0f'
  if bias and added.any():
    with_bias = f' + a{first + len(inputs)}[{{0}}]'
    inputs.append((b.constant(added), 0))
  if (factor != factor[:1]).any():
    with_factor = f'a{first + len(inputs)}[{{0}}]'
    inputs.append((b.constant(factor.astype(np.float32)), 0))

  def leave(total: str, output: str) -> str:
    text = f'({total}{with_bias.format(output)})' if with_bias else total
    return c_scalars.leaving(text, with_factor.format(output), told)

  return Integers(array, point, tuple(inputs), leave)


def dense(b: Builder, one: Operation) -> None:
  x, w, *bias = one.inputs
  dtype = b.dtype(x)
  known = weights(b, w, 1)
  if known is None or dtype.name not in ('float32', 'float64') or (known.scale is not None and dtype != np.float32):
    return _plain_dense(b, one)
  rows = float_rows(b, known._replace(array=known.array.T), dtype, bias[0] if bias else None, 1)
  depth = known.array.shape[0]
  lines = rows.call('a0', str(depth), 'out', str(math.prod(b.shape(x)[:-1])), '')
  b.put(one, '\n'.join(lines), [b.side_by_side(x), *rows.inputs])


def _plain_dense(b: Builder, one: Operation) -> None:
  """A product of two values, then the bias."""
  x, _, *bias = one.inputs
  last = len(b.shape(x)) - 1
  numbers = (((last,), (0,)), ((), ()))
  more = ''
  inputs: list[tuple[str, int]] = []
  if bias:
    inputs.append(b.side_by_side(bias[0]))
    more = 'a2'
  _product(b, one, numbers, tuple(inputs), more)


def quantized_dense(b: Builder, one: Operation) -> None:
  x = one.inputs[0]
  found = integers(b, one, lambda array: array.T, 2)
  outputs, depth = found.array.shape
  rows = math.prod(b.shape(x)[:-1])
  chunk = min(rows, 4)
  column, sums = b.buffer('column', np.int16, depth * chunk), b.buffer('sums', np.int32, outputs * chunk)
  count = '1' if rows == 1 else str(chunk) if rows % max(chunk, 1) == 0 else 'count'
  stored = c_scalars.whole(f'a0[r * {depth} + k]', found.point)
  lines = [f'for (long r = 0; r < {rows}; r += {chunk}) {{']
  if count == 'count':
    lines.append(f'  const long count = {rows} - r < {chunk} ? {rows} - r : {chunk};')
  lines += [
    f'  for (long k = 0; k < {count} * {depth}; ++k) s0[k] = (int16_t){stored};',
    *('  ' + call for call in sums_calls('s0', 'a1', 's1', count, depth, outputs)),
    f'  for (long p = 0; p < {count}; ++p)',
    f'    for (long n = 0; n < {outputs}; ++n)',
    f'      out[(r + p) * {outputs} + n] = {found.leave(f"s1[p * {outputs} + n]", "n")};',
    '}',
  ]
  inputs = [b.side_by_side(x), (b.constant(found.array.astype(np.int8)), 0), *found.inputs]
  b.put(one, '\n'.join(lines) if rows and outputs else '', inputs, scratch=(column, sums))


# --- products of two values -------------------------------------------------------------------------------------------


def dot_general(b: Builder, one: Operation) -> None:
  _product(b, one, one.attributes['dimension_numbers'])


def quantized_dot(b: Builder, one: Operation) -> None:
  told = one.attributes
  left, right = c_scalars.grid(told, 'a_zero_point'), c_scalars.grid(told, 'b_zero_point')
  factor = number(integer_rules.multiplier(told['a_scale'], told['b_scale'], told.get('y_scale')), 'float32')

  def entry(x: str, y: str) -> str:
    return f'(int32_t)(int16_t){c_scalars.whole(x, left)} * (int16_t){c_scalars.whole(y, right)}'

  def leave(text: str) -> str:
    return c_scalars.leaving(text, factor, told)

  _product(b, one, told['dimension_numbers'], entry=entry, leave=leave)


def _product(
  b: Builder,
  one: Operation,
  numbers: Any,
  more: tuple[tuple[str, int], ...] = (),
  bias: str = '',
  entry: Callable[[str, str], str] | None = None,
  leave: Callable[[str], str] | None = None,
) -> None:
  """Sums of products along axes of two values, by whichever axis lies side by side."""
  (inner_x, inner_y), (batch_x, batch_y) = numbers
  x, y = b.view(one.inputs[0]), b.view(one.inputs[1])
  dtype = b.dtype(one.outputs[0])
  acc = np.dtype(np.int32) if leave is not None else dtype
  if leave is None and {b.dtype(name) for name in one.inputs[:2]} != {dtype}:
    raise ValueError(f'{one.kind} of other dtypes than its result has no rule in a C99 file: convert them before it')
  free_x = [axis for axis in range(len(x.shape)) if axis not in (*inner_x, *batch_x)]
  free_y = [axis for axis in range(len(y.shape)) if axis not in (*inner_y, *batch_y)]
  depth = math.prod(x.shape[axis] for axis in inner_x)
  if leave is not None and depth * 255 * 255 > _MOST:
    raise ValueError(f'sums of integer products fit in int32; {one.outputs[0]} adds up {depth:,}')
  text, start = joined('sum', acc)
  c = type_of(acc, one.outputs[0])
  multiply = c_scalars.RULES['mul']([acc, acc], acc, {}).text
  entry = entry or (lambda left, right: multiply.format(left, right))
  finish = leave or (lambda value: value)
  outer = [x.shape[axis] for axis in (*batch_x, *free_x)]
  columns = [y.shape[axis] for axis in free_y]
  target = whole_strides([*outer, *columns])
  steps_x = [x.strides[axis] for axis in (*batch_x, *free_x)]
  steps_y = [y.strides[axis] for axis in batch_y] + [0] * len(free_x)
  deep = [x.shape[axis] for axis in inner_x]
  deep_x, deep_y = [x.strides[axis] for axis in inner_x], [y.strides[axis] for axis in inner_y]
  wide = [(size, y.strides[axis]) for size, axis in zip(columns, free_y, strict=True) if size != 1]
  long = [(size, p, q) for size, p, q in zip(deep, deep_x, deep_y, strict=True) if size != 1]
  by_row = len(wide) == 1 and wide[0][1] == 1 and not (len(long) == 1 and long[0][1:] == (1, 1))
  scratch: tuple[str, ...] = ()
  if by_row and wide[0][0] and depth:
    size = wide[0][0]
    if leave is not None:
      scratch = (b.buffer('sums', np.int32, size),)

    def body(at: list[str]) -> list[str]:
      row = 's0[n]' if scratch else f'out[{added(at[0], "n", 1)}]'

      def join(to: list[str]) -> list[str]:
        product = entry(f'a0[{to[0]}]', f'a1[{added(to[1], "n", 1)}]')
        return [f'for (long n = 0; n < {size}; ++n) {row} = {text.format(row, product)};']

      joins = nest(deep, (deep_x, deep_y), join, 'k', [at[1], at[2]])
      lines = [f'for (long n = 0; n < {size}; ++n) {row} = {start};', *joins]
      if bias or leave is not None:
        last = text.format(row, f'{bias}[n]') if bias else finish(row)
        lines.append(f'for (long n = 0; n < {size}; ++n) out[{added(at[0], "n", 1)}] = {last};')
      return lines

  else:

    def body(at: list[str]) -> list[str]:
      def inside(to: list[str]) -> list[str]:
        if len(long) == 1:
          size, p, q = long[0]

          def pair(where: str) -> str:
            return entry(f'a0[{added(at[1], where, p)}]', f'a1[{added(to[1], where, q)}]')

          lines = total([size], [1], '0', c, text, start, pair)
        else:

          def join(place: list[str]) -> list[str]:
            return [f'total = {text.format("total", entry(f"a0[{place[0]}]", f"a1[{place[1]}]"))};']

          inner = nest(deep, (deep_x, deep_y), join, 'k', [at[1], to[1]])
          lines = [f'{c} total = {start};', *inner]
        value = text.format('total', f'{bias}[{to[2]}]') if bias else finish('total')
        return [*lines, f'out[{to[0]}] = {value};']

      steps = (target[len(outer) :], [y.strides[axis] for axis in free_y], whole_strides(columns))
      return nest(columns, steps, inside, 'n', [at[0], at[2], '0'])

  lines = nest(outer, (target[: len(outer)], steps_x, steps_y), body)
  inputs = [(x.buffer, x.offset), (y.buffer, y.offset), *more]
  b.put(one, '\n'.join(lines), inputs, scratch=scratch)
