"""Keras's `.weights.h5` files: datasets of an HDF5 file, read one by one; nothing that such a file can refer to.

HDF5 can point elsewhere: links to other files, arrays whose bytes lie in another file, arrays made of several, filters
that are loaded as plugins, values that are declared and never stored. All of it is refused.

References:
  Keras, how weights are saved, https://github.com/keras-team/keras/blob/master/keras/src/saving/saving_lib.py
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import numpy as np

from jaxlite import errors
from jaxlite.finetuning.weights import MOST_ARRAYS, Asker, Stored, Weights, _cut, dtype_named
from jaxlite.finetuning.zip_file import FileOfBytes

_FILTERS = (1, 2, 3)  # deflate, shuffle, fletcher32: what HDF5 itself brings
_MOST_DEPTH = 64


def is_hdf5(data: np.ndarray) -> bool:
  """Tells by the first bytes."""
  return bytes(data[:8]) == b'\x89HDF\r\n\x1a\n'


def read_keras(data: np.ndarray, where: str, asker: Asker | None = None) -> Weights:
  """Reads which arrays an HDF5 file of Keras's weights holds.

  A name is the path in the file without Keras's own words: 'dense/0' is the first variable (a kernel, mostly) of what
  the file calls `layers/dense/vars/0`. `about['names']` has the layer's own name of each, where the file tells it.

  Args:
    data: uint8[bytes], the mapped file.
    where: names it in errors.
    asker: refuses, where the file lies in an archive.

  Raises:
    ImportError: h5py is not installed.
    WeightsError: it is damaged, refers to anything outside of itself, or declares what it does not hold.
  """
  errors.need('reading Keras weights', 'h5py')
  import h5py

  asker = asker or Asker(where, 'HDF5 file')
  try:
    file = h5py.File(io.BufferedReader(FileOfBytes(data)), 'r')
    held, about = {}, {}
    for path, dataset in _datasets(h5py, file, '', asker, (), [MOST_ARRAYS]):
      name = asker.name(_named(path))
      if name in held:
        raise asker.refuse(f'two of its arrays have the name {_cut(name)}')
      held[name] = _stored(dataset, path, asker)
      about[name] = _owner(dataset)
    form = _known_attribute(file, 'layer_names')
  except errors_of_hdf5() as error:
    raise _refused(error, asker) from None
  if not held:
    raise asker.refuse('it holds no arrays')
  asker.total(held, len(data))
  names = {name: owner for name, owner in about.items() if owner}
  return Weights(held, where=where, form='keras', layout='keras', about={'names': names, 'legacy': form})


def errors_of_hdf5() -> tuple[type[Exception], ...]:
  """What h5py raises on garbage, in versions that are around."""
  return (OSError, RuntimeError, KeyError, TypeError, ValueError, AttributeError, OverflowError, MemoryError)


def _refused(error: Exception, asker: Asker) -> Exception:
  if type(error).__name__ == 'WeightsError':
    return error
  return asker.refuse(f'it cannot be read ({type(error).__name__}: {_cut(str(error), 80)})')


def _known_attribute(file: Any, name: str) -> bool:
  return name in file.attrs or 'model_weights' in file


def _named(path: str) -> str:
  """Without the words that Keras puts between: `layers/dense/vars/0` -> `dense/0`, and `:0` of its second version."""
  parts = [part for part in path.split('/') if part not in ('layers', 'vars', '_layer_checkpoint_dependencies')]
  return '/'.join(parts).removesuffix(':0') or path


def _owner(dataset: Any) -> str:
  """The name of the layer that a variable is of, where Keras wrote it beside."""
  name = dataset.parent.attrs.get('name', '')
  return name if isinstance(name, str) and name.isprintable() and len(name) < 256 else ''


def _datasets(
  h5py: Any, group: Any, path: str, asker: Asker, above: tuple[Any, ...], left: list[int]
) -> Iterator[tuple[str, Any]]:
  token = h5py.h5o.get_info(group.id).addr
  if token in above or len(above) > _MOST_DEPTH:
    raise asker.refuse('its groups hold themselves')
  for key in group:
    left[0] -= 1
    if left[0] < 0:
      raise asker.refuse(f'it holds more than {MOST_ARRAYS:,} arrays and groups')
    link = group.get(key, getlink=True)
    inner = f'{path}/{key}' if path else key
    if not isinstance(link, h5py.HardLink):
      raise asker.refuse(f'{_cut(inner)} is a link, which may lead to another file', 'save the arrays themselves')
    one = group[key]
    if isinstance(one, h5py.Group):
      yield from _datasets(h5py, one, inner, asker, (*above, token), left)
    elif isinstance(one, h5py.Dataset):
      yield inner, one


def _stored(dataset: Any, path: str, asker: Asker) -> Stored:
  shape = asker.shape(tuple(int(size) for size in dataset.shape or ()), path)
  made = dataset.id.get_create_plist()
  if dataset.shape is None or dataset.is_virtual or dataset.external:
    raise asker.refuse(f'{_cut(path)} has its values elsewhere', 'save the arrays themselves')
  codes = [made.get_filter(place)[0] for place in range(made.get_nfilters())]
  if set(codes) - set(_FILTERS):
    raise asker.refuse(f'{_cut(path)} is compressed by filter {codes}', 'save it with gzip, or plain')
  held = dataset.id.get_storage_size()
  dtype, told = dataset.dtype, dataset.attrs.get('dtype')
  if told in ('bfloat16', b'bfloat16') and dtype.itemsize == 2:
    native = dtype_named('bfloat16')
  else:
    native = dtype_named(dtype.newbyteorder('=').name)
  if native is None:
    raise asker.refuse(f'{_cut(path)} is {_cut(str(dtype))}, no numbers', 'save weights alone')
  nbytes = int(np.prod([*shape, dtype.itemsize], dtype=object))
  if nbytes and (not held or (not codes and held < nbytes)):
    raise asker.refuse(f'{_cut(path)} declares {nbytes:,} bytes and holds {held:,}')

  def read() -> np.ndarray:
    try:
      array = np.asarray(dataset[()])
    except errors_of_hdf5() as error:
      raise _refused(error, asker) from None
    if array.shape != shape:
      raise asker.refuse(f'{_cut(path)} has changed')
    if native.name == 'bfloat16' and array.dtype.kind in 'Vu':
      return array.view(native)
    return array.astype(native, copy=False)

  return Stored(shape, native, read)
