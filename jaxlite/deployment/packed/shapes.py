"""What an operation's results are likely to be, from its inputs: a packed file tells only what is otherwise.

Part of the format since version 1: writer and reader guess alike, and a guess may be wrong, but not change.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxlite.deployment.operations import Batch, Operation, Shape, Value

# Since version 1, in this order for ever.
DTYPES = (
  *('float32', 'int8', 'bool', 'int32', 'float64', 'float16', 'bfloat16', 'int16', 'int64', 'uint8', 'uint16'),
  *('uint32', 'uint64', 'complex64', 'complex128', 'float8_e4m3fn', 'float8_e5m2', 'int4', 'uint4'),
)
_EXOTIC = frozenset(('bfloat16', 'float8_e4m3fn', 'float8_e5m2', 'int4', 'uint4'))
_TRUTHS = frozenset(('eq', 'ne', 'lt', 'le', 'gt', 'ge', 'is_finite', 'reduce_and', 'reduce_or'))
_SECOND = frozenset(('select_n', 'clamp'))  # whose second input is like the result


def guessed(one: Operation, inputs: Sequence[Value]) -> Value | None:
  """Returns shape and dtype that the results of an operation are likely to have, or None.

  >>> x, w = Value((Batch(), 3), np.dtype('float32')), Value((3, 2), np.dtype('float32'))
  >>> print(guessed(Operation('dense', ('x', 'w'), ('y',), {}), [x, w]))
  float32[B,2]
  """
  try:
    shape = tuple(_shape(one.kind, dict(one.attributes), [each.shape for each in inputs]))
    dtype = _dtype(one.kind, one.attributes, [each.dtype for each in inputs])
  except (TypeError, KeyError, IndexError, ValueError, ZeroDivisionError, OverflowError, AttributeError):
    return None
  fine = all(isinstance(size, Batch) or (type(size) is int and 0 <= size < 1 << 48) for size in shape)
  return Value(shape, dtype) if fine else None


def dtype_named(name: str) -> np.dtype[Any]:
  """Returns one of `DTYPES`.

  Raises:
    ImportError: it is none of NumPy's own, and ml_dtypes is not installed.
    ValueError: it is none.
  """
  if name not in DTYPES:
    raise ValueError(f'a packed array is of numbers; got one of {name[:40]}')
  if name not in _EXOTIC:
    return np.dtype(name)
  try:
    import ml_dtypes
  except ImportError:
    raise ImportError(f'reading {name} needs ml_dtypes: pip install ml_dtypes') from None
  return np.dtype(getattr(ml_dtypes, name))


def _dtype(kind: str, told: Mapping[str, Any], dtypes: list[np.dtype[Any]]) -> np.dtype[Any]:
  if kind in _TRUTHS:
    return np.dtype(bool)
  if kind == 'convert_element_type':
    return dtype_named(told['new_dtype'])
  if kind in ('argmax', 'argmin'):
    return dtype_named(told['index_dtype'])
  if kind == 'dequantize':
    return np.dtype(np.float32)
  if kind.startswith('quantize') or kind == 'requantize':
    return np.dtype(np.int8 if kind == 'quantize' or 'y_scale' in told else np.float32)
  return dtypes[1 if kind in _SECOND else 0]


def _shape(kind: str, told: dict[str, Any], shapes: list[Shape]) -> Sequence[Any]:
  x = shapes[1 if kind in _SECOND else 0]
  if kind in ('dense', 'quantized_dense'):
    return (*x[:-1], shapes[1][-1])
  if kind in ('conv', 'quantized_conv'):
    kernel = shapes[1]
    space = [
      _windows(_spread(size, spread), window, step, pad, dilation)
      for size, window, step, pad, dilation, spread in zip(
        x[1:-1],
        kernel[1:-1],
        told['strides'],
        told['padding'],
        told['dilation'],
        told['input_dilation'],
        strict=True,
      )
    ]
    return (x[0], *space, kernel[0])
  if kind == 'max_pool':
    each = zip(x[1:-1], told['window'], told['strides'], told['padding'], strict=True)
    return (x[0], *(_windows(size, window, step, pad, 1) for size, window, step, pad in each), x[-1])
  if kind in ('dot_general', 'quantized_dot'):
    (contract, batch), y = told['dimension_numbers'], shapes[1]
    free = [size for axis, size in enumerate(x) if axis not in (*contract[0], *batch[0])]
    return [x[axis] for axis in batch[0]] + free + [y[i] for i in range(len(y)) if i not in (*contract[1], *batch[1])]
  if kind == 'take':
    return (*shapes[1], *x[1:])
  named = {'reshape': 'new_sizes', 'broadcast_in_dim': 'shape', 'dynamic_slice': 'slice_sizes'}
  if kind in named:
    return told[named[kind]]
  if kind == 'transpose':
    return [x[axis] for axis in told['permutation']]
  if kind == 'slice':
    steps = told.get('strides') or [1] * len(x)
    return [_cut(*one) for one in zip(told['start_indices'], told['limit_indices'], steps, strict=True)]
  if kind == 'pad':
    return [low + high + _spread(size, inside + 1) if (low, high, inside) != (0, 0, 0) else size
            for size, (low, high, inside) in zip(x, told['padding_config'], strict=True)]  # fmt: skip
  if kind == 'concatenate':
    axis = told['dimension']
    return (*x[:axis], sum(shape[axis] for shape in shapes), *x[axis + 1 :])
  gone = told.get('axes') if kind.startswith(('reduce_', 'arg', 'mean', 'quantized_mean')) else None
  gone = told['dimensions'] if kind == 'squeeze' else gone
  if gone is not None:
    return [size for axis, size in enumerate(x) if axis not in gone]
  return max(shapes, key=len) if len(x) < max(map(len, shapes)) and kind != 'dequantize' else x


def _spread(size: Any, step: int) -> int:
  return (size - 1) * step + 1 if size and step != 1 else size


def _windows(size: Any, window: Any, step: int, pad: Sequence[int], dilation: int) -> int:
  return (size + sum(pad) - (window - 1) * dilation - 1) // step + 1


def _cut(start: Any, limit: Any, step: int) -> Any:
  if isinstance(limit, Batch):
    return limit if start == 0 and step == 1 else None
  return math.ceil((limit - start) / step)
