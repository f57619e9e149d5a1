"""The task table in Markdown: means with intervals, differences of the same seeds, and in plain words who loses."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

_FALLS = ('rmse', 'bits_per_byte')  # better when smaller


def interval(values: Sequence[float]) -> float:
  """Half of the 95 % interval of a mean, by Student's t; NaN of one value."""
  from scipy.stats import t

  if len(values) < 2:
    return math.nan
  return float(t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values)))


def table(found: Sequence[tuple[Any, dict[str, Any]]], seeds: int) -> Iterator[str]:
  """Yields the lines.

  Args:
    found: (row, {'ours': {'rate', 'runs'}, 'theirs': the same or absent}) each.
    seeds: runs behind each mean.
  """
  yield (
    f'{seeds} seed{"s" if seeds > 1 else ""}, mean ± half of the 95 % interval; the difference is ours minus theirs, '
    'seed by seed. Seconds are medians: '
    'ours of all that `jl.train` does (compiling, checkpoints, report), in brackets of training; theirs of training.'
  )
  yield ''
  yield '| task: data (rows) | metric | jaxlite | peer | difference | seconds, ours | theirs |'
  yield '|---|---|--:|---|---|--:|--:|'
  for row, sides in found:
    for index, (name, title, form, factor) in enumerate(row.shown):
      one = [factor * run['grades'][name] for run in sides['ours']['runs']]
      cells = [row.title if not index else '', title, shown(one, form)]
      if 'theirs' in sides:
        other = [factor * run['grades'][name] for run in sides['theirs']['runs']]
        better = 0 if name == 'recall' else -1 if name in _FALLS else 1
        cells += [f'{row.peer}: {shown(other, form)}', difference(one, other, better, form)]
      else:
        cells += [f'{row.peer}: not run', '']
      yield f'| {" | ".join([*cells, *(seconds(sides) if not index else ("", ""))])} |'


def shown(values: Sequence[float], form: str) -> str:
  """Mean and interval; of one seed its value."""
  return f'{np.mean(values):{form}}' + (f' ± {interval(values):{form}}' if len(values) > 1 else '')


def difference(one: Sequence[float], other: Sequence[float], better: int, form: str) -> str:
  """The mean difference of the same seeds, and what it says: `better` is 1, -1, or 0 where neither is."""
  values = np.subtract(one, other)
  mean = float(np.mean(values))
  if len(values) < 2:
    return f'{mean:+{form}}'
  half = interval(values)
  verdict = 'no difference shown' if abs(mean) <= half else 'we gain' if better * mean > 0 else 'we lose'
  return f'{mean:+{form}} ± {half:{form}}' + (f', {verdict}' if better else '')


def seconds(sides: dict[str, Any]) -> tuple[str, str]:
  """Medians over seeds."""

  def median(side: str, what: str) -> float:
    return statistics.median(run[what] for run in sides[side]['runs'])

  theirs = f'{median("theirs", "seconds"):.1f}' if 'theirs' in sides else ''
  return f'{median("ours", "seconds"):.1f} ({median("ours", "training"):.1f})', theirs
