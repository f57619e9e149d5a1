"""A first signal only raises a flag, whatever the process is busy with; a second leaves at once."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from jaxlite.host import preempt

ROOT = str(Path(__file__).resolve().parents[2])

_RUN = """
import sys, time
from jaxlite.host import preempt
with preempt.guard() as guard:
  print('ready', flush=True)
  began = time.monotonic()
  while not guard.requested and time.monotonic() - began < 30:
    time.sleep(0.01)
  print('saved' if guard.requested else 'timeout', flush=True)
  time.sleep(float(sys.argv[1]))  # a slow save
sys.exit(preempt.EXIT_PREEMPTED)
"""

# XLA takes its time over this: the main thread is in C for seconds, where Python runs no handler.
_COMPILE = """
import sys, time
import jax, jax.numpy as jnp
from jaxlite.host import preempt
jax.config.update('jax_enable_compilation_cache', False)

def slow(x):
  for i in range(120):
    x = jnp.sin(x @ x) + jnp.cumsum(jnp.sort(x * i, axis=0), axis=1)
  return x

lowered = jax.jit(slow).lower(jnp.ones((8, 8)))
with preempt.guard() as guard:
  print('ready', flush=True)
  began = time.monotonic()
  lowered.compile()
  print('compiled', time.monotonic() - began, guard.requested, flush=True)
  while not guard.requested:
    time.sleep(0.01)
sys.exit(preempt.EXIT_PREEMPTED)
"""


def start(script: str, *arguments: str, **kwargs) -> subprocess.Popen:
  process = subprocess.Popen(
    [sys.executable, '-c', script, *arguments],
    env={**os.environ, 'PYTHONPATH': ROOT, 'JAX_PLATFORMS': 'cpu'},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    **kwargs,
  )
  assert process.stdout.readline() == 'ready\n'
  return process


def finish(process: subprocess.Popen) -> tuple[str, str]:
  """The rest of its output; `communicate` would lose what `readline` has read ahead."""
  with process:
    return process.stdout.read(), process.stderr.read()


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_first_signal_saves_and_leaves_with_a_code_of_its_own(number: signal.Signals):
  process = start(_RUN, '0')
  process.send_signal(number)
  out, err = finish(process)
  assert out == 'saved\n'
  assert process.returncode == preempt.EXIT_PREEMPTED == 75
  [line] = err.splitlines()
  assert line.startswith(f'{number.name}: saving')


@pytest.mark.parametrize('first, second', [(signal.SIGINT, signal.SIGINT), (signal.SIGTERM, signal.SIGINT)])
def test_a_second_signal_leaves_at_once(first: signal.Signals, second: signal.Signals):
  process = start(_RUN, '60')
  process.send_signal(first)
  assert process.stdout.readline() == 'saved\n'
  time.sleep(0.7)
  process.send_signal(second)
  _, err = finish(process)
  assert process.returncode == 128 + second
  assert err.splitlines()[-1].startswith(f'{second.name} again: leaving at once')


def test_two_signals_within_half_a_second_are_one():
  process = start(_RUN, '1')
  process.send_signal(signal.SIGTERM)
  time.sleep(0.05)
  process.send_signal(signal.SIGTERM)
  finish(process)
  assert process.returncode == preempt.EXIT_PREEMPTED


def test_timeout_of_coreutils_which_sends_twice_ends_in_a_clean_save():
  """It signals its child, then its whole group, and wakes both: done here by hand, so that it is tried everywhere."""
  process = start(_RUN, '0.5', start_new_session=True)
  os.kill(process.pid, signal.SIGTERM)
  os.killpg(process.pid, signal.SIGTERM)
  os.kill(process.pid, signal.SIGCONT)
  os.killpg(process.pid, signal.SIGCONT)
  out, _ = finish(process)
  assert (process.returncode, out) == (preempt.EXIT_PREEMPTED, 'saved\n')


def test_a_signal_during_compilation_is_answered_at_once_and_obeyed_after_it():
  process = start(_COMPILE)
  time.sleep(0.5)
  process.send_signal(signal.SIGTERM)
  assert process.stderr.readline().startswith('SIGTERM: saving')
  answered = time.monotonic()
  compiled, seconds, requested = process.stdout.readline().split()
  waited = time.monotonic() - answered
  finish(process)
  assert (compiled, requested) == ('compiled', 'True')
  assert waited > 0.3, f'compiled in {seconds} s: too quick to show anything'
  assert process.returncode == preempt.EXIT_PREEMPTED


def test_a_second_signal_during_compilation_does_not_wait_for_it():
  process = start(_COMPILE)
  process.send_signal(signal.SIGINT)
  assert process.stderr.readline().startswith('SIGINT: saving')
  time.sleep(0.6)
  process.send_signal(signal.SIGINT)
  out, _ = finish(process)
  assert process.returncode == 128 + signal.SIGINT
  assert 'compiled' not in out


def test_handlers_and_wakeup_come_back():
  seen = []
  before = signal.signal(signal.SIGTERM, lambda *_: seen.append('mine'))
  try:
    with preempt.guard() as guard:
      signal.raise_signal(signal.SIGTERM)
      assert guard.requested
    assert not seen
    signal.raise_signal(signal.SIGTERM)
    assert seen == ['mine']
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.set_wakeup_fd(-1) == -1
    assert not [thread for thread in threading.enumerate() if thread.name == 'jaxlite-preempt']
    with pytest.raises(KeyError), preempt.guard():
      raise KeyError
    signal.raise_signal(signal.SIGTERM)
    assert seen == ['mine', 'mine']
  finally:
    signal.signal(signal.SIGTERM, before)


def test_outside_the_main_thread_nothing_is_installed():
  found = []

  def work() -> None:
    with preempt.guard() as guard:
      found.append((guard.requested, guard.agreed(0), signal.getsignal(signal.SIGTERM)))

  before = signal.getsignal(signal.SIGTERM)
  thread = threading.Thread(target=work)
  thread.start()
  thread.join()
  assert found == [(False, False, before)]


_FORK = """
import os, signal, sys, time
from jaxlite.host import preempt
with preempt.guard() as guard:
  child = os.fork()
  if child == 0:
    time.sleep(30)
    os._exit(0)
  time.sleep(0.2)
  os.kill(child, signal.SIGTERM)
  _, status = os.waitpid(child, 0)
  print('ready', flush=True)
  print(os.WTERMSIG(status), guard.requested, flush=True)
