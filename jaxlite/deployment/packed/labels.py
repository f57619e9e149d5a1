"""What outputs of a packed file mean, by what it says of its task: the names of classes, or of all labels that hold.

It says the same as `predict_labels` of the network that was packed, in NumPy alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

_LARGEST = ('', 'classification', 'segmentation', 'sequence_labels', 'language')  # tasks whose largest output answers


def labels_of(outputs: Any, about: Mapping[str, Any]) -> Any:
  """Returns the answers of a task.

  Args:
    outputs: [N, ...], of the network.
    about: of its file: 'task', 'class_names'; of two classes 'positive' and 'threshold', of several labels
      'thresholds'. Without a task outputs are one a class.

  Returns:
    The name of the class of each example, its number where it has no name; of 'multi_label' a list of names each; of
    'regression' the outputs.

  Raises:
    ValueError: outputs of another form; a task of one's own.

  >>> labels_of(np.array([[2.0, 1.0]]), {'class_names': ['cat', 'dog']}).tolist()
  ['cat']
  >>> two = {'task': 'binary', 'class_names': ['ham', 'spam'], 'positive': 'spam', 'threshold': 0.9}
  >>> labels_of(np.array([[2.0], [3.0]]), two).tolist()
  ['ham', 'spam']
  >>> several = {'task': 'multi_label', 'class_names': ['sun', 'rain'], 'thresholds': [0.5, 0.2]}
  >>> labels_of(np.array([[2.0, -1.0], [-1.0, -2.0]]), several)
  [['sun', 'rain'], []]
  """
  task, names = about.get('task') or '', list(about.get('class_names') or ())
  if not isinstance(outputs, np.ndarray) or not outputs.ndim:
    raise ValueError('labels are those of one array of outputs, [N, ...]: this network gives others, use predict')
  if task == 'binary':
    return _of_two(outputs, names or ['0', '1'], about)
  if task == 'multi_label' and outputs.ndim == 2 and len(names) == outputs.shape[1]:
    past = _sigmoid(outputs) >= np.asarray(about.get('thresholds', 0.5))
    return [np.array(names)[row].tolist() for row in past]
  if task == 'regression':
    return outputs.reshape(len(outputs)) if outputs.size == len(outputs) else outputs
  if task not in _LARGEST:
    raise ValueError(f'this file does not say what its outputs mean in the task {task!r}: use predict')
  best = outputs.argmax(-1)
  named = names if task in ('', 'classification', 'sequence_labels') else []
  if outputs.ndim < 2 or (named and not best.max(initial=0) < len(named) <= outputs.shape[-1]):
    told = f'{len(names)} classes' if names else 'the classes'
    raise ValueError(f'there is an output for each of {told}; got outputs {list(outputs.shape)}: use predict')
  return np.array(named)[best] if named else best


def _of_two(outputs: np.ndarray, names: list[str], about: Mapping[str, Any]) -> np.ndarray:
  positive = names.index(about['positive']) if about.get('positive') in names else 1
  if outputs.ndim == 2 and outputs.shape[1] == 2:
    outputs = outputs[:, positive] - outputs[:, 1 - positive]
  if outputs.size != len(outputs) or len(names) != 2:
    raise ValueError(f'of two classes there is one logit, or two, for each example; got outputs {list(outputs.shape)}')
  past = _sigmoid(outputs.reshape(-1)) >= float(about.get('threshold', 0.5))
  return np.array(names)[np.where(past, positive, 1 - positive)]


def _sigmoid(logits: np.ndarray) -> np.ndarray:
  """As `jaxlite.tasks` has it, to the last bit: a threshold is one of its values."""
  logits = logits.astype(np.float64)
  small = np.exp(-np.abs(logits))
  return np.where(logits >= 0, 1.0, small) / (1.0 + small)
