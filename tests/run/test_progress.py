"""Laws of what a run says while it trains: a bar where somebody looks on, lines to whoever is told, an honest clock."""

import io
import re
import sys
import time
import types

import jax
import jax.numpy as jnp
import pytest

from jaxlite.host.notebook import in_notebook
from jaxlite.run.progress import Beside, Progress
from loops import config_of, run

pytestmark = pytest.mark.unoptimized


class Terminal(io.StringIO):
  def isatty(self):
    return True


@pytest.fixture
def notebook(monkeypatch):
  """What IPython's kernel puts in the place of `sys.stdout`, where it runs."""
  monkeypatch.setitem(sys.modules, 'ipykernel', types.ModuleType('ipykernel'))
  return type('OutStream', (io.StringIO,), {'__module__': 'ipykernel.iostream'})()


def seen(written):
  """What stands on the screen of a notebook: a carriage return goes back to the line's start, and text overwrites."""
  lines = []
  for line in written.split('\n'):
    shown = ''
    for part in line.split('\r'):
      shown = part + shown[len(part) :]
    lines.append(shown.rstrip())
  return [line for line in lines if line]


def driven(out, say=None):
  progress = Progress(100, 0, 4, out=out, say=say)
  for step in range(1, 4):
    progress.step(step)
    time.sleep(0.21)
  progress.line(3, 'loss 1.0', 'validation accuracy 0.5')
  progress.say('something else')
  progress.step(4)
  progress.done()
  return progress


def test_a_notebook_gets_one_bar_that_is_redrawn_and_whole_lines(notebook):
  driven(notebook)
  assert '\x1b' not in notebook.getvalue()
  assert notebook.getvalue().count('[') >= 3  # drawn and redrawn
  lines = seen(notebook.getvalue())
  assert [re.sub(r'  [\d,]+ ex.*', '', line) for line in lines] == [
    'step 3/100  loss 1.0  validation accuracy 0.5',
    'something else',
  ]


def test_a_stream_is_no_notebook_unless_the_kernel_runs(notebook, monkeypatch):
  assert in_notebook(notebook)
  assert not in_notebook(io.StringIO())
  monkeypatch.delitem(sys.modules, 'ipykernel')
  assert not in_notebook(notebook)


def test_a_terminal_gets_the_bar_and_whoever_listens_the_lines():
  out, heard = Terminal(), []
  driven(out, heard.append)
  assert '[#' not in ''.join(heard)
  assert heard[0].startswith('step 3/100  loss 1.0  validation accuracy 0.5')
  assert heard[1:] == ['something else']
  assert 'loss' not in out.getvalue()
  assert out.getvalue().count('\x1b[K[') >= 3
  assert out.getvalue().endswith('\r\x1b[K')


class Clock:
  """A clock that is moved by hand."""

  def __init__(self, monkeypatch):
    self.now = 100.0
    monkeypatch.setattr('jaxlite.run.progress.time', types.SimpleNamespace(monotonic=lambda: self.now))

  def taken(self, progress, first, last, seconds):
    for step in range(first, last + 1):
      self.now += seconds
      progress.step(step)

  def spent(self, progress, kind, seconds):
    with progress.aside(kind):
      self.now += seconds


def test_what_is_done_beside_steps_is_no_part_of_their_rate(monkeypatch):
  clock = Clock(monkeypatch)
  progress = Progress(1_000, 0, 4, out=io.StringIO())
  progress.step(1)
  for kind, seconds in (('evaluation', 30.0), ('dispatch', 20.0), ('evaluation', 5.0), ('save', 10.0)):
    clock.spent(progress, kind, seconds)
  progress.passed(4)  # taken while the clock stood
  clock.taken(progress, 6, 11, 0.5)
  assert progress.rate(11) == pytest.approx(4 / 0.5)
  assert progress.left(11) == pytest.approx(989 * 0.5)  # nobody said what is still to come
  assert 'left' not in Progress(10, 0, 1, out=io.StringIO())._numbers(0)  # nothing is known yet


def test_the_time_left_is_what_the_rest_of_the_run_takes(monkeypatch):
  """The oracle is the run itself, to its end: 0.1 s a step, 2 s an evaluation, 1 s a checkpoint, compiling at first."""
  clock, told = Clock(monkeypatch), {}
  progress = Progress(95, 0, 4, out=io.StringIO(), beside={'evaluation': Beside(10, 3.0), 'save': Beside(30, 5.0)})
  for step in range(1, 96):
    clock.now += 7.0 if step == 1 else 0.1  # the first one compiles
    progress.step(step)
    for kind, every, seconds in (('evaluation', 10, 2.0), ('save', 30, 1.0)):
      if step % every == 0 or step == 95:
        clock.spent(progress, kind, seconds + (9.0 if step == every else 0.0))
    told[step] = clock.now, progress.left(step)
  for step in (60, 65, 70, 90, 94, 95):  # both were timed once more since they compiled
    now, left = told[step]
    assert now + left == pytest.approx(clock.now, abs=0.01), step
  for step in (5, 9, 15):  # until then a guess stands in, and what compiled once is not taken for each
    now, left = told[step]
    assert 0.3 * (clock.now - 18 - now) < left < 1.5 * (clock.now - now), step
  assert told[1][1] is None


def test_what_is_done_more_often_than_it_is_due_is_expected_so_of_the_rest(monkeypatch):
  clock = Clock(monkeypatch)
  progress = Progress(100, 0, 4, out=io.StringIO(), beside={'save': Beside(20, 5.0)})
  progress.step(1)
  for step in range(2, 41):
    clock.taken(progress, step, step, 0.1)
    if step % 10 == 0:  # each evaluation is the best so far
      clock.spent(progress, 'save', 1.0)
  assert progress.left(40) == pytest.approx(60 * 0.1 + 6 * 1.0, rel=0.02)


def test_a_resumed_run_expects_what_is_left_of_it(monkeypatch):
  clock = Clock(monkeypatch)
  progress = Progress(100, 80, 4, out=io.StringIO(), beside={'save': Beside(10, 5.0)})
  clock.taken(progress, 81, 85, 0.1)
  assert progress.left(85) == pytest.approx(15 * 0.1 + 2 * 0.5)


def test_steps_that_are_still_under_way_count():
  """JAX hands back arrays before they are computed: what an evaluation waits for first is the steps before it."""
  slow = jax.jit(lambda x: jax.lax.fori_loop(0, 60, lambda i, x: jnp.sin(x @ x), x))
  x = jnp.ones((600, 600))
  jax.block_until_ready(slow(x))
  for kind in ('evaluation', 'evaluation', 'save'):
    progress = Progress(1_000, 0, 1, out=io.StringIO())
    progress.step(1)
    began = time.monotonic()
    under_way = slow(x)
    progress.step(2)
    with progress.aside(kind, under_way):
      jax.block_until_ready(under_way)
    assert progress.rate(2) == pytest.approx(1 / (time.monotonic() - began), rel=0.2)


def test_the_lines_of_a_run_go_to_say_one_a_point(tmp_path, capsys):
  heard = []
  run(tmp_path, steps=4, log__progress=True, say=heard.append)
  points = [line for line in heard if line.startswith('step ')]
  assert [line.split('  ')[0] for line in points] == ['step 2/4', 'step 4/4']
  for line in points:
    assert 'loss ' in line
    assert 'validation accuracy ' in line
  assert capsys.readouterr().out == ''
  config = config_of(steps=2)
  assert config.log.progress is False  # then there is none of it
