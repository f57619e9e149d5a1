"""Data: splits of arrays, or streams; where they come from, how they are batched, what encodes raw rows and texts.

Names load on first use, so that reading one of them never imports TensorFlow Datasets or scikit-learn.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
  'arrays': ('from_arrays',),
  'batches': ('batch_at', 'batches_at', 'eval_batches', 'steps_per_epoch'),
  'columns': ('Columns', 'attach'),
  'crossval': ('folds',),
  'dataset': ('Dataset', 'Split', 'make_dataset'),
  'encoders': ('TableEncoder', 'TextEncoder', 'load_encoder'),
  'logits': ('cache_logits',),
  'mask_folder': ('masked_pictures',),
  'mixtures': ('mix',),
  'paths': ('kind_of', 'open_path', 'path_of'),
  'picture_folder': ('pictures',),
  'pixels': ('PictureEncoder',),
  'pretrained_tokenizers': ('Chat', 'chat_form', 'gguf_tokenizer'),
  'principal_components': ('pca',),
  'projection': ('Projection',),
  'quality_report': ('Quality', 'quality'),
  'random_projections': ('distance_error', 'johnson_lindenstrauss', 'random_projection'),
  'reduction': ('reduce',),
  'selection': ('Importance', 'mutual_information', 'permutation_importance', 'select'),
  'sequences': ('Windows', 'pad', 'windows'),
  'sound_encoder': ('SoundEncoder',),
  'sound_folder': ('sounds',),
  'sources': ('load',),
  'spectra': ('log_mel', 'read_wav', 'resampled'),
  'streams': ('Stream', 'from_iterable', 'stream'),
  'tables': ('from_table',),
  'text_files': ('labeled_texts',),
  'texts': ('from_text', 'from_texts'),
  'tokenizers': ('ByteTokenizer', 'CharTokenizer', 'SubwordTokenizer', 'WordTokenizer', 'load_tokenizer'),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
  if name not in _HOME:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}; it has {", ".join(__all__)}')
  return getattr(importlib.import_module(f'{__name__}.{_HOME[name]}'), name)


def __dir__() -> list[str]:
  return __all__
