"""A list of operations as a JAX function of floats in which every grid is marked: what a converter puts together again.

An int8 value is the float that it stands for, and passes a mark of its grid: a call by a name that holds a number,
which becomes a quantization and its reverse in the program's text. No operation but those of floats is left.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxlite.deployment.litert import windows
from jaxlite.deployment.litert.grids import Grid, grids, separate
from jaxlite.deployment.operations import Batch, Graph, Operation, readers, sized
from jaxlite.deployment.running import program, program_rules

_MARK = 'jaxlite_grid_'
_LOW, _HIGH = -128, 127
_SPREADING = frozenset(  # operands reach each other's size by themselves, there too
  {'add', 'sub', 'mul', 'div', 'max', 'min', 'pow', 'rem', 'eq', 'ne', 'lt', 'le', 'gt', 'ge', 'and', 'or', 'xor'}
  | {'select_n', 'quantized_add'}
)
_CARRIED = frozenset(  # through what the converter carries a grid back
  {'select_n', 'max', 'min', 'relu', 'clip', 'clamp', 'concatenate', 'pad', 'slice', 'reshape', 'squeeze', 'transpose'}
  | {'broadcast_in_dim', 'rev', 'gather', 'max_pool', 'reduce_window_max', 'reduce_max', 'reduce_min'}
)
_FLOAT = np.dtype(np.float32)
_CALL = re.compile(
  rf'(?P<out>%\S+) = stablehlo\.custom_call @{_MARK}(?P<index>\d+)\((?P<x>%[^)\s]+)\).*: '
  r'\((?P<type>tensor<(?P<shape>[\dx]*?)x?f32>)\) -> .*'
)


def stablehlo(graph: Graph, batch: int) -> str:
  """Returns a graph at one batch size as StableHLO in which each int8 value is quantized and dequantized.

  Args:
    graph: of floats or of integers.
    batch: the batch size.

  Raises:
    ValueError: an operation that has no form in JAX, or grids that contradict each other.
  """
  graph, types = separate(graph), list[str]()
  shapes = [
    jax.ShapeDtypeStruct(sized(graph.values[name].shape, batch), graph.values[name].dtype) for name in graph.inputs
  ]
  traced = jax.jit(_marked(graph, batch, types)).trace(*shapes)
  text = traced.lower(lowering_platforms=('cpu',)).as_text()

  def written(found: re.Match[str]) -> str:
    out, x, real, shape = found['out'], found['x'], found['type'], found['shape']
    kind = f'tensor<{shape}{"x" if shape else ""}{types[int(found["index"])]}>'
    held = f'%held_{out[1:]}'
    return (
      f'{held} = stablehlo.uniform_quantize {x} : ({real}) -> {kind}\n'
      f'    {out} = stablehlo.uniform_dequantize {held} : ({kind}) -> {real}'
    )

  text = _CALL.sub(written, text)
  if _MARK in text:
    raise AssertionError('a mark in the text of a program has another form than this jaxlite knows')
  return text


def _marked(graph: Graph, batch: int, types: list[str]) -> Callable[..., tuple[jax.Array, ...]]:
  on = grids(graph)
  values = {name: value._replace(dtype=_FLOAT) if name in on else value for name, value in graph.values.items()}
  constants = {name: integers_of(on[name], array) if name in on else array for name, array in graph.constants.items()}
  real = graph._replace(values=values, constants=constants)

  def mark(x: Any, kind: str) -> jax.Array:
    types.append(kind)
    return jax.ffi.ffi_call(f'{_MARK}{len(types) - 1}', jax.ShapeDtypeStruct(x.shape, _FLOAT))(x)

  def run(*inputs: Any) -> tuple[jax.Array, ...]:
    held: dict[str, Any] = dict(zip(graph.inputs, inputs, strict=True))
    reader = _Reader(real, held, batch, mark)

    def spread(names: Sequence[str]) -> None:
      for name in names:
        if name in graph.constants and name not in held and Batch() in graph.values[name].shape:
          rows = _rows(real, name, inputs[0], batch)
          kind = _kind(on[name]) if name in on else ''
          held[name] = mark(rows, kind) if kind else rows

    for one in graph.operations:
      (output,) = one.outputs[:1]
      if one.kind not in _SPREADING:
        spread(one.inputs)
      if one.kind in _RULES:
        held[output] = _RULES[one.kind](reader, one)
      else:
        held.update(program.computed(real, one, held, batch))
      if output in on:
        held[output] = _on_grid(held[output], on[output], one, mark)
    spread(graph.outputs)
    return tuple(held[name] if name in held else jnp.asarray(_whole(real, name, batch)) for name in graph.outputs)

  return run


def integers_of(grid: Grid, array: np.ndarray) -> np.ndarray:
  """The floats that stored integers stand for.

  >>> integers_of(Grid(0.5, 2), np.array([2, 4], np.int8)).tolist()
  [0.0, 1.0]
  """
  return (array.astype(np.float32) - np.float32(grid.zero_point)) * np.float32(grid.scale)


def _rows(graph: Graph, name: str, first: Any, batch: int) -> Any:
  """A constant for each example, as a sum with nothing of each: LiteRT cannot spread one over an open batch."""
  shape, array = graph.values[name].shape, jnp.asarray(graph.constants[name])
  grows = [isinstance(size, Batch) for size in shape]
  if sum(grows) != 1 or Batch() not in shape or not first.size:
    return jnp.broadcast_to(array, sized(shape, batch))
  some = first[(slice(None), *[slice(0, 1)] * (first.ndim - 1))].reshape([batch if each else 1 for each in grows])
  never = some.astype(jnp.float32) > np.float32(np.inf)  # whatever it is, and no compiler knows that
  rows = array ^ never if array.dtype == bool else array + never.astype(array.dtype)
  return jnp.broadcast_to(rows, sized(shape, batch))


def _whole(graph: Graph, name: str, batch: int) -> np.ndarray:
  return np.broadcast_to(graph.constants[name], sized(graph.values[name].shape, batch))


def _on_grid(x: Any, grid: Grid, one: Operation, mark: Callable[[Any, str], jax.Array]) -> jax.Array:
  """A float onto its grid: a ReLU before it, other cuts behind it, so that a layer and its grid stay together."""
  low, high = one.attributes.get('low', _LOW), one.attributes.get('high', _HIGH)
  if low == grid.zero_point and low > _LOW:
    x, low = jnp.maximum(x, np.float32(0)), _LOW
  kind = _kind(grid)
  x = mark(x, kind)
  if (low, high) != (_LOW, _HIGH):
    edges = integers_of(grid, np.array([low, high], np.int8))
    x = mark(jnp.minimum(jnp.maximum(x, edges[0]), edges[1]), kind)
  return x


def _kind(grid: Grid) -> str:
  return f'!quant.uniform<i8:f32, {_told(grid.scale)}:{grid.zero_point}>'


def _told(scale: Any) -> str:
  return f'{float(np.float32(scale)):.17e}'  # MLIR reads no number without a point


class _Reader:
  """What the rules read: values, constants, and marks."""

  def __init__(self, graph: Graph, held: Mapping[str, Any], batch: int, mark: Callable[[Any, str], jax.Array]) -> None:
    self.graph, self.held, self.batch, self.mark = graph, held, batch, mark
    self.made = {name: one for one in graph.operations for name in one.outputs}
    self.uses = readers(graph.operations, graph.outputs)

  def value(self, name: str) -> Any:
    return self.held[name] if name in self.held else jnp.asarray(_whole(self.graph, name, self.batch))

  def known(self, name: str) -> np.ndarray:
    if name not in self.graph.constants:
      raise ValueError(f'LiteRT is written of layers with known weights; {name} is computed')
    return _whole(self.graph, name, 1)

  def weight(self, q: np.ndarray, scales: np.ndarray, axis: int) -> jax.Array:
    """Stored int8 with a scale for each entry of an axis, marked."""
    wide = scales.astype(np.float32).reshape([-1 if index == axis else 1 for index in range(q.ndim)])
    reach = '<-127:127>' if q.min(initial=0) > _LOW else ''
    numbers = ','.join(_told(scale) for scale in scales)
    return self.mark(jnp.asarray(q.astype(np.float32) * wide), f'!quant.uniform<i8{reach}:f32:{axis}, {{{numbers}}}>')

  def bias(self, one: Operation) -> np.ndarray | None:
    """A bias as the floats that its integers stand for, on the grid of the sum."""
    if len(one.inputs) < 4:
      return None
    step = np.float64(one.attributes['x_scale']) * self.known(one.inputs[2]).astype(np.float64)
    return (self.known(one.inputs[3]) * step).astype(np.float32)


def _dense(r: _Reader, one: Operation) -> jax.Array:
  x, w, scales, *_ = one.inputs
  out = jnp.matmul(r.value(x), r.weight(r.known(w), r.known(scales), 1), precision=lax.Precision.HIGHEST)
  bias = r.bias(one)
  return out if bias is None else out + bias


def _conv(r: _Reader, one: Operation) -> jax.Array:
  x, w, scales, *_ = one.inputs
  told, kernel = one.attributes, np.moveaxis(r.known(w), 0, -1)  # [space..., C / groups, O]
  last = kernel.ndim - 1
  channels_last = (0, last, *range(1, last))
  out = lax.conv_general_dilated(
    windows.spread(r.value(x), told['input_dilation']),
    r.weight(kernel, r.known(scales), last),
    told['strides'],
    told['padding'],
    rhs_dilation=told['dilation'],
    dimension_numbers=lax.ConvDimensionNumbers(channels_last, (last, last - 1, *range(last - 1)), channels_last),
    feature_group_count=told['groups'],
    precision=lax.Precision.HIGHEST,
  )
  bias = r.bias(one)
  return out if bias is None else out + bias


def _float_conv(r: _Reader, one: Operation) -> jax.Array:
  told = {**one.attributes, 'input_dilation': (1,) * len(one.attributes['input_dilation'])}
  x, *known = map(r.value, one.inputs)
  return program_rules.RULES['conv'](windows.spread(x, one.attributes['input_dilation']), *known, **told)


def _dot(r: _Reader, one: Operation) -> jax.Array:
  a, b = (r.value(name) for name in one.inputs)
  return lax.dot_general(a, b, one.attributes['dimension_numbers'], precision=lax.Precision.HIGHEST)


def _quantize(r: _Reader, one: Operation) -> jax.Array:
  """A float on its way to a grid.

  The converter carries a grid back through what only chooses or moves values, to all that reads these: in
  where(x > 0, x, a * x) it would cut x to the grid of the result before it is multiplied. So it is stopped where others
  read what is chosen from.
  """
  (name,), names = one.inputs, list(one.inputs)
  x = r.value(name)
  while names:
    maker = r.made.get(names.pop())
    if maker is None or maker.kind not in _CARRIED:
      continue
    back = [each for each in maker.inputs if each not in r.graph.constants and r.graph.values[each].dtype == _FLOAT]
    if any(r.uses[each] > 1 for each in back):
      return lax.optimization_barrier(x)
    names += back
  return x


def _requantize(r: _Reader, one: Operation) -> jax.Array:
  return _plus_nothing(r, r.value(one.inputs[0]), one.attributes['x_scale'])


def _plus_nothing(r: _Reader, x: jax.Array, scale: float) -> jax.Array:
  """A value as its sum with a stored zero, which goes to another grid by itself.

  Two grids in a row the converter makes one, which rounds once where the rule rounds twice, or gives to a pool or a
  move that can have only one. It knows no zero in what is only stored as zero.
  """
  return x + r.mark(jnp.full((1,) * x.ndim, np.float32(0.25 * scale)), _kind(Grid(scale, 0)))


def _add(r: _Reader, one: Operation) -> jax.Array:
  a, b = one.inputs
  for name, other, letter in ((b, a, 'a'), (a, b, 'b')):
    array = r.graph.constants.get(name)
    if array is not None and not array.any() and other in r.held:  # a bias that was never trained
      return _plus_nothing(r, r.value(other), one.attributes[f'{letter}_scale'])
  return r.value(a) + r.value(b)


def _dequantize(r: _Reader, one: Operation) -> jax.Array:
  if len(one.inputs) == 1:
    return r.value(one.inputs[0])
  q, scales = (r.known(name) for name in one.inputs)
  return r.weight(q, scales, one.attributes.get('axis', 0))


def _converted(r: _Reader, one: Operation) -> jax.Array:
  """A cast, which LiteRT leaves open for what a whole number does not hold: the nearest that it does, a NaN 0."""
  x, dtype = r.value(one.inputs[0]), np.dtype(one.attributes['new_dtype'])
  if x.dtype != _FLOAT or dtype.kind not in 'iu':
    return x.astype(dtype)
  info, most = np.iinfo(dtype), np.float32(np.iinfo(dtype).max)
  most = np.nextafter(most, np.float32(0)) if float(most) > info.max else most
  x = jnp.where(x == x, x, np.float32(0))
  whole = jnp.minimum(jnp.maximum(x, np.float32(info.min)), most).astype(dtype)
  return whole if float(most) == info.max else jnp.where(x > most, dtype.type(info.max), whole)


_SMALL = 0.02  # up to which five terms of a series say all that float32 holds


def _log1p(r: _Reader, one: Operation) -> jax.Array:
  """log(1 + x), of a small x by its series: 1 + x loses it, and LiteRT's logarithm is not exact beside 1."""
  x = r.value(one.inputs[0])
  series = x * (1 - x * (1 / 2 - x * (1 / 3 - x * (1 / 4 - x * (1 / 5)))))
  return jnp.where(jnp.abs(x) < _SMALL, series, jnp.log(x + 1))


