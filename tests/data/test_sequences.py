"""Padding loses no token unless told to, and windows predict every token exactly once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlite.data import pad, windows

IDS = st.integers(0, 2**31 - 1)
SIDES = st.sampled_from(['right', 'left'])


@settings(max_examples=150, deadline=None)
@given(st.lists(st.lists(IDS, max_size=8), max_size=6), st.none() | st.integers(1, 12), SIDES)
def test_what_was_padded_comes_back_and_what_would_be_lost_is_counted(sequences, length, side):
  longest = max(map(len, sequences), default=0)
  if length is not None and longest > length:
    long = [one for one in sequences if len(one) > length]
    lost = sum(len(one) - length for one in long)
    rule = f'{len(long)} of {len(sequences)} sequences are longer than length={length}, by {lost} tokens in all'
    with pytest.raises(ValueError, match=rule):
      pad(sequences, length, side=side)
  batch = pad(sequences, length, side=side, truncate=True)
  tokens, mask = batch['tokens'], batch['mask']
  assert tokens.shape == mask.shape == (len(sequences), length or max(longest, 1))
  assert (tokens.dtype, mask.dtype) == (np.int32, bool)
  cut = sequences if length is None else [one[:length] if side == 'right' else one[-length:] for one in sequences]
  assert [row[keep].tolist() for row, keep in zip(tokens, mask, strict=True)] == cut
  assert not tokens[~mask].any()
  ordered = np.sort(mask, axis=1) if side == 'left' else -np.sort(-mask.astype(int), axis=1)
  np.testing.assert_array_equal(mask, ordered)  # padding stands on one side


@settings(max_examples=150, deadline=None)
@given(st.lists(IDS, min_size=2, max_size=40), st.integers(1, 12), st.data())
def test_windows_are_the_stream_and_the_token_after_and_none_is_left_out(stream, length, data):
  stride = data.draw(st.none() | st.integers(1, length))
  inputs, labels = windows(np.array(stream), length, stride)
  assert inputs.shape == labels.shape
  assert inputs.shape[1] == length
  assert inputs.dtype == labels.dtype == np.int32
  found = []
  for row, (seen, told) in enumerate(zip(inputs, labels, strict=True)):
    begin = row * (stride or length)
    live = told >= 0
    assert live.any()  # no example teaches nothing
    assert told[live].tolist() == stream[begin + 1 : begin + 1 + live.sum()]
    assert seen[live].tolist() == stream[begin : begin + live.sum()]
    assert not live[live.sum() :].any()
    assert not seen[len(stream) - begin :].any()
    found += range(begin + 1, begin + 1 + live.sum())
  assert set(found) == set(range(1, len(stream)))
  if stride in (None, length):
    assert len(found) == len(stream) - 1


def test_windows_are_arrays_of_their_own():
  stream = np.arange(20)
  inputs, labels = windows(stream, 4, 2)
  inputs[:] = 7
  assert labels.max() == 19
  assert stream[3] == 3
  assert windows(np.arange(5, dtype=np.uint8), 2).labels.tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize(
  'run, rule',
  [
    (lambda: pad([[1]], side='top'), "side is 'right' or 'left'; got 'top'"),
    (lambda: pad([[1]], 0), 'pad: length is a whole number from 1; got 0'),
    (lambda: pad([[1], [1.5]]), r'pad: sequence 1 is token ids, int\[T\]; got float64\[1\]'),
    (lambda: pad([1, 2]), r'pad: sequence 0 is token ids, int\[T\]; got int64\[\]'),
    (lambda: pad([[-1]]), r'pad: sequence 0 is token ids, from 0 to 2\^31 - 1; got -1 to -1'),
    (lambda: pad([[2**31]]), 'got 2147483648 to 2147483648'),
    (lambda: windows([1], 4), 'a next token takes two tokens at least; got 1'),
    (lambda: windows([1, 2], 4, 5), 'a stride beyond the length loses tokens; got stride=5, length=4'),
    (lambda: windows([1, 2], 0), 'windows: length is a whole number from 1; got 0'),
    (lambda: windows([1, 2], 2, 0), 'windows: stride is a whole number from 1; got 0'),
    (lambda: windows([[1, 2]], 2), r'windows: the stream is token ids, int\[T\]; got int64\[1, 2\]'),
    (lambda: windows('text', 2), 'windows: the stream is token ids'),
  ],
)
def test_what_does_not_fit_is_named(run, rule):
  with pytest.raises(ValueError, match=rule):
    run()
