"""The ledger: each trial once, whoever dies; and what is read off it."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from jaxlite.tuning import ledger as ledgers
from jaxlite.tuning import stopping
from jaxlite.tuning.database import Database, StorageError, shown
from jaxlite.tuning.ledger import COMPLETE, PRUNED, RUNNING, WAITING, Ledger, Report

ROOT = Path(__file__).parents[2]


def opened(folder):
  return Ledger(folder, 'study', Database(Path(folder) / 'study.db'))


def test_a_waiting_trial_is_claimed_by_one_of_many_at_once(tmp_path):
  first = opened(tmp_path)
  trials = [first.add(number, {'x': number}) for number in range(10)]
  for one in trials:
    assert first.finish(one, WAITING, {})
  waiting = first.trials()
  others = [opened(tmp_path) for _ in range(4)]
  taken = [[] for _ in others]

  def take(place):
    for one in waiting:
      if others[place].claim(one) is not None:
        taken[place].append(one.number)

  threads = [threading.Thread(target=take, args=(place,)) for place in range(4)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert sorted(number for some in taken for number in some) == list(range(10))
  for one in (first, *others):
    one.close()


def test_a_trial_ends_once_and_who_lost_it_writes_nothing(tmp_path):
  one, other = opened(tmp_path), opened(tmp_path)
  trial = one.add(0, {'x': 1})
  one.finish(trial, WAITING, {})
  again = other.claim(one.trials()[0])
  assert not one.finish(trial, COMPLETE, {'accuracy': 0.1})
  assert not one.report(trial, 5, 0.5, 0.3)
  assert other.report(again, 5, 0.5, 0.4)
  assert other.report(again, 5, 0.5, 0.9)  # a step that is done again after a kill has the same score: the first stays
  assert other.finish(again, PRUNED, {'accuracy': 0.4})
  assert not other.finish(again, COMPLETE, {})
  assert one.reports() == [Report(0, 5, 0.5, 0.4)]
  assert [(row.state, row.attempts) for row in one.trials()] == [(PRUNED, 2)]
  one.close(), other.close()


WORKER = """
import sys, time
from pathlib import Path
from jaxlite.tuning.database import Database
from jaxlite.tuning.ledger import Ledger
one = Ledger(sys.argv[1], 'study', Database(Path(sys.argv[1]) / 'study.db'))
with one.locked():
  one.add(7, {'x': 1})
  print('has it', flush=True)
  if sys.argv[2] == 'locked':
    time.sleep(600)
