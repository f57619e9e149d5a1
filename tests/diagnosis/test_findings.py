"""What is concluded from measurements: each law beside a healthy run, with the one thing changed that it is about."""

import math

import pytest

from jaxlite.diagnosis import diagnose
from jaxlite.diagnosis.distributions import Scales
from jaxlite.diagnosis.label_noise import Doubt
from jaxlite.diagnosis.look import Layer, Look
from jaxlite.diagnosis.measure import Measured
from jaxlite.diagnosis.steps import Walk

NAN = math.nan
CLEAN, NOISY = Doubt(0.0, 0.01, 0.0, 0.1, 160, 0.0), Doubt(0.25, 0.03, 0.25, 0.35, 160, 0.25)
LAYERS = tuple(Layer(name, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0) for name in 'ab')
LOOK = Look(1.5, LAYERS, 1.0, 100.0, {'relu 1': 0.1}, {})
WALK = Walk(80, 0.0, 0.004, (1.5, *[0.6] * 79), True, NAN, 0.02)
HEALTHY = Measured(
  task='classification', start=LOOK, end=LOOK._replace(loss=0.2), walk=WALK, moved=0.5, ends_in='', outside=NAN,
  loss_fits=None, chance_loss=1.39, kind='classes', train_loss=0.2, validation_loss=0.3, train_risk=0.07,
  validation_risk=0.11, validation_error=0.02, trivial=0.7, reference_risk=0.14, reference_train_risk=0.15,
  wrong_labels=CLEAN, wrong_by_model=CLEAN._replace(seen=40), wrong_by_reference=CLEAN._replace(seen=40),
  scales=Scales(1.0, 1.0, 0), twins=None, shares=(0.3, 0.25, 0.25, 0.2), recalls=(0.9,) * 4, shift=0.0,
  calibration=0.03, counts=(800, 200), missing=(),
)  # fmt: skip
POINTS = [{'kind': 'train', 'step': 10 * i, 'loss': 0.2 + 1.2 * 0.6**i} for i in range(1, 20)]


def verdict(history=POINTS, **changed):
  return diagnose(history, task='classification', facts={'classes': 4}, measured=HEALTHY._replace(**changed))


NOISE = {
  'wrong_labels': NOISY,
  'wrong_by_model': NOISY._replace(seen=40),
  'wrong_by_reference': NOISY._replace(seen=40),
}
NOISE |= {'train_risk': 0.3, 'validation_risk': 0.4, 'reference_risk': 0.4, 'reference_train_risk': 0.35}
POOR = {'train_risk': 0.6, 'validation_risk': 0.6, 'train_loss': 1.3, 'validation_loss': 1.3}
BY_HEART = {'train_risk': 0.0, 'validation_risk': 0.3, 'train_loss': 0.001, 'validation_loss': 1.5}
BY_HEART |= {'reference_risk': 0.35, 'reference_train_risk': 0.35}
LARGE = WALK._replace(ratio=0.05)
OFF = LOOK._replace(loss=50.0)
CASES = {
  'nothing': ({}, ''),
  'noise': (NOISE, 'label noise'),
  'noise in training alone': ({**NOISE, 'wrong_by_model': CLEAN._replace(seen=40), 'wrong_by_reference': CLEAN._replace(
    seen=40), 'validation_risk': 0.15, 'reference_risk': 0.2}, 'label noise'),
  'noise that the model does not see in validation': ({**NOISE, 'wrong_by_model': CLEAN._replace(seen=40)}, ''),
  'noise by a blind yardstick': ({**NOISE, 'wrong_labels': NOISY._replace(whole=0.69)}, ''),
  'noise of few': ({**NOISE, 'wrong_labels': NOISY._replace(seen=16)}, ''),
  'noise that goes with more examples': ({**NOISE, 'wrong_labels': NOISY._replace(limit=0.02)}, ''),
  'learned by heart': (BY_HEART, 'overfitting'),
  'learned by heart and noisy': ({**BY_HEART, 'wrong_labels': NOISY, 'wrong_by_model': NOISY,
                                  'wrong_by_reference': NOISY}, 'label noise'),
  'far from the yardstick': (POOR, 'underfitting'),
  'a little far, and alike': ({'train_risk': 0.14, 'validation_risk': 0.15, 'validation_error': 0.01, 'reference_risk':
                               0.05, 'reference_train_risk': 0.06}, 'underfitting'),
  'a little far, and not alike': ({'train_risk': 0.14, 'validation_risk': 0.21, 'validation_error': 0.01,
                                   'reference_risk': 0.05, 'reference_train_risk': 0.06}, ''),
  'large steps that learn': ({'walk': LARGE}, ''),
  'large steps that do not': ({'walk': LARGE._replace(losses=(1.5,) * 80), **POOR}, 'unstable loss'),
  'no size to begin with': ({'walk': WALK._replace(ratio=NAN), 'moved': NAN}, ''),
  'a start far off that was mended': ({'start': OFF}, ''),
  'a start far off that was not': ({'start': OFF, **POOR}, 'exploding gradient'),
  'large inputs that were learned': ({'scales': Scales(900.0, 1.0, 0), 'start': LOOK._replace(
    layers=(LAYERS[0]._replace(input=900.0), LAYERS[1]))}, ''),
  'large inputs that were not': ({'scales': Scales(900.0, 1.0, 0), 'start': LOOK._replace(
    layers=(LAYERS[0]._replace(input=900.0), LAYERS[1])), **POOR}, 'abnormal data'),
  'a layer that is not learned': ({'start': LOOK._replace(layers=(LAYERS[0]._replace(pull=NAN), *LAYERS)),
                                   **POOR}, 'underfitting'),
  'units cut off': ({'end': LOOK._replace(dead={})}, ''),
  'units dead, and well': ({'end': LOOK._replace(dead={'relu 1': 0.9})}, ''),
  'units dead, and poor': ({'end': LOOK._replace(dead={'relu 1': 0.9}), **POOR}, 'dying ReLU'),
}  # fmt: skip


