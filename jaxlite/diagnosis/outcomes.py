"""What comes out of a run, beside its data: losses and errors on both splits, yardstick, labels, shares, recalls."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from jaxlite.data import batches
from jaxlite.diagnosis import distributions, label_noise, reference, twins
from jaxlite.diagnosis.look import Subject
from jaxlite.step.state import TrainState
from jaxlite.tasks import is_built_in

_MOST_HASHED = 500_000  # training examples


def outputs_of(subject: Subject, part: Any, state: TrainState) -> tuple[np.ndarray, float]:
  """Returns a state's outputs for the first of these examples, as it is evaluated, and its loss on them: of
  outputs that are many (logits of a large vocabulary), so many as fit."""
  inputs, labels, weight = part
  split = type(subject.data.validation)(inputs, labels, weight)
  outs, losses, weights = [], [], []
  for batch in batches.eval_batches(split, min(256, subject.batch_size)):
    outputs, terms = subject.train.eval(state, batch)
    weights.append(float(np.asarray(batch['weight']).sum()))
    losses.append(float(terms['task']) * weights[-1])
    outs.append(np.asarray(jax.device_get(outputs), np.float32) if hasattr(outputs, 'shape') else np.zeros(0))
    if sum(one.size for one in outs) > distributions.MOST_VALUES:
      break
  total = np.concatenate(outs)[: len(labels)] if outs else np.zeros(0)
  return total, float(np.sum(losses) / max(np.sum(weights), 1e-12))


def some(split: Any) -> Any:
  """(inputs, labels, weight) of at most so many examples, drawn from all that count; None where there are none."""
  labels = getattr(split, 'labels', None)
  if labels is None or not len(labels) or not hasattr(split, 'inputs'):
    return None
  own = getattr(split, 'weight', None)
  rows = np.arange(len(labels)) if own is None else np.flatnonzero(np.asarray(own) > 0)
  if not len(rows):
    return None
  rows = np.random.default_rng(0).permutation(rows)[: reference.MOST]  # any first part is spread over all
  taken = split.take(rows)
  return taken['inputs'], np.asarray(taken['labels']), taken.get('weight')


def _learned(split: Any) -> Any:
  """The inputs of a split that count: what weighs nothing is not learned."""
  if split.weight is None or (np.asarray(split.weight) > 0).all():
    return split.inputs
  return split.take(np.flatnonzero(np.asarray(split.weight) > 0))['inputs']


def scores_of(kind: str, task: Any, facts: Any, outputs: np.ndarray, labels: np.ndarray) -> np.ndarray | None:
  """A model's outputs as a `Reference` has its scores; None where they are of another form."""
  with np.errstate(over='ignore', invalid='ignore'):
    if kind == 'classes' and task == 'classification' and outputs.ndim == 2:
      top = outputs - outputs.max(1, keepdims=True)
      return np.exp(top) / np.exp(top).sum(1, keepdims=True)
    if kind == 'classes' and task == 'binary':
      logit = outputs[:, 1] - outputs[:, 0] if outputs.ndim == 2 and outputs.shape[1] == 2 else outputs.reshape(-1)
      share = 1 / (1 + np.exp(-logit.astype(np.float64)))
      return np.stack([1 - share, share], 1) if len(share) == len(labels) else None
    if kind == 'labels' and outputs.shape == labels.shape:
      return 1 / (1 + np.exp(-outputs.astype(np.float64)))
    if kind == 'numbers' and outputs.size == labels.size:
      return outputs.reshape(len(labels), -1)
    if kind == 'tokens' and outputs.ndim == 3 and outputs.shape[:2] == labels.shape:
      logs = outputs - outputs.max(-1, keepdims=True)
      logs = logs - np.log(np.exp(logs).sum(-1, keepdims=True))
      return np.maximum(np.exp(np.take_along_axis(logs, np.maximum(labels, 0)[..., None], -1)[..., 0]), 1e-12)
  return None


