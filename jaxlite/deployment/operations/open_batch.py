"""Two traces of one function at two batch sizes, put together to one graph whose batch is open.

What both agree on is fixed; what grows by the same number for each example is a `Batch`; what does neither, or brings
examples together, is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxlite.deployment.operations import UNKNOWN, Batch, Graph, Operation, Shape, Value

SIZES = (2, 3)  # that a function is traced at


class Trace(NamedTuple):
  """A program at one batch size: shapes and dtypes of values by name, constants, operations, names.

  A constant has an `array` and a `shape`: where the array has size 1 and the shape has not, it is repeated there.
  """

  values: Mapping[str, Any]
  constants: Mapping[str, Any]
  operations: list[Operation]
  inputs: list[str]
  outputs: list[str]
  known: set[str]  # values that nothing makes and that are put in later


def joined(one: Trace, other: Trace, *, lenient: bool = False) -> Graph:
  """Returns the graph of two traces.

  Args:
    one: at `SIZES[0]` examples.
    other: at `SIZES[1]`.
    lenient: what is refused becomes an operation of the kind `UNKNOWN`.

  Raises:
    ValueError: a size or a constant that does not grow evenly with the batch, or what runs over the batch.
  """
  kinds = [[each.kind for each in trace.operations] for trace in (one, other)]
  if kinds[0] != kinds[1]:
    raise ValueError(
      f'a network that leaves jaxlite takes any batch size; this one does other things with {SIZES[0]} examples than '
      f'with {SIZES[1]}'
    )
  refused: dict[str, str] = {}
  values: dict[str, Value] = {}
  for name, ref in one.values.items():
    try:
      values[name] = Value(_open(ref.shape, other.values[name].shape, name), ref.dtype)
    except ValueError as error:
      refused[name], values[name] = _refused(error, lenient), Value(ref.shape, ref.dtype)
  constants, swapped, operations = {}, {}, []
  for (name, first), (twin, second) in zip(one.constants.items(), other.constants.items(), strict=True):
    swapped[twin] = name
    try:
      constants[name], shape = _same(first, second, name)
      values[name] = Value(shape, constants[name].dtype)
    except ValueError as error:
      values[name] = Value(first.shape, np.asarray(first.array).dtype)
      operations.append(Operation(UNKNOWN, (), (name,), {'why': _refused(error, lenient)}))
  for first, second in zip(one.operations, other.operations, strict=True):
    if first.inputs != tuple(swapped.get(name, name) for name in second.inputs):
      raise ValueError(
        f'a network that leaves jaxlite takes any batch size; {first} reads other values at another size'
      )
    try:
      attributes = {name: _open(value, second.attributes[name], str(first)) for name, value in first.attributes.items()}
      made = first._replace(attributes=attributes)
      _check_apart(made, values)
      why = next((refused[name] for name in first.outputs if name in refused), '')
    except ValueError as error:
      why = _refused(error, lenient)
    operations.append(Operation(UNKNOWN, (), first.outputs, {'why': why}) if why else made)
  return Graph(tuple(one.inputs), tuple(one.outputs), tuple(operations), values, constants)


def _refused(error: ValueError, lenient: bool) -> str:
  if not lenient:
    raise error
  return str(error)


def _check_apart(one: Operation, values: Mapping[str, Value]) -> None:
  """Refuses what brings examples together: with another batch beside it, an example would have another answer."""
  told = one.attributes
  axes = told.get('axes', ())
  if one.kind.startswith('cum') or one.kind in ('sort', 'concatenate', 'rev'):
    axes = told.get('dimensions', (told.get('axis', told.get('dimension')),))
  if one.kind == 'dot_general':
    axes = told['dimension_numbers'][0][0]
  if any(isinstance(values[one.inputs[0]].shape[axis], Batch) for axis in axes):
    raise ValueError(f'an answer depends on its own example alone; {one.outputs[0]} = {one.kind} runs over the batch')


def _open(one: Any, other: Any, what: str) -> Any:
  """One attribute of both traces: what differs grows with the batch."""
  if isinstance(one, tuple):
    if not isinstance(other, tuple) or len(one) != len(other):
      raise ValueError(f'{what} has another form at another batch size: {one} and {other}')
    return tuple(_open(first, second, what) for first, second in zip(one, other, strict=True))
  if one == other:
    return one
  times = other - one if isinstance(one, int) and isinstance(other, int) else 0
  if times <= 0 or times * SIZES[0] != one:
    raise ValueError(
      f'a size grows by the same number for each example, or not at all; {what} has {one} at a batch of {SIZES[0]} '
      f'and {other} at {SIZES[1]}'
    )
  return Batch(times)


def _same(one: Any, other: Any, name: str) -> tuple[np.ndarray, Shape]:
  """A constant of both traces. Where it grows with the batch it has to be the same for every example."""
  shape = _open(one.shape, other.shape, f'the constant {name}')
  arrays = [np.asarray(each.array) for each in (one, other)]
  for axis, size in enumerate(shape):
    if not isinstance(size, Batch):
      continue
    heads = [array.take([0], axis) for array in arrays]
    if any(not _equal(array, np.broadcast_to(head, array.shape)) for array, head in zip(arrays, heads, strict=True)):
      raise ValueError(
        f'a constant is the same for each example; {name} differs along axis {axis}: the batch is numbered'
      )
    arrays = heads
  if not _equal(*arrays):
    raise ValueError(
      f'an answer depends on its own example alone; the constant {name} has other values at another batch size: the '
      'batch is counted, averaged or numbered'
    )
  return arrays[0], shape


def _equal(one: np.ndarray, other: np.ndarray) -> bool:
  """Bit for bit, NaNs among them."""
  return one.shape == other.shape and one.dtype == other.dtype and one.tobytes() == other.tobytes()
