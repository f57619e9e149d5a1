"""What others leave of the machine: laws of what is read off its clocks."""

import math
import subprocess
import sys

import pytest

from jaxlite.host import crowd
from jaxlite.host.crowd import Clocks
from jaxlite.host.machine import cores

START = Clocks(0.0, 100.0, 10.0, 5.0)


def after(seconds, others=0.0, own=0.0, nice=0.0):
  """A reading so many seconds later, others and this process having kept so many cores busy."""
  busy = START.busy + seconds * (others + own)
  return Clocks(seconds, busy, START.nice + seconds * nice, START.own + seconds * own)


@pytest.fixture(autouse=True)
def not_nice(monkeypatch):
  monkeypatch.setattr(crowd, '_niceness', lambda: 0)


def test_a_machine_that_others_leave_alone_is_all_ours_whatever_its_load(monkeypatch):
  """The load counts what this process, or the run before it, did a minute ago."""
  monkeypatch.setattr(crowd, '_load', lambda: 40.0)
  for own in (0.0, 1.0, 1.8):
    assert crowd.left(START, after(2.0, own=own), 2, 2) == 2.0


def test_the_more_others_do_the_less_is_left():
  found = [crowd.left(START, after(2.0, others=others), 4, 4) for others in (0.0, 0.5, 1.0, 2.0, 3.0)]
  assert found == sorted(found, reverse=True)
  assert found[-1] > 0
  assert crowd.left(START, after(2.0, others=1.0), 2, 2) == pytest.approx(4 / 3)  # three want two cores


def test_where_all_cores_are_busy_the_load_says_how_many_wait(monkeypatch):
  full = after(2.0, others=1.5, own=0.5)
  monkeypatch.setattr(crowd, '_load', lambda: 2.0)
  some = crowd.left(START, full, 2, 2)
  monkeypatch.setattr(crowd, '_load', lambda: 9.0)
  assert crowd.left(START, full, 2, 2) < 0.7 * some


def test_what_gives_way_to_us_takes_nothing(monkeypatch):
  low = after(2.0, others=1.5, nice=1.5)
  assert crowd.left(START, low, 2, 2) == 2.0
  monkeypatch.setattr(crowd, '_niceness', lambda: 10)
  assert crowd.left(START, low, 2, 2) < 1.5


def test_who_gives_way_gets_what_others_leave(monkeypatch):
  some = after(2.0, others=1.5)
  equal = crowd.left(START, some, 2, 2)
  monkeypatch.setattr(crowd, '_niceness', lambda: 10)
  assert 0.4 < crowd.left(START, some, 2, 2) < 0.7 * equal


def test_readings_at_one_moment_or_of_a_clock_that_went_back_are_no_crash():
  for now in (START, Clocks(0.0, 90.0, 9.0, 5.0), after(-1.0, others=1.0)):
    assert 0 < crowd.left(START, now, 2, 2) <= 2


@pytest.mark.parametrize('said', [None, '', 'cpu', 'cpu a b c d e f g h', 'cpu 1 2 3', '\0\0'])
def test_a_system_that_tells_nothing_leaves_all(monkeypatch, said):
  monkeypatch.setattr(crowd, 'text', lambda path: said)
  assert crowd.clocks() is None
  assert crowd.free_cores() == cores()


@pytest.mark.skipif(crowd.clocks() is None, reason='this system does not tell how busy its cores are')
def test_a_container_gets_no_more_than_its_quota(monkeypatch):
  quota = crowd.usable_cores()._replace(usable=0.5)
  monkeypatch.setattr(crowd, 'usable_cores', lambda: quota)
  assert crowd.free_cores() <= 0.5
  monkeypatch.setattr(crowd, 'text', lambda path: None)
  assert crowd.free_cores() == 0.5


def test_own_work_is_not_taken_for_others():
  before = crowd.clocks()
  while (now := crowd.clocks()).own - before.own < 0.3:
    sum(range(20_000))
  busy = (now.busy - before.busy) - (now.own - before.own)
  assert busy < (now.at - before.at) * crowd.all_cores() - (now.own - before.own) + 0.05
  assert math.isfinite(crowd.free_cores(since=before))


def test_importing_it_loads_no_jax():
  program = 'import sys, jaxlite.host.crowd; assert "jax" not in sys.modules'
  subprocess.run([sys.executable, '-c', program], check=True)
