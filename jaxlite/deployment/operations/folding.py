"""Values put into a list of operations that was written without them; what depends on them alone is computed once."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxlite.deployment.operations import (
  UNKNOWN,
  Batch,
  Graph,
  Operation,
  Value,
  equations,
  pruned,
  readers,
  reference,
  sized,
)
from jaxlite.deployment.operations.lowering import KNOWN, check_answers

MOST = 1 << 31  # entries of one array: no list asks for more
_ENTRIES = equations.UNARY | equations.BINARY
_OF_PARAMS: dict[str, Callable[..., Any]] = {
  'bitcast_convert_type': lambda x, *, new_dtype: _bits(x, np.dtype(jnp.dtype(new_dtype))),
  'shift_left': lambda x, y: np.where(y < 8 * x.dtype.itemsize, np.left_shift(x, y), 0),
  'shift_right_logical': lambda x, y: _logical(x, y),
  'shift_right_arithmetic': lambda x, y: np.right_shift(x, np.minimum(y, 8 * x.dtype.itemsize - 1)),
  'nextafter': np.nextafter,
}


def folded(graph: Graph, values: Mapping[str, Any], *, partly: bool = False) -> Graph:
  """Returns a list of operations with its params as constants.

  Args:
    graph: of `lowering.lower_open`.
    values: arrays by their names in it.
    partly: other params stay values that nothing makes, under the names that they have.

  Returns:
    The Graph, as `lowering.lower` writes it: without what depends on constants alone, and of a choice among ways that
    the values make only the way that is taken.

  Raises:
    ValueError: a value is missing or of another shape; what cannot be written is needed.

  >>> import jax.numpy as jnp
  >>> from jaxlite.deployment.operations.lowering import lower_open
  >>> graph, known = lower_open(lambda p, x: x * jnp.sqrt(p), jnp.ones(3), jnp.ones((1, 3)))
  >>> print(folded(graph, {'known/params': np.full(3, 4.0, np.float32)}))
  (input: float32[B,3]) -> v2: float32[B,3]
    v2 = mul(input, v1)  # float32[B,3]
  """
  constants = dict(graph.constants)
  for name, array in values.items():
    constants[name] = _checked(name, np.asarray(array), graph.values[name])
  origins: dict[str, str] = {}
  uses, same = readers(graph.operations, graph.outputs), dict[str, str]()
  operations = []
  for one in graph.operations:
    one = one._replace(inputs=tuple(same.get(name, name) for name in one.inputs))
    if one.kind == 'select_n' and (which := constants.get(one.inputs[0])) is not None and which.size == 1:
      taken = one.inputs[1 + int(which.reshape(()))]
      same[one.outputs[0]] = taken
      uses[taken] = uses.get(taken, 0) + uses.get(one.outputs[0], 0)
    elif one.kind != UNKNOWN and one.inputs and all(name in constants for name in one.inputs):
      constants.update(_computed(one, constants, graph.values))
      _remember(origins, one, graph.values)
    else:
      operations.append(one)
      continue
    for name in one.inputs:  # of large networks not every step on the way is kept
      uses[name] -= 1
      if not uses[name] and name not in graph.outputs:
        constants.pop(name, None)
  outputs = tuple(same.get(name, name) for name in graph.outputs)
  found = pruned(graph._replace(outputs=outputs, operations=tuple(operations), constants=constants))
  for one in found.operations:
    if one.kind == UNKNOWN:
      raise ValueError(one.attributes['why'])
    for name in () if partly else one.inputs:
      if name.startswith(KNOWN) and name not in constants:
        raise ValueError(f'the list of operations reads {name.removeprefix("known/")!r}, which has no value')
  check_answers(found)
  return _by_path(found, origins)


def surely_unknown(graph: Graph, known: Collection[str]) -> str:
  """Returns why no values make a list of this; '' where some may: what cannot be written stands in a way that they
  choose.

  Args:
    graph: of `lowering.lower_open`.
    known: names of what is put in later.
  """
  later = {*known, *graph.constants}
  for one in graph.operations:
    if one.inputs and later.issuperset(one.inputs):
      later.update(one.outputs)
  needed = set(graph.outputs)
  for one in reversed(graph.operations):
    if not needed.intersection(one.outputs):
      continue
    if one.kind == UNKNOWN:
      return one.attributes['why']
    chosen = one.kind == 'select_n' and one.inputs[0] in later and not graph.values[one.inputs[0]].shape
    needed.update(one.inputs[:1] if chosen else one.inputs)
  return ''


def _remember(origins: dict[str, str], one: Operation, values: Mapping[str, Value]) -> None:
  """Of which parameter a constant is made, entry by entry, as rounded weights are."""
  (output, *_), found = one.outputs, set[str]()
  if one.kind in _ENTRIES:
    shape = values[output].shape
    found = {origins.get(name, name) for name in one.inputs if shape and values[name].shape == shape}
  parameters = [name for name in found if name.startswith(f'{KNOWN}params/')]
  if len(parameters) == 1:
    origins[output] = parameters[0]


def _by_path(graph: Graph, origins: Mapping[str, str]) -> Graph:
  """Constants that are params as they were bear their paths, what is made of one of them its path and a stroke."""
  names = {name: name.removeprefix(KNOWN) for name in graph.constants if name.startswith(KNOWN)}
  made = {name: f'{origins[name].removeprefix(KNOWN)}_' for name in graph.constants if name in origins}
  names |= {name: path for name, path in made.items() if list(made.values()).count(path) == 1}
  names = {name: path for name, path in names.items() if path not in graph.values}
  operations = [one._replace(inputs=tuple(names.get(name, name) for name in one.inputs)) for one in graph.operations]
  return graph._replace(
    outputs=tuple(names.get(name, name) for name in graph.outputs),
    operations=tuple(operations),
    values={names.get(name, name): value for name, value in graph.values.items()},
    constants={names.get(name, name): array for name, array in graph.constants.items()},
  )


def _checked(name: str, array: np.ndarray, want: Value) -> np.ndarray:
  if array.shape != want.shape or array.dtype != want.dtype:
    got = f'{array.dtype}{list(array.shape)}'
    raise ValueError(f'the list of operations takes {name.removeprefix("known/")!r} as {want}; got {got}')
  return array


def _computed(
  one: Operation, constants: Mapping[str, np.ndarray], values: Mapping[str, Value]
) -> dict[str, np.ndarray]:
  """What an operation gives for constants. What repeats is not written out where it works entry by entry."""
  arrays, shapes = [constants[name] for name in one.inputs], [values[name].shape for name in one.inputs]
  if one.kind in _OF_PARAMS:
    result = np.asarray(_OF_PARAMS[one.kind](*arrays, **one.attributes))
    return {one.outputs[0]: result.astype(values[one.outputs[0]].dtype, copy=False)}
  rank = len(values[one.outputs[0]].shape)
  for name in one.outputs:
    if math.prod(sized(values[name].shape, 1)) > MOST:
      raise ValueError(f'an array has at most {MOST:,} entries; {name} is {values[name]}')
  if one.kind == 'broadcast_in_dim':
    sizes = dict(zip(one.attributes['broadcast_dimensions'], arrays[0].shape, strict=True))
    return {one.outputs[0]: arrays[0].reshape([sizes.get(axis, 1) for axis in range(rank)])}
  if one.kind in _ENTRIES and all(len(shape) == rank for shape in shapes):
    (result,) = applied(one, arrays)
    return {one.outputs[0]: np.asarray(result).astype(values[one.outputs[0]].dtype, copy=False)}
  wide = [np.broadcast_to(array, sized(shape, 1)) for array, shape in zip(arrays, shapes, strict=True)]
  results = applied(one, wide)
  return {name: _shortened(name, result, values[name]) for name, result in zip(one.outputs, results, strict=True)}


def applied(one: Operation, operands: Sequence[np.ndarray]) -> tuple[Any, ...]:
  """Returns what an operation makes of its operands at a batch of one, before it is brought to its values' dtypes."""
  attributes = {name: _at_one(value) for name, value in one.attributes.items()}
  with np.errstate(all='ignore'):  # infinities and NaNs are values
    results = reference.RULES[one.kind](*operands, **attributes)
  return results if isinstance(results, tuple) else (results,)


