"""The compile cache: a second process compiles nothing, and what is in its way is one line and no failure."""

import json
import os
import subprocess
import sys

import pytest

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


def test_the_second_process_reads_what_the_first_compiled(tmp_path):
  line, hits, first = start(tmp_path)
  assert line.startswith(f'compile cache: {tmp_path}')
  assert hits == 0
  assert start(tmp_path) == [line, pytest.approx(hits + 1, abs=3), first]
  assert start(tmp_path)[1] > 0


def test_it_lies_in_the_users_cache_by_default(tmp_path):
  line, _, _ = start(None, XDG_CACHE_HOME=str(tmp_path))
  assert line.startswith(f'compile cache: {tmp_path}/jaxlite/programs/jaxlib-')


def test_a_folder_that_was_chosen_stays(tmp_path):
  line, _, _ = start(tmp_path / 'ours', JAX_COMPILATION_CACHE_DIR=str(tmp_path / 'theirs'))
  assert line == f'compile cache: {tmp_path / "theirs"}, as it was set'
  assert not (tmp_path / 'ours').exists()


def test_a_place_that_cannot_be_written_is_told(tmp_path):
  (tmp_path / 'file').write_text('')
  line, hits, _ = start(tmp_path / 'file')
  assert line.startswith('no compile cache: ')
  assert hits == 0


def test_flags_of_the_compiler_have_a_folder_of_their_own(tmp_path):
  one, _, _ = start(tmp_path)
  other, hits, _ = start(tmp_path, XLA_FLAGS='--xla_cpu_enable_fast_math=true')
  assert one != other
  assert hits == 0


def test_a_program_torn_by_a_kill_is_dropped_and_compiled_again(tmp_path):
  _, _, value = start(tmp_path)
  (folder,) = tmp_path.iterdir()
  for program in folder.glob('*-cache'):  # as a kill leaves it: cut, and its time not yet written
    program.write_bytes(program.read_bytes()[:50])
    program.with_name(program.name.removesuffix('-cache') + '-atime').unlink()
  assert start(tmp_path)[1:] == [0, value]
  assert start(tmp_path)[1] > 0


@pytest.mark.skipif(not hasattr(os, 'getuid') or os.getuid() != 0, reason='only root gives a folder away')
def test_a_user_without_an_entry_is_told_once_and_not_at_each_program(tmp_path):
  line, _, first = start(tmp_path)
  os.chown(line.removeprefix('compile cache: '), 54321, 54321)
  line, hits, again = start(tmp_path)
  assert line.startswith('no compile cache: the owner of ')
  assert (hits, again) == (0, first)
