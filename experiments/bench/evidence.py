"""The table and the picture of `against_pytorch`."""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import cases
import numpy as np

HEAD = (
  '| form | ms per step | mean | examples per second | ratio to the best PyTorch (min to max) | start cold, s '
  '| warm, s | peak MiB |\n|---|---|---|---|---|---|---|---|\n'
)


class Start(NamedTuple):
  """Fresh processes of one form.

  Attributes:
    cold: seconds from the process's start to the end of its first step.
    warm: as cold, with programs kept from an earlier process; None where the form keeps none.
    peak: most bytes held within the first 20 steps.
  """

  cold: float
  warm: float | None
  peak: int


class Result(NamedTuple):
  """A case with one optimizer.

  Attributes:
    case: what.
    optimizer: 'sgd' or 'adamw'.
    apart: largest relative difference of any form's early losses to jaxlite's.
    times: seconds per step by form, float[rounds].
    first: seconds of a form's build and first step in a process that was already up, by form.
    starts: by form; empty where not measured.
  """

  case: cases.Case
  optimizer: str
  apart: float
  times: dict[str, np.ndarray]
  first: dict[str, float]
  starts: dict[str, Start]


def yardstick(result: Result) -> str:
  """Returns PyTorch's fastest eager form by median; '' where it is not installed."""
  names = [name for name in result.times if name.startswith('PyTorch') and not name.endswith('compiled')]
  return min(names, key=lambda name: np.median(result.times[name]), default='')


def ratio(result: Result, name: str, against: str) -> tuple[float, float, float]:
  """Returns median, minimum and maximum over the rounds."""
  found = result.times[name] / result.times[against]
  return float(np.median(found)), float(found.min()), float(found.max())


def counted(result: Result) -> str:
  """Returns the form that counts for jaxlite: several steps per dispatch where it has that form."""
  return next((name for name in result.times if name.startswith('jaxlite, ')), 'jaxlite')


def rows(result: Result) -> str:
  """Returns the rows of one case and optimizer."""
  best, lines = yardstick(result), []
  for name, times in result.times.items():
    against = 'not installed'
    if best:
      against = '{:.2f} ({:.2f} to {:.2f})'.format(*ratio(result, name, best))
    start = result.starts.get(name)
    started = ['', '', ''] if start is None else [f'{start.cold:.1f}', '', f'{start.peak / 2**20:.0f}']
    if start is not None and start.warm is not None:
      started[1] = f'{start.warm:.1f}'
    if name.endswith('compiled'):
      name = f'{name} (warm-up {result.first[name]:.0f} s)'
    median, mean = 1e3 * np.median(times), 1e3 * times.mean()
    cells = [name, f'{median:.3f}', f'{mean:.3f}', f'{1e3 * result.case.batch / median:,.0f}', against, *started]
    lines.append('| ' + ' | '.join('**' + cell + '**' if name == best and cell else cell for cell in cells) + ' |')
  return '\n'.join(lines)


def summary(results: list[Result]) -> str:
  """Returns one line a case: ratios of the worse of the optimizers."""
  lines = [
    '| case | Linen + Optax | NNX | jaxlite | jaxlite is faster than Linen + Optax in its own defaults by |',
    '|---|---|---|---|---|',
  ]
  for title in dict.fromkeys(result.case.title for result in results):
    mine = [result for result in results if result.case.title == title]
    cells = []
    for pick in (lambda _: 'Linen + Optax', lambda _: 'NNX', counted):
      found = [ratio(result, pick(result), yardstick(result)) for result in mine if yardstick(result)]
      cells.append('{:.2f} ({:.2f} to {:.2f})'.format(*max(found)) if found else 'not installed')
    own = min(ratio(result, 'Linen + Optax, own defaults', counted(result)) for result in mine)
    lines.append(f'| {title} | ' + ' | '.join(cells) + ' | {:.2f} ({:.2f} to {:.2f}) |'.format(*own))
  return '\n'.join(lines)


def table(results: list[Result], settings: str, torch_version: str) -> str:
  """Returns the whole page, in Markdown."""
  versions = ', '.join(f'{name} {metadata.version(name)}' for name in ('jax', 'jaxlib', 'flax', 'optax', 'numpy'))
  parts = [
    '# Train steps against PyTorch, plain Linen + Optax and NNX\n',
    f'`python experiments/bench/against_pytorch.py {" ".join(sys.argv[1:])}`\n',
    f'{settings}. {versions}, torch {torch_version}. Ratios of times, below 1 is faster; medians of the rounds.\n',
    'Ratio to the best form of PyTorch, the worse of the optimizers:\n',
    summary(results) + '\n',
  ]
  for result in results:
    title = f'{result.case.title}, {result.optimizer}'
    parts.append(f'## {title}\n\nLosses of the first 20 steps agree within {result.apart:.1e}.\n')
    parts.append(HEAD + rows(result) + '\n')
  return '\n'.join(parts)


def picture(results: list[Result], path: Path) -> None:
  """Draws times relative to the best form of PyTorch (or to plain Linen where it is not installed), as PNG."""
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  figure = Figure(figsize=(9, 0.6 + 1.1 * len(results)), layout='constrained')
  FigureCanvasAgg(figure)
  axes = figure.subplots(len(results), sharex=True, squeeze=False)[:, 0]
  for axis, result in zip(axes, results, strict=True):
    against = yardstick(result) or 'Linen + Optax'
    names = list(dict.fromkeys([against, 'NNX', 'Linen + Optax', 'jaxlite', counted(result)]))
    found = np.array([ratio(result, name, against) for name in names])
    colors = ['tab:blue' if name.startswith('jaxlite') else 'tab:gray' for name in names]
    spread = [found[:, 0] - found[:, 1], found[:, 2] - found[:, 0]]
    axis.barh(names, found[:, 0], xerr=spread, color=colors, ecolor='black', capsize=2)
    axis.axvline(1, color='black', linewidth=0.8)
    axis.set_title(f'{result.case.title}, {result.optimizer}', fontsize=8, loc='left', pad=2)
    axis.tick_params(labelsize=7)
  axes[-1].set_xlabel(
    'time of a step, relative to the best PyTorch form (median, whiskers: minimum and maximum)', size=8
  )
  figure.savefig(path, dpi=150)


def processor() -> str:
  """Returns the processor's name, where the system tells."""
  try:
    lines = Path('/proc/cpuinfo').read_text().splitlines()
  except OSError:
    return ''
  return next((line.split(':')[1].strip() for line in lines if line.startswith('model name')), '')
