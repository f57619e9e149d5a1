"""What the loop itself remembers, saved with every checkpoint."""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass
class Record:
  """What the loop itself remembers; saved with every checkpoint.

  Attributes:
    run: the id of the run, which its files bear too; '' in checkpoints of older versions.
    log_bytes: length of metrics.jsonl.
    log: what puts it together again, see `Records.keep`.
    rewrites: the text of rewrites.json, without which other forms might be chosen; '' where there is none.
    logged: the last step whose training point is written.
    evaluated: the last step whose evaluation is written.
    pending: training metrics since the last point, as plain numbers.
    best: best validation metric, larger is better; None before the first.
    best_step: where it was reached.
    stale: evaluations since.
    stopped: early stopping has ended the run.
    seconds: spent training, over all starts.
    pace: steps per dispatch, at most; 0 until that was chosen.
    data: fingerprint of the data.
    machine: what equal bits depend on.
    began: what the run is known by, see `identity`; empty in checkpoints of older versions.
  """

  run: str = ''
  log_bytes: int = 0
  log: dict[str, Any] = dataclasses.field(default_factory=dict)
  rewrites: str = ''
  logged: int = 0
  evaluated: int = 0
  pending: list[dict[str, float]] = dataclasses.field(default_factory=list)
  best: float | None = None
  best_step: int = 0
  stale: int = 0
  stopped: bool = False
  seconds: float = 0.0
  pace: int = 0
  data: str = ''
  machine: dict[str, Any] = dataclasses.field(default_factory=dict)
  began: dict[str, Any] = dataclasses.field(default_factory=dict)


def recorded(loop: dict[str, Any]) -> Record:
  """Returns the Record that a checkpoint holds; what a newer version has added to it is left out."""
  known = {field.name for field in dataclasses.fields(Record)}
  return Record(**{name: value for name, value in loop.items() if name in known})
