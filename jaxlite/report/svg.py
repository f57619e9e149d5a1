"""Pictures as inline SVG: axes with round numbers, lines, marks and bars, in the colors of the page around them.

A picture is text in the page: sharp at any size, dark where the page is dark, and read aloud by its title and
description. Its width is 360 units, about that of a phone, so that its letters can be read there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxlite.report.markup import escaped
from jaxlite.report.style import LINES
from jaxlite.report.thinning import thinned

WIDTH, HEIGHT = 360, 236
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 12, 28, 34
_POINTS = 2_400  # columns of all lines of a kind together
_KINDS = (lambda line: line.color is not None, lambda line: line.color is None)
_DASHES = ('', '7 3', '2 3', '8 3 2 3')
_MOST = 1.7e308  # ends of an axis are floats
_LETTER = 6.1  # width of one at 11 px, about
_NAMED = 6  # points that all have their name beside them; of more, those on the line


class Line(NamedTuple):
  """A curve.

  Attributes:
    name: for the legend.
    x, y: float[N]; what is not finite is left out.
    color: of `style`, 0 and up; None for the faint ones behind.
    kind: '' or 'thin'.
    dash: index of a pattern: what tells two lines of one color apart.
    mark: the x of the point that is marked; None for none.
  """

  name: str
  x: Any
  y: Any
  color: int | None = 0
  kind: str = ''
  dash: int = 0
  mark: float | None = None


class Scale(NamedTuple):
  """From values to places along an axis.

  Attributes:
    low, high: the values at its ends.
    log: by orders of magnitude.
    start, end: places of the ends.
  """

  low: float
  high: float
  log: bool
  start: float
  end: float

  def __call__(self, values: Any) -> np.ndarray:
    """Returns places, those outside brought to a little past the end."""
    values = np.asarray(values, np.float64)
    if self.log:
      low, high = math.log10(self.low), math.log10(self.high)
      share = (np.log10(np.maximum(values, 1e-300)) - low) / (high - low)
    else:  # halves: the width of a range of the largest floats is itself no float
      share = (values / 2 - self.low / 2) / (self.high / 2 - self.low / 2)
    return self.start + (self.end - self.start) * np.clip(share, -0.02, 1.02)

  def ticks(self, most: int) -> list[float]:
    """Returns round values between its ends, ascending."""
    return _log_ticks(self.low, self.high, most) if self.log else _ticks(self.low, self.high, most)


def scale(values: Iterable[Any], start: float, end: float, *, log: bool = False, zero: bool = False) -> Scale:
  """Returns a Scale that shows all finite values, with some room.

  Args:
    values: float[N] each.
    start, end: places of the lowest and the highest.
    log: by orders of magnitude, where all are positive.
    zero: begins at 0.
  """
  finite = [array[np.isfinite(array)] for array in (np.asarray(one, np.float64).ravel() for one in values)]
  ends = [end for one in finite if len(one) for end in (one.min(), one.max())] or [0.0, 1.0]
  low, high = float(min(ends)), float(max(ends))
  if log and low > 0:
    return Scale(low / 1.1, min(high * 1.1, _MOST), True, start, end)
  if low == high > 0:  # one value: seen from 0
    return Scale(0.0, min(1.25 * high, _MOST), False, start, end)
  room = (high / 2 - low / 2) * 0.12 or 0.05 * abs(high) or 0.5
  bottom = max(low - room, -_MOST) if low < 0 else 0.0 if zero else max(low - room, 0.0)
  high = high if zero and high > 0 else min(high + room, _MOST)
  return Scale(bottom, high if high > bottom else bottom + 1.0, False, start, end)


def _ticks(low: float, high: float, most: int) -> list[float]:
  rough = (high / 2 - low / 2) / max(1, most) * 2
  if not math.isfinite(rough) or rough <= 0:
    return [low, high]
  size = 10.0 ** math.floor(math.log10(rough)) or rough
  step = next((size * of for of in (1, 2, 2.5, 5, 10) if size * of >= rough * 0.999), size * 10)
  first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
  if last - first > 4 * most:
    return [low, high]
  return [index * step for index in range(first, last + 1)] if last - first > 0 else [low, high]


def _log_ticks(low: float, high: float, most: int) -> list[float]:
  first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
  for of, every in (((1, 2, 5), 1), ((1, 3), 1), *(((1,), every) for every in (1, 2, 3, 5, 10, 20, 50, 100))):
    found = [one * 10.0**power for power in range(first, last + 1, every) for one in of]
    found = [one for one in found if low <= one <= high]
    if 2 <= len(found) <= most + 1:
      return found
  return [low, high]


def number(value: float, step: float | None = None) -> str:
  """Writes a number for an axis: short, with as many digits as a step needs.

  >>> number(1500000), number(0.25), number(20000, 5000), number(1e-7)
  ('1.5M', '0.25', '20k', '1e-07')
  """
  if not math.isfinite(value):
    return str(value)
  for size, letter in ((1e9, 'G'), (1e6, 'M'), (1e3, 'k')):
    if abs(value) >= size * (10 if letter == 'k' else 1) and abs(value) < 1e12:
      return f'{value / size:.4g}{letter}'
  if step and 1e-4 < abs(step) < 1e4 and abs(value) < 1e6:
    digits = max(0, -math.floor(math.log10(abs(step)) + 1e-9))
    text = f'{value:.{min(6, digits + 1)}f}'
    return (text.rstrip('0').rstrip('.') or '0').replace('-0', '0') if float(text) == 0 else _short(text)
  return f'{value:.4g}' if 1e3 <= abs(value) < 1e4 else f'{value:.3g}'


def _short(text: str) -> str:
  return text.rstrip('0').rstrip('.') if '.' in text else text


def path(x: Any, y: Any) -> str:
  """Returns the data of a path through points, a tenth of a unit exact."""
  points = np.round(np.stack([np.asarray(x, float), np.asarray(y, float)], 1), 1)
  return 'M' + 'L'.join(f'{a:g} {b:g}' for a, b in points.tolist())


def picture(title: str, description: str, inside: str, *, width: float = WIDTH, height: float = HEIGHT) -> str:
  """Returns an SVG element that is told as one picture.

  Args:
    title: what it is, shown by whoever draws `inside`.
    description: what a person who does not see it should know.
    inside: its elements.
    width, height: in units.
  """
  told = escaped(f'{title}. {description}')
  return f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{told}">{inside}</svg>'


def figure(drawn: str, caption: str = '') -> str:
  """Returns a picture with its caption."""
  told = f'<figcaption>{escaped(caption)}</figcaption>' if caption else ''
  return f'<figure>{drawn}{told}</figure>'


def text(x: float, y: float, said: str, anchor: str = 'start', kind: str = '') -> str:
  """Returns text at a place; it is cut where a picture has no room for it."""
  kind = f' class="{kind}"' if kind else ''
  return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{kind}>{escaped(said)}</text>'


def clipped(said: str, most: int) -> str:
  """Returns the end of a long name.

  >>> clipped('encoder/layer/kernel', 7)
  '…kernel'
  """
  return said if len(said) <= most else '…' + said[1 - most :]


def axes(title: str, x: Scale, y: Scale, x_name: str, y_name: str = '', write: Callable[..., str] = number) -> str:
  """Returns title, both axes, faint lines across, and what stands on the axes."""
  made = [text(0, 12, title, kind='title')]
  across = [one for one in y.ticks(5) if y.low <= one <= y.high]
  step = across[1] - across[0] if len(across) > 1 and not y.log else None
  for value in across:
    place = float(y(value))
    made.append(f'<path class="across" d="M{x.start:g} {place:.1f}H{x.end:g}"/>')
    made.append(text(x.start - 5, place + 4, write(value, step), 'end'))
  along = [one for one in x.ticks(4) if x.low <= one <= x.high]
  step = along[1] - along[0] if len(along) > 1 and not x.log else None
  for value in along:
    said = number(value, step)
    half = len(said) * _LETTER / 2
    place = min(max(float(x(value)), half), WIDTH - half)
    made.append(text(place, y.start + 15, said, 'middle'))
  made.append(f'<path class="axis" d="M{x.start:g} {y.start:g}H{x.end:g}"/>')
  made.append(text((x.start + x.end) / 2, y.start + 30, x_name, 'middle'))
  if y_name:
    made.append(text(x.start, 25, y_name))
  return ''.join(made)


def chart(
  title: str,
  lines: Sequence[Line],
  x_name: str,
  *,
  description: str = '',
  log: bool = False,
  unit_square: bool = False,
  y_name: str = '',
  low: float | None = None,
  high: float = math.inf,
  x_log: bool = False,
) -> str:
  """Returns a picture of curves.

  Args:
    title: over it.
    lines: the first lie behind the others.
    x_name, y_name: what the axes are.
    description: for who does not see it; names of lines and their last values are added where they are few.
    log: the vertical axis by orders of magnitude, where all values are positive.
    unit_square: both axes from 0 to 1.
    low: the lowest value that is shown; None shows all.
    high: where the axis ends unless a value is above: a share has no room beyond 100 %.
    x_log: the horizontal axis by orders of magnitude.

  Returns:
    An SVG element; a line of text where there is no point.
  """
  # Of many lines each has fewer points: the page stays small, and a peak is still one.
  columns, behind = (max(12, min(WIDTH - _LEFT, _POINTS // max(1, sum(one(line) for line in lines)))) for one in _KINDS)
  drawn = [
    line._replace(x=x, y=y)
    for line in lines
    for x, y in [thinned(line.x, line.y, behind if line.color is None else columns)]
    if len(x)
  ]
  if not drawn:
    return f'<p class="soft">{escaped(title)}: there is no point to draw.</p>'
  right, bottom = WIDTH - _RIGHT, HEIGHT - _BOTTOM
  top = _TOP + 8 * bool(y_name)
  if unit_square:
    x, y = Scale(0, 1, False, _LEFT, right), Scale(0, 1, False, bottom, top)
  else:
    x = scale([line.x for line in drawn], _LEFT, right, log=x_log, zero=not x_log)
    y = scale([line.y for line in drawn], bottom, top, log=log)
    y = y if low is None or low >= y.high else y._replace(low=max(low, y.low))
    if y.low < high < y.high and all(
      np.nanmax(np.where(np.isfinite(line.y), line.y, -np.inf)) <= high for line in drawn
    ):
      y = y._replace(high=high)
  made = [axes(title, x, y, x_name, y_name)]
  faint = ''.join(path(x(line.x), y(line.y)) for line in drawn if line.color is None and len(line.x) > 1)
  made.append(f'<path class="line faint" d="{faint}"/>' if faint else '')
  made += [_drawn(line, x, y) for line in drawn if line.color is not None]
  named = [line for line in drawn if line.color is not None and line.name][:8]
  ends = '; '.join(f'{line.name}: {line.y[0]:.4g} at first, {line.y[-1]:.4g} at last' for line in named)
  return picture(title, ' '.join(filter(None, (description, ends))), ''.join(made))


def _drawn(line: Line, x: Scale, y: Scale) -> str:
  color = (line.color or 0) % LINES
  if len(line.x) == 1 and line.kind != 'thin':
    return dot(float(x(line.x[0])), float(y(line.y[0])), color)
  if len(line.x) == 1:  # a mean over all of training: a dot is the step that was tested
    place = float(x(line.x[0])) + np.array([-5.0, 5.0])
    return f'<path class="line thin c{color}" d="{path(place, np.repeat(y(line.y[0]), 2))}"/>'
  dash = _DASHES[line.dash % len(_DASHES)]
  dashed = f' stroke-dasharray="{dash}"' if dash else ''
  made = f'<path class="line {line.kind} c{color}"{dashed} d="{path(x(line.x), y(line.y))}"/>'
  if line.mark is None:
    return made
  near = int(np.abs(line.x - line.mark).argmin())
  return made + dot(float(x(line.x[near])), float(y(line.y[near])), color)


def dot(x: float, y: float, color: int, radius: float = 4) -> str:
  """Returns a mark with a thin ring of the ground's color around it."""
  return f'<circle class="ring f{color % LINES}" cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}"/>'


