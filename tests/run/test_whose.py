"""Files and checkpoints of two runs that are exchanged are told apart, though each is sound by its own hash."""

import json
import shutil

import numpy as np
import pytest

import jaxlite as jl
from jaxlite.deployment import run_id
from loops import X, Y, evidence, run

pytestmark = pytest.mark.unoptimized


@pytest.fixture(scope='module')
def two(tmp_path_factory):
  """Two runs that differ in their data alone: every file of the one has its like in the other."""
  folder = tmp_path_factory.mktemp('whose')
  run(folder / 'one', steps=6)
  run(folder / 'other', steps=6, data=(X, (Y + 1) % 3))
  return folder, evidence(folder / 'one')


def mixed(two, tmp_path, *names):
  """A copy of the first run in which these are the other's."""
  folder = tmp_path / 'mixed'
  shutil.copytree(two[0] / 'one', folder)
  for name in names:
    path = folder / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    source = two[0] / 'other' / name
    (shutil.copytree if source.is_dir() else shutil.copy)(source, path)
  return folder


@pytest.mark.sampled(2)
@pytest.mark.parametrize('name', ['task.json', 'program.json', 'result.json', 'config.json', 'metrics.jsonl'])
def test_a_file_of_another_run_is_told_and_made_again(name, two, tmp_path, capsys):
  folder, said = mixed(two, tmp_path, name), []
  if name in ('task.json', 'program.json'):
    with pytest.raises(ValueError, match=rf'^[^\n]*{name}[^\n]*of another run[^\n]*$'):
      jl.load(folder)
  else:
    np.testing.assert_array_equal(jl.load(folder).predict(X), jl.load(two[0] / 'one').predict(X))
  run(folder, steps=6, say=said.append)
  assert any(name in line and 'damaged' in line for line in said), said
  if name in ('program.json', 'result.json'):  # bytes that are serialized anew, and seconds
    assert evidence(folder) == two[1]
  else:
    assert (folder / name).read_bytes() == (two[0] / 'one' / name).read_bytes()


def test_a_checkpoint_of_another_run_is_not_taken(two, tmp_path, capsys):
  steps = sorted(path.name for path in (two[0] / 'one' / 'checkpoints').glob('0*'))
  for name in {path.name for path in (two[0] / 'other' / 'checkpoints').glob('0*')} & set(steps):
    folder = mixed(two, tmp_path, f'checkpoints/{name}')
    assert run_id.run_of(folder) == run_id.run_of(two[0] / 'one')
    found = jl.load(folder, which='latest').predict(X)
    best = {step: np.asarray(jl.load(two[0] / 'one', which=int(step)).predict(X)) for step in steps if step != name}
    assert any(np.array_equal(found, one) for one in best.values())
    if name == steps[-1]:
      assert 'it is of another run' in capsys.readouterr().out
    shutil.rmtree(folder)


def test_checkpoints_of_two_steps_that_are_exchanged_are_not_taken_for_each_other(two, tmp_path):
  folder = mixed(two, tmp_path)
  first, last = sorted((folder / 'checkpoints').glob('0*'))[-2:]
  first.rename(tmp_path / 'aside')
  last.rename(first)
  (tmp_path / 'aside').rename(last)
  with pytest.raises(jl.checkpoint.CheckpointError, match=r'^[^\n]*it is that of step \d+[^\n]*$'):
    jl.load(folder)


def test_every_run_has_an_id_of_its_own_and_keeps_it(two, tmp_path):
  one, other = run_id.run_of(two[0] / 'one'), run_id.run_of(two[0] / 'other')
  assert len({one, other, ''}) == 3
  folder = mixed(two, tmp_path)
  run(folder, steps=8)
  assert run_id.run_of(folder) == one
  run(folder, steps=8, fresh=True)
  assert run_id.run_of(folder) not in (one, other)


def test_a_run_of_an_older_version_has_none_and_goes_on_without(two, tmp_path, monkeypatch):
  with monkeypatch.context() as patch:
    patch.setattr(run_id, 'draw', lambda: '')
    run(tmp_path / 'old', steps=4)
  for name in ('task.json', 'program.json', 'result.json'):
    about = json.loads((tmp_path / 'old' / name).read_text())
    assert about.pop('run') == ''
    del about['sha256']
    (tmp_path / 'old' / name).write_text(json.dumps(about))
  assert jl.load(tmp_path / 'old').predict(X).shape == (90, 3)
  said = []
  run(tmp_path / 'old', steps=4, say=said.append)
  assert said[-1].startswith('this run is finished')
  shutil.copy(two[0] / 'one' / 'result.json', tmp_path / 'old' / 'result.json')
  run(tmp_path / 'old', steps=4, say=said.append)
  assert any('it is of another run' in line for line in said)


def test_a_deleted_task_is_said_and_the_model_still_predicts(two, tmp_path, capsys):
  folder = mixed(two, tmp_path)
  (folder / 'task.json').unlink()
  network = jl.load(folder)
  assert 'task.json is missing' in capsys.readouterr().out
  np.testing.assert_array_equal(network.predict(X), jl.load(two[0] / 'one').predict(X))


def test_a_file_without_its_hash_is_not_believed(two, tmp_path):
  folder = mixed(two, tmp_path)
  about = json.loads((folder / 'task.json').read_text())
  del about['sha256']
  (folder / 'task.json').write_text(
    json.dumps({**about, 'facts': {'classes': 3, 'class_names': list('cba'), 'top': [5]}})
  )
  with pytest.raises(ValueError, match=r'^[^\n]*task\.json is damaged \(its own hash is missing\)[^\n]*$'):
    jl.load(folder)
