"""Asking before training: flags that exclude each other, what a budget allows, forecast and actual of finished runs."""

import json
import math
import pathlib
import re
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlite as jl
from jaxlite.host.accelerators import Accelerator
from jaxlite.host.limits import Limits
from jaxlite.host.rates import Rates
from jaxlite.planning import elapsed
from jaxlite.report.result import Result, to_json
from jaxlite.run import affordable, checking, foreseen

pytestmark = pytest.mark.unoptimized

ROOT = pathlib.Path(__file__).resolve().parents[2]

WRONG = [
  (('--changes',), '--changes goes with --mode=plan; got --mode=train'),
  (('--mode=fit', '--check'), '--check goes with --mode=plan; got --mode=fit'),
  (('--mode=plan', '--formats=c'), '--formats goes with --mode=deploy; got --mode=plan'),
  (('--mode=eval', '--target=0.9'), '--target goes with --mode=train, fit and plan; got --mode=eval'),
  (('--mode=plan', '--check', '--target=0.9'), '--target is of an experiment, --check is not'),
  (('--mode=plan', '--force'), '--force goes with --mode=train; got --mode=plan'),
  (('--mode=plan', '--fresh'), '--fresh moves an old run aside, and --mode=plan trains nothing'),
  (('--mode=plan', '--check', '--minutes=3'), '--check looks back and --minutes ahead'),
  (('--mode=plan', '--check', '--changes'), '--changes is of an experiment, --check is not'),
  (('--mode=plan', '--check', '--config=x.py'), '--check asks without an experiment'),
  (('--mode=plan', '--minutes=3', '--config.seed=1'), '--minutes asks without an experiment'),
  (('--mode=plan', '--minutes=3'), 'asked by --minutes, --examples and --shape'),
  (('--mode=plan', '--classes=3'), 'asked by --minutes, --examples and --shape'),
  (('--mode=plan', '--check', '--workdir=nowhere'), 'holds no finished run'),
  (('--mode=plan', '--minutes=3', '--examples=0', '--shape=8'), '--examples is '),
  (('--mode=plan', '--minutes=0', '--examples=9', '--shape=8'), '--minutes is above 0; got 0'),
  (('--mode=train', '--minutes=0'), '--minutes goes with --mode=plan'),
  (('--mode=plan', '--minutes=x'), 'flag --minutes=x'),
  (('--mode=plan', '--minutes=3', '--examples=900', '--shape=8', '--classes=0'), '--classes is above 1; got 0'),
  (('--mode=eval', '--fresh'), '--fresh moves an old run aside, and --mode=eval trains nothing'),
  (('--fresh', '--workdir='), '--workdir names a folder, and is empty'),
  (('--mode=deploy', '--out='), '--out names a folder, and is empty'),
  (('--mode=play',), 'flag --mode=play'),
]


@pytest.mark.parametrize(('words', 'told'), WRONG, ids=lambda one: ' '.join(one) if isinstance(one, tuple) else '')
def test_flags_that_do_not_go_together_are_told_in_a_line(words, told, capsys, tmp_path):
  from jaxlite.config import command_line
  from jaxlite.run import launcher

  launcher.FLAGS.unparse_flags()
  for name in (
    'config',
    'workdir',
    'mode',
    *launcher._DEPLOYING,
    *launcher._PLANNING,
    'force',
    'target',
    'fresh',
    'smoke',
  ):
    launcher.FLAGS[name].unparse()

  def answered():
    pairs = command_line.parse(['launch.py', *words], launcher.FLAGS, '', launcher.__name__)
    launcher._without_experiment(str(tmp_path / 'nowhere'), launcher._given(bool(pairs)))

  with pytest.raises((SystemExit, ValueError)) as end:
    answered()
  message = capsys.readouterr().err if end.type is SystemExit else str(end.value)
  assert told in message, message
  assert message.strip().count('\n') == 0


def test_help_answers_within_a_second_and_names_what_can_be_asked():
  began = time.process_time(), time.monotonic()
  done = subprocess.run([sys.executable, 'launch.py', '--help'], cwd=ROOT, capture_output=True, text=True, check=True)
  del began
  for word in ('--mode=plan', '--mode=fit', '--mode=doctor', '--task', '--minutes', '--[no]check', '--[no]force'):
    assert word in done.stdout, word


SLOW = {'float32': 1e10, 'bfloat16': 1e10, 'int8': 1e10}
RATES = Rates(SLOW, SLOW, SLOW, 1e9, 1e10, 1e10, 1e8, 1e-5)
HERE = Limits(8 << 30, 8 << 30, None, None, 'the machine', resident_memory=8 << 30, resident_free=8 << 30)


