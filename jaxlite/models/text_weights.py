"""Published weights of text models put into our own networks, by rules on names: strict in both directions.

Every array of the source is used, or named among those left out with the reason; every leaf is filled with one of its
shape, or named as fresh. What is neither is an error.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlite import trees
from jaxlite.errors import arrays, nearest
from jaxlite.models.bert import Bert
from jaxlite.models.decoder import Decoder
from jaxlite.models.int8 import as_int8
from jaxlite.models.text_configs import skipped_positions, text_module

_GUESSING = 'a head that guesses words, which is not computed here'
_DTYPES = ('float32', 'bfloat16', 'float16', 'int8')


class TextNetwork(NamedTuple):
  """A network of texts with published weights.

  Attributes:
    module: a `Bert` or a `Decoder`.
    variables: {'params': ...}, as `module.apply` takes them.
    used: the array of the source that each leaf was filled with, by path.
    dropped: arrays of the source that were left out, each with its reason.
    fresh: paths of leaves with values drawn anew: a head that the source does not have.
  """

  module: Any
  variables: dict[str, Any]
  used: dict[str, str]
  dropped: dict[str, str]
  fresh: tuple[str, ...] = ()

  def __repr__(self) -> str:
    told = f'{len(self.used)} leaves filled, {len(self.dropped)} arrays left out, {len(self.fresh)} leaves fresh'
    return f'TextNetwork({type(self.module).__name__}: {told})'


class _Leaf(NamedTuple):
  source: str
  turned: bool = False  # [outputs, inputs] there, [inputs, outputs] here
  skipped: int = 0  # rows at the beginning that are not ours


def text_network(
  tensors: Mapping[str, Any],
  config: Mapping[str, Any],
  *,
  dtype: Any = None,
  classes: int | None = None,
  key: jax.Array | None = None,
  **fields: Any,
) -> TextNetwork:
  """Puts published weights into a network that their configuration describes.

  Arrays are taken one after the other, so that a lazy mapping (`jaxlite.finetuning.read`) never lies in memory twice.

  Args:
    tensors: arrays by the names of Hugging Face's models (`encoder.layer.0...`, `model.layers.0...`, with a prefix or
      without) or of GGUF (`blk.0...`).
    config: as `text_module` takes it; what it says of the network is checked against the arrays' shapes.
    dtype: what the parameters are kept in: 'float32', 'bfloat16', 'float16', or 'int8', kernels and embeddings as whole
      numbers with a scale, to predict. None takes float32. It computes in float32 unless `fields` give another dtype.
    classes: of an encoder: logits; None takes those of the source, where it has a classifier, else features alone.
      Another number than the source's makes a fresh head.
    key: draws a fresh head; None takes jax.random.key(0).
    **fields: of the network, in place of what the configuration says, such as pooling='first' or dropout=0.1.

  Returns:
    The network, and what became of each array.

  Raises:
    ValueError: a configuration that is not read, arrays that are missing, left over, of other shapes, or no floats.

  >>> config = {'model_type': 'bert', 'vocab_size': 9, 'hidden_size': 4, 'intermediate_size': 6, 'type_vocab_size': 1}
  >>> config |= {'num_hidden_layers': 0, 'num_attention_heads': 2, 'max_position_embeddings': 5}
  >>> text_network({}, config)
  Traceback (most recent call last):
    ...
  ValueError: the config of this bert model: 'num_hidden_layers' is a whole number from 1; got 0
  """
  stored = _dtype_name(dtype)
  module = text_module(config, **fields)
  names = set(tensors)
  if isinstance(module, Bert):
    module, leaves, spare = _bert(module, names, tensors, config, classes)
  else:
    if classes:
      raise ValueError(f'classes are of an encoder; this is a decoder: train a head on its features; got {classes}')
    module, leaves, spare = _llama(module, names, tensors, config)
  if stored == 'int8':
    module = dataclasses.replace(module, int8=True)
  if getattr(module, 'classes', 0) and 'head/kernel' not in leaves:
    fresh: tuple[str, ...] = ('head/kernel', 'head/bias')
  else:
    fresh = ()
  key = jax.random.key(0) if key is None else key
  shapes = jax.eval_shape(module.init, key, jnp.zeros((1, 1), jnp.int32))['params']
  wanted = trees.by_path(shapes)
  _complete(names, leaves, config)
  dropped = dict(_left_out(names - {leaf.source for leaf in leaves.values()}, spare, tensors))
  values = _filled(tensors, leaves, wanted, stored)
  if fresh:
    width = wanted['head/kernel'].shape[0]
    values['head/kernel'] = jax.random.normal(key, wanted['head/kernel'].shape) / width**0.5
    values['head/bias'] = jnp.zeros(wanted['head/bias'].shape)
  if values.keys() != wanted.keys():
    raise ValueError(f'no rule fills {arrays(sorted(wanted.keys() - values.keys()))}: a fault in jaxlite')
  used = {path: leaf.source for path, leaf in leaves.items()}
  return TextNetwork(module, {'params': trees.nest(values)}, used, dropped, fresh)


def _dtype_name(dtype: Any) -> str:
  try:
    name = 'float32' if dtype is None else jnp.dtype(dtype).name
  except TypeError:
    name = repr(dtype)
  if name not in _DTYPES:
    raise ValueError(f'weights are kept in {", ".join(_DTYPES)}; got dtype={name}')
  return name


def _complete(names: set[str], leaves: Mapping[str, _Leaf], config: Mapping[str, Any]) -> None:
  lost = [leaf.source for leaf in leaves.values() if leaf.source not in names]
  if lost:
    kind = config.get('model_type', config.get('general.architecture'))
    raise ValueError(
      f'the weights lack {arrays(lost)}, which a {kind} model of this configuration has; nearest to the first: '
      f'{nearest(lost[0], names)}: give the config of these weights'
    )


def _left_out(
  names: set[str], spare: Mapping[str, str | Callable[[str], str]], tensors: Mapping[str, Any]
) -> Iterator[tuple[str, str]]:
  unknown = []
  for name in sorted(names):
    rule = next((rule for rule in spare if re.fullmatch(rule, name)), None)
    if rule is None:
      unknown.append(name)
    else:
      why = spare[rule]
      yield name, why if isinstance(why, str) else why(name)
  if unknown:
    raise ValueError(
      f'the weights hold {arrays(unknown)}, for which this network has no place: '
      'give the config of these weights, or leave them out if they are of another part'
    )


def _filled(
  tensors: Mapping[str, Any], leaves: Mapping[str, _Leaf], wanted: Mapping[str, Any], stored: str
) -> dict[str, jax.Array]:
  values: dict[str, jax.Array] = {}
  for path, leaf in leaves.items():
    array = np.asarray(tensors[leaf.source])
    if array.dtype.kind not in 'f' and array.dtype.name not in ('bfloat16',):
      raise ValueError(
        f'weights are floats; {leaf.source!r} is {array.dtype}{list(array.shape)}: if they are quantized, get the '
        'float ones, or GGUF'
      )
    array = array.T if leaf.turned else array[leaf.skipped :]
    if array.shape != wanted[path].shape:
      there = list(array.T.shape if leaf.turned else array.shape)
      raise ValueError(
        f'{leaf.source!r} has the shape {there}; {path!r} of this configuration takes '
        f'{list(wanted[path].shape)}{", turned" if leaf.turned else ""}: give the config of these weights'
      )
    # One after the other, each waited for: else the host's copies of all of them would lie beside the device's.
    if stored == 'int8' and jnp.issubdtype(wanted[path].dtype, jnp.integer):
      by_row = path.endswith(('embedding', 'words'))
      q, scale = as_int8(array, axis=1 if by_row else 0)
      values[path] = jax.block_until_ready(jnp.array(q))
      values[f'{path}_scale'] = jnp.array(scale[:, None] if by_row else scale)
    else:
      kept = np.ascontiguousarray(array, jnp.dtype('float32' if stored == 'int8' else stored))
      values[path] = jax.block_until_ready(jnp.array(kept))
  return values


def _bert(
  module: Bert, names: set[str], tensors: Mapping[str, Any], config: Mapping[str, Any], classes: int | None
) -> tuple[Bert, dict[str, _Leaf], dict[str, Any]]:
  first = 'embeddings.word_embeddings.weight'
  prefix = _prefix(names, first, 'a BERT model')
  older = f'{prefix}embeddings.LayerNorm.gamma' in names
  scale, bias = ('gamma', 'beta') if older else ('weight', 'bias')
  leaves = {
    'words': _Leaf(prefix + first),
    'position_bias': _Leaf(f'{prefix}embeddings.position_embeddings.weight', skipped=skipped_positions(config)),
    'norm/scale': _Leaf(f'{prefix}embeddings.LayerNorm.{scale}'),
    'norm/bias': _Leaf(f'{prefix}embeddings.LayerNorm.{bias}'),
  }
  if module.types:
    leaves['type_bias'] = _Leaf(f'{prefix}embeddings.token_type_embeddings.weight')
  dense = {
    'query': 'attention.self.query',
    'key': 'attention.self.key',
    'value': 'attention.self.value',
    'out': 'attention.output.dense',
    'dense1': 'intermediate.dense',
    'dense2': 'output.dense',
  }
  norms = {'norm1': 'attention.output.LayerNorm', 'norm2': 'output.LayerNorm'}
  for layer in range(module.layers):
    own = f'{prefix}encoder.layer.{layer}.'
    for ours, theirs in dense.items():
      leaves |= _dense(f'block{layer + 1}/{ours}', own + theirs)
    for ours, theirs in norms.items():
      leaves[f'block{layer + 1}/{ours}/scale'] = _Leaf(f'{own}{theirs}.{scale}')
      leaves[f'block{layer + 1}/{ours}/bias'] = _Leaf(f'{own}{theirs}.{bias}')
  at = re.escape(prefix)
  spare = {
    rf'{at}embeddings\.(position|token_type)_ids': 'whole numbers that only count',
    r'cls\..*|lm_head\..*|(.*\.)?vocab_(projector|transform|layer_norm)\..*': _GUESSING,
    rf'{at}pooler\..*': f'a pooler, and this network pools by {module.pooling!r}',
  }
  there = _shape(tensors, 'classifier.weight')[0] if 'classifier.weight' in names else 0
  wanted = there if classes is None else classes
  module = dataclasses.replace(module, classes=wanted)
  if there and wanted == there:
    # What the classifier was trained on: the pooler's output.
    if module.pooling == 'mean' and f'{prefix}pooler.dense.weight' in names:
      module = dataclasses.replace(module, pooling='pooler')
    leaves |= _dense('head', 'classifier')
  spare[r'classifier\..*'] = f'a classifier of {there} classes, and this network has {wanted or "none"}'
  if module.pooling == 'pooler':
    leaves |= _dense('pooler', f'{prefix}pooler.dense')
  return module, leaves, spare


def _llama(
  module: Decoder, names: set[str], tensors: Mapping[str, Any], config: Mapping[str, Any]
) -> tuple[Decoder, dict[str, _Leaf], dict[str, Any]]:
  gguf = 'general.architecture' in config
  first = 'token_embd.weight' if gguf else 'embed_tokens.weight'
  prefix = _prefix(names, first, 'a Llama model')
  head = 'output.weight' if gguf else f'{prefix.removesuffix("model.")}lm_head.weight'
  table = prefix + first
  spare: dict[str, Any] = {r'(.*\.)?rotary_emb\.inv_freq': 'speeds of rotary positions, computed here'}
  if gguf:
    module = dataclasses.replace(module, tied=head not in names)
    if 'rope_freqs.weight' in names:
      module = dataclasses.replace(module, slower=tuple(np.asarray(tensors['rope_freqs.weight'], float).tolist()))
      spare[r'rope_freqs\.weight'] = "what divides the speeds of rotary positions: the field 'slower'"
  elif module.tied and head in names:
    spare[re.escape(head)] = lambda name: _same(tensors, name, table)
  own = prefix + ('blk.{}.' if gguf else 'layers.{}.')
  theirs = _GGUF if gguf else _HUGGING_FACE
  leaves = {'embedding': _Leaf(table), 'norm/scale': _Leaf(f'{prefix}{"output_norm" if gguf else "norm"}.weight')}
  if not module.tied:
    leaves['head/kernel'] = _Leaf(head, True)
  for layer in range(module.layers):
    at, block = own.format(layer), f'block{layer + 1}'
    for ours, name in theirs.items():
      if ours.startswith('norm'):
        leaves[f'{block}/{ours}/scale'] = _Leaf(f'{at}{name}.weight')
      else:
        leaves[f'{block}/{ours}/kernel'] = _Leaf(f'{at}{name}.weight', True)
        if module.biases and ours in ('query', 'key', 'value'):
          leaves[f'{block}/{ours}/bias'] = _Leaf(f'{at}{name}.bias')
  return module, leaves, spare


_HUGGING_FACE = {
  'norm1': 'input_layernorm',
  'query': 'self_attn.q_proj',
  'key': 'self_attn.k_proj',
  'value': 'self_attn.v_proj',
  'out': 'self_attn.o_proj',
  'norm2': 'post_attention_layernorm',
  'gate': 'mlp.gate_proj',
  'up': 'mlp.up_proj',
  'down': 'mlp.down_proj',
}
_GGUF = {
  'norm1': 'attn_norm',
  'query': 'attn_q',
  'key': 'attn_k',
  'value': 'attn_v',
  'out': 'attn_output',
  'norm2': 'ffn_norm',
  'gate': 'ffn_gate',
  'up': 'ffn_up',
  'down': 'ffn_down',
}


def _dense(ours: str, theirs: str) -> dict[str, _Leaf]:
  return {f'{ours}/kernel': _Leaf(f'{theirs}.weight', True), f'{ours}/bias': _Leaf(f'{theirs}.bias')}


def _prefix(names: set[str], first: str, what: str) -> str:
  """What stands before all names of a model, seen at its embedding."""
  found = [name.removesuffix(first) for name in names if name == first or name.endswith(f'.{first}')]
  if len(found) != 1:
    why = f'{len(found)} of them' if found else f'none; nearest: {nearest(first, names)}'
    raise ValueError(f'the weights of {what} hold one {first!r}, under any prefix; got {why}')
  return found[0]


def _shape(tensors: Mapping[str, Any], name: str) -> tuple[int, ...]:
  return tensors.shape(name) if hasattr(tensors, 'shape') else np.shape(tensors[name])


def _same(tensors: Mapping[str, Any], name: str, table: str) -> str:
  """Why a head that is said to be the embedding is left out; it is looked at."""
  if not np.array_equal(np.asarray(tensors[name]), np.asarray(tensors[table])):
    raise ValueError(f'the config says tie_word_embeddings, and {name!r} differs from {table!r}: give tied=False')
  return 'the embedding itself'
