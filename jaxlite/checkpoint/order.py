"""Which checkpoint is tried first: the newest, the best, or that of a step; and trying until one is sound."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from jaxlite.checkpoint.directory import Entry, entries
from jaxlite.checkpoint.manifest import CheckpointError, Damaged

_T = TypeVar('_T')
_LOOKS = 20  # at a folder in which a run under way saves


def ordered(
  found: Sequence[Entry],
  which: str | int,
  rank: Callable[[Entry], float],
  folder: Path,
  log: Callable[[str], Any],
) -> Sequence[Entry]:
  """Returns checkpoints in the order in which they are tried.

  Args:
    found: those of a folder, oldest step first.
    which: 'latest', 'best' or a step.
    rank: the metric of one; -inf where it has none, inf where that cannot be read.
    folder: that they stand in.
    log: is given a line where none has a metric, and the best was asked for.

  Raises:
    CheckpointError: there is none of that step.
    ValueError: `which` is something else.

  >>> ordered([Entry(1, 0), Entry(2, 0)], 'latest', lambda entry: 0.0, Path('.'), print)[0].step
  2
  """
  newest = found[::-1]
  if which == 'latest':
    return newest
  if which == 'best':
    scored = sorted((entry for entry in found if math.isfinite(rank(entry))), key=rank, reverse=True)
    unscored = [entry for entry in newest if rank(entry) == -math.inf]
    if not scored:
      log(f'no checkpoint in {folder} has a metric: taking the latest')
    # An unreadable one may have been the best: it comes first, so that its loss is said.
    return [*(entry for entry in newest if rank(entry) == math.inf), *scored, *unscored]
  if isinstance(which, bool) or not hasattr(which, '__index__'):
    raise ValueError(f"which checkpoint is 'latest', 'best' or a step, got {which!r}")
  chosen = [entry for entry in newest if entry.step == which]
  if not chosen:
    steps = sorted({entry.step for entry in found})
    raise CheckpointError(f'no checkpoint of step {which} in {folder}; there are: {steps}')
  return chosen


def first_sound(
  folder: Path,
  which: str | int,
  rank: Callable[[Entry], float],
  read: Callable[[Entry], _T],
  damaged: Callable[[Entry], Any],
  log: Callable[[str], Any],
) -> _T | None:
  """Returns what is read of the first checkpoint that is sound; None where there is none at all.

  A run that is under way removes what it no longer keeps: where one cannot be read and the folder has changed since it
  was looked at, it is looked at again, and nothing is called damaged.

  Args:
    folder: of the checkpoints.
    which: 'latest', 'best' or a step.
    rank: as for `ordered`.
    read: reads one, or raises Damaged.
    damaged: is told of each that is.
    log: is given a line for each that is.

  Raises:
    CheckpointError: none is sound, or there is none of that step.
  """
  failed: list[str] = []
  for look in range(_LOOKS):
    found, failed, moved = entries(folder), [], False
    if not found:
      return None
    for entry in ordered(found, which, rank, folder, log):
      try:
        return read(entry)
      except Damaged as damage:
        if moved := look + 1 < _LOOKS and entries(folder) != found:
          break
        damaged(entry)
        failed.append(f'{entry.name} ({damage})')
        log(f'checkpoint {folder / entry.name} is damaged, going back to the one before: {damage}')
    if not moved:
      break
  raise CheckpointError(
    f'no checkpoint in {folder} can be read: {"; ".join(failed)}: '
    'put back a copy, or move the folder aside to start afresh'
  )
