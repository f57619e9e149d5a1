"""A data set out of a person's own arrays."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxlite.data import inputs, splits
from jaxlite.data.chosen import choose, room_for
from jaxlite.data.dataset import Dataset, Pair, Split, as_pair, as_task, check_split, finish
from jaxlite.data.frames import Rounding
from jaxlite.tasks.task import Task

_COLUMNS, _VALUES, _TOLD = 4096, 10**7, 4  # that are looked at one by one, and in all; lines about them


def from_arrays(
  train: Pair,
  validation: Pair | float | None = None,
  test: Pair | float | None = None,
  *,
  name: str = 'arrays',
  task: Task | Callable[[], Task] | None = None,
  classes: int | None = None,
  class_names: Sequence[str] | None = None,
  facts: Mapping[str, Any] | None = None,
  feature_names: Sequence[str] = (),
  standardize: Any = True,
  notes: Sequence[str] = (),
  encoder: Any = None,
  seed: int = 0,
) -> Dataset:
  """Makes a Dataset of arrays; splits that are not given are carved from train, seeded and stratified.

  Args:
    train: (inputs, labels) or (inputs, labels, weight [N]); NumPy, JAX or anything that NumPy reads. Inputs are an
      array [N, ...], images [N, H, W, C], or a dict, list or tuple of arrays. Floats and uint8 are quantities and are
      standardized; integers are ids and bools masks, and neither is. A large memory map of any of them is read where
      a batch asks for it.
    validation: as `train`, or the fraction of `train` to carve; None carves a tenth, 0 holds nothing out.
    test: as `train` or a fraction; None carves a tenth.
    name: what the data are called.
    task: what is learned: a Task or a function () -> Task, such as `jl.tasks.regression`; None takes classification,
      where labels are integers [N].
    classes: how many classes; None takes the largest label of train and one.
    class_names: one name per class; None numbers them.
    facts: what else the task should know, by name.
    feature_names: one name per feature of a table.
    standardize: True, False, or a pair (mean, std); see `make_dataset`.
    notes: lines to hand on.
    encoder: what made the inputs, where something did.
    seed: of the carving, which keeps the shares of the task's groups (classes), or draws at random where it has none.

  Returns:
    The Dataset. Both fractions are of `train` as it was given.

  Raises:
    ValueError: something is wrong with the data; the message says in which split, and the fix.

  >>> import numpy as np
  >>> data = from_arrays((np.zeros((100, 8, 8, 1), np.uint8), np.arange(100) % 10), test=0.2)
  >>> [len(split.labels) for split in (data.train, data.validation, data.test)]
  [70, 10, 20]
  """
  with room_for(name):
    return _made(
      train,
      {'test': test, 'validation': validation},  # in this order: test never depends on validation
      as_task(task, as_pair(train, 'train')[1]),
      seed,
      name=name,
      classes=classes,
      class_names=class_names,
      facts=facts,
      feature_names=feature_names,
      standardize=standardize,
      notes=(*notes, *(_rounded(train, feature_names) if encoder is None else ())),
      encoder=encoder,
    )


def _made(train: Pair, held: Mapping[str, Any], task: Task, seed: int, *, name: str, **options: Any) -> Dataset:
  pair = check_split(task, train, 'train')
  total, left = len(pair.labels), np.arange(len(pair.labels))
  parts: dict[str, Split] = {}
  for where, given in held.items():
    if isinstance(given, tuple | list):
      parts[where] = check_split(task, given, where)
    elif where == 'test' or not _is_zero(given):
      count = splits.share(0.1 if given is None else given, total, where)
      kept, taken = splits.carve(groups(task, pair.labels.take(left, axis=0)), count, seed, where)
      parts[where], left = rows(pair, left[taken]), left[kept]
  whole = pair if len(left) == total else rows(pair, left)
  return finish(name, {'train': whole, **dict(reversed(parts.items()))}, task, **options)


def _rounded(pair: Any, names: Sequence[str]) -> list[str]:
  """A line for each feature of which float32 makes equal numbers of different ones: times in seconds since 1970 are
  kept to two minutes. Labels are looked at by their task."""
  values = pair[0] if isinstance(pair, tuple | list) and pair else None
  told: list[str] = []
  for path, leaf in (values if isinstance(values, Mapping) else {'': values}).items():
    if not isinstance(leaf, np.ndarray) or isinstance(leaf, np.memmap) or leaf.dtype != np.float64 or not leaf.size:
      continue
    some = leaf[:: max(1, leaf.size // _VALUES)]
    columns = some.reshape(len(some), -1).T
    for index, column in enumerate(columns if len(columns) <= _COLUMNS else [some]):
      found = Rounding()
      found.add(np.ravel(column))
      name: Any = f'{path}[{index}]' if path else index
      told += found.told(names[index] if not path and len(names) == len(columns) else name)
  return [*told[:_TOLD], *([f'so do {len(told) - _TOLD} more columns'] if len(told) > _TOLD else [])]


def _is_zero(given: Any) -> bool:
  return isinstance(given, int | float) and given == 0


def carved(
  task: Task, labels: np.ndarray, validation: float | None, test: float | None, seed: int
) -> dict[str, np.ndarray]:
  """Returns the rows of each split, as `from_arrays` carves them: 'train', 'test', and 'validation' unless it is 0.

  >>> from jaxlite import tasks
  >>> found = carved(tasks.classification(), np.arange(20) % 2, 0, 0.2, seed=0)
  >>> sorted(found), len(found['train'])
  (['test', 'train'], 16)
  """
  left, found = np.arange(len(labels)), {}
  for where, given in (('test', test), ('validation', validation)):
    if where == 'validation' and _is_zero(given):
      continue
    if given is not None and not isinstance(given, int | float):
      raise ValueError(f'{where} is a fraction of the rows, between 0 and 1; got {type(given).__name__}: try 0.1')
    count = splits.share(0.1 if given is None else given, len(labels), where)
    kept, taken = splits.carve(groups(task, labels[left]), count, seed, where)
    found[where], left = left[taken], left[kept]
  return {'train': left, **found}


def groups(task: Task, labels: np.ndarray) -> np.ndarray:
  """Returns int [N]: what a carved split keeps the shares of; one group where the task has none.

  Raises:
    ValueError: the task's own function gives something else.
  """
  found = task.groups(labels)
  if found is None:
    return np.zeros(len(labels), np.int32)
  found = np.asarray(found)
  if found.shape != (len(labels),):
    raise ValueError(f'a task groups labels as int[{len(labels)}]; {task.name} gives {list(found.shape)}: mend it')
  return found


def rows(split: Split, which: np.ndarray) -> Split:
  """Returns these examples of a split: `which` is int64[N]. Inputs of many bytes are not copied, see `chosen`."""
  weight = None if split.weight is None else split.weight[which]
  return Split(inputs.mapped(lambda leaf: choose(leaf, which), split.inputs), split.labels[which], weight)
