"""Sequences of token ids as rectangular arrays: padded with a mask, or cut from one stream for the next token."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

NOTHING = -1  # the label where there is nothing to predict


class Windows(NamedTuple):
  """Examples of the next token.

  Attributes:
    inputs: int32[N, T], 0 past the end of the stream.
    labels: int32[N, T], the token after each input; -1 where there is none.
  """

  inputs: np.ndarray
  labels: np.ndarray


def pad(
  sequences: Iterable[Any], length: int | None = None, *, side: str = 'right', truncate: bool = False
) -> dict[str, np.ndarray]:
  """Makes one array of sequences of different lengths, and a mask that tells tokens from padding.

  Args:
    sequences: of token ids, each a list or int[T].
    length: T of the result; None is that of the longest, and 1 at least.
    side: where padding stands, 'right' or 'left'.
    truncate: whether a longer sequence is cut, on the side of the padding; False refuses it.

  Returns:
    {'tokens': int32[N, T], 0 where there is padding, 'mask': bool[N, T], True where there is a token}: what
    `EmbeddingBag` and `Decoder` take as inputs.

  Raises:
    ValueError: a sequence longer than `length` that may not be cut, with how many there are; ids that are no whole
      numbers from 0 to 2^31 - 1.

  >>> batch = pad([[5, 6, 7], [8]])
  >>> batch['tokens'].tolist(), batch['mask'].tolist()
  ([[5, 6, 7], [8, 0, 0]], [[True, True, True], [True, False, False]])
  >>> pad([[5, 6, 7], [8]], 2, side='left', truncate=True)['tokens'].tolist()
  [[6, 7], [0, 8]]
  """
  if side not in ('right', 'left'):
    raise ValueError(f"pad: side is 'right' or 'left'; got {side!r}")
  rows = [_ids(sequence, f'pad: sequence {place}') for place, sequence in enumerate(sequences)]
  counts = np.array([len(row) for row in rows], np.int64)
  length = max(counts.max(initial=1), 1) if length is None else _whole(length, 'pad: length')
  lost = np.maximum(counts - length, 0)
  if lost.any() and not truncate:
    raise ValueError(
      f'pad: {np.count_nonzero(lost)} of {len(rows)} sequences are longer than length={length}, by {lost.sum()} tokens '
      f'in all and {counts.max()} tokens the longest: raise length=, or cut them with truncate=True'
    )
  kept = [row[:length] if side == 'right' else row[max(len(row) - length, 0) :] for row in rows]
  counts = np.minimum(counts, length)[:, None]
  places = np.arange(length)
  mask = places < counts if side == 'right' else places >= length - counts
  tokens = np.zeros((len(rows), length), np.int32)
  tokens[mask] = np.concatenate([np.zeros(0, np.int32), *kept])
  return {'tokens': tokens, 'mask': mask}


def windows(tokens: Any, length: int, stride: int | None = None) -> Windows:
  """Cuts one long stream of tokens into examples of the next token.

  Args:
    tokens: int[n], n from 2: a text, or several joined by a token that separates them.
    length: T, tokens an example.
    stride: tokens between the starts of two examples, from 1 to `length`; None is `length`: then every token but the
      first is predicted exactly once. A smaller stride predicts some of them again, with another context.

  Returns:
    Windows, an (inputs, labels) pair; the last one may end early, its labels then -1.

  Raises:
    ValueError: fewer than two tokens, ids that are no whole numbers from 0, a length or stride out of range.

  >>> inputs, labels = windows([1, 2, 3, 4, 5, 6], 3)
  >>> inputs.tolist(), labels.tolist()
  ([[1, 2, 3], [4, 5, 6]], [[2, 3, 4], [5, 6, -1]])
  """
  length = _whole(length, 'windows: length')
  stride = length if stride is None else _whole(stride, 'windows: stride')
  if stride > length:
    raise ValueError(f'windows: a stride beyond the length loses tokens; got stride={stride}, length={length}')
  stream = _ids(tokens, 'windows: the stream')
  if len(stream) < 2:
    raise ValueError(f'windows: a next token takes two tokens at least; got {len(stream)}')
  steps = -(-max(len(stream) - 1 - length, 0) // stride)  # after the first, until one holds the last label
  end = steps * stride + length
  return Windows(_cut(stream, end, length, stride, 0), _cut(stream[1:], end, length, stride, NOTHING))


def _cut(stream: np.ndarray, end: int, length: int, stride: int, filler: int) -> np.ndarray:
  whole = np.full(end, filler, np.int32)
  whole[: len(stream)] = stream[:end]
  return np.lib.stride_tricks.sliding_window_view(whole, length)[::stride].copy()


def _ids(tokens: Any, what: str) -> np.ndarray:
  array = np.asarray(tokens)
  if array.ndim != 1 or not (np.issubdtype(array.dtype, np.integer) or not array.size):
    raise ValueError(f'{what} is token ids, int[T]; got {array.dtype}{list(array.shape)}')
  if array.size and not (array.min() >= 0 and array.max() < 2**31):
    raise ValueError(f'{what} is token ids, from 0 to 2^31 - 1; got {array.min()} to {array.max()}')
  return array.astype(np.int32)


def _whole(value: Any, what: str) -> int:
  if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
    raise ValueError(f'{what} is a whole number from 1; got {value!r}')
  return int(value)
