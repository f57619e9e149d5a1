"""What a data set is once it is in memory: three splits of arrays, checked, with statistics from train only.

Every way to get data (`sources`, `arrays`, `tables`, `texts`) ends in `make_dataset`, so the checks stand here once and
nothing past this file meets a label that its task does not know, a NaN, an empty split or an image of another shape.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxlite import tasks
from jaxlite.data import inputs as trees
from jaxlite.data.chosen import room_for
from jaxlite.data.inputs import as_array, as_inputs, as_leaves, frozen, pieces
from jaxlite.data.projection import Projection
from jaxlite.data.standardize import standardization
from jaxlite.tasks.task import Facts, Task

Pair = tuple[Any, ...]  # (inputs, labels) or (inputs, labels, weight)
Draw = tuple[int, int | range]

_MOST_WEIGHT = 2**16 - 1  # metrics count weights in four digits of base 2**16


class Split(NamedTuple):
  """Examples on the host, in a fixed order.

  Attributes:
    inputs: pytree of uint8, float32, int32 or bool [N, ...]; images are [N, H, W, C], tables [N, features].
    labels: int32 or float32 [N, ...], as the task has them.
    weight: float32 [N], how much each example counts, times the number of its labeled positions where the task has
      several an example; None where every example counts once.
  """

  inputs: Any
  labels: np.ndarray
  weight: np.ndarray | None = None

  def take(self, rows: np.ndarray, draw: Draw | None = None) -> dict[str, Any]:
    """Returns these examples as the arrays of a batch, or of several: `rows` are [B] or [steps, B].

    `draw` is (seed, step or steps) where something is drawn.
    """
    del draw
    batch = {'inputs': trees.take(self.inputs, rows), 'labels': self.labels.take(rows, axis=0)}
    return batch if self.weight is None else {**batch, 'weight': self.weight.take(rows)}


class Dataset(NamedTuple):
  """Three splits and what is known about them.

  Attributes:
    name: what the data are called.
    train: what is trained on: a `Split`, or what stands for one (`Columns`, `Stream`).
    validation: what decisions (early stopping, the best checkpoint) are made on; empty where none is held out.
    test: what is looked at once, at the end.
    task: what is learned.
    facts: what the task knows of these data, JSON values, such as 'classes' and 'class_names'.
    mean: like the inputs, float32 [C] of train: a channel of images, a feature of tables, one number for [N, L, M].
      In the units of the inputs (0 .. 255 for uint8). None for what is not standardized.
    std: float32, as `mean`; 1 where train does not vary.
    fingerprint: sha256 over names, dtypes, shapes and bytes of the splits' arrays, in hexadecimal.
    notes: lines that a person should read before training, such as a class without examples.
    feature_names: one name per feature of a table, else empty.
    encoder: what made the inputs of raw rows or texts (`jaxlite.data.encoders`); None where they came as arrays.
    files: by split, the file that each example came from, relative to the folder; None where there are none.
    reduction: the map to fewer features that inputs go through once they are standardized (`reduce`); None for none.
  """

  name: str
  train: Any
  validation: Split
  test: Split
  task: Task
  facts: Facts
  mean: Any
  std: Any
  fingerprint: str
  notes: tuple[str, ...] = ()
  feature_names: tuple[str, ...] = ()
  encoder: Any = None
  files: Mapping[str, Sequence[str]] | None = None
  reduction: Projection | None = None

  @property
  def classes(self) -> int:
    """How many classes there are; labels are 0 .. classes - 1."""
    if 'classes' not in self.facts:
      raise AttributeError(f'{self.task.name} has no classes; its facts are {", ".join(self.facts) or "none"}')
    return self.facts['classes']

  @property
  def class_names(self) -> tuple[str, ...]:
    """One name per class; empty where the task has none."""
    return tuple(self.facts.get('class_names') or ())


def make_dataset(
  name: str,
  train: Pair,
  validation: Pair | None,
  test: Pair,
  *,
  task: Task | Callable[[], Task] | None = None,
  classes: int | None = None,
  class_names: Sequence[str] | None = None,
  facts: Mapping[str, Any] | None = None,
  feature_names: Sequence[str] = (),
  standardize: Any = True,
  notes: Sequence[str] = (),
  encoder: Any = None,
) -> Dataset:
  """Checks three splits and makes a Dataset of them.

  Args:
    name: what the data are called.
    train: (inputs, labels [N, ...]) or (inputs, labels, weight [N]). Inputs are an array [N, ...] or a dict, a list or
      a tuple of such: uint8 and floats are quantities, integers ids, bools masks. Weights are 0 to 65535.
    validation: as train; None where nothing is held out.
    test: as train.
    task: what is learned: a Task or a function () -> Task, such as `jl.tasks.regression`; None takes classification,
      where labels are integers [N].
    classes: how many classes, where the task asks; None leaves it to the labels of train.
    class_names: one name per class; None numbers them.
    facts: what else the task should know, by name ('target_names', ...).
    feature_names: one name per feature of a table.
    standardize: True takes mean and standard deviation of train's quantities, False none; or a pair (mean, std), each
      an array, or a tree like the inputs with None for what stays as it is.
    notes: lines to hand on.
    encoder: what made the inputs, where something did.

  Returns:
    The Dataset. Inputs are uint8, float32, int32 (ids) or bool; arrays of the right type are not copied.

  Raises:
    ValueError: something is wrong with the data; the message says in which split, and the fix.

  >>> import numpy as np
  >>> pair = np.zeros((4, 2), np.uint8), np.array([0, 1, 0, 1])
  >>> data = make_dataset('tiny', pair, pair, pair)
  >>> data.classes, data.train.labels.dtype, data.std.tolist()
  (2, dtype('int32'), [1.0, 1.0])
  """
  pairs = {'train': train, 'validation': validation, 'test': test}
  with room_for(name):
    found = as_task(task, as_pair(train, 'train')[1])
    splits = {where: check_split(found, pair, where) for where, pair in pairs.items() if pair is not None}
    return finish(
      name,
      splits,
      found,
      classes=classes,
      class_names=class_names,
      facts=facts,
      feature_names=feature_names,
      standardize=standardize,
      notes=notes,
      encoder=encoder,
    )


def finish(
  name: str,
  splits: dict[str, Split],
  task: Task,
  *,
  classes: int | None,
  class_names: Sequence[str] | None,
  facts: Mapping[str, Any] | None,
  **options: Any,
) -> Dataset:
  """Makes a Dataset of splits that `check_split` gave: asks the task for facts and for the weight of positions.

  Raises:
    ValueError: what the user stated is not what the task knows; the splits do not fit each other or the facts.
  """
  known = {'classes': classes, 'class_names': class_names}
  given = {**(facts or {}), **{key: value for key, value in known.items() if value is not None}}
  told = task.facts(splits['train'].labels, given)
  if class_names and 'class_names' not in told:
    raise ValueError(f'{task.name} has no class_names; it knows {", ".join(told) or "nothing"}: give them as facts=')
  if class_names and list(told['class_names']) != list(map(str, class_names)):
    raise ValueError(
      f'classes have one name each; class_names says {", ".join(map(str, class_names))}, the task '
      f'{", ".join(told["class_names"])}: give them once'
    )
  return assemble(name, {where: weighted(task, split, where) for where, split in splits.items()}, task, told, **options)


def assemble(
  name: str,
  splits: dict[str, Split],
  task: Task,
  facts: Facts,
  *,
  feature_names: Sequence[str] = (),
  standardize: Any = True,
  notes: Sequence[str] = (),
  encoder: Any = None,
  statistics: tuple[Any, Any] | None = None,
  sha256: str = '',
) -> Dataset:
  """Makes a Dataset of splits that were checked one by one, with their final weights; `splits` may lack validation.

  `statistics` (mean, std) of train and `sha256`, the fingerprint, are given where they are known without reading all.

  Raises:
    ValueError: the splits do not fit each other or the facts.
  """
  train = splits['train']
  for where, split in splits.items():
    trees.check_alike(split.inputs, train.inputs, where)
    if split.labels.shape[1:] != train.labels.shape[1:] or split.labels.dtype != train.labels.dtype:
      got, wanted = (f'{one.dtype}{list(one.shape)}' for one in (split.labels, train.labels))
      raise ValueError(
        f'every split has one kind of labels; train has {wanted}, {where} {got}: prepare {where} as train'
      )
    task.check_facts(split.labels, facts, where)
  _check_features(train.inputs, feature_names)
  known = statistics is not None and standardize is True
  mean, std, told = standardization(train.inputs, statistics if known else standardize, ids_known=encoder is not None)
  told = [] if known else told
  found = (*notes, *task.notes(train.labels, facts), *trees.remarks(train.inputs, feature_names), *told)
  three = (train, splits.get('validation', nothing(train)), splits['test'])
  sha256 = sha256 or fingerprint(splits)
  return Dataset(name, *three, task, facts, mean, std, sha256, found, tuple(map(str, feature_names)), encoder)


def _check_features(inputs: Any, names: Sequence[str]) -> None:
  if len(names) and hasattr(inputs, 'ndim') and inputs.ndim == 2 and len(names) != inputs.shape[1]:
    raise ValueError(f'every feature has one name; got {len(names)} names for {inputs.shape[1]} features')


def nothing(split: Split) -> Split:
  """Returns a split without examples, of the same kind."""
  none = slice(0, 0)
  return Split(trees.take(split.inputs, none), split.labels[none], None if split.weight is None else split.weight[none])


def as_task(task: Any, labels: Any) -> Task:
  """Returns the Task that is meant: the one given, what the function given makes, classification for integers [N].

  Raises:
    ValueError: none is given and the labels are no classes; something else is given.

  >>> as_task(None, [0, 1, 1]).name
  'classification'
  """
  if isinstance(task, Task):
    return task
  if task is not None:
    made = task() if _is_callable(task) else task
    if not isinstance(made, Task):
      got = f'a function that gives {type(made).__name__}' if _is_callable(task) else repr(task)
      raise ValueError(f'task is a Task or a function that makes one, such as jl.tasks.regression; got {got}')
    return made
  array = as_array(labels, 'labels of train')
  if array.ndim == 1 and (array.dtype.kind in 'biu' or not len(array)):
    return tasks.classification()
  fix = ''
  if array.ndim == 1 and array.dtype.kind in 'USO':
    fix = 'names become numbers by numpy.unique(labels, return_inverse=True)[1]; '
  elif array.ndim == 1:
    fix = 'whole numbers that are classes by labels.astype(int); '
  elif array.ndim == 2:
    fix = 'use labels[:, 0]; ' if array.shape[1] == 1 else 'labels.argmax(-1) if they are one-hot; '
  raise ValueError(
    f'labels are integers [N] where no task is named; train has {array.dtype}{list(array.shape)}: {fix}'
    'else say what is learned: task=jl.tasks.regression(), .binary(), .multi_label(), .language(), .segmentation()'
  )


def _is_callable(task: Any) -> bool:
  """Whether this can be called without arguments."""
  try:
    inspect.signature(task).bind()
  except (TypeError, ValueError):
    return False
  return True


def as_pair(pair: Any, where: str) -> Pair:
  """Returns (inputs, labels) or (inputs, labels, weight), or raises when they are not given so."""
  if isinstance(pair, Split) or (isinstance(pair, tuple | list) and len(pair) in (2, 3)):
    return tuple(pair)
  raise ValueError(f'a split is a pair (inputs, labels); {where} is {_kind(pair)}: pass (inputs, labels)')


def check_dataset(data: Any, what: str) -> None:
  """Raises TypeError where something else is given as a data set; `what` names who asks."""
  if not isinstance(data, Dataset):
    raise TypeError(f'{what} takes a Dataset, as jl.data.from_arrays((inputs, labels)) makes one; got {_kind(data)}')


def _kind(value: Any) -> str:
  return f'{type(value).__name__} of {len(value)}' if isinstance(value, tuple | list) else type(value).__name__


def check_split(task: Task, pair: Any, where: str) -> Split:
  """Returns (inputs, labels, weight) as a Split: right types, equal lengths, finite; `where` names it in errors.

  The weight is still that of the example alone.
  """
  inputs, labels, weight = (*as_pair(pair, where), None)[:3]
  labels = check_labels(task, labels, where)
  if isinstance(pair, Split) and weight is not None and task.weight(labels) is not None:
    raise ValueError(
      f'the weight of a Split counts its labeled positions already; {where} is one: pass (inputs, labels, weight)'
    )
  # A list in a Split is a tree; elsewhere it may be a list of examples.
  inputs = as_leaves(inputs, where) if isinstance(pair, Split) else as_inputs(inputs, where, len(labels))
  if not len(labels):
    raise ValueError(f'a split needs at least one example; {where} is empty: carve it from train or give more data')
  trees.check_inputs(inputs, where, len(labels))
  checked = None if weight is None else frozen(_as_weight(weight, where, len(labels)))
  return Split(trees.mapped(frozen, inputs), frozen(labels), checked)


def check_labels(task: Task, labels: Any, where: str) -> np.ndarray:
  """Returns labels as the task wants them, int32 or float32 [N, ...].

  Raises:
    ValueError: the task refuses them, or its own check gives something else.
  """
  array = as_array(labels, f'labels of {where}')
  if not array.ndim:
    raise ValueError(f'labels are [N, ...]; {where} has one value, {array}: give each example its label')
  found = np.asarray(task.check(array, where))
  if found.dtype not in (np.int32, np.float32) or len(found) != len(array):
    raise ValueError(
      f'a task checks labels to int32 or float32 [{len(array)}, ...]; {task.name} makes {where} '
      f'{found.dtype}{list(found.shape)}: mend its check'
    )
  if task.check is Task._field_defaults['check'] and found.dtype == np.float32 and not np.isfinite(found).all():
    place = int(np.argwhere(~np.isfinite(found))[0][0])
    raise ValueError(f'labels are finite; {where} has {found[place]} at {place}: drop it, or give the task a check')
  return found


def _as_weight(weight: Any, where: str, count: int) -> np.ndarray:
  array = as_array(weight, f'weights of {where}')
  if array.shape != (count,) or array.dtype.kind not in 'biuf':
    raise ValueError(f'weights are float[{count}], one per example; {where} has {array.dtype}{list(array.shape)}')
  array = array.astype(np.float32)
  wrong = np.flatnonzero(~np.isfinite(array) | (array < 0) | (array > _MOST_WEIGHT))
  if len(wrong):
    got = f'{array[wrong[0]]} at {wrong[0]}'
    raise ValueError(f'weights are 0 to {_MOST_WEIGHT}; {where} has {got}: scale them, 0 for what does not count')
  return array


def weighted(task: Task, split: Split, where: str) -> Split:
  """Multiplies the weight of each example by the number of its labeled positions, where the task counts them.

  Raises:
    ValueError: no example of the split counts.
  """
  positions = task.weight(split.labels)
  if positions is not None:
    own = np.asarray(positions, np.float32)
    split = split._replace(weight=frozen(own if split.weight is None else own * split.weight))
  if split.weight is not None and not split.weight.any():
    what = 'weights' if positions is None else 'weights or labeled positions'
    raise ValueError(f'some example counts; all {what} of {where} are 0: give one above 0')
  return split


def fingerprint(splits: dict[str, Split]) -> str:
  """Returns sha256 over name, dtype, shape and bytes of every array, in hexadecimal.

  >>> import numpy as np
  >>> split = Split(np.zeros((1, 1), np.uint8), np.zeros(1, np.int32))
  >>> fingerprint({'train': split})[:8]
  '80eb7be7'
  """
  digest = hashlib.sha256()
  for where, split in splits.items():
    named = [(f'inputs/{path}' if path else 'inputs', leaf) for path, leaf in trees.leaves(split.inputs)]
    named += [('labels', split.labels)] + ([] if split.weight is None else [('weight', split.weight)])
    for what, array in named:
      digest.update(f'{where}/{what} {array.dtype.name} {list(array.shape)}\n'.encode())
      for _, rows in pieces(array):
        digest.update(np.ascontiguousarray(rows).view(np.uint8))
  return digest.hexdigest()
