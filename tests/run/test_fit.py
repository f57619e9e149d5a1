"""Under a limit of memory: what is forecast to die is refused, what is not is not, and what is fitted comes through."""

import json
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

from jaxlite.planning.edits import DRAWS, OTHER, ROUNDING, SAME
from random_jobs import random_job

ROOT = pathlib.Path(__file__).resolve().parents[2]
EXPERIMENT = pathlib.Path(__file__).with_name('fitted.py')
LIMITED = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_DATA, (int(sys.argv[1]),) * 2)
os.execv(sys.argv[2], sys.argv[2:])
"""
DEAD = ('RESOURCE_EXHAUSTED', 'YNNPACK', 'bad_alloc', 'MemoryError')


def launch(place, job, limit=None, *words):
  """Runs the launcher on a job, under a limit of its data segment in MiB."""
  place.mkdir(parents=True, exist_ok=True)
  (place / 'job.json').write_text(json.dumps(job))

  environment = {**os.environ, 'PYTHONPATH': str(ROOT), 'JOB': str(place / 'job.json')}
  command = [sys.executable, str(ROOT / 'launch.py'), f'--config={EXPERIMENT}', f'--workdir={place / "run"}', *words]
  if limit is not None:
    command = [sys.executable, '-c', LIMITED, str(limit << 20), *command]
  return subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, check=False, timeout=300)


def result(place):
  return json.loads((place / 'run' / 'result.json').read_text())


JOB = {'kind': 'function', 'width': 256, 'depth': 8, 'batch': 8192, 'evaluation': 4096, 'steps': 3, 'features': 32}
LARGE = {**JOB, 'examples': 16384}
HUGE = {**JOB, 'batch': 32768, 'examples': 65536}


SMALL = {**JOB, 'width': 32, 'depth': 1, 'batch': 64, 'examples': 500}


def test_a_run_begins_with_its_forecast_in_a_line_and_ends_with_what_came_of_it(tmp_path):
  place, done = tmp_path, launch(tmp_path, SMALL)
  assert done.returncode == 0, done.stderr
  lines = [line for line in done.stdout.splitlines() if line.startswith('forecast')]
  assert re.match(r'forecast: needs [\d.]+ [MG]iB, at most [\d.]+ [MG]iB, of [\d.]+ [MG]iB', lines[0]), lines
  # Between them stands one from the compiled step, where that is another by a tenth: the compiler's choice.
  assert re.match(r'forecast and actual: .* were used', lines[-1]), lines
  assert all(line.startswith('forecast from the compiled step: needs ') for line in lines[1:-1]), lines
  memory = result(place)['forecast']['memory']
  assert memory['alone']
  assert abs(memory['forecast'] / memory['actual'] - 1) < 0.5  # the cache may be warm; how near it is, the bench tells
  assert '### Forecast and actual' in (place / 'run' / 'report.md').read_text()


def test_what_would_be_killed_is_refused_with_what_would_fit_and_force_starts_it_all_the_same(tmp_path):
  refused = launch(tmp_path / 'a', HUGE, 620)
  assert refused.returncode == 2, refused.stdout + refused.stderr
  line = refused.stderr.strip().splitlines()[-1]
  assert line.startswith('error: this run would be killed'), line
  assert '--config.machine.micro_batches=' in line or '--config.machine.remat=' in line or 'nothing that' in line
  assert '--force' in line
  assert not (tmp_path / 'a' / 'run' / 'result.json').exists()
  forced = launch(tmp_path / 'b', HUGE, 620, '--force')
  assert forced.returncode != 2
  assert 'started all the same' in forced.stdout


@pytest.mark.slow
def test_a_fitted_run_gets_through_where_the_run_itself_does_not_and_learns_the_same(tmp_path):
  done = launch(tmp_path, LARGE, 500, '--mode=fit')  # the first: nothing of it is in the compile cache
  assert done.returncode == 0, done.stdout + done.stderr
  assert re.search(r'training: .*--config\.', done.stdout)
  unlimited = tmp_path / 'unlimited'
  free = launch(unlimited, LARGE)
  assert free.returncode == 0, free.stderr
  loss = [result(place)['metrics']['loss'] for place in (tmp_path, unlimited)]
  assert abs(loss[0] - loss[1]) < 1e-3
  again = launch(tmp_path, LARGE, 500, '--mode=fit')
  assert again.returncode == 0
  assert 'it goes on in the form that it began with' in again.stdout
  assert 'nothing is trained' in again.stdout


DIES = """
import pathlib, sys, threading
sys.path.insert(0, {here!r})
import fitted

def get_config():
  config = fitted.get_config()
  config.data.load = load
  return config

