"""What `from_table` takes as it stands, and says aloud because it is hardly meant."""

import datetime

import numpy as np
import pandas
import pyarrow
import pytest

import jaxlite as jl
from jaxlite.data import from_table
from jaxlite.data.frames import read_columns

ROWS = 40
TABLE = {
  'size': np.random.default_rng(0).normal(5, 2, ROWS),
  'kind': np.array(['dog', 'cat'])[np.arange(ROWS) % 2],
}


def test_whole_numbers_that_float32_rounds_are_noted():
  (note,) = from_table({'when': 1_600_000_000 + 37 * np.arange(ROWS), **TABLE}, 'kind').notes
  assert note.startswith("column 'when' has whole numbers beyond 2**24, which float32 rounds")


@pytest.mark.parametrize(
  ('values', 'told'),
  [
    (2**60 + np.arange(ROWS), 'whole numbers beyond 2**24, which float32 rounds'),  # a float64 has rounded them already
    (1.6e9 + 0.25 * np.arange(ROWS) ** 2 + 0.1, 'where float32 rounds by up to '),
    (1e-9 * np.arange(ROWS) ** 2, ''),
    (1e6 + np.arange(ROWS) ** 2 / 7, ''),
  ],
  ids=['whole', 'fractions', 'small', 'coarse enough'],
)
@pytest.mark.parametrize('keep', ['memory', 'disk'])
def test_numbers_that_float32_tells_apart_no_more_are_noted(values, told, keep, tmp_path, monkeypatch):
  monkeypatch.setenv('JAXLITE_DATA', str(tmp_path / 'kept'))
  pa = pytest.importorskip('pyarrow')
  import pyarrow.parquet as pq

  pq.write_table(pa.table({'when': values, 'kind': np.arange(ROWS) % 2}), tmp_path / 'table.parquet')
  notes = from_table(tmp_path / 'table.parquet', 'kind', keep=keep).notes
  assert [told in note for note in notes] == ([True] if told else [])


@pytest.mark.parametrize('keep', ['memory', 'disk'])
def test_numbers_that_are_taken_as_names_and_names_that_look_like_numbers(keep, tmp_path, monkeypatch):
  """A share written with its sign is a name to a table, which nobody would notice; '1_03' is no 103."""
  monkeypatch.setenv('JAXLITE_DATA', str(tmp_path / 'kept'))
  (tmp_path / 'table.csv').write_text(
    'share,part,kind\n' + ''.join(f'{i % 5}.5%,{["1_03", "10_3"][i % 2]},{i % 2}\n' for i in range(ROWS))
  )
  data = from_table(tmp_path / 'table.csv', 'kind', keep=keep)
  assert data.feature_names[-2:] == ('part=10_3', 'part=1_03')
  (note,) = data.notes
  assert note == "column 'share' is taken as 5 names, and looks like numbers written as '0.5%': write them as -1234.5"


@pytest.mark.parametrize('keep', ['memory', 'disk'])
def test_a_mark_for_what_is_missing_is_told(keep, tmp_path, monkeypatch):
  """-9999 among ages: standardized, all others are one number."""
  monkeypatch.setenv('JAXLITE_DATA', str(tmp_path / 'kept'))
  ages = [20 + i % 30 for i in range(ROWS)]
  for last, told in ((50, []), (-99999, ['age'])):
    path = tmp_path / f'table{last}.csv'
    rows = ''.join(f'{age},{i % 7},{i % 2}\n' for i, age in enumerate([last, *ages[1:]] * 2))
    path.write_text('age,size,kind\n' + rows)
    notes = from_table(path, 'kind', keep=keep).notes
    assert [note.split()[0] for note in notes] == told
    assert all('has -99999 in example' in note and 'mark for what is missing' in note for note in notes)


def test_classes_that_differ_in_case_alone_are_told():
  kind = np.array(['yes', 'no', 'YES', 'no'])[np.arange(ROWS) % 4]
  (note,) = from_table({'size': TABLE['size'], 'kind': kind}, 'kind').notes
  assert note.startswith("classes 'YES' and 'yes' differ in case or spaces alone")


