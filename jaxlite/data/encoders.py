"""What makes inputs of raw rows and texts, kept with the run: a loaded model takes what the user has, not arrays.

An encoder is a value: it is called with raw data, equals another of the same content, and its JSON form gives it back.
"""

from __future__ import annotations

import dataclasses
import json
import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxlite.data import frames
from jaxlite.data.sequences import pad
from jaxlite.data.tokenizers import load_tokenizer
from jaxlite.errors import nearest
from jaxlite.host.files import parsed_json

NUMBER, TRUTH, NAMES = 'number', 'truth', 'names'


@dataclasses.dataclass(frozen=True)
class TableEncoder:
  """Rows of a table as float32 [N, features]: a number is a feature, a name is one feature per value, one of them 1.

  Attributes:
    columns: (name, kind, values) of each column in its order; the kind is 'number', 'truth' (true or false) or
      'names'; values are the names that training saw, sorted, the missing one as ''.
    others: columns of the training table that are no inputs (label, weight, what was dropped): allowed, not read.

  >>> encoder = TableEncoder((('size', 'number', ()), ('color', 'names', ('blue', 'red'))), others=('kind',))
  >>> encoder.feature_names
  ('size', 'color=blue', 'color=red')
  >>> encoder([{'size': 2, 'color': 'red'}]).tolist()
  [[2.0, 0.0, 1.0]]
  """

  columns: tuple[tuple[str, str, tuple[str, ...]], ...]
  others: tuple[str, ...] = ()

  @property
  def feature_names(self) -> tuple[str, ...]:
    """One name per feature; 'column=value' for a name."""
    names = []
    for column, kind, values in self.columns:
      names += [f'{column}={value}' for value in values] if kind == NAMES else [column]
    return tuple(names)

  def __call__(self, table: Any) -> np.ndarray:
    """Returns float32 [N, features] of a table in any form that `from_table` takes.

    Names that training never saw are 0 in every feature of their column, with a warning. An array [N, features], such
    as the inputs of a split, is encoded already and passes.

    Raises:
      ValueError: a column is missing, unknown or of another kind, a number is missing.
    """
    inputs, told = self.encode(table)
    for line in told:
      warnings.warn(line, stacklevel=2)
    return inputs

  def encode(self, table: Any) -> tuple[np.ndarray, list[str]]:
    """Returns float32 [N, features], and a line for each column with names that training never saw."""
    if _is_array(table):
      return self._encoded(np.asarray(table)), []
    found = frames.read_columns(table)
    self._check_columns(list(found))
    features, told = [], []
    for column, kind, values in self.columns:
      if kind == NAMES:
        text = frames.as_text(found[column])
        features += [text == value for value in values]
        new = np.flatnonzero(~np.isin(text, values))
        if len(new):
          told.append(
            f'column {column!r} has {str(text[new[0]])!r} in row {new[0]}, a name that training never saw '
            f'({len(new)} of {len(text)} rows): it counts as none of {len(values)}'
          )
      else:
        features.append(_numbers(column, kind, found[column]))
    with np.errstate(over='ignore'):
      inputs = np.stack(features, axis=1).astype(np.float32)
    for index in np.argwhere(~np.isfinite(inputs))[:1]:
      raise ValueError(
        f'numbers fit into float32; {self.feature_names[index[1]]!r} does not in row {index[0]}: scale it'
      )
    return inputs, told

  def _encoded(self, array: np.ndarray) -> np.ndarray:
    count = len(self.feature_names)
    if array.ndim != 2 or array.shape[1] != count or array.dtype.kind not in 'biuf':
      raise ValueError(
        f'rows are a table, or its encoded features, float[N, {count}] ({_listed(list(self.feature_names))}); '
        f'got {array.dtype}{list(array.shape)}'
      )
    return array.astype(np.float32)

  def _check_columns(self, found: list[str]) -> None:
    names = [column for column, *_ in self.columns]
    missing = [name for name in names if name not in found]
    extra = [name for name in found if name not in (*names, *self.others)]
    if missing:
      near = nearest(missing[0], extra or found)
      raise ValueError(f'the table lacks {_listed(missing)}, which training had; nearest to {missing[0]!r}: {near}')
    if extra:
      near = nearest(extra[0], names)
      raise ValueError(
        f'the table has {_listed(extra)}, which training had not; nearest to {extra[0]!r}: {near}: drop or rename it'
      )

  def to_json(self) -> str:
    """Returns its JSON form."""
    return json.dumps({'kind': 'table', 'columns': self.columns, 'others': self.others})

  @classmethod
  def from_json(cls, text: str) -> TableEncoder:
    """Returns the encoder of a JSON form; ValueError where it is of another kind."""
    found = _parsed(text, 'table')
    columns = tuple((name, kind, tuple(values)) for name, kind, values in found['columns'])
    return cls(columns, tuple(found['others']))


