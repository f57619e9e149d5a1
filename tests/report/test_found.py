"""Whatever lies in a folder, there is a page, and what could not be read is told: half-written, damaged, of others."""

import json
import math
import os
import random
import subprocess
import sys

import pytest

import sample_runs as samples
from jaxlite.host.sealed import sealed_text
from jaxlite.report import found
from jaxlite.report.found import EMPTY, FINISHED, STOPPED, UNDER_WAY, runs_in
from pages import check, shown

FILES = ('config.json', 'metrics.jsonl', 'result.json', 'step.txt')


def make(folder, name='student', **more):
  return samples.write_run(folder, samples.result(name, samples.answers(200, 0.9, 1)), **more)


def text_of(folder):
  return ' '.join(check(shown(folder)).text)


@pytest.mark.parametrize('file', FILES)
@pytest.mark.parametrize(
  'damage',
  [b'', b'\x00\xff\xfe', b'{', b'[' * 200_000, b'3', b'null', b'{"config": 3, "format": 99}', 'link', 'folder', 'gone'],
  ids=lambda damage: damage[:6].decode('latin-1') if isinstance(damage, bytes) else damage,
)
def test_a_damaged_file_costs_what_it_said_and_no_more(tmp_path, file, damage):
  folder = make(tmp_path / 'run')
  path = folder / file
  path.unlink()
  if damage == 'link':
    path.symlink_to('/etc/hostname')
  elif damage == 'folder':
    path.mkdir()
  elif damage != 'gone':
    path.write_bytes(damage)
  text = text_of(tmp_path)
  if file != 'result.json':
    assert '90' in text
    assert 'sparsity of weights' in text
  elif damage != 'gone':
    assert 'result.json is damaged' in text or 'another version' in text
  if file == 'metrics.jsonl':
    assert 'Learning rate' not in text


def test_the_state_of_a_run_is_seen(tmp_path):
  make(tmp_path / 'done')
  make(tmp_path / 'killed', finished=False)
  make(tmp_path / 'begun', finished=False, points=[])
  folder = make(tmp_path / 'going', finished=False)
  (folder / '.lock').write_text(json.dumps({'pid': os.getpid(), 'host': found.socket.gethostname(), 'since': ''}))
  dead = subprocess.Popen([sys.executable, '-c', ''])
  dead.wait()
  folder = make(tmp_path / 'dead', finished=False)
  (folder / '.lock').write_text(json.dumps({'pid': dead.pid, 'host': found.socket.gethostname(), 'since': ''}))
  states = {run.folder: run.state for run in runs_in(tmp_path).runs}
  assert states == {'begun': EMPTY, 'dead': STOPPED, 'done': FINISHED, 'going': UNDER_WAY, 'killed': STOPPED}


def test_locks_are_only_read(tmp_path):
  folder = make(tmp_path / 'run')
  for text in (
    '',
    '{',
    '[]',
    '{"pid": "x", "host": 3}',
    json.dumps({'pid': -1, 'host': 'x'}),
    json.dumps({'pid': 2**70, 'host': found.socket.gethostname()}),
  ):
    (folder / '.lock').write_text(text)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob('*')}
    assert runs_in(tmp_path).runs[0].state == FINISHED
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob('*')} == before
  (folder / '.lock').write_text(json.dumps({'pid': 1, 'host': 'another machine'}))
  assert runs_in(tmp_path).runs[0].state == UNDER_WAY  # believed


def test_runs_of_other_versions_are_shown_as_far_as_they_are_known(tmp_path):
  folder = make(tmp_path / 'run')
  plain = json.loads((folder / 'result.json').read_text())
  plain.pop('sha256')
  (folder / 'result.json').write_text(
    sealed_text({**plain, 'of_tomorrow': [1], 'layers': [{'path': 'w', 'size': 'many'}]})
  )
  text = text_of(folder)
  assert 'written by another version of jaxlite: layers, of_tomorrow of it is not shown' in text
  assert '95 % interval' in text
  old = {name: plain[name] for name in ('name', 'metrics', 'rows', 'seconds', 'run')}
  (folder / 'result.json').write_text(json.dumps({**old, 'run': ''}))  # as of 0.1: no hash
  assert 'another version' not in text_of(folder)
  config = json.loads((folder / 'config.json').read_text())
  (folder / 'config.json').write_text(json.dumps({**config, 'format': 99}))
  assert 'config.json is of another version of jaxlite (format 99)' in text_of(folder)


