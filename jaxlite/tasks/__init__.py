"""What is learned: losses, metrics, tables and pictures of a kind of task.

Names are imported when they are first used (PEP 562): a report draws with `tasks.figures` and needs no JAX for it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what the table below says, for type checkers and editors
  from jaxlite.tasks._binary import binary
  from jaxlite.tasks._classification import classification
  from jaxlite.tasks._language import language
  from jaxlite.tasks._multi_label import multi_label
  from jaxlite.tasks._named import BUILT_IN, is_built_in, named
  from jaxlite.tasks._regression import regression, units
  from jaxlite.tasks._segmentation import position_metrics, segmentation, sequence_labels
  from jaxlite.tasks.curves import (
    PrecisionRecallCurve,
    RocCurve,
    average_precision,
    precision_recall_curve,
    roc_auc,
    roc_curve,
  )
  from jaxlite.tasks.losses import class_weights, cross_entropy, weighted_cross_entropy
  from jaxlite.tasks.metrics import Metrics, classification_metrics, means
  from jaxlite.tasks.reliability import ReliabilityCurve, calibration_error, reliability_curve
  from jaxlite.tasks.task import Facts, Figure, Task
  from jaxlite.tasks.thresholds import Threshold, threshold_for

_WHERE = {
  '_binary': ('binary',),
  '_classification': ('classification',),
  '_language': ('language',),
  '_multi_label': ('multi_label',),
  '_named': ('BUILT_IN', 'is_built_in', 'named'),
  '_regression': ('regression', 'units'),
  '_segmentation': ('position_metrics', 'segmentation', 'sequence_labels'),
  'curves': (
    *('PrecisionRecallCurve', 'RocCurve', 'average_precision', 'precision_recall_curve', 'roc_auc', 'roc_curve'),
  ),
  'losses': ('class_weights', 'cross_entropy', 'weighted_cross_entropy'),
  'metrics': ('Metrics', 'classification_metrics', 'means'),
  'reliability': ('ReliabilityCurve', 'calibration_error', 'reliability_curve'),
  'task': ('Facts', 'Figure', 'Task'),
  'thresholds': ('Threshold', 'threshold_for'),
}
_MODULE = {name: module for module, names in _WHERE.items() for name in names}
__all__ = [
  'BUILT_IN',
  'Facts',
  'Figure',
  'Metrics',
  'PrecisionRecallCurve',
  'ReliabilityCurve',
  'RocCurve',
  'Task',
  'Threshold',
  'average_precision',
  'binary',
  'calibration_error',
  'class_weights',
  'classification',
  'classification_metrics',
  'cross_entropy',
  'is_built_in',
  'language',
  'means',
  'multi_label',
  'named',
  'position_metrics',
  'precision_recall_curve',
  'regression',
  'reliability_curve',
  'roc_auc',
  'roc_curve',
  'segmentation',
  'sequence_labels',
  'threshold_for',
  'units',
  'weighted_cross_entropy',
]


def __getattr__(name: str) -> Any:
  if name not in _MODULE:
    raise AttributeError(f'jaxlite.tasks has no {name!r}')
  value = getattr(importlib.import_module(f'jaxlite.tasks.{_MODULE[name]}'), name)
  globals()[name] = value
  return value


def __dir__() -> list[str]:
  return list(__all__)
