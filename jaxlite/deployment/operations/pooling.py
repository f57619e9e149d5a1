"""Max-pools in what they were written as: windows, or shifted slices; and what may stand in front of one."""

from __future__ import annotations

import functools
import itertools

import numpy as np

from jaxlite.deployment.operations import Graph, Operation, pruned
from jaxlite.deployment.operations.rewriting import Editor, edited


def pools(graph: Graph) -> Graph:
  """Returns the graph with its max-pools as such, and numbers added to each channel moved in front of them.

  The largest of several entries, each plus the same number, is the largest plus that number, to the bit: rounding does
  not change an order. In front of a pool a bias is part of the convolution.
  """
  inner = {name for one in graph.operations if one.kind == 'max' for name in one.inputs}
  graph = pruned(edited(graph, functools.partial(_pool, inner=inner)))
  return edited(graph, _bias_first)


def _pool(editor: Editor, one: Operation, inner: set[str]) -> str | None:
  if one.kind == 'reduce_window_max':
    return _windows(editor, one)
  return _slices(editor, one) if one.kind == 'max' and one.outputs[0] not in inner else None


def _windows(editor: Editor, one: Operation) -> str | None:
  told = one.attributes
  window, strides = told['window_dimensions'], told['window_strides']
  if {*told['base_dilation'], *told['window_dilation']} != {1} or len(window) < 3:
    return None
  edges = (window[0], window[-1], strides[0], strides[-1], *told['padding'][0], *told['padding'][-1])
  if edges != (1, 1, 1, 1, 0, 0, 0, 0):
    return None
  x, output = one.inputs[0], one.outputs[0]
  return editor.add(
    'max_pool',
    [x],
    output,
    editor.values[output].shape,
    window=window[1:-1],
    strides=strides[1:-1],
    padding=told['padding'][1:-1],
  )


def _slices(editor: Editor, one: Operation) -> str | None:
  """The largest of every entry of a window, each a slice of the same value with the strides of the pool."""
  leaves: list[Operation] = []
  todo = list(one.inputs)
  while todo:
    name = todo.pop()
    maker = editor.maker(name, 'slice') or editor.maker(name, 'max')
    if maker is None:
      return None
    if maker.kind == 'slice':
      leaves.append(maker)
    else:
      todo += maker.inputs
  source, strides = leaves[0].inputs[0], leaves[0].attributes.get('strides')
  if strides is None or any(each.inputs != (source,) or each.attributes.get('strides') != strides for each in leaves):
    return None
  shape, out = editor.values[source].shape, editor.values[one.outputs[0]].shape
  starts = sorted(each.attributes['start_indices'] for each in leaves)
  window = tuple(1 + max(start[axis] for start in starts) for axis in range(len(shape)))
  grid = sorted(itertools.product(*map(range, window)))
  if starts != grid or len(shape) < 3 or (window[0], window[-1], strides[0], strides[-1]) != (1, 1, 1, 1):
    return None
  for axis in range(1, len(shape) - 1):
    size = shape[axis]
    if not isinstance(size, int) or (size - window[axis]) // strides[axis] + 1 != out[axis]:
      return None
  nothing = ((0, 0),) * (len(shape) - 2)
  told = {'window': window[1:-1], 'strides': strides[1:-1], 'padding': nothing}
  return editor.add('max_pool', [source], one.outputs[0], out, **told)


def _bias_first(editor: Editor, one: Operation) -> str | None:
  """A number for each channel, added behind a pool: it is added in front of it."""
  if one.kind != 'add':
    return None
  known = [name in editor.constants for name in one.inputs]
  if known[0] == known[1]:
    return None
  number, x = one.inputs[known.index(True)], one.inputs[known.index(False)]
  pool, array = editor.maker(x, 'max_pool'), editor.constants[number]
  apart = editor.values[x] == editor.values[one.outputs[0]] and array.dtype.kind == 'f' and np.isfinite(array).all()
  if pool is None or not apart or (array.ndim and array.size != array.shape[-1]):
    return None
  before = editor.values[pool.inputs[0]].shape
  if array.size not in (1, before[-1]):
    return None
  wide = editor.constant(number, array.reshape((1,) * (len(before) - 1) + (-1,)))
  editor.values[wide] = editor.values[pool.inputs[0]]._replace(dtype=array.dtype)
  editor.drop(pool)
  name = editor.fresh(x)
  editor.values[name] = editor.values[pool.inputs[0]]
  editor.put(Operation('add', (pool.inputs[0], wide), (name,), {}))
  return editor.put(Operation('max_pool', (name,), one.outputs, pool.attributes))
