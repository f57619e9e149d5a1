"""How fast this machine computes, measured once and kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class Rates(NamedTuple):
  """What compiled programs reach here at their best, by the kind of work. A multiply-add is two FLOPs.

  Attributes:
    products: FLOP/s of large matrix products, by 'float32', 'bfloat16', 'int8'.
    small_products: FLOP/s of small ones ([128, 256] by [256, 256]), by the same.
    convolutions: FLOP/s of XLA's convolutions (3x3, 32 channels), by the same; a precision it has none for is missing.
    depthwise: FLOP/s of XLA's depthwise convolutions, float32.
    elementwise: bytes/s, read and written, of a pass over arrays that lie in the caches.
    memory: bytes/s, read and written, of a pass over arrays that do not.
    transcendental: exponentials a second.
    dispatch: seconds that one call of a compiled program takes beside its work.
    one_core: the same on one core; None where it was not measured.
    more: further rates by name, each with its unit in `UNITS`.
    load: how many processes wanted the processor while it was measured; above 1 a core they are too low.
    warnings: lines on what was left out.
  """

  products: dict[str, float]
  small_products: dict[str, float]
  convolutions: dict[str, float]
  depthwise: float
  elementwise: float
  memory: float
  transcendental: float
  dispatch: float
  one_core: Rates | None = None
  more: dict[str, float] = {}  # noqa: RUF012  (never written)
  load: float = 0.0
  warnings: tuple[str, ...] = ()


# What `Rates.more` may hold: the unit of each.
UNITS = {
  'convolution_gradients': 'FLOP/s of both gradients of the convolution, float32',
  'fresh': 'bytes/s of memory touched for the first time',
  'reductions': 'bytes/s read by a sum over the last axis',
  'random': 'random 32-bit words a second',
  'pool_gradient': "elements a second of the input of XLA's gradient of a 2x2 max pool",
  'scatter': 'rows of 64 floats a second added to a table (the gradient of an embedding)',
}


def rates(say: Callable[[str], None] | None = None, anew: bool = False) -> Rates:
  """Returns this machine's rates: those that are kept for it, or measured now, which takes some seconds.

  Args:
    say: takes a line before measuring, and warnings.
    anew: whether to measure although there are kept ones.
  """
  raise NotImplementedError


def known_rates() -> Rates | None:
  """Returns the rates that are kept for this machine; None where they were not measured. Nothing is measured."""
  return None
