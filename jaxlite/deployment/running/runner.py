"""A list of integers as fast as this machine runs it: kernels of C where they are, XLA for the rest.

On a CPU the operations that kernels know become calls of `engine`; what is left, and everything on other platforms, is
`program`. Which of both runs is decided when a program is lowered. Integers are the same either way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax import lax

from jaxlite.cpu.kernels import integers
from jaxlite.deployment.operations import Graph
from jaxlite.deployment.running import kernels as engine
from jaxlite.deployment.running.kernel_forms import formed
from jaxlite.deployment.running.program import batch_of, checked, computed, program, value_of
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
  steps = [(piece.graph, _by_kernels(piece)) for piece in pieces]
  if all(call is None for _, call in steps):
    return plain

  def by_kernels(given: Mapping[str, Any]) -> Any:
    values = dict(given)
    batch = batch_of(graph, values)
    for part, call in steps:
      if call:
        values |= zip(part.outputs, call(*(values[name] for name in part.inputs)), strict=True)
        continue
      for one in part.operations:
        values |= computed(part, one, values, batch)
    results = tuple(value_of(graph, name, values, batch) for name in graph.outputs)
    return results[0] if len(results) == 1 else results

  def run(inputs: Any) -> Any:
    return once(checked(graph, inputs))

  @jax.custom_jvp
  def once(given: dict[str, Any]) -> Any:
    return lax.platform_dependent(given, cpu=by_kernels, default=plain)

  @once.defjvp
  def slopes(given: Any, tangents: Any) -> Any:
    if any(graph.values[name].dtype == np.int8 for one in graph.operations for name in one.outputs):
      raise ValueError(
        'a network of integers has no gradient, since it rounds; differentiate the model that it was made of'
      )
    return jax.jvp(plain, given, tangents)

  return run


def _by_kernels(piece: engine.Piece) -> Callable[..., Any] | None:
  if not piece.by_kernels:
    return None
  try:
    return engine.network(piece.graph)
  except ValueError:  # beyond the limits of kernels: XLA has none
    return None
