"""Some rows of an array that is too large to copy: read where they are asked for, so that carving costs an index.

Where examples are held out, what is left for training would be a second copy of nearly everything, and of a memory map
a first one. A `Chosen` stands where the copy would: shape, dtype and length are those of the rows, `take` and slices
read these rows alone, and whatever else NumPy knows is done on a copy, as it would have been.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

LEAST = 1 << 24  # bytes of rows below which they are copied: 16 MiB


class Chosen(np.lib.mixins.NDArrayOperatorsMixin):
  """Rows of an array, in an order; stands for `base[rows]`.

  >>> picked = Chosen(np.arange(10) * 1.5, np.array([1, 3, 5]))
  >>> picked.shape, picked[1:].tolist(), picked.take([0, 2]).tolist(), float(picked.sum()), (picked > 2).tolist()
  ((3,), [4.5, 7.5], [1.5, 7.5], 13.5, [False, True, True])
  """

  __slots__ = ('_base', '_rows')

  def __init__(self, base: Any, rows: np.ndarray):
    """Args: base [M, ...] and rows int64[N], each in [0, M)."""
    self._base, self._rows = base, rows

  @property
  def base(self) -> Any:
    """The array that the rows are of."""
    return self._base

  @property
  def indices(self) -> np.ndarray:
    """Which rows of it, int64[N]."""
    return self._rows

  @property
  def shape(self) -> tuple[int, ...]:
    """That of the rows, [N, ...]."""
    return len(self._rows), *self._base.shape[1:]

  @property
  def dtype(self) -> np.dtype[Any]:
    """That of the array."""
    return self._base.dtype

  @property
  def ndim(self) -> int:
    """Number of axes."""
    return self._base.ndim

  @property
  def size(self) -> int:
    """Number of values."""
    return int(np.prod(self.shape, dtype=np.int64))

  @property
  def nbytes(self) -> int:
    """Bytes of a copy."""
    return self.size * self.dtype.itemsize

  def __len__(self) -> int:
    return len(self._rows)

  def __getitem__(self, index: Any) -> Any:
    first, *rest = index if isinstance(index, tuple) and index else (index,)
    if first is None or first is Ellipsis or np.ndim(first) > bool(not rest) or any(np.ndim(one) for one in rest):
      return np.asarray(self)[index]  # the first is no row, or several arrays are matched with each other
    rows = self._rows[first]
    found = self._base[rows]
    return found[tuple(rest) if np.ndim(rows) == 0 else (slice(None), *rest)] if rest else found

  def __iter__(self) -> Iterator[Any]:
    return (self._base[row] for row in self._rows)

  def take(self, indices: Any, axis: int | None = None, **options: Any) -> np.ndarray:
    """Returns some of the rows, a copy; along another axis, or none, as NumPy does."""
    if axis != 0 or options:
      return np.asarray(self).take(indices, axis, **options)
    return self._base.take(self._rows.take(indices), axis=0)

  def choose_rows(self, rows: np.ndarray) -> Chosen:
    """Returns rows of these rows, not copied."""
    return Chosen(self._base, self._rows[rows])

  def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
    if copy is False:
      raise ValueError('rows that were chosen become an array by a copy; got copy=False')
    found = self._base.take(self._rows, axis=0)
    return found if dtype is None else found.astype(dtype, copy=False)

  def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
    if any(isinstance(out, Chosen) for out in options.get('out', ())):
      raise TypeError('the examples of a data set are read-only: give another out=')
    return getattr(ufunc, method)(*(np.asarray(one) if isinstance(one, Chosen) else one for one in inputs), **options)

  def __getattr__(self, name: str) -> Any:
    if name.startswith('_') or not hasattr(np.ndarray, name):  # asking for a name must not copy, nor decode
      raise AttributeError(name)
    return getattr(np.asarray(self), name)

  def __repr__(self) -> str:
    return f'Chosen({self.dtype}{list(self.shape)} of {list(self._base.shape)})'


def choose(array: Any, rows: np.ndarray) -> Any:
  """Returns these rows of an array: a copy where they are few bytes, else a `Chosen`.

  Args:
    array: [M, ...], an array or a Chosen.
    rows: int64[N].
  """
  row = int(np.prod(array.shape[1:], dtype=np.int64)) * array.dtype.itemsize
  if len(rows) * row < LEAST:
    return array.take(rows, axis=0)
  return array.choose_rows(rows) if isinstance(array, Chosen) else Chosen(array, rows)


def joined(arrays: Sequence[Any]) -> Any:
  """Returns arrays one after the other; rows of one array stay rows of it."""
  bases = {id(one._base) if isinstance(one, Chosen) else None for one in arrays}
  if len(bases) == 1 and isinstance(arrays[0], Chosen):
    return Chosen(arrays[0]._base, np.concatenate([one._rows for one in arrays]))
  return np.concatenate([np.asarray(one) for one in arrays])


@contextlib.contextmanager
def room_for(name: str) -> Iterator[None]:
  """Says in one line what there was no memory for, and what takes less.

  Raises:
    MemoryError: as the block does.
  """
  try:
    yield
  except MemoryError as error:
    why = f' ({error})' if str(error) else ''
    raise MemoryError(
      f'there is no memory for the data {name!r}{why}: uint8, float32 and int32 are taken without a copy, and a '
      "memory map of any kind is, numpy.load(path, mmap_mode='r'); jl.data.stream makes batches one by one"
    ) from None