def fit_table(
  columns: Mapping[str, np.ndarray], rows: np.ndarray, *, categorical: Sequence[str] = (), others: Sequence[str] = ()
) -> TableEncoder:
  """Returns the encoder of a table: each column's kind is judged by all rows, its names by `rows`, those of training.

  Raises:
    ValueError: a column that is not readable as one kind, has missing numbers, or a name for almost every row.

  >>> fit_table({'a': np.array(['x', 'y', 'z'])}, np.array([0, 1])).columns
  (('a', 'names', ('x', 'y')),)
  """
  found: list[tuple[str, str, tuple[str, ...]]] = []
  for column, values in columns.items():
    numbers = None if column in categorical else frames.as_numbers(column, values)
    if numbers is not None:
      frames.check_finite(column, numbers, values)
      found.append((column, TRUTH if values.dtype.kind == 'b' else NUMBER, ()))
      continue
    text = frames.as_text(values)
    kinds = np.unique(text)
    if {kind.lower() for kind in kinds} <= {'true', 'false'} and column not in categorical:
      found.append((column, TRUTH, ()))  # as a DataFrame has them that was not written out and read again
      continue
    if kinds.tolist() == ['']:
      raise ValueError(f'a column holds numbers or strings; {column!r} is empty in every row: drop it')
    if len(kinds) > max(16, len(text) // 2):
      raise ValueError(too_many(column, f'{len(kinds)}', len(text), kinds.tolist()))
    found.append((column, NAMES, tuple(map(str, np.unique(text[rows])))))
  return TableEncoder(tuple(found), tuple(others))


def strange_names(encoder: TableEncoder) -> list[str]:
  """A line for each column of names that are numbers or dates in a writing that is not read."""
  named = [(column, values, frames.written(values)) for column, kind, values in encoder.columns if kind == NAMES]
  return [f'column {column!r} is taken as {len(values)} names, and {about}' for column, values, about in named if about]


def too_many(column: str, count: str, rows: int, some: Sequence[str]) -> str:
  """The line about a column of names that are hardly ever the same."""
  about = frames.written(some)
  fix = f'it {about}, or drop it' if about else 'drop it'
  return f'column {column!r} has {count} values in {rows} rows, too many to learn: {fix}'


def _numbers(column: str, kind: str, values: np.ndarray) -> np.ndarray:
  numbers = frames.truth(values) if kind == TRUTH else None
  if numbers is None:
    numbers = frames.as_numbers(column, values)
  if numbers is None:
    place = next((row for row, cell in enumerate(frames.as_text(values)) if cell), None)
    if place is None:
      frames.check_finite(column, np.full(len(values), np.nan), values)
    raise ValueError(
      f'column {column!r} held numbers in training, not {str(values[place])!r} as in row {place}: convert it'
    )
  frames.check_finite(column, numbers, values)
  return numbers


@dataclasses.dataclass(frozen=True)
class TextEncoder:
  """Texts as token ids of one length, and a mask that tells tokens from padding.

  Attributes:
    tokenizer: one of `jaxlite.data.tokenizers`.
    length: tokens a text; a longer one is cut, at its end, with a warning.
    mask: whether the mask is given; without, inputs are the ids alone.

  >>> from jaxlite.data.tokenizers import CharTokenizer
  >>> encoder = TextEncoder(CharTokenizer(('a', 'b')), 3)
  >>> {name: array.tolist() for name, array in encoder(['ab', 'b']).items()}
  {'tokens': [[1, 2, 0], [2, 0, 0]], 'mask': [[True, True, False], [True, False, False]]}
  """

  tokenizer: Any
  length: int
  mask: bool = True

  def __call__(self, texts: Any) -> Any:
    """Returns {'tokens': int32 [N, length], 'mask': bool [N, length]}, or the tokens alone, of strings.

    What looks like that already, such as the inputs of a split, passes.

    Raises:
      ValueError: something else than strings; characters that the tokenizer does not know.
    """
    inputs, told = self.encode(texts)
    for line in told:
      warnings.warn(line, stacklevel=2)
    return inputs

  def encode(self, texts: Any) -> tuple[Any, list[str]]:
    """Returns what a call returns, and lines on texts that are cut or empty."""
    if isinstance(texts, Mapping) and set(texts) == {'tokens', 'mask'} if self.mask else _is_array(texts):
      return texts, []
    padded, counts = self.padded(texts)
    return padded if self.mask else padded['tokens'], self.told(counts)

  def padded(self, texts: Any) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Returns {'tokens': int32 [N, length], 'mask': bool [N, length]}, and how many tokens each text has, int64 [N]."""
    ids = self.tokenize(texts)
    counts = np.array([len(one) for one in ids], np.int64)
    if (counts > self.length).any() and hasattr(self.tokenizer, 'cut'):
      ids = [self.tokenizer.cut(one, self.length) for one in ids]
    return pad(ids, self.length, truncate=True), counts

  def told(self, counts: np.ndarray) -> list[str]:
    """Returns lines on texts that are cut or empty, of how many tokens each has."""
    told = []
    if long := int((counts > self.length).sum()):
      told.append(f'{long} of {len(counts)} texts are longer than {self.length} tokens and are cut there')
    if empty := int((counts == 0).sum()):
      told.append(f'{empty} of {len(counts)} texts have no token: nothing tells them apart')
    return told

  def tokenize(self, texts: Any) -> list[list[int]]:
    """Returns the ids of each text, whatever its length."""
    return [self.tokenizer.encode(text) for text in as_texts(texts)]

  def to_json(self) -> str:
    """Returns its JSON form."""
    tokenizer = self.tokenizer.to_json()
    return json.dumps({'kind': 'text', 'tokenizer': tokenizer, 'length': self.length, 'mask': self.mask})

  @classmethod
  def from_json(cls, text: str) -> TextEncoder:
    """Returns the encoder of a JSON form; ValueError where it is of another kind."""
    found = _parsed(text, 'text')
    return cls(load_tokenizer(found['tokenizer']), int(found['length']), bool(found['mask']))


def _is_array(values: Any) -> bool:
  """Whether this is an array of numbers: no structured array, no strings, no DataFrame."""
  dtype = getattr(values, 'dtype', None)
  return getattr(dtype, 'kind', '') in ('b', 'i', 'u', 'f') and hasattr(values, 'ndim')


def as_texts(texts: Any) -> list[str]:
  """Returns texts as a list of str; one string is one text.

  Raises:
    ValueError: something else, with its place.

  >>> as_texts(['a', None])
  Traceback (most recent call last):
    ...
  ValueError: texts are strings; text 1 is None: fill it in or leave it out
  """
  if isinstance(texts, str):
    return [texts]
  if isinstance(texts, Mapping | bytes | os.PathLike) or not hasattr(texts, '__iter__'):
    raise ValueError(f'texts are a list of strings; got {type(texts).__name__}')
  found = list(texts)
  for place, text in enumerate(found):
    if not isinstance(text, str):
      raise ValueError(f'texts are strings; text {place} is {text!r:.40}: fill it in or leave it out')
  if not found:
    raise ValueError('texts are a list of strings; got none')
  return [str(text) for text in found]


def load_encoder(text: str) -> Any:
  """Returns the encoder of a JSON form, what `to_json` wrote.

  Raises:
    ValueError: no JSON, or none of an encoder.

  >>> load_encoder(TableEncoder((('size', 'number', ()),)).to_json()).feature_names
  ('size',)
  """
  from jaxlite.data.pixels import PictureEncoder
  from jaxlite.data.sound_encoder import SoundEncoder

  kinds: dict[str, Any] = {
    'table': TableEncoder,
    'text': TextEncoder,
    'picture': PictureEncoder,
    'sound': SoundEncoder,
  }
  found = _parsed(text, None)
  if found.get('kind') not in kinds:
    *first, last = kinds
    named = f'{", ".join(first)} or {last}'
    raise ValueError(f'the JSON of an encoder has a kind, {named}; got {found.get("kind")!r}')
  return kinds[found['kind']].from_json(text)


def _parsed(text: str, kind: str | None) -> dict[str, Any]:
  try:
    found = parsed_json(text)
  except (TypeError, ValueError) as error:
    raise ValueError(f'an encoder is read from its JSON, as to_json wrote it: {error}') from None
  if not isinstance(found, dict):
    raise ValueError(f'an encoder is read from its JSON, as to_json wrote it; got a {type(found).__name__}')
  if kind is not None and found.get('kind') != kind:
    raise ValueError(f'this encoder reads JSON of the kind {kind!r}; got {found.get("kind")!r}: use load_encoder')
  return found


def _listed(names: list[str]) -> str:
  shown = ', '.join(map(repr, names[:5])) + (f' and {len(names) - 5} more' if len(names) > 5 else '')
  return f'the column {shown}' if len(names) == 1 else f'the columns {shown}'
