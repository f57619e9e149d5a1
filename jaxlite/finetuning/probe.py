"""The linear probe: multinomial logistic regression on fixed features, solved exactly, its strength chosen by folds.

Nothing here knows a network: features are an array [N, D], whatever made them. The solution is that of scikit-learn's
`LogisticRegression` (same objective, bias not penalized), found in the span of the examples: with more features than
examples, the features are rotated into at most N of them first, which changes no solution and no prediction.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxlite.errors import counted, whole

STRENGTHS = tuple(10.0**power for power in (-2, -1, 0, 1, 2, 3, 4))  # C of features whose mean square norm is 1
_SMALL = 4_000_000  # numbers in a table of features
_WIDE = 4  # times as many features as examples
_MOST_ITERATIONS, _FOLD_ITERATIONS = 500, 60  # of folds only a ranking of strengths is wanted


class Probe(NamedTuple):
  """A linear head and how it was chosen.

  Attributes:
    kernel: float32[D, classes], for features as they were given.
    bias: float32[classes].
    strength: the C that was chosen, of features scaled to a mean square norm of 1.
    tried: by C, the share of examples that folds (or the validation examples) predicted rightly.
    right: bool[N], whether each example was predicted rightly by the fold that had not seen it; of the validation
      examples where they chose.
    chosen_by: in words, for a report.
  """

  kernel: np.ndarray
  bias: np.ndarray
  strength: float
  tried: dict[float, float]
  right: np.ndarray
  chosen_by: str

  def logits(self, features: Any) -> np.ndarray:
    """Returns float32[N, classes] of features [N, D]."""
    return np.asarray(features, np.float32) @ self.kernel + self.bias


def fit_probe(
  features: Any,
  labels: Any,
  classes: int,
  *,
  weight: Any = None,
  validation: tuple[Any, Any] | None = None,
  strengths: Sequence[float] = STRENGTHS,
  folds: int = 5,
  seed: int = 0,
) -> Probe:
  """Fits a linear head to fixed features, and chooses how strongly it is held back.

  Args:
    features: float[N, D].
    labels: int[N], 0 .. classes - 1.
    classes: how many there are; one without examples keeps a kernel of 0 and a bias that never wins.
    weight: float[N], how much each example counts; None is 1.
    validation: (features, labels) on which the strength is chosen; None chooses by stratified folds of the examples.
    strengths: values of C to choose from, of features scaled to a mean square norm of 1 around their mean; the weakest
      of those that are equally good is taken.
    folds: how many; fewer where the examples do not suffice.
    seed: of the folds.

  Returns:
    The Probe, fitted on all examples.

  Raises:
    ValueError: NaN, one class only, fewer examples than classes, labels out of range.

  >>> features = np.array([[0.0, 1.0], [0.1, 1.0], [1.0, 1.0], [0.9, 1.0]])
  >>> fit_probe(features, np.array([0, 0, 1, 1]), 2).logits(features).argmax(1).tolist()
  [0, 0, 1, 1]
  """
  x, y = checked(features, labels, classes)
  w = None if weight is None else _weights(weight, len(y))
  seen = None if validation is None else checked(validation[0], validation[1], classes, several=False)
  with few_threads(x):
    if x.shape[1] <= len(x):
      return _fitted(x, y, classes, w, seen, strengths, folds, seed)
    inside, basis = spanned(x)  # once for all folds: every solution lies in the span of the examples
    seen = None if seen is None else (seen[0] @ basis.T, seen[1])
    found = _fitted(inside, y, classes, w, seen, strengths, folds, seed)
    return found._replace(kernel=(basis.T @ found.kernel).astype(np.float32))


def _fitted(
  x: np.ndarray,
  y: np.ndarray,
  classes: int,
  w: np.ndarray | None,
  validation: tuple[np.ndarray, np.ndarray] | None,
  strengths: Sequence[float],
  folds: int,
  seed: int,
) -> Probe:
  strengths = sorted({float(one) for one in strengths})
  if not strengths or not all(0 < one < np.inf for one in strengths):
    raise ValueError(f'strengths are numbers above 0; got {strengths}')
  if len(strengths) == 1:
    kernel, bias = _solve(x, y, classes, strengths, w)[strengths[0]]
    return Probe(*_cast(kernel, bias), strengths[0], {}, np.zeros(0, bool), 'given')
  if validation is not None:
    vx, vy = validation
    path = _solve(x, y, classes, strengths, w)
    logits = {one: vx @ kernel + bias for one, (kernel, bias) in path.items()}
    chosen_by = f'by {counted(len(vy), "validation example")}'
    targets = vy
  else:
    folds = min(whole(folds, 'folds', least=2), len(y))
    groups = fold_of(y, folds, seed)
    logits = {one: np.zeros((len(y), classes)) for one in strengths}
    for fold in range(folds):
      held = groups == fold
      if not held.any() or len(np.unique(y[~held])) < 2:
        continue
      path = _solve(x[~held], y[~held], classes, strengths, None if w is None else w[~held], roughly=True)
      for one, (kernel, bias) in path.items():
        logits[one][held] = x[held] @ kernel + bias
    chosen_by, targets, path = f'by {folds} folds of {counted(len(y), "example")}', y, {}
  right = {one: logits[one].argmax(1) == targets for one in strengths}
  # Among equals in accuracy the smaller loss decides: with few examples accuracy moves in large steps.
  best = max(strengths, key=lambda one: (right[one].mean(), -_loss(logits[one], targets)))
  kernel, bias = path[best] if best in path else _solve(x, y, classes, [best], w)[best]
  tried = {one: float(right[one].mean()) for one in strengths}
  return Probe(*_cast(kernel, bias), best, tried, right[best], chosen_by)


def _cast(kernel: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  return kernel.astype(np.float32), bias.astype(np.float32)


def checked(features: Any, labels: Any, classes: int, *, several: bool = True) -> tuple[np.ndarray, np.ndarray]:
  """Returns features as float64 [N, D] and labels as int64 [N].

  Raises:
    ValueError: what they are not, in one line.
  """
  x, y = as_features(features), np.asarray(labels)
  if y.ndim != 1 or y.dtype.kind not in 'iu':
    raise ValueError(f'classes are integers [N]; got {y.dtype}{list(y.shape)}: one class number an example')
  if len(x) != len(y):
    raise ValueError(f'every example has one label; got {len(x)} rows of features and {len(y)} labels')
  y = y.astype(np.int64)
  if len(y) and not 0 <= y.min() <= y.max() < classes:
    wrong = int(np.flatnonzero((y < 0) | (y >= classes))[0])
    raise ValueError(f'labels are 0 .. {classes - 1}; example {wrong} has {y[wrong]}: drop what has no label')
  if several:
    if len(y) < classes:
      raise ValueError(f'a probe needs an example a class; got {len(y)} examples of {classes} classes: label more')
    if len(found := np.unique(y)) < 2:
      raise ValueError(f'a probe tells classes apart; all {len(y)} labels are {found[0]}: give examples of another')
  return x, y


def as_features(features: Any) -> np.ndarray:
  """Returns float64 [N, D], or raises in one line."""
  x = np.asarray(features)
  if x.ndim != 2 or not x.shape[1] or not len(x):
    raise ValueError(f'features are [N, D], at least one of each; got {list(x.shape)}: flatten or pool each example')
  if x.dtype.kind not in 'biuf' and not x.dtype.name.startswith(('bfloat16', 'float8')):
    raise ValueError(f'features are real numbers; got {x.dtype}')
  x = x.astype(np.float64)
  if not np.isfinite(x).all():
    row, column = np.argwhere(~np.isfinite(x))[0]
    raise ValueError(
      f'features are finite; example {row} has {x[row, column]} at {column}: look at that example, or at the weights '
      'that made it'
    )
  return x


def _weights(weight: Any, count: int) -> np.ndarray:
  w = np.asarray(weight, np.float64)
  if w.shape != (count,) or not np.isfinite(w).all() or (w < 0).any() or not w.any():
    raise ValueError(f'weights are float[{count}], at least 0 and not all 0; got {list(w.shape)}')
  return w


def fold_of(labels: np.ndarray, folds: int, seed: int) -> np.ndarray:
  """Returns int[N], the fold of each example: every class is dealt over the folds in turn.

  >>> fold_of(np.array([0, 0, 1, 1]), 2, 0).tolist()[:2] in ([0, 1], [1, 0])
  True
  """
  rng = np.random.default_rng((seed, len(labels)))
  order = rng.permutation(len(labels))
  order = order[np.argsort(labels[order], kind='stable')]  # class by class, shuffled inside
  groups = np.empty(len(labels), np.int64)
  groups[order] = np.arange(len(labels)) % folds
  return groups


def spanned(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Returns (coordinates [N, r], basis [r, D]) with x = coordinates @ basis, rows of the basis orthonormal.

  Where there are fewer examples than features, r is their rank at most: whatever is linear and penalized by a norm has
  the same solution in these coordinates.
  """
  if len(x) >= x.shape[1]:
    return x, np.eye(0)
  if x.shape[1] > _WIDE * len(x):  # by inner products of examples: several times sooner than a decomposition of x
    squares, u = np.linalg.eigh(x @ x.T)
    s = np.sqrt(np.maximum(squares, 0))
    kept = s > s.max() * np.sqrt(np.finfo(np.float64).eps) * 10
    kept[-1] = True
    scale = np.where(s[kept] > 0, s[kept], 1.0)
    return u[:, kept] * s[kept], (u[:, kept] / scale).T @ x
  u, s, basis = np.linalg.svd(x, full_matrices=False)
  kept = s > s[0] * max(x.shape) * np.finfo(np.float64).eps if s[0] > 0 else np.zeros(len(s), bool)
  kept[0] = True
  return u[:, kept] * s[kept], basis[kept]


