"""What a restore and first values leave in memory: the arrays, and no copy on the host beside them."""

from __future__ import annotations

import contextlib
import gc
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlite.checkpoint import Checkpoints, load_arrays
from jaxlite.graph.init_numpy import on_host

LEAF = 48 << 20  # bytes, far above what else a test allocates
STATUS = Path('/proc/self/status')
pytestmark = pytest.mark.skipif(not STATUS.exists(), reason='memory is counted as Linux does')


def resident() -> int:
  """Bytes of this process that are in memory."""
  lines = STATUS.read_text().splitlines()
  return 1024 * next(int(line.split()[1]) for line in lines if line.startswith('VmRSS:'))


@contextlib.contextmanager
def no_collector():
  gc.collect()
  gc.disable()
  try:
    yield
  finally:
    gc.enable()


def saved(folder, state):
  with Checkpoints(folder) as saves:
    saves.save(1, state, {}, wait=True)
  return jax.eval_shape(lambda: state)


def read_back(folder, leaves):
  """A restore and a load leave the arrays and no second copy of the largest."""
  small, large = ({f'w{i}': jnp.full(size // 4, 1.0 + i) for i in range(leaves)} for size in (8, LEAF))
  ways = {
    'restore': lambda folder, like: Checkpoints(folder).restore(like).state,
    'load': lambda folder, like: load_arrays(folder, tuple(like), which='latest').state,
  }
  like = {name: saved(folder / name, state) for name, state in (('small', small), ('large', large))}
  del small, large
  for way, read in ways.items():
    read(folder / 'small', like['small'])  # imports, threads
    with no_collector():
      before = resident()
      state = jax.block_until_ready(read(folder / 'large', like['large']))
      assert resident() - before < (leaves + 0.5) * LEAF, way
    assert [float(leaf[-1]) for leaf in jax.tree.leaves(state)] == [1.0 + i for i in range(leaves)]
    del state


def drawn():
  """First values leave no copy of what NumPy drew."""

  def made(size):
    return on_host(lambda key: jax.random.bits(key, (size // 4,)))(jax.random.key(0))

  made(8)
  with no_collector():
    before = resident()
    values = jax.block_until_ready(made(LEAF))
    assert resident() - before < 1.5 * LEAF
  assert values.nbytes == LEAF


def test_restores_and_first_values_leave_no_second_copy(tmp_path):
  """In a process of its own: others may have told the allocator to keep what is freed."""
  done = subprocess.run([sys.executable, __file__, str(tmp_path)], capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr[-2000:]


def test_an_array_that_somebody_else_holds_is_waited_for_in_vain_and_not_for_long():
  from jaxlite.host import release

  source = np.ones(release.LEAST)
  sources, copies = release.lent([source]), [jax.device_put(source, may_alias=False)]
  assert not release.free(sources, copies)
  del source
  assert release.free(sources, copies)
  assert release.free([], [])


if __name__ == '__main__':
  for count in (1, 2):
    read_back(Path(sys.argv[1], str(count)), count)
  drawn()