@pytest.mark.parametrize('name', CASES)
def test_one_thing_changed(name):
  changed, cause = CASES[name]
  found = verdict(**changed)
  assert found.cause == cause, str(found)
  if cause in ('label noise', 'overfitting', 'underfitting'):
    assert 'likely, not certain' in found.certainty


def test_what_cannot_be_told_of_labels_is_said():
  assert any('a fifth is too few' in line for line in verdict(wrong_labels=NOISY._replace(seen=16)).unknown)
  assert any('learned nothing' in line for line in verdict(wrong_labels=NOISY._replace(whole=0.69)).unknown)
  assert not any('label noise' in line for line in verdict().unknown)


def test_a_rival_is_named():
  both = {**BY_HEART, 'wrong_labels': NOISY, 'wrong_by_model': NOISY, 'wrong_by_reference': NOISY}
  assert verdict(**both).certainty.endswith('what comes next is overfitting')


def test_a_loss_that_blew_up_late_is_unstable():
  """After a long warm-up, say: the steps that are taken again are the first."""
  late = [*POINTS, *({'kind': 'train', 'step': 200 + 10 * i, 'loss': 9.0} for i in range(8))]
  assert verdict(late).cause == 'unstable loss'


def test_what_learns_slowly_and_still_learns_is_slow():
  falling = [{'kind': 'train', 'step': 10 * i, 'loss': 1.4 - 0.01 * i} for i in range(1, 20)]
  assert verdict(falling, **POOR, moved=NAN).cause == 'slow convergence'


def test_a_model_that_knows_nothing_of_validation_is_not_called_healthy():
  """Labels that do not follow from the inputs: the yardstick learns nothing from them either."""
  blind = {'train_risk': 0.6, 'reference_risk': 0.69, 'reference_train_risk': 0.69, 'train_loss': 1.2}
  assert verdict(**blind).verdict == 'healthy'
  found = verdict(**blind, validation_risk=0.69, validation_loss=1.39)
  assert (found.verdict, found.cause) == ('unknown', '')
  assert any('does no better than guessing' in line for line in found.unknown)
  assert verdict(**blind, validation_risk=0.69, validation_loss=0.9).verdict == 'healthy'  # it ranks, at least


def test_numbers_that_are_further_off_than_their_mean_are_not_called_healthy():
  """One label that lies far out: the loss, in its units, is small, and says nothing."""
  numbers = {'task': 'regression', 'kind': 'numbers', 'chance_loss': 1.0, 'recalls': (), 'shares': (), 'trivial': 1.0}
  off = {'train_risk': 0.94, 'train_loss': 0.94, 'validation_loss': 0.04, 'reference_risk': 0.9}
  found = verdict(**numbers, **off, reference_train_risk=1.0, validation_risk=877.0)
  assert (found.verdict, found.cause) == ('unknown', ''), str(found)
  assert verdict(**numbers, **off, reference_train_risk=1.0, validation_risk=0.5).verdict == 'healthy'


def test_no_factor_raises_a_rate_of_zero():
  still = WALK._replace(ratio=0.0)
  found = verdict(**POOR, walk=still, moved=0.0)
  assert (found.cause, found.action) == ('slow convergence', None)
  assert 'the learning rate is 0' in found.findings[0].evidence
  assert verdict(**POOR, walk=WALK._replace(ratio=1e-9), moved=0.0).action.overrides == {'repair.rate': 1000.0}
