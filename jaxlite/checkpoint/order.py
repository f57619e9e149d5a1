"""Which checkpoint is tried first: the newest, the best, or that of a step."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jaxlite.checkpoint.directory import Entry
from jaxlite.checkpoint.manifest import CheckpointError


def ordered(
  entries: Sequence[Entry],
  which: str | int,
  rank: Callable[[Entry], float],
  folder: Path,
  log: Callable[[str], Any],
) -> Sequence[Entry]:
  """Returns checkpoints in the order in which they are tried.

  Args:
    entries: those of a folder, oldest step first.
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
  newest = entries[::-1]
  if which == 'latest':
    return newest
  if which == 'best':
    scored = sorted((entry for entry in entries if math.isfinite(rank(entry))), key=rank, reverse=True)
    unscored = [entry for entry in newest if rank(entry) == -math.inf]
    if not scored:
      log(f'no checkpoint in {folder} has a metric: taking the latest')
    # An unreadable one may have been the best: it comes first, so that its loss is said.
    return [*(entry for entry in newest if rank(entry) == math.inf), *scored, *unscored]
  if isinstance(which, bool) or not hasattr(which, '__index__'):
    raise ValueError(f"which checkpoint is 'latest', 'best' or a step, got {which!r}")
  chosen = [entry for entry in newest if entry.step == which]
  if not chosen:
    steps = sorted({entry.step for entry in entries})
    raise CheckpointError(f'no checkpoint of step {which} in {folder}; there are: {steps}')
  return chosen
