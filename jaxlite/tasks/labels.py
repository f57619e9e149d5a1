"""Labels on the host: what the checks of several tasks share. Every error names the split, the place and the fix."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxlite.errors import whole

_IMBALANCED = 4  # times the smallest class: from there on whoever guesses the largest is right four times in five
_FEW, _FAR = 20, 300.0  # numbers of which nothing is said; spreads of the middle half that one may lie out


def as_array(values: Any, what: str) -> np.ndarray:
  """Returns values as an array; `what` they are stands in the errors.

  Raises:
    ValueError: values that are masked in places, or examples of several shapes.
    TypeError: traced values.

  >>> as_array([[1], [1, 2]], 'labels of train')
  Traceback (most recent call last):
    ...
  ValueError: examples have one shape; labels of train differ: resize or pad them
  """
  if isinstance(values, np.ma.MaskedArray) and np.ma.is_masked(values):
    raise ValueError(f'every value is there; {what} are masked in places: use .filled(value)')
  if any(one.__name__ == 'Tracer' for one in type(values).__mro__):  # told by name: nothing here imports jax
    raise TypeError(f'{what} are read on the host, and these are traced: call it outside of jit, grad and vmap')
  try:
    array = np.asarray(values)
  except ValueError:  # NumPy's own words for ragged lists
    raise ValueError(f'examples have one shape; {what} differ: resize or pad them') from None
  if array.dtype == object and array.ndim == 1 and len({np.shape(value) for value in array}) > 1:
    raise ValueError(f'examples have one shape; {what} differ: resize or pad them')
  return array


def class_labels(values: Any, where: str) -> np.ndarray:
  """Returns one class an example as int32[N].

  Args:
    values: integers or booleans, [N], at least 0.
    where: the split, for the message.

  Raises:
    ValueError: another shape, another type, or a negative class.

  >>> class_labels([True, False], 'train')
  array([1, 0], dtype=int32)
  """
  array = as_array(values, f'labels of {where}')
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
  wrong = (array < 0) | (array >= 1 << 31)
  if wrong.any():
    place = int(np.flatnonzero(wrong)[0])
    raise ValueError(f'labels are 0 .. classes - 1; {where} has {int(array[place])} at {place}: number the classes')
  return array.astype(np.int32, copy=False)


def position_labels(values: Any, where: str, shape: str) -> np.ndarray:
  """Returns one class a position as int32[N, ...]; -1 where there is none.

  Args:
    values: integers or booleans, [N, ...] with at least one axis of positions.
    where: the split, for the message.
    shape: how the task writes the shape, '[N, T]' say; with it as many axes are asked for, unless it ends in '...]'.

  Raises:
    ValueError: another shape, another type, or a class below -1.

  >>> position_labels([[0, -1]], 'train', '[N, T]')
  array([[ 0, -1]], dtype=int32)
  """
  array = as_array(values, f'labels of {where}')
  axes = None if '...' in shape else shape.count(',') + 1
  if array.ndim < 2 or (axes is not None and array.ndim != axes):
    raise ValueError(f'labels are {shape}, one integer a position; {where} has {list(array.shape)}: give each position')
  if array.dtype.kind not in 'biu':
    raise ValueError(f'labels are integers; {where} has {array.dtype}: number the classes, -1 where there is none')
  wrong = (array < -1) | (array >= 1 << 31) if array.dtype.kind == 'i' else array >= 1 << 31
  if wrong.any():
    place = [int(index) for index in np.argwhere(wrong)[0]]
    value = int(array[tuple(place)])
    raise ValueError(
      f'labels are 0 .. classes - 1, or -1 where there is none; {where} has {value} at {place}: '
      'write -1 for what is not to be learned'
    )
  return array.astype(np.int32, copy=False)


def check_range(labels: np.ndarray, classes: int, where: str, what: str = 'classes') -> None:
  """Raises where a label is no class; `what` is the name of the argument that would make it one."""
  wrong = np.argwhere(labels >= classes)
  if len(wrong):
    place = [int(index) for index in wrong[0]]
    value = int(labels[tuple(place)])
    fix = f'pass {what}={int(labels.max()) + 1} or fix the label'
    at = place[0] if len(place) == 1 else place
    raise ValueError(f'labels are 0 .. {what} - 1 = {classes - 1}; {where} has {value} at {at}: {fix}')


def named_classes(labels: np.ndarray, given: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the facts 'classes' and 'class_names' from labels, int[...], and what the user stated of the two.

  Args:
    labels: of the training split; the number of classes is the largest and one where nobody states it.
    given: 'classes' and 'class_names', or one, or none of them.

  Raises:
    ValueError: the numbers of names and of classes differ, or classes is no whole number.

  >>> named_classes(np.array([0, 2]), {})
  {'classes': 3, 'class_names': ['0', '1', '2']}
  """
  classes, names = given.get('classes'), names_of(given, 'class_names')
  if classes is None:
    classes = len(names) or int(labels.max(initial=0)) + 1
  classes = whole(classes, 'classes', least=1)
  names = names or [str(index) for index in range(classes)]
  if len(names) != classes:
    raise ValueError(f'every class has one name; got {len(names)} names for {classes} classes: fix class_names')
  return {'classes': classes, 'class_names': names}


