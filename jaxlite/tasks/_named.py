"""A built-in task by its name and facts: how a saved run finds the task that it was trained for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from jaxlite.errors import nearest
from jaxlite.tasks._binary import binary
from jaxlite.tasks._classification import classification
from jaxlite.tasks._language import language
from jaxlite.tasks._multi_label import multi_label
from jaxlite.tasks._regression import regression
from jaxlite.tasks._segmentation import segmentation, sequence_labels
from jaxlite.tasks.task import Facts, Task

BUILT_IN: Mapping[str, Callable[[Mapping[str, Any]], Task]] = {
  'binary': lambda facts: binary(facts['class_names'][facts['positive']], facts['class_names'], **facts['wanted']),
  'classification': lambda facts: classification(facts['classes'], facts['class_names'], facts['top']),
  'language': lambda facts: language(facts['vocabulary'], facts.get('token_bytes')),
  'multi_label': lambda facts: multi_label(facts['names'], facts['threshold'], **facts['wanted']),
  'regression': lambda facts: regression(
    facts['target_names'], facts['loss'] if facts['loss'] in ('mse', 'mae') else 'mse', facts['standardize']
  ),
  'segmentation': lambda facts: segmentation(facts['classes'], facts['class_names']),
  'sequence_labels': lambda facts: sequence_labels(facts['classes'], facts['class_names']),
}


def is_built_in(task: Task) -> bool:
  """Tells whether a Task is one of jaxlite's as it is: one of your own may bear the same name.

  >>> is_built_in(regression()), is_built_in(regression()._replace(answer=max))
  (True, False)
  """
  made_by = [getattr(getattr(one, 'func', one), '__module__', '') for one in (task.loss, task.answer)]
  return task.name in BUILT_IN and all(module.startswith('jaxlite.tasks.') for module in made_by)


def named(name: str, facts: Facts) -> Task:
  """Returns the built-in task of a saved run, made with the arguments that its facts record.

  What was learned with it can be predicted, measured and shown again: `answer`, `metrics`, `tables` and `figures` are
  those of the run. One thing is not in the facts: a loss of a regression that was a function; there 'mse' stands.

  Args:
    name: `Task.name`, as the run saved it.
    facts: the run's.

  Returns:
    The Task.

  Raises:
    ValueError: a task that is not built in: hand the Task itself to whoever loads the run.

  >>> named('segmentation', {'classes': 2, 'class_names': ['sky', 'sea']}).score
  'mean_iou'
  """
  if name not in BUILT_IN:
    raise ValueError(
      f'{name!r} is no task of jaxlite (nearest: {nearest(name, BUILT_IN)}): pass the Task it was trained with'
    )
  return BUILT_IN[name](facts)
