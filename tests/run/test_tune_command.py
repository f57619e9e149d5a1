"""`--mode=tune` as a person types it: workers, a signal, the table, and mistakes in a line."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXPERIMENT = """
import numpy as np
import jaxlite as jl

SPACE = {'seed': jl.tuning.integer(0, 999)}

def load(config):
  rng = np.random.default_rng(0)
  x = rng.normal(size=(200, 4)).astype(np.float32)
  return jl.data.from_arrays((x, (x[:, 0] > 0).astype(int)))

def get_config():
  config = jl.Config(name='tiny', train=jl.Duration(steps=20))
  config.data.load = load
  config.eval.every = config.checkpoint.every = config.log.every = jl.Duration(steps=10)
  config.log.tensorboard = False
  return config
"""


def command(folder, *words):
  (folder / 'mine.py').write_text(EXPERIMENT)
  environment = {**os.environ, 'PYTHONPATH': str(ROOT), 'JAX_DISABLE_MOST_OPTIMIZATIONS': '1'}
  words = [sys.executable, str(ROOT / 'launch.py'), f'--config={folder / "mine.py"}', *words]
  return subprocess.Popen(
    words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=folder, env=environment
  )


def ended(process):
  text = process.communicate(timeout=300)[0]
  return process.returncode, text


@pytest.mark.slow
def test_two_workers_share_the_trials_and_the_command_prints_the_table(tmp_path):
  code, text = ended(command(tmp_path, '--mode=tune', '--trials=3', '--method=random', '--workers=2', '--stop=none'))
  assert code == 0, text
  assert 'the best is trial' in text
  assert '--config.seed=' in text
  assert text.count('jl.load(') == 1  # workers print no table
  assert len(list((tmp_path / 'runs' / 'mine-tune' / 'trials').iterdir())) == 3
  assert '--workers=2' in (tmp_path / 'runs' / 'mine-tune' / 'report.md').read_text()


@pytest.mark.parametrize(
  'words, said',
  [
    (['--mode=tune'], "error: a search ends: give budget='2 hours'"),
    (['--mode=tune', '--space=optim.lrr=log(1e-4,1)', '--trials=2'], 'nearest: optim.lr'),
    (['--mode=tune', '--space=optim.lr', '--trials=2'], 'error: a space is typed as field=kind'),
    (['--mode=tune', '--run=student', '--trials=2'], "'student' is no name of several"),
    (['--trials=2'], 'error: --trials goes with --mode=tune; got --mode=train'),
    (['--mode=plan', '--budget=2 hours'], 'error: --budget goes with --mode=deploy and --mode=tune'),
    (['--mode=lr_range', '--fresh'], '--mode=lr_range trains nothing'),
  ],
)
@pytest.mark.sampled(1)
def test_a_mistake_is_one_line(tmp_path, words, said):
  code, text = ended(command(tmp_path, *words))
  assert code == 2, text
  assert said in text.splitlines()[-1]


@pytest.mark.slow
def test_a_signal_saves_all_workers_trials_and_the_same_command_goes_on(tmp_path):
  words = ['--mode=tune', '--trials=6', '--method=random', '--workers=2', '--config.train.steps=2000']
  process = command(tmp_path, *words)
  study = tmp_path / 'runs' / 'mine-tune' / 'trials'
  until = time.monotonic() + 200
  while not list(study.glob('*/checkpoints/*')) and time.monotonic() < until:
    time.sleep(0.05)
  process.send_signal(signal.SIGTERM)
  code, text = ended(process)
  assert code == 75, text
  assert 'saved: run the same command to go on' in text
  code, text = ended(command(tmp_path, *words))
  assert code == 0, text
  assert '6 trials (' in text
  assert len(list(study.iterdir())) == 6


@pytest.mark.slow
def test_a_range_of_rates_and_batch_sizes_are_one_command_each(tmp_path):
  code, text = ended(command(tmp_path, '--mode=lr_range', '--workdir=here'))
  assert code == 0, text
  assert 'suggested: --config.optim.lr=' in text
  assert (tmp_path / 'here' / 'lr_range.png').read_bytes()[:4] == b'\x89PNG'
  assert sorted(path.name for path in (tmp_path / 'here').iterdir()) == ['lr_range.png']
  code, text = ended(command(tmp_path, '--mode=batch_size'))
  assert code == 0, text
  assert 'the largest that fits: --config.data.batch_size=160 (all 160 training examples)' in text
