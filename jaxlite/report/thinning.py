"""Curves of many points: what a picture can show of them, found without losing a peak."""

from __future__ import annotations

from typing import Any

import numpy as np


def thinned(x: Any, y: Any, columns: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns the points of a curve that a picture this many columns wide can show.

  Of the points of a column the first, the lowest, the highest and the last are kept, so the line covers the pixels that
  all points would have covered.

  Args:
    x: float[N], ascending; where it is not, points are sorted by it first.
    y: float[N]. Points that are not finite are left out.
    columns: of the picture.

  Returns:
    (x, y), float64, at most 4 * columns points.

  References:
    Jugel, Jerzak, Hackenbroich and Markl, M4: a visualization-oriented time series data aggregation, 2014,
    https://doi.org/10.14778/2732951.2732953

  >>> x, y = thinned(range(10_000), [0.0] * 5_000 + [9.0] + [0.0] * 4_999, columns=10)
  >>> len(x) <= 40, float(max(y))
  (True, 9.0)
  """
  x, y = np.asarray(x, np.float64).ravel(), np.asarray(y, np.float64).ravel()
  good = np.isfinite(x) & np.isfinite(y)
  x, y = x[good], y[good]
  if len(x) > 1 and (np.diff(x) < 0).any():
    order = np.argsort(x, kind='stable')
    x, y = x[order], y[order]
  if len(x) <= 4 * columns or x[0] == x[-1]:
    kept = slice(None) if len(x) <= 4 * columns else np.unique([0, int(y.argmin()), int(y.argmax()), len(y) - 1])
    return x[kept], y[kept]
  # Divided before it is subtracted: the width of a range of the largest floats is itself no float.
  place = np.minimum((columns * ((x / 2 - x[0] / 2) / (x[-1] / 2 - x[0] / 2))).astype(np.int64), columns - 1)
  starts = np.flatnonzero(np.diff(place, prepend=-1))
  ends = np.append(starts[1:], len(x)) - 1
  order = np.lexsort((y, place))  # a column's points by height: its first is the lowest, its last the highest
  kept = np.unique(np.concatenate([starts, ends, order[starts], order[ends]]))
  return x[kept], y[kept]
