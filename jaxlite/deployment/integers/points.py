"""A list with the points of fake quantization, brought to one form: values on a grid, contractions of whole numbers.

What a point is made of (`clip(rint(x / scale))`, read by a contraction of whole numbers that is scaled afterwards)
becomes 'quantize' and 'dequantize', between which anything may stand, and

  scaled_dense [x, w int8 [K, N], scale float64[N], bias float64[N]]: x @ (w * scale) + bias
  scaled_conv  [x, w int8 [O, space..., C / groups], scale float64[O], bias float64[O]], and the geometry of 'conv'
  scaled_dot   [x, y]: dimension_numbers, factor: their product times a number

which never leave this room: `fusing` makes operations of integers of them. The scale after a contraction, batch norm
and bias go into scale and bias here, before any of them could be multiplied into the whole numbers.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping

import numpy as np

from jaxlite.deployment.integers import whole_sums
from jaxlite.deployment.integers.grids import Grid, grid_of
from jaxlite.deployment.operations import Batch, Graph, Operation, Shape, Value, pruned
from jaxlite.deployment.operations.edges import to_even
from jaxlite.deployment.operations.rewriting import Editor, edited

# What moves values and computes none: of int8 as of floats.
POOLS = ('max_pool', 'reduce_window_max')  # the largest of several, which rounding leaves the largest
MOVES = ('reshape', 'transpose', 'slice', 'squeeze', 'rev', 'broadcast_in_dim', *POOLS)


def pointed(graph: Graph) -> Graph:
  """Returns a list of `patterns.contracted` with its points and whole numbers in the forms above."""
  read: dict[str, list[float]] = {}  # by what else the program multiplies a value: its scale may be among it
  for one in graph.operations:
    if one.kind == 'mul':
      for name, other in zip(one.inputs, reversed(one.inputs), strict=True):
        known = graph.constants.get(other)
        if known is not None and known.size == 1 and known.dtype.kind != 'c':
          read.setdefault(name, []).append(float(known.reshape(())))
  steps: dict[str, tuple[str, Grid]] = {}  # values that count steps: what they stand for, and on which grid
  sums = whole_sums.Sums({}, {}, {}, {}, {})
  return absorbed(pruned(edited(graph, functools.partial(_point, steps=steps, read=read, sums=sums))))


def absorbed(graph: Graph) -> Graph:
  """Returns the list with what follows a contraction of whole numbers, for each output, in its scale and bias."""
  while True:
    now = pruned(edited(graph, _absorbed))
    if len(now.operations) == len(graph.operations):
      return now
    graph = now


def whole_numbers(array: np.ndarray) -> np.ndarray | None:
  """Returns an array as int8 where it holds whole numbers of at most 7 bits and a sign.

  >>> whole_numbers(np.array([1.0, -127.0])), whole_numbers(np.array([0.5])), whole_numbers(np.array([200.0]))
  (array([   1, -127], dtype=int8), None, None)
  """
  if not np.issubdtype(array.dtype, np.floating) and array.dtype.name != 'bfloat16':
    return None
  wide = array.astype(np.float32)
  if not (np.abs(wide) <= 127).all() or (wide != np.rint(wide)).any():
    return None
  return wide.astype(np.int8)


# --- points and contractions ----------------------------------------------------------------------------------------


def _point(
  editor: Editor,
  one: Operation,
  steps: dict[str, tuple[str, Grid]],
  read: Mapping[str, list[float]],
  sums: whole_sums.Sums,
) -> str | None:
  output = one.outputs[0]
  told = whole_sums.told(editor, one, sums, steps)
  if told is not None:
    return told
  if one.kind in ('clamp', 'clip', 'min', 'max'):
    found = _rounded(editor, one, read.get(output, []), sums)
    if found is not None:
      x, grid = found
      shape = editor.values[output].shape
      q, real = editor.fresh(f'{output}_q'), editor.fresh(f'{output}_r')
      editor.values[q], editor.values[real] = Value(shape, np.dtype(np.int8)), Value(shape, np.dtype(np.float32))
      editor.add('quantize', [x], q, shape, **grid.told)
      editor.add('dequantize', [q], real, shape, scale=grid.scale, zero_point=grid.zero_point)
      steps[output] = (real, grid)
    return None
  if one.inputs and one.inputs[0] in steps and (one.kind in MOVES or _pads(editor, one)):
    real, grid = steps[one.inputs[0]]
    moved = editor.fresh(f'{output}_r')
    editor.values[moved] = editor.values[output]
    steps[output] = (editor.put(Operation(one.kind, (real, *one.inputs[1:]), (moved,), one.attributes)), grid)
  elif one.kind == 'mul':
    for name, other in zip(one.inputs, reversed(one.inputs), strict=True):
      if name in steps and editor.number(other) == steps[name][1].scale:
        return steps[name][0]
  elif one.kind in ('dense', 'conv'):
    return _contraction(editor, one, steps)
  elif one.kind == 'dot_general':
    return _product(editor, one, steps)
  return None


def _rounded(editor: Editor, one: Operation, scales: list[float], sums: whole_sums.Sums) -> tuple[str, Grid] | None:
  """What is rounded and clipped here, and to which grid."""
  bounds: list[float | None]
  if one.kind == 'clamp':
    x, bounds = one.inputs[1], [editor.number(one.inputs[0]), editor.number(one.inputs[2])]
  elif one.kind == 'clip':
    x, bounds = one.inputs[0], [one.attributes['low'], one.attributes['high']]
  else:
    x, outer = _bounded(editor, one)
    inner = editor.made.get(x)
    if inner is None or inner.kind != {'min': 'max', 'max': 'min'}[one.kind]:
      return None
    x, other = _bounded(editor, inner)
    bounds = [outer, other] if one.kind == 'max' else [other, outer]
  turned = editor.made.get(x)
  narrow: list[float | None] = [-math.inf, math.inf]
  if turned is not None and turned.kind == 'clamp':  # a bound of its own, as of a ReLU, within the grid
    narrow = [editor.number(turned.inputs[0]), editor.number(turned.inputs[2])]
    x = turned.inputs[1]
    turned = editor.made.get(x)
  if turned is None or turned.kind != 'round' or not to_even(turned.attributes['rounding_method']):
    return None
  if None in (*bounds, *narrow) or editor.values[x].dtype != np.float32:
    return None
  source, inverse = turned.inputs[0], 1.0  # a step of 1 is multiplied by nothing
  scaled = editor.made.get(source)
  if scaled is not None and scaled.kind == 'mul':
    whole = whole_sums.rounded(editor, scaled, bounds[0], bounds[1], scales, sums)  # type: ignore[arg-type]
    if whole is not None:
      return whole[0], _within(whole[1], *narrow)  # type: ignore[arg-type]
    for name, other in zip(scaled.inputs, reversed(scaled.inputs), strict=True):
      by = editor.number(other)
      if by is not None and editor.values[name].shape == editor.values[x].shape:
        source, inverse = name, by
        break
  # Two scales may have one inverse: where the value stands on a grid already, it is that one's.
  maker = editor.made.get(source)
  while maker is not None and maker.kind in (*MOVES, 'max', 'min', 'relu', 'clip', 'concatenate'):
    maker = editor.made.get(next(name for name in maker.inputs if name not in editor.constants))
  before = [maker.attributes['scale']] if maker is not None and 'scale' in maker.attributes else []
  grid = grid_of(inverse, bounds[0], bounds[1], [*before, *scales])  # type: ignore[arg-type]
  return None if grid is None else (source, _within(grid, *narrow))  # type: ignore[arg-type]


def _within(grid: Grid, low: float, high: float) -> Grid:
  """A grid with bounds, in steps from zero."""
  return grid._replace(low=int(max(grid.low, low + grid.zero_point)), high=int(min(grid.high, high + grid.zero_point)))


def _bounded(editor: Editor, one: Operation) -> tuple[str, float | None]:
  for name, other in zip(one.inputs, reversed(one.inputs), strict=True):
    if editor.number(other) is not None:
      return name, editor.number(other)
  return '', None


def _pads(editor: Editor, one: Operation) -> bool:
  return one.kind == 'pad' and editor.number(one.inputs[1]) == 0


def _contraction(editor: Editor, one: Operation, steps: Mapping[str, tuple[str, Grid]]) -> str | None:
  x, w, *biases = one.inputs
  if np.issubdtype(editor.values[x].dtype, np.integer):
    raise ValueError(
      f'quantized takes the list of a network that fakes its integers; {one.outputs[0]} = {one.kind} multiplies stored '
      'ones: lower the network with real=False'
    )
  whole = whole_numbers(np.broadcast_to(editor.constants[w], editor.values[w].shape))
  if whole is None or editor.values[one.outputs[0]].dtype != np.float32:
    return None
  real, scale = x, 1.0
  if x in steps:
    real, scale = steps[x][0], 1 / steps[x][1].scale
  width = whole.shape[1 if one.kind == 'dense' else 0]
  names = [editor.constant(w, whole), editor.constant(f'{w}/scale', np.full(width, scale, np.float64))]
  bias = editor.constants[biases[0]].astype(np.float64) if biases else np.zeros(width)
  names.append(editor.constant(f'{w}/bias', np.broadcast_to(bias, width)))
  output = one.outputs[0]
  return editor.add(f'scaled_{one.kind}', [real, *names], output, editor.values[output].shape, **one.attributes)


def _product(editor: Editor, one: Operation, steps: Mapping[str, tuple[str, Grid]]) -> str | None:
  """Of two values on grids, or of one and a constant of whole numbers."""
  factor, reals = 1.0, []
  if not any(name in steps for name in one.inputs) or editor.values[one.outputs[0]].dtype != np.float32:
    return None
  for name in one.inputs:
    if name in steps:
      real, grid = steps[name]
      factor /= grid.scale
    else:
      whole = whole_numbers(editor.constants[name]) if name in editor.constants else None
      if whole is None:
        return None
      value = editor.values[name]
      stored = editor.constant(name, whole, value.shape)
      real = editor.fresh(f'{name}_r')
      editor.values[real] = value._replace(dtype=np.dtype(np.float32))
      editor.add('dequantize', [stored], real, value.shape, scale=1.0, zero_point=0)
    reals.append(real)
  output = one.outputs[0]
  numbers = one.attributes['dimension_numbers']
  shape = editor.values[output].shape
  return editor.add('scaled_dot', reals, output, shape, dimension_numbers=numbers, factor=factor)


# --- scales, batch norms and biases -----------------------------------------------------------------------------------


def _absorbed(editor: Editor, one: Operation) -> str | None:
  """A number for each output, multiplied, divided by, added or subtracted after a contraction: its scale and bias."""
  if one.kind == 'neg':
    return _into(editor, one, one.inputs[0], np.full((), -1.0), 'mul')
  if one.kind not in ('add', 'sub', 'mul', 'div'):
    return None
  known = [name in editor.constants for name in one.inputs]
  if known[0] == known[1] or (one.kind == 'div' and known[0]):
    return None
  number, x = one.inputs[known.index(True)], one.inputs[known.index(False)]
  if editor.constants[number].dtype.kind == 'c':
    return None
  array = editor.constants[number].astype(np.float64)
  if one.kind == 'sub' and known[0]:
    return _into(editor, one, x, array, 'from')
  return _into(editor, one, x, -array if one.kind == 'sub' else array, 'add' if one.kind == 'sub' else one.kind)


def _into(editor: Editor, one: Operation, x: str, array: np.ndarray, how: str) -> str | None:
  if editor.values[x] != editor.values[one.outputs[0]] or editor.values[x].dtype != np.float32:
    return None
  name, each = x, array
  while True:
    maker = editor.made.get(name)
    if maker is None or editor.uses.get(name, 0) != 1:
      return None
    if maker.kind in ('scaled_dense', 'scaled_conv', 'scaled_dot'):
      break
    if maker.kind not in ('reshape', 'transpose', 'max_pool', 'slice'):
      return None
    if maker.kind == 'max_pool' and (how == 'from' or (how != 'add' and not (each > 0).all())):
      return None  # only what keeps the order may stand in front of it
    before = _in_front(each, maker, editor.values[maker.inputs[0]].shape, editor.values[name].shape)
    if before is None:
      return None
    name, each = maker.inputs[0], before
  index = editor.operations.index(maker)
  if maker.kind == 'scaled_dot':
    if each.size != 1 or how not in ('mul', 'div') or not 0 < float(each.reshape(())) < math.inf:
      return None
    by = float(each.reshape(()))
    factor = maker.attributes['factor'] * (by if how == 'mul' else 1 / by)
    new = maker._replace(attributes={**maker.attributes, 'factor': factor})
  else:
    _, w, scale_name, bias_name = maker.inputs
    scale, bias = editor.constants[scale_name], editor.constants[bias_name]
    vector = _each_output(each, len(scale))
    if vector is None:
      return None
    with np.errstate(all='ignore'):  # what is not finite is refused where integers are made of it
      if how == 'mul':
        scale, bias = scale * vector, bias * vector
      elif how == 'div':
        scale, bias = scale / vector, bias / vector
      elif how == 'from':
        scale, bias = -scale, vector - bias
      else:
        bias = bias + vector
    names = (editor.constant(f'{w}/scale', scale), editor.constant(f'{w}/bias', bias))
    new = maker._replace(inputs=(*maker.inputs[:2], *names))
  editor.operations[index] = new
  editor.made[name] = new
  editor.uses[x] = editor.uses.get(one.outputs[0], 0)  # who reads the result of `one` reads x from here on
  return x


def _each_output(array: np.ndarray, width: int) -> np.ndarray | None:
  """One number for each output, where nothing varies along another axis."""
  if array.size == 1:
    return np.full(width, array.reshape(()))
  if array.shape[-1] == width:
    rows = array.reshape(-1, width)
    return rows[0].copy() if len(rows) == 1 or (rows == rows[0]).all() else None
  return None


def _in_front(array: np.ndarray, move: Operation, before: Shape, after: Shape) -> np.ndarray | None:
  """Constants that broadcast against the result of a move, as they broadcast against its operand; None where not."""
  if array.size == 1:
    return array
  array = array.reshape((1,) * (len(after) - array.ndim) + array.shape)
  if move.kind == 'transpose':
    return array.transpose(np.argsort(move.attributes['permutation']))
  if array.size == array.shape[-1] and before[-1] == after[-1]:
    return array.reshape((1,) * (len(before) - 1) + (-1,))
  if move.kind in ('max_pool', 'slice'):
    return None
  heads = before[0] == after[0] == Batch() and array.shape[0] == 1
  if heads and not any(isinstance(size, Batch) for size in (*before[1:], *after[1:])):
    whole = np.broadcast_to(array, (1, *(int(size) for size in after[1:])))  # type: ignore[arg-type]
    return whole.reshape(1, *(int(size) for size in before[1:]))  # type: ignore[arg-type]
  split = len(before) - 1  # [..., K] cut into [..., H, D]
  tail = after[split:]
  same = before[:split] == after[:split] and not any(isinstance(size, Batch) for size in tail)
  if same and all(size == 1 for size in array.shape[:split]):
    whole = np.broadcast_to(array[(0,) * split], [int(size) for size in tail])  # type: ignore[arg-type]
    return whole.reshape((1,) * split + (-1,))
  return None


def floating(graph: Graph) -> Graph:
  """Returns the list with the forms of this file as operations of floats, for what looks at its values."""

  def rule(editor: Editor, one: Operation) -> str | None:
    output, shape = one.outputs[0], editor.values[one.outputs[0]].shape
    if one.kind == 'scaled_dot':
      inner = editor.fresh(output)
      editor.values[inner] = editor.values[output]
      editor.put(
        Operation('dot_general', one.inputs, (inner,), {'dimension_numbers': one.attributes['dimension_numbers']})
      )
      factor = editor.constant(f'{output}_c', np.full((1,) * len(shape), one.attributes['factor'], np.float32), shape)
      return editor.add('mul', [inner, factor], output, shape)
    if one.kind not in ('scaled_dense', 'scaled_conv'):
      return None
    x, *names = one.inputs
    w, scale, bias = (editor.constants[name] for name in names)
    wide = w * (scale if one.kind == 'scaled_dense' else scale.reshape((-1,) + (1,) * (w.ndim - 1)))
    weight = editor.constant(names[0], wide.astype(np.float32))
    biases = editor.constant(names[2], bias.astype(np.float32))
    kind = one.kind.removeprefix('scaled_')
    return editor.put(Operation(kind, (x, weight, biases), one.outputs, one.attributes))

  return pruned(edited(graph, rule))
