"""The compile cache: a second process compiles nothing, and what is in its way is one line and no failure."""

import json
import os
import shutil
import subprocess
import sys
import zlib

import pytest

from jaxlite.host import compile_cache

PROGRAM = """
import json, sys
import jax, jax.numpy as jnp
from jaxlite.host import compile_cache
jax.jit(lambda x: x - 3)(jnp.float32(1))  # JAX has looked for a folder, and found none
line = compile_cache.enable({root})
events = []
jax.monitoring.register_event_listener(lambda event, **_: events.append(event.rsplit('/', 1)[-1]))
out = jax.jit(lambda x: jnp.tanh(x @ x.T).sum())(jnp.arange(12.0).reshape(3, 4))
print(json.dumps([line, events.count('cache_hits'), float(out)]))
"""


def start(root, **environment):
  code = PROGRAM.format(root=repr(str(root)) if root is not None else None)
  own = {name: value for name, value in os.environ.items() if name != 'JAX_COMPILATION_CACHE_DIR'}  # not the session's
  run = subprocess.run(
    [sys.executable, '-W', 'error', '-c', code],
    capture_output=True,
    text=True,
    env={**own, **environment},
    check=True,
    timeout=120,
  )
  return json.loads(run.stdout)


@pytest.fixture(scope='module')
def first(tmp_path_factory):
  """(root, value) of a cache that one process began."""
  root = tmp_path_factory.mktemp('first') / 'root'
  line, hits, value = start(root)
  assert line == f'compile cache: {next(root.iterdir())}'
  assert hits == 0
  return root, value


@pytest.fixture
def begun(first, tmp_path):
  """(root, its folder, value): a copy of that cache, for what a test does to it."""
  root = tmp_path / 'root'
  shutil.copytree(first[0], root)
  (folder,) = root.iterdir()
  return root, folder, first[1]


def test_the_second_process_reads_what_the_first_compiled(tmp_path):
  line, hits, value = start(tmp_path)
  assert line.startswith(f'compile cache: {tmp_path}')
  assert hits == 0
  assert start(tmp_path) == [line, pytest.approx(hits + 1, abs=3), value]
  assert start(tmp_path)[1] > 0


def test_it_lies_in_the_users_cache_by_default(tmp_path):
  line, _, _ = start(None, XDG_CACHE_HOME=str(tmp_path))
  assert line.startswith(f'compile cache: {tmp_path}/jaxlite/programs/jaxlib-')


def test_a_folder_that_was_chosen_stays(tmp_path):
  line, _, _ = start(tmp_path / 'ours', JAX_COMPILATION_CACHE_DIR=str(tmp_path / 'theirs'))
  assert line == f'compile cache: {tmp_path / "theirs"}, as it was set'
  assert not (tmp_path / 'ours').exists()


def test_a_cache_that_was_switched_off_stays_off(tmp_path):
  line, hits, _ = start(tmp_path, JAX_ENABLE_COMPILATION_CACHE='false')
  assert (line, hits) == ('no compile cache: jax_enable_compilation_cache is off', 0)
  assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_told(tmp_path):
  (tmp_path / 'file').write_text('')
  line, hits, _ = start(tmp_path / 'file')
  assert line.startswith('no compile cache: ')
  assert hits == 0


def test_flags_of_the_compiler_have_a_folder_of_their_own(begun):
  root, folder, _ = begun
  line, hits, _ = start(root, XLA_FLAGS='--xla_cpu_enable_fast_math=true')
  assert line.startswith(f'compile cache: {root}')
  assert line != f'compile cache: {folder}'
  assert hits == 0


def test_a_program_torn_by_a_kill_is_dropped_and_compiled_again(begun):
  root, folder, value = begun
  for program in folder.glob('*-cache'):  # as a kill leaves it: cut, and its time not yet written
    program.write_bytes(program.read_bytes()[:50])
    program.with_name(program.name.removesuffix('-cache') + '-atime').unlink()
  assert start(root)[1:] == [0, value]
  assert start(root)[1] > 0


