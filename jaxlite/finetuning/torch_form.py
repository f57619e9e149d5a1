"""PyTorch's files without PyTorch: the zip form (since 1.6) and the legacy form, tensors alone.

A file is a pickle that describes tensors, each a view (offset, shape, strides) of a storage, and the storages' bytes.
The pickle is read by a machine that knows nothing but data (`torch_pickle.py`), and every view is checked against its
storage before it is made. Arrays are views of the mapped file, with the strides that they were saved with.

References:
  PyTorch, serialization semantics, https://pytorch.org/docs/stable/notes/serialization.html
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from jaxlite.finetuning.torch_names import Inert, Storage, Tensor
from jaxlite.finetuning.torch_pickle import MOST_BYTES, Unpickler
from jaxlite.finetuning.weights import MOST_ARRAYS, MOST_AXES, Asker, Stored, Weights, _cut, dtype_named
from jaxlite.finetuning.zip_file import Zip

_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY = b'\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19'  # that number, as pickle writes it
_MOST_DEPTH = 64
_WHAT = 'torch file'
_BYTES = np.dtype(np.uint8)

Bytes = Callable[[Storage], np.ndarray]


def is_torch_legacy(data: np.ndarray) -> bool:
  """Tells by the first bytes."""
  return _LEGACY in bytes(data[:24])


def read_torch_zip(archive: Zip, where: str) -> Weights:
  """Reads what `torch.save` writes since 1.6: a table of tensors, and each storage, in an archive."""
  asker = Asker(where, _WHAT)
  tables = [name for name in archive.members if name.split('/')[1:] == ['data.pkl']]
  if len(tables) != 1:
    raise asker.refuse(f'it has {len(tables)} tables of tensors')
  root = tables[0].split('/')[0]
  if f'{root}/constants.pkl' in archive.members or any(name.startswith(f'{root}/code/') for name in archive.members):
    raise asker.refuse('it is a TorchScript program', 'load it where it was made and save its state_dict()')
  order = '<'
  if f'{root}/byteorder' in archive.members:
    told = archive.read(f'{root}/byteorder', 64)
    if told not in (b'little', b'big'):
      raise asker.refuse(f'its byte order is {_cut(told)}')
    order = '>' if told == b'big' else '<'
  pickle = Unpickler(memoryview(archive.read(tables[0], MOST_BYTES)), asker)
  tree = pickle.load()

  @functools.lru_cache(maxsize=8)  # of deflated ones, which torch itself never writes
  def member(key: str) -> np.ndarray:
    return archive.mapped(f'{root}/data/{key}')

  def size_of(storage: Storage) -> int:
    return archive.member(f'{root}/data/{storage.key}').size

  return _weights(tree, size_of, lambda storage: member(storage.key), order, len(archive.data), asker)


def read_torch_legacy(data: np.ndarray, where: str) -> Weights:
  """Reads what `torch.save` wrote before 1.6: four pickles, the list of storages, their bytes one after another."""
  asker = Asker(where, _WHAT)
  pickle = Unpickler(data.data, asker)
  magic, version, system, tree, keys = (pickle.load() for _ in range(5))
  if magic != _MAGIC or version != 1001 or not isinstance(system, dict):
    raise asker.refuse(f'it is of version {_cut(version)}', 'load it with torch and save it anew')
  if not isinstance(keys, list) or len(set(map(str, keys))) != len(keys):
    raise asker.refuse('its list of storages is none, or has one twice')
  order = '<' if system.get('little_endian', True) else '>'
  known = {one.storage.key: one for one in _tensors(tree, asker).values()}
  sizes = _storages(tree, asker)
  places: dict[str, tuple[int, int]] = {}
  at = pickle.at
  for key in keys:
    if not isinstance(key, str) or key not in sizes:
      raise asker.refuse(f'it holds the storage {_cut(key)}, which no tensor is of')
    if at + 8 > len(data):
      raise asker.refuse('it is cut off before its last storage')
    count = int.from_bytes(bytes(data[at : at + 8]), 'little' if order == '<' else 'big', signed=True)
    storage = sizes[key]
    width = _width(storage, known.get(key), asker)
    if count != storage.size:
      raise asker.refuse(f'the storage {_cut(key)} has {_cut(count)} entries and its tensors say {storage.size:,}')
    places[key] = (at + 8, count * width)
    at += 8 + count * width
  if at != len(data):
    raise asker.refuse(f'its storages end at byte {at:,} of {len(data):,}')

  def bytes_of(storage: Storage) -> np.ndarray:
    start, size = places[storage.key]
    return data[start : start + size]

  def size_of(storage: Storage) -> int:
    if storage.key not in places:
      raise asker.refuse(f'the storage {_cut(storage.key)} is missing')
    return places[storage.key][1]

  return _weights(tree, size_of, bytes_of, order, len(data), asker)


def _weights(
  tree: Any, size_of: Callable[[Storage], int], bytes_of: Bytes, order: str, size: int, asker: Asker
) -> Weights:
  held = {name: _stored(one, name, size_of, bytes_of, order, asker) for name, one in _tensors(tree, asker).items()}
  if not held:
    raise asker.refuse('it holds no tensor', 'save a state_dict()')
  asker.total(held, size)
  return Weights(held, where=asker.where, form='torch', layout='torch')


def _width(storage: Storage, tensor: Tensor | None, asker: Asker) -> int:
  """Bytes an entry of a storage; one without a type counts bytes."""
  dtype = dtype_named(storage.kind) if storage.kind else _BYTES
  if dtype is None:
    raise asker.refuse('it has a storage of a kind that is not read')
  return dtype.itemsize


def _stored(
  tensor: Tensor, name: str, size_of: Callable[[Storage], int], bytes_of: Bytes, order: str, asker: Asker
) -> Stored:
  storage = tensor.storage
  dtype = dtype_named(tensor.kind or storage.kind)
  if dtype is None:
    raise asker.refuse(f'{name!r} has no dtype that is read')
  shape = asker.shape(tensor.shape, name)
  stride = tensor.stride
  if not isinstance(stride, tuple) or len(stride) != len(shape) or len(shape) > MOST_AXES:
    raise asker.refuse(f'{name!r} has the shape {_cut(shape)} and the strides {_cut(stride)}')
  if any(type(one) is not int or not 0 <= one < 1 << 48 for one in (*stride, tensor.offset)):
    raise asker.refuse(f'{name!r} has the strides {_cut(stride)} and the offset {_cut(tensor.offset)}')
  size, width = size_of(storage), dtype.itemsize
  declared = storage.size * (dtype_named(storage.kind) or _BYTES).itemsize
  if declared != size:
    raise asker.refuse(f'the storage of {name!r} has {size:,} bytes and declares {declared:,}')
  last = tensor.offset + sum((length - 1) * step for length, step in zip(shape, stride, strict=True))
  if math.prod(shape) and (last + 1) * width > size:
    raise asker.refuse(f'{name!r} reads up to entry {last:,} of a storage of {size // width:,}')

  def read() -> np.ndarray:
    if not math.prod(shape):
      return np.zeros(shape, dtype)
    data = bytes_of(storage)
    if len(data) != size:
      raise asker.refuse(f'the storage of {name!r} has changed')
    flat = data[: size // width * width].view(dtype)
    if dtype == np.bool_ and (data > 1).any():
      raise asker.refuse(f'{name!r} is bool and has entries other than 0 and 1')
    steps = [step * width for step in stride]
    made = np.lib.stride_tricks.as_strided(flat[tensor.offset :], shape, steps, writeable=False)
    return made if order == '<' or width == 1 else _swapped(made)

  return Stored(shape, dtype, read)


def _swapped(array: np.ndarray) -> np.ndarray:
  if array.dtype.kind in 'iufc':
    return array.byteswap()
  return np.ascontiguousarray(array).view(np.uint16).byteswap().view(array.dtype)


def _tensors(tree: Any, asker: Asker) -> dict[str, Tensor]:
  """Returns the tensors of a pickled value by name: keys of nested dicts and indices of lists, joined by '/'."""
  return {asker.name(name): one for name, one in _walk(tree, asker) if isinstance(one, Tensor)}


def _storages(tree: Any, asker: Asker) -> dict[str, Storage]:
  found: dict[str, Storage] = {}
  for _, one in _walk(tree, asker):
    if isinstance(one, Tensor) and found.setdefault(one.storage.key, one.storage) != one.storage:
      raise asker.refuse(f'the storage {_cut(one.storage.key)} is described twice, and differently')
  return found


def _walk(tree: Any, asker: Asker) -> Iterator[tuple[str, Any]]:
  """Yields every leaf with its name; a cycle, too many or too deep is refused."""
  left = MOST_ARRAYS
  seen: set[str] = set()
  stack: list[tuple[str, Any, tuple[int, ...]]] = [('', tree, ())]
  while stack:
    name, node, above = stack.pop()
    left -= 1
    if left < 0 or len(above) > _MOST_DEPTH:
      raise asker.refuse('its values are nested more than a table of tensors is', 'save its state_dict() alone')
    if isinstance(node, Tensor):
      if name in seen:
        raise asker.refuse(f'two tensors have the name {_cut(name)}')
      seen.add(name)
      yield name or 'value', node
      continue
    pairs = None
    if isinstance(node, Mapping):
      pairs = list(node.items())
    elif type(node) in (list, tuple):
      pairs = list(enumerate(node))
    if not pairs:
      if not isinstance(node, Inert):
        yield name, node
      continue
    if id(node) in above:
      raise asker.refuse('its values hold themselves')
    for key, value in reversed(pairs):
      stack.append((f'{name}/{key}' if name else str(key), value, (*above, id(node))))
