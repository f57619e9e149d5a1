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
