"""Pictures of a run: learning curves, confusion matrix, what is left of each layer.

What pictures look like, and those that belong to a kind of task, stand in `tasks.figures`.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from jaxlite.host.files import whole_file
from jaxlite.report.points import Points
from jaxlite.report.thinning import thinned
from jaxlite.tasks.figures import COLORS, FAINT, INK, SOFT, clip, confusion, cycle, dress, figure, set_title

__all__ = ['confusion', 'curves', 'save', 'sparsity']

ACCURACY = ('Validation accuracy, %', 'accuracy', 'percent')
_MOST_BARS = 40
_DPI = 160
_COLUMNS = 2_000  # of a picture of curves; it has fewer pixels


def save(picture: Figure, path: str | os.PathLike[str]) -> None:
  """Writes a figure as PNG, whole or not at all."""
  with warnings.catch_warnings(), whole_file(path) as part:
    warnings.filterwarnings('ignore', message='.*[Gg]lyph')  # a class name in a script that the font lacks
    if not isinstance(picture.canvas, FigureCanvasAgg):  # a person's own
      picture.savefig(part, format='png', dpi=_DPI, facecolor='white')
      return
    # `savefig` draws twice, first to lay things out, which drawing does anyway.
    was = picture.dpi, picture.get_facecolor()
    try:
      picture.set_dpi(_DPI)
      picture.set_facecolor('white')
      picture.canvas.print_png(part)
    finally:
      picture.set_dpi(was[0])
      picture.set_facecolor(was[1])


def curves(
  histories: Mapping[str, Sequence[Mapping[str, Any]] | Points],
  tested: Mapping[str, int | None] | None = None,
  curve: Sequence[str] | None = ACCURACY,
) -> Figure | None:
  """Draws loss, the task's own score and, where it is recorded, the learning rate over steps.

  Args:
    histories: run -> `Points`, or points with 'kind' ('train' or 'validation'), 'step' and numbers.
    tested: run -> the step whose model was tested; it is marked.
    curve: (title, metric, form) of the validation curve beside the loss; None for none.

  Returns:
    The figure, or None where nothing was recorded.
  """
  title, score, form = curve or ('', '', '')
  panels = [
    (title, kinds, name)
    for title, kinds, name in (
      ('Loss', ('train', 'validation'), 'loss'),
      (title, ('validation',), score),
      ('Learning rate', ('train',), 'lr'),
    )
    if any(len(_points(history, kind, name)[0]) for history in histories.values() for kind in kinds)
  ]
  if not panels:
    return None
  made = figure(4.6 * len(panels) + 0.4, 3.9)
  for place, (heading, kinds, name) in enumerate(panels):
    axes = made.add_subplot(1, len(panels), place + 1)
    shown: list[float] = []
    for color, (run, history) in zip(cycle(len(histories)), histories.items(), strict=True):
      for kind in kinds:
        steps, values = _points(history, kind, name)
        values = 100 * values if name == score and form == 'percent' else values
        thin = kind == 'train' and name == 'loss'
        style = {'linewidth': 1.0, 'alpha': 0.55} if thin else {'linewidth': 2.0}
        marker = None if len(steps) > 1 else '_' if thin else 'o'  # a dot is the step that was tested
        axes.plot(steps, values, color=color, marker=marker, markersize=9, solid_capstyle='round', **style)
        shown += [float(value) for value in values if np.isfinite(value)]
        if name == score and len(steps):
          _mark_tested(axes, steps, values, (tested or {}).get(run), color)
    dress(axes, heading)
    axes.set_xlabel('optimizer steps', color=SOFT)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f'{value:,.0f}'))
    _scale(axes, name, shown, share=name == score and form == 'percent')
  _legend(made, list(histories))
  return made


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
  made = figure(8.4, 0.95 * len(heights) + 0.34 * sum(heights) + 0.55)
  grid = made.add_gridspec(len(heights), 1, height_ratios=[0.6 + height for height in heights])
  for place, (run, of) in enumerate(sparse.items()):
    axes = made.add_subplot(grid[place])
    shown = of if len(of) <= _MOST_BARS else sorted(of, key=lambda layer: -layer.size)[:_MOST_BARS]
    rows = np.arange(len(shown))
    left = [100 * layer.nonzero / max(1, layer.size) for layer in shown]
    axes.barh(rows, 100, height=0.62, color=FAINT)
    axes.barh(rows, left, height=0.62, color=COLORS[0])
    for row, layer in zip(rows, shown, strict=True):
      text = f'{100 * (1 - layer.nonzero / max(1, layer.size)):.1f} % zero   {layer.nonzero:,} of {layer.size:,} left'
      axes.text(101.5, row, text, va='center_baseline', size=8.5, color=INK)
    axes.set_yticks(rows, [clip(layer.path) for layer in shown])
    for label in axes.get_yticklabels():
      label.set_parse_math(False)
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.set_xlim(0, 100)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f'{value:.0f} %'))
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelsize=8.5, labelcolor=INK)
    axes.tick_params(axis='x', labelcolor=SOFT)
    kept, size = sum(layer.nonzero for layer in of), sum(layer.size for layer in of)
    hidden = f'; the {_MOST_BARS} largest layers' if len(of) > _MOST_BARS else ''
    set_title(
      axes, run, f'weights that are left: {kept:,} of {size:,}, {100 * (1 - kept / max(1, size)):.1f} % zero{hidden}'
    )
  return made


def _points(history: Any, kind: str, name: str) -> tuple[np.ndarray, np.ndarray]:
  if isinstance(history, Points):
    return thinned(*history(kind, name), columns=_COLUMNS)
  points = [(point['step'], point[name]) for point in history if point.get('kind') == kind and name in point]
  pairs = np.array(points, np.float64).reshape(-1, 2)
  return thinned(pairs[:, 0], pairs[:, 1], columns=_COLUMNS)


def _mark_tested(axes: Any, steps: np.ndarray, values: np.ndarray, step: int | None, color: str) -> None:
  where = np.flatnonzero(steps == step)
  axes.plot(steps[where], values[where], 'o', color=color, markersize=6, markeredgecolor='white', zorder=3)


def _scale(axes: Any, name: str, shown: list[float], *, share: bool) -> None:
  if not shown:
    return
  if name == 'loss' and min(shown) > 0 and max(shown) / min(shown) > 20:
    axes.set_yscale('log')
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if max(shown) < 1e3 * min(shown) else (1,)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f'{value:g}'))
    axes.yaxis.set_minor_formatter(NullFormatter())
  if share:  # what matters happens near the top; the first evaluations may leave the picture
    low = float(np.quantile(shown, 0.15))
    room = max(0.5, (max(shown) - low) * 0.15)
    bottom = max(0.0, low - 2 * room)
    axes.set_ylim(bottom, min(100.0, max(shown)) + room)
    if below := [one for one in shown if one < bottom]:
      told = f'{len(below)} below, the lowest {min(below):.1f} %'
      axes.text(0.98, 0.02, told, transform=axes.transAxes, ha='right', color=SOFT, fontsize=8)


def _legend(picture: Figure, runs: list[str]) -> None:
  lines = [Line2D([], [], color=color, linewidth=2.0) for color in cycle(len(runs))]
  lines += [
    Line2D([], [], color=SOFT, linewidth=1.0, alpha=0.7),
    Line2D([], [], color=SOFT, linewidth=2.0),
    Line2D([], [], color=SOFT, linestyle='', marker='o', markeredgecolor='white'),
  ]
  names = [*runs, 'training', 'validation', 'tested']
  legend = picture.legend(lines, names, loc='outside lower left', ncols=len(names), frameon=False, fontsize=9)
  for text in legend.get_texts():
    text.set_parse_math(False)
    text.set_color(INK)