@pytest.mark.parametrize('one', affordable.table(), ids=lambda one: f'{one["network"]} on {one["data"]}')
def test_every_accuracy_that_is_told_stands_in_our_tables_beside_its_command(one):
  pages = ' '.join((ROOT / name).read_text() for name in ('README.md', 'experiments/README.md'))
  assert one['shown'] in pages
  assert one['shown'].startswith(f'{one["accuracy"]:.2f} %')
  for word in one['command'].split():
    assert word in pages, word
  assert (ROOT / one['recipe']).is_file()


def test_accuracy_is_told_for_data_of_the_measured_shape_alone():
  known = {one['network'] for one in affordable.table() if one['shape'] == [28, 28]}
  for shape, classes, told in (
    ((28, 28, 1), 10, known),
    ((28, 28), 10, known),
    ((28, 28, 3), 10, set()),
    ((28, 28), 9, set()),
  ):
    names = [name for name, _ in affordable.networks(shape, classes)]
    assert {name for name in names if affordable._measured(name, shape, classes)} == told & set(names)


@pytest.mark.parametrize('shape', [(20,), (8, 8), (28, 28, 1), (32, 32, 3), (5, 7, 2), (3, 2)])
def test_every_network_that_is_named_takes_examples_of_the_shape(shape):
  for name, network in affordable.networks(shape, 4):
    model = jl.adapt(network)
    inputs = jax.ShapeDtypeStruct((2, *shape), np.float32)
    params, state = jax.eval_shape(model.init, jax.random.key(0), inputs)
    outputs = jax.eval_shape(
      lambda p, s, x, model=model: model.apply(p, s, x, train=False, key=None)[0], params, state, inputs
    )
    assert outputs.shape == (2, 4), name


def test_what_fits_stands_first_and_a_budget_cuts_epochs_before_it_cuts_networks(monkeypatch):
  monkeypatch.setattr(affordable, 'rates', lambda say=None: RATES)
  monkeypatch.setattr(affordable, 'networks', lambda shape, classes: NETWORKS)
  from jaxlite.models import MLP

  NETWORKS = [('MLP (8)', MLP((8,), classes=3)), ('MLP (2048)', MLP((2048, 2048), classes=3))]
  long = affordable.options(600, HERE, 2000, (20,), 3, print)
  assert all(one.fits and one.epochs == one.wanted for one in long), long
  brief = affordable.options(1e-4, HERE, 2000, (20,), 3, print)
  assert not any(one.fits for one in brief)
  small = HERE._replace(resident_memory=1 << 20, resident_free=1 << 20)
  assert not any(one.fits for one in affordable.options(600, small, 2000, (20,), 3, print))
  lines = affordable.lines(600, HERE, 2000, (20,), 3, print)
  assert all('not measured' in line for line in lines if line.startswith('MLP'))


def finished(folder, name, forecast, seconds, peak, upper, machine=None, **more):
  folder.mkdir(parents=True)
  time = {'forecast': forecast, 'low': forecast / 2, 'high': forecast * 2, 'actual': seconds, 'basis': 'cost', **more}
  memory = {'forecast': peak, 'upper': upper, 'actual': 500 << 20, 'basis': 'traced', 'word': 'FITS', 'alone': True}
  result = Result(name, {}, forecast={'time': time, 'memory': memory}, machine=machine or {})
  (folder / 'result.json').write_text(to_json(result, f'id-{name}'))


def test_check_shows_both_and_their_error_and_this_machine_learns_from_a_run_once(tmp_path, monkeypatch):
  from jaxlite.planning import calibration

  monkeypatch.setattr(calibration.files, 'user_cache', lambda: tmp_path / 'cache')
  finished(tmp_path / 'runs' / 'a', 'a', 10.0, 12.5, 450 << 20, 550 << 20)
  finished(tmp_path / 'runs' / 'b', 'b', 10.0, 40.0, 400 << 20, 450 << 20)
  (tmp_path / 'runs' / 'c').mkdir()
  (tmp_path / 'runs' / 'c' / 'result.json').write_text('{"no": "result"}')
  for _ in range(2):
    table = checking.table(tmp_path / 'runs')
  rows = {line.split()[0]: line for line in table.splitlines()}
  assert '-20 %' in rows['a']
  assert '-10 %' in rows['a']
  assert 'passed' in rows['b']
  assert '-75 %' in rows['b']
  assert 'damaged' in rows['c']
  assert rows['time:'].endswith('1 of 2 in the 80 % interval')
  assert rows['memory:'].endswith('1 of 2 within the 95 % bound')
  kept = calibration.outcomes()
  assert sorted((one.run, one.what) for one in kept) == [
    (f'id-{name}', what) for name in 'ab' for what in ('memory/peak', 'time/total')
  ]
  assert all(math.isfinite(one.actual) for one in kept)


