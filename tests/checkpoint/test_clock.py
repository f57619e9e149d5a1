"""A clock that jumps, as it does when a laptop wakes up: Orbax times the save out, which is then written again."""

import subprocess
import sys
from pathlib import Path

_JUMPS = """
import random, sys, time
system, ahead = time.time, [0.0]
time.time = lambda: system() + ahead[0]  # in this process the machine sleeps for an hour, in the middle of each save
import jax.numpy as jnp
from jaxlite.checkpoint import Checkpoints

said, draw = [], random.Random(0)
with Checkpoints(sys.argv[1], log=said.append) as saves:
  for step in range(1, 11):
    state = {'params': {'w': jnp.full(200_000, step, jnp.float32), 'b': jnp.full(3, step)}}
    saves.save(step, state, {'step': step})
    time.sleep(draw.uniform(0, 0.05))
    ahead[0] += 3_600
    saves.wait()
    found = saves.restore(state)
    assert found.step == found.loop['step'] == step
    assert bool((found.state['params']['w'] == step).all())
print(*said, sep='\\n')
"""


def test_a_jump_of_the_clock_in_a_save_costs_one_more_write_and_is_said(tmp_path: Path):
  done = subprocess.run(
    [sys.executable, '-c', _JUMPS, str(tmp_path)], capture_output=True, text=True, check=False, timeout=120
  )
  assert done.returncode == 0, done.stderr
  said = [line for line in done.stdout.splitlines() if line]
  assert len(said) >= 3
  assert all('is written again (TimeoutError' in line for line in said)  # Orbax may log the save that timed out


_WRITES_ON = """
import sys, threading, time
system, ahead = time.time, [0.0]
time.time = lambda: system() + ahead[0]
import jax.numpy as jnp
from jaxlite.checkpoint import Checkpoints, directory

writers = lambda: [one for one in threading.enumerate() if type(one).__module__.startswith('orbax.')]
seen, remove = [], directory.remove_leftovers
directory.remove_leftovers = lambda folder: (seen.append(len(writers())), remove(folder))
said = []
with Checkpoints(sys.argv[1], log=said.append) as saves:
  for step in range(1, 9):
    state = {'params': {'w': jnp.full(10_000_000, step, jnp.float32)}}
    saves.save(step, state, {})
    while not writers() and not saves._pending[0].done():
      pass
    ahead[0] += 3_600
    saves.wait()
    if len(said) == 3:
      break
  assert bool((saves.restore(state).state['params']['w'] == step).all())
print(len(said), *seen)
"""


def test_what_a_save_that_was_timed_out_still_writes_has_ended_before_it_is_removed(tmp_path: Path):
  done = subprocess.run(
    [sys.executable, '-c', _WRITES_ON, str(tmp_path)], capture_output=True, text=True, check=False, timeout=120
  )
  assert done.returncode == 0, done.stderr
  said, first, *seen = map(int, done.stdout.split())
  assert said == len(seen) == 3  # each that was timed out was removed, and then written again
  assert [first, *seen] == [0, 0, 0, 0]
