"""From values on grids to operations of integers: what stands between 'dequantize' and 'quantize' is put into one."""

from __future__ import annotations

import functools
import hashlib
import math
from typing import Any

import numpy as np

from jaxlite.deployment.integers import rules as integer_rules
from jaxlite.deployment.integers.grids import Grid, grid_in
from jaxlite.deployment.integers.points import MOVES
from jaxlite.deployment.integers.turning import turned
from jaxlite.deployment.operations import Graph, Operation, Value, pruned, reference
from jaxlite.deployment.operations.rewriting import Editor, edited

_INT8, _FLOAT = np.dtype(np.int8), np.dtype(np.float32)
_MOST = 2**31 - 1  # of a sum
_FINE = 24  # bits of a bias that stands alone
_WRITES = Grid._fields  # in integer_rules y_*, low and high


def fused(graph: Graph) -> Graph:
  """Returns the list in the operations of `rules`.

  Args:
    graph: with 'quantize', 'dequantize' and the forms of `points`.

  Raises:
    ValueError: a scale or bias that is not finite, a sum that int32 may not hold.
  """
  graph = _settled(graph, _once, _earlier, _later)
  graph = pruned(edited(graph, _fuse))
  graph = pruned(edited(graph, _floats))
  return _shared(_settled(turned(_settled(graph, _once, _earlier, _later)), _once))


def _settled(graph: Graph, *rules: Any) -> Graph:
  """Applies rules until none changes anything."""
  while True:
    before = graph.operations
    for rule in rules:
      state: dict[Any, str] = {}
      graph = pruned(edited(graph, functools.partial(rule, state=state)))
    if [(one.kind, one.inputs, one.outputs) for one in graph.operations] == [
      (one.kind, one.inputs, one.outputs) for one in before
    ]:
      return graph


def _once(editor: Editor, one: Operation, state: dict[Any, str]) -> str | None:
  """What is the same is computed once: one quantized value for all that read it."""
  if one.kind not in ('quantize', 'dequantize', 'requantize', *MOVES) or len(one.outputs) != 1:
    return None
  key = (one.kind, one.inputs, tuple(sorted(one.attributes.items())))
  if key in state:
    return state[key]
  state[key] = one.outputs[0]
  return None


# --- quantized as early as possible, floats again as late as possible -------------------------------------------------


def _earlier(editor: Editor, one: Operation, state: Any) -> str | None:
  """A value is quantized before it is moved, pooled or clipped: that is exact, as rounding changes no order."""
  if one.kind != 'quantize':
    return None
  (x,), output, grid = one.inputs, one.outputs[0], grid_in(one.attributes)
  shape = editor.values[output].shape
  if x in editor.constants:
    stored = integer_rules.quantize(editor.constants[x], **grid.told)
    return editor.constant(x, stored, editor.values[x].shape)
  maker = editor.made.get(x)
  if maker is None:
    return None
  if maker.kind == 'dequantize':
    return _regridded(editor, maker, output, grid)
  if editor.uses.get(x, 0) != 1:
    return None
  if maker.kind in ('relu', 'clip'):
    bounds = (0.0, math.inf) if maker.kind == 'relu' else (maker.attributes['low'], maker.attributes['high'])
    return editor.add('quantize', maker.inputs, output, shape, **grid.within(*bounds).told)
  if maker.kind not in (*MOVES, 'pad', 'concatenate', 'take') or editor.values[x].dtype != _FLOAT:
    return None
  if maker.kind == 'take':
    stored = integer_rules.quantize(editor.constants[maker.inputs[0]], **grid.told)
    operands = [editor.constant(maker.inputs[0], stored, editor.values[maker.inputs[0]].shape), maker.inputs[1]]
  else:
    operands = [_stored(editor, name, grid) for name in maker.inputs]
  editor.values[output] = Value(shape, _INT8)
  return editor.put(Operation(maker.kind, tuple(operands), (output,), maker.attributes))


