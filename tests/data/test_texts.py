"""Texts become data sets whose splits share no token, and whose numbers their encoder gives again."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxlite as jl
from jaxlite.data import ByteTokenizer, CharTokenizer, WordTokenizer, from_text, from_texts, labeled_texts

TEXTS = [f'{word} film {number}' for number, word in enumerate(['good', 'bad'] * 20)]
LABELS = ['yes', 'no'] * 20


def test_labeled_texts_are_split_as_arrays_are_and_encoded_by_what_training_knows():
  data = from_texts(TEXTS, LABELS)
  assert data.class_names == ('no', 'yes')
  assert [len(split.labels) for split in (data.train, data.validation, data.test)] == [32, 4, 4]
  numbers = from_texts(TEXTS, np.arange(40) % 2, tokenizer=ByteTokenizer(), seed=3)
  arrays = jl.data.from_arrays((numbers.encoder(TEXTS), np.arange(40) % 2), seed=3)
  for split in ('train', 'validation', 'test'):
    for key in ('tokens', 'mask'):
      np.testing.assert_array_equal(getattr(numbers, split).inputs[key], getattr(arrays, split).inputs[key])
  known = set(data.encoder.tokenizer.words)
  shown = {data.encoder.tokenizer.decode(row) for row in data.train.inputs['tokens']}
  assert known == {word for text in shown for word in text.split()}
  assert '<unk>' not in ' '.join(shown)
  assert '<unk>' in data.encoder.tokenizer.decode(data.test.inputs['tokens'][0])
  assert (data.mean, data.notes) == ({'mask': None, 'tokens': None}, ())


def test_long_texts_are_cut_and_that_is_a_note():
  data = from_texts(TEXTS, LABELS, tokenizer=ByteTokenizer(), length=10)
  assert data.notes == ('35 of 40 texts are longer than 10 tokens and are cut there',)
  assert data.train.inputs['tokens'].shape == (32, 10)
  assert from_texts(['a' * 2000] * 40, LABELS, tokenizer=ByteTokenizer()).train.inputs['tokens'].shape == (32, 512)


def test_texts_of_other_tasks_and_with_weights():
  data = from_texts(TEXTS, np.arange(40.0), task=jl.tasks.regression(), weight=np.arange(1, 41))
  np.testing.assert_array_equal(data.train.weight, data.train.labels + 1)
  many = from_texts(TEXTS, np.eye(2, dtype=int)[np.arange(40) % 2], task=jl.tasks.multi_label(['a', 'b']))
  assert many.facts['names'] == ['a', 'b']
  spam = from_texts(TEXTS, ['spam', 'ham'] * 20, task=jl.tasks.binary(positive='ham'))
  assert (spam.facts['class_names'], spam.facts['positive']) == (['ham', 'spam'], 0)


@settings(max_examples=20, deadline=None)
@given(st.integers(30, 300), st.integers(1, 40), st.floats(0.05, 0.4), st.floats(0.05, 0.4), st.integers(0, 9))
def test_no_token_of_a_text_is_in_two_splits_and_each_but_the_first_is_predicted_once(
  count, length, held, tested, seed
):
  ids = np.random.default_rng(seed).integers(0, 26, count)
  text = ''.join(chr(97 + one) for one in ids)
  data = from_text(text, length=length, validation=held, test=tested)
  parts = []
  for split in (data.train, data.validation, data.test):
    labels = split.labels[split.labels >= 0]
    whole = [split.inputs[0, 0], *labels]
    parts.append(ByteTokenizer().decode(whole))
    np.testing.assert_array_equal(split.weight, (split.labels >= 0).sum(1))
    flat = split.inputs.reshape(-1)[: len(labels)]
    assert flat.tolist() == whole[:-1]
  assert ''.join(parts) == text
  assert (data.facts['vocabulary'], len(data.facts['token_bytes'])) == (257, 257)
  assert data.encoder('a')[0, :1].tolist() == [98]


def test_a_text_may_be_a_file_and_tokens_may_be_words(tmp_path):
  text = 'to be or not to be, that is the question\n' * 20
  (tmp_path / 'text.txt').write_text(text)
  for given_ in (text, tmp_path / 'text.txt', str(tmp_path / 'text.txt')):
    data = from_text(given_, tokenizer=CharTokenizer.fit(text), length=8)
    assert ''.join(data.encoder.tokenizer.decode(row) for row in data.train.inputs).startswith('to be or not to be')
  words = from_text(text, tokenizer=WordTokenizer.fit([text]), length=8, validation=0)
  assert 'token_bytes' not in words.facts
  assert len(words.validation.labels) == 0
  assert words.notes == ()


BAD = {
  'lengths': (lambda: from_texts(TEXTS, LABELS[:-1]), '^every text has one label; got 40 texts and 39 labels'),
  'no text': (lambda: from_texts([*TEXTS[:-1], None], LABELS), '^texts are strings; text 39 is None'),
  'no label': (lambda: from_texts(TEXTS, [*LABELS[:-1], None]), "^every row has a label; 'labels' has none in row 39"),
  'numbers': (lambda: from_texts(TEXTS, np.arange(40) / 7), '^a label is a class; .*jl.tasks.regression'),
  'a class': (lambda: from_texts(TEXTS, LABELS, tokenizer=ByteTokenizer), '^a tokenizer has encode, .* the class Byte'),
  'weights': (lambda: from_texts(TEXTS, LABELS, weight=[1]), r'^weights are float\[40\], one a text; got \[1\]'),
  'length': (lambda: from_texts(TEXTS, LABELS, length=0), '^length is a whole number, at least 1'),
  'short': (lambda: from_text('ab'), r"^each split of a text needs two tokens; got 2 .*\('ab': no file of that name"),
  'empty': (lambda: from_text(''), '^each split of a text needs two tokens; got 0'),
  'a list': (lambda: from_text(TEXTS), '^a text is a string or the path of a file; got list'),
  'shares': (lambda: from_text('a' * 99, test=1.0), '^test is a fraction between 0 and 1'),
}


@pytest.mark.parametrize('case', BAD)
def test_what_cannot_be_is_one_line(case):
  call, message = BAD[case]
  with pytest.raises(ValueError, match=message) as caught:
    call()
  assert '\n' not in str(caught.value)


def test_a_file_that_cannot_be_read_is_one_line(tmp_path):
  with pytest.raises(ValueError, match=r'^cannot read the text .*: No such file'):
    from_text(tmp_path / 'none.txt')
  (tmp_path / 'bad.txt').write_bytes(b'\xff\xfe')
  with pytest.raises(ValueError, match=r'^a text is a file in UTF-8'):
    from_text(tmp_path / 'bad.txt')


def test_a_text_that_stands_twice_with_two_labels_is_told(tmp_path):
  texts, labels = ['good film', 'bad film', 'so so', 'fine'] * 6, ['yes', 'no', 'no', 'yes'] * 6
  labels[6] = 'yes'
  plain = from_texts(['good film', 'bad film'] * 9, ['yes', 'no'] * 9)
  assert not [note for note in plain.notes if 'several labels' in note]
  file = tmp_path / 'films.jsonl'
  rows = [json.dumps({'text': text, 'label': label}) for text, label in zip(texts, labels, strict=True)]
  file.write_text('\n'.join(rows))
  kinds = from_texts(texts, labels), labeled_texts(file), labeled_texts(file, keep='disk')
  for data in kinds:
    [note] = [note for note in data.notes if 'several labels' in note]
    assert note.startswith('1 text with')
    assert 'rows 2 and 6' in note
