"""What a data set is once it is in memory: three splits of arrays, checked, with statistics from train only.

Every way to get data (`sources`, `arrays`, `tables`) ends in `make_dataset`, so the checks stand here once and
nothing past this file meets a label out of range, a NaN, an empty split or an image of another shape.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxlite.errors import whole

Pair = tuple[Any, Any]
Draw = tuple[int, int | range]

_CHUNK = 1 << 20  # values a pass works on at once: a float64 copy of that is 8 MiB


class Split(NamedTuple):
  """Examples on the host, in a fixed order.

  Attributes:
    inputs: uint8 or float32 [N, ...]; images are [N, H, W, C], tables [N, features].
    labels: int32 [N].
  """

  inputs: np.ndarray
  labels: np.ndarray

  def take(self, rows: np.ndarray, draw: Draw | None = None) -> dict[str, np.ndarray]:
    """Returns these examples as the arrays of a batch, or of several: `rows` are [B] or [steps, B].

    `draw` is (seed, step or steps) where something is drawn.
    """
    del draw
    return {'inputs': self.inputs.take(rows, axis=0), 'labels': self.labels.take(rows)}


class Dataset(NamedTuple):
  """Three splits and what is known about them.

  Attributes:
    name: what the data are called.
    train: what is trained on.
    validation: what decisions (early stopping, the best checkpoint) are made on; empty where none is held out.
    test: what is looked at once, at the end.
    classes: how many classes there are; labels are 0 .. classes - 1.
    class_names: one name a class.
    mean: float32 [C] of train: a channel of images, a feature of tables, one number for [N, L, M]. In the
      units of the inputs (0 .. 255 for uint8).
    std: float32, as `mean`; 1 where train does not vary.
    fingerprint: sha256 over names, dtypes, shapes and bytes of the splits' arrays, in hexadecimal.
    notes: lines that a person should read before training, such as a class without examples.
    feature_names: one name a feature of a table, else empty.
  """

  name: str
  train: Split
  validation: Split
  test: Split
  classes: int
  class_names: tuple[str, ...]
  mean: np.ndarray
  std: np.ndarray
  fingerprint: str
  notes: tuple[str, ...] = ()
  feature_names: tuple[str, ...] = ()


def make_dataset(
  name: str,
  train: Pair,
  validation: Pair | None,
  test: Pair,
  *,
  classes: int | None = None,
  class_names: Sequence[str] | None = None,
  feature_names: Sequence[str] = (),
  notes: Sequence[str] = (),
) -> Dataset:
  """Checks three splits and makes a Dataset of them.

  Args:
    name: what the data are called.
    train: (inputs [N, ...], labels [N]); numbers of any type for inputs, integers for labels.
    validation: as train; None where nothing is held out.
    test: as train.
    classes: how many classes; None takes the largest label and one.
    class_names: one name a class; None numbers them.
    feature_names: one name a feature of a table.
    notes: lines to hand on.

  Returns:
    The Dataset. Inputs that are not uint8 are float32; arrays of the right type are not copied.

  Raises:
    ValueError: something is wrong with the data; the message says in which split, and the fix.

  >>> import numpy as np
  >>> pair = np.zeros((4, 2), np.uint8), np.array([0, 1, 0, 1])
  >>> data = make_dataset('tiny', pair, pair, pair)
  >>> data.classes, data.train.labels.dtype, data.std.tolist()
  (2, dtype('int32'), [1.0, 1.0])
  """
  pairs = {'train': train, 'validation': validation, 'test': test}
  splits = {
    where: check_split(*as_pair(pair, where), where)
    for where, pair in pairs.items()
    if where != 'validation' or pair is not None
  }
  _check_alike(splits)
  if classes is None:
    classes = len(class_names) if class_names else max(int(split.labels.max()) for split in splits.values()) + 1
  classes = whole(classes, 'classes', least=1)
  names = tuple(map(str, class_names)) if class_names else tuple(str(index) for index in range(classes))
  if len(names) != classes:
    raise ValueError(f'every class has one name; got {len(names)} names for {classes} classes: fix class_names')
  for where, split in splits.items():
    _check_range(split.labels, classes, where)
  mean, std = channel_stats(splits['train'].inputs)
  found = (*notes, *_remarks(splits['train'], names))
  nothing = Split(splits['train'].inputs[:0], splits['train'].labels[:0])
  three = (splits['train'], splits.get('validation', nothing), splits['test'])
  return Dataset(name, *three, classes, names, mean, std, fingerprint(splits), found, tuple(feature_names))


def as_pair(pair: Any, where: str) -> Pair:
  """Returns (inputs, labels), or raises when the two are not given as a pair."""
  if not isinstance(pair, tuple | list) or len(pair) != 2:
    raise ValueError(f'a split is a pair (inputs, labels); {where} is {_kind(pair)}: pass (inputs, labels)')
  return pair[0], pair[1]


def _kind(value: Any) -> str:
  return f'{type(value).__name__} of {len(value)}' if isinstance(value, tuple | list) else type(value).__name__


def check_split(inputs: Any, labels: Any, where: str) -> Split:
  """Returns inputs and labels as a Split: right types, equal lengths, finite; `where` names it in errors."""
  inputs, labels = as_inputs(inputs, where), as_labels(labels, where)
  if len(inputs) != len(labels):
    raise ValueError(f'every example has one label; {where} has {len(inputs)} inputs and {len(labels)} labels')
  if not len(labels):
    raise ValueError(f'a split needs at least one example; {where} is empty: carve it from train or give more data')
  _check_finite(inputs, where)
  return Split(_frozen(inputs), _frozen(labels))


def as_inputs(values: Any, where: str) -> np.ndarray:
  """Returns uint8 as it is and any other numbers as float32, [N, ...]."""
  array = _as_array(values, f'inputs of {where}')
  if array.ndim < 2 or 0 in array.shape[1:]:
    raise ValueError(
      f'inputs are [N, features] or [N, H, W, C]; {where} has {list(array.shape)}: give each example its axes'
    )
  if array.dtype == np.uint8 or array.dtype == np.float32:
    return array
  if array.dtype.kind in 'iu' and max(abs(int(array.min(initial=0))), abs(int(array.max(initial=0)))) > 1 << 24:
    raise ValueError(f'float32 holds integers up to 2**24; inputs of {where} are larger: scale them')
  if array.dtype.kind not in 'biuf' and not array.dtype.name.startswith(('bfloat16', 'float8')):
    raise ValueError(f'inputs are numbers; {where} has dtype {array.dtype}: encode them, or use from_table')
  with np.errstate(over='ignore'):  # what float32 cannot hold becomes inf, which is refused with its place
    return array.astype(np.float32)


def as_labels(values: Any, where: str) -> np.ndarray:
  """Returns integer labels as int32 [N]."""
  array = _as_array(values, f'labels of {where}')
  if array.ndim == 2 and array.shape[1] == 1:
    raise ValueError(f'labels are [N]; {where} has {list(array.shape)}: use labels[:, 0]')
  if array.ndim != 1:
    fix = 'use labels.argmax(-1) if they are one-hot' if array.ndim == 2 else 'give one integer an example'
    raise ValueError(f'labels are [N]; {where} has {list(array.shape)}: {fix}')
  if not len(array):
    return array.astype(np.int32)
  if array.dtype.kind in 'USO':
    raise ValueError(
      f'labels are integers; {where} has {array.dtype}: use numpy.unique(labels, return_inverse=True)[1]'
    )
  if array.dtype.kind not in 'biu':
    raise ValueError(f'labels are integers; {where} has {array.dtype}: use labels.astype(int) if they are whole')
  low, high = int(array.min()), int(array.max())
  if low < 0 or high >= 1 << 31:
    wrong = int(np.flatnonzero((array < 0) | (array >= 1 << 31))[0])
    raise ValueError(f'labels are 0 .. classes - 1; {where} has {int(array[wrong])} at {wrong}: number the classes')
  return array.astype(np.int32, copy=False)


def _as_array(values: Any, what: str) -> np.ndarray:
  if isinstance(values, np.ma.MaskedArray) and np.ma.is_masked(values):
    raise ValueError(f'every value is there; {what} are masked in places: use .filled(value)')
  try:
    array = np.asarray(values)
  except ValueError:  # NumPy's own words for ragged lists
    raise ValueError(f'examples have one shape; {what} differ: resize or pad them') from None
  if array.dtype == object and array.ndim == 1 and len({np.shape(value) for value in array}) > 1:
    raise ValueError(f'examples have one shape; {what} differ: resize or pad them')
  return array


def _frozen(array: np.ndarray) -> np.ndarray:
  """A read-only view: the fingerprint stays true, and the caller's own array stays writeable."""
  view = np.asarray(array).view()
  view.flags.writeable = False
  return view


