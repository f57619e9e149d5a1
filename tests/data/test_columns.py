"""Columns come into the batch with their own example, in one view at a time, and make other data of them."""

import numpy as np
import pytest

from jaxlite.data import Split, batch_at, eval_batches, from_arrays
from jaxlite.data.columns import Columns, attach, with_columns

N = 20


def data():
  number = np.arange(N)
  inputs = number[:, None].astype(np.float32)
  return from_arrays((inputs, number % 3), (inputs[:5], number[:5] % 3), 0.2)


def test_a_column_comes_with_its_example_and_changes_nothing_else():
  plain = data()
  ids = plain.train.inputs[:, 0]
  more = attach(plain, ids=ids, pair=np.stack([ids, -ids], 1).astype(np.float16))
  for step in range(7):
    batch, was = batch_at(more.train, 3, 5, step), batch_at(plain.train, 3, 5, step)
    np.testing.assert_array_equal(batch['ids'], batch['inputs'][:, 0])
    np.testing.assert_array_equal(batch['pair'], np.stack([batch['ids'], -batch['ids']], 1))
    assert batch['pair'].dtype == np.float16
    for name, value in was.items():
      np.testing.assert_array_equal(batch[name], value)
  for batch in eval_batches(more.train, 6):
    np.testing.assert_array_equal(batch['ids'], batch['inputs'][:, 0])
  assert more.validation is plain.validation
  assert isinstance(plain.train, Split)


def test_other_columns_are_other_data():
  plain = data()
  ones = np.ones(len(plain.train.labels))
  prints = {plain.fingerprint, attach(plain, a=ones).fingerprint, attach(plain, b=ones).fingerprint}
  prints |= {attach(plain, a=2 * ones).fingerprint, attach(attach(plain, a=ones), b=ones).fingerprint}
  assert len(prints) == 5
  assert attach(plain, a=ones).fingerprint == attach(plain, a=ones.copy()).fingerprint


def test_all_columns_of_a_batch_are_of_one_view_drawn_anew_each_step():
  plain = data()
  count = len(plain.train.labels)
  views = np.arange(count)[:, None] * 10 + np.arange(4)  # which example, which view
  more = with_columns(plain, {'inputs': views[..., None].astype(np.float32), 'code': views.astype(np.int32)})
  more = attach(more, own=np.arange(count))  # one for all views
  seen = np.zeros((count, 4), int)
  for step in range(300):
    batch = batch_at(more.train, 8, 1, step)
    np.testing.assert_array_equal(batch['inputs'][:, 0], batch['code'])
    np.testing.assert_array_equal(batch['code'] // 10, batch['own'])
    np.testing.assert_array_equal(plain.train.labels[batch['own']], batch['labels'])
    np.add.at(seen, (batch['own'], batch['code'] % 10), 1)
  assert seen.min() > 0
  assert seen.sum(0).max() < 1.2 * seen.sum(0).min()
  again, other = batch_at(more.train, 8, 1, 5), batch_at(more.train, 8, 2, 5)
  np.testing.assert_array_equal(again['code'], batch_at(more.train, 8, 1, 5)['code'])
  assert (other['code'] != again['code']).any()
  for batch in eval_batches(more.train, 8):
    assert not (batch['code'] % 10).any()


@pytest.mark.parametrize(
  'columns, message',
  [
    ({}, 'got none'),
    ({'logits': np.ones((3, 2))}, r"a row for each of the 16 training examples; 'logits' is \[3, 2\]"),
    ({'logits': np.float32(1)}, 'a row for each'),
    ({'labels': np.ones(16)}, "has 'labels' already"),
    ({'weight': np.ones(16)}, "has 'weight' already"),
    ({'logits': np.full((16, 2), np.nan)}, 'NaN at example 0'),
    ({'names': np.array(['a'] * 16)}, 'holds numbers'),
  ],
)
def test_mistakes_are_told_in_one_line(columns, message):
  with pytest.raises(ValueError, match=message) as raised:
    attach(data(), **columns)
  assert '\n' not in str(raised.value)


def test_a_column_has_one_name_and_all_have_the_same_views():
  plain = data()
  with pytest.raises(ValueError, match="has 'a' already"):
    attach(attach(plain, a=np.ones(16)), a=np.ones(16))
  with pytest.raises(ValueError, match='same views'):
    with_columns(plain, {'a': np.ones((16, 2)), 'b': np.ones((16, 3))})
  assert isinstance(attach(plain, a=np.ones(16)).train, Columns)
