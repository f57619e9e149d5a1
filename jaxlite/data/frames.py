"""Reading any kind of small table as named columns, and cells as numbers or as text."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from jaxlite.errors import nearest

_UNNAMED = re.compile(r'(Unnamed: \d+)?')
_COARSE = 1e-3  # of a column's range: rounding above it is told
_DATE = re.compile(r'\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}([ T]\d{1,2}:\d{2}.*)?')
_SIGNS = re.compile(r"[,%$\u20ac\u00a3\u00a5'\s\u00a0\u2212]")  # currencies, thousands, a minus of typesetters
_TRUTH = {'true': 1.0, '1': 1.0, 'false': 0.0, '0': 0.0}


def read_columns(table: Any) -> dict[str, np.ndarray]:
  """Returns a table as arrays [N] by column.

  Args:
    table: a path of a CSV file with a header (commas, semicolons or tabs), of a Parquet file or a folder of them, or of
      JSON lines; a dict of columns, a list of rows that are dicts, a structured array, or a DataFrame.

  Raises:
    ValueError: one line: no table, two columns of one name, columns of several lengths, no row.

  >>> read_columns([{'a': 1, 'b': 'x'}, {'a': 2, 'b': 'y'}])['b'].tolist()
  ['x', 'y']
  """
  if isinstance(table, str | os.PathLike):
    columns = read_file(os.fspath(table))
  elif isinstance(table, np.ndarray) and table.dtype.names:
    columns = {column: table[column] for column in table.dtype.names}
  elif isinstance(table, Mapping):
    check_names(list(map(str, table)), 'the table')
    if table and not any(hasattr(values, '__len__') and not isinstance(values, str) for values in table.values()):
      raise ValueError('a table is a dict of columns; got a dict of single values: put one row into a list, [row]')
    columns = {str(column): _column(values) for column, values in table.items()}
  elif isinstance(table, list | tuple) and table and all(isinstance(row, Mapping) for row in table):
    columns = from_rows(table)
  elif type(table).__module__.startswith('pyarrow') and hasattr(table, 'column_names'):
    from jaxlite.data.parquet import of_tables

    columns = of_tables([table], 'the table')
  elif isinstance(table, list | tuple) and not len(table):
    columns = {}
  elif hasattr(table, 'collect_schema') and hasattr(table, 'lazy') and not hasattr(table, 'get_column'):  # of Polars
    raise ValueError('a table has its rows; a lazy frame only says how to read them: give table.collect()')
  elif hasattr(table, 'columns') and hasattr(table, '__getitem__'):  # a DataFrame, without importing its library
    names = [str(column) for column in table.columns]
    check_names(names, 'the table')
    columns = {name: _column(table[column]) for name, column in zip(names, table.columns, strict=True)}
  else:
    raise ValueError(
      f'a table is a CSV path, a dict of columns, a structured array or a DataFrame; got {type(table).__name__}'
    )
  for column, values in columns.items():
    if values.dtype == object:
      for row, value in enumerate(values.tolist() if values.ndim == 1 else ()):
        if isinstance(value, list | tuple | dict | set | np.ndarray):
          kind = type(value).__name__
          raise ValueError(f'a cell is a number or a string; {column!r} has a {kind} in row {row}: give it columns')
  sizes = {column: np.shape(values) for column, values in columns.items()}
  if len(set(sizes.values())) > 1 or any(len(size) != 1 for size in sizes.values()):
    raise ValueError(f'columns are [N], all of one length; got {sizes}: cut or fill them')
  if not columns or not next(iter(sizes.values()))[0]:
    raise ValueError('a table needs a row at least; this one is empty')
  return columns


def categories(table: Any) -> list[str]:
  """Returns the columns that a DataFrame itself calls categorical: names, whatever they look like."""
  if not hasattr(table, 'columns') or not hasattr(table, 'dtypes'):
    return []
  return [str(name) for name in table.columns if str(table[name].dtype) == 'category']


def _column(values: Any) -> np.ndarray:
  try:
    return np.asarray(values)
  except ValueError:
    raise ValueError('a column holds one value per row; got lists of several lengths: give one column each') from None


def from_rows(rows: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
  """Returns rows that are dicts as columns [N]; ValueError where one has other columns than the first."""
  names = list(rows[0])
  for place, row in enumerate(rows):
    if set(row) != set(names):
      odd = next(name for name in (*names, *row) if (name in row) != (name in names))
      what = f'lacks {odd!r}' if odd in names else f'has {odd!r} (nearest: {nearest(str(odd), map(str, names))})'
      raise ValueError(f'every row has the columns of the first; row {place} {what}: give all rows the same')
  check_names(list(map(str, names)), 'the table')
  return {str(name): _objects([row[name] for row in rows]) for name in names}


def _objects(values: list[Any]) -> np.ndarray:
  if all(isinstance(value, bool | np.bool_) for value in values):
    return np.array(values, bool)
  found = np.empty(len(values), object)
  found[:] = values
  return found


def check_names(names: Sequence[str], where: str) -> None:
  """Raises ValueError where two columns have one name."""
  if len(set(names)) != len(names):
    raise ValueError(f'columns have names of their own; {where} has {", ".join(names)}: rename one')


def read_file(path: str) -> dict[str, np.ndarray]:
  """Returns the columns of a CSV, Parquet or JSON lines file, told by its name; a folder holds Parquet."""
  if os.path.isdir(path) or path.lower().endswith(('.parquet', '.pq')):
    from jaxlite.data.parquet import read_parquet

    return read_parquet(path)
  if path.lower().endswith(('.jsonl', '.ndjson')):
    return from_rows(read_json_lines(path))
  return _read_csv(path)


def read_json_lines(path: str) -> list[dict[str, Any]]:
  """Returns the objects of a file of JSON lines; blank lines are passed over.

  Raises:
    ValueError: a line that is no JSON object, with its number.
  """
  return list(json_lines(path))


def json_lines(path: str) -> Iterator[dict[str, Any]]:
  """Yields the objects of a file of JSON lines one by one, as `read_json_lines` gives all."""
  none = True
  try:
    with open(path, encoding='utf-8-sig') as file:
      for number, line in enumerate(file, 1):
        if not line.strip():
          continue
        try:
          row = json.loads(line, object_pairs_hook=_once)
        except (ValueError, RecursionError) as error:
          raise ValueError(f'each line is a JSON object; {path} line {number} is not: {error}') from None
        if not isinstance(row, dict):
          raise ValueError(f'each line is a JSON object; {path} line {number} is a {type(row).__name__}')
        none = False
        yield row
  except OSError as error:
    raise ValueError(f'cannot read {path}: {error.strerror or error}') from None
  except UnicodeDecodeError as error:
    raise ValueError(f'JSON lines are in UTF-8; {path} is not: {error}') from None
  if none:
    raise ValueError(f'a table needs a row at least; {path} is empty')


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  found = dict(pairs)
  if len(found) < len(pairs):
    names = [name for name, _ in pairs]
    raise ValueError(f'it has {next(name for name in names if names.count(name) > 1)!r} twice')
  return found


def _read_csv(path: str) -> dict[str, np.ndarray]:
  try:
    with open(path, newline='', encoding='utf-8-sig') as file:
      head = file.readline()
      file.seek(0)
      reader = csv.reader(file, delimiter=delimiter_of(head))
      header = next(reader, [])
      rows = [(reader.line_num, row) for row in reader if row]
  except OSError as error:
    raise ValueError(f'cannot read the table {path}: {error.strerror or error}') from None
  except (UnicodeDecodeError, csv.Error) as error:
    raise ValueError(f'a table is a CSV file in UTF-8; {path} is not: {error}') from None
  header = [column.strip() for column in header]
  check_names(header, path)
  for line, row in rows:
    if len(row) != len(header):
      raise ValueError(f'every row has {len(header)} cells, as the header; {path} line {line} has {len(row)}: fix it')
  cells = [[cell.strip() for cell in row] for _, row in rows]
  return {column: np.array([row[index] for row in cells], dtype=object) for index, column in enumerate(header)}


def delimiter_of(head: str) -> str:
  """Returns what stands between the cells of a CSV file, of its first line: a comma, a semicolon or a tab.

  >>> delimiter_of('"width, cm, outside";kind')
  ';'
  """
  return max(',;\t', key=re.sub(r'"[^"]*"', '', head).count)


def check_named(columns: Mapping[str, np.ndarray], drop: Sequence[str]) -> None:
  """Raises where a column without a name is not dropped: most often the rows' own numbers, which predict by accident.

  Raises:
    ValueError: one line with the column and the way out.
  """
  for name, values in columns.items():
    if name not in drop and _UNNAMED.fullmatch(name):
      counts = 'counts the rows' if counts_rows(values) else 'may be an index'
      raise ValueError(f'columns have names; {name!r} has none and {counts}: pass drop=[{name!r}], or name it')


def counts_rows(values: np.ndarray) -> bool:
  """Whether a column is 0, 1, 2, ... or 1, 2, 3, ...

  >>> counts_rows(np.array([1, 2, 3])), counts_rows(np.array([1, 3, 2]))
  (True, False)
  """
  try:
    numbers = np.array([float(_text(value)) for value in values.tolist()])
  except ValueError:
    return False
  return bool((np.diff(numbers) == 1).all() and numbers[0] in (0, 1))


def check_dates(column: str, values: np.ndarray) -> None:
  """Raises where a column holds dates or durations: what of them matters only a person knows.

  Raises:
    ValueError: one line with the column.
  """
  objects = values.tolist() if values.dtype.kind == 'O' else ()
  if values.dtype.kind in 'mM' or any(map(_is_time, objects)):
    raise ValueError(
      f'a column holds numbers or strings; {column!r} has dates: make numbers of them (year, weekday, days since), or '
      'drop it'
    )


def _is_time(value: Any) -> bool:
  """Whether this is a date, a duration or a span of time, whichever library's."""
  return any(hasattr(value, name) for name in ('isoformat', 'total_seconds', 'asfreq')) and not _is_missing(value)


