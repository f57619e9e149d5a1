"""What inputs may be: any pytree of arrays [N, ...], each leaf checked and brought to one of four dtypes.

uint8 (pictures) and float32 are quantities and may be standardized; int32 are ids (tokens, categories) and bool are
masks, and neither ever is. Where a leaf is refused, its path is named.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxlite import trees
from jaxlite.data.chosen import LEAST, Chosen
from jaxlite.data.decoded import is_decoded
from jaxlite.data.widened import Widened
from jaxlite.tasks.labels import far_out

_CHUNK = 1 << 20  # values a pass works on at once: a float64 copy of that is 8 MiB
_LOOKED_THROUGH = 1 << 26  # values of inputs that are looked through for what lies far out
_FLOATS = ('bfloat16', 'float8')


def as_inputs(values: Any, where: str, count: int | None = None) -> Any:
  """Returns inputs as a pytree of arrays [N, ...]: uint8, float32, int32 or bool.

  Args:
    values: an array, or a dict, a list or a tuple of such. A list or tuple of `count` things is an array's examples.
    where: the split, for errors.
    count: how many examples there are, where that is known.

  Returns:
    The same tree; an array of the right dtype is not copied.

  Raises:
    ValueError: no numbers, no examples, examples of several shapes, integers out of int32's range.

  >>> tree = as_inputs({'image': np.zeros((2, 4, 4, 1), np.uint8), 'age': [3.5, 4.5]}, 'train', 2)
  >>> tree['age'].dtype, tree['image'].shape
  (dtype('float32'), (2, 4, 4, 1))
  """
  return _some(_as_tree(values, where, '', count), values, where)


def as_leaves(inputs: Any, where: str) -> Any:
  """Returns inputs that are known to be a tree of arrays, leaf by leaf as `as_inputs` has them."""
  arrays = [_as_leaf(leaf, where, path) for path, leaf in leaves(inputs)]
  return _some(jax.tree.structure(inputs).unflatten(arrays), inputs, where)


def _some(tree: Any, values: Any, where: str) -> Any:
  if not jax.tree.leaves(tree):
    raise ValueError(f'inputs are arrays; {where} has none of them, {values!r}: give each example something')
  return tree


def _as_tree(values: Any, where: str, path: str, count: int | None) -> Any:
  if isinstance(values, Mapping):
    if not all(isinstance(key, str) for key in values):
      wrong = next(key for key in values if not isinstance(key, str))
      raise ValueError(f'inputs have names; {_place(where, path)} has the key {wrong!r}: make it a string')
    return {key: _as_tree(value, where, _join(path, key), count) for key, value in values.items()}
  if isinstance(values, tuple | list) and _is_tree(values, count):
    parts = [_as_tree(value, where, _join(path, str(index)), count) for index, value in enumerate(values)]
    if hasattr(values, '_fields'):
      return type(values)(*parts)
    return parts if isinstance(values, list) else tuple(parts)
  return None if values is None and path else _as_leaf(values, where, path)


def _is_tree(values: Any, count: int | None) -> bool:
  """Whether this is a tree of inputs, and not one array or a list of one array's examples."""
  if isinstance(values, Mapping) or hasattr(values, '_fields'):
    return True
  if not isinstance(values, tuple | list) or len(values) == count:
    return False
  return any(_is_tree(value, count) or _holds_all(value, count) for value in values)


def _holds_all(value: Any, count: int | None) -> bool:
  """Whether this is an array of all examples."""
  return getattr(value, 'ndim', 0) > 0 and len(value) == count


def _join(path: str, name: str) -> str:
  return f'{path}/{name}' if path else name


def _place(where: str, path: str) -> str:
  return f'{where} ({path})' if path else where


def _as_leaf(values: Any, where: str, path: str) -> np.ndarray:
  array = as_array(values, f'inputs of {_place(where, path)}')
  place = _place(where, path)
  if array.dtype.kind in 'OUSV' and not array.dtype.name.startswith(_FLOATS):
    kind = f'has dtype {array.dtype}' if array.ndim else f'is {type(values).__name__}'
    raise ValueError(f'inputs are numbers; {place} {kind}: give an array of numbers, or use from_table or from_texts')
  if array.ndim < (1 if path else 2) or 0 in array.shape[1:]:
    raise ValueError(
      f'inputs are [N, features] or [N, H, W, C]; {place} has {list(array.shape)}: give each example its axes'
    )
  if array.dtype in (np.uint8, np.float32, np.int32, np.bool_):
    return array if array.dtype.isnative else _brought(array, values, array.dtype.newbyteorder('='))
  if array.dtype.kind in 'iu':
    low, high = int(array.min(initial=0)), int(array.max(initial=0))
    if low < -(1 << 31) or high >= 1 << 31:
      got = low if low < -(1 << 31) else high
      raise ValueError(
        f"integers are ids and fit into int32; inputs of {place} have {got}: number them, or .astype('float32')"
      )
    return _brought(array, values, np.dtype(np.int32))
  if array.dtype.kind != 'f' and not array.dtype.name.startswith(_FLOATS):
    raise ValueError(f'inputs are numbers; {place} has dtype {array.dtype}: make real numbers of them')
  return _brought(array, values, np.dtype(np.float32))


def _brought(array: np.ndarray, values: Any, dtype: np.dtype[Any]) -> Any:
  """An array in another dtype: a copy, but of a large memory map rows that are cast when they are read."""
  wide = Widened(array, dtype)
  if isinstance(values, np.memmap) and array.size * dtype.itemsize >= LEAST:
    return Chosen(wide, np.arange(len(array)))
  return wide[...]


