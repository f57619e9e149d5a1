"""Moving an old run out of the way of a new one, and nothing but a run: `--fresh` may stand beside a wrong folder."""

from __future__ import annotations

import contextlib
from pathlib import Path

from jaxlite.run.workdir import WorkdirError, lock

_SIGNS = ('.lock', 'checkpoints', 'metrics.jsonl', 'result.json', 'study.json', 'report.html')  # of a run, or a study


def set_aside(folder: Path) -> Path | None:
  """Renames a run's folder out of the way.

  Args:
    folder: of one run, of several, or of a study.

  Returns:
    The new name; None where there was nothing.

  Raises:
    WorkdirError: another process is at work in it, it holds no run but something else, it is where the user or this
      process lives, or the system does not let it be renamed (a mount).
  """
  if not folder.exists():
    return None
  linked = folder.is_symlink()
  folder = folder.resolve() if linked else folder  # a workdir that is itself a link stays one: to another disk, say
  _check_movable(folder)
  with lock(folder):
    number = 1
    while (aside := folder.with_name(f'{folder.name}.old{number}')).exists():
      number += 1
    try:
      folder.rename(aside)
    except OSError as error:
      raise WorkdirError(
        f'{folder} cannot be renamed to {aside} ({error.strerror or error}): is something mounted there? Move what it '
        'holds yourself, or give another workdir'
      ) from error
    if linked:
      folder.mkdir()
  return aside


def _check_movable(folder: Path) -> None:
  """Raises where a folder is not for runs alone: a project, a home."""
  for what, find in (('is where this process stands, or holds that', Path.cwd), ('is a home, or holds one', Path.home)):
    with contextlib.suppress(OSError, RuntimeError):  # a folder that was removed; no home is known
      lies = find().resolve()
      if folder.resolve() in (lies, *lies.parents):
        raise WorkdirError(
          f'fresh=True moves an old run aside, and {folder} {what}: start from another folder, or give another workdir'
        )
  inside = [folder, *(one for one in folder.iterdir() if one.is_dir())]
  if any(folder.iterdir()) and not any((one / name).exists() for one in inside for name in _SIGNS):
    raise WorkdirError(
      f'fresh=True moves an old run aside, and {folder} holds none, but other files: give another workdir'
    )
