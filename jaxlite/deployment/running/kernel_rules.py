"""What each operation of integers becomes in a plan of kernels."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxlite.cpu.kernels import integers
from jaxlite.deployment.integers.rules import add_factors, multiplier
from jaxlite.deployment.operations import Batch, Operation
from jaxlite.deployment.running.kernel_plan import SIGN, Maker, Unknown, of_example

# --- each kind of operation ---------------------------------------------------------------------------------------


def _grid(told: Mapping[str, Any]) -> tuple[int, int, int]:
  """A result's zero as a byte, and the ends of its grid, counted from there."""
  zero = told['y_zero_point']
  return zero + SIGN, told['low'] - zero, told['high'] - zero


def _contraction(maker: Maker, one: Operation, w: np.ndarray, shape: Sequence[int], geometry: Sequence[int]) -> None:
  """A convolution, or a dense layer as one of a window of one entry.

  Args:
    maker: grows.
    one: with inputs x, w, w_scale and perhaps bias.
    w: int8[O, kh, kw, C / groups].
    shape: h, w and channels of the image.
    geometry: strides, dilations, low padding, sizes of the result; groups.
  """
  told, outputs = one.attributes, len(w)
  *places, groups = geometry
  zero, together = told['x_zero_point'] + SIGN, groups == 1 and geometry[3] == 1
  alone = groups > 1 and groups == outputs == shape[2]
  if alone and w[0].size > 256:
    raise Unknown(f'a window of {w[0].size} entries')
  constants = maker.graph.constants
  bias = constants[one.inputs[3]].astype(np.int64) if len(one.inputs) > 3 else np.zeros(1, np.int64)
  moved = bias - zero * w.reshape(outputs, -1).astype(np.int64).sum(1)  # of the bytes, whose zero is not 0
  factor = np.broadcast_to(multiplier(told['x_scale'], constants[one.inputs[2]], told.get('y_scale')), (outputs,))
  whole = moved.astype(np.uint64).astype(np.uint32).view(np.int32)  # sums wrap around alike
  if alone:
    at, full = maker.put(integers.packed_alone(w)), [integers.in_blocks(part) for part in (whole, factor)]
  else:
    each = outputs // groups
    at, full = maker.put(integers.packed(w, groups, together)), []
    for part in (whole, factor):
      full.append(np.zeros((groups, integers.rounded(each)), part.dtype))
      full[-1][:, :each] = part.reshape(-1, each)
  table = maker.put(*full)
  is_float = 'y_scale' not in told
  zero_y, low, high = (0, 0, 0) if is_float else _grid(told)
  numbers = [*shape, *w.shape[1:3], *places, outputs, groups, zero, at, table, zero_y, is_float, low, high]
  x, y = maker.buffer(one.inputs[0]), maker.buffer(one.outputs[0])
  maker.step('alone' if alone else 'conv', x, y, numbers)


def _dense(maker: Maker, one: Operation) -> None:
  w = _known(maker, one, 1)
  rows = maker.count(one.inputs[0]) // max(len(w), 1)
  weight = w.T.reshape(w.shape[1], 1, 1, len(w))
  _contraction(maker, one, weight, (1, rows, len(w)), (1, 1, 1, 1, 0, 0, 1, rows, 1))


def _known(maker: Maker, one: Operation, index: int) -> np.ndarray:
  constants = maker.graph.constants
  if any(name not in constants for name in one.inputs[1:]) or one.inputs[0] in constants:
    raise Unknown('weights that are computed')
  return np.broadcast_to(constants[one.inputs[index]], maker.value(one.inputs[index]).shape)


def _space(maker: Maker, name: str) -> tuple[int, int, int]:
  """Height, width and channels of an image; one over a single axis is one row."""
  shape = maker.opened(name).shape
  if shape[0] != Batch() or len(shape) not in (3, 4):
    raise Unknown(f'{name} is no image, {maker.value(name)}')
  *space, channels = (int(size) for size in shape[1:] if isinstance(size, int))
  return (1, space[0], channels) if len(space) == 1 else (space[0], space[1], channels)


def _both(values: Sequence[int], alone: int) -> tuple[int, int]:
  return (alone, values[0]) if len(values) == 1 else (values[0], values[1])


