"""The Llama form of the decoder: the forward of NumPy in float64, published names, and generation by KV cache."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlite import trees
from jaxlite.models import Decoder, summary, text_module, text_network
from jaxlite.models.attention import turned

pytestmark = pytest.mark.unoptimized

KEY = jax.random.key(0)
CONFIG = {
  'model_type': 'llama',
  'vocab_size': 23,
  'hidden_size': 16,
  'intermediate_size': 20,
  'num_hidden_layers': 2,
  'num_attention_heads': 4,
  'num_key_value_heads': 2,
  'rms_norm_eps': 1e-5,
  'rope_theta': 500.0,
  'tie_word_embeddings': False,
  'max_position_embeddings': 64,
}
NAMES = {'q_proj': (16, 16), 'k_proj': (8, 16), 'v_proj': (8, 16), 'o_proj': (16, 16)}
NAMES = {f'self_attn.{name}': shape for name, shape in NAMES.items()}
NAMES |= {'mlp.gate_proj': (20, 16), 'mlp.up_proj': (20, 16), 'mlp.down_proj': (16, 20)}


def tensors(config=CONFIG):
  rng = np.random.default_rng(0)
  found = {'model.embed_tokens.weight': rng.normal(size=(23, 16)), 'model.norm.weight': rng.uniform(0.5, 1.5, 16)}
  for layer in range(2):
    at = f'model.layers.{layer}.'
    found |= {f'{at}{name}.weight': rng.normal(size=shape) / 4 for name, shape in NAMES.items()}
    for name in ('input_layernorm', 'post_attention_layernorm'):
      found[f'{at}{name}.weight'] = rng.uniform(0.5, 1.5, 16)
    if config['model_type'] == 'qwen2':
      found |= {f'{at}self_attn.{n}_proj.bias': rng.normal(size=s) for n, s in (('q', 16), ('k', 8), ('v', 8))}
  if not config['tie_word_embeddings']:
    found['lm_head.weight'] = rng.normal(size=(23, 16)) / 4
  return {name: one.astype(np.float32) for name, one in found.items()}


def logits(net, variables, tokens):
  return np.asarray(jax.jit(lambda variables, tokens: net.apply(variables, tokens))(variables, tokens[None])[0])


def as_gguf(found):
  """The same weights as llama.cpp's converter writes them: other names, rows of query and key permuted."""
  names = {'q_proj': 'attn_q', 'k_proj': 'attn_k', 'v_proj': 'attn_v', 'o_proj': 'attn_output'}
  names |= {'gate_proj': 'ffn_gate', 'up_proj': 'ffn_up', 'down_proj': 'ffn_down'}
  names |= {'input_layernorm': 'attn_norm', 'post_attention_layernorm': 'ffn_norm'}
  whole = {'model.embed_tokens': 'token_embd', 'model.norm': 'output_norm', 'lm_head': 'output'}
  made = {}
  for name, array in found.items():
    stem = name.removesuffix('.weight')
    if stem in whole:
      made[f'{whole[stem]}.weight'] = array
      continue
    _, _, layer, *_, last = stem.split('.')
    if last in ('q_proj', 'k_proj'):
      heads = len(array) // 4  # of 4 entries: halves become neighbors
      array = array.reshape(heads, 2, 2, 16).swapaxes(1, 2).reshape(array.shape)
    made[f'blk.{layer}.{names[last]}.weight'] = array
  about = {'general.architecture': 'llama', 'llama.block_count': 2, 'llama.embedding_length': 16}
  about |= {'llama.attention.head_count': 4, 'llama.attention.head_count_kv': 2, 'llama.feed_forward_length': 20}
  about |= {'llama.attention.layer_norm_rms_epsilon': 1e-5, 'llama.rope.freq_base': 500.0, 'llama.vocab_size': 23}
  return made, about


