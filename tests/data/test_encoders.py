"""An encoder is a value that gives raw rows and texts the very numbers that training saw, or says why it cannot."""

import json
import warnings

import numpy as np
import pandas
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.preprocessing import OneHotEncoder

from jaxlite.data import (
  ByteTokenizer,
  CharTokenizer,
  TableEncoder,
  TextEncoder,
  WordTokenizer,
  from_table,
  load_encoder,
)
from jaxlite.data.encoders import as_texts, fit_table

ROWS = 40
RNG = np.random.default_rng(0)
TABLE = {
  'size': RNG.normal(5, 2, ROWS),
  'color': RNG.choice(['red', 'blue', 'green'], ROWS),
  'count': RNG.integers(0, 9, ROWS),
  'new': RNG.random(ROWS) < 0.5,
  'kind': np.array(['dog', 'cat'])[np.arange(ROWS) % 2],
}
DATA = from_table(TABLE, 'kind', categorical='count')
ENCODER = DATA.encoder


def csv_of(table, path, delimiter=','):
  lines = [delimiter.join(table)] + [delimiter.join(map(str, row)) for row in zip(*table.values(), strict=True)]
  path.write_text('\n'.join(lines))
  return path


def rows_of(table):
  return [
    dict(zip(table, row, strict=True)) for row in zip(*(np.asarray(v).tolist() for v in table.values()), strict=True)
  ]


FORMS = {
  'dict': lambda table, folder: table,
  'lists': lambda table, folder: {name: list(values) for name, values in table.items()},
  'rows': lambda table, folder: rows_of(table),
  'csv': lambda table, folder: csv_of(table, folder / 'a.csv'),
  'semicolons': lambda table, folder: str(csv_of(table, folder / 'b.csv', ';')),
  'frame': lambda table, folder: pandas.DataFrame(table),
  'another order': lambda table, folder: dict(reversed(table.items())),
  'without the label': lambda table, folder: {name: values for name, values in table.items() if name != 'kind'},
}


@pytest.mark.parametrize('form', FORMS)
def test_every_form_of_a_table_gives_the_numbers_of_an_oracle(form, tmp_path):
  onehot = OneHotEncoder(sparse_output=False)
  color, count = (onehot.fit_transform(TABLE[name][:, None]) for name in ('color', 'count'))
  wanted = np.column_stack([TABLE['size'], color, count, TABLE['new']]).astype(np.float32)
  got = ENCODER(FORMS[form](TABLE, tmp_path))
  assert got.dtype == np.float32
  np.testing.assert_array_equal(got, wanted)
  assert len(ENCODER.feature_names) == got.shape[1] == DATA.train.inputs.shape[1]
  assert ENCODER.feature_names == DATA.feature_names


def test_what_is_encoded_already_passes():
  np.testing.assert_array_equal(ENCODER(DATA.test.inputs), DATA.test.inputs)
  texts = TextEncoder(ByteTokenizer(), 4)
  encoded = texts(['ab', 'c'])
  assert texts(encoded) is encoded
  ids = TextEncoder(ByteTokenizer(), 4, mask=False)
  np.testing.assert_array_equal(ids(ids(['ab'])), ids(['ab']))


def test_the_splits_hold_what_the_encoder_gives():
  both = np.concatenate([split.inputs for split in (DATA.train, DATA.validation, DATA.test)])
  assert sorted(map(tuple, both)) == sorted(map(tuple, ENCODER(TABLE)))


# NumPy's strings end before a NUL, so that 'a' and 'a\0' are one value to them.
_TEXT = st.text(st.characters(exclude_characters='\0', exclude_categories=['Cs']), max_size=4)


@settings(max_examples=25, deadline=None)
@given(
  st.lists(
    st.tuples(st.floats(-1e6, 1e6), _TEXT, st.booleans(), st.sampled_from(['a', 'b', None])),
    min_size=1,
    max_size=12,
  )
)
def test_the_json_form_gives_the_same_encoder(rows):
  rows = [*rows, (0.0, 'q', True, 'a')]
  table = dict(zip(('x', 'word', 'flag', 'some'), (list(column) for column in zip(*rows, strict=True)), strict=True))
  columns = {name: np.array(values, object if name in ('word', 'some') else None) for name, values in table.items()}
  encoder = fit_table(columns, np.arange(len(rows)), categorical=['word'], others=['label'])
  again = load_encoder(encoder.to_json())
  assert again == encoder == TableEncoder.from_json(encoder.to_json())
  np.testing.assert_array_equal(again(table), encoder(columns))
  names = again(table)[:, 1 : 1 + len(set(map(str.strip, table['word'])))]
  assert (names.sum(1) == 1).all()


def test_names_are_learned_from_training_rows_alone_and_others_are_said():
  color = np.array(['red', 'blue'] * 20, object)
  x = np.arange(40.0) * 2
  plain = from_table({'x': x, 'color': color, 'kind': ['a', 'b'] * 20}, 'kind')
  place = int(plain.test.inputs[0, 0]) // 2
  color[place] = 'mauve'
  data = from_table({'x': x, 'color': color, 'kind': ['a', 'b'] * 20}, 'kind')
  assert data.feature_names == ('x', 'color=blue', 'color=red')
  assert data.test.inputs[0].tolist() == [2 * place, 0, 0]
  (note,) = data.notes
  assert note == (
    f"column 'color' has 'mauve' in row {place}, a name that train does not have (1 of 40 rows): it counts as none of 2"
  )
  with pytest.warns(UserWarning, match=r"column 'color' has 'pink' in row 1, a name that training never saw \(1 of 2"):
    got = data.encoder({'x': [1, 2], 'color': ['red', 'pink']})
  assert got.tolist() == [[1, 0, 1], [2, 0, 0]]


