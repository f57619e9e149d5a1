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
  """Returns the Record that a checkpoint holds; what a newer version has added to it is left out.

  Raises:
    ValueError: it is none that a run writes.

  >>> recorded({'run': 'a', 'stale': 3}).stale
  3
  """
  known = {field.name for field in dataclasses.fields(Record)}
  record = Record(**{name: value for name, value in loop.items() if name in known})
  if not _is_plain(record):
    raise ValueError(
      'what the checkpoint remembers of its loop has another shape than was ever written: put back a copy, or start '
      'again with fresh=True'
    )
  return record


def _is_plain(record: Record) -> bool:
  for field in dataclasses.fields(Record):
    value = getattr(record, field.name)
    if field.name == 'best':
      if not (value is None or type(value) in (int, float)):
        return False
      continue
    kind = type(getattr(Record(), field.name))
    if type(value) is not kind and not (kind is float and type(value) is int):
      return False
    if kind in (int, float) and not value >= 0:
      return False
  numbers = all(isinstance(one, dict) and all(type(n) in (int, float) for n in one.values()) for one in record.pending)
  log, began = record.log, record.began
  chunks = log.get('chunks', [])
  texts = isinstance(chunks, list) and all(isinstance(one, str) for one in (*chunks, log.get('tail', '')))
  texts = texts and (not log or {'chunks', 'tail'} <= set(log))
  parts = all(isinstance(began.get(name), dict) for name in ('config', 'versions', 'data', 'programs') if began)
  return numbers and texts and (parts or set(began) == {'config'}) and isinstance(began.get('values', ''), str)
