"""What one run hands back: plain values, saved as JSON and shown again without the run."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np

from jaxlite.deployment.inventory import Layer, stored_bytes


@dataclasses.dataclass
class Result:
  """One finished run.

  Attributes:
    name: the run's name.
    metrics: on the test split, as `tasks.classification_metrics` names them, without the confusion matrix.
    layers: every parameter array.
    seconds: spent training, over all starts.
    history: the points of metrics.jsonl: 'kind' ('train' or 'validation'), 'step', and numbers.
    confusion: [classes, classes] on the test split, labels in rows; empty where there is none.
    class_names: one a class, or empty.
    command: the command line that made it.
    versions: package -> version.
    machine: what it ran on.
    notes: lines that the reader of the report should know.
    best_step: the step whose model was tested, the best by validation once its sparsity target was met.
    parts: what each part of the recipe did, [part, when, what it touched, what it could not] each (`parts.account`).
  """

  name: str
  metrics: dict[str, float]
  layers: list[Layer] = dataclasses.field(default_factory=list)
  seconds: float = 0.0
  history: list[dict[str, Any]] = dataclasses.field(default_factory=list)
  confusion: list[list[float]] = dataclasses.field(default_factory=list)
  class_names: list[str] = dataclasses.field(default_factory=list)
  command: str = ''
  versions: dict[str, str] = dataclasses.field(default_factory=dict)
  machine: dict[str, str] = dataclasses.field(default_factory=dict)
  notes: list[str] = dataclasses.field(default_factory=list)
  best_step: int | None = None
  parts: list[list[str]] = dataclasses.field(default_factory=list)

  @property
  def parameters(self) -> int:
    """Number of parameters, zeros included."""
    return sum(layer.size for layer in self.layers)

  @property
  def sparsity(self) -> float:
    """The share of weights that are exactly zero; 0 where there is no weight."""
    weights = [layer for layer in self.layers if layer.weight]
    size = sum(layer.size for layer in weights)
    return sum(layer.size - layer.nonzero for layer in weights) / size if size else 0.0

  @property
  def bits(self) -> str:
    """Bits of a stored weight, '4 and 8' where they differ."""
    return ' and '.join(map(str, sorted({layer.bits for layer in self.layers if layer.weight})))

  @property
  def bytes(self) -> int:
    """Bytes of all parameters, packed (see `stored_bytes`)."""
    return sum(stored_bytes(layer.size, layer.nonzero, layer.bits, layer.scales) for layer in self.layers)


def to_json(result: Result) -> str:
  """Writes a Result as JSON; NaN stays NaN. `from_json` reads it."""
  plain = dataclasses.asdict(result)
  plain['layers'] = [layer._asdict() for layer in result.layers]
  plain['confusion'] = np.asarray(result.confusion, np.float64).tolist()
  return json.dumps(plain, default=float)


def from_json(text: str) -> Result:
  """Reads what `to_json` wrote.

  >>> result = Result('mine', {'accuracy': 0.5}, [Layer('w', 4, 2)])
  >>> from_json(to_json(result)) == result
  True
  """
  plain = json.loads(text)
  return Result(**{**plain, 'layers': [Layer(**layer) for layer in plain['layers']]})
