"""Transposes of int8, moved behind what works entry by entry until they meet their inverse: a network that has its
channels first then runs with channels last and turns its input alone."""

from __future__ import annotations

import numpy as np

from jaxlite.deployment.operations import Graph, Operation, Value, pruned
from jaxlite.deployment.operations.rewriting import Editor, edited

_EACH = ('requantize', 'quantized_add', 'relu', 'clip')


def turned(graph: Graph) -> Graph:
  """Returns the same list with fewer transposes.

  >>> from jaxlite.deployment.operations import Batch
  >>> x, y = (Value((Batch(), *sizes), np.dtype(np.int8)) for sizes in ((2, 3), (3, 2)))
  >>> back = Operation('transpose', ('y',), ('z',), {'permutation': (0, 2, 1)})
  >>> both = (Operation('transpose', ('x',), ('y',), {'permutation': (0, 2, 1)}), back)
  >>> turned(Graph(('x',), ('z',), both, {'x': x, 'y': y, 'z': x}, {})).operations
  ()
  """
  while True:
    now = pruned(edited(graph, _behind))
    if now.operations == graph.operations:
      return now
    graph = now


def _behind(editor: Editor, one: Operation) -> str | None:
  makers = [editor.made.get(name) for name in one.inputs]
  if not makers or makers[0] is None or makers[0].kind != 'transpose':
    return None
  order, output = makers[0].attributes['permutation'], one.outputs[0]
  shape = editor.values[output].shape
  if one.kind == 'transpose':
    whole = tuple(order[axis] for axis in one.attributes['permutation'])
    if whole == tuple(range(len(whole))):
      return makers[0].inputs[0]
    return editor.add('transpose', makers[0].inputs, output, shape, permutation=whole)
  if one.kind == 'quantized_mean':
    axes = tuple(sorted(order[axis] for axis in one.attributes['axes']))
    kept = [axis for axis in order if axis not in axes]
    if kept != sorted(kept):
      return None
    return editor.put(one._replace(inputs=makers[0].inputs, attributes={**one.attributes, 'axes': axes}))
  if one.kind not in _EACH:
    return None
  operands = []
  for name, maker in zip(one.inputs, makers, strict=True):
    if maker is not None and maker.kind == 'transpose' and maker.attributes['permutation'] == order:
      operands.append(maker.inputs[0])
    elif name in editor.constants and editor.constants[name].ndim == len(order):
      back = np.argsort(order)
      sizes = tuple(editor.values[name].shape[axis] for axis in back)
      operands.append(editor.constant(name, editor.constants[name].transpose(back), sizes))
    else:
      return None
  inner = editor.fresh(output)
  editor.values[inner] = Value(tuple(shape[axis] for axis in np.argsort(order)), editor.values[output].dtype)
  editor.put(Operation(one.kind, tuple(operands), (inner,), one.attributes))
  return editor.add('transpose', [inner], output, shape, permutation=order)