def load(config):
  left = pathlib.Path({left!r})
  if count := int(left.read_text()):
    left.write_text(str(count - 1))
    threading.Thread(target=threading.Event().wait).start()  # as what waits for a thread that could not be begun
    raise MemoryError('nothing is left')
  return fitted.load(config)
"""


def test_a_run_that_finds_no_memory_begins_again_as_often_as_was_asked_and_loses_nothing(tmp_path):
  left, experiment = tmp_path / 'left.txt', tmp_path / 'dies.py'
  experiment.write_text(DIES.format(here=str(EXPERIMENT.parent), left=str(left)))

  def start(deaths, *words):
    left.write_text(str(deaths))
    done = launch(tmp_path, SMALL, None, f'--config={experiment}', *words)
    return done.returncode, done.stdout.count('begins again'), done.stdout.count('moved the old run'), done.stderr

  code, again, _, said = start(2, '--again=1')
  assert (code != 0, again) == (True, 1), said
  assert 'nothing is left' in said
  assert start(1, '--again=1')[:3] == (0, 1, 0)
  assert start(1, '--again', '2', '--fresh')[:3] == (0, 1, 1)  # moved aside once, not again by the second process
  code, _, _, said = start(0, '--mode=plan', '--again=1')
  assert code == 2
  assert '--again is a number from 0, of --mode=train' in said


def test_want_of_memory_is_known_by_what_lies_behind_an_error_and_a_long_reason_keeps_its_end():
  from jaxlite.checkpoint import storage
  from jaxlite.run.again import is_memory

  cause = ValueError(f'Error writing {"c" * 300} in a database: Allocation error : not enough memory; at byte 14')
  error = RuntimeError('the checkpoint could not be written')
  error.__cause__ = cause
  assert is_memory(error)
  assert is_memory(ValueError(storage.reason(cause)))
  assert len(storage.reason(cause)) < 200
  deep = '/'.join(['', *'ab' * 40, 'ocdbt.process_0/'])
  told = storage.reason(
    ValueError(f'Error writing "key/c/0" in database at local file "{deep}": Error at "{deep}": why')
  )
  assert 'Error at "... /ocdbt.process_0/": why' in told
  assert storage.reason(OSError(12, os.strerror(12))) == 'Cannot allocate memory'
  assert not is_memory(ValueError('the labels are no classes'))


@pytest.mark.parametrize(('message', 'end'), [('no file', ' (not enough memory)'), ('bad_alloc', '')])
def test_want_of_memory_is_said_where_only_the_cause_of_an_error_tells(message, end):
  code = f'from jaxlite.run.again import leave; leave(ValueError(), {message!r})'
  ended = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=False)
  assert (ended.returncode, ended.stderr) == (2, f'error: {message}{end}\n')


def searched(times, results):
  """The form that a search for speed ends at, and how often each was tried, where trials take what `times` says."""
  from jaxlite.planning.plan import Tried
  from jaxlite.run import fitting

  turns = {parts: iter(each) for parts, each in times.items()}
  tried = []

  def attempt(form):
    parts = form['fields'].get('machine.micro_batches', 1)
    tried.append(parts)
    seconds = next(turns[parts])
    return Tried(form['name'], form['result'], 1, seconds, seconds is not None, '')

  forms = [{'name': 'as it is', 'fields': {}, 'result': SAME}]
  forms += [{'name': '', 'fields': {'machine.micro_batches': n}, 'result': results} for n in sorted(times) if n > 1]
  fields, _ = fitting._in_pieces(attempt, forms, next(turns[1]), {})
  return fields.get('machine.micro_batches', 1), tried


def test_a_search_for_speed_goes_on_while_pieces_are_faster_and_is_not_taken_in_by_a_slow_moment():
  assert searched({1: [10, 10], 2: [8, 8, 8], 4: [7, 7], 8: [7.8], 16: [1]}, ROUNDING) == (4, [2, 1, 2, 4, 2, 4, 8])
  assert searched({1: [10, 10], 2: [10.2], 4: [7, 7], 8: [8]}, ROUNDING) == (4, [2, 4, 1, 4, 8])  # 2 just miss a cache
  assert searched({1: [10, 10], 2: [9.8], 4: [9, 9], 8: [9.1]}, ROUNDING) == (4, [2, 4, 1, 4, 8])
  assert searched({1: [10], 2: [9.8], 4: [9.7]}, ROUNDING) == (1, [2, 4])
  assert searched({1: [20, 10], 2: [11, 11]}, ROUNDING) == (1, [2, 1, 2])  # the first was slow for others' sake
  assert searched({1: [10, 10], 2: [8, 8, 8], 4: [None]}, ROUNDING) == (2, [2, 1, 2, 4])  # what dies is not taken
  for other in (DRAWS, OTHER):
    assert searched({1: [10], 2: [1]}, other) == (1, [])


def test_smaller_pieces_of_what_has_to_give_memory_back_are_tried_with_memory_kept_first():
  from jaxlite.planning.plan import Tried
  from jaxlite.run import fitting

  def end(seconds):
    """Where a search ends, with what each of its trials took: None where it died."""
    tried, turns = [], iter(seconds)

    def attempt(form):
      tried.append((form['fields'].get('machine.micro_batches', 1), form['fields'].get('machine.keep_memory', True)))
      took = next(turns)
      return Tried(form['name'], ROUNDING, 1, took, took is not None, '')

    forms = [{'name': '', 'fields': {'machine.micro_batches': n}, 'result': ROUNDING} for n in (2, 4)]
    fields, _ = fitting._in_pieces(attempt, forms, 10, {'machine.keep_memory': False})
    return (fields.get('machine.micro_batches', 1), fields.get('machine.keep_memory', True)), tried

  assert end([5, 10, 5, 4.9]) == ((2, True), [(2, True), (1, False), (2, True), (4, True)])
  dies = [None, 8, 10, 8, None, None]
  assert end(dies) == ((2, False), [(2, True), (2, False), (1, False), (2, False), (4, True), (4, False)])
  assert end([None, None]) == ((1, False), [(2, True), (2, False)])


@pytest.mark.parametrize(
  ('ends', 'fits', 'asked'),
  [
    ([1, None, None], True, ['trial'] * 3),  # compiled and died: what is compiled lies ready, twice it came through
    ([1, None, 1], False, ['trial'] * 3),
    ([1, 1], False, ['trial'] * 2),
    ([0, None, None, None], True, ['trial', 'compile', 'trial', 'trial']),  # died in compiling: that alone comes first
    ([None], True, ['trial']),
  ],
)
def test_what_died_beside_its_compiling_is_tried_again_and_has_to_come_through_twice(monkeypatch, ends, fits, asked):
  """`ends` of the processes: None where one came through, else whether it had taken a step."""
  from jaxlite.run import fitting
  from jaxlite.run.trial import Died

  did, turns = [], iter(ends)

  def answer(source, name, what, **more):
    did.append(what)
    if (stepped := next(turns)) is not None:
      raise Died('RESOURCE_EXHAUSTED', bool(stepped))
    return {'peak': 1, 'step': 0.1}

  monkeypatch.setattr(fitting, 'asked', answer)
  form = {'name': 'as it is', 'fields': {}, 'result': SAME, 'step': 0.1, 'room': None, 'limit': 640}
  assert fitting._tried(None, '', form, lambda line: None).fits == fits
  assert did == asked
  did, turns = [], iter([1])
  assert not fitting._tried(None, '', {**form, 'warm': True}, lambda line: None).fits  # it had compiled nothing
  assert did == ['trial']


@pytest.mark.slow
def test_a_long_run_that_fits_is_asked_for_smaller_pieces_and_a_short_one_is_not(tmp_path):
  done = [
    launch(tmp_path / str(steps), {**LARGE, 'width': 128, 'depth': 2, 'steps': steps}, 640, '--mode=fit')
    for steps in (3, 8000)
  ]
  said = [one.stdout + one.stderr for one in done]
  assert [one.returncode for one in done] == [0, 0], said
  assert ['micro-batches: ' in text for text in said] == [False, True], said


@pytest.mark.slow
def test_no_form_of_what_is_far_too_large_fits_and_that_is_said_in_a_line(tmp_path):
  done = launch(tmp_path, {**LARGE, 'width': 4096, 'batch': 64, 'evaluation': 64}, 600, '--mode=fit')
  assert done.returncode == 2, done.stdout
  assert done.stderr.strip().splitlines()[-1].startswith('error: no')


def comes_through(place, seed):
  """A job ends well, or nothing of it fits and that is said; never by being killed."""
  job, limit = random_job(seed)
  done = launch(place, job, limit, '--mode=fit')
  told = f'{job} under {limit} MiB: {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-2000:]}'
  assert done.returncode == 0, told
  assert not any(word in done.stderr for word in DEAD), told
  assert np.isfinite(result(place)['metrics']['loss'])


@pytest.mark.parametrize('seed', [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 8))])
def test_random_jobs_come_through_training_evaluation_and_saving(tmp_path, seed):
  comes_through(tmp_path, seed)


@pytest.mark.slow
@pytest.mark.parametrize('seed', range(100, 150))
def test_fifty_random_jobs_come_through(tmp_path, seed):
  comes_through(tmp_path, seed)