def test_a_result_of_another_run_is_not_believed(tmp_path):
  make(tmp_path / 'one', run='a1')
  make(tmp_path / 'other', run='b2')
  (tmp_path / 'one' / 'result.json').write_bytes((tmp_path / 'other' / 'result.json').read_bytes())
  text = text_of(tmp_path / 'one')
  assert 'result.json is of another run than config.json' in text
  assert '95 % interval' not in text


def mutated(value, draw, depth=0):
  """The same JSON with one leaf or branch made strange."""
  if isinstance(value, dict | list) and value and draw.random() < 0.9 and depth < 6:
    keys = list(value) if isinstance(value, dict) else range(len(value))
    key = draw.choice(list(keys))
    made = value.copy()
    made[key] = mutated(value[key], draw, depth + 1)
    return made
  return draw.choice(
    [None, True, -1, 10**400, 1e308, -1e308, math.nan, math.inf, '', 'x' * 5000, '{:>999999999}', '{0.__class__}', [],
     {}, [[]], [None], {'a': 1}, [[1, [2]]], '<script>', 5e-324, [math.nan] * 9]
  )  # fmt: skip


def test_strange_values_leave_a_page(tmp_path):
  folder = make(tmp_path / 'run')
  (folder / 'deployed').mkdir()
  whole = json.loads((folder / 'result.json').read_text())
  whole.pop('sha256')
  whole['forecast']['target'] = {'metric': 'accuracy', 'target': 0.9, 'early': None, 'reached': 40}
  files = {'format': 'onnx', 'why': '', 'bytes': 2, 'score': 0.9, 'latency': {'1': [0.1, 0.2]}, 'memory': 5}
  deployed = {'written': [files], 'metric': 'accuracy'}
  finding = {'name': 'leak', 'evidence': 'none', 'present': True}
  judged = {'verdict': 'broken', 'cause': 'leak', 'findings': [finding], 'action': {'sentence': 'x', 'command': 'y'}}
  draw, lost = random.Random(0), 0
  for _ in range(150):
    strange = mutated(whole, draw)
    (folder / 'result.json').write_text(sealed_text(strange) if isinstance(strange, dict) else json.dumps(strange))
    (folder / 'deployed' / 'deployed.json').write_text(json.dumps(mutated(deployed, draw)))
    (folder / 'diagnosis.json').write_text(json.dumps(mutated(judged, draw)))
    text = shown(folder)
    lost += 'cannot be shown' in text
    assert '<script' not in text
    assert len(text) < 400_000
  assert lost < 60  # most of a page stands


def test_the_walk_stays_in_the_folder_and_is_bounded(tmp_path, monkeypatch):
  make(tmp_path / 'runs' / 'a' / 'run')
  make(tmp_path / 'elsewhere')
  (tmp_path / 'runs' / 'link').symlink_to(tmp_path / 'elsewhere')
  make(tmp_path / 'runs' / '.hidden')
  make(tmp_path / 'runs' / 'a' / 'run' / 'checkpoints' / 'x')
  assert [run.folder for run in runs_in(tmp_path / 'runs').runs] == ['a/run']
  monkeypatch.setattr(found, '_FOLDERS', 2)
  seen = runs_in(tmp_path / 'runs')
  assert any('only the first 2 folders' in note for note in seen.notes)
  monkeypatch.undo()
  for index in range(3):
    make(tmp_path / 'runs' / f'b{index}', name='same')
  assert [run.name for run in runs_in(tmp_path / 'runs').runs] == ['student', 'b0', 'b1', 'b2']
  monkeypatch.setattr(found, '_MOST', 2)
  seen = runs_in(tmp_path / 'runs')
  assert len(seen.runs) == 2
  assert '4 runs lie here; the first 2 by name are shown' in seen.notes[0]


def test_a_pipe_is_not_waited_for(tmp_path):
  folder = make(tmp_path / 'run')
  for name in ('metrics.jsonl', 'result.json', '.lock'):
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
  assert 'student' in text_of(folder)