def _solve(
  x: np.ndarray,
  y: np.ndarray,
  classes: int,
  strengths: Sequence[float],
  weight: np.ndarray | None,
  *,
  roughly: bool = False,
) -> dict[float, tuple[np.ndarray, np.ndarray]]:
  """Returns (kernel [D, classes], bias [classes]) by strength."""
  there = np.unique(y)
  at = np.searchsorted(there, y)
  mean = np.average(x, axis=0, weights=weight)
  centered = x - mean
  scale = float(np.sqrt(np.mean(np.sum(centered**2, axis=1)))) or 1.0
  z, basis = spanned(centered / scale)
  width, kinds = z.shape[1], len(there)
  onehot = (at[:, None] == np.arange(kinds)).astype(np.float64)
  w = np.ones(len(y)) if weight is None else weight
  found = {}
  start = np.zeros((width + 1) * kinds)
  for strength, flat in _path(z, onehot, w, strengths, start, roughly):
    inner = flat.reshape(width + 1, kinds)
    kernel = (inner[:-1] if not len(basis) else basis.T @ inner[:-1]) / scale
    bias = inner[-1] - mean @ kernel
    whole_kernel, whole_bias = np.zeros((x.shape[1], classes)), np.full(classes, bias.min() - 1e3)
    whole_kernel[:, there], whole_bias[there] = kernel, bias
    found[strength] = whole_kernel, whole_bias
  return found


