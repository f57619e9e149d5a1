"""A list of operations as a JAX function: its integers are those of `reference`, to the bit, eager or compiled."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlite.deployment.operations import Batch, Graph, Operation, sized
from jaxlite.deployment.operations.given import check_kind
from jaxlite.deployment.running import program_integers, program_rules

_RULES = {**program_rules.RULES, **program_integers.RULES}
_LAYERS = program_integers.LAYERS


def program(graph: Graph) -> Callable[[Any], Any]:
  """Returns a graph as a function of its inputs, for `jax.jit` and any batch size.

  Args:
    graph: of floats (`lowering.lower`, `patterns.recognized`) or of integers (`integers.quantized`).

  Returns:
    A function of the array of its one input [B, ...], or of arrays by name, to its result, a tuple where there are
    several. Integers equal those of `reference.run` wherever what they are made of does; floats up to rounding.

  Raises:
    ValueError: when called, inputs of other names, shapes or kinds than the graph's.

  >>> from jaxlite.deployment.operations.lowering import lower
  >>> fn = program(lower(lambda p, x: x @ p + 1, np.eye(2, dtype='float32'), np.ones((1, 2), 'float32')))
  >>> jax.jit(fn)(np.array([[1.0, 2.0]], 'float32')).tolist()
  [[2.0, 3.0]]
  """

  def run(inputs: Any) -> Any:
    values = traced(graph, inputs)
    found = tuple(values[name] for name in graph.outputs)
    return found[0] if len(found) == 1 else found

  return run


def traced(graph: Graph, inputs: Any) -> dict[str, jax.Array]:
  """Returns every value of a graph by name, as `program` computes it.

  Args:
    graph: any.
    inputs: as of the function that `program` gives.
  """
  values: dict[str, Any] = checked(graph, inputs)
  batch = batch_of(graph, values)

  for one in graph.operations:
    values.update(computed(graph, one, values, batch))
  return {**values, **{name: value_of(graph, name, values, batch) for name in graph.outputs}}


def computed(graph: Graph, one: Operation, values: Mapping[str, Any], batch: Any) -> dict[str, jax.Array]:
  """Returns the results of one operation by name.

  Args:
    graph: that it is of.
    one: the operation.
    values: at least those that it reads; constants are the graph's.
    batch: the batch size.
  """
  attributes = {name: _at(value, batch) for name, value in one.attributes.items()}
  first, *rest = one.inputs
  if one.kind in _LAYERS:
    known = [_known(graph, name, one) for name in rest]
    results = _LAYERS[one.kind](value_of(graph, first, values, batch), *known, **attributes)
  elif one.kind in _RULES:
    results = _RULES[one.kind](*(value_of(graph, name, values, batch) for name in one.inputs), **attributes)
  else:
    raise ValueError(f'a list becomes a JAX function operation by operation; {one.kind} has no form there')
  results = results if isinstance(results, tuple) else (results,)
  return {name: _typed(result, graph, name, batch, one) for name, result in zip(one.outputs, results, strict=True)}


def value_of(graph: Graph, name: str, values: Mapping[str, Any], batch: Any) -> Any:
  """Returns a value, which is computed, an input or a constant.

  Args:
    graph: that it is of.
    name: its own.
    values: what is there already.
    batch: the batch size.
  """
  if name in values:
    return values[name]
  return jnp.broadcast_to(graph.constants[name], sized(graph.values[name].shape, batch))


def _known(graph: Graph, name: str, one: Operation) -> np.ndarray:
  if name not in graph.constants:
    raise ValueError(f'weights, scales and biases are constants; {name}, which {one.outputs[0]} reads, is computed')
  return np.broadcast_to(graph.constants[name], sized(graph.values[name].shape, 1))


def checked(graph: Graph, inputs: Any) -> dict[str, Any]:
  """Returns the inputs of a graph by name, of its dtypes.

  Raises:
    ValueError: others than it takes.
  """
  given = inputs if isinstance(inputs, Mapping) else {graph.inputs[0]: inputs}
  if {*given} != {*graph.inputs}:
    raise ValueError(f'this graph takes the inputs {", ".join(graph.inputs)}; got {", ".join(given)}')
  values: dict[str, Any] = {}
  for name in graph.inputs:
    want = graph.values[name]
    check_kind(name, given[name], want.dtype)
    array = jnp.asarray(given[name], want.dtype)
    if array.ndim != len(want.shape) or array.shape[1:] != want.shape[1:]:
      raise ValueError(f'{name} is {want}; got an array of shape {list(array.shape)}')
    values[name] = array
  rows = [(values[name].shape[0], _times(graph, name)) for name in graph.inputs]
  (first, times), *rest = rows
  if first % times:
    raise ValueError(f'{graph.inputs[0]} holds {times} rows for each example; got {first}, no multiple of it')
  if any(size * times != first * other for size, other in rest):
    raise ValueError(f'inputs have one batch size; got {[size for size, _ in rows]}')
  return values


def batch_of(graph: Graph, values: Mapping[str, Any]) -> Any:
  """Returns how many examples the inputs of a graph hold."""
  return values[graph.inputs[0]].shape[0] // _times(graph, graph.inputs[0])


def _times(graph: Graph, name: str) -> int:
  """How many entries a value has for each example, along its first axis."""
  first = graph.values[name].shape[0]
  return first.times if isinstance(first, Batch) else 1


def _at(value: Any, batch: Any) -> Any:
  if isinstance(value, Batch):
    return batch * value.times
  return tuple(_at(one, batch) for one in value) if isinstance(value, tuple) else value


def _typed(result: Any, graph: Graph, name: str, batch: Any, one: Operation) -> jax.Array:
  want = graph.values[name]
  array = jnp.asarray(result).astype(want.dtype)
  shape = sized(want.shape, batch)
  if array.shape != shape:
    if array.ndim != len(shape):
      raise AssertionError(f'{one} gave {array.shape}, not {want}')
    array = jnp.broadcast_to(array, shape)
  return array
