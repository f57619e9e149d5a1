"""A table that is larger than memory, as a Dataset of mapped rows: the same data set, bit for bit, as of one that fits.

It is read three times block by block: what kinds its columns have and what the labels are; which names the training
rows have; and once to write its features into a file, which later runs find again.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxlite.data import frames
from jaxlite.data.encoders import NAMES, NUMBER, TRUTH, TableEncoder, strange_names, too_many
from jaxlite.data.large_files import Columns, blocks, content_hash, kept_arrays
from jaxlite.data.table_labels import FEW, read_labels

_MOST_NAMES = 1 << 16  # different cells of a column that are remembered
_FEW_NAMES = 1 << 10  # likewise, of a column that has held numbers alone
Path = str | os.PathLike[str]


class Large(NamedTuple):
  """What a large table was found to be.

  Attributes:
    inputs: float32 [N, features], mapped.
    encoder: that made them.
    notes: lines on columns.
  """

  inputs: np.ndarray
  encoder: TableEncoder
  notes: list[str]


class Cells:
  """The cells of a column that is kept whole, by number: labels, which are few names or else numbers."""

  def __init__(self, name: str):
    self.name = name
    self._known: dict[str, int] | None = {}
    self._parts: list[np.ndarray] = []
    self._rows = 0

  def add(self, values: np.ndarray) -> None:
    """Takes the next block."""
    frames.check_dates(self.name, values)
    text = frames.as_text(values.astype(np.int64) if values.dtype.kind == 'b' else values)
    missing = np.flatnonzero(text == '')
    if len(missing):
      raise ValueError(f'every row has a label; {self.name!r} has none in row {self._rows + missing[0]}: drop the row')
    self._rows += len(text)
    if self._known is not None:
      kinds, index = np.unique(text, return_inverse=True)
      codes = np.array([self._known.setdefault(str(kind), len(self._known)) for kind in kinds], np.int32)
      self._parts.append(codes[index])
      if len(self._known) > _MOST_NAMES:
        numbers = self._numbers(np.array(list(self._known)))
        self._parts = [numbers[part] for part in self._parts]
        self._known = None
    else:
      self._parts.append(self._numbers(text))

  def _numbers(self, text: np.ndarray) -> np.ndarray:
    try:
      return text.astype(np.float64)
    except ValueError:
      raise ValueError(
        f'a label is one of at most {_MOST_NAMES:,} names, or a number; {self.name!r} has more: is it an id?'
      ) from None

  def values(self) -> np.ndarray:
    """Returns all cells, [N], as `frames` would give them: strings, or float64."""
    kinds, index = self.kinds()
    return kinds[index]

  def kinds(self) -> tuple[np.ndarray, np.ndarray]:
    """Returns the different cells, [K], and which of them stands in each row, int [N]; of many numbers all rows."""
    index = np.concatenate(self._parts)
    if self._known is None:
      return index, np.arange(len(index))
    return np.array(list(self._known), object), index


def targets_of(cells: Mapping[str, Cells], task: Any) -> tuple[Any, np.ndarray, dict[str, Any]]:
  """Returns what `read_labels` does of label columns: of one that has few names, of these alone, whatever the rows."""
  if len(cells) == 1:
    ((name, one),) = cells.items()
    kinds, index = one.kinds()
    if len(kinds) <= FEW:
      learned, targets, given = read_labels({name: kinds}, task)
      return learned, targets[index], given
  return read_labels({name: one.values() for name, one in cells.items()}, task)


class _Seen:
  """What is known of a column after some of its blocks: enough to judge it as a whole one is judged."""

  def __init__(self, name: str, categorical: bool = False):
    self.name, self.rows, self.filled, self.words = name, 0, 0, 0
    self.categorical, self.forgot = categorical, False
    self.booleans, self.counts, self.rounding = True, True, frames.Rounding()
    self.first_word: tuple[str, int] | None = None
    self.wrong: tuple[str, int] | None = None
    self.kinds: set[str] | None = set()
    self._last: float | None = None

  def add(self, values: np.ndarray) -> None:
    if values.dtype.kind not in 'OUSTbiufmM':
      raise ValueError(f'a column holds numbers or strings; {self.name!r} has {values.dtype}: convert it')
    frames.check_dates(self.name, values)
    text, numbers, words = _parsed(values)
    there = text != ''
    self.booleans &= values.dtype.kind == 'b'
    self.counts &= values.dtype.kind in 'iuO'
    self.filled += int(there.sum())
    if len(words) and self.first_word is None:
      self.first_word = (str(text[words[0]]), self.rows + int(words[0]))
    self.words += len(words)
    bad = np.flatnonzero(~np.isfinite(numbers))
    if self.wrong is None and len(bad):
      cell = values[bad[0]]
      nothing = cell is None or (isinstance(cell, str) and not cell.strip())
      self.wrong = ('nothing' if nothing else str(cell), self.rows + int(bad[0]))
    if self.kinds is not None:
      self.kinds |= set(np.unique(text).tolist())
      if not (self.words or self.categorical) and len(self.kinds) > _FEW_NAMES:
        self.kinds, self.forgot = None, True  # numbers, most likely; else it is read again
      elif len(self.kinds) > _MOST_NAMES:
        self.kinds = None
    self._count(numbers)
    self.rounding.add(numbers)
    self.rows += len(values)

  def _count(self, numbers: np.ndarray) -> None:
    before = [] if self._last is None else [self._last]
    if not before and len(numbers):
      self.counts &= bool(numbers[0] in (0, 1))
    with np.errstate(invalid='ignore'):
      self.counts &= bool((np.diff([*before, *numbers]) == 1).all())
    self._last = float(numbers[-1]) if len(numbers) else self._last

  @property
  def unclear(self) -> bool:
    """Whether its names were forgotten and are needed."""
    return self.forgot and self.words > 0 and not 2 * self.words < self.filled

  def kind(self) -> str:
    """Returns what kind of column it is, as `fit_table` judges one in memory."""
    categorical = self.categorical
    numeric = self.filled > 0 and not self.words
    if self.booleans and not categorical:
      return TRUTH
    if not categorical and self.words and 2 * self.words < self.filled and self.first_word is not None:
      text, place = self.first_word
      raise ValueError(
        f'column {self.name!r} holds numbers, but {text!r} in row {place}: '
        f'fix it, or name the column in categorical if it holds names'
      )
    if numeric and not categorical:
      if self.wrong is not None:
        shown, place = self.wrong
        raise ValueError(f'numbers are finite; column {self.name!r} has {shown} in row {place}: fill it in or drop it')
      return NUMBER
    if not categorical and self.kinds is not None and {one.lower() for one in self.kinds} <= {'true', 'false'}:
      return TRUTH
    if not self.filled:
      raise ValueError(f'a column holds numbers or strings; {self.name!r} is empty in every row: drop it')
    count = f'over {_MOST_NAMES:,}' if self.kinds is None else f'{len(self.kinds)}'
    if self.kinds is None or len(self.kinds) > max(16, self.rows // 2):
      raise ValueError(too_many(self.name, count, self.rows, sorted(self.kinds or ())))
    return NAMES


def _parsed(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """The cells as text, as numbers (NaN for what is none), and which rows have words."""
  text = frames.as_text(values)
  if values.dtype.kind in 'biuf':
    return text, values.astype(np.float64), np.zeros(0, np.int64)
  try:
    numbers = np.where(text == '', 'nan', text).astype(np.float64)
    if not any('_' in cell for cell in text.tolist()):  # see `frames.is_number`
      return text, numbers, np.zeros(0, np.int64)
  except ValueError:
    pass
  read = [frames.is_number(cell) for cell in text]
  numbers = np.array([float(cell) if one else np.nan for cell, one in zip(text, read, strict=True)])
  return text, numbers, np.flatnonzero([bool(cell) and not one for cell, one in zip(text, read, strict=True)])


def looked_at(
  path: Path, labels: Sequence[str], weight: str | None, left_out: Sequence[str], categorical: Sequence[str]
) -> tuple[dict[str, Cells], np.ndarray | None, dict[str, _Seen]]:
  """Reads a table once: label columns whole, the weight as float64 or None, and what is known of every other column."""
  cells = {name: Cells(name) for name in labels}
  seen: dict[str, _Seen] = {}
  weights: list[np.ndarray] = []
  for block in blocks(path):
    for name, values in block.items():
      if name in cells:
        cells[name].add(values)
      elif name == weight:
        weights.append(_weights(name, values))
      elif name not in left_out:
        seen.setdefault(name, _Seen(name, name in categorical)).add(values)
  unclear = {name: _Seen(name, True) for name, one in seen.items() if one.unclear}
  for block in blocks(path) if unclear else ():
    for name, one in unclear.items():
      one.add(block[name])
  for name, one in unclear.items():
    seen[name].kinds = one.kinds
  return cells, np.concatenate(weights) if weights else None, seen


def _weights(name: str, values: np.ndarray) -> np.ndarray:
  numbers = frames.as_numbers(name, values)
  if numbers is None:
    raise ValueError(f'a weight is a column of numbers; {name!r} has {str(values[0])!r}')
  frames.check_finite(name, numbers, values)
  return numbers


def encoded(
  path: Path,
  seen: Mapping[str, _Seen],
  train: np.ndarray,
  count: int,
  others: Sequence[str],
) -> Large:
  """Fits the encoder of a table on its training rows and writes the features of all rows.

  Args:
    path: of the table.
    seen: as `looked_at` gave it.
    train: which rows are trained on, int64.
    count: N.
    others: columns that are no inputs.
  """
  kinds = {name: one.kind() for name, one in seen.items()}
  training = np.zeros(count, bool)
  training[train] = True
  names: dict[str, set[str]] = {name: set() for name, kind in kinds.items() if kind == NAMES}
  new: dict[str, tuple[str, int, int]] = {}
  if names:
    for start, block in _numbered(path):
      rows = training[start : start + len(next(iter(block.values())))]
      for name, found in names.items():
        found |= set(np.unique(frames.as_text(block[name])[rows]).tolist())
    for start, block in _numbered(path):
      for name, found in names.items():
        text = frames.as_text(block[name])
        strange = np.flatnonzero(~np.isin(text, sorted(found)))
        if len(strange):
          first = new.get(name, (str(text[strange[0]]), start + int(strange[0]), 0))
          new[name] = (*first[:2], first[2] + len(strange))
  columns = tuple((name, kind, tuple(sorted(names[name])) if kind == NAMES else ()) for name, kind in kinds.items())
  encoder = TableEncoder(columns, tuple(others))
  notes = [
    f'column {name!r} has {text!r} in row {row}, a name that train does not have ({many} of {count} rows): '
    f'it counts as none of {len(names[name])}'
    for name, (text, row, many) in new.items()
  ]
  notes += strange_names(encoder)
  notes += [line for name, kind in kinds.items() if kind == NUMBER for line in seen[name].rounding.told(name)]
  notes += [
    f'column {name!r} counts the rows: if it is an index, drop={name!r}'
    for name, one in seen.items()
    if one.counts and one.rows > 2
  ]

  def fill() -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    for start, block in _numbered(path):
      rows, _ = encoder.encode({name: block[name] for name in kinds})
      yield start, {'inputs': rows}

  shape = (len(encoder.feature_names),)
  told = [content_hash(path), encoder.to_json()]
  kept = kept_arrays(told, count, {'inputs': (shape, np.float32)}, fill, 'the features of a table')
  return Large(kept['inputs'], encoder, notes)


def _numbered(path: Path) -> Iterator[tuple[int, Columns]]:
  start = 0
  for block in blocks(path):
    yield start, block
    start += len(next(iter(block.values())))
