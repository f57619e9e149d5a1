"""A data set by its path: what lies there says what it is, pictures, sounds, a table or texts."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxlite.data import cache
from jaxlite.data.dataset import Dataset
from jaxlite.data.folders import is_hidden
from jaxlite.host.files import expanded

TABLES = ('.csv', '.tsv', '.parquet', '.pq', '.jsonl', '.ndjson')
_LOOKED_AT = 200  # files of a folder that say what it holds


def path_of(source: str, directory: str = '') -> Path | None:
  """Returns the file or folder that a source names, or None where it is the name of a data set.

  A bare name is looked for in `directory` alone: it never means what happens to lie in the current folder.

  >>> path_of('digits') is None
  True
  """
  if directory and not os.path.isabs(source):
    found = expanded(directory) / source
  elif '/' in source or os.sep in source or source.lower().endswith(TABLES):
    found = expanded(source)
  else:
    return None
  if not found.exists():
    return None
  # What TensorFlow Datasets prepared is read by name; its proof lies in the folder of a config or a version.
  prepared = (one for depth in ('', '*/', '*/*/') for one in found.glob(depth + cache.PROOF))
  return None if found.is_dir() and any(prepared) else found


def kind_of(path: Path) -> str:
  """Returns what lies at a path: 'pictures', 'sounds', 'texts' or 'table'; of a folder, what most files in its folders
  are, and what lies beside them (a README.txt) only where that is nothing.

  Raises:
    ValueError: nothing that is read here.
  """
  from jaxlite.data.pixels import reads_name
  from jaxlite.data.sound_folder import reads_sound

  if path.is_file():
    if path.suffix.lower() in TABLES:
      return 'table'
    raise ValueError(f'a file of data is one of {", ".join(TABLES)}; got {path}: name the folder of pictures or sounds')
  seen = []
  counts: dict[bool, Counter[str]] = {False: Counter(), True: Counter()}  # of kinds, by whether it lies in a folder
  for inside, name in _names(path):
    for kind, reads in (
      ('table', lambda one: one.lower().endswith(('.parquet', '.pq'))),
      ('sounds', reads_sound),
      ('texts', lambda one: one.lower().endswith('.txt')),
      ('pictures', lambda one: os.path.splitext(one)[1] != '' and reads_name(one)),
    ):
      if reads(name):
        counts[inside][kind] += 1
        break
    else:
      seen.append(name)
  if found := counts[True] or counts[False]:
    return found.most_common(1)[0][0]  # of as many of two kinds the first that was seen
  got = f'{", ".join(seen[:3])} and others' if seen else 'nothing'
  raise ValueError(f'a folder of data holds pictures, WAV files, texts or Parquet; {path} holds {got}')


def open_path(
  path: str | os.PathLike[str], *, size: int = 0, label: str = '', keep: str = 'auto', threads: int = 0, **options: Any
) -> Dataset:
  """Makes a Dataset of what lies at a path.

  Args:
    path: a folder of pictures (`pictures`), of WAV files (`sounds`) or texts by class, a table in CSV, Parquet or JSON
      lines (`from_table`, or `labeled_texts` where the columns are `text` and the label).
    size: of pictures, height and width; 0 where all have one.
    label: of a table, the column that is learned; '' for 'label'.
    keep: as in `pictures`; of a table or texts, as in `from_table`.
    threads: that decode; 0 takes one a core.
    **options: validation, seed, task.

  Returns:
    The Dataset.

  Raises:
    ValueError: as its maker; nothing there that is read.
  """
  from jaxlite.data import labeled_texts, pictures, sounds
  from jaxlite.data.large_files import column_names
  from jaxlite.data.tables import from_table

  path = Path(path)
  kind = kind_of(path)
  files = {'keep': keep, 'threads': threads or None, **options}
  if kind == 'pictures':
    return pictures(path, size or None, **files)
  if kind == 'sounds':
    return sounds(path, **files)
  if kind == 'texts':
    return labeled_texts(path, **options)
  if set(column_names(path)) == {'text', label or 'label'}:
    return labeled_texts(path, label=label or 'label', keep=keep, **options)
  return from_table(path, label or 'label', name=path.stem, keep=keep, **options)


def _names(path: Path) -> Iterator[tuple[bool, str]]:
  """Whether a file lies in a folder of this one, and its name; of some files."""
  count = 0
  for place, folders, names in os.walk(path, followlinks=False):
    folders[:] = sorted(name for name in folders if not is_hidden(name))
    for name in sorted(names):
      if not is_hidden(name):
        yield place != os.fspath(path), name
        count += place != os.fspath(path)
    if count > _LOOKED_AT:
      return