def names_of(given: Mapping[str, Any], what: str) -> list[str]:
  """Returns names as text; none where they are not given, or empty.

  >>> names_of({'class_names': ('a', 1)}, 'class_names'), names_of({}, 'class_names')
  (['a', '1'], [])
  """
  names = given.get(what)
  if isinstance(names, int | float | str):
    raise ValueError(f'{what} is a list of names, one each; got {names!r}: leave it out, and they are numbered')
  return [] if names is None else [str(name) for name in names]


def absent(counts: np.ndarray, names: Sequence[str], what: str = 'example') -> list[str]:
  """Returns the remark that training never sees some classes, if so.

  >>> absent(np.array([1, 0]), ['cat', 'dog'])
  ['train has no example of dog: the model cannot learn what it never sees']
  """
  missing = [names[int(index)] for index in np.flatnonzero(counts == 0)]
  if not missing:
    return []
  shown = ', '.join(missing[:8]) + (f' and {len(missing) - 8} more' if len(missing) > 8 else '')
  return [f'train has no {what} of {shown}: the model cannot learn what it never sees']


def alike(names: Sequence[str]) -> list[str]:
  """Returns the remark that some classes have one name but for case, spaces or the form of an accent, if so.

  >>> alike(['YES', 'no', 'yes'])
  ["classes 'YES' and 'yes' differ in case or spaces alone: if they are one, give them one name"]
  """
  groups: dict[str, list[str]] = {}
  for name in names:
    groups.setdefault(' '.join(unicodedata.normalize('NFKC', name).casefold().split()), []).append(name)
  told = [' and '.join(map(repr, some)) for some in groups.values() if len(some) > 1]
  more = f' (and {len(told) - 1} more)' if len(told) > 1 else ''
  return (
    [f'classes {told[0]}{more} differ in case or spaces alone: if they are one, give them one name'] if told else []
  )


def far_out(values: np.ndarray, names: Sequence[str]) -> list[str]:
  """Returns the remark that single numbers lie hundreds of times as far out as all others do, if so.

  Args:
    values: float[N, columns]; a mark for what is missing (-999), or an outlier, sets the scale of all others.
    names: of each column.

  >>> far_out(np.r_[np.linspace(-1, 1, 99), -9999.0][:, None], ['income'])[0][:92]
  'income has -9999 in example 99 of train, and half of its values lie between -0.515 and 0.495'
  """
  if len(values) < _FEW or not values.size:
    return []
  some = values[:: max(1, len(values) // 2000)].astype(np.float64)
  low, high = np.percentile(some, [25, 75], axis=0)
  least, most = values.min(axis=0), values.max(axis=0)
  out = np.flatnonzero((high > low) & (np.maximum(low - least, most - high) > _FAR * (high - low)))
  told = []
  for index in out[:3]:
    column = values[:, index]
    place = int(np.argmax(np.abs(column - (low[index] + high[index]) / 2)))
    more = f' (as {len(out) - 1} more columns have)' if len(out) > 3 and index == out[0] else ''
    told.append(
      f'{names[index]} has {column[place]:g} in example {place} of train, and half of its values lie between '
      f'{low[index]:.3g} and {high[index]:.3g}: is it a mark for what is missing, or an outlier?{more} It sets the '
      'scale of all others'
    )
  return told


def imbalance(counts: np.ndarray, names: Sequence[str], score: str, better: str, what: str = 'examples') -> list[str]:
  """Returns the remark that a metric in which every example counts alike says little of the small classes, if so.

  Args:
    counts: of each class.
    names: of each class.
    score: the metric that picks the best model.
    better: the metric to propose.
    what: is counted.

  >>> imbalance(np.array([99, 1]), ['ham', 'spam'], 'accuracy', 'f1_macro')[0][:80]
  'the classes are imbalanced (of the examples 99.0 % are ham, 1.0 % are spam), and'
  """
  there = np.flatnonzero(counts)
  if len(there) < 2 or counts.max() < _IMBALANCED * counts[there].min():
    return []
  most, least = (int(there[pick(counts[there])]) for pick in (np.argmax, np.argmin))
  shares = [f'{100 * counts[index] / counts.sum():.1f} % are {names[index]}' for index in (most, least)]
  return [
    f'the classes are imbalanced (of the {what} {shares[0]}, {shares[1]}), and {score} picks a model that may miss the '
    f'small ones: eval.metric={better!r} counts every class alike'
  ]


def stated(given: Mapping[str, Any], **arguments: Any) -> dict[str, Any]:
  """Returns what the user said of the data: the task's own arguments where they were given, else the data's.

  >>> stated({'classes': 3}, classes=None, class_names=['a', 'b', 'c'])
  {'classes': 3, 'class_names': ['a', 'b', 'c']}
  """
  return {**given, **{name: value for name, value in arguments.items() if value is not None}}


def as_given(names: Sequence[str]) -> np.ndarray:
  """Returns class names as a user's labels were: whole numbers as numbers, so that predictions compare with them.

  >>> as_given(['0', '1']).tolist(), as_given(['cat', '1']).tolist()
  ([0, 1], ['cat', '1'])
  """
  numbers = [int(name) if re.fullmatch(r'-?[1-9]\d{0,17}|0', name) else None for name in names]
  return np.asarray(names if None in numbers else numbers)
