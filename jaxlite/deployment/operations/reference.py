"""Running a list of operations in NumPy: what every other runtime is compared with, and the meaning of each operation.

It is written to be read and to be right, not to be fast.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxlite.deployment.integers import rules as integer_rules
from jaxlite.deployment.operations import Batch, Graph, Operation, Value, edges, sized
from jaxlite.deployment.operations.given import check_kind
from jaxlite.graph.error_function import erf_inv

AT_ONCE = 64  # examples: windows of a convolution are written out


def run(graph: Graph, inputs: Mapping[str, Any] | Any, *, keep: bool = False) -> Any:
  """Computes the results of a graph.

  Args:
    graph: of `lowering.lower` or `patterns.recognized`.
    inputs: the array of its one input [B, ...], or arrays by name.
    keep: give every value by name, not only the results.

  Returns:
    The result, a tuple of them where there are several, or a dict by name.

  Raises:
    ValueError: inputs of other names, shapes or kinds than the graph's.

  >>> import numpy as np
  >>> from jaxlite.deployment.operations.lowering import lower
  >>> run(lower(lambda p, x: x @ p + 1, np.eye(2, dtype='float32'), np.ones((1, 2), 'float32')), [[1.0, 2.0]])
  array([[2., 3.]], dtype=float32)
  """
  given = inputs if isinstance(inputs, Mapping) else {graph.inputs[0]: inputs}
  if {*given} != {*graph.inputs}:
    raise ValueError(f'this graph takes the inputs {", ".join(graph.inputs)}; got {", ".join(given)}')
  values: dict[str, np.ndarray] = {}
  for name in graph.inputs:
    values[name] = _input(name, given[name], graph.values[name])
  batch = len(values[graph.inputs[0]])
  if any(len(values[name]) != batch for name in graph.inputs):
    raise ValueError(f'inputs have one batch size; got {[len(values[name]) for name in graph.inputs]}')
  if not batch:  # whatever they compute, nothing comes of it
    values = {name: np.zeros(sized(value.shape, 0), value.dtype) for name, value in graph.values.items()}
  for name, array in graph.constants.items():
    values[name] = np.broadcast_to(array, sized(graph.values[name].shape, batch))
  for one in graph.operations if batch else ():
    values[one.outputs[0]] = computed(graph, one, [values[name] for name in one.inputs], batch)
  if keep:
    return values
  found = tuple(values[name] for name in graph.outputs)
  return found[0] if len(found) == 1 else found


def run_in_parts(graph: Graph, inputs: Mapping[str, Any] | Any, most: int = AT_ONCE) -> Any:
  """Does what `run` does on some examples at a time, so that memory does not grow with how many there are."""
  given = inputs if isinstance(inputs, Mapping) else {graph.inputs[0]: inputs}
  arrays = {name: np.asarray(one) for name, one in given.items()}
  counts = {array.shape[:1] for array in arrays.values()}
  count = max((size for shape in counts for size in shape), default=0)
  if len(counts) != 1 or count <= most:
    return run(graph, arrays)
  parts = []
  for start in range(0, count, most):
    found = run(graph, {name: array[start : start + most] for name, array in arrays.items()})
    parts.append(found if isinstance(found, tuple) else (found,))
  joined = tuple(np.concatenate(each) for each in zip(*parts, strict=True))
  return joined[0] if len(joined) == 1 else joined


def computed(graph: Graph, one: Operation, operands: Sequence[np.ndarray], batch: int) -> np.ndarray:
  """What one operation of a graph makes of its operands."""
  attributes = {name: _at(value, batch) for name, value in one.attributes.items()}
  with np.errstate(all='ignore'):  # infinities and NaNs are values
    return _typed(RULES[one.kind](*operands, **attributes), graph.values[one.outputs[0]], batch, one)


def _input(name: str, given: Any, want: Value) -> np.ndarray:
  check_kind(name, given, want.dtype)
  array = np.asarray(given, want.dtype)
  if array.ndim != len(want.shape) or array.shape[1:] != want.shape[1:]:
    raise ValueError(f'{name} is {want}; got an array of shape {list(array.shape)}')
  return array


def _at(value: Any, batch: int) -> Any:
  if isinstance(value, Batch):
    return batch * value.times
  return tuple(_at(one, batch) for one in value) if isinstance(value, tuple) else value


def _typed(result: Any, want: Value, batch: int, one: Operation) -> np.ndarray:
  array = np.asarray(result).astype(want.dtype, copy=False)
  if array.shape != sized(want.shape, batch):
    array = np.broadcast_to(array, sized(want.shape, batch)) if array.ndim == len(want.shape) else array
  if array.shape != sized(want.shape, batch):
    raise AssertionError(f'{one} gave {array.shape}, not {want}')
  return array


# --- what each operation does -------------------------------------------------------------------------------------


def _each(fn: Callable[..., Any]) -> Callable[..., Any]:
  """An operation entry by entry, whatever its attributes."""
  return lambda *operands, **attributes: fn(*operands)


def _selected(which: np.ndarray, *cases: np.ndarray) -> np.ndarray:
  return np.choose(which.astype(np.int64), np.broadcast_arrays(*cases, which)[:-1])


def _broadcast(x: np.ndarray, *, shape: Sequence[int], broadcast_dimensions: Sequence[int]) -> np.ndarray:
  sizes = dict(zip(broadcast_dimensions, x.shape, strict=True))
  return np.broadcast_to(x.reshape([sizes.get(axis, 1) for axis in range(len(shape))]), shape)


def _sliced(
  x: np.ndarray, *, start_indices: Sequence[int], limit_indices: Sequence[int], strides: Sequence[int] | None = None
) -> np.ndarray:
  return x[tuple(map(slice, start_indices, limit_indices, strides or (1,) * x.ndim))]


def _padded(x: np.ndarray, value: np.ndarray, *, padding_config: Sequence[tuple[int, int, int]]) -> np.ndarray:
  for axis, (_, _, inside) in enumerate(padding_config):
    if inside and x.shape[axis]:
      shape = list(x.shape)
      shape[axis] = (shape[axis] - 1) * (inside + 1) + 1
      wide = np.full(shape, value, x.dtype)
      wide[(slice(None),) * axis + (slice(None, None, inside + 1),)] = x
      x = wide
  x = np.pad(x, [(max(low, 0), max(high, 0)) for low, high, _ in padding_config], constant_values=value)
  cuts = [(max(-low, 0), max(-high, 0)) for low, high, _ in padding_config]
  return x[tuple(slice(low, size - high) for (low, high), size in zip(cuts, x.shape, strict=True))]


def _over(fn: Callable[..., Any]) -> Callable[..., Any]:
  return lambda x, *, axes, **_: fn(x, axis=tuple(axes))


def _along(fn: Callable[..., Any]) -> Callable[..., Any]:
  def run(x: np.ndarray, *, axis: int, reverse: bool = False) -> np.ndarray:
    return np.flip(fn(np.flip(x, axis), axis), axis) if reverse else fn(x, axis)

  return run


def _dot(x: np.ndarray, y: np.ndarray, *, dimension_numbers: Any) -> np.ndarray:
  (contract_x, contract_y), (batch_x, batch_y) = dimension_numbers
  letters = [chr(ord('a') + index) for index in range(x.ndim + y.ndim)]
  left, right = letters[: x.ndim], letters[x.ndim :]
  for one, other in (*zip(contract_x, contract_y, strict=True), *zip(batch_x, batch_y, strict=True)):
    right[other] = left[one]
  free = [left[axis] for axis in range(x.ndim) if axis not in (*contract_x, *batch_x)]
  free += [right[axis] for axis in range(y.ndim) if axis not in (*contract_y, *batch_y)]
  out = [left[axis] for axis in batch_x] + free
  return np.einsum(f'{"".join(left)},{"".join(right)}->{"".join(out)}', x, y, optimize=True)


def _conv(
  x: np.ndarray,
  w: np.ndarray,
  *,
  window_strides: Sequence[int],
  padding: Sequence[tuple[int, int]],
  lhs_dilation: Sequence[int],
  rhs_dilation: Sequence[int],
  dimension_numbers: Any,
  feature_group_count: int,
  batch_group_count: int = 1,  # lowering refuses others
) -> np.ndarray:
  lhs, rhs, out = dimension_numbers
  x, w = x.transpose(lhs), w.transpose(rhs)  # batch, channels, space; outputs, inputs, space
  spread = [(0, 0, 0)] * 2 + [(low, high, step - 1) for (low, high), step in zip(padding, lhs_dilation, strict=True)]
  x = _padded(x, np.zeros((), x.dtype), padding_config=spread)
  w = _padded(w, np.zeros((), w.dtype), padding_config=[(0, 0, 0)] * 2 + [(0, 0, step - 1) for step in rhs_dilation])
  axes = tuple(range(2, x.ndim))
  windows = np.lib.stride_tricks.sliding_window_view(x, w.shape[2:], axis=axes)
  windows = windows[(slice(None), slice(None), *(slice(None, None, step) for step in window_strides))]
  parts = []
  for some, kernel in zip(np.split(windows, feature_group_count, 1), np.split(w, feature_group_count, 0), strict=True):
    space = len(axes)
    inner = (1, *range(2 + space, 2 + 2 * space))
    parts.append(np.moveaxis(np.tensordot(some, kernel, (inner, (1, *range(2, 2 + space)))), -1, 1))
  return np.concatenate(parts, 1).transpose(np.argsort(out))


def _windowed(fn: Callable[..., Any], start: Callable[[np.dtype[Any]], Any]) -> Callable[..., Any]:
  def run(
    x: np.ndarray,
    *,
    window_dimensions: Sequence[int],
    window_strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    base_dilation: Sequence[int],
    window_dilation: Sequence[int],
  ) -> np.ndarray:
    spread = [(low, high, step - 1) for (low, high), step in zip(padding, base_dilation, strict=True)]
    x = _padded(x, start(x.dtype), padding_config=spread)
    reach = [(size - 1) * step + 1 for size, step in zip(window_dimensions, window_dilation, strict=True)]
    windows = np.lib.stride_tricks.sliding_window_view(x, reach)
    windows = windows[tuple(slice(None, None, step) for step in window_strides)]
    windows = windows[(..., *(slice(None, None, step) for step in window_dilation))]
    return fn(windows, axis=tuple(range(x.ndim, 2 * x.ndim)))

  return run


def _lowest(dtype: np.dtype[Any]) -> Any:
  return -np.inf if np.issubdtype(dtype, np.inexact) else np.iinfo(dtype).min


def _moved(x: np.ndarray, *starts: np.ndarray, slice_sizes: Sequence[int]) -> np.ndarray:
  firsts = [int(np.clip(one, 0, size - wide)) for one, size, wide in zip(starts, x.shape, slice_sizes, strict=True)]
  return x[tuple(slice(first, first + wide) for first, wide in zip(firsts, slice_sizes, strict=True))]


def _erf(x: np.ndarray) -> np.ndarray:
  return np.vectorize(math.erf, otypes=[np.float64])(x)


_AS_NUMPY = """
  abs sign exp exp2 log log1p expm1 sqrt cbrt tanh floor ceil sin cos tan sinh cosh square
