"""Principal components: exact, by random sketches, or in one pass of bounded memory; sums are in float64.

Rows are read block by block and never stand in memory together, so what lies in files is fitted as well. Exact is a
QR decomposition that grows with the rows: no matrix of products is formed, which would square the condition.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from jaxlite.data.projection import Blocks, Projection, blocks_of, regrouped, whole_components
from jaxlite.errors import whole

METHODS = ('exact', 'randomized', 'incremental')
_WIDEST = 4096  # features of an exact decomposition, which holds a few [features, features] in float64
_OVER, _POWERS = 10, 5  # columns beside those asked for, and passes over the rows, of a random sketch


class _Spectrum(NamedTuple):
  """What rows were found to be.

  Attributes:
    mean: float64 [features].
    axes: float64 [components, features], of length 1, at right angles.
    singular: float64 [components], falling; squared it is the sum of squares along each axis.
    total: the sum of squares about the mean, over all features.
    count: rows.
    fixed: bool [features], those that are the same in every row.
  """

  mean: np.ndarray
  axes: np.ndarray
  singular: np.ndarray
  total: float
  count: int
  fixed: np.ndarray


def pca(
  inputs: Any,
  components: float = 0.95,
  *,
  method: str = 'exact',
  whiten: bool = False,
  batch_rows: int | None = None,
  seed: int = 0,
  change: Callable[[np.ndarray], np.ndarray] | None = None,
) -> Projection:
  """Finds the directions along which rows vary most, and the map onto them.

  Args:
    inputs: floats or uint8 [N, ...], flattened; or a function () -> such arrays, the same each time, whose rows
      together are more than memory holds.
    components: how many, from 1 to min(N, features); or a share in (0, 1): as few as explain more than it.
    method: 'exact'; 'randomized' for many features: several passes over the rows, memory of features x components;
      'incremental': one pass, in which each batch of rows meets the components of those before it. It is the last that
      depends on the order of rows, and approximate.
    whiten: divides each component by its standard deviation, so that all have 1.
    batch_rows: of 'incremental', rows a batch, at least `components`; None takes five for each feature.
    seed: of 'randomized'.
    change: what is done to each block of rows before it is looked at, float64 [n, ...] -> the same.

  Returns:
    The Projection. Each component has the sign that makes its largest entry positive.

  Raises:
    ValueError: more components than min(N, features), or than the rows vary along; rows that are all the same; ids,
      NaN, examples of several shapes; too many features for 'exact'.

  References:
    Halko, Martinsson and Tropp, Finding structure with randomness, 2011, https://arxiv.org/abs/0909.4061
    Ross, Lim, Lin and Yang, Incremental learning for robust visual tracking, 2008,
    https://doi.org/10.1007/s11263-007-0075-7

  >>> rows = np.array([[0.0, 0.0], [1.0, 1.0], [2.0, 2.0], [3.0, 3.1]])
  >>> found = pca(rows, 1)
  >>> found.weight.shape, round(float(found.share[0]), 3), found(rows).shape
  ((2, 1), 1.0, (4, 1))
  """
  if method not in METHODS:
    raise ValueError(f'pca: method is one of {", ".join(METHODS)}; got {method!r}')
  blocks, shape = blocks_of(inputs, change)
  features = int(np.prod(shape))
  wanted = _wanted(components, method)
  if method == 'exact':
    if features > _WIDEST:
      raise ValueError(
        f"pca: exact takes up to {_WIDEST} features, of which it holds the square; got {features}: method='randomized' "
        "or 'incremental', with a number of components"
      )
    found = _folded(blocks, features)
  elif method == 'incremental':
    rows = 5 * features if batch_rows is None else whole(batch_rows, 'batch_rows', least=1)
    if rows < components:
      raise ValueError(f'pca: a batch has at least as many rows as components, {components:g}; got batch_rows={rows}')
    found = _folded(blocks, features, int(components), rows)
  else:
    found = _sketched(blocks, features, whole_components(components, features, 'pca'), seed)
  return _projection(found, wanted, shape, method, whiten)


def _wanted(components: Any, method: str) -> float:
  share = isinstance(components, float | np.floating) and 0 < components < 1
  if isinstance(components, float | np.floating) and components == 1:
    raise ValueError('pca: a share of the variance is below 1, and one component is 1, a whole number; got 1.0')
  if share and method != 'exact':
    raise ValueError(
      f"pca: a share of the variance needs the whole spectrum, method='exact'; got {components} and {method!r}: give a "
      'number of components'
    )
  return float(components) if share else whole_components(components, 1 << 31, 'pca')


def _projection(found: _Spectrum, wanted: float, shape: tuple[int, ...], method: str, whiten: bool) -> Projection:
  features = len(found.mean)
  if found.count < 2:
    raise ValueError(f'pca needs two rows at least, to see what varies; got {found.count}')
  if found.fixed.all() or not found.singular[:1].any():
    raise ValueError(f'pca: nothing varies: every one of the {found.count} rows is the same')
  count = _count_of(found, wanted)
  axes = found.axes[:count]
  axes = axes * np.sign(np.take_along_axis(axes, np.abs(axes).argmax(1)[:, None], 1))
  deviation = found.singular[:count] / np.sqrt(found.count - 1)
  if whiten:
    least = np.finfo(np.float32).eps * found.singular[0] / np.sqrt(found.count - 1)
    if thin := int((deviation <= least).sum()):
      raise ValueError(
        f'pca: whitening divides by deviations; those of the last {thin} of {count} components are rounding beside the '
        f'first: ask for at most {count - thin}, or leave whiten out'
      )
    axes = axes / deviation[:, None]
  notes = []
  if fixed := int(found.fixed.sum()):
    notes.append(f'{fixed} of {features} features do not vary in training, and no component hears of them')
  share = np.square(found.singular[:count]) / found.total
  kind = {'exact': 'pca', 'randomized': 'randomized pca', 'incremental': 'incremental pca'}[method]
  return Projection(
    kind + ', whitened' * whiten,
    np.ascontiguousarray(axes.T, np.float32),
    found.mean.astype(np.float32),
    shape,
    share,
    tuple(notes),
  )


def _count_of(found: _Spectrum, wanted: float) -> int:
  """How many components are meant, of those that there are."""
  features, most = len(found.mean), min(found.count, len(found.mean))
  if wanted < 1:
    shares = np.cumsum(np.square(found.singular)) / found.total
    return min(int(np.searchsorted(shares, wanted, side='right')) + 1, len(found.singular))
  if wanted > most:
    raise ValueError(
      f'pca: {found.count} rows of {features} features have at most {most} components; got {wanted:g}: ask for fewer'
    )
  spread = found.singular > found.singular[0] * max(found.count, features) * np.finfo(np.float64).eps
  rank = int(spread.sum())
  if wanted > rank:
    fixed = int(found.fixed.sum())
    why = f' ({fixed} features are constant)' if fixed else ' (some features are sums of others)'
    why = ', one less than there are rows, since their mean is taken off' if rank == found.count - 1 else why
    raise ValueError(f'pca: the rows vary along {rank} directions{why}; got components={wanted:g}: ask for {rank}')
  return int(wanted)


def _folded(blocks: Blocks, features: int, keep: int | None = None, rows: int = 0) -> _Spectrum:
  """One pass: each batch meets what stands for those before it, a triangle, or cut to `keep` rows of a spectrum."""
  basis = np.zeros((0, features))
  mean, seen = np.zeros(features), _Seen(features)
  if keep is None:
    batches: Iterable[np.ndarray] = regrouped(blocks(), features)
  else:
    batches = _of_size(blocks(), rows, keep)
  for block in batches:
    before, count = seen.mean, seen.count
    seen.add(block)
    ours = block.mean(0)
    step = np.sqrt(count * len(block) / (count + len(block))) * (before - ours)
    stacked = np.concatenate([basis, block - ours, step[None]] if count else [block - ours])
    if keep is not None:
      _, singular, axes = np.linalg.svd(stacked, full_matrices=False)
      basis = singular[:keep, None] * axes[:keep]
    else:
      basis = np.linalg.qr(stacked, 'r') if len(stacked) > features else stacked
  if not seen.count:
    return _Spectrum(mean, basis, np.zeros(0), 0.0, 0, np.ones(features, bool))
  _, singular, axes = np.linalg.svd(basis, full_matrices=False)
  return _Spectrum(seen.mean, axes, singular, float(seen.squares.sum()), seen.count, seen.fixed())


class _Seen:
  """Count, mean and sum of squares about it of rows that come in blocks (Chan, Golub and LeVeque 1983)."""

  def __init__(self, features: int):
    self.count, self.mean, self.squares = 0, np.zeros(features), np.zeros(features)
    self.low, self.high = np.full(features, np.inf), np.full(features, -np.inf)

  def add(self, block: np.ndarray) -> None:
    total = self.count + len(block)
    ours = block.mean(0)
    step = ours - self.mean
    self.squares = self.squares + np.square(block - ours).sum(0) + np.square(step) * self.count * len(block) / total
    self.mean = self.mean + step * (len(block) / total)
    self.low, self.high = np.minimum(self.low, block.min(0)), np.maximum(self.high, block.max(0))
    self.count = total

  def fixed(self) -> np.ndarray:
    return self.low == self.high


def _of_size(blocks: Iterable[np.ndarray], rows: int, least: int) -> Iterable[np.ndarray]:
  """Batches of so many rows; what would be left of fewer than `least` goes with the last."""
  held = np.zeros((0, 0))
  for block in blocks:
    held = block if not held.size else np.concatenate([held, block])
    while len(held) >= rows + least:
      yield held[:rows]
      held = held[rows:]
  while len(held) > rows and len(held) - rows >= least:
    yield held[:rows]
    held = held[rows:]
  if len(held):
    yield held


def _sketched(blocks: Blocks, features: int, count: int, seed: int) -> _Spectrum:
  """Several passes: a random subspace, turned by the rows towards where they vary, then the spectrum within it."""
  seen = _Seen(features)
  for block in regrouped(blocks(), 1):
    seen.add(block)
  width = min(count + _OVER, features)
  basis = np.random.default_rng(seed).standard_normal((features, width))
  for _ in range(_POWERS if seen.count else 0):
    turned = np.zeros_like(basis)
    for block in regrouped(blocks(), 1):
      centered = block - seen.mean
      turned += centered.T @ (centered @ basis)
    basis = np.linalg.qr(turned)[0]
  within = np.zeros((0, width))
  for block in regrouped(blocks(), width):
    stacked = np.concatenate([within, (block - seen.mean) @ basis])
    within = np.linalg.qr(stacked, 'r') if len(stacked) > width else stacked
  if not seen.count:
    return _Spectrum(seen.mean, basis.T, np.zeros(0), 0.0, 0, np.ones(features, bool))
  _, singular, axes = np.linalg.svd(within, full_matrices=False)
  return _Spectrum(seen.mean, axes @ basis.T, singular, float(seen.squares.sum()), seen.count, seen.fixed())
