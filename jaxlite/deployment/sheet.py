"""What a deployment says of itself: a table, a page of text, JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxlite.deployment.accounting import Costs


class Written(NamedTuple):
  """One file, or why there is none.

  Attributes:
    format: 'onnx', 'stablehlo', ...
    path: of the file; '' where none was written.
    why: why there is none.
    bytes: of the file, as the file system says.
    arithmetic: what it multiplies, 'float32', 'int8' or both, 'int8/float32'; 'values' of a file without a program.
      What other runtimes make of a layer is theirs, but for LiteRT, whose files say it.
    apart: the largest difference of its answers from the network's: in units of the outputs.
    same: share of examples whose largest output is the network's.
    score: the task's metric of its answers; None where there is no label, or no program.
    latency: by batch size, (p50, p99) in milliseconds.
    memory: the most that its process held, in bytes, the runtime with it.
    met: whether p99 at batch 1 keeps the deadline; None where none was given.
  """

  format: str
  path: str = ''
  why: str = ''
  bytes: int = 0
  arithmetic: str = ''
  apart: float = 0.0
  same: float = 1.0
  score: float | None = None
  latency: Mapping[int, tuple[float, float]] = {}
  memory: int = 0
  met: bool | None = None


_UNITS = {'latency': 'ms'}  # of what a budget limits; else plain numbers


class Cut(NamedTuple):
  """What was removed to meet a budget.

  Attributes:
    groups: 'left of how many: members' of each group that lost units.
    before, after: what the budget limits, measured of the whole network and of what is left.
    score: the task's metric of the whole network on the same examples; None where there is none.
  """

  groups: tuple[str, ...]
  before: Mapping[str, float]
  after: Mapping[str, float]
  score: float | None = None

  def lines(self, metric: str, score: float | None) -> list[str]:
    """Returns what a person should read, the score of what is left beside that of the whole."""
    told = ', '.join(f'{name} {said(name, self.before[name])} to {said(name, self.after[name])}' for name in self.after)
    lines = [f'cut to the budget: {told}']
    if self.score is not None and score is not None:
      lines.append(f'{metric} {self.score:.4f} before, {score:.4f} after, with no training in between')
    return [*lines, *(f'  {group}' for group in self.groups)]


def said(name: str, value: float) -> str:
  """Returns what a budget limits, in words.

  >>> said('latency', 2.5), said('bytes', 20000)
  ('2.5 ms', '20,000')
  """
  return f'{value:.3g} {_UNITS[name]}' if name in _UNITS else f'{value:,.0f}'


class Report(NamedTuple):
  """What `jaxlite.deploy` did.

  Attributes:
    out: the folder of the files.
    written: a row for each format.
    costs: parameters, non-zeros, multiplications, layer by layer; None where there is no list of operations.
    metric: the name of the task's score; '' where there is none.
    score: the network's own.
    examples: that all were tried on.
    deadline: milliseconds, None where none was given.
    notes: what a person should read.
    cut: what was removed to meet a budget, and the score before; None where nothing was.
  """

  out: str
  written: tuple[Written, ...]
  costs: Costs | None
  metric: str
  score: float | None
  examples: int
  deadline: float | None
  notes: tuple[str, ...] = ()
  cut: Cut | None = None

  def __str__(self) -> str:
    return '\n'.join([table(self), *(f'note: {note}' for note in self.notes)])


def percentiles(seconds: Mapping[int, np.ndarray]) -> dict[int, tuple[float, float]]:
  """Returns (p50, p99) in milliseconds by batch size.

  >>> percentiles({1: np.array([0.001, 0.001, 0.003])})[1][0]
  1.0
  """
  return {
    size: (float(np.percentile(each, 50) * 1e3), float(np.percentile(each, 99) * 1e3))
    for size, each in sorted(seconds.items())
  }


def table(report: Report) -> str:
  """Returns the table of a report as text."""
  sizes = sorted({size for one in report.written for size in one.latency})
  heads = ['format', 'bytes', 'arithmetic', report.metric or 'score', 'same', 'largest difference']
  heads += [f'ms p50/p99, batch {size}' for size in sizes] + ['memory, MB']
  rows = [
    heads,
    ['the run' if report.cut is None else 'cut', '', '', _number(report.score), '', '', *[''] * len(sizes), ''],
  ]
  late = []
  for one in report.written:
    if one.why:
      late.append(f'{one.format}: not written: {one.why}')
      continue
    told = [one.format, f'{one.bytes:,}', one.arithmetic, _number(one.score)]
    told += ['', 'none: every bit'] if one.arithmetic == 'values' else [f'{one.same:.2%}', f'{one.apart:.3g}']
    told += ['/'.join(f'{each:.3g}' for each in one.latency[size]) if size in one.latency else '' for size in sizes]
    rows.append([*told, f'{one.memory / 1e6:.0f}' if one.memory else ''])
    if one.met is False:
      late.append(f'{one.format}: misses the deadline of {report.deadline:g} ms: p99 is {one.latency[1][1]:.3g} ms')
  if kept := [one.format for one in report.written if one.met]:
    late.append(f'{", ".join(kept)}: p99 with one example is within the deadline of {report.deadline:g} ms')
  told = [] if report.cut is None else report.cut.lines(report.metric, report.score)
  return '\n'.join([*_aligned(rows), '', *_network(report), *told, *late])


def _network(report: Report) -> list[str]:
  lines = [f'tried on {report.examples:,} examples, each file in a process of its own, on the CPU']
  if report.costs is not None:
    one = report.costs
    lines.append(f'{one.parameters:,} parameters, {one.nonzero:,} not zero, {one.macs:,} multiplications an example')
  return lines


def _number(value: float | None) -> str:
  return '' if value is None else f'{value:.4f}'


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  return ['  '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def page(report: Report, about: Mapping[str, str], snippets: Mapping[str, str]) -> str:
  """Returns the text that lies beside the files."""
  parts = [table(report), '\n'.join(f'{name}: {value}' for name, value in about.items() if value)]
  if report.costs is not None:
    heads = ['layer', 'kind', 'weight/input bits', 'values', 'not zero', 'multiplications', 'why float']
    rows = [
      [one.name, one.kind, one.bits, f'{one.size:,}', f'{one.nonzero:,}', f'{one.macs:,}', one.why_float]
      for one in report.costs.layers
    ]
    parts.append('\n'.join(_aligned([heads, *rows])))
  parts += [f'{name}\n\n{text}' for name, text in snippets.items()]
  return '\n\n'.join([*parts, *(f'note: {note}' for note in report.notes)]) + '\n'


def plain(report: Report) -> dict[str, Any]:
  """Returns a report as JSON values."""
  written = []
  for one in report.written:
    written.append({**one._asdict(), 'latency': {str(size): each for size, each in one.latency.items()}})
  costs = report.costs and {**report.costs._asdict(), 'layers': [one._asdict() for one in report.costs.layers]}
  cut = report.cut and report.cut._asdict()
  return {**report._asdict(), 'written': written, 'costs': costs, 'cut': cut}