"""


def _affine(x: np.ndarray, w: np.ndarray, bias: np.ndarray | None = None) -> np.ndarray:
  return np.matmul(x, w) if bias is None else np.matmul(x, w) + bias


def _convolved(
  x: np.ndarray,
  kernel: np.ndarray,
  bias: np.ndarray | None = None,
  *,
  strides: Sequence[int],
  padding: Sequence[tuple[int, int]],
  dilation: Sequence[int],
  input_dilation: Sequence[int],
  groups: int,
) -> np.ndarray:
  last = x.ndim - 1
  axes = (0, last, *range(1, last))
  numbers = (axes, axes, axes)
  out = _conv(
    x,
    kernel,
    window_strides=strides,
    padding=padding,
    lhs_dilation=input_dilation,
    rhs_dilation=dilation,
    dimension_numbers=numbers,
    feature_group_count=groups,
  )
  return out if bias is None else out + bias


def _soft(x: np.ndarray, *, axis: int) -> np.ndarray:
  risen = np.exp(x - x.max(axis, keepdims=True))
  return risen / risen.sum(axis, keepdims=True)


def _pooled(
  x: np.ndarray, *, window: Sequence[int], strides: Sequence[int], padding: Sequence[tuple[int, int]]
) -> np.ndarray:
  ones = (1,) * x.ndim
  return RULES['reduce_window_max'](
    x,
    window_dimensions=(1, *window, 1),
    window_strides=(1, *strides, 1),
    padding=((0, 0), *padding, (0, 0)),
    base_dilation=ones,
    window_dilation=ones,
  )


RULES: dict[str, Callable[..., Any]] = {
  **{name: _each(getattr(np, name)) for name in _AS_NUMPY.split()},
  'neg': _each(np.negative),
  'asin': _each(np.arcsin),
  'acos': _each(np.arccos),
  'atan': _each(np.arctan),
  'atan2': _each(np.arctan2),
  'rsqrt': _each(lambda x: 1 / np.sqrt(x)),
  'logistic': _each(lambda x: 1 / (1 + np.exp(-x))),
  'erf': _each(_erf),
  'erfc': _each(np.vectorize(math.erfc, otypes=[np.float64])),
  'erf_inv': _each(erf_inv),
  'round': edges.rounded,
  'integer_pow': lambda x, *, y: np.float64(x) ** y if np.issubdtype(x.dtype, np.floating) else x**y,
  'not': _each(np.invert),
  'is_finite': _each(np.isfinite),
  'convert_element_type': edges.converted,
  'add': _each(np.add),
  'sub': _each(np.subtract),
  'mul': _each(np.multiply),
  'div': _each(edges.divided),
  'max': _each(np.maximum),
  'min': _each(np.minimum),
  'pow': _each(np.power),
  'rem': _each(edges.rest),
  'eq': _each(np.equal),
  'ne': _each(np.not_equal),
  'lt': _each(np.less),
  'le': _each(np.less_equal),
  'gt': _each(np.greater),
  'ge': _each(np.greater_equal),
  'and': _each(np.bitwise_and),
  'or': _each(np.bitwise_or),
  'xor': _each(np.bitwise_xor),
  'select_n': _each(_selected),
  'clamp': _each(lambda low, x, high: np.minimum(np.maximum(x, low), high)),
  'reshape': lambda x, *, new_sizes, **_: x.reshape(new_sizes),
  'squeeze': lambda x, *, dimensions: np.squeeze(x, tuple(dimensions)),
  'transpose': lambda x, *, permutation: x.transpose(permutation),
  'broadcast_in_dim': _broadcast,
  'concatenate': lambda *xs, dimension: np.concatenate(xs, dimension),
  'slice': _sliced,
  'dynamic_slice': _moved,
  'pad': _padded,
  'rev': lambda x, *, dimensions: np.flip(x, tuple(dimensions)),
  'reduce_sum': _over(np.sum),
  'reduce_max': _over(np.max),
  'reduce_min': _over(np.min),
  'reduce_prod': _over(np.prod),
  'reduce_and': _over(np.all),
  'reduce_or': _over(np.any),
  'argmax': lambda x, *, axes, **_: np.argmax(x, axes[0]),
  'argmin': lambda x, *, axes, **_: np.argmin(x, axes[0]),
  'cumsum': _along(np.cumsum),
  'cumprod': _along(np.cumprod),
  'cummax': _along(np.maximum.accumulate),
  'cummin': _along(np.minimum.accumulate),
  'dot_general': _dot,
  'conv_general_dilated': _conv,
  'reduce_window_max': _windowed(np.max, _lowest),
  'reduce_window_sum': _windowed(np.sum, lambda dtype: 0),
  'gather': edges.gathered,
  'sort': lambda x, *, dimension, **_: np.sort(x, dimension),
  # what `patterns` recognizes
  'dense': _affine,
  'conv': _convolved,
  'relu': _each(lambda x: np.maximum(x, 0)),
  'clip': lambda x, *, low, high: np.clip(x, low, high),
  'mean': _over(np.mean),
  'softmax': _soft,
  'take': edges.taken,
  'max_pool': _pooled,
  **integer_rules.rules(_convolved, _dot),
}