def test_a_damaged_program_is_compiled_again_once_and_never_run(begun):
  root, folder, value = begun
  programs = list(folder.glob('*-cache'))
  for program in programs:
    data = bytearray(program.read_bytes())
    data[len(data) // 2] ^= 1
    program.write_bytes(data)
  line, hits, found = start(root)
  assert line.endswith(f'({len(programs)} damaged entries are compiled again)')
  assert (hits, found) == (0, value)
  line, hits, found = start(root)
  assert line == f'compile cache: {folder}'
  assert hits > 0
  assert found == value


def entries(folder):
  """A cache of three programs, as JAX writes them; the last one by a process that was killed."""
  folder.mkdir()
  for number, name in enumerate(('a', 'b', 'c')):
    (folder / f'{name}-cache').write_bytes(zlib.compress(bytes([number]) * 900))
    (folder / f'{name}-atime').write_bytes(bytes(8))
    if name == 'b':
      compile_cache.seal(folder)
  return folder


def flip(path):
  data = bytearray(path.read_bytes())
  data[-2] ^= 4
  path.write_bytes(data)


def exchange(path):
  other = path.with_name('b-cache')
  data, path_data = other.read_bytes(), path.read_bytes()
  other.write_bytes(path_data)
  path.write_bytes(data)


def link(path):
  path.rename(path.with_name('elsewhere'))
  path.symlink_to('elsewhere')


DAMAGES = {
  'flipped': (flip, {'b', 'c'}),
  'cut': (lambda path: path.write_bytes(path.read_bytes()[:9]), {'b', 'c'}),
  'empty': (lambda path: path.write_bytes(b''), {'b', 'c'}),
  'exchanged': (exchange, {'c'}),
  'a link': (link, {'b', 'c'}),
  'a folder': (lambda path: (path.unlink(), path.mkdir()), {'b', 'c'}),
  'writable by a group': (lambda path: path.chmod(0o664), {'a', 'b', 'c'}),  # as a umask of 002 has it
  "another's": (lambda path: os.chown(path, 12345, 12345), {'b', 'c'}),
  'its time is a folder': (lambda path: ((one := path.with_name('a-atime')).unlink(), one.mkdir()), {'b', 'c'}),
  'its time is gone': (lambda path: path.with_name('a-atime').unlink(), {'b', 'c'}),
  'no hash was written': (lambda path: flip(path.with_name('c-cache')), {'a', 'b'}),
  'hashes of another shape': (lambda path: path.with_name('hashes.json').write_text('[1]'), {'a', 'b', 'c'}),
  'hashes are a link': (lambda path: link(path.with_name('hashes.json')), {'a', 'b', 'c'}),
  'nothing': (lambda path: None, {'a', 'b', 'c'}),
}


@pytest.mark.parametrize('damage', DAMAGES)
def test_what_is_not_as_it_was_written_is_dropped(damage, tmp_path):
  if damage == "another's" and os.geteuid() != 0:
    pytest.skip('only root gives files away')
  folder = entries(tmp_path / 'cache')
  change, left = DAMAGES[damage]
  change(folder / 'a-cache')
  compile_cache._drop_damaged(folder)
  assert {path.name.removesuffix('-cache') for path in folder.glob('*-cache')} == left
  assert compile_cache._drop_damaged(folder) == 0  # and it is settled
  compile_cache.seal(folder)
  assert set(compile_cache._known(folder)) == {f'{name}-cache' for name in left}


def test_where_new_files_are_the_groups_too_the_second_process_still_compiles_nothing(tmp_path):
  before = os.umask(0o002)
  try:
    start(tmp_path)
    (folder,) = tmp_path.iterdir()
    assert folder.stat().st_mode & 0o777 == 0o700
    assert start(tmp_path)[1] > 0
  finally:
    os.umask(before)


def test_a_folder_of_another_user_is_not_used(begun):
  if os.geteuid() != 0:
    pytest.skip('only root gives folders away')
  root, folder, _ = begun
  os.chown(folder, 12345, 12345)
  line, hits, _ = start(root)
  assert line.startswith('no compile cache: ')
  assert hits == 0


def test_the_programs_that_were_used_least_recently_go_first(tmp_path, monkeypatch):
  """With a limit of bytes JAX looks at every program whenever it writes one: 145 ms of processor time with 5,000."""
  monkeypatch.setattr(compile_cache, 'MOST', 5)
  for number in range(12):
    (tmp_path / f'{number}-cache').write_text('program')
    (tmp_path / f'{number}-atime').write_bytes((1_000 * (number * 7 % 12) + 70_000).to_bytes(8, 'little'))
  compile_cache._drop_oldest(tmp_path)
  left = sorted(path.name for path in tmp_path.iterdir())
  wanted = [number for number in range(12) if number * 7 % 12 >= 7]
  assert left == sorted(f'{number}-{kind}' for number in wanted for kind in ('cache', 'atime'))
  compile_cache._drop_oldest(tmp_path)
  assert len(list(tmp_path.iterdir())) == 10


@pytest.mark.skipif(not hasattr(os, 'getuid') or os.getuid() != 0, reason='only root gives a folder away')
def test_a_user_without_an_entry_has_no_cache_that_jax_would_refuse_at_each_program(begun):
  _, folder, _ = begun
  assert compile_cache._is_known(folder)
  os.chown(folder, 54321, 54321)
  assert not compile_cache._is_known(folder)
