"""Whose a folder is: every run has an id, drawn when it begins, which its checkpoints and sealed files bear.

A file or checkpoint of another run in its place looks sound by its own hash. What most of them bear is the run's.
"""

from __future__ import annotations

import collections
import contextlib
import secrets
from pathlib import Path

from jaxlite.checkpoint.storage import sound_manifests
from jaxlite.host.files import read_json
from jaxlite.host.sealed import RUN

BEARERS = ('config.json', 'task.json', 'program.json')  # beside the checkpoints


def draw() -> str:
  """Returns an id for a run that begins.

  >>> len(draw())
  16
  """
  return secrets.token_hex(8)


def run_of(folder: Path) -> str:
  """Returns the id of the run that a folder holds; '' where an older jaxlite began it, or where nothing is readable.

  Args:
    folder: of the run; nothing in it is changed.
  """
  found = [manifest.loop.get(RUN, '') for manifest in sound_manifests(folder / 'checkpoints')]
  for name in BEARERS:
    with contextlib.suppress(OSError, ValueError, AttributeError):
      found.append(read_json(folder / name).get(RUN, ''))
  votes = collections.Counter(one for one in found if isinstance(one, str))  # of equal ones the newest checkpoint's
  return votes.most_common(1)[0][0] if votes else ''
