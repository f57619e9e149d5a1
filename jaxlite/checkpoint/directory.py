"""The folder of checkpoints as names: which stand there, in what order, and how one is taken away.

A step saved again gets the next generation (`00000100.1`), so nothing is ever overwritten and a kill between
two file operations finds either the old checkpoint or the new one. Nothing here reads a checkpoint.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import jax

_STEP = re.compile(r'(\d{8,})(?:\.(\d+))?')
_CONST = re.compile(r'const-[0-9a-f]{16}(\.\d+)?')
_LEFTOVER = re.compile(rf'({_STEP.pattern}|{_CONST.pattern})\.(orbax-checkpoint-tmp.*|deleted)')
_COPIES = 2  # of the constants: every checkpoint of a run needs them, and one flipped bit must not cost the run


class Entry(NamedTuple):
  """A committed checkpoint.

  Attributes:
    step: its step.
    generation: how many saves of this step came before it.
  """

  step: int
  generation: int

  @property
  def name(self) -> str:
    """The name of its folder.

    >>> Entry(100, 0).name, Entry(100, 1).name
    ('00000100', '00000100.1')
    """
    return f'{self.step:08d}' + (f'.{self.generation}' if self.generation else '')


def entries(folder: Path) -> list[Entry]:
  """Returns the checkpoints of a folder, oldest step first; none where there is no folder."""
  try:
    names = os.listdir(folder)
  except (FileNotFoundError, NotADirectoryError):
    return []
  matches = [match for match in map(_STEP.fullmatch, names) if match]
  return sorted(Entry(int(match[1]), int(match[2] or 0)) for match in matches)


def next_entry(folder: Path, step: int) -> Entry:
  """Returns the name under which a step is saved now.

  >>> next_entry(Path('nowhere'), 7).name
  '00000007'
  """
  return Entry(step, max((entry.generation + 1 for entry in entries(folder) if entry.step == step), default=0))


def const_paths(folder: Path, whole: str) -> list[Path]:
  """Returns where the copies of the constants of a given hash stand.

  >>> [path.name for path in const_paths(Path('.'), 64 * 'a')]
  ['const-aaaaaaaaaaaaaaaa', 'const-aaaaaaaaaaaaaaaa.1']
  """
  return [folder / (f'const-{whole[:16]}' + (f'.{copy}' if copy else '')) for copy in range(_COPIES)]


def remove(path: Path) -> None:
  """Takes a checkpoint out of sight first: a kill in between leaves no half checkpoint under its name."""
  if jax.process_index() == 0:
    hidden = path.with_name(path.name + '.deleted')
    _delete(hidden)
    path.rename(hidden)
    _delete(hidden)


def remove_other_constants(folder: Path, needed: Collection[str]) -> None:
  """Removes the constants that no checkpoint needs any more.

  Args:
    folder: the folder of checkpoints.
    needed: the hashes of those that are.
  """
  kept = {path for whole in needed for path in const_paths(folder, whole)}
  for path in folder.iterdir():
    if _CONST.fullmatch(path.name) and path not in kept:
      remove(path)


def remove_leftovers(folder: Path) -> None:
  """Removes what a killed save or removal left. Only the one writer of a folder may."""
  if jax.process_index() == 0:
    for name in os.listdir(folder):
      if _LEFTOVER.fullmatch(name):
        _delete(folder / name)


def adopt(source: Path, target: Path) -> list[Entry]:
  """Copies what is newer in one folder of checkpoints than all in another into that, with what it needs.

  Args:
    source: the folder to copy from; stays as it is.
    target: the folder to copy to; made where it is missing. Only its one writer may.

  Returns:
    What was copied, oldest step first; none where nothing is newer.

  Raises:
    OSError: it cannot be written; what was copied by then stands whole, and nothing else is left.
  """
  newest = max((entry.step for entry in entries(target)), default=-1)
  found = [entry for entry in entries(source) if entry.step > newest]
  if found:
    target.mkdir(parents=True, exist_ok=True)
    constants = [name for name in os.listdir(source) if _CONST.fullmatch(name)]
    for name in [*constants, *(entry.name for entry in found)]:
      if not (target / name).exists():
        part = target / f'{name}.orbax-checkpoint-tmp-adopted'  # which `remove_leftovers` knows
        _delete(part)
        try:
          shutil.copytree(source / name, part)
          part.rename(target / name)
        finally:
          _delete(part)  # half of it would keep a full disk full
  return found


def _delete(path: Path) -> None:
  if path.is_dir():
    shutil.rmtree(path, ignore_errors=True)
  else:
    path.unlink(missing_ok=True)
