"""The labels of a table: names that are numbered, numbers that are classes, or what a task takes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxlite import tasks
from jaxlite.data import frames
from jaxlite.data.dataset import as_task
from jaxlite.tasks.task import Task

FEW = 20  # whole numbers as labels: up to so many, or a fiftieth of the rows, are taken for classes


def with_stated(found: Mapping[str, Any], facts: Mapping[str, Any] | None) -> dict[str, Any]:
  """Joins what label columns say and what the user states.

  Raises:
    ValueError: other class names than the labels themselves are.

  >>> with_stated({'target_names': ['price']}, {'unit': 'EUR'})
  {'target_names': ['price'], 'unit': 'EUR'}
  """
  own = found.get('class_names')
  if facts and own is not None and list(facts.get('class_names', own)) != own:
    said = ', '.join(map(str, facts['class_names']))
    raise ValueError(
      f'class_names are the values of the label, {", ".join(own)}; facts say {said}: '
      'rename the values, or give them an order by task=jl.tasks.classification(class_names=...)'
    )
  return {**found, **(facts or {})}


def read_labels(columns: Mapping[str, np.ndarray], task: Any) -> tuple[Task, np.ndarray, dict[str, Any]]:
  """Returns the task, labels that it takes, and what their columns say of them ('class_names', 'target_names').

  Args:
    columns: one or several, [N] each.
    task: a Task, a function that makes one, or None.

  Raises:
    ValueError: a row without a label, labels that need a task to be named, or that it does not take.

  >>> read_labels({'kind': np.array(['b', 'a', 'b'])}, None)[1:]
  (array([1, 0, 1]), {'class_names': ['a', 'b']})
  """
  names = list(columns)
  for label, values in columns.items():
    frames.check_dates(label, values)
    missing = np.flatnonzero(frames.as_text(values) == '')
    if len(missing):
      raise ValueError(f'every row has a label; {label!r} has none in row {missing[0]}: drop the row')
  if len(columns) > 1:
    if task is None:
      raise ValueError(
        f'several labels need a task; got {", ".join(map(repr, names))}: task=jl.tasks.regression() or .multi_label()'
      )
    together = np.stack([_label_numbers(label, values) for label, values in columns.items()], axis=1)
    truths = np.isin(together, (0, 1)).all()
    return (
      as_task(task, together),
      together.astype(int) if truths else together,
      {
        'target_names': names,
        'class_names': names,
      },
    )
  label, values = names[0], columns[names[0]]
  if task is None:
    class_names, numbered = _classes(label, values, few=True)
    return tasks.classification(), numbered, {'class_names': class_names}
  learned = as_task(task, values)
  if learned.name == 'classification':
    class_names, numbered = _classes(label, values, few=False)
    return learned, *_as_the_task_names(learned, label, class_names, numbered)
  numbers = _numbers_of(values)
  raw = frames.as_text(values) if numbers is None else numbers
  raw = raw.astype(int) if numbers is not None and _whole(numbers) else raw
  if _takes(learned, raw, {}):
    return learned, raw, {'target_names': [label]}
  kinds, index = np.unique(raw, return_inverse=True)  # names of classes, most likely
  class_names = [str(kind) for kind in kinds]
  taken = _takes(learned, index, {'class_names': class_names})
  refused = raw.dtype.kind == 'U' and taken is None  # then the task tells what is wrong with these classes
  if (raw.dtype.kind != 'f' and taken) or refused:
    return learned, index, {'class_names': class_names}
  return learned, raw, {'target_names': [label]}  # the task says what is wrong with them


def _as_the_task_names(
  task: Task, label: str, class_names: list[str], numbered: np.ndarray
) -> tuple[np.ndarray, dict[str, Any]]:
  """Numbers classes as a task does that was made with class names of its own; else as they were found, sorted."""
  own = task.facts(np.zeros(1, np.int32), {'class_names': class_names})['class_names']
  if own == class_names:
    return numbered, {'class_names': class_names}
  if not set(class_names) <= set(own) and set(class_names) <= set(map(str, range(len(own)))):
    return np.array([int(name) for name in class_names])[numbered], {}  # numbers that the task's names stand for
  for place, name in enumerate(class_names):
    if name not in own:
      row = int(np.flatnonzero(numbered == place)[0])
      raise ValueError(f'class_names are the values of {label!r}; it has {name!r} in row {row}, got {", ".join(own)}')
  return np.array([own.index(name) for name in class_names])[numbered], {}


def _takes(task: Task, labels: np.ndarray, given: Mapping[str, Any]) -> bool | None:
  """Whether a task takes labels, and knows what is said of them; None where it refuses them."""
  try:
    checked = task.check(labels, 'train')
    facts = task.facts(checked, given)
    task.check_facts(checked, facts, 'train')
  except ValueError:
    return None
  return all(facts.get(name) == value for name, value in given.items())  # a regression takes no names


def _whole(numbers: np.ndarray) -> bool:
  return bool((np.isfinite(numbers) & (numbers == np.round(numbers)) & (np.abs(numbers) < 2**53)).all())


def _numbers_of(values: np.ndarray) -> np.ndarray | None:
  """Returns float64 [N], or None where some are no numbers; true and false are 1 and 0."""
  if values.dtype.kind in 'biuf':
    return values.astype(np.float64)
  told = frames.truth(values)
  if told is not None and np.isfinite(told).all():
    return told
  text = frames.as_text(values)
  if _are_codes(text):
    return None
  try:
    return text.astype(np.float64)
  except ValueError:
    return None


def _are_codes(text: np.ndarray) -> bool:
  """Whether cells are names that Python would read as numbers: '1_0', or '007' beside '7'."""
  if any('_' in cell for cell in text.tolist()):
    return True
  whole = [cell for cell in set(text.tolist()) if re.fullmatch(r'[+-]?\d+', cell)]
  return len(set(map(int, whole))) < len(whole)


def _label_numbers(label: str, values: np.ndarray) -> np.ndarray:
  numbers = _numbers_of(values)
  if numbers is None:
    raise ValueError(
      f'of several labels each is a column of numbers; {label!r} has {str(values[0])!r} in row 0: number it'
    )
  frames.check_finite(label, numbers, values)
  return numbers


def _classes(label: str, values: np.ndarray, *, few: bool) -> tuple[list[str], np.ndarray]:
  """Returns the label's values, sorted, and int [N] that numbers them; `few`: many numbers are no classes."""
  text = frames.as_text(values)
  if _are_codes(text):
    kinds, index = np.unique(text, return_inverse=True)
    return [str(kind) for kind in kinds], index
  try:  # whole numbers first: as float64 large ids would fall together
    numbers = np.array([int(cell) for cell in text]) if values.dtype.kind not in 'bf' else values.astype(np.float64)
  except (ValueError, OverflowError):
    try:
      numbers = text.astype(np.float64)
    except ValueError:
      kinds, index = np.unique(text, return_inverse=True)
      return [str(kind) for kind in kinds], index
  wrong = np.flatnonzero(~np.isfinite(numbers) | (numbers != np.round(numbers))) if numbers.dtype.kind == 'f' else ()
  fix = 'task=jl.tasks.regression() learns numbers'
  if len(wrong):
    place = int(wrong[0])
    raise ValueError(
      f'a label is a class; {label!r} has {values[place]} in row {place}: {fix}, or sort the values into bins'
    )
  kinds, index = np.unique(numbers, return_inverse=True)
  if few and len(kinds) > max(FEW, len(numbers) // 50):
    raise ValueError(
      f'a label is a class where no task is named; {label!r} has {len(kinds)} whole numbers in {len(numbers)} rows: '
      f'{fix}, task=jl.tasks.classification() classes'
    )
  return [str(int(kind)) for kind in kinds], index
