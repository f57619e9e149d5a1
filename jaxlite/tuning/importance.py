"""Which names of a space matter: the share of the scores' ranks that each of them, alone, accounts for."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from jaxlite.tuning.kinds import Choice, Space
from jaxlite.tuning.ledger import Trial

_BINS, _LEAST = 4, 8  # of a range's values; trials below which nothing is told


def importances(trials: Sequence[Trial], scores: Sequence[float], space: Space) -> dict[str, float]:
  """Returns by name the share of the scores' ranks that groups of its values account for, the largest first.

  A range is cut into four groups of as many trials each, a choice into its values: so a best rate in the middle is seen
  too. It is the variance between groups (epsilon squared, which chance alone leaves at 0): what two names do together
  is not in it.

  Args:
    trials: with a score.
    scores: one each; which is better does not matter.
    space: that the trials are of.

  Returns:
    Shares in [0, 1]; {} of fewer than eight trials, or where all scores are alike.

  References:
    Kruskal and Wallis, Use of Ranks in One-Criterion Variance Analysis, 1952, https://doi.org/10.2307/2280779

  >>> rows = [Trial(i, i, {'x': i / 9, 'y': i % 2}, '', '', '', 0, 1, 0, -1, -1, 0, {}, '') for i in range(10)]
  >>> found = importances(rows, [(i / 9 - 0.5) ** 2 for i in range(10)], {'x': Choice((0,)), 'y': Choice((0, 1))})
  >>> found['y']
  0.0
  """
  count = len(trials)
  if count < _LEAST:
    return {}
  ranks = _ranks(np.asarray(scores, np.float64))
  total = float(((ranks - ranks.mean()) ** 2).sum())
  if not total > 0:
    return {}
  found = {}
  for name, kind in space.items():
    column = np.asarray([trial.given[name] for trial in trials], np.float64)
    groups = column if isinstance(kind, Choice) else np.floor(_ranks(column) * _BINS / count)
    names = np.unique(groups)
    within = sum(float(((ranks[groups == one] - ranks[groups == one].mean()) ** 2).sum()) for one in names)
    if len(names) < 2 or len(names) >= count:
      found[name] = 0.0
      continue
    share = 1 - (within / (count - len(names))) / (total / (count - 1))
    found[name] = max(0.0, share) if math.isfinite(share) else 0.0
  return dict(sorted(found.items(), key=lambda pair: -pair[1]))


def _ranks(values: np.ndarray) -> np.ndarray:
  """Ranks from 0, equal values sharing their mean."""
  _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
  ends = np.cumsum(counts)
  return ((ends - counts + ends - 1) / 2)[inverse]
