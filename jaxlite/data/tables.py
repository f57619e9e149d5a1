"""A data set out of a small table: numbers stay numbers, strings become one-hot columns, labels are numbered."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxlite.data.arrays import from_arrays
from jaxlite.data.dataset import Dataset


def from_table(
  table: Any,
  label: str,
  *,
  drop: str | Sequence[str] = (),
  categorical: str | Sequence[str] = (),
  validation: float | None = None,
  test: float | None = None,
  name: str = 'table',
  seed: int = 0,
) -> Dataset:
  """Makes a Dataset of a table's rows, splits carved from it, seeded and stratified.

  Args:
    table: a path of a CSV file with a header (commas, semicolons or tabs), a dict of columns, a structured
      array, or a DataFrame.
    label: the column to predict: strings, or whole numbers.
    drop: columns to leave out, such as an id.
    categorical: columns of numbers that are names (a postcode) and become one-hot.
    validation: the fraction of rows to carve; None takes a tenth.
    test: as validation.
    name: what the data are called.
    seed: of the carving.

  Returns:
    The Dataset: inputs float32 [N, features], raw; `mean` and `std` of train standardise them on the device.
    Columns of strings give one feature a value, 'column=value'; a missing string is the value ''.
    `class_names` are the label's values, sorted.

  Raises:
    ValueError: a column is missing, not readable as one kind, or has missing numbers; rows count from 0.

  >>> table = {'size': [1.0, 2.0, 3.0] * 4, 'colour': ['red', 'blue', 'red'] * 4, 'kind': ['a', 'b', 'a'] * 4}
  >>> data = from_table(table, 'kind')
  >>> data.feature_names, data.class_names
  (('size', 'colour=blue', 'colour=red'), ('a', 'b'))
  """
  drop, categorical = ((names,) if isinstance(names, str) else tuple(names) for names in (drop, categorical))
  columns = _columns(table)
  for wanted in (label, *drop, *categorical):
    if wanted not in columns:
      raise ValueError(f'a column is named as in the table; got {wanted!r}, the table has {", ".join(columns)}')
  if label in (*drop, *categorical):
    raise ValueError(f'the label is neither dropped nor encoded; {label!r} is: take it off drop and categorical')
  names, features = [], []
  for column, values in columns.items():
    if column != label and column not in drop:
      for feature, numbers in _encode(column, values, column in categorical):
        names.append(feature)
        features.append(numbers)
  if not features:
    raise ValueError(f'a table needs a column besides the label {label!r}: give features')
  class_names, labels = _classes(label, columns[label])
  inputs = np.stack(features, axis=1)
  return from_arrays(
    (inputs, labels), validation, test, name=name, class_names=class_names, feature_names=names, seed=seed
  )


def _columns(table: Any) -> dict[str, np.ndarray]:
  """Reads any kind of table as arrays of one length, by column."""
  if isinstance(table, str | os.PathLike):
    columns = _read_csv(os.fspath(table))
  elif isinstance(table, np.ndarray) and table.dtype.names:
    columns = {column: table[column] for column in table.dtype.names}
  elif isinstance(table, Mapping):
    columns = {str(column): np.asarray(values) for column, values in table.items()}
  elif hasattr(table, 'columns') and hasattr(table, '__getitem__'):  # a DataFrame, without importing its library
    columns = {str(column): np.asarray(table[column]) for column in table.columns}
  else:
    raise ValueError(
      f'a table is a CSV path, a dict of columns, a structured array or a DataFrame; got {type(table).__name__}'
    )
  sizes = {column: np.shape(values) for column, values in columns.items()}
  if len(set(sizes.values())) > 1 or any(len(size) != 1 for size in sizes.values()):
    raise ValueError(f'columns are [N], all of one length; got {sizes}: cut or fill them')
  if not columns or not next(iter(sizes.values()))[0]:
    raise ValueError('a table needs a row at least; this one is empty')
  return columns


def _read_csv(path: str) -> dict[str, np.ndarray]:
  try:
    with open(path, newline='', encoding='utf-8-sig') as file:
      head = file.readline()
      file.seek(0)
      reader = csv.reader(file, delimiter=max(',;\t', key=head.count))
      header = next(reader, [])
      rows = [(reader.line_num, row) for row in reader if row]
  except OSError as error:
    raise ValueError(f'cannot read the table {path}: {error.strerror or error}') from None
  except (UnicodeDecodeError, csv.Error) as error:
    raise ValueError(f'a table is a CSV file in UTF-8; {path} is not: {error}') from None
  header = [column.strip() for column in header]
  if len(set(header)) != len(header):
    raise ValueError(f'columns have names of their own; {path} has {", ".join(header)}: rename one')
  for line, row in rows:
    if len(row) != len(header):
      raise ValueError(f'every row has {len(header)} cells, as the header; {path} line {line} has {len(row)}: fix it')
  cells = [[cell.strip() for cell in row] for _, row in rows]
  return {column: np.array([row[index] for row in cells], dtype=object) for index, column in enumerate(header)}


def _encode(column: str, values: np.ndarray, categorical: bool) -> list[tuple[str, np.ndarray]]:
  """Returns the features of one column, each float64 [N] with its name."""
  numbers = None if categorical else _as_numbers(column, values)
  if numbers is not None:
    bad = np.flatnonzero(~np.isfinite(numbers))
    if len(bad):
      raise ValueError(
        f'numbers are finite; column {column!r} has {_shown(values[bad[0]])} in row {bad[0]}: fill it in or drop it'
      )
    return [(column, numbers)]
  text = _as_text(values)
  kinds, index = np.unique(text, return_inverse=True)
  if len(kinds) > max(16, len(text) // 2):
    raise ValueError(f'column {column!r} has {len(kinds)} values in {len(text)} rows, too many to learn: drop it')
  return [(f'{column}={kind}', (index == place).astype(np.float64)) for place, kind in enumerate(kinds)]


def _as_numbers(column: str, values: np.ndarray) -> np.ndarray | None:
  """Returns float64 [N] with NaN where a number is missing, or None for a column of names."""
  if values.dtype.kind in 'biuf':
    return values.astype(np.float64)
  if values.dtype.kind not in 'OUST':
    raise ValueError(f'a column holds numbers or strings; {column!r} has {values.dtype}: convert it')
  text = _as_text(values)
  numbers, words = np.full(len(text), np.nan), []
  for row, cell in enumerate(text):
    try:
      numbers[row] = float(cell) if cell else np.nan
    except ValueError:
      words.append(row)
  filled = sum(bool(cell) for cell in text)
  if not words and filled:
    return numbers
  if 2 * len(words) < filled:  # mostly numbers: a stray 'NA' must not turn a measurement into categories
    place = words[0]
    raise ValueError(
      f'column {column!r} holds numbers, but {str(text[place])!r} in row {place}: '
      f'fix it, or name the column in categorical if it holds names'
    )
  return None


def _as_text(values: np.ndarray) -> np.ndarray:
  """Returns str [N]; a missing value (None, NaN) is ''."""

  def text(value: Any) -> str:
    if value is None or value != value:
      return ''
    return (value.decode('utf-8', 'replace') if isinstance(value, bytes) else str(value)).strip()

  return np.array([text(value) for value in values.tolist()])


def _shown(value: Any) -> str:
  return 'nothing' if value is None or value == '' else str(value)


def _classes(label: str, values: np.ndarray) -> tuple[list[str], np.ndarray]:
  """Returns the label's values, sorted, and int [N] that numbers them."""
  text = _as_text(values)
  missing = np.flatnonzero(text == '')
  if len(missing):
    raise ValueError(f'every row has a label; {label!r} has none in row {missing[0]}: drop the row')
  try:  # whole numbers first: as float64 large ids would fall together
    numbers = np.array([int(cell) for cell in text]) if values.dtype.kind not in 'bf' else values.astype(np.float64)
  except ValueError:
    try:
      numbers = text.astype(np.float64)
    except ValueError:
      kinds, index = np.unique(text, return_inverse=True)
      return [str(kind) for kind in kinds], index
  wrong = np.flatnonzero(~np.isfinite(numbers) | (numbers != np.round(numbers))) if numbers.dtype.kind == 'f' else ()
  if len(wrong):
    place = int(wrong[0])
    raise ValueError(f'a label is a class; {label!r} has {values[place]} in row {place}: sort the values into bins')
  kinds, index = np.unique(numbers, return_inverse=True)
  return [str(int(kind)) for kind in kinds], index
