"""Whether what is given fits what a network takes: no value becomes another one on the way in, and none silently."""

from __future__ import annotations

from typing import Any

import numpy as np


def check_kind(name: str, given: Any, want: Any) -> None:
  """Refuses inputs that would be converted to other values: floats to integers, whole numbers that wrap around.

  Whole numbers become floats, and floats those of another width, as everywhere in JAX.

  Args:
    name: of the input.
    given: numbers, a NumPy array, or a JAX array, which may be traced.
    want: the dtype that the network takes.

  Raises:
    ValueError: it takes integers and got something else, or some that its dtype does not hold; complex numbers.

  >>> check_kind('input', np.array([0, 255]), np.dtype('uint8'))
  >>> check_kind('input', np.array([0.5]), np.dtype('uint8'))
  Traceback (most recent call last):
    ...
  ValueError: input takes uint8, raw as in training; got float64: give whole numbers, not scaled ones
  """
  want = np.dtype(want)
  array = given if hasattr(given, 'dtype') else np.asarray(given)
  kind = np.dtype(array.dtype)
  if kind == want or not np.size(array):
    return
  takes = f'{name} takes {want}, raw as in training; got {kind}'
  if want.kind not in 'iub':
    if kind.kind == 'c' and want.kind != 'c':
      raise ValueError(f'{takes}: give its real numbers')
    return
  if kind.kind not in 'iub' or (want.kind == 'b') != (kind.kind == 'b'):
    raise ValueError(f'{takes}: give {"truth values" if want.kind == "b" else "whole numbers, not scaled ones"}')
  if np.can_cast(kind, want):
    return
  try:
    array = np.asarray(array)
  except Exception:  # a traced array, whose values nobody knows yet
    raise ValueError(f'{takes} in a traced function, whose values may not fit: convert them to {want} there') from None
  low, high = array.min(), array.max()
  if low < np.iinfo(want).min or high > np.iinfo(want).max:
    raise ValueError(f'{takes} from {low} to {high}, which {want} does not hold: give whole numbers that it does')
