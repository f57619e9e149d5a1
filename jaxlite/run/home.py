"""Where a run writes: its folder or, while that is out of reach, a spill on this machine's own disk.

A mounted folder (Google Drive in a notebook, NFS, a USB disk) may come loose under a run. The run goes on: what it
would save there it saves in a spill, says so, and takes it back as soon as the folder is there again. A spill that a
killed run left is found by the next start (`spills.py`). Never is anything
written into the empty folder that a mount leaves: that would look like a save, and the mount could not come back.

A folder that was removed is no case of this: it is made again at the next save, as it always was.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxlite.checkpoint import CheckpointError, Checkpoints
from jaxlite.checkpoint.directory import entries, remove, remove_leftovers
from jaxlite.checkpoint.manifest import Damaged
from jaxlite.checkpoint.storage import read_entry, reason
from jaxlite.host.files import comes_loose, own_folder, read_json
from jaxlite.host.sealed import RUN
from jaxlite.run import spills
from jaxlite.run.workdir import WorkdirError, is_held, lock

PATIENCE = 600.0  # seconds for which a run that has ended waits for its folder
_LOOKS = 1.0  # seconds between two looks

Say = Callable[[str], None]
Work = Callable[[Path, Checkpoints, bool], None]  # (folder, its checkpoints, whether to wait) -> writes what a save is


class Home:
  """The folder of a run that is under way, its checkpoints, and the spill that stands in for them.

  Attributes:
    folder: of the run.
    saves: its checkpoints.
    why: what is in the way, as it was when somebody last asked; '' where nothing is.
    say: prints a line.
  """

  def __init__(self, folder: Path, run: str, *, keep: int, say: Say):
    """Looks at the folder, which is there.

    Args:
      folder: of the run.
      run: its id.
      keep: how many of the latest checkpoints to keep, beside the best.
      say: prints a line.
    """
    self.folder, self.why = folder, ''
    self.saves = Checkpoints(folder / 'checkpoints', keep=keep, run=run, log=say, there=self._reachable)
    self._run, self._keep, self.say = run, keep, say
    self._closing = contextlib.ExitStack()
    self._device, self._handle = 0, -1
    self._above: dict[Path, tuple[int, int]] = {}  # the folders that it lies in, below the root of its mount
    self._spill: Path | None = None  # while there is one
    self._spilled: Checkpoints | None = None
    self._told = ''
    self._given_up = False  # the folder is made anew where it was
    self._remember()

  def __enter__(self) -> Home:
    return self

  def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
    self._let_go()
    with self._closing:
      self.saves.__exit__(kind, error, trace)

  def is_here(self) -> bool:
    """Tells whether the folder is within reach, or was removed and may be made again; `why` says what is in the way."""
    self.why = '' if self._given_up else self._in_the_way()
    return not self.why

  def _reachable(self) -> bool:
    return self._given_up or not self._in_the_way()

  def look(self) -> None:
    """Says it at once when the folder has gone out of reach; costs a question or two to the system."""
    if not self.is_here():
      self._tell(self.why)

  def _tell(self, why: str) -> None:
    if not self._told:
      self.say(f'{self.folder} is out of reach ({why}): training goes on, and this machine keeps what it saves')
    self._told = why

  @property
  def is_away(self) -> bool:
    """True while the newest save lies in a spill."""
    return self._spill is not None

  def where(self) -> str:
    """Where the newest save lies, in words."""
    return f'saved in {self._spill}, as {self.folder} is out of reach' if self.is_away else 'saved'

  def holds(self, step: int) -> bool:
    """Tells whether a checkpoint of a step is on disk, or may be, out of reach."""
    if self._spilled is None:
      return self.saves.holds(step)
    return not self._given_up or self.saves.holds(step) or self._spilled.holds(step)

  def write(self, work: Work, *, wait: bool = False) -> None:
    """Saves in the folder, or in the spill where that cannot be.

    Args:
      work: writes a save; called again for another place where the first fails.
      wait: return only when it is on disk.

    Raises:
      OSError: it cannot be written, and the folder is within reach.
      CheckpointError: likewise.
    """
    failed: Exception | None = None
    for _ in range(2):  # the save before may be what failed, and not this one
      if not self.is_here() or ((failed is not None or self.is_away) and not self._takes_files()):
        break
      try:
        back = self._spill is not None
        if back and not self._bring_back():
          break
        if not back and not self._stands():
          self.folder.mkdir(parents=True, exist_ok=True)  # it was removed
          self._claim()
        work(self.folder, self.saves, wait or back)
        self._come_home()
        return
      except (OSError, CheckpointError) as error:
        if not comes_loose(error) and self.is_here():
          raise
        failed = error
    why = self.why or ' '.join(str(failed).split())[:200]
    self._write_aside(work, why, wait)

  def settle(self, save: Callable[[], None], stop: Callable[[], bool]) -> bool:
    """Waits at the end of a run until the folder is back, for at most `PATIENCE` seconds.

    Args:
      save: saves once more, by way of `write`.
      stop: () -> whether somebody asked the run to leave.

    Returns:
      Whether all lies in the folder now.
    """
    if not self.is_away:
      return True
    if self._is_anothers():
      return False
    if not self._may_be_mounted():  # it was renamed, say: what nobody brought back by now is not waited for
      self._given_up = True
      save()
      self._given_up = False
      return not self.is_away
    self.say(
      f'the run has ended, and {self.folder} is still out of reach ({self.why}): waiting for it, at most '
      f'{PATIENCE / 60:.0f} minutes; mount it again, or interrupt: all is {self.where()}'
    )
    end = time.monotonic() + PATIENCE
    while self.is_away and time.monotonic() < end and not stop():
      time.sleep(_LOOKS)
      if self.is_here():
        save()
    return not self.is_away

  def left(self) -> str:
    """What is to be done about a run whose folder did not come back, in one line."""
    return (
      f'{self.folder} is out of reach ({self.why or self._told}), and nothing could be written there; the whole run is '
      f'kept in {self._spill}: bring the folder back and run the same again, which takes it from there, or copy that '
      'folder and give the copy as another workdir'
    )

  def _in_the_way(self) -> str:
    try:
      found = os.stat(self.folder)
    except (FileNotFoundError, NotADirectoryError):
      return '' if self._is_removed() else 'it was moved, or what it lies on was unmounted'
    except OSError as error:
      return error.strerror or str(error)
    if self._is_same(found) or _bears(self.folder, self._run):
      return ''
    if self._is_anothers():
      return 'another run stands in its place'
    if self._is_removed():
      return ''
    return 'another folder stands in its place' if found.st_dev == self._device else 'what it lies on was unmounted'

  def _takes_files(self) -> bool:
    """Whether a file can be made in the folder: Orbax would try for a minute."""
    try:
      if self.folder.exists() or not self._given_up:
        with tempfile.TemporaryFile(dir=self.folder):
          pass
    except FileNotFoundError:  # it was removed, and is made again
      return True
    except OSError as error:
      self.why = error.strerror or str(error)
      return False
    return True

  def _is_same(self, found: os.stat_result) -> bool:
    if self._handle < 0:  # a system that opens no folders
      return found.st_dev == self._device
    try:
      return os.path.samestat(found, os.fstat(self._handle))
    except OSError:
      return False

  def _is_removed(self) -> bool:
    try:
      return self._handle < 0 or (os.fstat(self._handle).st_nlink == 0 and not self._may_be_mounted())
    except OSError:
      return False

  def _is_anothers(self) -> bool:
    """Whether a run that somebody began in its place lives there: nothing is written between its files."""
    return (self.folder / 'config.json').exists() and not _bears(self.folder, self._run)

  def _may_be_mounted(self) -> bool:
    """Whether the folder lay on another disk than its place does now."""
    at = self.folder
    while at != at.parent:
      try:
        return os.stat(at).st_dev != self._device
      except FileNotFoundError:
        at = at.parent
      except OSError:
        return True
    return True

  def _remember(self) -> None:
    """Remembers the folder that is there now."""
    self._let_go()
    self._device = os.stat(self.folder).st_dev
    within = itertools.takewhile(lambda path: not os.path.ismount(path), self.folder.parents)
    self._above = {path: _identity(path) for path in within}
    with contextlib.suppress(OSError):
      self._handle = os.open(self.folder, os.O_RDONLY | getattr(os, 'O_DIRECTORY', 0))

  def _let_go(self) -> None:
    if self._handle >= 0:
      with contextlib.suppress(OSError):
        os.close(self._handle)
    self._handle = -1

  def _write_aside(self, work: Work, why: str, wait: bool) -> None:
    try:
      if self._spill is None:
        self._open_spill(why)
      assert self._spill is not None
      assert self._spilled is not None
      self.saves.hand_over(self._spilled)  # perhaps of the best model
      work(self._spill, self._spilled, wait)
    except (OSError, CheckpointError) as error:
      said = ' '.join(str(error).split())[:200]
      if wait:
        raise WorkdirError(
          f'{self.folder} is out of reach ({why}), and nothing can be kept on this machine either ({said}): bring it '
          'back or make room, then run the same again'
        ) from error
      self.say(f'nothing can be kept on this machine either ({said}): the state is in memory alone')

  def _open_spill(self, why: str) -> None:
    root = spills.root()
    own_folder(root)
    with contextlib.suppress(CheckpointError):
      self.saves.wait()
    self._tidy()
    spill = Path(tempfile.mkdtemp(prefix=f'{self._run}-', dir=root))
    self._closing.enter_context(lock(spill))
    spills.mark(spill, self.folder)
    self._spilled = Checkpoints(spill / 'checkpoints', keep=self._keep, run=self._run, log=self.say)
    self._closing.callback(self._close_spilled)
    self._spill = spill
    self._tell(why)
    if spills.in_memory(spill):
      self.say(
        f'note: {root} lies in memory (tmpfs): what is saved there takes of it and is lost when this machine stops; '
        'TMPDIR=, before the start, names a folder on a disk'
      )

  def _tidy(self) -> None:
    """A save that was under way makes folders where its own are gone: a mount would not come back over them."""
    at = self.folder / 'checkpoints'
    with contextlib.suppress(OSError, Damaged):
      if not self.folder.exists() or _bears(self.folder, self._run):
        return
      remove_leftovers(at)
      failed = self.saves.failed[1].step if self.saves.failed else -1
      for entry in entries(at):
        if entry.step == failed and read_entry(at, entry, self._run):
          remove(at / entry.name)
      for path in (at, self.folder, *self._above):
        if self._above.get(path) == _identity(path):
          break
        path.rmdir()  # an empty one

  def _close_spilled(self) -> None:
    if self._spilled is not None:
      try:
        self._spilled.close()
      except CheckpointError as error:
        self.say(str(error))

  def _bring_back(self) -> bool:
    """Copies what the spill holds into the folder that is there again; tells whether there was room for it."""
    assert self._spill is not None
    assert self._spilled is not None
    with contextlib.suppress(CheckpointError):  # of the save before, which the one that follows stands for
      self._spilled.wait()
    self.folder.mkdir(exist_ok=True, parents=self._given_up)
    self._claim()
    try:
      spills.merge(self._spill, self.folder)
    except OSError as error:
      self.why = reason(error)
      if self._told != self.why:
        self.say(f'{self.folder} is back and cannot take what was saved meanwhile ({self.why}): it stays where it is')
      self._told = self.why
    return not self.why

  def _stands(self) -> bool:
    """Whether the folder that is remembered is the one that is there."""
    try:
      return self._is_same(os.stat(self.folder))
    except FileNotFoundError:
      return False

  def _claim(self) -> None:
    """Locks a folder that was made anew, or that came back by a mount which has forgotten who held it."""
    try:
      self._closing.enter_context(lock(self.folder))
    except WorkdirError as error:
      if not is_held(self.folder):  # by this run, where it is the very folder that was moved
        raise OSError(errno.EHOSTUNREACH, str(error), str(self.folder)) from error

  def _come_home(self) -> None:
    """After a save in the folder: what stood in for it goes."""
    told, self._told = self._told, ''
    if not self._is_same(os.stat(self.folder)):
      self._remember()
    if self._spill is not None:
      self._close_spilled()
      shutil.rmtree(self._spill, ignore_errors=True)
      self._spill = self._spilled = None
    if told:
      self.say(f'{self.folder} is {"made anew" if self._given_up else "back"}: all is saved there')


def _identity(path: Path) -> tuple[int, int]:
  found = os.stat(path)
  return found.st_dev, found.st_ino


def _bears(folder: Path, run: str) -> bool:
  """Whether a folder is that of a run, as its config says, which is written first and not by Orbax."""
  try:
    return bool(read_json(folder / 'config.json').get(RUN) == run)
  except (OSError, ValueError, AttributeError):
    return False