def test_whole_numbers_are_one_name_however_they_are_written(tmp_path):
  encoder = fit_table({'zip': np.array([7, 12])}, np.arange(2), categorical=['zip'])
  for values in ([12, 7], [12.0, 7.0], ['12', '7'], np.array([12, 7], np.float32)):
    assert encoder({'zip': values}).tolist() == [[1, 0], [0, 1]]


def test_true_and_false_are_read_in_any_writing():
  encoder = fit_table({'flag': np.array([True, False])}, np.arange(2))
  for values in ([True, False], [1, 0], ['True', 'false'], ['1', '0'], np.array([True, False], object)):
    assert encoder({'flag': values}).tolist() == [[1], [0]]
  with pytest.raises(ValueError, match="'flag' has maybe in row 0"):
    encoder({'flag': ['maybe']})


GOOD = {name: values[:2] for name, values in TABLE.items()}


def without(*names):
  return {name: values for name, values in GOOD.items() if name not in names}


BAD = {
  'missing': (without('size'), "^the table lacks the column 'size', which training had;"),
  'renamed': (
    {**without('color'), 'colors': ['red'] * 2},
    "^the table lacks the column 'color', .* nearest .*: colors$",
  ),
  'several': (without('size', 'new'), "^the table lacks the columns 'size', 'new', which training had"),
  'extra': (
    {**GOOD, 'sizes': [1, 2]},
    "^the table has the column 'sizes', which training had not; nearest to 'sizes': size,",
  ),
  'words': ({**GOOD, 'size': ['big', 'small']}, "^column 'size' held numbers in training, not 'big' as in row 0"),
  'no number': ({**GOOD, 'size': [1.0, np.nan]}, "^numbers are finite; column 'size' has nan in row 1"),
  'beyond float32': ({**GOOD, 'size': [1.0, 1e300]}, "^numbers fit into float32; 'size' does not in row 1"),
  'one row': (rows_of(GOOD)[0], r'^a table is a dict of columns; got a dict of single values: .* \[row\]'),
  'odd rows': ([*rows_of(GOOD), {'size': 1}], r'^every row has the columns of the first; row 2 lacks '),
  'no rows': ([], '^a table needs a row at least'),
  'an array': (np.ones((2, 4)), r'^rows are a table, or its encoded features, float\[N, 13\] .* got float64\[2, 4\]'),
}


@pytest.mark.parametrize('case', BAD)
def test_a_table_of_other_columns_is_one_line_with_the_nearest_names(case):
  table, message = BAD[case]
  with pytest.raises(ValueError, match=message) as caught:
    ENCODER(table)
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
  'tokenizer',
  [ByteTokenizer(), CharTokenizer.fit('abc '), WordTokenizer.fit(['a bc'])],
  ids=lambda one: type(one).__name__,
)
@settings(max_examples=25, deadline=None)
@given(
  texts=st.lists(st.text('abc ', max_size=9), min_size=1, max_size=5), length=st.integers(1, 12), mask=st.booleans()
)
def test_texts_become_padded_ids_and_the_json_form_does_the_same(tokenizer, texts, length, mask):
  encoder = TextEncoder(tokenizer, length, mask)
  again = load_encoder(encoder.to_json())
  assert again == encoder
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    inputs, other = encoder(texts), again(np.array(texts, object))
  tokens = inputs['tokens'] if mask else inputs
  np.testing.assert_array_equal(tokens, other['tokens'] if mask else other)
  assert (tokens.shape, tokens.dtype) == ((len(texts), length), np.int32)
  for text, row in zip(texts, tokens, strict=True):
    ids = tokenizer.encode(text)[:length]
    assert row.tolist() == ids + [0] * (length - len(ids))
  if mask:
    np.testing.assert_array_equal(inputs['mask'], tokens > 0)


def test_what_is_cut_or_empty_is_said():
  encoder = TextEncoder(ByteTokenizer(), 3)
  with pytest.warns(UserWarning, match='2 of 3 texts are longer than 3 tokens and are cut there'):
    encoder(['abcd', 'abcde', 'a'])
  with pytest.warns(UserWarning, match='1 of 2 texts have no token'):
    encoder(['', 'a'])
  assert encoder('abc')['tokens'].shape == (1, 3)


@pytest.mark.parametrize(
  'texts, message',
  [
    ([], '^texts are a list of strings; got none'),
    (3, '^texts are a list of strings; got int'),
    ({'a': 'b'}, '^texts are a list of strings; got dict'),
    (b'abc', '^texts are a list of strings; got bytes'),
    (['a', float('nan')], '^texts are strings; text 1 is nan: fill it in'),
  ],
)
def test_what_is_no_text_is_named(texts, message):
  with pytest.raises(ValueError, match=message):
    as_texts(texts)


@pytest.mark.parametrize(
  'text, message',
  [
    ('{', '^an encoder is read from its JSON, as to_json wrote it'),
    ('[]', '^an encoder is read from its JSON, .* got a list'),
    ('{"kind": "x"}', "^the JSON of an encoder has a kind, table, text, picture or sound; got 'x'"),
    (None, '^an encoder is read from its JSON'),
  ],
)
def test_what_is_no_encoder_is_one_line(text, message):
  with pytest.raises(ValueError, match=message):
    load_encoder(text)
  with pytest.raises(ValueError, match='of the kind'):
    TextEncoder.from_json(ENCODER.to_json())
  assert json.loads(ENCODER.to_json())['kind'] == 'table'
