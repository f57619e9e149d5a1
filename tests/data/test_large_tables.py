"""A table that is read block by block is the one that is read at once, bit for bit; and it may be beyond the limit."""

import csv
import functools
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

import jaxlite as jl
from jaxlite import data as datasets
from jaxlite.data import large_files, large_tables, large_texts, tables

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch, tmp_path):
  """Blocks of seven rows, kept in a folder of the test."""
  few = functools.partial(large_files.blocks, rows=7)
  for module in (large_tables, tables):
    monkeypatch.setattr(module, 'blocks', few)
  monkeypatch.setenv('JAXLITE_DATA', str(tmp_path / 'kept'))


def columns_of(seed, rows=60):
  """Columns of every kind that a table may have; which ones, the seed says."""
  rng = np.random.default_rng(seed)
  colors = rng.choice(['red', 'blue', 'green ', ''], rows).tolist()
  if seed % 2:
    colors[rng.integers(rows)] = 'once'  # a name that perhaps only one split has
  found = {
    'size': rng.normal(size=rows).round(3).tolist(),
    'count': rng.integers(0, 9, rows).tolist(),
    'color': colors,
    'flag': rng.choice(['true', 'False'], rows).tolist(),
    'index': list(range(rows)),
    'large': (rng.integers(0, 9, rows) + 2**24 + 1).tolist(),
    'code': rng.integers(0, 5, rows).tolist(),
  }
  labels = (rng.choice(['yes', 'no'], rows), rng.integers(0, 3, rows), rng.normal(size=rows).round(4))[seed % 3]
  return {**found, 'label': labels.tolist(), 'weight': rng.integers(0, 4, rows).tolist()}


def written(columns, folder, ending):
  path = folder / f'table{ending}'
  names, rows = list(columns), list(zip(*columns.values(), strict=True))
  if ending == '.csv':
    with open(path, 'w', newline='') as file:
      csv.writer(file).writerows([names, *rows])
  elif ending == '.jsonl':
    path.write_text('\n'.join(json.dumps(dict(zip(names, row, strict=True))) for row in rows) + '\n')
  else:
    pa = pytest.importorskip('pyarrow')
    import pyarrow.parquet as pq

    pq.write_table(pa.table(columns), path, row_group_size=13)
  return path


def same(one, other):
  assert one.fingerprint == other.fingerprint
  assert one.encoder == other.encoder
  assert one.notes == other.notes
  assert one.facts == other.facts
  assert (one.mean == other.mean).all()
  assert (one.std == other.std).all()
  assert one.feature_names == other.feature_names
  for step in (0, 3, 11):
    a, b = (datasets.batch_at(each.train, 8, 5, step) for each in (one, other))
    assert all((a[name] == b[name]).all() for name in a)


@pytest.mark.parametrize('ending', ['.csv', '.jsonl', '.parquet'])
@pytest.mark.parametrize('seed', range(6))
def test_the_disk_gives_what_memory_gives(seed, ending, tmp_path):
  path = written(columns_of(seed), tmp_path, ending)
  task = jl.tasks.regression if seed % 3 == 2 else None
  options = {'categorical': 'code', 'weight': 'weight' if seed > 2 else None, 'drop': () if seed > 2 else 'weight'}
  one, other = (
    datasets.from_table(path, 'label', task=task, seed=seed, keep=keep, **options) for keep in ('memory', 'disk')
  )
  same(one, other)
  mapped = [type(datasets.from_table(path, 'label', task=task, seed=seed, keep='disk', **options).test.inputs)]
  assert mapped == [np.ndarray]  # few bytes are copied; more stay where they are, see `chosen`


def test_several_labels_and_a_folder_of_parquet(tmp_path):
  pytest.importorskip('pyarrow')
  folder = tmp_path / 'parts'
  folder.mkdir()
  for part in range(3):
    columns = columns_of(part * 6, 30)
    columns['other'] = columns['count']
    written(columns, folder, '.parquet').rename(folder / f'{part}.parquet')
  options = {'task': jl.tasks.regression, 'drop': ('label', 'weight')}
  one, other = (datasets.from_table(folder, ('size', 'other'), keep=keep, **options) for keep in ('memory', 'disk'))
  same(one, other)


