"""Pictures of a study: its history, parallel coordinates, which fields matter, and the front of two goals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxlite.tasks.figures import COLORS, FAINT, SOFT, clip, dress, figure, label_axes, set_title
from jaxlite.tuning.kinds import Choice, Range, Space, share, written
from jaxlite.tuning.ledger import COMPLETE, Report, Trial
from jaxlite.tuning.outcome import Goal

_MOST = 500  # trials whose lines are drawn


def history(trials: Sequence[Trial], reports: Sequence[Report], goal: Goal, name: str) -> Any:
  """Draws every trial's curve, those that were stopped early fainter, and the best so far.

  Args:
    trials: of the study.
    reports: scores on the way, larger is better.
    goal: what they are of.
    name: of the study.

  Returns:
    The figure.
  """
  made = figure(8, 4)
  curves, bests = made.subplots(1, 2)
  sign = 1 if goal.maximize else -1
  by_number = {trial.number: trial for trial in trials}
  rows: dict[int, list[Report]] = {}
  for one in reports:
    rows.setdefault(one.number, []).append(one)
  for number, curve in list(rows.items())[:_MOST]:
    whole = number in by_number and by_number[number].state == COMPLETE
    points = [(100 * one.share, sign * one.value) for one in curve if math.isfinite(one.value)]
    if not points:
      continue
    color, size = (COLORS[0], 1.0) if whole else (COLORS[1], 0.8)
    curves.plot(*zip(*points, strict=True), color=color, alpha=0.5, linewidth=size, marker='.', markersize=3)
  dress(curves, name)
  set_title(curves, name, 'validation on the way; orange was stopped or interrupted')
  label_axes(curves, '% of the run', goal.name)
  done = [one for one in trials if math.isfinite(one.found.get(goal.name, math.nan))]
  places = [one.place for one in done]
  values = np.array([one.found[goal.name] for one in done], np.float64)
  beyond = False
  bests.scatter(places, values, s=14, color=SOFT, alpha=0.6, linewidths=0)
  if len(values):
    run = np.maximum.accumulate(values) if goal.maximize else np.minimum.accumulate(values)
    bests.step(places, run, where='post', color=COLORS[0])
    low, high, beyond = _seen(values, goal)
    room = 0.04 * (high - low) or 0.5
    if beyond:  # one that came to nothing would press all others into a line
      bests.set_ylim(low - room, high + room)
      far = values < low if goal.maximize else values > high
      edge = low - room / 2 if goal.maximize else high + room / 2
      outside = [place for place, one in zip(places, far, strict=True) if one]
      bests.scatter(
        outside, [edge] * len(outside), s=16, marker='v' if goal.maximize else '^', color=SOFT, linewidths=0
      )
  dress(bests, '')
  set_title(bests, ' ', 'by trial; triangles lie beyond' if beyond else 'by trial, and the best so far')
  label_axes(bests, 'trial', goal.name)
  bests.xaxis.get_major_locator().set_params(integer=True)
  return made


def _seen(values: np.ndarray, goal: Goal) -> tuple[float, float, bool]:
  """From where to where values are drawn, and whether bad ones lie beyond: what lies far out is not all there is."""
  low, high = float(values.min()), float(values.max())
  first, third = (float(np.quantile(values, share)) for share in (0.25, 0.75))
  far = 1.5 * (third - first)
  if goal.maximize and low < first - far < high:
    return float(values[values >= first - far].min()), high, True
  if not goal.maximize and high > third + far > low:
    return low, float(values[values <= third + far].max()), True
  return low, high, False


def parallel(trials: Sequence[Trial], goal: Goal, space: Space, name: str) -> Any:
  """Draws each trial as a line through its values, the better the darker.

  Args:
    trials: with a score.
    goal: what colors them.
    space: the axes.
    name: of the study.

  Returns:
    The figure.
  """
  from matplotlib import colormaps

  made = figure(max(6.0, 1.7 * (len(space) + 1)), 4.4)
  axes = made.add_subplot()
  values = np.array([one.found[goal.name] for one in trials], np.float64)
  order = np.argsort(values if goal.maximize else -values)
  ranks = np.empty(len(values))
  ranks[order] = np.linspace(0, 1, len(values)) if len(values) > 1 else 1.0
  low, high, cut = _seen(values, goal)
  paint = colormaps['viridis_r']
  for place in order[-_MOST:]:
    trial = trials[place]
    # Lines through one value of a choice would lie on each other: each gets a height of its own there.
    heights = [
      share(kind, trial.given[one]) + (0.05 * (ranks[place] - 0.5) if isinstance(kind, Choice) else 0.0)
      for one, kind in space.items()
    ]
    score = min(1.0, max(0.0, (values[place] - low) / (high - low))) if high > low else 0.5
    axes.plot([*heights, score], color=paint(ranks[place]), alpha=0.35 + 0.6 * ranks[place] ** 2, linewidth=1.2)
  names = [*space, goal.name]
  for place, kind in enumerate(space.values()):
    for height, text in _ticks(kind):
      _text(axes, place, height, text)
    axes.axvline(place, color=FAINT, zorder=0)
  axes.axvline(len(space), color=FAINT, zorder=0)
  signs = ('≤ ' if cut and goal.maximize else '', '≥ ' if cut and not goal.maximize else '')
  for height, value, sign in ((0, low, signs[0]), (1, high, signs[1])):
    _text(axes, len(space), height, f'{sign}{value:.4g}')
  axes.set_xticks(range(len(names)), [clip(one, 24) for one in names])
  for label in axes.get_xticklabels():
    label.set_parse_math(False)
  axes.set_yticks([])
  axes.set_ylim(-0.06, 1.06)
  axes.spines[:].set_visible(False)
  set_title(axes, name, f'{len(trials)} trials, the better the darker')
  return made


def _ticks(kind: Choice | Range) -> list[tuple[float, str]]:
  if isinstance(kind, Choice):
    return [(share(kind, place), clip(written(value), 14)) for place, value in enumerate(kind.values[:20])]
  if kind.log and kind.high > 10 * kind.low:
    tens = range(math.ceil(math.log10(kind.low) + 0.2), math.floor(math.log10(kind.high) - 0.2) + 1)
    inner = [10.0**power for power in tens]
    return [(share(kind, one), f'{one:.4g}') for one in (kind.low, *inner, kind.high)]
  return [(0.0, written(kind.low)), (1.0, written(kind.high))]


def _text(axes: Any, x: float, y: float, text: str) -> None:
  box = {'boxstyle': 'round,pad=0.15', 'facecolor': 'white', 'edgecolor': 'none', 'alpha': 0.85}
  place = {'textcoords': 'offset points', 'va': 'center', 'bbox': box, 'zorder': 5}
  axes.annotate(text, (x, y), (5, 0), size=8, color='black', **place).set_parse_math(False)


def importance(shares: Mapping[str, float], goal: Goal, how: str, name: str) -> Any:
  """Draws how much each name of a space matters.

  Args:
    shares: by name.
    goal: for what.
    how: they were found.
    name: of the study.

  Returns:
    The figure.
  """
  made = figure(6.5, 1.4 + 0.35 * len(shares))
  axes = made.add_subplot()
  rows = sorted(shares.items(), key=lambda pair: pair[1])
  axes.barh(range(len(rows)), [value for _, value in rows], color=COLORS[0], height=0.6)
  axes.set_yticks(range(len(rows)), [clip(one) for one, _ in rows])
  for label in axes.get_yticklabels():
    label.set_parse_math(False)
  dress(axes, name)
  set_title(axes, f'{name}: what {goal.name} depends on', how)
  axes.set_xlim(0, max(1e-9, max(shares.values())) * 1.08)
  return made


def pareto(trials: Sequence[Trial], front: Sequence[Trial], goals: Sequence[Goal], name: str) -> Any:
  """Draws two goals against each other, and the trials that no other beats in both.

  Args:
    trials: complete, with both.
    front: those of them.
    goals: two.
    name: of the study.

  Returns:
    The figure.
  """
  made = figure(6.5, 4.5)
  axes = made.add_subplot()
  first, second = goals
  points = [(one.found[second.name], one.found[first.name]) for one in trials]
  axes.scatter(*zip(*points, strict=True), s=22, color=SOFT, alpha=0.5, linewidths=0)
  edge = sorted((one.found[second.name], one.found[first.name], one.number) for one in front)
  if edge:  # of what is to be small, the best within x is that of the last point; of what is to be large, of the next
    where = 'pre' if second.maximize else 'post'
    axes.step([one[0] for one in edge], [one[1] for one in edge], where=where, color=COLORS[0], linewidth=1.2)
    axes.scatter([one[0] for one in edge], [one[1] for one in edge], s=34, color=COLORS[0], zorder=3)
    for x, y, number in edge[:20]:
      axes.annotate(str(number), (x, y), (4, 5), textcoords='offset points', size=8, color=SOFT)
  if points and min(x for x, _ in points) > 0 and max(x for x, _ in points) > 20 * min(x for x, _ in points):
    axes.set_xscale('log')
  dress(axes, name)
  set_title(axes, name, f'{len(front)} of {len(trials)} trials that no other beats in both, by number')
  label_axes(axes, second.name, first.name)
  return made
