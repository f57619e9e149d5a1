"""Grids of int8 values: which one a point of a fake-quantized network has, and which one a range gets.

References:
  Jacob et al., Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference,
  2018, https://arxiv.org/abs/1712.05877
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

_SMALLEST = np.float32(2.0**-100)  # as in training: a span below this is no range


class Grid(NamedTuple):
  """How a real value is stored: clip(rint(real / scale) + zero_point, low, high), int8.

  Attributes:
    scale: above 0, a float32.
    zero_point: how 0 is stored.
    low: the lowest stored value.
    high: the highest.
  """

  scale: float
  zero_point: int
  low: int
  high: int

  @property
  def told(self) -> dict[str, Any]:
    """The attributes of an operation 'quantize'."""
    return self._asdict()

  @property
  def reach(self) -> int:
    """The largest distance from zero, in steps."""
    return max(abs(self.low - self.zero_point), abs(self.high - self.zero_point))

  def stored(self, real: float) -> int:
    """How a number is stored, not clipped to the grid but to int8's neighborhood.

    >>> Grid(0.5, -128, -128, 127).stored(1.0)
    -126
    """
    steps = np.rint(np.float32(real) * (np.float32(1) / np.float32(self.scale)))
    return int(np.clip(steps + np.float32(self.zero_point), -1024, 1024))

  def within(self, least: float, most: float) -> Grid:
    """Returns the grid of values that are clipped to [least, most] first: rounding changes no order.

    >>> Grid(0.5, -8, -128, 127).within(0.0, math.inf).low
    -8
    """
    low, high = self.low, self.high
    if least > -math.inf:
      low = min(max(low, self.stored(least)), high)
    if most < math.inf:
      high = max(min(high, self.stored(most)), low)
    return self._replace(low=low, high=high)


def grid_of(inverse: float, low: float, high: float, scales: Iterable[float] = ()) -> Grid | None:
  """Returns the grid of clip(rint(x * inverse), low, high); None where int8 holds no such grid.

  Args:
    inverse: float32, of the scale.
    low: in steps from zero.
    high: likewise.
    scales: what the scale may be, as the program multiplies by it elsewhere.

  >>> grid_of(4.0, 0.0, 255.0)
  Grid(scale=0.25, zero_point=-128, low=-128, high=127)
  >>> grid_of(4.0, -1.0, 2.0).zero_point, grid_of(4.0, 0.0, 300.0)
  (-1, None)
  """
  if not (math.isfinite(inverse) and inverse > 0 and low <= 0 <= high and high - low <= 255):
    return None
  if low != int(low) or high != int(high) or high == low:
    return None
  bits = max(2, math.ceil(math.log2(high - low + 1)))
  least = -(2 ** (bits - 1))
  fits = least <= low and high <= -least - 1
  zero = 0 if fits else least - int(low)  # 0 for a grid that has it, as every full one about zero does
  return Grid(scale_of(inverse, scales), zero, int(low) + zero, int(high) + zero)


def scale_of(inverse: float, scales: Iterable[float] = ()) -> float:
  """Returns a float32 whose float32 inverse is this one: of those given, else of the nearest.

  >>> scale_of(float(np.float32(1) / np.float32(0.3)), [float(np.float32(0.3))]) == float(np.float32(0.3))
  True
  """
  wanted = np.float32(inverse)
  near = np.float32(1) / wanted
  others = [near, np.nextafter(near, np.float32(0)), np.nextafter(near, np.float32(np.inf))]
  for scale in [*map(np.float32, scales), *others]:
    if scale > 0 and np.isfinite(scale) and np.float32(1) / scale == wanted:
      return float(scale)
  return float(near)


def calibrated(lowest: float, highest: float, bits: int = 8) -> Grid:
  """Returns the grid of a range, as training's: widened to hold zero and moved so that zero is on it.

  Args:
    lowest: of the range.
    highest: likewise, not below it.
    bits: 2 to 8.

  >>> calibrated(0.0, 255.0)
  Grid(scale=1.0, zero_point=-128, low=-128, high=127)
  """
  least, most = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
  low, high = np.minimum(np.float32(lowest), np.float32(0)), np.maximum(np.float32(highest), np.float32(0))
  half = np.float32(0.5)
  step = (high * half - low * half) * np.float32(2 / (2**bits - 1))
  scale = step if step >= _SMALLEST else np.float32(1)
  zero = int(np.clip(np.float32(least) + np.rint(-low * (np.float32(1) / scale)), least, most))
  return Grid(float(scale), zero, least, most)


def grid_in(attributes: Any, prefix: str = '') -> Grid:
  """Returns the grid that an operation writes; with a prefix ('x_', 'a_') one that it reads, all of int8 in use."""
  if prefix:
    return Grid(attributes[f'{prefix}scale'], attributes[f'{prefix}zero_point'], -128, 127)
  return Grid(*(attributes[name] for name in Grid._fields))
