"""The folder where prepared data are kept between runs, and how it stays whole.

Whatever takes time to make is made in a scratch folder of this process's own and renamed when it is complete.
So a killed process leaves nothing that looks complete, and of two processes at once one wins and both go on.

Decoded arrays are kept as .npy files beside the array_record files: decoding 70,000 examples one by one takes
seconds, each start of a run needs them, and reading them back needs no TensorFlow Datasets at all. They are
memory-mapped, so carving a validation split out of train does not hold train twice.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from jaxlite.host import files

PROOF = 'dataset_info.json'  # written by TFDS, and by `store`, into every complete folder
VERSION = '1.0.0'  # of the data sets that jaxlite prepares itself
_STALE_SECONDS = 3600  # making takes seconds: scratch of this age was left by a process that was killed
_LAYOUT = 1  # of the decoded arrays; another number makes older ones invisible


class Decoded(NamedTuple):
  """A data set as arrays.

  Attributes:
    name: what the data are called.
    class_names: one name per class, or empty where only numbers are known.
    splits: (inputs, labels) by split; memory-mapped.
  """

  name: str
  class_names: tuple[str, ...]
  splits: dict[str, tuple[np.ndarray, np.ndarray]]


def root() -> pathlib.Path:
  """Returns where prepared data are kept: $JAXLITE_DATA, else jaxlite's folder among the user's caches."""
  own = os.environ.get('JAXLITE_DATA')
  return files.expanded(own) if own else files.user_cache()


def prepared(where: pathlib.Path, name: str) -> pathlib.Path:
  """Returns the folder of a data set that jaxlite prepares itself; it is complete if `PROOF` is in it."""
  return where / name / VERSION


@contextlib.contextmanager
def scratch(where: pathlib.Path) -> Iterator[pathlib.Path]:
  """Yields a fresh folder under `where`, removed at the end; removes what killed processes left there.

  Raises:
    ValueError: the folder cannot be written, or the disk is full.
  """
  try:
    with files.scratch(where, '.preparing-', stale_seconds=_STALE_SECONDS) as folder:
      yield folder
  except OSError as error:
    raise ValueError(f'cannot keep prepared data in {where} ({error}): set JAXLITE_DATA to another folder') from None


def settle(made: pathlib.Path, final: pathlib.Path) -> None:
  """Renames a complete folder into its place, unless another process was first."""
  files.settle(made, final, lambda folder: (folder / PROOF).exists())


def place(prepared: pathlib.Path, where: pathlib.Path) -> pathlib.Path:
  """Returns the folder for the arrays decoded from `prepared`: its name changes when any of the files does."""
  found = sorted(path for path in prepared.rglob('*') if path.is_file())
  stats = [(str(path.relative_to(prepared)), path.stat().st_size, path.stat().st_mtime_ns) for path in found]
  key = hashlib.sha256(json.dumps([_LAYOUT, str(prepared.resolve()), stats]).encode()).hexdigest()
  return where / 'decoded' / key[:20]


def store(
  folder: pathlib.Path,
  name: str,
  class_names: Iterable[str],
  splits: dict[str, tuple[int, Iterable[tuple[np.ndarray, np.ndarray]]]],
) -> None:
  """Writes a data set as .npy files, piece by piece: it never stands in memory whole.

  Args:
    folder: an empty folder.
    name: what the data are called.
    class_names: one name per class, or none.
    splits: by split, how many examples, and an iterator of pieces (inputs [n, ...], labels [n]).
  """
  digests = {}
  for where, (count, pieces) in splits.items():
    with open(folder / f'{where}.inputs.npy', 'wb') as inputs, open(folder / f'{where}.labels.npy', 'wb') as labels:
      hashes = hashlib.sha256(), hashlib.sha256()
      for piece in pieces:
        for file, digest, array in zip((inputs, labels), hashes, piece, strict=True):
          if not file.tell():
            header = {'descr': array.dtype.str, 'fortran_order': False, 'shape': (count, *array.shape[1:])}
            np.lib.format.write_array_header_1_0(file, header)
          digest.update(np.ascontiguousarray(array).tobytes())
          file.write(np.ascontiguousarray(array).tobytes())
    digests[where] = [digest.hexdigest() for digest in hashes]
  about = {'name': name, 'class_names': list(class_names), 'sha256': digests}
  (folder / PROOF).write_text(json.dumps(about, indent=1))


def fetch(folder: pathlib.Path) -> Decoded | None:
  """Returns what `store` wrote, or None when it is not there or no longer what was written."""
  try:
    about: dict[str, Any] = files.read_json(folder / PROOF)
    splits = {}
    for where, digests in about['sha256'].items():
      paths = [folder / f'{where}.{what}.npy' for what in ('inputs', 'labels')]
      pair = tuple(np.load(path, mmap_mode='r', allow_pickle=False) for path in paths)
      if [hashlib.sha256(np.ascontiguousarray(array).data).hexdigest() for array in pair] != digests:
        return None
      splits[where] = pair
    return Decoded(about['name'], tuple(about['class_names']), splits)
  except (OSError, ValueError, KeyError, EOFError, TypeError, AttributeError):
    return None
