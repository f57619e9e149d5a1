"""What Optax leaves out: accumulation, averages, penalties, schedules, augmentation inside the step."""

from jaxlite.optim import schedules as schedules
from jaxlite.optim._accumulate import accumulate
from jaxlite.optim._adapters import load_adapter, save_adapter
from jaxlite.optim._augment import Augmentation, augment, crop, cutmix, cutout, flip, mixup, shift
from jaxlite.optim._average import average
from jaxlite.optim._color_jitter import color_jitter
from jaxlite.optim._freeze import freeze
from jaxlite.optim._lora import dora, lora, qlora
from jaxlite.optim._normalize import normalize
from jaxlite.optim._optax_states import evaluation_point, optax_account, refuse_unfit, rejected
from jaxlite.optim._penalties import l2, label_smoothing
from jaxlite.optim._plateau import observe_score, plateau
from jaxlite.optim._project import project
from jaxlite.optim._proximal import l1_proximal
from jaxlite.optim._rand_augment import OPERATIONS, rand_augment
from jaxlite.optim._remat import remat
from jaxlite.optim._resized_crop import random_resized_crop
from jaxlite.optim._sam import sam
from jaxlite.optim._spec_augment import spec_augment
from jaxlite.optim._swa import refresh_statistics, swa
from jaxlite.optim._unfreeze import next_phase, unfreezing
from jaxlite.optim.schedules import warmup_cosine

__all__ = [
  'OPERATIONS',
  'Augmentation',
  'accumulate',
  'augment',
  'average',
  'color_jitter',
  'crop',
  'cutmix',
  'cutout',
  'dora',
  'evaluation_point',
  'flip',
  'freeze',
  'l1_proximal',
  'l2',
  'label_smoothing',
  'load_adapter',
  'lora',
  'mixup',
  'next_phase',
  'normalize',
  'observe_score',
  'optax_account',
  'plateau',
  'project',
  'qlora',
  'rand_augment',
  'random_resized_crop',
  'refresh_statistics',
  'refuse_unfit',
  'rejected',
  'remat',
  'sam',
  'save_adapter',
  'schedules',
  'shift',
  'spec_augment',
  'swa',
  'unfreezing',
  'warmup_cosine',
]