@pytest.mark.parametrize(
  'change',
  [
    lambda c: c['size'].__setitem__(40, ''),
    lambda c: c['size'].__setitem__(40, 'NA'),
    lambda c: c['label'].__setitem__(50, ''),
    lambda c: c.__setitem__('empty', [''] * 60),
    lambda c: c.__setitem__('id', [f'n{row}' for row in range(60)]),
    lambda c: c.__setitem__('size', ['inf'] * 60),
    lambda c: c.__setitem__('Unnamed: 0', list(range(60))),
    lambda c: c.pop('label'),
    lambda c: c['weight'].__setitem__(3, -1),
  ],
)
def test_what_is_wrong_is_told_as_of_a_table_in_memory(change, tmp_path):
  columns = columns_of(0)
  change(columns)
  path, said = written(columns, tmp_path, '.csv'), []
  for keep in ('memory', 'disk'):
    with pytest.raises(ValueError, match=r'\w') as error:
      datasets.from_table(path, 'label', weight='weight', keep=keep)
    said.append(str(error.value))
  assert said[0] == said[1]


def test_what_is_made_is_found_again_and_made_anew_where_it_is_damaged(tmp_path, monkeypatch):
  path = written(columns_of(0), tmp_path, '.csv')
  one = datasets.from_table(path, 'label', keep='disk')
  (kept,) = (tmp_path / 'kept' / 'tables').glob('*.bin')
  before = kept.stat().st_mtime_ns
  datasets.from_table(path, 'label', keep='disk')
  assert kept.stat().st_mtime_ns == before
  data = bytearray(kept.read_bytes())
  data[5] ^= 1
  kept.write_bytes(data)
  same(one, datasets.from_table(path, 'label', keep='disk'))
  monkeypatch.setenv('JAXLITE_DATA', '/proc/nowhere')
  with pytest.raises(ValueError, match='set JAXLITE_DATA to another folder'):
    datasets.from_table(path, 'label', keep='disk')


def test_names_that_follow_many_numbers_are_names(tmp_path, monkeypatch):
  monkeypatch.setattr(large_tables, '_FEW_NAMES', 5)
  columns = columns_of(0)
  columns['late'] = [*range(10), *(['x', 'y'] * 25)]
  path = written(columns, tmp_path, '.csv')
  same(*(datasets.from_table(path, 'label', keep=keep) for keep in ('memory', 'disk')))


@pytest.mark.parametrize(
  ('table', 'keep', 'words'),
  [
    ({'a': [1.0], 'label': [0]}, 'disk', 'reads a file block by block'),
    ('no.csv', 'disk', 'reads a file block by block'),
    ({'a': [1.0], 'label': [0]}, 'ram', 'keep is one of'),
  ],
)
def test_where_a_table_is_kept_is_a_choice_of_three(table, keep, words):
  with pytest.raises(ValueError, match=words):
    datasets.from_table(table, 'label', keep=keep)


def test_auto_takes_the_disk_where_memory_would_not_do(tmp_path, monkeypatch):
  path = written(columns_of(0), tmp_path, '.csv')
  assert not large_files.goes_to_disk(path, 'auto')
  free = large_files.limits()._replace(free=os.path.getsize(path) * 4)
  monkeypatch.setattr(large_files, 'limits', lambda: free)
  assert large_files.goes_to_disk(path, 'auto')
  same(datasets.from_table(path, 'label', keep='memory'), datasets.from_table(path, 'label'))


