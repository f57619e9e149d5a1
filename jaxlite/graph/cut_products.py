"""Contractions and reductions of values that are cut: what is gone from a sum was zero, or is added."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxlite.graph.cut import Cut, Rule, Same, Value, bind, cannot, forgetting, gone_array, is_zero, take, together


def _zero(value: Value) -> Same:
  return Same(np.zeros((), value.array.dtype)[()])


def _kept_gone(value: Value, axis: int, more: bool = False) -> Any:
  """Of a free axis of an operand: where the operand is zero, the result is."""
  return _zero(value) if more or is_zero(value.cuts[axis].gone) else None


def _aligned(left: Value, one: int, right: Value, other: int, eqn: Any) -> tuple[Value, Value]:
  """Two operands that keep the same entries of an axis that they share: those of the one that has less."""
  first, second = left.cuts.get(one), right.cuts.get(other)
  if first is not None and (second is None or len(first.kept) <= len(second.kept)):
    return left, take(right, other, first, eqn)
  return (left, right) if second is None else (take(left, one, second, eqn), right)


def _dot(eqn: Any, values: list[Value]) -> list[Value]:
  left, right = values
  (summed, batches) = eqn.params['dimension_numbers']
  for one, other in (*zip(*summed, strict=True), *zip(*batches, strict=True)):
    left, right = _aligned(left, one, right, other, eqn)
  (array,) = bind(eqn, [left.array, right.array])
  apart = [
    (one, other)
    for one, other in zip(*summed, strict=True)
    if one in left.cuts and not is_zero(left.cuts[one].gone) and not is_zero(right.cuts[other].gone)
  ]
  for one, other in apart:
    first, second = gone_array(left, one), gone_array(right, other)
    if first is None or second is None or len(apart) > 1:
      raise cannot(eqn, 'it sums over an axis of which the part that goes is not zero')
    array = array + bind(eqn, [first, second])[0] * jnp.asarray(left.cuts[one].count, array.dtype)
  cuts: dict[int, Cut] = {}
  place = 0
  for one, other in zip(*batches, strict=True):
    if one in left.cuts:
      cuts[place] = left.cuts[one]._replace(gone=_kept_gone(left, one, is_zero(right.cuts[other].gone)))
    place += 1
  for value, side in ((left, 0), (right, 1)):
    for axis in range(len(value.shape)):
      if axis not in (*summed[side], *batches[side]):
        if axis in value.cuts:
          cuts[place] = value.cuts[axis]._replace(gone=_kept_gone(value, axis))
        place += 1
  return [Value(array, {axis: _typed(cut, array) for axis, cut in cuts.items()})]


def _typed(cut: Cut, array: Any) -> Cut:
  return cut._replace(gone=Same(np.zeros((), array.dtype)[()])) if is_zero(cut.gone) else cut


def _convolution(eqn: Any, values: list[Value]) -> list[Value]:
  left, right = values
  numbers, groups = eqn.params['dimension_numbers'], eqn.params['feature_group_count']
  batch, feature, *spatial = numbers.lhs_spec
  out_axis, in_axis, *window = numbers.rhs_spec
  if any(axis in left.cuts for axis in spatial) or any(axis in right.cuts for axis in window):
    raise cannot(eqn, 'a spatial axis is cut')
  if eqn.params['batch_group_count'] != 1:
    raise cannot(eqn, 'it groups the batch')
  if groups == 1:
    left, right = _aligned(left, feature, right, in_axis, eqn)
    if feature in left.cuts and not (is_zero(left.cuts[feature].gone) or is_zero(right.cuts[in_axis].gone)):
      raise cannot(eqn, 'it sums over an axis of which the part that goes is not zero')
  else:
    if in_axis in right.cuts:
      raise cannot(eqn, 'its groups are cut inside')
    both = ((left, feature), (right, out_axis))
    wholes = [eqn.invars[side].aval.shape[axis] for side, (_, axis) in enumerate(both)]
    kept = [
      _whole_groups(value.cuts[axis].kept, whole // groups, eqn)
      for (value, axis), whole in zip(both, wholes, strict=True)
      if axis in value.cuts
    ]
    if any(one != kept[0] for one in kept):
      raise cannot(eqn, 'its operands keep different groups')
    if kept:
      of_groups = [_of_groups(kept[0], whole // groups, whole) for whole in wholes]
      left, right = take(left, feature, of_groups[0], eqn), take(right, out_axis, of_groups[1], eqn)
      groups = len(kept[0])
  (array,) = bind(eqn, [left.array, right.array], feature_group_count=groups)
  cuts: dict[int, Cut] = {}
  if batch in left.cuts:
    cuts[numbers.out_spec[0]] = left.cuts[batch]._replace(gone=_kept_gone(left, batch))
  if out_axis in right.cuts:
    cuts[numbers.out_spec[1]] = right.cuts[out_axis]._replace(gone=_kept_gone(right, out_axis))
  return [Value(array, {axis: _typed(cut, array) for axis, cut in cuts.items()})]


def _whole_groups(kept: tuple[int, ...], size: int, eqn: Any) -> tuple[int, ...]:
  groups = tuple(dict.fromkeys(one // size for one in kept))
  if len(kept) != len(groups) * size:
    raise cannot(eqn, 'a group loses only some of its channels')
  return groups


def _of_groups(groups: tuple[int, ...], size: int, whole: int) -> Cut:
  return Cut(tuple(group * size + one for group in groups for one in range(size)), whole)


def _reduce_by_rule(eqn: Any, values: list[Value]) -> list[Value]:
  """By a rule of one's own: what is gone is put back, where it is known; the order does not matter to a reduction."""
  axes, count = eqn.params['dimensions'], len(values) // 2
  operands = together(eqn, values[:count], len(eqn.invars[0].aval.shape))
  whole = []
  for value in operands:
    for axis in axes:
      if axis in value.cuts:
        gone = gone_array(value, axis)
        if gone is None:
          raise cannot(eqn, 'it runs over an axis of which it is not known what goes')
        shape = [value.cuts[axis].count if one == axis else size for one, size in enumerate(value.shape)]
        array = jnp.concatenate([value.array, jnp.broadcast_to(gone, shape)], axis)
        rest = {one: cut for one, cut in forgetting(value).cuts.items() if one != axis}
        value = Value(array, rest)
    whole.append(value)
  arrays = bind(eqn, [one.array for one in (*whole, *values[count:])])
  left = [axis for axis in range(len(whole[0].shape)) if axis not in axes]
  cuts = {place: whole[0].cuts[axis]._replace(gone=None) for place, axis in enumerate(left) if axis in whole[0].cuts}
  return [Value(array, cuts) for array in arrays]


PRODUCTS: dict[str, Rule] = {
  'dot_general': _dot,
  'conv_general_dilated': _convolution,
  'reduce': _reduce_by_rule,
}