def _conv(maker: Maker, one: Operation) -> None:
  told, w = one.attributes, _known(maker, one, 1)
  image, result = _space(maker, one.inputs[0]), _space(maker, one.outputs[0])
  low = [ends[0] for ends in told['padding']]
  if any(step != 1 for step in told['input_dilation']) or min(low) < 0 or min(ends[1] for ends in told['padding']) < 0:
    raise Unknown('an image that is spread or cut')
  w = w.reshape(len(w), *_both(w.shape[1:-1], 1), w.shape[-1])
  steps = (*_both(told['strides'], 1), *_both(told['dilation'], 1), *_both(low, 0))
  if any(ends >= size * step for ends, size, step in zip(steps[4:], w.shape[1:3], steps[2:4], strict=True)):
    raise Unknown('a border wider than the window')
  _contraction(maker, one, np.ascontiguousarray(w), image, (*steps, *result[:2], told['groups']))


def _pool(maker: Maker, one: Operation) -> None:
  told = one.attributes
  if maker.value(one.inputs[0]).dtype != np.int8:
    raise Unknown('floats')
  image, result = _space(maker, one.inputs[0]), _space(maker, one.outputs[0])
  low = [ends[0] for ends in told['padding']]
  window, steps, low = _both(told['window'], 1), _both(told['strides'], 1), _both(low, 0)
  if min(low) < 0 or any(ends >= size for ends, size in zip(low, window, strict=True)):
    raise Unknown('a border wider than the window')
  numbers = [*image, *window, *steps, 1, 1, *low, *result[:2], image[2], 1]
  maker.step('pool', maker.buffer(one.inputs[0]), maker.buffer(one.outputs[0]), numbers)


def _add(maker: Maker, one: Operation) -> None:
  told = one.attributes
  if len({maker.value(name).shape for name in (*one.inputs, *one.outputs)}) != 1:
    raise Unknown('operands of two shapes')
  a, b, factor = add_factors(told['a_scale'], told['b_scale'], told['y_scale'])
  zeros = told['a_zero_point'] + SIGN, told['b_zero_point'] + SIGN
  numbers = [maker.count(one.outputs[0]), *zeros, a, b, integers.bits(factor), *_grid(told)]
  first, second = map(maker.buffer, one.inputs)
  maker.step('add', first, maker.buffer(one.outputs[0]), numbers, second)


def _mean(maker: Maker, one: Operation) -> None:
  told = one.attributes
  outer, count, inner = _around(maker, one)
  is_float = 'y_scale' not in told
  factor = multiplier(told['x_scale'], 1.0 / count, told.get('y_scale'))
  grid = (0, 0, 0) if is_float else _grid(told)
  numbers = [outer, count, inner, told['x_zero_point'] + SIGN, integers.bits(factor), *grid, is_float]
  maker.step('mean', maker.buffer(one.inputs[0]), maker.buffer(one.outputs[0]), numbers)


def _around(maker: Maker, one: Operation) -> tuple[int, int, int]:
  """Entries before, along and after the axes of a sum, which have to lie together."""
  told, value = one.attributes, maker.opened(one.inputs[0])
  shape = of_example(value.shape)
  lead = len(shape) - len(value.shape)  # -1, or 0 where the batch holds several
  axes = sorted(axis + lead for axis in told['axes'])
  if not axes or min(told['axes']) < 1 or axes != [*range(axes[0], axes[-1] + 1)]:
    raise Unknown('a sum over axes that lie apart, or over examples')
  first, last = axes[0], axes[-1] + 1
  return math.prod(shape[:first]), math.prod(shape[first:last]), math.prod(shape[last:])


def _requantize(maker: Maker, one: Operation) -> None:
  told = one.attributes
  zero, low, high = _grid(told)
  steps = (np.arange(256) - SIGN - told['x_zero_point']).astype(np.float32)
  moved = np.clip(np.rint(steps * multiplier(told['x_scale'], 1.0, told['y_scale'])), low, high) + zero
  maker.table(maker.buffer(one.inputs[0]), maker.buffer(one.outputs[0]), maker.count(one.outputs[0]), moved)


def _table(maker: Maker, one: Operation) -> None:
  stored = _known(maker, one, 1).astype(np.int16) + SIGN
  maker.table(maker.buffer(one.inputs[0]), maker.buffer(one.outputs[0]), maker.count(one.outputs[0]), stored)


