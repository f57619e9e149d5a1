"""A study for TensorBoard's hparams: one small event file a trial, with its values and what it came to."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from jaxlite.host.files import write_bytes
from jaxlite.run.protobuf import PREFIX, VERSION, double, embedded, float32, record_of, varint
from jaxlite.tuning import outcome
from jaxlite.tuning.kinds import Range, given, written
from jaxlite.tuning.ledger import DONE, FAILED

_PLUGIN = b'hparams'


def write(found: Any) -> None:
  """Writes what a study came to so far into `hparams/`, a folder a trial; `tensorboard --logdir` of it shows a table.

  Args:
    found: a `Tuned`.

  References:
    TensorBoard, plugins/hparams: api.proto and plugin_data.proto, https://github.com/tensorflow/tensorboard
  """
  for trial in found.trials:
    folder = Path(found.folder, 'hparams', f'{trial.number:04}')
    path = folder / f'{PREFIX}{max(1, int(trial.beat)):010}.study'
    if trial.state not in DONE or path.exists():
      continue
    folder.mkdir(parents=True, exist_ok=True)
    point = [(name, kind, given(kind, trial.given[name])) for name, kind in found.space.items()]
    pairs = b''.join(
      embedded(1, embedded(1, name.encode()) + embedded(2, _value(kind, at))) for name, kind, at in point
    )
    names = [goal.name for goal in found.goals] + [name for name in outcome.SIZES if name in trial.found]
    start = pairs + embedded(4, f'{trial.number:04}'.encode()) + double(5, trial.beat)
    end = b'\x08' + varint(2 if trial.state == FAILED else 1) + double(2, trial.beat + trial.seconds)
    scalars = {name: float(trial.found[name]) for name in dict.fromkeys(names) if name in trial.found}
    events = [
      double(1, time.time()) + embedded(3, VERSION),
      _event(_summary(b'_hparams_/session_start_info', embedded(3, start))),
      *(_event(embedded(1, embedded(1, name.encode()) + b'\x15' + float32(value))) for name, value in scalars.items()),
      _event(_summary(b'_hparams_/session_end_info', embedded(4, end))),
    ]
    write_bytes(path, b''.join(map(record_of, events)))


def _event(summary: bytes) -> bytes:
  return double(1, time.time()) + embedded(5, summary)


def _summary(tag: bytes, content: bytes) -> bytes:
  plugin = embedded(1, embedded(1, _PLUGIN) + embedded(2, content))
  return embedded(1, embedded(1, tag) + embedded(9, plugin))


def _value(kind: Any, value: Any) -> bytes:
  """A value as `google.protobuf.Value` has it."""
  if isinstance(value, bool):
    return b'\x20' + varint(int(value))
  if isinstance(kind, Range) or isinstance(value, int | float):
    return double(2, float(value))
  return embedded(3, written(value).encode())
