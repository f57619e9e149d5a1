"""The command line, as a person meets it: a subprocess of launch.py with a loop that only says what it was given."""

import json
import os
import pathlib
import resource
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from jaxlite import errors
from jaxlite.config import command_line
from jaxlite.config.duration import Duration
from jaxlite.errors import ConfigError
from jaxlite.tasks.losses import cross_entropy

ROOT = pathlib.Path(__file__).resolve().parents[2]

EXPERIMENT = """
import dataclasses
from jaxlite.config import Config

@dataclasses.dataclass(kw_only=True)
class Mine(Config):
  sparsity: float = 0.9
  widths: tuple[int, ...] = (300, 100)

def model(config): ...
def recipe(config, total_steps): ...
def get_config():
  return Mine(name='mine', model=model, recipe=recipe)
"""

# Stands where jaxlite.run.experiment will be imported: the flags are tested without training anything.
STUB = """
import dataclasses, json, os, runpy, sys, types
def run(config, workdir, **rest):
  print(json.dumps({'lr': config.optim.lr, 'train': str(config.train), 'sparsity': config.sparsity,
                    'widths': config.widths, 'progress': config.log.progress, 'workdir': workdir, **rest}))
  if os.environ.get('STUB_RAISES'):
    raise eval(os.environ['STUB_RAISES'])
  return 75
import jaxlite.run
jaxlite.run.experiment = types.SimpleNamespace(run=run)
sys.argv = sys.argv[1:]
try:
  runpy.run_path(sys.argv[0], run_name='__main__')
finally:
  assert 'jax' not in sys.modules and 'numpy' not in sys.modules, 'a heavy import before it was needed'
"""


@pytest.fixture
def folder(tmp_path):
  (tmp_path / 'experiments').mkdir()
  (tmp_path / 'experiments' / 'mine.py').write_text(EXPERIMENT)
  return tmp_path


def _launch(folder, *words, raises=''):
  return subprocess.run(
    [sys.executable, '-c', STUB, str(ROOT / 'launch.py'), *words],
    cwd=folder,
    env={**os.environ, 'PYTHONPATH': str(ROOT), 'STUB_RAISES': raises},
    capture_output=True,
    text=True,
    check=False,
  )


def _given(folder, *words):
  done = _launch(folder, *words)
  assert done.returncode == 75, done.stderr
  return json.loads(done.stdout)


def _refused(folder, *words, raises=''):
  done = _launch(folder, *words, raises=raises)
  assert done.returncode == 2, done.stderr
  assert done.stderr.startswith('error: ')
  assert done.stderr.count('\n') == 1
  return done.stderr


def test_help_is_quick_and_complete(tmp_path):
  before = resource.getrusage(resource.RUSAGE_CHILDREN)
  done = _launch(tmp_path, '--help')
  after = resource.getrusage(resource.RUSAGE_CHILDREN)
  assert done.returncode == 0
  assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.0
  for word in (
    '--config',
    '--workdir',
    '--mode',
    '--[no]smoke',
    '--[no]fresh',
    '--config.optim.lr: float (default: 0.001)',
  ):
    assert word in done.stdout


def test_every_form_and_every_order_gives_the_same_run(folder):
  config = '--config=experiments/mine.py'
  orders = (
    [config, '--config.optim.lr=0.5', '--config.train.steps=7', '--config.widths=1,2', '--smoke'],
    ['--config.optim.lr', '0.5', '--smoke', '--config.train.steps', '7', '--config.widths', '1,2', config],
    [
      '-config.optim.lr=0.5',
      '--config.widths=(1, 2)',
      '--config',
      'experiments/mine.py',
      '--smoke',
      '--config.train.steps=7',
    ],
  )
  given = [_given(folder, *order) for order in orders]
  for one, order in zip(given, orders, strict=True):
    command = one.pop('command')
    assert command.startswith('python launch.py ')
    assert all(word in command for word in order if ' ' not in word)
  assert given[0] == given[1] == given[2]
  assert given[0] == {
    'lr': 0.5, 'train': '7 steps', 'sparsity': 0.9, 'widths': [1, 2], 'progress': True, 'workdir': 'runs/mine',
    'mode': 'train', 'fresh': False, 'smoke': True, 'deploying': {}, 'only': [],
  }  # fmt: skip


def test_flags_reach_the_loop(folder):
  given = _given(
    folder, '--config=experiments/mine.py', '--workdir=w', '--mode=eval', '--smoke', '--config.log.progress=no',
    '--config.sparsity=-1e-3',
  )  # fmt: skip
  assert (given['workdir'], given['mode'], given['fresh'], given['smoke']) == ('w', 'eval', False, True)
  assert (given['progress'], given['sparsity']) == (False, -0.001)
  assert _given(folder, '--config=experiments/mine.py', '--fresh')['fresh']


def test_the_command_runs_from_anywhere(folder, tmp_path):
  elsewhere = tmp_path / 'elsewhere'
  elsewhere.mkdir()
  assert _given(elsewhere, f'--config={folder}/experiments/mine.py')['workdir'] == 'runs/mine'


