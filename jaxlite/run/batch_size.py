"""Which batch size: what each would need in memory and take in time, forecast and not tried until something dies."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from jaxlite.config.reads import Reads, watched
from jaxlite.config.schema import Config, validate
from jaxlite.errors import ConfigError
from jaxlite.host import streams
from jaxlite.host.files import expanded
from jaxlite.planning.plan import FITS, Verdict, mib, spoken
from jaxlite.run.foreseen import foreseen
from jaxlite.run.jobs import job_of
from jaxlite.run.setup import dataset_of, prepare

_FINER = 3  # sizes that are looked at between the last that fits and the first that does not
_WORTH = 0.1  # of an epoch's time: a larger size that saves less is not worth its steps


class BatchSize(NamedTuple):
  """One size.

  Attributes:
    size: examples a step.
    verdict: on its memory; None where that is not known.
    step: seconds; None where this machine is not measured.
    epoch: seconds of an epoch's steps; likewise.
  """

  size: int
  verdict: Verdict | None
  step: float | None
  epoch: float | None


class BatchSizes(NamedTuple):
  """What sizes there are. `print` shows the table.

  Attributes:
    rows: by size.
    largest: that fits by the bound that 95 of 100 runs keep; None where none does.
    fastest: the smallest size whose epoch takes at most a tenth longer than the quickest; None where times are unknown.
    bounded: what the largest is bounded by, in words.
  """

  rows: tuple[BatchSize, ...]
  largest: int | None
  fastest: int | None
  bounded: str

  def __str__(self) -> str:
    cells = [['data.batch_size', 'memory, at most', 'of', '', 'step', 'epoch']]
    for row in self.rows:
      one = row.verdict
      memory = ['-', '-', 'not known'] if one is None else [mib(one.upper), mib(one.limit), one.word]
      cells.append([str(row.size), *memory, *('-' if time is None else spoken(time) for time in (row.step, row.epoch))])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ['  '.join(f'{cell:>{width}}' for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    if self.largest is None:
      return '\n'.join([*lines, f'none fits ({self.bounded}): --mode=plan --changes tries what to change'])
    lines.append(f'the largest that fits: --config.data.batch_size={self.largest} ({self.bounded})')
    if self.fastest is not None:
      said = f'an epoch is hardly quicker beyond --config.data.batch_size={self.fastest}, and has fewer steps there'
      lines.append(f'{said}: scale optim.lr with the size')
    return '\n'.join(lines)

  def __repr__(self) -> str:
    return str(self)


def batch_size(
  config: Config,
  workdir: str | Path | None = None,
  *,
  model: Any = None,
  data: Any = None,
  say: Callable[[str], None] = print,
) -> BatchSizes:
  """Forecasts which batch sizes fit into this machine's memory, and what an epoch takes with each; trains nothing.

  Args:
    config: of the run; `data.batch_size` is what varies.
    workdir: of the run, for a teacher that lies beside it.
    model, data: as `jl.train` takes them.
    say: is told when this machine is measured, which takes some seconds once.

  Returns:
    The BatchSizes.

  Raises:
    ValueError: what `jl.train` would say of the arguments at the smallest size.

  >>> import numpy as np
  >>> import jaxlite as jl
  >>> data = np.zeros((400, 8), np.float32), np.arange(400) % 2
  >>> batch_size(jl.Config(name='x'), data=data, say=str).largest
  320
  """
  validate(config)
  say = streams.steady(say)
  folder = expanded(workdir).absolute() if workdir is not None else Path('.')
  own = Reads()
  loaded = dataset_of(watched(config, own), data)
  if 'data.batch_size' in own.paths:
    raise ConfigError('data.load reads data.batch_size, so the data would be others at each size: let it not')
  count = len(loaded.train.labels) if hasattr(loaded.train, 'labels') else 1 << 20
  parts = config.machine.micro_batches
  if count < parts:
    raise ConfigError(
      f'a batch has an example for each of machine.micro_batches={parts} at least; got {count} training examples: '
      'lower it'
    )

  def at(size: int) -> BatchSize:
    one = copy.copy(config)
    one.data = copy.copy(config.data)
    one.data.batch_size, one.runs = size, {}
    setup = prepare(one, folder, model, loaded)
    plan = foreseen(job_of(setup), config.name, say, measure=True)
    step = plan.durations.step.seconds if plan.durations is not None else None
    return BatchSize(size, plan.verdict, step, None if step is None else step * setup.plan.epoch)

  rows: dict[int, BatchSize] = {}
  size = parts * max(1, 8 // parts)
  while size < count and (not rows or _fits(rows[max(rows)])):
    rows[size] = at(size)
    size *= 2
  if not rows or _fits(rows[max(rows)]):
    last = count - count % parts
    rows[last] = at(last)
  low = max((size for size, row in rows.items() if _fits(row)), default=0)
  high = min((size for size, row in rows.items() if not _fits(row)), default=0)
  for _ in range(_FINER if low and high else 0):
    middle = (low + high) // 2 // (8 * parts) * 8 * parts
    if not low < middle < high:
      break
    rows[middle] = at(middle)
    low, high = (middle, high) if _fits(rows[middle]) else (low, middle)
  kept = tuple(rows[size] for size in sorted(rows))
  fits = [row for row in kept if _fits(row)]
  over = next((row.verdict.reason for row in kept if row.verdict is not None and not _fits(row)), '')
  bounded = over or f'all {count:,} training examples'
  quick = [row.epoch for row in fits if row.epoch is not None]
  fastest = next((row.size for row in fits if row.epoch is not None and row.epoch <= min(quick) * (1 + _WORTH)), None)
  return BatchSizes(kept, fits[-1].size if fits else None, fastest, bounded)


def _fits(row: BatchSize) -> bool:
  return row.verdict is None or row.verdict.word == FITS
