"""From evidence to a verdict: `diagnose`, on a run's records alone or with what was measured on it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxlite.diagnosis import curves, thresholds
from jaxlite.diagnosis.verdict import Diagnosis, Finding


def diagnose(
  history: Sequence[Mapping[str, Any]],
  *,
  config: Mapping[str, Any] | None = None,
  facts: Mapping[str, Any] | None = None,
  task: str = '',
  failed: Mapping[str, Any] | None = None,
) -> Diagnosis:
  """Judges a run by its records.

  Args:
    history: points as metrics.jsonl has them: 'kind' ('train' or 'validation'), 'step', and numbers.
    config: of the run, as `config.json` has it, so that an action can be named in its fields; None where unknown.
    facts: of the task, such as 'classes'.
    task: its name.
    failed: of a run that ended on a number that is not finite: 'step' and 'where'.

  Returns:
    The Diagnosis.

  >>> points = [{'kind': 'train', 'step': step, 'loss': 2 / step} for step in range(1, 9)]
  >>> diagnose(points).verdict
  'unknown'
  """
  train = curves.curve(history, 'train', 'task', 'loss')
  validation = curves.curve(history, 'validation', 'loss')
  unknown: list[str] = []
  findings = _of_records(train, validation, facts or {}, task, failed, unknown)
  return _judged(findings, unknown, len(train.values), len(validation.values))


def _of_records(
  train: curves.Curve,
  validation: curves.Curve,
  facts: Mapping[str, Any],
  task: str,
  failed: Mapping[str, Any] | None,
  unknown: list[str],
) -> list[Finding]:
  """What the curves alone show."""
  found = []
  bad = int((~np.isfinite(train.values)).sum() + (~np.isfinite(validation.values)).sum())
  where = f'at step {failed.get("step")}, first in {failed.get("where")}' if failed else ''
  if bad or failed:
    said = f'the run met a number that is not finite {where}'.rstrip() if failed else f'{bad} points are not finite'
    found.append(Finding('not finite', said, float(max(bad, 1)), 0.0, True))
  train, validation = train.finite(), validation.finite()
  if len(train.values) < thresholds.LEAST_POINTS:
    unknown.append(f'the form of the training curve: it has {len(train.values)} points, {thresholds.LEAST_POINTS} are '
                   'the least that is looked at (log.every)')  # fmt: skip
  else:
    first, last = train.values[0], float(np.median(train.values[-3:]))
    found.append(_finding('blown up', f'the training loss went from {first:.4g} to {last:.4g}',
                          last / max(first, 1e-12), thresholds.BLOWN))  # fmt: skip
    rough = curves.roughness(train.values[len(train.values) // 4 :])
    found.append(_finding('unstable loss', f'from point to point the training loss moves by a factor of '
                          f'{math.exp(min(rough, 50)):.2f}', rough, thresholds.ROUGH))  # fmt: skip
    late = curves.late_progress(train.values)
    found.append(_finding('still falling', f'{late:.0%} of what the training loss gained came in the last quarter',
                          late, thresholds.FALLING))  # fmt: skip
  chance = _chance(task, facts)
  if chance is not None and len(train.values):
    gained = 1 - float(np.median(train.values[-3:])) / chance
    found.append(_finding('nothing learned', f'the training loss ended at {train.values[-1]:.4g}; guessing has '
                          f'{chance:.4g}', -gained, -thresholds.LEARNED))  # fmt: skip
  if not len(validation.values):
    unknown.append('overfitting, and whether what was learned holds: no validation split was looked at '
                   '(data.validation)')  # fmt: skip
  elif len(validation.values) < thresholds.LEAST_POINTS:
    unknown.append(f'whether validation turned: it was looked at {len(validation.values)} times, '
                   f'{thresholds.LEAST_POINTS} are the least (eval.every)')  # fmt: skip
  else:
    best, up = curves.rise(validation.values)
    found.append(_finding('overfitting', f'the validation loss was best at step {validation.steps[best]:,.0f} of '
                          f'{validation.steps[-1]:,.0f} with {validation.values[best]:.4g} and ended at '
                          f'{validation.values[-1]:.4g}', up, thresholds.RISE))  # fmt: skip
  return found


def _finding(name: str, evidence: str, value: float, threshold: float) -> Finding:
  return Finding(name, evidence, value, threshold, bool(value > threshold))


def _chance(task: str, facts: Mapping[str, Any]) -> float | None:
  """The loss of who knows nothing but how many classes there are; None where that is not known."""
  classes = facts.get('classes') if task in ('classification', 'segmentation', 'sequence_labels') else None
  classes = facts.get('vocabulary') if task == 'language' else classes
  if task in ('binary', 'multi_label'):
    return math.log(2)
  return math.log(classes) if isinstance(classes, int) and classes > 1 else None


def _judged(findings: list[Finding], unknown: list[str], points: int, looks: int) -> Diagnosis:
  order = ('not finite', 'blown up', 'unstable loss', 'nothing learned', 'overfitting')
  present = {one.name for one in findings if one.present}
  cause = next((name for name in order if name in present), '')
  ordered = tuple(sorted(findings, key=lambda one: (one.name != cause, not one.present)))
  certainty = f'from the records alone: {points} training points, {looks} validations'
  unknown = [*unknown, 'gradients, units, data and the program: nothing was measured (jl.diagnose with its config)']
  verdict = {'overfitting': 'overfitting', 'nothing learned': 'underfitting', '': 'unknown'}.get(cause, 'broken')
  if verdict == 'unknown' and looks >= thresholds.LEAST_POINTS and 'still falling' not in present:
    verdict = 'healthy'
    certainty += '; nothing is wrong with the curves, which is not all that can be wrong'
  elif verdict == 'unknown' and 'still falling' in present:
    cause, verdict = 'still falling', 'underfitting'
  return Diagnosis(verdict, cause, ordered, None, certainty, tuple(unknown))
