"""Softmax and look-ups in a table, in what they were written as."""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import numpy as np

from jaxlite.deployment.operations import Operation, Value
from jaxlite.deployment.operations.rewriting import Editor


def composite(editor: Editor, one: Operation) -> str | None:
  """A rule for `rewriting.edited`: the last operation of a softmax or of a look-up becomes it."""
  if one.kind == 'div':
    return _softmax(editor, one) or _softmax_of_product(editor, one)
  return _take(editor, one) if one.kind == 'gather' else None


def _made(editor: Editor, name: str, *kinds: str) -> Operation | None:
  one = editor.made.get(name)
  return one if one is not None and one.kind in kinds else None


def _through(editor: Editor, name: str) -> str:
  """The value before reshapes and broadcasts that only put in axes."""
  while (one := _made(editor, name, 'reshape', 'broadcast_in_dim')) is not None:
    name = one.inputs[0]
  return name


class _Risen(NamedTuple):
  """exp(x - max(x)) along one axis, and the value that is its sum."""

  x: str
  axis: int


def _risen(editor: Editor, name: str, total: Operation | None) -> _Risen | None:
  """What was risen, where `total` is its sum along the axis of the largest."""
  top = _made(editor, name, 'exp')
  if top is None or total is None or total.inputs != (name,):
    return None
  less = _made(editor, top.inputs[0], 'sub')
  if less is None:
    return None
  most = _made(editor, _through(editor, less.inputs[1]), 'reduce_max')
  axes = total.attributes['axes']
  if most is None or most.inputs[0] != less.inputs[0] or most.attributes['axes'] != axes or len(axes) != 1:
    return None
  shape = editor.values[name].shape
  kept = tuple(1 if axis == axes[0] else size for axis, size in enumerate(shape))
  return None if editor.values[less.inputs[1]].shape != kept else _Risen(less.inputs[0], axes[0])


def _softmax(editor: Editor, one: Operation) -> str | None:
  """exp(x - max(x)) / sum(exp(x - max(x))), along one axis."""
  risen = _risen(editor, one.inputs[0], _made(editor, _through(editor, one.inputs[1]), 'reduce_sum'))
  shape = editor.values[one.outputs[0]].shape
  if risen is None:
    return None
  kept = tuple(1 if axis == risen.axis else size for axis, size in enumerate(shape))
  if editor.values[one.inputs[1]].shape != kept:
    return None  # the sum of other rows
  return editor.add('softmax', [risen.x], one.outputs[0], shape, axis=risen.axis)


def _softmax_of_product(editor: Editor, one: Operation) -> str | None:
  """Attention that divides behind the second product, where there is less to divide: a runtime has softmax."""
  shape = editor.values[one.outputs[0]].shape
  turned = editor.maker(one.inputs[0], 'transpose')
  product = editor.maker(turned.inputs[0] if turned else one.inputs[0], 'dot_general')
  if product is None or editor.values[one.inputs[0]].shape != shape:
    return None
  (inner, batch), free = product.attributes['dimension_numbers'], []  # of each operand
  for name, *taken in zip(product.inputs, inner, batch, strict=True):
    rank = len(editor.values[name].shape)
    free.append([axis for axis in range(rank) if axis not in (*taken[0], *taken[1])])
  order = turned.attributes['permutation'] if turned else tuple(range(len(shape)))
  for at, name in enumerate(product.inputs):
    total = _made(editor, _source(editor, one.inputs[1]), 'reduce_sum')
    risen = _risen(editor, name, total)
    if risen is None or total is None or inner[at] != (risen.axis,) or editor.uses.get(name) != 2:
      continue
    # Of each axis of the result the one of what was risen; None where it is the other operand's, or of size 1.
    of_product = [*batch[at], *(free[0] if at == 0 else [None] * len(free[0]))]
    of_product += free[1] if at == 1 else [None] * len(free[1])
    rows = editor.values[name].shape
    wanted = [None if of_product[axis] is None or rows[of_product[axis]] == 1 else of_product[axis] for axis in order]
    if _labels(editor, one.inputs[1], total, risen.axis) != wanted:
      continue
    fresh = editor.fresh(name)
    editor.values[fresh] = editor.values[name]
    soft = editor.add('softmax', [risen.x], fresh, rows, axis=risen.axis)
    inputs = tuple(soft if each == at else other for each, other in enumerate(product.inputs))
    editor.drop(product)
    if turned is None:
      return editor.put(product._replace(inputs=inputs, outputs=one.outputs))
    editor.drop(turned)
    made = editor.fresh(product.outputs[0])
    editor.values[made] = editor.values[product.outputs[0]]
    editor.put(product._replace(inputs=inputs, outputs=(made,)))
    return editor.put(turned._replace(inputs=(made,), outputs=one.outputs))
  return None


def _source(editor: Editor, name: str) -> str:
  """The value before its axes were turned, or given ones of size 1."""
  while (one := _made(editor, name, 'reshape', 'broadcast_in_dim', 'transpose')) is not None:
    name = one.inputs[0]
  return name


