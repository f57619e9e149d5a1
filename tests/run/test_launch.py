"""The launcher as a person meets it: one command in a shell, killed, repeated, mistaken."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest

import unoptimized

ROOT = pathlib.Path(__file__).resolve().parents[2]

EXPERIMENT = """
import dataclasses, itertools, os, time
import jax.numpy as jnp, optax
import jaxlite as jl
import jaxlite.data

if 'SLOW' in os.environ:  # a slow machine, that has not done all steps before another process has started on it
  batch_at, calls = jaxlite.data.batch_at, itertools.count()
  jaxlite.data.batch_at = lambda *words: time.sleep(0.2 if next(calls) < 15 else 2) or batch_at(*words)

@dataclasses.dataclass(kw_only=True)
class Mine(jl.Config):
  sparsity: float = 0.5

def get_config():
  config = Mine(name='mine', model=model, recipe=recipe, train=jl.Duration(steps=60))
  config.eval.every = config.checkpoint.every = jl.Duration(steps=20)
  config.log.every, config.log.tensorboard = jl.Duration(steps=10), False
  return config

def model(config):
  def apply(params, inputs):
    return inputs.reshape(inputs.shape[0], -1) @ params['w'] + params['b']
  return jl.from_function(apply, {'w': jnp.zeros((64, 10)), 'b': jnp.zeros(10)})

