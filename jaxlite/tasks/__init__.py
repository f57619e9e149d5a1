"""What is learned: losses, metrics, tables and pictures of a kind of task."""

from typing import Any

from jaxlite.tasks._classification import classification
from jaxlite.tasks.losses import class_weights, cross_entropy, weighted_cross_entropy
from jaxlite.tasks.metrics import Metrics, classification_metrics
from jaxlite.tasks.task import Task

__all__ = [
  'Metrics',
  'Task',
  'class_weights',
  'classification',
  'classification_metrics',
  'cross_entropy',
  'weighted_cross_entropy',
]


def named(name: str, facts: Any) -> Task | None:
  return classification() if name == 'classification' else None
