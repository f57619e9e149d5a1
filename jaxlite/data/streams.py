"""Data that are made and not held: batches as a function of (seed, step), so that a resume finds the same ones.

A `Stream` stands in a Dataset where the training split does. What it makes is checked when the data set is made: on the
first batch everything, on every later one the tree, the shapes and the dtypes, since another shape would compile
another program. Values of later batches are not looked at: the run's own guards see a loss that is not finite.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxlite.data import inputs as trees
from jaxlite.data.dataset import Dataset, Pair, Split, as_task, check_split, fingerprint, nothing, weighted
from jaxlite.data.standardize import standardization
from jaxlite.errors import whole
from jaxlite.tasks.task import Task

_FIRST = 4  # batches at seed 0 that give the statistics and the fingerprint


class Stream(NamedTuple):
  """A training split that is made batch by batch.

  Attributes:
    steps: batches an epoch.
    batch_size: examples per batch.
    at: (seed, step) -> the batch, checked: 'inputs', 'labels', 'weight', and what else was made.
  """

  steps: int
  batch_size: int
  at: Callable[[int, int], dict[str, Any]]

  def steps_of(self, batch_size: int) -> int:
    """Returns batches an epoch, or raises where the batches asked for are not the stream's."""
    if whole(batch_size, 'batch_size', least=1) != self.batch_size:
      raise ValueError(
        f'a stream makes batches of its own size, {self.batch_size}; got batch_size {batch_size}: '
        f'set data.batch_size={self.batch_size}, or make batches of {batch_size}'
      )
    return self.steps


def stream(
  make: Callable[[int, int], Mapping[str, Any]],
  *,
  steps_per_epoch: int,
  test: Pair,
  validation: Pair | None = None,
  task: Task | Callable[[], Task] | None = None,
  facts: Mapping[str, Any] | None = None,
  standardize: Any = True,
  name: str = 'stream',
) -> Dataset:
  """Makes a Dataset whose training batches are made by a function of (seed, step).

  Args:
    make: (seed, step) -> batch, a dict with 'inputs' and 'labels' [B, ...] and where wanted 'weight' [B] and others;
      the same batch for the same arguments, always: that is what makes a resume exact. `step` counts over all epochs.
    steps_per_epoch: how many batches are called an epoch.
    test: (inputs, labels) or (inputs, labels, weight).
    validation: as `test`; None holds nothing out, and the last model is taken.
    task: as in `from_arrays`.
    facts: what the task should know, by name ('classes', ...); else it is read off the labels of the first batches.
    standardize: True takes the statistics of the first 4 batches at seed 0, which a note says; else as `from_arrays`.
    name: what the data are called.

  Returns:
    The Dataset. Its fingerprint covers the name, the first 4 batches at seed 0, validation and test.

  Raises:
    ValueError: the function makes something else twice, or no batch; the first batch or a split is wrong.

  >>> def make(seed, step):
  ...   rng = np.random.default_rng((seed, step))
  ...   labels = rng.integers(0, 2, 8)
  ...   return {'inputs': rng.normal(size=(8, 3)) + labels[:, None], 'labels': labels}
  >>> data = stream(make, steps_per_epoch=10, test=(np.zeros((4, 3)), [0, 1, 0, 1]))
  >>> data.classes, data.train.at(0, 5)['inputs'].shape
  (2, (8, 3))
  """
  steps = whole(steps_per_epoch, 'steps_per_epoch', least=1)
  _check_takes(make)
  raw = _batch(make(0, 0), 0)
  learned = as_task(task, raw['labels'])
  first = _checked(raw, learned, 'the first batch')
  again = _checked(_batch(make(0, 0), 0), learned, 'the first batch')
  if jax.tree.structure(first) != jax.tree.structure(again) or not all(
    one.dtype == other.dtype and np.array_equal(one, other)
    for one, other in zip(jax.tree.leaves(first), jax.tree.leaves(again), strict=True)
  ):
    raise ValueError(
      'a stream makes the same batch for the same (seed, step); asked twice for (0, 0) it made two: '
      'draw from numpy.random.default_rng((seed, step))'
    )

  def at(seed: int, step: int) -> dict[str, Any]:
    batch = _converted(_batch(make(seed, step), step), learned, step)
    _check_kinds(batch, first, step)
    return batch

  firsts = [first, *(at(0, step) for step in range(1, min(_FIRST, steps)))]
  for step, batch in enumerate(firsts):
    trees.check_inputs(batch['inputs'], f'the batch of step {step}', len(batch['labels']))
  head = Split(
    jax.tree.map(lambda *parts: np.concatenate(parts), *(batch['inputs'] for batch in firsts)),
    np.concatenate([batch['labels'] for batch in firsts]),
    np.concatenate([batch['weight'] for batch in firsts]),
  )
  given = {'validation': validation, 'test': test}
  splits = {
    where: weighted(learned, check_split(learned, pair, where), where)
    for where, pair in given.items()
    if pair is not None
  }
  if 'test' not in splits:
    raise ValueError('a stream needs a test split, (inputs, labels): it cannot be carved from what is made')
  known = learned.facts(head.labels, dict(facts or {}))
  learned.check_facts(head.labels, known, 'the first batches')
  for where, split in splits.items():
    trees.check_alike(split.inputs, head.inputs, where)
    learned.check_facts(split.labels, known, where)
  mean, std, notes = standardization(head.inputs, standardize)
  if standardize is True and jax.tree.leaves(mean):
    notes.append(f'inputs are standardized by the statistics of the first {len(firsts)} batches of the stream')
  told = hashlib.sha256(f'{name} {steps} {fingerprint({"first": head, **splits})}'.encode()).hexdigest()
  size = len(first['labels'])
  return Dataset(
    name,
    Stream(steps, size, at),
    splits.get('validation', nothing(splits['test'])),
    splits['test'],
    learned,
    known,
    mean,
    std,
    told,
    (*learned.notes(head.labels, known), *notes),
  )


