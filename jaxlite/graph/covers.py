"""How far each leaf reaches over a value, and which of the leaves of an operand are its weights.

A kernel times a gain depends on two leaves, and only one of them is the weight. What tells them apart is not a name
or a shape but how much of the operand each one spans: a gain says one thing of a whole row. This file follows that
through a program's equations for `provenance`, which asks it at every contraction.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

Extents = tuple[int, ...]


class Cover(NamedTuple):
  """What a value holds of one leaf.

  Attributes:
    extents: for each axis of the value, how many different entries of the leaf lie along it; 1 is the same for all.
    rank: axes of the leaf, those that an enclosing scan runs over left out; what has none is never a weight.
    lost: it was judged at an inner product or a concatenation, and is no weight.
    own: the extents of a vector that stands as a single row or column among others, where `extents` are those of them
      all: along summed rows it is a bias. Else None.
  """

  extents: Extents
  rank: int
  lost: bool = False
  own: Extents | None = None


Covers = Mapping[str, Cover]


def whole(path: str, shape: Sequence[int]) -> dict[str, Cover]:
  """Returns the covers of a leaf itself."""
  return {path: Cover(tuple(shape), len(shape))}


def merged(several: Sequence[Covers]) -> dict[str, Cover]:
  """Joins the covers of values that come together element by element.

  >>> merged([whole('w', (3, 5)), {'w': Cover((3, 1), 2), 'g': Cover((1, 5), 1)}])['w'].extents
  (3, 5)
  """
  found: dict[str, Cover] = {}
  for covers in several:
    for path, cover in covers.items():
      old = found.get(path, cover)
      wide = _widest(old.extents, cover.extents)
      own = None if old.own is None or cover.own is None else _widest(old.own, cover.own)
      found[path] = Cover(wide, max(old.rank, cover.rank), old.lost and cover.lost, own)
  return found


def _widest(one: Extents, other: Extents) -> Extents:
  return tuple(max(ends) for ends in zip(one, other, strict=True))


def judged(
  covers: Covers, shape: Sequence[int], summed: Sequence[int], batch: Sequence[int], *, strict: bool = False
) -> frozenset[str]:
  """Returns the leaves of a contraction's operand that are its weights.

  A leaf is one where no other spans the operand farther along any axis, and where it varies along what is summed and
  along what becomes outputs: else it only scales or shifts, or fills a diagonal or a row.

  Args:
    covers: of the operand.
    shape: of the operand.
    summed: its axes that the contraction sums over; none is no weight.
    batch: its axes that both operands share.
    strict: outputs are asked for even where the operand has none (rows that data pick are no weights).

  >>> sorted(judged({'v': Cover((3, 5), 2), 'g': Cover((1, 5), 1)}, (3, 5), (0,), ()))
  ['v']
  """
  if not summed:
    return frozenset()
  outputs = [axis for axis in range(len(shape)) if axis not in {*summed, *batch}]

  def reaches(extents: Extents, axes: Sequence[int], needed: bool = False) -> bool:
    wide = [axis for axis in axes if shape[axis] > 1]
    return any(extents[axis] > 1 for axis in wide) if wide else not needed

  return frozenset(
    path
    for path in tops(covers)
    if reaches(covers[path].own or covers[path].extents, summed)
    and reaches(covers[path].extents, outputs, strict)
    and covers[path].rank
  )


def tops(covers: Covers) -> frozenset[str]:
  """Returns the leaves than which no other spans farther along any axis."""
  live = {path: cover for path, cover in covers.items() if not cover.lost}
  return frozenset(
    path for path, cover in live.items() if all(_within(other.extents, cover.extents) for other in live.values())
  )


def _within(one: Extents, other: Extents) -> bool:
  return all(mine <= theirs for mine, theirs in zip(one, other, strict=True))


def pieces(
  covers: Covers, winners: frozenset[str], axes: Sequence[int], shape: Sequence[int], *, single: bool = False
) -> dict[str, Cover]:
  """Returns the covers of what is put together of pieces, each judged alone: its winners span the whole.

  Args:
    covers: of one piece, in the axes of the whole.
    winners: its weights.
    axes: along which pieces stand side by side; of an inner product all.
    shape: of the whole.
    single: whether the piece is of length 1 along them.
  """

  def grown(path: str, cover: Cover) -> Cover:
    whole = tuple(shape[axis] if axis in axes else e for axis, e in enumerate(cover.extents))
    vector = single and cover.rank == sum(e > 1 for e in cover.extents)  # the piece's own axis is none of the leaf's
    return Cover(whole, cover.rank, path not in winners, cover.extents if vector else None)

  return {path: grown(path, cover) for path, cover in covers.items()}


def repeated(several: Sequence[Covers]) -> list[Covers]:
  """Returns the covers of pieces where a leaf that stands in several of them is no single row: shifts of a vector.

  Args:
    several: of each piece.
  """
  counts = collections.Counter(path for covers in several for path in covers)
  return [{p: c._replace(own=None) if counts[p] > 1 else c for p, c in covers.items()} for covers in several]


def through(eqn: Any, position: int, covers: Covers, shape: Sequence[int]) -> dict[str, Cover]:
  """Returns what a result of an equation holds of one of its operands.

  Args:
    eqn: the equation, no contraction and without a body.
    position: of the operand.
    covers: of the operand.
    shape: of the result.
  """
  name, own = eqn.primitive.name, tuple(eqn.invars[position].aval.shape)
  move = _MOVES.get(name)
  if move is None and name.startswith(('reduce_', 'arg')) and 'axes' in eqn.params:
    move = _reduced
  if name == 'gather' and position:  # of indices that a leaf makes (a table of values, say) each picks a slice
    move = _picking
  if move is None and (own == tuple(shape) or not own or name in _IN_PLACE or _stretches(own, shape)):
    move = _kept

  def moved(before: Extents) -> Extents:
    after = tuple(shape) if move is None else move(eqn, own, before, shape)
    return tuple(min(one, size) for one, size in zip(after, shape, strict=True))

  found = {
    path: cover._replace(extents=moved(cover.extents), own=None if cover.own is None else moved(cover.own))
    for path, cover in covers.items()
  }
  return _entwined(eqn, own, covers, found) if name == 'reshape' and len(covers) > 1 else found


def _entwined(eqn: Any, own: Extents, before: Covers, after: dict[str, Cover]) -> dict[str, Cover]:
  """Factors of a Kronecker product: each spans axes that the other does not, and together they fill what a reshape
  makes one axis of them. By lengths alone the larger would cover the smaller there, as a kernel does its gain."""
  order = eqn.params.get('dimensions') or range(len(own))
  live = {path: cover.extents for path, cover in before.items() if not cover.lost}
  rivals = [path for path, e in live.items() if not any(e != other and _within(e, other) for other in live.values())]
  for old, new in blocks([own[axis] for axis in order], eqn.outvars[0].aval.shape):
    axes = [order[axis] for axis in old if own[order[axis]] > 1]
    held = {path: {axis for axis in axes if before[path].extents[axis] > 1} for path in rivals}
    entwined = [path for path in rivals if held[path] and any(held[other] - held[path] for other in rivals)]
    if len(axes) > 1 and len(new) == 1:
      for path in entwined:
        extents = list(after[path].extents)
        extents[new[0]] = eqn.outvars[0].aval.shape[new[0]]
        after[path] = after[path]._replace(extents=tuple(extents))
  return after


def _stretches(own: Sequence[int], shape: Sequence[int]) -> bool:
  return len(own) == len(shape) and all(size in (1, wide) for size, wide in zip(own, shape, strict=True))


def _kept(eqn: Any, own: Extents, extents: Extents, shape: Sequence[int]) -> Extents:
  if not own:
    return (1,) * len(shape)
  # Padded or written into a larger one, what spanned its own axis still spans all that it can.
  return tuple(wide if 1 < size == extent else extent for extent, size, wide in zip(extents, own, shape, strict=True))


def _transposed(eqn: Any, own: Extents, extents: Extents, shape: Sequence[int]) -> Extents:
  return tuple(extents[axis] for axis in eqn.params['permutation'])


def _squeezed(eqn: Any, own: Extents, extents: Extents, shape: Sequence[int]) -> Extents:
  return tuple(extent for axis, extent in enumerate(extents) if axis not in eqn.params['dimensions'])


def _reduced(eqn: Any, own: Extents, extents: Extents, shape: Sequence[int]) -> Extents:
  left = tuple(extent for axis, extent in enumerate(extents) if axis not in eqn.params['axes'])
  return left if len(left) == len(shape) else tuple(shape)


def _broadcast(eqn: Any, own: Extents, extents: Extents, shape: Sequence[int]) -> Extents:
  out = [1] * len(shape)
  for extent, axis in zip(extents, eqn.params['broadcast_dimensions'], strict=True):
    out[axis] = extent
  return tuple(out)


def _reshaped(eqn: Any, own: Extents, extents: Extents, shape: Sequence[int]) -> Extents:
  order = eqn.params.get('dimensions')
  if order is not None:
    own, extents = tuple(own[axis] for axis in order), tuple(extents[axis] for axis in order)
  out = [1] * len(shape)
  for before, after in blocks(own, shape):
    held = math.prod(extents[axis] for axis in before)
    if len(after) == 1:
      out[after[0]] = held
    elif held > 1:  # split: which part of it varies is known only where its other axes are of length 1
      for axis in after:
        out[axis] = shape[axis]
  return tuple(out)


def blocks(before: Sequence[int], after: Sequence[int]) -> list[tuple[list[int], list[int]]]:
  """Returns which axes of a reshape go over into which: the smallest runs of equal size, in order.

  >>> blocks((2, 3, 4), (6, 2, 2))
  [([0, 1], [0]), ([2], [1, 2])]
  """
  if 0 in before:
    return [(list(range(len(before))), list(range(len(after))))]
  found, start, here = [], 0, 0
  while start < len(before) or here < len(after):
    stop, end = min(start + 1, len(before)), min(here + 1, len(after))
    while math.prod(before[start:stop]) != math.prod(after[here:end]):
      if math.prod(before[start:stop]) < math.prod(after[here:end]):
        stop += 1
      else:
        end += 1
    if end == len(after):
      stop = len(before)  # what is left is of length 1
    found.append((list(range(start, stop)), list(range(here, end))))
    start, here = stop, end
  return found


def _gathered(eqn: Any, own: Extents, extents: Extents, shape: Sequence[int]) -> Extents:
  """Slices lie along their own axes; what the indices run over is as different as they are, see `picked`."""
  numbers = eqn.params['dimension_numbers']
  taken = eqn.params['slice_sizes']
  gone = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
  left = [extent if taken[axis] > 1 else 1 for axis, extent in enumerate(extents) if axis not in gone]
  along = any(extents[axis] > 1 for axis in range(len(own)) if taken[axis] < own[axis] or axis in gone)
  slices = dict(zip(numbers.offset_dims, left, strict=True))
  return tuple(slices.get(axis, size if along else 1) for axis, size in enumerate(shape))


def _picking(eqn: Any, own: Extents, extents: Extents, shape: Sequence[int]) -> Extents:
  """Indices lie along the axes that are no slice's, but for the last one, which makes an index."""
  left = iter(extents[:-1])
  offsets = eqn.params['dimension_numbers'].offset_dims
  return tuple(1 if axis in offsets else next(left) for axis in range(len(shape)))


