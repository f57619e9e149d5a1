"""What one run hands back: plain values, saved as JSON and shown again without the run."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np

from jaxlite.deployment.inventory import Layer, stored_bytes
from jaxlite.host.sealed import RUN, check_run, sealed_text, unsealed
from jaxlite.report import tables


@dataclasses.dataclass(repr=False)
class Result:
  """One finished run.

  Attributes:
    name: the run's name.
    metrics: on the test split, the numbers that the task measures.
    layers: every parameter array.
    seconds: spent training, over all starts.
    history: the points of metrics.jsonl: 'kind' ('train' or 'validation'), 'step', and numbers. They stay there: JSON
      of a Result leaves them out.
    task: what kind of task was learned.
    facts: what the task knows of the data and chose on validation: class names, units, thresholds.
    rows: the task's lines of the table: [label, metric, form] each.
    curve: [title, metric, form] of the validation curve beside the loss, or empty.
    examples: how many the test split has.
    interval: the metric that is a share of the examples, each counted once, so that it has an interval; else empty.
    evidence: arrays that tables and pictures were made of (a confusion matrix), as lists.
    tables: of the report, each rows of cells.
    figures: [file, caption] of the pictures that the task drew in the run's folder.
    command: the command line that made it.
    versions: package -> version.
    machine: what it ran on.
    notes: lines that the reader of the report should know.
    best_step: the step whose model was tested, the best by validation once its sparsity target was met.
    forecast: of what the run would need, and what it took: 'memory' in bytes, 'memory compiled' as it was told once the
      step was compiled, and 'time' in seconds, each a dict with 'forecast', 'actual', 'basis' and the bounds.
    packed: bytes of the network as a packed file (`jl.deploy`, format 'pack'), of all that it takes to run it; 0 where
      none could be written, or where that takes long.
    falls: metrics that are better when smaller; None in results of older versions.
    tested: what tells one test split from another, a hash; '' in results of older versions.
    right: which test examples were answered right, bits in base64, where each counts once; else ''.
    mistakes: the test examples that were answered worst, worst first: texts by name, 'picture' a data URL (PNG).
    parts: what each part of the recipe did, [part, when, what it touched, what it could not] each (`ledger.account`).
  """

  name: str
  metrics: dict[str, float]
  layers: list[Layer] = dataclasses.field(default_factory=list)
  seconds: float = 0.0
  history: list[dict[str, Any]] = dataclasses.field(default_factory=list)
  task: str = ''
  facts: dict[str, Any] = dataclasses.field(default_factory=dict)
  rows: list[list[str]] = dataclasses.field(default_factory=list)
  curve: list[str] = dataclasses.field(default_factory=list)
  examples: int = 0
  interval: str = ''
  evidence: dict[str, Any] = dataclasses.field(default_factory=dict)
  tables: list[list[list[str]]] = dataclasses.field(default_factory=list)
  figures: list[list[str]] = dataclasses.field(default_factory=list)
  command: str = ''
  versions: dict[str, str] = dataclasses.field(default_factory=dict)
  machine: dict[str, str] = dataclasses.field(default_factory=dict)
  notes: list[str] = dataclasses.field(default_factory=list)
  best_step: int | None = None
  packed: int = 0
  falls: list[str] | None = None
  tested: str = ''
  right: str = ''
  mistakes: list[dict[str, str]] = dataclasses.field(default_factory=list)
  parts: list[list[str]] = dataclasses.field(default_factory=list)
  forecast: dict[str, Any] = dataclasses.field(default_factory=dict)

  def __repr__(self) -> str:
    """Its table: what a notebook shows of a run, whose history alone may have a million points."""
    return tables.table([self])

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
    """Bytes of the packed file; where none was written a plain count of the parameters (`stored_bytes`)."""
    return self.packed or sum(
      stored_bytes(layer.size, layer.nonzero, layer.bits, layer.scales) for layer in self.layers
    )


def to_json(result: Result, run: str = '') -> str:
  """Writes a Result as JSON, with the id of the run that found it and without its history; NaN stays NaN. `from_json`
  reads it."""
  plain = dataclasses.asdict(dataclasses.replace(result, history=[]))
  del plain['history']
  plain['layers'] = [layer._asdict() for layer in result.layers]
  plain['evidence'] = {name: np.asarray(values).tolist() for name, values in result.evidence.items()}
  return sealed_text({RUN: run, **json.loads(json.dumps(plain, default=float))})


def from_json(text: str, run: str | None = None) -> Result:
  """Reads what `to_json` wrote.

  Args:
    text: what it returned.
    run: the id of the run that it must be of; None: of any.

  Raises:
    ValueError: it is not as it was written, or of another run.

  >>> result = Result('mine', {'accuracy': 0.5}, [Layer('w', 4, 2)])
  >>> from_json(to_json(result)) == result
  True
  """
  plain = unsealed(text)
  check_run(plain, run)
  plain.pop(RUN, None)
  try:
    return Result(**{**plain, 'layers': [Layer(**layer) for layer in plain['layers']]})
  except (KeyError, TypeError):
    raise ValueError('it holds no result') from None
