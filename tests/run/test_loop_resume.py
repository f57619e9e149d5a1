"""Laws of a run that goes on: as if nothing had happened, or refused in one line with nothing changed."""

import signal

import numpy as np
import pytest

import jaxlite as jl
from jaxlite.run import loop
from loops import X, Y, crash_at, evidence, leaves, points, run, up_and_down

pytestmark = pytest.mark.unoptimized


def event_steps(folder):
  from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

  events = EventAccumulator(str(folder / 'tensorboard'), size_guidance={'scalars': 0})
  events.Reload()
  return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()['scalars']}


@pytest.mark.filterwarnings('default')  # tensorboard's own imports
def test_no_point_is_torn_doubled_or_lost_by_a_crash(tmp_path, monkeypatch):
  run(tmp_path / 'straight', log__tensorboard=True)
  for _ in crash_at(7, monkeypatch):
    with pytest.raises(MemoryError):
      run(tmp_path / 'crashed', log__tensorboard=True)
  with open(tmp_path / 'crashed' / 'metrics.jsonl', 'a') as file:
    file.write('{"kind": "train", "st')  # and a line that was half written
  said = []
  run(tmp_path / 'crashed', log__tensorboard=True, say=said.append)
  assert any(line.startswith('resumed at step') for line in said)
  assert evidence(tmp_path / 'crashed') == evidence(tmp_path / 'straight')
  for folder in (tmp_path / 'straight', tmp_path / 'crashed'):
    seen = event_steps(folder)
    for kind, name in (('train', 'loss'), ('validation', 'accuracy')):
      wanted = [(point['step'], np.float32(point[name])) for point in points(folder) if point['kind'] == kind]
      assert seen[f'{kind}/{name}'] == wanted
      assert len(wanted) == 6


@pytest.mark.parametrize('evaluation', [2, 6])  # the best until then; the one after the last step
def test_a_signal_while_the_best_is_found_loses_nothing(evaluation, tmp_path, monkeypatch):
  run(tmp_path / 'straight', up_and_down)
  real, count = loop.evaluate, iter(range(1, 99))

  def evaluate(*words):
    found = real(*words)
    if next(count) == evaluation:
      signal.raise_signal(signal.SIGTERM)
    return found

  with monkeypatch.context() as patch:
    patch.setattr(loop, 'evaluate', evaluate)
    with pytest.raises(loop.Preempted, match=r'stopped by a signal at step \d+ of 12; saved'):
      run(tmp_path / 'stopped', up_and_down)
  run(tmp_path / 'stopped', up_and_down)
  assert evidence(tmp_path / 'stopped') == evidence(tmp_path / 'straight')


def test_a_finished_run_is_reported_again_and_not_trained(tmp_path):
  first = run(tmp_path)
  before = leaves(tmp_path)
  said = []
  again = run(tmp_path, log__every=jl.Duration(steps=5), eval__batch_size=7, say=said.append)
  assert again == first
  assert leaves(tmp_path) == before
  assert not any('had a say' in line for line in said)
  run(tmp_path, eval__patience=3, eval__target=0.5, say=said.append)
  late = 'eval.patience and eval.target had a say while it was trained and tested, and as set now changes nothing here'
  assert f'note: {late}' in said


def test_a_longer_run_goes_on_as_if_it_had_been_long_from_the_start(tmp_path):
  run(tmp_path / 'straight', steps=20)
  said = []
  run(tmp_path / 'longer', steps=12)
  run(tmp_path / 'longer', steps=20, say=said.append)
  assert 'resumed at step 12 of 20' in said
  assert any(line.startswith('config: train: saved 12 steps, now 20 steps') for line in said)
  assert evidence(tmp_path / 'longer') == evidence(tmp_path / 'straight')
  with pytest.raises(ValueError, match='train: saved 20 steps, now 12 steps'):
    run(tmp_path / 'longer', steps=12)


def test_another_config_or_other_data_are_refused_and_nothing_is_changed(tmp_path):
  run(tmp_path)

  def everything():
    return {path: path.read_bytes() for path in tmp_path.rglob('*') if path.is_file() and path.name != '.lock'}

  before = everything()
  for fields, words in (
    ({'optim__lr': 0.5}, r'optim\.lr: saved 0\.001, now 0\.5'),
    ({'seed': 1}, 'seed: saved 0, now 1'),
    ({'data__batch_size': 8}, 'data.batch_size: saved 16, now 8'),
    # The best of before by accuracy, of now by loss: the larger number would be neither.
    ({'eval__metric': 'loss', 'steps': 14}, "eval.metric: saved '', now 'loss'"),
  ):
    with pytest.raises(ValueError, match=f'^[^\n]*{words}[^\n]*another workdir[^\n]*fresh=True[^\n]*$'):
      run(tmp_path, **fields)
  with pytest.raises(ValueError, match='the data differ'):
    run(tmp_path, steps=14, data=(X + 1, Y))
  assert everything() == before


def test_what_rounds_or_draws_differently_from_here_on_is_said(tmp_path):
  run(tmp_path, steps=2)
  for parts, steps, told in ((2, 4, True), (2, 6, False)):
    said = []
    run(tmp_path, steps=steps, machine__micro_batches=parts, say=said.append)
    note = 'note: machine.micro_batches was 1, now 2: the run goes on, but not bit for bit'
    assert (note in said) == told


def test_a_flag_of_xla_that_was_turned_is_said(tmp_path, monkeypatch):
  monkeypatch.setenv('XLA_FLAGS', '--xla_cpu_enable_fast_math=false')  # read by XLA when it started: no other bits here
  run(tmp_path, steps=2)
  for flags, told in (('--xla_cpu_enable_fast_math=false', False), ('--xla_cpu_enable_fast_math=true', True)):
    said = []
    monkeypatch.setenv('XLA_FLAGS', flags)
    run(tmp_path, steps=4 if not told else 6, say=said.append)
    note = 'note: XLA_FLAGS was --xla_cpu_enable_fast_math=false, now --xla_cpu_enable_fast_math=true: '
    assert any(line.startswith(note) for line in said) is told