def _sliced_once(eqn: Any, own: Extents, extents: Extents, shape: Sequence[int]) -> Extents:
  return extents


_MOVES: dict[str, Callable[[Any, Extents, Extents, Sequence[int]], Extents]] = {
  'transpose': _transposed,
  'squeeze': _squeezed,
  'broadcast_in_dim': _broadcast,
  'reshape': _reshaped,
  'gather': _gathered,
  'slice': _sliced_once,
  'dynamic_slice': lambda eqn, own, extents, shape: extents if own else (1,) * len(shape),
  'split': _sliced_once,
  'tile': _sliced_once,
  'unstack': lambda eqn, own, extents, shape: tuple(e for axis, e in enumerate(extents) if axis != eqn.params['axis']),
  'stack': lambda eqn, own, extents, shape: (*extents[: eqn.params['axis']], 1, *extents[eqn.params['axis'] :]),
}
_IN_PLACE = frozenset({'concatenate', 'pad', 'rev', 'dynamic_update_slice', 'cumsum', 'sort', 'stop_gradient'})
# What data may do to a weight so that it is still one: pick whole matrices, and move what was picked.
_PICKERS = frozenset({'gather', 'dynamic_slice'})
_LAYS_OUT = frozenset(
  {
    'transpose',
    'squeeze',
    'broadcast_in_dim',
    'reshape',
    'slice',
    'convert_element_type',
    'stop_gradient',
    'copy',
    'reduce_sum',
  }
)
_SCALES = frozenset({'mul', 'div', 'neg'})


def picked(eqn: Any, given: Sequence[Any], together: Mapping[str, Cover]) -> dict[str, Cover]:
  """Returns the covers of a result that depends on data only in which matrices were picked; else none.

  Args:
    eqn: the equation.
    given: the tags of its operands.
    together: the covers of all operands, as `through` gives them.
  """
  name = eqn.primitive.name
  if name in _PICKERS and (given[0].covers or not given[0].data):
    if name == 'gather' and not given[0].data:
      offsets = set(eqn.params['dimension_numbers'].offset_dims)
      return {
        path: cover._replace(extents=tuple(e if axis in offsets else 1 for axis, e in enumerate(cover.extents)))
        for path, cover in together.items()
      }
    return dict(together)
  held = given[1:] if name == 'select_n' else given
  known = all(tag.covers or not tag.data for tag in held)
  return dict(together) if known and name in {'select_n', *_LAYS_OUT, *_SCALES} else {}
