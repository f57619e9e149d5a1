"""Tables and texts that are larger than memory: read some rows at a time, kept as arrays in a file that is mapped.

What belongs here: the rows of a CSV, JSON lines or Parquet file block by block, in the form in which `frames` reads a
whole one; and the file of arrays that is made of them once, named by a hash of all that decides what is in it.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import itertools
import json
import os
import pathlib
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import filelock
import numpy as np

from jaxlite.data import cache, frames
from jaxlite.errors import need
from jaxlite.host import files
from jaxlite.host.limits import limits

CELLS = 1 << 15  # a block
KEEP = ('auto', 'memory', 'disk')
_TIMES = {'.parquet': 12, '.pq': 12}  # bytes in memory for each of the file, where cells become Python's objects
_OTHERWISE = 10
_FORMAT = 1

Columns = dict[str, np.ndarray]


def goes_to_disk(path: Any, keep: str) -> bool:
  """Tells whether a table is read block by block.

  Args:
    path: what the table is; only files are.
    keep: 'disk', 'memory', or 'auto': where reading all at once would take more than half of the memory that is free.

  Raises:
    ValueError: another word, or 'disk' for what is no file.
  """
  if keep not in KEEP:
    raise ValueError(f'keep is one of {", ".join(KEEP)}; got {keep!r}')
  is_path = isinstance(path, str | os.PathLike) and os.path.exists(path)
  if keep != 'auto':
    if keep == 'disk' and not is_path:
      raise ValueError(f"keep='disk' reads a file block by block; got a {type(path).__name__}: give a path")
    return keep == 'disk'
  if not is_path:
    return False
  free = limits().free
  taken = sum(_TIMES.get(one.suffix.lower(), _OTHERWISE) * one.stat().st_size for one in files_of(path))
  return free > 0 and taken > free / 2


def files_of(path: str | os.PathLike[str]) -> list[pathlib.Path]:
  """Returns the files of a table: itself, or those of a folder of Parquet."""
  if os.path.isdir(path):
    from jaxlite.data.parquet import parquet_files

    return [pathlib.Path(one) for one in parquet_files(os.fspath(path))]
  return [pathlib.Path(path)]


def column_names(path: str | os.PathLike[str]) -> list[str]:
  """Returns the columns of a file, without reading it all.

  Raises:
    ValueError: it is no such file, or has no row.
  """
  for block in blocks(path, rows=1):
    return list(block)
  raise ValueError(f'a table needs a row at least; {path} is empty')


def blocks(path: str | os.PathLike[str], rows: int = 0) -> Iterator[Columns]:
  """Yields the rows of a file, block by block, as `frames.read_columns` gives all of them.

  Args:
    path: of the file.
    rows: in a block; 0 takes what makes `CELLS` cells.

  Raises:
    ValueError: one line: what is wrong, and where.
  """
  text = os.fspath(path)
  if os.path.isdir(text) or text.lower().endswith(('.parquet', '.pq')):
    found: Iterable[Columns] = _parquet_blocks(text, rows)
  elif text.lower().endswith(('.jsonl', '.ndjson')):
    found = _json_blocks(text, rows)
  else:
    found = _csv_blocks(text, rows)
  for block in found:
    for column, values in block.items():
      for place, value in enumerate(values.tolist() if values.dtype == object else ()):
        if isinstance(value, list | tuple | dict | set | np.ndarray):
          kind = type(value).__name__
          raise ValueError(f'a cell is a number or a string; {column!r} has a {kind} in row {place}: give it columns')
    yield block


def _csv_blocks(path: str, rows: int) -> Iterator[Columns]:
  try:
    with open(path, newline='', encoding='utf-8-sig') as file:
      head = file.readline()
      file.seek(0)
      reader = csv.reader(file, delimiter=frames.delimiter_of(head))
      header = [column.strip() for column in next(reader, [])]
      frames.check_names(header, path)
      lines = ((reader.line_num, row) for row in reader if row)
      rows = rows or _rows_of(len(header))
      while part := list(itertools.islice(lines, rows)):
        for line, row in part:
          if len(row) != len(header):
            raise ValueError(
              f'every row has {len(header)} cells, as the header; {path} line {line} has {len(row)}: fix it'
            )
        cells = [[cell.strip() for cell in row] for _, row in part]
        yield {name: np.array([row[index] for row in cells], dtype=object) for index, name in enumerate(header)}
  except OSError as error:
    raise ValueError(f'cannot read the table {path}: {error.strerror or error}') from None
  except (UnicodeDecodeError, csv.Error) as error:
    raise ValueError(f'a table is a CSV file in UTF-8; {path} is not: {error}') from None


def _json_blocks(path: str, rows: int) -> Iterator[Columns]:
  lines, names = frames.json_lines(path), None
  while part := list(itertools.islice(lines, rows or (1 if names is None else _rows_of(len(names))))):
    block = frames.from_rows(part)
    if names is not None and set(block) != set(names):
      raise ValueError(f'every row has the columns of the first, {", ".join(names)}; {path} has {", ".join(block)} too')
    names = names or list(block)
    yield {name: block[name] for name in names}


def _parquet_blocks(path: str, rows: int) -> Iterator[Columns]:
  need('reading Parquet', 'pyarrow')
  from jaxlite.data.parquet import parquet_batches

  yield from parquet_batches(path, rows or _rows_of(len(next(parquet_batches(path, 1), ()))))


def _rows_of(columns: int) -> int:
  return max(1, CELLS // max(1, columns))


def content_hash(path: str | os.PathLike[str]) -> str:
  """Returns sha256 over the bytes of the files of a table, in hexadecimal."""
  digest = hashlib.sha256()
  for one in files_of(path):
    digest.update(f'{one.stat().st_size}\n'.encode())
    with open(one, 'rb') as file:
      while part := file.read(1 << 20):
        digest.update(part)
  return digest.hexdigest()


class Made:
  """Arrays [N, ...] of a file, which is written once, row by row, and then mapped."""

  def __init__(self, path: pathlib.Path, count: int, kinds: Mapping[str, tuple[tuple[int, ...], Any]]):
    """Args: the file, N, and by name the shape of a row and the dtype."""
    self.path, self.count = path, count
    self.kinds = {name: (tuple(shape), np.dtype(dtype)) for name, (shape, dtype) in kinds.items()}

  @property
  def nbytes(self) -> int:
    """Bytes of the file."""
    return sum(self._bytes(name) for name in self.kinds)

  def _bytes(self, name: str) -> int:
    shape, dtype = self.kinds[name]
    return self.count * int(np.prod(shape, dtype=np.int64)) * dtype.itemsize

  def begins(self) -> dict[str, int]:
    """Returns where each array begins in the file."""
    sizes = [self._bytes(name) for name in self.kinds]
    return dict(zip(self.kinds, itertools.accumulate(sizes, initial=0), strict=False))

  def arrays(self) -> dict[str, np.ndarray]:
    """Returns the arrays, mapped and read-only."""
    return {
      name: np.memmap(self.path, dtype, 'r', begin, (self.count, *shape))
      for (name, begin), (shape, dtype) in zip(self.begins().items(), self.kinds.values(), strict=True)
    }


def kept_arrays(
  told: Any,
  count: int,
  kinds: Mapping[str, tuple[tuple[int, ...], Any]],
  fill: Callable[[], Iterable[tuple[int, Mapping[str, np.ndarray]]]],
  what: str,
) -> dict[str, np.ndarray]:
  """Returns arrays [N, ...], mapped and read-only, that are made where they are not there yet.

  Args:
    told: JSON values: all that decides what is in them.
    count: N.
    kinds: by name, the shape of a row and the dtype.
    fill: () -> (first row, rows by name), in order.
    what: is kept, for the line of progress.

  Raises:
    ValueError: they cannot be written, or the disk has no room for them.
  """
  name = hashlib.sha256(json.dumps([_FORMAT, told, count, _json_of(kinds)], sort_keys=True).encode()).hexdigest()[:32]
  folder = cache.root() / 'tables'
  made = Made(folder / f'{name}.bin', count, kinds)
  beside = folder / f'{name}.json'
  try:
    folder.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(f'{made.path}.lock'):  # a second process waits for what the first makes
      if not _is_whole(made, beside):
        free = shutil.disk_usage(folder).free
        if made.nbytes > free:
          raise ValueError(
            f'{folder} has {free / 1e9:.1f} GB free, {what} take {made.nbytes / 1e9:.1f}: set JAXLITE_DATA to a folder '
            'with more'
          )
        _write(made, beside, fill, what)
  except OSError as error:
    raise ValueError(f'cannot keep {what} in {folder} ({error}): set JAXLITE_DATA to another folder') from None
  return made.arrays()


def _json_of(kinds: Mapping[str, tuple[tuple[int, ...], Any]]) -> Any:
  return {name: [list(shape), np.dtype(dtype).str] for name, (shape, dtype) in kinds.items()}


def _is_whole(made: Made, beside: pathlib.Path) -> bool:
  """Whether the file holds what was written: its bytes have the hash that is kept beside."""
  with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
    known = files.read_json(beside)
    return made.path.stat().st_size == made.nbytes and _digest(made.path) == known['sha256']
  return False


def _digest(path: pathlib.Path) -> str:
  digest = hashlib.sha256()
  with open(path, 'rb') as file:
    while part := file.read(1 << 20):
      digest.update(part)
  return digest.hexdigest()


def _write(made: Made, beside: pathlib.Path, fill: Callable[[], Iterable[Any]], what: str) -> None:
  began = told = time.monotonic()
  with files.whole_file(made.path) as part:
    with open(part, 'r+b') as file:
      for start, rows in fill():
        for name, values in rows.items():  # written, not mapped: a full disk is then an error and no signal
          shape, dtype = made.kinds[name]
          file.seek(made.begins()[name] + start * int(np.prod(shape, dtype=np.int64)) * dtype.itemsize)
          file.write(np.ascontiguousarray(values, dtype).tobytes())
        now = time.monotonic()
        if now - told > 5 and start:
          told, left = now, (made.count - start) * (now - began) / start
          print(
            f'preparing {what}: {start:,} of {made.count:,} rows ({left:,.0f} s to go)', file=sys.stderr, flush=True
          )
    digest = _digest(part)
    if part.stat().st_size != made.nbytes:
      raise OSError(f'{made.path} grew to {part.stat().st_size} bytes where {made.nbytes} were to be written')
  files.write_text(beside, json.dumps({'sha256': digest}))
