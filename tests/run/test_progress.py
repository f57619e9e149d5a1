"""Laws of what a run says while it trains: a bar where somebody looks on, lines to whoever is told, an honest clock."""

import io
import re
import sys
import time
import types

import jax
import jax.numpy as jnp
import pytest

from jaxlite.run.progress import Progress, in_notebook
from loops import config_of, run


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


def test_what_is_compiled_on_the_way_is_no_part_of_the_rate_nor_of_the_time_left():
  progress = Progress(1_000, 0, 1, out=io.StringIO())
  progress.step(1)
  began, left_out = time.monotonic(), 0.0
  for kind, seconds in (('evaluation', 0.3), ('dispatch', 0.2), ('evaluation', 0.05), ('save', 0.1)):
    entered = time.monotonic()
    with progress.first(kind):
      time.sleep(seconds)
    left_out += time.monotonic() - entered if seconds != 0.05 else 0.0  # an evaluation that compiles nothing counts
  progress.passed(4)  # taken while the clock stood
  time.sleep(0.05)
  progress.step(11)
  spent = time.monotonic() - began - left_out
  assert progress.rate(11) == pytest.approx(6 / spent, rel=0.2)  # the second evaluation and six steps
  assert 'left' not in Progress(10, 0, 1, out=io.StringIO())._numbers(0)  # nothing is known yet


def test_steps_that_are_still_under_way_count():
  """JAX hands back arrays before they are computed: what an evaluation waits for first is the steps before it."""
  slow = jax.jit(lambda x: jax.lax.fori_loop(0, 60, lambda i, x: jnp.sin(x @ x), x))
  x = jnp.ones((600, 600))
  jax.block_until_ready(slow(x))
  progress = Progress(1_000, 0, 1, out=io.StringIO())
  progress.step(1)
  began = time.monotonic()
  under_way = slow(x)
  progress.step(2)
  with progress.first('evaluation', under_way):
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
