"""Laws of what decides a run's answers: a damaged file is told, made again where it can be, and never believed."""

import json
import shutil

import jax
import numpy as np
import optax
import pytest

import jaxlite as jl
from jaxlite.run import loop, records
from loops import X, evidence, leaves, points, run, up_and_down

pytestmark = pytest.mark.unoptimized

STEP_BY_STEP = {'steps': 12, 'machine__steps_per_dispatch': 1}
FILES = (
  'config.json',
  'task.json',
  'result.json',
  'program.bin',
  'program.json',
  'metrics.jsonl',
  'step.txt',
  'rewrites.json',
)


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  folder = tmp_path_factory.mktemp('mending') / 'run'
  run(folder, steps=6, log__every=jl.Duration(steps=1))
  return folder, evidence(folder), {name: (folder / name).read_bytes() for name in FILES}


@pytest.fixture(scope='module')
def longer(finished, tmp_path_factory):
  """What a copy of the finished run leaves that goes on to eight steps."""
  folder = tmp_path_factory.mktemp('longer') / 'run'
  shutil.copytree(finished[0], folder)
  run(folder, steps=8, log__every=jl.Duration(steps=1))
  return evidence(folder)


@pytest.fixture(scope='module')
def straight(tmp_path_factory):
  """A run of twelve steps that nothing befell."""
  folder = tmp_path_factory.mktemp('straight') / 'run'
  run(folder, **STEP_BY_STEP)
  return folder


def flipped(data, at):
  return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


