"""Examples that bring more than inputs and labels: columns of any name, in one or several fixed views."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxlite.data.dataset import Dataset, Draw, Split

_DRAW = zlib.crc32(b'views')


class Columns(NamedTuple):
  """A split whose batches hold further columns; it stands in a Dataset where a `Split` does.

  Every example has the same number of views. A batch holds one view of each of its examples, drawn anew at each
  step, and all its columns belong to that view: a teacher's logits are those of the very picture beside them.
  Evaluation sees the first view.

  Attributes:
    inputs: as in `Split`.
    labels: as in `Split`.
    weight: as in `Split`.
    columns: by name, [N, views, ...], or [N, 1, ...] where all views share it. One named 'inputs' or 'labels'
      takes the place of the split's own.
  """

  inputs: Any
  labels: np.ndarray
  weight: np.ndarray | None
  columns: Mapping[str, np.ndarray]

  def take(self, rows: np.ndarray, draw: Draw | None = None) -> dict[str, np.ndarray]:
    """Returns one view of each of these examples, drawn by (seed, step), or steps; without, the first."""
    views = max(column.shape[1] for column in self.columns.values())
    view = np.zeros(rows.shape, np.int64)
    if draw is not None and views > 1:
      seed, steps = draw
      for step, part in zip(np.atleast_1d(steps).tolist(), np.atleast_2d(view), strict=True):  # parts of `view` itself
        part[:] = np.random.default_rng((seed, step, _DRAW)).integers(views, size=len(part))
    plain = Split(self.inputs, self.labels, self.weight).take(rows)
    return {**plain, **{name: _at(column, rows, view) for name, column in self.columns.items()}}


def _at(column: np.ndarray, rows: np.ndarray, view: np.ndarray) -> np.ndarray:
  if column.shape[1] == 1:
    return np.asarray(column[:, 0].take(rows, axis=0))
  return np.asarray(column[rows, view])


def attach(data: Dataset, **columns: Any) -> Dataset:
  """Lets the training examples of a data set bring more into their batches, such as a teacher's logits.

  Args:
    data: a Dataset.
    **columns: by name, [N, ...], a row for each example of `data.train`, in its order; of any numbers.

  Returns:
    The Dataset: its batches hold each column [B, ...] under its name, and its fingerprint covers them.

  Raises:
    ValueError: a column of another length, NaN in it, or a name that a batch has already.

  >>> from jaxlite.data import batch_at, from_arrays
  >>> data = from_arrays((np.zeros((20, 3)), np.arange(20) % 2))
  >>> with_logits = attach(data, logits=np.ones((16, 2), np.float32))
  >>> batch_at(with_logits.train, 4, seed=0, step=0)['logits'].shape
  (4, 2)
  """
  if not columns:
    raise ValueError('attach takes columns by name, such as attach(data, logits=array); got none')
  if not isinstance(data.train, Split | Columns):
    raise ValueError('attach needs the training examples as arrays; these come from a stream: let it make the columns')
  for name in ('inputs', 'labels'):
    if name in columns:
      raise ValueError(f'a batch has {name!r} already: make the data set of the other {name}, or give another name')
  return with_columns(data, {name: _column(name, column, data) for name, column in columns.items()})


def _column(name: str, column: Any, data: Dataset) -> np.ndarray:
  array = np.asarray(column)
  count = len(data.train.labels)
  if array.ndim < 1 or len(array) != count:
    raise ValueError(
      f'a column has a row for each of the {count} training examples; {name!r} is {list(array.shape)}: compute it for '
      'data.train, in its order'
    )
  if array.dtype.kind not in 'biuf' and not array.dtype.name.startswith(('bfloat16', 'float8')):
    raise ValueError(f'a column holds numbers; {name!r} is {array.dtype}')
  return array[:, None]


def with_columns(data: Dataset, columns: Mapping[str, np.ndarray], digests: Mapping[str, str] | None = None) -> Dataset:
  """Returns the data set with columns [N, views or 1, ...] beside those it has.

  Args:
    data: a Dataset.
    columns: by name.
    digests: sha256 of each, where they are known.

  Raises:
    ValueError: a name that is taken, NaN, or another number of views than the columns there are.
  """
  train = data.train
  had = dict(train.columns) if isinstance(train, Columns) else {}
  for name, column in columns.items():
    if name in had or name == 'weight':
      raise ValueError(f'a batch has {name!r} already: give the column another name')
    if column.dtype.kind not in 'biu' and np.isnan(column).any():
      place = int(np.argwhere(np.isnan(column))[0][0])
      raise ValueError(f'a column holds numbers; {name!r} is NaN at example {place}')
  both = {**had, **columns}
  views = {name: column.shape[1] for name, column in both.items() if column.shape[1] > 1}
  if len(set(views.values())) > 1:
    raise ValueError(f'all columns have the same views; got {views}: make them together')
  digests = digests or {name: digest(column) for name, column in columns.items()}
  told = json.dumps([data.fingerprint, sorted(digests.items())])
  fingerprint = hashlib.sha256(told.encode()).hexdigest()
  return data._replace(train=Columns(train.inputs, train.labels, train.weight, both), fingerprint=fingerprint)


def digest(array: np.ndarray) -> str:
  """Returns sha256 over dtype, shape and bytes, in hexadecimal.

  >>> digest(np.zeros(2, np.int32)) == digest(np.zeros(2, np.float32))
  False
  """
  found = hashlib.sha256(f'{array.dtype.name} {list(array.shape)}\n'.encode())
  step = max(1, (1 << 24) // max(1, array[:1].nbytes))
  for start in range(0, len(array), step):
    found.update(np.ascontiguousarray(array[start : start + step]).reshape(-1).view(np.uint8))
  return found.hexdigest()
