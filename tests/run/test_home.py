"""Laws of a folder that comes loose under a run: training goes on, nothing is lost, nothing is pretended."""

import errno
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

import jaxlite as jl
import unoptimized
from jaxlite.host.files import write_text
from jaxlite.run import home, loop, records, workdir
from jaxlite.run.spills import in_memory, taken_up
from jaxlite.run.workdir import WorkdirError
from loops import X, evidence, leaves, points, run

pytestmark = pytest.mark.unoptimized

STEPS = {'steps': 12, 'machine__steps_per_dispatch': 1, 'log__tensorboard': True}


@pytest.fixture(autouse=True)
def own_spills(tmp_path, monkeypatch):
  """Spills of a test are its own."""
  monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path))
  monkeypatch.setattr(home, '_LOOKS', 0.05)


@pytest.fixture(scope='module')
def straight(tmp_path_factory):
  folder = tmp_path_factory.mktemp('straight') / 'run'
  run(folder, **STEPS)
  return evidence(folder)


def spills(tmp_path):
  return sorted(tmp_path.glob('jaxlite-spill-*/*'))


def acting(monkeypatch, **acts):
  """Does something before the batch of a step is made: `at_5=...`."""
  real = loop.datasets.batch_at
  left = {int(name.removeprefix('at_')): act for name, act in acts.items()}

  def batch_at(split, size, seed, at):
    if act := left.pop(at, None):
      act()
    return real(split, size, seed, at)

  monkeypatch.setattr(loop.datasets, 'batch_at', batch_at)


def killed_while_away(outer, away, monkeypatch, **kwargs):
  """A run whose folder is moved away at step 5, and that ends as a fault would at step 11."""

  def ends():
    raise MemoryError('the machine is gone')

  with monkeypatch.context() as patch:
    acting(patch, at_5=lambda: outer.rename(away), at_11=ends)
    with pytest.raises(MemoryError):
      run(outer / 'run', **STEPS, **kwargs)


@pytest.mark.parametrize('back', [9, pytest.param(12, marks=pytest.mark.slow)], ids=['in the run', 'at its end'])
def test_a_folder_that_goes_and_comes_back_holds_the_run_as_if_it_had_stayed(back, straight, tmp_path, monkeypatch):
  outer, away, said, seen = tmp_path / 'mount', tmp_path / 'elsewhere', [], []

  def returns():
    seen.append((outer.exists(), len(spills(tmp_path))))
    away.rename(outer)

  with monkeypatch.context() as patch:
    if back == 12:  # nothing asks for a batch any more: a mount that comes back while the run waits
      patch.setattr(home.Home, '_may_be_mounted', lambda self: True)
      patch.setattr(home.time, 'sleep', lambda seconds: returns() if away.exists() else None)
    acting(patch, at_5=lambda: outer.rename(away), **({'at_9': returns} if back == 9 else {}))
    result = run(outer / 'run', say=said.append, **STEPS)
  assert seen == [(False, 1)]  # nobody made a folder in its place meanwhile
  assert evidence(outer / 'run') == straight
  assert spills(tmp_path) == []
  lines = [line for line in said if str(outer / 'run') in line and ('reach' in line or 'back' in line)]
  assert [('out of reach' in line, 'is back' in line) for line in lines[:1] + lines[-1:]] == [
    (True, False),
    (False, True),
  ]
  assert len(lines) == 2 + (back == 12), said
  assert result.metrics == straight[2]
  assert len(list((outer / 'run' / 'tensorboard').iterdir())) == 1


@pytest.mark.skipif(not in_memory(Path('/dev/shm')), reason='no folder of this system is known to lie in memory')
def test_a_spill_in_memory_is_told(tmp_path, monkeypatch):
  assert not in_memory(Path('/'))
  said = []
  with tempfile.TemporaryDirectory(dir='/dev/shm') as memory, monkeypatch.context() as patch:
    patch.setattr(tempfile, 'tempdir', memory)
    killed_while_away(tmp_path / 'mount', tmp_path / 'elsewhere', patch, say=said.append)
  assert any('lies in memory (tmpfs)' in line and 'lost when this machine stops' in line for line in said), said


@pytest.mark.slow
def test_a_folder_that_never_comes_back_costs_nothing_either(straight, tmp_path, monkeypatch):
  outer, away, said = tmp_path / 'mount', tmp_path / 'elsewhere', []
  with monkeypatch.context() as patch:
    patch.setattr(home.Home, '_may_be_mounted', lambda self: True)
    patch.setattr(home, 'PATIENCE', 0.1)
    acting(patch, at_5=lambda: outer.rename(away))
    with pytest.raises(ValueError, match=r'out of reach .* nothing could be written there; the whole run is kept in'):
      run(outer / 'run', say=said.append, **STEPS)
  assert not outer.exists()
  (spill,) = spills(tmp_path)
  copy = tmp_path / 'copy'
  shutil.copytree(spill, copy)  # as the line says: it is a run of its own
  run(copy, **STEPS)
  assert (leaves(copy), points(copy)) == straight[:2]
  away.rename(outer)  # and here it is
  said.clear()
  run(outer / 'run', say=said.append, **STEPS)
  assert evidence(outer / 'run') == straight
  assert any(f'step 12 is taken from {spill}' in line for line in said)
  assert spills(tmp_path) == []