def _stored(editor: Editor, name: str, grid: Grid) -> str:
  q = editor.fresh(f'{name}_q')
  editor.values[q] = Value(editor.values[name].shape, _INT8)
  return editor.add('quantize', [name], q, editor.values[name].shape, **grid.told)


def _regridded(editor: Editor, maker: Operation, output: str, grid: Grid) -> str:
  """A quantized value on another grid, or with other bounds."""
  q, scale, zero = maker.inputs[0], maker.attributes['scale'], maker.attributes['zero_point']
  if (grid.scale, grid.zero_point) == (scale, zero):
    low, high = _span(editor, q)
    if grid.low <= low and high <= grid.high:
      return q
  shape = editor.values[q].shape
  return editor.add('requantize', [q], output, shape, x_scale=scale, x_zero_point=zero, **_writes(grid))


def _writes(grid: Grid) -> dict[str, Any]:
  return {'y_scale': grid.scale, 'y_zero_point': grid.zero_point, 'low': grid.low, 'high': grid.high}


def _span(editor: Editor, q: str) -> tuple[int, int]:
  """Between what a quantized value lies."""
  if q in editor.constants:
    array = editor.constants[q]
    return (int(array.min()), int(array.max())) if array.size else (0, 0)
  maker = editor.made.get(q)
  if maker is not None and 'low' in maker.attributes:
    return maker.attributes['low'], maker.attributes['high']
  if maker is not None and maker.kind in MOVES:
    return _span(editor, maker.inputs[0])
  if maker is not None and maker.kind in ('concatenate', 'pad'):
    ends = [_span(editor, name) for name in maker.inputs]
    return min(low for low, _ in ends), max(high for _, high in ends)
  if maker is not None and maker.kind == 'take':
    return _span(editor, maker.inputs[0])
  return -128, 127


def _later(editor: Editor, one: Operation, state: Any) -> str | None:
  """What only moves values moves them as int8."""
  if one.kind not in (*MOVES, 'pad', 'concatenate') or editor.values[one.outputs[0]].dtype != _FLOAT:
    return None
  first = editor.made.get(one.inputs[0])
  if first is None or first.kind != 'dequantize' or len(first.inputs) != 1:
    return None
  told = first.attributes
  operands = []
  for name in one.inputs:
    maker = editor.made.get(name)
    if maker is not None and maker.kind == 'dequantize' and maker.attributes == told and len(maker.inputs) == 1:
      operands.append(maker.inputs[0])
    elif name in editor.constants and (stored := _on_grid(editor.constants[name], told)) is not None:
      operands.append(editor.constant(name, stored, editor.values[name].shape))
    else:
      return None
  output = one.outputs[0]
  q, shape = editor.fresh(f'{output}_q'), editor.values[output].shape
  editor.values[q] = Value(shape, _INT8)
  editor.put(Operation(one.kind, tuple(operands), (q,), one.attributes))
  return editor.add('dequantize', [q], output, shape, **told)


def _on_grid(array: np.ndarray, told: Any) -> np.ndarray | None:
  """Constants as a grid stores them, where it holds them exactly."""
  stored = integer_rules.quantize(array, **Grid(told['scale'], told['zero_point'], -128, 127).told)
  return stored if np.array_equal(integer_rules.dequantize(stored, **told), array) else None


# --- one operation of integers ----------------------------------------------------------------------------------------


def _fuse(editor: Editor, one: Operation) -> str | None:
  if one.kind != 'quantize':
    return None
  (x,), output = one.inputs, one.outputs[0]
  maker = editor.made.get(x)
  if maker is None or editor.uses.get(x, 0) != 1:
    return None
  new = _integer(editor, maker, grid_in(one.attributes))
  if new is None:
    return None
  kind, inputs, told = new
  editor.drop(maker)
  return editor.put(Operation(kind, inputs, (output,), told))


