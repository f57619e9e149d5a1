"""A data set out of a small table: numbers stay numbers, strings become one-hot columns, labels are numbered."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxlite.data import frames
from jaxlite.data.arrays import carved
from jaxlite.data.chosen import choose
from jaxlite.data.dataset import Dataset, check_labels, make_dataset
from jaxlite.data.encoders import NUMBER, fit_table, strange_names
from jaxlite.data.large_files import blocks, column_names, goes_to_disk
from jaxlite.data.large_tables import encoded, looked_at, targets_of
from jaxlite.data.table_labels import read_labels, with_stated
from jaxlite.errors import nearest
from jaxlite.tasks.task import Task


def from_table(
  table: Any,
  label: str | Sequence[str],
  *,
  task: Task | Callable[[], Task] | None = None,
  weight: str | None = None,
  drop: str | Sequence[str] = (),
  categorical: str | Sequence[str] = (),
  validation: float | None = None,
  test: float | None = None,
  standardize: Any = True,
  facts: Mapping[str, Any] | None = None,
  name: str = 'table',
  seed: int = 0,
  keep: str = 'auto',
) -> Dataset:
  """Makes a Dataset of a table's rows, splits carved from it, seeded and stratified.

  Args:
    table: a path of a CSV file with a header (commas, semicolons or tabs), of a Parquet file or a folder of them, or of
      JSON lines; a dict of columns, a list of rows that are dicts, a structured array, or a DataFrame.
    label: the column to predict; several for a task of several targets or labels.
    task: what is learned, such as `jl.tasks.regression`; None takes classification, where the label is of strings or of
      few whole numbers.
    weight: a column that says how much each row counts.
    drop: columns to leave out, such as an id.
    categorical: columns of numbers that are names (a postcode) and become one-hot.
    validation: the fraction of rows to carve; None takes a tenth, 0 holds nothing out.
    test: as validation, above 0.
    standardize: True, False, or a pair (mean, std) of float[features]; see `make_dataset`.
    facts: what else the task should know, by name.
    name: what the data are called.
    seed: of the carving.
    keep: 'memory'; or 'disk', which reads a file block by block and keeps its features in a file that is mapped
      (`$JAXLITE_DATA`, or the user's caches), so that a table larger than memory trains; 'auto' takes the disk where
      reading all at once would take more than half of the memory that is free. No number changes by it.

  Returns:
    The Dataset: inputs float32 [N, features], raw; `mean` and `std` of train standardize them on the device.
    Columns of strings give one feature per value that train has, 'column=value'; a missing string is the value ''; a
    value that only the other splits have is none of them, and noted. `class_names` are the label's values, sorted.
    `encoder` does the same to other tables.

  Raises:
    ValueError: a column is missing, not readable as one kind, has dates, no name or missing numbers; rows count from 0.

  >>> table = {'size': [1.0, 2.0, 3.0] * 4, 'color': ['red', 'blue', 'red'] * 4, 'kind': ['a', 'b', 'a'] * 4}
  >>> data = from_table(table, 'kind')
  >>> data.feature_names, data.class_names
  (('size', 'color=blue', 'color=red'), ('a', 'b'))
  >>> data.encoder({'size': [7], 'color': ['blue']}).tolist()
  [[7.0, 1.0, 0.0]]
  """
  labels, drop, categorical = map(_as_names, (label, drop, categorical))
  if goes_to_disk(table, keep):
    given = (labels, drop, categorical, weight, validation, test, standardize, facts, name, seed)
    return _from_disk(table, task, *given)
  columns = frames.read_columns(table)
  categorical += tuple(name for name in frames.categories(table) if name not in (*labels, *drop, weight, *categorical))
  _check_roles(list(columns), labels, weight, drop, categorical)
  frames.check_named(columns, drop)
  others = (*labels, *((weight,) if weight is not None else ()), *drop)
  features = {column: values for column, values in columns.items() if column not in others}
  if not features:
    raise ValueError(f'a table needs a column besides the label {", ".join(map(repr, labels))}: give features')
  learned, targets, given = read_labels({column: columns[column] for column in labels}, task)
  weights = None if weight is None else _as_weights(weight, columns[weight])
  rows = carved(learned, check_labels(learned, targets, 'train'), validation, test, seed)
  encoder = fit_table(features, rows['train'], categorical=categorical, others=others)
  inputs, told = encoder.encode(features)  # what is new is new in validation or test alone
  told = [line.replace('training never saw', 'train does not have') for line in told]
  told += strange_names(encoder)
  told += [line for column, kind, _ in encoder.columns if kind == NUMBER for line in _rounded(column, features[column])]
  told += [
    f'column {column!r} counts the rows: if it is an index, drop={column!r}'
    for column, values in features.items()
    if values.dtype.kind in 'iuO' and len(values) > 2 and frames.counts_rows(values)
  ]
  about = {'task': learned, 'facts': with_stated(given, facts), 'standardize': standardize, 'notes': told}
  inputs = {where: inputs[which] for where, which in rows.items()}
  return _made(name, inputs, targets, weights, rows, encoder, about)


def _made(name: str, inputs: Any, targets: Any, weights: Any, rows: Any, encoder: Any, about: Any) -> Dataset:
  """The Dataset of a table whose inputs are made, by split."""
  splits = {
    where: (inputs[where], targets[which], *(() if weights is None else (weights[which],)))
    for where, which in rows.items()
  }
  parts = (splits['train'], splits.get('validation'), splits['test'])
  return make_dataset(name, *parts, feature_names=encoder.feature_names, encoder=encoder, **about)


def _from_disk(
  path: Any,
  task: Any,
  labels: Sequence[str],
  drop: Sequence[str],
  categorical: Sequence[str],
  weight: str | None,
  validation: float | None,
  test: float | None,
  standardize: Any,
  facts: Mapping[str, Any] | None,
  name: str,
  seed: int,
) -> Dataset:
  """The Dataset of a file that is read block by block."""
  names = column_names(path)
  _check_roles(names, labels, weight, drop, categorical)
  others = (*labels, *((weight,) if weight is not None else ()), *drop)
  if not set(names) - set(others):
    raise ValueError(f'a table needs a column besides the label {", ".join(map(repr, labels))}: give features')
  for block in blocks(path, rows=2):  # what has no name is told by its first rows
    frames.check_named(block, drop)
    break
  cells, weights, seen = looked_at(path, labels, weight, others, categorical)
  learned, targets, given = targets_of(cells, task)
  count = len(targets)
  rows = carved(learned, check_labels(learned, targets, 'train'), validation, test, seed)
  large = encoded(path, seen, rows['train'], count, others)
  inputs = {where: choose(large.inputs, which) for where, which in rows.items()}
  about = {'task': learned, 'facts': with_stated(given, facts), 'standardize': standardize, 'notes': large.notes}
  return _made(name, inputs, targets, weights, rows, large.encoder, about)


def _rounded(column: str, values: np.ndarray) -> tuple[str, ...]:
  found, numbers = frames.Rounding(), frames.as_numbers(column, values)
  assert numbers is not None  # a column of numbers
  found.add(numbers)
  return found.told(column)


def _as_names(names: Any) -> tuple[str, ...]:
  return tuple(map(str, names)) if isinstance(names, Iterable) and not isinstance(names, str) else (str(names),)


def _check_roles(
  columns: list[str], labels: Sequence[str], weight: str | None, drop: Sequence[str], categorical: Sequence[str]
) -> None:
  if not labels:
    raise ValueError(f'a label is a column of the table, or several; got none: the table has {", ".join(columns)}')
  for wanted in (*labels, *(() if weight is None else (weight,)), *drop, *categorical):
    if wanted not in columns:
      near = nearest(str(wanted), columns)
      raise ValueError(
        f'a column is named as in the table; got {wanted!r}, the table has {", ".join(columns)} (nearest: {near})'
      )
  for label in labels:
    if label in (*drop, *categorical, weight) or labels.count(label) > 1:
      raise ValueError(
        f'the label is neither dropped nor encoded; {label!r} is: take it off drop, categorical and weight'
      )
  if weight is not None and weight in (*drop, *categorical):
    raise ValueError(f'a weight is neither dropped nor encoded; {weight!r} is: take it off drop and categorical')


def _as_weights(column: str, values: np.ndarray) -> np.ndarray:
  numbers = frames.as_numbers(column, values)
  if numbers is None:
    raise ValueError(f'a weight is a column of numbers; {column!r} has {str(values[0])!r} in row 0')
  frames.check_finite(column, numbers, values)
  return numbers
