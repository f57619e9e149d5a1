"""jaxlite: training for people with limited hardware, in JAX.

The public names. Each is imported from its module when it is first used (PEP 562), so that importing jaxlite
costs next to nothing and a single transform needs nothing but jax and optax.
"""

from __future__ import annotations

import importlib
from typing import Any

from jaxlite.version import __version__ as __version__

_WHERE = {
  'adapters': ('adapt', 'from_equinox', 'from_function', 'from_haiku', 'from_keras', 'from_linen', 'from_nnx'),
  'config': ('Config', 'Duration'),
  'contract': ('Context', 'Hook', 'Last', 'Model', 'Network', 'Recipe', 'Selective', 'Side', 'chain', 'reparam'),
  'data.augment': ('augment', 'crop', 'cutmix', 'cutout', 'flip', 'mixup', 'shift'),
  'graph.cpu.replace': ('for_cpu',),
  'graph.inputs': ('calibrate',),
  'loop': ('train',),
  'losses': ('class_weights', 'cross_entropy', 'weighted_cross_entropy'),
  'metrics': ('classification',),
  'runs': ('load',),
  'step': ('Train', 'TrainState', 'ensemble_axes', 'train_step', 'went_nan'),
  'transforms.accumulate': ('accumulate',),
  'transforms.activations': ('dynamic_ranges', 'ema_ranges', 'frozen_ranges'),
  'transforms.allocate': ('erk', 'global_', 'uniform'),
  'transforms.attention_transfer': ('attention_transfer',),
  'transforms.average': ('average',),
  'transforms.calibrate': ('by_min_max', 'by_mse', 'by_percentile'),
  'transforms.dist': ('dist',),
  'transforms.distill': ('distill',),
  'transforms.dkd': ('dkd',),
  'transforms.freeze': ('freeze',),
  'transforms.hint': ('hint',),
  'transforms.hold': ('hold',),
  'transforms.kd': ('kd',),
  'transforms.lsq': ('lsq',),
  'transforms.masks': ('apply_masks',),
  'transforms.normalize': ('normalize',),
  'transforms.penalties': ('l2', 'label_smoothing'),
  'transforms.phases': ('next_phase', 'unfreezing'),
  'transforms.plateau': ('plateau',),
  'transforms.proximal': ('l1_proximal',),
  'transforms.prune': ('prune',),
  'transforms.ptq': ('ptq',),
  'transforms.quantize': ('coverage', 'fake_quant', 'observe', 'quantize', 'weight_bits'),
  'transforms.rewind': ('rewind',),
  'transforms.rigl': ('rigl', 'set_', 'unreset'),
  'transforms.rkd': ('rkd',),
  'transforms.sam': ('sam',),
  'transforms.schedules': ('warmup_cosine',),
  'transforms.self_distill': ('self_distill',),
  'transforms.sparsegpt': ('sparsegpt',),
  'transforms.sparsify': ('sparsify',),
  'transforms.straight': ('straight_through',),
  'transforms.structure': ('block', 'channel', 'element', 'n_m', 'per_output'),
  'transforms.swa': ('refresh_statistics', 'swa'),
}
# Families of small functions whose names mean something only beside each other: `jl.scores.wanda`.
_FAMILIES = {'schedules': 'transforms.schedules', 'scores': 'transforms.scores', 'sparsity': 'transforms.sparsity'}
_MODULE = {name: module for module, names in _WHERE.items() for name in names}
__all__ = sorted([*_MODULE, *_FAMILIES, '__version__'])


def __getattr__(name: str) -> Any:
  if name in _FAMILIES:
    value = importlib.import_module(f'jaxlite.{_FAMILIES[name]}')
  elif name in _MODULE:
    value = getattr(importlib.import_module(f'jaxlite.{_MODULE[name]}'), name)
  else:
    raise AttributeError(f'jaxlite has no {name!r}')
  globals()[name] = value
  return value


def __dir__() -> list[str]:
  return __all__