"""


def test_a_signal_to_a_forked_child_ends_the_child_and_not_the_run():
  process = start(_FORK)
  out, err = finish(process)
  assert out == f'{int(signal.SIGTERM)} False\n'
  assert 'SIGTERM' not in err


_NOTEBOOK = """
import signal, sys, time
sys.ps1 = '>>> '
from jaxlite.host import preempt
try:
  with preempt.guard() as guard:
    print('ready', flush=True)
    signal.raise_signal(signal.SIGINT)
    assert guard.requested
    time.sleep(0.6)
    signal.raise_signal(signal.SIGINT)
    print('not reached', flush=True)
except KeyboardInterrupt:
  print('kernel lives', flush=True)
"""


def test_a_second_interrupt_in_a_notebook_leaves_the_cell_and_not_the_kernel():
  process = start(_NOTEBOOK)
  out, _ = finish(process)
  assert out == 'kernel lives\n'
  assert process.returncode == 0


_DISTRIBUTED = """
import os, signal, socket, sys, time
import jax
from jaxlite.host import preempt
with socket.socket() as s:
  s.bind(('localhost', 0))
  port = s.getsockname()[1]
jax.distributed.initialize(f'localhost:{port}', num_processes=1, process_id=0)
before = signal.getsignal(signal.SIGTERM)
with preempt.guard() as guard:
  assert signal.getsignal(signal.SIGTERM) is before
  print('ready', flush=True)
  step = 0
  while not guard.agreed(step) and step < 3000:
    step += 1
    time.sleep(0.01)
  print(guard.requested, 0 < step < 3000, flush=True)
"""


def test_a_distributed_run_asks_jax_and_installs_nothing():
  process = start(_DISTRIBUTED)
  time.sleep(0.3)
  process.send_signal(signal.SIGTERM)
  out, err = finish(process)
  assert out == 'True True\n', err
