"""Checkpoints that others wrote with Orbax: which arrays they hold, and each read when it is asked for.

Reads the two layouts that Orbax has: OCDBT (one store for all arrays) and a folder of its own for each array, in zarr
or zarr3. Only the tree's metadata and arrays are read, with TensorStore; nothing else in such a folder.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxlite.checkpoint.storage import check_plain, reason
from jaxlite.host.files import read_json

_METADATA, _OCDBT = '_METADATA', 'manifest.ocdbt'
_MOST_METADATA = 64 << 20  # bytes


class ForeignLeaf(NamedTuple):
  """One array of a checkpoint, not yet read.

  Attributes:
    shape, dtype: of it.
    read: () -> np.ndarray.
  """

  shape: tuple[int, ...]
  dtype: np.dtype
  read: Callable[[], np.ndarray]


def find_orbax(folder: Path) -> Path | None:
  """Returns the folder of a tree that Orbax saved: it itself, or the newest step's below a manager's.

  Several trees in one checkpoint (a manager's `params` and `opt_state`) are none: say which.
  """
  if (folder / _METADATA).is_file():
    return folder
  if not folder.is_dir():
    return None
  below = [one for one in sorted(folder.iterdir()) if one.is_dir()]
  trees = [one for one in below if (one / _METADATA).is_file()]
  if len(trees) == 1:
    return trees[0]
  steps = sorted((one for one in below if one.name.isdigit()), key=lambda one: int(one.name))
  return find_orbax(steps[-1]) if steps and not trees else None


def read_foreign(folder: Path) -> dict[str, ForeignLeaf]:
  """Opens the arrays of a tree that Orbax saved.

  Args:
    folder: with the tree's `_METADATA`.

  Returns:
    The arrays by '/'-joined path.

  Raises:
    ValueError: the metadata is damaged, or an array is not what it says.
  """
  check_plain(folder)
  try:
    if os.path.getsize(folder / _METADATA) > _MOST_METADATA:
      raise ValueError('its metadata is larger than that of any model')
    told = read_json(folder / _METADATA)
    tree = told['tree_metadata']
    zarr3 = bool(told.get('use_zarr3', False))
    keys = [[str(one['key']) for one in entry['key_metadata']] for entry in tree.values()]
    kinds = [entry['value_metadata'] for entry in tree.values()]
  except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
    raise ValueError(f'its {_METADATA} is damaged ({reason(error)})') from None
  ocdbt = (folder / _OCDBT).is_file()
  found: dict[str, ForeignLeaf] = {}
  for parts, kind in zip(keys, kinds, strict=True):
    if not isinstance(kind, Mapping) or kind.get('value_type') in ('None', 'string') or kind.get('skip_deserialize'):
      continue
    if any(not part or part in ('.', '..') or '/' in part or '\0' in part for part in parts):
      raise ValueError(f'its {_METADATA} names {parts!r}, which is no path of an array')
    path = '/'.join(parts)
    if path in found:
      raise ValueError(f'two arrays have the path {path!r}')
    found[path] = _leaf(folder, '.'.join(parts), path, ocdbt=ocdbt, zarr3=zarr3)
  return found


def _leaf(folder: Path, name: str, path: str, *, ocdbt: bool, zarr3: bool) -> ForeignLeaf:
  import tensorstore

  base = {'driver': 'file', 'path': f'{folder.resolve()}/'}
  store: Any = {'driver': 'ocdbt', 'base': base, 'path': f'{name}/'}
  if not ocdbt:
    store = {**base, 'path': f'{folder.resolve() / name}/'}
  context = tensorstore.Context({'cache_pool': {'total_bytes_limit': 0}})
  # Orbax stores zeros, too: what is missing is lost, and would read as zeros.
  spec = {'driver': 'zarr3' if zarr3 else 'zarr', 'kvstore': store, 'fill_missing_data_reads': False}
  try:
    array = tensorstore.open(spec, open=True, read=True, context=context).result()
    shape, dtype = tuple(map(int, array.shape)), np.dtype(array.dtype.numpy_dtype)
  except Exception as error:  # whatever TensorStore makes of garbage
    raise ValueError(f'{path!r} cannot be opened: {reason(error)}') from None
  if dtype.hasobject or math.prod(shape) >= 1 << 48:
    raise ValueError(f'{path!r} is {dtype}{list(shape)}, no weights')

  def read() -> np.ndarray:
    try:
      return np.asarray(array.read().result())
    except Exception as error:
      raise ValueError(f'{path!r} cannot be read: {reason(error)}') from None

  return ForeignLeaf(shape, dtype, read)