def _clip(maker: Maker, one: Operation) -> None:
  told = one.attributes
  if maker.value(one.inputs[0]).dtype != np.int8:
    raise Unknown('floats')
  moved = np.clip(np.arange(256) - SIGN, told['low'], told['high']).astype(np.int8).astype(np.int16) + SIGN
  maker.table(maker.buffer(one.inputs[0]), maker.buffer(one.outputs[0]), maker.count(one.outputs[0]), moved)


# --- what moves bytes only ----------------------------------------------------------------------------------------


def _same(maker: Maker, one: Operation) -> None:
  """Another shape of the same bytes."""
  if maker.count(one.inputs[0]) != maker.count(one.outputs[0]):
    raise Unknown('an axis that is repeated')
  maker.numbers[one.outputs[0]] = maker.buffer(one.inputs[0])


def _moved(
  maker: Maker, x: int, y: int, sizes: Sequence[int], of_x: Sequence[int], of_y: Sequence[int], starts: Sequence[int],
  size: int,
) -> None:  # fmt: skip
  """A copy along some axes, of which those that lie in one another are one."""
  axes: list[tuple[int, int, int]] = []
  for length, a, b in zip(sizes, of_x, of_y, strict=True):
    if length == 1:
      continue
    if axes and axes[-1][1] == a * length and axes[-1][2] == b * length:
      axes[-1] = (axes[-1][0] * length, a, b)
    else:
      axes.append((length, a, b))
  if len(axes) > 5 or min([*of_x, *of_y, *starts], default=0) < 0:
    raise Unknown('a copy over too many axes')
  axes = [(1, 0, 0)] * (5 - len(axes)) + axes
  columns = list(zip(*axes, strict=True))
  maker.step('copy', x, y, [*columns[0], *columns[1], *columns[2], *starts, size])


def _strides(shape: Sequence[int]) -> list[int]:
  return [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]


def _rows(maker: Maker, name: str) -> tuple[int, ...]:
  """The axes of one example, for operations that name axes: the batch is one axis, of single examples."""
  shape = maker.opened(name).shape
  if shape[0] != Batch():
    raise Unknown('a batch that holds more than examples')
  return tuple(int(size) for size in shape[1:] if isinstance(size, int))


def _transpose(maker: Maker, one: Operation) -> None:
  order = one.attributes['permutation']
  before, after = _rows(maker, one.inputs[0]), _rows(maker, one.outputs[0])
  if order[0] != 0:
    raise Unknown('the batch is moved')
  strides = _strides(before)
  turned = [strides[axis - 1] for axis in order[1:]]
  x, y = maker.buffer(one.inputs[0]), maker.buffer(one.outputs[0])
  _moved(maker, x, y, after, turned, _strides(after), (0, 0), maker.value(one.inputs[0]).dtype.itemsize)


def _slice(maker: Maker, one: Operation) -> None:
  told, before, after = one.attributes, _rows(maker, one.inputs[0]), _rows(maker, one.outputs[0])
  starts, steps = told['start_indices'], told.get('strides') or (1,) * (len(before) + 1)
  if starts[0] != 0 or steps[0] != 1:
    raise Unknown('examples are left out')
  strides = _strides(before)
  first = sum(start * stride for start, stride in zip(starts[1:], strides, strict=True))
  apart = [step * stride for step, stride in zip(steps[1:], strides, strict=True)]
  x, y = maker.buffer(one.inputs[0]), maker.buffer(one.outputs[0])
  _moved(maker, x, y, after, apart, _strides(after), (first, 0), maker.value(one.inputs[0]).dtype.itemsize)


def _pad(maker: Maker, one: Operation) -> None:
  before, after = _rows(maker, one.inputs[0]), _rows(maker, one.outputs[0])
  config, value = one.attributes['padding_config'], maker.graph.constants.get(one.inputs[1])
  size = maker.value(one.inputs[0]).dtype.itemsize
  if value is None or value.size != 1 or (size > 1 and value.tobytes() != bytes(4)):
    raise Unknown('a border of floats other than 0')
  if any(config[0]) or min(min(low, high) for low, high, _ in config) < 0:
    raise Unknown('a border that cuts')
  strides = _strides(after)
  first = sum(low * stride for (low, _, _), stride in zip(config[1:], strides, strict=True))
  apart = [(inside + 1) * stride for (_, _, inside), stride in zip(config[1:], strides, strict=True)]
  x, y = maker.buffer(one.inputs[0]), maker.buffer(one.outputs[0])
  byte = int(value.reshape(())) + SIGN if size == 1 else 0
  maker.step('fill', y, y, [math.prod(after) * size, byte])
  _moved(maker, x, y, before, _strides(before), apart, (0, first), size)


