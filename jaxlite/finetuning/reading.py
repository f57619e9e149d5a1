"""Which reader a file or folder is for: told by its first bytes and what lies in it, never by its name."""

from __future__ import annotations

import os

import numpy as np

from jaxlite.finetuning import gguf_form, npz_form, safetensors_form, torch_form, zip_file
from jaxlite.finetuning.weights import Asker, Weights, WeightsError, mapped
from jaxlite.host.files import expanded


def read(source: str | os.PathLike[str]) -> Weights:
  """Reads which arrays a file holds; each is read when it is asked for. Nothing in a file is ever run.

  Args:
    source: a file of safetensors, GGUF, PyTorch (`torch.save` of a state dict, zip or legacy form) or npz.

  Returns:
    The arrays by name, as a Mapping: views of the mapped file, read-only, in the dtypes that they were saved in.

  Raises:
    FileNotFoundError: nothing is there.
    WeightsError: a ValueError in one line: the file is damaged, hostile or of a kind that is not read.

  >>> import tempfile
  >>> path = f'{tempfile.mkdtemp()}/w.npz'
  >>> np.savez(path, kernel=np.ones((2, 3), np.float32))
  >>> read(path)['kernel'].shape
  (2, 3)
  """
  path = expanded(source)
  return read_bytes(mapped(path), str(path))


def read_bytes(data: np.ndarray, where: str) -> Weights:
  """Reads one file that is mapped: uint8[bytes]."""
  if gguf_form.is_gguf(data):
    return gguf_form.read_gguf(data, where)
  if zip_file.is_zip(data):
    return _read_archive(data, where)
  if torch_form.is_torch_legacy(data):
    return torch_form.read_torch_legacy(data, where)
  if safetensors_form.is_safetensors(data):
    return safetensors_form.read_safetensors(data, where)
  if bytes(data[:1]) == b'\x80':
    raise WeightsError(f'{where} is a bare pickle, a program and no weights: save a state_dict() by torch.save')
  raise WeightsError(f'{where} begins like no file of weights that is read: safetensors, GGUF, PyTorch, npz')


def _read_archive(data: np.ndarray, where: str) -> Weights:
  archive = zip_file.read_zip(data, Asker(where, 'archive'))
  if any(name.split('/')[1:] == ['data.pkl'] for name in archive.members):
    return torch_form.read_torch_zip(archive, where)
  if archive.members and all(name.endswith('.npy') for name in archive.members):
    return npz_form.read_npz(archive, where)
  raise WeightsError(f'{where} is an archive without weights that are read')
