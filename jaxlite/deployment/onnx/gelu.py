"""GELU as one operation: what frameworks write as eight, known by what it computes, not by how it is written.

References:
  Hendrycks and Gimpel, Gaussian Error Linear Units (GELUs), 2016, https://arxiv.org/abs/1606.08415
"""

from __future__ import annotations

import math

import numpy as np

from jaxlite.deployment.operations import Graph, Operation, pruned
from jaxlite.deployment.operations.folding import applied
from jaxlite.deployment.operations.rewriting import Editor, edited

KIND = 'gelu'  # x; approximate, 'tanh' or 'none'. Of ONNX alone
OPSET = 20  # which has a word for it

_PARTS = frozenset(['mul', 'add', 'sub', 'div', 'neg', 'square', 'integer_pow', 'tanh', 'erf', 'erfc'])
_MOST = 12  # operations of one
_PROBES = np.linspace(-6, 6, 241).astype(np.float32)
_CLOSE = 3e-6  # where the two forms differ by 5e-4


def with_gelu(graph: Graph) -> Graph:
  """Returns the graph with each GELU as one operation."""
  return pruned(edited(graph, _gelu))


def _gelu(editor: Editor, one: Operation) -> str | None:
  value = editor.values[one.outputs[0]]
  if one.kind != 'mul' or value.dtype != np.float32:
    return None
  for x in _sources(editor, one):
    steps = _cone(editor, one, x)
    if steps is None or editor.values[x] != value or not any(step.kind in ('tanh', 'erf', 'erfc') for step in steps):
      continue
    found = _probed(editor, steps, x)
    for approximate, wanted in (('tanh', _BY_TANH), ('none', _BY_ERF)):
      if found is not None and (np.abs(found - wanted) <= _CLOSE * (1 + np.abs(_PROBES))).all():
        return editor.add(KIND, [x], one.outputs[0], value.shape, approximate=approximate)
  return None


def _sources(editor: Editor, one: Operation) -> list[str]:
  """What may be x in x * share(x), or in half of that."""
  found = [name for name in one.inputs if name not in editor.constants]
  for name in tuple(found):
    inner = editor.made.get(name)
    if inner is not None and inner.kind in ('mul', 'div'):
      found += [each for each in inner.inputs if each not in editor.constants]
  return list(dict.fromkeys(found))


def _cone(editor: Editor, last: Operation, x: str) -> list[Operation] | None:
  """The operations between x and a result, in order, where they work entry by entry on x and single numbers alone."""
  steps: dict[str, Operation] = {}

  def reach(one: Operation) -> bool:
    if one.kind not in _PARTS or len(steps) > _MOST:
      return False
    for name in one.inputs:
      if name == x or editor.number(name) is not None or name in steps:
        continue
      inner = editor.made.get(name)
      if inner is None or not reach(inner):
        return False
    steps[one.outputs[0]] = one
    return True

  return list(steps.values()) if reach(last) else None


def _probed(editor: Editor, steps: list[Operation], x: str) -> np.ndarray | None:
  values = {x: _PROBES}
  for one in steps:
    operands = [values[name] if name in values else np.float32(editor.number(name)) for name in one.inputs]
    (result,) = applied(one, operands)
    values[one.outputs[0]] = np.asarray(result, np.float32)
  found = values[steps[-1].outputs[0]]
  return found if found.shape == _PROBES.shape else None


_WIDE = _PROBES.astype(np.float64)
_BY_TANH = 0.5 * _WIDE * (1 + np.tanh(math.sqrt(2 / math.pi) * (_WIDE + 0.044715 * _WIDE**3)))
_BY_ERF = 0.5 * _WIDE * (1 + np.vectorize(math.erf)(_WIDE / math.sqrt(2)))
