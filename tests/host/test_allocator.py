"""The allocator: fewer page faults where memory is there, nothing where it is not, and never another malloc's."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jaxlite.host import allocator, machine

# A step of 48 MiB of temporaries; what is printed are the faults of five steps before and after.
PROGRAM = """
import json, resource
import jax, jax.numpy as jnp
from jaxlite.host import allocator
allocator.share_one_arena()
step = jax.jit(lambda x: (lambda y: jnp.cumsum(jnp.cumsum(y, axis=0) @ y[:64].T, axis=1).sum())(jnp.outer(x, x)))
x = jnp.arange(2000.0)
def faults():
  before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
  for _ in range(5):
    step(x).block_until_ready()
  return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
before = faults()
decision = allocator.keep_mapped()
for _ in range(6):  # until the one pool has found its size
  faults()
print(json.dumps([before, faults(), decision.kept, decision.why]))
"""


def start(prefix=(), **environment):
  clean = {name: value for name, value in os.environ.items() if not name.startswith(('MALLOC_', 'GLIBC_'))}
  command = [*prefix, sys.executable, '-c', PROGRAM]
  run = subprocess.run(command, capture_output=True, text=True, env={**clean, **environment}, check=True, timeout=120)
  return json.loads(run.stdout)


glibc = pytest.mark.skipif(allocator._glibc() is None, reason='only glibc can be told')


@glibc
def test_pages_are_not_faulted_in_again():
  before, after, kept, why = start()
  assert kept, why
  assert before > 5_000
  assert after < before / 10


@glibc
def test_a_limit_on_memory_chooses_frugality():
  _, _, kept, why = start(prefix=['bash', '-c', 'ulimit -v 6000000; exec "$@"', 'limited'])
  peak = machine.status('VmHWM')
  assert peak > 0
  assert allocator.keep_mapped(headroom=peak // 2).kept is False
  assert kept or 'are free' in why


@glibc
def test_settings_of_the_user_stand():
  before, after, kept, why = start(MALLOC_TRIM_THRESHOLD_='131072')
  assert not kept
  assert why == 'MALLOC_TRIM_THRESHOLD_ is set, so the allocator is left as it is'
  assert after > before / 2


def test_another_c_library_is_left_alone(monkeypatch):
  monkeypatch.setattr(allocator, '_glibc', lambda: None)
  assert not allocator.share_one_arena()
  assert allocator.keep_mapped() == (False, 'the allocator is not glibc, so it is left as it is')


def test_without_the_kernels_tables_it_is_frugal(tmp_path):
  assert machine.kibibytes(Path(tmp_path / 'absent'), 'MemAvailable') == 0
