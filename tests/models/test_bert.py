"""The encoder of BERT: the forward of NumPy in float64 by published names, padding, pooling, and heads."""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import numpy as np
import pytest

from jaxlite import trees
from jaxlite.models import Bert, text_network
from jaxlite.models.saved import described, made

pytestmark = pytest.mark.unoptimized

KEY = jax.random.key(0)
CONFIG = {
  'model_type': 'bert',
  'vocab_size': 19,
  'hidden_size': 12,
  'intermediate_size': 16,
  'num_hidden_layers': 1,
  'num_attention_heads': 3,
  'max_position_embeddings': 10,
  'type_vocab_size': 2,
  'hidden_act': 'gelu',
}
TOKENS = np.array([[3, 18, 7, 0, 5], [4, 4, 2, 9, 11]])
MASK = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], bool)


def tensors(prefix='', gamma='weight', beta='bias', *, classes=0, config=CONFIG):
  rng = np.random.default_rng(0)
  width, hidden = config['hidden_size'], config['intermediate_size']
  shapes = {f'embeddings.{n}_embeddings.weight': s for n, s in (('word', 19), ('position', 10), ('token_type', 2))}
  found = {name: rng.normal(size=(rows, width)) for name, rows in shapes.items()}
  norms = ['embeddings.LayerNorm']
  for layer in range(config['num_hidden_layers']):
    at = f'encoder.layer.{layer}.'
    dense = [(f'attention.self.{n}', width, width) for n in ('query', 'key', 'value')]
    dense += [('attention.output.dense', width, width), ('intermediate.dense', hidden, width)]
    for name, rows, columns in [*dense, ('output.dense', width, hidden)]:
      found |= {f'{at}{name}.weight': rng.normal(size=(rows, columns)) / 2, f'{at}{name}.bias': rng.normal(size=rows)}
    norms += [f'{at}attention.output.LayerNorm', f'{at}output.LayerNorm']
  for name in norms:
    found |= {f'{name}.{gamma}': rng.uniform(0.5, 1.5, width), f'{name}.{beta}': rng.normal(size=width)}
  found |= {'pooler.dense.weight': rng.normal(size=(width, width)), 'pooler.dense.bias': rng.normal(size=width)}
  found = {prefix + name: one for name, one in found.items()}
  if classes:
    found |= {'classifier.weight': rng.normal(size=(classes, width)), 'classifier.bias': rng.normal(size=classes)}
  return {name: one.astype(np.float32) for name, one in found.items()}


def states_by_hand(found, tokens, types=None):
  """One text without padding, in float64: [T] -> [T, width]."""
  found = {name: np.float64(one) for name, one in found.items()}

  def norm(x, name):
    x = x - x.mean(-1, keepdims=True)
    x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-12)
    return x * found[f'{name}.weight'] + found[f'{name}.bias']

  def linear(x, name):
    return x @ found[f'{name}.weight'].T + found[f'{name}.bias']

  words, places, kinds = (found[f'embeddings.{n}_embeddings.weight'] for n in ('word', 'position', 'token_type'))
  types = np.zeros(len(tokens), int) if types is None else types
  x = norm(words[tokens] + places[: len(tokens)] + kinds[types], 'embeddings.LayerNorm')
  for layer in range(CONFIG['num_hidden_layers']):
    at = f'encoder.layer.{layer}.'
    query, key, value = (linear(x, f'{at}attention.self.{n}').reshape(-1, 3, 4) for n in ('query', 'key', 'value'))
    mixed = np.zeros_like(query)
    for head in range(3):
      scores = query[:, head] @ key[:, head].T / 2
      shares = np.exp(scores - scores.max(-1, keepdims=True))
      mixed[:, head] = shares / shares.sum(-1, keepdims=True) @ value[:, head]
    x = norm(x + linear(mixed.reshape(len(x), -1), f'{at}attention.output.dense'), f'{at}attention.output.LayerNorm')
    grown = linear(x, f'{at}intermediate.dense')
    grown = grown * (1 + np.vectorize(math.erf)(grown / math.sqrt(2))) / 2
    x = norm(x + linear(grown, f'{at}output.dense'), f'{at}output.LayerNorm')
  return x


