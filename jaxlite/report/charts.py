"""Pictures of runs, as parts of a page: learning curves, confusion, ranked curves, reliability, layers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxlite.report import svg
from jaxlite.report.found import Run
from jaxlite.report.markup import Cell, breakable, escaped, table
from jaxlite.report.style import LINES
from jaxlite.tasks.tables import MOST, named_class, percent

MANY = 7  # runs that have a color of their own
_CELLS = 20  # classes whose counts are legible
_PAIRS = 1_500  # mistakes that a picture of many classes shows


def shown_runs(runs: Sequence[Run]) -> list[int]:
  """Returns which runs have a color: all, or of many the best by their first metric, the first where none is tested."""
  if len(runs) <= MANY:
    return list(range(len(runs)))
  scored = []
  for index, run in enumerate(runs):
    value, better = headline(run)
    if not math.isnan(value):
      scored.append((-value * better, index))
  best = [index for _, index in sorted(scored)[:MANY]]
  return sorted(best or range(MANY))


def headline(run: Run) -> tuple[float, int]:
  """Returns a run's first metric, NaN where it was not tested, and 1 where more of it is better, else -1."""
  if not run.result.rows:
    return math.nan, 1
  _, name, form = run.result.rows[0]
  if run.result.falls is not None:
    better = -1 if name in run.result.falls or name == 'loss' else 1
  else:  # of an older version, which did not say
    better = 1 if form == 'percent' or name in ('r2', 'roc_auc') else -1
  return run.result.metrics.get(name, math.nan), better


