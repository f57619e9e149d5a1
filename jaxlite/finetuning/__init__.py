"""Starting from what others learned: weights of other formats and frameworks, read and put into any model.

`read` gives the arrays of a file by name, lazily and without running anything in it: safetensors, GGUF, PyTorch's
files (without PyTorch), Keras's, Flax's msgpack, npz, checkpoints of Orbax, our own runs and packed files.
`load_weights` puts them into a model of any framework, and tells what became of each array.

`catalogue` lists pretrained models by what they are for; `pretrained` opens one for photographs with its values, its
preprocessing and its classes.

`backbone` takes the head off a network of any framework; `cached_features` computes what it gives once; `fit_probe`
solves a new head on that, `with_head` puts it on. Whether features suit labels say `logme`, `h_score`,
`nearest_neighbors` and `linear_probe`; `rank` asks them of several networks. `begin` and `recipe` are what
`jl.finetune` trains. `pretrained_text` opens a published text model with its tokenizer. Names load on first use.

Reading, from the ground: weights.py is the lazy mapping that every reader gives; `*_form.py` read one format each
(zip_file.py the archives around them, torch_pickle.py tables of tensors, gguf_blocks.py blocks of few bits); folders.py
and hub.py know where files lie; reading.py picks the reader. Filling: names.py and keras_names.py say which names mean
the same, program.py what a model's program does with each leaf, axes.py how stored axes become those; matching.py
judges, and loading.py fills the model.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from jaxlite.finetuning.reading import read
from jaxlite.finetuning.weights import Weights, WeightsError

if TYPE_CHECKING:
  from jaxlite.finetuning.account import Report, Row
  from jaxlite.finetuning.choice import Choice, choose
  from jaxlite.finetuning.entries import Entry
  from jaxlite.finetuning.features import cached_features, feature_data
  from jaxlite.finetuning.head import Backbone, backbone, with_head
  from jaxlite.finetuning.known_models import Catalogue, catalogue
  from jaxlite.finetuning.loading import Loaded, load_weights
  from jaxlite.finetuning.photographs import Pretrained, pretrained
  from jaxlite.finetuning.probe import Probe, fit_probe
  from jaxlite.finetuning.ranking import Ranking, rank, resized
  from jaxlite.finetuning.rates import rates_by_depth, thaw
  from jaxlite.finetuning.scores import Score, h_score, linear_probe, logme, nearest_neighbors
  from jaxlite.finetuning.start import Start, as_evaluated, begin, recipe
  from jaxlite.finetuning.text_models import PretrainedText, pretrained_text

_WHERE = {
  'account': ('Report', 'Row'),
  'choice': ('Choice', 'choose'),
  'features': ('cached_features', 'feature_data'),
  'head': ('Backbone', 'backbone', 'with_head'),
  'entries': ('Entry',),
  'known_models': ('Catalogue', 'catalogue'),
  'photographs': ('Pretrained', 'pretrained'),
  'loading': ('Loaded', 'load_weights'),
  'probe': ('Probe', 'fit_probe'),
  'ranking': ('Ranking', 'rank', 'resized'),
  'rates': ('rates_by_depth', 'thaw'),
  'scores': ('Score', 'h_score', 'linear_probe', 'logme', 'nearest_neighbors'),
  'start': ('Start', 'as_evaluated', 'begin', 'recipe'),
  'text_models': ('PretrainedText', 'pretrained_text'),
}
_MODULE = {name: module for module, names in _WHERE.items() for name in names}
__all__ = [
  'Backbone',
  'Catalogue',
  'Choice',
  'Entry',
  'Loaded',
  'Pretrained',
  'PretrainedText',
  'Probe',
  'Ranking',
  'Report',
  'Row',
  'Score',
  'Start',
  'Weights',
  'WeightsError',
  'as_evaluated',
  'backbone',
  'begin',
  'cached_features',
  'catalogue',
  'choose',
  'feature_data',
  'fit_probe',
  'h_score',
  'linear_probe',
  'load_weights',
  'logme',
  'nearest_neighbors',
  'pretrained',
  'pretrained_text',
  'rank',
  'rates_by_depth',
  'read',
  'recipe',
  'resized',
  'thaw',
  'with_head',
]


def __getattr__(name: str) -> Any:
  if name not in _MODULE:
    raise AttributeError(f'jaxlite.finetuning has no {name!r}')
  return getattr(importlib.import_module(f'jaxlite.finetuning.{_MODULE[name]}'), name)


def __dir__() -> list[str]:
  return list(__all__)