def forward_by_hand(found, tokens, slower=1.0):
  """One text in float64, as the published formula has it: [T] -> [T, vocabulary]."""
  found = {name: np.float64(one) for name, one in found.items()}
  places = np.arange(len(tokens))

  def norm(x, name):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * found[f'{name}.weight']

  def turned_by_hand(x):
    z = x[..., :2] + 1j * x[..., 2:]
    z = z * np.exp(1j * places[:, None, None] * 500.0 ** (-np.arange(2) / 2) / slower)
    return np.concatenate([z.real, z.imag], -1)

  x = found['model.embed_tokens.weight'][tokens]
  for layer in range(2):
    at = f'model.layers.{layer}.'

    def linear(x, name, at=at):
      return x @ found[f'{at}{name}.weight'].T + found.get(f'{at}{name}.bias', 0.0)

    own = norm(x, f'{at}input_layernorm')
    query = turned_by_hand(linear(own, 'self_attn.q_proj').reshape(-1, 4, 4))
    key = turned_by_hand(linear(own, 'self_attn.k_proj').reshape(-1, 2, 4))
    value = linear(own, 'self_attn.v_proj').reshape(-1, 2, 4)
    mixed = np.zeros_like(query)
    for head in range(4):
      scores = query[:, head] @ key[:, head // 2].T / 2
      scores[np.triu_indices(len(tokens), 1)] = -np.inf
      shares = np.exp(scores - scores.max(-1, keepdims=True))
      mixed[:, head] = shares / shares.sum(-1, keepdims=True) @ value[:, head // 2]
    x = x + linear(mixed.reshape(len(tokens), -1), 'self_attn.o_proj')
    own = norm(x, f'{at}post_attention_layernorm')
    gate = linear(own, 'mlp.gate_proj')
    x = x + linear(gate / (1 + np.exp(-gate)) * linear(own, 'mlp.up_proj'), 'mlp.down_proj')
  head = found.get('lm_head.weight', found['model.embed_tokens.weight'])
  return norm(x, 'model.norm') @ head.T


@pytest.mark.parametrize(
  'config',
  [
    {},
    pytest.param({'tie_word_embeddings': True}, marks=pytest.mark.slow),
    pytest.param({'model_type': 'qwen2'}, marks=pytest.mark.slow),
  ],
)
def test_published_weights_give_the_forward_of_numpy_from_both_kinds_of_names(config):
  config = CONFIG | config
  found, tokens = tensors(config), np.array([3, 0, 22, 7, 7, 1])
  wanted = forward_by_hand(found, tokens)
  net = text_network(found, config)
  got = logits(net.module, net.variables, tokens)
  np.testing.assert_allclose(got, wanted, atol=1e-4 * np.abs(wanted).max())
  assert sorted(net.used.values()) == sorted(found)
  assert (net.dropped, net.fresh) == ({}, ())
  if config['model_type'] == 'llama':
    other = text_network(*as_gguf(found))
    assert (other.module.order, net.module.order) == ('interleaved', 'half')
    np.testing.assert_allclose(logits(other.module, other.variables, tokens), wanted, atol=1e-3)
    # The wrong order of the same weights is another model, and not told by any shape.
    wrong = logits(other.module.clone(order='half'), other.variables, tokens)
    assert np.abs(wrong - wanted).max() > 0.05


def test_rotary_positions_that_are_slowed_down_are_those_of_the_rules():
  slow = text_network(tensors(), CONFIG | {'rope_scaling': {'rope_type': 'linear', 'factor': 4.0}})
  tokens = np.array([3, 0, 22, 7])
  wanted = forward_by_hand(tensors(), tokens, slower=4.0)
  np.testing.assert_allclose(logits(slow.module, slow.variables, tokens), wanted, atol=1e-4)
  rule = {'rope_type': 'llama3', 'factor': 8.0, 'low_freq_factor': 1.0, 'high_freq_factor': 4.0}
  rule |= {'original_max_position_embeddings': 64}
  found = text_module(CONFIG | {'rope_scaling': rule}).slower
  waves = 2 * np.pi * 500.0 ** (np.arange(2) / 2)  # 6.3 places: below 64 / 4, as it was; 140: above 64, fully slowed
  assert waves[0] < 16 < 64 < waves[1]
  assert found == (1.0, 8.0)


def test_orders_of_planes_are_one_turn_of_entries_that_stand_elsewhere():
  x = np.random.default_rng(1).normal(size=(1, 3, 2, 6)).astype(np.float32)
  places = jnp.array([[0, 5, 9]])
  moved = x.reshape(1, 3, 2, 2, 3).swapaxes(-1, -2).reshape(x.shape)  # halves to neighbors
  got = turned(jnp.asarray(moved), places, order='interleaved')
  wanted = np.asarray(turned(jnp.asarray(x), places)).reshape(1, 3, 2, 2, 3).swapaxes(-1, -2).reshape(x.shape)
  np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize(
  'change, told',
  [
    ({'model_type': 'gemma'}, "got model_type 'gemma'"),
    ({'num_hidden_layers': 3}, r'lack 9 arrays: .*layers\.2\..*nearest'),
    ({'num_hidden_layers': 1}, r'hold 9 arrays: .*layers\.1\.'),
    (
      {'hidden_size': 12, 'num_attention_heads': 2},
      r"'model.embed_tokens.weight' has the shape \[23, 16\].*\[23, 12\]",
    ),
    ({'tie_word_embeddings': True}, "'lm_head.weight' differs from 'model.embed_tokens.weight'"),
    ({'hidden_act': 'gelu'}, "'hidden_act' is 'gelu'; computed here is 'silu' only"),
    ({'rope_scaling': {'rope_type': 'yarn', 'factor': 2}}, "'default', 'linear' or 'llama3'; got 'yarn'"),
    ({'vocab_size': '23'}, "'vocab_size' is a whole number from 1; got '23'"),
    ({'rms_norm_eps': float('nan')}, "'rms_norm_eps' is a number above 0; got nan"),
    ({'model_type': 'mistral', 'sliding_window': 8}, "'sliding_window' is 8"),
    ({'quantization_config': {'quant_method': 'gptq'}}, "quantized by 'gptq'"),
  ],
)
def test_what_does_not_fit_is_refused_by_name(change, told):
  with pytest.raises(ValueError, match=told):
    text_network(tensors(), CONFIG | change)


def test_weights_of_other_kinds_are_refused():
  found = tensors()
  with pytest.raises(ValueError, match=r"weights are floats; 'model.norm.weight' is int8\[16\]"):
    text_network(found | {'model.norm.weight': np.ones(16, np.int8)}, CONFIG)
  with pytest.raises(ValueError, match='1 array: extra, for which this network has no place'):
    text_network(found | {'extra': np.ones(1)}, CONFIG)
  with pytest.raises(ValueError, match=r"one 'embed_tokens.weight', under any prefix; got none; nearest"):
    text_network({name.replace('embed', 'x'): one for name, one in found.items()}, CONFIG)
  with pytest.raises(ValueError, match='kept in float32, bfloat16, float16, int8; got dtype=int4'):
    text_network(found, CONFIG, dtype='int4')
  made, about = as_gguf(found)
  about.pop('llama.feed_forward_length')
  with pytest.raises(ValueError, match=r"lacks 'llama\.feed_forward_length'"):
    text_network(made, about)


@pytest.mark.parametrize('dtype, near', [('bfloat16', 0.05), ('int8', 0.05)])
def test_parameters_stay_in_what_they_are_kept_in(dtype, near):
  tokens = np.array([3, 0, 22, 7, 7, 1])
  whole = text_network(tensors(), CONFIG)
  kept = text_network(tensors(), CONFIG, dtype=dtype)
  kinds = {str(leaf.dtype) for leaf in jax.tree.leaves(kept.variables)}
  assert kinds == ({'int8', 'float32'} if dtype == 'int8' else {dtype})
  sizes = [sum(leaf.nbytes for leaf in jax.tree.leaves(one.variables)) for one in (whole, kept)]
  assert sizes[1] < 0.52 * sizes[0]
  wanted = logits(whole.module, whole.variables, tokens)
  apart = np.abs(logits(kept.module, kept.variables, tokens) - wanted).max()
  assert 0 < apart < near * np.abs(wanted).max()
  started = jax.eval_shape(kept.module.init, KEY, tokens[None])['params']
  found = {path: leaf.shape for path, leaf in trees.by_path(kept.variables['params']).items()}
  assert found == {path: leaf.shape for path, leaf in trees.by_path(started).items()}


def test_size_is_that_of_the_hand_formula():
  net = Decoder(99, width=24, layers=3, heads=4, hidden=40, form='llama', groups=2, head_width=8, tied=False)
  v, d, a, k, h = 99, 24, 32, 16, 40
  layer = 2 * d * a + 2 * d * k + 3 * d * h
  macs = 3 * (7 * layer + 2 * 49 * a) + 7 * v * d
  assert summary(net, (1, 7), 'int32') == (2 * v * d + 3 * (layer + 2 * d) + d, 2 * macs)
