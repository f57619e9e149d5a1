"""K-fold cross-validation: several runs over one small data set, each tested on what the others trained on."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxlite import data as datasets
from jaxlite import errors
from jaxlite.config.reads import Reads, watched
from jaxlite.config.schema import Config
from jaxlite.report import page, tables
from jaxlite.report.result import Result
from jaxlite.run import loop
from jaxlite.run.aside import set_aside
from jaxlite.run.records import Log, Told, under
from jaxlite.run.setup import dataset_of
from jaxlite.run.workdir import check_workdir, lock


class CrossValidation(NamedTuple):
  """What k folds found.

  Attributes:
    results: one Result per fold.
    mean: of each metric over the folds.
    interval: the half width of its 95 % interval by Student's t. Folds share training examples, so it is too narrow
      by what they share: it tells chance between folds, not between data sets.
    table: the folds side by side, with the mean, for a terminal.
  """

  results: tuple[Result, ...]
  mean: dict[str, float]
  interval: dict[str, float]
  table: str

  def __repr__(self) -> str:
    return self.table


def cross_validate(
  config: Config,
  workdir: str | Path,
  *,
  data: Any = None,
  model: Callable[[], Any] | None = None,
  folds: int = 5,
  fresh: bool = False,
  command: str = '',
  say: Callable[[str], None] = print,
  log: Log | None = None,
) -> CrossValidation:
  """Trains one run per fold and tells how well the recipe does on examples it has not seen.

  Every example is tested exactly once; of what is left, `config.data.validation` picks the best model of its fold.
  Each fold is a run in a folder of its own, so that a killed cross-validation goes on where it stopped.

  Args:
    config: of every fold; its name gets '-fold1' and so on.
    workdir: the folder that holds the folds'.
    data: a Dataset, whose three splits are put together, or (inputs, labels); None as in `jaxlite.train`.
    model: () -> a network, called for each fold, since a network that was trained must not be trained on; None as in
      `jaxlite.train`.
    folds: how many, at least 2 and at most the examples of the rarest class.
    fresh: what is in the workdir is moved aside, and all folds start again.
    command: the command line, for the report.
    say: prints a line.
    log: as `jaxlite.train` takes it, for all folds: the kinds of the second are 'fold2/train', 'fold2/validation' and
      'fold2/test'.

  Returns:
    A CrossValidation.

  Raises:
    ValueError: folds that cannot be made; or as `jaxlite.train`.
    TypeError: a log that is no function; nothing was moved or made.
    Preempted: a signal came; the fold at work was saved.

  References:
    Stone, Cross-Validatory Choice and Assessment of Statistical Predictions, 1974,
    https://doi.org/10.1111/j.2517-6161.1974.tb00994.x
    Bengio and Grandvalet, No Unbiased Estimator of the Variance of K-Fold Cross-Validation, 2004,
    https://www.jmlr.org/papers/v5/grandvalet04a.html
  """
  told = None if log is None else Told(log, say)
  folder = check_workdir(workdir)
  if fresh and any(folder.iterdir()):
    say(f'moved the old runs to {set_aside(folder)}')
    check_workdir(workdir)
  reads = Reads()
  seen = watched(config, reads)
  errors.whole(folds, 'folds', least=2)
  _check_model(model)
  parts = datasets.folds(dataset_of(seen, data), folds, config.seed, validation=seen.data.validation)
  results = []
  with lock(folder):
    for number, part in enumerate(parts, start=1):
      say(f'\n== fold {number} of {len(parts)}')
      one = dataclasses.replace(config, name=f'{config.name}-fold{number}')
      network = model() if model is not None else None
      where = folder / one.name
      how = {'command': command, 'say': say, 'log': under(told, f'fold{number}')}
      results.append(loop.train_varied(one, where, reads.paths, model=network, data=part, **how))
    page.write(results, folder, [result.name for result in results])
  mean, interval = _spread(results)
  return CrossValidation(tuple(results), mean, interval, _table(results, mean, interval))


def _check_model(model: Any) -> None:
  """Raises TypeError where a network itself is given, which every fold would train further."""
  try:
    fits = model is None or (callable(model) and inspect.signature(model).bind() is not None)
  except TypeError:
    fits = False
  except ValueError:  # of a built-in function nothing is known
    fits = True
  if not fits or (not isinstance(model, type) and hasattr(model, 'apply')):  # Linen's take anything, or nothing
    raise TypeError(
      f'every fold trains a network of its own, made by a function () -> network; got {type(model).__name__}: give '
      'model=lambda: ...'
    )


def _spread(results: Sequence[Result]) -> tuple[dict[str, float], dict[str, float]]:
  """Means and half widths of the 95 % interval of what every fold has measured."""
  from scipy import stats

  shared = [name for name in results[0].metrics if all(name in result.metrics for result in results)]
  values = {name: np.array([result.metrics[name] for result in results], np.float64) for name in shared}
  quantile = float(stats.t.ppf(0.975, len(results) - 1)) / math.sqrt(len(results))
  return (
    {name: float(value.mean()) for name, value in values.items()},
    {name: quantile * float(value.std(ddof=1)) for name, value in values.items()},
  )


def _table(results: Sequence[Result], mean: dict[str, float], interval: dict[str, float]) -> str:
  rows = [row for row in results[0].rows if row[1] in mean]
  lines = [
    f'{label}: {tables.written(form, mean[name])} ± {tables.written(form, interval[name])}'
    for label, name, form in rows
  ]
  return '\n'.join([tables.table(results), '', f'mean of {len(results)} folds and 95 % interval:', *lines])
