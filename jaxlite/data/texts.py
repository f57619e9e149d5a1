"""Data sets out of texts: a label for each text, or one long text whose next token is learned."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jaxlite import tasks
from jaxlite.data import splits
from jaxlite.data.arrays import carved
from jaxlite.data.contradictions import contradictions, keys_of
from jaxlite.data.dataset import Dataset, as_task, check_labels, make_dataset
from jaxlite.data.encoders import TextEncoder, as_texts
from jaxlite.data.inputs import as_array
from jaxlite.data.sequences import windows
from jaxlite.data.table_labels import read_labels, with_stated
from jaxlite.data.tokenizers import ByteTokenizer, WordTokenizer
from jaxlite.errors import whole
from jaxlite.tasks.task import Task

LONGEST = 512  # tokens a text, where nobody says how many


def from_texts(
  texts: Any,
  labels: Any,
  *,
  tokenizer: Any = None,
  length: int | None = None,
  task: Task | Callable[[], Task] | None = None,
  weight: Any = None,
  validation: float | None = None,
  test: float | None = None,
  facts: Mapping[str, Any] | None = None,
  name: str = 'texts',
  seed: int = 0,
) -> Dataset:
  """Makes a Dataset of labeled texts, splits carved from it, seeded and stratified.

  Args:
    texts: strings.
    labels: one a text: names or whole numbers of classes, or what the task takes.
    tokenizer: one of `jaxlite.data`; None fits a `WordTokenizer` on the training texts.
    length: tokens a text; longer ones are cut, which a note says. None takes the longest training text, 512 at most.
    task: what is learned; None takes classification.
    weight: float[N], how much each text counts.
    validation: the fraction to carve; None takes a tenth, 0 holds nothing out.
    test: as validation, above 0.
    facts: what else the task should know, by name.
    name: what the data are called.
    seed: of the carving.

  Returns:
    The Dataset: inputs {'tokens': int32 [N, length], 'mask': bool [N, length]}, as `EmbeddingBag` and `Decoder` take
    them; `encoder` makes them of other texts.

  Raises:
    ValueError: something that is no string, with its place; labels that need a task.

  >>> data = from_texts(['good film', 'bad film'] * 10, ['yes', 'no'] * 10)
  >>> data.train.inputs['tokens'].shape, data.class_names, data.encoder.tokenizer.words
  ((16, 2), ('no', 'yes'), ('film', 'bad', 'good'))
  """
  texts = as_texts(texts)
  values = as_array(labels, 'labels')
  if values.ndim == 1:
    learned, targets, given = read_labels({'labels': values}, task)
  else:
    learned, targets, given = as_task(task, values), values, {}
  if len(texts) != len(targets):
    raise ValueError(f'every text has one label; got {len(texts)} texts and {len(targets)} labels')
  rows = carved(learned, check_labels(learned, targets, 'train'), validation, test, seed)
  training = [texts[row] for row in rows['train']]
  tokenizer = WordTokenizer.fit(training) if tokenizer is None else as_tokenizer(tokenizer)
  if length is None:
    counts = [len(tokenizer.encode(text)) for text in training]
    length = min(LONGEST, max(1, *counts))
  encoder = TextEncoder(tokenizer, whole(length, 'length', least=1))
  inputs, told = encoder.encode(texts)
  told = [*told, *contradictions(keys_of(texts), targets, 'text')]
  about = {'task': learned, 'facts': with_stated(given, facts), 'notes': told, 'encoder': encoder}
  return of_tokens(name, {where: _rows(inputs, which) for where, which in rows.items()}, targets, weight, rows, about)


def of_tokens(name: str, inputs: Any, targets: Any, weight: Any, rows: Any, about: Mapping[str, Any]) -> Dataset:
  """Returns the Dataset of texts that are tokens already.

  Args:
    name: of the data set.
    inputs: of each split.
    targets, weight: of all texts, in their order; `weight` may be None.
    rows: of each split.
    about: what else `make_dataset` is told.

  Raises:
    ValueError: weights that are not one a text.
  """
  weights = None if weight is None else as_array(weight, 'weights')
  if weights is not None and weights.shape != (len(targets),):
    raise ValueError(f'weights are float[{len(targets)}], one a text; got {list(weights.shape)}')
  parts = {
    where: (inputs[where], targets[which], *(() if weights is None else (weights[which],)))
    for where, which in rows.items()
  }
  return make_dataset(name, parts['train'], parts.get('validation'), parts['test'], **about)


def _rows(arrays: Mapping[str, Any], which: Any) -> dict[str, Any]:
  return {key: array[which] for key, array in arrays.items()}


def from_text(
  text: str | os.PathLike[str],
  *,
  tokenizer: Any = None,
  length: int = 256,
  task: Task | Callable[[], Task] | None = None,
  validation: float | None = None,
  test: float | None = None,
  name: str = 'text',
) -> Dataset:
  """Makes a Dataset of one text, to learn its next token: its beginning is trained on, its end is the test.

  The text is cut twice, by position: no token is in two splits, so no window of the test holds what training saw.

  Args:
    text: the text, or the path of a file in UTF-8.
    tokenizer: one of `jaxlite.data`; None takes bytes. One that was fitted on the text knows its end too: what it
      knows of it are characters or words, and not their order.
    length: tokens an example.
    task: None takes `jl.tasks.language`, told the tokenizer's vocabulary.
    validation: the fraction before the test; None takes a tenth, 0 holds nothing out.
    test: the fraction at the end; None takes a tenth.
    name: what the data are called.

  Returns:
    The Dataset: inputs int32 [N, length], labels the token after each, -1 past the end of a split. Every token of a
    split but its first is predicted once.

  Raises:
    ValueError: a text that is too short for three splits, a file that cannot be read.

  >>> data = from_text('to be or not to be ' * 50, length=16)
  >>> data.train.inputs.shape, data.test.labels.shape, data.encoder.tokenizer.decode(data.train.inputs[0])
  ((48, 16), (6, 16), 'to be or not to ')
  """
  content = _read(text)
  tokenizer = ByteTokenizer() if tokenizer is None else as_tokenizer(tokenizer)
  length = whole(length, 'length', least=1)
  ids = np.asarray(tokenizer.encode(content), np.int32)
  total = len(ids)
  held = (
    0
    if isinstance(validation, int | float) and validation == 0
    else splits.share(0.1 if validation is None else validation, max(total, 1), 'validation')
  )
  tested = splits.share(0.1 if test is None else test, max(total, 1), 'test')
  cut = (total - tested - held, total - tested)
  if cut[0] < 2 or tested < 2 or held == 1:
    shown = '' if '\n' in content or len(content) > 60 else f' ({content!r}: no file of that name is here either)'
    raise ValueError(f'each split of a text needs two tokens; got {total} tokens in all{shown}: give more text')
  parts = {'train': ids[: cut[0]], 'validation': ids[cut[0] : cut[1]], 'test': ids[cut[1] :]}
  pairs = {where: tuple(windows(part, length)) for where, part in parts.items() if len(part)}
  learned = _language(tokenizer) if task is None else as_task(task, pairs['train'][1])
  return make_dataset(
    name,
    pairs['train'],
    pairs.get('validation'),
    pairs['test'],
    task=learned,
    encoder=TextEncoder(tokenizer, length, mask=False),
  )


def _language(tokenizer: Any) -> Task:
  sizes = tokenizer.bytes_per_id
  return tasks.language(tokenizer.vocabulary, token_bytes=None if sizes is None else sizes.tolist())


def as_tokenizer(tokenizer: Any) -> Any:
  """Returns what is given as a tokenizer; ValueError where it is none."""
  if isinstance(tokenizer, type) or not all(hasattr(tokenizer, name) for name in ('encode', 'to_json', 'vocabulary')):
    got = f'the class {tokenizer.__name__}' if isinstance(tokenizer, type) else type(tokenizer).__name__
    raise ValueError(
      f'a tokenizer has encode, to_json and vocabulary; got {got}: '
      'give one, such as jl.data.ByteTokenizer() or jl.data.WordTokenizer.fit(texts)'
    )
  return tokenizer


def _read(text: Any) -> str:
  named = isinstance(text, str) and '\n' not in text and 0 < len(text) < 1024 and '\0' not in text
  if isinstance(text, os.PathLike) or (named and os.path.isfile(text)):
    path = pathlib.Path(text)
    try:
      return path.read_text(encoding='utf-8-sig')
    except OSError as error:
      raise ValueError(f'cannot read the text {path}: {error.strerror or error}') from None
    except UnicodeDecodeError as error:
      raise ValueError(f'a text is a file in UTF-8; {path} is not: {error}') from None
  if not isinstance(text, str):
    raise ValueError(
      f'a text is a string or the path of a file; got {type(text).__name__}: join several by a separator'
    )
  return text
