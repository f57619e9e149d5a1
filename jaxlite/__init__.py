"""jaxlite: training for people with limited hardware, in JAX.

The public names. Each is imported from its module when it is first used (PEP 562), so that importing jaxlite
costs next to nothing and a single transform needs nothing but jax and optax.
"""

from __future__ import annotations

import importlib
from typing import Any

from jaxlite.version import __version__ as __version__

_WHERE = {
  'adapters': ('adapt', 'from_equinox', 'from_function', 'from_haiku', 'from_linen', 'from_nnx'),
  'config': ('Config', 'Duration'),
  'contract': ('Context', 'Hook', 'Last', 'Model', 'Network', 'Recipe', 'Selective', 'Side', 'chain', 'reparam'),
  'loop': ('train',),
  'runs': ('load',),
  'losses': ('cross_entropy',),
  'metrics': ('classification',),
  'step': ('Train', 'TrainState', 'ensemble_axes', 'train_step', 'went_nan'),
  'transforms.accumulate': ('accumulate',),
  'transforms.average': ('average',),
  'transforms.distill': ('distill', 'kd'),
  'transforms.freeze': ('freeze',),
  'transforms.penalties': ('l2', 'label_smoothing'),
  'transforms.prune': ('prune',),
  'transforms.quantize': ('coverage', 'fake_quant', 'observe', 'quantize', 'weight_bits'),
  'transforms.schedules': ('warmup_cosine',),
  'transforms.normalize': ('normalize',),
  'data.augment': ('augment', 'cutout', 'flip', 'mixup', 'shift'),
}
_MODULE = {name: module for module, names in _WHERE.items() for name in names}
__all__ = sorted([*_MODULE, '__version__'])


def __getattr__(name: str) -> Any:
  if name not in _MODULE:
    raise AttributeError(f'jaxlite has no {name!r}')
  value = getattr(importlib.import_module(f'jaxlite.{_MODULE[name]}'), name)
  globals()[name] = value
  return value


def __dir__() -> list[str]:
  return __all__
