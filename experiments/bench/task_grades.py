"""What the task table measures: scikit-learn and NumPy on the host, the same for both sides, so that nobody grades
himself.

A grade takes the labels of a split and what a model says of it, and gives numbers by the names that jaxlite's own
metrics have. Ranks, counts and errors are scikit-learn's; bits per byte, which it lacks, are summed in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np


class Said(NamedTuple):
  """Labels, and what a model says.

  Attributes:
    labels: int or float [N, ...].
    outputs: numbers in units, probabilities of the positive class or of each label, or logits [..., classes].
  """

  labels: np.ndarray
  outputs: np.ndarray


Grade = Callable[[Said, Said], dict[str, float]]  # (validation, test) -> grades of the test split


def regression(validation: Said, test: Said) -> dict[str, float]:
  """Root mean squared error in units, and R2."""
  from sklearn.metrics import r2_score, root_mean_squared_error

  pair = test.labels.astype(np.float64).reshape(-1), test.outputs.astype(np.float64).reshape(-1)
  return {'rmse': float(root_mean_squared_error(*pair)), 'r2': float(r2_score(*pair))}


def binary(recall: float) -> Grade:
  """Average precision; precision and recall at the threshold that validation chose for a wanted recall."""

  def grade(validation: Said, test: Said) -> dict[str, float]:
    from sklearn.metrics import average_precision_score, precision_recall_curve, precision_score, recall_score

    precisions, recalls, thresholds = precision_recall_curve(validation.labels, validation.outputs)
    enough = recalls[:-1] >= recall
    best = max(np.flatnonzero(enough), key=lambda at: (precisions[at], recalls[at]))
    called = test.outputs >= thresholds[best]
    return {
      'average_precision': float(average_precision_score(*test)),
      'precision': float(precision_score(test.labels, called, zero_division=0)),
      'recall': float(recall_score(test.labels, called)),
    }

  return grade


def multi_label(validation: Said, test: Said) -> dict[str, float]:
  """Average precision and ROC-AUC, means over labels."""
  from sklearn.metrics import average_precision_score, roc_auc_score

  return {
    'average_precision_macro': float(average_precision_score(*test, average='macro')),
    'roc_auc_macro': float(roc_auc_score(*test, average='macro')),
  }


def classification(validation: Said, test: Said) -> dict[str, float]:
  """Accuracy."""
  from sklearn.metrics import accuracy_score

  return {'accuracy': float(accuracy_score(test.labels, test.outputs.argmax(-1)))}


def language(validation: Said, test: Said) -> dict[str, float]:
  """Bits per byte; each token is a byte, -1 where there is none."""
  total, count = 0.0, 0
  for labels, logits in zip(test.labels, test.outputs, strict=True):
    known = labels >= 0
    logits, labels = logits[known].astype(np.float64), labels[known]
    top = logits.max(axis=-1, keepdims=True)
    log_of_sum = top[:, 0] + np.log(np.exp(logits - top).sum(axis=-1))
    total += float((log_of_sum - logits[np.arange(len(labels)), labels]).sum())
    count += len(labels)
  return {'bits_per_byte': total / count / math.log(2)}


def segmentation(validation: Said, test: Said) -> dict[str, float]:
  """Mean intersection over union of the classes, and the share of pixels that are right."""
  from sklearn.metrics import accuracy_score, jaccard_score

  pair = test.labels.reshape(-1), test.outputs.argmax(-1).reshape(-1)
  return {'mean_iou': float(jaccard_score(*pair, average='macro')), 'accuracy': float(accuracy_score(*pair))}


def agree(own: Any, grades: dict[str, float], tolerance: float = 1e-5) -> None:
  """Raises where a run's own metrics are not these grades, up to the rounding of two compiled programs."""
  for name, value in grades.items():
    if not math.isclose(own[name], value, rel_tol=tolerance, abs_tol=tolerance):
      raise AssertionError(f'jaxlite says {name} {own[name]!r}; of the same predictions scikit-learn says {value!r}')