def test_this_machine_learns_nothing_of_other_machines_runs_nor_of_what_was_told_as_the_least(tmp_path, monkeypatch):
  from jaxlite.planning import calibration

  monkeypatch.setattr(calibration.files, 'user_cache', lambda: tmp_path / 'cache')
  here = dict(checking.machine.machine())
  for name, place in (('a', {**here, 'processor': 'another'}), ('b', {**here, 'cores': '96'}), ('c', here)):
    finished(tmp_path / 'runs' / name, name, 10.0, 90.0, 450 << 20, 550 << 20, machine=place)
  finished(tmp_path / 'runs' / 'd', 'd', 10.0, 90.0, 450 << 20, 550 << 20, least=True)
  table = checking.table(tmp_path / 'runs')
  assert '2 runs of another machine' in table
  kept = sorted((one.run, one.what) for one in calibration.outcomes())
  assert kept == [('id-c', 'memory/peak'), ('id-c', 'time/total'), ('id-d', 'memory/peak')]


def test_a_run_of_ours_is_found_by_check(tmp_path):
  rng = np.random.default_rng(0)
  data = rng.normal(size=(60, 4)).astype(np.float32), np.arange(60) % 2
  config = jl.Config(name='x', train=jl.Duration(steps=3))
  config.data.batch_size, config.log.tensorboard = 8, False
  said = []
  result = jl.train(config, tmp_path / 'x', data=data, say=said.append)
  assert set(result.forecast) >= {'memory', 'memory compiled'}
  assert result.forecast['memory compiled']['basis'] == 'compiled'
  assert result.forecast['memory compiled']['actual'] == result.forecast['memory']['actual']
  assert [line for line in said if line.startswith('forecast: needs')], said
  table = checking.table(tmp_path)
  assert re.search(r'^x +', table, re.MULTILINE)
  assert json.loads((tmp_path / 'x' / 'result.json').read_text())['forecast'] == result.forecast


