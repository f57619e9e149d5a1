"""`from_table` reads any small table to the same numbers, and never guesses in silence."""

import numpy as np
import pandas
import pytest
from sklearn.preprocessing import OneHotEncoder, StandardScaler

import jaxlite as jl
from jaxlite.data import from_table

ROWS = 40
RNG = np.random.default_rng(0)
TABLE = {
  'size': RNG.normal(5, 2, ROWS),
  'color': RNG.choice(['red', 'blue', 'green'], ROWS),
  'count': RNG.integers(0, 9, ROWS),
  'kind': np.array(['dog', 'cat'])[np.arange(ROWS) % 2],
}


def everything(data):
  """All rows of all splits, in an order that does not depend on the splits."""
  both = [np.column_stack([split.inputs, split.labels]) for split in (data.train, data.validation, data.test)]
  return np.array(sorted(map(tuple, np.concatenate(both))))


def as_csv(tmp_path, delimiter=',', start='', end='\n'):
  lines = [delimiter.join(TABLE)] + [delimiter.join(map(str, row)) for row in zip(*TABLE.values(), strict=True)]
  path = tmp_path / 'table.csv'
  path.write_bytes((start + end.join(lines) + end).encode())
  return str(path)


class Frame:
  """What a DataFrame shows of itself: columns, and columns by name."""

  def __init__(self, columns):
    self.columns = list(columns)
    self._columns = {name: np.array(values, dtype=object) for name, values in columns.items()}

  def __getitem__(self, name):
    return self._columns[name]


def structured():
  fields = [(name, values.dtype) for name, values in TABLE.items()]
  array = np.zeros(ROWS, fields)
  for name, values in TABLE.items():
    array[name] = values
  return array


FORMS = {
  'dict': lambda path: TABLE,
  'lists': lambda path: {name: values.tolist() for name, values in TABLE.items()},
  'structured': lambda path: structured(),
  'frame': lambda path: Frame(TABLE),
  'csv': as_csv,
  'semicolons': lambda path: as_csv(path, ';'),
  'tabs': lambda path: as_csv(path, '\t'),
  'byte order mark and CRLF': lambda path: as_csv(path, start='\ufeff', end='\r\n'),
  'path': lambda path: path.__class__(as_csv(path)),
}


@pytest.mark.parametrize('form', FORMS)
def test_every_kind_of_table_gives_the_same_data(form, tmp_path):
  data = from_table(FORMS[form](tmp_path), 'kind')
  assert data.feature_names == ('size', 'color=blue', 'color=green', 'color=red', 'count')
  assert data.class_names == ('cat', 'dog')
  onehot = OneHotEncoder(sparse_output=False).fit_transform(TABLE['color'][:, None])
  wanted = np.column_stack([TABLE['size'], onehot, TABLE['count'], TABLE['kind'] == 'dog']).astype(np.float32)
  np.testing.assert_array_equal(everything(data), np.array(sorted(map(tuple, wanted))))


def test_standardizing_by_the_statistics_equals_scikit_learns():
  data = from_table(TABLE, 'kind')
  oracle = StandardScaler().fit(data.train.inputs.astype(np.float64))
  got = (data.test.inputs - data.mean) / data.std
  np.testing.assert_allclose(got, oracle.transform(data.test.inputs.astype(np.float64)), atol=1e-5)


def test_labels_of_whole_numbers_are_numbered_in_numeric_order():
  data = from_table({**TABLE, 'kind': np.where(np.arange(ROWS) % 2, 10, 9).astype(str)}, 'kind')
  assert data.class_names == ('9', '10')
  assert from_table({**TABLE, 'kind': (np.arange(ROWS) % 3 - 1.0)}, 'kind').class_names == ('-1', '0', '1')
  assert from_table({**TABLE, 'kind': np.arange(ROWS) % 2 == 0}, 'kind').classes == 2


def test_large_ids_do_not_fall_together():
  kind = np.arange(ROWS) % 2 + 10**17
  for values in (kind, kind.astype(str), kind.astype(object)):
    assert from_table({**TABLE, 'kind': values}, 'kind').class_names == (str(10**17), str(10**17 + 1))


def test_bytes_are_text():
  data = from_table({**TABLE, 'color': TABLE['color'].astype('S'), 'kind': TABLE['kind'].astype('S')}, 'kind')
  assert data.feature_names == from_table(TABLE, 'kind').feature_names
  assert data.class_names == ('cat', 'dog')


def test_numbers_may_be_names_and_columns_may_be_dropped():
  data = from_table(TABLE, 'kind', categorical='count', drop=['size', 'color'])
  assert data.feature_names == tuple(f'count={value}' for value in sorted(set(TABLE['count'].tolist())))
  assert (data.train.inputs.sum(1) == 1).all()


