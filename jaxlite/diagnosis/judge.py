"""From evidence to a verdict: `diagnose`, on a run's records alone or with what was measured on it."""

from __future__ import annotations

import math
import shlex
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxlite.config.command_line import split
from jaxlite.diagnosis import curves, measured_findings, thresholds
from jaxlite.diagnosis.actions import Known, action_for
from jaxlite.diagnosis.verdict import Diagnosis, Finding, flags

if TYPE_CHECKING:  # records alone are judged without JAX
  from jaxlite.diagnosis.measure import Measured


def diagnose(
  history: Sequence[Mapping[str, Any]],
  *,
  config: Mapping[str, Any] | None = None,
  facts: Mapping[str, Any] | None = None,
  task: str = '',
  failed: Mapping[str, Any] | None = None,
  measured: Measured | None = None,
  read: Collection[str] | None = None,
  own_loss: bool = True,
  command: str = '',
  workdir: str = 'runs/next',
) -> Diagnosis:
  """Judges a run by its records, and by what was measured on it where that is given.

  Args:
    history: points as metrics.jsonl has them: 'kind' ('train' or 'validation'), 'step', and numbers.
    config: of the run, as `config.json` has it, so that an action can be named in its fields; None where unknown.
    facts: of the task, such as 'classes'.
    task: its name.
    failed: of a run that ended on a number that is not finite: 'step' and 'where'.
    measured: what `measure` gave; None judges by the records alone.
    read: the fields of the config that the run depends on; None where nobody noted it.
    own_loss: whether the loss is the task's, or another of jaxlite's.
    command: the command line of the run, for that of the action.
    workdir: the folder that the action's run is to have.

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
  known = Known(config or {}, read, measured)
  if measured is None:
    return _by_records(findings, unknown, known, len(train.values), len(validation.values), (command, workdir))
  return _by_measures(findings, unknown, known, own_loss, (train, validation), (command, workdir))


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


def _by_records(
  findings: list[Finding], unknown: list[str], known: Known, points: int, looks: int, ran: tuple[str, str]
) -> Diagnosis:
  order = ('not finite', 'blown up', 'unstable loss', 'nothing learned', 'overfitting')
  present = {one.name for one in findings if one.present}
  cause = next((name for name in order if name in present), '')
  certainty = f'from the records alone: {points} training points, {looks} validations'
  unknown = [*unknown, 'gradients, units, data and the program: nothing was measured (jl.diagnose with its config)']
  verdict = {'overfitting': 'overfitting', 'nothing learned': 'underfitting', '': 'unknown'}.get(cause, 'broken')
  if verdict == 'unknown' and 'still falling' in present:
    cause, verdict = 'still falling', 'underfitting'
  elif verdict == 'unknown' and looks >= thresholds.LEAST_POINTS and points >= thresholds.LEAST_POINTS:
    verdict = 'healthy'
    certainty += '; nothing is wrong with the curves, which is not all that can be wrong'
  return _diagnosis(verdict, cause, findings, known, certainty, unknown, ran)


def _by_measures(
  findings: list[Finding], unknown: list[str], known: Known, own_loss: bool, seen: tuple[Any, Any], ran: tuple[str, str]
) -> Diagnosis:
  measured = known.measured
  assert measured is not None  # or the records alone were asked
  finite = not any(one.name == 'not finite' and one.present for one in findings)
  by_curve = {one.name: one for one in findings}
  own = [_joined(one, by_curve, measured) for one in measured_findings.found(measured, own_loss, finite)]
  names = {one.name for one in own}
  own += [one._replace(present=one.present and one.name == 'not finite') for one in findings if one.name not in names]
  present = [name for name in measured_findings.ORDER if any(one.name == name and one.present for one in own)]
  cause = present[0] if present else ''
  unknown = [*unknown, *measured.missing]
  train, validation = measured.counts
  certainty = f'from {train:,} training and {validation:,} validation examples, {len(seen[0].values)} training points'
  if measured.walk is not None:
    certainty += f' and {measured.walk.steps} steps taken again'
  if 0 < validation < thresholds.LEAST_VALIDATION:
    unknown.append(f'what is between training and validation: {validation} examples are few, '
                   f'{thresholds.LEAST_VALIDATION} are the least')  # fmt: skip
  if measured.wrong_labels is not None and measured.wrong_labels.seen < thresholds.LEAST_SUREST:
    unknown.append(f'label noise: of {train:,} training examples a fifth is too few to tell wrong labels from classes '
                   'that are not learned yet')  # fmt: skip
  if measured_findings.is_blind(measured):
    unknown.append('label noise: the yardstick learned nothing from these inputs')
  verdict = cause if cause in ('overfitting', 'underfitting') else 'broken' if cause else 'healthy'
  if cause == 'slow convergence':
    verdict = 'underfitting'
  unseen = measured.kind == '' or measured.end is None or validation < thresholds.LEAST_VALIDATION
  if verdict == 'healthy' and unseen:
    verdict, certainty = 'unknown', f'{certainty}; nothing wrong was found, and too little could be looked at'
  if verdict == 'healthy' and _knows_nothing(measured):
    verdict, certainty = 'unknown', f'{certainty}; nothing wrong was found, and nothing was learned'
    unknown.append('whether the labels follow from these inputs at all: on validation the model does no better than '
                   'guessing')  # fmt: skip
  if cause in _LIKELY:
    rivals = [name for name in present[1:] if name in _LIKELY] or [_LIKELY[cause]]
    certainty += f'; likely, not certain: what comes next is {rivals[0]}'
  return _diagnosis(verdict, cause, own, known, certainty, unknown, ran)


def _knows_nothing(m: Measured) -> bool:
  """Whether neither the answers nor the loss on validation are better than those of who knows nothing. Of numbers the
  answers alone tell: a label that lies far out makes every loss small beside it."""
  guessed = m.validation_risk > m.trivial - 2 * m.validation_error
  lost = m.kind == 'numbers' or m.validation_loss > (1 - thresholds.LEARNED) * m.chance_loss
  return bool(guessed and lost)


# Causes that are judged beside a yardstick, and what looks alike to it where nothing else was found.
_LIKELY = {
  'label noise': 'that what decides is not in the inputs',
  'overfitting': 'label noise',
  'underfitting': 'that no network does better on these inputs',
  'slow convergence': 'underfitting',
}


def _joined(one: Finding, by_curve: Mapping[str, Finding], measured: Measured) -> Finding:
  """A finding that curves have a say in too."""
  if one.name == 'slow convergence' and not one.present:  # it lacks what could be learned, and was still learning
    late = by_curve.get('still falling')
    if late is not None and late.value > 1.5 * thresholds.FALLING and measured_findings.is_poor(measured):
      return one._replace(evidence=f'{one.evidence}; {late.evidence}', present=True)
  if one.name == 'unstable loss' and not one.present:  # later than the steps that were taken again
    blown = by_curve.get('blown up')
    if blown is not None and blown.present:
      return one._replace(evidence=f'{one.evidence}; {blown.evidence}', present=True)
  return one


def _diagnosis(
  verdict: str,
  cause: str,
  findings: Sequence[Finding],
  known: Known,
  certainty: str,
  unknown: Sequence[str],
  ran: tuple[str, str],
) -> Diagnosis:
  ordered = tuple(sorted(findings, key=lambda one: (one.name != cause, not one.present)))
  action = action_for(cause, known) if cause else None
  command, workdir = ran
  if action is not None and command:
    action = action._replace(command=with_overrides(command, action.overrides, workdir))
  return Diagnosis(verdict, cause, ordered, action, certainty, tuple(unknown))


def with_overrides(command: str, overrides: Mapping[str, Any], workdir: str) -> str:
  """Returns a run's command line with fields set, in a folder of its own.

  Args:
    command: as the run or its diagnosis was called.
    overrides: fields by path; what the command says of the same ones is left out.
    workdir: of the new run.

  >>> with_overrides('jaxlite --config=a.py --mode diagnose --config.optim.lr 1', {'optim.lr': 0.01}, 'runs/b')
  'jaxlite --config=a.py --workdir=runs/b --config.optim.lr=0.01'
  """
  rest, pairs = split(shlex.split(command))
  kept, waiting = [], iter(rest)
  for word in waiting:
    name = word.lstrip('-').partition('=')[0]
    if word.startswith('-') and name in ('mode', 'workdir', 'minutes'):
      if '=' not in word:
        next(waiting, None)
    elif name not in ('act', 'fresh') or not word.startswith('-'):
      kept.append(word)
  lengths = any(path.startswith('train.') for path in overrides)
  for path, text in pairs:
    if path not in overrides and not (lengths and path.startswith('train.')):
      kept.append(f'--config.{path}' if text is None else f'--config.{path}={text}')
  return f'{shlex.join([*kept, f"--workdir={workdir}"])} {flags(overrides)}'
