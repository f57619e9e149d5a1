"""Text to token ids and back: bytes, characters, words, and subwords by the optional package `tokenizers`.

Id 0 is padding in all that are made here, so that a batch may be filled up with it; it decodes to nothing. A tokenizer
is a value: it equals another of the same content, and its JSON form, kept beside a model, gives it back exactly.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import json
import re
from collections.abc import Iterable
from typing import Any

import numpy as np

from jaxlite import errors
from jaxlite.host.files import parsed_json

_WORD = re.compile(r"\w+(?:['\u2019]\w+)*")  # an apostrophe, typed or typeset, stays in its word
_FIRST_WORD = 2  # after padding and the unknown word


@dataclasses.dataclass(frozen=True)
class ByteTokenizer:
  """The bytes of UTF-8, each plus one: 257 ids, of which 0 is padding. Nothing is fitted and no text is unknown.

  >>> tokenizer = ByteTokenizer()
  >>> tokenizer.encode('né'), tokenizer.decode([111, 196, 170, 0])
  ([111, 196, 170], 'né')
  """

  @property
  def vocabulary(self) -> int:
    """Number of ids."""
    return 257

  @property
  def bytes_per_id(self) -> np.ndarray:
    """How many bytes of UTF-8 each id stands for, int32[vocabulary]: what a loss in bits per byte divides by."""
    return np.minimum(np.arange(257, dtype=np.int32), 1)

  def encode(self, text: str) -> list[int]:
    """Returns the ids of a text; a lone surrogate, which UTF-8 has no bytes for, gets those that it would have."""
    return [byte + 1 for byte in text.encode('utf-8', 'surrogatepass')]

  def decode(self, ids: Any) -> str:
    """Returns the text of ids, int[T]; bytes that are no UTF-8, as a model may generate, become U+FFFD."""
    found = bytes(number - 1 for number in _known(ids, 257, 'ByteTokenizer') if number)
    try:
      return found.decode('utf-8', 'surrogatepass')
    except UnicodeDecodeError:
      return found.decode('utf-8', 'replace')

  def to_json(self) -> str:
    """Returns its JSON form."""
    return json.dumps({'kind': 'bytes'})

  @classmethod
  def from_json(cls, text: str) -> ByteTokenizer:
    """Returns the tokenizer of a JSON form; ValueError where it is of another kind."""
    _content(text, 'bytes')
    return cls()


@dataclasses.dataclass(frozen=True)
class CharTokenizer:
  """The characters of the texts that it was fitted on, from id 1; one that it does not know is an error.

  Attributes:
    characters: those that it knows; id 1 is the first.

  >>> tokenizer = CharTokenizer.fit(['banana'])
  >>> tokenizer.characters, tokenizer.encode('nab'), tokenizer.decode([3, 1, 2])
  (('a', 'b', 'n'), [3, 1, 2], 'nab')
  """

  characters: tuple[str, ...]

  @classmethod
  def fit(cls, texts: str | Iterable[str]) -> CharTokenizer:
    """Returns the tokenizer of every character in the texts, by code point.

    Raises:
      ValueError: there is none.
    """
    found = sorted(set().union(*map(set, _texts(texts))))
    if not found:
      raise ValueError('CharTokenizer.fit needs a text with one character at least; got none')
    return cls(tuple(found))

  @property
  def vocabulary(self) -> int:
    """Number of ids."""
    return len(self.characters) + 1

  @property
  def bytes_per_id(self) -> np.ndarray:
    """How many bytes of UTF-8 each id stands for, int32[vocabulary]; 0 for padding."""
    return np.array([0, *(len(one.encode('utf-8', 'surrogatepass')) for one in self.characters)], np.int32)

  @functools.cached_property
  def _ids(self) -> dict[str, int]:
    return {one: number for number, one in enumerate(self.characters, 1)}

  def encode(self, text: str) -> list[int]:
    """Returns the ids of a text; ValueError for a character that was in no text of the fit."""
    try:
      return [self._ids[one] for one in text]
    except KeyError as error:
      one = error.args[0]
      raise ValueError(
        f'CharTokenizer knows the {len(self.characters)} characters that it was fitted on; got {one!r} '
        f'(U+{ord(one):04X}) at {text.index(one)}: fit it on every text, or use ByteTokenizer'
      ) from None

  def decode(self, ids: Any) -> str:
    """Returns the text of ids, int[T]."""
    return ''.join(self.characters[number - 1] for number in _known(ids, self.vocabulary, 'CharTokenizer') if number)

  def to_json(self) -> str:
    """Returns its JSON form."""
    # A list: within one string, JSON takes two surrogates that stand side by side for one character.
    return json.dumps({'kind': 'characters', 'characters': self.characters})

  @classmethod
  def from_json(cls, text: str) -> CharTokenizer:
    """Returns the tokenizer of a JSON form; ValueError where it is of another kind."""
    return cls(tuple(_content(text, 'characters')['characters']))


@dataclasses.dataclass(frozen=True)
class WordTokenizer:
  """The most frequent words of the texts that it was fitted on, in lower case, from id 2; id 1 is any other word.

  A word is a run of letters, digits and underscores, apostrophes inside it included; what stands between words is
  lost, so a number of bytes is not told (`bytes_per_id` is None).

  Attributes:
    words: those that it knows; id 2 is the first, and the most frequent.

  >>> tokenizer = WordTokenizer.fit(['The cat saw the dog.', "The dog didn't."], size=4)
  >>> tokenizer.words, tokenizer.encode('A dog, the dog!'), tokenizer.decode([1, 3, 2, 3])
  (('the', 'dog'), [1, 3, 2, 3], '<unk> dog the dog')
  """

  words: tuple[str, ...]

  @classmethod
  def fit(cls, texts: str | Iterable[str], size: int = 20_000) -> WordTokenizer:
    """Returns the tokenizer of the most frequent words; of equally frequent ones, those first in the alphabet.

    Args:
      texts: strings.
      size: ids at most, padding and the unknown word included.

    Raises:
      ValueError: no word in the texts, or a size that leaves no place for one.
    """
    if size <= _FIRST_WORD:
      raise ValueError(f'WordTokenizer.fit: size counts padding, the unknown word and a word at least, 3; got {size}')
    counts = collections.Counter(word for text in _texts(texts) for word in _WORD.findall(text.lower()))
    if not counts:
      raise ValueError('WordTokenizer.fit needs a text with one word at least; got none')
    ranked = sorted(counts, key=lambda word: (-counts[word], word))
    return cls(tuple(ranked[: size - _FIRST_WORD]))

  @property
  def vocabulary(self) -> int:
    """Number of ids."""
    return len(self.words) + _FIRST_WORD

  @property
  def bytes_per_id(self) -> None:
    """None: words do not tell the bytes between them."""
    return None

  @functools.cached_property
  def _ids(self) -> dict[str, int]:
    return {word: number for number, word in enumerate(self.words, _FIRST_WORD)}

  def encode(self, text: str) -> list[int]:
    """Returns the ids of a text's words."""
    return [self._ids.get(word, 1) for word in _WORD.findall(text.lower())]

  def decode(self, ids: Any) -> str:
    """Returns the words of ids, int[T], with spaces between them and '<unk>' for an unknown one."""
    names = ('<unk>', *self.words)
    return ' '.join(names[number - 1] for number in _known(ids, self.vocabulary, 'WordTokenizer') if number)

  def to_json(self) -> str:
    """Returns its JSON form."""
    return json.dumps({'kind': 'words', 'words': self.words})

  @classmethod
  def from_json(cls, text: str) -> WordTokenizer:
    """Returns the tokenizer of a JSON form; ValueError where it is of another kind."""
    return cls(tuple(_content(text, 'words')['words']))