def _rows(array: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
  """Yields (first row, rows) in pieces of bounded size."""
  step = max(1, _CHUNK // max(1, int(np.prod(array.shape[1:], dtype=np.int64))))
  for start in range(0, len(array), step):
    yield start, array[start : start + step]


def _check_finite(inputs: np.ndarray, where: str) -> None:
  if inputs.dtype.kind != 'f':
    return
  for start, rows in _rows(inputs):
    good = np.isfinite(rows)
    if not good.all():
      index = np.argwhere(~good)[0]
      value = rows[tuple(index)]
      place = [start + int(index[0]), *map(int, index[1:])]
      raise ValueError(f'inputs are finite; {where} has {value} at {place}: drop example {place[0]} or fill it in')


def _check_alike(splits: dict[str, Split]) -> None:
  train = splits['train'].inputs
  for where, split in splits.items():
    if split.inputs.shape[1:] != train.shape[1:]:
      got, wanted = list(split.inputs.shape[1:]), list(train.shape[1:])
      raise ValueError(f'every split has examples of one shape; train has {wanted}, {where} {got}: resize {where}')
    if split.inputs.dtype != train.dtype:
      got = f'train is {train.dtype}, {where} {split.inputs.dtype}'
      raise ValueError(f'every split has one dtype, hence one scale; {got}: prepare {where} as train')


def _check_range(labels: np.ndarray, classes: int, where: str) -> None:
  wrong = np.flatnonzero(labels >= classes)
  if len(wrong):
    value, place = int(labels[wrong[0]]), int(wrong[0])
    fix = f'pass classes={int(labels.max()) + 1} or fix the label'
    raise ValueError(f'labels are 0 .. classes - 1 = {classes - 1}; {where} has {value} at {place}: {fix}')


def _remarks(train: Split, names: tuple[str, ...]) -> Iterator[str]:
  counts = np.bincount(train.labels, minlength=len(names))
  missing = [names[index] for index in np.flatnonzero(counts == 0)]
  if missing:
    shown = ', '.join(missing[:8]) + (f' and {len(missing) - 8} more' if len(missing) > 8 else '')
    yield f'train has no example of {shown}: the model cannot learn what it never sees'
  if len(names) < 2:
    yield 'there is one class only: any model is right always'
  shape = train.inputs.shape
  if len(shape) == 4 and shape[1] in (1, 3) and shape[3] > 4:
    yield f'inputs {list(shape)} look channels-first; images are [N, H, W, C]: use numpy.moveaxis(inputs, 1, -1)'


def channel_stats(inputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Returns mean and standard deviation of each channel, summed in float64 over bounded pieces.

  Args:
    inputs: uint8 or float32 [N, ...]: [N, features], [N, L, M] or [N, ..., C].

  Returns:
    (mean, std), float32 [features], [1] or [C]. A channel that does not vary beyond rounding has std 1:
    dividing by less would blow its rounding errors up.

  >>> import numpy as np
  >>> mean, std = channel_stats(np.array([[0, 7], [2, 7]], np.uint8))
  >>> mean.tolist(), std.tolist()
  ([1.0, 7.0], [1.0, 1.0])
  """
  channels = 1 if inputs.ndim == 3 else inputs.shape[-1]
  count = inputs.size // channels
  total = np.zeros(channels)
  for _, rows in _rows(inputs):
    total += rows.reshape(-1, channels).sum(0, dtype=np.float64)
  mean = total / count
  spread, largest = np.zeros(channels), np.zeros(channels)
  for _, rows in _rows(inputs):  # a second pass: the mean of squares less the squared mean cancels
    values = rows.reshape(-1, channels).astype(np.float64)
    largest = np.maximum(largest, np.abs(values).max(0))
    spread += np.square(values - mean).sum(0)
  std = np.sqrt(spread / count)
  std = np.where(std > np.finfo(np.float32).eps * largest, std, 1.0)
  return mean.astype(np.float32), np.maximum(std, np.finfo(np.float32).tiny).astype(np.float32)


def fingerprint(splits: dict[str, Split]) -> str:
  """Returns sha256 over name, dtype, shape and bytes of every array, in hexadecimal.

  >>> import numpy as np
  >>> split = Split(np.zeros((1, 1), np.uint8), np.zeros(1, np.int32))
  >>> fingerprint({'train': split})[:8]
  '80eb7be7'
  """
  digest = hashlib.sha256()
  for where, split in splits.items():
    for what, array in split._asdict().items():
      digest.update(f'{where}/{what} {array.dtype.name} {list(array.shape)}\n'.encode())
      for _, rows in _rows(array):
        digest.update(np.ascontiguousarray(rows).view(np.uint8))
  return digest.hexdigest()