DAMAGES = {
  'flipped': lambda data: flipped(data, 2 * len(data) // 3),
  'cut': lambda data: data[: len(data) // 2],
  'empty': lambda data: b'',
  'deleted': lambda data: None,
  'of another shape': lambda data: b'[1, 2]',
  'too deep': lambda data: b'[' * 200_000,
}


@pytest.mark.sampled(4)
@pytest.mark.parametrize('name', FILES)
def test_a_damaged_file_of_a_finished_run_is_told_and_made_again(name, finished, tmp_path):
  folder, want, sound = finished
  for damage in DAMAGES.values():
    data = damage(sound[name])
    if data is None:
      (folder / name).unlink()
    else:
      (folder / name).write_bytes(data)
    said = []
    run(folder, steps=6, log__every=jl.Duration(steps=1), say=said.append)
    if name != 'step.txt' and not (name == 'result.json' and data is None):
      assert any(name in line for line in said), said
    if name not in (
      'result.json',
      'program.bin',
      'program.json',
    ):  # these hold seconds, and bytes that are serialized anew
      assert (folder / name).read_bytes() == sound[name]
  assert evidence(folder) == want


def test_no_flipped_bit_of_the_program_reaches_xla(finished, tmp_path):
  folder, _, sound = finished
  shutil.copytree(folder, tmp_path / 'run')
  data = sound['program.bin']
  for at in np.random.default_rng(0).integers(0, len(data), 40):
    (tmp_path / 'run' / 'program.bin').write_bytes(flipped(data, int(at)))
    with pytest.raises(ValueError, match=r'^[^\n]*program\.bin[^\n]*damaged[^\n]*hash[^\n]*run again[^\n]*$'):
      jl.load(tmp_path / 'run')


def test_a_digit_or_two_exchanged_names_are_not_believed(finished, tmp_path):
  folder, _, _ = finished
  shutil.copytree(folder, tmp_path / 'run')
  path = tmp_path / 'run' / 'program.json'
  about = json.loads(path.read_text())
  about['arrays'][0], about['arrays'][1] = about['arrays'][1], about['arrays'][0]
  path.write_text(json.dumps(about))
  with pytest.raises(ValueError, match=r'program\.json is damaged'):
    jl.load(tmp_path / 'run')
  path = tmp_path / 'run' / 'result.json'
  found = json.loads(path.read_text())
  path.write_text(json.dumps({**found, 'metrics': {**found['metrics'], 'accuracy': 0.999}}))
  said = []
  result = run(tmp_path / 'run', steps=6, log__every=jl.Duration(steps=1), say=said.append)
  assert result.metrics == found['metrics']
  assert any('result.json is damaged' in line and 'tested again' in line for line in said)


@pytest.mark.sampled(3)
@pytest.mark.parametrize('name', ['config.json', 'metrics.jsonl', 'program.bin', 'task.json', 'rewrites.json'])
def test_one_lost_file_does_not_end_a_run_whose_checkpoints_are_sound(name, finished, longer, tmp_path):
  folder, _, sound = finished
  shutil.copytree(folder, tmp_path / 'run')
  (tmp_path / 'run' / name).write_bytes(flipped(sound[name], 40))
  said = []
  run(tmp_path / 'run', steps=8, log__every=jl.Duration(steps=1), say=said.append)
  assert any(name in line and 'damaged' in line for line in said)
  assert evidence(tmp_path / 'run') == longer


def test_a_long_record_lies_in_chunks_and_is_put_together_again(tmp_path, monkeypatch):
  monkeypatch.setattr(records, '_CHUNK', 256)
  said = []
  with records.Records(tmp_path, length=0, tensorboard=False) as log:
    kept = {}
    for step in range(20):
      log.write('train', step, {'loss': 0.5})
      kept = log.keep()
    length, whole = log.length, (tmp_path / 'metrics.jsonl').read_bytes()
    assert len(kept['chunks']) == length // 256
    (tmp_path / 'metrics.jsonl').unlink()  # while it is open
    log.write('train', 20, {'loss': 0.5})
    log.keep()
    assert len(records.read_records(tmp_path)) == 21
  for data in (b'', flipped(whole, 300), whole[:-9], whole[:200]):
    (tmp_path / 'metrics.jsonl').write_bytes(data)
    with records.Records(tmp_path, length=length, kept=kept, tensorboard=False, say=said.append) as log:
      assert log.length == length
    assert (tmp_path / 'metrics.jsonl').read_bytes() == whole
  shutil.rmtree(tmp_path / records.CHUNKS)  # both copies of some points are gone: they are told, the others stay
  (tmp_path / 'metrics.jsonl').write_bytes(flipped(whole, 300))
  with records.Records(tmp_path, length=length, kept=kept, tensorboard=False, say=said.append):
    pass
  assert 'are lost' in said[-1]
  assert len(records.read_records(tmp_path)) >= 18


@pytest.mark.parametrize('taken', ['constants', 'checkpoints', 'everything'])
def test_what_is_taken_away_while_a_run_is_under_way_is_written_again(taken, straight, tmp_path, monkeypatch):
  real, folder = loop.datasets.batch_at, tmp_path / 'run'

  def batch_at(split, size, seed, at):
    if at == 5:
      for path in list(folder.glob('checkpoints/const-*') if taken == 'constants' else [folder / 'checkpoints']):
        path.rename(tmp_path / f'taken-{path.name}')  # perhaps while a save is under way
      if taken == 'everything':
        folder.rename(tmp_path / 'moved')
    return real(split, size, seed, at)

  with monkeypatch.context() as patch:
    patch.setattr(loop.datasets, 'batch_at', batch_at)
    said = []
    run(folder, say=said.append, **STEP_BY_STEP)
  assert points(folder) == points(straight)
  assert leaves(folder) == leaves(straight)  # every leaf of the last checkpoint can be read
  assert np.isfinite(jl.load(folder).predict(X)).all()
  if taken == 'everything':
    assert any('is gone' in line and 'written again' in line for line in said)
  said.clear()
  run(folder, say=said.append, **STEP_BY_STEP)
  assert any(line.startswith('this run is finished') for line in said)


def test_the_model_in_memory_is_the_last_resort(tmp_path, monkeypatch):
  """The best checkpoint is gone when the run ends: the last model is tested, and that is said."""
  real = loop._fit

  def fit(*words):
    found = real(*words)
    shutil.rmtree(tmp_path / 'checkpoints')
    return found

  with monkeypatch.context() as patch:
    patch.setattr(loop, '_fit', fit)
    said = []
    result = run(tmp_path, up_and_down, say=said.append)
  assert result.best_step == 12
  assert any('model in memory' in line and 'step 12' in line for line in said)
  assert jl.load(tmp_path).predict(X).shape == (90, 3)


def test_a_loaded_student_carries_no_array_of_its_teacher(tmp_path):
  run(tmp_path / 'teacher', steps=2)
  teacher = jl.load(tmp_path / 'teacher')
  run(tmp_path / 'student', lambda config, total: jl.chain(jl.distill(teacher), optax.adam(0.05)), steps=2)
  student = jl.load(tmp_path / 'student')
  assert set(student.model_state['jl.const']) == {'normalize'}
  assert sum(leaf.size for leaf in jax.tree.leaves((student.params, student.model_state['jl.const']))) == 6 * 3 + 3 + 12
  assert student.predict(X).shape == (90, 3)
  assert len(repr(student)) < 100
