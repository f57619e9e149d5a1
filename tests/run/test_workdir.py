"""A run lives in a folder that it can write, and alone."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from jaxlite.host.limits import disk_free
from jaxlite.run.workdir import WorkdirError, check_workdir, lock

ROOT = str(Path(__file__).resolve().parents[2])


@pytest.mark.parametrize('path', ['gs://bucket/run', 's3://bucket', 'https://host/run', 'memory://x', '', 'a\0b'])
def test_what_is_no_local_folder_is_refused_in_one_line(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(WorkdirError, match='local folder') as caught:
    check_workdir(path)
  assert len(str(caught.value).splitlines()) == 1
  assert not list(tmp_path.iterdir())


def test_a_name_that_is_no_text_is_refused_before_anything_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
  """What a process in the locale C makes of a name with an umlaut: checkpoints could not be written there."""
  odd = tmp_path / os.fsdecode(b'r\xff')

  def refused(path: str | Path) -> None:
    with pytest.raises(WorkdirError, match=r'named in text.*PYTHONUTF8=1.*another workdir') as caught:
      check_workdir(path)
    assert len(str(caught.value).splitlines()) == 1
    assert str(caught.value).isascii()

  refused(odd)
  assert not list(tmp_path.iterdir())
  odd.mkdir()
  monkeypatch.chdir(odd)
  refused('runs/mine')  # its own name is text, and that of the folder above is not
  assert not list(odd.iterdir())


def test_where_this_process_stands_may_be_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
  (tmp_path / 'gone').mkdir()
  monkeypatch.chdir(tmp_path / 'gone')
  (tmp_path / 'gone').rmdir()
  with pytest.raises(WorkdirError, match=r"'runs/mine' lies .* was removed: go to another, or give a full path"):
    check_workdir('runs/mine')
  assert check_workdir(tmp_path / 'run') == tmp_path / 'run'
  assert disk_free('runs/mine') is None


def test_a_new_folder_is_made_and_left_empty(tmp_path: Path):
  assert check_workdir(tmp_path / 'a' / 'b') == tmp_path / 'a' / 'b'
  assert check_workdir(str(tmp_path / 'a' / 'b')).is_dir()
  assert not list((tmp_path / 'a' / 'b').iterdir())


def test_a_file_in_the_way_is_named(tmp_path: Path):
  (tmp_path / 'file').write_text('')
  for path in (tmp_path / 'file', tmp_path / 'file' / 'run'):
    with pytest.raises(WorkdirError, match=r'file.* cannot be written .*give another workdir'):
      check_workdir(path)


def test_a_read_only_folder_is_refused(tmp_path: Path):
  folder = tmp_path / 'run'
  folder.mkdir()
  folder.chmod(0o555)
  tmp_path.chmod(0o755)
  # Root writes anywhere: let a child give root up.
  script = f"""
import os, sys
from jaxlite.host.limits import disk_free
from jaxlite.run.workdir import check_workdir
if os.getuid() == 0:
  os.setuid(65534)
try:
  check_workdir({str(folder)!r})
except ValueError as error:
  print(error)
"""
  for parent in [*tmp_path.parents][:2]:
    if os.stat(parent).st_uid == os.getuid() and parent != Path('/tmp'):
      parent.chmod(0o755)
  done = subprocess.run(
    [sys.executable, '-c', script], env={**os.environ, 'PYTHONPATH': ROOT}, capture_output=True, text=True, check=True
  )
  assert 'cannot be written (Permission denied): give another workdir' in done.stdout
  assert len(done.stdout.splitlines()) == 1


_HOLD = """
import os, sys, time
from jaxlite.host.limits import disk_free
from jaxlite.run.workdir import lock
with lock(sys.argv[1]):
  if sys.argv[2:] == ['fork'] and os.fork() == 0:
    time.sleep(60)
    os._exit(0)
  print(os.getpid(), flush=True)
  time.sleep(60)
"""


def hold(folder: Path, *arguments: str) -> subprocess.Popen:
  process = subprocess.Popen(
    [sys.executable, '-c', _HOLD, str(folder), *arguments],
    env={**os.environ, 'PYTHONPATH': ROOT},
    stdout=subprocess.PIPE,
    text=True,
    start_new_session=True,
  )
  assert int(process.stdout.readline()) == process.pid
  return process


@pytest.mark.parametrize('end', [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_second_run_is_refused_until_the_first_dies_however_it_dies(end: signal.Signals, tmp_path: Path):
  with hold(tmp_path) as first:
    for _ in range(2):  # being refused does not take the lock away
      with pytest.raises(WorkdirError) as caught, lock(tmp_path):
        pass
      assert f'process {first.pid} on {socket.gethostname()}, since 2' in str(caught.value)
      assert len(str(caught.value).splitlines()) == 1
    first.send_signal(end)
    first.wait()
  with lock(tmp_path) as folder:
    assert folder == tmp_path


def test_the_same_process_cannot_hold_it_twice_and_can_hold_it_again(tmp_path: Path):
  with lock(tmp_path), pytest.raises(WorkdirError, match=f'process {os.getpid()} '), lock(tmp_path):
    pass
  with pytest.raises(KeyError), lock(tmp_path):
    raise KeyError
  with lock(tmp_path):
    pass


def test_an_orphan_that_keeps_the_lock_is_told_apart(tmp_path: Path):
  with hold(tmp_path, 'fork') as first:
    group = os.getpgid(first.pid)
    first.kill()
    first.wait()
    with pytest.raises(WorkdirError, match='that process is gone, but a child of it lives on'), lock(tmp_path):
      pass
    os.killpg(group, signal.SIGKILL)


def test_a_lock_file_that_cannot_be_opened_is_named(tmp_path: Path):
  (tmp_path / '.lock').mkdir()
  with pytest.raises(WorkdirError, match=r'\.lock cannot be opened \(Is a directory\)'), lock(tmp_path):
    pass


@pytest.mark.parametrize(
  'text',
  ['', '{', '[]', 'null', '{"pid": "x"}', '{"pid": [1]}', '{"pid": 999999999, "host": "elsewhere"}', '[' * 100_000],
  ids=range(8),
)
def test_garbage_in_the_file_does_not_matter_where_the_kernel_locks(text: str, tmp_path: Path):
  (tmp_path / '.lock').write_text(text)
  with lock(tmp_path):
    assert json.loads((tmp_path / '.lock').read_text())['pid'] == os.getpid()


def test_where_the_kernel_cannot_lock_the_file_is_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
  monkeypatch.setattr('jaxlite.run.workdir.fcntl', None)
  here = socket.gethostname()
  dead = subprocess.Popen([sys.executable, '-c', ''])
  dead.wait()
  for holder, free in (
    ('', True),
    ('garbage', True),
    (json.dumps({'pid': dead.pid, 'host': here, 'since': '?'}), True),
    (json.dumps({'pid': os.getppid(), 'host': here, 'since': '?'}), False),
    (json.dumps({'pid': dead.pid, 'host': 'elsewhere', 'since': '?'}), False),
  ):
    (tmp_path / '.lock').write_text(holder)
    if free:
      with lock(tmp_path), pytest.raises(WorkdirError, match=r'if it is gone, delete .*\.lock'), lock(tmp_path):
        pass
      assert (tmp_path / '.lock').read_text() == ''
    else:
      with pytest.raises(WorkdirError, match='another run has the workdir'), lock(tmp_path):
        pass
