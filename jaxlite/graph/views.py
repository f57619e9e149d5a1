"""Where a value holds the axes of a leaf, through every equation that only moves, cuts or joins.

What a program does with the axes of a weight on its way to a contraction; `layouts` walks the program and asks.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from jaxlite.graph.contractions import CONTRACTIONS, OTHER_CONTRACTIONS
from jaxlite.graph.covers import blocks

Axes = tuple[tuple[int, ...], ...]  # for each axis of a value, the axes of a leaf that it holds


UNKNOWN = '<unknown>'  # no path of a leaf


class View(NamedTuple):
  """Where a value holds a leaf.

  Attributes:
    axes: for each axis of the value, the axes of the leaf that it holds.
    sizes: how much of each axis of the leaf the value holds, as far as it is known.
    starts: where along each axis of the leaf that begins; None where the value is no such box of the leaf alone.
    inner: of a factor, each axis of the leaf that was summed over inside the value, and the leaves that it met there;
      UNKNOWN where it met a constant that puts an axis in its place.
  """

  axes: Axes
  sizes: tuple[int, ...]
  starts: tuple[int, ...] | None
  inner: tuple[tuple[int, frozenset[str]], ...] = ()

  @classmethod
  def whole(cls, shape: Sequence[int]) -> View:
    """Returns the view of a leaf itself."""
    return cls(tuple((axis,) for axis in range(len(shape))), tuple(shape), (0,) * len(shape))

  @property
  def box(self) -> tuple[tuple[int, int], ...] | None:
    """(start, size) along each axis of the leaf, or None."""
    return None if self.starts is None else tuple(zip(self.starts, self.sizes, strict=True))

  def is_clear(self, batch: Sequence[int]) -> bool:
    """Tells whether no axis of the leaf lies in two of the value's (as a reshape splits it), `batch` axes being one."""
    held = [axis for place, group in enumerate(self.axes) if place not in batch for axis in group]
    held += {axis for place in batch for axis in self.axes[place]}
    held += {axis for axis, _ in self.inner}
    return len(held) == len(set(held))


Views = dict[str, View]  # of one value, by leaf


def agreed(several: Sequence[Views]) -> Views:
  """Returns one view a leaf of values that come together; none where two say different things of its axes.

  Args:
    several: the views of each.
  """
  found: dict[str, View | None] = {}
  for views in several:
    for path, view in views.items():
      old = found.setdefault(path, view)
      if old is not None and old != view:
        found[path] = old._replace(starts=None) if (old.axes, old.inner) == (view.axes, view.inner) else None
  return {path: view for path, view in found.items() if view is not None}


def moved(eqn: Any, given: list[Views]) -> list[Views]:
  """Returns where the axes lie after an equation that is no contraction and has no body.

  Args:
    eqn: the equation.
    given: the views of its operands.

  Returns:
    The views of its results.
  """
  shapes = [getattr(var.aval, 'shape', ()) for var in eqn.outvars]
  name = eqn.primitive.name
  if name in _MOVES:
    return [{path: _MOVES[name](eqn, view, shape) for path, view in given[0].items()} for shape in shapes]
  if name == 'split':
    ends = list(itertools.accumulate(eqn.params['sizes'], initial=0))
    return [
      {path: _cut(view, eqn.params['axis'], ends[place], size) for path, view in given[0].items()}
      for place, size in enumerate(eqn.params['sizes'])
    ]
  if name == 'optimization_barrier':
    return given
  if name == 'unstack':
    axis = eqn.params['axis']
    parts = [{p: _cut(v, axis, place, 1) for p, v in given[0].items()} for place in range(len(shapes))]
    return [{p: v._replace(axes=v.axes[:axis] + v.axes[axis + 1 :]) for p, v in part.items()} for part in parts]
  if name == 'stack':
    axis = eqn.params['axis']
    given = [{p: v._replace(axes=(*v.axes[:axis], (), *v.axes[axis:])) for p, v in views.items()} for views in given]
  if name in _WRITES:
    into, _, written = given
    written = {path: _scattered(eqn, view, shapes[0]) for path, view in written.items()}
    return [agreed([{p: v._replace(starts=None) for p, v in into.items()}, written])]
  if name in _MIXES or len(eqn.outvars) != 1:
    return [{} for _ in shapes]
  if name in _SIDE_BY_SIDE:  # each keeps its axes, and what is multiplied is no longer that leaf alone
    return [agreed([{path: view._replace(starts=None) for path, view in views.items()} for views in given])]
  (shape,) = shapes
  fitting: list[Views] = []
  for atom, views in zip(eqn.invars, given, strict=True):
    own = getattr(atom.aval, 'shape', ())
    # Elementwise, or along an axis: every axis stays where it is, but for one of length 1 that is stretched.
    if len(own) == len(shape) and all(size in (1, wide) for size, wide in zip(own, shape, strict=True)):
      fitting.append({path: _stretched(view, own, shape) for path, view in views.items()})
  held = lambda view: sum(map(len, view.axes))  # noqa: E731
  most = {path: max(held(one[path]) for one in fitting if path in one) for one in fitting for path in one}
  # w * (its norm): the one that holds more of it.
  return [agreed([{path: one for path, one in views.items() if held(one) == most[path]} for views in fitting])]