@functools.lru_cache
def compiled(module, how):
  return jax.jit(lambda variables, inputs: module.apply(variables, inputs, **dict(how)))


def run(net, inputs, **how):
  return np.asarray(compiled(net.module, tuple(how.items()))(net.variables, inputs))


def test_features_are_those_of_numpy_whatever_stands_at_padding_and_on_which_side():
  net = text_network(tensors(), CONFIG, normalized=True)
  assert (net.module, net.fresh) == (Bert(19, 12, 1, 3, 16, 10, normalized=True), ())
  assert set(net.dropped) == {'pooler.dense.weight', 'pooler.dense.bias'}
  wanted = np.stack([states_by_hand(tensors(), text[mask]).mean(0) for text, mask in zip(TOKENS, MASK, strict=True)])
  wanted /= np.linalg.norm(wanted, axis=-1, keepdims=True)
  got = run(net, {'tokens': TOKENS, 'mask': MASK})
  np.testing.assert_allclose(got, wanted, atol=2e-5)
  np.testing.assert_array_equal(got, run(net, {'tokens': TOKENS, 'mask': MASK}, method='features'))
  left = {'tokens': np.where(MASK, TOKENS, -7)[:, ::-1].copy(), 'mask': MASK[:, ::-1].copy()}
  left['tokens'][0, 2:] = TOKENS[0, :3]
  left['tokens'][1] = TOKENS[1]
  np.testing.assert_allclose(run(net, left), wanted, atol=2e-5)
  nothing = run(net, {'tokens': TOKENS, 'mask': np.zeros_like(MASK)})
  assert np.isfinite(nothing).all()


@pytest.mark.slow
def test_segments_pooling_and_older_names():
  types = np.array([0, 0, 1, 1, 1])
  wanted = states_by_hand(tensors(), TOKENS[1], types)
  first = text_network(tensors('bert.', 'gamma', 'beta'), CONFIG, pooling='first')
  inputs = {'tokens': TOKENS[1:], 'mask': MASK[1:], 'types': types[None]}
  np.testing.assert_allclose(run(first, inputs)[0], wanted[0], atol=2e-5)
  pooler = text_network(tensors(), CONFIG, pooling='pooler')
  dense = tensors()['pooler.dense.weight'], tensors()['pooler.dense.bias']
  np.testing.assert_allclose(run(pooler, inputs)[0], np.tanh(wanted[0] @ dense[0].T + dense[1]), atol=2e-5)
  np.testing.assert_allclose(run(pooler, inputs, give='states')[0], wanted, atol=2e-5)


def test_a_published_classifier_is_taken_and_another_number_of_classes_makes_a_fresh_head():
  found = tensors('bert.', classes=4)
  net = text_network(found, CONFIG)
  assert (net.module.classes, net.module.pooling, net.dropped) == (4, 'pooler', {})
  states = states_by_hand(tensors(), TOKENS[1])
  pooled = np.tanh(states[0] @ found['bert.pooler.dense.weight'].T + found['bert.pooler.dense.bias'])
  wanted = pooled @ found['classifier.weight'].T + found['classifier.bias']
  np.testing.assert_allclose(run(net, TOKENS[1:])[0], wanted, atol=1e-4)
  own = text_network(found, CONFIG, classes=3)
  assert own.fresh == ('head/kernel', 'head/bias')
  assert set(own.dropped) == {
    'bert.pooler.dense.weight',
    'bert.pooler.dense.bias',
    'classifier.weight',
    'classifier.bias',
  }
  head = own.variables['params'][own.module.classifier]
  features = run(own, TOKENS, method='features')
  np.testing.assert_allclose(run(own, TOKENS), features @ head['kernel'] + head['bias'], atol=1e-5)
  bare = text_network(found, CONFIG, classes=0)
  assert 'head' not in bare.variables['params']
  assert dataclasses.replace(bare.module, classes=3) == own.module