def _expm1(r: _Reader, one: Operation) -> jax.Array:
  """exp(x) - 1, likewise."""
  x = r.value(one.inputs[0])
  series = x * (1 + x * (1 / 2 + x * (1 / 6 + x * (1 / 24 + x * (1 / 120)))))
  return jnp.where(jnp.abs(x) < _SMALL, series, jnp.exp(x) - 1)


def _divided(r: _Reader, one: Operation) -> jax.Array:
  """Quotient or rest; of int32 by 0 and -1 what JAX gives, where LiteRT ends. It selects among no arrays of an open
  batch, so that what holds is multiplied by 1. Its rest has the divisor's sign."""
  x, y = jnp.broadcast_arrays(*map(r.value, one.inputs))
  if one.kind == 'rem' and jnp.issubdtype(x.dtype, jnp.floating):
    return jnp.sign(x) * lax.rem(jnp.abs(x), jnp.abs(y))
  known = r.graph.constants.get(one.inputs[1])
  if x.dtype != jnp.int32 or (known is not None and not np.isin(known, (0, -1)).any()):
    whole = lax.div(x, y)
    return whole if one.kind == 'div' else x - whole * y
  none, minus = (y == 0).astype(x.dtype), (y == -1).astype(x.dtype)
  kept = 1 - none - minus
  safe = y * kept + none + minus
  whole = lax.div(x, safe)
  return whole * kept - none - x * minus if one.kind == 'div' else (x - whole * safe) * kept + x * none


