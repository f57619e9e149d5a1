"""Laws of the record and of checkpoints whose folder comes loose: no point is lost, nothing is written beside it."""

import errno
import io
import os

import pytest

import jaxlite as jl
from jaxlite.checkpoint import Checkpoints
from jaxlite.host.files import comes_loose
from jaxlite.run import records
from loops import X


class Dead(io.BytesIO):
  """A file on a mount that came loose."""

  def write(self, data):
    raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))

  def fileno(self):
    raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))


def test_a_record_whose_disk_comes_loose_loses_no_point(tmp_path, monkeypatch):
  monkeypatch.setattr(records, '_CHUNK', 256)
  here, aside = tmp_path / 'here', tmp_path / 'aside'
  here.mkdir()
  with records.Records(here, length=0) as log:
    for step in range(1, 41):
      if step in (5, 25):
        for owner in (log, log._tensorboard):
          owner._file.close()
          owner._file = Dead()
      log.write('train', step, {'loss': 1 / step})
      if step == 10:
        log.keep(aside)
      if step == 20:
        log.keep(here)
    kept = log.keep()
    length = log.length
  assert [point['step'] for point in records.read_records(aside)] == list(range(1, 21))
  whole = (here / 'metrics.jsonl').read_bytes()
  assert [point['step'] for point in records.read_records(here)] == list(range(1, 41))
  (here / 'metrics.jsonl').unlink()
  with records.Records(here, length=length, kept=kept, say=lambda line: None):
    assert (here / 'metrics.jsonl').read_bytes() == whole


def test_a_record_that_could_be_written_nowhere_goes_on_in_memory(tmp_path):
  blocked = tmp_path / 'blocked'
  blocked.write_text('a file where a folder was to be')
  with records.Records(tmp_path, length=0) as log:
    log.write('train', 1, {'loss': 1.0})
    with pytest.raises(OSError, match='blocked'):
      log.keep(blocked)
    log.write('train', 2, {'loss': 0.5})
    log.keep(tmp_path)
    log.write('train', 3, {'loss': 0.25})
  assert [point['step'] for point in records.read_records(tmp_path)] == [1, 2, 3]


def test_checkpoints_of_a_folder_that_is_not_there_are_not_written_beside_it(tmp_path):
  there = [True]
  with Checkpoints(tmp_path / 'run' / 'checkpoints', there=lambda: there[0]) as saves:
    saves.save(1, {'w': X}, {}, wait=True)
    (tmp_path / 'run').rename(tmp_path / 'away')
    there[0] = False
    with pytest.raises(jl.checkpoint.CheckpointError, match='out of reach') as caught:
      saves.save(2, {'w': X}, {}, wait=True)
    assert comes_loose(caught.value)
    assert not (tmp_path / 'run').exists()
