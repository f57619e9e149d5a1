"""TensorBoard's files: what its own reader finds in them is the record, whatever happened to the run or to them."""

import math
import os
import shutil

import numpy as np
import pytest

from jaxlite.run import events
from jaxlite.run.records import Records, read_records

pytestmark = pytest.mark.filterwarnings('default')  # tensorboard's own imports
VALUES = {'loss': 0.1, 'wide': 1e300, 'low': -1e300, 'none': math.nan, 'most': math.inf, 'small': 1e-300, 'count': 7}


def seen(folder):
  from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

  found = EventAccumulator(str(folder / 'tensorboard'), size_guidance={'scalars': 0})
  found.Reload()
  scalars = {tag: found.Scalars(tag) for tag in found.Tags()['scalars']}
  return {tag: [(one.step, one.value, round(one.wall_time, 3)) for one in of] for tag, of in scalars.items()}


def wanted(folder):
  found = {}
  for point in read_records(folder):
    for name, value in point.items():
      if name not in ('kind', 'step', 'time'):
        with np.errstate(over='ignore'):
          one = (point['step'], float(np.float32(value)), point['time'])
        found.setdefault(f'{point["kind"]}/{name}', []).append(one)
  return found


def same(one, other):
  return repr(one) == repr(other)  # NaN and all


def begun(folder, points=30):
  """A record whose checkpoint is at point 20 of 30; what it keeps."""
  with Records(folder, length=0) as records:
    for step in range(1, points + 1):
      records.write('train', step * 1_000_000_007, {'loss': step / 3})
      if step == 20:
        kept = {'length': records.length, 'kept': records.keep()}
  return kept


def resumed(folder, kept, say=print):
  with Records(folder, **kept, say=say) as records:
    records.write('validation', 21, {'loss': -1.0})
    return {'length': records.length, 'kept': records.keep()}


def test_tensorboard_reads_what_was_written(tmp_path):
  with Records(tmp_path, length=0) as records:
    records.write('train', 0, VALUES)
    records.write('validation', 2**40, {'loss': np.float64(0.3).item(), 'name of a part': 2})
    assert same(seen(tmp_path), wanted(tmp_path))  # while the run goes on
  assert len(seen(tmp_path)) == len(VALUES) + 2


def test_a_resume_cuts_the_files_and_writes_nothing_again(tmp_path, monkeypatch):
  kept = begun(tmp_path)
  monkeypatch.setattr(events, '_event', lambda point, real=events._event: written.append(point['step']) or real(point))
  written = []
  kept = resumed(tmp_path, kept)
  assert written == [21]
  assert same(seen(tmp_path), wanted(tmp_path))
  assert len(seen(tmp_path)['train/loss']) == 20
  for _ in range(3):
    kept = resumed(tmp_path, kept)
  assert written == [21] * 4
  assert same(seen(tmp_path), wanted(tmp_path))
  assert len(seen(tmp_path)['validation/loss']) == 4


def _flip(path):
  data = bytearray(path.read_bytes())
  data[len(data) // 3] ^= 1
  path.write_bytes(data)


@pytest.mark.parametrize(
  'harm',
  [
    lambda files, kept: [file.unlink() for file in files],
    lambda files, kept: shutil.rmtree(files[0].parent),
    lambda files, kept: files[0].write_bytes(files[0].read_bytes()[:100]),
    lambda files, kept: _flip(files[0]),
    lambda files, kept: files[0].write_bytes(b''),
    lambda files, kept: kept['kept'].pop('events'),  # of an older version, or of a run without TensorBoard
    lambda files, kept: kept['kept'].update(events=[['../metrics.jsonl', 3, '']]),
    lambda files, kept: kept['kept'].update(events=[3]),
    lambda files, kept: (files[0].parent / 'events.out.tfevents.9999999998.other').write_bytes(b'of another run'),
    lambda files, kept: kept['kept'].update(events=kept['kept']['events'] * 99),
    lambda files, kept: kept['kept'].update(events='nothing'),
  ],
)
def test_files_that_are_not_as_the_checkpoint_knows_them_are_written_again(harm, tmp_path):
  kept = begun(tmp_path)
  harm(sorted((tmp_path / 'tensorboard').iterdir()), kept)
  resumed(tmp_path, kept)
  assert same(seen(tmp_path), wanted(tmp_path))
  assert [len(of) for of in seen(tmp_path).values()] == [20, 1]


def test_an_older_checkpoint_cuts_further_back(tmp_path):
  kept = begun(tmp_path)
  resumed(tmp_path, resumed(tmp_path, kept))  # whose checkpoints turn out damaged
  resumed(tmp_path, kept)
  assert same(seen(tmp_path), wanted(tmp_path))
  assert len(seen(tmp_path)['validation/loss']) == 1


def test_points_that_the_record_lost_are_lost_here_too(tmp_path):
  kept = begun(tmp_path)
  kept['kept']['tail'] = kept['kept']['tail'].replace('{"kind"', '{"knid"', 1)
  resumed(tmp_path, {**kept, 'kept': {**kept['kept'], 'chunks': ['0' * 64]}}, say=lambda line: None)
  assert same(seen(tmp_path), wanted(tmp_path))


def test_a_folder_that_is_taken_away_under_a_run_comes_back(tmp_path):
  with Records(tmp_path, length=0) as records:
    records.write('train', 1, {'loss': 0.5})
    os.rename(tmp_path / 'tensorboard', tmp_path / 'elsewhere')
    records.write('train', 2, {'loss': 0.25})
    records.keep()
    records.write('train', 3, {'loss': 0.125})
    assert same(seen(tmp_path), wanted(tmp_path))
    assert len(seen(tmp_path)['train/loss']) == 3