def as_array(values: Any, what: str) -> np.ndarray:
  """Returns an array, or raises in one line where examples have several shapes or values are masked."""
  if isinstance(values, np.ma.MaskedArray) and np.ma.is_masked(values):
    raise ValueError(f'every value is there; {what} are masked in places: use .filled(value)')
  if isinstance(values, Chosen):
    return values
  ragged = f'examples have one shape; {what} differ: resize them, or pad sequences with jl.data.pad'
  try:
    array = np.asarray(values)
  except ValueError:  # NumPy's own words for ragged lists
    raise ValueError(ragged) from None
  if array.dtype == object and array.ndim == 1 and len({np.shape(value) for value in array}) > 1:
    raise ValueError(ragged)
  return array


def remarks(inputs: Any, names: Sequence[str] = ()) -> list[str]:
  """Returns what is odd of training inputs and no mistake for sure: axes that look turned, numbers far out.

  Args:
    inputs: of train.
    names: of the features of a table.
  """
  found = []
  for path, leaf in leaves(inputs):
    if leaf.ndim == 4 and leaf.shape[1] in (1, 3) and leaf.shape[3] > 4:
      found.append(
        f'inputs {list(leaf.shape)} look channels-first; images are [N, H, W, C]: use numpy.moveaxis(inputs, 1, -1)'
      )
    if isinstance(leaf, np.ndarray) and leaf.dtype == np.float32 and leaf.ndim == 2 and leaf.size <= _LOOKED_THROUGH:
      known = names if len(names) == leaf.shape[1] else [f'{path or "inputs"}[:, {i}]' for i in range(leaf.shape[1])]
      found += far_out(leaf, known)
  return found


def check_inputs(inputs: Any, where: str, count: int) -> None:
  """Raises unless every leaf has `count` examples, and finite ones.

  Raises:
    ValueError: one line with the split, the leaf and the example.

  >>> check_inputs({'a': np.zeros((3, 1))}, 'train', 2)
  Traceback (most recent call last):
    ...
  ValueError: every example has one label; train (a) has 3 inputs and 2 labels
  """
  for path, leaf in leaves(inputs):
    if len(leaf) != count:
      raise ValueError(f'every example has one label; {_place(where, path)} has {len(leaf)} inputs and {count} labels')
  for path, leaf in leaves(inputs):
    _check_finite(leaf, _place(where, path))


def _check_finite(array: np.ndarray, where: str) -> None:
  if array.dtype.kind != 'f' or is_decoded(array):  # what lies in files was looked at there
    return
  for start, rows in pieces(array):
    good = np.isfinite(rows)
    if not good.all():
      index = np.argwhere(~good)[0]
      value = rows[tuple(index)]
      place = [start + int(index[0]), *map(int, index[1:])]
      beyond = '' if np.isnan(value) else ', or divide what is beyond float32 (3.4e38)'
      raise ValueError(
        f'inputs are finite; {where} has {value} at {place}: drop example {place[0]} or fill it in{beyond}'
      )


def check_alike(inputs: Any, train: Any, where: str) -> None:
  """Raises unless the inputs of a split have the tree, the shapes and the dtypes of the training split's.

  Raises:
    ValueError: one line with the split and the leaf.
  """
  ours, wanted = leaves(inputs), leaves(train)
  if jax.tree.structure(inputs) != jax.tree.structure(train):
    got, have = ([path or 'one array' for path, _ in found] for found in (ours, wanted))
    raise ValueError(f'every split has the same inputs; train has {have}, {where} {got}: prepare {where} as train')
  for (path, leaf), (_, other) in zip(ours, wanted, strict=True):
    place = _place(where, path)
    if leaf.shape[1:] != other.shape[1:]:
      got, have = list(leaf.shape[1:]), list(other.shape[1:])
      raise ValueError(f'every split has examples of one shape; train has {have}, {place} {got}: resize {place}')
    if leaf.dtype != other.dtype:
      got = f'train is {other.dtype}, {place} {leaf.dtype}'
      raise ValueError(f'every split has one dtype, hence one scale; {got}: prepare {place} as train')


def leaves(inputs: Any) -> list[tuple[str, np.ndarray]]:
  """Returns (path, array) of each leaf, in JAX's order; the path of an array alone is ''.

  >>> [path for path, _ in leaves({'b': np.zeros(1), 'a': (np.zeros(1), np.zeros(1))})]
  ['a/0', 'a/1', 'b']
  """
  paths, arrays, _ = trees.flatten(inputs)
  return list(zip(paths, arrays, strict=True))


def take(inputs: Any, rows: Any) -> Any:
  """Returns these examples of every leaf: `rows` are a slice or int[...]."""
  if isinstance(rows, slice):
    return jax.tree.map(lambda leaf: leaf[rows], inputs)
  return jax.tree.map(lambda leaf: leaf.take(rows, axis=0), inputs)


def mapped(fn: Any, inputs: Any) -> Any:
  """Returns the tree with a function applied to each leaf."""
  return jax.tree.map(fn, inputs)


def frozen(array: Any) -> Any:
  """A read-only view: the fingerprint stays true, and the caller's own array stays writeable."""
  if isinstance(array, Chosen):
    return array  # of one that is frozen
  view = np.asarray(array).view()
  view.flags.writeable = False
  return view


def pieces(array: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
  """Yields (first row, rows) in pieces of bounded size."""
  step = max(1, _CHUNK // max(1, int(np.prod(array.shape[1:], dtype=np.int64))))
  for start in range(0, len(array), step):
    yield start, array[start : start + step]
