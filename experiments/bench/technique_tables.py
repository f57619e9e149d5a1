"""The tables of experiments/techniques.py in Markdown: means with intervals, and what a row gains on its baselines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from bench.task_tables import interval


def compared(test: Sequence[float], other: Sequence[float]) -> str:
  """Says what a row gains on a baseline, seed by seed; a teacher has one seed, which serves all."""
  differences = np.subtract(test, other)
  mean, half = float(np.mean(differences)), interval(differences)
  verdict = 'gains' if mean > half else 'loses' if mean < -half else 'no difference shown'
  return f'{mean:+.2f} ± {half:.2f}, {verdict}'


def shown(test: Sequence[float]) -> str:
  """Mean and interval; of one seed its value."""
  return f'{np.mean(test):.2f}' + (f' ± {interval(test):.2f}' if len(test) > 1 else '')


def wide(found: dict[str, tuple[Any, list[float]]], columns: Sequence[str]) -> Iterator[str]:
  """A table of one technique per line, its strength a column."""
  yield f'| LeNet-300-100 | {" | ".join(columns)} |'
  yield '|---|' + len(columns) * '--:|'
  lines = [name.removeprefix(f'{own} ') for name in found for own in columns if name.startswith(f'{own} ')]
  for line in dict.fromkeys(lines):
    cells = []
    for column in columns:
      row, test = found.get(f'{column} {line}', (None, []))
      cells.append(f'{shown(test)} ({compared(test, found["dense"][1])})' if row else '')
    yield f'| {line} | {" | ".join(cells)} |'


def narrow(found: dict[str, tuple[Any, list[float]]]) -> Iterator[str]:
  """A table of one network per line, its baselines beside it."""
  yield '| network | test accuracy, % | against |'
  yield '|---|--:|---|'
  for name, (row, test) in found.items():
    against = [f'{other}: {compared(test, found[other][1])}' for other in row.against if other in found]
    yield f'| {name} | {shown(test)} | {"; ".join(against)} |'
