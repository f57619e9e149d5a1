"""C files compiled once, and a clean way back where they cannot be."""

import os
import pathlib
import sys
import time

import pytest

from jaxlite.cpu.kernels import compiler

NAMES = {'handlers': False, 'direct': True}  # tuned for the processor or not


def needed():
  """Where there is a compiler, a file that does not compile is a mistake, not a reason to skip."""
  if compiler.compiler() is None:
    pytest.skip('this machine has no C compiler')


@pytest.mark.parametrize('name', NAMES)
def test_a_file_is_compiled_once(name, tmp_path, monkeypatch):
  needed()
  first = compiler.built(name, tmp_path, tuned=NAMES[name])
  assert first
  monkeypatch.setenv('PATH', '')
  assert compiler.built(name, tmp_path, tuned=NAMES[name]) == first
  assert [path.name for path in tmp_path.iterdir()] == [first.name]


def test_what_is_tuned_belongs_to_a_processor_and_what_is_not_to_all_of_a_kind(tmp_path, monkeypatch):
  needed()
  for name, tuned in NAMES.items():
    found = set()
    for flags in ('flags : a', 'flags : b'):
      monkeypatch.setattr(compiler, 'abilities', lambda flags=flags: flags)
      found.add(compiler.built(name, tmp_path, tuned=tuned))
    assert len(found) == 1 + tuned


def refused(name, folder):
  """Why there is no library, in one line."""
  with pytest.raises(compiler.NoLibrary, match=r'^[^\n]+$') as error:
    compiler.built(name, folder, tuned=NAMES[name])
  return str(error.value)


def lives(pid):
  """Whether a process is there, and not only waits for somebody to ask how it ended."""
  status = pathlib.Path(f'/proc/{pid}/stat')
  return status.exists() and status.read_text().rpartition(')')[2].split()[0] != 'Z'


def fake(folder, text):
  compiler = folder / 'compiler'
  compiler.write_text(text)
  compiler.chmod(0o755)
  return str(compiler)


@pytest.mark.parametrize('name', NAMES)
def test_without_a_compiler_or_with_a_broken_one_there_is_none_and_no_leavings(name, tmp_path, monkeypatch):
  cache = tmp_path / 'cache'
  monkeypatch.setenv('CC', fake(tmp_path, '#!/bin/sh\nexit 1\n'))
  assert 'failed' in refused(name, cache)
  assert list(cache.iterdir()) == []
  monkeypatch.delenv('CC')
  monkeypatch.setenv('PATH', str(tmp_path))
  assert refused(name, cache) == 'no C compiler was found'


def test_a_compiler_that_knows_no_tuning_is_asked_without(tmp_path, monkeypatch):
  needed()
  refuse = 'for one; do case "$one" in -m*) exit 1;; esac; done'
  refuse = f'#!/bin/sh\n{refuse}\nexec {compiler.compiler()} "$@"\n'
  monkeypatch.setenv('CC', fake(tmp_path, refuse))
  assert compiler.built('direct', tmp_path / 'cache', tuned=True)


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path):
  (tmp_path / 'file').write_text('')
  assert 'cannot be used (Not a directory)' in refused('handlers', tmp_path / 'file' / 'folder')


def test_what_was_compiled_but_cannot_be_loaded_is_no_error(tmp_path, monkeypatch):
  monkeypatch.setenv('CC', fake(tmp_path, '#!/bin/sh\nfor last; do :; done\necho no library > "$last"\n'))
  with pytest.raises(compiler.NoLibrary, match=r'^[^\n]*no program that can be run[^\n]*$'):
    compiler.load('handlers', folder=tmp_path / 'handlers')
  assert os.listdir(tmp_path / 'handlers')