def from_iterable(fresh: Callable[[int], Any], **options: Any) -> Dataset:
  """Makes a Dataset whose training batches come from an iterable that can be started again.

  The iterable stays open while steps come in order. A resume starts it again and goes over the batches before its
  step, so that costs their making; where that is dear, give `stream` a function of (seed, step).

  Args:
    fresh: (seed) -> an iterable of batches, from the first on: the same ones for the same seed, always. It never ends,
      or is started again with the same seed where it does: then one pass is shown over and over.
    **options: as `stream` takes them.

  Returns:
    The Dataset, as `stream` gives it.

  Raises:
    ValueError: as `stream`; an iterable without a batch.

  >>> def fresh(seed):
  ...   rng = np.random.default_rng(seed)
  ...   while True:
  ...     labels = rng.integers(0, 2, 8)
  ...     yield {'inputs': rng.normal(size=(8, 3)) + labels[:, None], 'labels': labels}
  >>> data = from_iterable(fresh, steps_per_epoch=10, test=(np.zeros((4, 3)), [0, 1, 0, 1]))
  >>> one = data.train.at(0, 5)
  >>> _ = data.train.at(0, 2)
  >>> bool((data.train.at(0, 5)['inputs'] == one['inputs']).all())
  True
  """
  if not callable(fresh):
    raise ValueError(
      f'an iterable is started again by a function (seed) -> batches; got a {type(fresh).__name__}: give '
      'from_iterable(lambda seed: ...)'
    )
  return stream(_Replay(fresh), **options)


class _Replay:
  """(seed, step) -> batch out of an iterable: one is kept open, and only saves going over it again."""

  def __init__(self, fresh: Callable[[int], Any]):
    self._fresh = fresh
    self._seed: int | None = None
    self._next = 0
    self._batches: Iterator[Any] = iter(())

  def __call__(self, seed: int, step: int) -> Any:
    if seed != self._seed or step < self._next:
      self._seed, self._next, self._batches = seed, 0, iter(self._fresh(seed))
    while True:
      batch, self._next = self._advance(seed), self._next + 1
      if self._next > step:
        return batch

  def _advance(self, seed: int) -> Any:
    for batch in self._batches:
      return batch
    self._batches = iter(self._fresh(seed))  # one pass is over: the next is the same
    for batch in self._batches:
      return batch
    raise ValueError(f'an iterable gives batches; that of seed {seed} gives none: is it a generator that was used up?')


def _check_takes(make: Any) -> None:
  """Raises where what should make batches does not take (seed, step): an iterable, a generator function."""
  if not callable(make):
    return  # told by what it is
  try:
    inspect.signature(make).bind(0, 0)
  except TypeError as error:
    raise ValueError(
      f'a stream is made by a function (seed, step) -> batch; {getattr(make, "__name__", make)!r} does not take these '
      f'({error}): give it both; an iterable goes to from_iterable(lambda seed: ...)'
    ) from None
  except ValueError:  # of a built-in function nothing is known
    return


def _batch(batch: Any, step: int) -> dict[str, Any]:
  if not isinstance(batch, Mapping) or not {'inputs', 'labels'} <= set(batch):
    got = f'a dict of {", ".join(map(str, batch)) or "nothing"}' if isinstance(batch, Mapping) else type(batch).__name__
    raise ValueError(f"a batch is a dict with 'inputs' and 'labels'; that of step {step} is {got}")
  return dict(batch)


def _checked(batch: dict[str, Any], task: Task, where: str) -> dict[str, Any]:
  """The first batch, looked at as a split is."""
  check_split(task, tuple(batch.get(name) for name in ('inputs', 'labels', 'weight')), where)
  return _converted(batch, task, 0)


def _converted(batch: dict[str, Any], task: Task, step: int) -> dict[str, Any]:
  where = f'batch {step}'
  labels = np.asarray(task.check(trees.as_array(batch['labels'], f'labels of {where}'), where))
  inputs = trees.as_inputs(batch['inputs'], where, len(labels))
  weight = np.ones(len(labels), np.float32) if batch.get('weight') is None else np.asarray(batch['weight'], np.float32)
  positions = task.weight(labels)
  weight = weight if positions is None else weight * np.asarray(positions, np.float32)
  others = {name: np.asarray(value) for name, value in batch.items() if name not in ('inputs', 'labels', 'weight')}
  return {**others, 'inputs': inputs, 'labels': labels, 'weight': weight}


def _check_kinds(batch: dict[str, Any], first: dict[str, Any], step: int) -> None:
  if jax.tree.structure(batch) != jax.tree.structure(first):
    got, wanted = (', '.join(path for path, _ in trees.leaves(one)) for one in (batch, first))
    raise ValueError(f'every batch holds the same arrays; the first holds {wanted}, that of step {step} {got}')
  for (path, leaf), (_, other) in zip(trees.leaves(batch), trees.leaves(first), strict=True):
    if (leaf.shape, leaf.dtype) != (other.shape, other.dtype):
      got, wanted = (f'{one.dtype}{list(one.shape)}' for one in (leaf, other))
      raise ValueError(
        f'every batch has the same shapes; {path} of the first is {wanted}, that of step {step} {got}: '
        'drop a last batch that is smaller, or pad it at weight 0'
      )
