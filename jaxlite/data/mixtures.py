"""Several sources of examples as one, each by its weight: which example stands where is a function of (seed, step).

Shares are exact: every block of examples holds each source's number of them, in an order drawn for the block. Within a
source every example is seen once before any is seen again: a small source with a large weight comes round more often.
Nothing is counted along the way: how many of a source came before a step follows from the step.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxlite.data import inputs as trees
from jaxlite.data.dataset import Dataset, Split
from jaxlite.data.decoded import expect, foresees
from jaxlite.errors import number, whole

BLOCK = 256  # examples in which shares are exact, at least
_DRAW = zlib.crc32(b'mixture')


class Mixture(NamedTuple):
  """A training split that is mixed of several; it stands in a Dataset where a `Split` does.

  Attributes:
    parts: the splits, by name.
    counts: of each, how many examples of it every block holds.
    epoch: examples that are called an epoch.
  """

  parts: Mapping[str, Split]
  counts: tuple[int, ...]
  epoch: int

  def steps_of(self, batch_size: int) -> int:
    """Returns how many batches an epoch has."""
    if whole(batch_size, 'batch_size', least=1) > self.epoch:
      raise ValueError(
        f'a batch holds at most the {self.epoch} examples of an epoch; got batch_size {batch_size}: lower it'
      )
    return -(-self.epoch // batch_size)

  def at(self, batch_size: int, seed: int, step: int) -> dict[str, Any]:
    """Returns the batch of a step: inputs, labels, weight, and 'source' int32[B], the place of each one's source."""
    which, rows = self.draws(batch_size, seed, step)
    upcoming = [self.draws(batch_size, seed, step + later) for later in (1, 2)]
    made: dict[str, Any] | None = None
    for place, split in enumerate(self.parts.values()):
      mine = np.flatnonzero(which == place)
      if foresees(split[:2]):
        expect(split[:2], np.concatenate([later[1][later[0] == place] for later in upcoming]))
      if not len(mine):
        continue
      taken = split.take(rows[mine], (seed, step))
      taken['weight'] = taken.get('weight', np.ones(len(mine), np.float32))
      if made is None:
        made = jax.tree.map(lambda leaf: np.empty((batch_size, *leaf.shape[1:]), leaf.dtype), taken)
      jax.tree.map(lambda whole, part: whole.__setitem__(mine, part), made, taken)  # noqa: B023 - at once
    assert made is not None
    return {**made, 'source': which.astype(np.int32)}

  def draws(self, batch_size: int, seed: int, step: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns which source each example of a step's batch is from, and which row of it: int64[B] each."""
    size = sum(self.counts)
    first = step * batch_size
    which, rows = np.empty(batch_size, np.int64), np.empty(batch_size, np.int64)
    done = 0
    while done < batch_size:  # one turn a block
      block, at = divmod(first + done, size)
      here = min(batch_size - done, size - at)
      order = _order_of_block(self.counts, seed, block)
      which[done : done + here] = order[at : at + here]
      for place, (count, split) in enumerate(zip(self.counts, self.parts.values(), strict=True)):
        mine = np.flatnonzero(which[done : done + here] == place)
        total = len(split.labels)
        numbers = block * count + int((order[:at] == place).sum()) + np.arange(len(mine))
        rows[done + mine] = [
          _rows(total, seed, place, int(turn))[row] for turn, row in zip(*divmod(numbers, total), strict=True)
        ]
      done += here
    return which, rows


@functools.lru_cache(maxsize=16)  # pure
def _order_of_block(counts: tuple[int, ...], seed: int, block: int) -> np.ndarray:
  rng = np.random.default_rng((seed, block, _DRAW))
  return rng.permutation(np.repeat(np.arange(len(counts)), counts))


@functools.lru_cache(maxsize=64)  # pure
def _rows(total: int, seed: int, place: int, turn: int) -> np.ndarray:
  return np.random.default_rng((seed, turn, place, _DRAW)).permutation(total)


def mix(
  sources: Mapping[str, tuple[Dataset, float]],
  *,
  evaluated: str | None = None,
  epoch: int | None = None,
  name: str = '',
) -> Dataset:
  """Mixes the training splits of several data sets, each by its weight.

  Args:
    sources: by name, (a Dataset, its weight): of one task, with the same facts and inputs of one shape and dtype.
      Weights are shares of examples, whatever they sum to.
    evaluated: the source whose validation and test splits are used; None takes those of the first.
    epoch: how many examples are called an epoch; None takes all that the sources have together.
    name: what the data are called; '' joins the names.

  Returns:
    The Dataset. A batch also holds 'source', int32[B], the place of each example's source. Every example counts by its
    own weight. Inputs are standardized by the mixture's own mean and deviation.

  Raises:
    ValueError: no source, weights that are not positive, sources that do not fit each other.

  >>> from jaxlite.data import batch_at, from_arrays
  >>> one, other = (from_arrays((np.full((20, 3), value, np.float32), np.arange(20) % 2)) for value in (0, 1))
  >>> data = mix({'zeros': (one, 3), 'ones': (other, 1)})
  >>> np.bincount(np.concatenate([batch_at(data.train, 16, 0, step)['source'] for step in range(16)])).tolist()
  [192, 64]
  """
  if not isinstance(sources, Mapping) or not sources:
    raise ValueError("mix takes sources by name, such as {'a': (data, 3), 'b': (other, 1)}; got none")
  for key, value in sources.items():
    if not isinstance(value, tuple | list) or len(value) != 2 or not isinstance(value[0], Dataset):
      raise ValueError(f'a source is (a Dataset, its weight); {key!r} is {type(value).__name__}')
    if not 0 < number(value[1], f'the weight of {key!r}') < math.inf:
      raise ValueError(f'a weight is a number above 0; {key!r} has {value[1]!r}: leave the source out, or give 0.1')
    if not isinstance(value[0].train, Split):
      raise ValueError(f'sources are examples in arrays or files; {key!r} is a {type(value[0].train).__name__}')
  data = {key: value[0] for key, value in sources.items()}
  lead, first = next(iter(data.items()))
  for key, other in data.items():
    trees.check_alike(other.train.inputs, first.train.inputs, key)
    if other.task.name != first.task.name or _told(other) != _told(first):
      raise ValueError(
        f'sources learn one thing; {lead!r} is {first.task.name} {_told(first)}, {key!r} {other.task.name} '
        f'{_told(other)}: number the classes alike'
      )
    if other.train.labels.shape[1:] != first.train.labels.shape[1:]:
      raise ValueError(f'sources have labels of one shape; {key!r} has {list(other.train.labels.shape[1:])}')
    if other.reduction is not None:
      raise ValueError(f'a mixture is reduced as a whole; {key!r} is reduced alone: jl.data.reduce what mix gives')
    if other.encoder != first.encoder:
      raise ValueError(f'sources are encoded alike; {lead!r} by {first.encoder}, {key!r} by {other.encoder}')
  shown = lead if evaluated is None else evaluated
  if shown not in data:
    raise ValueError(f'evaluated names a source, one of {", ".join(data)}; got {shown!r}')
  weights = np.array([number(value[1], key) for key, value in sources.items()], np.float64)
  counts = block_counts(weights / weights.sum())
  total = sum(len(one.train.labels) for one in data.values()) if epoch is None else whole(epoch, 'epoch', least=1)
  mean, std = _statistics([(one.mean, one.std) for one in data.values()], np.array(counts) / sum(counts))
  notes = [f'{key}: {note}' for key, one in data.items() for note in one.notes]
  shares = ', '.join(
    f'{key} {count / sum(counts):.1%} ({total * count / sum(counts) / len(one.train.labels):.2g} times an epoch)'
    for (key, one), count in zip(data.items(), counts, strict=True)
  )
  told = json.dumps([[key, one.fingerprint] for key, one in data.items()] + [list(counts), total, shown])
  return first._replace(
    name=name or '+'.join(data),
    train=Mixture({key: one.train for key, one in data.items()}, counts, total),
    validation=data[shown].validation,
    test=data[shown].test,
    facts=_facts(first, [one.train.labels for one in data.values()], counts),
    mean=mean,
    std=std,
    fingerprint=hashlib.sha256(told.encode()).hexdigest(),
    notes=(*notes, f'a mixture: {shares}; evaluated on {shown}'),
    files=None,
  )


def block_counts(shares: np.ndarray) -> tuple[int, ...]:
  """Returns how many of each source a block holds, so that each share is met within a hundredth of itself.

  >>> block_counts(np.array([0.75, 0.25]))
  (192, 64)
  """
  size = BLOCK
  while True:
    counts = np.floor(shares * size).astype(int)
    counts[np.argsort(-(shares * size - counts), kind='stable')[: size - counts.sum()]] += 1
    if (np.abs(counts / size - shares) <= 0.01 * shares).all() and counts.all():
      break
    if size >= 1 << 22:
      raise ValueError(f'weights are within a factor of 10,000 of each other; got shares {shares.tolist()}')
    size *= 2
  common = math.gcd(*counts.tolist())
  while common % 2 == 0 and size // 2 >= BLOCK:
    counts, size, common = counts // 2, size // 2, common // 2
  return tuple(counts.tolist())


def _facts(first: Dataset, labels: list[Any], counts: tuple[int, ...]) -> Any:
  """What the task knows of a mixture: numbers are learned in deviations from their mean, those of what batches hold."""
  if first.task.name != 'regression' or len(labels) < 2:
    return first.facts
  total, parts = sum(map(len, labels)), []
  for place, (one, count) in enumerate(zip(labels, counts, strict=True)):
    rows = np.random.default_rng((place, _DRAW)).permutation(len(one))
    parts.append(one.take(np.resize(rows, max(1, round(total * count / sum(counts)))), axis=0))
  return first.task.facts(np.concatenate(parts), first.facts)


def _told(data: Dataset) -> Any:
  return {key: value for key, value in data.facts.items() if key in ('classes', 'class_names', 'vocabulary', 'names')}


def _statistics(pairs: list[tuple[Any, Any]], shares: np.ndarray) -> tuple[Any, Any]:
  """Mean and deviation of a mixture, of those of its sources; None where none is standardized."""
  is_leaf = lambda one: one is None  # noqa: E731
  structures = {str(jax.tree.structure(mean)) for mean, _ in pairs}
  if len(structures) > 1:
    raise ValueError('sources are standardized alike, or none is; some have a mean and others none: standardize=False')
  means = jax.tree.map(
    lambda *leaves: (
      None
      if leaves[0] is None
      else sum(share * leaf.astype(np.float64) for share, leaf in zip(shares, leaves, strict=True))
    ),
    *(mean for mean, _ in pairs),
    is_leaf=is_leaf,
  )
  seconds = [
    jax.tree.map(
      lambda m, s: None if m is None else m.astype(np.float64) ** 2 + s.astype(np.float64) ** 2, *pair, is_leaf=is_leaf
    )
    for pair in pairs
  ]
  second = jax.tree.map(
    lambda *leaves: (
      None if leaves[0] is None else sum(share * leaf for share, leaf in zip(shares, leaves, strict=True))
    ),
    *seconds,
    is_leaf=is_leaf,
  )
  std = jax.tree.map(
    lambda s, m: None if m is None else np.sqrt(np.maximum(s - m * m, np.finfo(np.float32).tiny)).astype(np.float32),
    second,
    means,
    is_leaf=is_leaf,
  )
  return jax.tree.map(lambda m: None if m is None else m.astype(np.float32), means, is_leaf=is_leaf), std
