"""Several operations that are one to any runtime: dense layers, convolutions, activations, means, softmax, tables.

A jaxpr says `max(x, 0)` and `sum / n`; a runtime is quick where it is told `relu` and `mean`. What is recognized here
has one form for every framework: channels last, kernels [outputs, space..., inputs], weights [inputs, outputs].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from jaxlite.deployment.operations import Batch, Graph, Operation, pruned
from jaxlite.deployment.operations.composites import composite
from jaxlite.deployment.operations.pooling import pools
from jaxlite.deployment.operations.rewriting import Editor, edited


def recognized(graph: Graph) -> Graph:
  """Returns the same program in larger operations.

  New kinds, beside those of `reference.RULES`: 'dense' (x [..., K], weight [K, N], bias [N] or none), 'conv' (x
  [B, space..., C], kernel [O, space..., C / groups], bias or none), 'relu', 'clip', 'mean', 'softmax', 'take' (rows of
  a table by index, from the end where negative), 'max_pool'.

  Args:
    graph: of `lowering.lower`.

  Returns:
    The Graph. Its results are those of `graph` up to the rounding of what was put together: a bias is added and a
    scale after a contraction multiplied into its weights.

  >>> from jaxlite.deployment.operations.lowering import lower
  >>> import jax, jax.numpy as jnp
  >>> fn = lambda p, x: jax.nn.relu(x @ p['w'] + p['b']) * 1.0
  >>> print(recognized(lower(fn, {'w': jnp.ones((3, 2)), 'b': jnp.ones(2)}, jnp.ones((1, 3)))))
  (input: float32[B,3]) -> v2: float32[B,2]
    v1 = dense(input, w, b_)  # float32[B,2]
    v2 = relu(v1)  # float32[B,2]
  """
  return completed(contracted(graph))


def contracted(graph: Graph) -> Graph:
  """The first half of `recognized`: contractions with constants and pools, nothing folded into them yet."""
  return _passed(graph, _plain, pools, _contractions, _plain)


def completed(graph: Graph) -> Graph:
  """The second half of `recognized`."""
  return _passed(graph, _folded, _activations, _composites, _plain)


def _passed(graph: Graph, *steps: Callable[[Graph], Graph]) -> Graph:
  for step in steps:
    graph = pruned(step(graph))
  return graph


# --- operations that are none, or simpler than they look ------------------------------------------------------------


def _plain(graph: Graph) -> Graph:
  return edited(graph, _simpler)


def _simpler(editor: Editor, one: Operation) -> str | None:
  kind, inputs, (output, *_) = one.kind, one.inputs, one.outputs
  shape = editor.values[output].shape
  first = inputs[0] if inputs else ''
  same = bool(inputs) and editor.values[first] == editor.values[output]
  if kind in ('add', 'sub', 'mul', 'div', 'max', 'min'):
    return _neutral(editor, one)
  if kind in ('reshape', 'squeeze', 'broadcast_in_dim'):
    if same:
      return first
    if kind == 'broadcast_in_dim' and not _only_ones(editor, one):
      return None
    before = editor.maker(first, 'reshape')  # of two, the last decides
    if before is not None and editor.values[before.inputs[0]] == editor.values[output]:
      return before.inputs[0]
    return editor.add('reshape', [before.inputs[0] if before else first], output, shape, new_sizes=shape)
  if kind == 'transpose':
    before = editor.maker(first, 'transpose')
    order = one.attributes['permutation']
    if before is not None:
      first, order = before.inputs[0], tuple(before.attributes['permutation'][axis] for axis in order)
    if order == tuple(range(len(order))):
      return first
    return editor.add('transpose', [first], output, shape, permutation=tuple(order))
  if kind == 'convert_element_type' and same:
    return first
  if kind == 'pad' and not any(map(any, one.attributes['padding_config'])):
    return first
  if same and (kind == 'slice' or one.attributes.get('axes') == ()):  # over no axis: some runtimes take none for all
    return first
  if kind == 'integer_pow' and one.attributes['y'] == 2:
    return editor.add('square', [first], output, shape)
  return None


def _only_ones(editor: Editor, one: Operation) -> bool:
  """Whether a broadcast only puts in axes of size 1."""
  inner, outer = editor.values[one.inputs[0]].shape, editor.values[one.outputs[0]].shape
  return [size for size in inner if size != 1] == [size for size in outer if size != 1]


def _neutral(editor: Editor, one: Operation) -> str | None:
  """What an operation with 0, 1 or an infinity leaves as it is."""
  nothing = {'add': 0.0, 'sub': 0.0, 'mul': 1.0, 'div': 1.0, 'max': -math.inf, 'min': math.inf}[one.kind]
  for index, other in enumerate(one.inputs):
    kept = one.inputs[1 - index]
    if index == 0 and one.kind in ('sub', 'div'):
      continue
    if editor.number(other) == nothing and editor.values[kept] == editor.values[one.outputs[0]]:
      return kept
  return None


# --- contractions ---------------------------------------------------------------------------------------------------


def _contractions(graph: Graph) -> Graph:
  return edited(graph, _contraction)


def _contraction(editor: Editor, one: Operation) -> str | None:
  if one.kind == 'dot_general':
    return _dense(editor, one)
  return _conv(editor, one) if one.kind == 'conv_general_dilated' else None


def _dense(editor: Editor, one: Operation) -> str | None:
  """A product with a constant, whichever stands first and whatever its axes."""
  known = [name in editor.constants for name in one.inputs]
  (contract, batch), (output,) = one.attributes['dimension_numbers'], one.outputs
  if known[0] == known[1] or any(batch):
    return None
  at = known.index(True)
  w, x = one.inputs[at], one.inputs[1 - at]
  shape = editor.values[x].shape
  inner, outer = contract[1 - at], contract[at]
  lead = [axis for axis in range(len(shape)) if axis not in inner]
  array = np.broadcast_to(editor.constants[w], editor.values[w].shape)
  free = [axis for axis in range(array.ndim) if axis not in outer]
  kept, added = tuple(shape[axis] for axis in lead), tuple(array.shape[axis] for axis in free)
  length, width = math.prod(array.shape[axis] for axis in outer), math.prod(added)
  x = _ordered(editor, x, (*lead, *inner))
  if len(inner) != 1:
    x = editor.add('reshape', [x], editor.fresh(x), (*kept, length), new_sizes=(*kept, length))
  plain = outer == (0,) and array.ndim == 2
  weight = w if plain else editor.constant(w, array.transpose(*outer, *free).reshape(length, width))
  swapped = at == 0 and lead and free
  result = output if len(free) == 1 and not swapped else editor.fresh(output)
  editor.values.setdefault(result, editor.values[output])
  editor.add('dense', [x, weight], result, (*kept, width))
  if len(free) != 1:
    last = editor.fresh(result) if swapped else output
    editor.values.setdefault(last, editor.values[output])
    result = editor.add('reshape', [result], last, (*kept, *added), new_sizes=(*kept, *added))
  if swapped:
    order = (*range(len(kept), len(kept) + len(added)), *range(len(kept)))
    return editor.add('transpose', [result], output, (*added, *kept), permutation=order)
  return output


def _ordered(editor: Editor, name: str, order: Sequence[int]) -> str:
  if tuple(order) == tuple(range(len(order))):
    return name
  shape = editor.values[name].shape
  turned = tuple(shape[axis] for axis in order)
  return editor.add('transpose', [name], editor.fresh(name), turned, permutation=tuple(order))


def _conv(editor: Editor, one: Operation) -> str | None:
  """A convolution with a constant kernel, brought to channels last."""
  x, w = one.inputs
  told, (output,) = one.attributes, one.outputs
  lhs, rhs, out = told['dimension_numbers']
  if w not in editor.constants or x in editor.constants or told['batch_group_count'] != 1:
    return None
  last = (lhs[0], *lhs[2:], lhs[1])
  kernel = np.broadcast_to(editor.constants[w], editor.values[w].shape).transpose(rhs[0], *rhs[2:], rhs[1])
  x = _ordered(editor, x, last)
  back = (out[0], *out[2:], out[1])  # where batch, space and channels stand in the result
  shape = editor.values[output].shape
  turned = tuple(shape[axis] for axis in back)
  plain = back == tuple(range(len(back)))
  result = output if plain else editor.fresh(output)
  editor.values.setdefault(result, editor.values[output])
  editor.add(
    'conv',
    [x, editor.constant(w, np.ascontiguousarray(kernel))],
    result,
    turned,
    strides=told['window_strides'],
    padding=told['padding'],
    dilation=told['rhs_dilation'],
    input_dilation=told['lhs_dilation'],
    groups=told['feature_group_count'],
  )
  if plain:
    return output
  order = tuple(int(axis) for axis in np.argsort(back))
  return editor.add('transpose', [result], output, shape, permutation=order)


# --- what follows a contraction entry by entry, put into it -----------------------------------------------------------


def _folded(graph: Graph) -> Graph:
  return edited(graph, _fold)


def _fold(editor: Editor, one: Operation) -> str | None:
  """Adds, subtracts, multiplies or divides the result of a contraction by a number for each output: part of it."""
  if one.kind not in ('add', 'sub', 'mul', 'div') or len(one.inputs) != 2:
    return None
  known = [name in editor.constants for name in one.inputs]
  if known[0] == known[1]:
    return None
  at = known.index(True)
  number, x = one.inputs[at], one.inputs[1 - at]
  if (shaped := editor.maker(x, 'reshape')) is not None:
    return _through_reshape(editor, one, shaped, at)
  maker = editor.maker(x, 'dense') or editor.maker(x, 'conv')
  if maker is None or editor.values[x] != editor.values[one.outputs[0]] or (one.kind == 'div' and at == 0):
    return None
  array = editor.constants[number]
  if array.ndim and array.size != array.shape[-1]:
    return None
  axis = 1 if maker.kind == 'dense' else 0
  weight = np.broadcast_to(editor.constants[maker.inputs[1]], editor.values[maker.inputs[1]].shape)
  width = weight.shape[axis]
  each = np.broadcast_to(array.reshape(-1), (width,)) if array.size in (1, width) else None
  if each is None or not np.isfinite(each).all() or not np.issubdtype(each.dtype, np.floating):
    return None
  bias = editor.constants[maker.inputs[2]] if len(maker.inputs) > 2 else np.zeros(width, each.dtype)
  scale = np.ones(width, each.dtype)
  if one.kind == 'mul':
    scale, bias = each, bias * each
  elif one.kind == 'div':
    with np.errstate(divide='ignore', invalid='ignore'):
      scale, bias = 1 / each, bias / each
  elif one.kind == 'sub':
    scale, bias = (scale, bias - each) if at == 1 else (-scale, each - bias)
  else:
    bias = bias + each
  if not np.isfinite(scale).all():  # of one result the quotient by 0 is infinite, of weights it would be none
    return None
  names = [maker.inputs[0], maker.inputs[1]]
  if (scale != 1).any():
    wide = scale.reshape([-1 if index == axis else 1 for index in range(weight.ndim)])
    names[1] = editor.constant(names[1], (weight * wide).astype(weight.dtype))
  plain = one.kind == 'add' and len(maker.inputs) == 2 and array.size == width
  if plain:
    name = editor.constant(number, array.reshape(-1)) if array.ndim != 1 else number
  else:
    name = editor.constant(number, bias.astype(each.dtype))
  editor.drop(maker)
  return editor.put(Operation(maker.kind, (*names, name), one.outputs, maker.attributes))


def _through_reshape(editor: Editor, one: Operation, shaped: Operation, at: int) -> str | None:
  """The same where the outputs of a dense layer are cut in several axes first (heads): done before they are cut."""
  inner = shaped.inputs[0]
  maker, number = editor.maker(inner, 'dense'), one.inputs[at]
  if maker is None or editor.values[shaped.outputs[0]] != editor.values[one.outputs[0]]:
    return None
  lead = len(editor.values[inner].shape) - 1
  before, after = editor.values[inner].shape, editor.values[shaped.outputs[0]].shape
  array = editor.constants[number]
  if len(after) <= lead or after[:lead] != before[:lead] or any(isinstance(size, Batch) for size in after[lead:]):
    return None
  wide = array.reshape((1,) * (len(after) - array.ndim) + array.shape)
  if any(size != 1 for size in wide.shape[:lead]):
    return None
  each = np.broadcast_to(wide, (1,) * lead + after[lead:]).reshape(-1)
  flat = editor.constant(number, each)
  names = (flat, inner) if at == 0 else (inner, flat)
  folded = _fold(editor, Operation(one.kind, names, (inner,), {}))  # by its name, which is still read once
  if folded is None:
    return None
  editor.drop(shaped)
  return editor.add('reshape', [folded], one.outputs[0], after, new_sizes=after)


# --- activations, means, softmax, tables ------------------------------------------------------------------------------


def _activations(graph: Graph) -> Graph:
  return edited(graph, _activation)


def _activation(editor: Editor, one: Operation) -> str | None:
  output = one.outputs[0]
  shape = editor.values[output].shape
  if one.kind in ('max', 'min'):
    for index, other in enumerate(one.inputs):
      bound, x = editor.number(other), one.inputs[1 - index]
      if bound is None or editor.values[x] != editor.values[output]:
        continue
      if one.kind == 'max':
        return editor.add('relu', [x], output, shape) if bound == 0 else None
      relu = editor.maker(x, 'relu')
      if relu is not None and bound >= 0:
        editor.drop(relu)
        return editor.add('clip', relu.inputs, output, shape, low=0.0, high=bound)
  if one.kind == 'clamp':
    low, high = editor.number(one.inputs[0]), editor.number(one.inputs[2])
    if low is not None and high is not None and low <= high and np.issubdtype(editor.values[output].dtype, np.floating):
      return editor.add('clip', [one.inputs[1]], output, shape, low=low, high=high)
  if one.kind in ('div', 'mul'):
    return _mean(editor, one)
  return None


def _mean(editor: Editor, one: Operation) -> str | None:
  """A sum divided by how many it summed."""
  for index, other in enumerate(one.inputs):
    number, x = editor.number(other), one.inputs[1 - index]
    shaped = editor.maker(x, 'reshape')  # an axis of size 1 in place of those that were summed
    total = editor.maker(shaped.inputs[0] if shaped else x, 'reduce_sum')
    if number is None or total is None or (one.kind == 'div' and index == 0):
      continue
    out = editor.values[one.outputs[0]].shape
    if shaped and [size for size in out if size != 1] != [
      size for size in editor.values[total.outputs[0]].shape if size != 1
    ]:
      return None
    if not np.issubdtype(editor.values[one.outputs[0]].dtype, np.floating):  # whole numbers are divided otherwise
      return None
    shape, axes = editor.values[total.inputs[0]].shape, total.attributes['axes']
    sizes = [shape[axis] for axis in axes]
    if any(isinstance(size, Batch) for size in sizes):
      return None
    count = math.prod(int(size) for size in sizes if isinstance(size, int))
    if number in (count, float(np.float32(1 / count))) and (number == count) == (one.kind == 'div'):
      editor.drop(total)
      if shaped is None:
        return editor.add('mean', total.inputs, one.outputs[0], out, axes=axes)
      editor.drop(shaped)
      name = editor.fresh(total.outputs[0])
      editor.values[name] = editor.values[total.outputs[0]]
      mean = editor.add('mean', total.inputs, name, editor.values[name].shape, axes=axes)
      return editor.add('reshape', [mean], one.outputs[0], out, new_sizes=out)
  return None


def _composites(graph: Graph) -> Graph:
  return edited(graph, composite)
