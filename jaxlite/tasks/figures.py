"""Drawing: a figure, its titles and colors, and the pictures that several tasks share. No JAX here.

Figures are built as objects on the Agg canvas: no window, no state shared with the caller's own plots; matplotlib is
imported when something is drawn. Colors are Okabe and Ito's, told apart by color-blind eyes
(https://jfly.uni-koeln.de/color/, 2008).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

COLORS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#000000')
INK, SOFT, FAINT = '#222222', '#666666', '#E6E6E6'
_RIGHT = ('#F4F8FB', '#0072B2')
_WRONG = ('#FDF3EC', '#D55E00')
_MOST_CELLS = 20  # classes whose counts are still legible


def lacking() -> str:
  """Returns why nothing can be drawn here, in a line; '' where it can be.

  >>> lacking()
  ''
  """
  try:
    import matplotlib.backends.backend_agg
    import matplotlib.figure  # noqa: F401 - whether it can be imported is the question
  except ImportError as error:  # a damaged one raises that too
    missing = isinstance(error, ModuleNotFoundError) and error.name == 'matplotlib'
    why = ' '.join(str(error).split())[:120]
    return (
      'matplotlib is not installed: pip install matplotlib'
      if missing
      else f'matplotlib cannot be imported ({why}): pip install --force-reinstall matplotlib'
    )
  return ''


def figure(width: float, height: float) -> Any:
  """Returns an empty matplotlib figure of this size in inches."""
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  made = Figure(figsize=(width, height), layout='constrained')
  FigureCanvasAgg(made)
  made.get_layout_engine().set(w_pad=0.1, h_pad=0.1, wspace=0.04, hspace=0.04)
  return made


def cycle(count: int) -> list[str]:
  """Returns that many colors.

  >>> cycle(2)
  ['#0072B2', '#D55E00']
  """
  return [COLORS[index % len(COLORS)] for index in range(count)]


def dress(axes: Any, title: str) -> None:
  """Gives axes their title and the plain look of all pictures: two spines, faint lines across."""
  set_title(axes, title, '')
  axes.spines[['top', 'right']].set_visible(False)
  axes.spines[['left', 'bottom']].set_color('#BBBBBB')
  axes.grid(axis='y', color=FAINT, linewidth=0.8)
  axes.set_axisbelow(True)
  axes.tick_params(which='both', color='#BBBBBB', labelcolor=INK, labelsize=9)


def set_title(axes: Any, title: str, subtitle: str) -> None:
  """Writes a title, and a smaller line under it."""
  text = axes.set_title(title, loc='left', size=12, weight='bold', color=INK, pad=24 if subtitle else 10)
  text.set_parse_math(False)
  if subtitle:
    axes.annotate(
      subtitle, (0, 1), (0, 8), xycoords='axes fraction', textcoords='offset points', size=9, color=SOFT
    ).set_parse_math(False)


def clip(path: str, most: int = 32) -> str:
  """Returns the end of a long name.

  >>> clip('encoder/layer/kernel', most=7)
  '…kernel'
  """
  return path if len(path) <= most else '…' + path[1 - most :]


def label_axes(axes: Any, x: str, y: str) -> None:
  """Names both axes; a name is never read as a formula."""
  axes.set_xlabel(x, color=SOFT).set_parse_math(False)
  axes.set_ylabel(y, color=SOFT).set_parse_math(False)


def confusion(matrix: Any, class_names: Sequence[str], title: str, unit: str = 'test examples') -> Any:
  """Draws a confusion matrix: right answers blue, mistakes orange, each as its share of the true class.

  Args:
    matrix: float[C, C], labels in rows.
    class_names: C names, or none.
    title: what it shows.
    unit: what was counted.

  Returns:
    The figure.
  """
  from matplotlib.colors import LinearSegmentedColormap

  right_colors, wrong_colors = (LinearSegmentedColormap.from_list('', list(ends)) for ends in (_RIGHT, _WRONG))
  matrix = np.asarray(matrix, np.float64)
  classes = len(matrix)
  names = [str(name) for name in class_names] or [str(index) for index in range(classes)]
  total = matrix.sum()
  share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1e-300)
  longest = min(14, max(map(len, names)))
  side = min(9.0, max(4.2, 0.46 * classes + 1.0))
  made = figure(side + 0.08 * longest + 0.6, side + 0.08 * longest + 0.5)
  axes = made.add_subplot()
  right = np.eye(classes, dtype=bool)
  # Mistakes are scaled among themselves: beside right answers near 100 % they would all look white.
  worst = max(0.1, share[~right].max(initial=0))  # no darker than it is: one slip in thirty is no alarm
  colors = np.where(right[..., None], right_colors(share), wrong_colors(share / worst))
  colors[(matrix == 0) & ~right] = (1, 1, 1, 1)
  axes.imshow((colors * 255).astype(np.uint8), interpolation='nearest', aspect='equal')  # floats are drawn in floats
  if classes <= _MOST_CELLS:
    size = 9 if classes <= 12 else 7
    for row, column in zip(*np.nonzero(matrix), strict=True):
      dark = share[row, column] > 0.55 if row == column else share[row, column] > 0.6 * worst
      text = f'{matrix[row, column]:.4g}'
      color = 'white' if dark else INK
      axes.text(column, row, text, ha='center', va='center', size=size, color=color, in_layout=False)  # it lies inside
    axes.set_xticks(np.arange(-0.5, classes), minor=True)
    axes.set_yticks(np.arange(-0.5, classes), minor=True)
    axes.grid(which='minor', color=FAINT, linewidth=0.8)
  every = math.ceil(classes / _MOST_CELLS)
  places = range(0, classes, every)
  shown = [names[place] if len(names[place]) <= longest else names[place][: longest - 1] + '…' for place in places]
  axes.set_xticks(places, shown, rotation=0 if longest <= 3 else 45, ha='center' if longest <= 3 else 'right')
  axes.set_yticks(places, shown)
  for label in (*axes.get_xticklabels(), *axes.get_yticklabels()):
    label.set_parse_math(False)  # a class may be named '$5'
  axes.tick_params(which='both', length=0, labelcolor=INK, labelsize=9 if classes <= 12 else 7)
  axes.spines[:].set_color(FAINT)
  axes.set_xlabel('predicted', color=SOFT)
  axes.set_ylabel('true', color=SOFT)
  wrong = total - np.trace(matrix)
  set_title(axes, title, f'{total:,.6g} {unit}, {wrong:,.6g} mistakes')
  return made


def curve(points: Any, title: str, subtitle: str, x: str, y: str, chosen: Sequence[float] | None = None) -> Any:
  """Draws a curve in the unit square (precision over recall, a ROC), with the chosen point.

  Args:
    points: float[k, 2], along the curve.
    title: what it shows.
    subtitle: its number in words.
    x: what the first column is.
    y: what the second is.
    chosen: the point at the threshold, marked; None where there is none.

  Returns:
    The figure.
  """
  made = figure(4.8, 4.4)
  axes = made.add_subplot()
  dress(axes, '')
  set_title(axes, title, subtitle)
  points = np.asarray(points, np.float64).reshape(-1, 2)
  axes.plot(points[:, 0], points[:, 1], color=COLORS[0], linewidth=2.0, solid_capstyle='round')
  if chosen is not None and np.isfinite(chosen).all():
    axes.plot(*([value] for value in chosen), 'o', color=COLORS[1], markersize=8, markeredgecolor='white', zorder=3)
  axes.set_xlim(-0.02, 1.02)
  axes.set_ylim(-0.02, 1.02)
  axes.set_aspect('equal')
  label_axes(axes, x, y)
  return made


def against_truth(true: Any, predicted: Any, title: str, subtitle: str, unit: str = '') -> Any:
  """Draws predictions over true values, and beside it how far they are off.

  Args:
    true: float[N].
    predicted: float[N]; what is not finite is left out.
    title: what it shows.
    subtitle: its number in words.
    unit: of the values, for the axes.

  Returns:
    The figure.
  """
  true, predicted = np.asarray(true, np.float64), np.asarray(predicted, np.float64)
  good = np.isfinite(true) & np.isfinite(predicted)
  true, predicted = true[good], predicted[good]
  made = figure(8.8, 4.2)
  left, right = made.add_subplot(1, 2, 1), made.add_subplot(1, 2, 2)
  dress(left, '')
  set_title(left, title, subtitle)
  if len(true):
    ends = [min(true.min(), predicted.min()), max(true.max(), predicted.max())]
    left.plot(ends, ends, color=SOFT, linewidth=1.0)
    left.plot(true, predicted, 'o', color=COLORS[0], markersize=3, alpha=0.5, markeredgewidth=0)
    right.hist(predicted - true, bins=min(41, max(5, round(math.sqrt(len(true))))), color=COLORS[0])
    right.axvline(0, color=SOFT, linewidth=1.0)
  dress(right, '')
  set_title(right, 'Residuals', 'predicted minus true')
  label_axes(left, f'true{unit and " " + unit}', f'predicted{unit and " " + unit}')
  label_axes(right, f'residual{unit and " " + unit}', 'examples')
  return made


def bars(names: Sequence[str], columns: Mapping[str, Any], title: str, most: int = 30) -> Any:
  """Draws shares as bars, a group for each name.

  Args:
    names: of the groups.
    columns: what was measured -> float[len(names)], in [0, 1].
    title: what it shows.
    most: groups that are shown, the first ones.

  Returns:
    The figure.
  """
  names = list(names)[:most]
  places = np.arange(len(names))
  made = figure(7.2, 1.4 + 0.17 * (1 + len(columns)) * len(names))
  axes = made.add_subplot()
  dress(axes, title)
  height = 0.8 / len(columns)
  for index, (color, (what, values)) in enumerate(zip(cycle(len(columns)), columns.items(), strict=True)):
    shown = 100 * np.asarray(values, np.float64)[:most]
    axes.barh(places + (index - (len(columns) - 1) / 2) * height, shown, height=0.9 * height, color=color, label=what)
  axes.set_yticks(places, [clip(name) for name in names])
  for label in axes.get_yticklabels():
    label.set_parse_math(False)
  axes.set_ylim(len(names) - 0.5, -0.5)
  axes.set_xlim(0, 100)
  axes.grid(axis='y', visible=False)
  axes.grid(axis='x', color=FAINT, linewidth=0.8)
  label_axes(axes, '%', '')
  made.legend(loc='outside lower left', ncols=len(columns), frameon=False, fontsize=9)
  return made