def test_what_the_compiled_step_shows_is_warned_of_before_the_first_step(tmp_path, monkeypatch):
  from jaxlite.planning import memory
  from jaxlite.planning.plan import TIGHT, TOO_LARGE
  from jaxlite.run import foreseen
  from jaxlite.run.jobs import job_of
  from jaxlite.run.setup import prepare

  rng = np.random.default_rng(0)
  config = jl.Config(name='x', train=jl.Duration(steps=3))
  config.data.batch_size, config.machine.rewrites = 8, False
  setup = prepare(config, tmp_path, None, (rng.normal(size=(60, 4)).astype(np.float32), np.arange(60) % 2))
  job, said = job_of(setup), []
  began = foreseen.Start(foreseen.foreseen(job, 'x'), foreseen.entry(), True, job)
  program = setup.train.programs.compile(setup.abstract, setup.first_batch)
  found = memory.from_program(job, began.plan.memory.sizes, program, HERE)
  for size, word in (((found.peak + found.upper) // 2, TIGHT), (found.peak // 2, TOO_LARGE), (10 * found.upper, '')):
    here = HERE._replace(resident_memory=size)
    monkeypatch.setattr(foreseen.machine_limits, 'limits', lambda here=here: here)
    said.clear()
    if word == TOO_LARGE:
      with pytest.raises(ValueError, match='this run would be killed'):
        foreseen.bettered(began, program, setup, lambda one: prepare(one, tmp_path, None, setup.data), said.append)
      continue
    better = foreseen.bettered(began, program, setup, lambda one: setup, said.append)
    assert better.better.basis == 'compiled'
    assert any(line.startswith(f'warning: {TIGHT}') for line in said) == bool(word)
  assert foreseen.bettered(began, None, setup, lambda one: setup, said.append) is began  # several programs a step


def test_a_plan_of_the_same_arguments_is_that_of_the_run(tmp_path):
  rng = np.random.default_rng(0)
  data = rng.normal(size=(60, 4)).astype(np.float32), np.arange(60) % 2
  config = jl.Config(name='x', train=jl.Duration(steps=3))
  config.data.batch_size = 8
  before = sorted(tmp_path.rglob('*'))
  found = jl.plan(config, tmp_path, data=data)
  assert sorted(tmp_path.rglob('*')) == before  # nothing is written
  assert found.verdict.word == 'FITS'
  assert found.memory.peak <= found.memory.upper
  assert found.durations.counts['step'] == 3


def test_the_main_job_is_planned_before_its_teacher_is_trained_and_a_doubt_is_told_once(tmp_path):
  command = [sys.executable, str(ROOT / 'launch.py'), '--mode=plan', '--smoke', f'--workdir={tmp_path / "digits"}']
  out = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path).stdout
  for word in ('teacher: needs ', 'student: needs ', 'alone: needs ', 'all 3 runs', 'nothing was trained'):
    assert word in out
  doubts = re.findall('^  not known: .*', out, re.MULTILINE)
  assert 0 < len(doubts) == len(set(doubts))
  assert not list(tmp_path.iterdir())


def test_of_a_device_with_memory_of_its_own_the_compiled_step_is_told_against_it():
  program = jax.jit(lambda x: jnp.tanh(x @ x)).lower(jnp.ones((512, 512))).compile()
  gpu = lambda memory: Accelerator('gpu', 'a GPU', memory, None)  # noqa: E731
  told = {memory: foreseen.device_line(program, [gpu(memory)]) for memory in (1 << 30, 1 << 20, None)}
  assert all('the compiled step takes 2.0 MiB' in line for line in told.values()), told
  assert [('warning' in line) for line in told.values()] == [False, True, False]
  assert 'not told' in told[None]


def test_a_forecast_for_an_accelerator_says_what_nobody_has_measured(monkeypatch):
  rates = {'float32': 1e11}
  monkeypatch.setattr(foreseen, 'known_rates', lambda: Rates(rates, rates, rates, 1e10, 1e10, 1e10, 1e9, 1e-5))
  config = jl.Config(name='x', train=jl.Duration(steps=5))
  data = np.zeros((400, 8), np.float32), np.arange(400) % 2
  here = jl.plan(config, data=data)
  monkeypatch.setattr(foreseen.jax, 'default_backend', lambda: 'gpu')
  there = jl.plan(config, data=data)
  own = "the device's own memory"
  assert [any(own in line for line in found.unknown) for found in (here, there)] == [False, True]
  assert [elapsed.ON_A_DEVICE in found.durations.said for found in (here, there)] == [False, True]
  assert there.durations.step.high > 2 * there.durations.step.seconds


def test_what_a_stream_takes_to_make_a_batch_is_timed(tmp_path):
  from jaxlite.run.jobs import job_of
  from jaxlite.run.setup import prepare

  def make(seed, step):
    time.sleep(0.03)
    return {'inputs': np.full((8, 4), step, np.float32), 'labels': np.arange(8) % 2}

  test = np.zeros((40, 4), np.float32), np.arange(40) % 2
  config = jl.Config(name='x', train=jl.Duration(steps=3))
  config.data.batch_size = 8
  made = jl.data.stream(make, steps_per_epoch=4, test=test, standardize=False)
  assert 0.03 <= job_of(prepare(config, tmp_path, data=made)).making < 1
  assert job_of(prepare(config, tmp_path, data=test)).making == 0


def test_a_plan_says_what_lies_in_the_runs_folder_already(tmp_path):
  from jaxlite.run import asking

  config = jl.Config(name='x')
  assert asking._behind(tmp_path, config, 100) == ''
  for step in (20, 40):
    (tmp_path / 'checkpoints' / f'{step:08d}').mkdir(parents=True)
  assert '60 that are left' in asking._behind(tmp_path, config, 100)
  assert '0 that are left' in asking._behind(tmp_path, config, 30)  # of another length
  (tmp_path / 'result.json').write_text('{}')
  assert 'finished' in asking._behind(tmp_path, config, 100)


def test_a_batch_of_more_examples_than_a_metric_takes_is_trained_and_evaluation_by_as_many_is_refused(tmp_path):
  from jaxlite.run.setup import prepare

  count = 200_000
  data = np.zeros((count, 4), np.float32), np.arange(count) % 2
  config = jl.Config(name='x', train=jl.Duration(steps=3))
  config.data.batch_size = 100_000
  assert len(prepare(config, tmp_path, data=data).first_batch['weight']) == 100_000
  config.eval.batch_size = 1_000_000  # of 20,000 in a split
  prepare(config, tmp_path, data=data)
  with pytest.raises(ValueError, match=r'a metric takes at most 65,535 .* set eval\.batch_size'):
    prepare(config, tmp_path, data=tuple(np.concatenate([one] * 5) for one in data))


def test_an_epoch_takes_its_share_of_the_whole(tmp_path):
  """Where runs of this machine were quicker than the sum of their parts, compiling alone was more than the whole."""
  from jaxlite.planning.duration import Duration, Durations
  from jaxlite.run import asking

  one = lambda seconds: Duration(seconds, seconds, seconds)  # noqa: E731
  counts = {'step': 100, 'evaluation': 10, 'checkpoint': 5}
  parts = {'compile': one(22.0), 'step': one(0.01), 'evaluation': one(0.1), 'checkpoint': one(0.2), 'input': one(0.0)}
  for total in (12.0, 31.0, 100.0):
    found = Durations(**parts, total=one(total), basis='cost', counts=counts, rest=one(6.0))
    assert asking.again_and_again(found) == pytest.approx(total * 3 / 31)