def of_data(subject: Subject, train: Any, validation: Any, seen: Any, held: Any, missing: list[str]) -> dict[str, Any]:
  """What data and outputs show together."""
  data = subject.data
  task, facts = data.task, data.facts
  kind = reference.KINDS.get(task.name, '') if is_built_in(task) else ''
  if not kind:
    missing.append(f'label noise, underfitting and rare classes: no measure of them for the task {task.name}')
  found: dict[str, Any] = {'kind': kind}
  found['scales'] = distributions.scales(train[0], data.mean, data.std)
  others = [split.inputs for split in (data.validation, data.test) if len(split.labels)]
  if others and len(data.train.labels) <= _MOST_HASHED:
    found['twins'] = twins.twins(_learned(data.train), others)
  elif others:
    missing.append(f'leaks: there are more than {_MOST_HASHED:,} training examples')
  if validation is not None:
    one, two = reference.features(train[0]), reference.features(validation[0])
    if one is not None and two is not None and one.shape[1] == two.shape[1]:
      found['shift'] = distributions.shift(one, two)
  if not kind:
    return found
  empty = (jax.tree.map(lambda leaf: leaf[:0], train[0]), train[1][:0])
  quick = reference.reference(task.name, facts, train[:2], validation[:2] if validation is not None else empty)
  labels: Any = train[1][: len(seen[0])]
  truth: Any = None if held is None else validation[1][: len(held[0])]
  own: Any = scores_of(kind, task.name, facts, seen[0], labels)
  other: Any = None if held is None else scores_of(kind, task.name, facts, held[0], truth)
  found['trivial'] = trivial(kind, train[1])
  good = lambda scores: scores is not None and np.isfinite(scores).all()  # noqa: E731
  if good(own):
    found['train_risk'] = float(reference.risks(kind, own, labels).mean())
  if good(other):
    each = reference.risks(kind, other, truth)
    found |= {'validation_risk': float(each.mean()), 'validation_error': float(each.std() / np.sqrt(len(each)))}
    found['wrong_by_model'] = label_noise.contradicted(kind, other, truth)
    if kind == 'classes':
      called = other.argmax(1)
      found['recalls'] = tuple(
        float((called[truth == c] == c).mean()) if (truth == c).any() else float('nan') for c in range(other.shape[1])
      )
      found['calibration'] = _calibration(truth, other)
    elif kind == 'labels':
      called = other > 0.5
      truth = truth > 0.5
      found['recalls'] = tuple(
        float(called[truth[:, c], c].mean()) if truth[:, c].any() else float('nan') for c in range(truth.shape[1])
      )
  weight = np.ones(len(train[1])) if train[2] is None else np.asarray(train[2], np.float64)
  if kind == 'classes':
    count = np.bincount(train[1], weight, minlength=int(facts.get('classes') or 2))
    found['shares'] = tuple((count / weight.sum()).tolist())
  elif kind == 'labels':
    found['shares'] = tuple(np.average(train[1] > 0.5, axis=0, weights=weight).tolist())
  if quick is None:
    missing.append('label noise and underfitting: there is no yardstick for inputs of this form')
    return found
  found['wrong_labels'] = label_noise.noise(quick)
  if len(quick.validation):
    found['wrong_by_reference'] = label_noise.contradicted(kind, quick.validation, quick.validation_labels)
  best, best_validation = quick.train, quick.validation
  if len(quick.best_train):
    best, best_validation = quick.best_train, quick.best_validation
  found['reference_train_risk'] = float(reference.risks(kind, best, quick.train_labels).mean())
  found['reference_risk'] = found['reference_train_risk']
  if len(best_validation):
    found['reference_risk'] = float(reference.risks(kind, best_validation, quick.validation_labels).mean())
  return found


def _calibration(labels: np.ndarray, scores: np.ndarray) -> float:
  from jaxlite.tasks.reliability import calibration_error

  return calibration_error(labels, scores / scores.sum(1, keepdims=True))


def trivial(kind: str, labels: np.ndarray) -> float:
  """The risk of who answers every example alike, and as well as that goes."""
  labels = np.asarray(labels)
  if kind == 'classes':
    return float(1 - np.bincount(labels).max() / len(labels))
  if kind == 'labels':
    share = np.mean(labels > 0.5, axis=0)
    return float(np.mean(np.minimum(share, 1 - share)))
  if kind == 'numbers':
    return 1.0
  shares = np.bincount(labels[labels >= 0].ravel())
  shares = shares[shares > 0] / shares.sum()
  return float(-np.sum(shares * np.log(shares)))