def _compared(r: _Reader, one: Operation) -> jax.Array:
  """Bytes compare as int32: LiteRT has few comparisons of them, and ends its process at that of unsigned ones."""
  operands = [r.value(name) for name in one.inputs]
  if operands[0].dtype.kind in 'iu' and operands[0].dtype.itemsize < 4:
    operands = [each.astype(jnp.int32) for each in operands]
  return _COMPARE[one.kind](*operands)


def _gathered(r: _Reader, one: Operation) -> jax.Array:
  """Places beyond an axis are its nearest, where the list says so; LiteRT ends at them."""
  x, places = map(r.value, one.inputs)
  told = {**one.attributes, 'slice_sizes': sized(one.attributes['slice_sizes'], r.batch)}
  if told['mode'] != 'fill_or_drop':
    start = told['dimension_numbers'][2]
    most = np.array([x.shape[axis] - told['slice_sizes'][axis] for axis in start], places.dtype)
    places = jnp.clip(places, 0, most)
  return program_rules.RULES['gather'](x, places, **told)


def _cbrt(r: _Reader, one: Operation) -> jax.Array:
  """By the size, of which LiteRT takes a power: of what is negative it has none."""
  x = r.value(one.inputs[0])
  return jnp.sign(x) * jnp.cbrt(jnp.abs(x))