def recipe(config, total_steps):
  return jl.chain(optax.adam(config.optim.lr * 10), jl.prune(config.sparsity, begin=5, end=total_steps // 2, every=5))
"""


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A folder with an experiment and one finished run, `done`."""
  folder = tmp_path_factory.mktemp('launch')
  (folder / 'mine.py').write_text(EXPERIMENT)
  finished = launch(folder, '--workdir=done')
  assert finished.returncode == 0, finished.stderr
  (folder / 'first.txt').write_text(finished.stdout)
  return folder


def command(*words):
  return [sys.executable, str(ROOT / 'launch.py'), '--config=mine.py', *words]


def environment(**more):
  return {**os.environ, 'PYTHONPATH': str(ROOT), **unoptimized.environment(), **more}


def launch(folder, *words):
  return subprocess.run(
    command(*words), cwd=folder, env=environment(), capture_output=True, text=True, check=False, timeout=120
  )


def refused(folder, *words):
  done = launch(folder, *words)
  return one_line(done.returncode, done.stderr)


def one_line(code, told):
  assert code == 2, told
  assert told.startswith('error: ')
  assert told.count('\n') == 1
  return told


def table(text):
  """The lines of the table that a run ends with, without the clock's."""
  rows = re.search(r'\n +mine\n((?:.+\n?)+)', text)[1].splitlines()
  return [row for row in rows if not row.startswith('seconds')]


def contents(folder):
  return {path: path.read_bytes() for path in folder.rglob('*') if path.is_file() and path.name != '.lock'}


def metrics(folder):
  return json.loads((folder / 'result.json').read_text())['metrics']


def test_the_same_command_again_prints_the_same_table_and_changes_nothing(folder):
  first = (folder / 'first.txt').read_text()
  before = contents(folder / 'done')
  assert 'device: ' in first.splitlines()[0]
  assert any(row.startswith('test accuracy') for row in table(first))
  again = launch(folder, '--workdir=done')
  assert again.returncode == 0
  assert table(again.stdout) == table(first)
  assert 'step ' not in again.stdout
  assert contents(folder / 'done') == before


def test_eval_gives_the_numbers_of_training_again_and_changes_nothing(folder):
  before = contents(folder / 'done')
  again = launch(folder, '--workdir=done', '--mode=eval', '--config.eval.batch_size=37')
  assert again.returncode == 0, again.stderr
  assert table(again.stdout) == table((folder / 'first.txt').read_text())
  assert contents(folder / 'done') == before


def test_a_signal_saves_and_leaves_a_second_process_is_refused_and_the_same_command_goes_on(folder):
  words = ('--workdir=killed',)
  with subprocess.Popen(
    command(*words), cwd=folder, env=environment(SLOW='1'), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
  ) as process:
    for line in process.stdout:
      if line.startswith('step 10/60'):
        break
    assert 'another run has the workdir' in refused(folder, *words)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
  assert process.returncode == 75
  assert re.search(r'stopped by a signal at step \d+ of 60; saved: run the same command to go on', out)
  done = launch(folder, *words)
  assert done.returncode == 0, done.stderr
  assert re.search(r'resumed at step \d\d of 60', done.stdout)
  assert metrics(folder / 'killed') == metrics(folder / 'done')


def test_another_config_is_refused_with_the_difference_and_fresh_moves_the_old_run_aside(folder):
  before = contents(folder / 'done')
  line = refused(folder, '--workdir=done', '--config.sparsity=0.75')
  assert 'sparsity: saved 0.5, now 0.75' in line
  assert '--workdir' in line
  assert '--fresh' in line
  assert contents(folder / 'done') == before
  done = launch(folder, '--workdir=done', '--config.sparsity=0.75', '--config.train.steps=20', '--fresh')
  assert done.returncode == 0, done.stderr
  assert 'moved the old run to done.old1' in done.stdout
  aside = {
    folder / 'done' / path.relative_to(folder / 'done.old1'): data
    for path, data in contents(folder / 'done.old1').items()
  }
  assert aside == before
  (folder / 'done').rename(folder / 'other')
  (folder / 'done.old1').rename(folder / 'done')


def test_logging_evaluation_and_a_longer_run_may_change(folder):
  subprocess.run(['cp', '-r', 'done', 'longer'], cwd=folder, check=True)
  done = launch(
    folder, '--workdir=longer', '--config.train.steps=70', '--config.log.every.steps=5', '--config.eval.patience=9'
  )
  assert done.returncode == 0, done.stderr
  assert 'resumed at step 60 of 70' in done.stdout
  for words in ('config: train: saved 60 steps, now 70 steps', 'config: log.every: ', 'config: eval.patience: '):
    assert words in done.stdout


def test_smoke_is_quick_and_lives_beside(folder):
  begun = time.monotonic()
  done = launch(folder, '--workdir=quick', '--smoke')
  assert done.returncode == 0, done.stderr
  assert time.monotonic() - begun < 60
  assert (folder / 'quick-smoke' / 'report.md').exists()
  assert not (folder / 'quick').exists()


# --- mistakes -----------------------------------------------------------------------------------------------------


# One of each kind: the fields' own mistakes stand in test_launch_flags, the data's and parts' in test_loop_refusals.
FLAGS = {
  'unknown flag': (['--workdirr=x'], 'unknown flag --workdirr; nearest: --workdir'),
  'unknown field': (['--config.optim.lrr=1'], "unknown field 'optim.lrr'; nearest: optim.lr"),
  'missing file': (['--config=mime.py'], "no experiment file 'mime.py'; nearest: mine.py"),
  'a bucket': (['--workdir=gs://bucket/run'], 'a workdir is a local folder'),
  'a file in the way': (['--workdir=mine.py/run'], 'cannot be written'),
  'nothing to evaluate': (['--workdir=nowhere', '--mode=eval'], 'train first, with --mode=train'),
  'no run': (['--workdir=new', '--run='], '--run names runs, separated by commas; got an empty name'),
  'sparsity': (['--workdir=new', '--config.sparsity=1.5'], 'in [0, 1); got 1.5'),
  'data set': (['--workdir=new', '--config.data.source=digit'], "no data set 'digit' is prepared"),
}


# Most of a start is the import of JAX: here it is imported once, and each command line is a fork of that process.
FORKS = """
import json, os, runpy, sys, warnings
import jaxlite.run.experiment
answers = {}
for name, words in json.loads(sys.argv[2]).items():
  with open('told.txt', 'w+') as told:
    with warnings.catch_warnings(action='ignore'):  # threads of NumPy's, which are asleep
      child = os.fork()
    if not child:
      os.dup2(told.fileno(), 2)
      os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
      sys.argv = [sys.argv[1], '--config=mine.py', *words]
      runpy.run_path(sys.argv[0], run_name='__main__')
      os._exit(0)
    _, status = os.waitpid(child, 0)
    told.seek(0)
    answers[name] = os.waitstatus_to_exitcode(status), told.read()
print(json.dumps(answers))
"""


@pytest.fixture(scope='module')
def answers(folder):
  """(exit code, what was printed as errors) for each command line with a mistake."""
  lines = json.dumps({name: words for name, (words, _) in FLAGS.items()})
  command = [sys.executable, '-c', FORKS, str(ROOT / 'launch.py'), lines]
  done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout)


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='a command line is a fork')
@pytest.mark.parametrize('mistake', list(FLAGS))
def test_a_mistake_is_one_line_that_names_the_fix(mistake, folder, answers):
  assert FLAGS[mistake][1] in one_line(*answers[mistake])
  assert not (folder / 'nowhere').exists()
  assert not (folder / 'new' / 'checkpoints').exists()


def test_a_fault_in_an_experiment_shows_where_it_is(folder):
  (folder / 'faulty.py').write_text(EXPERIMENT.replace('return inputs.reshape', 'return nothing.reshape'))
  done = launch(folder, '--config=faulty.py', '--workdir=faulty')
  assert done.returncode == 1
  assert 'faulty.py' in done.stderr
  assert "NameError: name 'nothing' is not defined" in done.stderr