time.sleep(600)
"""


@pytest.mark.parametrize('where', ['locked', 'free'])
def test_a_killed_worker_s_trial_is_reaped_at_once_and_a_living_one_s_never(tmp_path, where):
  worker = subprocess.Popen(
    [sys.executable, '-c', textwrap.dedent(WORKER), str(tmp_path), where], stdout=subprocess.PIPE, cwd=ROOT
  )
  assert worker.stdout.readline() == b'has it\n'
  if where == 'free':
    one = opened(tmp_path)
    with one.locked():
      assert one.reap() == []
    os.kill(worker.pid, signal.SIGKILL)
    worker.wait()
  else:  # killed with the lock of the whole study in its hands: the system lets go of it
    os.kill(worker.pid, signal.SIGKILL)
    worker.wait()
    one = opened(tmp_path)
  began = time.monotonic()
  with one.locked():
    assert [trial.number for trial in one.reap()] == [7]
    assert one.reap() == []
    taken = one.claim(one.trials()[0])
  assert time.monotonic() - began < 5
  assert (taken.number, taken.state, taken.attempts) == (7, RUNNING, 2)
  one.close()
  worker.stdout.close()


def test_a_worker_elsewhere_lives_by_its_heartbeat(tmp_path, monkeypatch):
  one = opened(tmp_path)
  far = opened(tmp_path)
  far.host = 'elsewhere'
  far.add(0, {'x': 1})
  with one.locked():
    assert one.reap() == []
  monkeypatch.setattr(ledgers, 'GRACE', 0.5)
  time.sleep(0.6)
  far.beat()
  with one.locked():
    assert one.reap() == []
  time.sleep(0.6)
  with one.locked():
    assert [trial.number for trial in one.reap()] == [0]
  one.close(), far.close()


def test_time_of_several_workers_at_once_counts_once():
  assert ledgers.together([(0, 10), (2, 5), (9, 12), (20, 21)]) == 13
  assert ledgers.together([]) == 0


def test_a_clock_that_is_set_and_hours_of_sleep_are_nobody_s_work(tmp_path, monkeypatch):
  one = opened(tmp_path)
  begin, clock = one.now(), {'ahead': 0.0}
  monkeypatch.setattr(one._database, 'now', lambda: time.time() + clock['ahead'])
  for ahead in (7200.0, -3600.0, 86_400.0):
    clock['ahead'] = ahead
    one.beat()
  assert one.spent() <= time.time() - begin + 1
  one.close()


def test_a_file_is_shared_with_no_worker_of_another_machine(tmp_path):
  far = opened(tmp_path)
  far.host = 'elsewhere/of-its-own'
  far.add(0, {'x': 1})
  with pytest.raises(StorageError, match='a worker on elsewhere is at work on this study, and a file is for one'):
    opened(tmp_path)
  assert len(list((tmp_path / 'workers').iterdir())) == 1
  far.close()
  opened(tmp_path).close()


def test_a_file_that_was_exchanged_takes_no_more(tmp_path):
  one = opened(tmp_path)
  one.add(0, {'x': 1})
  (tmp_path / 'study.db').rename(tmp_path / 'aside.db')
  opened(tmp_path).close()
  with pytest.raises(StorageError, match='is not the file that was opened'):
    one.trials()
  one.close()


def test_a_storage_that_is_gone_is_told_in_a_line_without_its_password(tmp_path):
  with pytest.raises(StorageError, match='gone: put it back'):
    Database(tmp_path / 'none.db', make=False)
  one = opened(tmp_path)
  os.unlink(tmp_path / 'study.db')
  with pytest.raises(StorageError, match='cannot be reached') as error:
    one.trials()
  assert '\n' not in str(error.value)
  one.close()
  (tmp_path / 'text.db').write_text('no database at all, but a text that is long enough to be read as one' * 20)
  with pytest.raises(StorageError, match='cannot be reached'):
    Database(tmp_path / 'text.db')
  assert shown('postgresql://a:b@c/d') == 'postgresql://a:***@c/d'


def curve(number, values):
  return [Report(number, step, step / len(values), value) for step, value in enumerate(values, start=1)]


def judged(rule, *curves, place=0):
  """What a rule says of the last curve at its last point, the others having come first."""
  rows = [one for some in curves for one in some]
  last = curves[-1][-1]
  return stopping.verdict(rule, last.number, place, last.share, rows)


def test_median_stops_what_is_below_the_median_of_others_at_the_same_share():
  others = [curve(number, [value, value, 1.0]) for number, value in enumerate([0.1, 0.2, 0.3, 0.4])]
  below, above = curve(9, [0.2, 0.2, 0.9])[:2], curve(9, [0.3, 0.1, 0.9])[:2]
  assert judged('median', *others, below)
  assert not judged('median', *others, above)  # its best so far counts
  assert not judged('median', *others[:3], below)  # too few to tell
  assert not judged('none', *others, below)
  assert not judged('median', *others, curve(9, [0.0, 0.0, 0.0]))  # at its end there is nothing to save


def test_halving_lets_one_in_three_go_on_and_looks_once_at_a_rung():
  others = [curve(number, [number / 10] * 9) for number in range(6)]
  middle, best = curve(9, [0.35] * 9)[:1], curve(9, [0.6] * 9)[:1]
  assert 'one in 3 goes on' in judged('halving', *others, middle)
  assert not judged('halving', *others, best)
  assert not judged('halving', *others, curve(9, [0.6, 0.0] + [0.0] * 7)[:2])  # between two rungs
  assert judged('halving', *others, curve(9, [0.6, 0.0, 0.0] + [0.0] * 6)[:3])
  assert not judged('hyperband', *others, middle, place=2)  # a third of the trials is let alone
  assert judged('hyperband', *others, middle, place=0)
  assert not judged('halving', best, middle)  # two are too few to tell
