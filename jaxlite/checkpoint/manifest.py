"""What a checkpoint says of itself: format, step, the loop's values, every leaf with its hash; sealed by a hash.

The envelope `{'format', 'sha256', 'content'}` never changes, so that an old jaxlite can tell a newer format
from damage. Nothing here touches the disk.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, NamedTuple

from jaxlite.checkpoint import hashing
from jaxlite.checkpoint.containers import Structure, leaf_paths
from jaxlite.checkpoint.leaves import Leaf, check_leaf
from jaxlite.host.sealed import Damaged as Damaged  # never leaves the checkpoint rooms: the one before is taken

FORMAT = 2  # of the content and the arrays beside it; any other is refused
_WRITERS = {1: 'jaxlite 0.1'}  # of older formats: who reads them


class CheckpointError(RuntimeError):
  """A checkpoint could not be written, or none could be read."""


class CheckpointMismatch(ValueError):  # noqa: N818  (what it says is the difference, by path)
  """A sound checkpoint does not fit the program's structure, shapes or dtypes."""


class Manifest(NamedTuple):
  """What a checkpoint says of itself.

  Attributes:
    step: the step it was saved at.
    metric: larger is better; None never counts as best.
    loop: the loop's own values, as JSON keeps them.
    const: the combined hash of the leaves that never change, which lie elsewhere; None where there are none.
    structure: the containers of the whole state, see `containers.structure`.
    leaves: what each leaf is, and the name of its array.
    hashes: the sha256 of each leaf, by path and region: one for a whole leaf, one a shard for a sharded one.
  """

  step: int
  metric: float | None
  loop: dict[str, Any]
  const: str | None
  structure: Structure
  leaves: list[Leaf]
  hashes: dict[str, dict[str, str]]

  def combined(self) -> str:
    """Returns one hash for all leaves; for leaves that are not sharded, the `fingerprint` of their tree."""
    flat = {
      f'{path}[{region}]' if region else path: digest
      for path, digests in self.hashes.items()
      for region, digest in digests.items()
    }
    return hashing.combined(flat)


def seal(manifest: Manifest) -> dict[str, Any]:
  """Returns a manifest as JSON values under a format number and a hash.

  >>> sealed = seal(Manifest(3, None, {'patience': 2}, None, None, [], {}))
  >>> unseal(sealed, 'here').loop
  {'patience': 2}
  """
  content = manifest._asdict()
  content['leaves'] = [[*leaf, content['hashes'][leaf.path]] for leaf in manifest.leaves]
  del content['hashes']
  content = json.loads(json.dumps(content))
  return {'format': FORMAT, 'sha256': _hash(FORMAT, content), 'content': content}


def unseal(sealed: Any, where: Any) -> Manifest:
  """Returns the manifest of an envelope that `seal` made.

  Args:
    sealed: what was found on disk, perhaps damaged.
    where: names the checkpoint in an error.

  Returns:
    The Manifest.

  Raises:
    Damaged: no envelope, or not as it was written.
    CheckpointError: a newer or an older format.
  """
  if not isinstance(sealed, dict) or type(sealed.get('format')) is not int:
    raise Damaged('it has no format number, so jaxlite did not write it')
  if sealed.get('sha256') != _hash(sealed['format'], sealed.get('content')):
    raise Damaged('its manifest has another hash than was written')
  if sealed['format'] > FORMAT:
    raise CheckpointError(
      f'checkpoint {where} has format {sealed["format"]}, this jaxlite reads {FORMAT}: install a newer jaxlite'
    )
  if sealed['format'] < FORMAT:
    reader = _WRITERS.get(sealed['format'], 'an older jaxlite')
    raise CheckpointError(
      f'checkpoint {where} has format {sealed["format"]}, this jaxlite reads {FORMAT}: finish that run with {reader}, '
      'which reads it, or start again with fresh=True or in another workdir'
    )
  try:
    content = dict(sealed['content'])
    rows = content.pop('leaves')
    leaves = [Leaf(*row[:3], tuple(row[3]), *row[4:6]) for row in rows]
    manifest = Manifest(**content, leaves=leaves, hashes={row[0]: dict(row[6]) for row in rows})
    _check(manifest)
  except (TypeError, ValueError, LookupError, AttributeError, RecursionError):  # sealed, but not by us
    raise Damaged('its manifest has another shape than was ever written') from None
  return manifest


def _check(manifest: Manifest) -> None:
  """Raises one of many errors where a manifest cannot be read as what it should be."""
  step, metric, loop, const, structure, leaves, hashes = manifest
  for leaf in leaves:
    check_leaf(leaf)
  paths = {leaf.path for leaf in leaves}
  known = structure is None or paths <= set(leaf_paths(structure))
  named = all(isinstance(one, str) for digests in hashes.values() for pair in digests.items() for one in pair)
  plain = type(step) is int and step >= 0 and isinstance(loop, dict) and isinstance(const, str | None)
  if not (known and named and plain and (metric is None or type(metric) in (int, float))):
    raise ValueError


def _hash(number: Any, content: Any) -> str:
  return hashlib.sha256(json.dumps([number, content], sort_keys=True).encode()).hexdigest()