def _stretched(view: View, own: Sequence[int], shape: Sequence[int]) -> View:
  return view._replace(
    axes=tuple(group if size == wide else () for group, size, wide in zip(view.axes, own, shape, strict=True))
  )


def _cut(view: View, axis: int, start: int | None, size: int) -> View:
  """The view of a slice along one axis of the value; a start of None is not known."""
  if not view.axes[axis]:
    return view
  (leaf, *others) = view.axes[axis]
  if others:  # of several axes in one, what is left is no box
    return view._replace(starts=None)
  sizes = tuple(size if one == leaf else old for one, old in enumerate(view.sizes))
  if view.starts is None or start is None:
    return view._replace(sizes=sizes, starts=None)
  return view._replace(sizes=sizes, starts=tuple(old + start * (one == leaf) for one, old in enumerate(view.starts)))


def _sliced(eqn: Any, view: View, shape: Sequence[int]) -> View:
  own, strides = eqn.invars[0].aval.shape, eqn.params['strides']
  for axis, start in enumerate(eqn.params['start_indices']):
    if own[axis] != shape[axis]:
      view = _cut(view, axis, None if strides is not None and strides[axis] != 1 else start, shape[axis])
  return view


def _sliced_dynamically(eqn: Any, view: View, shape: Sequence[int]) -> View:
  for axis, (size, start) in enumerate(zip(eqn.invars[0].aval.shape, eqn.invars[1:], strict=False)):
    if size != shape[axis]:
      view = _cut(view, axis, int(start.val) if hasattr(start, 'val') else None, shape[axis])
  return view


def _gathered(eqn: Any, view: View, shape: Sequence[int]) -> View:
  numbers = eqn.params['dimension_numbers']
  gone = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
  own, taken = eqn.invars[0].aval.shape, eqn.params['slice_sizes']
  whole = [size == wide and axis not in gone for axis, (size, wide) in enumerate(zip(taken, own, strict=True))]
  left = [view.axes[axis] if whole[axis] else () for axis in range(len(own)) if axis not in gone]
  out = dict(zip(numbers.offset_dims, left, strict=True))
  # Along the indices lies what they pick from: in several of them, or with more than one entry at a time, mixed.
  together = dict(zip(numbers.start_indices_batching_dims, numbers.operand_batching_dims, strict=True))
  picked = [axis for axis in range(len(own)) if not whole[axis] and axis not in numbers.operand_batching_dims]
  along = tuple(a for axis in picked for a in view.axes[axis] * (1 + (taken[axis] > 1)))
  indices = [axis for axis in range(len(shape)) if axis not in out]  # in the order of the indices' own axes
  for place, axis in enumerate(indices):
    out[axis] = view.axes[together[place]] if place in together else along
  return view._replace(axes=tuple(out[axis] for axis in range(len(shape))), starts=None)


def _scattered(eqn: Any, view: View, shape: Sequence[int]) -> View:
  """Windows keep their axes; along each axis that indices run over lies what they write there."""
  numbers = eqn.params['dimension_numbers']
  placed = {*numbers.inserted_window_dims, *numbers.operand_batching_dims}
  windows = dict(
    zip((axis for axis in range(len(shape)) if axis not in placed), numbers.update_window_dims, strict=True)
  )
  rest = [axis for axis in range(len(view.axes)) if axis not in numbers.update_window_dims]
  together = dict(zip(numbers.operand_batching_dims, numbers.scatter_indices_batching_dims, strict=True))
  written = tuple(a for place, axis in enumerate(rest) if place not in together.values() for a in view.axes[axis])
  out = {axis: view.axes[place] for axis, place in windows.items()}
  out |= {axis: view.axes[rest[place]] for axis, place in together.items()}
  return view._replace(axes=tuple(out.get(axis, written) for axis in range(len(shape))), starts=None)