def _path(
  z: np.ndarray,
  onehot: np.ndarray,
  w: np.ndarray,
  strengths: Sequence[float],
  start: np.ndarray,
  roughly: bool,
) -> Iterator[tuple[float, np.ndarray]]:
  """Yields the solution at each strength, weakest first, each from the one before it."""
  from scipy import optimize

  for strength in strengths:
    objective = functools.partial(_objective, z, onehot, w, strength)
    most = _FOLD_ITERATIONS if roughly else _MOST_ITERATIONS
    options = {'maxiter': most, 'maxfun': 2 * most, 'maxcor': 20, 'ftol': 1e-6 if roughly else 1e-12}
    options['gtol'] = (1e-3 if roughly else 1e-6) * max(1.0, strength) ** 0.5
    start = optimize.minimize(objective, start, jac=True, method='L-BFGS-B', options=options).x
    yield strength, start


def few_threads(x: np.ndarray) -> Any:
  """A context: what is computed of a small table stays on one thread; several would wait longer than they compute."""
  if x.size >= _SMALL:
    return contextlib.nullcontext()
  try:
    from threadpoolctl import threadpool_limits
  except ImportError:
    return contextlib.nullcontext()
  return threadpool_limits(1)


def _objective(
  z: np.ndarray, onehot: np.ndarray, w: np.ndarray, strength: float, flat: np.ndarray
) -> tuple[float, np.ndarray]:
  """C times the weighted cross-entropy plus half the squared norm of the kernel, and its gradient."""
  inner = flat.reshape(z.shape[1] + 1, onehot.shape[1])
  logits = z @ inner[:-1] + inner[-1]
  logits -= logits.max(1, keepdims=True)
  powers = np.exp(logits)
  sums = powers.sum(1, keepdims=True)
  loss = float(w @ (np.log(sums[:, 0]) - np.sum(onehot * logits, axis=1)))
  delta = strength * w[:, None] * (powers / sums - onehot)
  gradient = np.concatenate([z.T @ delta + inner[:-1], delta.sum(0, keepdims=True)])
  return strength * loss + 0.5 * float(np.sum(inner[:-1] ** 2)), gradient.ravel()


def _loss(logits: np.ndarray, targets: np.ndarray) -> float:
  shifted = logits - logits.max(1, keepdims=True)
  return float(np.mean(np.log(np.exp(shifted).sum(1)) - shifted[np.arange(len(targets)), targets]))