@pytest.mark.sampled(1)
@pytest.mark.parametrize('where', ['the folder that is back', 'its new name', 'an empty place'])
def test_a_run_that_was_killed_while_its_folder_was_away_goes_on_from_the_spill(where, straight, tmp_path, monkeypatch):
  outer, away, said = tmp_path / 'mount', tmp_path / 'elsewhere', []
  killed_while_away(outer, away, monkeypatch)
  assert len(spills(tmp_path)) == 1
  folder = outer / 'run' if where != 'its new name' else away / 'run'
  if where == 'the folder that is back':
    away.rename(outer)
  run(folder, say=said.append, **STEPS)
  assert any('is taken from' in line for line in said)
  assert 'resumed at step 10 of 12' in said or 'resumed at step 8 of 12' in said
  assert (leaves(folder), points(folder)) == straight[:2]
  assert spills(tmp_path) == []


@pytest.mark.slow
def test_who_starts_afresh_gets_nothing_of_the_old_run(tmp_path, monkeypatch):
  outer, away, said = tmp_path / 'mount', tmp_path / 'elsewhere', []
  killed_while_away(outer, away, monkeypatch)
  run(outer / 'run', fresh=True, say=said.append, **STEPS)
  assert not any('resumed' in line or 'taken' in line for line in said)
  assert spills(tmp_path) == []