def test_a_missing_string_is_a_value_of_its_own():
  color = TABLE['color'].astype(object)
  color[:10], color[10] = None, float('nan')
  data = from_table({**TABLE, 'color': color}, 'kind')
  assert 'color=' in data.feature_names
  place = data.feature_names.index('color=')
  assert everything(data)[:, place].sum() == 11


def with_cell(column, row, value):
  values = TABLE[column].astype(object)
  values[row] = value
  return {**TABLE, column: values}


BAD = {
  'unknown label': ((TABLE, 'species'), {}, "^a column is named as in the table; got 'species', the table has size,"),
  'unknown drop': ((TABLE, 'kind'), {'drop': ['x']}, "^a column is named as in the table; got 'x'"),
  'label dropped': ((TABLE, 'kind'), {'drop': ['kind']}, "^the label is neither dropped nor encoded; 'kind'"),
  'a stray word': ((with_cell('size', 3, 'NA'), 'kind'), {}, "^column 'size' holds numbers, but 'NA' in row 3: fix"),
  'a missing number': (
    (with_cell('size', 4, ''), 'kind'),
    {},
    "^numbers are finite; column 'size' has nothing in row 4",
  ),
  'None': ((with_cell('size', 4, None), 'kind'), {}, "^numbers are finite; column 'size' has nothing in row 4"),
  'nan': ((with_cell('size', 5, float('nan')), 'kind'), {}, "^numbers are finite; column 'size' has nan in row 5"),
  'inf': ((with_cell('size', 5, 'inf'), 'kind'), {}, "^numbers are finite; column 'size' has inf in row 5"),
  'an id': (({**TABLE, 'id': [f'x{i}' for i in range(ROWS)]}, 'kind'), {}, "^column 'id' has 40 values in 40 rows"),
  'a missing label': ((with_cell('kind', 7, ''), 'kind'), {}, "^every row has a label; 'kind' has none in row 7"),
  'a real label': ((TABLE, 'size'), {}, "^a label is a class; 'size' has .* in row 0: task=jl.tasks.regression.* bins"),
  'numbers in a writing of their own': (
    ({**TABLE, 'price': [f'{1000 + i:,}' for i in range(ROWS)]}, 'kind'),
    {},
    "too many to learn: it looks like numbers written as '1,000': write them as -1234.5, or drop it$",
  ),
  'dates as texts': (
    ({**TABLE, 'day': [f'2020-{i % 12 + 1:02}-{i % 28 + 1:02}' for i in range(ROWS)]}, 'kind'),
    {},
    "too many to learn: it looks like dates written as '2020-01-01': make numbers of them .*, or drop it$",
  ),
  'lengths': (({**TABLE, 'size': [1.0]}, 'kind'), {}, r'^columns are \[N\], all of one length'),
  'matrix': (({**TABLE, 'size': np.ones((ROWS, 2))}, 'kind'), {}, r'^columns are \[N\], all of one length'),
  'dates': (
    ({**TABLE, 'day': np.zeros(ROWS, 'datetime64[D]')}, 'kind'),
    {},
    "^a column holds numbers or strings; 'day'",
  ),
  'dates to predict': (
    ({**TABLE, 'day': np.arange(ROWS).astype('datetime64[D]')}, 'day'),
    {},
    "^a column holds numbers or strings; 'day' has dates",
  ),
  'an empty column': (({**TABLE, 'none': [None] * ROWS}, 'kind'), {}, "'none' is empty in every row: drop it"),
  'ragged cells': (({**TABLE, 'list': [[1], [1, 2]] * 20}, 'kind'), {}, '^a column holds one value per row'),
  'no label': ((TABLE, []), {}, '^a label is a column of the table, or several; got none'),
  'weight dropped': ((TABLE, 'kind'), {'weight': 'size', 'drop': 'size'}, '^a weight is neither dropped'),
  'other class names': (
    (TABLE, 'kind'),
    {'facts': {'class_names': ['dog', 'cat']}},
    '^class_names are the values of the label, cat, dog; facts say dog, cat',
  ),
  'another table': ((TABLE, 'kind'), {'test': TABLE}, '^test is a fraction of the rows, .* got dict'),
  'only a label': (({'kind': TABLE['kind']}, 'kind'), {}, '^a table needs a column besides the label'),
  'no rows': (({'size': [], 'kind': []}, 'kind'), {}, '^a table needs a row'),
  'no columns': (({}, 'kind'), {}, '^a table needs a row'),
  'no table': ((3, 'kind'), {}, '^a table is a CSV path, a dict of columns'),
  'no file': (('missing.csv', 'kind'), {}, '^cannot read the table missing.csv: No such file'),
}


