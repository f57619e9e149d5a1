"""A published text model in one call: weights, tokenizer, sentence embeddings, chats."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlite.adapters import from_linen
from jaxlite.contract import Network
from jaxlite.data.encoders import TextEncoder, as_texts
from jaxlite.data.pretrained_tokenizers import Chat
from jaxlite.data.sequences import pad
from jaxlite.data.tokenizers import SubwordTokenizer
from jaxlite.errors import whole
from jaxlite.finetuning.text_source import text_source
from jaxlite.models import Generated, TextNetwork, generate_cached, text_network

_STEP = 16  # batches are padded to a multiple of it, so that few lengths are compiled


class PretrainedText(NamedTuple):
  """A text model as it was published.

  Attributes:
    module: a `jaxlite.models.Bert` or `Decoder`.
    variables: {'params': ...}.
    tokenizer: the one it was trained with.
    length: the longest text that `encoder` leaves whole, in tokens.
    chat: the form of its chats; None for a model without one that is read.
    chat_error: why there is none.
    stop: ids of tokens that end a text.
    report: what became of each array: `TextNetwork`.
  """

  module: Any
  variables: dict[str, Any]
  tokenizer: SubwordTokenizer | None
  length: int
  chat: Chat | None
  chat_error: str
  stop: tuple[int, ...]
  report: TextNetwork

  @property
  def encoder(self) -> TextEncoder:
    """Texts to {'tokens', 'mask'} of `length`, for data sets and runs."""
    return TextEncoder(self._need_tokenizer(), self.length)

  @property
  def network(self) -> Network:
    """The model with its values: a teacher, or something to predict with."""
    encode = None if self.tokenizer is None else self.encoder
    return Network(from_linen(self.module), self.variables['params'], {}, encode)

  def embed(self, texts: Any, *, batch_size: int = 32) -> np.ndarray:
    """Returns the features of texts, float32[N, D]: vectors whose products tell likeness, where they are normalized.

    Longer texts than `length` are cut, which `encoder` would tell. Texts of like length are computed together.

    Args:
      texts: strings.
      batch_size: texts at a time.

    Raises:
      ValueError: something that is no string, a model without a tokenizer.
    """
    batch_size = whole(batch_size, 'embed: batch_size', least=1)
    tokenizer = self._need_tokenizer()
    ids = [tokenizer.cut(tokenizer.encode(text), self.length) for text in as_texts(texts)]
    order = sorted(range(len(ids)), key=lambda place: len(ids[place]))
    found = np.zeros((len(ids), self.module.width), np.float32)
    for start in range(0, len(order), batch_size):
      rows = order[start : start + batch_size]
      longest = max(len(ids[row]) for row in rows)
      size = min(max(-(-longest // _STEP) * _STEP, 1), self.length)
      empty: list[list[int]] = [[]] * (batch_size - len(rows))
      batch = pad([*(ids[row] for row in rows), *empty], size)
      found[rows] = np.asarray(_features(self.module)(self.variables, batch))[: len(rows)]
    return found

  def generate(self, prompts: Sequence[Any], steps: int, **how: Any) -> tuple[list[str], Generated]:
    """Continues texts or chats.

    Args:
      prompts: strings, which are continued as they are, or chats, lists of {'role', 'content'}, which are answered.
      steps: tokens to add to each, at most.
      **how: as `jaxlite.models.generate_cached` takes them; `stop` is that of the model where none is given.

    Returns:
      (what was added to each, without the token that ended it, and the record with tokens a second).

    Raises:
      ValueError: no texts, an encoder, a chat where the model has no form for it.
    """
    if isinstance(prompts, str | Mapping):
      raise ValueError(f'prompts are a list of texts or of chats; got one {type(prompts).__name__}: give [prompt]')
    tokenizer = self._need_tokenizer()
    stop = how.pop('stop', self.stop)
    ids = [tokenizer.encode(one) if isinstance(one, str) else self._chat_ids(tokenizer, one) for one in prompts]
    made = generate_cached(self.module, self.variables['params'], ids, steps, stop=stop, **how)
    ends = {stop} if hasattr(stop, '__index__') else {int(one) for one in stop}
    texts = [tokenizer.decode([one for one in new if one not in ends]) for new in made.new]
    return texts, made

  def _chat_ids(self, tokenizer: SubwordTokenizer, messages: Any) -> list[int]:
    if self.chat is None:
      raise ValueError(f'this model has no form of chats: {self.chat_error}')
    return self.chat.ids(tokenizer, messages)

  def _need_tokenizer(self) -> SubwordTokenizer:
    if self.tokenizer is None:
      raise ValueError('this model came without a tokenizer: give inputs as token ids, or a folder with tokenizer.json')
    return self.tokenizer

  def __repr__(self) -> str:
    count = sum(leaf.size for leaf in jax.tree.leaves(self.variables))
    return f'PretrainedText({type(self.module).__name__}, {count:,} numbers, {self.report!r})'


def pretrained_text(
  source: str | os.PathLike[str],
  *,
  classes: int | None = None,
  dtype: Any = None,
  length: int | None = None,
  key: jax.Array | None = None,
  **fields: Any,
) -> PretrainedText:
  """Opens a published text model: an encoder of BERT's kind or a decoder of Llama's.

  Args:
    source: a GGUF file; a folder, zip archive or repository ('hf://owner/name') with config.json, weights and
      tokenizer.json, as Hugging Face and sentence-transformers write it; or 'minilm' or 'smollm2', whose weights come
      with a package.
    classes: logits of a head on an encoder; None takes the source's own head, where it has one.
    dtype: what parameters are kept in: None or 'float32', 'bfloat16', 'float16', 'int8'.
    length: the longest text of `encoder`, in tokens; None takes what the files say, 512 at most.
    key: draws a fresh head.
    **fields: of the network, such as dropout=0.1 or pooling='first'.

  Returns:
    The model. Weights are mapped from the file and taken one after the other.

  Raises:
    FileNotFoundError, ImportError: nothing is there, the package is not installed.
    ValueError: weights that are not read, or do not fit their configuration.

  >>> pretrained_text('nowhere.gguf')  # doctest: +ELLIPSIS
  Traceback (most recent call last):
    ...
  FileNotFoundError: nowhere.gguf is not there: give a GGUF file, a folder or archive with config.json, ...
  """
  found = text_source(source)
  made = text_network(found.tensors, found.config, dtype=dtype, classes=classes, key=key, **found.fields | fields)
  module = made.module
  if found.tokenizer is not None and found.tokenizer.vocabulary > module.vocabulary:
    raise ValueError(
      f'{found.where}: the tokenizer has {found.tokenizer.vocabulary} ids and the embedding {module.vocabulary} rows: '
      'give the tokenizer of this model'
    )
  if length is None:
    length = min(found.length or 512, module.length)
  elif whole(length, 'length', least=1) > module.length:
    raise ValueError(f'{found.where}: this model was made for texts of {module.length} tokens; got length={length}')
  return PretrainedText(module, made.variables, found.tokenizer, length, found.chat, found.chat_error, found.stop, made)


@functools.lru_cache(maxsize=8)
def _features(module: Any) -> Callable[..., jax.Array]:
  def features(variables: Any, inputs: Any) -> jax.Array:
    return module.apply(variables, jax.tree.map(jnp.asarray, inputs), False, method='features')

  return jax.jit(features)
