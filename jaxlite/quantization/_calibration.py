"""Which range an activation should have, judged by a histogram of it over calibration batches.

A histogram's bins are the floats themselves, cut to their upper 16 bits (sign, exponent and the first 7 bits of the
mantissa): every bin is at most 1/128 of its values wide, and is the same for every batch, layer and machine. So
histograms of batches, shards and iterations add up exactly, in any order, and one pass over the data is enough.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxlite.errors import number
from jaxlite.quantization import _numerics as numerics

BINS = 2**16


class Histogram(NamedTuple):
  """How often which values occur.

  Attributes:
    span: (lowest, highest) finite value, float32[...] each; (inf, -inf) of nothing.
    counts: integers [..., 65536], by the upper 16 bits of a float32.
  """

  span: numerics.Range
  counts: jax.Array


Calibrate = Callable[[Histogram, int], tuple[float, float]]  # (of one activation, on the host; bits) -> range


def histogram(x: jax.Array) -> Histogram:
  """Counts the values of an array; NaN and infinities fall into bins that no one reads.

  Args:
    x: float[...], at most 2^31 - 1 values.

  >>> one = histogram(jnp.array([1.0, 1.001, -2.0, jnp.nan]))
  >>> int(one.counts[0x3F80]), int(one.counts[0xC000]), float(one.span[0])
  (2, 1, -2.0)
  """
  x = lax.stop_gradient(x).astype(jnp.float32)
  key = lax.bitcast_convert_type(x, jnp.uint32) >> 16
  counts = jnp.zeros(BINS, jnp.int32).at[key.reshape(-1)].add(1)
  return Histogram(numerics.observe(x), counts)


def merge(one: Histogram, other: Histogram) -> Histogram:
  """Returns the histogram of both.

  >>> both = merge(histogram(jnp.ones(2)), histogram(jnp.ones(3)))
  >>> int(both.counts[0x3F80])
  5
  """
  return Histogram(numerics.merge(one.span, other.span), one.counts + other.counts)


def by_min_max() -> Calibrate:
  """Takes the whole range that was seen: nothing is clipped, and one outlier coarsens all.

  Returns:
    What `ptq(calibrate=)` takes.

  >>> by_min_max()(histogram(jnp.array([-1.0, 3.0])), 8)
  (-1.0, 3.0)
  """

  def span(seen: Histogram, bits: int) -> tuple[float, float]:
    del bits
    return float(seen.span[0]), float(seen.span[1])

  return span


def by_percentile(percent: float = 99.9) -> Calibrate:
  """Takes the range without its outermost values: at either end, those beyond the percentile.

  Args:
    percent: above 50, at most 100: 99.9 clips the 0.1 % of the largest and the 0.1 % of the smallest values.

  Returns:
    What `ptq(calibrate=)` takes. Its ends lie outside the exact percentiles, by at most 1/128 of them.

  Raises:
    ValueError: a percentage that leaves no range.

  >>> import numpy as np
  >>> low, high = by_percentile(90)(histogram(jnp.arange(1.0, 101.0)), 8)
  >>> 10 <= low <= 11, 90 <= high <= 91
  (True, True)
  """
  percent = number(percent, 'by_percentile: percent')
  if not 50 < percent <= 100:
    raise ValueError(f'by_percentile: percent is above 50 and at most 100, got {percent!r}')

  def span(seen: Histogram, bits: int) -> tuple[float, float]:
    del bits
    near, far, counts = _bins(seen)
    if not len(counts):  # nothing finite was seen
      return math.inf, -math.inf
    rank = np.ceil(counts.sum() * percent / 100 - 1e-6)  # 99.9 % of 5,000 is not quite whole in floats
    upper = np.searchsorted(np.cumsum(counts), rank)
    lower = np.searchsorted(np.cumsum(counts[::-1]), rank)
    low, high = float(seen.span[0]), float(seen.span[1])
    ends = np.maximum(near, far)[upper], np.minimum(near, far)[::-1][lower]
    return max(low, float(ends[1])), min(high, float(ends[0]))

  return span


def by_mse() -> Calibrate:
  """Takes the range whose grid has the least mean squared error: rounding against clipping.

  Both ends are drawn in together, in hundredths of the range that was seen, and then each by itself.

  Returns:
    What `ptq(calibrate=)` takes.

  >>> seen = histogram(jnp.array([*[0.5, 1.0, 1.5] * 1000, 6.0]))
  >>> by_mse()(seen, 2)  # one value in 3,001 is not worth the others' resolution
  (0.0, 1.5)
  """
  shares = [hundredths / 100 for hundredths in range(100, 0, -1)]

  def span(seen: Histogram, bits: int) -> tuple[float, float]:
    near, far, counts = _bins(seen)
    if not len(counts):
      return math.inf, -math.inf
    values = np.clip((near + far) / 2, *(float(end) for end in seen.span))
    low, high = min(float(seen.span[0]), 0.0), max(float(seen.span[1]), 0.0)

    def best(tried: Iterator[tuple[float, float]]) -> tuple[float, float]:
      return min(tried, key=lambda ends: _error(values, counts, *ends, bits))  # of equals the first, the widest

    low, high = best((low * share, high * share) for share in shares)
    low, high = best((low, high * share) for share in shares)
    return best((low * share, high) for share in shares)

  return span


def _bins(seen: Histogram) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns of every bin that holds anything, by rising value: the end nearer zero, the other, the count."""
  counts = np.asarray(seen.counts, np.int64)
  keys = np.flatnonzero(counts)
  keys = keys[(keys & 0x7F80) != 0x7F80]  # exponent of NaN and infinity
  near = (keys.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
  far = ((keys.astype(np.uint32) << 16) | 0xFFFF).view(np.float32).astype(np.float64)
  far = np.where(near == 0, 0, far)  # what shares the bin of zero is no more than 1e-40
  order = np.lexsort((far, near))
  return near[order], far[order], counts[keys][order]


def _error(values: np.ndarray, counts: np.ndarray, low: float, high: float, bits: int) -> float:
  """The sum of squared errors of an affine grid that holds zero."""
  most = 2**bits - 1
  scale = (high - low) / most
  if scale < numerics.SMALLEST:
    return float(np.sum(counts * values**2))
  zero = np.clip(np.round(-low / scale), 0, most)
  steps = np.clip(np.round(values / scale), -zero, most - zero)
  return float(np.sum(counts * (steps * scale - values) ** 2))