@pytest.mark.parametrize('case', BAD)
def test_a_bad_table_is_one_line_that_names_the_cell_and_the_fix(case):
  arguments, options, message = BAD[case]
  with pytest.raises(ValueError, match=message) as caught:
    from_table(*arguments, **options)
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
  'content, message',
  [
    (b'', '^a table needs a row'),
    (b'a,b\n', '^a table needs a row'),
    (b'a,a\n1,2\n', '^columns have names of their own'),
    (b'a,b\n1,2\n\n1,2,3\n', 'line 4 has 3: fix it'),
    (b'a,b\n\xff\xfe,2\n', '^a table is a CSV file in UTF-8'),
  ],
)
def test_a_bad_csv_file_is_one_line(content, message, tmp_path):
  path = tmp_path / 'bad.csv'
  path.write_bytes(content)
  with pytest.raises(ValueError, match=message):
    from_table(path, 'a')


# Other tasks than classification, weights, and what a DataFrame brings


def test_a_table_of_numbers_to_predict_is_a_regression_where_it_is_named():
  number = np.arange(ROWS)
  table = {**TABLE, 'price': number * 1.5, 'age': number}
  data = from_table(table, 'price', task=jl.tasks.regression, drop='age')
  assert data.facts['target_names'] == ['price']
  assert sorted(everything(data)[:, -1]) == sorted((number * 1.5).tolist())
  two = from_table(table, ['price', 'age'], task=jl.tasks.regression(), standardize=False)
  assert two.facts['target_names'] == ['price', 'age']
  assert two.train.labels.shape == (32, 2)
  np.testing.assert_array_equal(two.train.labels[:, 0], two.train.labels[:, 1] * 1.5)
  assert two.mean is None
  for labels, message in (
    (['price', 'age'], '^several labels need a task'),
    ('age', '^a label is a class where no task'),
  ):
    with pytest.raises(ValueError, match=message):
      from_table(table, labels)


