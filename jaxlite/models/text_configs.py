"""What published configurations of text models mean in our own fields: a config.json, or the metadata of a GGUF file.

What a field says that our networks do not compute is refused by its name, never passed over.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from jaxlite.errors import nearest
from jaxlite.models.bert import Bert
from jaxlite.models.decoder import Decoder

_BERTS = ('bert', 'roberta', 'xlm-roberta')
_LLAMAS = ('llama', 'mistral', 'qwen2')
_GGUF_ORDERS = {'llama': 'interleaved', 'qwen2': 'half'}  # files of the first have query and key permuted for it
_ACTIVATIONS = {'gelu': 'gelu', 'gelu_new': 'gelu_new', 'gelu_pytorch_tanh': 'gelu_new', 'relu': 'relu', 'silu': 'silu'}


def text_module(config: Mapping[str, Any], **fields: Any) -> Bert | Decoder:
  """Returns the network that a published configuration describes, without values.

  Args:
    config: what a config.json of Hugging Face holds (model types bert, roberta, xlm-roberta, llama, mistral and qwen2),
      or the metadata of a GGUF file (architectures llama and qwen2).
    **fields: of the network, in place of what the configuration says.

  Raises:
    ValueError: another kind of model, a size that is missing or no number, something that is not computed here.

  >>> config = {'model_type': 'llama', 'vocab_size': 32, 'hidden_size': 16, 'intermediate_size': 24}
  >>> config |= {'num_hidden_layers': 2, 'num_attention_heads': 4, 'num_key_value_heads': 2, 'rms_norm_eps': 1e-5}
  >>> text_module(config, tied=True).groups
  2
  """
  if not isinstance(config, Mapping):
    raise ValueError(f'a configuration is the dict of a config.json, or metadata of GGUF; got {type(config).__name__}')
  if 'general.architecture' in config:
    return _of_gguf(config, fields)
  kind = config.get('model_type')
  if kind not in _BERTS + _LLAMAS:
    got = f'model_type {kind!r}' if kind else f'no model_type, of the keys {", ".join(sorted(map(str, config))[:6])}'
    raise ValueError(f'text networks are read of the model types {", ".join(_BERTS + _LLAMAS)}; got {got}')
  reader = _Reader(config, f'the config of this {kind} model')
  if config.get('quantization_config'):
    how = dict(config['quantization_config']).get('quant_method')
    raise ValueError(f'{reader.what} has weights quantized by {how!r}, which are not read: get the float ones, or GGUF')
  return Bert(**_bert(reader, kind) | fields) if kind in _BERTS else Decoder(**_llama(reader, kind) | fields)


class _Reader:
  """Reads fields of a configuration, each checked; says which one is wrong."""

  def __init__(self, config: Mapping[str, Any], what: str, prefix: str = '') -> None:
    self.config, self.what, self.prefix = config, what, prefix

  def get(self, name: str, default: Any = None) -> Any:
    value = self.config.get(self.prefix + name)
    return default if value is None else value

  def whole(self, name: str, default: int | None = None) -> int:
    value = self.get(name, default)
    if value is None:
      raise ValueError(f'{self.what} lacks {self.prefix + name!r}; nearest: {nearest(self.prefix + name, self.config)}')
    if isinstance(value, bool) or not hasattr(value, '__index__') or not 1 <= int(value) < 1 << 31:
      raise ValueError(f'{self.what}: {self.prefix + name!r} is a whole number from 1; got {value!r:.60}')
    return int(value)

  def number(self, name: str, default: float | None = None) -> float:
    value = self.get(name, default)
    if value is None:
      raise ValueError(f'{self.what} lacks {self.prefix + name!r}; nearest: {nearest(self.prefix + name, self.config)}')
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
      raise ValueError(f'{self.what}: {self.prefix + name!r} is a number above 0; got {value!r:.60}')
    return float(value)

  def only(self, name: str, *known: Any) -> None:
    """Refuses a field that is there and says something else than what is computed here."""
    value = self.get(name, known[0])
    if value not in known:
      raise ValueError(
        f'{self.what}: {self.prefix + name!r} is {value!r:.80}; computed here is {" or ".join(map(repr, known))} only'
      )


def _bert(reader: _Reader, kind: str) -> dict[str, Any]:
  reader.only('position_embedding_type', 'absolute')
  reader.only('is_decoder', False)
  reader.only('add_cross_attention', False)
  reader.only('embedding_size', reader.whole('hidden_size'))
  activation = reader.get('hidden_act', 'gelu')
  if activation not in _ACTIVATIONS:
    raise ValueError(f"{reader.what}: 'hidden_act' is one of {', '.join(_ACTIVATIONS)}; got {activation!r:.60}")
  return {
    'vocabulary': reader.whole('vocab_size'),
    'width': reader.whole('hidden_size'),
    'layers': reader.whole('num_hidden_layers'),
    'heads': reader.whole('num_attention_heads'),
    'hidden': reader.whole('intermediate_size'),
    'length': reader.whole('max_position_embeddings', 512) - skipped_positions(reader.config),
    'types': reader.whole('type_vocab_size', 2 if kind == 'bert' else 1),
    'activation': _ACTIVATIONS[activation],
    'epsilon': reader.number('layer_norm_eps', 1e-12),
  }


def skipped_positions(config: Mapping[str, Any]) -> int:
  """Returns how many rows of the table of positions stand before that of the first token.

  >>> skipped_positions({'model_type': 'roberta', 'pad_token_id': 1})
  2
  """
  return int(config.get('pad_token_id', 1)) + 1 if config.get('model_type') in ('roberta', 'xlm-roberta') else 0


def _llama(reader: _Reader, kind: str) -> dict[str, Any]:
  reader.only('hidden_act', 'silu')
  reader.only('mlp_bias', False)
  reader.only('partial_rotary_factor', 1, 1.0)
  reader.only('attention_bias', kind == 'qwen2', False)
  length = reader.whole('max_position_embeddings', 2048)
  if reader.get('use_sliding_window', kind == 'mistral'):
    window = reader.get('sliding_window')
    if window is not None and window < length:
      raise ValueError(f"{reader.what}: 'sliding_window' is {window!r:.60}; attention here is to all that came before")
  width, heads = reader.whole('hidden_size'), reader.whole('num_attention_heads')
  each = reader.whole('head_dim', width // heads)
  rope = {**dict(reader.get('rope_scaling', {})), **dict(reader.get('rope_parameters', {}))}  # the latter is newer
  base = rope.get('rope_theta', reader.get('rope_theta', 10_000.0))
  base = _Reader({'rope_theta': base}, reader.what).number('rope_theta')
  return {
    'vocabulary': reader.whole('vocab_size'),
    'width': width,
    'layers': reader.whole('num_hidden_layers'),
    'heads': heads,
    'groups': reader.whole('num_key_value_heads', heads),
    'head_width': 0 if each * heads == width else each,
    'hidden': reader.whole('intermediate_size'),
    'length': length,
    'tied': bool(reader.get('tie_word_embeddings', False)),
    'epsilon': reader.number('rms_norm_eps', 1e-6),
    'form': 'llama',
    'biases': kind == 'qwen2',
    'order': 'half',
    'base': base,
    'slower': _slower(rope, base, each, length, reader.what),
  }


def _slower(rope: Mapping[str, Any], base: float, each: int, length: int, what: str) -> tuple[float, ...]:
  """What divides the speed of each plane of rotary positions, of 'rope_scaling'.

  References:
    Llama 3's rule: Grattafiori et al., The Llama 3 Herd of Models, 2024, https://arxiv.org/abs/2407.21783
  """
  kind = rope.get('rope_type', rope.get('type', 'default'))
  if kind == 'default':
    return ()
  read = _Reader(rope, f'{what}, rope scaling {kind!r}')
  if kind == 'linear':
    return (read.number('factor'),) * (each // 2)
  if kind != 'llama3':
    raise ValueError(f"{what}: rope scaling is 'default', 'linear' or 'llama3'; got {kind!r:.60}")
  factor, low, high = (read.number(name) for name in ('factor', 'low_freq_factor', 'high_freq_factor'))
  trained = read.number('original_max_position_embeddings', length)
  if not high > low:
    raise ValueError(f'{what}: high_freq_factor is above low_freq_factor; got {high} and {low}')

  def one(plane: int) -> float:
    turns = trained * base ** (-2 * plane / each) / (2 * math.pi)  # in the length of training
    share = min(max((turns - low) / (high - low), 0.0), 1.0)  # of the speed that stays
    return 1 / (share + (1 - share) / factor)

  return tuple(one(plane) for plane in range(each // 2))


def _of_gguf(about: Mapping[str, Any], fields: Mapping[str, Any]) -> Decoder:
  kind = about['general.architecture']
  if kind not in _GGUF_ORDERS:
    raise ValueError(f'GGUF files are read of the architectures {", ".join(_GGUF_ORDERS)}; got {kind!r:.60}')
  reader = _Reader(about, f'the metadata of this {kind} model', f'{kind}.')
  reader.only('expert_count', 0)
  reader.only('attention.sliding_window', 0)
  reader.only('rope.scaling.type', 'none')
  width, heads = reader.whole('embedding_length'), reader.whole('attention.head_count')
  each = reader.whole('attention.key_length', width // heads)
  reader.only('attention.value_length', each)
  reader.only('rope.dimension_count', each)
  own = {
    'width': width,
    'layers': reader.whole('block_count'),
    'heads': heads,
    'groups': reader.whole('attention.head_count_kv', heads),
    'head_width': 0 if each * heads == width else each,
    'hidden': reader.whole('feed_forward_length'),
    'length': reader.whole('context_length', 2048),
    'epsilon': reader.number('attention.layer_norm_rms_epsilon'),
    'form': 'llama',
    'biases': kind == 'qwen2',
    'order': _GGUF_ORDERS[kind],
    'base': reader.number('rope.freq_base', 10_000.0),
  }
  words = about.get('tokenizer.ggml.tokens')
  own['vocabulary'] = reader.whole('vocab_size', len(words) if isinstance(words, list | tuple) and words else None)
  return Decoder(**own | dict(fields))
