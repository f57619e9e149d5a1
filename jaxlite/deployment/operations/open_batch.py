"""Two traces of one function at two batch sizes, put together to one graph whose batch is open.

What both agree on is fixed; what grows by the same number for each example is a `Batch`; what does neither, or brings
examples together, is refused.
"""

from __future__ import annotations

import math
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
  before = dict.fromkeys(one.inputs, 1)
  for first, second in zip(one.operations, other.operations, strict=True):
    if first.inputs != tuple(swapped.get(name, name) for name in second.inputs):
      raise ValueError(
        f'a network that leaves jaxlite takes any batch size; {first} reads other values at another size'
      )
    try:
      attributes = {name: _open(value, second.attributes[name], str(first)) for name, value in first.attributes.items()}
      made = first._replace(attributes=attributes)
      _check_apart(made, values)
      before.update(dict.fromkeys(made.outputs, _before(made, values, before)))
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
  for name, axes in _together(one, values).items():
    if any(isinstance(values[name].shape[axis], Batch) for axis in axes):
      raise _mixed(one)


def _mixed(one: Operation) -> ValueError:
  return ValueError(f'an answer depends on its own example alone; {one.outputs[0]} = {one.kind} runs over the batch')


def _together(one: Operation, values: Mapping[str, Value]) -> dict[str, Any]:
  """Along which axes of which operands an operation makes an entry of several, or leaves some out."""
  told, kind, (first, *rest) = one.attributes, one.kind, one.inputs or ('',)
  shape = values[first].shape if first else ()
  if kind.startswith('cum') or kind in ('sort', 'concatenate', 'rev'):
    return {first: told.get('dimensions', (told.get('axis', told.get('dimension')),))}
  if kind == 'dot_general':
    return {first: told['dimension_numbers'][0][0]}
  if kind == 'conv_general_dilated':
    lhs, rhs, _ = told['dimension_numbers']
    return {first: lhs[1:], rest[0]: rhs}
  if kind == 'pad':
    return {first: [axis for axis, sides in enumerate(told['padding_config']) if any(sides)]}
  if kind in ('gather', 'dynamic_slice'):
    return {first: [axis for axis, size in enumerate(told['slice_sizes']) if size != shape[axis]]}
  if kind == 'slice':
    steps = told.get('strides') or (1,) * len(shape)
    spans = zip(told['start_indices'], told['limit_indices'], steps, shape, strict=True)
    return {first: [axis for axis, span in enumerate(spans) if not _of_each(*span)]}
  if kind.startswith('reduce_window'):
    still = [told[name] for name in ('window_dimensions', 'window_strides', 'base_dilation', 'window_dilation')]
    sides = zip(*still, told['padding'], strict=True)
    return {first: [axis for axis, (*sizes, edges) in enumerate(sides) if {*sizes} != {1} or any(edges)]}
  return {first: told.get('axes', ())} if first else {}


def _of_each(start: Any, limit: Any, step: Any, size: Any) -> bool:
  """Whether a slice takes the same entries of each example: the second of every pair."""
  if (start, limit, step) == (0, size, 1):
    return True
  whole = limit == size and isinstance(size, Batch) and isinstance(start, int)
  return whole and size.times % step == 0 and start < step


def _before(one: Operation, values: Mapping[str, Value], before: Mapping[str, int]) -> int:
  """How many entries of an axis that grows stand before its examples: [T, B] as one axis is `T` times all examples.

  What is written out that way (a convolution that runs at each time) is put in order again by its way back. Another
  way would bring entries of several examples to the place of one.
  """
  live = [name for name in one.inputs if _grows(values[name].shape) and name in before]
  ahead = {before[name] for name in live}
  if len(ahead) > 1:
    raise _mixed(one)
  here = ahead.pop() if ahead else 1
  shape = values[one.outputs[0]].shape
  places = _grows(shape)
  if one.kind == 'slice' and here > 1 and any(map(_strided, one.attributes.get('strides') or (), shape)):
    raise _mixed(one)
  if one.kind != 'reshape' or not live:
    return here
  old = values[one.inputs[0]].shape
  if len(places) != 1 or len(_grows(old)) != 1:
    if [size for size in old if size != 1] != [size for size in shape if size != 1]:
      raise _mixed(one)
    return here
  (axis,), (place,) = _grows(old), places
  ahead_of_all, outer = here * _product(old[:axis]), _product(shape[:place])
  size = shape[place]
  assert isinstance(size, Batch)
  if not outer or ahead_of_all % outer or size.times % (ahead_of_all // outer):
    raise _mixed(one)
  return ahead_of_all // outer


def _strided(step: int, size: Any) -> bool:
  return step > 1 and isinstance(size, Batch)


def _grows(shape: Shape) -> list[int]:
  return [axis for axis, size in enumerate(shape) if isinstance(size, Batch)]


def _product(shape: Shape) -> int:
  return math.prod(size for size in shape if isinstance(size, int))


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