def _at_one(value: Any) -> Any:
  if isinstance(value, Batch):
    return value.times
  return tuple(map(_at_one, value)) if isinstance(value, tuple) else value


def _bits(x: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
  if dtype.itemsize != x.dtype.itemsize:
    raise ValueError(f'bits are read as a number of as many; {x.dtype} is not as wide as {dtype}')
  return np.ascontiguousarray(x).view(dtype).reshape(x.shape)


def _logical(x: np.ndarray, y: np.ndarray) -> np.ndarray:
  wide = np.dtype(f'uint{8 * x.dtype.itemsize}')
  return np.where(y < 8 * x.dtype.itemsize, np.right_shift(x.view(wide), y.astype(wide)), 0).astype(wide).view(x.dtype)


def _shortened(name: str, result: Any, value: Value) -> np.ndarray:
  """A constant that grows with the batch is the same for every example: one of them stands for all."""
  array = np.asarray(result).astype(value.dtype, copy=False)
  array = np.broadcast_to(array, sized(value.shape, 1))
  for axis, size in enumerate(value.shape):
    if isinstance(size, Batch) and size.times > 1:
      head = array.take([0], axis)
      if not (array == head).all():
        raise ValueError(f'a constant is the same for each example; {name} differs along axis {axis}')
      array = head
  return array