def test_a_reader_that_went_is_no_error(tmp_path):
  """`--help | head -1`."""
  reader, writer = os.pipe()
  os.close(reader)
  for words in (['--help'], ['--mode=report', f'--workdir={tmp_path}']):
    done = subprocess.run(
      [sys.executable, str(ROOT / 'launch.py'), *words], stdout=writer, stderr=subprocess.PIPE, text=True, check=False
    )
    assert (done.returncode, [line for line in done.stderr.splitlines() if 'note: no run' not in line]) == (0, [])
  os.close(writer)


def test_an_experiment_takes_no_module_s_place(folder):
  """Its functions are named by folder and file, and these may be those of a package that is there."""
  for place, uses in (
    ('jaxlite/errors.py', 'from jaxlite.errors import nearest'),
    ('email/charset.py', 'from email.charset import Charset'),
    ('experiments/errors.py', 'import errors'),
    ('experiments/without an ending', 'import email'),
  ):
    path = folder / place
    path.parent.mkdir(exist_ok=True)
    path.write_text(EXPERIMENT.replace('get_config():', f'get_config():\n  {uses}'))
    assert _given(folder, f'--config={path}')['lr'] == 0.001


def test_mistakes_are_one_line_with_the_way_out(folder):
  mine = '--config=experiments/mine.py'
  for words, told in (
    (['--wrokdir=x'], '--workdir'),
    (['--config=experiments/mien.py'], 'experiments/mine.py'),
    (['experiments/mine.py'], '--config=experiments/mine.py'),
    (['--config=experiments'], 'is a folder'),
    ([mine, '--mode=test'], '<train|plan|fit|tune|'),
    ([mine, '--config.optim.lrr=1'], 'optim.lr'),
    (['--config.sparsty=1', mine], 'sparsity'),
    ([mine, '--config.seed'], 'seed needs a value'),
    ([mine, '--config.seed', '--smoke'], 'seed needs a value'),
    ([mine, '--config.train.steps=5', '--config.train.epochs=5'], 'given once'),
    ([mine, '--config.data.batch_size=0'], 'data.batch_size is at least 1'),
  ):
    assert told in _refused(folder, *words)


def test_an_experiment_that_fails_is_named(folder):
  for text, told in (
    ('x = 1', 'no get_config()'),
    ('def get_config():\n  return {}', 'got dict'),
    ('def get_config():\n  x = 1\n  return x / 0', 'bad.py, line 3, raises ZeroDivisionError'),
    ('import nothing_of_that_name', "line 1, raises ModuleNotFoundError: No module named 'nothing_of_that_name'"),
    ('def get_config(:', 'SyntaxError'),
  ):
    (folder / 'bad.py').write_text(text)
    error = _refused(folder, '--config=bad.py')
    assert told in error
    assert 'bad.py' in error or 'recipe' in error


def test_only_errors_that_a_person_can_mend_hide_their_traceback(folder):
  mine = '--config=experiments/mine.py'
  assert (
    _refused(folder, mine, raises='OSError(28, "No space left on device")')
    .strip()
    .endswith('run the same command again')
  )
  assert _refused(folder, mine, raises='MemoryError()').startswith(
    'error: not enough memory (MemoryError): --mode=plan'
  )
  assert 'ulimit -f' in _refused(folder, mine, raises='OSError(27, "File too large", "a.bin")')
  for raises in ('ZeroDivisionError("division by zero")', 'ValueError("raised by nobody of ours")'):
    done = _launch(folder, mine, raises=raises)
    assert done.returncode == 1
    assert 'Traceback' in done.stderr
  done = _launch(folder, mine, '--traceback', '--config.seed=-1')
  assert 'Traceback' in done.stderr
  assert 'ConfigError' in done.stderr


def test_an_interrupt_is_one_word_and_ends_the_process_as_a_shell_expects(folder):
  (folder / 'slow.py').write_text('import os, signal\ndef get_config():\n  os.kill(os.getpid(), signal.SIGINT)\n')
  done = _launch(folder, '--config=slow.py')
  assert (done.returncode, done.stderr) == (-signal.SIGINT, 'interrupted\n')
  assert 'get_config' in _launch(folder, '--config=slow.py', '--traceback').stderr


def test_an_error_of_ours_stays_one_line_through_jit():
  with pytest.raises(ValueError) as error:
    jax.jit(cross_entropy)(jnp.zeros((2, 3)), {'labels': jnp.zeros(3, int)})
  assert errors.one_line(error.value) == str(error.value)
  with pytest.raises(TypeError) as error:
    jax.jit(jnp.dot)(jnp.zeros(2), 'x')
  assert errors.one_line(error.value) is None


def test_an_experiment_may_import_its_neighbor_and_be_varied(tmp_path):
  (tmp_path / 'neighbor_of_mine.py').write_text('WIDTH = 7\n')
  text = (
    EXPERIMENT
    + '\nimport neighbor_of_mine\n'
    + (
      'def long(config):\n  return dataclasses.replace(config, seed=neighbor_of_mine.WIDTH)\n'
      'def get_config():\n  return Mine(name="mine", runs={"long": long})\n'
    )
  )
  file = tmp_path / 'varied.py'
  file.write_text(text)
  path = list(sys.path)
  try:
    config = command_line.load(str(file), [('train.steps', '3')], ROOT)
    assert config.runs['long'](config).seed == 7
    assert config.runs['long'](config).train == Duration(steps=3)
    with pytest.raises(ConfigError):
      command_line.load(str(file), [('train.stp', '3')], ROOT)
  finally:
    sys.path[:] = path
