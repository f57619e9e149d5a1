"""Saving a run and finding it again: asynchronous, atomic, checked bit for bit, never silently wrong.

A folder of checkpoints holds one Orbax checkpoint a step, `00000100/`, and, written twice and never again,
`const-<hash>/` for the arrays that never change in a run.

From the ground: hashing.py hashes leaves; packing.py turns a pytree into a few byte arrays and a table;
manifest.py seals what a checkpoint says of itself; storage.py puts one on disk with Orbax and reads it back
verified; directory.py knows the folder's names; checkpoints.py saves in the background and restores the newest
sound one.
"""

from jaxlite.checkpoint.checkpoints import Checkpoints, Restored, load_arrays
from jaxlite.checkpoint.hashing import fingerprint
from jaxlite.checkpoint.manifest import CheckpointError, CheckpointMismatch

__all__ = [
  'CheckpointError',
  'CheckpointMismatch',
  'Checkpoints',
  'Restored',
  'fingerprint',
  'load_arrays',
]