DAMAGES = {
  'flipped': lambda path, data: path.write_bytes(data[:5000] + bytes([data[5000] ^ 1]) + data[5001:]),
  'cut': lambda path, data: path.write_bytes(data[: len(data) // 2]),
  'empty': lambda path, data: path.write_bytes(b''),
  'longer': lambda path, data: path.write_bytes(data + b'x'),
  'of another name': lambda path, data: path.rename(path.with_name(path.name[:-9] + '00000.so')),
  'a link': lambda path, data: (path.rename(path.with_name('else')), path.symlink_to('else')),
  'writable by all': lambda path, data: path.chmod(0o777),
  "another's": lambda path, data: os.chown(path, 12345, 12345),
}


@pytest.mark.parametrize('damage', DAMAGES)
def test_what_is_not_as_it_was_made_is_made_anew(damage, tmp_path, monkeypatch):
  """By a compiler that always makes the same: only the file that is found can differ."""
  if damage == "another's" and os.geteuid() != 0:
    pytest.skip('only root gives files away')
  monkeypatch.setenv('CC', fake(tmp_path, '#!/bin/sh\nfor last; do :; done\nseq 9999 > "$last"\n'))
  path = compiler.built('handlers', tmp_path / 'cache')
  data = path.read_bytes()
  DAMAGES[damage](path, data)
  assert compiler.built('handlers', tmp_path / 'cache') == path
  assert path.read_bytes() == data
  assert path.stat().st_uid == os.geteuid()
  assert path.stat().st_mode & 0o777 == 0o700
  assert not path.is_symlink()


@pytest.mark.parametrize('when', ['before it looks', 'before it removes'])
def test_a_damaged_file_that_another_process_removes_meanwhile_is_made_anew(when, tmp_path, monkeypatch):
  monkeypatch.setenv('CC', fake(tmp_path, '#!/bin/sh\nfor last; do :; done\nseq 9999 > "$last"\n'))
  path = compiler.built('handlers', tmp_path / 'cache')
  path.write_bytes(b'')
  is_sound = compiler._is_sound

  def slow(found):
    if when == 'before it looks':
      found.unlink()
      return is_sound(found)
    sound = is_sound(found)
    found.unlink()
    return sound

  monkeypatch.setattr(compiler, '_is_sound', slow)
  assert compiler.built('handlers', tmp_path / 'cache') == path
  assert path.stat().st_size


def test_a_folder_that_others_may_write_to_is_closed_and_one_of_another_user_is_not_used(tmp_path):
  needed()
  folder = tmp_path / 'open'
  folder.mkdir()
  folder.chmod(0o777)
  assert compiler.built('handlers', folder).parent == folder
  assert folder.stat().st_mode & 0o777 == 0o700
  if os.geteuid() != 0:
    pytest.skip('only root gives folders away')
  os.chown(folder, 12345, 12345)
  assert 'it belongs to another user' in refused('handlers', folder)


@pytest.mark.skipif(not pathlib.Path('/proc/self/stat').exists(), reason='processes are looked up as Linux lists them')
def test_a_compiler_that_computes_is_waited_for_but_not_without_end(tmp_path, monkeypatch):
  """A slow or busy machine takes long; kernels must not be off for a day because of it."""
  monkeypatch.setattr(compiler, '_SECONDS', 0.2)
  spin = f'{sys.executable} -c "import time; [0 for _ in iter(lambda: time.process_time() < %s, False)]"'
  slow = f'#!/bin/sh\n{spin % 0.7}\ntouch {tmp_path}/done\nexit 1\n'
  monkeypatch.setenv('CC', fake(tmp_path, slow))
  monkeypatch.setattr(compiler, '_TIMES', 1e3)
  assert 'failed' in refused('handlers', tmp_path / 'cache')
  assert (tmp_path / 'done').exists()
  monkeypatch.setenv('CC', fake(tmp_path, f'#!/bin/sh\n{spin % 1e9}\n'))
  monkeypatch.setattr(compiler, '_TIMES', 4)
  assert 'was ended' in refused('handlers', tmp_path / 'cache')


@pytest.mark.skipif(not pathlib.Path('/proc/self/stat').exists(), reason='processes are looked up as Linux lists them')
def test_a_compiler_that_hangs_is_ended_with_its_children_and_remembered(tmp_path, monkeypatch):
  monkeypatch.setattr(compiler, '_SECONDS', 0.5)
  monkeypatch.setenv('CC', fake(tmp_path, f'#!/bin/sh\nsleep 77 &\necho $! >> {tmp_path}/child\nwait\n'))
  began = time.monotonic()
  assert 'took over 0.5 s and was ended' in refused('direct', tmp_path / 'cache')
  for name in NAMES:  # the other file too
    assert 'hung when it was last tried' in refused(name, tmp_path / 'cache')
  assert time.monotonic() - began < 10
  (child,) = (tmp_path / 'child').read_text().split()  # it ran once, and what it began is gone
  for _ in range(100):
    if not lives(child):
      break
    time.sleep(0.02)
  assert not lives(child)
  (mark,) = (tmp_path / 'cache').iterdir()
  os.utime(mark, (time.time() - 2 * 24 * 3600,) * 2)
  assert 'was ended' in refused('handlers', tmp_path / 'cache')  # tried again another day