def curves(runs: Sequence[Run]) -> str:
  """Returns the learning curves of runs: loss, the task's own score and the learning rate, with a legend."""
  chosen = shown_runs(runs)
  order = [index for index in range(len(runs)) if index not in chosen] + chosen
  curve = next((run.result.curve for run in runs if len(run.result.curve) == 3), None)
  title, score, form = curve or _guessed(runs)
  panels = []
  for heading, kinds, name in (
    ('Loss', ('train', 'validation'), 'loss'),
    (title, ('validation',), score),
    ('Learning rate', ('train',), 'lr'),
  ):
    lines = []
    for index in order if name else ():
      run, color = runs[index], chosen.index(index) if index in chosen else None
      for kind in kinds:
        x, y = run.points(kind, name)
        share = name == score and form == 'percent'
        lines.append(
          svg.Line(
            f'{run.name}, {"training" if kind == "train" else "validation"}' if len(kinds) > 1 else run.name,
            x,
            100 * y if share else y,
            color,
            'thin' if kind == 'train' and len(kinds) > 1 else '',
            (color or 0) // LINES + (1 if kind == 'train' and len(kinds) > 1 else 0),
            _marked(run, x) if name == score else None,
          )
        )
    values = [line.y[np.isfinite(line.y)] for line in lines]
    values = [one for one in values if len(one)]
    if not values:
      continue
    least, most = min(one.min() for one in values), max(one.max() for one in values)
    log = name == 'loss' and 0 < 20 * least < most
    low, high = None, math.inf
    if name == score and form == 'percent':  # what matters happens near the top
      low = float(np.quantile(np.concatenate(values), 0.15))
      low, high = low - max(2.0, (float(most) - low) * 0.6), 100.0
    lost = sum(int((~np.isfinite(line.y)).sum()) for line in lines)
    notes = [f'{lost:,} points that are not finite are left out.'] if lost else []
    below = 0 if low is None or low >= most else sum(int((one < low).sum()) for one in values)
    if low is not None and below:
      notes.append(f'{below:,} below {low:.1f} % are not shown, the lowest {least:.1f} %.')
    told = ' '.join(notes)
    drawn = svg.chart(heading, lines, 'optimizer steps', log=log, low=low, high=high, description=told)
    panels.append(svg.figure(drawn, told))
  if not panels:
    return ''
  several = len(runs) > 1
  entries: list[tuple[str, int | None, str, int]] = []
  if several:
    entries += [(runs[index].name, color, '', color // LINES) for color, index in enumerate(chosen)]
  if len(runs) > len(chosen):
    entries.append((f'the {len(runs) - len(chosen)} others', None, '', 0))
  if any(len(run.points('train', 'loss')[0]) for run in runs):
    entries += [('training loss', 6 if several else 0, 'thin', 1), ('validation', 6 if several else 0, '', 0)]
  mark = any(run.result.best_step is not None and len(run.points('validation', score)[0]) for run in runs)
  told = ' The dot is the step whose model was tested.' if mark else ''
  return (
    f'<div class="charts">{"".join(panels)}</div>{svg.legend(entries)}'
    f'<p class="soft">The training loss includes what the recipe adds to it.{told}</p>'
  )


def _marked(run: Run, steps: np.ndarray) -> float | None:
  """The step whose model was tested, where the curve has it."""
  step = run.result.best_step
  return float(step) if step is not None and (steps == step).any() else None


def _guessed(runs: Sequence[Run]) -> tuple[str, str, str]:
  """The score of runs that were never tested: the first validation metric that is no loss."""
  names = [name for run in runs for name in run.points.names('validation') if name != 'loss']
  if not names:
    return '', '', ''
  name = names[0]
  shares = [run.points('validation', name)[1] for run in runs]
  share = all(((one >= 0) & (one <= 1)).all() for one in shares) and name in ('accuracy', 'average_precision')
  words = name.replace('_', ' ')
  return (f'Validation {words}, %', name, 'percent') if share else (f'Validation {words}', name, '{:.4g}')


def confusion(matrix: Any, names: Sequence[str], title: str) -> str:
  """Returns a confusion matrix: a table of counts of few classes, of many a picture and the pairs confused most.

  Args:
    matrix: float[C, C], labels in rows.
    names: C names, or none.
    title: what it shows.
  """
  counts = np.asarray(matrix, np.float64)
  if counts.ndim != 2 or counts.shape[0] != counts.shape[1] or not len(counts) or not np.isfinite(counts).all():
    return ''
  classes, total = len(counts), counts.sum()
  named = [str(named_class(names if len(names) == classes else (), index)) for index in range(classes)]
  share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1e-300)
  right = np.eye(classes, dtype=bool)
  # Mistakes are scaled among themselves: beside right answers near 100 % they would all look white.
  worst = max(0.1, float(share[~right].max(initial=0)))
  level = np.where(right, np.ceil(5 * share), np.ceil(5 * share / worst)).astype(int).clip(0, 5)
  level[counts == 0] = 0
  caption = f'{title}: {total:,.6g} examples, {total - np.trace(counts):,.6g} mistakes; true classes in rows'
  if classes <= _CELLS:
    head = ''.join(f'<th scope="col">{breakable(name, 12)}</th>' for name in named)
    body = []
    for row, name in enumerate(named):
      cells = []
      for column in range(classes):
        style = f' class="{"r" if row == column else "w"}{level[row, column]}"' if level[row, column] else ''
        told = f'{counts[row, column]:.4g}' if counts[row, column] else '<span class="soft">0</span>'
        cells.append(f'<td{style}>{told}</td>')
      body.append(f'<tr><th scope="row">{breakable(name, 14)}</th>{"".join(cells)}</tr>')
    said = escaped(caption)
    return (
      f'<div class="scroll" role="region" aria-label="{said}" tabindex="0"><table class="grid"><caption>{said}'
      f'</caption><thead><tr><td class="soft">true, predicted</td>{head}</tr></thead><tbody>{"".join(body)}</tbody>'
      '</table></div>'
    )
  mistakes = np.where(right, 0, counts)
  order = np.argsort(-mistakes, axis=None, kind='stable')[:_PAIRS]
  order = order[mistakes.ravel()[order] > 0]
  size = 320 / classes
  paths: dict[str, list[str]] = {}
  for row, column in [*((i, i) for i in range(classes)), *zip(*np.unravel_index(order, counts.shape), strict=True)]:
    if level[row, column]:
      kind = f'{"r" if row == column else "w"}{level[row, column]}'
      paths.setdefault(kind, []).append(
        f'M{20 + column * size:.4g} {24 + row * size:.4g}h{size:.3g}v{size:.3g}h-{size:.3g}z'
      )
  inside = [svg.text(0, 12, 'true classes down, predicted across', kind='title')]
  inside += [f'<path class="{kind}" d="{"".join(parts)}"/>' for kind, parts in sorted(paths.items())]
  inside.append('<path class="axis" d="M20 24h320v320h-320z"/>')
  drawn = svg.picture(title, caption, ''.join(inside), height=352)
  pairs = [
    [named[row], named[column], f'{counts[row, column]:g}', percent(share[row, column])]
    for row, column in zip(*np.unravel_index(order[:MOST], counts.shape), strict=True)
  ]
  head = ['true class', 'taken for', 'examples', 'of the class']
  listed = table('What is confused most', [head, *pairs]) if pairs else ''
  return f'<div class="map">{svg.figure(drawn, caption + ".")}</div>{listed}'


def ranked(evidence: Mapping[str, Any], metrics: Mapping[str, float], title: str) -> str:
  """Returns the curves in the unit square that a result holds: precision over recall, ROC, reliability."""
  made = []
  curve = _points(evidence.get('precision_recall'))
  if curve is not None:
    lines = [svg.Line('precision', curve[:, 0], curve[:, 1])]
    if {'recall', 'precision'} <= metrics.keys():
      lines.append(svg.Line('at the threshold', [metrics['recall']], [metrics['precision']], 1))
    caption = f'Precision over recall of {title} on the test split' + _of(
      metrics, 'average_precision', 'average precision'
    )
    made.append(svg.figure(_unit('Precision over recall', lines, 'recall', 'precision'), caption))
  curve = _points(evidence.get('roc'))
  if curve is not None:
    lines = [svg.Line('', [0, 1], [0, 1], None), svg.Line('recall', curve[:, 0], curve[:, 1])]
    caption = f'ROC of {title} on the test split' + _of(metrics, 'roc_auc', 'area')
    made.append(svg.figure(_unit('ROC', lines, 'false alarms of all negatives', 'recall'), caption))
  curve = _points(evidence.get('reliability'))
  if curve is not None:
    lines = [svg.Line('', [0, 1], [0, 1], None), svg.Line('right', curve[:, 0], curve[:, 1])]
    caption = (
      f'How often {title} is right on the test split, by how sure it says it is; on the grey line it would be right as '
      f'often as it says{_calibration(curve)}.'
    )
    made.append(svg.figure(_unit('Reliability', lines, 'said to be right', 'is right'), caption))
  return f'<div class="charts">{"".join(made)}</div>' if made else ''


def _calibration(curve: np.ndarray) -> str:
  """The expected calibration error of a reliability curve, [said, came true, weight] in rows."""
  if curve.shape[1] < 3 or not np.isfinite(curve).all() or not curve[:, 2].sum() > 0:
    return ''
  error = float(np.average(np.abs(curve[:, 0] - curve[:, 1]), weights=curve[:, 2]))
  return f'; expected calibration error {error:.4f}'


def _unit(title: str, lines: list[svg.Line], x: str, y: str) -> str:
  return svg.chart(title, lines, x, unit_square=True, y_name=y)


def _of(metrics: Mapping[str, float], name: str, words: str) -> str:
  return f'; {words} {metrics[name]:.4f}.' if name in metrics else '.'


def _points(value: Any) -> np.ndarray | None:
  """float[k, 2 or more] with one point or more; None where it is none."""
  try:
    points = np.asarray(value, np.float64)
  except (TypeError, ValueError):
    return None
  return points if points.ndim == 2 and len(points) and points.shape[1] >= 2 else None


def against_truth(evidence: Mapping[str, Any], names: Sequence[str], title: str) -> str:
  """Returns predictions over true values, a picture for each target of a regression."""
  true, predicted = _points_of(evidence.get('true')), _points_of(evidence.get('predicted'))
  if true is None or predicted is None or true.shape != predicted.shape:
    return ''
  made = []
  for index in range(min(8, true.shape[1])):
    a, b = true[:, index], predicted[:, index]
    good = np.isfinite(a) & np.isfinite(b)
    if not good.any():
      continue
    a, b = a[good][:600], b[good][:600]
    name = names[index] if index < len(names) else f'target {index}'
    x = svg.scale([a, b], 46, svg.WIDTH - 12)
    y = svg.scale([a, b], svg.HEIGHT - 34, 36)
    places = np.stack([x(a), y(b)], 1).round(1).tolist()
    marks = ''.join(f'<circle class="f0" cx="{u:g}" cy="{v:g}" r="2"/>' for u, v in places)
    ends = svg.path([x.start, x.end], [y.start, y.end])
    inside = svg.axes(name, x, y, 'true', 'predicted') + f'<path class="line faint" d="{ends}"/>{marks}'
    told = f'{len(a):,} examples; on the grey line a prediction would be the true value'
    made.append(svg.figure(svg.picture(f'Predicted over true values of {name}', told, inside), f'{title}: {told}.'))
  return f'<div class="charts">{"".join(made)}</div>' if made else ''


def _points_of(value: Any) -> np.ndarray | None:
  try:
    points = np.asarray(value, np.float64)
  except (TypeError, ValueError):
    return None
  return points if points.ndim == 2 and points.size else None


def layers(run: Run, most: int = 200) -> str:
  """Returns what is left of each layer: values, share of zeros with a bar, bits and bytes."""
  from jaxlite.deployment.inventory import stored_bytes

  of = run.result.layers
  if not of:
    return ''
  shown = of if len(of) <= most else sorted(of, key=lambda layer: -layer.size)[:most]
  rows: list[list[str]] = []
  for layer in shown:
    zero = 1 - layer.nonzero / max(1, layer.size)
    cell = Cell(f'{svg.bar(1 - zero)}') if layer.weight else ''
    size = stored_bytes(layer.size, layer.nonzero, layer.bits, layer.scales)
    rows.append(
      [layer.path, f'{layer.size:,}', f'{layer.nonzero:,}', percent(zero, 1), cell, str(layer.bits), f'{size:,}']
    )
  hidden = f', the {most} largest of {len(of):,} arrays' if len(of) > most else ''
  head = ['array', 'values', 'not zero', 'sparsity', 'left', 'bits', 'bytes']
  return table(f'Arrays of {run.name}{hidden}; bytes by a plain count', [head, *rows])


def between(low: float, expected: float, high: float, actual: float, words: str) -> str:
  """Returns a small picture of a forecast with its bounds, and of what came; '' where a number is missing."""
  values = [low, expected, high, actual]
  if not all(math.isfinite(value) and value >= 0 for value in values) or not max(values):
    return ''
  x = svg.scale([values], 8, 152, zero=True)
  a, b, c, d = (float(x(value)) for value in values)
  inside = (
    f'<path class="axis" d="M8 13H152"/><path class="line c0" d="M{a:.1f} 8H{c:.1f}"/>'
    f'<path class="line c0" d="M{b:.1f} 3V13"/>{svg.dot(d, 8, 1)}'
  )
  return f'<svg viewBox="0 0 160 16" width="160" height="16" role="img" aria-label="{escaped(words)}">{inside}</svg>'