def _floats(editor: Editor, one: Operation) -> str | None:
  """What is left over: sums of integers that are read as floats, and integers that multiply floats."""
  if one.kind not in ('scaled_dense', 'scaled_conv', 'scaled_dot', 'mean'):
    return None
  output, shape = one.outputs[0], editor.values[one.outputs[0]].shape
  new = _integer(editor, one, None)
  if new is not None:
    kind, inputs, told = new
    return editor.put(Operation(kind, inputs, (output,), told))
  if one.kind == 'mean':
    return None
  if one.kind == 'scaled_dot':
    x, y = one.inputs
    inner = editor.fresh(output)
    numbers, factor = one.attributes['dimension_numbers'], one.attributes['factor']
    editor.values[inner] = editor.values[output]
    editor.put(Operation('dot_general', (x, y), (inner,), {'dimension_numbers': numbers}))
    by = editor.constant(f'{output}_c', np.full((1,) * len(shape), factor, np.float32), shape)
    return editor.add('mul', [inner, by], output, shape)
  x, w, scale_name, bias_name = one.inputs
  name = _layer(w)
  scale, bias = editor.constants[scale_name], editor.constants[bias_name]
  _finite(name, scale, bias)
  plain, axis = one.kind.removeprefix('scaled_'), 1 if one.kind == 'scaled_dense' else 0
  scales = editor.constant(f'{name}/scale', scale.astype(np.float32))
  value = editor.values[w]
  real = editor.fresh(f'{name}_r')
  editor.values[real] = value._replace(dtype=_FLOAT)
  editor.put(Operation('dequantize', (w, scales), (real,), {'axis': axis}))
  biases = [editor.constant(f'{name}/bias', bias.astype(np.float32))] if bias.any() else []
  return editor.put(Operation(plain, (x, real, *biases), (output,), one.attributes))


def _read(editor: Editor, name: str) -> tuple[str, float, int] | None:
  """A value that was quantized: its int8, scale and zero point."""
  maker = editor.made.get(name)
  if maker is None or maker.kind != 'dequantize' or len(maker.inputs) != 1:
    return None
  return maker.inputs[0], maker.attributes['scale'], maker.attributes['zero_point']


def _reach(editor: Editor, q: str, zero: int) -> int:
  low, high = _span(editor, q)
  return max(abs(low - zero), abs(high - zero))


def _integer(editor: Editor, one: Operation, grid: Grid | None) -> tuple[str, tuple[str, ...], dict[str, Any]] | None:
  """An operation between values on grids as one of integers; None where it is none."""
  if one.kind not in ('scaled_dense', 'scaled_conv', 'scaled_dot', 'mean', 'add') or (one.kind == 'add' and not grid):
    return None
  found = [_read(editor, name) for name in one.inputs[: 1 if one.kind in ('scaled_dense', 'scaled_conv') else 2]]
  if any(each is None for each in found):
    return None
  reads = [each for each in found if each is not None]
  written = _writes(grid) if grid else {}
  q, scale, zero = reads[0]
  if one.kind in ('scaled_dense', 'scaled_conv'):
    names = _whole_layer(editor, one, scale, _reach(editor, q, zero), grid)
    told = {**one.attributes, 'x_scale': scale, 'x_zero_point': zero, **written}
    return one.kind.replace('scaled', 'quantized'), (q, *names), told
  if one.kind == 'mean':
    axes = one.attributes['axes']
    count = math.prod(int(editor.values[q].shape[axis]) for axis in axes)  # type: ignore[arg-type]
    if count * _reach(editor, q, zero) > _MOST:
      raise ValueError(f'a sum is to stay below 2^31; a mean of {count} values in int8 may not: {one.outputs[0]}')
    return 'quantized_mean', (q,), {'axes': axes, 'x_scale': scale, 'x_zero_point': zero, **written}
  other, other_scale, other_zero = reads[1]
  pair = {'a_scale': scale, 'a_zero_point': zero, 'b_scale': other_scale, 'b_zero_point': other_zero}
  if one.kind == 'add':
    assert grid is not None
    most = max(scale, other_scale)
    if 255 * most * 2.0**-integer_rules.ADD_BITS > grid.scale / 16 or editor.values[q] != editor.values[other]:
      return None  # so coarse against its result that the common grid would show
    return 'quantized_add', (q, other), {**pair, **written}
  numbers, factor = one.attributes['dimension_numbers'], one.attributes['factor']
  (summed, _), _ = numbers
  length = math.prod(int(editor.values[q].shape[axis]) for axis in summed)  # type: ignore[arg-type]
  if length * _reach(editor, q, zero) * _reach(editor, other, other_zero) > _MOST:
    raise ValueError(f'a sum is to stay below 2^31; a product over {length} values in int8 may not: {one.outputs[0]}')
  if abs(factor - 1) > 1e-6:  # it takes the number that follows with it; what is left of one is rounding
    pair['a_scale'] = float(np.float32(scale * factor))
  return 'quantized_dot', (q, other), {'dimension_numbers': numbers, **pair, **written}