@pytest.mark.slow
def test_robertas_positions_begin_after_that_of_padding():
  config = CONFIG | {'model_type': 'roberta', 'pad_token_id': 1, 'type_vocab_size': 2}
  net = text_network(tensors(), config)
  assert net.module.length == 8
  moved = tensors()
  moved['embeddings.position_embeddings.weight'] = moved['embeddings.position_embeddings.weight'][2:]
  wanted = states_by_hand(moved, TOKENS[1]).mean(0)
  np.testing.assert_allclose(run(net, TOKENS[1:])[0], wanted, atol=2e-5)


def test_int8_is_near_and_a_network_is_known_again():
  whole, kept = text_network(tensors(), CONFIG), text_network(tensors(), CONFIG, dtype='int8')
  assert trees.by_path(kept.variables['params'])['words'].dtype == np.int8
  wanted = run(whole, TOKENS)
  with pytest.raises(ValueError, match="int8=False, and its parameter 'words' is int8"):
    whole.module.apply(kept.variables, TOKENS)
  assert 0 < np.abs(run(kept, TOKENS) - wanted).max() < 0.05 * np.abs(wanted).max()
  assert made(described(kept.module)) == kept.module
  shapes = jax.eval_shape(kept.module.init, KEY, TOKENS)['params']
  assert {path: leaf.shape for path, leaf in trees.by_path(shapes).items()} == {
    path: leaf.shape for path, leaf in trees.by_path(kept.variables['params']).items()
  }


@pytest.mark.parametrize(
  'net, inputs, told',
  [
    (Bert(19, 12, 1, 5, 16), TOKENS, 'width of a Bert is a multiple of its heads'),
    (Bert(19, 12, 1, 3, 16, 4), TOKENS, 'texts of 1 to length=4 tokens; got 5'),
    (Bert(19, 12, 1, 3, 16, types=0), {'tokens': TOKENS, 'types': TOKENS}, 'types=0'),
    (Bert(19, 12, 1, 3, 16, pooling='max'), TOKENS, "one of mean, first, pooler; got 'max'"),
    (Bert(19, 12, 1, 3, 16, activation='elu'), TOKENS, "got 'elu'"),
    (Bert(19, 12, 1, 3, 16), {'tokens': TOKENS, 'types': TOKENS[:1]}, 'types are one a token'),
    (Bert(19, 12, 1, 3, 16), TOKENS.astype(float), 'ids are not standardized, nor cast'),
  ],
)
def test_what_cannot_be_is_refused(net, inputs, told):
  with pytest.raises(ValueError, match=told):
    jax.eval_shape(net.init, KEY, inputs)


@pytest.mark.slow
def test_ids_and_types_that_there_are_not_give_no_number():
  net = text_network(tensors(), CONFIG)
  assert np.isnan(run(net, np.array([[1, 19], [1, 2]]))).any(-1).tolist() == [True, False]
  bad = {'tokens': np.array([[1, 2]]), 'mask': np.ones((1, 2), bool), 'types': np.array([[0, 2]])}
  assert np.isnan(run(net, bad)).all()


@pytest.mark.slow
def test_every_leaf_has_a_gradient():
  net = text_network(tensors(), CONFIG, classes=3)
  inputs = {'tokens': TOKENS, 'mask': MASK}
  slopes = jax.jit(jax.grad(lambda variables: (net.module.apply(variables, inputs) ** 2).sum()))(net.variables)
  found = {path: float(np.abs(one).max()) for path, one in trees.by_path(slopes['params']).items()}
  assert np.isfinite(list(found.values())).all()
  # What is added to every key alike changes no softmax.
  assert [path for path, one in found.items() if one < 1e-3] == ['block1/key/bias']
