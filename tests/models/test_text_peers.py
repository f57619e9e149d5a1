"""Text models beside transformers' own modules with random weights: equal states and logits from their state dicts."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from jaxlite.models import text_network

pytestmark = pytest.mark.slow

SMALL = {'vocab_size': 97, 'hidden_size': 48, 'intermediate_size': 80, 'num_hidden_layers': 3, 'num_attention_heads': 6}
LLAMA3 = {'rope_type': 'llama3', 'rope_theta': 1e4, 'factor': 8.0, 'low_freq_factor': 1.0, 'high_freq_factor': 4.0}
LLAMA3['original_max_position_embeddings'] = 32
CASES = {
  'llama': ('LlamaForCausalLM', 'LlamaConfig', {'num_key_value_heads': 2}),
  'llama3': ('LlamaForCausalLM', 'LlamaConfig', {'num_key_value_heads': 2, 'rope_parameters': LLAMA3}),
  'tied': ('LlamaForCausalLM', 'LlamaConfig', {'num_key_value_heads': 3, 'tie_word_embeddings': True, 'head_dim': 24}),
  'qwen2': ('Qwen2ForCausalLM', 'Qwen2Config', {'num_key_value_heads': 2}),
  'mistral': ('MistralForCausalLM', 'MistralConfig', {'num_key_value_heads': 2, 'sliding_window': None}),
  'bert': ('BertForSequenceClassification', 'BertConfig', {'num_labels': 5, 'max_position_embeddings': 64}),
  'roberta': ('RobertaModel', 'RobertaConfig', {'max_position_embeddings': 66, 'type_vocab_size': 1}),
}


@pytest.mark.parametrize('case', list(CASES))
def test_logits_and_states_are_those_of_transformers(case):
  torch = pytest.importorskip('torch')
  transformers = pytest.importorskip('transformers')
  name, kind, more = CASES[case]
  torch.manual_seed(0)
  config = getattr(transformers, kind)(**SMALL | more)
  peer = getattr(transformers, name)(config).eval()
  for one in peer.parameters():
    one.data = 0.3 * torch.randn_like(one) + (one.ndim == 1) * 0.5
  tokens, mask = torch.randint(2, 97, (3, 40)), torch.ones(3, 40, dtype=torch.long)
  if case in ('bert', 'roberta'):
    mask[0, 25:] = 0
    tokens[0, 25:] = config.pad_token_id
  with torch.no_grad():
    found = peer(input_ids=tokens, attention_mask=mask)
  wanted = found.last_hidden_state if case == 'roberta' else found.logits
  state = {name: one.detach().numpy() for name, one in peer.state_dict().items()}
  net = text_network(state, config.to_dict())
  inputs = {'tokens': tokens.numpy(), 'mask': mask.numpy() > 0}
  give = {'give': 'states'} if case == 'roberta' else {}
  got = np.asarray(
    jax.jit(lambda variables, inputs: net.module.apply(variables, inputs, **give))(net.variables, inputs)
  )
  live = mask.numpy()[..., None] > 0 if wanted.ndim == 3 else True
  wanted = wanted.numpy()
  assert np.abs(np.where(live, got - wanted, 0)).max() < 2e-5 * np.abs(wanted).max()
