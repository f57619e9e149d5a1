"""Labeled texts that are more than memory holds, as a Dataset of mapped tokens: that of `from_texts`, bit for bit."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from jaxlite.data.arrays import carved
from jaxlite.data.chosen import choose
from jaxlite.data.contradictions import contradictions, keys_of
from jaxlite.data.dataset import Dataset, check_labels
from jaxlite.data.encoders import TextEncoder
from jaxlite.data.large_files import blocks, content_hash, kept_arrays
from jaxlite.data.large_tables import Cells, targets_of
from jaxlite.data.table_labels import with_stated
from jaxlite.data.texts import LONGEST, as_tokenizer, of_tokens
from jaxlite.data.tokenizers import WordTokenizer
from jaxlite.errors import whole
from jaxlite.tasks.task import Task


def large_texts(
  path: str | os.PathLike[str],
  text: str,
  label: str,
  *,
  name: str,
  tokenizer: Any = None,
  length: int | None = None,
  task: Task | Callable[[], Task] | None = None,
  weight: Any = None,
  validation: float | None = None,
  test: float | None = None,
  facts: Mapping[str, Any] | None = None,
  seed: int = 0,
) -> Dataset:
  """Makes a Dataset of the texts of a file, read block by block; arguments as of `from_texts`.

  Args:
    path: of the file.
    text: the column of texts.
    label: the column of labels.
    name: what the data are called.
    tokenizer, length, task, weight, validation, test, facts, seed: as of `from_texts`. A tokenizer that is fitted here
      remembers every word of the training texts until it is fitted.

  Raises:
    ValueError: as `from_texts`.
  """
  cells, keys = Cells('labels'), []
  for start, block in _numbered(path):
    keys.append(keys_of(_texts_of(block[text], start, path)))
    cells.add(block[label])
  learned, targets, given = targets_of({'labels': cells}, task)
  count = len(targets)
  rows = carved(learned, check_labels(learned, targets, 'train'), validation, test, seed)
  training = np.zeros(count, bool)
  training[rows['train']] = True

  def trained() -> Iterator[str]:
    for start, block in _numbered(path):
      texts = _texts_of(block[text], start, path)
      yield from (one for one, its in zip(texts, training[start : start + len(texts)], strict=True) if its)

  tokenizer = WordTokenizer.fit(trained()) if tokenizer is None else as_tokenizer(tokenizer)
  if length is None:
    length = min(LONGEST, max(1, *(len(tokenizer.encode(one)) for one in trained())))
  encoder = TextEncoder(tokenizer, whole(length, 'length', least=1))

  def fill() -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    for start, block in _numbered(path):
      padded, counts = encoder.padded(_texts_of(block[text], start, path))
      yield start, {**padded, 'counts': counts}

  kinds = {'counts': ((), np.int64), 'tokens': ((encoder.length,), np.int32), 'mask': ((encoder.length,), np.bool_)}
  told = [content_hash(path), text, encoder.to_json()]
  kept = kept_arrays(told, count, kinds, fill, 'the tokens of texts')
  inputs = {where: {key: choose(kept[key], which) for key in ('tokens', 'mask')} for where, which in rows.items()}
  facts, told = with_stated(given, facts), encoder.told(kept['counts'])
  told += contradictions(np.concatenate(keys), targets, 'text')
  about = {'task': learned, 'facts': facts, 'notes': told, 'encoder': encoder}
  return of_tokens(name, inputs, targets, weight, rows, about)


def _numbered(path: Any) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
  start = 0
  for block in blocks(path):
    yield start, block
    start += len(next(iter(block.values())))


def _texts_of(values: np.ndarray, start: int, path: Any) -> list[str]:
  texts = [None if one is None or one != one else str(one) for one in values.tolist()]
  if None in texts:
    raise ValueError(f'every row has a text; {path} has none in row {start + texts.index(None)}: drop the row')
  return [str(one) for one in texts]