def as_numbers(column: str, values: np.ndarray) -> np.ndarray | None:
  """Returns float64 [N] with NaN where a number is missing, or None for a column of names.

  Raises:
    ValueError: dates, and numbers with a few words among them.
  """
  check_dates(column, values)
  if values.dtype.kind in 'biuf':
    return values.astype(np.float64)
  if values.dtype.kind not in 'OUST':
    raise ValueError(f'a column holds numbers or strings; {column!r} has {values.dtype}: convert it')
  text = as_text(values)
  numbers, words = np.full(len(text), np.nan), []
  for row, cell in enumerate(text):
    if is_number(cell):
      numbers[row] = float(cell)
    elif cell:
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


def written(names: Iterable[str]) -> str:
  """Tells what texts of a column are, if most are numbers or dates in a writing that is not read; '' for names.

  >>> written(['1,234', '56']), written(['a 1', 'b'])
  ("looks like numbers written as '1,234': write them as -1234.5", '')
  >>> written(['2020-01-31', '2020-02-01'])
  "looks like dates written as '2020-01-31': make numbers of them (year, weekday, days since)"
  """
  texts = [one for one in names if one]
  for what, fix, is_one in (
    ('dates', 'make numbers of them (year, weekday, days since)', lambda text: bool(_DATE.fullmatch(text))),
    ('numbers', 'write them as -1234.5', lambda text: is_number(_SIGNS.sub('', text)) and bool(_SIGNS.search(text))),
  ):
    found = [text for text in texts if is_one(text)]
    plain = 0 if what == 'dates' else sum(map(is_number, texts))
    if found and len(found) + plain > 0.9 * len(texts):
      return f'looks like {what} written as {found[0]!r}: {fix}'
  return ''