def _layer(name: str) -> str:
  return name.rstrip('_')


def _finite(name: str, scale: np.ndarray, bias: np.ndarray) -> None:
  if not (np.isfinite(scale).all() and np.isfinite(bias).all()) or np.abs(scale).max(initial=0) > 3e38:
    raise ValueError(
      f'integers have finite scales and biases; those after the contraction with {name}, its batch norm among them, '
      'are not: the network has diverged'
    )


def _whole_layer(editor: Editor, one: Operation, x_scale: float, reach: int, grid: Grid | None) -> tuple[str, ...]:
  """Weights, their scales and the bias of a contraction whose input is int8."""
  _, w, scale_name, bias_name = one.inputs
  name = _layer(w)
  weight, scale, bias = editor.constants[w], editor.constants[scale_name], editor.constants[bias_name]
  _finite(name, scale, bias)
  last = one.kind == 'scaled_dense'
  rows = weight.reshape(len(weight), -1).T if not last else weight  # [K, O]
  finer = _finer(rows, scale, bias, x_scale, grid)
  whole, scales, biases = integers_of(rows.astype(np.int64) * finer, scale / finer, bias, x_scale)
  scales = _nearest(scales, np.abs(scale / finer), x_scale, grid)
  total = reach * np.abs(whole).sum(0) + np.abs(biases)
  if (total > _MOST).any():
    raise ValueError(
      f'a sum is to stay below 2^31; that of {name} may reach {total.max():.3g}: fewer bits, or a shorter sum'
    )
  with np.errstate(all='ignore'):
    factors = integer_rules.multiplier(x_scale, scales, grid.scale if grid else None)
  if not np.isfinite(factors).all():
    raise ValueError(f'what a sum is multiplied by is to be finite; after {name} it is not: its output has no range')
  stored = (whole if last else whole.T).astype(np.int8).reshape(weight.shape)
  names = [w if np.array_equal(stored, weight) else editor.constant(name, stored)]
  names.append(editor.constant(f'{name}/scale', scales))
  if biases.any():
    names.append(editor.constant(f'{name}/bias', biases.astype(np.int32)))
  return tuple(names)


