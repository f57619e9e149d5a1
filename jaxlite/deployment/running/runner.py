"""A list of integers as fast as this machine runs it: kernels of C where they are, XLA for the rest.

On a CPU the operations that kernels know become calls of `engine`; what is left, and everything on other platforms, is
`program`. Which of both runs is decided when a program is lowered. Integers are the same either way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax import lax

from jaxlite.cpu.kernels import integers
from jaxlite.deployment.operations import Graph
from jaxlite.deployment.running import kernels as engine
from jaxlite.deployment.running.kernel_forms import formed
from jaxlite.deployment.running.program import checked, program
from jaxlite.deployment.running.tables import tabled


def runner(graph: Graph) -> Callable[[Any], Any]:
  """Returns a graph as a function of its inputs, for `jax.jit` and any batch size, by kernels where there are any.

  Args:
    graph: of `integers.quantized`, or any.

  Returns:
    What `program.program` gives: the same integers, faster on a CPU with a C compiler.

  >>> import numpy as np
  >>> from jaxlite.deployment.operations.lowering import lower
  >>> fn = runner(lower(lambda p, x: x @ p + 1, np.eye(2, dtype='float32'), np.ones((1, 2), 'float32')))
  >>> fn(np.array([[1.0, 2.0]], 'float32')).tolist()
  [[2.0, 3.0]]
  """
  plain = program(graph)
  pieces = () if integers.missing() or jax.local_device_count('cpu') > 1 else engine.parted(formed(tabled(graph)))
  if not any(piece.by_kernels for piece in pieces):
    return plain
  steps = [(piece.graph, engine.network(piece.graph) if piece.by_kernels else None) for piece in pieces]

  def by_kernels(given: Mapping[str, Any]) -> Any:
    values = dict(given)
    for part, call in steps:
      inputs = {name: values[name] for name in part.inputs}
      found = call(*inputs.values()) if call else program(part)(inputs)
      values |= zip(part.outputs, found if isinstance(found, list | tuple) else (found,), strict=True)
    results = tuple(values[name] for name in graph.outputs)
    return results[0] if len(results) == 1 else results

  def run(inputs: Any) -> Any:
    return lax.platform_dependent(checked(graph, inputs), cpu=by_kernels, default=plain)

  return run
