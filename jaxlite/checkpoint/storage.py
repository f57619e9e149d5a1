"""One checkpoint on disk: written whole by Orbax, read back verified or reported as damaged.

The only file that imports Orbax, on first use: it takes half a second. Orbax makes a write atomic, and loads
flipped bits of array data without a word; the hashes in the manifest catch those.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxlite.checkpoint import hashing, packing
from jaxlite.checkpoint.manifest import Damaged, Manifest, seal, unseal

_ARRAYS, _MANIFEST = 'state', 'manifest'  # what Orbax calls checkpointables: each in a folder of its own
_REASONS = [os.strerror(code) for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES)]


def write(path: Path, groups: dict[str, np.ndarray], manifest: Manifest) -> None:
  blobs = _blobs(manifest.leaves)
  arrays = {blobs[group][0]: array for group, array in groups.items()}
  with _orbax() as ocp:
    ocp.save_checkpointables(path, {_ARRAYS: arrays, _MANIFEST: seal(manifest)})


def read_manifest(path: Path) -> Manifest:
  try:
    with _orbax() as ocp:
      sealed = ocp.load_checkpointables(path, {_MANIFEST: None})[_MANIFEST]
  except Exception as error:  # whatever Orbax makes of garbage
    raise Damaged(reason(error)) from error
  return unseal(sealed, path)


def read_const_manifest(path: Path, whole: str) -> Manifest:
  manifest = read_manifest(path)
  if hashing.combined(manifest.hashes) != whole:
    raise Damaged('they are those of another run')
  return manifest


def read(path: Path, manifest: Manifest, leaves: Sequence[packing.Leaf]) -> dict[str, np.ndarray]:
  """Reads and verifies the groups of these leaves."""
  blobs = _blobs(manifest.leaves)
  groups = {}
  try:
    with _orbax() as ocp:
      # One array a call: where several are read at once and one fails, Orbax leaves the others without a loop.
      for group in dict.fromkeys(leaf.group for leaf in leaves):
        name, size = blobs[group]
        # Orbax fills the array given, so damaged metadata cannot ask for more memory than the manifest does.
        found = ocp.load_checkpointables(path, {_ARRAYS: {name: np.empty(size, np.uint8)}})
        groups[group] = found[_ARRAYS][name]
    found = packing.leaf_hashes(groups, leaves)
  except Exception as error:  # whatever Orbax makes of garbage
    raise Damaged(reason(error)) from error
  wrong = [leaf.path for leaf in leaves if found[leaf.path] != manifest.hashes[leaf.path]]
  if wrong:
    raise Damaged(f'{len(wrong)} of {len(leaves)} leaves have another hash than was written, first {wrong[0]!r}')
  return groups


def _blobs(leaves: Sequence[packing.Leaf]) -> dict[str, tuple[str, int]]:
  """The array that holds each group, and its size: numbered, since a name may hold anything."""
  sizes = packing.group_sizes(leaves)
  return {
    group: (f'{index:02d}_' + re.sub(r'\W+', '_', group, flags=re.ASCII)[:40], size)
    for index, (group, size) in enumerate(sizes.items())
  }


@contextlib.contextmanager
def _orbax() -> Iterator[Any]:
  """Imports Orbax; while it works, keeps its log quiet: a full disk would be 200 lines of traceback."""
  from orbax.checkpoint import v1 as ocp

  def foreign(record: logging.LogRecord) -> bool:
    return 'orbax' not in record.pathname

  context = ocp.Context()
  context.array.saving.use_compression = False  # weights hardly shrink, and a save would cost four times the CPU
  context.checkpointables.registry = ocp.handlers.local_registry()
  context.checkpointables.registry.add(ocp.handlers.JsonHandler, checkpointable_name=_MANIFEST)
  context.pytree.loading.partial_load = True
  logger = logging.getLogger('absl')
  logger.addFilter(foreign)
  try:
    with context:
      yield ocp
  finally:
    logger.removeFilter(foreign)


def reason(error: BaseException) -> str:
  """One readable phrase out of an error that may be a page."""
  text = str(error)
  for phrase in _REASONS:
    if phrase in text:
      return phrase
  lines = text.strip().splitlines()
  first = lines[0] if lines else ''
  return f'{type(error).__name__}: {first[:160]}' if first else type(error).__name__
