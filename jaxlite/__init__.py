"""jaxlite: training for people with limited hardware, in JAX.

The public names. Each is imported from its module when it is first used (PEP 562), so that importing jaxlite
costs next to nothing and a single transform needs nothing but jax and optax.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from jaxlite.version import __version__ as __version__

if TYPE_CHECKING:  # the same names, for editors and type checkers
  from jaxlite.adapters import adapt, from_equinox, from_function, from_haiku, from_linen, from_nnx
  from jaxlite.config import Config, Duration
  from jaxlite.contract import Hook, Last, Model, Network, Recipe, chain, reparam
  from jaxlite.loop import load, train
  from jaxlite.losses import cross_entropy
  from jaxlite.step import Train, TrainState, ensemble_axes, train_step, went_nan
  from jaxlite.transforms.accumulate import accumulate
  from jaxlite.transforms.average import average
  from jaxlite.transforms.distill import distill, kd
  from jaxlite.transforms.freeze import freeze
  from jaxlite.transforms.penalties import l2, label_smoothing
  from jaxlite.transforms.prune import prune
  from jaxlite.transforms.quantize import coverage, fake_quant, quantize
  from jaxlite.transforms.schedules import warmup_cosine

_WHERE = {
  'adapters': ('adapt', 'from_equinox', 'from_function', 'from_haiku', 'from_linen', 'from_nnx'),
  'config': ('Config', 'Duration'),
  'contract': ('Context', 'Hook', 'Last', 'Model', 'Network', 'Recipe', 'Selective', 'Side', 'chain', 'reparam'),
  'loop': ('load', 'train'),
  'losses': ('cross_entropy',),
  'metrics': ('classification',),
  'step': ('Train', 'TrainState', 'ensemble_axes', 'train_step', 'went_nan'),
  'transforms.accumulate': ('accumulate',),
  'transforms.average': ('average',),
  'transforms.distill': ('distill', 'kd'),
  'transforms.freeze': ('freeze',),
  'transforms.penalties': ('l2', 'label_smoothing'),
  'transforms.prune': ('prune',),
  'transforms.quantize': ('coverage', 'fake_quant', 'quantize'),
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
