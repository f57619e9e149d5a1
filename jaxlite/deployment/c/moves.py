"""Operations that move, choose and gather entries as steps of C: views where nothing needs to move."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from jaxlite.deployment.c import scalars as c_scalars
from jaxlite.deployment.c.steps import Builder, View, added, broadcast, copied, nest, whole_strides
from jaxlite.deployment.c.text import number, type_of
from jaxlite.deployment.operations import Operation
from jaxlite.deployment.operations.edges import nothing_of


def _same(b: Builder, one: Operation, view: View) -> None:
  """The result is a view; of another dtype where the graph says so, which these operations never do."""
  b.views[one.outputs[0]] = view


def _reshape(b: Builder, one: Operation) -> None:
  name, shape = one.inputs[0], b.shape(one.outputs[0])
  view = b.view(name)
  strides = restrided(view, shape)
  if strides is None:
    view = b.views[name] = copied(b, view, f'{name} side by side')
    strides = whole_strides(shape)
  _same(b, one, View(view.buffer, view.offset, strides, shape))


def restrided(view: View, shape: Sequence[int]) -> tuple[int, ...] | None:
  """Returns the strides of a view as another shape; None where its entries would have to move.

  >>> restrided(View('a', 0, (12, 4, 1), (2, 3, 4)), (6, 2, 2)), restrided(View('a', 0, (1, 2), (2, 3)), (6,))
  ((4, 2, 1), None)
  """
  if view.contiguous or 0 in shape:
    return whole_strides(shape)
  old = [(size, step) for size, step in zip(view.shape, view.strides, strict=True) if size != 1]
  found: list[int] = []
  index = 0
  for size in shape:
    if size == 1:
      found.append(0)
      continue
    if index == len(old):
      return None
    wide, step = old[index]
    while wide < size or wide % size:  # this axis and those after it must lie in one row
      if index + 1 == len(old) or step != old[index + 1][0] * old[index + 1][1]:
        return None
      wide, step = wide * old[index + 1][0], old[index + 1][1]
      del old[index]
      old[index] = (wide, step)
    found.append(step * (wide // size))
    old[index] = (wide // size, step)
    if wide == size:
      index += 1
  return tuple(found)


def _transpose(b: Builder, one: Operation) -> None:
  view, order = b.view(one.inputs[0]), one.attributes['permutation']
  shape = tuple(view.shape[axis] for axis in order)
  _same(b, one, View(view.buffer, view.offset, tuple(view.strides[axis] for axis in order), shape))


def _broadcast(b: Builder, one: Operation) -> None:
  view, shape = b.view(one.inputs[0]), b.shape(one.outputs[0])
  strides = [0] * len(shape)
  for axis, size, step in zip(one.attributes['broadcast_dimensions'], view.shape, view.strides, strict=True):
    strides[axis] = 0 if size == 1 else step
  _same(b, one, View(view.buffer, view.offset, tuple(strides), shape))


def _slice(b: Builder, one: Operation) -> None:
  view, shape = b.view(one.inputs[0]), b.shape(one.outputs[0])
  starts, steps = one.attributes['start_indices'], one.attributes.get('strides') or (1,) * len(shape)
  offset = view.offset + sum(start * step for start, step in zip(starts, view.strides, strict=True))
  strides = tuple(times * step for times, step in zip(steps, view.strides, strict=True))
  _same(b, one, View(view.buffer, offset if 0 not in shape else view.offset, strides, shape))


def _rev(b: Builder, one: Operation) -> None:
  view, axes = b.view(one.inputs[0]), one.attributes['dimensions']
  ends = [(view.shape[axis] - 1) * view.strides[axis] for axis in axes if view.shape[axis]]
  strides = tuple(-step if axis in axes else step for axis, step in enumerate(view.strides))
  _same(b, one, View(view.buffer, view.offset + sum(ends), strides, view.shape))


def _concatenate(b: Builder, one: Operation) -> None:
  axis, shape = one.attributes['dimension'], b.shape(one.outputs[0])
  target, lines, inputs, start = whole_strides(shape), [], [], 0
  for name in one.inputs:
    view = b.view(name)
    place = (view.buffer, view.offset)
    begin = str(start * target[axis])

    def body(at: Sequence[str], index: int = len(inputs)) -> list[str]:
      return [f'out[{at[0]}] = a{index}[{at[1]}];']

    inputs.append(place)
    lines += nest(view.shape, (target, view.strides), body, first=[begin, '0'])
    start += view.shape[axis]
  b.put(one, '\n'.join(lines), inputs)


def _pad(b: Builder, one: Operation) -> None:
  name, filling = one.inputs
  config, shape, view = one.attributes['padding_config'], b.shape(one.outputs[0]), b.view(name)
  target = whole_strides(shape)
  inputs = [(view.buffer, view.offset)]
  value = b.scalar(filling)
  if value is None:
    other = b.view(filling)
    inputs.append((other.buffer, other.offset))
    text = 'a1[0]'
  else:
    text = number(value, b.dtype(filling))
  lines = nest(shape, (target,), lambda at: [f'out[{at[0]}] = {text};'])
  begin, offset, strides, sizes = 0, view.offset, [], []
  for axis, (low, _, inside) in enumerate(config):
    step, size = inside + 1, view.shape[axis]
    first = max(0, -(low // step))  # the first entry that stands inside the result, and how many do
    last = min(size, (shape[axis] - 1 - low) // step + 1)
    sizes.append(max(0, last - first))
    begin += (low + first * step) * target[axis]
    offset += first * view.strides[axis]
    strides.append(step * target[axis])
  if 0 not in sizes:
    inputs[0] = (view.buffer, offset)
    lines += nest(sizes, (strides, view.strides), lambda at: [f'out[{at[0]}] = a0[{at[1]}];'], first=[str(begin), '0'])
  b.put(one, '\n'.join(lines), inputs)


def _take(b: Builder, one: Operation) -> None:
  """Rows of a table; what lies outside it is filled as JAX fills it."""
  table, ids = one.inputs
  shape = b.shape(table)
  rows, width = shape[0], shape[1:]
  source, where, nothing = b.view(table), b.view(ids), _nothing(b.dtype(table))
  target = whole_strides(b.shape(one.outputs[0]))
  lead = len(where.shape)
  kind = type_of(b.dtype(ids), ids)
  negative = '' if b.dtype(ids).kind in 'ub' else f' < 0 ? (long)id + {rows} : (long)id'

  def body(at: list[str]) -> list[str]:
    inner = nest(
      width,
      (target[lead:], source.strides[1:]),
      lambda to: [f'out[{to[0]}] = inside ? a0[{to[1]}] : {nothing};'],
      'j',
      [at[0], added('0', 'row', source.strides[0])],
    )
    head = [f'const {kind} id = a1[{at[1]}];', f'const long place = (long)id{negative};']
    head += [f'const int inside = place >= 0 && place < {rows};', 'const long row = inside ? place : 0;']
    return [*head, *inner]

  lines = nest(where.shape, (target[:lead], where.strides), body)
  if rows == 0:
    lines = nest(b.shape(one.outputs[0]), (target,), lambda at: [f'out[{at[0]}] = {nothing};'])
  b.put(one, '\n'.join(lines), [(source.buffer, source.offset), (where.buffer, where.offset)])


def _nothing(dtype: np.dtype) -> str:
  return 'NAN' if c_scalars.floating(dtype) else number(nothing_of(dtype), dtype)


def _gather(b: Builder, one: Operation) -> None:
  table, indices = one.inputs
  offset_dims, collapsed, start_map, *_ = one.attributes['dimension_numbers']
  sizes, mode = one.attributes['slice_sizes'], one.attributes['mode']
  source, where, shape = b.view(table), b.view(indices), b.shape(one.outputs[0])
  target = whole_strides(shape)
  kept = [axis for axis in range(len(sizes)) if axis not in collapsed]
  rest = [axis for axis in range(len(shape)) if axis not in offset_dims]
  inner_to, inner_from = [target[axis] for axis in offset_dims], [source.strides[axis] for axis in kept]
  nothing, lead = _nothing(b.dtype(table)), where.shape[:-1]

  def body(at: list[str]) -> list[str]:
    lines = ['long place = 0;', 'int inside = 1;']
    for index, axis in enumerate(start_map):
      entry = added(at[1], str(index), where.strides[-1]) if index else at[1]
      limit = source.shape[axis] - sizes[axis]
      lines += [
        f'long k{index} = (long)a1[{entry}];',
        f'inside = inside && k{index} >= 0 && k{index} <= {limit};',
        f'k{index} = k{index} < 0 ? 0 : k{index} > {limit} ? {limit} : k{index};',
        f'place += k{index} * {source.strides[axis]};',
      ]
    value = f'inside ? a0[{{0}}] : {nothing}' if mode == 'fill_or_drop' else 'a0[{0}]'
    lines += [] if mode == 'fill_or_drop' else ['(void)inside;']
    return lines + nest(
      [sizes[axis] for axis in kept],
      (inner_to, inner_from),
      lambda to: [f'out[{to[0]}] = {value.format(to[1])};'],
      'j',
      [at[0], 'place'],
    )

  lines = nest(lead, ([target[axis] for axis in rest], where.strides[:-1]), body)
  b.put(one, '\n'.join(lines), [(source.buffer, source.offset), (where.buffer, where.offset)])


def _dynamic_slice(b: Builder, one: Operation) -> None:
  name, *starts = one.inputs
  sizes, view = one.attributes['slice_sizes'], b.view(name)
  inputs, lines = [(view.buffer, view.offset)], ['long place = 0;']
  for axis, start in enumerate(starts):
    limit = view.shape[axis] - sizes[axis]
    if limit == 0 or view.strides[axis] == 0:
      continue
    where = b.view(start)
    lines += [
      f'const long k{axis} = (long)a{len(inputs)}[0];',
      f'place += (k{axis} < 0 ? 0 : k{axis} > {limit} ? {limit} : k{axis}) * {view.strides[axis]};',
    ]
    inputs.append((where.buffer, where.offset))
  target = whole_strides(sizes)
  lines += nest(sizes, (target, view.strides), lambda at: [f'out[{at[0]}] = a0[{at[1]}];'], first=['0', 'place'])
  b.put(one, '\n'.join(lines), inputs)


def _sort(b: Builder, one: Operation) -> None:
  """By insertion; NaN last."""
  axis, shape, view = one.attributes['dimension'], b.shape(one.outputs[0]), b.view(one.inputs[0])
  target, dtype = whole_strides(shape), b.dtype(one.inputs[0])
  step = target[axis]
  after = 'out[{0}] > value' + (' || (out[{0}] != out[{0}] && value == value)' if c_scalars.floating(dtype) else '')

  def body(at: list[str]) -> list[str]:
    before = added(at[0], '(k - 1)', step)
    return [
      f'for (long n = 0; n < {shape[axis]}; ++n) {{',
      f'  const {type_of(dtype, "sort")} value = a0[{added(at[1], "n", view.strides[axis])}];',
      '  long k = n;',
      f'  for (; k > 0 && ({after.format(before)}); --k) out[{added(at[0], "k", step)}] = out[{before}];',
      f'  out[{added(at[0], "k", step)}] = value;',
      '}',
    ]

  outer = [1 if index == axis else size for index, size in enumerate(shape)]
  lines = nest(outer if shape[axis] else [0], (target, view.strides), body)
  b.put(one, '\n'.join(lines), [(view.buffer, view.offset)])


RULES: dict[str, Callable[[Builder, Operation], None]] = {
  'reshape': _reshape,
  'squeeze': _reshape,
  'transpose': _transpose,
  'broadcast_in_dim': _broadcast,
  'slice': _slice,
  'rev': _rev,
  'concatenate': _concatenate,
  'pad': _pad,
  'take': _take,
  'gather': _gather,
  'dynamic_slice': _dynamic_slice,
  'sort': _sort,
}

__all__ = ['RULES', 'broadcast', 'restrided']
