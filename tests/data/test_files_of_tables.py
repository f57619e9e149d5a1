"""Parquet and JSON lines are the tables that CSV is; what is missing, doubled or nested is told with its place."""

import json

import numpy as np
import pytest

from jaxlite.data import from_table, labeled_texts
from jaxlite.data.frames import read_columns

pa = pytest.importorskip('pyarrow')
pq = pytest.importorskip('pyarrow.parquet')

TABLE = {
  'size': [1.5, 2.5, 3.0] * 8,
  'count': [1, 2, 3] * 8,
  'color': ['red', 'blue', ''] * 8,
  'wide': [True, False, True] * 8,
  'kind': ['a', 'b', 'a'] * 8,
}


def test_one_table_in_every_form_makes_one_data_set(tmp_path):
  pq.write_table(pa.table(TABLE), tmp_path / 't.parquet')
  with open(tmp_path / 't.csv', 'w') as file:
    rows = [list(TABLE), *zip(*TABLE.values(), strict=True)]
    file.write('\n'.join(','.join(map(str, row)) for row in rows))
  rows = [dict(zip(TABLE, row, strict=True)) for row in zip(*TABLE.values(), strict=True)]
  (tmp_path / 't.jsonl').write_text('\n\n'.join(map(json.dumps, rows)))
  (tmp_path / 'parts').mkdir()
  for number, part in enumerate((slice(0, 10), slice(10, 24))):
    pq.write_table(
      pa.table({name: values[part] for name, values in TABLE.items()}), tmp_path / 'parts' / f'{number}.parquet'
    )
  found = [from_table(tmp_path / name, 'kind') for name in ('t.parquet', 't.csv', 't.jsonl', 'parts')]
  assert len({data.fingerprint for data in found}) == 1
  assert len({data.encoder for data in found}) == 1
  assert found[1].encoder(tmp_path / 't.parquet').shape == (24, 6)


def test_parquet_keeps_what_its_types_mean(tmp_path):
  import decimal

  table = pa.table(
    {
      'coded': pa.array(['x', 'y', 'x']).dictionary_encode(),
      'price': pa.array([decimal.Decimal('1.25'), None, decimal.Decimal('3')]),
      'whole': pa.array([1, None, 3]),
      'small': pa.array([1, 2, 3], pa.uint8()),
    }
  )
  pq.write_table(table, tmp_path / 't.parquet')
  columns = read_columns(tmp_path / 't.parquet')
  assert columns['coded'].tolist() == ['x', 'y', 'x']
  np.testing.assert_array_equal(columns['price'], [1.25, np.nan, 3])
  np.testing.assert_array_equal(columns['whole'], [1, np.nan, 3])
  assert columns['small'].dtype == np.uint8


def spoiled(tmp_path, how):
  path = tmp_path / ('t.jsonl' if 'line' in how else 't.parquet')
  if how == 'two of one name':
    pq.write_table(pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=['a', 'a']), path)
  elif how == 'nested':
    pq.write_table(pa.table({'a': [[1], [2]]}), path)
  elif how == 'bytes':
    pq.write_table(pa.table({'a': [b'x']}), path)
  elif how == 'damaged':
    path.write_bytes(b'PAR1' + bytes(50))
  elif how == 'empty folder':
    path = tmp_path / 'none'
    path.mkdir()
  elif how == 'other columns':
    path = tmp_path / 'parts'
    path.mkdir()
    pq.write_table(pa.table({'a': [1]}), path / '0.parquet')
    pq.write_table(pa.table({'b': [1]}), path / '1.parquet')
  else:
    path.write_text({'no line': '{"a": 1}\n{"a": ', 'line of a list': '[1]', 'doubled line': '{"a": 1, "a": 2}',
                     'empty lines': '\n', 'other line': '{"a": 1}\n{"b": 1}'}[how])  # fmt: skip
  return path


@pytest.mark.parametrize(
  'how, said',
  [
    ('two of one name', 'columns have names of their own; .* has a, a: rename one'),
    ('nested', "column 'a' of .* has list"),
    ('bytes', "column 'a' of .* has bytes"),
    ('damaged', 'is no Parquet file, or damaged'),
    ('empty folder', 'holds nothing'),
    ('other columns', '1.parquet has b, the first a'),
    ('no line', 't.jsonl line 2 is not'),
    ('line of a list', 'line 1 is a list'),
    ('doubled line', "it has 'a' twice"),
    ('empty lines', 'is empty'),
    ('other line', "row 1 lacks 'a'"),
  ],
)
def test_a_file_that_is_no_table_says_where(tmp_path, how, said):
  with pytest.raises(ValueError, match=said) as caught:
    read_columns(spoiled(tmp_path, how))
  assert '\n' not in str(caught.value)


def test_labeled_texts_come_from_lines_and_folders(tmp_path):
  texts = [('good film', 'yes'), ('bad film', 'no')] * 10
  lines = [json.dumps({'review': text, 'stars': label}) for text, label in texts]
  (tmp_path / 'films.jsonl').write_text('\n'.join(lines))
  for number, (text, label) in enumerate(texts):
    (tmp_path / 'films' / label).mkdir(parents=True, exist_ok=True)
    (tmp_path / 'films' / label / f'{number}.txt').write_text(text)
  one = labeled_texts(tmp_path / 'films.jsonl', 'review', 'stars')
  other = labeled_texts(tmp_path / 'films')
  assert one.class_names == other.class_names == ('no', 'yes')
  assert one.encoder == other.encoder
  with pytest.raises(ValueError, match=r"not 'text' \(nearest: stars"):
    labeled_texts(tmp_path / 'films.jsonl')
  (tmp_path / 'holes.jsonl').write_text('\n'.join([*lines, '{"review": null, "stars": "no"}']))
  with pytest.raises(ValueError, match='has none in row 20'):
    labeled_texts(tmp_path / 'holes.jsonl', 'review', 'stars')
  (tmp_path / 'unlabeled.jsonl').write_text('\n'.join([*lines, '{"review": "x", "stars": null}']))
  with pytest.raises(ValueError, match='none in row 20'):
    labeled_texts(tmp_path / 'unlabeled.jsonl', 'review', 'stars')
  (tmp_path / 'films' / 'no' / '99.txt').write_bytes(b'\xff\xfe\xff')
  with pytest.raises(ValueError, match=r'99.txt is not'):
    labeled_texts(tmp_path / 'films')


def test_texts_in_memory_are_sent_where_they_belong():
  with pytest.raises(ValueError, match='got a list: texts in memory are for from_texts'):
    labeled_texts(['a text', 'another'], 'label')
