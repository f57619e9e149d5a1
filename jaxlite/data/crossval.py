"""Cross-validation: every example is tested once, by a model that was not trained on it."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from jaxlite.data import splits
from jaxlite.data.arrays import groups, rows
from jaxlite.data.chosen import joined, room_for
from jaxlite.data.dataset import Dataset, Pair, Split, as_pair, as_task, assemble, check_split, weighted
from jaxlite.data.reduction import again
from jaxlite.errors import whole
from jaxlite.tasks.task import Task

_COUNTED = ('classes', 'class_names', 'names', 'vocabulary')  # a class that one part has alone is one in every fold


def folds(
  data: Dataset | Pair,
  k: int = 5,
  seed: int = 0,
  *,
  validation: float = 0.1,
  task: Task | Callable[[], Task] | None = None,
  facts: Mapping[str, Any] | None = None,
  standardize: Any = True,
  name: str = 'arrays',
) -> list[Dataset]:
  """Cuts data into k parts of one size, and makes k Datasets: each tests on one part and trains on the others.

  Args:
    data: a pair (inputs, labels) or (inputs, labels, weight); or a Dataset, whose three splits are taken together.
    k: how many, from 2 to the number of examples.
    seed: of the cutting, and of carving validation.
    validation: the fraction of a fold's training examples to hold out; 0 holds nothing out.
    task: as in `from_arrays`; a Dataset has its own.
    facts: as in `from_arrays`; a Dataset has its own.
    standardize: as in `from_arrays`, each time by the statistics of what is trained on; a Dataset that standardizes
      nothing stays so.
    name: as in `from_arrays`; a Dataset has its own.

  Returns:
    k Datasets. Every example is in exactly one test split; parts differ by one example at most, and so do the examples
    of each of the task's groups (classes) in them. An encoder stays the Dataset's own: it knows the names that its
    first training split had. What reduces the inputs is fitted anew on each training split.

  Raises:
    ValueError: k out of range; something is wrong with the data; examples that are made and not held.

  >>> parts = folds((np.zeros((20, 1)), np.arange(20) % 2), k=4)
  >>> [np.bincount(part.test.labels).tolist() for part in parts]
  [[3, 2], [3, 2], [2, 3], [2, 3]]
  """
  with room_for(data.name if isinstance(data, Dataset) else name):
    return _cut(data, k, seed, validation, task, facts, standardize, name)


def _cut(
  data: Any, k: int, seed: int, validation: float, task: Any, facts: Any, standardize: Any, name: str
) -> list[Dataset]:
  encoder, names, notes, reduction = None, (), (), None
  if isinstance(data, Dataset):
    if not all(isinstance(split, Split) for split in (data.train, data.validation, data.test)):
      raise ValueError(f'folds cut examples in memory; train of {data.name} is a {type(data.train).__name__}')
    if task is not None or facts is not None:
      raise ValueError('a Dataset has its task and facts; folds of one take no others: give (inputs, labels)')
    learned, given, name, encoder, names = data.task, data.facts, data.name, data.encoder, data.feature_names
    reduction = data.reduction
    everything = _together([data.train, data.validation, data.test])
    if standardize is True and not jax.tree.leaves(data.mean):
      standardize = False
  else:
    learned = as_task(task, as_pair(data, 'the data')[1])
    everything = weighted(learned, check_split(learned, data, 'the data'), 'the data')
    stated = learned.facts(everything.labels, dict(facts or {}))
    given = {**{name: stated[name] for name in _COUNTED if name in stated}, **(facts or {})}
  total = len(everything.labels)
  if whole(k, 'k', least=2) > total:
    raise ValueError(f'a fold tests on one example at least; got k={k} for {total} examples')
  seed = whole(seed, 'seed', least=0)
  part = _parts(groups(learned, everything.labels), k, seed)
  made = []
  for number in range(k):
    left = np.flatnonzero(part != number)
    chosen = {'train': left, 'test': np.flatnonzero(part == number)}
    if validation != 0:
      kinds = groups(learned, everything.labels[left])
      count = splits.share(validation, len(left), 'validation')
      kept, taken = splits.carve(kinds, count, seed, f'validation/{number}')
      chosen = {'train': left[kept], 'validation': left[taken], 'test': chosen['test']}
    cut = {where: rows(everything, which) for where, which in chosen.items()}
    known = learned.facts(cut['train'].labels, given)
    options = {'feature_names': names, 'standardize': standardize, 'notes': notes, 'encoder': encoder}
    made.append(again(assemble(name, cut, learned, known, **options), reduction))
  return made


def _together(parts: list[Split]) -> Split:
  inputs = jax.tree.map(lambda *arrays: joined(arrays), *(part.inputs for part in parts))
  weights = [np.ones(len(part.labels), np.float32) if part.weight is None else part.weight for part in parts]
  plain = all(part.weight is None for part in parts)
  return Split(inputs, np.concatenate([part.labels for part in parts]), None if plain else np.concatenate(weights))


def _parts(kinds: np.ndarray, k: int, seed: int) -> np.ndarray:
  """Returns int [N], the part of each example: groups one after the other, shuffled within, dealt out in turn."""
  shuffled = np.random.default_rng((seed, zlib.crc32(b'folds'))).permutation(len(kinds))
  dealt = shuffled[np.argsort(kinds[shuffled], kind='stable')]
  part = np.empty(len(kinds), np.int64)
  part[dealt] = np.arange(len(kinds)) % k
  return part