@dataclasses.dataclass(frozen=True)
class SubwordTokenizer:
  """A tokenizer of the package `tokenizers`, by its JSON form: `SubwordTokenizer(tokenizer.to_str())`.

  Its ids are the package's own: 0 may stand for a token, so give models the mask that `pad` makes. Nothing is cut or
  padded, whatever the JSON says of it.

  Attributes:
    json: the JSON form, as `tokenizers.Tokenizer.to_str` writes it and a tokenizer.json holds it.
    special: whether the tokens that a model was trained to see around a text are added, such as [CLS] and [SEP].
  """

  json: str = dataclasses.field(repr=False)
  special: bool = False

  @functools.cached_property
  def _tokenizer(self) -> Any:
    errors.need('SubwordTokenizer', 'tokenizers')
    from tokenizers import Tokenizer

    try:
      made = Tokenizer.from_str(self.json)
    except Exception as error:  # the package raises the bare class
      raise ValueError(
        f'SubwordTokenizer takes the JSON form of a tokenizers.Tokenizer; got another: {error}'
      ) from None
    made.no_truncation()
    made.no_padding()
    return made

  @functools.cached_property
  def _plain(self) -> Any:
    """Another one, to which the names of special tokens are text as any other."""
    made = dataclasses.replace(self)._tokenizer
    made.encode_special_tokens = True
    return made

  @functools.cached_property
  def _around(self) -> tuple[int, ...]:
    """The ids that are added after each text."""
    mask = self._tokenizer.encode('a', add_special_tokens=self.special).special_tokens_mask
    after = next((place for place, one in enumerate(reversed(mask)) if not one), 0)
    ids = self._tokenizer.encode('a', add_special_tokens=self.special).ids
    return tuple(ids[len(ids) - after :])

  @property
  def vocabulary(self) -> int:
    """Number of ids: one more than the largest."""
    return max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1

  @property
  def bytes_per_id(self) -> None:
    """None: such a tokenizer may normalize a text, so its ids do not tell bytes."""
    return None

  def encode(self, text: str) -> list[int]:
    """Returns the ids of a text; names of special tokens in it become those tokens."""
    return list(self._tokenizer.encode(text, add_special_tokens=self.special).ids)

  def encode_plain(self, text: str) -> list[int]:
    """Returns the ids of a text alone, none of them special: what a stranger wrote closes no turn of a chat."""
    return list(self._plain.encode(text, add_special_tokens=False).ids)

  def cut(self, ids: Any, length: int) -> list[int]:
    """Returns the first ids of a text, `length` at most; those that are added at its end stay there."""
    ids, after = list(ids), list(self._around)
    if len(ids) <= length:
      return ids
    return [*ids[: length - len(after)], *after] if len(after) < length else ids[:length]

  def id_of(self, token: str) -> int:
    """Returns the id of one token by its name; ValueError where there is none."""
    found = self._tokenizer.token_to_id(token)
    if found is None:
      names = self._tokenizer.get_vocab(with_added_tokens=True)
      raise ValueError(f'this tokenizer has no token {token!r}; nearest: {errors.nearest(token, list(names)[-2000:])}')
    return int(found)

  def decode(self, ids: Any) -> str:
    """Returns the text of ids, int[T]; special tokens by their names."""
    return self._tokenizer.decode(_known(ids, self.vocabulary, 'SubwordTokenizer'), skip_special_tokens=False)

  def to_json(self) -> str:
    """Returns its JSON form."""
    return json.dumps({'kind': 'subwords', 'special': True, 'tokenizer': self.json}) if self.special else self.json

  @classmethod
  def from_json(cls, text: str) -> SubwordTokenizer:
    """Returns the tokenizer of a JSON form; ValueError where the package cannot read it."""
    found = _parsed(text)
    if found.get('kind') == 'subwords':
      made = cls(str(found.get('tokenizer')), bool(found.get('special')))
    else:
      made = cls(text)
    _ = made._tokenizer
    return made


