"""Starting from what others learned: weights of other formats and frameworks, read and put into any model.

`read` gives the arrays of a file by name, lazily and without running anything in it: safetensors, GGUF, PyTorch's
files (without PyTorch), npz.

`catalogue` lists pretrained models by what they are for; `pretrained` opens one for photographs with its values, its
preprocessing and its classes. Names load on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from jaxlite.finetuning.reading import read
from jaxlite.finetuning.weights import Weights, WeightsError

if TYPE_CHECKING:
  from jaxlite.finetuning.known_models import Catalogue, Entry, catalogue
  from jaxlite.finetuning.photographs import Pretrained, pretrained

_WHERE = {
  'known_models': ('Catalogue', 'Entry', 'catalogue'),
  'photographs': ('Pretrained', 'pretrained'),
}
_MODULE = {name: module for module, names in _WHERE.items() for name in names}
__all__ = [
  'Catalogue',
  'Entry',
  'Pretrained',
  'Weights',
  'WeightsError',
  'catalogue',
  'pretrained',
  'read',
]


def __getattr__(name: str) -> Any:
  if name not in _MODULE:
    raise AttributeError(f'jaxlite.finetuning has no {name!r}')
  return getattr(importlib.import_module(f'jaxlite.finetuning.{_MODULE[name]}'), name)


def __dir__() -> list[str]:
  return list(__all__)
