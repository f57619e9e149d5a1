"""Distillation: a student learns from a teacher's logits, its features, or its own average."""

from jaxlite.distillation._attention_transfer import attention_transfer
from jaxlite.distillation._dist import dist
from jaxlite.distillation._distill import distill
from jaxlite.distillation._dkd import dkd
from jaxlite.distillation._hint import hint, mean_squared
from jaxlite.distillation._kd import kd
from jaxlite.distillation._rkd import rkd
from jaxlite.distillation._self_distill import self_distill
from jaxlite.distillation._teachers import check_teacher
from jaxlite.distillation._teachers import forward as teacher_outputs
from jaxlite.distillation._teachers import values_of as teacher_values

__all__ = [
  'attention_transfer',
  'check_teacher',
  'dist',
  'distill',
  'dkd',
  'hint',
  'kd',
  'mean_squared',
  'rkd',
  'self_distill',
  'teacher_outputs',
  'teacher_values',
]
