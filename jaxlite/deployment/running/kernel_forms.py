"""Operations in the forms that kernels take: the batch stays first, and what consists of others is written by them."""

from __future__ import annotations

from typing import Any

from jaxlite.deployment.operations import Batch, Graph, Operation, Value, pruned
from jaxlite.deployment.operations.rewriting import Editor, edited

_EACH = ('quantize', 'dequantize', 'requantize', 'table', 'relu', 'clip')  # of one entry of one operand


def formed(graph: Graph) -> Graph:
  """Returns a graph of the same results whose slices come before transposes and whose softmaxes are written out."""
  for rule in (_entries, _slice, _transpose, _product, _reshape, _softmax):
    graph = pruned(edited(graph, rule))
  return graph


def _entries(editor: Editor, one: Operation) -> str | None:
  """What is done to each entry is done before entries are moved."""
  if one.kind not in _EACH:
    return None
  before = editor.made.get(one.inputs[0])
  if before is None or before.kind != 'transpose' or 'axis' in one.attributes:
    return None
  source, out = before.inputs[0], editor.values[one.outputs[0]]
  name = editor.fresh(source)
  editor.values[name] = Value(editor.values[source].shape, out.dtype)
  editor.put(Operation(one.kind, (source, *one.inputs[1:]), (name,), one.attributes))
  return editor.put(Operation('transpose', (name,), one.outputs, before.attributes))


def _slice(editor: Editor, one: Operation) -> str | None:
  """A slice of what is turned is what is sliced, turned: rows are read as they lie then."""
  if one.kind != 'slice':
    return None
  before = editor.made.get(one.inputs[0])
  if before is None or before.kind != 'transpose':
    return None
  order, told = before.attributes['permutation'], dict(one.attributes)
  back = [order.index(axis) for axis in range(len(order))]
  shape = editor.values[one.outputs[0]].shape
  for key in ('start_indices', 'limit_indices', 'strides'):
    if told.get(key) is not None:
      told[key] = tuple(told[key][axis] for axis in back)
  name = editor.fresh(before.inputs[0])
  cut = editor.add('slice', [before.inputs[0]], name, tuple(shape[axis] for axis in back), **told)
  return editor.add('transpose', [cut], one.outputs[0], shape, permutation=order)


def _transpose(editor: Editor, one: Operation) -> str | None:
  """Where only axes of length 1 move, nothing does."""
  if one.kind != 'transpose':
    return None
  shape = editor.values[one.inputs[0]].shape
  kept = [axis for axis in one.attributes['permutation'] if shape[axis] != 1]
  if kept != sorted(kept):
    return None
  out = editor.values[one.outputs[0]].shape
  return editor.add('reshape', one.inputs, one.outputs[0], out, new_sizes=out)


def _product(editor: Editor, one: Operation) -> str | None:
  """A product that is turned so that its first operand's axis is the innermost has its operands exchanged: rows of the
  result are copied as they lie then, and it is the same sums."""
  if one.kind != 'transpose':
    return None
  chain = [one]
  while chain[-1].kind in ('transpose', *_EACH) and (len(chain) == 1 or 'axis' not in chain[-1].attributes):
    before = editor.made.get(chain[-1].inputs[0])
    if before is None or editor.uses.get(before.outputs[0], 0) != 1 or before.kind == 'transpose':
      return None
    chain.append(before)
  *_, product = chain
  if product.kind not in ('dot_general', 'quantized_dot'):
    return None
  summed, batch = product.attributes['dimension_numbers']
  shape, order = editor.values[product.outputs[0]].shape, one.attributes['permutation']
  first = len(batch[0])
  if not first or len(shape) != first + 2 or order[-1] != first:
    return None
  exchanged = {'a_': 'b_', 'b_': 'a_'}
  told = {exchanged.get(key[:2], key[:2]) + key[2:]: value for key, value in product.attributes.items()}
  told['dimension_numbers'] = (summed[::-1], batch[::-1])
  name = ''
  for step in chain[:0:-1]:  # the product, then what is done to its entries
    inputs = product.inputs[::-1] if step is product else (name, *step.inputs[1:])
    name = editor.fresh(step.outputs[0])
    editor.values[name] = Value((*shape[:first], shape[-1], shape[-2]), editor.values[step.outputs[0]].dtype)
    editor.put(Operation(step.kind, inputs, (name,), told if step is product else step.attributes))
  turned = tuple({first: first + 1, first + 1: first}.get(axis, axis) for axis in order)
  return editor.put(Operation('transpose', (name,), one.outputs, {**one.attributes, 'permutation': turned}))


def _reshape(editor: Editor, one: Operation) -> str | None:
  """Of several, the last decides."""
  before = editor.made.get(one.inputs[0]) if one.kind == 'reshape' else None
  if before is None or before.kind != 'reshape':
    return None
  out = editor.values[one.outputs[0]].shape
  return editor.add('reshape', before.inputs, one.outputs[0], out, new_sizes=out)


def _softmax(editor: Editor, one: Operation) -> str | None:
  if one.kind != 'softmax':
    return None
  x, axis = one.inputs[0], one.attributes['axis']
  shape = editor.values[x].shape
  if axis != len(shape) - 1 or isinstance(shape[-1], Batch):
    return None
  kept: tuple[Any, ...] = (*shape[:-1], 1)

  def over(kind: str, name: str) -> str:
    found = editor.add(kind, [name], editor.fresh(name), shape[:-1], axes=(axis,))
    return editor.add('reshape', [found], editor.fresh(found), kept, new_sizes=kept)

  less = editor.add('sub', [x, over('reduce_max', x)], editor.fresh(x), shape)
  risen = editor.add('exp', [less], editor.fresh(less), shape)
  return editor.add('div', [risen, over('reduce_sum', risen)], one.outputs[0], shape)
