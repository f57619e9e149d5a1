"""What makes few features of many: an affine map of one leaf of the inputs, and the blocks of rows it is fitted on.

A `Projection` is a value. Alone it is called with an array; in a Dataset it stands beside mean and deviation, and a run
applies it on the device, as a part of the model. How one is found: `principal_components`, `random_projections` and
`selection`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxlite.data.inputs import as_array, pieces

Blocks = Callable[[], Iterable[np.ndarray]]  # the same rows each time it is called, float64 [n, features]


class Projection(NamedTuple):
  """Fewer features, (inputs - mean) @ weight, of inputs [N, ...] that are flattened.

  Attributes:
    kind: how it was found ('pca', 'random', ...).
    weight: float32 [features, components].
    mean: float32 [features], what is subtracted first; None where nothing is.
    shape: of one example.
    share: of the variance that each component explains, float64 [components]; None where nothing says so.
    notes: lines that a person should read.
    leaf: path of the inputs' leaf that it is for; '' where the inputs are one array.
    how: the arguments that find it again on other rows, as `jl.data.reduce` takes them.
    standardized: whether it was fitted on standardized inputs; then it is given such.

  >>> found = Projection('own', np.eye(3, 2, dtype=np.float32), None, (3,))
  >>> found(np.array([[1.0, 2.0, 3.0]])).tolist(), found.features, found.components
  ([[1.0, 2.0]], 3, 2)
  """

  kind: str
  weight: np.ndarray
  mean: np.ndarray | None
  shape: tuple[int, ...]
  share: np.ndarray | None = None
  notes: tuple[str, ...] = ()
  leaf: str = ''
  how: Mapping[str, Any] = {}
  standardized: bool = False

  @property
  def features(self) -> int:
    """How many features go in."""
    return self.weight.shape[0]

  @property
  def components(self) -> int:
    """How many come out."""
    return self.weight.shape[1]

  @property
  def columns(self) -> np.ndarray | None:
    """Which features are taken as they are, int64 [components]; None where components are sums of features."""
    chosen = np.count_nonzero(self.weight, axis=0) == 1
    return self.weight.argmax(0) if chosen.all() and (self.weight.max(0) == 1).all() else None

  def __call__(self, inputs: Any) -> np.ndarray:
    """Returns float32 [N, components] of inputs [N, ...], summed in float64.

    Raises:
      ValueError: examples of another shape, or no numbers.
    """
    array = as_array(inputs, 'inputs')
    if array.ndim < 1 or array.shape[1:] != self.shape or array.dtype.kind not in 'biuf':
      raise ValueError(
        f'this projection takes numbers [N, {", ".join(map(str, self.shape))}]; got {array.dtype}{list(array.shape)}'
      )
    weight = self.weight.astype(np.float64)
    found = np.empty((len(array), self.components), np.float32)
    for start, rows in pieces(array):
      flat = np.asarray(rows).reshape(len(rows), -1).astype(np.float64)
      found[start : start + len(rows)] = (flat if self.mean is None else flat - self.mean) @ weight
    return found

  def back(self, reduced: Any) -> np.ndarray:
    """Returns float32 [N, ...], the inputs of least norm (about the mean) that give these components.

    Of a PCA it is the nearest that the components can tell, and what it lacks of the inputs is what was lost.
    """
    reduced = np.asarray(reduced, np.float64)
    found = reduced @ np.linalg.pinv(self.weight.astype(np.float64))
    found = found if self.mean is None else found + self.mean
    return found.reshape(len(found), *self.shape).astype(np.float32)

  def told(self) -> str:
    """Returns what it is, in a few words."""
    kept = '' if self.share is None else f', {100 * float(self.share.sum()):.1f} % of the variance'
    of = f' of {self.leaf}' if self.leaf else ''
    return f'{self.kind}: {self.features} features{of} become {self.components}{kept}'


def blocks_of(inputs: Any, change: Callable[[np.ndarray], np.ndarray] | None = None) -> tuple[Blocks, tuple[int, ...]]:
  """Returns rows of inputs block by block, as float64 [n, features], and the shape of an example.

  Args:
    inputs: numbers [N, ...], an array, a memory map or rows that are decoded when they are asked for; or a function
      () -> arrays [n, ...], the same each time, for what lies in no array.
    change: float64 [n, ...] -> the same, what is done to each block first.

  Raises:
    ValueError: no numbers, integers (ids), examples of several shapes; while rows are read, values that are not finite.
  """
  if callable(inputs) and not hasattr(inputs, '__array__'):
    if (once := inputs()) is inputs() and iter(once) is once:
      raise ValueError(
        'the function that gives rows starts anew at each call; it gave one iterator twice: make it inside'
      )
    first = next(iter(inputs()), None)
    if first is None:
      raise ValueError('a projection is fitted on rows; the function gives no array')
    shape = _checked(as_array(first, 'inputs'))
    source = lambda: ((None, as_array(rows, 'inputs')) for rows in inputs())  # noqa: E731
  else:
    array = as_array(inputs, 'inputs')
    shape = _checked(array)
    source = lambda: pieces(array)  # noqa: E731

  def blocks() -> Iterator[np.ndarray]:
    start = 0
    for _, rows in source():
      rows = np.asarray(rows)
      if _checked(rows) != shape:
        raise ValueError(f'examples have one shape; the first has {list(shape)}, row {start} {list(rows.shape[1:])}')
      wide = rows.astype(np.float64)
      if not np.isfinite(wide).all():
        place = np.argwhere(~np.isfinite(wide))[0].tolist()
        value = wide[tuple(place)]
        raise ValueError(
          f'inputs are finite; got {value} at {[start + place[0], *place[1:]]}: drop the row or fill it in'
        )
      wide = wide if change is None else change(wide)
      yield wide.reshape(len(wide), -1)
      start += len(rows)

  return blocks, shape


def _checked(array: np.ndarray) -> tuple[int, ...]:
  if array.dtype.kind in 'OUSVc' and not array.dtype.name.startswith(('bfloat16', 'float8')):
    raise ValueError(
      f'a projection is of numbers; got {array.dtype}: examples have one shape, and names become numbers'
    )
  if array.dtype.kind == 'b' or (array.dtype.kind in 'iu' and array.dtype != np.uint8):
    raise ValueError(
      f'integers are ids (tokens, categories) and bools masks, which have no mean; got {array.dtype}: for numbers '
      ".astype('float32')"
    )
  if array.ndim < 2 or 0 in array.shape[1:]:
    raise ValueError(f'inputs are [N, features] or [N, ...]; got {list(array.shape)}: give each example its features')
  return array.shape[1:]


def regrouped(blocks: Iterable[np.ndarray], least: int) -> Iterator[np.ndarray]:
  """Yields the same rows in blocks of at least so many, the last of what is left."""
  held: list[np.ndarray] = []
  count = 0
  for block in blocks:
    if not len(block):
      continue
    held.append(block)
    count += len(block)
    if count >= least:
      yield np.concatenate(held) if len(held) > 1 else held[0]
      held, count = [], 0
  if held:
    yield np.concatenate(held) if len(held) > 1 else held[0]


def whole_components(components: Any, most: int, what: str) -> int:
  """Returns how many components are asked for.

  Raises:
    ValueError: no whole number, or more than there can be.

  >>> whole_components(3.0, 4, 'pca')
  3
  """
  number = isinstance(components, int | float | np.integer | np.floating) and not isinstance(components, bool)
  if not number or not math.isfinite(components) or components != int(components) or components < 1:
    raise ValueError(f'{what} makes a whole number of components, at least 1; got {components!r}')
  if components > most:
    raise ValueError(f'{what} makes at most {most} components here; got {int(components)}: ask for fewer')
  return int(components)
