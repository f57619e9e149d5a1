"""Whatever happened to a file of the caches: the same numbers and no signal, in a process of its own each time."""

import os
import shutil
import subprocess
import sys

import pytest

import damages

# Everything is imported once; each damage then has a child of its own, which looks at caches as a new process does.
_PROGRAM = """
import os, sys, traceback
import numpy as np
sys.path.insert(0, sys.argv[1])
import jax, jax.numpy as jnp
from pathlib import Path
import damages
import jaxlite as jl
from jaxlite.cpu import autotune
from jaxlite.cpu.kernels import choose, compiler, direct, onednn
from jaxlite.host import compile_cache
root, sound, aside = map(Path, sys.argv[2:5])
count, seed, kinds = *map(int, sys.argv[5:7]), getattr(damages, sys.argv[7])
import jax.experimental.compilation_cache.compilation_cache

def used():
  line = compile_cache.enable()
  conv = lambda x, w: jax.lax.conv_general_dilated(x, w, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC'))
  loss = lambda w, x: (conv(x, w) ** 2).sum()
  x, w = jnp.arange(8 * 6 * 6 * 4.0).reshape(8, 6, 6, 4) / 999, jnp.ones((3, 3, 4, 8))
  slope = jl.for_cpu(jax.grad(loss))(w, x)
  found = jax.jit(lambda x: jnp.tanh(x @ x.T).sum())(jnp.arange(12.0).reshape(3, 4))
  missing = direct.missing()  # the kernels of our own, beside oneDNN's
  assert not missing, missing
  table = autotune.read(autotune._file(None))
  assert all(isinstance(one, str) for pair in table.choices.items() for one in pair)
  text = np.asarray(slope).tobytes().hex() + np.asarray(found).tobytes().hex()
  compile_cache.seal(Path(jax.config.jax_compilation_cache_dir)) if jax.config.jax_compilation_cache_dir else None
  return line, text

def child(damage):
  reader, writer = os.pipe()
  pid = os.fork()
  if not pid:
    code = 1
    try:
      os.write(writer, '\\n'.join(used()).encode())
      code = 0
    except BaseException:
      os.write(writer, traceback.format_exc()[-1500:].encode())
    os._exit(code)
  os.close(writer)
  with os.fdopen(reader) as pipe:
    text = pipe.read()
  _, status = os.waitpid(pid, 0)
  assert status == 0, f'{damage}: status {status}: {text}'
  return text.split('\\n')

import warnings
warnings.simplefilter('error')
warnings.filterwarnings('ignore', message='.*fork.*')
line, want = child('nothing')
import shutil
shutil.copytree(root, sound)
bad = []
for damage in damages.drawn(sound, count, seed, kinds):
  damages.inflict(damage, root, aside)
  try:
    line, found = child(damage)
    assert found == want, f'{damage}: other numbers'
    line, found = child(damage)  # and what was damaged is replaced: nobody is told of it again
    assert found == want and 'damaged entr' not in line and not line.startswith('no '), f'{damage}: {line}'
    assert not (aside / 'precious').exists() or (aside / 'precious').read_bytes() == b'precious', damage
  except AssertionError as error:
    bad.append(str(error))
  damages.restore(root, sound)
print('\\n'.join(bad))
"""


def through(tmp_path, count, seed, kinds='KINDS'):
  (tmp_path / 'aside').mkdir()
  own = {name: value for name, value in os.environ.items() if not name.startswith(('JAX_', 'XDG_'))}
  done = subprocess.run(
    [
      *(sys.executable, '-c', _PROGRAM, os.path.dirname(damages.__file__)),
      *(str(tmp_path / name) for name in ('cache/jaxlite', 'sound', 'aside')),
      *(str(count), str(seed), kinds),
    ],
    env={**own, 'XDG_CACHE_HOME': str(tmp_path / 'cache'), 'JAX_PLATFORMS': 'cpu'},
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr[-2000:]
  assert not done.stdout.strip(), done.stdout


@pytest.mark.skipif(not hasattr(os, 'fork') or not shutil.which('cc'), reason='needs fork and a C compiler')
class TestCaches:
  def test_no_damage_to_a_cache_ends_a_process_or_changes_a_number(self, tmp_path):
    through(tmp_path, 3, 0)

  @pytest.mark.slow
  @pytest.mark.parametrize('part', range(4))
  def test_of_200_damages_to_caches_none_does(self, part, tmp_path):
    through(tmp_path, 50, 1 + part)

  @pytest.mark.slow
  def test_of_50_more_damages_to_caches_none_does(self, tmp_path):
    through(tmp_path, 50, 1, 'MORE_KINDS')