Tokenizer = ByteTokenizer | CharTokenizer | WordTokenizer | SubwordTokenizer


def load_tokenizer(text: str) -> Tokenizer:
  """Returns the tokenizer of a JSON form: what `to_json` wrote, or a tokenizer.json of the package `tokenizers`.

  Args:
    text: the JSON itself, not a path.

  Returns:
    The tokenizer, of the kind that the JSON names.

  Raises:
    ValueError: no JSON, or none of a tokenizer.
    ImportError: it is of the package `tokenizers`, which is not installed.

  >>> load_tokenizer(CharTokenizer.fit('ab').to_json())
  CharTokenizer(characters=('a', 'b'))
  """
  found = _parsed(text)
  kinds: dict[str, Any] = {'bytes': ByteTokenizer, 'characters': CharTokenizer, 'words': WordTokenizer}
  if found.get('kind') in kinds:
    return kinds[found['kind']].from_json(text)
  if found.get('kind') == 'subwords' or isinstance(found.get('model'), dict):
    return SubwordTokenizer.from_json(text)
  raise ValueError(
    f'the JSON of a tokenizer has a kind, {", ".join(kinds)}, or is a tokenizer.json; got the keys {sorted(found)}'
  )


def _parsed(text: str) -> dict[str, Any]:
  try:
    found = parsed_json(text)
  except (TypeError, ValueError) as error:
    raise ValueError(f'a tokenizer is read from its JSON, as to_json wrote it: {error}') from None
  if not isinstance(found, dict):
    raise ValueError(f'a tokenizer is read from its JSON, as to_json wrote it; got a {type(found).__name__}')
  return found


def _content(text: str, kind: str) -> dict[str, Any]:
  found = _parsed(text)
  names = found.get(kind, ())
  if found.get('kind') != kind or not all(isinstance(name, str) for name in names) or (kind != 'bytes' and not names):
    raise ValueError(f'this tokenizer reads JSON of the kind {kind!r}; got {found.get("kind")!r}: use load_tokenizer')
  return found


def _texts(texts: str | Iterable[str]) -> Iterable[str]:
  for place, text in enumerate([texts] if isinstance(texts, str) else texts):
    if not isinstance(text, str):
      raise ValueError(f'a tokenizer is fitted on strings; text {place} is {type(text).__name__}: decode it')
    yield text


def _known(ids: Any, vocabulary: int, name: str) -> list[int]:
  """Returns ids as a list of int; ValueError for what is none of one text."""
  array = np.asarray(ids)
  if array.ndim != 1 or not (np.issubdtype(array.dtype, np.integer) or not array.size):
    raise ValueError(f'{name} decodes the ids of one text, int[T]; got {array.dtype}{list(array.shape)}')
  bad = np.flatnonzero((array < 0) | (array >= vocabulary))
  if len(bad):
    raise ValueError(f'{name} has the ids 0 to {vocabulary - 1}; got {array[bad[0]]} at {bad[0]}')
  return [int(number) for number in array.tolist()]
