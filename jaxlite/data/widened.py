"""A memory map of a dtype that no input has, brought to one that it may have where rows are read: no copy of it stands.

A float16 map of 3 GB would be 6 GB of float32 in memory. Whatever asks for rows (`chosen.Chosen`) gets them cast.
"""

from __future__ import annotations

from typing import Any

import numpy as np


class Widened:
  """Stands for `base.astype(dtype)`.

  >>> wide = Widened(np.array([[1, 2], [3, 4]], np.uint16), np.dtype(np.int32))
  >>> wide[0].tolist(), wide.take([1, 0], axis=0).dtype.name, wide.shape
  ([1, 2], 'int32', (2, 2))
  """

  def __init__(self, base: np.ndarray, dtype: np.dtype[Any]):
    self.base, self.dtype = base, np.dtype(dtype)
    self.shape, self.ndim = base.shape, base.ndim

  def __len__(self) -> int:
    return len(self.base)

  def __getitem__(self, index: Any) -> np.ndarray:
    return self._cast(self.base[index])

  def take(self, indices: Any, axis: int = 0) -> np.ndarray:
    """Returns some rows, a copy."""
    return self._cast(self.base.take(indices, axis=axis))

  def _cast(self, found: Any) -> np.ndarray:
    with np.errstate(over='ignore'):  # what float32 cannot hold becomes inf, which is refused with its place
      return np.asarray(found).astype(self.dtype)
