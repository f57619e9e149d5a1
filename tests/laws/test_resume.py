"""The resume law: a run that is killed, at any moment, ends as if it never was. Zero tolerance."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jaxlite import checkpoint
from jaxlite.run import records
from jaxlite.run.records import read_records

PROGRAM = Path(__file__).with_name('resumable.py')
ROOT = PROGRAM.parents[2]
PARTS = ('prune', 'fake_quant', 'distill', 'freeze', 'accumulate', 'average', 'label_smoothing', 'augment', 'l2')
ALONE = (*PARTS, 'dispatched')
# As resumable.py has them; a test below holds that none is missing.
OTHERS = (
  *('rigl', 'set', 'n_m', 'packed', 'straight_through', 'hold', 'lsq', 'self_distill', 'hint', 'dkd', 'swa', 'sam'),
  *('lora', 'dora', 'qlora'),
  *('plateau', 'l1_proximal', 'mixup', 'cutmix', 'normalize', 'schedule_free', 'lbfgs', 'apply_if_finite'),
)
KINDS = ('regression', 'two_targets', 'binary', 'multi_label', 'language', 'segmentation', 'sequence_labels')
TASKS = tuple(f'task_{kind}' for kind in KINDS)


def start(workdir, *names, cache=None):
  environment = {
    **os.environ,
    'PYTHONPATH': str(ROOT),
    'PYTHONFAULTHANDLER': '1',
    **({} if cache is None else {'XDG_CACHE_HOME': str(cache)}),
  }
  del environment['JAX_COMPILATION_CACHE_DIR']  # a cache that begins empty is the run's own
  return subprocess.Popen(
    [sys.executable, str(PROGRAM), str(workdir), *names], stdout=subprocess.PIPE, text=True, env=environment
  )


def digest(run):
  """A hash over every leaf of the last checkpoint, every metric but the clock's, and the test's result."""
  names = ('step', 'key', 'params', 'model_state', 'opt_state', 'const')
  found = checkpoint.load_arrays(run / 'checkpoints', names, which='latest')
  points = [{name: point[name] for name in point if name not in records.CLOCK} for point in read_records(run)]
  result = json.loads((run / 'result.json').read_text())
  evidence = [checkpoint.fingerprint(found.state), points, result['metrics'], result['evidence'], result['layers']]
  return hashlib.sha256(json.dumps(evidence, sort_keys=True).encode()).hexdigest(), len(points)


def straight(workdir, *names, cache=None):
  process = start(workdir, *names, cache=cache)
  began = time.monotonic()
  out, _ = process.communicate(timeout=600)
  assert process.returncode == 0, out
  return time.monotonic() - began


def killed(workdir, kills, span, rng, *names, cache):
  """Runs to the end through at most `kills` kills, each within `span` seconds of a start; returns what was sent and
  what came back."""
  sent = []
  while True:
    process = start(workdir, *names, cache=cache)
    if len(sent) < kills:
      how = rng.choice([signal.SIGKILL, signal.SIGTERM])
      try:
        process.wait(timeout=rng.uniform(0.05, 1) * span)
      except subprocess.TimeoutExpired:
        process.send_signal(how)
        try:
          sent.append((how, process.wait(timeout=120)))
        except subprocess.TimeoutExpired:  # where does it stand? Python's fault handler tells of every thread
          process.send_signal(signal.SIGABRT)
          process.wait(timeout=10)
          raise
        process.stdout.close()
        continue
    out, _ = process.communicate(timeout=600)
    assert process.returncode == 0, out
    return sent


def compare(folder, kills, seed, *names, compiled=False):
  """Straight once, then killed runs from the start, each compared, until `kills` kills have struck."""
  # A start goes on where the last one was killed. Its programs are kept from then on, in a cache that begins empty: so
  # kills strike while it compiles too, and a part of the first time reaches any moment. With `compiled` it begins with
  # what the straight run compiled: kills strike while it trains.
  cache = folder / 'cache' if compiled else None
  span = straight(folder / 'straight', *names, cache=cache) / min(len(names) + 1, 12 if compiled else 6)
  rng, sent = random.Random(seed), []
  while len(sent) < kills:
    workdir = folder / f'killed{len(sent)}'
    sent += killed(workdir, kills - len(sent), span, rng, *names, cache=folder / 'cache')
    for path in sorted((folder / 'straight').iterdir()):
      one, other = digest(path), digest(workdir / path.name)
      assert one == other, f'{path.name} differs after {sent}'
      assert one[1] == 60 // 4 + 60 // 7 + 1  # training points, and validation points with the last step's
  for how, code in sent:
    # A signal before the guard stands (imports) ends Python its own way; after it, the run is saved; one that comes
    # as the last run ends finds nothing left to stop.
    assert code in ({-9, 0} if how == signal.SIGKILL else {-15, 75, 0}), sent
  assert len(sent) == kills


def test_a_run_killed_at_random_moments_ends_as_if_it_never_was(tmp_path):
  compare(tmp_path, 3, 1, 'all', 'dispatched', compiled=True)


@pytest.mark.slow
def test_each_part_alone_survives_kills(tmp_path):
  compare(tmp_path, 6, 2, *ALONE)


@pytest.mark.slow
def test_two_hundred_kills(tmp_path):
  compare(tmp_path / 'all', 120, 3, 'all')
  compare(tmp_path / 'alone', 80, 4, *ALONE)


def test_every_part_that_is_killed_is_listed():
  sys.path.insert(0, str(PROGRAM.parent))
  import resumable

  assert {*PARTS, 'all', 'dispatched'} == {*resumable.parts(60)}
  assert {*OTHERS} == {*resumable.others(60)}
  assert KINDS == resumable.TASKS


@pytest.mark.slow
def test_a_hundred_and_fifty_kills_over_every_part_and_task(tmp_path):
  compare(tmp_path / 'parts', 50, 5, 'all', *ALONE, compiled=True)
  compare(tmp_path / 'others', 60, 6, *OTHERS, compiled=True)
  compare(tmp_path / 'tasks', 40, 7, *TASKS, compiled=True)
