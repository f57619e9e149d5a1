"""A list of operations as JSON values, and back: looked at before it is used, since a stranger may have written it."""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Collection
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxlite.deployment.operations import (
  UNKNOWN,
  VERSION,
  Batch,
  Graph,
  Operation,
  Shape,
  Value,
  equations,
  reference,
  sized,
)
from jaxlite.deployment.operations.folding import MOST
from jaxlite.host.sealed import Damaged

_DTYPES = (
  *('bool', 'int8', 'int16', 'int32', 'int64', 'uint8', 'uint16', 'uint32', 'uint64', 'float16', 'bfloat16', 'float32'),
  *('float64', 'complex64', 'complex128'),
)
_BATCH = 'B'  # {'B': 2} is Batch(2)
_RANK = 16  # axes of an array at most
_DEEP = 8  # tuples in tuples of an attribute at most


def to_json(graph: Graph) -> dict[str, Any]:
  """Returns a graph as JSON values; `of_json` reads it.

  >>> x = Value((Batch(), 2), np.dtype('float32'))
  >>> graph = Graph(('x',), ('y',), (Operation('neg', ('x',), ('y',), {}),), {'x': x, 'y': x}, {})
  >>> of_json(to_json(graph)) == graph
  True
  """
  return {
    'version': VERSION,
    'inputs': list(graph.inputs),
    'outputs': list(graph.outputs),
    'operations': [
      [one.kind, list(one.inputs), list(one.outputs), {key: _out(value) for key, value in one.attributes.items()}]
      for one in graph.operations
    ],
    'values': {name: [str(value.dtype), _out(value.shape)] for name, value in graph.values.items()},
    'constants': {
      name: [str(array.dtype), list(array.shape), base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()]
      for name, array in graph.constants.items()
    },
  }


def of_json(told: Any, known: Collection[str] = ()) -> Graph:
  """Returns the graph in JSON values.

  Args:
    told: as `to_json` made it.
    known: names of values that are put in later.

  Raises:
    Damaged: it is none that `to_json` makes.
  """
  try:
    return _checked(_graph(told), known)
  except (TypeError, LookupError, AttributeError, ValueError, RecursionError, OverflowError) as error:
    why = str(error) if isinstance(error, Damaged) else type(error).__name__
    raise Damaged(f'its operations are none that a run writes ({why})') from None


def _out(value: Any) -> Any:
  if isinstance(value, Batch):
    return {_BATCH: value.times}
  if isinstance(value, tuple):
    return [_out(one) for one in value]
  if isinstance(value, np.generic):
    value = value.item()
  if not isinstance(value, bool | int | float | str):
    raise ValueError(f'an attribute is a plain value; got {type(value).__name__}')
  return value


def _back(value: Any, depth: int = 0) -> Any:
  if isinstance(value, list) and depth < _DEEP:
    return tuple(_back(one, depth + 1) for one in value)
  if isinstance(value, dict) and [*value] == [_BATCH] and type(value[_BATCH]) is int and value[_BATCH] > 0:
    return Batch(value[_BATCH])
  if isinstance(value, bool | int | float | str):
    return value
  raise Damaged('an attribute is no plain value')


def _graph(told: Any) -> Graph:
  if told['version'] != VERSION:
    raise Damaged(f'it has version {str(told["version"])[:20]}, this jaxlite reads {VERSION}')
  operations = tuple(
    Operation(kind, tuple(inputs), tuple(outputs), {key: _back(value) for key, value in attributes.items()})
    for kind, inputs, outputs, attributes in told['operations']
  )
  values = {name: Value(_back(shape), _dtype(dtype)) for name, (dtype, shape) in told['values'].items()}
  constants = {}
  for name, (dtype, shape, text) in told['constants'].items():
    try:
      data = base64.b64decode(text, validate=True)
    except binascii.Error:
      raise Damaged('a constant is no base64') from None
    kind = _dtype(dtype)
    if not all(type(size) is int and size >= 0 for size in shape) or len(data) != math.prod(shape) * kind.itemsize:
      raise Damaged('a constant has another length than its shape')
    constants[name] = np.frombuffer(data, kind).reshape(shape)
  return Graph(tuple(told['inputs']), tuple(told['outputs']), operations, values, constants)


def _dtype(name: Any) -> np.dtype[Any]:
  if name not in _DTYPES:
    raise Damaged(f'{str(name)[:20]!r} is no dtype')
  return np.dtype(jnp.dtype(name))


def _checked(graph: Graph, known: Collection[str]) -> Graph:
  for value in graph.values.values():
    _check_shape(value.shape)
  for name in graph.inputs:
    if graph.values[name].shape[:1] != (Batch(),):
      raise Damaged('an input has no batch')
  for name, array in graph.constants.items():
    shape = graph.values[name].shape
    fits = array.ndim == len(shape) and all(one in (1, size) for one, size in zip(array.shape, shape, strict=True))
    if not fits or array.dtype != graph.values[name].dtype:
      raise Damaged(f'the constant {name[:80]!r} has another shape than its value')
  there = {*graph.inputs, *graph.constants, *known}
  if len(there) != len(graph.inputs) + len(graph.constants) + len(known) or not there <= {*graph.values}:
    raise Damaged('two values have one name, or one has no shape')
  for one in graph.operations:
    if one.kind not in reference.RULES and one.kind not in (UNKNOWN, *equations.OF_PARAMS):
      raise Damaged(f'{str(one.kind)[:40]!r} is no operation')
    if one.kind == UNKNOWN and not isinstance(one.attributes.get('why'), str):
      raise Damaged('what cannot be written has no reason')
    if not there.issuperset(one.inputs) or there.intersection(one.outputs) or len({*one.outputs}) != len(one.outputs):
      raise Damaged('an operation reads what is not there yet, or writes what is there already')
    if not one.outputs or not {*one.outputs} <= {*graph.values}:
      raise Damaged('a result has no shape')
    there.update(one.outputs)
  if not graph.outputs or not there.issuperset(graph.outputs):
    raise Damaged('a result is made by nothing')
  return graph


def _check_shape(shape: Shape) -> None:
  plain = isinstance(shape, tuple) and len(shape) <= _RANK
  if not plain or not all(isinstance(size, Batch) or (type(size) is int and size >= 0) for size in shape):
    raise Damaged('a shape is none')
  if math.prod(sized(shape, 1)) > MOST:
    raise Damaged('an array is larger than any of ours')
