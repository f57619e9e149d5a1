"""What is computed entry by entry between two grids of int8 is a table of 256: its entries are computed here, once.

A GELU, a sigmoid, a scale between two quantized values costs a kernel one look then, whatever it is made of. Only those
who run integers themselves use this; files for others keep the operations that those know.
"""

from __future__ import annotations

import numpy as np

from jaxlite.deployment.operations import Batch, Graph, Operation, Value, pruned, reference

KIND = 'table'  # q int8, entries int8[256], the first for -128
_ENTRYWISE = frozenset({
  *('neg', 'abs', 'sign', 'exp', 'exp2', 'log', 'log1p', 'expm1', 'sqrt', 'rsqrt', 'cbrt', 'tanh', 'logistic', 'erf'),
  *('erfc', 'floor', 'ceil', 'sin', 'cos', 'square', 'integer_pow', 'add', 'sub', 'mul', 'div', 'max', 'min', 'pow'),
  *('relu', 'clip', 'clamp'),
})  # fmt: skip
_LONGEST = 40


def tabled(graph: Graph) -> Graph:
  """Puts every chain of operations from one int8 to another, entry by entry, into a table.

  Args:
    graph: of integers.

  Returns:
    The Graph with operations 'table' [q, entries int8[256]]; its integers are those that the chain has by
    `reference.run`.
  """
  made = {name: one for one in graph.operations for name in one.outputs}
  values, constants, operations = dict(graph.values), dict(graph.constants), []
  for one in graph.operations:
    found = _chain(graph, made, one) if one.kind == 'quantize' else None
    if found is None:
      operations.append(one)
      continue
    source, chain = found
    name = f'{one.outputs[0]}/table'
    while name in values:
      name += '_'
    constants[name] = _entries(graph, source, chain)
    values[name] = Value((256,), np.dtype(np.int8))
    operations.append(Operation(KIND, (source, name), one.outputs, {}))
  return pruned(Graph(graph.inputs, graph.outputs, tuple(operations), values, constants))


def _chain(graph: Graph, made: dict[str, Operation], last: Operation) -> tuple[str, list[Operation]] | None:
  """The int8 value that one is computed of, and by what; None where it is not of one alone."""
  shape = graph.values[last.outputs[0]].shape
  sources, found, waiting = set(), [last], [last.inputs[0]]
  seen: set[str] = set()
  while waiting:
    name = waiting.pop()
    if name in seen or name in graph.constants:
      if name in graph.constants and graph.constants[name].size != 1:
        return None
      continue
    seen.add(name)
    one = made.get(name)
    if one is None or graph.values[name].shape != shape or len(found) > _LONGEST:
      return None
    found.append(one)
    if one.kind == 'dequantize':
      if len(one.inputs) > 1 or graph.values[one.inputs[0]].dtype != np.int8:
        return None
      sources.add(one.inputs[0])
    elif one.kind in _ENTRYWISE:
      waiting.extend(one.inputs)
    else:
      return None
  if len(sources) != 1 or next(iter(sources)) in graph.constants:
    return None
  order = [one for one in graph.operations if one in found]
  return sources.pop(), order


def _entries(graph: Graph, source: str, chain: list[Operation]) -> np.ndarray:
  names = {name for one in chain for name in (*one.inputs, *one.outputs)}
  flat = (Batch(),)
  values = {name: Value(flat, graph.values[name].dtype) for name in names if name not in graph.constants}
  constants = {name: graph.constants[name].reshape(1) for name in names if name in graph.constants}
  values |= {name: Value(flat, array.dtype) for name, array in constants.items()}
  alone = Graph((source,), chain[-1].outputs, tuple(chain), values, constants)
  return np.asarray(reference.run(alone, np.arange(-128, 128).astype(np.int8)))
