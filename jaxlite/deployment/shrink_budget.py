"""How much a network is shrunk: what each group costs, and the way down to a budget."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxlite.graph.coupled import Family, Product
from jaxlite.graph.removable import share


class Cost(NamedTuple):
  """What a network costs by how many units of each family are left.

  Attributes:
    families: of units.
    products: of contractions, over the batch.
    shapes: of the leaves, whole.
    bytes: of an entry of each leaf.
    weights: how many of the leaves are parameters.
    batch: examples in the batch of the products.
  """

  families: tuple[Family, ...]
  products: tuple[Product, ...]
  shapes: tuple[tuple[int, ...], ...]
  bytes: tuple[int, ...]
  weights: int
  batch: int

  def sizes(self, kept: Sequence[int]) -> list[list[int]]:
    """The shapes of the leaves."""
    sizes = [list(shape) for shape in self.shapes]
    for family, stay in zip(self.families, kept, strict=True):
      for (leaf, axis), entries in zip(family.members, family.units[0], strict=True):
        sizes[leaf][axis] -= len(entries) * (len(family.units) - stay)
    return sizes

  def of(self, what: str, kept: Sequence[int]) -> float:
    """Returns the cost in 'parameters', 'bytes' or 'flops'.

    Args:
      what: of the three.
      kept: units left of each family.
    """
    if what == 'flops':
      left = [stay / len(family.units) for family, stay in zip(self.families, kept, strict=True)]

      def length(fixed: int, counts: Sequence[tuple[int, int]]) -> float:
        return fixed + sum(count * left[family] for family, count in counts)

      each = (one.each * math.prod(length(*axis) for axis in one.axes) for one in self.products)
      return sum(each) / self.batch
    sizes = [math.prod(shape) for shape in self.sizes(kept)]
    if what == 'parameters':
      return float(sum(sizes[: self.weights]))
    return float(sum(size * width for size, width in zip(sizes, self.bytes, strict=True)))


def up(count: int, step: int, units: int) -> int:
  """Returns the least width of at least `count`: whole steps, one at least, or all.

  >>> up(9, 8, 20), up(0, 8, 20), up(17, 8, 20)
  (16, 8, 20)
  """
  return min(max(-(-count // step), 1) * step, units)


def path(cost: Cost, steps: Sequence[int], open_: Sequence[bool], worth: Sequence[np.ndarray]) -> Path:
  """Returns the way from the whole network down."""
  return Path(cost, tuple(steps), tuple(open_), tuple(np.sort(one)[::-1] for one in worth))


class Path(NamedTuple):
  """A way down: at each step that group loses some units for which the loss is smallest against what it saves.

  The loss is the share of what is left of its group; so no group is emptied before its turn.
  """

  cost: Cost
  steps: tuple[int, ...]
  open: tuple[bool, ...]
  worth: tuple[np.ndarray, ...]  # of the units of each family, the best first

  def share(self, keep: float) -> list[int]:
    """Returns how many units each family keeps of a share of them."""
    families = zip(self.cost.families, self.steps, self.open, strict=True)
    return [share(len(one.units), step, keep) if is_open else len(one.units) for one, step, is_open in families]

  def walk(self, what: str) -> Iterator[list[int]]:
    """Yields how many units each family keeps, from all down to the least.

    Args:
      what: is to be saved: 'parameters', 'bytes' or 'flops'.
    """
    kept = [len(family.units) for family in self.cost.families]
    sums = [np.concatenate([[0.0], np.cumsum(one)]) for one in self.worth]
    while True:
      yield list(kept)
      before, best = self.cost.of(what, kept), None
      for place, stay in enumerate(kept):
        less = (stay - 1) // self.steps[place] * self.steps[place]
        if not self.open[place] or less < 1:
          continue
        saved = before - self.cost.of(what, [*kept[:place], less, *kept[place + 1 :]])
        lost = (sums[place][stay] - sums[place][less]) / max(sums[place][stay], 1e-300)
        if saved > 0 and (best is None or lost / saved < best[0]):
          best = (lost / saved, place, less)
      if best is None:
        return
      kept[best[1]] = best[2]


def first(path: Path, what: str, most: float) -> list[int]:
  """Returns the first point on the way that meets a budget.

  Raises:
    ValueError: none does.
  """
  cost, kept = path.cost, list[int]()
  for kept in path.walk(what):
    if cost.of(what, kept) <= most:
      return kept
  least = cost.of(what, kept)
  raise ValueError(
    f'shrink: {what}={most:,.0f} cannot be met; the nearest is {least:,.0f} (the whole network: '
    f'{cost.of(what, [len(family.units) for family in cost.families]):,.0f})'
  )


def by_time(path: Path, most: float, seconds: Callable[[Sequence[int]], float]) -> list[int]:
  """Returns a point on the way that meets a time, by halving.

  Raises:
    ValueError: not even the smallest does.
  """
  points = list(path.walk('flops'))
  if seconds(points[0]) <= most:
    return points[0]
  least = seconds(points[-1])
  if least > most:
    raise ValueError(f'shrink: latency={most:.3g} s cannot be met; the nearest is {least:.3g} s')
  low, high = 0, len(points) - 1
  while high - low > max(1, len(points) // 64):
    middle = (low + high) // 2
    low, high = (low, middle) if seconds(points[middle]) <= most else (middle, high)
  return points[high]


def seconds_of(shrunk: Any, inputs: Any) -> float:
  """Measures a forward: the median of 15 after 3, of one compiled program, as the network predicts by."""
  if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(inputs)):
    raise ValueError('shrink: latency= is measured on inputs, so they are arrays; got shapes')
  compiled = getattr(shrunk.model.apply, 'compiled', jax.jit)
  run = compiled(lambda params, state, inputs: shrunk.model.apply(params, state, inputs, train=False, key=None)[0])
  times = []
  for _ in range(18):
    begin = time.perf_counter()
    jax.block_until_ready(run(shrunk.params, shrunk.model_state, inputs))
    times.append(time.perf_counter() - begin)
  return float(np.median(times[3:]))
