"""What every reader gives: arrays by name, whose shapes and dtypes are known before a byte of them is read.

A file is mapped into memory, and an array is a view of it wherever its bytes lie as NumPy wants them. So a model larger
than half the memory is loaded with one copy: that which the framework makes of it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from jaxlite import trees
from jaxlite.errors import nearest

MOST_ARRAYS = 1_000_000
MOST_AXES = 32
_LONGEST_NAME = 1024
_SPARE = 64 << 20  # bytes that arrays may take beyond what their file's size explains
_TIMES = 8  # how often a stored byte may be read: tied weights stand under two or three names

_DTYPES = {
  **{name: np.dtype(name) for name in ('bool', 'int8', 'uint8', 'float16', 'float32', 'float64')},
  **{name: np.dtype(name) for name in ('int16', 'int32', 'int64', 'uint16', 'uint32', 'uint64')},
  **{name: np.dtype(name) for name in ('complex64', 'complex128')},
  'bfloat16': np.dtype(ml_dtypes.bfloat16),
  'float8_e4m3fn': np.dtype(ml_dtypes.float8_e4m3fn),
  'float8_e5m2': np.dtype(ml_dtypes.float8_e5m2),
  'float8_e4m3fnuz': np.dtype(ml_dtypes.float8_e4m3fnuz),
  'float8_e5m2fnuz': np.dtype(ml_dtypes.float8_e5m2fnuz),
}


class WeightsError(ValueError):
  """Weights that are not read, or do not fit: one line with the file, the rule and what to do."""


class Stored(NamedTuple):
  """One array of a file, not yet read.

  Attributes:
    shape, dtype: as `read` gives it.
    read: () -> np.ndarray, a view of the file where it can be.
  """

  shape: tuple[int, ...]
  dtype: np.dtype
  read: Callable[[], np.ndarray]

  @property
  def nbytes(self) -> int:
    """Bytes in memory."""
    return math.prod(self.shape) * self.dtype.itemsize


class Weights(Mapping[str, np.ndarray]):
  """Arrays by name, each read when it is asked for; nothing is kept.

  Attributes:
    where: the file or folder.
    form: what kind of file: 'safetensors', 'gguf', 'torch', 'keras', 'npz', 'orbax', 'run', 'packed' or
      'arrays' in memory.
    layout: whose conventions kernels follow: 'torch' (a dense kernel is [out, in], a convolution's OIHW), 'jax' or
      'keras' ([in, out], HWIO), '' where the format has none of its own.
    about: what else the file says: metadata of safetensors and GGUF, its tokenizer among it.

  >>> held = Weights({'w': stored(np.ones((2, 3), np.float32))}, where='memory', form='npz')
  >>> held.shape('w'), str(held.dtype('w')), held['w'].sum().item(), held
  ((2, 3), 'float32', 6.0, Weights(memory: npz, 1 array, 24 bytes))
  """

  def __init__(
    self,
    held: Mapping[str, Stored],
    *,
    where: str | os.PathLike[str],
    form: str,
    layout: str = '',
    about: Mapping[str, Any] | None = None,
  ) -> None:
    self._held = dict(held)
    self.where, self.form, self.layout, self.about = str(where), form, layout, dict(about or {})

  def __getitem__(self, name: str) -> np.ndarray:
    """Reads one array."""
    return self.stored(name).read()

  def __iter__(self) -> Iterator[str]:
    return iter(self._held)

  def __len__(self) -> int:
    return len(self._held)

  def __contains__(self, name: object) -> bool:  # Mapping's own would read the array
    return name in self._held

  def stored(self, name: str) -> Stored:
    """Returns what is known of one array without reading it."""
    if name not in self._held:
      raise KeyError(f'{self.where} holds no {name!r}; nearest: {nearest(str(name), self._held)}')
    return self._held[name]

  def shape(self, name: str) -> tuple[int, ...]:
    """Returns an array's shape; nothing is read."""
    return self.stored(name).shape

  def dtype(self, name: str) -> np.dtype:
    """Returns an array's dtype; nothing is read."""
    return self.stored(name).dtype

  @property
  def nbytes(self) -> int:
    """Bytes that all arrays take in memory; nothing is read."""
    return sum(one.nbytes for one in self._held.values())

  def like(self, held: Mapping[str, Stored]) -> Weights:
    """Returns other arrays with the same origin."""
    return Weights(held, where=self.where, form=self.form, layout=self.layout, about=self.about)

  def under(self, prefix: str) -> Weights:
    """Returns the arrays whose names begin with a prefix, without it: `under('state_dict/')`.

    Raises:
      WeightsError: there are none.
    """
    found = {name[len(prefix) :]: one for name, one in self._held.items() if name.startswith(prefix)}
    if not found or '' in found:
      raise WeightsError(
        f'{self.where}: no name begins with {prefix!r}; nearest: {nearest(prefix, self._held)}: give one that does'
      )
    return self.like(found)

  def beside(self, arrays: Mapping[str, Any]) -> Weights:
    """Returns the same arrays and others that you hold, of NumPy, JAX or PyTorch, by name, beside or in place of them.

    >>> apart = held({'embed.weight': np.ones((3, 2))})
    >>> sorted(apart.beside({'head.weight': apart['embed.weight']}))
    ['embed.weight', 'head.weight']
    """
    return self.like({**self._held, **held(arrays)._held})

  def only(self, rule: trees.Rule) -> Weights:
    """Returns the arrays that a rule on names picks."""
    chosen = trees.select(self._held, rule, what=f'{self.where}: only')
    return self.like({name: one for name, one in self._held.items() if name in chosen})

  def cast(self, dtype: Any) -> Weights:
    """Returns the same arrays with every floating one cast, when it is read; integers stay.

    Raises:
      WeightsError: the dtype is none of floating numbers.
    """
    wanted = floating_dtype(dtype)

    def one(stored: Stored) -> Stored:
      if not is_floating(stored.dtype) or stored.dtype == wanted:
        return stored
      return Stored(stored.shape, wanted, lambda: stored.read().astype(wanted))

    return self.like({name: one(each) for name, each in self._held.items()})

  def __repr__(self) -> str:
    count = f'{len(self)} array' + ('' if len(self) == 1 else 's')
    return f'Weights({self.where}: {self.form}, {count}, {self.nbytes:,} bytes)'


def stored(array: np.ndarray) -> Stored:
  """Returns an array that is in memory already as one that can be read."""
  return Stored(tuple(array.shape), array.dtype, lambda: array)


def held(arrays: Mapping[str, Any]) -> Weights:
  """Returns arrays that somebody holds, by name, as those of a file; names of nested dicts are joined by '/'.

  Args:
    arrays: of NumPy, JAX or PyTorch, or dicts of them.

  Raises:
    WeightsError: there is none, or one that is no array of numbers.

  >>> sorted(held({'fc': {'kernel': np.ones((2, 3)), 'bias': np.ones(3)}}))
  ['fc/bias', 'fc/kernel']
  """
  found: dict[str, Stored] = {}

  def take(name: str, value: Any) -> None:
    if isinstance(value, Mapping):
      for key, inner in value.items():
        take(f'{name}/{key}' if name else str(key), inner)
      return
    try:
      array = np.asarray(value.detach().cpu() if hasattr(value, 'detach') else value)
    except (TypeError, ValueError, RuntimeError) as error:
      raise WeightsError(f'weights are arrays of numbers; {name!r} is none ({str(error)[:80]}): .float() it') from None
    if name in found or array.dtype not in _DTYPES.values() or not hasattr(value, 'shape'):
      what = 'stands twice' if name in found else f'is {type(value).__name__}, {array.dtype}'
      raise WeightsError(f'weights are arrays of numbers by name; {name!r} {what}: leave it out')
    found[name] = stored(array)

  take('', arrays)
  if not found:
    raise WeightsError('weights are arrays by name; the mapping holds none')
  return Weights(found, where='memory', form='arrays')


def is_floating(dtype: np.dtype) -> bool:
  """Tells whether entries are real floating numbers, bfloat16 and 8-bit floats too.

  >>> is_floating(np.dtype(ml_dtypes.bfloat16)), is_floating(np.dtype('int8'))
  (True, False)
  """
  return dtype.kind == 'f' or any(
    dtype == known for name, known in _DTYPES.items() if name.startswith(('bf', 'float8'))
  )


def floating_dtype(dtype: Any) -> np.dtype:
  """Returns a dtype of floating numbers; of weights whole numbers would leave what is before the point: zeros.

  Raises:
    WeightsError: it is none.

  >>> floating_dtype('bfloat16').name
  'bfloat16'
  """
  try:
    wanted = np.dtype(dtype)
  except TypeError:
    wanted = np.dtype(np.void)
  if not is_floating(wanted):
    raise WeightsError(f"floating arrays are cast to a dtype of floating numbers, 'float16'; got {str(dtype)[:60]!r}")
  return wanted


def dtype_named(name: str) -> np.dtype | None:
  """Returns the dtype of a name in NumPy's words; None where nothing is read of that kind."""
  return _DTYPES.get(name)


class Asker(NamedTuple):
  """Names the file that is being read, and refuses it.

  Attributes:
    where: the file.
    what: the kind of file, as messages say it.
  """

  where: str
  what: str

  def refuse(self, why: str, fix: str = 'get the file again') -> WeightsError:
    """Returns the error to raise."""
    article = 'an' if self.what[0] in 'aeinH' else 'a'  # an archive, an index, an npz archive, an HDF5 file
    return WeightsError(f'{self.where} cannot be read as {article} {self.what}: {why}: {fix}')

  def name(self, name: Any) -> str:
    """Checks an array's name: text that can be printed, of a sensible length."""
    if not isinstance(name, str) or not 0 < len(name) <= _LONGEST_NAME or not name.isprintable():
      raise self.refuse(f'an array has the name {_cut(name)}, which is none')
    return name

  def shape(self, shape: Any, name: str) -> tuple[int, ...]:
    """Checks a declared shape: whole numbers, not negative, as many axes as NumPy has and a sensible product."""
    sizes = list(shape) if isinstance(shape, list | tuple) else None
    if sizes is None or len(sizes) > MOST_AXES or any(type(one) is not int or not 0 <= one < 1 << 48 for one in sizes):
      raise self.refuse(f'{name!r} has the shape {_cut(shape)}')
    if math.prod(one for one in sizes if one) >= 1 << 62:
      raise self.refuse(f'{name!r} has the shape {_cut(shape)}, more than there can be')
    return tuple(sizes)

  def once(self, pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Makes a JSON object of its pairs, and refuses a name that stands in it twice."""
    found: dict[str, Any] = {}
    for name, value in pairs:
      if name in found:
        raise self.refuse(f'its table has {_cut(name)} twice')
      found[name] = value
    return found

  def total(self, held: Mapping[str, Stored], size: int) -> None:
    """Refuses arrays that would take far more memory than their file's size explains: strides of zero, aliases."""
    if len(held) > MOST_ARRAYS:
      raise self.refuse(f'it holds {len(held):,} arrays; at most {MOST_ARRAYS:,} are read', 'split it')
    wanted = sum(one.nbytes for one in held.values())
    if wanted > _SPARE + _TIMES * size:
      raise self.refuse(
        f'its arrays would take {wanted:,} bytes of memory, and it has {size:,}', 'save them as contiguous copies'
      )


def _cut(value: Any, most: int = 60) -> str:
  """How a value that a stranger wrote is shown: escaped, and short."""
  if isinstance(value, list | tuple):
    value = value[:8]
  if isinstance(value, str):
    value = value[: most * 2]
  if isinstance(value, int) and abs(value) >> 64:
    return 'a number of more than 64 bits'
  try:
    text = ascii(value)
  except (ValueError, RecursionError):
    return type(value).__name__
  return text if len(text) <= most else f'{text[:most]}...'


def mapped(path: Path) -> np.ndarray:
  """Maps a file into memory, read-only: uint8[bytes].

  Raises:
    FileNotFoundError: nothing is there.
    WeightsError: it is no plain file, or empty.
  """
  if not path.exists():
    raise FileNotFoundError(f'{path} is not there: give the path of a file or folder with weights')
  if not path.is_file():
    raise WeightsError(f'{path} is no plain file: give the path of a file or folder with weights')
  if path.stat().st_size == 0:
    raise WeightsError(f'{path} is empty: get the file again')
  return np.asarray(np.memmap(path, np.uint8, 'r'))


def view(data: np.ndarray, start: int, shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
  """Returns a part of mapped bytes as an array; the caller has checked that it lies inside."""
  size = math.prod(shape) * dtype.itemsize
  return data[start : start + size].view(dtype).reshape(shape)
