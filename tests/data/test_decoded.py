"""What was looked at once is not looked at again, what was begun is gone on with, and what is damaged is noticed."""

import copy
import pickle

import numpy as np
import pytest

from jaxlite.data import from_arrays
from jaxlite.data.decoded import Decoded, Workers
from jaxlite.data.inspection import inspect_files
from jaxlite.data.records import make_records

WORKERS = Workers(2)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
  monkeypatch.setenv('JAXLITE_DATA', str(tmp_path / 'home'))


def numbers(row, out):
  out[...] = row


def test_rows_are_those_that_are_asked_for_in_any_order():
  array = Decoded(numbers, 9, (2,), np.int32, workers=WORKERS)
  rows = array.rows(np.array([8, 3, 3, 0]))
  array.expect(np.array([3, 0, 8, 8]))
  np.testing.assert_array_equal(rows[:, 0], [8, 3, 3, 0])
  np.testing.assert_array_equal(rows.take([[3, 1], [0, 0]], axis=0)[..., 1], [[0, 3], [8, 8]])
  np.testing.assert_array_equal(array[-1], [8, 8])
  with pytest.raises(IndexError, match=r'in \[0, 9\)'):
    array.take([9])
  for twin in (copy.deepcopy(array), pickle.loads(pickle.dumps(array))):
    np.testing.assert_array_equal(twin[2:4][:, 0], [2, 3])
  assert not hasattr(rows, 'shard_shape')  # asking for a name that arrays lack decodes nothing


def test_an_error_of_one_example_reaches_who_asks_and_no_one_else():
  def make(row, out):
    if row == 5:
      raise ValueError('row 5 is broken')
    out[...] = row

  array = Decoded(make, 9, (), np.int32, workers=WORKERS)
  array.expect(np.array([5, 6]))
  assert array.take([1, 2]).tolist() == [1, 2]
  with pytest.raises(ValueError, match='row 5 is broken'):
    array.take([4, 5])
  assert array.take([6, 4]).tolist() == [6, 4]


def test_arrays_of_decoded_examples_make_a_data_set_without_being_read():
  array = Decoded(numbers, 40, (3,), np.float32, workers=WORKERS, ahead=0)
  data = from_arrays((array.rows(), np.arange(40) % 2), standardize=False)
  assert data.train.inputs.shape == (32, 3)


def look_at(root, files, look, **options):
  empty = {'size': np.zeros((), np.int64)}
  return inspect_files(root, files, look, empty, about='test', what='files', workers=WORKERS, **options)


def test_files_are_looked_at_once_and_a_look_that_was_killed_goes_on(tmp_path):
  files = [f'{number}.txt' for number in range(400)]
  for number, name in enumerate(files):
    (tmp_path / name).write_bytes(b'x' * number)
  seen = []

  def look(path, content):
    seen.append(path)
    if len(content) == 3:
      raise ValueError(f'{path} is three')
    if len(seen) == 300:
      raise KeyboardInterrupt  # as from a person
    return {'size': len(content)}

  with pytest.raises(KeyboardInterrupt):
    look_at(tmp_path, files, look)
  first = len(seen)
  found = look_at(tmp_path, files, look)
  assert len(seen) < 400 + 300  # not all over again
  assert found.columns['size'].tolist() == [0, 1, 2, 0, *range(4, 400)]
  assert np.flatnonzero(found.error != '').tolist() == [3]
  assert 100 < first <= 400
  count = len(seen)
  look_at(tmp_path, files, look)
  assert len(seen) == count
  (tmp_path / '7.txt').write_bytes(b'other')
  (tmp_path / 'new.txt').write_bytes(b'new')
  found = look_at(tmp_path, [*files, 'new.txt'], look)
  assert sorted(path.rsplit('/', 1)[1] for path in seen[count:]) == ['7.txt', 'new.txt']
  assert found.columns['size'][[7, 400]].tolist() == [5, 3 * 0]  # three again
  (tmp_path / '9.txt').unlink()
  assert 'cannot be read' in look_at(tmp_path, files, look).error[9]


def test_a_damaged_memory_is_no_memory(tmp_path):
  (tmp_path / 'a.txt').write_bytes(b'abc!')
  one = look_at(tmp_path, ['a.txt'], lambda path, content: {'size': len(content)})
  for kept in (tmp_path / 'home').rglob('*.npz'):
    kept.write_bytes(kept.read_bytes()[:-40])
  other = look_at(tmp_path, ['a.txt'], lambda path, content: {'size': len(content)})
  assert one.digest.tobytes() == other.digest.tobytes()


def test_records_go_on_where_they_were_killed_and_notice_damage(tmp_path):
  made, path = [], tmp_path / 'kept' / 'some.pixels'

  def encode(row, stop=-1):
    made.append(row)
    if row == stop:
      raise KeyboardInterrupt
    return bytes([row % 251]) * (row % 7 + 1)

  options = {'expected': 10, 'workers': WORKERS, 'what': 'rows'}
  with pytest.raises(KeyboardInterrupt):
    make_records(path, 200, lambda row: encode(row, 150), **options)
  assert len(made) < 190
  made.clear()
  records = make_records(path, 200, encode, **options)
  assert min(made) == 150
  assert [records.read(row).tobytes() for row in range(200)] == [encode(row) for row in range(200)]
  made.clear()
  again = make_records(path, 200, encode, **options)
  assert not made
  with open(path, 'r+b') as file:
    file.seek(int(records.offsets[120]))
    file.write(b'\xff')
  assert again.read(120) is None
  assert again.read(121) is not None
  assert again.read(0, np.empty(9, np.uint8)) is None  # of another size
  with open(path, 'r+b') as file:
    file.truncate(50)
  made.clear()
  make_records(path, 200, encode, **options)
  assert min(made) == 0
