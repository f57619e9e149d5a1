"""Spills on this machine's own disk: what a run saved while its folder was out of reach, as later starts find it.

A spill is found by the id of its run, or by the folder that it stands for. Who writes one is `home.py`; the one run
that does holds its lock.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from jaxlite.checkpoint.directory import adopt, entries
from jaxlite.checkpoint.storage import reason
from jaxlite.deployment.run_id import run_of
from jaxlite.host.files import own_folder, read_file, write_text
from jaxlite.run.records import CHUNKS
from jaxlite.run.workdir import WorkdirError, lock

_OF = 'workdir.txt'  # in a spill: the folder that it stands for


def root() -> Path:
  """Returns the folder of this user's spills."""
  return Path(tempfile.gettempdir()) / f'jaxlite-spill-{os.getuid() if hasattr(os, "getuid") else "user"}'


def in_memory(folder: Path) -> bool:
  """Tells whether a folder lies in memory (tmpfs), where it counts as memory and is lost when the machine stops.

  >>> in_memory(Path('/no such folder'))
  False
  """
  try:
    where, lines = os.path.realpath(folder), Path('/proc/self/mounts').read_text(errors='replace').splitlines()
  except OSError:  # not Linux, or nothing is told
    return False
  mounts = [line.split(' ')[1:3] for line in lines if line.count(' ') > 2]
  over = [(at, kind) for at, kind in mounts if where == at or where.startswith(at.rstrip('/') + '/')]
  return max(over, key=lambda mount: len(mount[0]), default=('', ''))[1] in ('tmpfs', 'ramfs')


def mark(spill: Path, folder: Path) -> None:
  """Notes in a spill for which folder it stands."""
  write_text(spill / _OF, str(folder))


def merge(spill: Path, folder: Path) -> None:
  """Copies into a folder what is newer in a spill, and the history of its record.

  Raises:
    OSError: it cannot be written; what was copied by then stands whole.
  """
  adopt(spill / 'checkpoints', folder / 'checkpoints')
  history = spill / CHUNKS
  if history.is_dir():
    (folder / CHUNKS).mkdir(parents=True, exist_ok=True)
    for chunk in history.iterdir():
      if not (folder / CHUNKS / chunk.name).exists():
        shutil.copy2(chunk, folder / CHUNKS / chunk.name)


def taken_up(folder: Path, say: Callable[[str], None]) -> None:
  """Copies into a folder what a run of it left in a spill when it was killed, if that is newer.

  Args:
    folder: of the run; exists, and is locked.
    say: is given a line where something was found.

  Raises:
    WorkdirError: it cannot be copied; or the run is under way, its folder out of its reach.
  """
  for spill in _spills_of(folder):
    newest = max((entry.step for entry in entries(folder / 'checkpoints')), default=-1)
    steps = [entry.step for entry in entries(spill / 'checkpoints')]
    if steps and steps[-1] > newest:
      try:
        merge(spill, folder)
      except OSError as error:
        raise WorkdirError(
          f'{folder} cannot take step {steps[-1]} of its run, which lies in {spill} ({reason(error)}): make room or '
          'mend that, then run the same again'
        ) from error
      say(f'{folder} was out of reach when this run was last saved: step {steps[-1]} is taken from {spill}')
    elif not _stands_for(spill, folder):  # this folder is a copy, and the run's own may need it
      continue
    shutil.rmtree(spill, ignore_errors=True)


def forgotten(folder: Path, say: Callable[[str], None]) -> None:
  """Removes what a run left in a spill, since it starts afresh."""
  for spill in _spills_of(folder):
    if not _stands_for(spill, folder):
      continue
    shutil.rmtree(spill, ignore_errors=True)
    say(f'removed {spill}, which the old run had left')


def _spills_of(folder: Path) -> Iterator[Path]:
  """The spills of the run that a folder holds, or, where it holds none, of one that was to be there; each locked."""
  try:
    if not root().exists():
      return
    own_folder(root())
    found = sorted(root().iterdir())
  except OSError:  # another user's
    return
  run = run_of(folder) if found else ''
  for spill in found:
    with contextlib.suppress(OSError, UnicodeDecodeError):
      if spill.name.split('-')[0] == run or (not run and _stands_for(spill, folder)):
        try:
          with lock(spill):
            yield spill
        except WorkdirError as error:  # a run that is under way keeps its own
          if not isinstance(error.__cause__, OSError) and _stands_for(spill, folder):
            raise WorkdirError(
              f'a run of {folder} is under way, which is out of its reach and which it keeps in {spill}: wait for it, '
              'end it, or give another workdir'
            ) from error


def _stands_for(spill: Path, folder: Path) -> bool:
  return read_file(spill / _OF).decode() == str(folder)
