"""What is learned: losses, metrics, tables and pictures of a kind of task."""

from jaxlite.tasks.losses import class_weights, cross_entropy, weighted_cross_entropy
from jaxlite.tasks.metrics import Metrics, classification_metrics

__all__ = ['Metrics', 'class_weights', 'classification_metrics', 'cross_entropy', 'weighted_cross_entropy']