def _labels(editor: Editor, name: str, total: Operation, summed: int) -> list[int | None] | None:
  """Of each axis of a value that is made of a sum the axis of what was summed; None where its size is 1."""
  shape = editor.values[name].shape
  if name == total.outputs[0]:
    axes = [axis for axis in range(len(editor.values[total.inputs[0]].shape)) if axis != summed]
    return [None if size == 1 else axis for axis, size in zip(axes, shape, strict=True)]
  one = _made(editor, name, 'reshape', 'broadcast_in_dim', 'transpose')
  before = None if one is None else _labels(editor, one.inputs[0], total, summed)
  if one is None or before is None:
    return None
  if one.kind == 'transpose':
    return [before[axis] for axis in one.attributes['permutation']]
  sizes = [size for size in editor.values[one.inputs[0]].shape if size != 1]
  if sizes != [size for size in shape if size != 1]:
    return None  # axes joined, cut or repeated
  left = iter([label for label in before if label is not None])
  return [None if size == 1 else next(left) for size in shape]


def _pairs(chosen: Operation) -> tuple[tuple[str, str], tuple[str, str]]:
  return (chosen.inputs[0], 'lt'), (chosen.inputs[2], 'add')


def _take(editor: Editor, one: Operation) -> str | None:
  """Rows of a constant table."""
  table, indices = one.inputs
  offset, collapsed, start, *batching = one.attributes['dimension_numbers']
  shape, out = editor.values[table].shape, editor.values[one.outputs[0]].shape
  rank, rows = len(editor.values[indices].shape) - 1, shape[0]
  whole = one.attributes['slice_sizes'] == (1, *shape[1:])
  if table not in editor.constants or any(batching) or not whole or not isinstance(rows, int):
    return None
  if collapsed not in ((0,), ()) or offset != tuple(range(rank, rank + len(shape) - len(collapsed))):
    return None
  if start != (0,):  # a slice of each example, as of an index under vmap: it begins at 0 along axes that it takes whole
    column = _column(editor, indices, start.index(0)) if 0 in start and one.attributes['mode'] == 'clip' else None
    if column is None:
      return None
    indices = column
  ids = _through(editor, indices)
  if editor.values[ids].shape != editor.values[indices].shape[:-1]:
    return None
  widened, dtype = _made(editor, ids, 'convert_element_type'), editor.values[ids].dtype
  if widened is not None and _widens(editor.values[widened.inputs[0]].dtype, dtype):
    ids = widened.inputs[0]  # bytes, say, that were made wide to look up by
  plain, least = _from_the_end(editor, ids, rows), -rows
  if plain is None:  # none counts from the end, or none can
    plain, least = ids, 0
    if one.attributes['mode'] == 'fill_or_drop' and editor.values[ids].dtype.kind != 'u':
      return None
  if editor.values[plain].dtype.itemsize < 4:  # bytes, say, by which few runtimes look up
    wide = editor.fresh(plain)
    editor.values[wide] = Value(editor.values[plain].shape, np.dtype(np.int32))
    plain = editor.add('convert_element_type', [plain], wide, editor.values[wide].shape, new_dtype='int32')
  if one.attributes['mode'] != 'fill_or_drop':  # beyond the table is its nearest row, also where nobody said so
    plain = _within(editor, plain, least, rows - 1)
  found = one.outputs[0] if collapsed else editor.fresh(one.outputs[0])
  editor.values.setdefault(found, editor.values[one.outputs[0]])
  editor.add('take', [table, plain], found, (*editor.values[plain].shape, *shape[1:]))
  return found if collapsed else editor.add('reshape', [found], one.outputs[0], out, new_sizes=out)


def _column(editor: Editor, indices: str, at: int) -> str | None:
  """One number of each place [..., 1], where the numbers of a place were put side by side."""
  joined, rank = _made(editor, indices, 'concatenate'), len(editor.values[indices].shape)
  if joined is None or joined.attributes['dimension'] != rank - 1:
    return None
  widths = [editor.values[name].shape[-1] for name in joined.inputs]
  ends = dict(zip(itertools.accumulate(widths, initial=0), zip(joined.inputs, widths, strict=True), strict=False))
  name, width = ends.get(at, ('', 0))
  return name if width == 1 else None


def _from_the_end(editor: Editor, ids: str, rows: int) -> str | None:
  """What is counted from the end where it is negative, as 'take' does by itself."""
  chosen = _made(editor, ids, 'select_n')
  less, more = (_made(editor, name, kind) for name, kind in _pairs(chosen)) if chosen else (None, None)
  if chosen is None or less is None or more is None or {less.inputs[0], more.inputs[0]} != {chosen.inputs[1]}:
    return None
  ends = editor.number(less.inputs[1]), editor.number(more.inputs[1])
  unsigned = editor.values[ids].dtype.kind == 'u'  # of which none is negative, whatever would be added
  return chosen.inputs[1] if ends[0] == 0 and (unsigned or ends[1] == rows) else None


def _widens(one: np.dtype[Any], other: np.dtype[Any]) -> bool:
  return one.kind in 'iu' and other.kind in 'iu' and np.can_cast(one, other)


def _within(editor: Editor, ids: str, low: int, high: int) -> str:
  """Whole numbers cut to bounds, where their dtype and what made them may leave these."""
  before = _made(editor, ids, 'clip', 'convert_element_type')
  held = np.iinfo(editor.values[ids].dtype)
  least, most = int(held.min), int(held.max)
  if before is not None and before.kind == 'clip':
    least, most = before.attributes['low'], before.attributes['high']
  elif before is not None and _widens(narrow := editor.values[before.inputs[0]].dtype, editor.values[ids].dtype):
    least, most = int(np.iinfo(narrow).min), int(np.iinfo(narrow).max)
  if low <= least and most <= high:
    return ids
  bounds = {'low': max(low, int(held.min)), 'high': min(high, int(held.max))}
  return editor.add('clip', [ids], editor.fresh(ids), editor.values[ids].shape, **bounds)
