"""Which point of a space comes next, without any package: all of a grid, or points at random.

A point is a function of the study's seed and of how many came before it, so that a study that goes on, on whatever
machine, tries the points that it would have tried.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxlite.tuning.kinds import Space, at, draw, grid, size
from jaxlite.tuning.ledger import Trial

_TRIES = 1000  # draws until a point is new


def next_of_grid(space: Space, seed: int, past: Sequence[Trial]) -> dict[str, Any] | None:
  """Returns the next point of a grid; None where all were tried.

  The order is shuffled: where time runs out, what was tried lies all over the space.

  Args:
    space: its choices and ranges.
    seed: of the study.
    past: trials so far.
  """
  points, tried = grid(space), _tried(space, past)
  order = np.random.default_rng(seed).permutation(len(points))
  return next((points[place] for place in order if tuple(points[place].values()) not in tried), None)


def spread(space: Space, seed: int, place: int) -> dict[str, Any]:
  """Returns a point of a sequence that fills a space evenly from its first points on, where random ones leave holes.

  Args:
    space: its choices and ranges.
    seed: of the study; shifts the sequence.
    place: in the sequence.

  References:
    Roberts, The Unreasonable Effectiveness of Quasirandom Sequences, 2018,
    https://extremelearning.com.au/unreasonable-effectiveness-of-quasirandom-sequences/

  >>> from jaxlite.tuning.kinds import integer
  >>> sorted({spread({'x': integer(0, 3)}, 0, place)['x'] for place in range(6)})
  [0, 1, 2, 3]
  """
  ratio = 2.0
  for _ in range(60):  # of x to the power of dimensions + 1 equal to x + 1: the golden ratio's like
    ratio = (1 + ratio) ** (1 / (len(space) + 1))
  shift = np.random.default_rng([seed, len(space)]).random(len(space))
  parts = [(first + (place + 1) * ratio ** -(axis + 1)) % 1.0 for axis, first in enumerate(shift)]
  return {name: at(kind, float(part)) for (name, kind), part in zip(space.items(), parts, strict=True)}


def next_at_random(space: Space, seed: int, past: Sequence[Trial]) -> dict[str, Any] | None:
  """Returns the next point at random, none twice; None where a finite space is used up.

  Args:
    space: its choices and ranges.
    seed: of the study.
    past: trials so far.

  References:
    Bergstra and Bengio, Random Search for Hyper-Parameter Optimization, 2012,
    https://www.jmlr.org/papers/v13/bergstra12a.html
  """
  tried = _tried(space, past)
  if len(tried) >= size(space):
    return None
  rng = np.random.default_rng([seed, len(past)])
  for _ in range(_TRIES):
    point = {name: draw(kind, rng) for name, kind in space.items()}
    if tuple(point.values()) not in tried:
      return point
  return next((point for point in grid(space) if tuple(point.values()) not in tried), None)


def _tried(space: Space, past: Sequence[Trial]) -> set[tuple[Any, ...]]:
  return {tuple(trial.given[name] for name in space) for trial in past}
