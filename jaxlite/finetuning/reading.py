"""Which reader a file or folder is for: told by its first bytes and what lies in it, never by its name."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxlite.finetuning import (
  folders,
  gguf_form,
  hub,
  keras_form,
  msgpack_form,
  npz_form,
  packed_form,
  safetensors_form,
  torch_form,
  zip_file,
)
from jaxlite.finetuning.weights import Asker, Weights, WeightsError, held, mapped
from jaxlite.host.files import expanded


def read(source: str | os.PathLike[str] | Mapping[str, Any], *, key: str | None = None, dtype: Any = None) -> Weights:
  """Reads which arrays a file or folder holds; each is read when it is asked for. Nothing in a file is ever run.

  Args:
    source: a file of safetensors, GGUF, PyTorch (`torch.save` of a state dict, zip or legacy form), Keras
      (`.weights.h5`, `.keras`; needs h5py), npz, Flax's msgpack or one of our packed files; a folder with one of
      these, with shards and their index, with a checkpoint of Orbax, or of one of our runs; a zip archive of such a
      folder; 'hf://owner/name', a repository on the Hugging Face hub (needs huggingface_hub); or arrays that you hold,
      {name: array}, nested or not. Of a file's arrays that you change, `read(...).beside({name: array})` keeps what
      its format says.
    key: of a checkpoint that holds more than weights, which part: 'state_dict'. Its name goes from the arrays' names.
    dtype: what floating arrays are cast to when they are read; None keeps them.

  Returns:
    The arrays by name, as a Mapping: views of the mapped file, read-only, in the dtypes that they were saved in.

  Raises:
    FileNotFoundError: nothing is there.
    ImportError: a package that the format needs is not installed.
    WeightsError: a ValueError in one line: the file is damaged, hostile or of a kind that is not read.

  >>> import tempfile
  >>> path = f'{tempfile.mkdtemp()}/w.npz'
  >>> np.savez(path, kernel=np.ones((2, 3), np.float32))
  >>> read(path)['kernel'].shape
  (2, 3)
  """
  found: Weights
  if not isinstance(source, str | os.PathLike | Mapping):
    raise TypeError(f'weights are read from one path, a name on the hub, or arrays by name; got {str(source)[:80]!r}')
  if isinstance(source, str) and re.match(r'(https?|s3|gs|ftp)://', source):
    raise WeightsError(f'{source[:80]}: addresses are not fetched: download it and give its path, or hf://owner/name')
  if isinstance(source, Weights):
    found = source
  elif isinstance(source, Mapping):
    found = held(source)
  elif hub.is_hub(source):
    found = _read_path(hub.fetch(str(source)))
  else:
    found = _read_path(expanded(source), str(source))
  if key is not None:
    found = found.under(key.rstrip('/') + '/')
  return found if dtype is None else found.cast(dtype)


def _read_path(path: Path, given: str = '') -> Weights:
  if path.is_dir():
    return folders.read_folder(path, read_bytes)
  if not path.exists() and re.fullmatch(r'[\w.-]+/[\w.-]+', given):
    raise FileNotFoundError(f"{path} is not there: for a repository on the hub, write 'hf://{given}'")
  if path.name.endswith('.index.json') and path.is_file():
    names = [one.name for one in path.parent.iterdir() if one.is_file()]
    return folders.read_shards(path.name, names, str(path.parent), lambda name: mapped(path.parent / name), read_bytes)
  parts = folders.parts_beside(path) if path.is_file() else None
  if parts:
    return folders.read_split(parts, str(path.parent), lambda name: mapped(path.parent / name), read_bytes)
  return read_bytes(mapped(path), str(path))


def read_bytes(data: np.ndarray, where: str, *, archives: bool = True) -> Weights:
  """Reads one file that is mapped: uint8[bytes]."""
  if gguf_form.is_gguf(data):
    return gguf_form.read_gguf(data, where)
  if zip_file.is_zip(data):
    return _read_archive(data, where, archives)
  if keras_form.is_hdf5(data):
    return keras_form.read_keras(data, where)
  if torch_form.is_torch_legacy(data):
    return torch_form.read_torch_legacy(data, where)
  if packed_form.is_packed(data):
    return packed_form.read_packed(data, where)
  if safetensors_form.is_safetensors(data):
    return safetensors_form.read_safetensors(data, where)
  if bytes(data[:1]) == b'\x80' and bytes(data[1:2]) < b'\x08' and where.endswith(('.pkl', '.pth', '.pt', '.bin')):
    raise WeightsError(f'{where} is a bare pickle, a program and no weights: save a state_dict() by torch.save')
  if msgpack_form.is_msgpack(data):
    return msgpack_form.read_msgpack(data, where)
  raise WeightsError(
    f'{where} begins like no file of weights that is read: safetensors, GGUF, PyTorch, Keras, npz, msgpack'
  )


def _read_archive(data: np.ndarray, where: str, archives: bool) -> Weights:
  archive = zip_file.read_zip(data, Asker(where, 'archive'))
  names = list(archive.members)
  if any(name.split('/')[1:] == ['data.pkl'] for name in names):
    return torch_form.read_torch_zip(archive, where)
  if names and all(name.endswith('.npy') for name in names):
    return npz_form.read_npz(archive, where)
  if not archives:
    raise WeightsError(f'{where} is an archive in an archive: unpack it first')

  def opened(name: str) -> np.ndarray:
    folders.room_for(archive.member(name).size, where)
    return archive.mapped(name)

  return folders.read_names(names, where, opened, lambda part, inner: read_bytes(part, inner, archives=False))
