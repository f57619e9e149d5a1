"""The tokenizer that a GGUF file carries, and the form of chats that an instruct model was trained on, as data."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jaxlite.data.tokenizers import SubwordTokenizer

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r'\p{N}{1,3}', r'\p{N}')
_BYTE_LEVEL = {'type': 'ByteLevel', 'add_prefix_space': False, 'trim_offsets': True, 'use_regex': False}


def _split(pattern: str) -> dict[str, Any]:
  return {'type': 'Split', 'pattern': {'Regex': pattern}, 'behavior': 'Isolated', 'invert': False}


# What a text is cut by before byte pairs are merged, by the name that the file gives it.
_CUTS: dict[str, list[dict[str, Any]]] = {
  'gpt-2': [_split(_GPT2)],
  'smollm': [{'type': 'Digits', 'individual_digits': True}, _split(_GPT2)],
  'llama-bpe': [_split(_LLAMA3)],
  'qwen2': [_split(_QWEN2)],
}
_CONTROL, _OWN = 3, 4  # kinds of tokens that are matched in a text as they are


def gguf_tokenizer(about: Mapping[str, Any]) -> SubwordTokenizer:
  """Makes the tokenizer of a GGUF file from its vocabulary and merges.

  Byte-level byte pair encoding; other kinds are refused. Decoded, what was encoded is the text again, but for bytes
  that the vocabulary lacks (SmolLM2's: six control characters and some of rare scripts), which are left out.

  Args:
    about: the file's metadata (`jaxlite.finetuning.read(path).about`).

  Returns:
    The tokenizer; it adds a token at the beginning and at the end where the file says so. A file of Llama 3's kind that
    says nothing means one at the beginning.

  Raises:
    ValueError: another kind of tokenizer, entries that are missing or do not fit each other.

  >>> gguf_tokenizer({'tokenizer.ggml.model': 'bert'})  # doctest: +ELLIPSIS
  Traceback (most recent call last):
    ...
  ValueError: the tokenizer of a GGUF file is read where it is of bytes and merges, 'gpt2'; got 'bert': give a ...json
  """

  def of(name: str, default: Any = None) -> Any:
    return about.get(f'tokenizer.ggml.{name}', default)

  if of('model') != 'gpt2':
    raise ValueError(
      f"the tokenizer of a GGUF file is read where it is of bytes and merges, 'gpt2'; got {of('model')!r:.60}: give "
      'a tokenizer.json'
    )
  cut = of('pre', 'default')
  if cut not in _CUTS:
    raise ValueError(f'texts are cut as {", ".join(_CUTS)} say; this file says {cut!r:.60}: give a tokenizer.json')
  tokens, merges = (_strings(of(name), name) for name in ('tokens', 'merges'))
  kinds = list(of('token_type', [1] * len(tokens)))
  vocabulary = {token: number for number, token in enumerate(tokens)}
  if len(vocabulary) != len(tokens) or len(kinds) != len(tokens):
    raise ValueError(
      f'a vocabulary names each token once, with its kind; got {len(tokens)} tokens, {len(vocabulary)} of them '
      f'different, and {len(kinds)} kinds'
    )
  pairs = [merge.split(' ') for merge in merges]
  for place, pair in enumerate(pairs):
    if len(pair) != 2 or not {*pair, ''.join(pair)} <= vocabulary.keys():
      raise ValueError(f'a merge joins two tokens to a third; merge {place} is {merges[place]!r:.60}')
  added = [
    {
      'id': number,
      'content': token,
      'single_word': False,
      'lstrip': False,
      'rstrip': False,
      'normalized': False,
      'special': int(kinds[number]) == _CONTROL,
    }
    for token, number in vocabulary.items()
    if int(kinds[number]) in (_CONTROL, _OWN)
  ]
  first = of('bos_token_id') if of('add_bos_token', cut == 'llama-bpe') else None
  last = of('eos_token_id') if of('add_eos_token', False) else None
  for name, one in (('bos', first), ('eos', last)):
    if one is not None and not 0 <= int(one) < len(tokens):
      where = 'beginning' if name == 'bos' else 'end'
      raise ValueError(f'the token at the {where} is one of {len(tokens)}; got {name}_token_id={one!r:.60}')
  added_ids = [None if one is None else int(one) for one in (first, last)]
  special = added_ids != [None, None]
  made = {
    'version': '1.0',
    'added_tokens': added,
    'normalizer': None,
    'pre_tokenizer': {'type': 'Sequence', 'pretokenizers': [*_CUTS[cut], _BYTE_LEVEL]},
    'post_processor': _around(tokens, *added_ids) if special else None,
    'decoder': {'type': 'ByteLevel', 'add_prefix_space': True, 'trim_offsets': True, 'use_regex': True},
    'model': {
      'type': 'BPE',
      'unk_token': None,
      'ignore_merges': cut == 'llama-bpe',
      'vocab': vocabulary,
      'merges': pairs,
    },
  }
  return SubwordTokenizer(json.dumps(made), special=special)


def _strings(values: Any, name: str) -> list[str]:
  if isinstance(values, str) or not isinstance(values, Sequence) or not all(isinstance(one, str) for one in values):
    raise ValueError(f'a GGUF file with a tokenizer has tokenizer.ggml.{name}, a list of texts; got {values!r:.60}')
  return list(values)


def _around(tokens: Sequence[str], first: int | None, last: int | None) -> dict[str, Any]:
  """What adds a token before a text, after it, or both."""

  def token(number: int | None) -> list[dict[str, Any]]:
    return [] if number is None else [{'SpecialToken': {'id': tokens[number], 'type_id': 0}}]

  texts = [{'Sequence': {'id': 'A', 'type_id': 0}}, {'Sequence': {'id': 'B', 'type_id': 1}}]
  known = {tokens[one]: one for one in (first, last) if one is not None}
  return {
    'type': 'TemplateProcessing',
    'single': [*token(first), texts[0], *token(last)],
    'pair': [*token(first), *texts, *token(last)],
    'special_tokens': {name: {'id': name, 'ids': [number], 'tokens': [name]} for name, number in known.items()},
  }


class Chat(NamedTuple):
  """The form of a chat, ChatML: each turn between two tokens, its role on the first line. Data, not a program.

  Attributes:
    begin: the token before a turn.
    end: the token after it; a model ends its answer with it.
    system: what the system says where the messages do not begin with it; None is nothing.

  >>> print(Chat(system='Be brief.').text([{'role': 'user', 'content': 'Hi'}]))
  <|im_start|>system
  Be brief.<|im_end|>
  <|im_start|>user
  Hi<|im_end|>
  <|im_start|>assistant
  <BLANKLINE>
  """

  begin: str = '<|im_start|>'
  end: str = '<|im_end|>'
  system: str | None = None

  def text(self, messages: Sequence[Mapping[str, str]], *, answer: bool = True) -> str:
    """Returns a chat as one text, to look at: `ids` is what a model is to be given.

    Args:
      messages: [{'role': 'system' | 'user' | 'assistant', 'content': text}, ...].
      answer: whether the assistant's next turn is begun.

    Raises:
      ValueError: no messages, other keys or roles.
    """
    turns = ''.join(f'{self.begin}{role}\n{content}{self.end}\n' for role, content in self._turns(messages))
    return turns + f'{self.begin}assistant\n' * answer

  def ids(
    self, tokenizer: SubwordTokenizer, messages: Sequence[Mapping[str, str]], *, answer: bool = True
  ) -> list[int]:
    """Returns a chat as token ids; names of special tokens in a message stay text, so that none ends its own turn.

    Args:
      tokenizer: that of the model.
      messages: as `text` takes them.
      answer: whether the assistant's next turn is begun.

    Raises:
      ValueError: as `text`; a tokenizer that does not have the two tokens.
    """
    begin, end = tokenizer.id_of(self.begin), tokenizer.id_of(self.end)
    found: list[int] = []
    for role, content in self._turns(messages):
      found += [begin, *tokenizer.encode_plain(f'{role}\n{content}'), end, *tokenizer.encode_plain('\n')]
    return found + ([begin, *tokenizer.encode_plain('assistant\n')] if answer else [])

  def _turns(self, messages: Sequence[Mapping[str, str]]) -> list[tuple[str, str]]:
    if isinstance(messages, str | Mapping) or not messages:
      raise ValueError("a chat is a list of messages, {'role': 'user', 'content': text}; got " + f'{messages!r:.60}')
    turns = []
    for place, one in enumerate(messages):
      if not isinstance(one, Mapping) or set(one) != {'role', 'content'} or not isinstance(one['content'], str):
        raise ValueError(f"message {place} of a chat is no {{'role': ..., 'content': text}}; got {one!r:.80}")
      if one['role'] not in ('system', 'user', 'assistant'):
        raise ValueError(f'the role of message {place} is system, user or assistant; got {one["role"]!r:.60}')
      turns.append((one['role'], one['content']))
    if self.system is not None and turns[0][0] != 'system':
      turns.insert(0, ('system', self.system))
    return turns


_TAG = re.compile(r'(\{\{.*?\}\}|\{%.*?%\})', re.DOTALL)
_CHATML = re.compile(
  r'\{%for message in messages%\}'
  r"(?:\{%if loop\.first and messages\[0\]\['role'\]!='system'%\}"
  r"\{\{'<\|im_start\|>system\\n(?P<system>[^'{}\\]*)<\|im_end\|>\\n'\}\}\{%endif%\})?"
  r"\{\{'<\|im_start\|>'\+message\['role'\]\+'\\n'\+message\['content'\]\+'<\|im_end\|>'\+'\\n'\}\}"
  r"\{%endfor%\}\{%if add_generation_prompt%\}\{\{'<\|im_start\|>assistant\\n'\}\}\{%endif%\}"
)


def _tags(template: str) -> str | None:
  """The tags of a template, spaces that mean nothing taken out; None where text stands between them."""
  found, after = '', ''
  for place, part in enumerate(_TAG.split(template)):
    if place % 2 == 0:
      # Templates are rendered with trim_blocks: one line end after a block is dropped. Other text would be in the chat.
      if after == 'block':
        part = part.removeprefix('\n')
      if after == 'stripped':
        part = part.lstrip()
      rest = part
      continue
    if rest.strip() or (rest and part[2:3] != '-'):
      return None
    after = 'stripped' if part.endswith(('-%}', '-}}')) else 'block' if part.endswith('%}') else ''
    body = part[2:-2].removeprefix('-').removesuffix('-')
    pieces = re.split(r"('(?:[^'\\]|\\.)*')", body)
    bare = (re.sub(r'\s*(\W)\s*', r'\1', re.sub(r'\s+', ' ', one)) for one in pieces[::2])
    quoted = (one.replace('\n', '\\n') for one in [*pieces[1::2], ''])
    found += part[:2] + ''.join(one for pair in zip(bare, quoted, strict=True) for one in pair).strip() + part[-2:]
  return None if rest.strip() else found


def chat_form(template: str) -> Chat:
  """Returns the form of chats that a template of Jinja means, where it is ChatML. It is compared, never run.

  Args:
    template: a GGUF file's `tokenizer.chat_template`, or that of a tokenizer_config.json.

  Raises:
    ValueError: a template of another form.

  >>> one = "{{'<|im_start|>' + message['role'] + '\\\\n' + message['content'] + '<|im_end|>' + '\\\\n'}}"
  >>> last = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\\\n' }}{% endif %}"
  >>> chat_form("{% for message in messages %}" + one + "{% endfor %}" + last)
  Chat(begin='<|im_start|>', end='<|im_end|>', system=None)
  """
  found = _CHATML.fullmatch(_tags(str(template)) or '')
  if found is None:
    raise ValueError(
      f'the chat template is not ChatML, and templates are not run; got {str(template)[:60]!r}: write the chat by '
      'hand, or give a jaxlite.data.Chat'
    )
  return Chat(system=found.group('system'))