def _product(r: _Reader, one: Operation) -> jax.Array:
  """Over several axes in one order for both, which the converter mixes up otherwise."""
  x, y = map(r.value, one.inputs)
  (first, second), (batch_x, batch_y) = one.attributes['dimension_numbers']
  pairs = sorted(zip(first, second, strict=True))
  inner = [axis for _, axis in pairs]
  if len(pairs) > 1:
    free = [axis for axis in range(y.ndim) if axis not in (*inner, *batch_y)]
    y = y.transpose(*batch_y, *inner, *free)
    batch_y, inner = range(len(batch_y)), range(len(batch_y), len(batch_y) + len(inner))
  numbers = ((tuple(axis for axis, _ in pairs), tuple(inner)), (tuple(batch_x), tuple(batch_y)))
  return lax.dot_general(x, y, numbers, precision=lax.Precision.HIGHEST)


_COMPARE: dict[str, Callable[[Any, Any], Any]] = {
  **{'eq': jnp.equal, 'ne': jnp.not_equal, 'lt': jnp.less, 'le': jnp.less_equal, 'gt': jnp.greater},
  'ge': jnp.greater_equal,
}
_RULES: dict[str, Callable[[_Reader, Operation], jax.Array]] = {
  'convert_element_type': _converted,
  'conv': _float_conv,
  'log1p': _log1p,
  'cbrt': _cbrt,
  'gather': _gathered,
  **dict.fromkeys(_COMPARE, _compared),
  'expm1': _expm1,
  'div': _divided,
  'rem': _divided,
  'dot_general': _product,
  'reduce_window_sum': lambda r, one: windows.sum_pool(r.value(one.inputs[0]), **one.attributes),
  'max_pool': lambda r, one: windows.max_pool(r.value(one.inputs[0]), **one.attributes),
  'quantize': _quantize,
  'requantize': _requantize,
  'dequantize': _dequantize,
  'quantized_dense': _dense,
  'quantized_conv': _conv,
  'quantized_dot': _dot,
  'quantized_add': _add,
  'quantized_mean': lambda r, one: jnp.mean(r.value(one.inputs[0]), axis=tuple(one.attributes['axes'])),
}
