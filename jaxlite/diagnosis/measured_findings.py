"""From what was measured to findings: one function for each thing that may be wrong, each with its evidence."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from jaxlite.diagnosis import thresholds as at
from jaxlite.diagnosis.verdict import Finding

if TYPE_CHECKING:  # records alone are judged without JAX
  from jaxlite.diagnosis.measure import Measured

_LOGITS = ('classification', 'binary', 'multi_label', 'language', 'segmentation', 'sequence_labels')

# Roots first: what stands further down is often what they make.
ORDER = (
  'wrong output activation',
  'wrong loss',
  'broken inputs',
  'abnormal data',
  'leak',
  'label noise',
  'exploding gradient',
  'precision lost',
  'dying ReLU',
  'vanishing gradient',
  'unstable loss',
  'not finite',
  'class imbalance',
  'slow convergence',
  'distribution shift',
  'overfitting',
  'underfitting',
)


def found(measured: Measured, own_loss: bool, finite: bool) -> Iterator[Finding]:
  """Yields what was looked at.

  Args:
    measured: of the run.
    own_loss: whether the loss is the task's, or another of jaxlite's.
    finite: whether the run met no number that is not finite.
  """
  yield from _activation(measured, own_loss)
  yield from _loss(measured)
  yield from _data(measured, finite)
  yield from _labels(measured)
  yield from _start(measured, finite)
  yield from _way(measured, finite)
  yield from _fit(measured)


def one(name: str, evidence: str, value: float, threshold: float, also: bool = True) -> Finding:
  """A finding that is there where its value is above its threshold, and `also` holds."""
  return Finding(name, evidence, float(value), float(threshold), bool(value > threshold) and also)


def lacking(m: Measured) -> float:
  """Returns how much of what the yardstick learns (judged on examples it did not see) the model lacks on its own
  training examples; NaN where that says nothing."""
  if not (math.isfinite(m.train_risk) and math.isfinite(m.trivial)) or m.trivial <= 0:
    return math.nan
  gain = m.trivial - m.reference_train_risk if math.isfinite(m.reference_train_risk) else 0.0
  if gain < 0.1 * m.trivial:  # the yardstick learns nothing: all that is asked is that something was learned
    return 1.0 if m.train_risk > 0.95 * m.trivial else math.nan
  return (m.train_risk - m.reference_train_risk) / gain


def _alike(m: Measured) -> float:
  """As `lacking`, beside the yardstick on validation, of a model that is as wrong in training as in validation; NaN
  of any other: what it lacks, it may have spent on its training examples."""
  gap = m.validation_risk - m.train_risk
  close = gap < at.ALIKE * m.train_risk + 2 * m.validation_error
  gain = m.trivial - m.reference_risk
  if not close or not gain > 0.1 * m.trivial or m.train_risk < at.TWICE * max(m.reference_risk, m.reference_train_risk):
    return math.nan
  if m.validation_risk - m.reference_risk < 2 * m.validation_error:
    return math.nan
  return (m.train_risk - m.reference_risk) / gain


def is_poor(m: Measured) -> bool:
  """Tells whether a model clearly lacks what a yardstick learned."""
  return bool(lacking(m) > at.SHORT)


def _harmed(m: Measured, finite: bool) -> bool:
  """Whether a run came out worse than it could have, as far as that can be seen."""
  if not finite or (m.walk is not None and not m.walk.finite):
    return True
  if not math.isfinite(m.train_loss):
    return m.end is not None  # of a run that left no end nobody knows
  losses = [one for one in (m.train_loss, m.validation_loss) if math.isfinite(one)]
  if math.isfinite(m.chance_loss) and max(losses) > at.STANDS * m.chance_loss:
    return True
  short = lacking(m)
  behind = (m.validation_risk - m.reference_risk - 2 * m.validation_error) / max(m.trivial, 1e-12)
  return bool(short > at.HARMED or behind > at.HARMED)


def _jumps(m: Measured) -> bool:
  """Whether steps are far larger than any that learn."""
  walk = m.walk
  if walk is None:
    return False
  late = float(np.median(walk.losses[len(walk.losses) // 3 :])) if walk.losses else math.nan
  known = [one for one in (m.chance_loss, *walk.losses[:1]) if math.isfinite(one)]
  risen = bool(known) and late > at.RISEN * max(known)
  stands = bool(known) and walk.ratio > at.JUMP and late > at.STANDS * min(known)
  return not walk.finite or walk.raised > at.RAISED or risen or stands


def _activation(m: Measured, own_loss: bool) -> Iterator[Finding]:
  if m.task == 'regression':
    if m.ends_in:
      yield one('wrong output activation', f'the network ends in a {m.ends_in}, beyond whose range {m.outside:.0%} of '
                'the labels lie', m.outside, at.OUTSIDE)  # fmt: skip
  elif m.task in _LOGITS and own_loss:
    said = (
      f'the network ends in a {m.ends_in}, and its loss takes logits' if m.ends_in else 'the network ends in logits'
    )
    yield one('wrong output activation', said, float(bool(m.ends_in)), 0.5)


def _loss(m: Measured) -> Iterator[Finding]:
  if m.loss_fits is None:
    return
  before, by_loss, by_own = m.loss_fits
  gained = by_own - before
  lost = (by_own - by_loss) / gained if gained > 1e-6 else 0.0
  lost = 1.0 if not math.isfinite(by_loss) else lost
  yield one('wrong loss', f'outputs that are free to lower it come to a score of {by_loss:.3g}, by the loss '
            f'of the task to {by_own:.3g}', lost, at.WRONG_LOSS)  # fmt: skip


def _data(m: Measured, finite: bool) -> Iterator[Finding]:
  if m.scales is not None:
    yield one('broken inputs', f'{m.scales.broken:,} values of the inputs are not finite', m.scales.broken, 0)
    first = m.start.layers[0].input if m.start is not None and m.start.layers else m.scales.largest
    seen = min(m.scales.largest, first * 3) if math.isfinite(first) else m.scales.largest
    yield one('abnormal data', f'a feature lies or deviates by {m.scales.largest:.3g}, and the first layer gets values '
              f'of size {first:.3g}', seen, at.UNSCALED, _harmed(m, finite))  # fmt: skip
  if m.twins is not None:
    natural = 2 * m.twins.within  # of inputs that have few values, equal ones are no wonder
    yield one('leak', f'{m.twins.between:.1%} of the held-out examples are among the training examples '
              f'({m.twins.within:.1%} of those are there twice)', m.twins.between, max(at.LEAK, natural))  # fmt: skip
  if m.counts[1]:
    yield one('distribution shift', f'a feature is distributed otherwise in validation, by {m.shift:.2f} beyond chance',
              m.shift, at.SHIFT)  # fmt: skip


def is_blind(m: Measured) -> bool:
  """Tells whether the yardstick that doubts labels has learned nothing: then its confidence says nothing either."""
  return m.kind in ('classes', 'labels') and m.wrong_labels is not None and m.wrong_labels.whole > 0.9 * m.trivial


def _cleared(m: Measured) -> bool:
  """Whether validation shows that labels are right: the model knows better than the yardstick."""
  doubt, seen = m.wrong_labels, m.wrong_by_reference
  if doubt is not None and seen is not None and seen.seen >= at.LEAST_SUREST:
    apart = doubt.raw - seen.raw
    if apart > at.WRONG_LABELS + 3 * math.hypot(doubt.error, seen.error):
      return False  # one learner, and training labels contradict it as those of validation do not
  if m.validation_risk < 0.5 * m.reference_risk:
    return True
  model = m.wrong_by_model
  return m.kind != 'numbers' and model is not None and model.seen >= at.LEAST_SUREST and model.raw < at.WRONG_LABELS


def _labels(m: Measured) -> Iterator[Finding]:
  if m.wrong_labels is not None and m.wrong_labels.seen >= at.LEAST_SUREST and not is_blind(m):
    doubt = m.wrong_labels
    yield one('label noise', f'of the examples that are called with most confidence by who did not see them, '
              f'{doubt.raw:.1%} are labeled otherwise (or what decides is not in the inputs)',
              doubt.limit - 1.5 * doubt.error * (m.kind != 'numbers'), at.WRONG_LABELS, not _cleared(m))  # fmt: skip
  if len(m.shares) > 1 and m.recalls and any(share > 0 for share in m.shares):
    shares = np.array(m.shares)
    if m.kind == 'labels':
      rarest = int(shares.argmin())
      ratio = (1 - shares[rarest]) / max(shares[rarest], 1e-9)
    else:
      rarest = int(np.where(shares > 0, shares, np.inf).argmin())
      ratio = shares.max() / max(shares[rarest], 1e-9)
    recall = m.recalls[rarest] if rarest < len(m.recalls) else math.nan
    missed = bool(recall < at.MISSED)
    yield one('class imbalance', f'the rarest class is {shares[rarest]:.1%} of training, {ratio:.1f} times rarer than '
              f'the most frequent, and {recall:.0%} of it is found', ratio, at.RARE, missed)  # fmt: skip


def _start(m: Measured, finite: bool) -> Iterator[Finding]:
  start = m.start
  if start is None:
    return
  if math.isfinite(m.chance_loss) and m.chance_loss > 0:
    grown = start.loss / m.chance_loss if math.isfinite(start.loss) else math.inf
    yield one('exploding gradient', f'the loss begins at {start.loss:.3g}, where knowing nothing has '
              f'{m.chance_loss:.3g}; the gradient has norm {start.gradient:.3g}', grown, at.BLOWN_START,
              _harmed(m, finite))  # fmt: skip
  learned = [layer for layer in start.layers if math.isfinite(layer.pull)]
  if len(learned) > 1:
    early = learned[:-1]
    pulls = [layer.pull for layer in early]
    apart = max(layer.pull for layer in learned) / max(min(pulls), 1e-30)
    dull = min(early, key=lambda layer: layer.spread if math.isfinite(layer.spread) else math.inf)
    value = max(apart / at.PULL, at.SPREAD / max(dull.spread, 1e-30))
    yield one('vanishing gradient', f'at the start layers differ by {apart:.1e} in what they do to the loss, and '
              f'{dull.name} answers examples with a deviation of {dull.spread:.1e}', value, 1.0,
              is_poor(m))  # fmt: skip


def _moves(ratio: float, moved: float) -> str:
  """How far steps go, in words."""
  if not math.isfinite(ratio):
    return 'all weights begin at zero, so that a step has no size beside them'
  return f'a step changes the weights by {ratio:.1e} of their size, the run by {moved:.3g} times it'


def _way(m: Measured, finite: bool) -> Iterator[Finding]:
  if m.end is not None and m.end.dead:
    place, share = max(m.end.dead.items(), key=lambda pair: pair[1])
    born = m.start.dead.get(place, 0.0) if m.start is not None else 0.0
    killed = _jumps(m) and born < 0.5 * at.DEAD  # by steps that are too large
    yield one('dying ReLU', f'{share:.0%} of the units of {place} answer no example ({born:.0%} at the start)', share,
              at.DEAD, is_poor(m) and not killed)  # fmt: skip
  if m.end is not None and m.end.saturated:
    place, share = max(m.end.saturated.items(), key=lambda pair: pair[1])
    yield Finding('saturation', f'{share:.0%} of the values of {place} are at an end of their range', share, math.nan,
                  False)  # fmt: skip
  walk = m.walk
  if walk is not None:
    value = 1.0 if _jumps(m) or not finite else walk.raised
    yield one('unstable loss', f'{walk.raised:.0%} of {walk.steps} steps from the start made the loss of their own '
              f'batch larger; {_moves(walk.ratio, m.moved)}', value, at.RAISED)  # fmt: skip
    if math.isfinite(walk.unchanged):
      yield one('precision lost', f'{walk.unchanged:.0%} of the weights in few bits stay as they are at a step',
                walk.unchanged, at.UNCHANGED)  # fmt: skip
  if m.end is not None:
    scale = m.end.noise_scale
    said = 'are noise: no signal was found in them' if math.isinf(scale) else f'of {scale:,.0f} examples are half noise'
    yield Finding('noise scale', f'gradients {said}', scale, math.nan, False)


def _fit(m: Measured) -> Iterator[Finding]:
  short = lacking(m)
  if math.isfinite(short):
    alike = _alike(m)
    little = alike > at.SHORT_ALIKE and not short > at.SHORT
    went = (
      f'the weights moved by {m.moved:.1%} of their size' if math.isfinite(m.moved) else 'all weights began at zero'
    )
    if m.walk is not None and m.walk.ratio == 0:
      went += ': no step changes them, so the learning rate is 0, or what should learn is frozen'
    yield one('slow convergence', went, -m.moved, -at.MOVED, is_poor(m))
    yield one('underfitting', f"the model's error on its own training examples is {m.train_risk:.3g}; a quick fit "
              f'that did not see them has {m.reference_train_risk:.3g}, on validation {m.reference_risk:.3g}, guessing '
              f'{m.trivial:.3g}', alike if little else short, at.SHORT_ALIKE if little else at.SHORT)  # fmt: skip
  if math.isfinite(m.validation_loss) and math.isfinite(m.train_loss) and m.validation_loss > 0:
    gap = (m.validation_loss - m.train_loss) / m.validation_loss
    apart = m.validation_risk - m.train_risk
    gained = max(0.0, m.trivial - m.validation_risk)
    by_heart = m.train_loss < at.BY_HEART * m.validation_loss
    most = (at.APART_BY_HEART if by_heart else at.APART) * gained + 2 * m.validation_error
    wide = apart > most if math.isfinite(apart) else True
    yield one('overfitting', f'the loss is {m.train_loss:.3g} in training and {m.validation_loss:.3g} in validation; '
              f'errors {m.train_risk:.3g} and {m.validation_risk:.3g}', gap, at.GAP, wide)  # fmt: skip
  if math.isfinite(m.calibration):
    yield Finding('calibration', f'probabilities are {m.calibration:.1%} off on the average (ECE of '
                  f'{m.counts[1]:,} examples)', m.calibration, math.nan, False)  # fmt: skip
