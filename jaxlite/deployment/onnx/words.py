"""What each operation of a list is in ONNX's words."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxlite.deployment.onnx import contractions, edges, quantized
from jaxlite.deployment.onnx import gelu as onnx_gelu
from jaxlite.deployment.onnx import norms as onnx_norms
from jaxlite.deployment.onnx.writer import Writer, channels_first
from jaxlite.deployment.operations import Batch, Operation, sized

_EVERYTHING = np.iinfo(np.int64).max  # a limit that no axis reaches

_SIMPLE = {
  **{'add': 'Add', 'sub': 'Sub', 'mul': 'Mul', 'max': 'Max', 'min': 'Min', 'pow': 'Pow', 'eq': 'Equal'},
  **{
    'lt': 'Less',
    'le': 'LessOrEqual',
    'gt': 'Greater',
    'ge': 'GreaterOrEqual',
    'and': 'And',
    'or': 'Or',
    'xor': 'Xor',
  },
  **{'neg': 'Neg', 'abs': 'Abs', 'sign': 'Sign', 'exp': 'Exp', 'log': 'Log', 'sqrt': 'Sqrt', 'tanh': 'Tanh'},
  **{'logistic': 'Sigmoid', 'erf': 'Erf', 'floor': 'Floor', 'ceil': 'Ceil', 'sin': 'Sin', 'cos': 'Cos', 'tan': 'Tan'},
  **{'asin': 'Asin', 'acos': 'Acos', 'atan': 'Atan', 'sinh': 'Sinh', 'cosh': 'Cosh', 'not': 'Not', 'relu': 'Relu'},
}
_REDUCE = {'reduce_sum': 'ReduceSum', 'reduce_max': 'ReduceMax', 'reduce_min': 'ReduceMin', 'reduce_prod': 'ReduceProd'}


def write(w: Writer, one: Operation) -> None:
  """Writes one operation.

  Args:
    w: the graph so far; it holds the operands.
    one: of `patterns.recognized`.

  Raises:
    ValueError: ONNX has no word for it.
  """
  if one.kind in _SIMPLE or one.kind in _ENTRIES:
    return _entries(w, one)
  rule = _RULES.get(one.kind)
  if rule is None:
    raise ValueError(f'ONNX is written of operations that it has a word for; {one.kind} ({one.outputs[0]}) has none')
  return rule(w, one)


def _entries(w: Writer, one: Operation) -> None:
  """Entry by entry: computed in the order in which the operands are there."""
  (output,), rank = one.outputs, len(w.shape(one.outputs[0]))
  live = [name for name in one.inputs if name not in w.graph.constants]
  orders = [next(iter(w.forms[name])) for name in live if len(w.shape(name)) == rank]
  order = orders[0] if orders and len(orders) == len(live) and len({*orders}) == 1 else ()
  operands = [w.get(name, order) for name in one.inputs]
  if one.kind in _SIMPLE:
    result = w.node(_SIMPLE[one.kind], operands)
  else:
    result = _ENTRIES[one.kind](w, one, operands)
  if not w.reaches(one):
    result = w.node('Expand', [result, w.sizes([w.shape(output)[axis] for axis in order or range(rank)])])
  w.put(output, result, order)


# --- entry by entry ---------------------------------------------------------------------------------------------------


def _rounded(w: Writer, one: Operation, operands: list[str]) -> str:
  if '1' not in str(one.attributes['rounding_method']) and 'EVEN' not in str(one.attributes['rounding_method']):
    raise ValueError(f'ONNX rounds halves to even; {one.outputs[0]} rounds them away from zero')
  return w.node('Round', operands)


def _power(w: Writer, one: Operation, operands: list[str]) -> str:
  return w.node('Pow', [operands[0], w.number(one.attributes['y'], one.inputs[0])])


def _chosen(w: Writer, one: Operation, operands: list[str]) -> str:
  which, *cases = operands
  if len(cases) != 2 or w.graph.values[one.inputs[0]].dtype != np.bool_:
    raise ValueError(f'ONNX chooses between two; {one.outputs[0]} chooses among {len(cases)}')
  if w.graph.values[one.outputs[0]].dtype == np.bool_:  # ONNX Runtime chooses among numbers
    yes, no = w.node('And', [which, cases[1]]), w.node('And', [w.node('Not', [which]), cases[0]])
    return w.node('Or', [yes, no])
  return w.node('Where', [which, cases[1], cases[0]])


def _finite(w: Writer, one: Operation, operands: list[str]) -> str:
  return w.node('Not', [w.node('Or', [w.node('IsInf', operands), w.node('IsNaN', operands)])])


_ENTRIES: dict[str, Callable[[Writer, Operation, list[str]], str]] = {
  'ne': lambda w, one, operands: w.node('Not', [w.node('Equal', operands)]),
  'div': edges.divided,
  'rem': edges.rest,
  'square': lambda w, one, operands: w.node('Mul', operands * 2),
  'erfc': lambda w, one, operands: w.node('Sub', [w.number(1.0, one.inputs[0]), w.node('Erf', operands)]),
  'exp2': lambda w, one, operands: w.node('Pow', [w.number(2.0, one.inputs[0]), *operands]),
  'is_finite': _finite,
  'rsqrt': lambda w, one, operands: w.node('Reciprocal', [w.node('Sqrt', operands)]),
  'round': _rounded,
  'integer_pow': _power,
  'log1p': edges.log1p,
  'expm1': edges.expm1,
  'select_n': _chosen,
  'convert_element_type': edges.cast,
  'clamp': lambda w, one, operands: w.node('Min', [w.node('Max', [operands[1], operands[0]]), operands[2]]),
  'clip': lambda w, one, operands: w.node(
    'Clip', [*operands, *(w.number(one.attributes[edge], one.inputs[0]) for edge in ('low', 'high'))]
  ),
}


# --- shapes -----------------------------------------------------------------------------------------------------------


def _reshaped(w: Writer, one: Operation) -> None:
  (output,), (x,) = one.outputs, one.inputs
  shape = w.shape(output)
  growing = [axis for axis, size in enumerate(shape) if isinstance(size, Batch)]
  if len(growing) > 1:
    raise ValueError(f'ONNX keeps one open axis; {output} has {len(growing)}')
  sizes = [-1 if isinstance(size, Batch) else size for size in shape]
  if growing and 0 in sizes:
    return w.put(output, w.node('Reshape', [w.get(x), w.sizes(shape)], allowzero=1))
  w.put(output, w.node('Reshape', [w.get(x), w.ints(*sizes)], allowzero=int(0 in sizes)))


def _broadcast(w: Writer, one: Operation) -> None:
  (output,), (x,) = one.outputs, one.inputs
  shape, at = w.shape(output), one.attributes['broadcast_dimensions']
  sizes = dict(zip(at, w.shape(x), strict=True))
  inner = [sizes.get(axis, 1) for axis in range(len(shape))]
  if any(isinstance(size, Batch) for size in inner):
    inner = [-1 if isinstance(size, Batch) else size for size in inner]
  row = w.node('Reshape', [w.whole(x), w.ints(*inner)])
  w.put(output, w.node('Expand', [row, w.sizes(shape)]))


def _turned(w: Writer, one: Operation) -> None:
  """Nothing but another order of what is there."""
  (output,), (x,), order = one.outputs, one.inputs, one.attributes['permutation']
  have, source = next(iter(w.forms[x].items()))
  have = have or tuple(range(len(order)))
  # Axis i of the result is axis order[i] of x; where that stands in `source` is the same for both.
  w.put(output, source, tuple(order.index(axis) for axis in have))


def _joined(w: Writer, one: Operation) -> None:
  w.put(one.outputs[0], w.node('Concat', list(map(w.whole, one.inputs)), axis=one.attributes['dimension']))


def _sliced(w: Writer, one: Operation) -> None:
  (output,), (x,) = one.outputs, one.inputs
  shape = w.shape(x)
  strides = one.attributes.get('strides') or (1,) * len(shape)
  told = zip(one.attributes['start_indices'], one.attributes['limit_indices'], strides, shape, strict=True)
  cuts = [
    (axis, start, limit, step)
    for axis, (start, limit, step, size) in enumerate(told)
    if (start, limit, step) != (0, size, 1)
  ]
  if any(isinstance(start, Batch) or isinstance(limit, Batch) for _, start, limit, _ in cuts):
    raise ValueError(f'ONNX cuts at fixed places; {output} cuts at one that grows with the batch')
  starts, limits = [start for _, start, _, _ in cuts], [limit for _, _, limit, _ in cuts]
  axes, steps = [axis for axis, *_ in cuts], [step for *_, step in cuts]
  w.put(output, w.node('Slice', [w.get(x), *(w.ints(*each) for each in (starts, limits, axes, steps))]))


def _flipped(w: Writer, one: Operation) -> None:
  (output,), (x,), axes = one.outputs, one.inputs, one.attributes['dimensions']
  each = ([-1] * len(axes), [-_EVERYTHING] * len(axes), list(axes), [-1] * len(axes))
  w.put(output, w.node('Slice', [w.get(x), *(w.ints(*one) for one in each)]))


def _spaced(w: Writer, one: Operation) -> str:
  """What is padded, with what is to stand between its entries: put behind each along an axis of its own."""
  x, value = one.inputs
  shape, source = list(w.shape(x)), w.get(x)
  for axis, (_, _, inside) in enumerate(one.attributes['padding_config']):
    size = shape[axis]
    if not inside:
      continue
    if isinstance(size, Batch):
      raise ValueError(f'ONNX pads along an axis whose size is known; {one.outputs[0]} along that of the examples')
    before = [-1 if isinstance(each, Batch) else each for each in shape]
    rank = len(before) + 1
    wide = [0] * rank + [inside if at == axis + 1 else 0 for at in range(rank)]
    source = w.node('Reshape', [source, w.ints(*before[: axis + 1], 1, *before[axis + 1 :])])
    source = w.node('Pad', [source, w.ints(*wide), w.get(value)])
    shape[axis] = size * (inside + 1)
    source = w.node('Reshape', [source, w.ints(*(-1 if isinstance(each, Batch) else each for each in shape))])
    shape[axis] -= inside
    source = w.node('Slice', [source, w.ints(0), w.ints(int(shape[axis])), w.ints(axis)])
  return source


def _padded(w: Writer, one: Operation) -> None:
  (output,), (_, value), config = one.outputs, one.inputs, one.attributes['padding_config']
  source = _spaced(w, one)
  cuts = [(axis, max(-low, 0), -high if high < 0 else _EVERYTHING) for axis, (low, high, _) in enumerate(config)]
  cuts = [(axis, low, high if high == _EVERYTHING else -high) for axis, low, high in cuts if low or high != _EVERYTHING]
  if cuts:
    axes, lows, highs = zip(*cuts, strict=True)
    source = w.node('Slice', [source, w.ints(*lows), w.ints(*highs), w.ints(*axes)])
  wide = [max(low, 0) for low, _, _ in config] + [max(high, 0) for _, high, _ in config]
  if any(wide):
    source = w.node('Pad', [source, w.ints(*wide), w.get(value)])
  w.put(output, source)


# --- over axes --------------------------------------------------------------------------------------------------------


def _reduced(w: Writer, one: Operation) -> None:
  (output,), (x,), axes = one.outputs, one.inputs, one.attributes['axes']
  rank = len(w.shape(x))
  have, source = next(iter(w.forms[x].items()))
  have = have or tuple(range(rank))
  kind = 'ReduceMean' if one.kind == 'mean' else _REDUCE[one.kind]
  value = w.node(kind, [source, w.ints(*sorted(have.index(axis) for axis in axes))], keepdims=0)
  left = [axis for axis in have if axis not in axes]
  w.put(output, value, tuple(sorted(left).index(axis) for axis in left))


def _truth(w: Writer, one: Operation) -> None:
  """All or any: the least or the largest of 0 and 1."""
  (output,), (x,) = one.outputs, one.inputs
  numbers = w.node('Cast', [w.get(x)], to=w.helper.np_dtype_to_tensor_dtype(np.dtype(np.int32)))
  kind = 'ReduceMin' if one.kind == 'reduce_and' else 'ReduceMax'
  found = w.node(kind, [numbers, w.ints(*one.attributes['axes'])], keepdims=0)
  w.put(output, w.node('Cast', [found], to=w.helper.np_dtype_to_tensor_dtype(np.dtype(np.bool_))))


def _largest(w: Writer, one: Operation) -> None:
  kind = 'ArgMax' if one.kind == 'argmax' else 'ArgMin'
  found = w.node(kind, [w.get(one.inputs[0])], axis=one.attributes['axes'][0], keepdims=0)
  dtype = w.graph.values[one.outputs[0]].dtype
  w.put(one.outputs[0], w.node('Cast', [found], to=w.helper.np_dtype_to_tensor_dtype(dtype)))


def _summed(w: Writer, one: Operation) -> None:
  axis, back = one.attributes['axis'], int(one.attributes.get('reverse', False))
  w.put(one.outputs[0], w.node('CumSum', [w.get(one.inputs[0]), w.array(np.array(axis, np.int64))], reverse=back))


def _softmax(w: Writer, one: Operation) -> None:
  w.put(one.outputs[0], w.node('Softmax', [w.get(one.inputs[0])], axis=one.attributes['axis']))


def _gelu(w: Writer, one: Operation) -> None:
  have, source = next(iter(w.forms[one.inputs[0]].items()))
  w.put(one.outputs[0], w.node('Gelu', [source], approximate=one.attributes['approximate']), have)


def _normed(w: Writer, one: Operation) -> None:
  x, *rows = map(w.get, one.inputs)
  value = w.node('LayerNormalization', [x, *rows], axis=-1, epsilon=one.attributes['epsilon'])
  w.put(one.outputs[0], value)


def _taken(w: Writer, one: Operation) -> None:
  table, ids = one.inputs
  places = w.get(ids)
  if w.graph.values[ids].dtype.name not in ('int32', 'int64'):  # bytes, say
    places = w.node('Cast', [places], to=w.helper.np_dtype_to_tensor_dtype(np.dtype(np.int64)))
  w.put(one.outputs[0], w.node('Gather', [w.whole(table), places], axis=0))


def _gathered(w: Writer, one: Operation) -> None:
  """Known places along one axis, as resizing to the nearest and indexing by a list give."""
  x, ids = one.inputs
  told, shape, known = one.attributes, w.shape(x), w.graph.constants.get(ids)
  offset, collapsed, start, *batched = told['dimension_numbers']
  axis = start[0] if len(start) == 1 else -1
  whole = tuple(1 if at == axis else size for at, size in enumerate(shape)) == tuple(told['slice_sizes'])
  between = {*range(axis, axis + len(w.shape(ids)) - 1)}
  rest = tuple(at for at in range(len(w.shape(one.outputs[0]))) if at not in between)
  if known is None or any(batched) or tuple(collapsed) != (axis,) or not whole or tuple(offset) != rest:
    raise ValueError(f'ONNX gathers by known places along one axis; {one.outputs[0]} is gathered otherwise')
  size = shape[axis]
  places = np.broadcast_to(known, sized(w.shape(ids), 1))[..., 0].astype(np.int64)
  if isinstance(size, Batch):
    raise ValueError(f'ONNX gathers along an axis whose size is known; {one.outputs[0]} along that of the examples')
  if 'clip' in str(told['mode']):
    places = np.clip(places, 0, size - 1)
  if places.size and not 0 <= places.min() <= places.max() < size:
    raise ValueError(f'ONNX gathers what is there; {one.outputs[0]} reads places beyond an axis of {size}')
  order: tuple[int, ...] = ()
  if x in w.forms and places.ndim == 1:  # as it is there
    order = next(iter(w.forms[x]))
  value = w.node('Gather', [w.get(x, order), w.array(places, ids)], axis=order.index(axis) if order else axis)
  w.put(one.outputs[0], value, order)


# --- pools ------------------------------------------------------------------------------------------------------------


def _max_pool(w: Writer, one: Operation) -> None:
  told, rank = one.attributes, len(w.shape(one.inputs[0]))
  lows, highs = zip(*told['padding'], strict=True)
  if any(side >= size for sides in (lows, highs) for side, size in zip(sides, told['window'], strict=True)):
    raise ValueError(f'ONNX pads a pool by less than its window; {one.outputs[0]} by more')
  value = w.node(
    'MaxPool',
    [w.get(one.inputs[0], channels_first(rank))],
    kernel_shape=told['window'],
    strides=told['strides'],
    pads=[*lows, *highs],
  )
  w.put(one.outputs[0], value, channels_first(rank))


def _sum_pool(w: Writer, one: Operation) -> None:
  """A mean over each window, times its size."""
  told, rank = one.attributes, len(w.shape(one.inputs[0]))
  window, strides, padding = told['window_dimensions'], told['window_strides'], told['padding']
  edges = (window[0], window[-1], strides[0], strides[-1], *padding[0], *padding[-1])
  if rank < 3 or edges != (1, 1, 1, 1, 0, 0, 0, 0) or {*told['base_dilation'], *told['window_dilation']} != {1}:
    raise ValueError(f'ONNX pools over space; {one.outputs[0]} sums windows of {window}')
  lows, highs = zip(*padding[1:-1], strict=True)
  value = w.node(
    'AveragePool',
    [w.get(one.inputs[0], channels_first(rank))],
    kernel_shape=window[1:-1],
    strides=strides[1:-1],
    pads=[*lows, *highs],
    count_include_pad=1,
  )
  count = w.number(math.prod(window), one.inputs[0])
  w.put(one.outputs[0], w.node('Mul', [value, count]), channels_first(rank))


_RULES: dict[str, Callable[[Writer, Operation], Any]] = {
  'reshape': _reshaped,
  'squeeze': _reshaped,
  'broadcast_in_dim': _broadcast,
  'transpose': _turned,
  'concatenate': _joined,
  'slice': _sliced,
  'rev': _flipped,
  'pad': _padded,
  **dict.fromkeys((*_REDUCE, 'mean'), _reduced),
  'reduce_and': _truth,
  'reduce_or': _truth,
  'argmax': _largest,
  'argmin': _largest,
  'cumsum': _summed,
  'softmax': _softmax,
  'take': _taken,
  'gather': _gathered,
  onnx_norms.KIND: _normed,
  onnx_gelu.KIND: _gelu,
  **contractions.RULES,
  **quantized.RULES,
  'max_pool': _max_pool,
  'reduce_window_sum': _sum_pool,
}
