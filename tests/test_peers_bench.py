"""The table of peers: all get the same, nobody sees labels of the test, and a row says who lost or could not run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import unoptimized

EXPERIMENTS = Path(__file__).parents[1] / 'experiments'
BENCH = EXPERIMENTS / 'bench'


@pytest.fixture
def bench(monkeypatch):
  monkeypatch.syspath_prepend(str(BENCH))


def run(folder, *flags):
  command = [sys.executable, str(BENCH / 'peers.py'), '--smoke', f'--workdir={folder}', *flags]
  environment = {**os.environ, **unoptimized.environment()}
  done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment)
  assert done.returncode == 0, done.stderr
  return done.stdout


def test_a_peer_that_is_here_and_one_that_is_not(tmp_path):
  out = run(tmp_path, '--works=dense', '--only=scikit,torch', '--python=torch:/no/such/python')
  rows = [line for line in out.splitlines() if line.startswith('| dense')]
  assert 'scikit-learn' in rows[0]
  assert 'pickle' in rows[0]
  assert 'not run: torch is not installed; --python=torch:PATH' in rows[1]
  assert all(row.count('|') == 14 for row in rows)
  assert (tmp_path / 'smoke' / 'peers.md').read_text() in out
  with np.load(tmp_path / 'smoke' / 'data.npz') as held:
    assert set(held.files) == {'train_x', 'train_y', 'test_x'}  # no side sees a label of the test
  told = json.loads((tmp_path / 'smoke' / 'scikit-dense.json').read_text())
  assert 'labels' not in told['seeds'][0]
  assert told['seeds'][0]['accuracy'] > 50


def course(peers_course, tmp_path, **changes):
  rng = np.random.default_rng(0)
  made = peers_course.Course(
    work='all',
    seeds=(0,),
    folder=tmp_path,
    train=(rng.normal(size=(100, 8)).astype(np.float32), rng.integers(3, size=100).astype(np.int32)),
    test=rng.normal(size=(20, 8)).astype(np.float32),
    logits=None,
    teacher=[],
    widths=(8, 6, 3),
    teacher_widths=(8, 6, 3),
    epochs=3,
    batch=32,
    rate=1e-2,
    sparsity=0.9,
    temperature=4.0,
    alpha=0.9,
  )
  return made._replace(**changes)


def test_every_side_gets_the_same_order_weights_and_schedules(bench, tmp_path):
  import peers_course

  one = course(peers_course, tmp_path)
  order = one.order(7)
  assert order.shape == (9, 32)
  assert (order == one.order(7)).all()
  assert (order != one.order(8)).any()
  for epoch in order.reshape(3, -1):
    assert len(set(epoch.tolist())) == 96  # each example at most once an epoch
  kernels = [kernel for kernel, _ in one.weights(7)]
  assert [kernel.shape for kernel in kernels] == [(8, 6), (6, 3)]
  begin, end, _ = one.pruning
  shares = [one.sparsity_at(step, begin, end) for step in range(one.steps)]
  assert shares[begin] == 0
  assert shares[end] == 0.9
  assert shares == sorted(shares)
  assert one.rate_at(0) == one.rate
  assert one.rate_at(one.steps) == pytest.approx(0)


def test_a_file_is_asked_in_whole_batches_and_answers_once_an_example(bench, tmp_path):
  import peers_course

  asked = []
  file = peers_course.File('x', tmp_path, lambda size: lambda rows: asked.append(len(rows)) or rows)
  inputs = np.random.default_rng(0).normal(size=(620, 4)).astype(np.float32)
  assert (peers_course.labels(file, inputs) == inputs.argmax(1)).all()
  assert asked == [500, 500]


def held(accuracies, clock=1.0, size=100, latency=(0.1, 0.2)):
  file = {'kind': 'f', 'bytes': size, 'gzip': size, 'latency': list(latency)}
  common = {'how': 'h', 'versions': 'v 1', 'processor': 1.0, 'peak': 2**20, 'zeros': 0.0, 'files': [file]}
  return {'seeds': [{**common, 'seed': at, 'clock': clock, 'accuracy': one} for at, one in enumerate(accuracies)]}


def test_the_table_says_where_jaxlite_loses_and_only_there(bench):
  import peers_tables

  ours, theirs = held([90.0, 91.0, 92.0]), held([91.0, 92.1, 93.0], clock=0.5, size=200)
  (said,) = peers_tables.verdicts({('dense', 'jaxlite'): ours, ('dense', 'torch'): theirs})
  assert said == 'dense, float32: jaxlite loses in accuracy (PyTorch, torchao); seconds to train (PyTorch, torchao).'
  (said,) = peers_tables.verdicts({('dense', 'jaxlite'): ours, ('dense', 'torch'): held([90.0, 91.1, 91.9])})
  assert said == 'dense, float32: jaxlite loses in nothing.'  # equal is no loss, noise is none either
  assert not list(peers_tables.verdicts({('dense', 'jaxlite'): {'why': 'failed'}, ('dense', 'torch'): theirs}))
  given = {'widths': [8, 3], 'data': 'd', 'epochs': 1, 'batch': 2, 'seeds': [0]}
  lines = peers_tables.table({('dense', 'jaxlite'): ours, ('dense', 'tfmot'): {'why': 'failed | so'}}, given, 5)
  rows = [line for line in lines if line.startswith('|')]
  assert len({row.count('|') for row in rows}) == 1
  assert 'failed / so' in rows[-1]


@pytest.mark.slow
def test_all_works_by_the_sides_that_are_here(tmp_path):
  out = run(tmp_path)
  rows = [line for line in out.splitlines() if line.startswith('| ') and ': jaxlite |' in line]
  assert len(rows) == 5
  assert all('not run' not in row for row in rows)
  zeros = [float(row.split('|')[3]) for row in rows]
  assert zeros[1] == zeros[4] == pytest.approx(90, abs=0.5)


@pytest.mark.parametrize('script', ['time_series', 'keywords'])
def test_a_case_study_in_its_short_form(script, tmp_path):
  command = [sys.executable, str(EXPERIMENTS / f'{script}.py'), '--smoke', f'--workdir={tmp_path}']
  environment = {**os.environ, **unoptimized.environment()}
  done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
  assert done.returncode == 0, done.stderr
  table = (tmp_path / 'smoke' / f'{script}.md').read_text()
  assert table in done.stdout
  assert len({line.count('|') for line in table.splitlines() if line.startswith('|')}) == 1