LIMITED = """
import resource, sys
import numpy as np
import jaxlite as jl
from jaxlite import data as datasets
from jaxlite.host.machine import status

path, more = sys.argv[1], int(float(sys.argv[2]) * 1e6)
datasets.from_table({'a': np.arange(40.0), 'label': np.arange(40) % 2}, 'label')  # what is imported late
limit = status('VmData') + more
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
data = datasets.from_table(path, 'label', drop='row')
seen = sum(float(datasets.batch_at(data.train, 64, 0, step)['inputs'].sum()) for step in range(50))
print(len(data.train.labels), type(data.train.inputs).__name__, round(seen, 1))
try:  # last: what it leaves behind is room that nobody has
  datasets.from_table(path, 'label', keep='memory')
  print('memory did')
except MemoryError:
  print('memory does not')
"""


def table_of(path, rows, columns=8):
  """A CSV file of numbers."""
  rng = np.random.default_rng(0)
  with open(path, 'w') as file:
    file.write(','.join(['row', *(f'x{i}' for i in range(columns)), 'label']) + '\n')
    for start in range(0, rows, 10_000):
      values = rng.normal(size=(min(10_000, rows - start), columns))
      np.savetxt(file, np.column_stack([np.arange(start, start + len(values)), values, values[:, 0] > 0]),
                 ['%d', *['%.5f'] * columns, '%d'], ',')  # fmt: skip


def limited(path, megabytes, code=LIMITED):
  environment = {**os.environ, 'PYTHONPATH': str(ROOT), 'JAXLITE_DATA': str(path.parent / 'kept')}
  done = subprocess.run([sys.executable, '-c', code, str(path), str(megabytes)], capture_output=True, text=True,
                        env=environment, timeout=900)  # fmt: skip
  assert done.returncode == 0, done.stderr
  return done.stdout.split('\n')


@pytest.mark.skipif(sys.platform != 'linux', reason='RLIMIT_DATA counts elsewhere otherwise')
def test_a_table_beyond_the_memory_limit_is_read_all_the_same(tmp_path):
  table_of(tmp_path / 'table.csv', 60_000)
  assert os.path.getsize(tmp_path / 'table.csv') > 4e6
  said = limited(tmp_path / 'table.csv', 32)
  assert said[0].startswith('48000 ')
  assert said[1] == 'memory does not'


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != 'linux', reason='RLIMIT_DATA counts elsewhere otherwise')
def test_a_file_four_times_the_room_is_read(tmp_path):
  table_of(tmp_path / 'table.csv', 240_000, 112)
  assert os.path.getsize(tmp_path / 'table.csv') > 4 * 56e6
  said = limited(tmp_path / 'table.csv', 56)
  assert said[0].startswith('192000 Chosen')
  assert said[1] == 'memory does not'


@pytest.mark.parametrize('ending', ['.jsonl', '.csv'])
def test_texts_from_the_disk_are_those_from_memory(ending, tmp_path, monkeypatch):
  monkeypatch.setattr(large_texts, 'blocks', functools.partial(large_files.blocks, rows=7))
  rng = np.random.default_rng(0)
  texts = [' '.join(rng.choice(['good', 'bad', 'film', 'dull'], rng.integers(1, 9))) for _ in range(50)]
  path = written({'text': texts, 'label': rng.choice(['no', 'yes'], 50).tolist()}, tmp_path, ending)
  for options in ({}, {'length': 4, 'tokenizer': datasets.ByteTokenizer()}):
    one, other = (datasets.labeled_texts(path, keep=keep, **options) for keep in ('memory', 'disk'))
    assert (one.fingerprint, one.notes, one.encoder) == (other.fingerprint, other.notes, other.encoder)
    assert one.facts == other.facts
  opened = datasets.open_path(path, keep='disk')
  assert opened.fingerprint == datasets.labeled_texts(path, keep='memory').fingerprint
  path.write_text(path.read_text() + ('{"text": null, "label": "no"}\n' if ending == '.jsonl' else ''))
  if ending == '.jsonl':
    with pytest.raises(ValueError, match='has none in row 50'):
      datasets.labeled_texts(path, keep='disk')