def test_a_named_column_that_counts_the_rows_is_noted():
  (note,) = from_table({'id': np.arange(ROWS), **TABLE}, 'kind').notes
  assert note == "column 'id' counts the rows: if it is an index, drop='id'"
  assert from_table(TABLE, 'kind').notes == ()


def test_labels_that_are_written_otherwise_are_other_classes():
  x = np.arange(60.0)
  assert from_table({'x': x, 'y': ['007', '7', '07'] * 20}, 'y').class_names == ('007', '07', '7')
  assert from_table({'x': x, 'y': ['1_0', '1_1', '10'] * 20}, 'y').class_names == ('10', '1_0', '1_1')
  coded = from_table({'x': x, 'y': ['1_0', '1_1'] * 30}, 'y', task=jl.tasks.binary)
  assert coded.facts['class_names'] == ['1_0', '1_1']
  assert from_table({'x': x, 'y': ['01', '02', '10'] * 20}, 'y').class_names == ('1', '2', '10')


def test_no_column_is_lost_where_two_names_are_one_as_text():
  for table in ({1: [1.0] * 9, '1': [2.0] * 9}, [{1: 1.0, '1': 2.0}] * 9):
    with pytest.raises(ValueError, match=r'^columns have names of their own; the table has 1, 1: rename one'):
      read_columns(table)


def test_spans_of_time_are_no_names():
  for values in (
    [datetime.timedelta(days=one % 2) for one in range(60)],
    pandas.PeriodIndex(['2020-01'] * 60, freq='M'),
  ):
    with pytest.raises(ValueError, match="'when' has dates"):
      from_table({'x': np.arange(60.0), 'when': np.array(values, object), 'y': ['a', 'b'] * 30}, 'y')


def test_a_task_tells_what_is_wrong_with_names_of_classes():
  table = {'x': np.arange(60.0), 'y': ['yes', 'no'] * 30, 'z': ['a', 'b', 'c'] * 20}
  with pytest.raises(ValueError, match=r"^binary: positive is one of the classes no, yes; got 'Yes'"):
    from_table(table, 'y', task=jl.tasks.binary('Yes'))
  with pytest.raises(ValueError, match=r'^binary has two classes; the data have 3'):
    from_table(table, 'z', task=jl.tasks.binary)


def test_an_arrow_table_is_a_table():
  arrow = pyarrow.table({'x': np.arange(60.0), 'c': pyarrow.array(['u', None, 'v'] * 20), 'y': ['a', 'b'] * 30})
  made = from_table(arrow, 'y')
  assert made.feature_names == ('x', 'c=', 'c=u', 'c=v')
  assert made.fingerprint == from_table(arrow.to_pandas(), 'y').fingerprint
  with pytest.raises(ValueError, match="column 'a' of the table has list"):
    read_columns(pyarrow.table({'a': [[1]]}))


def test_a_comma_between_quotes_separates_no_cells(tmp_path):
  path = tmp_path / 't.csv'
  path.write_text('"width, cm, outside";y\n' + ''.join(f'{one / 2};{"ab"[one % 2]}\n' for one in range(40)))
  for keep in ('memory', 'disk'):
    assert from_table(path, 'y', keep=keep).feature_names == ('width, cm, outside',)


def test_a_row_without_its_number_is_told_so_whatever_its_form():
  made = from_table({'x': np.arange(60.0), 'y': ['a', 'b'] * 30}, 'y').encoder
  for rows, shown in (([{'x': float('nan')}], 'nan'), ({'x': [None]}, 'nothing')):
    with pytest.raises(ValueError, match=f"^numbers are finite; column 'x' has {shown} in row 0"):
      made(rows)
  with pytest.raises(ValueError, match=r'^a table needs a row at least'):
    made([])


def test_a_frame_that_was_not_collected_is_told():
  class Lazy:
    """What a lazy frame of Polars shows of itself."""

    columns = ('x', 'y')
    __getitem__ = collect = collect_schema = lazy = None

  with pytest.raises(ValueError, match=r'^a table has its rows; .* give table\.collect\(\)'):
    read_columns(Lazy())
