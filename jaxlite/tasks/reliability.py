"""Whether a probability means what it says: of what is given 80 %, four in five come true.

What belongs here: the reliability curve and the expected calibration error, on the host, in float64.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from jaxlite.errors import whole
from jaxlite.tasks import curves
from jaxlite.tasks.labels import as_array

BY = ('uniform', 'quantile')


class ReliabilityCurve(NamedTuple):
  """What was said and what came true, bin by bin; bins that hold nothing are left out.

  Attributes:
    share: float64[k], how much of a bin came true.
    probability: float64[k], the mean of what was said.
    weight: float64[k], the weight of the bin's examples.
  """

  share: np.ndarray
  probability: np.ndarray
  weight: np.ndarray


def reliability_curve(
  labels: Any, probabilities: Any, weight: Any = None, *, bins: int = 15, by: str = 'uniform'
) -> ReliabilityCurve:
  """Compares probabilities with what came true.

  Args:
    labels: bool or 0 and 1, [N]; or classes, int[N], where `probabilities` has a column for each.
    probabilities: float[N], of being positive; or float[N, C], of which the largest of each row is looked at: how sure
      the model is, and whether it is right. More axes than N (tokens, pixels) are taken as so many examples.
    weight: float[N], at least 0, or None: all alike.
    bins: how many.
    by: 'uniform', bins of one width over [0, 1]; 'quantile', of as many examples each.

  Raises:
    ValueError: NaN, logits instead of probabilities, labels or shapes that do not fit, no example with a weight.

  References:
    Niculescu-Mizil and Caruana, Predicting good probabilities with supervised learning, 2005,
    https://doi.org/10.1145/1102351.1102430

  >>> curve = reliability_curve([0, 0, 1, 1], [0.1, 0.3, 0.6, 0.8], bins=2)
  >>> curve.share.tolist(), curve.probability.tolist()
  ([0.0, 1.0], [0.2, 0.7])
  """
  return _curve('reliability_curve', labels, probabilities, weight, bins, by)


def calibration_error(
  labels: Any, probabilities: Any, weight: Any = None, *, bins: int = 15, by: str = 'uniform'
) -> float:
  """Measures how far probabilities are from what comes true: the expected calibration error (ECE).

  Args:
    labels, probabilities, weight, bins, by: as of `reliability_curve`.

  Returns:
    The mean over bins of |share - probability|, by their weight: a float in [0, 1]. It is never quite 0: with few
    examples in a bin, chance alone is a part of it.

  Raises:
    ValueError: as of `reliability_curve`.

  References:
    Guo et al., On calibration of modern neural networks, 2017, https://arxiv.org/abs/1706.04599

  >>> round(calibration_error([0, 0, 1, 1], [0.1, 0.3, 0.6, 0.8], bins=2), 4)
  0.25
  """
  curve = _curve('calibration_error', labels, probabilities, weight, bins, by)
  return float(np.average(np.abs(curve.share - curve.probability), weights=curve.weight))


def _curve(name: str, labels: Any, probabilities: Any, weight: Any, bins: int, by: str) -> ReliabilityCurve:
  count = whole(bins, f'{name}: bins', least=1)
  if by not in BY:
    raise ValueError(f'{name}: by is one of {", ".join(map(repr, BY))}; got {by!r}')
  labels, said = as_array(labels, f'labels of {name}'), curves.numbers(name, 'probabilities', probabilities)
  if said.size and (said.min() < 0 or said.max() > 1 + 1e-6):
    raise ValueError(f'{name} takes probabilities, in [0, 1]; got {said.min():g} to {said.max():g}: use '
                     'jax.nn.softmax(logits), or jax.nn.sigmoid of a single one')  # fmt: skip
  if said.ndim == labels.ndim + 1 and said.shape[-1] > 1:
    shape = labels.shape
    true, said = _of_the_surest(name, labels, said)
  else:
    shape = labels.shape
    labels, said, _ = curves.columns(name, labels.ravel(), said.ravel(), None)
    true = labels
  if weight is not None and np.shape(weight) == shape:
    weight = np.ravel(weight)
  weight = curves.weights(name, weight, len(true))
  used = weight > 0
  true, said, weight = true[used], np.minimum(said[used], 1.0), weight[used]
  edges = np.linspace(0, 1, count + 1)
  edges = np.percentile(said, edges * 100) if by == 'quantile' else edges
  which = np.searchsorted(edges[1:-1], said)
  total, right, sums = (np.bincount(which, weight * of, minlength=count) for of in (np.ones(len(said)), true, said))
  held = total > 0
  return ReliabilityCurve(right[held] / total[held], sums[held] / total[held], total[held])


def _of_the_surest(name: str, labels: np.ndarray, said: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Whether the most probable class is the right one, bool[N], and how probable it was said to be."""
  classes, rows = labels.ravel(), said.reshape(-1, said.shape[-1])
  if len(classes) != len(rows) or labels.shape != said.shape[:-1]:
    shapes = f'{list(labels.shape)} and {list(said.shape)}'
    raise ValueError(f'{name} takes labels [N] with probabilities [N, C]; got {shapes}')
  if classes.dtype.kind not in 'biu':
    raise ValueError(f'{name}: with probabilities [N, {rows.shape[1]}] labels are classes; got {classes.dtype}')
  if classes.size and (classes.min() < 0 or classes.max() >= rows.shape[1]):
    raise ValueError(f'{name}: labels are classes from 0 to {rows.shape[1] - 1}; got {classes.min()} to '
                     f'{classes.max()}')  # fmt: skip
  curves.check_shares(name, rows)
  surest = rows.argmax(1)
  return surest == classes, rows[np.arange(len(rows)), surest]
