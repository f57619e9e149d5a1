"""Cheap measurements of a run with its data: a few batches at its start and at its end, some steps from its start.

One program looks at a state (gradients by layer, units, scales), the run's own step takes the steps, and its own
evaluation gives outputs on some thousand examples. Nothing is written, and the run is as it was.
"""

from __future__ import annotations

import time
from typing import Any, NamedTuple

from jaxlite.diagnosis.distributions import Scales
from jaxlite.diagnosis.ends import of_program
from jaxlite.diagnosis.label_noise import Doubt
from jaxlite.diagnosis.look import Look, Looker, Subject
from jaxlite.diagnosis.outcomes import of_data, outputs_of, some
from jaxlite.diagnosis.steps import Walk, moved, walk
from jaxlite.diagnosis.twins import Twins


class Measured(NamedTuple):
  """All that was measured; None where it could not be, and `missing` says why.

  Attributes:
    task: its name.
    start, end: the two looks.
    walk: steps from the start.
    moved: |end - start| / |start| over the weights that do not begin at zero; NaN where all do.
    ends_in: what the network's outputs are made by.
    outside: the share of labels that such outputs cannot reach; NaN where it is not known.
    loss_fits: scores of descending the losses on free outputs (`program.fits_labels`); None for the task's own loss.
    kind: how risks are counted, as of a `Reference`; '' where they are not.
    chance_loss: the run's loss of outputs that are alike for all; NaN where it is not known.
    train_loss, validation_loss: the run's loss in evaluation mode.
    train_risk, validation_risk: of the model.
    validation_error: the standard error of `validation_risk`.
    trivial: the risk of who knows the labels' shares alone.
    reference_risk: of the best quick learner on validation, by cross-validation where there is none.
    reference_train_risk: by cross-validation.
    wrong_labels: of training, as a fit in closed form sees it.
    wrong_by_model: the same of validation, by the model.
    wrong_by_reference: the same of validation, by that fit.
    scales: of the inputs as the network gets them.
    twins: between splits.
    shares: of the classes in training, or of each label; empty where there are none.
    recalls: of the classes on validation; NaN where one has no example there.
    shift: between training and validation, in the largest feature, beyond chance.
    calibration: expected calibration error on validation; NaN where outputs are no probabilities.
    counts: examples of training and validation that were looked at.
    missing: what was not measured and why.
  """

  task: str
  start: Look | None
  end: Look | None
  walk: Walk | None
  moved: float
  ends_in: str
  outside: float
  loss_fits: tuple[float, float, float] | None
  chance_loss: float
  kind: str
  train_loss: float
  validation_loss: float
  train_risk: float
  validation_risk: float
  validation_error: float
  trivial: float
  reference_risk: float
  reference_train_risk: float
  wrong_labels: Doubt | None
  wrong_by_model: Doubt | None
  wrong_by_reference: Doubt | None
  scales: Scales | None
  twins: Twins | None
  shares: tuple[float, ...]
  recalls: tuple[float, ...]
  shift: float
  calibration: float
  counts: tuple[int, int]
  missing: tuple[str, ...]


def of_start(found: Measured) -> Measured:
  """Returns what was measured but for what it says of an end. A run that left none was looked at where it began, and
  untrained weights are no evidence of how it came out."""
  gone: Any = dict.fromkeys(('moved', 'train_loss', 'validation_loss', 'train_risk', 'validation_risk'), float('nan'))
  gone |= {'validation_error': float('nan'), 'calibration': float('nan'), 'recalls': (), 'wrong_by_model': None}
  return found._replace(end=None, **gone)


def measure(subject: Subject, seconds: float = 60.0, looker: Looker | None = None) -> Measured:
  """Measures a run.

  Args:
    subject: the run.
    seconds: after so many no further step is taken; what was begun is finished.
    looker: of the same run, where one is at hand.
  """
  until = time.monotonic() + seconds
  missing: list[str] = []
  data, task = subject.data, subject.data.task
  looker = looker or Looker(subject)
  start, end = looker.look(subject.start), looker.look(subject.end)
  if looker.inside:
    missing.append(f'units and scales inside {looker.inside} loops of the program (scan, while, cond)')
  steps = walk(subject, looker, until, missing)
  train, validation = (some(getattr(data, name)) for name in ('train', 'validation'))
  if train is None:
    missing.append('data: the training examples come from a stream')
  seen = outputs_of(subject, train, subject.end) if train is not None else None
  held = outputs_of(subject, validation, subject.end) if validation is not None else None
  if validation is None:
    missing.append('what holds beyond the training examples: there is no validation split (data.validation)')
  found: dict[str, Any] = {'kind': '', 'shares': (), 'recalls': (), 'calibration': float('nan'), 'shift': 0.0}
  found |= dict.fromkeys(('train_risk', 'validation_risk', 'validation_error', 'trivial'), float('nan'))
  found |= dict.fromkeys(('reference_risk', 'reference_train_risk'), float('nan'))
  found |= dict.fromkeys(('wrong_labels', 'wrong_by_model', 'wrong_by_reference', 'scales', 'twins'))
  if train is not None:
    found |= of_data(subject, train, validation, seen, held, missing)
  count = lambda part: 0 if part is None else len(part[1])  # noqa: E731
  return Measured(
    task=task.name,
    start=start,
    end=end,
    walk=steps,
    moved=moved(subject.start.params, subject.end.params),
    **of_program(subject, looker, missing, None if train is None else train[1]),
    train_loss=float('nan') if seen is None else seen[1],
    validation_loss=float('nan') if held is None else held[1],
    counts=(count(train), count(validation)),
    **found,
    missing=tuple(missing),
  )
