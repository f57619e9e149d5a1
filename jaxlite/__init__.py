"""jaxlite: training for people with limited hardware, in JAX.

The public names. At the top stand those that most people need; the others are in their rooms: `jl.pruning`,
`jl.quantization`, `jl.distillation`, `jl.optim`, `jl.tasks`, `jl.data`, `jl.models`. Each is imported when it is first
used (PEP 562), so that importing jaxlite costs next to nothing and a single transform needs nothing but jax and optax.
"""

from __future__ import annotations

import importlib
import warnings
from typing import TYPE_CHECKING, Any

from jaxlite.version import __version__ as __version__

if TYPE_CHECKING:  # what the tables below say, for type checkers and editors
  from jaxlite import (
    checkpoint,
    contract,
    data,
    diagnosis,
    distillation,
    finetuning,
    models,
    optim,
    pruning,
    quantization,
    report,
    step,
    tasks,
    tuning,
  )
  from jaxlite.adapters import (
    adapt,
    from_equinox,
    from_function,
    from_haiku,
    from_keras,
    from_linen,
    from_nnx,
    give_back,
  )
  from jaxlite.config.duration import Duration
  from jaxlite.config.schema import Config
  from jaxlite.contract import Hook, Model, Network, Recipe, chain, reparam
  from jaxlite.cpu.replace import for_cpu
  from jaxlite.deployment.deploy import deploy
  from jaxlite.deployment.load import load
  from jaxlite.deployment.packed.file import unpack
  from jaxlite.deployment.shrink import shrink
  from jaxlite.distillation import distill, hint
  from jaxlite.optim import accumulate, augment, average, freeze
  from jaxlite.pruning import hold, prune, rigl
  from jaxlite.quantization import coverage, fake_quant, lsq, ptq, quantize
  from jaxlite.run.batch_size import batch_size
  from jaxlite.run.cross_validation import cross_validate
  from jaxlite.run.diagnosing import diagnose
  from jaxlite.run.finetune import FineTune, finetune
  from jaxlite.run.loop import train
  from jaxlite.run.lr_range import lr_range
  from jaxlite.run.planning import plan
  from jaxlite.run.tune import tune
  from jaxlite.step.train_step import train_step
  from jaxlite.tasks.losses import cross_entropy

_WHERE = {
  'adapters': (
    'adapt',
    'from_equinox',
    'from_function',
    'from_haiku',
    'from_keras',
    'from_linen',
    'from_nnx',
    'give_back',
  ),
  'config.duration': ('Duration',),
  'config.schema': ('Config',),
  'contract': ('Hook', 'Model', 'Network', 'Recipe', 'chain', 'reparam'),
  'cpu.replace': ('for_cpu',),
  'deployment.deploy': ('deploy',),
  'deployment.load': ('load',),
  'deployment.packed.file': ('unpack',),
  'deployment.shrink': ('shrink',),
  'distillation': ('distill', 'hint'),
  'optim': ('accumulate', 'augment', 'average', 'freeze'),
  'pruning': ('hold', 'prune', 'rigl'),
  'quantization': ('coverage', 'fake_quant', 'lsq', 'ptq', 'quantize'),
  'run.batch_size': ('batch_size',),
  'run.cross_validation': ('cross_validate',),
  'run.diagnosing': ('diagnose',),
  'run.finetune': ('FineTune', 'finetune'),
  'run.loop': ('train',),
  'run.lr_range': ('lr_range',),
  'run.planning': ('plan',),
  'run.tune': ('tune',),
  'step.train_step': ('train_step',),
  'tasks.losses': ('cross_entropy',),
}
_ROOMS = (
  'checkpoint',
  'contract',
  'data',
  'diagnosis',
  'distillation',
  'finetuning',
  'models',
  'optim',
  'pruning',
  'quantization',
  'report',
  'step',
  'tasks',
  'tuning',
)
# Names of 0.1 that moved into a room: they work for one version, with a warning that names the new place.
_MOVED = {
  'contract': ('Context', 'Last', 'Selective', 'Side'),
  'distillation': ('attention_transfer', 'dist', 'dkd', 'kd', 'rkd', 'self_distill'),
  'optim': (
    *('crop', 'cutmix', 'cutout', 'flip', 'l1_proximal', 'l2', 'label_smoothing', 'mixup', 'next_phase', 'normalize'),
    *('plateau', 'refresh_statistics', 'sam', 'schedules', 'shift', 'swa', 'unfreezing', 'warmup_cosine'),
  ),
  'pruning': (
    *('apply_masks', 'block', 'channel', 'element', 'erk', 'global_', 'n_m', 'per_output', 'rewind', 'scores', 'set_'),
    *('sparsegpt', 'sparsify', 'straight_through', 'uniform', 'unreset'),
  ),
  'quantization': (
    *('by_min_max', 'by_mse', 'by_percentile', 'dynamic_ranges', 'ema_ranges', 'frozen_ranges', 'observe'),
    'weight_bits',
  ),
  'step': ('Train', 'TrainState', 'ensemble_axes', 'went_nan'),
  'tasks': ('class_weights', 'weighted_cross_entropy'),
}
_RENAMED = {
  'calibrate': ('pruning', 'gather_statistics'),
  'classification': ('tasks', 'classification_metrics'),
  'sparsity': ('pruning', 'sparsity_schedules'),
}
_MODULE = {name: module for module, names in _WHERE.items() for name in names}
_OLD = {name: (room, name) for room, names in _MOVED.items() for name in names} | _RENAMED
__all__ = [
  'Config',
  'Duration',
  'FineTune',
  'Hook',
  'Model',
  'Network',
  'Recipe',
  '__version__',
  'accumulate',
  'adapt',
  'augment',
  'average',
  'batch_size',
  'chain',
  'checkpoint',
  'contract',
  'coverage',
  'cross_entropy',
  'cross_validate',
  'data',
  'deploy',
  'diagnose',
  'diagnosis',
  'distill',
  'distillation',
  'fake_quant',
  'finetune',
  'finetuning',
  'for_cpu',
  'freeze',
  'from_equinox',
  'from_function',
  'from_haiku',
  'from_keras',
  'from_linen',
  'from_nnx',
  'give_back',
  'hint',
  'hold',
  'load',
  'lr_range',
  'lsq',
  'models',
  'optim',
  'plan',
  'prune',
  'pruning',
  'ptq',
  'quantization',
  'quantize',
  'reparam',
  'report',
  'rigl',
  'shrink',
  'step',
  'tasks',
  'train',
  'train_step',
  'tune',
  'tuning',
  'unpack',
]


def __getattr__(name: str) -> Any:
  if name in _OLD:
    room, new = _OLD[name]
    warnings.warn(f'jaxlite.{name} is now jaxlite.{room}.{new}', DeprecationWarning, stacklevel=2)
    return getattr(importlib.import_module(f'jaxlite.{room}'), new)
  if name in _ROOMS:
    return importlib.import_module(f'jaxlite.{name}')
  if name not in _MODULE:
    raise AttributeError(f'jaxlite has no {name!r}')
  value = getattr(importlib.import_module(f'jaxlite.{_MODULE[name]}'), name)
  globals()[name] = value
  return value


def __dir__() -> list[str]:
  return list(__all__)