@pytest.mark.slow
def test_an_interrupt_while_the_folder_is_away_says_where_the_run_lies(tmp_path, monkeypatch):
  import signal

  outer = tmp_path / 'mount'
  with monkeypatch.context() as patch:
    acting(patch, at_5=lambda: outer.rename(tmp_path / 'e'), at_7=lambda: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(loop.Preempted, match=r'at step 8 of 12; saved in .*spill.* is out of reach'):
      run(outer / 'run', **STEPS)
  assert len(spills(tmp_path)) == 1


def test_a_disk_that_answers_with_errors_is_out_of_reach_too(straight, tmp_path, monkeypatch):
  """EIO of everything that is asked of the folder by name, as a FUSE mount answers whose server is gone."""
  folder, said, loose = tmp_path / 'run', [], []

  def refusing(real):
    def call(path, *args, **kwargs):
      if loose and str(path).startswith(str(folder)):
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
      return real(path, *args, **kwargs)

    return call

  def breaks():
    while not (folder / 'checkpoints' / '00000004').exists():  # Orbax, interrupted, leaves warnings of its own
      time.sleep(0.05)
    time.sleep(0.5)
    loose.append(1)

  with monkeypatch.context() as patch:
    acting(patch, at_5=breaks, at_9=loose.clear)
    for name in ('open', 'mkdir', 'stat'):
      patch.setattr(os, name, refusing(getattr(os, name)))
    run(folder, say=said.append, **STEPS)
  assert evidence(folder) == straight
  assert any('out of reach' in line and 'Input/output error' in line for line in said), said
  assert spills(tmp_path) == []


@pytest.mark.parametrize('code', [errno.EROFS, errno.EACCES], ids=['read-only', 'ticket ran out'])
def test_a_folder_that_takes_no_more_files_is_stood_in_for(code, tmp_path, monkeypatch):
  """The folder is there and can be read; whatever is to be written is refused, for a while."""
  folder, real, refused, said = tmp_path / 'run', os.open, [], []

  def opens(path, flags, *args, **kwargs):
    if refused and str(path).startswith(str(folder)) and flags & (os.O_WRONLY | os.O_RDWR):
      raise OSError(code, os.strerror(code), str(path))
    return real(path, flags, *args, **kwargs)

  def work(where, saves, wait):
    held.append(place.holds(3))
    written.append(where)
    write_text(where / 'saved', str(len(written)))
    saves.save(len(written), {'w': X}, {}, wait=True)

  def half_copied(source, target):  # in the words of shutil, one for each file
    target.mkdir()
    raise shutil.Error([(str(source), str(target), f'[Errno 28] {os.strerror(errno.ENOSPC)}')] * 9)

  folder.mkdir()
  monkeypatch.setattr(os, 'open', opens)
  with home.Home(folder, 'abc', keep=2, say=said.append) as place:
    written, held = [], []
    place.write(work)
    refused.append(True)
    place.write(work)
    (spill,) = spills(tmp_path)
    assert place.is_away
    assert (spill / 'saved').read_text() == '3'
    place.write(work)  # and it is not tried there again, which may take minutes
    assert written == [folder, folder, spill, spill]
    assert held[3]
    with pytest.raises(WorkdirError, match=rf'a run of .* is under way, .* keeps in {spill}'):
      taken_up(folder, said.append)  # by another process, say
    assert not place.settle(lambda: place.write(work), lambda: False)  # nobody waits: the disk is the same
    assert os.strerror(code) in place.left()
    assert held[4]  # the best so far, say: it lies in the spill
    refused.clear()
    with monkeypatch.context() as patch:
      patch.setattr(shutil, 'copytree', half_copied)
      place.write(work)
    assert place.is_away
    assert not list(folder.rglob('*adopted*'))
    place.write(work)
    assert not place.is_away
  assert [os.strerror(code) in said[0], 'No space' in said[1], 'is back: all' in said[-1]] == [True] * 3
  assert [len(said), '\n' in ''.join(said), max(map(len, said)) < 300] == [3, False, True]
  assert spills(tmp_path) == []


def test_a_run_whose_folder_was_removed_writes_into_no_other_run(tmp_path):
  folder, said = tmp_path / 'run', []

  def work(where, saves, wait):
    write_text(where / 'config.json', '{"run": "abc"}')

  folder.mkdir()
  with home.Home(folder, 'abc', keep=2, say=said.append) as place:
    place.write(work)
    shutil.rmtree(folder)
    place.write(work)  # made again, and again its own
    with pytest.raises(WorkdirError, match='another run has the workdir'), workdir.lock(folder):
      pass
    shutil.rmtree(folder)
    folder.mkdir()
    with workdir.lock(folder):  # somebody begins anew, and the old process lives on
      (folder / '.lock').write_text('{"pid": 1, "host": "elsewhere"}')
      place.write(work)
      assert place.is_away
      assert [path.name for path in folder.iterdir()] == ['.lock']
      write_text(folder / 'config.json', '{"run": "other"}')
    assert not place.settle(lambda: place.write(work), lambda: False)
    assert 'another run' in place.left()
  assert (folder / 'config.json').read_text() == '{"run": "other"}'


def test_a_full_disk_is_no_folder_out_of_reach(tmp_path, monkeypatch):
  def full(self, data):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  def fills():
    monkeypatch.setattr(records.Records, 'keep', full)

  acting(monkeypatch, at_5=fills)
  with pytest.raises(OSError, match='No space'):
    run(tmp_path / 'run', **STEPS)
  assert spills(tmp_path) == []


MOUNTED = """
import ctypes, os, sys, threading, time
from pathlib import Path
sys.path[:0] = ['tests']
kind, folder = sys.argv[1], Path(sys.argv[2])
libc = ctypes.CDLL(None, use_errno=True)

def system(call):
  if call: raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

def mount(source, kind, data=b''):
  system(libc.mount(source, os.fsencode(folder), kind, 0, data))

def unmount():
  system(libc.umount2(os.fsencode(folder), 2))  # lazily, as what is torn off

def hide():  # another file system over it, empty or dead
  if kind == 'empty':
    mount(b'none', b'tmpfs')
  else:
    handle = os.open('/dev/fuse', os.O_RDWR)
    mount(b'dead', b'fuse', f'fd={handle},rootmode=40000,user_id=0,group_id=0'.encode())
    os.close(handle)  # nobody answers any more: ENOTCONN

from loops import run
from jaxlite.run import home, loop
home._LOOKS = 0.05
real, acts = loop.datasets.batch_at, {5: hide, 9: unmount}
if kind.startswith('late'):
  kind = kind.split()[1]
  acts.pop(9)
  sleep = time.sleep
  home.time.sleep = lambda seconds: (sleep(seconds), acts.pop(0)() if 0 in acts else None)
  acts[0] = unmount
def batch_at(split, size, seed, at):
  if at in acts and at: acts.pop(at)()
  return real(split, size, seed, at)
loop.datasets.batch_at = batch_at
run(folder / 'run', say=print, steps=12, machine__steps_per_dispatch=1, log__tensorboard=True)
"""


def can_mount():
  """Whether this system lets a process have mounts of its own."""
  try:
    asked = ['unshare', '-rm', 'sh', '-c', 'mount -t tmpfs none /mnt']
    return subprocess.run(asked, capture_output=True, check=False).returncode == 0
  except OSError:
    return False


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['empty', 'dead', 'late empty', 'late dead'])
def test_a_real_mount_that_comes_loose_and_returns(kind, straight, tmp_path):
  if not can_mount():
    pytest.skip('this system lets nobody mount')
  if 'dead' in kind and not os.access('/dev/fuse', os.R_OK | os.W_OK):
    pytest.skip('this system has no FUSE')
  folder = tmp_path / 'drive'
  folder.mkdir()
  done = subprocess.run(
    ['unshare', '-rm', sys.executable, '-c', MOUNTED, kind, str(folder)],
    capture_output=True,
    text=True,
    timeout=300,
    check=False,
    env={
      **os.environ,
      'PYTHONPATH': str(Path(jl.__file__).parents[1]),
      'TMPDIR': str(tmp_path),
      **unoptimized.environment(),
    },
  )
  assert done.returncode == 0, done.stderr
  reason = 'Transport endpoint is not connected' if 'dead' in kind else 'unmounted'
  assert re.search(rf'is out of reach \([^)]*{reason}\)', done.stdout), done.stdout
  assert 'is back: all is saved there' in done.stdout
  assert [path.name for path in folder.iterdir()] == ['run']
  assert (leaves(folder / 'run'), points(folder / 'run')) == straight[:2]
