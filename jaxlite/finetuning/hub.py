"""Weights by the name of a repository on the Hugging Face hub, where the machine is online or has them in its cache."""

from __future__ import annotations

import re
from pathlib import Path

from jaxlite import errors

_NAME = re.compile(r'hf://([\w.-]+/[\w.-]+)(?:@([\w./-]+?))?(?::(.+))?$')
_SAFE = ['*.safetensors', '*.safetensors.index.json', '*.json', 'tokenizer*', '*.txt']
_OTHERS = ['*.bin', '*.bin.index.json', '*.pth', '*.pt', '*.gguf', '*.h5', '*.keras', '*.msgpack', '*.npz', *_SAFE]
_WEIGHTS = ('.safetensors', '.bin', '.pth', '.pt', '.gguf', '.h5', '.keras', '.msgpack', '.npz')


def is_hub(source: object) -> bool:
  """Tells whether a source is the name of a repository: 'hf://owner/name'."""
  return isinstance(source, str) and source.startswith('hf://')


def fetch(source: str) -> Path:
  """Returns the folder or file on this machine that a hub name means, downloaded if it is not in the cache.

  Args:
    source: 'hf://owner/name', with a branch, tag or commit behind '@' and one file behind ':', if wanted. Safetensors
      are taken where there are some; other formats, which are several copies of the same mostly, only without them.

  Raises:
    ImportError: huggingface_hub is not installed.
    FileNotFoundError: the repository cannot be reached, and is not in the cache.
    ValueError: it is no name of a repository.
  """
  found = _NAME.match(source)
  if found is None:
    raise ValueError(f"a repository is 'hf://owner/name', 'hf://owner/name@revision' or with ':file'; got {source!r}")
  errors.need('a name on the hub', 'huggingface_hub')
  import huggingface_hub

  name, revision, file = found.groups()
  try:
    if file:
      return Path(huggingface_hub.hf_hub_download(name, file, revision=revision))
    for patterns in (_SAFE, _OTHERS):
      folder = Path(huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=patterns))
      if any(path.name.endswith(_WEIGHTS) for path in folder.iterdir()):
        return folder
  except Exception as error:  # of its many kinds, and of the network's
    told = (str(error).strip().splitlines() or [''])[0][:160]
    raise FileNotFoundError(
      f'{source} is not reached and not in the cache ({type(error).__name__}: {told}): check the name and the network, '
      'or give the path of a download'
    ) from None
  raise FileNotFoundError(f'{source} holds no weights that are read ({", ".join(_WEIGHTS)})')
