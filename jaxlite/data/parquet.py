"""Parquet as columns of a table, by pyarrow, which is imported when a file is read: that takes seconds."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from jaxlite.data.folders import is_hidden
from jaxlite.errors import need


def read_parquet(path: str) -> dict[str, np.ndarray]:
  """Returns the columns of a Parquet file, or of all files in a folder, in the order of their names.

  A missing number is NaN, a missing string None; names kept as a dictionary are strings; decimals are floats.

  Raises:
    ValueError: no Parquet, two columns of one name, files of several columns, a column of lists or structures.
    ImportError: pyarrow is not installed.

  >>> import tempfile
  >>> import pyarrow, pyarrow.parquet
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   pyarrow.parquet.write_table(pyarrow.table({'a': [1, None], 'b': ['x', 'y']}), f'{folder}/t.parquet')
  ...   columns = read_parquet(f'{folder}/t.parquet')
  >>> columns['a'].tolist(), columns['b'].tolist()
  ([1.0, nan], ['x', 'y'])
  """
  need('reading Parquet', 'pyarrow')
  import pyarrow as pa
  import pyarrow.parquet as pq

  tables = []
  for file in parquet_files(path):
    try:
      with pq.ParquetFile(file) as source:  # not read_table, which takes folders' names for columns
        names = source.schema_arrow.names
        if len(set(names)) != len(names):
          raise ValueError(f'columns have names of their own; {file} has {", ".join(names)}: rename one')
        tables.append(source.read())
    except (OSError, pa.ArrowException) as error:
      raise ValueError(f'{file} is no Parquet file, or damaged: {str(error).splitlines()[0]}') from None
    if tables[-1].schema.names != tables[0].schema.names:
      raise ValueError(
        f'files of one table have the same columns; {file} has {", ".join(tables[-1].schema.names)}, the first '
        f'{", ".join(tables[0].schema.names)}'
      )
  return of_tables(tables, path)


def of_tables(tables: Sequence[Any], where: str) -> dict[str, np.ndarray]:
  """Returns the columns of Arrow tables, one below the other, as `read_parquet` does; `where` names them in errors.

  Raises:
    ValueError: two columns of one name, a column of lists or structures.
  """
  names = tables[0].schema.names
  if len(set(names)) != len(names):
    raise ValueError(f'columns have names of their own; {where} has {", ".join(names)}: rename one')
  found: dict[str, np.ndarray] = {}
  for name in names:
    parts = [_column(name, chunk, where) for table in tables for chunk in table.column(name).chunks]
    parts = parts or [np.zeros(0, object)]
    kinds = {part.dtype.kind for part in parts}
    if len(kinds) > 1 and 'O' in kinds:
      parts = [part.astype(object) for part in parts]
    found[name] = np.concatenate(parts)
  return found


def parquet_batches(path: str, rows: int) -> Iterator[dict[str, np.ndarray]]:
  """Yields the rows that `read_parquet` gives, so many at a time.

  Raises:
    ValueError: as `read_parquet`.
  """
  import pyarrow as pa
  import pyarrow.parquet as pq

  first: list[str] | None = None
  for file in parquet_files(path):
    try:
      with pq.ParquetFile(file) as source:
        names = source.schema_arrow.names
        if len(set(names)) != len(names):
          raise ValueError(f'columns have names of their own; {file} has {", ".join(names)}: rename one')
        if first is not None and names != first:
          raise ValueError(
            f'files of one table have the same columns; {file} has {", ".join(names)}, the first {", ".join(first)}'
          )
        first = names
        for batch in source.iter_batches(batch_size=rows):
          yield {name: _column(name, batch.column(place), path) for place, name in enumerate(names)}
    except (OSError, pa.ArrowException) as error:
      raise ValueError(f'{file} is no Parquet file, or damaged: {str(error).splitlines()[0]}') from None


def parquet_files(path: str) -> list[str]:
  """Returns a Parquet file, or those of a folder, in the order of their names."""
  if not os.path.isdir(path):
    return [path]
  names = sorted(name for name in os.listdir(path) if not is_hidden(name))
  files = [os.path.join(path, name) for name in names if name.lower().endswith(('.parquet', '.pq'))]
  if not files:
    got = f'{names[0]!r} and others' if names else 'nothing'
    raise ValueError(f'a folder that is a table holds Parquet files; {path} holds {got}')
  return files


def _column(name: str, chunk: Any, path: str) -> np.ndarray:
  import pyarrow as pa

  kind = chunk.type
  if pa.types.is_dictionary(kind):
    chunk, kind = chunk.dictionary_decode(), kind.value_type
  if pa.types.is_nested(kind):
    raise ValueError(f'a cell is a number or a string; column {name!r} of {path} has {kind}: give each part a column')
  if pa.types.is_decimal(kind):
    return np.array([np.nan if one is None else float(one) for one in chunk.to_pylist()])
  if pa.types.is_integer(kind) and chunk.null_count:
    return np.array([np.nan if one is None else one for one in chunk.to_pylist()], np.float64)
  if pa.types.is_null(kind):
    return np.full(len(chunk), None, object)
  if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
    raise ValueError(f'a cell is a number or a string; column {name!r} of {path} has bytes: drop or decode it')
  return np.asarray(chunk.to_numpy(zero_copy_only=False))