def contracted(eqn: Any, given: Sequence[Views]) -> Views:
  """Returns where a product of leaves holds their axes: those summed over inside are kept apart, as `inner`.

  Args:
    eqn: a dot_general of two operands that depend on no data.
    given: the views of both.
  """
  sums, batches = eqn.params['dimension_numbers']
  found: Views = {}
  for side, views in enumerate(given):
    ndim = eqn.invars[side].aval.ndim
    free = tuple(axis for axis in range(ndim) if axis not in (*sums[side], *batches[side]))
    beside = ((),) * (eqn.invars[1 - side].aval.ndim - len(sums[side]) - len(batches[side]))
    unknown = frozenset({UNKNOWN} if beside else ())
    for path, view in views.items():
      if path in given[1 - side]:  # multiplied by itself
        continue
      own = tuple(view.axes[axis] for axis in free)
      axes = (*(view.axes[axis] for axis in batches[side]), *(own + beside if side == 0 else beside + own))
      met = tuple(
        (leaf, frozenset(p for p, seen in given[1 - side].items() if seen.axes[partner]) or unknown)
        for axis, partner in zip(sums[side], sums[1 - side], strict=True)
        for leaf in view.axes[axis]
      )
      found[path] = View(axes, view.sizes, None, view.inner + met)
  return found


def _transposed(eqn: Any, view: View, shape: Sequence[int]) -> View:
  return view._replace(axes=tuple(view.axes[axis] for axis in eqn.params['permutation']))


def _squeezed(eqn: Any, view: View, shape: Sequence[int]) -> View:
  return view._replace(axes=tuple(g for axis, g in enumerate(view.axes) if axis not in eqn.params['dimensions']))


def _broadcast(eqn: Any, view: View, shape: Sequence[int]) -> View:
  out: list[tuple[int, ...]] = [()] * len(shape)
  for group, axis, size in zip(view.axes, eqn.params['broadcast_dimensions'], eqn.invars[0].aval.shape, strict=True):
    out[axis] = group if size == shape[axis] else ()
  return view._replace(axes=tuple(out))


def _reshaped(eqn: Any, view: View, shape: Sequence[int]) -> View:
  """Axes of one block of equal size lie together: merged into one, or, split, in each of them."""
  before, axes = eqn.invars[0].aval.shape, view.axes
  order = eqn.params.get('dimensions')
  if order is not None:
    before, axes = tuple(before[axis] for axis in order), tuple(axes[axis] for axis in order)
  out: list[tuple[int, ...]] = [()] * len(shape)
  for old, new in blocks(before, shape):
    several = len(old) > 1  # of several, those of length 1 hold nothing
    if len({bool(axes[axis]) for axis in old if before[axis] > 1}) > 1:  # it lies there several times
      view = view._replace(starts=None)
    held = tuple(a for axis in old for a in axes[axis] if before[axis] > 1 or not several)
    for axis in [axis for axis in new if shape[axis] != 1] or new[:1]:
      out[axis] = held
  return view._replace(axes=tuple(out))


def _padded(eqn: Any, view: View, shape: Sequence[int]) -> View:
  return view if tuple(shape) == eqn.invars[0].aval.shape else view._replace(starts=None)


def _in_place(eqn: Any, view: View, shape: Sequence[int]) -> View:
  return view._replace(starts=None)


_MOVES: dict[str, Callable[[Any, View, Sequence[int]], View]] = {
  'transpose': _transposed,
  'squeeze': _squeezed,
  'broadcast_in_dim': _broadcast,
  'reshape': _reshaped,
  'slice': _sliced,
  'dynamic_slice': _sliced_dynamically,
  'gather': _gathered,
  'pad': _padded,
  'rev': _in_place,
  'tile': _in_place,
}
_SIDE_BY_SIDE = frozenset({'concatenate', 'stack', 'dynamic_update_slice'})
_WRITES = frozenset({'scatter', 'scatter-add'})
_MIXES = frozenset(
  {
    *(*CONTRACTIONS, *OTHER_CONTRACTIONS, 'triangular_solve', 'sort', 'fft', 'cholesky', 'lu'),
    # Along an axis: what comes out has the shape, and none of its entries is one entry of the leaf.
    *('cumsum', 'cumprod', 'cummax', 'cummin', 'cumlogsumexp', 'reduce_window_sum', 'reduce_window_max'),
    *('reduce_window_min', 'reduce_window'),
  }
)
