"""Files are written whole or not at all, by however many at once; one rule says where a user's caches lie."""

import concurrent.futures
import os
import pathlib
import time

import pytest

from jaxlite.data import cache
from jaxlite.host import files, machine


def test_a_writer_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
  files.write_text(tmp_path / 'a', 'ä old')

  def fail():
    with files.whole_file(tmp_path / 'a') as part:
      part.write_text('half of')
      raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    fail()
  assert (tmp_path / 'a').read_bytes() == 'ä old'.encode()
  assert os.listdir(tmp_path) == ['a']


def test_of_many_writers_at_once_each_reader_sees_one_whole(tmp_path):
  path, wanted = tmp_path / 'a', [bytes([number]) * 50_000 for number in range(8)]
  files.write_bytes(path, wanted[0])

  def write(number):
    files.write_bytes(path, wanted[number % 8])
    return path.read_bytes() in wanted

  with concurrent.futures.ThreadPoolExecutor(4) as pool:
    assert all(pool.map(write, range(64)))
  assert os.listdir(tmp_path) == ['a']


def test_a_file_has_the_permissions_that_any_new_file_has(tmp_path):
  (tmp_path / 'plain').write_text('')
  files.write_text(tmp_path / 'whole', '')
  assert (tmp_path / 'whole').stat().st_mode == (tmp_path / 'plain').stat().st_mode


def test_what_is_complete_is_settled_once_and_scratch_goes(tmp_path):
  final = tmp_path / 'deep' / 'final'
  for text in ('first', 'second'):
    with files.scratch(tmp_path, '.mine-', stale_seconds=60) as folder:
      (folder / 'made').mkdir()
      (folder / 'made' / 'proof').write_text(text)
      files.settle(folder / 'made', final, lambda one: (one / 'proof').exists())
  assert (final / 'proof').read_text() == 'first'
  assert sorted(os.listdir(tmp_path)) == ['deep']


def test_what_stands_there_and_is_not_complete_is_an_error(tmp_path):
  (tmp_path / 'final').mkdir()
  (tmp_path / 'final' / 'other').write_text('')
  (tmp_path / 'made').mkdir()
  with pytest.raises(OSError, match='final'):
    files.settle(tmp_path / 'made', tmp_path / 'final', lambda one: (one / 'proof').exists())


def test_scratch_of_a_killed_process_is_removed_once_it_is_old(tmp_path):
  for name, age in (('.mine-old', 100), ('.mine-new', 10), ('.others-old', 100)):
    (tmp_path / name).mkdir()
    os.utime(tmp_path / name, (time.time() - age,) * 2)
  with files.scratch(tmp_path, '.mine-', stale_seconds=60):
    pass
  assert sorted(os.listdir(tmp_path)) == ['.mine-new', '.others-old']


@pytest.mark.parametrize('system', ['linux', 'darwin', 'win32'])
def test_one_variable_moves_every_cache_on_every_system(system, monkeypatch):
  monkeypatch.setattr(files.sys, 'platform', system)
  monkeypatch.delenv('JAXLITE_DATA', raising=False)
  monkeypatch.setenv('XDG_CACHE_HOME', os.sep + 'shared')
  assert files.user_cache() == cache.root() == pathlib.Path(os.sep, 'shared', 'jaxlite')
  monkeypatch.delenv('XDG_CACHE_HOME')
  assert files.user_cache() == cache.root()
  assert files.user_cache().is_relative_to(pathlib.Path.home())


@pytest.mark.skipif(not hasattr(os, 'sched_setaffinity'), reason='cores are taken away by a call of Linux')
def test_the_cores_are_those_that_the_process_may_use(monkeypatch):
  monkeypatch.setattr(os, 'sched_getaffinity', lambda _: {0, 3, 5})
  monkeypatch.setattr(os, 'cpu_count', lambda: 64)
  assert (machine.cores(), machine.all_cores()) == (3, 64)
  said = []
  machine.print_device(said.append)
  assert ' 3 CPU cores' in said[0]
  assert machine.machine()['cores'] == '3'


def test_a_link_that_waits_under_the_name_of_a_part_is_not_written_through(tmp_path, monkeypatch):
  names = []
  for _ in range(2):
    with files.whole_file(tmp_path / 'a') as part:
      names.append(part.name)
  assert len(set(names)) == 2  # nobody can know the next one
  (tmp_path / 'precious').write_text('precious')
  monkeypatch.setattr(files.secrets, 'token_hex', lambda size: 'guessed')
  (tmp_path / '.a.guessed.part').symlink_to(tmp_path / 'precious')
  with pytest.raises(FileExistsError):
    files.write_text(tmp_path / 'a', 'through')
  assert (tmp_path / 'precious').read_text() == 'precious'


@pytest.mark.skipif(not hasattr(os, 'mkfifo'), reason='no pipes with a name')
def test_what_is_no_plain_file_is_neither_waited_for_nor_read_without_end(tmp_path):
  os.mkfifo(tmp_path / 'pipe')
  (tmp_path / 'zeros').symlink_to('/dev/zero')
  for name in ('pipe', 'zeros', '.'):
    with pytest.raises(OSError, match=r'no plain file|Is a directory'):
      files.read_file(tmp_path / name)
