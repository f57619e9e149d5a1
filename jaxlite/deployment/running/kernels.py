"""Which operations of a list run as integers in C, and the plan of them: buffers, weights as kernels read them, steps.

`parted` cuts a Graph into pieces that run one after the other, each wholly by kernels or wholly by others. A piece for
kernels becomes one call: its examples go through all of its layers while what lies between stays in the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlite.cpu.kernels import integers
from jaxlite.deployment.operations import Batch, Graph, Operation
from jaxlite.deployment.running import kernel_chains as chains
from jaxlite.deployment.running.kernel_plan import ALIGNED, Maker, Unknown, of_example, placed
from jaxlite.deployment.running.kernel_rules import RULES

_CACHE = 256 << 10  # bytes between the layers that are to stay in a core's cache
_AT_ONCE = 16  # examples: enough for weights to be read seldom


class Piece(NamedTuple):
  """A part of a Graph.

  Attributes:
    graph: with the values that others make as its inputs.
    by_kernels: whether all of it can be.
  """

  graph: Graph
  by_kernels: bool


def parted(graph: Graph, takes: Callable[[Graph, Operation], bool] | None = None) -> tuple[Piece, ...]:
  """Cuts a list into pieces in the order in which they can run.

  Args:
    graph: of integers, or of floats and integers.
    takes: (graph, operation) -> whether kernels do it; None asks `is_known`.
  """
  takes = takes or is_known
  level: dict[str, tuple[int, bool]] = {}
  pieces: dict[tuple[int, bool], list[Operation]] = {}
  for one in graph.operations:
    mine = takes(graph, one)
    before = [level[name] for name in one.inputs if name in level]
    at = max((depth + (kind != mine) for depth, kind in before), default=0)
    pieces.setdefault((at, mine), []).append(one)
    level.update(dict.fromkeys(one.outputs, (at, mine)))
  found = []
  for key in sorted(pieces):
    found.append(Piece(_cut(graph, pieces[key]), key[1]))
  return tuple(found)


def _cut(graph: Graph, operations: Sequence[Operation]) -> Graph:
  made = {name for one in operations for name in one.outputs}
  read = [name for one in operations for name in one.inputs]
  outside = {name for one in graph.operations if one not in operations for name in one.inputs} | {*graph.outputs}
  inputs = tuple(dict.fromkeys(name for name in read if name not in made and name not in graph.constants))
  outputs = tuple(name for one in operations for name in one.outputs if name in outside)
  names = {*made, *read}
  return Graph(
    inputs,
    outputs,
    tuple(operations),
    {name: graph.values[name] for name in names},
    {name: graph.constants[name] for name in names if name in graph.constants},
  )


def is_known(graph: Graph, one: Operation) -> bool:
  """Tells whether kernels can do an operation."""
  in_chain = chains.belongs(graph, one)
  if (one.kind not in RULES and not in_chain) or all(name in graph.constants for name in one.inputs):
    return False
  try:
    maker = Maker(graph, [], [], {}, [], {})
    for name in (*one.inputs, *one.outputs):
      if name not in graph.constants:
        maker.buffer(name)
    if in_chain:
      chains.check(graph, one)
    else:
      RULES[one.kind](maker, one)
  except Unknown:
    return False
  return True


def network(graph: Graph) -> Callable[..., list[jax.Array]]:
  """Returns a piece as a function of its inputs that calls the kernels, for a CPU.

  Args:
    graph: a piece that `parted` gave to kernels.

  Raises:
    ValueError: an operation that kernels do not do, or more than they take.
  """
  made, weights = planned(graph)
  outputs = [graph.values[name] for name in graph.outputs]

  def run(*inputs: jax.Array) -> list[jax.Array]:
    batch = _batch(graph, inputs)
    shapes = [jax.ShapeDtypeStruct((batch, *of_example(value.shape)), value.dtype) for value in outputs]
    given = [
      one.reshape(batch, *of_example(graph.values[name].shape)) for name, one in zip(graph.inputs, inputs, strict=True)
    ]
    found = integers.call(made, jnp.asarray(weights), shapes, *given)
    return [one.reshape(-1, *value.shape[1:]) for one, value in zip(found, outputs, strict=True)]

  return run


def _batch(graph: Graph, inputs: Sequence[jax.Array]) -> int:
  first = graph.values[graph.inputs[0]].shape[0]
  return inputs[0].shape[0] // (first.times if isinstance(first, Batch) else 1)


def planned(graph: Graph) -> tuple[np.ndarray, np.ndarray]:
  """Returns a piece as a plan and the bytes of its weights.

  Raises:
    ValueError: an operation that kernels do not do, or more than they take.
  """
  maker = Maker(graph, [], [], {}, [], {})
  for index, name in enumerate(graph.inputs):
    maker.given(index, name)
  for one in chains.grouped(graph):
    try:
      if isinstance(one, chains.Chain):
        chains.write(maker, one)
      elif one.kind in RULES:
        RULES[one.kind](maker, one)
      else:
        raise Unknown('no kernel')
    except Unknown as error:
      kinds = [each.kind for each in one.operations] if isinstance(one, chains.Chain) else [one.kind]
      raise ValueError(f'{", ".join(kinds)}: {error}') from None
  for index, name in enumerate(graph.outputs):
    maker.result(index, name)
  buffers, arena = placed(maker)
  weights = np.concatenate([*maker.weights, np.zeros(ALIGNED, np.int8)])
  at_once = max(1, min(_AT_ONCE, _CACHE // max(arena, 1)))
  made = integers.plan(
    buffers,
    maker.steps,
    inputs=len(graph.inputs),
    outputs=len(graph.outputs),
    arena=arena,
    weights=len(weights),
    at_once=at_once,
  )
  if not integers.is_sound(made, weights):
    raise ValueError(f'a piece of {len(graph.operations)} operations is beyond the limits of kernels')
  return made, weights
