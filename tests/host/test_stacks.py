"""The stacks of threads: smaller where a limit counts them, and as the system gives them everywhere else."""

import json
import subprocess
import sys

import pytest

from jaxlite.host import stacks

pytestmark = pytest.mark.skipif(not stacks.default(), reason='only glibc tells and changes the stacks of threads')

# The stack of a thread before, within and after the block, and what one adds to the data segment within, in bytes.
PROGRAM = """
import json, resource, sys, threading
from jaxlite.host import stacks
from jaxlite.host.machine import status
if sys.argv[1] != 'none':
  resource.setrlimit(getattr(resource, sys.argv[1]), (16 << 30,) * 2)
sizes = [stacks.default()]
with stacks.small() as less:
  sizes.append(stacks.default())
  before, ends = status('VmData'), threading.Event()
  threads = [threading.Thread(target=ends.wait) for _ in range(8)]
  [one.start() for one in threads]
  added = (status('VmData') - before) / 8
  ends.set()
print(json.dumps([less, *sizes, stacks.default(), added]))
"""


def measured(limit):
  command = ['bash', '-c', 'ulimit -S -s 8192; exec "$@"', 'bash', sys.executable, '-c', PROGRAM, limit]
  return json.loads(subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout)


@pytest.mark.parametrize('limit', ['RLIMIT_DATA', 'RLIMIT_AS'])
def test_under_a_limit_that_counts_them_stacks_are_small_until_the_block_ends(limit):
  less, before, within, after, added = measured(limit)
  assert (less, before, within, after) == (6 << 20, 8 << 20, 2 << 20, 8 << 20)
  assert 2 << 20 <= added < 3 << 20


def test_a_block_within_another_ends_with_the_outer_one():
  code = """
import resource
from jaxlite.host import stacks
resource.setrlimit(resource.RLIMIT_DATA, (16 << 30,) * 2)
with stacks.small() as less:
  with stacks.small() as inner:
    sizes = [stacks.default()]
  sizes.append(stacks.default())
print(less, inner, *sizes, stacks.default())
"""
  command = ['bash', '-c', 'ulimit -S -s 8192; exec "$@"', 'bash', sys.executable, '-c', code]
  said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.split()
  assert [int(one) >> 20 for one in said] == [6, 0, 2, 2, 8]


def test_without_a_limit_stacks_are_as_the_system_gives_them():
  less, before, within, after, added = measured('none')
  assert (less, before, within, after) == (0, 8 << 20, 8 << 20, 8 << 20)
  assert 8 << 20 <= added < 9 << 20


def test_a_stack_that_the_user_made_smaller_stays():
  code = 'from jaxlite.host import stacks; print(stacks.spared(), stacks.default())'
  command = ['bash', '-c', 'ulimit -s 1024; ulimit -d 8000000; exec "$@"', 'bash', sys.executable, '-c', code]
  said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.split()
  assert said[0] == '0'
  assert int(said[1]) <= 1 << 20
