"""Saving a run and finding it again: asynchronous, atomic, checked bit for bit, never silently wrong.

A folder of checkpoints holds one Orbax checkpoint per step, `00000100/`, and, written twice and never again,
`const-<hash>/` for the arrays that never change in a run. Each leaf is an Orbax array of its own, so that any Orbax
reader sees the tree (`state` in the checkpoint); `manifest` holds the hash of each, and what Orbax cannot hold.

From the ground: hashing.py hashes leaves; names.py names them for Orbax; regions.py tells which part of one a device
holds; leaves.py copies them to the host and back; containers.py writes the containers of a tree down; manifest.py
seals what a checkpoint says of itself; storage.py puts one on disk with Orbax and reads it back verified; directory.py
knows the folder's names; order.py says which is tried first; checkpoints.py saves in the background and restores the
newest sound one; arrays.py loads parts of one without a template; foreign.py reads what others saved with Orbax.
"""

from jaxlite.checkpoint.arrays import load_arrays
from jaxlite.checkpoint.checkpoints import Checkpoints, Restored
from jaxlite.checkpoint.foreign import find_orbax, read_foreign
from jaxlite.checkpoint.hashing import fingerprint
from jaxlite.checkpoint.manifest import CheckpointError, CheckpointMismatch

__all__ = [
  'CheckpointError',
  'CheckpointMismatch',
  'Checkpoints',
  'Restored',
  'find_orbax',
  'fingerprint',
  'load_arrays',
  'read_foreign',
]
