"""How equations that move, join, split and reduce go on with values that are cut."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxlite.graph.covers import blocks
from jaxlite.graph.cut import (
  Cut,
  Rule,
  Same,
  Value,
  bind,
  cannot,
  full_size,
  gone_array,
  is_known,
  is_zero,
  kept_of,
  together,
)


def _only_same(cut: Cut) -> Cut:
  return cut if isinstance(cut.gone, Same) else cut._replace(gone=None)


def _broadcast(eqn: Any, values: list[Value]) -> list[Value]:
  (value, *rest) = values
  if rest:
    raise cannot(eqn, 'its shape is not fixed')
  shape, places = list(eqn.params['shape']), eqn.params['broadcast_dimensions']
  for axis, cut in value.cuts.items():
    shape[places[axis]] = len(cut.kept)
  (array,) = bind(eqn, [value.array], shape=tuple(shape))
  stretched = {place for axis, place in enumerate(places) if full_size(value, axis) == 1 and shape[place] != 1}
  kept = {place for axis, place in enumerate(places) if axis in value.alike}
  alike = frozenset(({*range(len(shape))} - {*places}) | stretched | kept)
  cuts = {}
  for axis, cut in value.cuts.items():
    gone = cut.gone
    if is_known(gone) and not isinstance(gone, Same):
      thin = tuple(1 if one == places[axis] else size for one, size in enumerate(shape))
      gone = lax.broadcast_in_dim(gone, thin, places)
    cuts[places[axis]] = cut._replace(gone=gone)
  level = value.level if not cuts else None
  return [Value(array, cuts, alike - set(cuts), level)]


def _transpose(eqn: Any, values: list[Value]) -> list[Value]:
  (value,) = values
  order = tuple(eqn.params['permutation'])
  place = {axis: new for new, axis in enumerate(order)}

  def turned(cut: Cut) -> Cut:
    is_array = is_known(cut.gone) and not isinstance(cut.gone, Same)
    return cut._replace(gone=lax.transpose(cut.gone, order)) if is_array else cut

  cuts = {place[axis]: turned(cut) for axis, cut in value.cuts.items()}
  alike = frozenset(place[axis] for axis in value.alike)
  return [Value(bind(eqn, [value.array])[0], cuts, alike, value.level)]


def _without(eqn: Any, value: Value, axes: Sequence[int], array: Any, gone: Any) -> Value:
  """A value that has lost axes; `gone` makes of what stood for the gone entries what does so now."""
  left = [axis for axis in range(len(value.shape)) if axis not in axes]
  cuts = {new: value.cuts[axis]._replace(gone=gone(axis)) for new, axis in enumerate(left) if axis in value.cuts}
  return Value(array, cuts, frozenset(new for new, axis in enumerate(left) if axis in value.alike))


def _squeeze(eqn: Any, values: list[Value]) -> list[Value]:
  (value,) = values
  axes = [axis % len(value.shape) for axis in eqn.params['dimensions']]
  if any(axis in value.cuts for axis in axes):
    raise cannot(eqn, 'an axis that goes is cut')

  def gone(axis: int) -> Any:
    old = value.cuts[axis].gone
    return bind(eqn, [old])[0] if is_known(old) and not isinstance(old, Same) else old

  out = _without(eqn, value, axes, bind(eqn, [value.array])[0], gone)
  return [Value(out.array, out.cuts, out.alike, value.level)]


def _reshape(eqn: Any, values: list[Value]) -> list[Value]:
  value = values[0]
  whole, shape = eqn.invars[0].aval.shape, tuple(eqn.params['new_sizes'])
  if len(values) > 1 or eqn.params.get('dimensions') is not None:
    raise cannot(eqn, 'it is no plain reshape')
  if not value.cuts:
    array = bind(eqn, [value.array])[0]
    alike = {a for old, new in blocks(whole, shape) if all(one in value.alike for one in old) for a in new if old}
    return [Value(array, {}, frozenset(alike), value.level)]
  sizes, cuts, alike = list(shape), {}, set()
  for old, new in blocks(whole, shape):
    here = {axis: value.cuts[axis] for axis in old if axis in value.cuts}
    if not here:
      alike |= {a for a in new if old and all(one in value.alike for one in old)}
      continue
    marks = np.ones([whole[axis] for axis in old], bool)
    for place, axis in enumerate(old):
      if axis in here:
        alive = np.zeros(whole[axis], bool)
        alive[list(here[axis].kept)] = True
        marks &= alive.reshape([-1 if one == place else 1 for one in range(len(old))])
    marks = marks.reshape([shape[axis] for axis in new])
    lines = [marks.any(axis=tuple(one for one in range(len(new)) if one != place)) for place in range(len(new))]
    full = np.ones_like(marks)
    for place, line in enumerate(lines):
      full &= line.reshape([-1 if one == place else 1 for one in range(len(new))])
    if not np.array_equal(full, marks):
      raise cannot(eqn, 'what is left is no block of the new axes')
    gone = {cut.gone if isinstance(cut.gone, Same) else None for cut in here.values()}
    wide = [axis for axis in new if shape[axis] > 1], [axis for axis in old if whole[axis] > 1]
    for axis, line in zip(new, lines, strict=True):
      sizes[axis] = int(line.sum())
      if not line.all():
        of_all = gone.copy().pop() if len(gone) == 1 else None
        if of_all is None and len(value.cuts) == 1 and len(wide[0]) == len(wide[1]) == 1:
          of_all = here[wide[1][0]].gone
        cuts[axis] = Cut(tuple(map(int, np.flatnonzero(line))), shape[axis], of_all)
  array = lax.reshape(value.array, tuple(sizes))
  for axis, cut in cuts.items():
    if is_known(cut.gone) and not isinstance(cut.gone, Same):
      thin = tuple(1 if one == axis else size for one, size in enumerate(sizes))
      cuts[axis] = cut._replace(gone=lax.reshape(cut.gone, thin))
  return [Value(array, cuts, frozenset(alike))]


def _reduce(eqn: Any, values: list[Value]) -> list[Value]:
  name, (value,) = eqn.primitive.name, values
  axes = [axis % len(value.shape) for axis in eqn.params['axes']]
  (array,) = bind(eqn, [value.array])
  inside = [axis for axis in axes if axis in value.cuts]
  if inside and name not in ('reduce_sum', 'reduce_max', 'reduce_min'):
    raise cannot(eqn, 'it runs over an axis that is cut')
  apart = [axis for axis in inside if not (name == 'reduce_sum' and is_zero(value.cuts[axis].gone))]
  if len(apart) > 1:
    raise cannot(eqn, 'it runs over several axes that are cut')
  for axis in apart:
    others = gone_array(value, axis)
    if others is None:
      raise cannot(eqn, 'it runs over an axis of which the part that goes is not zero')
    (more,) = bind(eqn, [others])
    if name == 'reduce_sum':
      array = array + more * jnp.asarray(value.cuts[axis].count, more.dtype)
    else:
      array = (jnp.maximum if name == 'reduce_max' else jnp.minimum)(array, more)

  def gone(axis: int) -> Any:
    old = value.cuts[axis].gone
    if isinstance(old, Same):
      if name == 'reduce_sum' and old.value:
        return Same(np.asarray(old.value * math.prod(full_size(value, one) for one in axes), array.dtype)[()])
      return old if name in ('reduce_sum', 'reduce_max', 'reduce_min', 'reduce_or', 'reduce_and') else None
    return bind(eqn, [old])[0] if is_known(old) and not inside else None

  return [_without(eqn, value, axes, array, gone)]


def _along(eqn: Any, values: list[Value]) -> list[Value]:
  """Equations that run along one axis and keep the shape."""
  name = eqn.primitive.name
  axis = eqn.params.get('axis', eqn.params.get('dimension'))
  rank = len(values[0].shape)
  values = together(eqn, values, rank)
  cuts = values[0].cuts
  if axis % rank in cuts and not (name == 'cumsum' and is_zero(cuts[axis % rank].gone)):
    raise cannot(eqn, 'it runs along an axis that is cut')

  def gone(place: int) -> Any:
    zero = all(is_zero(value.cuts[place].gone) for value in values)
    return cuts[place].gone if zero and name in ('cumsum', 'cummax', 'cummin', 'cumprod') and place != axis else None

  arrays = bind(eqn, [value.array for value in values])
  return [Value(array, {place: cut._replace(gone=gone(place)) for place, cut in cuts.items()}) for array in arrays]


def _rev(eqn: Any, values: list[Value]) -> list[Value]:
  (value,) = values
  cuts = {}
  for axis, cut in value.cuts.items():
    turned = tuple(cut.size - 1 - one for one in reversed(cut.kept)) if axis in eqn.params['dimensions'] else cut.kept
    cuts[axis] = _only_same(cut)._replace(kept=turned)
  return [Value(bind(eqn, [value.array])[0], cuts, value.alike, value.level)]


def _concatenate(eqn: Any, values: list[Value]) -> list[Value]:
  axis, rank = eqn.params['dimension'], len(values[0].shape)
  sizes = [full_size(value, axis) for value in values]
  alone = [Value(v.array, {a: c for a, c in v.cuts.items() if a != axis}, v.alike, v.level) for v in values]
  fitted = together(eqn, alone, rank)
  (array,) = bind(eqn, [value.array for value in fitted])
  cuts = {}
  for place, cut in fitted[0].cuts.items():  # alike in all by now
    gone = {value.cuts[place].gone if isinstance(value.cuts[place].gone, Same) else None for value in fitted}
    cuts[place] = cut._replace(gone=gone.pop() if len(gone) == 1 else None)
  if any(axis in value.cuts for value in values):
    starts = np.cumsum([0, *sizes])
    kept = tuple(
      int(start) + one
      for value, start, size in zip(values, starts, sizes, strict=False)
      for one in (value.cuts[axis].kept if axis in value.cuts else range(size))
    )
    gone = {v.cuts[axis].gone if isinstance(v.cuts[axis].gone, Same) else None for v in values if axis in v.cuts}
    cuts[axis] = Cut(kept, int(starts[-1]), gone.pop() if len(gone) == 1 else None)
  return [Value(array, cuts, frozenset.intersection(*(value.alike for value in values)) - {axis} - set(cuts))]


def _picked(value: Value, axis: int, positions: Sequence[int]) -> Value:
  """Entries of a whole axis, of which some may be gone."""
  cut = value.cuts.get(axis)
  if cut is None:
    return Value(kept_of(value.array, axis, tuple(positions)), value.cuts, value.alike, value.level)
  where = {one: place for place, one in enumerate(cut.kept)}
  kept = tuple(place for place, one in enumerate(positions) if one in where)
  array = kept_of(value.array, axis, tuple(where[positions[place]] for place in kept))
  cuts = {**value.cuts}
  del cuts[axis]
  if len(kept) < len(positions):
    cuts[axis] = cut._replace(kept=kept, size=len(positions))
  return Value(array, cuts)


def _slice(eqn: Any, values: list[Value]) -> list[Value]:
  (value,) = values
  limits, strides = eqn.params['limit_indices'], eqn.params['strides'] or (1,) * len(value.shape)
  whole = eqn.invars[0].aval.shape
  if not value.cuts:
    return [Value(bind(eqn, [value.array])[0], {}, value.alike, value.level)]
  spans = list(zip(eqn.params['start_indices'], limits, strides, strict=True))
  plain = [(0, len(value.cuts[axis].kept), 1) if axis in value.cuts else span for axis, span in enumerate(spans)]
  if any(span != (0, size, 1) for span, size in zip(plain, value.shape, strict=True)):
    value = Value(lax.slice(value.array, *zip(*plain, strict=True)), {a: _only_same(c) for a, c in value.cuts.items()})
  for axis in tuple(value.cuts):
    if spans[axis] != (0, whole[axis], 1):
      value = _picked(_thin(value, axis), axis, range(*spans[axis]))
  return [value]


def _thin(value: Value, axis: int) -> Value:
  """Before a value is sliced along another axis, arrays that stand for what is gone are dropped."""
  return Value(value.array, {a: c if a == axis else _only_same(c) for a, c in value.cuts.items()}, value.alike)


def _split(eqn: Any, values: list[Value]) -> list[Value]:
  (value,) = values
  axis, start, out = eqn.params['axis'], 0, []
  for size in eqn.params['sizes']:
    out.append(_picked(_thin(value, axis), axis, range(start, start + size)))
    start += size
  return out


def _pad(eqn: Any, values: list[Value]) -> list[Value]:
  value, filling = values
  config = eqn.params['padding_config']
  around = [axis for axis, sides in enumerate(config) if any(sides)]  # what goes is padded too along these
  cuts = {}
  for axis, cut in value.cuts.items():
    low, high, inside = config[axis]
    if inside or low < 0 or high < 0:
      raise cannot(eqn, 'it spreads or trims an axis that is cut')
    top = low + cut.size
    kept = (*range(low), *(low + one for one in cut.kept), *range(top, top + high))
    gone = cut.gone if isinstance(cut.gone, Same) else None
    if gone is not None and {*around} - {axis} and (filling.level is None or filling.level != gone.value):
      gone = None
    cuts[axis] = Cut(kept, top + high, gone)
  return [Value(bind(eqn, [value.array, filling.array])[0], cuts)]


def _gather(eqn: Any, values: list[Value]) -> list[Value]:
  value, indices = values
  numbers, sizes = eqn.params['dimension_numbers'], list(eqn.params['slice_sizes'])
  gone = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
  if indices.cuts or any(axis in gone or sizes[axis] != cut.size for axis, cut in value.cuts.items()):
    raise cannot(eqn, 'it picks along an axis that is cut')
  left = [axis for axis in range(len(sizes)) if axis not in gone]
  place = dict(zip(left, numbers.offset_dims, strict=True))
  for axis, cut in value.cuts.items():
    sizes[axis] = len(cut.kept)
  (array,) = bind(eqn, [value.array, indices.array], slice_sizes=tuple(sizes))
  return [Value(array, {place[axis]: _only_same(cut) for axis, cut in value.cuts.items()})]


def _dynamic_slice(eqn: Any, values: list[Value]) -> list[Value]:
  value, *starts = values
  sizes = list(eqn.params['slice_sizes'])
  for axis, cut in value.cuts.items():
    if sizes[axis] != cut.size:
      raise cannot(eqn, 'it slices an axis that is cut')
    sizes[axis] = len(cut.kept)
  (array,) = bind(eqn, [value.array, *(one.array for one in starts)], slice_sizes=tuple(sizes))
  return [Value(array, {axis: _only_same(cut) for axis, cut in value.cuts.items()})]


def _dynamic_update_slice(eqn: Any, values: list[Value]) -> list[Value]:
  one, other, *starts = values
  for axis, (old, new) in enumerate(zip(*(atom.aval.shape for atom in eqn.invars[:2]), strict=True)):
    if (axis in one.cuts or axis in other.cuts) and old != new:
      raise cannot(eqn, 'it writes into an axis that is cut')
  one, other = together(eqn, [one, other], len(one.shape))
  (array,) = bind(eqn, [one.array, other.array, *(start.array for start in starts)])
  cuts = {}
  for axis, cut in one.cuts.items():
    zero = is_zero(cut.gone) and is_zero(other.cuts[axis].gone)
    cuts[axis] = cut._replace(gone=cut.gone if zero else None)
  return [Value(array, cuts)]


def _window(eqn: Any, values: list[Value]) -> list[Value]:
  (value,) = values[:1]
  if len(values) > 2 or (len(values) == 2 and values[1].cuts):
    raise cannot(eqn, 'it has several operands')
  fixed = ('window_dimensions', 'window_strides', 'base_dilation', 'window_dilation')
  for axis in value.cuts:
    if any(eqn.params[name][axis] != 1 for name in fixed if eqn.params.get(name)) or any(eqn.params['padding'][axis]):
      raise cannot(eqn, 'its window runs along an axis that is cut')
  (array,) = bind(eqn, [one.array for one in values])
  zero = eqn.primitive.name in ('reduce_window_sum', 'reduce_window_max', 'reduce_window_min')
  cuts = {a: c._replace(gone=c.gone if zero and is_zero(c.gone) else None) for a, c in value.cuts.items()}
  return [Value(array, cuts)]


def _barrier(eqn: Any, values: list[Value]) -> list[Value]:
  return [Value(a, v.cuts, v.alike, v.level) for a, v in zip(bind(eqn, [v.array for v in values]), values, strict=True)]


def _tile(eqn: Any, values: list[Value]) -> list[Value]:
  (value,) = values
  if any(eqn.params['reps'][axis] != 1 for axis in value.cuts):
    raise cannot(eqn, 'it repeats an axis that is cut')
  return [Value(bind(eqn, [value.array])[0], {axis: _only_same(cut) for axis, cut in value.cuts.items()})]


def _stack(eqn: Any, values: list[Value]) -> list[Value]:
  axis, rank = eqn.params['axis'], len(values[0].shape)
  values = together(eqn, values, rank)
  (array,) = bind(eqn, [value.array for value in values])
  cuts = {}
  for place, cut in values[0].cuts.items():
    gone = {value.cuts[place].gone if isinstance(value.cuts[place].gone, Same) else None for value in values}
    cuts[place + (place >= axis)] = cut._replace(gone=gone.pop() if len(gone) == 1 else None)
  return [Value(array, cuts)]


def _unstack(eqn: Any, values: list[Value]) -> list[Value]:
  (value,) = values
  axis = eqn.params['axis']
  if axis in value.cuts:
    raise cannot(eqn, 'it takes an axis apart that is cut')
  cuts = {place - (place > axis): _only_same(cut) for place, cut in value.cuts.items()}
  return [Value(array, cuts) for array in bind(eqn, [value.array])]


SHAPES: dict[str, Rule] = {
  'broadcast_in_dim': _broadcast,
  'transpose': _transpose,
  'squeeze': _squeeze,
  'reshape': _reshape,
  **dict.fromkeys(('reduce_sum', 'reduce_max', 'reduce_min', 'reduce_prod', 'reduce_and', 'reduce_or'), _reduce),
  **dict.fromkeys(('argmax', 'argmin'), _reduce),
  **dict.fromkeys(('cumsum', 'cummax', 'cummin', 'cumprod', 'cumlogsumexp', 'sort'), _along),
  'rev': _rev,
  'concatenate': _concatenate,
  'slice': _slice,
  'split': _split,
  'pad': _pad,
  'gather': _gather,
  'dynamic_slice': _dynamic_slice,
  'dynamic_update_slice': _dynamic_update_slice,
  **dict.fromkeys(('reduce_window_max', 'reduce_window_min', 'reduce_window_sum', 'reduce_window'), _window),
  'optimization_barrier': _barrier,
  'tile': _tile,
  'stack': _stack,
  'unstack': _unstack,
}
