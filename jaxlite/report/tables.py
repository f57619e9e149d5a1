"""What a run hands back as evidence: the table on the terminal, `report.md`, and pictures beside it.

A `Result` is plain values, so it is saved as JSON and shown again without the run. matplotlib is imported when
pictures are drawn.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxlite.tasks.tables import percent, wilson

_MARKUP = re.compile(r'[<*]|&(?=#?\w+;)')
PACKED = (
  "of the packed file, with all that it takes to run the network (`jl.deploy`, format 'pack'); by a plain count: "
  'the nonzero values at their bits, one mask bit per weight, float32 scales'
)


def rows(results: Sequence[Any]) -> list[list[str]]:
  """Returns the cells of the table: a measure to a row, a run to a column; first row and column name them."""
  cells = [['', *(result.name for result in results)]]

  def add(label: str, values: list[str]) -> None:
    if any(values):
      cells.append([label, *(value or '-' for value in values)])

  def metric(label: str, name: str, write: Any) -> None:
    add(label, [write(result.metrics[name]) if name in result.metrics else '' for result in results])

  for label, name, form in dict.fromkeys(tuple(row) for result in results for row in result.rows):
    metric(label, name, functools.partial(written, form))
    if any(name == result.interval for result in results):
      add('  95 % interval', [_interval(result) if name == result.interval else '' for result in results])
  sized = [bool(result.layers) for result in results]
  for label, values in (
    ('parameters', [f'{result.parameters:,}' for result in results]),
    ('sparsity of weights', [percent(result.sparsity, 1) for result in results]),
    ('bits per weight', [result.bits for result in results]),
    ('bytes as float32', [f'{4 * result.parameters:,}' for result in results]),
    ('bytes packed', [_bytes(result) for result in results]),
    ('times smaller than float32', [f'{4 * result.parameters / max(1, result.bytes):.1f}' for result in results]),
  ):
    add(label, [value if shown else '' for value, shown in zip(values, sized, strict=True)])
  add('seconds', [f'{result.seconds:.1f}' for result in results])
  return cells


def _bytes(result: Any) -> str:
  return f'{result.bytes:,}' if result.packed else f'{result.bytes:,} by a plain count'


def spread(results: Sequence[Any]) -> str:
  """Returns a line: the mean of the first line of the table over runs that differ by chance, and the interval that
  holds it.

  Args:
    results: at least two runs of one task.

  Returns:
    The mean and its 95 % interval by Student's t; '' of a task whose table has no lines, or not that one in each run.

  References:
    Student, The probable error of a mean, 1908, https://doi.org/10.2307/2331554

  >>> from jaxlite.report.result import Result
  >>> rows = [['test accuracy', 'accuracy', 'percent']]
  >>> spread([Result(str(i), {'accuracy': value}, rows=rows) for i, value in enumerate((0.90, 0.91, 0.92))])
  'test accuracy over 3 runs: mean 91.00 %, 95 % interval 88.52 to 93.48 %'
  """
  from scipy import stats

  label, name, form = next(iter(results[0].rows), ('', '', ''))
  if not name or not all(name in result.metrics for result in results):
    return ''
  values = np.array([result.metrics[name] for result in results])
  half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values))
  low, high = written(form, values.mean() - half).removesuffix(' %'), written(form, values.mean() + half)
  return f'{label} over {len(values)} runs: mean {written(form, values.mean())}, 95 % interval {low} to {high}'


def table(results: Sequence[Any]) -> str:
  """Returns the runs side by side, aligned for a terminal.

  >>> from jaxlite.report.result import Result
  >>> rows = [['test accuracy', 'accuracy', 'percent'], ['loss', 'loss', '{:.4f}']]
  >>> print(table([Result('mine', {'accuracy': 0.5, 'loss': 0.25}, seconds=3, rows=rows)]))
                    mine
  test accuracy  50.00 %
  loss            0.2500
  seconds            3.0
  """
  return '\n'.join(''.join(parts).rstrip() for parts in _aligned(rows(results)))


def markdown(cells: Sequence[Sequence[str]]) -> str:
  """Returns cells as a Markdown table that also reads as plain text."""
  escaped = [[plain(' '.join(cell.split())).replace('|', '\\|') for cell in row] for row in cells]
  widths = [max(3, *(len(cell) for cell in column)) for column in zip(*escaped, strict=True)]
  lines = [
    '| ' + ' | '.join(f'{cell:{"<" if place == 0 else ">"}{widths[place]}}' for place, cell in enumerate(row)) + ' |'
    for row in escaped
  ]
  rule = '|' + '|'.join(
    '-' * (width + 2) if place == 0 else '-' * (width + 1) + ':' for place, width in enumerate(widths)
  )
  return '\n'.join([lines[0], f'{rule}|', *lines[1:]])


def plain(text: str) -> str:
  """Returns text that Markdown shows as it stands, but for code between backticks: a class may be called '<b>'.

  >>> plain('<b> of `a<b`'), plain('*s* & &amp;')
  ('\\\\<b> of `a<b`', '\\\\*s\\\\* & \\\\&amp;')
  """
  parts = text.split('`')
  if len(parts) % 2 == 0:
    parts = [text]
  return '`'.join(part if place % 2 else _MARKUP.sub(r'\\\g<0>', part) for place, part in enumerate(parts))


def _aligned(cells: Sequence[Sequence[str]]) -> list[list[str]]:
  widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
  return [
    [
      f'{cell:<{width}}' if place == 0 else f'  {cell:>{width}}'
      for place, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]
    for row in cells
  ]


def written(form: str, value: float) -> str:
  """Writes a metric: in percent, or by a format such as '{:.4f}'.

  >>> written('percent', 0.5), written('{:.3g}', 1234.5)
  ('50.00 %', '1.23e+03')
  """
  return percent(value) if form == 'percent' else form.format(value)


def foreseen(found: Mapping[str, Any]) -> list[list[str]]:
  """Returns what a run was said to need before it began, beside what it took: what, forecast, bounds, actual, basis."""
  rows = []
  if time := found.get('time'):
    bounds = f'{time["low"]:,.1f} to {time["high"]:,.1f} (80 %)'
    rows.append(['seconds', f'{time["forecast"]:,.1f}', bounds, f'{time["actual"]:,.1f}', str(time['basis'])])
  for memory in filter(None, (found.get('memory'), found.get('memory compiled'))):
    sizes = {name: f'{memory[name] / 2**20:,.0f}' for name in ('forecast', 'upper', 'actual')}
    bounds = f'at most {sizes["upper"]} (95 %)'
    rows.append(['MiB of memory', sizes['forecast'], bounds, sizes['actual'], str(memory['basis'])])
  if target := found.get('target'):
    early, name = target['early'], f'step of {target["metric"]} {target["target"]:g}'
    told = 'not within the run' if early and early['step'] is None else f'{early["step"]:,.0f}' if early else '-'
    bounds = f'{early["low"]:,.0f} to {early["high"]:,.0f} (80 %)' if early and early['step'] is not None else '-'
    actual = 'not reached' if target['reached'] is None else f'{target["reached"]:,.0f}'
    rows.append([name, told, bounds, actual, f'the curve up to step {early["at"]:,}' if early else '-'])
  return rows


def listed(facts: Mapping[str, str]) -> str:
  """Returns names and values in one line.

  >>> listed({'python': '3.11', 'jax': '0.10'})
  'python 3.11, jax 0.10'
  """
  return ', '.join(f'{name} {value}' for name, value in facts.items())


def _interval(result: Any) -> str:
  """Wilson's 95 % interval: a few hundred test examples leave the second digit open, and a reader should see it."""
  total = result.examples
  share = result.metrics.get(result.interval, math.nan)
  if total < 1 or not math.isfinite(share):
    return ''
  low, high = wilson(share, total)
  return f'{100 * low:.1f} to {100 * high:.1f} %'
