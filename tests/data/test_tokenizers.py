"""Tokenizers: text comes back from its ids, bytes are counted right, and the JSON form gives the same value."""

from __future__ import annotations

import json
import pickle
import re
import sys

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlite.data import ByteTokenizer, CharTokenizer, SubwordTokenizer, WordTokenizer, load_tokenizer

ANY = st.characters()  # lone surrogates too: Python's strings hold them
TEXTS = st.one_of(st.text(), st.text(ANY, max_size=20))


def subwords():
  """Byte-level subwords, made here; cuts and pads by its own JSON, which must not be heard."""
  made = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token='?'))
  made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
  made.decoder = tokenizers.decoders.ByteLevel()
  alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
  trainer = tokenizers.trainers.BpeTrainer(vocab_size=270, initial_alphabet=sorted(alphabet), show_progress=False)
  made.train_from_iterator(['the cat and the dog and the cow'] * 3, trainer)
  made.enable_truncation(2)
  made.enable_padding(length=9)
  return SubwordTokenizer(made.to_str())


ALL = {
  'bytes': ByteTokenizer(),
  'characters': CharTokenizer.fit(['añ', '\ud83d', '\ude00', '"\\\n']),
  'words': WordTokenizer.fit(["it's the cat", 'the naïve dog']),
  'subwords': subwords(),
}


@settings(max_examples=100, deadline=None)
@given(TEXTS)
def test_bytes_and_characters_give_back_any_text(text):
  for tokenizer in (ByteTokenizer(), CharTokenizer.fit([text, 'x'])):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode(np.array([0, *ids, 0])) == text  # padding stands for nothing
    assert all(1 <= number < tokenizer.vocabulary for number in ids)
    assert tokenizer.bytes_per_id.shape == (tokenizer.vocabulary,)
    assert tokenizer.bytes_per_id[ids].sum() == len(text.encode('utf-8', 'surrogatepass'))
    again = load_tokenizer(tokenizer.to_json())
    assert again == tokenizer
    assert again.encode(text) == ids
  assert [number - 1 for number in ByteTokenizer().encode(text)] == list(text.encode('utf-8', 'surrogatepass'))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 256), max_size=30))
def test_any_bytes_decode_to_a_text(ids):
  text = ByteTokenizer().decode(ids)
  assert isinstance(text, str)
  found = bytes(number - 1 for number in ids if number)
  assert (text == found.decode('utf-8', 'replace')) or text.encode('utf-8', 'surrogatepass') == found


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(st.sampled_from("abAB' .\u2019ßé1_"), max_size=30), min_size=1), st.integers(3, 12))
def test_words_are_counted_ranked_and_found_again(texts, size):
  counts: dict[str, int] = {}
  for word in (word for text in texts for word in re.findall(r"\w+(?:['\u2019]\w+)*", text.lower())):
    counts[word] = counts.get(word, 0) + 1
  if not counts:
    with pytest.raises(ValueError, match='a text with one word at least'):
      WordTokenizer.fit(texts, size)
    return
  tokenizer = WordTokenizer.fit(iter(texts), size)
  assert tokenizer.vocabulary == min(size, len(counts) + 2)
  assert tokenizer == WordTokenizer.fit(texts[::-1], size)
  left = set(counts) - set(tokenizer.words)
  assert all(counts[word] <= min(counts[known] for known in tokenizer.words) for word in left)
  for text in texts:
    ids = tokenizer.encode(text)
    known = [number for number in ids if number != 1]
    assert tokenizer.encode(tokenizer.decode(known)) == known
    assert tokenizer.decode(ids).split().count('<unk>') == ids.count(1)


def test_subwords_are_those_of_the_package_whole_and_unpadded():
  tokenizer, text = ALL['subwords'], 'the cat, thé dög and \U0001f600'
  ids = tokenizer.encode(text)
  assert tokenizer.decode(ids) == text
  assert len(ids) > 9
  theirs = tokenizers.Tokenizer.from_str(tokenizer.json)
  theirs.no_truncation()
  theirs.no_padding()
  assert ids == theirs.encode(text).ids
  assert max(ids) < tokenizer.vocabulary == theirs.get_vocab_size()


def test_where_the_package_is_lacking_one_line_says_how_to_get_it(monkeypatch):
  text = ALL['subwords'].to_json()
  monkeypatch.setitem(sys.modules, 'tokenizers', None)  # as where it was never installed
  with pytest.raises(ImportError, match=r"^SubwordTokenizer needs tokenizers: pip install 'jaxlite\[tokenizers\]'$"):
    load_tokenizer(text)


@pytest.mark.parametrize('kind', ALL)
def test_the_json_form_gives_the_same_value(kind):
  tokenizer = ALL[kind]
  for again in (load_tokenizer(tokenizer.to_json()), type(tokenizer).from_json(tokenizer.to_json())):
    assert again == tokenizer
    assert type(again) is type(tokenizer)
    assert again.to_json() == tokenizer.to_json()
    assert hash(again) == hash(tokenizer)
  tokenizer.encode('a')  # what it keeps for speed does not change what it is
  again = pickle.loads(pickle.dumps(tokenizer))
  assert again == tokenizer
  assert again.encode('a') == tokenizer.encode('a')
  assert json.loads(tokenizer.to_json()).get('kind', 'subwords') == kind
  assert tokenizer.encode('') == []
  assert tokenizer.decode([]) == ''
  for wrong in ALL.values():
    if type(wrong) is not type(tokenizer) and kind != 'subwords':
      with pytest.raises(ValueError, match=f'reads JSON of the kind {kind!r}; got .*: use load_tokenizer'):
        type(tokenizer).from_json(wrong.to_json())


@pytest.mark.parametrize(
  'run, rule',
  [
    (lambda: CharTokenizer.fit('abc').encode('abé'), r"knows the 3 characters .*; got 'é' \(U\+00E9\) at 2: fit it on"),
    (lambda: CharTokenizer.fit(['']), 'a text with one character at least; got none'),
    (lambda: CharTokenizer.fit(['a', b'a']), 'a tokenizer is fitted on strings; text 1 is bytes'),
    (lambda: WordTokenizer.fit(['a'], 2), 'a word at least, 3; got 2'),
    (lambda: ByteTokenizer().decode([257]), 'ByteTokenizer has the ids 0 to 256; got 257 at 0'),
    (lambda: CharTokenizer.fit('ab').decode([1, -1]), 'CharTokenizer has the ids 0 to 2; got -1 at 1'),
    (lambda: ByteTokenizer().decode([[1]]), r'decodes the ids of one text, int\[T\]; got int64\[1, 1\]'),
    (lambda: ByteTokenizer().decode([1.0]), r'got float64\[1\]'),
    (lambda: load_tokenizer('{'), 'a tokenizer is read from its JSON, as to_json wrote it'),
    (lambda: load_tokenizer('[1]'), 'got a list'),
    (
      lambda: load_tokenizer('{"a": 1}'),
      r"a kind, bytes, characters, words, or is a tokenizer.json; got the keys \['a'\]",
    ),
    (lambda: load_tokenizer('{"kind": "words"}'), "reads JSON of the kind 'words'"),
    (lambda: load_tokenizer('{"model": {}}'), 'takes the JSON form of a tokenizers.Tokenizer; got another'),
  ],
)
def test_what_does_not_fit_is_named(run, rule):
  with pytest.raises(ValueError, match=rule):
    run()