def _concatenate(maker: Maker, one: Operation) -> None:
  axis, after = one.attributes['dimension'], _rows(maker, one.outputs[0])
  if axis == 0:
    raise Unknown('batches one after the other')
  strides, first = _strides(after), 0
  for name in one.inputs:
    before = _rows(maker, name)
    size = maker.value(name).dtype.itemsize
    _moved(maker, maker.buffer(name), maker.buffer(one.outputs[0]), before, _strides(before), strides, (0, first), size)
    first += before[axis - 1] * strides[axis - 1]


# --- floats -------------------------------------------------------------------------------------------------------


def _reduce(maker: Maker, one: Operation) -> None:
  outer, count, inner = _around(maker, one)
  kind = ('reduce_max', 'reduce_sum', 'mean').index(one.kind)
  if maker.value(one.inputs[0]).dtype != np.float32:
    raise Unknown('integers')
  maker.step('reduce', maker.buffer(one.inputs[0]), maker.buffer(one.outputs[0]), [outer, count, inner, kind])


def _product(maker: Maker, one: Operation) -> None:
  """A product of two values, each example with its own."""
  told = one.attributes
  (sum_a, sum_b), (batch_a, batch_b) = told['dimension_numbers']
  shapes = [_rows(maker, name) for name in one.inputs]
  free = [
    [axis for axis in range(1, len(shape) + 1) if axis not in (*summed, *batch)]
    for shape, summed, batch in zip(shapes, (sum_a, sum_b), (batch_a, batch_b), strict=True)
  ]
  if (batch_a[:1], batch_b[:1]) != ((0,), (0,)) or len(sum_a) != 1 or len(batch_a) > 2 or max(map(len, free)) > 1:
    raise Unknown('a product over several axes')
  operands, sizes = [], []
  for shape, summed, batch, alone, which in zip(shapes, (sum_a, sum_b), (batch_a, batch_b), free, 'ab', strict=True):
    strides = [0, *_strides(shape)]
    axes = (batch[1] if len(batch) > 1 else 0, alone[0] if alone else 0, summed[0])
    sizes.append([1 if not axis else shape[axis - 1] for axis in axes])
    bytes_ = one.kind == 'quantized_dot'
    zero = told[f'{which}_zero_point'] + SIGN if bytes_ else 0
    operands += [*(strides[axis] for axis in axes), bytes_, zero]
  (batches, places, length), (_, others, _) = sizes
  how = [0, 0, 0, 0, 1]
  if one.kind == 'quantized_dot':
    if length * 255 * 255 > 1 << 24:
      raise Unknown('a sum that float32 does not hold exactly')
    is_float = 'y_scale' not in told
    factor = multiplier(told['a_scale'], told['b_scale'], told.get('y_scale'))
    how = [integers.bits(factor), *((0, 0, 0) if is_float else _grid(told)), is_float]
  x, y = map(maker.buffer, one.inputs)
  maker.step('product', x, maker.buffer(one.outputs[0]), [batches, places, others, length, *operands, *how], y)


RULES: dict[str, Callable[[Maker, Operation], None]] = {
  'requantize': _requantize,
  'quantized_dense': _dense,
  'quantized_conv': _conv,
  'quantized_add': _add,
  'quantized_mean': _mean,
  'max_pool': _pool,
  'table': _table,
  'clip': _clip,
  'reshape': _same,
  'squeeze': _same,
  'broadcast_in_dim': _same,
  'transpose': _transpose,
  'slice': _slice,
  'pad': _pad,
  'reduce_max': _reduce,
  'reduce_sum': _reduce,
  'mean': _reduce,
  'dot_general': _product,
  'quantized_dot': _product,
  'concatenate': _concatenate,
}
