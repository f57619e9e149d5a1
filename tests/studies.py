"""What tests of a search share: workers that are killed, and a trial compared with itself undisturbed."""

import collections
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import tunable
from jaxlite import checkpoint
from jaxlite.run import loop, records, search
from jaxlite.run.records import read_records
from jaxlite.run.watch import Halted, Watch
from jaxlite.tuning import database, ledger
from jaxlite.tuning.ledger import COMPLETE, PRUNED

PROGRAM = Path(tunable.__file__)
ROOT = PROGRAM.parents[1]
_ENDED = re.compile(r'^trial \d+: (?!its worker|another)', re.MULTILINE)
ARRAYS = ('step', 'key', 'params', 'model_state', 'opt_state', 'const')


def started(workdir, trials, method, storage, log):
  environment = {**os.environ, 'PYTHONPATH': str(ROOT), 'JAX_DISABLE_MOST_OPTIMIZATIONS': '1'}
  words = [sys.executable, '-W', 'error', str(PROGRAM), str(workdir), str(trials), method, storage]
  with open(log, 'w') as file:
    return subprocess.Popen(words, stdout=file, stderr=subprocess.STDOUT, env=environment), log


def killed(workdir, trials, method, *, workers, kills, seed, storage=''):
  """Has workers share a study, kills one that is at work now and then, starts another, and waits for all; returns how
  many were killed.

  When the next is killed is drawn in trials that have ended, and within about one trial's time: a slow machine is not
  one where everybody is killed before he has done anything.
  """
  rng, sent, count = random.Random(seed), 0, 0
  due = sorted(rng.randrange(max(1, trials - 2 * workers)) for _ in range(kills))
  logs = workdir.parent / 'logs'
  logs.mkdir()

  def another():
    nonlocal count
    count += 1
    return started(workdir, trials, method, storage, logs / f'{count}.txt')

  left = [another() for _ in range(workers)]
  began = time.monotonic()
  while left:
    assert time.monotonic() < began + 3000, 'a worker waits for ever'
    ended = sum(len(_ENDED.findall(path.read_text())) for path in logs.iterdir())
    at_work = [one for one in left if 'search of' in one[1].read_text()]
    if sent < kills and at_work and ended >= due[sent]:
      one = rng.choice(at_work)
      time.sleep(rng.uniform(0, min(60.0, workers * (time.monotonic() - began) / (ended + 1))))
      if one[0].poll() is None:
        one[0].send_signal(signal.SIGKILL)
        sent += 1
        one[0].wait()
        left[left.index(one)] = another()
    for one in [one for one in left if one[0].poll() is not None]:
      left.remove(one)
      assert one[0].returncode == 0, one[1].read_text()
    time.sleep(0.1)
  return sent


def trials_of(workdir, storage=''):
  kept = json.loads((workdir / 'study.json').read_text())
  one = ledger.Ledger(workdir, kept['study'], database.Database(storage or workdir / 'study.db', make=False))
  try:
    return one.trials(), one.reports()
  finally:
    one.close()


def digest(folder):
  """Every leaf of the last checkpoint, every metric but the clock's, and the result where there is one."""
  found = checkpoint.load_arrays(folder / 'checkpoints', ARRAYS, which='latest')
  points = [{name: point[name] for name in point if name not in records.CLOCK} for point in read_records(folder)]
  ended = []
  if (folder / 'result.json').exists():
    result = json.loads((folder / 'result.json').read_text())
    ended = [result['metrics'], result['evidence'], result['layers'], result['best_step']]
  return json.dumps([checkpoint.fingerprint(found.state), points, ended], sort_keys=True)


def undisturbed(trial, folder, step):
  """Trains a trial's point straight, to its end or to the step at which it was stopped."""
  watch = Watch(lambda at, total, metrics: 'as it was' if trial.state == PRUNED and at == step else '', lambda: '')
  config = search.config_of(tunable.config(), tunable.SPACE, trial)
  given = {'model': tunable.network(), 'data': tunable.data(), 'command': '', 'say': lambda line: None}
  try:
    loop.train_varied(config, folder, watch=watch, **given)
  except Halted:
    assert trial.state == PRUNED
  else:
    assert trial.state == COMPLETE
  return digest(folder)


def check(workdir, trials, aside, *, compared, storage=''):
  """Each trial is there, once, done, and as undisturbed; so many of them are `compared`, killed ones first."""
  found, reports = trials_of(workdir, storage)
  assert len(found) == trials
  assert len({one.number for one in found}) == trials
  assert collections.Counter(one.state for one in found).keys() <= {COMPLETE, PRUNED}, found
  assert {path.name for path in (workdir / 'trials').iterdir()} == {f'{one.number:04}' for one in found}
  for one in sorted(found, key=lambda one: -one.attempts)[:compared]:
    folder = search.trial_folder(workdir, one.number)
    last = max(report.step for report in reports if report.number == one.number)
    assert digest(folder) == undisturbed(one, aside / str(one.number), last), one
  return found
