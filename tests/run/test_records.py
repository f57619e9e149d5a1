"""The record of a run: cut back to what a checkpoint knows, never torn, never doubled."""

import io

import pytest

from jaxlite.run.progress import Progress
from jaxlite.run.records import Records, read_records


def steps(folder):
  return [point['step'] for point in read_records(folder)]


def test_a_record_is_cut_back_to_its_length_and_knows_it_at_once(tmp_path):
  with Records(tmp_path, length=0, tensorboard=False) as records:
    records.write('train', 1, {'loss': 1.0})
    kept = records.length
    records.write('train', 2, {'loss': 0.5})
  with Records(tmp_path, length=kept, tensorboard=False) as records:
    assert records.length == kept  # a run may be saved before it writes its next point
    assert steps(tmp_path) == [1]
    records.write('train', 2, {'loss': 0.5})
    assert records.length > kept
  assert steps(tmp_path) == [1, 2]


def test_a_torn_last_line_is_left_out(tmp_path):
  with Records(tmp_path, length=0, tensorboard=False) as records:
    records.write('train', 1, {'loss': 1.0})
  path = tmp_path / 'metrics.jsonl'
  path.write_bytes(path.read_bytes() + b'{"kind": "tra')
  assert steps(tmp_path) == [1]


def test_lost_lines_are_told(tmp_path):
  with pytest.raises(ValueError, match='fresh=True'):
    Records(tmp_path, length=10, tensorboard=False)


def test_a_pipe_gets_plain_lines_and_no_bar():
  out = io.StringIO()
  progress = Progress(10, 0, 4, out=out)
  for step in range(1, 6):
    progress.step(step)
  progress.line(5, 'loss 1.0')
  progress.done()
  assert out.getvalue().startswith('step 5/10  loss 1.0')
  assert '\r' not in out.getvalue()


def test_progress_can_be_silent():
  out = io.StringIO()
  Progress(10, 0, 4, show=False, out=out).line(5, 'loss')
  assert out.getvalue() == ''


def test_a_damaged_line_is_named(tmp_path):
  (tmp_path / 'metrics.jsonl').write_bytes(b'{"step": 1}\n{"ste\n{"step": 3}\n')
  with pytest.raises(ValueError, match=r'metrics\.jsonl: line 2 is no JSON.*fresh=True'):
    read_records(tmp_path)
