"""Pictures of a run: learning curves, confusion matrix, what is left of each layer.

Figures are built as objects on the Agg canvas: no window, no state shared with the caller's own plots.
Colours are Okabe and Ito's, told apart by colour-blind eyes (https://jfly.uni-koeln.de/color/, 2008).
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from jaxlite.host.files import whole_file

_COLOURS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#000000')
_INK, _SOFT, _FAINT = '#222222', '#666666', '#E6E6E6'
_RIGHT = LinearSegmentedColormap.from_list('right', ['#F4F8FB', '#0072B2'])
_WRONG = LinearSegmentedColormap.from_list('wrong', ['#FDF3EC', '#D55E00'])
_MOST_CELLS = 20  # classes whose counts are still legible
_MOST_BARS = 40


def save(figure: Figure, path: str | os.PathLike[str]) -> None:
  """Writes a figure as PNG, whole or not at all."""
  with warnings.catch_warnings(), whole_file(path) as part:
    warnings.filterwarnings('ignore', message='.*[Gg]lyph')  # a class name in a script that the font lacks
    figure.savefig(part, format='png', dpi=160, facecolor='white')


def curves(
  histories: Mapping[str, Sequence[Mapping[str, Any]]], tested: Mapping[str, int | None] | None = None
) -> Figure | None:
  """Draws loss, validation accuracy and, where it is recorded, the learning rate over steps.

  Args:
    histories: run -> points with 'kind' ('train' or 'validation'), 'step' and numbers.
    tested: run -> the step whose model was tested; it is marked.

  Returns:
    The figure, or None where nothing was recorded.
  """
  panels = [
    (title, kinds, name)
    for title, kinds, name in (
      ('Loss, nats', ('train', 'validation'), 'loss'),
      ('Validation accuracy, %', ('validation',), 'accuracy'),
      ('Learning rate', ('train',), 'lr'),
    )
    if any(len(_points(history, kind, name)[0]) for history in histories.values() for kind in kinds)
  ]
  if not panels:
    return None
  figure = _figure(4.6 * len(panels) + 0.4, 3.9)
  for place, (title, kinds, name) in enumerate(panels):
    axes = figure.add_subplot(1, len(panels), place + 1)
    shown: list[float] = []
    for colour, (run, history) in zip(_cycle(len(histories)), histories.items(), strict=True):
      for kind in kinds:
        steps, values = _points(history, kind, name)
        values = 100 * values if name == 'accuracy' else values
        thin = kind == 'train' and name == 'loss'
        style = {'linewidth': 1.0, 'alpha': 0.55} if thin else {'linewidth': 2.0}
        marker = 'o' if len(steps) == 1 else None
        axes.plot(steps, values, color=colour, marker=marker, solid_capstyle='round', **style)
        shown += list(values)
        if name == 'accuracy' and len(steps):
          _mark_tested(axes, steps, values, (tested or {}).get(run), colour)
    _dress(axes, title)
    axes.set_xlabel('optimizer steps', color=_SOFT)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f'{value:,.0f}'))
    _scale(axes, name, shown)
  _legend(figure, list(histories))
  return figure


def confusion(matrix: np.ndarray, class_names: Sequence[str], title: str) -> Figure:
  """Draws a confusion matrix: right answers blue, mistakes orange, each as its share of the true class.

  Args:
    matrix: float[C, C], labels in rows.
    class_names: C names, or none.
    title: what it shows.

  Returns:
    The figure.
  """
  matrix = np.asarray(matrix, np.float64)
  classes = len(matrix)
  names = [str(name) for name in class_names] or [str(index) for index in range(classes)]
  total = matrix.sum()
  share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1e-300)
  longest = min(14, max(map(len, names)))
  side = min(9.0, max(4.2, 0.46 * classes + 1.0))
  figure = _figure(side + 0.08 * longest + 0.6, side + 0.08 * longest + 0.5)
  axes = figure.add_subplot()
  right = np.eye(classes, dtype=bool)
  # Mistakes are scaled among themselves: beside right answers near 100 % they would all look white.
  worst = max(0.1, share[~right].max(initial=0))  # no darker than it is: one slip in thirty is no alarm
  colours = np.where(right[..., None], _RIGHT(share), _WRONG(share / worst))
  colours[(matrix == 0) & ~right] = (1, 1, 1, 1)
  axes.imshow(colours, interpolation='nearest', aspect='equal')
  if classes <= _MOST_CELLS:
    size = 9 if classes <= 12 else 7
    for row, column in zip(*np.nonzero(matrix), strict=True):
      dark = share[row, column] > 0.55 if row == column else share[row, column] > 0.6 * worst
      text = f'{matrix[row, column]:.4g}'
      axes.text(column, row, text, ha='center', va='center', size=size, color='white' if dark else _INK)
    axes.set_xticks(np.arange(-0.5, classes), minor=True)
    axes.set_yticks(np.arange(-0.5, classes), minor=True)
    axes.grid(which='minor', color=_FAINT, linewidth=0.8)
  every = math.ceil(classes / _MOST_CELLS)
  places = range(0, classes, every)
  shown = [names[place] if len(names[place]) <= longest else names[place][: longest - 1] + '…' for place in places]
  axes.set_xticks(places, shown, rotation=0 if longest <= 3 else 45, ha='center' if longest <= 3 else 'right')
  axes.set_yticks(places, shown)
  for label in (*axes.get_xticklabels(), *axes.get_yticklabels()):
    label.set_parse_math(False)  # a class may be named '$5'
  axes.tick_params(which='both', length=0, labelcolor=_INK, labelsize=9 if classes <= 12 else 7)
  axes.spines[:].set_color(_FAINT)
  axes.set_xlabel('predicted', color=_SOFT)
  axes.set_ylabel('true', color=_SOFT)
  wrong = total - np.trace(matrix)
  _title(axes, title, f'{total:,.6g} test examples, {wrong:,.6g} mistakes')
  return figure


def sparsity(layers: Mapping[str, Sequence[Any]]) -> Figure | None:
  """Draws for each run how many weights of each layer are left.

  Args:
    layers: run -> layers with 'path', 'size' and 'nonzero'.

  Returns:
    The figure, or None where no weight is zero.
  """
  sparse = {run: list(of) for run, of in layers.items() if any(layer.nonzero < layer.size for layer in of)}
  if not sparse:
    return None
  heights = [min(_MOST_BARS, len(of)) for of in sparse.values()]
  figure = _figure(8.4, 0.95 * len(heights) + 0.34 * sum(heights) + 0.55)
  grid = figure.add_gridspec(len(heights), 1, height_ratios=[0.6 + height for height in heights])
  for place, (run, of) in enumerate(sparse.items()):
    axes = figure.add_subplot(grid[place])
    shown = of if len(of) <= _MOST_BARS else sorted(of, key=lambda layer: -layer.size)[:_MOST_BARS]
    rows = np.arange(len(shown))
    left = [100 * layer.nonzero / max(1, layer.size) for layer in shown]
    axes.barh(rows, 100, height=0.62, color=_FAINT)
    axes.barh(rows, left, height=0.62, color=_COLOURS[0])
    for row, layer in zip(rows, shown, strict=True):
      text = f'{100 * (1 - layer.nonzero / max(1, layer.size)):.1f} % zero   {layer.nonzero:,} of {layer.size:,} left'
      axes.text(101.5, row, text, va='center_baseline', size=8.5, color=_INK)
    axes.set_yticks(rows, [_clip(layer.path) for layer in shown])
    for label in axes.get_yticklabels():
      label.set_parse_math(False)
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.set_xlim(0, 100)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f'{value:.0f} %'))
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelsize=8.5, labelcolor=_INK)
    axes.tick_params(axis='x', labelcolor=_SOFT)
    kept, size = sum(layer.nonzero for layer in of), sum(layer.size for layer in of)
    hidden = f'; the {_MOST_BARS} largest layers' if len(of) > _MOST_BARS else ''
    _title(
      axes, run, f'weights that are left: {kept:,} of {size:,}, {100 * (1 - kept / max(1, size)):.1f} % zero{hidden}'
    )
  return figure


def _figure(width: float, height: float) -> Figure:
  figure = Figure(figsize=(width, height), layout='constrained')
  FigureCanvasAgg(figure)
  figure.get_layout_engine().set(w_pad=0.1, h_pad=0.1, wspace=0.04, hspace=0.04)
  return figure


def _cycle(count: int) -> list[str]:
  return [_COLOURS[index % len(_COLOURS)] for index in range(count)]


def _points(history: Sequence[Mapping[str, Any]], kind: str, name: str) -> tuple[np.ndarray, np.ndarray]:
  points = [(point['step'], point[name]) for point in history if point.get('kind') == kind and name in point]
  pairs = np.array(points, np.float64).reshape(-1, 2)
  pairs = pairs[np.isfinite(pairs).all(axis=1)]
  return pairs[:, 0], pairs[:, 1]


def _mark_tested(axes: Any, steps: np.ndarray, values: np.ndarray, step: int | None, colour: str) -> None:
  where = np.flatnonzero(steps == step)
  axes.plot(steps[where], values[where], 'o', color=colour, markersize=6, markeredgecolor='white', zorder=3)


def _scale(axes: Any, name: str, shown: list[float]) -> None:
  if not shown:
    return
  if name == 'loss' and min(shown) > 0 and max(shown) / min(shown) > 20:
    axes.set_yscale('log')
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if max(shown) < 1e3 * min(shown) else (1,)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f'{value:g}'))
    axes.yaxis.set_minor_formatter(NullFormatter())
  if name == 'accuracy':  # what matters happens near the top; the first evaluations may leave the picture
    low = float(np.quantile(shown, 0.15))
    room = max(0.5, (max(shown) - low) * 0.15)
    axes.set_ylim(max(0.0, low - 2 * room), min(100.0, max(shown)) + room)


def _legend(figure: Figure, runs: list[str]) -> None:
  lines = [Line2D([], [], color=colour, linewidth=2.0) for colour in _cycle(len(runs))]
  lines += [
    Line2D([], [], color=_SOFT, linewidth=1.0, alpha=0.7),
    Line2D([], [], color=_SOFT, linewidth=2.0),
    Line2D([], [], color=_SOFT, linestyle='', marker='o', markeredgecolor='white'),
  ]
  names = [*runs, 'training', 'validation', 'tested']
  legend = figure.legend(lines, names, loc='outside lower left', ncols=len(names), frameon=False, fontsize=9)
  for text in legend.get_texts():
    text.set_parse_math(False)
    text.set_color(_INK)


def _dress(axes: Any, title: str) -> None:
  _title(axes, title, '')
  axes.spines[['top', 'right']].set_visible(False)
  axes.spines[['left', 'bottom']].set_color('#BBBBBB')
  axes.grid(axis='y', color=_FAINT, linewidth=0.8)
  axes.set_axisbelow(True)
  axes.tick_params(which='both', color='#BBBBBB', labelcolor=_INK, labelsize=9)


def _title(axes: Any, title: str, subtitle: str) -> None:
  text = axes.set_title(title, loc='left', size=12, weight='bold', color=_INK, pad=24 if subtitle else 10)
  text.set_parse_math(False)
  if subtitle:
    axes.annotate(
      subtitle, (0, 1), (0, 8), xycoords='axes fraction', textcoords='offset points', size=9, color=_SOFT
    ).set_parse_math(False)


def _clip(path: str, most: int = 32) -> str:
  return path if len(path) <= most else '…' + path[1 - most :]
