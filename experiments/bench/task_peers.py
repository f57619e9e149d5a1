"""The other side of the task table: scikit-learn here, PyTorch in another Python. Neither sees a label of the test.

Same splits, standardization, epochs, batch size, widths, tries of the learning rate and choice of the best epoch by the
same score on validation. What differs is each library's own: scikit-learn's Adam has no schedule and no clipping; the
PyTorch loop has both, as jaxlite's default recipe.
"""

from __future__ import annotations

import copy
import json
import subprocess
import time
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from bench.task_grades import Grade, Said

HERE = Path(__file__).parent


class Budget(NamedTuple):
  """What both sides get.

  Attributes:
    epochs: over the training split.
    batch: examples per step.
    rates: learning rates to choose from, on seed 0 by validation.
    sizes: of the network, by name.
  """

  epochs: int
  batch: int
  rates: tuple[float, ...]
  sizes: dict[str, Any]


class Outcome(NamedTuple):
  """One trained model.

  Attributes:
    score: on validation, of the best epoch.
    validation: what it says there; None where no grade needs it.
    test: what it says of the test inputs.
    seconds: training took, evaluations included, without imports.
  """

  score: float
  validation: np.ndarray | None
  test: np.ndarray
  seconds: float


def scikit(
  data: Any, budget: Budget, rate: float, seed: int, grade: Grade, score: str, better: int, folder: Path
) -> Outcome:
  """Trains an MLP of scikit-learn on a table, epoch by epoch, and keeps the best.

  On one thread: its products are small, and several only wait for each other.
  """
  import threadpoolctl
  from sklearn.neural_network import MLPClassifier, MLPRegressor

  del folder
  began, numbers = time.monotonic(), data.task.name == 'regression'
  given = {'hidden_layer_sizes': budget.sizes['widths'], 'learning_rate_init': rate, 'batch_size': budget.batch}
  model = (MLPRegressor if numbers else MLPClassifier)(**given, random_state=seed)
  train, validation, test = (
    (split.inputs - data.mean) / data.std for split in (data.train, data.validation, data.test)
  )
  labels, classes = data.train.labels, {}
  if numbers:
    mean, std = labels.mean(dtype=np.float64), labels.std(dtype=np.float64)
    labels = ((labels - mean) / std).ravel()
  elif labels.ndim == 2:
    labels, classes = labels.astype(int), {'classes': np.arange(labels.shape[1])}
  else:
    classes = {'classes': np.unique(labels)}

  def said(one: Any, inputs: np.ndarray) -> np.ndarray:
    if numbers:
      return one.predict(inputs) * std + mean
    proba = one.predict_proba(inputs)
    return proba if data.train.labels.ndim == 2 else proba[:, 1]

  best, kept = -np.inf, model
  with warnings.catch_warnings(), threadpoolctl.threadpool_limits(1):
    warnings.simplefilter('ignore')  # a last batch that is smaller is no fault
    for _ in range(budget.epochs):
      model.partial_fit(train, labels, **classes)
      found = Said(data.validation.labels, said(model, validation))
      value = better * grade(found, found)[score]
      if value > best:
        best, kept = value, copy.deepcopy(model)
    return Outcome(better * best, said(kept, validation), said(kept, test), time.monotonic() - began)


def pytorch(
  data: Any, budget: Budget, rate: float, seed: int, grade: Grade, score: str, better: int, folder: Path, *, python: str
) -> Outcome:
  """Trains the same network in another Python; arrays go there and come back as files."""
  del grade, score, better  # it has scores of its own, to choose the epoch by: the grade is taken of what it says
  folder.mkdir(parents=True, exist_ok=True)
  arrays = {}
  for where in ('train', 'validation', 'test'):
    split = getattr(data, where)
    for name, values in (split.inputs if isinstance(split.inputs, dict) else {'inputs': split.inputs}).items():
      if values.dtype == np.uint8:
        values = (values.astype(np.float32) - data.mean) / data.std
      arrays[f'{where}_{name}'] = values
    if where != 'test':
      arrays[f'{where}_labels'] = split.labels
  np.savez(folder / 'data.npz', **arrays)
  spec = {'task': data.task.name, 'folder': str(folder), 'epochs': budget.epochs, 'batch': budget.batch}
  spec |= {'rate': rate, 'seed': seed, 'sizes': budget.sizes}
  done = subprocess.run(
    [python, str(HERE / 'tasks_torch.py'), json.dumps(spec)], stdout=subprocess.PIPE, text=True, check=True
  )
  told = json.loads(done.stdout.splitlines()[-1])
  test = np.load(folder / 'said.npy')
  for path in (folder / 'data.npz', folder / 'said.npy'):
    path.unlink()
  folder.rmdir()
  return Outcome(told['score'], None, test, told['seconds'])