def legend(entries: Sequence[tuple[str, int | None, str, int]]) -> str:
  """Returns what lines mean: (name, color, kind, dash) each, as of `Line`."""
  items = []
  for name, color, kind, dash in entries:
    style = 'faint' if color is None else f'{kind} c{color % LINES}'
    dashed = f' stroke-dasharray="{_DASHES[dash % len(_DASHES)]}"' if dash % len(_DASHES) else ''
    items.append(
      f'<li><svg viewBox="0 0 30 10" aria-hidden="true"><path class="line {style}"{dashed} d="M1 6H29"/></svg>'
      f'{escaped(name)}</li>'
    )
  return f'<ul class="legend">{"".join(items)}</ul>' if items else ''


def bar(share: float, color: int = 0) -> str:
  """Returns a small bar beside a number that a table tells: decoration, not read aloud."""
  width = 100 * min(1.0, max(0.0, share if math.isfinite(share) else 0.0))
  filled = f'<rect class="f{color % LINES}" width="{width:.3g}" height="10"/>' if width else ''
  return (
    '<svg class="bar" viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true">'
    f'<rect class="track" width="100" height="10"/>{filled}</svg>'
  )


def scatter(
  title: str,
  points: Sequence[tuple[str, float, float, int]],
  x_name: str,
  y_name: str,
  *,
  description: str = '',
  front: Sequence[int] = (),
  log: bool = True,
) -> str:
  """Returns a picture of named points.

  Args:
    title: over it.
    points: (name, x, y, color) each.
    x_name, y_name: what the axes are.
    description: for who does not see it.
    front: indices of points that a line joins; of many points these are named.
    log: the horizontal axis by orders of magnitude, where all are positive and far apart.
  """
  good = [index for index, (_, a, b, _) in enumerate(points) if math.isfinite(a) and math.isfinite(b)]
  if not good:
    return f'<p class="soft">{escaped(title)}: there is no point to draw.</p>'
  xs, ys = [points[index][1] for index in good], [points[index][2] for index in good]
  far = log and min(xs) > 0 and max(xs) > 20 * min(xs)
  x = scale([xs], _LEFT, WIDTH - _RIGHT, log=far)
  y = scale([ys], HEIGHT - _BOTTOM, _TOP + 8)
  made = [axes(title, x, y, x_name, y_name)]
  line = sorted((index for index in front if index in good), key=lambda index: points[index][1:3])
  if len(line) > 1:
    where = path(x([points[index][1] for index in line]), y([points[index][2] for index in line]))
    made.append(f'<path class="line faint" d="{where}"/>')
  made += [dot(float(x(points[i][1])), float(y(points[i][2])), points[i][3], 3.6) for i in good]
  for index in good if len(good) <= _NAMED else (line if len(line) > 1 else good)[:12]:
    name, a, b, _ = points[index]
    place, anchor = float(x(a)), 'start'
    if place + 8 + len(name) * _LETTER > WIDTH:
      anchor = 'end'
    room = int((WIDTH - place - 8 if anchor == 'start' else place - 8) / _LETTER)
    made.append(text(place + (7 if anchor == 'start' else -7), float(y(b)) - 5, clipped(name, max(3, room)), anchor))
  return picture(title, description, ''.join(made))
