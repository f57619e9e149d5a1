"""Which features matter: how much each tells of the labels, and what a trained network loses without it.

Mutual information looks at one feature at a time, costs a sort of it, and misses what only two together tell.
Permutation importance asks a network, and so sees what that network uses. Sizes of first weights are no measure: they
follow the scale of a feature, and of two that say the same either may be the one that was taken.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from jaxlite.data.inputs import as_array
from jaxlite.data.projection import Projection, blocks_of, whole_components
from jaxlite.errors import whole

_BINS = 16
_MOST = 20_000_000  # values that mutual information looks at


class Importance(NamedTuple):
  """What shuffling each feature costs.

  Attributes:
    mean: float64 [features], of the fall of the score over repeats.
    deviation: float64 [features], of the same.
  """

  mean: np.ndarray
  deviation: np.ndarray


def mutual_information(inputs: Any, labels: Any, *, bins: int = _BINS) -> np.ndarray:
  """Returns how many nats each feature alone tells of the labels, float64 [features].

  A feature of more than `bins` values is cut into `bins` parts of as many rows each; so are labels that are floats.
  What chance alone would seem to tell, (a - 1)(b - 1) / 2N for a and b parts, is taken off, and nothing is below 0.

  Args:
    inputs: floats or uint8 [N, ...], flattened.
    labels: [N], classes or numbers; or [N, k], of which the one it tells most of counts.
    bins: at least 2.

  Raises:
    ValueError: labels of another form, NaN, ids.

  References:
    Miller, Note on the bias of information estimates, 1955

  >>> rows = np.random.default_rng(0).normal(size=(1000, 2))
  >>> found = mutual_information(rows, rows[:, 0] > 0)
  >>> bool(found[0] > 0.6), bool(found[1] < 0.01)
  (True, True)
  """
  whole(bins, 'bins', least=2)
  targets = as_array(labels, 'labels')
  targets = targets[:, None] if targets.ndim == 1 else targets
  if targets.ndim != 2 or targets.dtype.kind not in 'biufUSO':
    raise ValueError(f'labels are [N] or [N, k] where features are chosen by them; got {list(targets.shape)}')
  blocks, shape = blocks_of(inputs)
  apart = max(1, -(-len(targets) // max(1000, _MOST // int(np.prod(shape)))))  # every so many rows are looked at
  rows, start = [], 0
  for block in blocks():
    rows.append(block[-start % apart :: apart])
    start += len(block)
  if start != len(targets):
    raise ValueError(f'every example has a label; got {start} rows and {len(targets)} labels')
  features = np.concatenate(rows)
  parts = [_parts(one, bins) for one in targets[::apart].T]
  return np.array([max(_told(_parts(feature, bins), label) for label in parts) for feature in features.T])


def _parts(values: np.ndarray, bins: int) -> np.ndarray:
  """The part that each value is in, int64 [N]: equal values in one; all values of their own where they are few."""
  kinds, index = np.unique(values, return_inverse=True)
  if len(kinds) <= bins or values.dtype.kind not in 'f':
    return index
  edges = np.quantile(values, np.arange(1, bins) / bins)
  return np.searchsorted(np.unique(edges), values, side='right')


def _told(one: np.ndarray, other: np.ndarray) -> float:
  """Mutual information of two columns of parts, in nats, less what chance makes of it."""
  one, other = (np.unique(parts, return_inverse=True)[1] for parts in (one, other))
  shape = (one.max(initial=0) + 1, other.max(initial=0) + 1)
  joint = np.bincount(one * shape[1] + other, minlength=shape[0] * shape[1]).reshape(shape) / len(one)
  apart = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
  there = joint > 0
  told = float((joint[there] * np.log(joint[there] / apart[there])).sum())
  return max(0.0, told - (shape[0] - 1) * (shape[1] - 1) / (2 * len(one)))


def permutation_importance(
  predict: Callable[[Any], Any],
  inputs: Any,
  labels: Any,
  score: Callable[[Any, Any], float],
  *,
  repeats: int = 5,
  seed: int = 0,
) -> Importance:
  """Measures how much a network's score falls when one feature's values change places among the rows.

  Give it rows that the network was not trained on (validation, never test): on its own training rows a network needs
  what it has learned by heart. Features that say the same hide each other: each alone seems to cost nothing.

  Args:
    predict: inputs [N, ...] -> outputs, such as `jl.load(workdir).predict`.
    inputs: numbers [N, ...]; each entry of an example is a feature.
    labels: [N, ...].
    score: (outputs, labels) -> a number, larger is better.
    repeats: shuffles of each feature.
    seed: of the shuffles.

  Returns:
    The Importance; `mean` is what `jl.data.reduce` and `select` take.

  References:
    Breiman, Random Forests, 2001, https://doi.org/10.1023/A:1010933404324
    Fisher, Rudin and Dominici, All Models are Wrong, but Many are Useful, 2019, https://arxiv.org/abs/1801.01489

  >>> rows = np.random.default_rng(0).normal(size=(200, 3)).astype(np.float32)
  >>> hit = lambda outputs, labels: float(((outputs > 0) == labels).mean())
  >>> permutation_importance(lambda x: x[:, 1], rows, rows[:, 1] > 0, hit).mean.round(1).tolist()
  [0.0, 0.5, 0.0]
  """
  whole(repeats, 'repeats', least=1)
  array, rng = as_array(inputs, 'inputs'), np.random.default_rng(whole(seed, 'seed', least=0))
  if array.ndim < 2 or array.dtype.kind not in 'biuf' or len(array) != len(labels) or len(array) < 2:
    raise ValueError(f'inputs are numbers [N, ...] with N labels, N at least 2; got {array.dtype}{list(array.shape)}')
  whole_score = _scored(score(np.asarray(predict(array)), labels))
  flat = np.array(array).reshape(len(array), -1)
  falls = np.empty((flat.shape[1], repeats))
  for feature in range(flat.shape[1]):
    kept = flat[:, feature].copy()
    for repeat in range(repeats):
      flat[:, feature] = kept[rng.permutation(len(kept))]
      falls[feature, repeat] = whole_score - _scored(score(np.asarray(predict(flat.reshape(array.shape))), labels))
    flat[:, feature] = kept
  return Importance(falls.mean(1), falls.std(1))


def _scored(value: Any) -> float:
  found = float(value)
  if not np.isfinite(found):
    raise ValueError(f'a score is a finite number; got {found}: does the network give NaN?')
  return found


def select(importance: Any, components: int, shape: tuple[int, ...], *, kind: str = 'chosen features') -> Projection:
  """Returns the map that takes the most important features as they are, in their order, and leaves the others.

  Args:
    importance: float [features], larger is more important.
    components: how many are kept; those kept have an importance above 0.
    shape: of one example.
    kind: what it is called.

  Raises:
    ValueError: not one finite number for each feature; more components than features matter.

  >>> select([0.1, 0.9, 0.5], 2, (3,)).columns.tolist()
  [1, 2]
  """
  values = as_array(importance, 'importance').astype(np.float64).reshape(-1)
  features = int(np.prod(shape))
  if len(values) != features or not np.isfinite(values).all():
    raise ValueError(f'importance is one finite number for each of {features} features; got {len(values)}')
  count = whole_components(components, features, 'a choice of features')
  matter = int((values > 0).sum())
  if count > matter:
    raise ValueError(
      f'{matter} of {features} features have an importance above 0; got components={count}: the others would be chosen '
      f'by their place alone; ask for at most {matter}'
    )
  kept = np.sort(np.argsort(-values, kind='stable')[:count])
  weight = np.zeros((features, count), np.float32)
  weight[kept, np.arange(count)] = 1
  share = values.clip(0)[kept].sum() / values.clip(0).sum()
  note = f'features {_listed(kept)} are kept, with {100 * share:.1f} % of all importance'
  return Projection(kind, weight, None, shape, notes=(note,))


def _listed(places: np.ndarray) -> str:
  shown = ', '.join(map(str, places[:12].tolist()))
  return shown + (f' and {len(places) - 12} more' if len(places) > 12 else '')
