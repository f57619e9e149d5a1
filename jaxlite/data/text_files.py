"""Data sets out of files of texts: JSON lines and tables with a column of texts, or a folder of files by class."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from jaxlite.data import folders, frames
from jaxlite.data.dataset import Dataset
from jaxlite.data.large_files import column_names, goes_to_disk
from jaxlite.data.large_texts import large_texts
from jaxlite.data.texts import from_texts
from jaxlite.errors import nearest

_SUFFIXES = ('.txt', '.text', '.md')


def labeled_texts(
  path: str | os.PathLike[str],
  text: str = 'text',
  label: str = 'label',
  *,
  name: str = '',
  keep: str = 'auto',
  **options: Any,
) -> Dataset:
  """Makes a Dataset of labeled texts that lie in files.

  Args:
    path: of JSON lines (`.jsonl`), CSV or Parquet with a column of texts and one of labels; or a folder that holds a
      folder for each class with a file for each text (`.txt`, UTF-8).
    text: the column of texts.
    label: the column of labels.
    name: what the data are called; '' takes the file's name.
    keep: as in `from_table`: a file that is larger than memory is read block by block, and its tokens are mapped.
    **options: as `from_texts` takes them: tokenizer, length, task, weight, validation, test, facts, seed.

  Returns:
    The Dataset, as `from_texts` makes it.

  Raises:
    ValueError: one line: a line that is no JSON, a row without text or label, an empty class, a file that is not UTF-8.

  >>> import tempfile
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   file = Path(folder, 'films.jsonl')
  ...   lines = ['{"text": "good film", "label": "yes"}', '{"text": "bad film", "label": "no"}'] * 10
  ...   _ = file.write_text(chr(10).join(lines))
  ...   data = labeled_texts(file)
  >>> data.name, data.class_names, data.train.inputs['tokens'].shape
  ('films', ('no', 'yes'), (16, 2))
  """
  if not isinstance(path, str | os.PathLike):
    raise ValueError(
      f'labeled_texts reads a file or a folder; got a {type(path).__name__}: texts in memory are for from_texts'
    )
  root = Path(path).expanduser()
  if root.is_dir() and not any(one.suffix in ('.parquet', '.pq') for one in root.iterdir()):
    texts, labels = _from_folder(root)
  else:
    if not root.exists():
      raise ValueError(f'texts are read from a file or a folder; {root} is not there')
    large = goes_to_disk(root, keep)
    columns: Any = column_names(root) if large else frames.read_columns(root)
    for wanted in (text, label):
      if wanted not in columns:
        near = nearest(wanted, columns)
        raise ValueError(
          f'a column is named as in the file; {root} has {", ".join(columns)}, not {wanted!r} (nearest: {near})'
        )
    if large:
      return large_texts(root, text, label, name=name or root.stem, **options)
    texts = [None if one is None or one != one else str(one) for one in columns[text].tolist()]
    if None in texts:
      raise ValueError(f'every row has a text; {root} has none in row {texts.index(None)}: drop the row')
    labels = columns[label]
  return from_texts(texts, labels, name=name or root.stem, **options)


def _from_folder(root: Path) -> tuple[list[str], np.ndarray]:
  listing = folders.list_classes(root, lambda one: one.lower().endswith(_SUFFIXES), 'text')
  if set(listing.splits) != {'train'}:
    raise ValueError(f'texts are carved into splits here; {root} has folders of splits: name the folder of one')
  texts = []
  for file in listing.files:
    try:
      texts.append((root / file).read_text(encoding='utf-8-sig'))
    except OSError as error:
      raise ValueError(f'cannot read the text {root / file}: {error.strerror or error}') from None
    except UnicodeDecodeError as error:
      raise ValueError(f'a text is a file in UTF-8; {root / file} is not: {error}') from None
  return texts, np.array(listing.labels, object)
