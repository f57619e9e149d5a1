"""Which pretrained network suits these data: scores of each candidate's features on the user's own examples."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlite.adapters import adapt
from jaxlite.contract import Model, Network
from jaxlite.data import Dataset, Split, cache
from jaxlite.data.dataset import check_dataset
from jaxlite.errors import nearest, whole
from jaxlite.finetuning import scores
from jaxlite.finetuning.features import cached_features
from jaxlite.finetuning.head import backbone
from jaxlite.finetuning.scores import Score
from jaxlite.host import files

SCORES: dict[str, Callable[..., Score]] = {
  'logme': scores.logme,
  'h_score': scores.h_score,
  'knn': scores.nearest_neighbors,
  'probe': scores.linear_probe,
}


class Candidate(NamedTuple):
  """One row of a ranking.

  Attributes:
    name: of the candidate.
    width: features an example.
    parameters: of its backbone.
    seconds: to compute the features, 0 where they were kept.
    scores: by name.
    truth: what fine-tuning it came to, where that is known.
  """

  name: str
  width: int
  parameters: int
  seconds: float
  scores: dict[str, Score]
  truth: float | None = None


class Ranking(NamedTuple):
  """Candidates, the best first.

  Attributes:
    rows: one a candidate.
    by: the score that orders them.
    examples: how many were looked at.
    tau: by score, the weighted rank correlation with the truth (1: the same order); empty where no truth was given.
    tied: names of the candidates whose interval reaches the best one's value.
  """

  rows: tuple[Candidate, ...]
  by: str
  examples: int
  tau: dict[str, float]
  tied: tuple[str, ...]

  @property
  def best(self) -> str:
    """The name of the first."""
    return self.rows[0].name

  def __str__(self) -> str:
    names = list(self.rows[0].scores)
    truth = any(row.truth is not None for row in self.rows)
    head = ['candidate', 'parameters', 'features', *names, 'seconds', *(['fine-tuned'] if truth else [])]
    table = [head]
    for row in self.rows:
      cells = [row.name, f'{row.parameters:,}', f'{row.width:,}', *(_cell(name, row.scores[name]) for name in names)]
      cells.append(f'{row.seconds + sum(one.seconds for one in row.scores.values()):.1f}')
      cells += ['' if row.truth is None else f'{100 * row.truth:.1f}'] if truth else []
      table.append(cells)
    wide = [max(len(row[place]) for row in table) for place in range(len(head))]
    lines = ['  '.join(cell.ljust(size) for cell, size in zip(row, wide, strict=True)).rstrip() for row in table]
    lines.append(f'by {self.by}, on {self.examples:,} examples; 95 % intervals in brackets')
    if len(self.tied) > 1:
      lines.append(f'not told apart from the best: {", ".join(self.tied)}')
    if self.tau:
      lines.append('weighted tau with fine-tuning: ' + ', '.join(f'{name} {one:.2f}' for name, one in self.tau.items()))
    return '\n'.join(lines)


def rank(
  candidates: Mapping[str, Any],
  data: Dataset,
  *,
  by: str = 'probe',
  use: Sequence[str] = tuple(SCORES),
  examples: int = 500,
  heads: Mapping[str, str] | None = None,
  truth: Mapping[str, float] | None = None,
  folder: str | Path = '',
  seed: int = 0,
  say: Callable[[str], None] | None = None,
) -> Ranking:
  """Scores what each candidate makes of some training examples, and orders the candidates; nothing is fine-tuned.

  Print the result for its table. Values of one score may be compared between candidates, not between scores.

  Args:
    candidates: networks with their values by name, as `backbone` takes them; each takes the inputs of the data as they
      are (`resized` makes a network of pictures take those of another size).
    data: a Dataset of classes.
    by: the score that orders.
    use: names of the scores: 'logme', 'h_score', 'knn', 'probe'.
    examples: of the training split, drawn class by class as they come there.
    heads: by candidate, as in `backbone`, where its head is not to be found alone.
    truth: by candidate, what fine-tuning came to, larger is better: how the scores agree with it is told.
    folder: where features are kept; '' is among the user's caches.
    seed: of the draw.
    say: prints a line a candidate.

  Returns:
    The Ranking.

  Raises:
    ValueError: no candidate, a name that is not known, a candidate that does not take these inputs.

  References:
    Vigna, A Weighted Correlation Index for Rankings with Ties, 2015, https://arxiv.org/abs/1404.3325

  >>> import tempfile
  >>> from jaxlite.data import from_arrays
  >>> x, y = np.tile(np.eye(4, dtype=np.float32), (8, 1)), np.tile(np.arange(4) % 2, 8)
  >>> def sees(axis):
  ...   params = {'a': jnp.ones((1, 2)), 'b': jnp.ones((2, 2))}
  ...   return lambda p, x: jnp.tanh(x[:, axis : axis + 1] @ p['a']) @ p['b'], params
  >>> both = (lambda p, x: jnp.tanh(x @ p['a']) @ p['b'], {'a': jnp.eye(4), 'b': jnp.ones((4, 2))})
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   rank({'one': sees(0), 'all': both}, from_arrays((x, y)), use=['probe'], folder=folder).best
  'all'
  """
  if not isinstance(candidates, Mapping) or not candidates:
    raise ValueError('candidates are networks by name, {"mobilenet": network, ...}; got none')
  for name in (*use, by):
    if name not in SCORES:
      raise ValueError(f'a score is one of {", ".join(SCORES)}; got {name!r}; nearest: {nearest(name, SCORES, 1)}')
  if by not in use:
    raise ValueError(f'candidates are ordered by {by!r}, which is not among the scores, {", ".join(use)}')
  for what, named in (('heads', heads), ('truth', truth)):
    if stray := [name for name in named or () if name not in candidates]:
      raise ValueError(f'{what} names {stray[0]!r}, which is no candidate; nearest: {nearest(stray[0], candidates, 1)}')
  check_dataset(data, 'rank')
  if not isinstance(data.train, Split) or data.task.name != 'classification' or np.ndim(data.train.labels) != 1:
    raise ValueError(f'candidates are ranked on classes, examples in memory or mapped; the task is {data.task.name}')
  rows_of = _drawn(np.asarray(data.train.labels), whole(examples, 'examples', least=2), seed)
  some = Split(jax.tree.map(lambda leaf: np.asarray(leaf[rows_of]), data.train.inputs), data.train.labels[rows_of])
  where = files.expanded(folder) if folder else cache.root() / 'features'
  rows = []
  for name, network in candidates.items():
    rows.append(_scored(name, network, some, data.classes, use, (heads or {}).get(name), where, say))
    rows[-1] = rows[-1]._replace(truth=(truth or {}).get(name))
    if say is not None:
      say(f'{name}: {by} {_cell(by, rows[-1].scores[by])}')
  rows.sort(key=lambda row: -row.scores[by].value)
  best = rows[0].scores[by].value
  tied = [row.name for row in rows if not row.scores[by].high < best]
  return Ranking(tuple(rows), by, len(some.labels), _tau(rows, use), tuple(tied))


def _scored(
  name: str, network: Any, some: Split, classes: int, use: Sequence[str], head: str | None, where: Path, say: Any
) -> Candidate:
  try:
    found = backbone(network, jax.tree.map(lambda leaf: leaf[:2], some.inputs), head=head)
  except Exception as error:
    shapes = ', '.join(f'{leaf.dtype}{list(leaf.shape[1:])}' for leaf in jax.tree.leaves(some.inputs))
    told = (str(error).strip() or type(error).__name__).splitlines()[0]
    raise ValueError(
      f'the candidate {name!r} does not take the inputs of these data, {shapes} an example ({told[:200]}): give '
      'jl.finetuning.resized(network, shape), or leave it out'
    ) from error
  try:
    started = time.perf_counter()
    features = cached_features(found, some, where, say=say)[:, 0]
    spent = time.perf_counter() - started
    found_scores = {one: SCORES[one](features, some.labels, classes=classes) for one in use}
  except ValueError as error:
    raise ValueError(f'the candidate {name!r}: {error}') from None
  size = sum(int(np.size(leaf)) for leaf in jax.tree.leaves(found.params))
  return Candidate(name, found.width, size, spent, found_scores)


def _drawn(labels: np.ndarray, most: int, seed: int) -> np.ndarray:
  """Rows of at most so many examples, each class with its share and one at least."""
  if len(labels) <= most:
    return np.arange(len(labels))
  rng = np.random.default_rng((seed, most))
  order = rng.permutation(len(labels))
  there = np.unique(labels)
  if most < len(there):
    raise ValueError(f'a ranking needs an example a class; examples={most} of {len(there)} classes: ask for more')
  first = np.array([order[labels[order] == one][0] for one in there])  # a class that is rare is there all the same
  rest = order[~np.isin(order, first)]
  return np.sort(np.concatenate([first, rest[: most - len(first)]]))


def _tau(rows: Sequence[Candidate], use: Sequence[str]) -> dict[str, float]:
  known = [row for row in rows if row.truth is not None]
  if len(known) < 2:
    return {}
  from scipy import stats

  truth = [row.truth for row in known]
  return {one: float(stats.weightedtau([row.scores[one].value for row in known], truth).statistic) for one in use}


def _cell(name: str, score: Score) -> str:
  share = name in ('knn', 'probe')
  shown = (lambda one: f'{100 * one:.1f}') if share else (lambda one: f'{one:.3f}')
  return shown(score.value) + ('' if math.isnan(score.low) else f' [{shown(score.low)}, {shown(score.high)}]')


def resized(network: Any, shape: Sequence[int], *, scale: tuple[Any, Any] | None = None) -> Network:
  """Lets a network of pictures take those of another size: they are resized inside, and colors averaged or repeated.

  Args:
    network: with its values, as `backbone` takes it.
    shape: (H, W, C) that it takes.
    scale: (mean, std) by channel, in the units of the pictures, that it wants taken off and divided by; None leaves
      them as they are.

  Returns:
    A Network that takes pictures [B, height, width, 1 or 3] of any size; what it does to them leaves with it.

  Raises:
    ValueError: inputs that are no pictures.

  >>> inner = (lambda p, x: x.reshape(len(x), -1) @ p['w'], {'w': jnp.ones((8 * 8, 2))})
  >>> resized(inner, (8, 8, 1)).predict(np.ones((2, 16, 16, 3), np.uint8)).shape
  (2, 2)
  """
  height, width, channels = (whole(one, 'shape', least=1) for one in shape)
  model = adapt(network)
  statistics = None if scale is None else tuple(jnp.asarray(one, jnp.float32) for one in scale)

  def taken(inputs: Any) -> jax.Array:
    pictures = jnp.asarray(inputs)
    if pictures.ndim != 4 or pictures.shape[3] not in (1, 3, channels):
      raise ValueError(f'resized takes pictures [B, height, width, 1 or 3]; got {list(pictures.shape)}')
    pictures = pictures.astype(jnp.float32)
    if pictures.shape[3] != channels:
      pictures = pictures.mean(3, keepdims=True) if channels == 1 else jnp.repeat(pictures[..., :1], channels, 3)
    if pictures.shape[1:3] != (height, width):
      pictures = jax.image.resize(pictures, (len(pictures), height, width, channels), 'linear')
    if statistics is not None:
      pictures = (pictures - statistics[0]) / statistics[1]
    # A network that a run made takes what it was trained on, whole numbers where those were.
    return pictures if wanted is None else jnp.clip(jnp.round(pictures), 0, 255).astype(wanted)

  small = jax.ShapeDtypeStruct((2, height, width, channels), jnp.float32)
  if isinstance(network, Network):
    params, state = network.params, network.model_state
  else:
    params, state = model.init(jax.random.key(0), jnp.zeros(small.shape, small.dtype))

  def runs(dtype: Any) -> bool:
    try:
      jax.eval_shape(
        lambda x: model.apply(params, state, x, train=False, key=None)[0], jax.ShapeDtypeStruct(small.shape, dtype)
      )
    except (TypeError, ValueError):
      return False
    return True

  wanted = jnp.uint8 if not runs(jnp.float32) and runs(jnp.uint8) else None

  def apply(params: Any, state: Any, inputs: Any, *, train: bool, key: Any, step: Any = None) -> Any:
    return model.apply(params, state, taken(inputs), train=train, key=key, step=step)

  def init(key: Any, inputs: Any) -> Any:
    return model.init(key, taken(inputs))

  return Network(Model(init, apply, model.after, model.export), params, state)