def is_number(text: str) -> bool:
  """Tells whether a cell is read as a number. Python's own reading takes '1_03' too, which is a name of something.

  >>> is_number('1e3'), is_number('1_03'), is_number('')
  (True, False, False)
  """
  try:
    float(text)
  except ValueError:
    return False
  return '_' not in text


def check_finite(column: str, numbers: np.ndarray, values: np.ndarray) -> None:
  """Raises where a number is missing or infinite.

  Raises:
    ValueError: one line with column and row.
  """
  bad = np.flatnonzero(~np.isfinite(numbers))
  if len(bad):
    place = int(bad[0])
    nothing = values[place] is None or (isinstance(values[place], str) and not values[place].strip())
    shown = 'nothing' if nothing else str(values[place])
    raise ValueError(f'numbers are finite; column {column!r} has {shown} in row {place}: fill it in or drop it')


def truth(values: np.ndarray) -> np.ndarray | None:
  """Returns float64 [N], 1 and 0 for true and false in any writing (NaN for neither), or None for numbers."""
  if values.dtype.kind in 'biuf':
    return None
  return np.array([_TRUTH.get(cell.lower(), np.nan) for cell in as_text(values)])


def as_text(values: np.ndarray) -> np.ndarray:
  """Returns str [N]; a missing value (None, NaN) is '', a whole number has no point.

  >>> as_text(np.array(['a ', None, 2.0, 2, b'x'], object)).tolist()
  ['a', '', '2', '2', 'x']
  """
  return np.array([_text(value) for value in values.tolist()])


def _is_missing(value: Any) -> bool:
  if isinstance(value, float):
    return value != value
  return value is None or type(value).__name__ in ('NAType', 'NaTType')


def _text(value: Any) -> str:
  if _is_missing(value):
    return ''
  if isinstance(value, float) and value.is_integer():  # 7 and 7.0 are one name, whichever way the table was read
    return str(int(value))
  return (value.decode('utf-8', 'replace') if isinstance(value, bytes) else str(value)).strip()


class Rounding:
  """What float32 makes of a column of numbers, block after block."""

  def __init__(self) -> None:
    self.whole, self.error, self.low, self.high = False, 0.0, np.inf, -np.inf

  def add(self, numbers: np.ndarray) -> None:
    """Looks at more numbers of the column, float64[n]; those that are not finite count for nothing."""
    known = numbers[np.isfinite(numbers)]
    if not known.size:
      return
    with np.errstate(over='ignore', invalid='ignore'):
      off = np.abs(known - known.astype(np.float32))
      # Beyond 2**53 a float64 has rounded whole numbers already.
      self.whole |= bool(((known == np.round(known)) & ((off > 0) | (np.abs(known) >= 2.0**53))).any())
    self.error = max(self.error, float(off.max()))
    self.low, self.high = min(self.low, float(known.min())), max(self.high, float(known.max()))

  def told(self, column: str) -> tuple[str, ...]:
    """A line where numbers that differ become the same, or nearly so."""
    if self.whole:
      return (
        f'column {column!r} has whole numbers beyond 2**24, which float32 rounds: subtract or divide, or drop it',
      )
    if self.error > _COARSE * (self.high - self.low) > 0:
      return (
        f'column {column!r} lies between {self.low:.10g} and {self.high:.10g}, where float32 rounds by up to '
        f'{self.error:.2g}: subtract its least, or drop it',
      )
    return ()