def test_labels_that_a_task_does_not_take_as_they_are_are_named():
  data = from_table(TABLE, 'kind', task=jl.tasks.binary(positive='cat'))
  assert (data.facts['class_names'], data.facts['positive']) == (['cat', 'dog'], 0)
  codes = from_table({**TABLE, 'kind': np.arange(ROWS) % 2 + 1}, 'kind', task=jl.tasks.binary)
  assert codes.facts['class_names'] == ['1', '2']
  ordered = from_table(TABLE, 'kind', task=jl.tasks.binary(class_names=['dog', 'cat']))
  assert ordered.facts['class_names'] == ['dog', 'cat']
  flags = {'drama': np.arange(ROWS) % 2 == 0, 'war': ['yes', 'no'] * (ROWS // 2)}
  with pytest.raises(ValueError, match="each is a column of numbers; 'war' has 'yes' in row 0"):
    from_table({**TABLE, **flags}, list(flags), task=jl.tasks.multi_label)
  flags['war'] = ['True', 'false'] * (ROWS // 2)
  many = from_table({**TABLE, **flags}, list(flags), task=jl.tasks.multi_label)
  assert many.facts['names'] == ['drama', 'war']
  assert (many.train.labels[:, 0] == many.train.labels[:, 1]).all()
  with pytest.raises(ValueError, match='labels'):
    from_table({**TABLE, 'kind': ['a', 'b', 'c', 'd'] * 10}, 'kind', task=jl.tasks.regression)


def test_a_column_of_weights_weighs_its_row_and_is_no_feature():
  table = {'x': np.arange(40.0), 'w': np.arange(40) / 8, 'kind': ['a', 'b'] * 20}
  data = from_table(table, 'kind', weight='w')
  assert data.feature_names == ('x',)
  for split in (data.train, data.validation, data.test):
    np.testing.assert_array_equal(split.weight, split.inputs[:, 0] / 8)
  assert data.encoder({'x': [1.0]}).tolist() == [[1.0]]
  for bad, message in (
    ({'w': -table['w']}, '^weights are 0 to 65535'),
    ({'w': ['a', 'b'] * 20}, "^a weight is a column of numbers; 'w' has 'a'"),
    ({'w': [None, *table['w'][1:]]}, "^numbers are finite; column 'w' has nothing in row 0"),
  ):
    with pytest.raises(ValueError, match=message):
      from_table({**table, **bad}, 'kind', weight='w')


def test_a_column_that_counts_the_rows_is_told_under_any_name():
  rows = {'rownames': np.arange(1, 21), 'x': np.arange(20.0), 'kind': ['a', 'b'] * 10}
  (note,) = from_table(rows, 'kind').notes
  assert note == "column 'rownames' counts the rows: if it is an index, drop='rownames'"
  assert from_table(rows, 'kind', drop='rownames').notes == ()


@pytest.mark.parametrize('name', ['', 'Unnamed: 0'])
@pytest.mark.parametrize('first', [0, 1])
def test_a_column_without_a_name_that_counts_the_rows_is_refused_unless_it_is_dropped(name, first, tmp_path):
  table = {name: np.arange(ROWS) + first, **TABLE}
  for form in (table, csv_of(table, tmp_path / 'x.csv')):
    with pytest.raises(ValueError, match=rf"^columns have names; '{name}' has none and counts the rows: pass drop=\["):
      from_table(form, 'kind')
    assert from_table(form, 'kind', drop=[name]).fingerprint == from_table(TABLE, 'kind').fingerprint
    assert len(from_table(form, 'kind', drop=name).encoder(form)) == ROWS
  with pytest.raises(ValueError, match='may be an index'):
    from_table({**table, name: np.arange(ROWS) % 7}, 'kind')


def test_classes_are_numbered_as_a_task_names_them():
  kinds, classification = np.array(['no', 'yes', 'no', 'maybe'] * 10), jl.tasks.classification
  for values, names in (
    (kinds, ['yes', 'no', 'maybe', 'never']),
    (np.arange(ROWS) % 3, ['zero', 'one', 'two']),
    (np.arange(ROWS) % 3 + 7, ['9', '8', '7']),
    (kinds, None),
  ):
    data = from_table({'x': np.arange(ROWS) * 2.0, 'y': values}, 'y', task=classification(class_names=names))
    for split in (data.train, data.validation, data.test):
      rows = (split.inputs[:, 0] / 2).astype(int)
      told = np.array(data.class_names)[split.labels]
      wanted = np.array(names)[values[rows]] if 'one' in data.class_names else values[rows].astype(str)
      assert told.tolist() == wanted.tolist()
  with pytest.raises(ValueError, match=r"^class_names are the values of 'y'; it has 'maybe' in row 3, got yes, no"):
    from_table({'x': kinds, 'y': kinds}, 'y', task=classification(class_names=['yes', 'no']))


def test_truths_are_one_feature_however_they_were_written(tmp_path):
  table = {'flag': np.arange(ROWS) % 3 == 0, 'kind': TABLE['kind']}
  one, other = (from_table(form, 'kind') for form in (table, csv_of(table, tmp_path / 'flags.csv')))
  assert one.fingerprint == other.fingerprint
  assert one.encoder == other.encoder


def csv_of(table, path):
  path.write_text('\n'.join(','.join(map(str, row)) for row in [list(table), *zip(*table.values(), strict=True)]))
  return path


def test_a_data_frame_brings_categories_truths_and_missing_values():
  frame = pandas.DataFrame(TABLE)
  frame['code'] = pandas.Categorical(np.arange(ROWS) % 3)
  frame['flag'] = np.arange(ROWS) % 2 == 0
  frame['maybe'] = pandas.array([True, None] * (ROWS // 2), dtype='boolean')
  frame['text'] = pandas.Series(['a', None] * (ROWS // 2), dtype='string')
  frame['whole'] = pandas.array(range(ROWS), dtype='Int64')
  data = from_table(frame, 'kind')
  codes = ('code=0', 'code=1', 'code=2', 'flag', 'maybe=', 'maybe=True', 'text=', 'text=a', 'whole')
  assert data.feature_names == ('size', 'color=blue', 'color=green', 'color=red', 'count', *codes)
  encoded = data.encoder(frame.drop(columns='kind'))
  np.testing.assert_array_equal(encoded[:, -9:-6], np.eye(3)[np.arange(ROWS) % 3])
  np.testing.assert_array_equal(encoded[:, -1], np.arange(ROWS))
  np.testing.assert_array_equal(data.encoder(frame.to_dict('records')), encoded)
  for bad, message in (
    ({'whole': pandas.array([None, *range(1, ROWS)], dtype='Int64')}, "^numbers are finite; column 'whole' has "),
    ({'day': pandas.date_range('2020', periods=ROWS)}, "^a column holds numbers or strings; 'day' has dates: make"),
    ({'day': pandas.date_range('2020', periods=ROWS, tz='UTC')}, "'day' has dates"),
    ({'wait': pandas.to_timedelta(np.arange(ROWS), unit='h')}, "'wait' has dates"),
    ({'list': [[1, 2]] * ROWS}, "^a cell is a number or a string; 'list' has a list in row 0"),
  ):
    with pytest.raises(ValueError, match=message) as caught:
      from_table(frame.assign(**bad), 'kind')
    assert '\n' not in str(caught.value)
  doubled = pandas.concat([frame, frame[['size']]], axis=1)
  with pytest.raises(ValueError, match=r'^columns have names of their own; the table has size,'):
    from_table(doubled, 'kind')
  with pytest.raises(ValueError, match=r'^a table needs a row'):
    from_table(frame[:0], 'kind')