def _finer(rows: np.ndarray, scale: np.ndarray, bias: np.ndarray, x_scale: float, grid: Grid | None) -> int:
  """What weights of few bits are multiplied by, and their scales divided: the grid of their sums, which is the bias's,
  is so coarse that rounding the bias to it would show in the result. The product is the same."""
  if not bias.any():
    return 1
  spare = 127 // max(1, int(np.abs(rows.astype(np.int64)).max(initial=1)))
  most = 2 ** (spare.bit_length() - 1)
  kept = np.abs(scale) > 2.0**-100
  for power in (2**index for index in range(most.bit_length())):  # biases that are whole already, as `every` has them
    steps = bias[kept] / (np.abs(scale[kept]) * x_scale / power)
    if kept.any() and (np.abs(steps - np.rint(steps)) < 1e-3).all() and np.abs(steps).max() < 2**22:
      return power
  if grid is None:
    return min(most, 16)
  steps = np.abs(scale).max(initial=0) * x_scale / grid.scale  # of the result, in one of the sum
  fine = 2.0**-6 * min(1, (grid.high - grid.low) / 255)  # a step more or less weighs as much as a grid has few of them
  return next((2**power for power in range(7) if 2**power >= most or steps <= 2**power * fine), 1)


def _nearest(scales: np.ndarray, exact: np.ndarray, x_scale: float, grid: Grid | None) -> np.ndarray:
  """Scales of which what a sum is multiplied by is nearest to what it is to be: of one rounded to float32 it may be
  the number beside that."""
  y_scale = grid.scale if grid else None
  with np.errstate(all='ignore'):
    wanted = integer_rules.multiplier(x_scale, exact, y_scale)
    best = scales
    for other in (np.nextafter(scales, np.float32(0)), np.nextafter(scales, np.float32(np.inf))):
      off = integer_rules.multiplier(x_scale, best, y_scale) != wanted
      near = np.abs(exact / scales - 1) < 1e-6
      best = np.where(off & near & (integer_rules.multiplier(x_scale, other, y_scale) == wanted), other, best)
  return best


def integers_of(
  rows: np.ndarray, scale: np.ndarray, bias: np.ndarray, x_scale: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns whole weights, their scales and the bias on the grid of the sum, for each output.

  A negative factor turns its integers' signs. Where the grid of the sum cannot hold the bias (a factor of 0, a channel
  of zeros, or one that is so small that its bias leaves nothing of it), it gets one that can, and the weights are
  rounded to that.

  Args:
    rows: int64[K, O].
    scale: float64[O], of the weights, of either sign.
    bias: float64[O].
    x_scale: of the input.

  >>> w, s, b = integers_of(np.array([[3, 5]]), np.array([-0.5, 0.0]), np.array([1.0, 0.75]), 0.5)
  >>> w.tolist(), float(s[0]), b.tolist()[0], float(s[1] * b[1] * 0.5)
  ([[-3, 0]], 0.5, 4.0, 0.75)
  """
  size = np.abs(scale)
  rows = np.where(scale < 0, -rows, rows)
  kept = (rows != 0).any(0) & (size * x_scale > 2.0**-120) & (size > 2.0**-120)
  with np.errstate(all='ignore'):
    kept &= np.abs(bias) <= 2.0**30 * size * x_scale
  alone = np.maximum(np.abs(bias) / x_scale * 2.0**-_FINE, 2.0**-100)
  alone = np.where(bias == 0, 1.0, alone)
  with np.errstate(all='ignore'):
    rows = np.where(kept, rows, np.clip(np.rint(rows * size / alone), -127, 127)).astype(np.int64)
  scales = np.where(kept, size, alone).astype(np.float32)
  biases = np.rint(bias / (np.float64(x_scale) * scales.astype(np.float64)))
  return rows, scales, biases


# --- constants --------------------------------------------------------------------------------------------------------


def _shared(graph: Graph) -> Graph:
  """One name for equal constants."""
  first: dict[Any, str] = {}
  same: dict[str, str] = {}
  for name, array in graph.constants.items():
    key = (graph.values[name], array.dtype.str, array.shape, hashlib.sha256(array.tobytes()).digest())
    same[name] = first.setdefault(key, name)
  operations = tuple(
    one._replace(inputs=tuple(same.get(name, name) for name in one.inputs)) for one in graph.operations
  )
  for one in operations:
    if one.kind not in reference.RULES:
      raise AssertionError(f'{one} is not an operation of this list')
  return pruned(graph._replace(operations=operations))
